//! The tuple log, written or mapped: what it makes good after a process went down, and what it must
//! not.
//!
//! A volume that is dropped without a flush has lost what a killed process would lose: the tuples in
//! its memory.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Mismatch, Op, Tag};
use holdfast_checksum::GuardKind;
use holdfast_device::FileDevice;
use holdfast_iov::{Memory, Pool};
use holdfast_ring::Ring;
use holdfast_sim::Random;
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::format::{RawSuperblock, SUPERBLOCK_LEN, SUPERBLOCK_OFFSETS, features};
use holdfast_volume::{Durability, OpenOptions, Queue, Volume, VolumeError};
use zerocopy::{FromBytes, IntoBytes};

use crate::common::{self, FileMedium, Medium, client, fill, formats, options, peek, poke, scrub};

const CAPACITY: u64 = 4 << 20;
const SECTORS: usize = 40;

/// What has a log that is written, and what has one that is mapped.
const DURABILITIES: [Durability; 2] = [Durability::Full, Durability::None];

/// Each format with each of the logs.
fn logs() -> impl Iterator<Item = (GuardKind, BlockSize, Durability)> {
    formats().flat_map(|(guard, sector)| DURABILITIES.map(|durability| (guard, sector, durability)))
}

fn open_options(durability: Durability) -> OpenOptions {
    // The same kernel each time: it is the process that goes down.
    OpenOptions { cache_bytes: 1 << 20, durability, boot: [1; 16], ..OpenOptions::default() }
}

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

/// Opens a volume with a log that is written, if it is to be written.
fn open_with(medium: &FileMedium, read_only: bool) -> Arc<Volume> {
    let options = OpenOptions { read_only, ..open_options(Durability::Full) };
    Volume::open(&mut medium.device(), &options).unwrap()
}

/// Writes sectors, flushes, writes and clears some of them again, and goes down. Returns what they
/// are to read as.
fn go_down(medium: &FileMedium, sector: BlockSize, durability: Durability) -> Vec<u8> {
    let volume = Volume::open(&mut medium.device(), &open_options(durability)).unwrap();
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
    for (guard, sector, durability) in logs() {
        let medium = medium(guard, sector);
        let expected = go_down(&medium, sector, durability);
        for round in 0..2 {
            let volume = open_with(&medium, false);
            assert!(volume.recovery().is_some());
            assert!(read(&medium, &volume, sector).unwrap() == expected, "round {round}");
            common::assert_clean(client(&medium, &volume).queue());
            assert_eq!(volume.errors().total(), 0);
        }
    }
}

