#!/bin/bash
# build.sh DIRECTORY: makes DIRECTORY/vmlinuz and DIRECTORY/initramfs.gz, a Debian kernel and all
# that the scenarios need. `cargo xtask guest` calls it, and says what must be installed first.
#
# The kernel is that of this machine's release, unpacked but not installed. It is downloaded once.
set -euo pipefail

sources=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:?usage: build.sh DIRECTORY}"
directory=$(cd "$1" && pwd)
kernel=$directory/kernel
root=$directory/root
export PATH=$PATH:/usr/sbin:/sbin

# The name of the package with the kernel, which has the version in it.
kernel_package() {
    apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1
}

download_kernel() {
    local package
    package=$(kernel_package)
    [ -n "$package" ] && (cd "$kernel.new" && apt-get -q -o APT::Sandbox::User=root download "$package")
}

unpack_kernel() {
    rm -rf "$kernel" "$kernel.new"
    mkdir -p "$kernel.new"
    # The lists may be absent, as in a fresh container, or name a version that has gone.
    download_kernel || { apt-get -q update && download_kernel; }
    dpkg -x "$kernel.new"/*.deb "$kernel.new"
    rm "$kernel.new"/*.deb
    # Since Debian 13 the modules are in /usr, where neither depmod nor modprobe looks.
    [ -d "$kernel.new/lib" ] || ln -s usr/lib "$kernel.new/lib"
    depmod -b "$kernel.new" "$(ls "$kernel.new/lib/modules")"
    mv "$kernel.new" "$kernel"
}

# A program of this machine, with the libraries that it loads.
add_program() {
    local program library
    program=$(command -v "$1")
    cp -L "$program" "$root/sbin/"
    # ldd fails for a program that needs none.
    { ldd "$program" || true; } 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done || true
}

# A module of the kernel, with those that it needs; nothing if it is a part of the kernel itself.
add_module() {
    local file name
    modprobe -d "$kernel" -S "$version" --show-depends "$1" | awk '$1 == "insmod" { print $2 }' |
        while read -r file; do
            name=$root/lib/modules/${file##*/lib/modules/}
            mkdir -p "$(dirname "$name")"
            case $file in
            *.xz) xz -dc "$file" >"${name%.xz}" ;;
            *) cp "$file" "$name" ;;
            esac
        done
}

[ -d "$kernel" ] || unpack_kernel
version=$(ls "$kernel/lib/modules")

rm -rf "$root"
mkdir -p "$root"/{bin,dev,lib/modules/"$version",mnt,proc,sbin,sys,tmp}
for program in memhog mutate outage pattern; do
    cc -O2 -Wall -Wextra -static -pthread -o "$root/bin/$program" "$sources/$program.c"
done
for program in busybox e2fsck mke2fs mkfs.xfs xfs_repair; do
    add_program "$program"
done
mv "$root/sbin/busybox" "$root/bin/"
cp "$kernel/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$version/"
for module in virtio_pci virtio_blk crc32c_generic ext4 xfs; do
    add_module "$module"
done
depmod -b "$root" "$version"
install -m 755 "$sources/init" "$root/init"
cp "$sources/scenarios.sh" "$root/"

cp "$kernel/boot/vmlinuz-$version" "$directory/vmlinuz"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -3) >"$directory/initramfs.new"
mv "$directory/initramfs.new" "$directory/initramfs.gz"
echo "kernel $version, initramfs of $(($(stat -c %s "$directory/initramfs.gz") / 1024)) KiB"
