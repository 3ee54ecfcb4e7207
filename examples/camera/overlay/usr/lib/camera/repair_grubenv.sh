#!/bin/sh
# Make the boot loader's variables again where a power cut has left their file empty: grub-editenv, by which RAUC changes them,
# empties it before it writes. This system comes first, as it works.
#
#     repair_grubenv.sh [FILE [CMDLINE]]
set -eu
file=${1:-/boot/efi/EFI/debian/grubenv}
grub-editenv "$file" list >/dev/null 2>&1 && exit
case $(cat "${2:-/proc/cmdline}") in *rauc.slot=B*) order="B A" ;; *) order="A B" ;; esac
grub-editenv "$file" create
grub-editenv "$file" set "ORDER=$order" A_OK=1 A_TRY=0 B_OK=1 B_TRY=0
