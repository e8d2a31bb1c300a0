use std::sync::Arc;

use holdfast_checksum::GuardKind;
use holdfast_iov::{BUFFER_MAX, BUFFER_MIN, Region, VolatileMemory};
use holdfast_units::BlockSize;

use super::*;
use crate::{GuardLimits, Mismatch, Tag};

const CAPACITY: usize = 4 << 20;
const SECTOR: BlockSize = BlockSize::PAGE;

/// A device that keeps all that is submitted to it until it is told to go on.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    submitted: VecDeque<Bio>,
    ended: Vec<Ended>,
    /// What the next reads and writes end with, instead of being done.
    errors: VecDeque<Error>,
    /// The most bytes that one transfer moves.
    moves_max: usize,
    /// How many bios are taken before the queue is full.
    depth: usize,
}

impl Held {
    fn new() -> Self {
        let (submitted, ended, errors) = (VecDeque::new(), Vec::new(), VecDeque::new());
        let bytes = (0..CAPACITY).map(|at| byte_at(at, 1)).collect();
        Self { bytes, submitted, ended, errors, moves_max: usize::MAX, depth: usize::MAX }
    }

    /// Ends the bio that was submitted first. Returns whether there was one.
    fn end_one(&mut self) -> bool {
        let Some(mut bio) = self.submitted.pop_front() else { return false };
        let result = match self.errors.pop_front() {
            Some(error) => Err(error),
            None => Ok(self.transfer(&mut bio)),
        };
        self.ended.push(Ended { bio, result });
        true
    }

    fn transfer(&mut self, bio: &mut Bio) -> u64 {
        let (offset, len) = (to_usize(bio.offset), to_usize(bio.len).min(self.moves_max));
        let stored = &mut self.bytes[offset..offset + len];
        match (bio.op, &mut bio.memory) {
            (Op::Read, Memory::Buffer(buffer)) => {
                buffer.as_mut_slice()[bio.start..][..len].copy_from_slice(stored);
            }
            (_, Memory::Buffer(buffer)) => {
                stored.copy_from_slice(&buffer.as_slice()[bio.start..][..len]);
            }
            (Op::Read, Memory::Iov(iter)) => {
                iter.copy_in(stored);
                iter.revert(len);
            }
            (_, Memory::Iov(iter)) => {
                iter.copy_out(stored);
                iter.revert(len);
            }
            (_, Memory::None | Memory::Shared(_)) => {}
        }
        to_u64(len)
    }
}

impl BlockDevice for Held {
    fn limits(&self) -> Limits {
        Limits {
            capacity: to_u64(CAPACITY),
            sector: SECTOR,
            granularity: BlockSize::SECTOR,
            memory_alignment: BlockSize::SECTOR,
            bytes_max: BUFFER_MAX,
            boundary: None,
            stable_pages: true,
            guards: Some(GuardLimits { kind: GuardKind::Crc32c, interval: SECTOR.len() }),
            read_only: false,
            in_memory: false,
        }
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        if self.submitted.len() == self.depth {
            return Err(bio);
        }
        self.submitted.push_back(bio);
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.ended);
    }

    fn wait(&mut self) {}
}

/// Returns a byte that depends on its place and on whose it is.
fn byte_at(at: usize, whose: usize) -> u8 {
    u8::try_from((at * 31 + at / 4096 * 7 + whose * 101) % 251).unwrap()
}

/// Returns 4 MiB of volatile memory with the user's bytes.
fn memory() -> Arc<VolatileMemory> {
    let region = Region::anonymous(CAPACITY).unwrap();
    let bytes: Vec<u8> = (0..CAPACITY).map(|at| byte_at(at, 2)).collect();
    region.write(0, &bytes).unwrap();
    Arc::new(VolatileMemory::new(vec![region]))
}

fn iter_over(memory: &Arc<VolatileMemory>, pieces: &[(usize, usize)]) -> IovIter {
    let mut iter = IovIter::new(Arc::clone(memory));
    for &(offset, len) in pieces {
        iter.push(0, offset, len).unwrap();
    }
    iter
}

