//! What the tests of a mirror share: legs in memory, and running bios over them.

#![allow(dead_code, reason = "each test uses its part of this")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Op};
use holdfast_device::MemoryDevice;
use holdfast_iov::{Memory, Pool};
use holdfast_mirror::{LegState, Legs, Mirror, MirrorDevice, MirrorError, assemble};
use holdfast_sim::{Fault, Faults, FaultyDevice};
use holdfast_units::to_u64;

/// A mirror's queue over legs that make mistakes.
pub(crate) type Device = MirrorDevice<FaultyDevice<MemoryDevice>>;

/// How many bytes a leg has.
pub(crate) const BYTES: u64 = 64 << 20;
/// Where the tests write: behind what the mirror stores.
pub(crate) const START: u64 = 1 << 20;

/// Legs in memory, which outlive the mirror.
pub(crate) struct Medium {
    pub(crate) legs: Vec<MemoryDevice>,
}

/// Returns where a leg pretends to be.
pub(crate) fn path(leg: usize) -> PathBuf {
    PathBuf::from(format!("/legs/{leg}.hf"))
}

impl Medium {
    pub(crate) fn new(legs: usize) -> Self {
        Self { legs: (0..legs).map(|_| MemoryDevice::new(BYTES)).collect() }
    }

    /// Makes the legs a new mirror.
    pub(crate) fn create(&self) -> Arc<Mirror> {
        let legs = self.legs.iter().enumerate().map(|(leg, memory)| (path(leg), memory.clone()));
        Mirror::create(legs.collect()).unwrap()
    }

    /// Finds the legs from the first of `there`, of which those are there.
    pub(crate) fn assemble(&self, there: &[usize]) -> Result<Legs<MemoryDevice>, MirrorError> {
        let open = |wanted: &Path| {
            let leg = there.iter().find(|&&leg| path(leg) == wanted);
            leg.map(|&leg| self.legs[leg].clone()).ok_or_else(|| "it is not there".to_owned())
        };
        let first = self.legs[there[0]].clone();
        assemble(&path(there[0]), first, None, open).map(|legs| legs.expect("it is a leg"))
    }

    /// Opens the mirror for writing, of which these legs are there.
    pub(crate) fn open(&self, there: &[usize]) -> Arc<Mirror> {
        Mirror::open(self.assemble(there).unwrap(), false).unwrap()
    }

    /// Opens a queue over all legs.
    pub(crate) fn device(&self, mirror: &Arc<Mirror>, faults: &Faults, seed: u64) -> Device {
        let (legs, faults) = (self.legs.clone(), faults.clone());
        let open = move |index: usize| {
            let leg = |memory: &MemoryDevice| {
                FaultyDevice::new(memory.clone(), faults.clone(), seed + to_u64(index))
            };
            Ok(legs.get(index).map(leg))
        };
        MirrorDevice::new(mirror, open).unwrap()
    }

    /// Returns the bytes of a leg from `START` on.
    pub(crate) fn bytes(&self, leg: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.legs[leg].load(START, &mut bytes);
        bytes
    }
}

/// Lets everything on a leg fail from now on, as if it had been unplugged.
pub(crate) fn unplug(device: &mut Device, leg: usize) {
    let fault = |reads| Fault { range: 0..u64::MAX, reads, error: Error::IO };
    let faults = &mut device.leg_mut(leg).unwrap().faults;
    faults.faults = vec![fault(false), fault(true)];
    faults.flush = Some(Error::IO);
}

/// Returns the states of the first legs.
pub(crate) fn states(mirror: &Mirror, legs: usize) -> Vec<LegState> {
    (0..legs).map(|leg| mirror.state(leg)).collect()
}

/// Returns a bio that moves a buffer of these bytes, or as many of any.
pub(crate) fn transfer(op: Op, offset: u64, bytes: &[u8]) -> Bio {
    let mut buffer = Pool::new(bytes.len()).unwrap().take_whole(bytes.len()).unwrap();
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    Bio::new(op, offset, to_u64(bytes.len()), Memory::Buffer(buffer))
}

/// Submits bios, and waits for all of them, whatever the order.
pub(crate) fn run_all(device: &mut Device, bios: Vec<Bio>) -> Vec<Ended> {
    let count = bios.len();
    let mut waiting: Vec<Bio> = bios.into_iter().rev().collect();
    let mut ended = Vec::new();
    while ended.len() < count {
        while let Some(bio) = waiting.pop() {
            if let Err(bio) = device.submit(bio) {
                waiting.push(bio);
                break;
            }
        }
        device.wait();
        device.reap(&mut ended);
    }
    ended
}

/// Runs one bio.
pub(crate) fn run(device: &mut Device, bio: Bio) -> Ended {
    run_all(device, vec![bio]).pop().unwrap()
}

/// Writes bytes, all of which must be taken.
pub(crate) fn write(device: &mut Device, offset: u64, bytes: &[u8]) {
    let ended = run(device, transfer(Op::Write, offset, bytes));
    assert_eq!(ended.result, Ok(to_u64(bytes.len())));
}
