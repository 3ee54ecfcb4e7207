#!/bin/sh
# Install the model that came with the firmware's image, once for each image: a model that was sent to the camera since
# then is not replaced at the next boot. A camera that had a newer one already keeps it.

set -u
agent=/usr/lib/edgekd/agent.pyz
python=python3
state=/var/lib/edgekd
image=/usr/share/edgekd/model.edgekd
runtime=
tries=
window=
max_latency=
root=/
conf=${EDGEKD_CONF:-/etc/edgekd/install.conf}
if [ -r "$conf" ]; then
    . "$conf"
fi

# An older system that a camera falls back to brings an older model. That is refused where its key was replaced meanwhile, or
# while the newer one is on trial, which is no failure where that is in service and not revoked.
has_newer() {
    "$python" "$agent" status --state "$state" --root "$root" | "$python" -c '
import json, sys, tarfile
active = json.load(sys.stdin)["result"]["active"]
with tarfile.open(sys.argv[1]) as bundle:
    counter = json.load(bundle.extractfile("manifest.json"))["counter"]
sys.exit(not active or active["revoked"] or active["counter"] <= counter)' "$image"
}

done_file=$state/image.sha256
hash=$(sha256sum <"$image") || exit 1
[ "$hash" != "$(cat "$done_file" 2>/dev/null)" ] || exit 0

answer=$("$python" "$agent" install "$image" --state "$state" --root "$root" ${tries:+--tries "$tries"} \
    ${window:+--window "$window"} ${max_latency:+--max-latency "$max_latency"} ${runtime:+--runtime "$runtime"}) || {
    echo "$answer" >&2
    case $answer in
    *'"kind": "RollbackError"'*) echo "the camera had a newer model already" >&2 ;;
    *)
        has_newer || exit 1
        echo "not installed: the model in service is newer, and trusted" >&2
        ;;
    esac
}
printf '%s' "$hash" >"$done_file.new" && sync "$done_file.new" && mv "$done_file.new" "$done_file"
