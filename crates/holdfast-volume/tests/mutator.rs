//! Memory that a thread keeps storing to while it is written from and read into: no bad guard is
//! ever stored, and nothing is ever called corrupt that is not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_bio::{BounceCounters, Error, Op, ReadPolicy, Tag};
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_iov::{IovIter, Region, VolatileMemory};
use holdfast_sim::Random;
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::Client;

use crate::common::{self, Disk, fill, formats};

/// All that the mutator ever stores.
const VALUES: [u8; 4] = [0x11, 0x2d, 0x88, 0xf4];
/// The regions: what writes take, and where reads deliver; one of each out of the mutator's reach.
const SOURCE: usize = 0;
const STABLE_SOURCE: usize = 1;
const TARGET: usize = 2;
const STABLE_TARGET: usize = 3;

const REGION: usize = 64 << 10;
const REQUEST_MAX: usize = 8 << 10;
/// Odd lengths into which requests are cut.
const CUTS: [usize; 8] = [100, 997, 1531, 3, 512, 4096, 1, 2048];

/// Returns the regions, of which the two sources are filled.
fn memory() -> Arc<VolatileMemory> {
    let region = |provider| Region::anonymous(REGION).unwrap().with_provider(provider);
    let memory = VolatileMemory::new([0, 1, 0, 1].map(region).into());
    let mut bytes = vec![0; REGION];
    fill(&mut bytes, 3);
    memory.region(STABLE_SOURCE).unwrap().write(0, &bytes).unwrap();
    for (byte, value) in bytes.iter_mut().zip(VALUES.into_iter().cycle()) {
        *byte = value;
    }
    memory.region(SOURCE).unwrap().write(0, &bytes).unwrap();
    Arc::new(memory)
}

/// Runs `work` while another thread stores to the memory within its reach.
fn with_mutator<R>(memory: &VolatileMemory, work: impl FnOnce() -> R) -> R {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    // One at a time: on few cores the others' mutators would only take each other's time.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also when `work` panics, or the scope would wait for ever.
        let _stopped = Stop(&stop);
        scope.spawn(|| {
            let mut random = Random::new(99);
            let regions = [SOURCE, TARGET].map(|index| memory.region(index).unwrap());
            while !stop.load(Ordering::Relaxed) {
                let number = random.next();
                if number.is_multiple_of(256) {
                    // Or a busy machine would let it store for whole time slices to nobody's memory.
                    thread::yield_now();
                }
                let bytes = number.to_le_bytes().map(|byte| VALUES[usize::from(byte % 4)]);
                let len = to_usize(number >> 61) + 1;
                let offset = to_usize(number >> 8) % (REGION - 8);
                regions[to_usize(number >> 60 & 1)].write(offset, &bytes[..len]).unwrap();
            }
        });
        work()
    })
}

/// A piece of a request's memory.
#[derive(Clone, Copy, Debug)]
struct Piece {
    region: usize,
    offset: usize,
    len: usize,
}

/// Cuts a request in one of several awkward ways. About half of the pieces are out of reach.
fn scatter(random: &mut Random, op: Op, len: usize) -> Vec<Piece> {
    let regions = if op == Op::Write { [SOURCE, STABLE_SOURCE] } else { [TARGET, STABLE_TARGET] };
    // Two pieces of a read that are the same memory deliver to one place, so that only the mutator's
    // part may be listed twice.
    let mut stable_at = to_usize(random.below(8)) * 512;
    let style = random.below(4);
    let mut pieces = Vec::new();
    let mut left = len;
    while left > 0 {
        let cut = match style {
            // As guests do: whole sectors, which go down without a copy.
            0 | 1 => 512 << random.below(4),
            // One page, listed again and again.
            2 => 4096,
            _ => CUTS[to_usize(random.below(8))],
        };
        let len = cut.min(left);
        let region = regions[to_usize(random.below(2))];
        let misaligned = if style == 3 { to_usize(random.below(700)) } else { 0 };
        let offset = match (region, style) {
            (STABLE_SOURCE | STABLE_TARGET, _) => stable_at + misaligned,
            (_, 2) => 8192,
            _ => to_usize(random.below(96)) * 512 + misaligned,
        };
        if matches!(region, STABLE_SOURCE | STABLE_TARGET) {
            stable_at = offset + len;
            if style < 3 {
                stable_at = stable_at.next_multiple_of(512);
            }
        }
        pieces.push(Piece { region, offset: offset.min(REGION - len), len });
        left -= len;
    }
    pieces
}

