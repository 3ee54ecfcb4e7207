# Run by every firmware system on a camera: passes the bundle to the agent, which verifies it by the camera's trust file,
# unpacks, builds, tests and activates it, and optionally keeps it on trial until it is committed. After any failure the
# previous bundle stays in service.
# Above this line are the settings of the file that is being installed; below, those of the camera.

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

answer=
before=
litter=
trap '[ -z "$litter" ] || rm -f "$litter"' EXIT

say() { echo "edgekd: $*"; }
complain() { echo "edgekd: $*" >&2; }

# call COMMAND ARGUMENTS: run a command of the agent; keep its output, and show it after a failure.
call() {
    say "$1"
    answer=$("$python" "$agent" "$@" --state "$state" --root "$root") || {
        complain "$1 failed: $answer"
        return 1
    }
}

# figure NAMES: print the value at a path of keys in the last output of the agent; nothing for null.
figure() {
    printf '%s\n' "$answer" | "$python" -c '
import json, sys
found = json.load(sys.stdin)["result"]
for name in sys.argv[1:]:
    found = (found or {}).get(name)
print("" if found is None else found)' "$@"
}

note_before() { call status && before=$(figure active identity); }

# Restart the service that runs the model.
restart_service() {
    [ -n "$restart" ] || return 0
    say "restart"
    sh -c "$restart" >&2
}

# install BUNDLE: put a bundle into service; can be repeated.
install() {
    call install "$1" --tries "$tries" ${window:+--window "$window"} ${runtime:+--runtime "$runtime"} || return 1
    changed=$(figure changed) || return 1
    [ "$changed" = True ] || return 0
    restart_service && return 0
    complain "the service did not come up with the new bundle"
    go_back
    return 1
}

# Roll back if another bundle is in service than before.
go_back() {
    call status || return 1
    now=$(figure active identity) || return 1
    [ "$now" != "$before" ] || return 0
    if [ -z "$before" ]; then
        complain "nothing was in service before: nothing to go back to"
        return 1
    fi
    call rollback || return 1
    restart_service
}

# find_agent BUNDLE: a camera without an agent uses that of the bundle; the file with this script has been verified.
find_agent() {
    [ ! -f "$agent" ] || return 0
    litter=$(mktemp) && tar -xOf "$1" agent.pyz >"$litter" || return 1
    agent=$litter
}
