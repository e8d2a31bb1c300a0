//! The tuple log: what it makes good after a process went down, and what it must not.
//!
//! A volume that is dropped without a flush has lost what a killed process would lose: the tuples in
//! its memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{FileMedium, Medium, client, fill, formats, options, peek, poke, scrub};
use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Op};
use holdfast_checksum::GuardKind;
use holdfast_device::FileDevice;
use holdfast_iov::{Memory, Pool};
use holdfast_ring::Ring;
use holdfast_sim::Random;
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::format::{RawSuperblock, SUPERBLOCK_LEN, SUPERBLOCK_OFFSETS, features};
use holdfast_volume::{OpenOptions, Queue, Volume, VolumeError};
use zerocopy::{FromBytes, IntoBytes};

const CAPACITY: u64 = 4 << 20;
const SECTORS: usize = 40;

fn medium(guard: GuardKind, sector: BlockSize) -> FileMedium {
    let options = options(guard, sector, CAPACITY);
    let medium = FileMedium::new(options.geometry().unwrap().device_len());
    Volume::create(&mut medium.device(), &options).unwrap();
    medium
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}

fn open_with(medium: &FileMedium, read_only: bool) -> Arc<Volume> {
    let options = OpenOptions { cache_bytes: 1 << 20, read_only };
    Volume::open(&mut medium.device(), &options).unwrap()
}

/// Writes sectors, flushes, writes and clears some of them again, and goes down. Returns what they
/// are to read as.
fn go_down(medium: &FileMedium, sector: BlockSize) -> Vec<u8> {
    let volume = open_with(medium, false);
    let mut client = client(medium, &volume);
    let size = sector.len();
    let mut expected = bytes(SECTORS * size, 1);
    client.write_at(0, &expected).unwrap();
    client.flush().unwrap();
    let newer = bytes(20 * size, 2);
    client.write_at(to_u64(10 * size), &newer).unwrap();
    expected[10 * size..30 * size].copy_from_slice(&newer);
    client.clear(Op::Discard, to_u64(5 * size), to_u64(7 * size)).unwrap();
    expected[5 * size..12 * size].fill(0);
    // A part of a sector where sectors have parts.
    let part = bytes(512, 3);
    client.write_at(to_u64(3 * size + size - 512), &part).unwrap();
    expected[4 * size - 512..4 * size].copy_from_slice(&part);
    // Behind all that was flushed.
    let last = bytes(size, 4);
    client.write_at(CAPACITY - to_u64(size), &last).unwrap();
    expected.extend_from_slice(&last);
    expected
}

fn read(medium: &FileMedium, volume: &Arc<Volume>, sector: BlockSize) -> Result<Vec<u8>, Error> {
    let mut client = client(medium, volume);
    let mut found = vec![0; (SECTORS + 1) * sector.len()];
    let (head, tail) = found.split_at_mut(SECTORS * sector.len());
    client.read_at(0, head)?;
    client.read_at(CAPACITY - sector.bytes(), tail)?;
    Ok(found)
}

fn corrupt_sectors(medium: &FileMedium, volume: &Arc<Volume>) -> Vec<u64> {
    let report = scrub(client(medium, volume).queue());
    assert!(report.unreadable.is_empty());
    report.mismatches.iter().map(|mismatch| mismatch.lba).collect()
}

/// Returns the first bytes of the file, all of the disk included.
fn stored(medium: &FileMedium) -> Vec<u8> {
    let len = medium.backing.bytes() / 4096 * 4096;
    let mut device = medium.device();
    (0..len / 4096).flat_map(|page| peek(&mut device, page * 4096, 4096)).collect()
}

#[test]
fn what_was_not_flushed_is_there_after_going_down() {
    for (guard, sector) in formats() {
        let medium = medium(guard, sector);
        let expected = go_down(&medium, sector);
        for round in 0..2 {
            let volume = open_with(&medium, false);
            assert!(!volume.was_clean());
            assert!(read(&medium, &volume, sector).unwrap() == expected, "round {round}");
            common::assert_clean(client(&medium, &volume).queue());
            assert_eq!(volume.errors().total(), 0);
        }
    }
}

