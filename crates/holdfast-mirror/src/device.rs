//! One thread's way to a mirror: writes go to every leg, reads come from one that is good.

use std::collections::VecDeque;
use std::sync::Arc;
use std::{fmt, io};

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Op};
use holdfast_iov::{BUFFER_MAX, Memory, Pool};
use holdfast_units::{to_u64, to_usize};
use slab::Slab;

use crate::mirror::{LegSet, Mirror};
use crate::record::{LEGS_MAX, OWN_AREA};

/// A queue of a mirror, over a queue of each leg.
///
/// A write ends when it has ended on all legs. It is good when one that is in sync has it and all
/// that do not are known to be out, which is durable by then. A read of a leg that fails is repeated
/// on another, and its bio says so.
pub struct MirrorDevice<D> {
    mirror: Arc<Mirror>,
    legs: [Option<LegQueue<D>>; LEGS_MAX],
    /// Opens the queue of a leg, if it is there.
    open: Box<dyn FnMut(usize) -> io::Result<Option<D>>>,
    /// The epoch of each leg when its queue was opened, and that of all.
    epochs: [u64; LEGS_MAX],
    version: u64,
    /// Queues of legs that are others now, until what is in flight on them has ended.
    retired: Vec<(usize, LegQueue<D>)>,
    limits: Limits,
    flights: Slab<Flight>,
    ended: Vec<Ended>,
    below: Vec<Ended>,
    /// The leg that is read when none has less to do.
    preferred: usize,
}

impl<D: fmt::Debug> fmt::Debug for MirrorDevice<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MirrorDevice")
            .field("mirror", &self.mirror)
            .field("legs", &self.legs)
            .field("flights", &self.flights.len())
            .finish_non_exhaustive()
    }
}

/// The queue of one leg.
#[derive(Debug)]
struct LegQueue<D> {
    device: D,
    in_flight: usize,
    /// What it would not take yet.
    backlog: VecDeque<Bio>,
}

impl<D> LegQueue<D> {
    const fn new(device: D) -> Self {
        Self { device, in_flight: 0, backlog: VecDeque::new() }
    }
}

/// A bio of the submitter, while parts of it are below.
#[derive(Debug)]
struct Flight {
    /// The bio, without its memory while that is below.
    bio: Bio,
    /// The legs on which it has not ended.
    pending: LegSet,
    /// The legs that were in sync when it began.
    good: LegSet,
    done: LegSet,
    failed: LegSet,
    error: Option<Error>,
    /// A flush whose end says what is durable.
    owns_flush: bool,
}

impl Flight {
    fn new(bio: Bio, targets: LegSet, good: LegSet) -> Self {
        let none = LegSet::default();
        let owns_flush = false;
        Self { bio, pending: targets, good, done: none, failed: none, error: None, owns_flush }
    }
}

/// Returns a bio like another, with memory of its own.
const fn part_of(bio: &Bio, memory: Memory) -> Bio {
    let Bio { op, offset, len, start, fua, atomic, polled, guarded, tentative, .. } = *bio;
    let Bio { user, leg, unread_legs, .. } = *bio;
    Bio {
        op,
        offset,
        len,
        start,
        fua,
        atomic,
        polled,
        guarded,
        tentative,
        memory,
        user,
        leg,
        unread_legs,
    }
}

impl<D: BlockDevice> MirrorDevice<D> {
    /// Opens a queue. `open` opens that of a leg, if it is there: now, and again when it has become
    /// another.
    ///
    /// # Errors
    ///
    /// Those of `open`.
    ///
    /// # Panics
    ///
    /// Without any leg.
    pub fn new(
        mirror: &Arc<Mirror>,
        mut open: impl FnMut(usize) -> io::Result<Option<D>> + 'static,
    ) -> io::Result<Self> {
        // Before the legs are opened: what changes meanwhile is seen later.
        let version = mirror.version();
        let epochs = std::array::from_fn(|leg| mirror.epoch(leg));
        let mut legs = [const { None }; LEGS_MAX];
        for (leg, queue) in legs.iter_mut().enumerate() {
            *queue = open(leg)?.map(LegQueue::new);
        }
        let devices = legs.iter().flatten().map(|leg| leg.device.limits());
        let limits = devices.reduce(|one, other| Limits {
            capacity: one.capacity.min(other.capacity),
            sector: one.sector.max(other.sector),
            granularity: one.granularity.max(other.granularity),
            memory_alignment: one.memory_alignment.max(other.memory_alignment),
            bytes_max: one.bytes_max.min(other.bytes_max),
            boundary: one.boundary.or(other.boundary),
            stable_pages: one.stable_pages || other.stable_pages,
            guards: None,
            read_only: one.read_only || other.read_only,
            in_memory: one.in_memory && other.in_memory,
        });
        Ok(Self {
            mirror: Arc::clone(mirror),
            legs,
            open: Box::new(open),
            epochs,
            version,
            retired: Vec::new(),
            limits: limits.expect("a mirror has a leg"),
            flights: Slab::new(),
            ended: Vec::new(),
            below: Vec::new(),
            preferred: mirror.next_queue() % LEGS_MAX,
        })
    }

