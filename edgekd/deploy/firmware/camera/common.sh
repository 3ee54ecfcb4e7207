# What every firmware system runs on a camera: the bundle is handed to the agent there, which checks it against the
# camera's trust file, unpacks, builds, tests and activates it, and, if asked, keeps it on trial until it is committed.
# Whatever fails, what was in service stays in service.
# Above this line are the settings of the one file that is being installed; below, those of the camera.

set -u
agent=/usr/lib/edgekd/agent.pyz
python=python3
runtime=
restart=
tries=0
window=
root=/
conf=${EDGEKD_CONF:-/etc/edgekd/install.conf}
if [ -r "$conf" ]; then
    . "$conf"
fi

told=
before=
litter=
trap '[ -z "$litter" ] || rm -f "$litter"' EXIT

say() { echo "edgekd: $*"; }
complain() { echo "edgekd: $*" >&2; }

# COMMAND ARGUMENTS: a command of the agent; what it prints is kept, and shown where it fails.
call() {
    say "$1"
    told=$("$python" "$agent" "$@" --state "$state" --root "$root") || {
        complain "$1 failed: $told"
        return 1
    }
}

# NAMES: the figure at a path of names in what the agent printed last; nothing where it is null.
figure() {
    printf '%s\n' "$told" | "$python" -c '
import json, sys
found = json.load(sys.stdin)["result"]
for name in sys.argv[1:]:
    found = (found or {}).get(name)
print("" if found is None else found)' "$@"
}

note_before() { call status && before=$(figure active identity); }

# What runs the model is told that there is another one.
tell_service() {
    [ -n "$restart" ] || return 0
    say "restart"
    sh -c "$restart" >&2
}

# BUNDLE: into service. It can be repeated: what is done already stays as it is.
install() {
    call install "$1" --tries "$tries" ${window:+--window "$window"} ${runtime:+--runtime "$runtime"} || return 1
    changed=$(figure changed) || return 1
    [ "$changed" = True ] || return 0
    tell_service && return 0
    complain "the service did not come up with the new bundle"
    go_back
    return 1
}

# Where another bundle is in service than before, the one before comes back.
go_back() {
    call status || return 1
    now=$(figure active identity) || return 1
    [ "$now" != "$before" ] || return 0
    if [ -z "$before" ]; then
        complain "nothing was in service before: nothing to go back to"
        return 1
    fi
    call rollback || return 1
    tell_service
}

# BUNDLE: a camera without an agent of its own takes the one in the bundle; what carries this script has been trusted.
find_agent() {
    [ ! -f "$agent" ] || return 0
    litter=$(mktemp) && tar -xOf "$1" agent.pyz >"$litter" || return 1
    agent=$litter
}
