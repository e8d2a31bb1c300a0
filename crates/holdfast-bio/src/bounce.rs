//! Bouncing: volatile or misaligned memory is copied through the pool.
//!
//! > bounce = the path below needs stable data, and (the memory is volatile, or misaligned)
//!
//! The copy is the only one there is, and where the device has guards they are computed by the
//! same loads. Under pressure a buffer may be smaller than its bio, which then goes down in parts,
//! one after the other. A bio that finds no buffer at all waits for one; the pool's reserve
//! guarantees that the first of those who wait goes on.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use holdfast_checksum::Stores;
use holdfast_iov::{BUFFER_MAX, Buffer, IovIter, Memory, Pool, Region};
use holdfast_units::{to_u64, to_usize};
use slab::Slab;
use thiserror::Error as ThisError;

use crate::{Bio, BlockDevice, Ended, Error, Limits, Op};

/// How reads into volatile memory are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReadPolicy {
    /// As [`Always`](Self::Always), but as [`Lazy`](Self::Lazy) where the device is memory and a copy is all that a
    /// read costs. A device that reads into the pool's few large pages is often faster by more than the copy takes.
    #[default]
    Auto,
    /// Into a buffer, where they are verified, and then copied.
    Always,
    /// Into the memory itself, where they are verified; after a guard mismatch, which may only
    /// mean that the memory changed, again into a buffer, and that is judged.
    Lazy,
    /// Never through a buffer, reads and writes alike: for measuring. Memory that changes during
    /// the I/O gives false errors and bad guards.
    Never,
}

/// A name that is no read policy.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{found:?} is no read policy: use auto, always, lazy or never")]
pub struct ParseReadPolicyError {
    found: String,
}

impl ReadPolicy {
    /// Returns its name, as the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Lazy => "lazy",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for ReadPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ReadPolicy {
    type Err = ParseReadPolicyError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "lazy" => Ok(Self::Lazy),
            "never" => Ok(Self::Never),
            _ => Err(ParseReadPolicyError { found: name.to_owned() }),
        }
    }
}

/// What a [`Bounce`] did, in bios.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BounceCounters {
    /// Went through a buffer.
    pub bounced: u64,
    /// Went down with their own memory.
    pub zero_copy: u64,
    /// Were read again after a guard mismatch, and were good.
    pub reread_good: u64,
    /// Were read again after a guard mismatch, and were bad.
    pub reread_bad: u64,
}

/// The bouncing layer around a device.
#[derive(Debug)]
pub struct Bounce<D> {
    device: D,
    pool: Pool,
    read_policy: ReadPolicy,
    in_flight: Slab<Flight>,
    waiting: VecDeque<usize>,
    ready: Vec<Ended>,
    counters: BounceCounters,
}

/// A bio of the submitter, while parts of it are below.
#[derive(Debug)]
struct Flight {
    op: Op,
    offset: u64,
    len: u64,
    fua: bool,
    atomic: bool,
    polled: bool,
    user: u64,
    iter: Option<IovIter>,
    /// What is moved already, in bytes.
    done: u64,
    route: Route,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// With the submitter's own memory.
    Direct,
    /// The same, to be repeated through a buffer after a guard mismatch.
    Tentative,
    /// Through a buffer.
    Bounced,
    /// Through a buffer, after a guard mismatch.
    Reread,
}

impl<D: BlockDevice> Bounce<D> {
    /// Puts the layer around `device`, with buffers from `pool`.
    pub fn new(device: D, pool: Pool, read_policy: ReadPolicy) -> Self {
        let read_policy = match read_policy {
            ReadPolicy::Auto if device.limits().in_memory => ReadPolicy::Lazy,
            ReadPolicy::Auto => ReadPolicy::Always,
            chosen => chosen,
        };
        Self {
            device,
            pool,
            read_policy,
            in_flight: Slab::new(),
            waiting: VecDeque::new(),
            ready: Vec::new(),
            counters: BounceCounters::default(),
        }
    }

    /// Returns what was done so far.
    pub const fn counters(&self) -> BounceCounters {
        self.counters
    }

