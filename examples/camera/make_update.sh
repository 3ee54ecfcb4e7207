#!/bin/sh
# Make a firmware update of the virtual camera: a RAUC bundle with a root slot and the model that it brings.
#
#     make_update.sh OUT VERSION BUNDLE
#
# Leaves OUT/firmware-VERSION.raucb.
set -eu

out=$(realpath "$1")
version=$2
"$(dirname "$0")/make_slot.sh" "$out" "$version" "$3"
content=$(mktemp -d)
trap 'rm -rf "$content"' EXIT
mv "$out/slot-$version.ext4" "$content/rootfs.ext4"
cat >"$content/manifest.raucm" <<MANIFEST
[update]
compatible=edgekd,virtual-camera
version=$version

[bundle]
format=verity

[image.rootfs]
filename=rootfs.ext4
MANIFEST
rm -f "$out/firmware-$version.raucb"
# What an emulated processor decompresses fastest.
rauc bundle --cert="$out/keys/rauc.pem" --key="$out/keys/rauc.key" --mksquashfs-args="-comp lz4" \
    "$content" "$out/firmware-$version.raucb"