fn bounce(policy: ReadPolicy, pool_bytes: usize) -> (Bounce<Held>, Pool) {
    let pool = Pool::new(pool_bytes).unwrap();
    (Bounce::new(Held::new(), pool.clone(), policy), pool)
}

fn bio(op: Op, offset: usize, iter: IovIter) -> Bio {
    let len = to_u64(iter.count());
    Bio::new(op, to_u64(offset), len, Memory::Iov(iter)).with_user(77)
}

/// Goes on until `count` bios have ended.
fn finish(bounce: &mut Bounce<Held>, count: usize) -> Vec<Ended> {
    let mut ended = Vec::new();
    let mut idle = 0;
    while ended.len() < count {
        idle = if bounce.device.end_one() { 0 } else { idle + 1 };
        assert!(idle < 10, "nothing goes on: {} of {count} ended", ended.len());
        bounce.reap(&mut ended);
    }
    ended
}

fn run(bounce: &mut Bounce<Held>, bio: Bio) -> Ended {
    bounce.submit(bio).unwrap();
    finish(bounce, 1).pop().unwrap()
}

fn bytes_of(memory: &VolatileMemory, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.region(0).unwrap().read(offset, &mut bytes).unwrap();
    bytes
}

fn user_bytes(offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len).map(|at| byte_at(at, 2)).collect()
}

fn stored_bytes(offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len).map(|at| byte_at(at, 1)).collect()
}

/// Returns the bytes that an iterator has left, which must be all of the bio's.
fn left_in(ended: &Ended) -> usize {
    match &ended.bio.memory {
        Memory::Iov(iter) => iter.count(),
        other => panic!("the submitter's memory did not come back, but {other:?}"),
    }
}

const fn mismatch(tag: Tag) -> Error {
    Error::Mismatch(Mismatch { tag, lba: 1, expected: 2, found: 3 })
}

#[test]
fn a_bounced_write_stores_the_bytes_and_gives_the_guards() {
    let (mut bounce, _) = bounce(ReadPolicy::Lazy, 1 << 20);
    let memory = memory();
    let iter = iter_over(&memory, &[(100, 997), (5000, 3), (9000, 8192 - 1000)]);
    bounce.submit(bio(Op::Write, 4096, iter)).unwrap();
    let below = &bounce.device.submitted[0];
    let buffer = below.memory.buffer().unwrap();
    let mut guards = [0; 2];
    holdfast_checksum::generate(GuardKind::Crc32c, 4096, &buffer.as_slice()[..8192], &mut guards);
    assert!(below.guarded);
    assert_eq!(buffer.guards()[..2], guards);
    let ended = finish(&mut bounce, 1).pop().unwrap();
    let stored = &bounce.device.bytes[4096..4096 + 8192];
    let expected = [user_bytes(100, 997), user_bytes(5000, 3), user_bytes(9000, 7192)].concat();
    assert!(stored == expected);
    assert_eq!((ended.result, ended.bio.user, left_in(&ended)), (Ok(8192), 77, 8192));
}

#[test]
fn under_pressure_a_bio_goes_down_in_parts() {
    for op in [Op::Read, Op::Write] {
        let (mut bounce, pool) = bounce(ReadPolicy::Always, 1 << 20);
        let _half = pool.take_whole(BUFFER_MAX / 2).unwrap();
        let _quarter = pool.take_whole(BUFFER_MAX / 4).unwrap();
        let memory = memory();
        let iter = iter_over(&memory, &[(7, 300_000), (400_000, 224_288 - 512)]);
        let len = iter.count();
        // It begins in the middle of a sector and ends at one, as every part but the first does.
        bounce.submit(bio(op, 512, iter)).unwrap();
        let first = &bounce.device.submitted[0];
        assert_eq!((first.len, first.start), (to_u64(BUFFER_MAX / 4 - 512), 512));
        let ended = finish(&mut bounce, 1).pop().unwrap();
        assert_eq!((ended.result, left_in(&ended)), (Ok(to_u64(len)), len));
        let user = [bytes_of(&memory, 7, 300_000), bytes_of(&memory, 400_000, 223_776)].concat();
        let expected = match op {
            Op::Read => stored_bytes(512, len),
            _ => [user_bytes(7, 300_000), user_bytes(400_000, 223_776)].concat(),
        };
        assert!(user == expected && bounce.device.bytes[512..512 + len] == expected, "{op:?}");
        assert_eq!(bounce.counters().bounced, 1);
    }
}

