#!/bin/sh
# Make a version of the virtual camera's system, from the tree that make_image.sh leaves in OUT.
#
#     make_slot.sh OUT VERSION BUNDLE
#
# BUNDLE: the model that this firmware brings. Leaves OUT/slot-VERSION.ext4, the content of a root slot.
set -eu

out=$(realpath "$1")
version=$2
bundle=$(realpath "$3")
root=$out/root
slot_mb=512

cp "$bundle" "$root/usr/share/edgekd/model.edgekd"
echo "$version" >"$root/etc/camera-version"
rm -f "$out/slot-$version.ext4"
truncate -s "${slot_mb}M" "$out/slot-$version.ext4"
# From an archive, whose files are root's, whoever makes it.
tar -C "$root" --owner=0 --group=0 --numeric-owner --sort=name -cf "$out/slot.tar" .
mkfs.ext4 -q -L root -m 0 -d "$out/slot.tar" "$out/slot-$version.ext4"
rm "$out/slot.tar"
