//! What is known of a file, as FUSE has it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo};
use holdfast_xfs::{FileType, Ino, Kind, Stat, Timestamp};

/// Returns the inode of XFS that the kernel means. Its number for the root directory is 1, which is no
/// inode of XFS, and all others are the same.
pub(crate) fn to_ino(number: INodeNo, root: Ino) -> Ino {
    if number == INodeNo::ROOT { root } else { Ino(number.0) }
}

/// Returns the kernel's number of an inode of XFS.
pub(crate) fn to_number(ino: Ino, root: Ino) -> INodeNo {
    if ino == root { INodeNo::ROOT } else { INodeNo(ino.0) }
}

/// Returns what is known of a file. The number is that of XFS, for users to see.
pub(crate) fn attributes(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino.0),
        size: stat.size,
        blocks: stat.sectors,
        atime: time(stat.accessed),
        mtime: time(stat.modified),
        ctime: time(stat.changed),
        crtime: time(stat.created),
        kind: kind(stat.kind),
        perm: stat.mode & 0o7777,
        nlink: stat.links,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.device.map_or(0, device),
        // A size of a block has at most 17 bits.
        blksize: u32::try_from(stat.io_bytes).unwrap_or(4096),
        flags: 0,
    }
}

/// Returns what is said of an entry of which the inode cannot be read: what the directory says.
pub(crate) fn placeholder(ino: Ino, file_type: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: kind_of_entry(file_type),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub(crate) const fn kind(kind: Kind) -> fuser::FileType {
    match kind {
        Kind::Regular => fuser::FileType::RegularFile,
        Kind::Directory => fuser::FileType::Directory,
        Kind::Symlink => fuser::FileType::Symlink,
        Kind::Block => fuser::FileType::BlockDevice,
        Kind::Character => fuser::FileType::CharDevice,
        Kind::Fifo => fuser::FileType::NamedPipe,
        Kind::Socket => fuser::FileType::Socket,
    }
}

pub(crate) const fn kind_of_entry(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Regular | FileType::Unknown => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Block => fuser::FileType::BlockDevice,
        // A whiteout is a character device with the number 0.
        FileType::Character | FileType::Whiteout => fuser::FileType::CharDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// Returns a point in time.
fn time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let start = if time.seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    start + Duration::from_nanos(u64::from(time.nanoseconds))
}

/// Returns a time that the kernel has sent, as `fuser` gives it: before 1970 it takes the nanoseconds
/// from the seconds, although they were counted forwards from them.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Timestamp { seconds: signed(after.as_secs()), nanoseconds: after.subsec_nanos() }
        }
        Err(error) => {
            let before = error.duration();
            Timestamp { seconds: -signed(before.as_secs()), nanoseconds: before.subsec_nanos() }
        }
    }
}

/// Returns the number of a device as the kernel has it in 32 bits: 12 of the major number between 8
/// and 12 of the minor number.
const fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_directory_has_two_numbers_and_all_others_one() {
        let root = Ino(128);
        assert_eq!((to_ino(INodeNo(1), root), to_number(root, root)), (root, INodeNo(1)));
        assert_eq!(
            (to_ino(INodeNo(131), root), to_number(Ino(131), root)),
            (Ino(131), INodeNo(131))
        );
    }

    #[test]
    fn times_before_1970_count_forwards_from_their_second() {
        let found = time(Timestamp { seconds: -2, nanoseconds: 800_000_000 });
        assert_eq!(found, UNIX_EPOCH - Duration::from_millis(1200));
    }

    #[test]
    fn times_far_away_are_kept() {
        let found = time(Timestamp { seconds: 16_299_260_425, nanoseconds: 709_551_615 });
        assert_eq!(found, UNIX_EPOCH + Duration::new(16_299_260_425, 709_551_615));
        let first = time(Timestamp { seconds: i64::from(i32::MIN), nanoseconds: 0 });
        assert_eq!(first, UNIX_EPOCH - Duration::from_secs(1 << 31));
    }

    #[test]
    fn a_time_that_the_kernel_sent_is_the_one_that_it_meant() {
        let sent = UNIX_EPOCH - Duration::new(5, 7);
        assert_eq!(timestamp(sent), Timestamp { seconds: -5, nanoseconds: 7 });
        let sent = UNIX_EPOCH + Duration::new(5, 7);
        assert_eq!(timestamp(sent), Timestamp { seconds: 5, nanoseconds: 7 });
    }

    #[test]
    fn numbers_of_devices_are_laid_out_as_in_linux() {
        assert_eq!(device((259, 300)), 0x11_032c);
        assert_eq!(device((8, 1)), 0x801);
    }
}
