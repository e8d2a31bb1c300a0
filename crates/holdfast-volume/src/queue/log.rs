//! The tuple log: what is written is said there first, and room is made in it.
//!
//! Into a log that is mapped each job stores its own record. One that is written is written by one
//! bio at a time: the jobs that come meanwhile wait, and the next bio has the records of all of them.

use std::collections::VecDeque;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Op};
use holdfast_iov::{Buffer, Memory, Pool};
use holdfast_units::to_u64;

use super::Queue;
use super::job::{Internal, Job, Part, Step, Token};
use crate::flush::Aim;
use crate::geometry::TUPLE_BLOCK;
use crate::log::{Intent, LOG_UNIT, Log, Oldest, Position, Wait};

/// The records of a queue.
pub(super) struct Records {
    /// Which of them are in use.
    oldest: Option<Oldest>,
    /// Memory for one that is stored.
    stored: Vec<u8>,
    /// Memory for those that are written.
    written: Pool,
    /// Jobs whose records are to be written.
    pub(super) waiting: VecDeque<usize>,
    /// Jobs whose records are being written.
    committing: Vec<usize>,
    /// The device is being flushed before records are written.
    is_syncing: bool,
    /// How many jobs have records, which may be durable.
    in_use: usize,
    /// Room for a list like that.
    spare: Vec<usize>,
}

impl Records {
    /// The most bytes of records that one bio writes: room for several of the longest.
    const COMMIT_MAX: usize = 64 << 10;

    pub(super) fn new(log: Option<&Log>) -> std::io::Result<Self> {
        Ok(Self {
            oldest: log.filter(|log| log.is_written()).map(Log::join),
            stored: Vec::new(),
            written: Pool::new(Self::COMMIT_MAX)?,
            waiting: VecDeque::new(),
            committing: Vec::new(),
            is_syncing: false,
            in_use: 0,
            spare: Vec::new(),
        })
    }

    /// Takes memory for a block of the write-intent log, while no records are written.
    pub(super) fn take_block(&self) -> Option<Buffer> {
        self.written.take_whole(TUPLE_BLOCK)
    }
}

impl<D: BlockDevice> Queue<D> {
    /// Says in the log what a job is about to do, and goes on with its data, or lets it wait.
    /// Returns whether to proceed.
    pub(super) fn log(&mut self, key: usize) -> bool {
        if !self.enter_region(key) {
            return false;
        }
        let Some(log) = &self.volume.log else { return self.go_on(key) };
        if self.stages(key) {
            self.stage(key);
            return false;
        }
        if log.is_written() {
            self.jobs[key].step = Step::Commit;
            self.records.waiting.push_back(key);
            self.commit();
            return false;
        }
        let intent = self.intent(key);
        let len = log.record_len(&intent);
        let Some(position) = self.reserve_record(key, len, 1) else { return false };
        let mut record = std::mem::take(&mut self.records.stored);
        record.resize(len, 0);
        self.encode(&mut record, key, position);
        self.jobs[key].record = Some(position);
        if let Some(log) = &self.volume.log {
            log.store(position, &record);
        }
        self.records.stored = record;
        self.make_room_if_asked();
        self.go_on(key)
    }

    pub(super) fn intent(&self, key: usize) -> Intent {
        let job = &self.jobs[key];
        let lba = self.limits.sector.count(job.bio.offset);
        Intent { lba, count: job.sectors.count, clears: job.bio.op != Op::Write }
    }

    /// Reserves a place in the log, or lets `key` wait for one.
    pub(super) fn reserve_record(&mut self, key: usize, len: usize, jobs: u64) -> Option<Position> {
        while let Some(log) = &self.volume.log {
            if let Some(oldest) = &self.records.oldest {
                oldest.announce(log.next());
            }
            if let Some(position) = log.reserve(len, jobs) {
                return Some(position);
            }
            if let Some(oldest) = &self.records.oldest {
                oldest.withdraw();
            }
            match log.wait(&self.waiter(key)) {
                Wait::No => continue,
                Wait::Yes => {}
                Wait::Flush => self.make_room(),
            }
            self.hurry_others();
            break;
        }
        None
    }