#[test]
fn opening_read_only_settles_in_memory_and_stores_nothing() {
    for (guard, sector, durability) in logs() {
        let medium = medium(guard, sector);
        let expected = go_down(&medium, sector, durability);
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
    for (guard, sector, durability) in logs() {
        let medium = medium(guard, sector);
        go_down(&medium, sector, durability);
        let geometry = options(guard, sector, CAPACITY).geometry().unwrap();
        for lba in [7, 20, 35] {
            let at = geometry.data_at(lba * sector.bytes());
            common::flip(&mut medium.device(), at, 100);
        }
        for read_only in [true, false] {
            let volume = open_with(&medium, read_only);
            // What a flush made durable in the log is not looked at.
            let seen: &[u64] = if durability == Durability::Full { &[7, 20] } else { &[7, 20, 35] };
            assert_eq!(volume.recovery().unwrap().torn, seen);
            assert_eq!(corrupt_sectors(&medium, &volume), [7, 20, 35]);
        }
    }
}

#[test]
fn a_sector_that_was_torn_is_no_corruption_and_is_read_again_after_a_write_or_when_accepted() {
    for (guard, sector) in formats() {
        let medium = medium(guard, sector);
        let mut expected = go_down(&medium, sector, Durability::Full);
        let geometry = options(guard, sector, CAPACITY).geometry().unwrap();
        for lba in [14, 15] {
            common::flip(&mut medium.device(), geometry.data_at(lba * sector.bytes()), 9);
        }
        let volume = open_with(&medium, false);
        assert_eq!(volume.accept(&mut medium.device(), 14..15), Ok(1));
        assert_eq!(volume.accept(&mut medium.device(), 0..14), Ok(0));
        let past_the_end = CAPACITY / sector.bytes();
        let refused = volume.accept(&mut medium.device(), past_the_end..past_the_end + 1);
        assert!(matches!(refused, Err(VolumeError::Lba { .. })), "{refused:?}");
        let size = sector.len();
        expected[14 * size + 1] ^= 2;
        let mut writer = client(&medium, &volume);
        let found = writer.read_at(15 * sector.bytes(), &mut vec![0; size]);
        assert!(matches!(found, Err(Error::Mismatch(Mismatch { tag: Tag::Torn, lba: 15, .. }))));
        assert_eq!(volume.errors().total(), 0, "nobody knows that it is corrupt");
        writer.write_at(15 * sector.bytes(), &expected[15 * size..][..size]).unwrap();
        drop(writer);
        assert!(read(&medium, &volume, sector).unwrap() == expected);
    }
}

/// Opens a volume after the machine went down.
fn open_elsewhere(medium: &FileMedium, read_only: bool) -> Arc<Volume> {
    let options = OpenOptions { read_only, boot: [2; 16], ..open_options(Durability::Bitmap) };
    Volume::open(&mut medium.device(), &options).unwrap()
}

#[test]
fn without_a_durable_log_sectors_are_taken_as_they_are_where_they_may_have_been_written() {
    for durability in [Durability::Bitmap, Durability::None] {
        let (guard, sector) = (GuardKind::Crc64, BlockSize::PAGE);
        let medium = medium(guard, sector);
        let mut expected = go_down(&medium, sector, durability);
        let geometry = options(guard, sector, CAPACITY).geometry().unwrap();
        // One that was written and flushed, and one in a region that was never written to.
        let far = (2 << 20) / sector.bytes();
        for lba in [35, far] {
            common::flip(&mut medium.device(), geometry.data_at(lba * sector.bytes()), 100);
        }
        expected[35 * sector.len() + 12] ^= 1 << 4;
        let found: &[u64] = if durability == Durability::Bitmap { &[far] } else { &[] };
        for read_only in [true, false] {
            let volume = open_elsewhere(&medium, read_only);
            assert_eq!(corrupt_sectors(&medium, &volume), found, "{durability} {read_only}");
            assert!(read(&medium, &volume, sector).unwrap() == expected);
            let adopted = volume.recovery().unwrap().adopted;
            assert_eq!(adopted > 0, !read_only, "{adopted}");
        }
        // The next crash finds nothing that was written.
        let volume = open_elsewhere(&medium, false);
        assert_eq!(volume.recovery().unwrap().adopted, 0);
    }
}

#[test]
fn a_process_that_is_killed_costs_nothing_with_a_bitmap() {
    for (guard, sector) in formats() {
        let medium = medium(guard, sector);
        let expected = go_down(&medium, sector, Durability::Bitmap);
        let geometry = options(guard, sector, CAPACITY).geometry().unwrap();
        common::flip(&mut medium.device(), geometry.data_at(35 * sector.bytes()), 100);
        let volume = open_with(&medium, false);
        assert_eq!(corrupt_sectors(&medium, &volume), [35]);
        let mut client = client(&medium, &volume);
        client
            .write_at(35 * sector.bytes(), &expected[35 * sector.len()..][..sector.len()])
            .unwrap();
        drop(client);
        assert!(read(&medium, &volume, sector).unwrap() == expected);
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
    for (epoch, durability) in [(0, Durability::Full), (1, Durability::Full), (1, Durability::None)]
    {
        let medium = medium(GuardKind::Crc64, BlockSize::PAGE);
        go_down(&medium, BlockSize::PAGE, durability);
        change_superblocks(&mut medium.device(), |raw| raw.log_epoch = epoch.into());
        let volume = open_with(&medium, false);
        // A part of sector 3 was written, too.
        let lost: Vec<u64> = if durability == Durability::Full {
            // The flush stored nothing, since all was in the log. What was cleared is zeros again.
            (0..5).chain(12..40).chain([CAPACITY / 4096 - 1]).collect()
        } else {
            [3].into_iter().chain(lost()).collect()
        };
        assert_eq!(corrupt_sectors(&medium, &volume), lost);
    }
}

#[test]
fn a_torn_record_is_not_believed_and_those_behind_it_are() {
    let medium = medium(GuardKind::Crc64, BlockSize::PAGE);
    go_down(&medium, BlockSize::PAGE, Durability::None);
    let geometry = options(GuardKind::Crc64, BlockSize::PAGE, CAPACITY).geometry().unwrap();
    // The first record of the first round, which is in the second half, is that of the 40 sectors.
    let first = geometry.log().0 + geometry.log().1 / 2;
    let second = (48 + 2 * 40 * 16_u64).next_multiple_of(64);
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
    let features = features::TUPLE_LOG | features::DURABILITY | features::DATA_JOURNAL;
    assert_eq!(feature(&mut medium.device()), [(features, true); 2]);
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
    for (guard, sector, durability) in logs() {
        for writes_left in 0.. {
            let medium = medium(guard, sector);
            let expected = go_down(&medium, sector, durability);
            let mut device = Killed { device: medium.device(), writes_left, ended: Vec::new() };
            let opened = Volume::open(&mut device, &open_options(durability));
            let was_killed = matches!(opened, Err(VolumeError::Device { .. }));
            assert!(was_killed || opened.is_ok(), "{opened:?}");
            for read_only in [true, false] {
                let volume = open_with(&medium, read_only);
                assert!(read(&medium, &volume, sector).unwrap() == expected, "{writes_left}");
                common::assert_clean(client(&medium, &volume).queue());
            }
            if !was_killed {
                assert!(
                    writes_left >= 4,
                    "two groups and two superblocks are written: {writes_left}"
                );
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
    let cases = [(1, 1), (1, 1 << 20), (3, 1), (3, 1 << 20)];
    for ((threads, cache_bytes), durability) in
        cases.into_iter().flat_map(|case| DURABILITIES.map(|durability| (case, durability)))
    {
        let medium = medium(GuardKind::Crc32c, sector);
        let options = OpenOptions { cache_bytes, ..open_options(durability) };
        let volume = Volume::open(&mut medium.device(), &options).unwrap();
        thread::scope(|scope| {
            for seed in 0..threads {
                let (volume, backing) = (&volume, &medium.backing);
                scope.spawn(move || {
                    let ring = Ring::new(64).unwrap().shared();
                    let device = FileDevice::new(backing, &ring).unwrap();
                    let queue = Queue::new(volume, device, || {}).unwrap();
                    let mut queue = queue.with_journal().unwrap();
                    write_much(&mut queue, seed, 2000 / to_usize(threads));
                });
            }
        });
        drop(volume);
        let volume = open_with(&medium, false);
        common::assert_clean(client(&medium, &volume).queue());
    }
}
