//! What was flushed is there afterwards, and how space is managed.

use holdfast_bio::{Bio, BlockDevice, Error, Op, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_iov::Memory;
use holdfast_sim::{Faults, FaultyDevice};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::{OpenOptions, Queue, Volume};

use crate::common::{self, Disk, FileMedium, Medium, client, fill, formats, open, options};

const CAPACITY: u64 = 1 << 20;

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}

/// Writes, makes it durable in one of two ways, and drops the volume without closing it.
fn write_durably<M: Medium>(medium: &M, fua: bool) {
    let volume = open(medium);
    let mut client = client(medium, &volume);
    let (first, second) = (bytes(40_960, 1), bytes(8192, 2));
    client.write_at(0, &first).unwrap();
    client.clear(Op::Discard, 8192, 4096).unwrap();
    if fua {
        holdfast_iov::lend(&second, |iter| client.move_data(Op::Write, 4096, iter, true)).unwrap();
    } else {
        client.write_at(4096, &second).unwrap();
        client.flush().unwrap();
    }
}

fn check_written<M: Medium>(medium: &M) {
    let mut expected = bytes(40_960, 1);
    expected[4096..12_288].copy_from_slice(&bytes(8192, 2));
    let volume = open(medium);
    assert!(volume.recovery().is_some(), "the volume was not closed");
    let mut client = client(medium, &volume);
    let mut found = vec![0; 40_960];
    client.read_at(0, &mut found).unwrap();
    assert!(found == expected, "what was flushed is gone");
    common::assert_clean(client.queue());
}

#[test]
fn what_was_flushed_is_there_without_a_close() {
    for (guard, sector) in formats() {
        for fua in [false, true] {
            let disk = Disk::new(guard, sector, CAPACITY, 1);
            write_durably(&disk.device, fua);
            check_written(&disk.device);
            let options = options(guard, sector, CAPACITY);
            let medium = FileMedium::new(options.geometry().unwrap().device_len());
            Volume::create(&mut medium.device(), &options).unwrap();
            write_durably(&medium, fua);
            check_written(&medium);
        }
    }
}

#[test]
fn closing_marks_the_volume_clean_until_it_is_opened_for_writing() {
    let disk = Disk::new(GuardKind::Crc32c, BlockSize::PAGE, CAPACITY, 1);
    assert!(disk.volume.recovery().is_none(), "a new volume is clean");
    assert!(!Volume::peek(&mut disk.device.clone()).unwrap().clean, "an open volume is not");
    disk.volume.close(&mut disk.device.clone()).unwrap();
    assert!(Volume::peek(&mut disk.device.clone()).unwrap().clean);
    let read_only = OpenOptions { cache_bytes: 1, read_only: true, ..OpenOptions::default() };
    assert!(Volume::open(&mut disk.device.clone(), &read_only).unwrap().recovery().is_none());
    assert!(open(&disk.device).recovery().is_none());
    assert!(open(&disk.device).recovery().is_some(), "it was opened for writing before");
}

#[test]
fn counted_errors_survive_reopening() {
    for closed in [false, true] {
        let disk = Disk::new(GuardKind::Crc64, BlockSize::PAGE, CAPACITY, 1 << 20);
        let mut client = disk.client(ReadPolicy::Lazy);
        let at = disk.volume.geometry().data_at(4096);
        common::flip(&mut disk.device.clone(), at, 1);
        let mut target = [0; 4096];
        for _ in 0..3 {
            client.read_at(4096, &mut target).unwrap_err();
        }
        assert!(disk.volume.has_news());
        if closed {
            disk.volume.close(&mut disk.device.clone()).unwrap();
        } else {
            client.flush().unwrap();
        }
        assert!(!disk.volume.has_news());
        drop(client);
        let errors = open(&disk.device).errors();
        assert_eq!((errors.unwritten, errors.total()), (3, 3));
    }
}

/// Returns which sectors of the first eight hold data.
fn map<D: BlockDevice>(queue: &mut Queue<D>, disk: &Disk, sector: BlockSize) -> Vec<u8> {
    let len = 8 * sector.bytes();
    let memory = Memory::Buffer(disk.pool.take_whole(to_usize(len)).unwrap());
    let ended = common::run(queue, Bio::new(Op::Map, 0, len, memory));
    assert_eq!(ended.result, Ok(len));
    ended.bio.memory.buffer().unwrap().as_slice()[..8].to_vec()
}

