"""Test whether RAUC, SWUpdate and Mender accept edgekd's packages, and refuse them with one bit flipped.

Each system's own program decides: first the command that checks a file, then the one that extracts it, as for an
installation. A third of the bits lie anywhere, a third in the first 4 KiB and a third in the last 4 KiB, where metadata
and signatures are. Needs the Debian packages rauc, squashfs-tools, swupdate, mender-artifact and openssl.
"""

import os
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundles import noise, write_with_agent
from common import durations
from frame import Blocks, Document, Given, Option, Result, head, main, table, yes

from edgekd.deploy.firmware import PACKAGERS, Packaging, wrap

EACH = 201
SEED = 0
ENDS = 4096
GRAPH_BYTES = 100_000
DEVICE = "camera"
REFUSED, LATER, SAME, OTHER = "refused", "refused later", "same content", "other content"
STUB = """#!/bin/sh
[ "$2" = status ] && {{ echo '{{"result": {{"active": null}}}}'; exit 0; }}
[ "$1" = -c ] && exec python3 "$@"
cp "$3" '{out}'
exit 1
"""
"""Replaces the camera's Python: keeps the file that SWUpdate passes to the agent, and installs nothing."""


@dataclass(frozen=True)
class System:
    """A package format.

    judged_by: its programs, for the page; check: returns the command that checks a file; taken: extracts a file into a
    folder and returns the bundle, None if the file is refused.
    """

    name: str
    judged_by: str
    packaging: Packaging
    check: Callable[[Path], Sequence[object]]
    taken: Callable[[Path, Path], bytes | None]


def succeeds(command: Sequence[object], folder: Path, **environment: str) -> bool:
    words = [str(word) for word in command]
    variables = {**os.environ, "TMPDIR": str(folder), **environment}
    return subprocess.run(words, cwd=folder, env=variables, capture_output=True, timeout=120).returncode == 0


