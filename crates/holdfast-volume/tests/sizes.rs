//! Sizes at which numbers of 32 bits no longer do.

use std::time::{Duration, Instant};

use holdfast_bio::{Bio, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::{Backing, OpenError};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::{Client, Volume};

use crate::common::{self, Disk, FileMedium, Medium, client, fill, formats, open, options};

const TIB: u64 = 1 << 40;

/// Returns offsets at the beginning, around LBA 2^32, in the middle and at the end.
fn offsets(capacity: u64, sector: BlockSize) -> Vec<u64> {
    let wrap = sector.start_of(1 << 32).unwrap();
    let around_wrap = [wrap - sector.bytes(), wrap, wrap + sector.bytes()];
    let mut offsets = vec![0, capacity / 2, capacity - sector.bytes()];
    offsets.extend(around_wrap.into_iter().filter(|&offset| offset < capacity));
    offsets
}

fn content(offset: u64, sector: BlockSize) -> Vec<u8> {
    let mut bytes = vec![0; sector.len()];
    fill(&mut bytes, offset);
    bytes
}

/// Writes a sector at each of the offsets, reads it, its never-written neighbours, and scrubs.
fn write_read_scrub<M: Medium>(medium: &M, sector: BlockSize, capacity: u64) {
    let began = Instant::now();
    let volume = open(medium);
    let mut client: Client<M::Device> = client(medium, &volume);
    for offset in offsets(capacity, sector) {
        client.write_at(offset, &content(offset, sector)).unwrap();
    }
    let mut found = vec![0; sector.len()];
    for offset in offsets(capacity, sector) {
        client.read_at(offset, &mut found).unwrap();
        assert!(found == content(offset, sector), "wrong bytes at {offset}");
    }
    client.read_at(TIB, &mut found).unwrap();
    assert!(found.iter().all(|&byte| byte == 0), "a hole is not zeros");
    client.flush().unwrap();
    let report = common::scrub(client.queue());
    assert_eq!((report.corrupt, report.verified + report.holes), (0, capacity));
    assert!(report.verified < 64 << 20, "holes were read: {} bytes", report.verified);
    drop(client);
    volume.close(&mut medium.device()).unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_volume_of_64_tib_in_memory_works_at_its_beginning_middle_and_end() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, 64 * TIB, 1 << 20);
        let log_pages = to_usize(disk.volume.geometry().log().1) / 4096;
        let pages = disk.device.pages_in_use();
        assert!(pages <= 2 + log_pages, "{pages} pages were written");
        write_read_scrub(&disk.device, sector, 64 * TIB);
    }
}

/// Returns the reference tag that is stored for the sector at LBA 2^32 + 5.
fn stored_reference(guard: GuardKind) -> Vec<u8> {
    let sector = BlockSize::SECTOR;
    let disk = Disk::without_log(guard, sector, 4 * TIB);
    let mut client = disk.client(ReadPolicy::Lazy);
    let lba = (1 << 32) + 5;
    client.write_at(lba * sector.bytes(), &content(lba, sector)).unwrap();
    client.flush().unwrap();
    let tuple = common::stored_tuple(&mut disk.device.clone(), &disk.volume, lba);
    let reference_at =
        if guard == GuardKind::Crc64 { 10 } else { usize::from(tuple.len() > 8) * 2 + 4 };
    tuple[reference_at..].to_vec()
}

#[test]
fn the_t10_reference_tag_wraps_at_32_bits_and_the_others_do_not() {
    assert_eq!(stored_reference(GuardKind::Crc16), [0, 0, 0, 5]);
    assert_eq!(stored_reference(GuardKind::Crc32c), [0, 0, 0, 0, 0, 1, 0, 0, 0, 5]);
    assert_eq!(stored_reference(GuardKind::Crc64), [0, 1, 0, 0, 0, 5]);
}

#[test]
fn a_volume_of_15_tib_in_a_sparse_file_works_at_its_beginning_middle_and_end() {
    let (guard, sector, capacity) = (GuardKind::Crc16, BlockSize::PAGE, 15 * TIB);
    let options = options(guard, sector, capacity);
    let len = options.geometry().unwrap().device_len();
    // Asked first, so that a file system with smaller files is told from a fault of ours.
    let dir = tempfile::tempdir().unwrap();
    match Backing::create(&dir.path().join("probe"), len) {
        Ok(_) => {}
        Err(OpenError::Io { source, .. }) if source.raw_os_error() == Some(27) => {
            println!("SKIPPED: the file system of {} has no files of 15 TiB", dir.path().display());
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let medium = FileMedium::new(len);
    Volume::create(&mut medium.device(), &options).unwrap();
    write_read_scrub(&medium, sector, capacity);
}

#[test]
fn a_bio_at_the_last_offset_of_64_bits_is_refused() {
    let disk = Disk::new(GuardKind::Crc64, BlockSize::PAGE, 64 * TIB, 1 << 20);
    let mut queue = disk.queue();
    for (offset, len) in [(u64::MAX - 511, 512), (512, u64::MAX - 511), (64 * TIB, 4096)] {
        let memory = holdfast_iov::Memory::None;
        let bio = Bio::new(holdfast_bio::Op::Discard, offset, len, memory);
        let found = common::run(&mut queue, bio).result;
        assert_eq!(found, Err(holdfast_bio::Error::Range { offset, len }));
    }
    assert_eq!(to_u64(queue.in_flight()), 0);
}
