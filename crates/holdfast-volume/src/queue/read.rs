//! Reading: what was read is delivered only if it matches its tuples.

use holdfast_bio::{Bio, BlockDevice, Error, Mismatch, Op};
use holdfast_checksum::generate;
use holdfast_iov::Memory;
use holdfast_units::to_u64;

use super::Queue;
use crate::judge::is_zero;

impl<D: BlockDevice> Queue<D> {
    /// Checks what a job has read against the tuples of its sectors.
    pub(super) fn verify(&mut self, key: usize) -> Result<(), Error> {
        let found = self.mismatches(key);
        self.judge(key, found)
    }

    /// Reads at once from a device that is memory, and verifies by the same loads. Returns whether that could be
    /// done: then the job has ended.
    pub(super) fn read_at_once(&mut self, key: usize) -> bool {
        let is_there = self.limits.in_memory && self.volume.overlay.is_empty();
        let Some(format) = self.limits.guards.filter(|_| is_there) else {
            return false;
        };
        let job = &mut self.jobs[key];
        self.guards.resize(job.sectors.count, 0);
        let len = to_u64(job.sectors.count * format.interval);
        let at = self.volume.geometry().data_at(self.limits.sector.align_down(job.bio.offset));
        let mut bio = Bio::new(Op::Read, at, len, std::mem::take(&mut job.bio.memory));
        let read = self.device.read_guarded(&mut bio, format, &mut self.guards);
        let job = &mut self.jobs[key];
        job.bio.memory = bio.memory;
        let Some(read) = read else { return false };
        let result = read.and_then(|()| {
            let found = self.compare(key);
            self.judge(key, found)
        });
        self.finish(key, result);
        true
    }

    /// Puts what is in no place but in memory over what a job has read.
    pub(super) fn lay_over(&mut self, key: usize) {
        if self.volume.overlay.is_empty() {
            return;
        }
        let (sector, job) = (self.limits.sector, &mut self.jobs[key]);
        let (first, count) = (sector.count(job.bio.offset), to_u64(job.sectors.count));
        self.volume.overlay.each(first, count, |index, data| match &mut job.bio.memory {
            Memory::Buffer(buffer) => {
                buffer.as_mut_slice()[index * sector.len()..][..sector.len()].copy_from_slice(data);
            }
            Memory::Iov(iter) => {
                let mut of_sector = iter.clone();
                of_sector.advance(index * sector.len());
                of_sector.copy_in(data);
            }
            Memory::Shared(_) | Memory::None => unreachable!("`check` saw memory"),
        });
    }

    /// Returns what the submitter of a read is told, and counts what is to be reported.
    fn judge(&self, key: usize, found: Vec<(usize, Mismatch)>) -> Result<(), Error> {
        let mut bad: Option<(bool, Mismatch)> = None;
        for (_, mismatch) in found {
            let is_final = self.is_final(key, &mismatch);
            if is_final {
                self.volume.report(&mismatch);
            }
            // The first, but a final one goes before those after which the submitter reads
            // again: what was reported must not be met, and counted, once more.
            if bad.is_none_or(|(was_final, _)| is_final && !was_final) {
                bad = Some((is_final, mismatch));
            }
        }
        bad.map_or(Ok(()), |(_, mismatch)| Err(mismatch.into()))
    }

    /// Returns the sectors of what a job has read that do not match their tuples, each by its place in
    /// the group.
    pub(super) fn mismatches(&mut self, key: usize) -> Vec<(usize, Mismatch)> {
        let job = &self.jobs[key];
        let (sector, sectors) = (self.limits.sector.len(), job.sectors);
        let kind = self.volume.protection().kind;
        let bytes = sectors.count * sector;
        self.guards.resize(sectors.count, 0);
        match &job.bio.memory {
            Memory::Buffer(buffer) => {
                generate(kind, sector, &buffer.as_slice()[..bytes], &mut self.guards);
            }
            Memory::Iov(iter) => iter.generate(kind, sector, bytes, &mut self.guards),
            Memory::Shared(_) | Memory::None => unreachable!("`check` saw memory"),
        }
        self.compare(key)
    }

    /// Returns the sectors of a job whose guards, as they were just computed, do not match their tuples, each
    /// by its place in the group.
    fn compare(&self, key: usize) -> Vec<(usize, Mismatch)> {
        let job = &self.jobs[key];
        let (sector, sectors) = (self.limits.sector.len(), job.sectors);
        let first_lba = self.limits.sector.count(job.bio.offset);
        let way = job.way();
        let mut bad = Vec::new();
        for (index, &guard) in self.guards.iter().enumerate() {
            let words = self.volume.cache.tuple(way, sectors.first + index);
            let lba = first_lba + index as u64;
            let is_zero = || match &job.bio.memory {
                Memory::Buffer(buffer) => is_zero(&buffer.as_slice()[index * sector..][..sector]),
                Memory::Iov(iter) => iter.is_zero(index * sector, sector),
                Memory::Shared(_) | Memory::None => unreachable!("`check` saw memory"),
            };
            if let Err(mismatch) = self.volume.check(lba, guard, words, is_zero) {
                bad.push((sectors.first + index, mismatch));
            }
        }
        bad
    }

    /// Returns whether a mismatch is to be reported. It is not when the submitter reads again: then
    /// that is judged.
    pub(super) fn is_final(&self, key: usize, mismatch: &Mismatch) -> bool {
        let bio = &self.jobs[key].bio;
        let in_buffer = matches!(bio.memory, Memory::Buffer(_));
        !bio.tentative || !(in_buffer || mismatch.tag.depends_on_data())
    }
}
