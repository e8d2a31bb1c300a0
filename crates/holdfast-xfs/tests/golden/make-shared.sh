#!/bin/sh
# Makes the image that golden/shared is packed from: two files share 64 KiB. As root, with xfsprogs:
#
#     sh make-shared.sh /tmp/shared.img
#     HOLDFAST_WRITE_GOLDEN_SHARED=/tmp/shared.img cargo test -p holdfast-xfs --test all golden::
set -eu

image=$1
mount=$(mktemp -d)
rm -f "$image"
truncate -s 320M "$image"
mkfs.xfs -q -i nrext64=1 -m reflink=1,rmapbt=1 "$image"
mount -o loop "$image" "$mount"
trap 'umount "$mount" || true; rmdir "$mount"' EXIT
xfs_io -f -c "pwrite -q -S 0x61 0 64k" "$mount/one"
cp --reflink=always "$mount/one" "$mount/other"