#[test]
fn opening_read_only_settles_in_memory_and_stores_nothing() {
    for (guard, sector) in formats() {
        let medium = medium(guard, sector);
        let expected = go_down(&medium, sector);
        let before = stored(&medium);
        let volume = open_with(&medium, true);
        assert!(read(&medium, &volume, sector).unwrap() == expected);
        let mut client = client(&medium, &volume);
        common::assert_clean(client.queue());
        // What the log has for a sector that has no stored tuple counts as data.
        let memory = Memory::Buffer(Pool::new(1 << 20).unwrap().take(4096).unwrap());
        let map = Bio::new(Op::Map, CAPACITY - 2 * sector.bytes(), 2 * sector.bytes(), memory);
        let ended = common::run(client.queue(), map);
        assert_eq!(ended.bio.memory.buffer().unwrap().as_slice()[..2], [0, 1]);
        drop(client);
        assert!(stored(&medium) == before, "read-only, and changed");
    }
}

#[test]
fn a_corrupt_sector_that_the_log_names_is_reported() {
    for (guard, sector) in formats() {
        let medium = medium(guard, sector);
        go_down(&medium, sector);
        let geometry = options(guard, sector, CAPACITY).geometry().unwrap();
        for lba in [7, 20, 35] {
            let at = geometry.data_at(lba * sector.bytes());
            common::flip(&mut medium.device(), at, 100);
        }
        for read_only in [true, false] {
            let volume = open_with(&medium, read_only);
            assert_eq!(corrupt_sectors(&medium, &volume), [7, 20, 35]);
        }
    }
}

/// Changes both superblocks.
fn change_superblocks(device: &mut FileDevice, change: impl Fn(&mut RawSuperblock)) {
    for offset in SUPERBLOCK_OFFSETS {
        let bytes = peek(device, offset, SUPERBLOCK_LEN);
        let mut raw = RawSuperblock::read_from_bytes(&bytes).unwrap();
        change(&mut raw);
        raw.checksum = raw.compute_checksum().into();
        poke(device, offset, raw.as_bytes());
    }
}

/// The sectors that `go_down` leaves without their tuples, if nothing is made good.
fn lost() -> Vec<u64> {
    (5..30).chain([CAPACITY / 4096 - 1]).collect()
}

#[test]
fn a_log_of_another_epoch_or_of_none_is_not_believed() {
    for epoch in [0, 1] {
        let medium = medium(GuardKind::Crc64, BlockSize::PAGE);
        go_down(&medium, BlockSize::PAGE);
        change_superblocks(&mut medium.device(), |raw| raw.log_epoch = epoch.into());
        let volume = open_with(&medium, false);
        // A part of sector 3 was written, too.
        let lost: Vec<u64> = [3].into_iter().chain(lost()).collect();
        assert_eq!(corrupt_sectors(&medium, &volume), lost);
    }
}

#[test]
fn a_torn_record_is_not_believed_and_those_behind_it_are() {
    let medium = medium(GuardKind::Crc64, BlockSize::PAGE);
    go_down(&medium, BlockSize::PAGE);
    let geometry = options(GuardKind::Crc64, BlockSize::PAGE, CAPACITY).geometry().unwrap();
    // The first record of the first round, which is in the second half, is that of the 40 sectors.
    let first = geometry.log().0 + geometry.log().1 / 2;
    let second = (48 + 40 * 16_u64).next_multiple_of(64);
    common::flip(&mut medium.device(), first + second + 60, 3);
    let volume = open_with(&medium, false);
    assert_eq!(corrupt_sectors(&medium, &volume), (12..30).collect::<Vec<_>>());
}

#[test]
fn the_log_is_needed_from_opening_for_writing_until_closing() {
    let medium = medium(GuardKind::Crc16, BlockSize::PAGE);
    let feature = |device: &mut FileDevice| {
        SUPERBLOCK_OFFSETS.map(|offset| {
            let bytes = peek(device, offset, SUPERBLOCK_LEN);
            let raw = RawSuperblock::read_from_bytes(&bytes).unwrap();
            (raw.incompatible.get(), raw.log_epoch.get() != 0)
        })
    };
    assert_eq!(feature(&mut medium.device()), [(0, false); 2]);
    let volume = open_with(&medium, false);
    assert_eq!(feature(&mut medium.device()), [(features::TUPLE_LOG, true); 2]);
    volume.close(&mut medium.device()).unwrap();
    assert_eq!(feature(&mut medium.device()), [(0, false); 2]);
}

