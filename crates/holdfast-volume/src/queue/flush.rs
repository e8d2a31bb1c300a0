//! Flushing: all changed tuples, unless they are durable in the log; the counters, if they have news;
//! and the device's own cache.

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Op};

use super::Queue;
use super::job::{Part, Step, Token};
use crate::cache::Cache;
use crate::flush::Aim;
use crate::format::SUPERBLOCK_LEN;
use crate::geometry::TUPLE_BLOCK;
use crate::journal::Journal;
use crate::log::{Log, Position};

/// How far the leader of a flush is.
#[derive(Debug, Default)]
pub(super) struct Lead {
    /// The position in the cache from which on dirty ways are looked for.
    position: usize,
    /// Tuple blocks that are being written.
    in_flight: usize,
    /// All tuples are written, or are being.
    passed_all: bool,
    /// The first error.
    failed: Option<Error>,
    /// What there will be room for in the tuple log when all tuples are written, and durable if the
    /// log is.
    makes_room: Option<u64>,
    /// What of the log will be known to be durable then.
    durable: Option<Position>,
    /// The number of the flush of the device.
    number: u64,
}

/// The most tuple blocks that one flush writes at a time, which leaves scratch buffers to others.
const IN_FLIGHT_MAX: usize = 64;

impl<D: BlockDevice> Queue<D> {
    pub(super) fn join_flush(&mut self, key: usize) {
        if self.volume.flush_failed() {
            return self.end(key, Err(Error::FlushFailed));
        }
        if self.volume.is_read_only() {
            return self.end(key, Ok(()));
        }
        self.jobs[key].step = Step::Follow;
        // What is durable in the log need not be stored elsewhere for a crash. Who asks for all of it
        // wants the legs of a mirror to be equal.
        let bio = &self.jobs[key].bio;
        let store = !self.volume.log_is_durable() || (bio.op == Op::Flush && bio.fua);
        if self.volume.flush.join(&self.waiter(key), Aim { store, durable: true }) {
            self.begin_lead(key);
        }
    }

    pub(super) fn begin_lead(&mut self, key: usize) {
        let aim = self.volume.flush.aim();
        if self.volume.flush_failed() && aim.durable {
            // It failed after this one was asked for.
            return self.finish_lead(key, Err(Error::FlushFailed));
        }
        let makes_room = self.volume.log.as_ref().filter(|_| aim.store).and_then(Log::begin_flush);
        let passed_all = !aim.store;
        self.jobs[key].step = Step::Lead(Lead { makes_room, passed_all, ..Lead::default() });
        if passed_all {
            return self.tuples_flushed(key);
        }
        self.proceed(key);
    }

    /// Writes tuple blocks until there are none, or enough are in flight.
    pub(super) fn lead(&mut self, key: usize) {
        let waiter = self.waiter(key);
        loop {
            let Step::Lead(lead) = &mut self.jobs[key].step else {
                unreachable!("only a leader leads");
            };
            if lead.passed_all || lead.in_flight == IN_FLIGHT_MAX {
                return;
            }
            let way = match self.volume.cache.pin_dirty(lead.position, &waiter) {
                Some(Ok(way)) => way,
                Some(Err(position)) => {
                    lead.position = position;
                    return;
                }
                None => {
                    lead.passed_all = true;
                    if lead.in_flight == 0 {
                        self.tuples_flushed(key);
                    }
                    return;
                }
            };
            let Some(buffer) = self.scratch.take(TUPLE_BLOCK) else {
                self.volume.cache.unpin(way);
                self.hungry.push_back(key);
                return;
            };
            lead.position = Cache::position_after(way);
            lead.in_flight += 1;
            self.volume.cache.clear_dirty(way);
            let buffer = self.copy_tuples(way, buffer);
            let at = self.volume.geometry().tuples_at(self.volume.cache.group(way));
            let token = Token { part: Part::FlushTuples, job: key, way: Some(way) };
            self.send(token, Op::Write, at, TUPLE_BLOCK, buffer);
        }
    }

