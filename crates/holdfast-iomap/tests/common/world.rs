//! A file in a world where anything goes wrong, and a plain array of what it may be.
//!
//! Every write has a value of its own. The model keeps for each byte of the file which values it may
//! have: one, or several after a write failed. What is on the device where nothing was written is never
//! among them.

use std::collections::HashMap;

use holdfast_bio::{BlockDevice, Error as BioError, ReadPolicy};
use holdfast_device::MemoryDevice;
use holdfast_iomap::{DirectIo, Direction, Finished, Flags, Request};
use holdfast_iov::{Memory, Pool};
use holdfast_sim::Faults;
use proptest::prelude::*;

use super::fs::{FsError, State, TestFs};
use super::{BLOCK, FILE, Log, STALE, volatile};

const UNIT: usize = 512;
/// How large the device is, in bytes.
pub(crate) const CAPACITY: usize = 1 << 20;
/// The longest file, in blocks.
const BLOCKS: usize = 20;
const ZERO: u64 = 1;
/// What the written blocks have at the beginning.
const FIRST: u8 = 1;

/// A request of the test.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    direction: Direction,
    at: usize,
    len: usize,
    kind: MemoryKind,
    /// How much of the memory is missing.
    missing: usize,
    nowait: bool,
    dsync: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum MemoryKind {
    Buffer { start: usize },
    Volatile { skip: usize },
}

/// A file, and what is wrong with its disk.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    states: Vec<Option<State>>,
    size: usize,
    run: u64,
    allocates_new: bool,
    pub(crate) faults: Faults,
    pub(crate) seed: u64,
}

pub(crate) fn asks() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![
        prop::sample::select(vec![0, 100, 512]).prop_map(|start| MemoryKind::Buffer { start }),
        prop::sample::select(vec![0, 3, 512]).prop_map(|skip| MemoryKind::Volatile { skip }),
    ];
    let missing = prop_oneof![4 => Just(0), 1 => 1..5000_usize];
    let units = BLOCKS * BLOCK / UNIT;
    (
        prop_oneof![
            3 => Just(Direction::Read),
            6 => Just(Direction::Write),
            1 => Just(Direction::Zero),
        ],
        (0..units * 3 / 4, 0..200_usize),
        1..units / 4,
        kind,
        missing,
        prop::bool::weighted(0.1),
        any::<bool>(),
    )
        .prop_map(|(direction, (at, skip), len, kind, missing, nowait, dsync)| {
            let (mut at, mut len) = (at * UNIT, len * UNIT);
            if direction == Direction::Zero {
                (at, len) = (at + skip, len - skip * 2);
            }
            Ask { direction, at, len, kind, missing, nowait, dsync }
        })
}

pub(crate) fn setups() -> impl Strategy<Value = Setup> {
    let state = prop_oneof![
        3 => Just(None),
        2 => Just(Some(State::Unwritten)),
        3 => Just(Some(State::Written)),
        2 => Just(Some(State::Shared(None))),
    ];
    let failures = prop::collection::vec((0..40_u64, Just(BioError::IO)), 0..4);
    let faults = (0..40_u8, any::<bool>(), 0..40_u8, failures).prop_map(
        |(short_percent, reorder, full_percent, failures)| Faults {
            short_percent,
            reorder,
            full_percent,
            failures,
            ..Faults::default()
        },
    );
    (
        prop::collection::vec(state, BLOCKS),
        0..BLOCKS * BLOCK / 2,
        1..6_u64,
        any::<bool>(),
        faults,
        any::<u64>(),
    )
        .prop_map(|(states, size, run, allocates_new, faults, seed)| Setup {
            states,
            size,
            run,
            allocates_new,
            faults,
            seed,
        })
}

/// The file as it may be.
#[derive(Clone)]
struct Model {
    /// A bit for each value that a byte may have. Behind the end they are zeros.
    values: Vec<u64>,
    size: usize,
}