    /// Returns the device below.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// Returns the device.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    fn route(&self, bio: &Bio, limits: &Limits) -> Route {
        let Memory::Iov(iter) = &bio.memory else {
            return Route::Direct;
        };
        if bio.op == Op::Read && !iter.is_writable() {
            // The device refuses it; a buffer would be read for nothing.
            return Route::Direct;
        }
        let bits = iter.alignment();
        let aligned = limits.memory_alignment.is_aligned(to_u64(bits))
            && limits.sector.is_aligned(bio.offset)
            && limits.sector.is_aligned(bio.len);
        if !aligned {
            return Route::Bounced;
        }
        if !limits.stable_pages || !iter.is_volatile() || self.read_policy == ReadPolicy::Never {
            return Route::Direct;
        }
        match (bio.op, self.read_policy) {
            (Op::Read, ReadPolicy::Lazy) if !iter.has_duplicate_pages() => Route::Tentative,
            _ => Route::Bounced,
        }
    }

    /// Sends the next part of a flight through a buffer, or lets it wait for one.
    fn bounce(&mut self, key: usize) {
        let limits = self.device.limits();
        let flight = &mut self.in_flight[key];
        let offset = flight.offset + flight.done;
        let left = flight.len - flight.done;
        let want = limits.whole_sectors(offset, left).min(limits.bytes_max);
        let buffer = if flight.atomic {
            self.pool.take_whole_or_reserve(want)
        } else {
            self.pool.take_or_reserve(want)
        };
        let Some(mut buffer) = buffer else {
            self.waiting.push_back(key);
            return;
        };
        let len = limits.first_chunk(offset, left, buffer.len());
        let guarded = flight.op == Op::Write && fill(flight, &limits, offset, len, &mut buffer);
        let mut bio = Bio::new(flight.op, offset, len, Memory::Buffer(buffer));
        (bio.fua, bio.guarded) = (flight.fua, guarded);
        (bio.atomic, bio.polled) = (flight.atomic, flight.polled);
        bio.start = to_usize(limits.sector.offset_in(offset));
        self.send(bio.with_user(to_u64(key)));
    }

    fn send(&mut self, bio: Bio) {
        let Err(bio) = self.device.submit(bio) else { return };
        // The queue below is full. The buffer goes back to the pool meanwhile, and a write is
        // copied again: the later copy is as good as the first.
        let key = to_usize(bio.user);
        let flight = &mut self.in_flight[key];
        if let (Op::Write, Some(iter)) = (flight.op, &mut flight.iter) {
            iter.revert(to_usize(bio.len));
        }
        self.waiting.push_back(key);
    }

    /// Takes a bio that went down with its own memory, and returns it unless it is read again.
    fn finish_direct(&mut self, key: usize, ended: Ended) -> Option<Ended> {
        let flight = &mut self.in_flight[key];
        let changed =
            matches!(ended.result, Err(Error::Mismatch(found)) if found.tag.depends_on_data());
        if let (Route::Tentative, true, Memory::Iov(_)) = (flight.route, changed, &ended.bio.memory)
        {
            flight.route = Route::Reread;
            if let Memory::Iov(iter) = ended.bio.memory {
                flight.iter = Some(iter);
            }
            self.bounce(key);
            return None;
        }
        let flight = self.in_flight.remove(key);
        let mut bio = ended.bio.with_user(flight.user);
        bio.tentative = false;
        Some(Ended { bio, ..ended })
    }

    /// Takes a part that went through a buffer.
    fn finish_part(&mut self, key: usize, ended: Ended) -> Option<Ended> {
        let flight = &mut self.in_flight[key];
        let moved = match ended.result {
            Ok(moved) => moved,
            Err(error) => return Some(self.end(key, Err(error))),
        };
        match (flight.op, &ended.bio.memory, &mut flight.iter) {
            (Op::Read, Memory::Buffer(buffer), Some(iter)) => {
                let bytes = &buffer.as_slice()[ended.bio.start..][..to_usize(moved)];
                let copied = iter.copy_in(bytes);
                debug_assert_eq!(copied, bytes.len(), "a destination takes what it was made for");
            }
            // What was copied and not stored, when the transfer was short, is copied again.
            (Op::Write, _, Some(iter)) => iter.revert(to_usize(ended.bio.len - moved)),
            _ => {}
        }
        flight.done += moved;
        if flight.done == flight.len || moved == 0 || flight.atomic {
            let done = flight.done;
            return Some(self.end(key, Ok(done)));
        }
        drop(ended);
        self.bounce(key);
        None
    }

    fn end(&mut self, key: usize, result: Result<u64, Error>) -> Ended {
        let flight = self.in_flight.remove(key);
        if flight.route == Route::Reread {
            match result {
                Ok(_) => self.counters.reread_good += 1,
                Err(_) => self.counters.reread_bad += 1,
            }
        }
        let memory = flight.iter.map_or(Memory::None, |mut iter| {
            iter.revert(to_usize(flight.len) - iter.count());
            Memory::Iov(iter)
        });
        let mut bio = Bio::new(flight.op, flight.offset, flight.len, memory).with_user(flight.user);
        (bio.fua, bio.atomic, bio.polled) = (flight.fua, flight.atomic, flight.polled);
        Ended { bio, result }
    }
}