    /// Puts the record of a job at the beginning of `target`. Returns its length.
    pub(super) fn encode(&self, target: &mut [u8], key: usize, position: Position) -> usize {
        let intent = self.intent(key);
        let job = &self.jobs[key];
        let (volume, way, first) = (&self.volume, job.way(), job.sectors.first);
        let guards = if intent.clears { &[] } else { &job.new_guards()[..intent.count] };
        let new = (intent.lba..).zip(guards).map(|(lba, &guard)| volume.tuple_words(lba, guard));
        let old = (first..first + intent.count).map(|sector| volume.cache.tuple(way, sector));
        let Some(log) = &volume.log else { return 0 };
        let len = log.record_len(&intent);
        log.encode(&mut target[..len], position, &intent, new, old);
        len
    }

    /// Says that a record is in use, which is later than all before.
    pub(super) fn use_record(&mut self, position: Position) {
        if let Some(oldest) = &mut self.records.oldest {
            oldest.push(position);
        }
    }

    /// Goes on after the record of a job is where it must be. Returns whether to proceed.
    fn go_on(&mut self, key: usize) -> bool {
        let is_write = self.jobs[key].bio.op == Op::Write;
        if is_write {
            self.jobs[key].step = Step::Data;
        } else {
            self.send_zero(key);
        }
        is_write
    }

    /// Writes the records of those who wait for it, unless some are being written, or so many have their
    /// data in flight that more will come soon: what makes a record durable flushes a device, and costs
    /// the same for all that wait.
    pub(super) fn commit(&mut self) {
        let Some(log) = &self.volume.log else { return };
        let waiting = self.records.waiting.len();
        if !self.records.committing.is_empty() || waiting == 0 || waiting < self.records.in_use {
            return;
        }
        if self.records.is_syncing {
            return;
        }
        let (mut len, mut count, mut needs_flush) = (0, 0, false);
        for &key in &self.records.waiting {
            let longer = len + log.record_len(&self.intent(key));
            if log.written_len(longer) > Records::COMMIT_MAX {
                break;
            }
            (len, count) = (longer, count + 1);
            let group = self.jobs[key].group;
            needs_flush |= self.volume.journal.as_ref().is_some_and(|it| it.needs_flush(group));
        }
        if needs_flush && !self.volume.flush_failed() {
            self.records.is_syncing = true;
            return self.flush_for(Internal::Records, Aim { store: false, durable: true });
        }
        let whole = log.written_len(len);
        let first = self.records.waiting[0];
        let Some(position) = self.reserve_record(first, len, to_u64(count)) else { return };
        let buffer = self.records.written.take_whole(whole);
        let mut buffer = buffer.expect("one buffer is in use at a time");
        let mut at = 0;
        for _ in 0..count {
            at += self.add_record(&mut buffer, at, position);
        }
        buffer.as_mut_slice()[at..whole].fill(0);
        self.send_records(position, whole, buffer);
        self.make_room_if_asked();
    }

    /// Puts the record of the first who waits into a buffer that begins at `start` of the log.
    /// Returns its length.
    fn add_record(&mut self, buffer: &mut Buffer, at: usize, start: Position) -> usize {
        let Some(key) = self.records.waiting.pop_front() else { return 0 };
        let position = start.after(to_u64(at / LOG_UNIT));
        let len = self.encode(&mut buffer.as_mut_slice()[at..], key, position);
        self.use_record(position);
        self.jobs[key].record = Some(position);
        self.records.committing.push(key);
        self.records.in_use += 1;
        len
    }

    /// Goes on after what came from the journal to the places of those who wait was made durable there.
    pub(super) fn places_flushed(&mut self) {
        self.records.is_syncing = false;
        self.commit();
    }