/// What a volume must hold: exact bytes, and places for which any of the mutator's values will do.
struct Model {
    bytes: Vec<u8>,
    exact: Vec<bool>,
}

impl Model {
    fn new(capacity: u64) -> Self {
        let len = to_usize(capacity);
        Self { bytes: vec![0; len], exact: vec![true; len] }
    }

    fn write(&mut self, mut at: usize, pieces: &[Piece], memory: &VolatileMemory) {
        for piece in pieces {
            let target = &mut self.bytes[at..][..piece.len];
            memory.region(piece.region).unwrap().read(piece.offset, target).unwrap();
            self.exact[at..][..piece.len].fill(piece.region == STABLE_SOURCE);
            at += piece.len;
        }
    }

    fn check(&self, at: usize, found: &[u8]) {
        let expected = self.bytes[at..].iter().zip(&self.exact[at..]);
        let wrong = found.iter().zip(expected).position(|(found, (expected, exact))| {
            if *exact { found != expected } else { !VALUES.contains(found) }
        });
        assert_eq!(wrong.map(|index| at + index), None, "a byte that was never there");
    }

    fn check_read(&self, mut at: usize, pieces: &[Piece], memory: &VolatileMemory) {
        let mut found = [0; REQUEST_MAX];
        for piece in pieces {
            if piece.region == STABLE_TARGET {
                let found = &mut found[..piece.len];
                memory.region(piece.region).unwrap().read(piece.offset, found).unwrap();
                self.check(at, found);
            }
            at += piece.len;
        }
    }
}

fn iter_over(memory: &Arc<VolatileMemory>, pieces: &[Piece]) -> IovIter {
    let mut iter = IovIter::new(Arc::clone(memory));
    for piece in pieces {
        iter.push(piece.region, piece.offset, piece.len).unwrap();
    }
    iter
}

/// A range of few places, so that requests meet each other's data.
fn range(random: &mut Random, capacity: u64) -> (u64, usize) {
    let offset = random.below(capacity / 512) * 512;
    let len = (1 + random.below(to_u64(REQUEST_MAX / 512))) * 512;
    let len = if random.chance(60) { len.next_multiple_of(4096) } else { len };
    let offset = if random.chance(60) { offset & !4095 } else { offset };
    (offset, to_usize(len.min(to_u64(REQUEST_MAX)).min(capacity - offset)))
}

/// Writes and reads, each checked, and everything checked at the end.
fn round(guard: GuardKind, sector: BlockSize, policy: ReadPolicy, requests: u32) -> BounceCounters {
    let group = common::group_bytes(guard, sector);
    // Across a border between groups, and not much more, so that reads meet what was written.
    let capacity = group + (64 << 10);
    let start = group - (64 << 10);
    let disk = Disk::new(guard, sector, capacity, 1 << 20);
    let mut client = disk.client(policy);
    let memory = memory();
    let mut model = Model::new(capacity);
    with_mutator(&memory, || {
        let mut random = Random::new(u64::from(requests));
        for number in 0..requests {
            let op = if random.chance(40) { Op::Write } else { Op::Read };
            let (offset, len) = range(&mut random, capacity - start);
            let (offset, at) = (start + offset, to_usize(start + offset));
            let pieces = scatter(&mut random, op, len);
            let result = client.move_data(op, offset, iter_over(&memory, &pieces), false);
            assert_eq!(result, Ok(()), "{number}: {op:?} of {pieces:?} at {offset}");
            match op {
                Op::Write => model.write(at, &pieces, &memory),
                _ => model.check_read(at, &pieces, &memory),
            }
        }
    });
    assert_eq!(disk.volume.errors().total(), 0, "a false alarm");
    let counters = client.bounce_counters();
    let mut found = vec![0; to_usize(capacity)];
    client.read_at(0, &mut found).unwrap();
    model.check(0, &found);
    common::assert_clean(client.queue());
    assert_eq!(counters.reread_bad, 0);
    counters
}

const REQUESTS: u32 = 9000;

#[test]
fn reads_that_always_bounce_and_writes_are_exact_under_a_mutator() {
    for (guard, sector) in formats() {
        let counters = round(guard, sector, ReadPolicy::Always, REQUESTS);
        assert_eq!((counters.zero_copy, counters.reread_good), (0, 0), "{guard} {sector}");
    }
}

