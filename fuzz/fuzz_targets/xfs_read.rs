//! A file system of XFS in which anything can be said, under good checksums: everything is read, and nothing
//! may panic or go on for ever.
#![no_main]

#[allow(dead_code)]
#[path = "../../crates/holdfast-xfs/tests/common/mod.rs"]
mod common;

use std::rc::Rc;

use holdfast_checksum::{GuardKind, checksum};
use holdfast_device::MemoryDevice;
use holdfast_xfs::{MountOptions, Xfs};
use libfuzzer_sys::fuzz_target;

use common::{SECTOR, Watched, golden, observe};

/// How many places are changed at most.
const CHANGES_MAX: usize = 24;

thread_local! {
    /// Where there is anything in the image, in bytes.
    static PLACES: Vec<u64> = places();
}

fn places() -> Vec<u64> {
    let packed = include_bytes!("../../crates/holdfast-xfs/tests/golden/linux");
    let sectors = packed[8..].chunks_exact(8 + SECTOR);
    sectors.filter_map(|sector| sector.first_chunk().copied().map(u64::from_le_bytes)).collect()
}

/// Returns where a block has its checksum and how long it is. A block of attributes has 1024 bytes, one of a
/// directory 4096; both may be nodes.
fn checksum_place(bytes: &[u8]) -> Option<(usize, usize)> {
    Some(match (&bytes[..4], &bytes[8..10]) {
        (b"XFSB", _) => (224, 512),
        (b"XAGF", _) => (216, 512),
        (b"XAGI", _) => (312, 512),
        ([b'I', b'N', ..], _) => (100, 512),
        (b"BMA3", _) => (64, 1024),
        (b"XDB3" | b"XDD3" | b"XDF3", _) => (4, 4096),
        (b"XARM", _) => (12, 1024),
        (b"XSLM", _) => (12, 2048),
        (_, [0x3d, 0xf1 | 0xff]) => (12, 4096),
        (_, [0x3b, 0xee]) => (12, 1024),
        // What is behind the block of a node of attributes tells its length.
        (_, [0x3e, 0xbe]) => {
            (12, if bytes[2048..].iter().any(|&byte| byte != 0) { 1024 } else { 4096 })
        }
        _ => return None,
    })
}

/// Changes a byte, and makes the checksum of the block that it is in good again.
fn change(device: &MemoryDevice, place: u64, offset: u64, value: u8) {
    let at = place + offset;
    let mut bytes = [0; 4096];
    device.store(at, &[value]);
    for back in 0..8 {
        let Some(start) = place.checked_sub(back * 512) else { return };
        device.load(start, &mut bytes);
        let Some((field, len)) = checksum_place(&bytes) else { continue };
        if start + len as u64 <= at {
            return;
        }
        bytes[field..field + 4].fill(0);
        let crc = checksum(GuardKind::Crc32c, &bytes[..len]) as u32;
        device.store(start + field as u64, &crc.to_le_bytes());
        return;
    }
}

fuzz_target!(|changes: Vec<(u16, u16, u8)>| {
    let device = golden();
    PLACES.with(|places| {
        for &(sector, offset, value) in changes.iter().take(CHANGES_MAX) {
            let place = places[usize::from(sector) % places.len()];
            change(&device, place, u64::from(offset) % SECTOR as u64, value);
        }
    });
    let options = MountOptions { no_recovery: true, ..MountOptions::default() };
    let Ok(mut xfs) = Xfs::mount(Watched::new(device, &Rc::default()), &options) else { return };
    let _statistics = xfs.statistics();
    let Ok(tree) = observe(&mut xfs) else { return };
    let mut data = vec![0; 100_000];
    for file in tree.files {
        if let Ok(inode) = xfs.inode(file.stat.ino) {
            let _read = xfs.read(&inode, 0, &mut data);
        }
    }
});
