// Print the model in service and map its engine into memory, as a firmware program does before it runs the engine.
//
//     cc -O2 -Wall -o active_model active_model.c && ./active_model /var/lib/edgekd
//
// The agent switches models by replacing one link, and keeps the previous slot unchanged until the next installation.
// So resolve the link once, and open all files below its target.

#define _GNU_SOURCE // memmem
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void *map_file(int folder, const char *name, size_t *length) {
    struct stat facts;
    void *content = MAP_FAILED;
    int file = openat(folder, name, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return NULL;
    if (fstat(file, &facts) == 0 && facts.st_size > 0) {
        *length = (size_t)facts.st_size;
        content = mmap(NULL, *length, PROT_READ, MAP_PRIVATE, file, 0);
    }
    close(file); // the mapping stays valid, even if the file is removed
    return content == MAP_FAILED ? NULL : content;
}

// Return the counter of a bundle. A program with a JSON library parses the manifest; edgekd writes it without spaces.
static long counter_of(const char *manifest, size_t length) {
    static const char key[] = "\"counter\":";
    const char *found = memmem(manifest, length, key, sizeof key - 1);
    return found ? strtol(found + sizeof key - 1, NULL, 10) : -1; // ends at the comma or brace that follows
}

int main(int count, char **arguments) {
    char link[PATH_MAX], slot[PATH_MAX];
    size_t manifest_bytes, engine_bytes;
    snprintf(link, sizeof link, "%s/active", count > 1 ? arguments[1] : "/var/lib/edgekd");
    int folder = realpath(link, slot) ? open(slot, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    char *manifest = map_file(folder, "bundle/manifest.json", &manifest_bytes);
    void *engine = map_file(folder, "engine/model.engine", &engine_bytes);
    if (folder < 0 || !manifest || !engine) {
        fprintf(stderr, "%s: no model in service\n", link);
        return 1;
    }
    long counter = counter_of(manifest, manifest_bytes);
    printf("counter %ld, engine %s/engine/model.engine, %zu bytes\n", counter, slot, engine_bytes);
    // Here runtime->deserializeCudaEngine(engine, engine_bytes) of TensorRT makes it ready to run.
    return 0;
}
