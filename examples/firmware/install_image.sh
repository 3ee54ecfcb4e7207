#!/bin/sh
# Install the model of the firmware image, once per image: a model that was sent to the camera later is not replaced at
# the next boot. A camera that already has a newer model keeps it.

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

# After a fallback to an older system, the image has an older model. The agent refuses it if its key was replaced
# meanwhile, or while a newer model is on trial. That is no failure if a newer, unrevoked model is in service.
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
