# The scenarios of the guest. /init sources this, with these variables from the command line:
#
#   scenarios  what to run, separated by commas
#   seconds    how long each phase of a mutation takes
#
# and for an outage
#
#   filesystem  ext4 or xfs
#   seed        decides what the writers do
#   steps       the last step that each writer had done, separated by commas

disk=/dev/vda
failed=0

# check NAME COMMAND..: runs the command, says how it ended and how long it took.
check() {
    local name=$1 result=PASS start end
    shift
    read -r start _ </proc/uptime
    "$@" || result=FAIL
    read -r end _ </proc/uptime
    echo "$result $name ($(awk "BEGIN { printf \"%.1f\", $end - $start }") s)"
    [ $result = PASS ] || failed=1
    [ $result = PASS ]
}

run_all() {
    # Whoever finds a guest silent knows by this whether it ever came to its disk.
    echo "GUEST looks for its disk"
    modprobe -a virtio_pci virtio_blk crc32c_generic
    check disk wait_for_disk || return 1
    describe_disk
    for scenario in $(echo "$scenarios" | tr , ' '); do
        case $scenario in
        pattern | write | check | rewrite | recheck | swap | xfs | ext4 | mutate) "run_$scenario" ;;
        outage-make | outage-check | outage-load) "run_$(echo $scenario | tr - _)" ;;
        *) check "scenario-$scenario" false ;;
        esac
        # What the kernel complains of at shutdown belongs to the scenario as well.
        check "$scenario-kernel" kernel_is_content
    done
    return $failed
}

