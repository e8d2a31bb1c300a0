//! After a write or a clearing that failed: which tuple belongs to the data of each sector.
//!
//! The device does not say what it has stored of a sector that it could not write: nothing, all, or a
//! part. So the sector is read, under the claim that the job holds, and has its old tuple or its new
//! one, whichever its data match. A sector that matches neither is marked as torn: what is wrong with
//! it was told to the writer, and is no corruption. One that cannot be read either keeps its tuple.

use holdfast_bio::{BlockDevice, Ended, Error, Op};
use holdfast_checksum::checksum;
use holdfast_iov::Buffer;
use holdfast_units::to_u64;

use super::Queue;
use super::job::{Job, Part, Step, Token};
use crate::judge::is_zero;

/// How far a job is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settling {
    /// Why it failed, which its submitter is told at the end.
    error: Error,
    /// The sector of the range that is being read.
    index: usize,
}

impl<D: BlockDevice> Queue<D> {
    /// Settles the sectors from the range's sector `from` on that may not have been written, and then
    /// ends the job with `error`.
    pub(super) fn settle(&mut self, key: usize, from: usize, error: Error) {
        let sector = self.limits.sector;
        let job = &mut self.jobs[key];
        let is_doubtful =
            |job: &Job, index| job.bio.op != Op::Write || !job.is_stored(index, sector);
        let Some(index) = (from..job.sectors.count).find(|&index| is_doubtful(job, index)) else {
            return self.finish(key, Err(error));
        };
        job.settling = Some(Settling { error, index });
        job.step = Step::Settle;
        self.proceed(key);
    }

    /// Reads the sector that is to be settled.
    pub(super) fn read_unsettled(&mut self, key: usize, buffer: Buffer) {
        let job = &self.jobs[key];
        let sector = self.limits.sector;
        let index = job.settling.expect("the job is settling").index;
        let first = sector.align_down(job.bio.offset);
        let at = self.volume.geometry().data_at(first + to_u64(index * sector.len()));
        let token = Token { part: Part::Settle, job: key, way: None };
        self.send(token, Op::Read, at, sector.len(), buffer);
    }

    pub(super) fn unsettled_read(&mut self, key: usize, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let Settling { error, index } = self.jobs[key].settling.expect("the job is settling");
        if let (Ok(_), Some(buffer)) = (ended.result, ended.bio.memory.buffer()) {
            self.choose_tuple(key, index, &buffer.as_slice()[..self.limits.sector.len()]);
        }
        drop(ended);
        self.settle(key, index + 1, error);
    }

    /// Gives a sector the tuple that its data match.
    fn choose_tuple(&self, key: usize, index: usize, stored: &[u8]) {
        let job = &self.jobs[key];
        let (volume, way, place) = (&self.volume, job.way(), job.sectors.first + index);
        let lba = self.limits.sector.count(job.bio.offset) + to_u64(index);
        let guard = checksum(volume.protection().kind, stored);
        let old = volume.cache.tuple(way, place);
        let new = match job.bio.op {
            Op::Write => volume.tuple_words(lba, job.new_guards()[index]),
            _ => [0, 0],
        };
        let matches = |words| volume.check(lba, guard, words, || is_zero(stored)).is_ok();
        let chosen = [old, new].into_iter().find(|&words| matches(words));
        let words = chosen.unwrap_or_else(|| volume.torn_words(lba));
        if words != old {
            volume.cache.set_tuple(way, place, words);
            volume.cache.mark_dirty(way);
        }
        if chosen.is_none() {
            tracing::error!("the sector at LBA {lba} was torn by a write that failed");
        }
    }
}