/// Copies the next `len` bytes of a write into `buffer`. Returns whether guards were computed.
fn fill(flight: &mut Flight, limits: &Limits, offset: u64, len: u64, buffer: &mut Buffer) -> bool {
    let iter = flight.iter.as_mut().expect("a bounced flight keeps its iterator");
    let head = to_usize(limits.sector.offset_in(offset));
    let len = to_usize(len);
    // A device takes them from memory: lines that were fetched to be overwritten were fetched in vain.
    let stores = if limits.in_memory { Stores::Temporal } else { Stores::for_storage(len) };
    let (bytes, guards) = buffer.parts_mut();
    match limits.guards {
        Some(format) if head == 0 && len.is_multiple_of(format.interval) => {
            let guards = &mut guards[..len / format.interval];
            iter.copy_out_generate(format.kind, format.interval, &mut bytes[..len], guards, stores);
            true
        }
        _ => {
            iter.copy_out_storing(&mut bytes[head..][..len], stores);
            false
        }
    }
}

impl<D: BlockDevice> BlockDevice for Bounce<D> {
    fn limits(&self) -> Limits {
        let granularity = self.device.limits().granularity;
        Limits { memory_alignment: granularity, stable_pages: false, ..self.device.limits() }
    }

    fn submit(&mut self, mut bio: Bio) -> Result<(), Bio> {
        let route = self.route(&bio, &self.device.limits());
        let Bio { op, offset, len, fua, atomic, polled, user, .. } = bio;
        let flight =
            Flight { op, offset, len, fua, atomic, polled, user, iter: None, done: 0, route };
        let key = self.in_flight.insert(flight);
        if route == Route::Bounced {
            self.counters.bounced += 1;
            if let Memory::Iov(iter) = std::mem::take(&mut bio.memory) {
                self.in_flight[key].iter = Some(iter);
            }
            self.bounce(key);
            return Ok(());
        }
        self.counters.zero_copy += 1;
        bio.tentative = route == Route::Tentative;
        bio.user = to_u64(key);
        self.device.submit(bio).map_err(|mut bio| {
            self.in_flight.remove(key);
            self.counters.zero_copy -= 1;
            (bio.user, bio.tentative) = (user, false);
            bio
        })
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let mut below = std::mem::take(&mut self.ready);
        self.device.reap(&mut below);
        for item in below.drain(..) {
            let key = to_usize(item.bio.user);
            let up = match self.in_flight[key].route {
                Route::Bounced | Route::Reread => self.finish_part(key, item),
                Route::Direct | Route::Tentative => self.finish_direct(key, item),
            };
            ended.extend(up);
        }
        self.ready = below;
        for _ in 0..self.waiting.len() {
            let Some(key) = self.waiting.pop_front() else { break };
            self.bounce(key);
        }
    }

    fn wait(&mut self) {
        self.device.wait();
    }

    fn has_notes(&self) -> bool {
        self.device.has_notes()
    }

    fn poll(&mut self) {
        self.device.poll();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.device.data_after(offset)
    }

    fn atomic_bytes_max(&self) -> u64 {
        // What is bounced has to fit into one buffer.
        self.device.atomic_bytes_max().min(to_u64(BUFFER_MAX))
    }

    fn legs(&self) -> usize {
        self.device.legs()
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        self.device.map(offset, len)
    }
}

#[cfg(test)]
mod tests;