#[test]
fn an_atomic_bio_waits_for_a_buffer_that_holds_all_of_it() {
    let (mut bounce, pool) = bounce(ReadPolicy::Always, 1 << 20);
    let half = pool.take_whole(BUFFER_MAX / 2).unwrap();
    let reserve = pool.take_whole_or_reserve(BUFFER_MAX).unwrap();
    let memory = memory();
    let iter = iter_over(&memory, &[(7, BUFFER_MAX)]);
    let mut atomic = bio(Op::Write, 0, iter);
    (atomic.atomic, atomic.polled) = (true, true);
    bounce.submit(atomic).unwrap();
    bounce.reap(&mut Vec::new());
    assert_eq!(bounce.device.submitted.len(), 0);
    drop((half, reserve));
    bounce.reap(&mut Vec::new());
    let below = &bounce.device.submitted[0];
    assert_eq!((below.len, below.atomic, below.polled), (to_u64(BUFFER_MAX), true, true));
    bounce.device.moves_max = 4096;
    let ended = finish(&mut bounce, 1).pop().unwrap();
    assert_eq!((ended.result, ended.bio.atomic, ended.bio.polled), (Ok(4096), true, true));
    assert_eq!(left_in(&ended), BUFFER_MAX);
}

#[test]
fn short_transfers_below_are_gone_on_with() {
    for op in [Op::Read, Op::Write] {
        for moves_max in [512, 1536, 4096, 12_800] {
            let (mut bounce, _) = bounce(ReadPolicy::Always, 1 << 20);
            bounce.device.moves_max = moves_max;
            let memory = memory();
            let iter = iter_over(&memory, &[(3, 40_000), (50_000, 960)]);
            let ended = run(&mut bounce, bio(op, 8192, iter));
            let user = [bytes_of(&memory, 3, 40_000), bytes_of(&memory, 50_000, 960)].concat();
            assert_eq!((ended.result, left_in(&ended)), (Ok(40_960), 40_960));
            assert!(bounce.device.bytes[8192..][..40_960] == user, "{op:?} by {moves_max}");
        }
    }
}

#[test]
fn the_reserve_takes_any_number_of_writers_on() {
    let (mut bounce, pool) = bounce(ReadPolicy::Always, 1 << 20);
    let _all = pool.take_whole(BUFFER_MAX).unwrap();
    let memory = memory();
    for number in 0..64 {
        let iter = iter_over(&memory, &[(number * 40_000 + 1, 40_960)]);
        bounce.submit(bio(Op::Write, number * 40_960, iter)).unwrap();
    }
    assert_eq!(bounce.device.submitted.len(), 1, "there is one buffer");
    let ended = finish(&mut bounce, 64);
    assert!(ended.iter().all(|ended| ended.result == Ok(40_960)));
    let all_stored = (0..64).all(|number| {
        bounce.device.bytes[number * 40_960..][..40_960] == user_bytes(number * 40_000 + 1, 40_960)
    });
    assert!(all_stored);
    // First come, first served.
    let offsets: Vec<u64> = ended.iter().map(|ended| ended.bio.offset).collect();
    assert!(offsets.is_sorted(), "{offsets:?}");
}