#[test]
fn the_map_tells_data_from_what_was_never_written_or_discarded() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1);
        let mut client = disk.client(ReadPolicy::Lazy);
        assert_eq!(map(client.queue(), &disk, sector), [0; 8]);
        let at = |lba| lba * sector.bytes();
        client.write_at(at(1), &bytes(5 * sector.len(), 1)).unwrap();
        assert_eq!(map(client.queue(), &disk, sector), [0, 1, 1, 1, 1, 1, 0, 0]);
        client.clear(Op::Discard, at(2), at(1)).unwrap();
        client.clear(Op::Zero { keep: false, fast: false }, at(4), at(1)).unwrap();
        assert_eq!(map(client.queue(), &disk, sector), [0, 1, 0, 1, 0, 1, 0, 0]);
        client.flush().unwrap();
        drop(client);
        let reopened = Disk::open(disk.device, 1);
        assert_eq!(map(&mut reopened.queue(), &reopened, sector), [0, 1, 0, 1, 0, 1, 0, 0]);
    }
}

#[test]
fn a_map_of_a_part_of_a_sector_is_refused() {
    let disk = Disk::new(GuardKind::Crc16, BlockSize::PAGE, CAPACITY, 1);
    let memory = Memory::Buffer(disk.pool.take_whole(4096).unwrap());
    let ended = common::run(&mut disk.queue(), Bio::new(Op::Map, 512, 512, memory));
    assert_eq!(ended.result, Err(Error::Range { offset: 512, len: 512 }));
}

#[test]
fn a_plain_device_is_zeroed_by_writing_unless_that_must_be_fast() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1);
        let plain = || Faults { plain: true, ..Faults::default() };
        let device = FaultyDevice::new(disk.device.clone(), plain(), 1);
        let queue = Queue::new(&disk.volume, device, || {}).unwrap();
        let mut client = holdfast_volume::Client::new(queue, disk.pool.clone(), ReadPolicy::Lazy);
        let len = 256 << 10;
        let written = bytes(len, 9);
        for keep in [false, true] {
            client.write_at(0, &written).unwrap();
            let zero = |fast| Op::Zero { keep, fast };
            let found = client.clear(zero(true), 0, to_u64(len));
            assert_eq!(found, Err(Error::Unsupported));
            let mut found = vec![1; len];
            client.read_at(0, &mut found).unwrap();
            assert!(found == written, "what could not be zeroed was changed");
            client.clear(zero(false), 4096, to_u64(len) - 8192).unwrap();
            client.read_at(0, &mut found).unwrap();
            let (head, tail) = (&found[..4096], &found[len - 4096..]);
            assert!(found[4096..len - 4096].iter().all(|&byte| byte == 0), "not zeros");
            assert!(head == &written[..4096] && tail == &written[len - 4096..], "too many zeros");
            common::assert_clean(client.queue());
        }
        assert_eq!(disk.volume.errors().total(), 0);
    }
}

#[test]
fn zeros_that_keep_their_space_take_it_in_a_file() {
    let options = options(GuardKind::Crc16, BlockSize::PAGE, CAPACITY);
    let medium = FileMedium::new(options.geometry().unwrap().device_len());
    Volume::create(&mut medium.device(), &options).unwrap();
    let volume = open(&medium);
    let mut client = client(&medium, &volume);
    let blocks = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(medium.backing.path()).unwrap().blocks()
    };
    let before = blocks();
    client.clear(Op::Zero { keep: true, fast: true }, 0, CAPACITY).unwrap();
    assert!(blocks() >= before + CAPACITY / 512, "no space was allocated");
    client.write_at(0, &bytes(1 << 16, 1)).unwrap();
    client.clear(Op::Zero { keep: true, fast: true }, 0, CAPACITY).unwrap();
    common::assert_clean(client.queue());
    client.clear(Op::Discard, 0, CAPACITY).unwrap();
    client.write_at(0, &bytes(4096, 1)).unwrap();
    client.clear(Op::Discard, 0, CAPACITY).unwrap();
    assert_eq!(common::scrub(client.queue()).corrupt, 0);
}
