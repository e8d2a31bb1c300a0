//! One thread's way to a volume: the engine that takes a bio through its steps.
//!
//! Each bio is a [`Job`]. It pins the tuples of its group, which may have to be read first, claims
//! its sectors, moves its data, verifies or stores the tuples, and gives everything up. A step that
//! cannot be done now leaves the job where it is, and whoever makes the step possible says so.
//!
//! The transfers below may be short and may end in any order.

mod flush;
mod heal;
mod intents;
mod job;
mod log;
mod read;
mod repair;
mod settle;
mod stage;
mod write;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, DiskQueue, Ended, Error, GuardLimits, Limits, Op};
use holdfast_iov::{BUFFER_MAX, BUFFER_MIN, Buffer, Memory, Pool};
use holdfast_units::{BlockSize, to_u64, to_usize};
use slab::Slab;

use self::job::{Internal, Job, Part, Place, Step, Token};
use self::log::Records;
use self::stage::Stage;
use crate::cache::Pinned;
use crate::geometry::TUPLE_BLOCK;
use crate::inbox::{Inbox, Note, Waiter};
use crate::volume::Volume;

/// A queue of a volume, in one thread.
pub struct Queue<D: BlockDevice> {
    volume: Arc<Volume>,
    device: D,
    limits: Limits,
    /// The device is a mirror.
    mirrored: bool,
    jobs: Slab<Job>,
    inbox: Arc<Inbox>,
    notes: Vec<Note>,
    /// Buffers for tuple blocks and for the edges of partly written sectors. Nobody waits for
    /// anything else while holding one but for the device, so there is always one again.
    scratch: Pool,
    /// Jobs that wait for a scratch buffer.
    hungry: VecDeque<usize>,
    /// Bios that found the device's queue full.
    backlog: VecDeque<Bio>,
    below: Vec<Ended>,
    ended: Vec<Ended>,
    /// Room for guards of memory that has none.
    guards: Vec<u64>,
    records: Records,
    stage: Option<Box<Stage>>,
}

impl<D: BlockDevice + fmt::Debug> fmt::Debug for Queue<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("device", &self.device)
            .field("jobs", &self.jobs.len())
            .finish_non_exhaustive()
    }
}

impl<D: BlockDevice> Queue<D> {
    /// Scratch buffers: one for each of so many reads and writes of tuples at a time.
    const SCRATCH: usize = 128;

