//! A file system that Linux made stays readable, and what is in it is known.
//!
//! `golden/linux` holds its size (8 bytes, little-endian) and each sector of 512 bytes that is not zeros
//! behind its offset (8 bytes). Its log was left out: it counts as never written. `golden/make.sh` says how
//! the image was made, and how it is packed.

use std::fs;
use std::rc::Rc;

use holdfast_device::MemoryDevice;
use holdfast_units::to_u64;
use holdfast_xfs::{FileType, Kind, Mapping, MappingState, MountOptions, Timestamp, Xfs, XfsError};

use crate::common::{SECTOR, golden, mount, observe};

/// The variables that name images to be packed, and what they become.
const WRITE: [(&str, &str); 2] =
    [("HOLDFAST_WRITE_GOLDEN", "linux"), ("HOLDFAST_WRITE_GOLDEN_SHARED", "shared")];

fn pack(image: &[u8]) -> Vec<u8> {
    let device = MemoryDevice::new(to_u64(image.len()));
    device.store(0, image);
    let xfs = mount(device).unwrap();
    let (start, blocks) = xfs.superblock().log.unwrap();
    let log_start = xfs.geometry().address_of(start).unwrap();
    let log = log_start..log_start + u64::from(blocks) * xfs.geometry().block.bytes();
    let mut packed = to_u64(image.len()).to_le_bytes().to_vec();
    for (offset, sector) in (0..).step_by(SECTOR).zip(image.chunks_exact(SECTOR)) {
        if !log.contains(&offset) && sector.iter().any(|&byte| byte != 0) {
            packed.extend(offset.to_le_bytes());
            packed.extend(sector);
        }
    }
    packed
}

#[test]
fn a_new_image_is_packed_on_demand() {
    for (variable, name) in WRITE {
        if let Ok(path) = std::env::var(variable) {
            let golden = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
            fs::write(golden, pack(&fs::read(path).unwrap())).unwrap();
        }
    }
}

#[test]
fn every_file_is_there() {
    let tree = observe(&mut mount(golden()).unwrap()).unwrap();
    // Four directories, their names, and ten others in the root.
    assert_eq!(tree.paths.len(), 4 + 2 + 60 + 249 + 799 + 10);
    // The root, the directories, two files of their own, and of the ten one is another name.
    assert_eq!(tree.files.len(), 1 + 4 + 2 + 9);
}

#[test]
fn a_directory_has_its_names_in_every_form() {
    let mut xfs = mount(golden()).unwrap();
    for (dir, last) in [("short", 2), ("block", 60), ("leaf", 250), ("node", 800)] {
        let inode = xfs.walk(dir.as_bytes(), true).unwrap();
        let first = xfs.read_dir(&inode, 0).unwrap().remove(0);
        assert_eq!((&*first.name, first.file_type), (&b"."[..], FileType::Directory));
        for number in 1..=last {
            let name = format!("file-{number}");
            let is_there = !matches!((dir, number), ("leaf", 7) | ("node", 77));
            let found = xfs.lookup(&inode, name.as_bytes()).unwrap();
            assert_eq!(found.is_some(), is_there, "{dir}/{name}");
        }
        assert_eq!(xfs.lookup(&inode, b"..").unwrap(), Some(xfs.root()));
        assert_eq!(xfs.lookup(&inode, b"file-801").unwrap(), None);
    }
}

#[test]
fn paths_lead_through_links_and_end_where_they_should() {
    let mut xfs = mount(golden()).unwrap();
    let data = xfs.walk(b"/data", true).unwrap();
    for path in [&b"link"[..], b"/node/../link", b"//short/./../hard"] {
        assert_eq!(xfs.walk(path, true).unwrap().ino(), data.ino());
    }
    assert_eq!(xfs.walk(b"/link", false).unwrap().kind(), Kind::Symlink);
    assert!(matches!(xfs.walk(b"/none", true), Err(XfsError::NotFound { .. })));
    assert!(matches!(xfs.walk(b"/data/x", true), Err(XfsError::NotDirectory { .. })));
    assert!(matches!(xfs.walk(b"/link/", true), Err(XfsError::NotDirectory { .. })));
    assert!(matches!(xfs.walk(b"/long-link", true), Err(XfsError::NotFound { .. })));
    let long = xfs.walk(b"/long-link", false).unwrap();
    assert_eq!(xfs.read_link(&long).unwrap(), [b'0'; 1000]);
}