wait_for_disk() {
    local tries=100
    while [ ! -b $disk ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        usleep 50000
    done
}

describe_disk() {
    local queue=/sys/block/${disk##*/}/queue
    echo "GUEST kernel $(uname -r), $(nproc) processors, $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"
    echo "GUEST disk: $(cat /sys/block/${disk##*/}/size) * 512, blocks $(cat $queue/logical_block_size)/$(cat $queue/physical_block_size)," \
        "queues $(ls $queue/../mq | wc -l), largest $(cat $queue/max_sectors_kb) KiB," \
        "discard $(cat $queue/discard_max_bytes), zeroes $(cat $queue/write_zeroes_max_bytes), cache $(cat $queue/write_cache)"
}

# No errors, and none of the kernel's own complaints.
kernel_is_content() {
    local complaints='I/O error|EXT4-fs (error|warning)|XFS.*([Ee]rror|[Cc]orrupt|[Ss]hut)|Read-error|Write-error|BUG:|WARNING:|blocked for more than|virtio.*(broken|not ready)'
    dmesg -c | grep -E "$complaints" >/tmp/complaints
    head -12 /tmp/complaints | sed 's/^/GUEST /'
    [ ! -s /tmp/complaints ]
}

# The whole disk, and then discards in its first 64 MiB.
run_pattern() {
    check pattern pattern all $disk 7
    check trim pattern trim $disk 7 64
}

# For boots that follow each other: the last word is the seed.
run_write() { check write pattern write $disk 8; }
run_check() { check check pattern check $disk 8; }
run_rewrite() { check rewrite pattern write $disk 9; }
run_recheck() { check recheck pattern check $disk 9; }

run_swap() {
    local mib=$(awk '/MemTotal/ { print int($2 / 1024 * 1.35) }' /proc/meminfo)
    check mkswap mkswap $disk
    # One page at a time comes in, so that more is read, and more often.
    echo 0 >/proc/sys/vm/page-cluster
    check swapon swapon $disk || return
    check memhog memhog $mib 2 20
    check swapoff swapoff $disk
}

run_xfs() {
    modprobe xfs
    check xfs-mkfs mkfs.xfs -q -f $disk
    use_file_system xfs
    check xfs-repair is_clean_xfs
}

# xfs_repair -n complains without failing.
is_clean_xfs() {
    xfs_repair -n $disk >/tmp/repair 2>&1 || { cat /tmp/repair; return 1; }
    grep -q 'No modify flag set, skipping' /tmp/repair
}

run_ext4() {
    modprobe ext4
    # By their paths: busybox has programs of these names.
    check ext4-mkfs /sbin/mke2fs -q -F -t ext4 $disk
    use_file_system ext4
    check ext4-fsck /sbin/e2fsck -f -n $disk
}

use_file_system() {
    check $1-mount mount -t $1 $disk /mnt || return
    check $1-copy copy_tree /mnt
    check $1-mutate mutate aio 64 8 32 $seconds /mnt/mutated
    check $1-unmount umount /mnt
    check $1-mount-again mount -t $1 $disk /mnt
    check $1-compare compare_tree /mnt
    [ "$(cat /sys/block/${disk##*/}/queue/discard_max_bytes)" = 0 ] || check $1-trim fstrim /mnt
    check $1-compare-again compare_tree /mnt
    check $1-unmount-again umount /mnt
}

# Large files, a tree, many small files; some go, one moves.
copy_tree() {
    local top=$1 i
    mkdir $top/files
    for i in 1 2 3 4 5 6 7 8; do
        head -c $((i * 700001)) /dev/urandom >/tmp/file
        md5sum </tmp/file >/tmp/sum$i
        cp /tmp/file $top/files/large$i || return 1
    done
    cp -r /lib $top/lib || return 1
    i=0
    while [ $i -lt 300 ]; do
        echo "file $i" >$top/files/small$i || return 1
        i=$((i + 1))
    done
    rm $top/files/small1* && mv $top/files/small2 $top/files/moved && sync
}

compare_tree() {
    local top=$1 i file
    # Nothing of this may come from memory.
    sync
    echo 3 >/proc/sys/vm/drop_caches
    for i in 1 2 3 4 5 6 7 8; do
        [ "$(md5sum <$top/files/large$i)" = "$(cat /tmp/sum$i)" ] || { echo "GUEST large$i differs"; return 1; }
    done
    [ "$(cat $top/files/moved)" = "file 2" ] || { echo "GUEST the moved file differs"; return 1; }
    (cd /lib && find . -type f) | while read -r file; do
        cmp -s /lib/$file $top/lib/$file || { echo "GUEST $file differs"; return 1; }
    done
}

# Every way to ask, small and large, aligned and not.
run_mutate() {
    check mutate-aio-64k mutate aio 64 16 64 $seconds $disk
    check mutate-aio-4k mutate aio 4 32 16 $seconds $disk
    check mutate-aio-1m mutate aio 1024 4 64 $seconds $disk
    check mutate-uring-16k mutate uring 16 16 32 $seconds $disk
    check mutate-psync-128k mutate psync 128 4 64 $seconds $disk
    check mutate-aio-20k mutate aio 20 16 32 $seconds $disk
}

# What comes before the first outage.
run_outage_make() {
    modprobe $filesystem
    case $filesystem in
    xfs) check outage-mkfs mkfs.xfs -q -f $disk ;;
    ext4) check outage-mkfs /sbin/mke2fs -q -F -t ext4 $disk ;;
    esac
    check outage-mount mount -t $filesystem $disk /mnt
}

# What comes after each: the file system's own recovery, and then nothing may be amiss.
run_outage_check() {
    modprobe $filesystem
    check outage-recover mount -t $filesystem $disk /mnt || return
    check outage-replayed has_replayed
    check outage-files outage check /mnt $seed $steps
    check outage-unmount umount /mnt
    case $filesystem in
    xfs) check outage-repair is_clean_xfs ;;
    ext4) check outage-fsck /sbin/e2fsck -f -n $disk ;;
    esac
    check outage-mount mount -t $filesystem $disk /mnt
}

# Without anything to replay, the outage came when nothing was written.
has_replayed() {
    dmesg | grep -E 'EXT4-fs .*recovery complete|XFS .*Ending recovery'
}

# Until the machine dies, with a page cache that is written all the time.
run_outage_load() {
    [ $failed = 0 ] || return
    echo 20 >/proc/sys/vm/dirty_writeback_centisecs
    echo 50 >/proc/sys/vm/dirty_expire_centisecs
    check outage-load outage load /mnt $seed $steps
}