/// A device that fails all writes after so many: the process that uses it is killed there.
struct Killed<D> {
    device: D,
    writes_left: usize,
    ended: Vec<Ended>,
}

impl<D: BlockDevice> BlockDevice for Killed<D> {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        if bio.op.is_write() {
            let Some(left) = self.writes_left.checked_sub(1) else {
                self.ended.push(Ended { bio, result: Err(Error::IO) });
                return Ok(());
            };
            self.writes_left = left;
        }
        self.device.submit(bio)
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.ended);
        self.device.reap(ended);
    }

    fn wait(&mut self) {
        if self.ended.is_empty() {
            self.device.wait();
        }
    }
}

#[test]
fn a_recovery_that_is_killed_is_done_again() {
    for (guard, sector) in formats() {
        for writes_left in 0.. {
            let medium = medium(guard, sector);
            let expected = go_down(&medium, sector);
            let mut device = Killed { device: medium.device(), writes_left, ended: Vec::new() };
            let opened = Volume::open(&mut device, &OpenOptions::default());
            let was_killed = matches!(opened, Err(VolumeError::Device { .. }));
            assert!(was_killed || opened.is_ok(), "{opened:?}");
            for read_only in [true, false] {
                let volume = open_with(&medium, read_only);
                assert!(read(&medium, &volume, sector).unwrap() == expected, "{writes_left}");
                common::assert_clean(client(&medium, &volume).queue());
            }
            if !was_killed {
                assert!(writes_left >= 4, "two groups and two superblocks are written");
                break;
            }
        }
    }
}

/// Writes so many requests through a queue, most of them long, with many in flight.
fn write_much(queue: &mut Queue<FileDevice>, seed: u64, requests: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let (limits, mut random) = (queue.limits(), Random::new(seed));
    let pool = Pool::new(16 << 20).unwrap();
    let (mut submitted, mut in_flight, mut ended) = (0, 0, Vec::new());
    while submitted < requests || in_flight > 0 {
        while submitted < requests && in_flight < 32 {
            let sector = limits.sector.bytes();
            let offset = random.below(limits.capacity / sector) * sector;
            let left = (limits.capacity - offset).min((1 + random.below(256)) * sector);
            let len = limits.to_boundary(offset, left).min(limits.bytes_max as u64);
            let Some(mut buffer) = pool.take_whole(to_usize(len)) else { break };
            fill(&mut buffer.as_mut_slice()[..8], random.next());
            let bio = Bio::new(Op::Write, offset, len, Memory::Buffer(buffer));
            queue.submit(bio).unwrap();
            (submitted, in_flight) = (submitted + 1, in_flight + 1);
        }
        queue.wait();
        queue.reap(&mut ended);
        in_flight -= ended.len();
        assert!(ended.drain(..).all(|ended| ended.result == Ok(ended.bio.len)));
        assert!(Instant::now() < deadline, "{in_flight} never end");
    }
}

#[test]
fn a_log_that_is_full_again_and_again_holds_nobody_up_and_loses_nothing() {
    let sector = BlockSize::SECTOR;
    for (threads, cache_bytes) in [(1, 1), (1, 1 << 20), (3, 1), (3, 1 << 20)] {
        let medium = medium(GuardKind::Crc32c, sector);
        let options = OpenOptions { cache_bytes, read_only: false };
        let volume = Volume::open(&mut medium.device(), &options).unwrap();
        thread::scope(|scope| {
            for seed in 0..threads {
                let (volume, backing) = (&volume, &medium.backing);
                scope.spawn(move || {
                    let ring = Ring::new(64).unwrap().shared();
                    let device = FileDevice::new(backing, &ring).unwrap();
                    let mut queue = Queue::new(volume, device, || {}).unwrap();
                    write_much(&mut queue, seed, 2000 / to_usize(threads));
                });
            }
        });
        drop(volume);
        let volume = open_with(&medium, false);
        common::assert_clean(client(&medium, &volume).queue());
    }
}
