//! Volumes of format version 1, as they were written when it was new. Every later version must open
//! them, find every byte where it was, and scrub them clean.
//!
//! `golden/<guard>-<sector>` holds one for each format: the size of the device (8 bytes,
//! little-endian), and then each block of 512 bytes that is not all zeros, behind its number (8
//! bytes, little-endian).
//!
//! They are never written over. To write one anew, which only a new version of the format can be a
//! reason for, remove the file and run
//! `HOLDFAST_WRITE_GOLDEN=1 cargo test -p holdfast-volume --test all golden::`.

use std::fs;
use std::path::PathBuf;

use holdfast_bio::{BlockDevice, Op, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_units::{BlockSize, to_usize};
use holdfast_volume::format::ErrorCounts;
use holdfast_volume::{Geometry, TUPLE_BLOCK, Volume};

use crate::common::{self, Disk, fill, formats, peek, poke};

const BLOCK: usize = 512;
const MIB: u64 = 1 << 20;

fn path(guard: GuardKind, sector: BlockSize) -> PathBuf {
    let name = format!("{guard}-{sector}").replace('/', "-").to_lowercase();
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &name].iter().collect()
}

/// Two groups and five sectors.
fn capacity(guard: GuardKind, sector: BlockSize) -> u64 {
    2 * group_data(guard, sector) + 5 * sector.bytes()
}

/// Returns how much data a group holds: written out, and not taken from the code under test.
fn group_data(guard: GuardKind, sector: BlockSize) -> u64 {
    let sectors = match guard {
        GuardKind::Crc16 => 512,
        GuardKind::Crc32c | GuardKind::Crc64 => 256,
    };
    sectors * sector.bytes()
}

/// A write, or a discard where there is no seed.
type Step = (u64, u64, Option<u64>);

/// Returns what is done to the volume: offsets and lengths in bytes.
fn steps(guard: GuardKind, sector: BlockSize) -> Vec<Step> {
    let (bytes, group) = (sector.bytes(), group_data(guard, sector));
    let capacity = capacity(guard, sector);
    let mut steps = vec![
        (0, 2 * bytes, Some(1)),
        (group - bytes, bytes, Some(2)),
        (group, bytes, Some(3)),
        (capacity - bytes, bytes, Some(4)),
        // Trimmed.
        (group + 7 * bytes, bytes, Some(5)),
        (group + 7 * bytes, bytes, None),
    ];
    if sector == BlockSize::PAGE {
        // A part of a sector that was written, and one of a sector that was not.
        steps.push((512, 1024, Some(6)));
        steps.push((2 * group + 512, 512, Some(7)));
    }
    steps
}

/// Returns all that the volume must present.
fn contents(guard: GuardKind, sector: BlockSize) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(capacity(guard, sector))];
    for (offset, len, seed) in steps(guard, sector) {
        let range = &mut bytes[to_usize(offset)..to_usize(offset + len)];
        match seed {
            Some(seed) => fill(range, seed),
            None => range.fill(0),
        }
    }
    bytes
}

/// Makes the volume.
fn make(guard: GuardKind, sector: BlockSize) -> Disk {
    let disk = Disk::new(guard, sector, capacity(guard, sector), 1 << 20);
    let mut client = disk.client(ReadPolicy::Lazy);
    for (offset, len, seed) in steps(guard, sector) {
        let mut bytes = vec![0; to_usize(len)];
        match seed {
            Some(seed) => {
                fill(&mut bytes, seed);
                client.write_at(offset, &bytes).unwrap();
            }
            None => client.clear(Op::Discard, offset, len).unwrap(),
        }
    }
    client.flush().unwrap();
    drop(client);
    disk.volume.close(&mut disk.device.clone()).unwrap();
    disk
}