    /// Opens the queues of legs that have become others.
    fn refresh(&mut self) {
        let version = self.mirror.version();
        if version == self.version {
            return;
        }
        self.version = version;
        for leg in 0..LEGS_MAX {
            let epoch = self.mirror.epoch(leg);
            if epoch == self.epochs[leg] {
                continue;
            }
            self.epochs[leg] = epoch;
            let opened = (self.open)(leg).unwrap_or_else(|error| {
                tracing::error!("a leg that was attached cannot be opened: {error}");
                None
            });
            let old = std::mem::replace(&mut self.legs[leg], opened.map(LegQueue::new));
            self.retired.extend(old.map(|old| (leg, old)));
        }
    }

    /// Returns what all queues share.
    pub const fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }

    /// Returns the queue of a leg.
    pub fn leg(&self, leg: usize) -> Option<&D> {
        self.legs[leg].as_ref().map(|leg| &leg.device)
    }

    /// Returns the queue of a leg, to be changed.
    pub fn leg_mut(&mut self, leg: usize) -> Option<&mut D> {
        self.legs[leg].as_mut().map(|leg| &mut leg.device)
    }

    /// Copies the first `bytes` as they are to a leg that is being resynced, but for what belongs to
    /// each leg alone. Nothing else may be in flight on this queue. What other queues write there
    /// meanwhile may be lost on the leg.
    ///
    /// # Errors
    ///
    /// Whatever the legs say.
    pub fn copy_to(&mut self, leg: u8, bytes: u64) -> Result<(), Error> {
        let pool = Pool::new(BUFFER_MAX).map_err(|error| Error::from(&error))?;
        for range in [0..OWN_AREA.start.min(bytes), OWN_AREA.end.min(bytes)..bytes] {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(to_u64(BUFFER_MAX));
                let buffer = pool.take_whole(BUFFER_MAX).expect("one buffer is in use");
                let read = self.run(Bio::new(Op::Read, at, len, Memory::Buffer(buffer)));
                let moved = read.result?;
                if moved == 0 {
                    return Err(Error::IO);
                }
                let write = Bio::new(Op::Write, at, moved, read.bio.memory).with_leg(leg);
                at += self.run(write).result?;
            }
        }
        Ok(())
    }

    /// Returns the leg to read from: that with the least to do, and of those the next one from the
    /// preferred on.
    fn leg_to_read(&self, good: LegSet, unread: u8) -> Option<usize> {
        (0..LEGS_MAX)
            .map(|step| (self.preferred + step) % LEGS_MAX)
            .filter(|&leg| good.contains(leg) && !LegSet(unread).contains(leg))
            .filter_map(|leg| Some((self.legs[leg].as_ref()?.in_flight, leg)))
            .min_by_key(|&(in_flight, _)| in_flight)
            .map(|(_, leg)| leg)
    }

    fn is_busy(&self) -> bool {
        self.legs.iter().flatten().any(|leg| !leg.backlog.is_empty())
    }

    /// Returns the legs that a bio goes to.
    fn targets(&self, bio: &Bio, good: LegSet) -> Result<LegSet, Error> {
        let mut targets = LegSet::default();
        match (bio.op, bio.leg) {
            (Op::Map | Op::Repair, _) => return Err(Error::Unsupported),
            (Op::Read, Some(leg)) => {
                let leg = usize::from(leg);
                if !good.contains(leg) || self.legs[leg].is_none() {
                    return Err(Error::Unsupported);
                }
                targets.insert(leg);
            }
            (Op::Read, None) => {
                targets.insert(self.leg_to_read(good, 0).ok_or(Error::IO)?);
            }
            (Op::Flush, _) => return Ok(self.mirror.written()),
            (_, Some(leg)) => {
                let leg = usize::from(leg);
                if !self.mirror.written().contains(leg) || self.legs[leg].is_none() {
                    return Err(Error::Unsupported);
                }
                targets.insert(leg);
            }
            (_, None) => return self.mirror.begin_write(bio.offset, bio.len),
        }
        Ok(targets)
    }

    /// Sends a bio to one leg.
    fn send(&mut self, leg: usize, bio: Bio) {
        let Some(queue) = &mut self.legs[leg] else {
            // A leg that came after this queue was opened.
            return self.part_ended(leg, Ended { bio, result: Err(Error::IO) });
        };
        queue.in_flight += 1;
        if let Err(bio) = queue.device.submit(bio) {
            queue.in_flight -= 1;
            queue.backlog.push_back(bio);
        }
    }

    fn part_ended(&mut self, leg: usize, ended: Ended) {
        let key = to_usize(ended.bio.user);
        if self.flights[key].bio.op == Op::Read {
            return self.read_ended(key, leg, ended);
        }
        let Ended { mut bio, result } = ended;
        let result = match (bio.op, result) {
            (Op::Write, Ok(0)) => Err(Error::IO),
            (Op::Write, Ok(moved)) if moved < bio.len => {
                bio.offset += moved;
                bio.len -= moved;
                match &mut bio.memory {
                    Memory::Iov(iter) => iter.advance(to_usize(moved)),
                    _ => bio.start += to_usize(moved),
                }
                return self.send(leg, bio);
            }
            (_, result) => result,
        };
        drop(bio);
        let flight = &mut self.flights[key];
        flight.pending.0 &= !(1 << leg);
        match result {
            Ok(_) => flight.done.insert(leg),
            Err(error) => {
                flight.failed.insert(leg);
                flight.error = flight.error.or(Some(error));
            }
        }
        if flight.pending.is_empty() {
            self.conclude(key);
        }
    }

    /// Takes the end of a part on a leg that is another by now. What it was has no part in the mirror.
    fn part_gone(&mut self, leg: usize, ended: Ended) {
        let key = to_usize(ended.bio.user);
        if self.flights[key].bio.op == Op::Read {
            return self.read_ended(key, leg, ended);
        }
        let flight = &mut self.flights[key];
        flight.pending.0 &= !(1 << leg);
        flight.error = flight.error.or(Some(Error::IO));
        drop(ended);
        if self.flights[key].pending.is_empty() {
            self.conclude(key);
        }
    }

    /// Ends what is in flight on legs that are others by now.
    fn reap_retired(&mut self) {
        let mut retired = std::mem::take(&mut self.retired);
        let mut ended = Vec::new();
        for (leg, queue) in &mut retired {
            queue.device.reap(&mut ended);
            queue.in_flight -= ended.len();
            let refused = queue.backlog.drain(..);
            ended.extend(refused.map(|bio| Ended { bio, result: Err(Error::IO) }));
            for item in ended.drain(..) {
                self.part_gone(*leg, item);
            }
        }
        retired.retain(|(_, queue)| queue.in_flight > 0);
        self.retired.append(&mut retired);
    }

    fn read_ended(&mut self, key: usize, leg: usize, ended: Ended) {
        let Ended { mut bio, result } = ended;
        let flight = &mut self.flights[key];
        let fails_everywhere =
            matches!(result, Err(Error::Unsupported | Error::Range { .. } | Error::ReadOnly));
        if result.is_err() && !fails_everywhere {
            self.mirror.count_error(leg);
            bio.unread_legs |= 1 << leg;
            let unread = bio.unread_legs;
            let next = if flight.bio.leg.is_some() {
                None
            } else {
                self.leg_to_read(self.mirror.in_sync(), unread)
            };
            if let Some(next) = next {
                return self.send(next, bio);
            }
        }
        let flight = self.flights.remove(key);
        bio.user = flight.bio.user;
        self.ended.push(Ended { bio, result });
    }

    /// Ends a bio that has ended on all legs.
    fn conclude(&mut self, key: usize) {
        let Flight { mut bio, good, done, failed, error, owns_flush, .. } =
            self.flights.remove(key);
        let result = if bio.leg.is_some() {
            self.conclude_single(&bio, failed, error)
        } else {
            self.conclude_all(&bio, LegSet(done.0 & good.0), failed, error)
        };
        if bio.op == Op::Flush {
            self.mirror.end_flush(owns_flush, result.is_ok());
        }
        bio.memory = std::mem::take(&mut bio.memory).reclaim();
        let len = bio.len;
        self.ended.push(Ended { bio, result: result.map(|()| len) });
    }

    /// Ends what went to one leg only. A leg that does not take what is to repair it is out.
    fn conclude_single(
        &self,
        bio: &Bio,
        failed: LegSet,
        error: Option<Error>,
    ) -> Result<(), Error> {
        let Some(error) = error else {
            if bio.op == Op::Write {
                bio.leg.iter().for_each(|&leg| self.mirror.count_repair(usize::from(leg)));
            }
            return Ok(());
        };
        if error != Error::Unsupported {
            for leg in failed.iter() {
                self.mirror.count_error(leg);
                self.mirror.fail(leg, error)?;
            }
        }
        Err(error)
    }

    fn conclude_all(
        &self,
        bio: &Bio,
        done: LegSet,
        failed: LegSet,
        error: Option<Error>,
    ) -> Result<(), Error> {
        if let Some(error) = error {
            // What no leg could do is the volume's affair; what some storage does not know is done
            // in another way on all.
            if done.is_empty() || error == Error::Unsupported {
                return Err(error);
            }
            for leg in failed.iter() {
                self.mirror.count_error(leg);
                self.mirror.fail(leg, error)?;
            }
            if (done.0 & self.mirror.in_sync().0) == 0 {
                return Err(error);
            }
        }
        if bio.op == Op::Flush {
            // Whoever is out must be known to be.
            self.mirror.settled();
            return Ok(());
        }
        self.mirror.end_write(bio.offset, bio.len)
    }
}