def write_keys(folder: Path) -> None:
    """Write a private key, its certificate and its public key. Raises SystemExit if openssl fails."""
    made = ("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", "key.pem")
    certified = ("openssl", "req", "-x509", "-new", "-key", "key.pem", "-subj", "/CN=bench", "-out", "cert.pem")
    public = ("openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "public.pem")
    if not all(succeeds(command, folder) for command in (made, certified, public)):
        raise SystemExit("openssl makes no keys")


def content_of(folder: Path) -> bytes | None:
    found = next(folder.rglob("bundle.edgekd"), None)
    return found.read_bytes() if found else None


def systems(keys: Path, scratch: Path) -> Iterator[System]:
    """Yield every package format."""
    key, cert, public = keys / "key.pem", keys / "cert.pem", keys / "public.pem"
    signed = {"key": str(key), "certificate": str(cert), "compatible": (DEVICE,)}

    def extracted(made: Path, out: Path) -> bytes | None:
        return content_of(out) if succeeds(("rauc", "extract", "--keyring", cert, made, out / "x"), scratch) else None

    def installed(made: Path, out: Path) -> bytes | None:
        kept, stub, conf = out / "kept", out / "stub", out / "conf"
        stub.write_text(STUB.format(out=kept), "utf-8")
        stub.chmod(0o755)
        conf.write_text(f"python='{stub}'\nagent='{stub}'\n", "utf-8")
        succeeds(("swupdate", "-i", made, "-k", cert, "-H", f"x:{DEVICE}"), scratch, EDGEKD_CONF=str(conf))
        return kept.read_bytes() if kept.is_file() else None

    def dumped(made: Path, out: Path) -> bytes | None:
        return content_of(out) if succeeds(("mender-artifact", "dump", "--files", out, made), scratch) else None

    def checked_by(*command: object) -> Callable[[Path], Sequence[object]]:
        return lambda file: (*command, file)

    rauc, judged_by = checked_by("rauc", "info", "--keyring", cert), "`rauc info`, then `rauc extract`"
    yield System("rauc", judged_by, Packaging("rauc", **signed), rauc, extracted)
    yield System("rauc, plain", "the same", Packaging("rauc", **signed, plain=True), rauc, extracted)
    swupdate = checked_by("swupdate", "-c", "-k", cert, "-H", f"x:{DEVICE}", "-i")
    packaging = Packaging("swupdate", **signed, state=str(scratch / "state"))
    yield System("swupdate", "`swupdate -c`, then `swupdate -i`", packaging, swupdate, installed)
    mender = checked_by("mender-artifact", "validate", "-k", public)
    packaging = Packaging("mender", key=str(key), compatible=(DEVICE,))
    yield System("mender", "`mender-artifact validate`, then `dump`", packaging, mender, dumped)


def changed(content: bytes, number: int, chance: random.Random) -> bytes:
    """Return the content with one bit flipped: by `number`, anywhere, in the first or in the last ENDS bytes."""
    places = (range(len(content)), range(ENDS), range(len(content) - ENDS, len(content)))
    bad = bytearray(content)
    bad[chance.choice(places[number % 3])] ^= 1 << chance.randrange(8)
    return bytes(bad)


def judged(system: System, made: Path, bundle: bytes, scratch: Path) -> str:
    if not succeeds(system.check(made), scratch):
        return REFUSED
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        taken = system.taken(made, Path(out))
    return LATER if taken is None else SAME if taken == bundle else OTHER


def measured(system: System, bundle: Path, each: int, scratch: Path) -> Result:
    """Package a bundle, check the file, then check it `each` times with one bit flipped. Return the row."""
    suffix, content = PACKAGERS[system.packaging.system].suffix, bundle.read_bytes()
    made, again, bad = (scratch / f"{name}{suffix}" for name in ("made", "again", "bad"))
    (seconds,) = durations(lambda: wrap(system.packaging, bundle, made), 1)
    results = []
    (judging,) = durations(lambda: results.append(judged(system, made, content, scratch)), 1)
    wrap(system.packaging, bundle, again)
    original, chance, counts = made.read_bytes(), random.Random(f"{SEED} {system.name}"), Counter[str]()
    for number in range(each):
        bad.write_bytes(changed(original, number, chance))
        counts[judged(system, bad, content, scratch)] += 1
    return {
        "system": system.name,
        "judged_by": system.judged_by,
        "untouched": results[0],
        "bytes": len(original),
        "bundle_bytes": len(content),
        "make_seconds": round(seconds, 3),
        "judge_seconds": round(judging, 3),
        "same_bytes_again": again.read_bytes() == original,
        "changed": each,
        **{name.replace(" ", "_"): counts[name] for name in (REFUSED, LATER, SAME, OTHER)},
    }


def page(found: Document) -> Blocks:
    yield from head("Files for firmware systems", found)
    yield (
        f"A bundle of {found.systems[0].bundle_bytes:,} bytes, packed by `edgekd pack --format` and signed, "
        "met by each system's own programs: untouched, and with one bit changed. The chance is seeded."
    )
    yield table(
        "file for | judged by | untouched | bytes | the same bytes again | made in s | judged in s | changed | "
        "refused by the check | refused later | accepted, same content | accepted, other content",
        (
            f"{row.system} | {row.judged_by} | {'accepted' if row.untouched == SAME else row.untouched} | "
            f"{row.bytes:,} | {yes(row.same_bytes_again)} | {row.make_seconds:.2f} | {row.judge_seconds:.2f} | "
            f"{row.changed} | {row.refused} | {row.refused_later} | {row.same_content} | {row.other_content}"
            for row in found.systems
        ),
    )
    yield (
        "RAUC's format `verity` is checked when it is read, as `extract` does and the kernel during an installation: "
        "`info` looks at the signature, and the hashes in it. Accepted with the same content: the same "
        "bundle comes out; the bit lies where no program looks, such as the padding between two members."
    )
    yield f"Programs: {', '.join(f'{name} {version}' for name, version in found.programs.items())}."


def versions() -> dict[str, str]:
    found = {}
    for name in ("rauc", "squashfs-tools", "swupdate", "mender-artifact", "openssl"):
        done = subprocess.run(["dpkg-query", "-W", "-f=${Version}", name], capture_output=True, text=True)
        found[name] = done.stdout or "unknown"
    return found


def run(given: Given) -> Result:
    for program in ("rauc", "mksquashfs", "swupdate", "mender-artifact", "openssl"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program}: not installed")
    write_keys(given.scratch)
    bundle = write_with_agent(given.scratch, "noise", noise(SEED, GRAPH_BYTES), counter=1)
    rows = [measured(system, bundle, given.each, given.scratch) for system in systems(given.scratch, given.scratch)]
    return {"programs": versions(), "systems": rows}


if __name__ == "__main__":
    main(
        run,
        page,
        Option("--each", EACH, "changed files of each system (%(default)s)"),
        holds=lambda found: all(row.untouched == SAME and not row.other_content for row in found.systems),
        cores=1,
    )
