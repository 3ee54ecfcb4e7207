# SWUpdate calls this before and after it puts the files in place: preinst, postinst; any exit code but 0 is a failed
# update.

[ "${1:-}" = postinst ] || exit 0
bundle=$state/incoming/bundle.edgekd
find_agent "$bundle" && note_before && install "$bundle"
result=$?
rm -f "$bundle"
exit $result
