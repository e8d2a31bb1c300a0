//! The tuple log: what is written is said there first, and room is made in it.

use holdfast_bio::{Bio, BlockDevice, Error, Op};

use super::Queue;
use super::job::{Job, Step};
use crate::log::{Change, Wait};

impl<D: BlockDevice> Queue<D> {
    /// Appends the record of a job, and goes on with its data, or waits for room. Returns whether
    /// to proceed.
    pub(super) fn log(&mut self, key: usize) -> bool {
        while let Some(log) = &self.volume.log {
            let job = &self.jobs[key];
            let (lba, count) = (self.limits.sector.count(job.bio.offset), job.sectors.count);
            let change = if job.bio.op == Op::Write {
                let guards = (lba..).zip(&job.new_guards()[..count]);
                Change::Written(guards.map(|(lba, &guard)| self.volume.tuple_words(lba, guard)))
            } else {
                Change::Cleared
            };
            if let Some(record) = log.append(&mut self.record, lba, count, change) {
                self.jobs[key].record = Some(record);
                break;
            }
            match log.wait(&self.waiter(key)) {
                Wait::No => {}
                Wait::Yes => return false,
                Wait::Flush => {
                    self.make_room();
                    return false;
                }
            }
        }
        self.make_room_if_asked();
        let is_write = self.jobs[key].bio.op == Op::Write;
        if is_write {
            self.jobs[key].step = Step::Data;
        } else {
            self.send_zero(key);
        }
        is_write
    }

    fn make_room_if_asked(&mut self) {
        if self.volume.log.as_ref().is_some_and(|log| log.request_flush()) {
            self.make_room();
        }
    }

    /// Stores all tuples, so that a half of the log can be used again. They need not be durable for
    /// that.
    fn make_room(&mut self) {
        let mut job = Job::new(Bio::flush(), self.volume.geometry());
        (job.is_internal, job.step) = (true, Step::Follow);
        let key = self.jobs.insert(job);
        if self.volume.flush.join(&self.waiter(key), false) {
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
        // The note may be late, and for another job.
        if self.jobs.get(key).is_some_and(|job| matches!(job.step, Step::Log)) {
            self.try_again(key, error);
        }
    }

    /// Gives up the record of a job that ends.
    pub(super) fn release_record(&mut self, key: usize) {
        let Some(record) = self.jobs[key].record.take() else { return };
        if self.volume.log.as_ref().is_some_and(|log| log.release(record)) {
            self.make_room();
        }
    }
}
