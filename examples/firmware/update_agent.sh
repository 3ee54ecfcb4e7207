#!/bin/sh
# Replace the agent on the data partition with the agent of a bundle:
#
#     update_agent.sh BUNDLE
#
# The firmware's agent is unchanged, and verifies the bundle. The new agent is used only if it can read this camera's
# state.

set -u
firmware_agent=/usr/lib/edgekd/agent.pyz
agent=/var/lib/edgekd-agent/agent.pyz
python=python3
state=/var/lib/edgekd
root=/
conf=${EDGEKD_CONF:-/etc/edgekd/update_agent.conf}
if [ -r "$conf" ]; then
    . "$conf"
fi

fail() {
    echo "update_agent: $*" >&2
    exit 1
}

bundle=${1:?a bundle}
answer=$("$python" "$firmware_agent" verify "$bundle" --state "$state" --root "$root") || fail "$answer"
case $answer in
*'"trust": null'*) fail "no trust file: anybody could have made this agent" ;;
esac
mkdir -p "${agent%/*}" && tar -xOf "$bundle" agent.pyz >"$agent.new" || fail "$bundle: has no agent"
answer=$("$python" "$agent.new" status --state "$state" --root "$root") || fail "the new agent does not work: $answer"
sync "$agent.new" && mv "$agent.new" "$agent" && sync "${agent%/*}"