    /// Opens a queue of `volume` over `device`, a queue of the device that the volume is on.
    /// `notify` wakes the thread in which the queue is used; it is called from other threads.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn new(
        volume: &Arc<Volume>,
        device: D,
        notify: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (geometry, below) = (volume.geometry(), device.limits());
        let guards =
            GuardLimits { kind: volume.protection().kind, interval: geometry.sector().len() };
        let limits = Limits {
            capacity: geometry.capacity(),
            sector: geometry.sector(),
            granularity: BlockSize::SECTOR,
            memory_alignment: below.memory_alignment,
            bytes_max: below.bytes_max.min(BUFFER_MAX),
            boundary: Some(geometry.group_data()),
            stable_pages: true,
            guards: Some(guards),
            read_only: volume.is_read_only(),
            in_memory: below.in_memory,
        };
        Ok(Self {
            volume: Arc::clone(volume),
            mirrored: device.legs() > 1,
            device,
            limits,
            jobs: Slab::new(),
            inbox: Inbox::new(Box::new(notify)),
            notes: Vec::new(),
            scratch: Pool::new(Self::SCRATCH * BUFFER_MIN)?,
            hungry: VecDeque::new(),
            backlog: VecDeque::new(),
            below: Vec::new(),
            ended: Vec::new(),
            guards: Vec::new(),
            records: Records::new(volume.log.as_ref())?,
            stage: None,
        })
    }

    /// Returns the volume.
    pub const fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Starts `bio`, as [`submit`](BlockDevice::submit) does: a queue of a volume is never full.
    pub fn start(&mut self, bio: Bio) {
        if let Err(error) = self.check(&bio) {
            return self.ended.push(Ended { bio, result: Err(error) });
        }
        let bio = match self.read_at_once(bio) {
            Ok(()) => return,
            Err(bio) => bio,
        };
        let is_flush = bio.op == Op::Flush;
        let key = self.jobs.insert(Job::new(bio, self.volume.geometry()));
        if is_flush {
            self.join_flush(key);
        } else {
            self.proceed(key);
        }
    }

    /// Returns how many bios are in flight, with those of the volume's own. As long as there are
    /// any, others may wait for them: reap them.
    pub fn in_flight(&self) -> usize {
        self.jobs.len() + self.stage_in_flight()
    }

    /// Waits until nothing is in flight. What ended can be reaped.
    pub fn drain(&mut self) {
        self.begin_to_drain_stage();
        while !(self.jobs.is_empty() && self.is_stage_drained()) {
            self.device.wait();
            self.turn();
            // What we wait for may be in another thread's hands.
            std::thread::yield_now();
        }
        self.end_to_drain_stage();
    }

    fn waiter(&self, job: usize) -> Waiter {
        Waiter { inbox: Arc::clone(&self.inbox), job }
    }

    /// Checks what the submitter promised. What it did not keep is its own bug or a client's.
    fn check(&self, bio: &Bio) -> Result<(), Error> {
        if bio.op == Op::Flush {
            return Ok(());
        }
        let Bio { op, offset, len, .. } = *bio;
        self.limits.check(offset, len)?;
        let only_compares = op == Op::Repair && bio.leg.is_none();
        if op.is_write() && self.limits.read_only && !only_compares {
            return Err(Error::ReadOnly);
        }
        let range = Error::Range { offset, len };
        if len == 0 {
            return Err(range);
        }
        let head = to_usize(self.limits.sector.offset_in(offset));
        let whole = self.limits.whole_sectors(offset, len);
        let fits = match (op, &bio.memory) {
            (Op::Read | Op::Write, Memory::Buffer(buffer)) => {
                bio.start == head && whole <= buffer.len() && whole <= self.limits.bytes_max
            }
            (Op::Read, Memory::Iov(iter)) if !iter.is_writable() => return Err(Error::Unsupported),
            (Op::Read | Op::Write, Memory::Iov(iter)) => {
                to_u64(whole) == len && bio.start == 0 && to_u64(iter.count()) == len
            }
            (Op::Map, Memory::Buffer(buffer)) => {
                to_u64(whole) == len && buffer.len() >= whole / self.limits.sector.len()
            }
            (Op::Zero { .. } | Op::Discard, _) => to_u64(whole) == len,
            (Op::Repair, Memory::Buffer(buffer)) if self.mirrored => {
                to_u64(whole) == len && bio.start == 0 && whole.max(TUPLE_BLOCK) <= buffer.len()
            }
            _ => return Err(Error::Unsupported),
        };
        if fits { Ok(()) } else { Err(range) }
    }

    /// Takes a job on from the step that it is at, until it has to wait.
    fn proceed(&mut self, key: usize) {
        loop {
            // A flush goes on when one of its writes ends, too, so that a note for it may be late.
            // For another job that has its number by now it is one try too many.
            let Some(job) = self.jobs.get(key) else { return };
            let goes_on = match job.step {
                Step::Pin => self.pin(key),
                Step::Fill(_) | Step::WriteBack(_) | Step::Edge(_) | Step::Heal | Step::Settle => {
                    self.use_scratch(key)
                }
                Step::Claim => self.claim(key),
                Step::Act => self.act(key),
                Step::Log => self.log(key),
                Step::Commit => {
                    self.commit();
                    self.advance_stage();
                    false
                }
                Step::Data => {
                    self.send_data(key);
                    false
                }
                Step::Lead(_) => {
                    self.lead(key);
                    false
                }
                Step::Below | Step::Mend { .. } | Step::Follow => false,
            };
            if !goes_on {
                break;
            }
        }
    }

    fn pin(&mut self, key: usize) -> bool {
        let job = &mut self.jobs[key];
        let (sectors, mode) = (job.sectors_to_claim(self.volume.geometry()), job.mode());
        if let Some(way) = self.volume.cache.enter(job.group, sectors, mode) {
            job.place = Place::Claimed(way, mode);
            job.step = Step::Act;
            return true;
        }
        let waiter = self.waiter(key);
        let job = &mut self.jobs[key];
        match self.volume.cache.pin(job.group, &waiter) {
            Pinned::Ready(way) => {
                job.place = Place::Pinned(way);
                job.step = Step::Claim;
            }
            Pinned::Fill(way) => job.step = Step::Fill(way),
            Pinned::WriteBack(way) => job.step = Step::WriteBack(way),
            Pinned::Wait => {
                self.hurry_others();
                return false;
            }
        }
        true
    }

    fn claim(&mut self, key: usize) -> bool {
        let waiter = self.waiter(key);
        let job = &mut self.jobs[key];
        let Place::Pinned(way) = job.place else {
            unreachable!("a job pins its way before it claims sectors");
        };
        let mode = job.mode();
        let sectors = job.sectors_to_claim(self.volume.geometry());
        if !self.volume.cache.claim(way, sectors, mode, &waiter) {
            self.hurry_others();
            return false;
        }
        job.place = Place::Claimed(way, mode);
        job.step = Step::Act;
        true
    }

    /// Starts what the bio is for.
    fn act(&mut self, key: usize) -> bool {
        match self.jobs[key].bio.op {
            Op::Read => self.jobs[key].step = Step::Data,
            Op::Write => return self.begin_write(key),
            Op::Zero { .. } | Op::Discard => return self.begin_zero(key),
            Op::Map => self.map(key),
            Op::Repair => return self.begin_repair(key),
            Op::Flush | Op::Allocate => unreachable!("a flush claims nothing, `check` refuses"),
        }
        self.jobs.get(key).is_some_and(|job| matches!(job.step, Step::Data))
    }

    /// Answers which sectors hold data.
    fn map(&mut self, key: usize) {
        let job = &mut self.jobs[key];
        let (way, sectors) = (job.way(), job.sectors);
        let group_lba = job.group * to_u64(self.volume.geometry().sectors_of_group());
        let buffer = job.bio.memory.buffer_mut().expect("`check` saw a buffer");
        let answers = buffer.as_mut_slice();
        for (answer, sector) in answers.iter_mut().zip(sectors.first..sectors.first + sectors.count)
        {
            let stored = self.volume.cache.tuple(way, sector);
            let lba = group_lba + to_u64(sector);
            *answer = u8::from(self.volume.settled_words(lba, stored) != [0, 0]);
        }
        self.finish(key, Ok(()));
    }

    /// Does a step that needs a scratch buffer, or waits for one.
    fn use_scratch(&mut self, key: usize) -> bool {
        let Some(buffer) = self.scratch.take(TUPLE_BLOCK) else {
            self.hungry.push_back(key);
            return false;
        };
        let geometry = *self.volume.geometry();
        let step = std::mem::replace(&mut self.jobs[key].step, Step::Below);
        match step {
            Step::Heal => self.go_on_healing(key, buffer),
            Step::Settle => self.read_unsettled(key, buffer),
            Step::Fill(way) if self.mirrored => self.fill_mirrored(key, way, buffer),
            Step::Fill(way) => {
                let at = geometry.tuples_at(self.jobs[key].group);
                let token = Token { part: Part::Fill, job: key, way: Some(way) };
                self.send(token, Op::Read, at, TUPLE_BLOCK, buffer);
            }
            Step::WriteBack(way) => {
                let at = geometry.tuples_at(self.volume.cache.group(way));
                let buffer = self.copy_tuples(way, buffer);
                let token = Token { part: Part::WriteBack, job: key, way: Some(way) };
                self.send(token, Op::Write, at, TUPLE_BLOCK, buffer);
            }
            Step::Edge(edge) => {
                let at = geometry.data_at(self.jobs[key].edge_offset(edge, self.limits.sector));
                let token = Token { part: Part::Edge, job: key, way: None };
                self.jobs[key].edge = edge;
                self.send(token, Op::Read, at, self.limits.sector.len(), buffer);
            }
            _ => unreachable!("other steps need no scratch buffer"),
        }
        false
    }

    fn copy_tuples(&self, way: crate::cache::Way, mut buffer: Buffer) -> Buffer {
        self.volume.cache.copy_tuples(way, &mut buffer.as_mut_slice()[..TUPLE_BLOCK]);
        buffer
    }

    fn send(&mut self, token: Token, op: Op, offset: u64, len: usize, buffer: Buffer) {
        let bio = Bio::new(op, offset, to_u64(len), Memory::Buffer(buffer));
        self.send_bio(bio.with_user(token.encode()));
    }

    fn send_bio(&mut self, bio: Bio) {
        if let Err(bio) = self.device.submit(bio) {
            self.backlog.push_back(bio);
        }
    }

    /// Moves what is left of the job's data between its memory and the device.
    fn send_data(&mut self, key: usize) {
        let geometry = self.volume.geometry();
        let job = &mut self.jobs[key];
        job.step = Step::Below;
        let first = self.limits.sector.align_down(job.bio.offset);
        let whole = to_u64(self.limits.whole_sectors(job.bio.offset, job.bio.len));
        let (done, memory) = (job.done, std::mem::take(&mut job.bio.memory));
        let most = if job.narrow.is_some() {
            self.limits.sector.bytes() - self.limits.sector.offset_in(done)
        } else {
            whole
        };
        let len = (whole - done).min(most);
        let (op, leg) = job.repair.as_ref().map_or((job.bio.op, None), |repair| repair.transfer());
        let mut bio = Bio::new(op, geometry.data_at(first) + done, len, memory);
        bio.leg = leg;
        bio.start = to_usize(done);
        if let Memory::Iov(iter) = &mut bio.memory {
            iter.advance(to_usize(done));
            bio.start = 0;
        }
        let token = Token { part: Part::Data, job: key, way: None };
        self.send_bio(bio.with_user(token.encode()));
    }

    /// Does everything that can be done now.
    fn turn(&mut self) {
        for _ in 0..self.backlog.len() {
            let Some(bio) = self.backlog.pop_front() else { break };
            self.send_bio(bio);
        }
        let mut below = std::mem::take(&mut self.below);
        self.device.reap(&mut below);
        for ended in below.drain(..) {
            self.ended_below(ended);
        }
        self.below = below;
        self.read_notes();
        for _ in 0..self.hungry.len() {
            let Some(key) = self.hungry.pop_front() else { break };
            self.proceed(key);
        }
    }

    fn read_notes(&mut self) {
        while self.inbox.is_filled() {
            let mut notes = std::mem::take(&mut self.notes);
            self.inbox.take(&mut notes);
            for note in notes.drain(..) {
                match note {
                    Note::Retry(key) => self.proceed(key),
                    Note::Flushed(key, result) => self.finish_flushed(key, result),
                    Note::Lead(key) => self.begin_lead(key),
                    Note::Hurry => self.hurry(),
                    Note::NoRoom(key, error) => self.no_room(key, error),
                }
            }
            self.notes = notes;
        }
    }

    fn ended_below(&mut self, ended: Ended) {
        let token = Token::decode(ended.bio.user);
        let key = token.job;
        match token.part {
            Part::Fill => self.filled(token, ended),
            Part::WriteBack => self.written_back(token, ended),
            Part::Edge => self.edge_read(key, ended),
            Part::Reserve => self.reserved(key, ended.result),
            Part::Intents => self.intents_stored(key, ended),
            Part::Log => self.records_written(ended),
            Part::Data => self.data_moved(key, ended),
            Part::Mend => self.mended(key, ended),
            Part::Heal => self.healing_moved(key, ended),
            Part::Settle => self.unsettled_read(key, ended),
            Part::Clear => self.leg_cleared(key, ended),
            Part::Zero => self.zeroed(key, ended),
            Part::FlushTuples => self.flush_tuples_written(token, ended),
            Part::FlushSuperblock => self.flush_superblock_written(key, ended),
            Part::FlushDevice => self.flush_device_done(key, ended.result),
            Part::Batch => self.batch_written(key, ended),
            Part::SegmentRecords => self.segment_records_written(key, ended),
            Part::Sectors => self.sectors_written(key, ended),
        }
    }

    /// Sends the rest of a scratch transfer that was short. `None` when it was; otherwise its end.
    fn complete(&mut self, mut ended: Ended) -> Option<Ended> {
        let whole = ended.bio.start + to_usize(ended.bio.len);
        match ended.result {
            Ok(0) => ended.result = Err(Error::IO),
            Ok(moved) if moved < ended.bio.len => {
                ended.bio.offset += moved;
                ended.bio.len -= moved;
                ended.bio.start = whole - to_usize(ended.bio.len);
                self.send_bio(ended.bio);
                return None;
            }
            _ => {}
        }
        Some(ended)
    }

    fn filled(&mut self, token: Token, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let (key, way) = (token.job, token.way.expect("a fill has a way"));
        match (ended.result, ended.bio.memory.buffer()) {
            (Ok(_), Some(buffer)) => {
                self.volume.cache.filled(way, &buffer.as_slice()[..TUPLE_BLOCK]);
                let job = &mut self.jobs[key];
                (job.place, job.step) = (Place::Pinned(way), Step::Claim);
                drop(ended);
                self.proceed(key);
            }
            (result, _) => {
                self.volume.cache.abandon(way);
                self.finish(key, Err(result.err().unwrap_or(Error::IO)));
            }
        }
    }

    fn written_back(&mut self, token: Token, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let way = token.way.expect("a write-back has a way");
        self.volume.cache.emptied(way, ended.result.is_ok());
        match ended.result {
            Ok(_) => {
                self.jobs[token.job].step = Step::Pin;
                drop(ended);
                self.proceed(token.job);
            }
            Err(error) => {
                drop(ended);
                self.write_back_failed(token.job, error);
            }
        }
    }

    /// Goes on after tuples of another group could not be written back: they stay in the cache, and
    /// there may be room elsewhere.
    fn write_back_failed(&mut self, key: usize, error: Error) {
        tracing::error!("changed tuples stay in memory, since they cannot be written: {error}");
        self.jobs[key].step = Step::Pin;
        self.try_again(key, error);
    }

    /// Goes on after tuples could not be stored to make room, but not for ever.
    fn try_again(&mut self, key: usize, error: Error) {
        const FAILURES_MAX: u8 = 16;
        let job = &mut self.jobs[key];
        job.room_failures += 1;
        if job.room_failures == FAILURES_MAX {
            return self.finish(key, Err(error));
        }
        self.proceed(key);
    }

    fn data_moved(&mut self, key: usize, ended: Ended) {
        let Ended { bio, result } = ended;
        let job = &mut self.jobs[key];
        job.bio.memory = bio.memory;
        job.unread_legs |= bio.unread_legs;
        if let Memory::Iov(iter) = &mut job.bio.memory {
            iter.revert(to_usize(job.done));
        }
        let whole = to_u64(self.limits.whole_sectors(job.bio.offset, job.bio.len));
        let result = match result {
            Ok(0) => Err(Error::IO),
            Ok(moved) => {
                job.done += moved;
                Ok(())
            }
            Err(error) => Err(error),
        };
        let result = match result {
            Err(error) if job.bio.op == Op::Write => job.narrow_down(error, self.limits.sector),
            result => result,
        };
        if result.is_ok() && job.done < whole {
            return self.send_data(key);
        }
        if job.bio.op == Op::Read && result.is_ok() {
            self.lay_over(key);
        }
        match self.jobs[key].bio.op {
            Op::Read if self.mirrored => self.mirror_read(key, result),
            Op::Read => {
                let result = result.and_then(|()| self.verify(key));
                self.finish(key, result);
            }
            Op::Repair => self.repair_moved(key, result),
            _ => self.data_written(key, result),
        }
    }

    /// Gives up what the job holds, and ends it or makes it durable first.
    fn finish(&mut self, key: usize, result: Result<(), Error>) {
        self.release_record(key, result.is_err());
        self.leave_region(key);
        let job = &mut self.jobs[key];
        match std::mem::replace(&mut job.place, Place::Nowhere) {
            Place::Claimed(way, mode) => {
                let sectors = job.sectors_to_claim(self.volume.geometry());
                self.volume.cache.release(way, sectors, mode);
            }
            Place::Pinned(way) => self.volume.cache.unpin(way),
            Place::Nowhere => {}
        }
        if result.is_ok() && job.bio.fua && job.bio.op.is_write() {
            return self.join_flush(key);
        }
        self.end(key, result);
    }

    fn end(&mut self, key: usize, result: Result<(), Error>) {
        let job = self.jobs.remove(key);
        match job.internal {
            Some(Internal::Room) => return self.room_made(),
            Some(Internal::Stage) => return self.stage_flushed(result),
            Some(Internal::Records) => return self.places_flushed(),
            None => {}
        }
        let len = job.bio.len;
        self.ended.push(Ended { bio: job.bio, result: result.map(|()| len) });
    }
}

