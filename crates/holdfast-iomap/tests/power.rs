//! The power is cut while files are written durably, on a device that keeps nothing which was not flushed:
//! what was acknowledged is there, and nothing else than what was written.

use holdfast_bio::{Bio, BlockDevice, Op, ReadPolicy};
use holdfast_iomap::{DirectIo, Direction, Flags, Request};
use holdfast_iov::{Memory, Pool};
use holdfast_sim::{PowerDevice, Random};
use holdfast_units::to_usize;

use crate::common::fs::{Inode, TestFs};
use crate::common::{BLOCK, FILE, Log, STALE};

const CAPACITY: usize = 1 << 20;
const FILE_LEN: usize = 12 * BLOCK;
const UNIT: usize = 512;
const WRITES: u8 = 40;

/// A file after a commit, which is what a file system finds after a crash.
struct Committed {
    /// How far the journal of the device was when the write was submitted, and when it was acknowledged.
    began: usize,
    ended: usize,
    inode: Inode,
    bytes: Vec<u8>,
}

/// Writes durably, one after the other, and returns the file after each write.
fn write_durably(device: &PowerDevice, seed: u64) -> Vec<Committed> {
    let pool = Pool::new(1 << 20).unwrap();
    let mut io = DirectIo::new(device.queue(30, seed), pool.clone(), ReadPolicy::Always);
    let mut fs = TestFs::new(Log::default());
    (fs.run, fs.allocates_new) = (1 + seed % 3, seed.is_multiple_of(2));
    let mut random = Random::new(seed);
    let mut below = |limit: usize| to_usize(random.below(limit as u64));
    let (began, ended, bytes) = (device.position(), device.position(), Vec::new());
    let mut all = vec![Committed { began, ended, inode: Inode::default(), bytes }];
    let flags = Flags { dsync: true, ..Flags::default() };
    for value in 1..=WRITES {
        let len = (1 + below(20)) * UNIT;
        let at = below((FILE_LEN - len) / UNIT) * UNIT;
        let mut buffer = pool.take_whole(len).unwrap();
        buffer.as_mut_slice().fill(value);
        let memory = Memory::Buffer(buffer);
        let request = Request::new(Direction::Write, FILE, at as u64, len as u64, memory);
        let began = device.position();
        let finished = io.run(&mut fs, request.with_flags(flags));
        assert_eq!(finished.result, Ok(len as u64));
        let mut bytes = all.last().unwrap().bytes.clone();
        bytes.resize(bytes.len().max(at + len), 0);
        bytes[at..at + len].fill(value);
        let (ended, inode) = (device.position(), fs.inode(FILE).clone());
        all.push(Committed { began, ended, inode, bytes });
    }
    all
}

/// Returns what the file has when the power was cut and the last commit was this one.
fn contents(device: &PowerDevice, committed: &Committed) -> Vec<u8> {
    let mut fs = TestFs::new(Log::default());
    *fs.inode(FILE) = committed.inode.clone();
    fs.contents(FILE, |address, target| device.peek(address, target))
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_and_nothing_stale_appears() {
    for seed in 0..12 {
        let mut device = PowerDevice::new(CAPACITY as u64);
        let pool = Pool::new(1 << 20).unwrap();
        let mut buffer = pool.take_whole(CAPACITY).unwrap();
        buffer.as_mut_slice().fill(STALE);
        let mut fill = Bio::new(Op::Write, 0, CAPACITY as u64, Memory::Buffer(buffer));
        fill.fua = true;
        device.run(fill).result.unwrap();
        let all = write_durably(&device, seed);
        let journal = device.journal();
        let mut replay = journal.replay();
        for pair in all.windows(2) {
            let [before, after] = pair else { unreachable!("they are two") };
            for position in after.began.max(before.ended)..after.ended {
                replay.advance_to(position);
                let found = contents(&device.after_cut(&replay, seed), before);
                // Of the write that was in flight any part may be there.
                assert_eq!(found.len(), before.bytes.len());
                let expected = before.bytes.iter().zip(&after.bytes);
                for (at, (byte, (old, new))) in found.iter().zip(expected).enumerate() {
                    assert!(byte == old || byte == new, "{byte:#x} at {at}, seed {seed}");
                }
            }
            replay.advance_to(after.ended);
            let found = contents(&device.after_cut(&replay, seed), after);
            assert!(found == after.bytes, "seed {seed}");
        }
    }
}
