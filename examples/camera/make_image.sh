#!/bin/sh
# Make the disk of the virtual camera: ARM64 Debian with GRUB, RAUC, two root slots and a data partition.
#
#     make_image.sh OUT BUNDLE FRAMES
#
# BUNDLE: the model of this firmware, with the agent. FRAMES: a folder of pictures that the camera's sensor shows.
# Leaves in OUT: disk.qcow2 and firmware.fd for QEMU; root/, the tree that make_slot.sh packs; keys/: those of SSH, of
# RAUC, of the models and of the trust file. What is there already is not made again, except for the root slot.
# docs/guides/virtual-camera.md lists the Debian packages that it needs. It needs no root and mounts nothing.
set -eu

out=$(mkdir -p "$1" && cd "$1" && pwd)
bundle=$(realpath "$2")
frames=$(realpath "$3")
here=$(cd "$(dirname "$0")" && pwd)
firmware=$here/../firmware
suite=trixie
boot_mb=32 slot_mb=640 data_mb=384

# Debian's essential packages as far as a camera needs them; extracting takes none by itself.
packages=base-files,base-passwd,bash,coreutils,dash,debianutils,diffutils,findutils,grep,gzip,hostname,libc-bin,login
packages=$packages,mount,ncurses-base,passwd,procps,sed,tar,util-linux,netbase
packages=$packages,systemd,systemd-sysv,udev,dbus,kmod,iproute2,openssh-server,e2fsprogs,busybox-static
packages=$packages,linux-image-cloud-arm64,grub-efi-arm64-unsigned,grub-common,rauc,rauc-service
packages=$packages,python3,libstdc++6,zlib1g

# The packages are unpacked and not configured: their scripts would run in an emulator for an hour. What they would have
# done that a camera needs is done below, with the image's own programs.
if [ ! -f "$out/packages.tar" ]; then
    mmdebstrap --arch=arm64 --variant=extract --include="$packages" --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --skip=output/dev "$suite" "$out/packages.new.tar"
    mv "$out/packages.new.tar" "$out/packages.tar"
fi

# Wheels for the camera's Python, unpacked where it looks for packages.
if [ ! -d "$out/wheels" ]; then
    python3 -m pip install --quiet --no-deps --no-compile --only-binary=:all: --python-version 3.13 --implementation cp \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        --target "$out/wheels.new" numpy onnxruntime opencv-python-headless
    mv "$out/wheels.new" "$out/wheels"
fi

# What a factory keeps: keys of SSH on both ends, of the firmware, of the models and of the trust file.
mkdir -p "$out/keys"
for name in ssh host; do
    [ -f "$out/keys/$name" ] || ssh-keygen -q -t ed25519 -N '' -C camera -f "$out/keys/$name"
done
[ -f "$out/keys/rauc.key" ] || openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=camera \
    -keyout "$out/keys/rauc.key" -out "$out/keys/rauc.pem" 2>/dev/null
if [ ! -f "$out/keys/trust.json" ]; then
    for name in release trust; do
        edgekd keygen "$name" --out "$out/keys"
    done
    sed "s/@TODAY@/$(date -u +%F)/" "$here/trust.toml" >"$out/keys/trust.toml"
    edgekd trust "$out/keys/trust.toml" --out "$out/keys/trust.json" --key "$out/keys/trust.key"
fi
edgekd pack "$bundle" --out "$out/model-1.edgekd" --version-counter 1 --sign "$out/keys/release.key"