impl<D: BlockDevice> BlockDevice for Queue<D> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        self.start(bio);
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        self.turn();
        ended.append(&mut self.ended);
    }

    fn legs(&self) -> usize {
        self.device.legs()
    }

    fn wait(&mut self) {
        if !self.has_notes() {
            self.device.wait();
        }
    }

    fn has_notes(&self) -> bool {
        self.inbox.is_filled() || !self.ended.is_empty() || self.device.has_notes()
    }

    fn poll(&mut self) {
        self.device.poll();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        let geometry = self.volume.geometry();
        let group = geometry.group_of(offset);
        let found = self.device.data_after(geometry.tuples_at(group))?;
        Ok(found
            .map(|position| geometry.first_offset_from(position).max(offset))
            .filter(|&offset| offset < geometry.capacity()))
    }
}

impl<D: BlockDevice> DiskQueue for Queue<D> {
    fn has_news(&self) -> bool {
        self.volume.has_news()
    }
}

impl<D: BlockDevice> Drop for Queue<D> {
    fn drop(&mut self) {
        // Others may wait for what our jobs hold. After a panic in a thread with several queues the
        // jobs may wait for each other, and nobody is left to go on with the others'.
        if !std::thread::panicking() {
            self.drain();
            self.leave_stage();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{CreateOptions, OpenOptions};
    use holdfast_checksum::GuardKind;
    use holdfast_device::MemoryDevice;

    #[test]
    fn a_late_note_for_a_job_that_has_ended_does_nothing() {
        let options = CreateOptions {
            capacity: 1 << 20,
            sector: BlockSize::PAGE,
            guard: GuardKind::Crc16,
            application_tag: CreateOptions::APPLICATION_TAG,
        };
        let mut device = MemoryDevice::new(8 << 20);
        Volume::create(&mut device, &options).unwrap();
        let volume = Volume::open(&mut device, &OpenOptions::default()).unwrap();
        let mut queue = Queue::new(&volume, device, || {}).unwrap();
        queue.submit(Bio::flush()).unwrap();
        queue.drain();
        queue.waiter(0).retry();
        queue.hungry.push_back(0);
        let mut ended = Vec::new();
        queue.reap(&mut ended);
        assert_eq!(ended.len(), 1);
    }
}
