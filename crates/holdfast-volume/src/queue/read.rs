//! Reading: what was read is delivered only if it matches its tuples.

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Mismatch, Op};
use holdfast_checksum::generate;
use holdfast_iov::Memory;
use holdfast_units::to_u64;

use super::Queue;
use crate::cache::Way;
use crate::claims::{Mode, Sectors};
use crate::judge::is_zero;

impl<D: BlockDevice> Queue<D> {
    /// Checks what a job has read against the tuples of its sectors.
    pub(super) fn verify(&mut self, key: usize) -> Result<(), Error> {
        let found = self.mismatches(key);
        self.judge(&self.jobs[key].bio, found)
    }

    /// Reads at once from a device that is memory, and verifies by the same loads, where nothing is in the way:
    /// then nobody needs to remember the bio.
    ///
    /// # Errors
    ///
    /// The bio, of which nothing has been done.
    pub(super) fn read_at_once(&mut self, mut bio: Bio) -> Result<(), Bio> {
        let format = self.limits.guards.filter(|_| self.limits.in_memory && bio.op == Op::Read);
        let Some(format) = format else { return Err(bio) };
        let geometry = self.volume.geometry();
        let at = geometry.data_at(self.limits.sector.align_down(bio.offset));
        self.device.expect_read(at);
        let (group, sectors) = geometry.sectors_of(bio.offset, bio.len);
        let cache = &self.volume.cache;
        let Some(way) = cache.enter(group, sectors, Mode::Shared) else { return Err(bio) };
        if !self.volume.overlay.is_empty() {
            cache.release(way, sectors, Mode::Shared);
            return Err(bio);
        }
        self.guards.resize(sectors.count, 0);
        let read = self.device.read_guarded(at, &mut bio.memory, format, &mut self.guards);
        let result = read.map(|read| {
            read.and_then(|()| {
                let found = self.compare(&bio, way, sectors);
                self.judge(&bio, found)
            })
        });
        self.volume.cache.release(way, sectors, Mode::Shared);
        let Some(result) = result else { return Err(bio) };
        let result = result.map(|()| bio.len);
        self.ended.push(Ended { bio, result });
        Ok(())
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
    fn judge(&self, bio: &Bio, found: Vec<(usize, Mismatch)>) -> Result<(), Error> {
        let mut bad: Option<(bool, Mismatch)> = None;
        for (_, mismatch) in found {
            let is_final = is_final(bio, &mismatch);
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
        self.compare(&job.bio, job.way(), sectors)
    }

    /// Returns the sectors of a read whose guards, as they were just computed, do not match their tuples, each
    /// by its place in the group.
    fn compare(&self, bio: &Bio, way: Way, sectors: Sectors) -> Vec<(usize, Mismatch)> {
        let sector = self.limits.sector.len();
        let first_lba = self.limits.sector.count(bio.offset);
        let mut bad = Vec::new();
        for (index, &guard) in self.guards.iter().enumerate() {
            let words = self.volume.cache.tuple(way, sectors.first + index);
            let lba = first_lba + index as u64;
            let is_zero = || match &bio.memory {
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
}

/// Returns whether a mismatch is to be reported. It is not when the submitter reads again: then that is judged.
pub(super) fn is_final(bio: &Bio, mismatch: &Mismatch) -> bool {
    let in_buffer = matches!(bio.memory, Memory::Buffer(_));
    !bio.tentative || !(in_buffer || mismatch.tag.depends_on_data())
}
