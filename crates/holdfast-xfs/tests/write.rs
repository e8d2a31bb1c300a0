//! Writing to images that mkfs.xfs made; `xfs_repair` is the judge.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod images;

use holdfast_xfs::{Timestamp, XfsError};
use images::{Image, find, text};

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
