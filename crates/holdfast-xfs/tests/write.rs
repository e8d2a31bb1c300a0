//! Writing to images that mkfs.xfs made; `xfs_repair` is the judge.

use std::process::Command;
use std::time::{Duration, SystemTime};

use holdfast_bio::ReadPolicy;
use holdfast_device::FileDevice;
use holdfast_iomap::{DirectIo, Direction, Request};
use holdfast_iov::{Memory, Pool};
use holdfast_xfs::{Ino, MountOptions, Timestamp, Xfs, XfsError};

use crate::images::{Image, find, text};

#[test]
fn times_that_were_set_are_there_after_the_next_mount() {
    for options in [&["-m", "bigtime=1"], &["-m", "bigtime=0"]] {
        let image = Image::new(options);
        let mut xfs = image.mount(true).unwrap();
        let ino = find(&mut xfs, "/plain");
        let (accessed, modified) = (
            Timestamp { seconds: -5, nanoseconds: 7 },
            Timestamp { seconds: 1_795_295_647, nanoseconds: 999_999_999 },
        );
        xfs.set_times(ino, Some(accessed), None).unwrap();
        xfs.set_times(ino, None, Some(modified)).unwrap();
        xfs.unmount().unwrap();
        image.check();
        let mut xfs = image.mount(false).unwrap();
        let stat = *xfs.inode(ino).unwrap().stat();
        assert_eq!((stat.accessed, stat.modified), (accessed, modified));
        assert!(stat.changed > modified || stat.changed.seconds > 1_700_000_000);
    }
}

/// Writes a sector of a file that is open.
fn write(xfs: &mut Xfs<FileDevice>, data: FileDevice, ino: Ino) {
    let pool = Pool::new(1 << 20).unwrap();
    let memory = Memory::Buffer(pool.take_whole(512).unwrap());
    let mut direct = DirectIo::new(data, pool, ReadPolicy::Always);
    let finished = direct.run(xfs, Request::new(Direction::Write, ino, 0, 512, memory));
    assert_eq!(finished.result, Ok(512));
}

#[test]
fn a_write_before_its_time_was_set_does_not_set_it_again() {
    let image = Image::new(&[]);
    let [metadata, data] = image.queues(true);
    let options = MountOptions { write: true, ..MountOptions::default() };
    let mut xfs = Xfs::mount(metadata, &options).unwrap();
    let ino = find(&mut xfs, "/plain");
    xfs.open(ino).unwrap();
    write(&mut xfs, data, ino);
    let modified = Timestamp { seconds: 1_000_000_000, nanoseconds: 5 };
    xfs.set_times(ino, None, Some(modified)).unwrap();
    xfs.close(ino).unwrap();
    assert_eq!(xfs.inode(ino).unwrap().stat().modified, modified);
}

#[test]
fn the_time_of_a_write_is_not_that_at_which_somebody_looks() {
    let image = Image::new(&[]);
    let [metadata, data] = image.queues(true);
    let options = MountOptions { write: true, ..MountOptions::default() };
    let mut xfs = Xfs::mount(metadata, &options).unwrap();
    let ino = find(&mut xfs, "/plain");
    xfs.open(ino).unwrap();
    write(&mut xfs, data, ino);
    let written = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    xfs.sync().unwrap();
    let found = xfs.inode(ino).unwrap().stat().modified;
    let found = Duration::new(found.seconds.unsigned_abs(), found.nanoseconds);
    assert!(found <= written && written - found < Duration::from_secs(60), "{found:?}");
}

#[test]
fn a_file_system_whose_writer_never_unmounted_it_is_marked_until_it_is_repaired() {
    let image = Image::new(&[]);
    let mut xfs = image.mount(true).unwrap();
    let ino = find(&mut xfs, "/plain");
    xfs.set_times(ino, None, Some(Timestamp { seconds: 1, nanoseconds: 0 })).unwrap();
    xfs.sync().unwrap();
    drop(xfs);
    for write in [false, true] {
        assert_eq!(image.mount(write).err(), Some(XfsError::NeedsRepair));
    }
    let repaired = image.repair(&[]);
    assert!(repaired.status.success(), "{}", text(&repaired));
    image.mount(true).unwrap().unmount().unwrap();
    image.check();
}

/// Has `xfs_db` do something with the superblock of an image.
fn superblock(image: &Image, what: &str) -> String {
    let mut db = Command::new("xfs_db");
    let output = db.args(["-x", "-c", "sb 0", "-c", what]).arg(image.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
fn linux_counts_quota_anew_after_a_write() {
    let image = Image::new(&[]);
    // Everything is accounted, enforced, and has been counted.
    superblock(&image, "write qflags 0x7cf");
    image.mount(true).unwrap().unmount().unwrap();
    assert_eq!(superblock(&image, "print qflags"), "qflags = 0x7cf\n");
    let mut xfs = image.mount(true).unwrap();
    let ino = find(&mut xfs, "/plain");
    xfs.allocate(ino, 1 << 20, 4096, true).unwrap();
    xfs.unmount().unwrap();
    assert_eq!(superblock(&image, "print qflags"), "qflags = 0x2cb\n");
}

#[test]
fn a_mount_for_reading_changes_nothing() {
    let image = Image::new(&[]);
    let before = std::fs::read(image.path()).unwrap();
    let mut xfs = image.mount(false).unwrap();
    let ino = find(&mut xfs, "/plain");
    assert_eq!(xfs.set_times(ino, None, None), Err(XfsError::ReadOnly));
    xfs.unmount().unwrap();
    // Nor does one for writing that has written nothing.
    image.mount(true).unwrap().unmount().unwrap();
    assert!(std::fs::read(image.path()).unwrap() == before);
}