#[test]
fn a_full_queue_below_is_waited_for() {
    let (mut bounce, pool) = bounce(ReadPolicy::Always, 4 << 20);
    bounce.device.depth = 2;
    let memory = memory();
    for number in 0..8 {
        let iter = iter_over(&memory, &[(number * 16_384 + 1, 16_384)]);
        bounce.submit(bio(Op::Write, number * 16_384, iter)).unwrap();
    }
    let ended = finish(&mut bounce, 8);
    assert!(ended.iter().all(|ended| ended.result == Ok(16_384) && left_in(ended) == 16_384));
    assert!(bounce.device.bytes[..8 * 16_384] == user_bytes(1, 8 * 16_384));
    drop(ended);
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
fn a_full_queue_gives_a_bio_without_a_copy_back_as_it_was() {
    let (mut bounce, _) = bounce(ReadPolicy::Lazy, 1 << 20);
    bounce.device.depth = 0;
    let refused = bounce.submit(bio(Op::Read, 0, iter_over(&memory(), &[(0, 4096)]))).unwrap_err();
    assert_eq!((refused.user, refused.len, refused.tentative), (77, 4096, false));
    assert_eq!(bounce.counters(), BounceCounters::default());
}

#[test]
fn pages_listed_twice_bounce_at_once() {
    let (mut bounce, _) = bounce(ReadPolicy::Lazy, 1 << 20);
    let memory = memory();
    let iter = iter_over(&memory, &[(0, 4096), (8192, 4096), (0, 4096)]);
    bounce.submit(bio(Op::Read, 4096, iter)).unwrap();
    assert!(bounce.device.submitted[0].memory.buffer().is_some());
    let ended = finish(&mut bounce, 1).pop().unwrap();
    assert_eq!(ended.result, Ok(3 * 4096));
    // The last one wins.
    assert!(bytes_of(&memory, 0, 4096) == stored_bytes(3 * 4096, 4096));
    assert!(bytes_of(&memory, 8192, 4096) == stored_bytes(2 * 4096, 4096));
    let counters = bounce.counters();
    assert_eq!((counters.bounced, counters.zero_copy), (1, 0));
}

#[test]
fn a_lazy_read_that_is_good_the_second_time_is_good() {
    for tag in [Tag::Guard, Tag::Unwritten] {
        let (mut bounce, _) = bounce(ReadPolicy::Lazy, 1 << 20);
        bounce.device.errors.push_back(mismatch(tag));
        let memory = memory();
        bounce.submit(bio(Op::Read, 4096, iter_over(&memory, &[(8192, 8192)]))).unwrap();
        let below = &bounce.device.submitted[0];
        assert!(below.tentative && below.memory.is_volatile(), "it goes down without a copy");
        bounce.device.end_one();
        bounce.reap(&mut Vec::new());
        let below = &bounce.device.submitted[0];
        assert!(!below.tentative && below.memory.buffer().is_some(), "it is read into a buffer");
        let ended = finish(&mut bounce, 1).pop().unwrap();
        assert_eq!((ended.result, ended.bio.user, left_in(&ended)), (Ok(8192), 77, 8192));
        assert!(!ended.bio.tentative);
        assert!(bytes_of(&memory, 8192, 8192) == stored_bytes(4096, 8192));
        let expected = BounceCounters { zero_copy: 1, reread_good: 1, ..BounceCounters::default() };
        assert_eq!(bounce.counters(), expected);
    }
}

#[test]
fn a_lazy_read_that_is_bad_the_second_time_is_bad() {
    let (mut bounce, pool) = bounce(ReadPolicy::Lazy, 1 << 20);
    bounce.device.errors.extend([mismatch(Tag::Guard), mismatch(Tag::Guard)]);
    let memory = memory();
    let ended = run(&mut bounce, bio(Op::Read, 4096, iter_over(&memory, &[(8192, 8192)])));
    assert_eq!((ended.result, left_in(&ended)), (Err(mismatch(Tag::Guard)), 8192));
    assert!(bytes_of(&memory, 8192, 8192) == user_bytes(8192, 8192), "something was delivered");
    let expected = BounceCounters { zero_copy: 1, reread_bad: 1, ..BounceCounters::default() };
    assert_eq!(bounce.counters(), expected);
    drop(ended);
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
fn what_cannot_come_from_changed_memory_is_not_read_again() {
    for error in [mismatch(Tag::Reference), mismatch(Tag::Application), Error::IO] {
        let (mut bounce, _) = bounce(ReadPolicy::Lazy, 1 << 20);
        bounce.device.errors.push_back(error);
        let ended = run(&mut bounce, bio(Op::Read, 0, iter_over(&memory(), &[(0, 4096)])));
        assert_eq!((ended.result, left_in(&ended)), (Err(error), 4096));
        assert_eq!((bounce.counters().reread_good, bounce.counters().reread_bad), (0, 0));
    }
}

#[test]
fn an_error_in_a_later_part_ends_the_bio_with_its_memory_at_the_beginning() {
    for op in [Op::Read, Op::Write] {
        let (mut bounce, pool) = bounce(ReadPolicy::Always, 1 << 20);
        let taken: Vec<_> = (0..63).map(|_| pool.take_whole(BUFFER_MIN).unwrap()).collect();
        let memory = memory();
        bounce.submit(bio(op, 0, iter_over(&memory, &[(1, 100), (201, 65_436)]))).unwrap();
        bounce.device.end_one();
        bounce.device.errors.push_back(Error::NoSpace);
        let ended = finish(&mut bounce, 1).pop().unwrap();
        assert_eq!((ended.result, left_in(&ended)), (Err(Error::NoSpace), 65_536));
        drop((ended, taken));
        assert_eq!(pool.free_bytes(), pool.total_bytes());
    }
}

#[test]
fn never_bounces_nothing_that_the_device_can_reach() {
    let (mut bounce, _) = bounce(ReadPolicy::Never, 1 << 20);
    let memory = memory();
    for op in [Op::Read, Op::Write] {
        let iter = iter_over(&memory, &[(0, 4096), (0, 4096)]);
        bounce.submit(bio(op, 0, iter)).unwrap();
    }
    assert!(bounce.device.submitted.iter().all(|bio| bio.memory.is_volatile() && !bio.tentative));
    bounce.device.errors.push_back(mismatch(Tag::Guard));
    let ended = finish(&mut bounce, 2);
    assert_eq!(ended[0].result, Err(mismatch(Tag::Guard)), "it is not read again");
    // What is misaligned cannot be reached.
    run(&mut bounce, bio(Op::Read, 0, iter_over(&memory, &[(1, 4096)])));
    let counters = bounce.counters();
    assert_eq!((counters.zero_copy, counters.bounced), (2, 1));
}

#[test]
fn borrowed_memory_is_bounced_only_when_it_is_misaligned() {
    let (mut bounce, pool) = bounce(ReadPolicy::Always, 2 << 20);
    let mut target = pool.take_whole(16_384).unwrap();
    for (start, bounced) in [(0, 0), (512, 0), (1, 1)] {
        let before = bounce.counters().bounced;
        let target = &mut target.as_mut_slice()[start..][..8192];
        holdfast_iov::lend_mut(target, |iter| {
            assert_eq!(run(&mut bounce, bio(Op::Read, 4096, iter)).result, Ok(8192));
        });
        assert!(target == stored_bytes(4096, 8192));
        assert_eq!(bounce.counters().bounced - before, bounced, "at {start}");
    }
}

#[test]
fn a_read_into_memory_that_was_lent_as_a_source_is_left_to_the_device_to_refuse() {
    let (mut bounce, _) = bounce(ReadPolicy::Always, 1 << 20);
    bounce.device.errors.push_back(Error::Unsupported);
    let source = [7; 4097];
    let found =
        holdfast_iov::lend(&source[1..], |iter| run(&mut bounce, bio(Op::Read, 0, iter)).result);
    assert_eq!((found, bounce.counters().bounced), (Err(Error::Unsupported), 0));
}