    pub(super) fn flush_tuples_written(&mut self, token: Token, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let (key, way) = (token.job, token.way.expect("a tuple block has a way"));
        if ended.result.is_err() {
            self.volume.cache.mark_dirty(way);
        }
        self.volume.cache.unpin(way);
        let Step::Lead(lead) = &mut self.jobs[key].step else {
            unreachable!("only a leader writes tuples of a flush");
        };
        lead.in_flight -= 1;
        lead.failed = lead.failed.or_else(|| ended.result.err());
        let (passed_all, in_flight) = (lead.passed_all, lead.in_flight);
        drop(ended);
        if !passed_all {
            self.lead(key);
        } else if in_flight == 0 {
            self.tuples_flushed(key);
        }
    }

    fn tuples_flushed(&mut self, key: usize) {
        let Step::Lead(Lead { failed, makes_room, .. }) = self.jobs[key].step else {
            unreachable!("only a leader flushes");
        };
        if let Some(error) = failed {
            return self.finish_lead(key, Err(error));
        }
        if !self.volume.log_is_durable() {
            self.give_room(makes_room);
        }
        if !self.volume.flush.aim().durable {
            return self.finish_lead(key, Ok(()));
        }
        let scratch = self.volume.has_news().then(|| self.scratch.take(SUPERBLOCK_LEN)).flatten();
        let Some(mut buffer) = scratch else {
            return self.flush_device(key);
        };
        let target = &mut buffer.as_mut_slice()[..SUPERBLOCK_LEN];
        let at = self.volume.encode_next_superblock(target);
        let token = Token { part: Part::FlushSuperblock, job: key, way: None };
        self.send(token, Op::Write, at, SUPERBLOCK_LEN, buffer);
    }

    pub(super) fn flush_superblock_written(&mut self, key: usize, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        match ended.result {
            Ok(_) => self.flush_device(key),
            Err(error) => {
                self.volume.keep_news();
                self.finish_lead(key, Err(error));
            }
        }
    }

    /// Says that what was in a half of the log is stored elsewhere.
    fn give_room(&self, round: Option<u64>) {
        if let (Some(log), Some(round)) = (&self.volume.log, round) {
            log.flushed(round);
        }
    }

    fn flush_device(&mut self, key: usize) {
        if let (Some(log), Step::Lead(lead)) = (&self.volume.log, &mut self.jobs[key].step) {
            lead.durable = log.is_written().then(|| log.durable_after_flush());
            lead.number = self.volume.journal.as_ref().map_or(0, Journal::begin_flush);
        }
        let token = Token { part: Part::FlushDevice, job: key, way: None };
        self.send_bio(Bio::flush().with_user(token.encode()));
    }

    pub(super) fn flush_device_done(&mut self, key: usize, result: Result<u64, Error>) {
        if let Err(error) = &result {
            // The kernel reports a lost write once: a flush that succeeds later proves nothing.
            tracing::error!(
                "a flush of the device failed, and no later one can be trusted: {error}"
            );
            self.volume.set_flush_failed();
        }
        let result = match result {
            // Another queue's flush failed meanwhile, and took the error with it.
            Ok(_) if self.volume.flush_failed() => Err(Error::FlushFailed),
            result => result.map(drop),
        };
        if result.is_ok() && self.volume.log_is_durable() {
            let Step::Lead(Lead { makes_room, durable, number, .. }) = self.jobs[key].step else {
                unreachable!("only a leader flushes");
            };
            if let Some(journal) = &self.volume.journal {
                journal.flushed(number);
            }
            if let (Some(log), Some(position)) = (&self.volume.log, durable) {
                log.set_durable(position);
            }
            self.give_room(makes_room);
        }
        if let (Ok(()), Some(intents)) = (result, &self.volume.intents) {
            intents.flushed();
        }
        self.finish_lead(key, result);
    }

    fn finish_lead(&mut self, key: usize, result: Result<(), Error>) {
        if let (Err(error), Some(log)) = (result, &self.volume.log) {
            log.flush_failed(error);
        }
        self.volume.flush.finish(result);
        self.finish_flushed(key, result);
    }

    pub(super) fn finish_flushed(&mut self, key: usize, result: Result<(), Error>) {
        self.end(key, result);
    }
}