impl Model {
    fn new(setup: &Setup) -> Self {
        let value_of = |at: usize| match setup.states[at / BLOCK] {
            Some(State::Written | State::Shared(_)) if at < setup.size => 1 << FIRST,
            _ => ZERO,
        };
        Self { values: (0..BLOCKS * BLOCK).map(value_of).collect(), size: setup.size }
    }

    fn write(&mut self, at: usize, len: usize, value: u8, moved: Option<u64>) {
        match moved {
            Some(moved) => {
                let end = at + usize::try_from(moved).unwrap();
                self.values[at..end].fill(1 << value);
                self.size = self.size.max(end);
            }
            // Any part of it may be there, as far as it is in the file.
            None => {
                let end = (at + len).min(self.size);
                for values in self.values.iter_mut().take(end).skip(at) {
                    *values |= 1 << value;
                }
            }
        }
    }

    fn zero(&mut self, at: usize, len: usize, is_done: bool) {
        let end = (at + len).min(self.size);
        for values in self.values.iter_mut().take(end).skip(at) {
            *values = if is_done { ZERO } else { *values | ZERO };
        }
    }

    fn check(&self, bytes: &[u8], what: &str) {
        assert_eq!(bytes.len(), self.size, "{what}");
        for (at, (byte, values)) in bytes.iter().zip(&self.values).enumerate() {
            assert!(*byte < 64 && values >> byte & 1 == 1, "{what}: {byte:#x} at {at}");
        }
    }
}

/// What the device of a world stores, reached without it.
pub(crate) trait Medium {
    fn load(&mut self, address: u64, target: &mut [u8]);
    fn store(&mut self, address: u64, source: &[u8]);
}

impl Medium for MemoryDevice {
    fn load(&mut self, address: u64, target: &mut [u8]) {
        Self::load(self, address, target);
    }

    fn store(&mut self, address: u64, source: &[u8]) {
        Self::store(self, address, source);
    }
}

/// A file system, its device, and what its file may be.
pub(crate) struct World<D: BlockDevice, M> {
    io: DirectIo<D, u32, FsError>,
    fs: TestFs,
    pub(crate) medium: M,
    pool: Pool,
    /// Places that others have, too.
    shared: Vec<u64>,
    model: Model,
    next_value: u8,
}

impl<D: BlockDevice, M: Medium> World<D, M> {
    /// Puts the file of `setup` on a device of [`CAPACITY`] bytes.
    pub(crate) fn new(setup: &Setup, device: D, mut medium: M, pool: Pool) -> Self {
        medium.store(0, &vec![STALE; CAPACITY]);
        let mut fs = TestFs::new(Log::default());
        (fs.run, fs.allocates_new) = (setup.run, setup.allocates_new);
        let mut shared = Vec::new();
        for (block, state) in setup.states.iter().enumerate() {
            let Some(state) = *state else { continue };
            fs.place(FILE, block as u64..block as u64 + 1, state);
            let address = fs.inode(FILE).blocks[&(block as u64)].0;
            let in_file = setup.size.saturating_sub(block * BLOCK).min(BLOCK);
            if matches!(state, State::Written | State::Shared(_)) {
                let bytes = [vec![FIRST; in_file], vec![STALE; BLOCK - in_file]].concat();
                medium.store(address, &bytes);
            }
            if matches!(state, State::Shared(_)) {
                shared.push(address);
            }
        }
        fs.inode(FILE).size = setup.size as u64;
        let io = DirectIo::new(device, pool.clone(), ReadPolicy::Always);
        let model = Model::new(setup);
        Self { io, fs, medium, pool, shared, model, next_value: FIRST }
    }

    fn memory(&self, ask: &Ask, byte: u8) -> Memory {
        let len = ask.len.saturating_sub(ask.missing);
        match ask.kind {
            // A buffer is longer than what is used of it, so nothing is missing.
            MemoryKind::Buffer { start } => {
                let mut buffer = self.pool.take_whole(start + ask.len).unwrap();
                buffer.as_mut_slice().fill(byte);
                Memory::Buffer(buffer)
            }
            MemoryKind::Volatile { skip } => Memory::Iov(volatile(&vec![byte; len], skip).1),
        }
    }

