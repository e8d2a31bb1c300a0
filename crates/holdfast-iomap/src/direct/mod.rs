//! Direct I/O: requests for ranges of files as bios of one device.
//!
//! A request asks the file system for one mapping after the other and makes bios of each. When all
//! have ended the file system is told, and then the request ends. A write goes through these stages,
//! of which most have only the second:
//!
//! 1. what lies between the end of the file and the write becomes zeros,
//! 2. the data, and what they leave of their first and last block,
//! 3. a flush of the device, for a durable write that was not one bio,
//! 4. ioends: unwritten blocks are converted and the size is changed,
//! 5. the commit of the file system, for a durable write.

use std::collections::VecDeque;
use std::fmt;

use holdfast_bio::{Bio, BlockDevice, Bounce, Ended, Limits, ReadPolicy};
use holdfast_iov::Pool;
use slab::Slab;

use crate::{Error, Finished, Ioend, Mapper, Request};
use flight::{Flight, Part, Run, Stage};

mod ends;
mod flight;
mod pad;
mod pump;
mod send;

/// How many bios of one request are in flight at most. So what is submitted after an error is
/// bounded, and a long request leaves room for others.
const WINDOW: usize = 16;

/// Requests for ranges of files, in flight on one queue of a device.
///
/// Memory is bounced by the rule of [`Bounce`]: when the device needs stable memory and it is volatile,
/// or when it is misaligned. What else needs memory (zeros, and the rest of a block whose place
/// changes) takes it from the same pool.
///
/// Dropping it waits for what the device has in flight; the file system is not told of it.
pub struct DirectIo<D: BlockDevice, F, E> {
    device: Bounce<D>,
    pool: Pool,
    flights: Slab<Flight<F, E>>,
    parts: Slab<Part>,
    /// Found the queue of the device full.
    backlog: VecDeque<Bio>,
    /// Wait for another write to the same blocks.
    blocked: VecDeque<usize>,
    /// Wait for a buffer.
    hungry: Vec<usize>,
    /// Have nothing in flight and nothing left to submit.
    drained: Vec<usize>,
    /// Room for those while they are dealt with.
    settling: Vec<usize>,
    /// Had a bio end in this turn.
    touched: Vec<usize>,
    finished: Vec<Finished<F, E>>,
    below: Vec<Ended>,
    /// With the flight of each.
    ioends: Vec<(Ioend<F, E>, usize)>,
    /// Lists of flights that have ended, for others.
    spare: Vec<Vec<Run>>,
}

impl<D: BlockDevice + fmt::Debug, F, E> fmt::Debug for DirectIo<D, F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectIo")
            .field("device", &self.device)
            .field("in_flight", &self.flights.len())
            .finish_non_exhaustive()
    }
}

impl<D: BlockDevice, F, E> DirectIo<D, F, E> {
    /// Uses `device`, with buffers from `pool`.
    pub fn new(device: D, pool: Pool, read_policy: ReadPolicy) -> Self {
        Self {
            device: Bounce::new(device, pool.clone(), read_policy),
            pool,
            flights: Slab::new(),
            parts: Slab::new(),
            backlog: VecDeque::new(),
            blocked: VecDeque::new(),
            hungry: Vec::new(),
            drained: Vec::new(),
            settling: Vec::new(),
            touched: Vec::new(),
            finished: Vec::new(),
            below: Vec::new(),
            ioends: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Returns the device with its bounce buffers.
    pub const fn device(&self) -> &Bounce<D> {
        &self.device
    }

    /// Returns the device with its bounce buffers, to be changed. What is submitted to it must not be.
    pub const fn device_mut(&mut self) -> &mut Bounce<D> {
        &mut self.device
    }

    /// Returns whether something may be reaped of which the device does not tell.
    pub const fn is_ready(&self) -> bool {
        !self.finished.is_empty() || !self.drained.is_empty()
    }

    /// Returns how many requests were submitted and have not been reaped.
    pub fn in_flight(&self) -> usize {
        self.flights.len() + self.finished.len()
    }

    /// Blocks until there may be something to reap. Returns at once when nothing is in flight on the
    /// device.
    pub fn wait(&mut self) {
        if !self.is_ready() {
            self.device.wait();
        }
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }
}

impl<D: BlockDevice, F: Copy + Ord, E: Clone> DirectIo<D, F, E> {
    /// Starts a request. It is always taken, and whatever is wrong with it is told by its
    /// [`Finished`].
    pub fn submit<M>(&mut self, mapper: &mut M, request: Request<F>)
    where
        M: Mapper<File = F, Error = E>,
    {
        let runs = self.spare.pop().unwrap_or_default();
        let key = self.flights.insert(Flight::new(request, runs));
        let mut checked = self.check(mapper, key);
        if checked.is_ok() && !self.may_start(key, self.blocked.len()) {
            if !self.flights[key].request.flags.nowait {
                self.blocked.push_back(key);
                return;
            }
            checked = Err(Error::Again);
        }
        self.flights[key].error = checked.err();
        self.start(mapper, key);
    }

    /// Moves the requests that have ended to the back of `finished`, in any order, and goes on with the
    /// others. Blocks only where the file system does.
    pub fn reap<M>(&mut self, mapper: &mut M, finished: &mut Vec<Finished<F, E>>)
    where
        M: Mapper<File = F, Error = E>,
    {
        let mut below = std::mem::take(&mut self.below);
        self.device.reap(&mut below);
        for ended in below.drain(..) {
            self.bio_ended(ended);
        }
        self.below = below;
        self.send_backlog();
        let mut touched = std::mem::take(&mut self.touched);
        touched.append(&mut self.hungry);
        for key in touched.drain(..) {
            self.pump(mapper, key);
        }
        self.touched.append(&mut touched);
        while !self.drained.is_empty() {
            self.settle(mapper);
            self.start_blocked(mapper);
        }
        finished.append(&mut self.finished);
    }

    /// Runs one request to its end, when no other is in flight.
    pub fn run<M>(&mut self, mapper: &mut M, request: Request<F>) -> Finished<F, E>
    where
        M: Mapper<File = F, Error = E>,
    {
        self.submit(mapper, request);
        let mut finished = Vec::new();
        loop {
            self.wait();
            self.reap(mapper, &mut finished);
            if let Some(item) = finished.pop() {
                return item;
            }
            // What it waits for may be in another thread's hands.
            std::thread::yield_now();
        }
    }

    /// Starts the writes that waited for one which has ended, in the order in which they came.
    fn start_blocked<M>(&mut self, mapper: &mut M)
    where
        M: Mapper<File = F, Error = E>,
    {
        let mut at = 0;
        while at < self.blocked.len() {
            let key = self.blocked[at];
            if self.may_start(key, at) {
                self.blocked.remove(at);
                self.start(mapper, key);
            } else {
                at += 1;
            }
        }
    }

    /// Returns whether a request touches no block that another writes to, or that one of the first
    /// `before` of those who wait will.
    fn may_start(&self, key: usize, before: usize) -> bool {
        let flight = &self.flights[key];
        if !flight.request.is_write() {
            return true;
        }
        let waits = self.blocked.iter().take(before);
        let running = self.flights.iter().filter(|(other, item)| {
            *other != key && item.request.is_write() && item.stage != Stage::Blocked
        });
        let mut others = running.map(|(_, item)| item).chain(waits.map(|&key| &self.flights[key]));
        !others.any(|other| other.conflicts(flight))
    }
}