/// Stores the volume as it is described above.
fn write(guard: GuardKind, sector: BlockSize) {
    let disk = make(guard, sector);
    let mut device = disk.device.clone();
    let device_len = device.limits().capacity;
    let mut file = device_len.to_le_bytes().to_vec();
    for number in 0..device_len / 512 {
        let block = peek(&mut device, number * 512, BLOCK);
        if block.iter().any(|&byte| byte != 0) {
            file.extend_from_slice(&number.to_le_bytes());
            file.extend_from_slice(&block);
        }
    }
    let path = path(guard, sector);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Another test may be writing it as well. A link is made whole, and over nothing.
    let part = path.with_extension(format!("part-{:?}", std::thread::current().id()));
    fs::write(&part, file).unwrap();
    if let Err(error) = fs::hard_link(&part, &path) {
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
    }
    fs::remove_file(&part).unwrap();
}

/// Puts a golden volume into memory.
fn load(guard: GuardKind, sector: BlockSize) -> MemoryDevice {
    let path = path(guard, sector);
    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() && !path.exists() {
        write(guard, sector);
    }
    let file = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (len, blocks) = file.split_first_chunk().unwrap();
    let mut device = MemoryDevice::new(u64::from_le_bytes(*len));
    for block in blocks.chunks(8 + BLOCK) {
        let (number, bytes) = block.split_first_chunk().unwrap();
        poke(&mut device, u64::from_le_bytes(*number) * 512, bytes);
    }
    device
}

#[test]
fn a_golden_volume_has_its_geometry() {
    for (guard, sector) in formats() {
        let found = Volume::peek(&mut load(guard, sector)).unwrap();
        assert_eq!((found.guard, found.application_tag), (guard, 0x4846));
        assert_eq!((found.compatible, found.read_only_compatible, found.read_only), (0, 0, false));
        assert_eq!((found.clean, found.errors), (true, ErrorCounts::default()));
        let geometry: Geometry = found.geometry;
        assert_eq!((geometry.capacity(), geometry.sector()), (capacity(guard, sector), sector));
        assert_eq!((geometry.intent(), geometry.log()), ((MIB, MIB), (2 * MIB, MIB)));
        assert_eq!((geometry.groups_offset(), geometry.groups()), (3 * MIB, 3));
        let group = group_data(guard, sector);
        assert_eq!(geometry.group_data().bytes(), group);
        assert_eq!(geometry.tuples_at(2), 3 * MIB + 2 * (4096 + group));
        assert_eq!(geometry.data_at(group + 512), 3 * MIB + 4096 + group + 4096 + 512);
        assert_eq!((TUPLE_BLOCK, geometry.tuple_words() * 8), (4096, tuple_size(guard)));
        let len = 3 * MIB + 2 * (4096 + group) + 4096 + 5 * sector.bytes();
        assert_eq!(geometry.device_len(), len);
    }
}

const fn tuple_size(guard: GuardKind) -> usize {
    match guard {
        GuardKind::Crc16 => 8,
        GuardKind::Crc32c | GuardKind::Crc64 => 16,
    }
}

#[test]
fn a_golden_volume_has_every_byte_and_is_intact() {
    for (guard, sector) in formats() {
        let disk = Disk::open(load(guard, sector), 1 << 20);
        assert!(disk.volume.recovery().is_none());
        let mut client = disk.client(ReadPolicy::Lazy);
        let expected = contents(guard, sector);
        let mut found = vec![0xee; expected.len()];
        client.read_at(0, &mut found).unwrap();
        let wrong = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert_eq!(wrong, None, "{guard} {sector}");
        common::assert_clean(client.queue());
        assert_eq!(disk.volume.errors().total(), 0);
    }
}

#[test]
fn what_is_written_today_is_stored_as_in_a_golden_volume() {
    for (guard, sector) in formats() {
        let golden = load(guard, sector);
        let disk = make(guard, sector);
        // All but the superblocks, which have a name and a time of their own.
        let first = disk.volume.geometry().groups_offset();
        let len = to_usize(golden.limits().capacity - first);
        let stored = |device: &MemoryDevice| peek_all(device, first, len);
        assert!(stored(&golden) == stored(&disk.device), "{guard} {sector}");
    }
}

fn peek_all(device: &MemoryDevice, first: u64, len: usize) -> Vec<u8> {
    let pieces = (0..len).step_by(BLOCK * 8);
    let piece = |at: usize| {
        let offset = first + u64::try_from(at).unwrap();
        peek(&mut device.clone(), offset, (len - at).min(BLOCK * 8))
    };
    pieces.flat_map(piece).collect()
}
