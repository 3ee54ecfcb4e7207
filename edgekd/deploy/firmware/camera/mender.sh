# An update module of Mender, protocol v3: called with a state and the folder of the artifact. It lies on the camera as
# /usr/share/mender/modules/v3/edgekd, executable. Unknown states print nothing and succeed, as the protocol requires. A
# bundle on trial is committed with the artifact.

folder=${2:-}
kept=$folder/tmp/before
state=
file=
model=

read_settings() {
    settings=$("$python" -c '
import json, shlex, sys
given = json.load(open(sys.argv[1]))
for name in ("state", "file", "model"):
    print(name + "=" + shlex.quote(given[name]))' "$folder/header/meta-data") && eval "$settings"
}

case "${1:-}" in
SupportsRollback) echo Yes ;;
NeedsArtifactReboot) echo No ;;
ArtifactInstall)
    read_settings || exit 1
    # Store the identity in service before any change: Mender may roll back after a power cut.
    if [ ! -f "$kept" ]; then
        note_before && printf '%s' "$before" >"$kept.new" && mv "$kept.new" "$kept" && sync || exit 1
    fi
    before=$(cat "$kept")
    deliver "$folder/files/$file"
    ;;
ArtifactCommit)
    read_settings || exit 1
    [ "$file" = trust.json ] || call_model commit
    ;;
ArtifactRollback)
    [ -f "$kept" ] || exit 0
    read_settings && before=$(cat "$kept") && go_back
    ;;
esac