#[test]
fn lazy_reads_are_read_again_and_never_called_corrupt_under_a_mutator() {
    let mut again = 0;
    for (guard, sector) in formats() {
        let counters = round(guard, sector, ReadPolicy::Lazy, REQUESTS);
        assert!(counters.zero_copy > 0, "nothing was read without a copy");
        again += counters.reread_good;
    }
    assert!(again > 0, "the mutator was too slow to show anything");
}

#[test]
fn a_never_written_sector_is_no_corrupt_one_because_its_memory_changed() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, 64 << 10, 1 << 20);
        let mut client = disk.client(ReadPolicy::Lazy);
        let memory = memory();
        with_mutator(&memory, || {
            let deadline = Instant::now() + Duration::from_secs(60);
            while client.bounce_counters().reread_good == 0 {
                let mut iter = IovIter::new(Arc::clone(&memory));
                iter.push(TARGET, 0, 64 << 10).unwrap();
                assert_eq!(client.move_data(Op::Read, 0, iter, false), Ok(()));
                assert!(Instant::now() < deadline, "the mutator changes nothing");
            }
        });
        assert_eq!(disk.volume.errors().total(), 0, "{guard} {sector}");
    }
}

#[test]
fn without_bouncing_a_mutator_leaves_bad_guards() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, 64 << 10, 1 << 20);
        let mut client = disk.client(ReadPolicy::Never);
        let memory = memory();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut bad = 0;
        while bad == 0 {
            with_mutator(&memory, || {
                for _ in 0..20 {
                    let mut iter = IovIter::new(Arc::clone(&memory));
                    iter.push(SOURCE, 0, 64 << 10).unwrap();
                    assert_eq!(client.move_data(Op::Write, 0, iter, false), Ok(()));
                }
            });
            bad = common::scrub(client.queue()).corrupt;
            assert!(Instant::now() < deadline, "the mutator changes nothing");
        }
    }
}

/// Reads the first 64 KiB into memory that changes and returns the mismatches' tags and LBAs.
fn lazy_reads(disk: &Disk, count: usize) -> Vec<Option<(Tag, u64)>> {
    let mut client: Client<MemoryDevice> = disk.client(ReadPolicy::Lazy);
    let memory = memory();
    with_mutator(&memory, || {
        let read = |_| {
            let mut iter = IovIter::new(Arc::clone(&memory));
            iter.push(TARGET, 0, 64 << 10).unwrap();
            match client.move_data(Op::Read, 0, iter, false) {
                Err(Error::Mismatch(found)) => Some((found.tag, found.lba)),
                _ => None,
            }
        };
        (0..count).map(read).collect()
    })
}

/// Returns a volume whose first 64 KiB were written, except for sector 5.
fn written(guard: GuardKind, sector: BlockSize) -> Disk {
    let disk = Disk::new(guard, sector, 1 << 20, 1 << 20);
    let mut client = disk.client(ReadPolicy::Lazy);
    let mut bytes = vec![0; 64 << 10];
    fill(&mut bytes, 4);
    let end = 5 * sector.len();
    client.write_at(0, &bytes[..end]).unwrap();
    client.write_at(6 * sector.bytes(), &bytes[end + sector.len()..]).unwrap();
    client.flush().unwrap();
    drop(client);
    disk.volume.close(&mut disk.device.clone()).unwrap();
    disk
}

#[test]
fn real_corruption_is_reported_once_for_each_read_under_a_mutator() {
    const READS: usize = 40;
    for (guard, sector) in formats() {
        for (lba, tag) in
            [(9, Tag::Guard), (5, Tag::Unwritten), (9, Tag::Application), (9, Tag::Reference)]
        {
            let disk = written(guard, sector);
            let (tuple, size) = common::tuple_at(&disk.volume, lba);
            let (at, bit) = match tag {
                Tag::Application => (tuple, u64::from(guard.bits())),
                Tag::Reference => (tuple, size * 8 - 1),
                _ => (disk.volume.geometry().data_at(lba * sector.bytes()), 7),
            };
            common::flip(&mut disk.device.clone(), at, bit);
            let disk = Disk::open(disk.device, 1 << 20);
            let found = lazy_reads(&disk, READS);
            assert!(found.iter().all(|&found| found == Some((tag, lba))), "{tag:?}: {found:?}");
            let errors = disk.volume.errors();
            let counted = [errors.guard, errors.unwritten, errors.application, errors.reference];
            assert_eq!(errors.total(), to_u64(READS), "{tag:?} {counted:?}");
        }
    }
}