    /// Submits requests together, and checks what became of them and of the file.
    pub(crate) fn run(&mut self, batch: &[Ask]) {
        let before = self.model.clone();
        let mut values = HashMap::new();
        for (number, ask) in batch.iter().enumerate() {
            let is_write = ask.direction == Direction::Write;
            self.next_value += u8::from(is_write);
            values.insert(number, self.next_value);
            let byte = if is_write { self.next_value } else { STALE };
            let memory = self.memory(ask, byte);
            let direction = ask.direction;
            let mut request = Request::new(direction, FILE, ask.at as u64, ask.len as u64, memory);
            if let MemoryKind::Buffer { start } = ask.kind {
                request.start = start;
            }
            let flags = Flags { nowait: ask.nowait, dsync: ask.dsync, ..Flags::default() };
            let request = request.with_flags(flags).with_user(number as u64);
            self.io.submit(&mut self.fs, request);
        }
        let mut finished = Vec::new();
        for _ in 0..100_000 {
            if finished.len() == batch.len() {
                break;
            }
            self.io.wait();
            self.io.reap(&mut self.fs, &mut finished);
        }
        assert_eq!(finished.len(), batch.len(), "nothing goes on");
        assert_eq!(self.io.in_flight(), 0);
        // Writes to the same blocks are carried out in their order.
        finished.sort_unstable_by_key(|item| item.request.user);
        let mut seen = before;
        for (number, (ask, item)) in batch.iter().zip(&finished).enumerate() {
            let moved = item.result.as_ref().ok().copied();
            // A read at the same time may see it.
            let may_see = match ask.direction {
                Direction::Read => continue,
                Direction::Write => {
                    self.model.write(ask.at, ask.len, values[&number], moved);
                    1 << values[&number]
                }
                Direction::Zero => {
                    self.model.zero(ask.at, ask.len, moved.is_some());
                    ZERO
                }
            };
            let end = (ask.at + ask.len).min(seen.values.len());
            seen.values[ask.at..end].iter_mut().for_each(|value| *value |= may_see);
        }
        for (ask, item) in batch.iter().zip(&finished) {
            if ask.direction == Direction::Read {
                self.check_read(ask, item, &seen);
            }
        }
        let medium = &mut self.medium;
        let bytes = self.fs.contents(FILE, |address, target| medium.load(address, target));
        self.model.check(&bytes, "the file");
        self.check_shared();
    }

    fn check_read(&self, ask: &Ask, item: &Finished<u32, FsError>, seen: &Model) {
        let Ok(moved) = item.result else { return };
        let moved = usize::try_from(moved).unwrap();
        assert!(ask.at + moved <= self.model.size.max(ask.at), "more than the file has");
        if ask.missing == 0 {
            let least = seen.size.saturating_sub(ask.at).min(ask.len);
            assert!(moved >= least, "{moved} of {least}");
        }
        let bytes = bytes_of(&item.request);
        for (at, byte) in bytes.iter().enumerate().take(ask.len) {
            let values = if at < moved { seen.values[ask.at + at] } else { ZERO };
            assert!(*byte < 64 && values >> byte & 1 == 1, "read {byte:#x} at {}", ask.at + at);
        }
    }

    /// Nobody but those who share a block may change it.
    fn check_shared(&mut self) {
        for &address in &self.shared {
            let mut bytes = [0; BLOCK];
            self.medium.load(address, &mut bytes);
            assert!(bytes.iter().all(|byte| [FIRST, STALE].contains(byte)), "{address}");
        }
    }
}

fn bytes_of(request: &Request<u32>) -> Vec<u8> {
    match &request.memory {
        Memory::Buffer(buffer) => buffer.as_slice()[request.start..].to_vec(),
        Memory::Iov(iter) => {
            let mut bytes = vec![0; iter.count()];
            iter.clone().copy_out(&mut bytes);
            bytes
        }
        other => panic!("the memory did not come back, but {other:?}"),
    }
}