impl<D: BlockDevice> BlockDevice for MirrorDevice<D> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn legs(&self) -> usize {
        self.mirror.leg_count()
    }

    fn submit(&mut self, mut bio: Bio) -> Result<(), Bio> {
        if self.is_busy() {
            return Err(bio);
        }
        let good = self.mirror.in_sync();
        let targets = match self.targets(&bio, good) {
            Ok(targets) => targets,
            Err(error) => {
                self.ended.push(Ended { bio, result: Err(error) });
                return Ok(());
            }
        };
        self.refresh();
        let mut memory = std::mem::take(&mut bio.memory);
        if bio.op == Op::Read {
            let key = self.flights.insert(Flight::new(part_of(&bio, Memory::None), targets, good));
            bio.memory = memory;
            bio.unread_legs = 0;
            if let Some(leg) = targets.iter().next() {
                self.send(leg, bio.with_user(to_u64(key)));
            }
            return Ok(());
        }
        let shares: Option<Vec<Memory>> = targets.iter().map(|_| memory.share()).collect();
        let Some(shares) = shares else {
            // Legs would get different bytes of memory that changes.
            bio.memory = memory;
            self.ended.push(Ended { bio, result: Err(Error::Unsupported) });
            return Ok(());
        };
        let mut flight = Flight::new(part_of(&bio, memory), targets, good);
        flight.owns_flush = bio.op == Op::Flush && self.mirror.begin_flush();
        let key = self.flights.insert(flight);
        for (leg, memory) in targets.iter().zip(shares) {
            self.send(leg, part_of(&bio, memory).with_user(to_u64(key)));
        }
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        if !self.retired.is_empty() {
            self.reap_retired();
        }
        let mut below = std::mem::take(&mut self.below);
        for leg in 0..LEGS_MAX {
            let Some(queue) = &mut self.legs[leg] else { continue };
            queue.device.reap(&mut below);
            queue.in_flight -= below.len();
            for item in below.drain(..) {
                self.part_ended(leg, item);
            }
            let waiting = self.legs[leg].as_ref().map_or(0, |queue| queue.backlog.len());
            for _ in 0..waiting {
                let next = self.legs[leg].as_mut().and_then(|queue| queue.backlog.pop_front());
                let Some(bio) = next else { break };
                self.send(leg, bio);
            }
        }
        self.below = below;
        ended.append(&mut self.ended);
    }

    fn wait(&mut self) {
        if !self.ended.is_empty() {
            return;
        }
        let retired = self.retired.iter_mut().map(|(_, queue)| queue);
        let mut queues = self.legs.iter_mut().flatten().chain(retired);
        if let Some(queue) = queues.find(|queue| queue.in_flight > 0) {
            queue.device.wait();
        }
    }

    fn has_notes(&self) -> bool {
        let retired = self.retired.iter().map(|(_, queue)| queue);
        let mut queues = self.legs.iter().flatten().chain(retired);
        !self.ended.is_empty() || queues.any(|queue| queue.device.has_notes())
    }

    fn poll(&mut self) {
        let retired = self.retired.iter_mut().map(|(_, queue)| queue);
        let queues = self.legs.iter_mut().flatten().chain(retired);
        queues.for_each(|queue| queue.device.poll());
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        let (mut first, mut known, mut failed) = (None, false, Err(Error::IO));
        for leg in self.mirror.in_sync().iter() {
            let Some(queue) = &self.legs[leg] else { continue };
            match queue.device.data_after(offset) {
                Ok(found) => {
                    first = [first, found].into_iter().flatten().min();
                    known = true;
                }
                Err(error) => failed = Err(error),
            }
        }
        // What a leg cannot tell, another can: they hold the same.
        if known { Ok(first) } else { failed }
    }
}
