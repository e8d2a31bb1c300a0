#!/bin/sh
# Makes the image that golden/linux is packed from. As root, with xfsprogs, attr and util-linux:
#
#     sh make.sh /tmp/linux.img
#     HOLDFAST_WRITE_GOLDEN=/tmp/linux.img cargo test -p holdfast-xfs --test all golden::
set -eu

image=$1
mount=$(mktemp -d)
rm -f "$image"
truncate -s 320M "$image"
mkfs.xfs -q -b size=1024 -i nrext64=1 "$image"
mount -o loop "$image" "$mount"
trap 'umount "$mount" || true; rmdir "$mount"' EXIT

# Directories in the inode, of one block, with one leaf, and with nodes. Most files are one.
: > "$mount/linked"
for dir in short=2 block=60 leaf=250 node=800; do
    name=${dir%=*}
    mkdir "$mount/$name"
    for number in $(seq "${dir#*=}"); do
        ln "$mount/linked" "$mount/$name/file-$number"
    done
done
rm "$mount/leaf/file-7" "$mount/node/file-77" "$mount/short/file-1" "$mount/short/file-2"
: > "$mount/short/file-1"
: > "$mount/short/file-2"

# A tree of extents with two levels: 1300 blocks, each behind a hole, all zeros.
zeros=$(for number in $(seq 0 1299); do echo "-c"; echo "pwrite -q -S 0 $((number * 2))k 1k"; done)
echo "$zeros" | tr '\n' '\0' | xargs -0 sh -c 'exec xfs_io -f "$@" "$0"' "$mount/fragments"
xfs_io -f -c "falloc 0 64k" -c "pwrite -q -S 0x61 8k 5000" "$mount/reserved"
printf 'holdfast' > "$mount/data"
ln "$mount/data" "$mount/hard"

ln -s data "$mount/link"
ln -s "$(printf '%01000d' 0)" "$mount/long-link"
mkfifo "$mount/fifo"
mknod "$mount/device" b 259 70000

setfattr -n user.short -v value "$mount/data"
: > "$mount/attributes"
for number in $(seq 200); do
    setfattr -n "user.number-$number" -v "value-$number" "$mount/attributes"
done
setfattr -n trusted.long -v "$(printf '%03000d' 7)" "$mount/attributes"
touch -d @-2147483648 "$mount/short/file-1"
touch -d @15000000000.123456789 "$mount/short/file-2"