# The tree of a root slot. Its own programs finish what its packages would have done; qemu-user runs them here.
root=$out/root
emulated() {
    name=$1 program=$2
    shift 2
    qemu-aarch64-static -L "$root" -0 "$name" "$root$program" "$@"
}
rm -rf "$root"
mkdir "$root"
tar -C "$root" -xf "$out/packages.tar" --no-same-owner --exclude='./var/*' --exclude='./etc/init.d'
cp -r "$out/wheels/." "$root/usr/lib/python3/dist-packages/"
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
cp "$firmware"/systemd/*.service "$firmware"/systemd/*.timer "$root/usr/lib/systemd/system/"
cp "$firmware/systemd/edgekd.sysusers" "$root/usr/lib/sysusers.d/edgekd.conf"
mkdir -p "$root/usr/lib/edgekd" "$root/usr/share/edgekd" "$root/usr/share/camera" "$root/data" "$root/boot/efi"
cp "$firmware"/*.py "$firmware"/*.sh "$here/../camera_service.py" "$root/usr/lib/edgekd/"
tar -C "$root/usr/lib/edgekd" -xf "$bundle" agent.pyz
cp -r "$here/overlay/." "$root/"
cp "$out/keys/ssh.pub" "$root/etc/ssh/authorized_keys"
cp "$out/keys/rauc.pem" "$root/etc/rauc/keyring.pem"
cp "$out/keys/trust.json" "$root/etc/edgekd/trust.json"
python "$here/film.py" "$frames" "$root/usr/share/camera/film.y4m"
ln -sf dash "$root/usr/bin/sh"
: >"$root/etc/machine-id"
echo camera >"$root/etc/hostname"
emulated systemd-sysusers /usr/bin/systemd-sysusers --root="$root"
# Without a password, and not locked: SSH lets no locked user in, by whatever key.
sed -i 's/^edgekd:!\*:/edgekd:*:/' "$root/etc/shadow"
# What a camera has no use for would take half of an emulated boot.
find "$root/usr/lib/systemd/system-generators" -type f ! -name systemd-fstab-generator -delete
for unit in 'dev-*' 'getty*' ldconfig.service 'proc-*' 'sys-*' 'systemd-ask-password-*' systemd-binfmt.service \
    'systemd-creds*' 'systemd-firstboot*' 'systemd-hibernate-*' 'systemd-hostnamed*' systemd-hwdb-update.service \
    systemd-initctl.socket 'systemd-journal-*' systemd-logind.service systemd-machine-id-commit.service \
    'systemd-pcr*' 'systemd-sys*' 'systemd-tpm2*' systemd-update-done.service; do
    find "$root/usr/lib/systemd/system" -path '*.target.wants/*' -name "$unit" -delete
done
emulated systemctl /usr/bin/systemctl --root="$root" set-default multi-user.target
emulated systemctl /usr/bin/systemctl --root="$root" enable systemd-networkd ssh \
    edgekd-install edgekd-renew.timer camera rauc-mark-good
# The camera cannot write bytecode. A Python here of the same version writes the same, only sooner.
if command -v python3.13 >/dev/null; then compiler=python3.13; else compiler="emulated python3 /usr/bin/python3.13"; fi
$compiler -m compileall -q --invalidation-mode unchecked-hash -s "$root" "$root/usr/lib/python3.13" \
    "$root/usr/lib/python3/dist-packages" || true # some packages bring files of other Pythons

# The kernel loads a root disk's modules from an archive in memory.
kernel=$(basename "$root"/usr/lib/modules/*)
emulated depmod /usr/bin/kmod -b "$root" "$kernel"
initramfs=$out/initramfs
rm -rf "$initramfs"
mkdir -p "$initramfs/bin" "$initramfs/modules" "$initramfs/root" "$initramfs/proc" "$initramfs/sys" "$initramfs/dev"
cp "$here/initramfs/init" "$initramfs/init"
cp "$root/usr/bin/busybox" "$initramfs/bin/"
for module in virtio_pci virtio_blk ext4; do
    emulated modprobe /usr/bin/kmod -d "$root" -S "$kernel" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    name=$(basename "${file%.xz}")
    case $file in
    *.xz) xz -dc "$file" >"$initramfs/modules/$name" ;;
    *) cp "$file" "$initramfs/modules/$name" ;;
    esac
    echo "$name" >>"$initramfs/modules/order"
done
chmod 755 "$initramfs/init"
(cd "$initramfs" && find . | sort | cpio --quiet -o -H newc -R 0:0 | gzip -1) >"$root/initrd.img"
cp -L "$root/boot/vmlinuz-$kernel" "$root/vmlinuz.new"
mv "$root/vmlinuz.new" "$root/vmlinuz"
rm -rf "$root"/boot/vmlinuz-* "$root/vmlinuz.old" "$root/initrd.img.old"
"$here/make_slot.sh" "$out" 1 "$out/model-1.edgekd"

# What GRUB reads: its rules and RAUC's variables, a text of 1024 bytes.
work=$out/parts
rm -rf "$work"
mkdir -p "$work/data/edgekd" "$work/data/ssh" "$work/data/rauc"
{
    printf '# GRUB Environment Block\nORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=0\n'
    printf '%1024s' '' | tr ' ' '#'
} | head -c 1024 >"$work/grubenv"
truncate -s "${boot_mb}M" "$work/boot"
mkfs.vfat -n BOOT "$work/boot" >/dev/null
mmd -i "$work/boot" ::EFI ::EFI/BOOT ::EFI/debian
mcopy -i "$work/boot" "$root/usr/lib/grub/arm64-efi/monolithic/grubaa64.efi" ::EFI/BOOT/BOOTAA64.EFI
mcopy -i "$work/boot" "$here/boot/grub.cfg" "$work/grubenv" ::EFI/debian/

# The data partition, as a factory fills it.
cp "$out/keys/host" "$work/data/ssh/host"
chmod -R go= "$work/data/edgekd" "$work/data/ssh"
truncate -s "${data_mb}M" "$work/data.ext4"
tar -C "$work/data" --owner=0 --group=0 --numeric-owner -cf "$work/data.tar" .
mkfs.ext4 -q -L data -d "$work/data.tar" "$work/data.ext4"

# The disk: partitions by name, at whole megabytes. The second slot is empty until the first update.
total_mb=$((1 + boot_mb + 2 * slot_mb + data_mb + 1))
truncate -s "${total_mb}M" "$work/disk"
sfdisk -q "$work/disk" <<PARTITIONS
label: gpt
start=1MiB, size=${boot_mb}MiB, type=uefi, name=boot
size=${slot_mb}MiB, type=linux, name=root-A
size=${slot_mb}MiB, type=linux, name=root-B
size=${data_mb}MiB, type=linux, name=data
PARTITIONS
place() { dd if="$1" of="$work/disk" bs=1M seek="$2" conv=notrunc,sparse status=none; }
place "$work/boot" 1
place "$out/slot-1.ext4" $((1 + boot_mb))
place "$work/data.ext4" $((1 + boot_mb + 2 * slot_mb))
qemu-img convert -O qcow2 "$work/disk" "$out/disk.new.qcow2"
mv "$out/disk.new.qcow2" "$out/disk.qcow2"
cp /usr/share/qemu-efi-aarch64/QEMU_EFI.fd "$out/firmware.fd"
rm -rf "$work" "$initramfs"
