# SWUpdate calls this before and after it puts the files in place: preinst, postinst; any exit code but 0 is a failed
# update.

[ "${1:-}" = postinst ] || exit 0
content=$state/incoming/$file
find_agent "$content" && note_before && deliver "$content"
result=$?
rm -f "$content"
exit $result
