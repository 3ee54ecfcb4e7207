# RAUC calls this as the bundle's custom handler, with the bundle mounted; any exit code but 0 is a failed installation.
# RAUC_UPDATE_SOURCE is the name of that variable in RAUC 1.2 and older.

content=${RAUC_BUNDLE_MOUNT_POINT:-${RAUC_UPDATE_SOURCE:?called by RAUC only}}/$file
find_agent "$content" && note_before && deliver "$content"
