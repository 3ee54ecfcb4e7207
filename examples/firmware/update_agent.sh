#!/bin/sh
# Replace the agent on the data partition by that of a bundle:
#
#     update_agent.sh BUNDLE
#
# The agent of the firmware stays as it is, and judges whether the bundle is trusted; the new one has to read the state of
# this camera before it is used.

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