#[test]
fn attributes_are_found_in_the_inode_in_nodes_and_elsewhere() {
    let mut xfs = mount(golden()).unwrap();
    let data = xfs.walk(b"/data", true).unwrap();
    assert_eq!(xfs.attributes(&data).unwrap(), [b"user.short"]);
    assert_eq!(xfs.attribute(&data, b"user.short").unwrap().unwrap(), b"value");
    let many = xfs.walk(b"/attributes", true).unwrap();
    assert_eq!(xfs.attributes(&many).unwrap().len(), 201);
    for number in 1..=200 {
        let name = format!("user.number-{number}");
        let value = xfs.attribute(&many, name.as_bytes()).unwrap().unwrap();
        assert_eq!(value, format!("value-{number}").into_bytes());
    }
    let long = xfs.attribute(&many, b"trusted.long").unwrap().unwrap();
    assert_eq!((long.len(), long.last()), (3000, Some(&b'7')));
    for name in [&b"user.number-201"[..], b"trusted.number-1", b"user.", b"odd"] {
        assert_eq!(xfs.attribute(&many, name).unwrap(), None);
    }
}

#[test]
fn holes_and_reserved_space_read_as_zeros() {
    let mut xfs = mount(golden()).unwrap();
    let inode = xfs.walk(b"/reserved", true).unwrap();
    let mut bytes = vec![0xee; 70_000];
    assert_eq!(xfs.read(&inode, 0, &mut bytes).unwrap(), 64 << 10);
    let found = bytes.iter().position(|&byte| byte == b'a').unwrap();
    let stored = bytes[..64 << 10].iter().filter(|&&byte| byte != 0).count();
    assert_eq!((found, stored), (8 << 10, 5000));
    assert_eq!(xfs.read(&inode, 1 << 40, &mut bytes).unwrap(), 0);
    let map = xfs.map(&inode, 20_000).unwrap();
    assert!(matches!(map.state, MappingState::Unwritten { .. }));
    let sparse = xfs.walk(b"/fragments", true).unwrap();
    let hole = xfs.map(&sparse, 1025).unwrap();
    assert!(matches!(hole, Mapping { offset: 1024, len: 1024, state: MappingState::Hole }));
    let mapped = |offset| matches!(offset, MappingState::Mapped { .. });
    let count = (0..1300).filter(|number| mapped(xfs.map(&sparse, number * 2048).unwrap().state));
    assert_eq!(count.count(), 1300);
}

#[test]
fn timestamps_and_devices_are_what_they_were() {
    let mut xfs = mount(golden()).unwrap();
    let mut modified = |path: &[u8]| xfs.walk(path, true).unwrap().stat().modified;
    let first = Timestamp { seconds: -2_147_483_648, nanoseconds: 0 };
    assert_eq!(modified(b"/short/file-1"), first);
    let late = Timestamp { seconds: 15_000_000_000, nanoseconds: 123_456_789 };
    assert_eq!(modified(b"/short/file-2"), late);
    let device = xfs.walk(b"/device", true).unwrap();
    assert_eq!((device.kind(), device.stat().device), (Kind::Block, Some((259, 70_000))));
}

#[test]
fn free_space_is_counted_in_all_groups_when_the_log_is_dirty() {
    let mut clean = mount(golden()).unwrap();
    let device = golden();
    let (start, _) = clean.superblock().log.unwrap();
    // A block of a first cycle, and no record.
    device.store(clean.geometry().address_of(start).unwrap(), &[0, 0, 0, 1]);
    let options = MountOptions { no_recovery: true, ..MountOptions::default() };
    let mut dirty = Xfs::mount(device, &options).unwrap();
    assert!(clean.is_clean() && !dirty.is_clean());
    let (expected, counted) = (clean.statistics().unwrap(), dirty.statistics().unwrap());
    assert_eq!((counted.inodes, counted.free_inodes), (expected.inodes, expected.free_inodes));
    assert_eq!(counted.free_blocks, expected.free_blocks);
}

#[test]
fn a_large_directory_is_not_read_to_find_one_name() {
    let mut xfs = mount(golden()).unwrap();
    let dir = xfs.walk(b"/node", true).unwrap();
    let blocks = dir.size() / xfs.geometry().dir_block.bytes();
    let reads = Rc::clone(&xfs.device().reads);
    reads.borrow_mut().clear();
    xfs.lookup(&dir, b"file-100").unwrap().unwrap();
    // A node, a leaf, and a block of entries.
    let reads = reads.borrow();
    assert!(blocks >= 5 && reads.len() <= 3, "{blocks} blocks, read {reads:?}");
}