    fn send_records(&mut self, position: Position, len: usize, buffer: Buffer) {
        let Some(log) = &self.volume.log else { return };
        let at = log.offset_of(position);
        let mut bio = Bio::new(Op::Write, at, to_u64(len), Memory::Buffer(buffer));
        bio.fua = true;
        let token = Token { part: Part::Log, job: self.records.committing[0], way: None };
        self.send_bio(bio.with_user(token.encode()));
    }

    /// Goes on with those whose records are durable, and with the next.
    pub(super) fn records_written(&mut self, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let result = ended.result;
        drop(ended);
        if let Err(error) = result {
            self.durable_write_failed(error);
        }
        let spare = std::mem::take(&mut self.records.spare);
        let mut committed = std::mem::replace(&mut self.records.committing, spare);
        for key in committed.drain(..) {
            match result {
                Ok(_) => {
                    if self.go_on(key) {
                        self.proceed(key);
                    }
                }
                Err(error) => self.finish(key, Err(error)),
            }
        }
        self.records.spare = committed;
        self.commit();
    }

    /// Remembers that a write that was to be durable failed. The kernel may have told with it, and
    /// only once, that writes before it were lost: a flush that succeeds later proves nothing.
    pub(super) fn durable_write_failed(&self, error: Error) {
        tracing::error!("a log cannot be written, and no later flush can be trusted: {error}");
        self.volume.set_flush_failed();
    }

    pub(super) fn make_room_if_asked(&mut self) {
        if self.volume.log.as_ref().is_some_and(|log| log.request_flush()) {
            self.make_room();
        }
    }

    /// Stores all tuples, so that a half of the log can be used again. For a log that is durable
    /// they have to be so, too.
    fn make_room(&mut self) {
        let aim = Aim { store: true, durable: self.volume.log_is_durable() };
        self.flush_for(Internal::Room, aim);
    }

    /// Joins a flush that nobody submitted.
    pub(super) fn flush_for(&mut self, what: Internal, aim: Aim) {
        let mut job = Job::new(Bio::flush(), self.volume.geometry());
        (job.internal, job.step) = (Some(what), Step::Follow);
        let key = self.jobs.insert(job);
        if self.volume.flush.join(&self.waiter(key), aim) {
            self.begin_lead(key);
        }
    }

    /// Goes on after what `make_room` began has ended, whatever came of it.
    pub(super) fn room_made(&mut self) {
        if self.volume.log.as_ref().is_some_and(|log| log.end_request()) {
            self.make_room();
        }
    }

    /// Lets a job go on that waits for room, after tuples could not be stored.
    pub(super) fn no_room(&mut self, key: usize, error: Error) {
        // The note may be late, and for another job, or for one that has found room meanwhile.
        let waits =
            |job: &Job| matches!(job.step, Step::Log | Step::Commit) && job.record.is_none();
        if self.jobs.get(key).is_some_and(waits) {
            self.try_again(key, error);
        }
    }

    /// Gives up the record of a job that ends, and that has done what the record says if it did not
    /// fail.
    pub(super) fn release_record(&mut self, key: usize, failed: bool) {
        if failed && matches!(self.jobs[key].step, Step::Commit) {
            // It waited for room, perhaps as the first of several.
            self.records.waiting.retain(|&waiting| waiting != key);
            self.unwait_stage(key);
            self.commit();
        }
        let Some(record) = self.jobs[key].record.take() else { return };
        let Some(log) = &self.volume.log else { return };
        if failed {
            log.fail(record);
        }
        let is_written = log.is_written();
        self.give_up_record(record);
        if is_written {
            self.records.in_use -= 1;
            self.commit();
        }
    }

    /// Gives up a record that is in use.
    pub(super) fn give_up_record(&mut self, record: Position) {
        if let Some(oldest) = &mut self.records.oldest {
            oldest.release(record);
        }
        if self.volume.log.as_ref().is_some_and(|log| log.release(record)) {
            self.make_room();
        }
    }
}

const _: () =
    assert!(Records::COMMIT_MAX >= 2 * TUPLE_BLOCK + 2 * 4096, "a record fits, and its block");
