# Run by every firmware system on a camera: passes a bundle or a delta to the agent, which verifies it by the camera's
# trust file, unpacks, builds, tests and activates it, on trial until it is committed; or passes a trust file to it. After
# any failure the previous bundle stays in service.
# Above this line are the settings of the file that is being installed; below, those of the camera. Only failures go to
# stderr, which SWUpdate logs as errors.

set -u
agent=/usr/lib/edgekd/agent.pyz
python=python3
user=
runtime=
restart=
tries=
window=
max_latency=
root=/
conf=${EDGEKD_CONF:-/etc/edgekd/install.conf}
if [ -r "$conf" ]; then
    . "$conf"
fi

answer=
before=
litter=
exec 5>&1
trap '[ -z "$litter" ] || rm -f "$litter"' EXIT

say() { echo "edgekd: $*"; }
complain() { echo "edgekd: $*" >&2; }

run_agent() {
    if [ -n "$user" ]; then
        runuser -u "$user" -- "$python" "$agent" "$@" --state "$state" --root "$root"
    else
        "$python" "$agent" "$@" --state "$state" --root "$root"
    fi
}

# call COMMAND ARGUMENTS: run a command of the agent; keep its output, and show it after a failure.
call() {
    say "$1"
    answer=$(run_agent "$@" 2>&5) || {
        complain "$1 failed: $answer"
        return 1
    }
}

# call_model COMMAND ARGUMENTS: the same for the model that the file is for.
call_model() { call "$@" ${model:+--model "$model"}; }

# figure NAMES: print the value at a path of keys in the last output of the agent; nothing for null.
figure() {
    printf '%s\n' "$answer" | "$python" -c '
import json, sys
found = json.load(sys.stdin)["result"]
for name in sys.argv[1:]:
    found = (found or {}).get(name)
print("" if found is None else found)' "$@"
}

note_before() { call_model status && before=$(figure active identity); }

# Restart the service that runs the model.
restart_service() {
    [ -n "$restart" ] || return 0
    say "restart"
    sh -c "$restart" 2>&1
}

# deliver FILE: pass a file to the agent. With `user` the agent can neither enter the firmware system's folders nor make
# its own: it gets a descriptor, and a state folder.
deliver() {
    delivered=$1
    if [ -n "$user" ]; then
        mkdir -p "$state" && chown "$user:" "$state" || return 1
        chmod a+r "$1" 2>/dev/null || : # a mounted bundle is readable, and cannot be changed
        exec 3<"$1"
        delivered=/proc/self/fd/3
    fi
    case $file in
    trust.json) call trust "$delivered" ;;
    *) install "$delivered" ;;
    esac
}

# install BUNDLE: put a bundle into service; can be repeated.
install() {
    call_model install "$1" ${tries:+--tries "$tries"} ${window:+--window "$window"} \
        ${max_latency:+--max-latency "$max_latency"} ${runtime:+--runtime "$runtime"} || return 1
    changed=$(figure changed) || return 1
    [ "$changed" = True ] || return 0
    restart_service && return 0
    complain "the service did not come up with the new bundle"
    go_back
    return 1
}

# Roll back if another bundle is in service than before.
go_back() {
    call_model status || return 1
    now=$(figure active identity) || return 1
    [ "$now" != "$before" ] || return 0
    if [ -z "$before" ]; then
        complain "nothing was in service before: nothing to go back to"
        return 1
    fi
    call_model rollback || return 1
    restart_service
}

# find_agent BUNDLE: a camera without an agent uses that of the bundle; the file with this script has been verified.
find_agent() {
    [ ! -f "$agent" ] || return 0
    litter=$(mktemp) && tar -xOf "$1" agent.pyz >"$litter" && chmod 644 "$litter" || return 1
    agent=$litter
}
