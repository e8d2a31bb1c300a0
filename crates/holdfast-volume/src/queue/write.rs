//! Writing: a record in the tuple log, the data, then the tuples that belong to them. Until all is
//! changed, the sectors are claimed.

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Op};
use holdfast_checksum::{checksum, generate};
use holdfast_iov::{BUFFER_MIN, Memory};
use holdfast_units::{to_u64, to_usize};

use super::Queue;
use super::heal::Purpose;
use super::job::{Edge, Part, Step, Token};
use crate::claims::Sectors;
use crate::geometry::TUPLE_BLOCK;
use crate::judge::is_zero;

impl<D: BlockDevice> Queue<D> {
    /// Begins a write: space for the tuples, then the edges, the log, and the data.
    pub(super) fn begin_write(&mut self, key: usize) -> bool {
        if self.volume.cache.is_fresh(self.jobs[key].way()) {
            // Data whose tuples find no space later would be lost.
            self.reserve(key);
            return false;
        }
        self.next_edge(key, None)
    }

    fn reserve(&mut self, key: usize) {
        let at = self.volume.geometry().tuples_at(self.jobs[key].group);
        self.jobs[key].step = Step::Below;
        let token = Token { part: Part::Reserve, job: key, way: None };
        let bio = Bio::new(Op::Allocate, at, to_u64(TUPLE_BLOCK), Memory::None);
        self.send_bio(bio.with_user(token.encode()));
    }

    pub(super) fn reserved(&mut self, key: usize, result: Result<u64, Error>) {
        match result {
            Err(error @ Error::NoSpace) => self.finish(key, Err(error)),
            // Storage that cannot reserve space may still have it.
            _ => {
                self.volume.cache.set_allocated(self.jobs[key].way());
                if self.next_edge(key, None) {
                    self.proceed(key);
                }
            }
        }
    }

    /// Goes on with the edge behind `last`, or with the log. Returns whether to proceed.
    pub(super) fn next_edge(&mut self, key: usize, last: Option<Edge>) -> bool {
        let edges: &[Edge] = match last {
            None => &[Edge::Head, Edge::Tail],
            Some(Edge::Head) => &[Edge::Tail],
            Some(Edge::Tail) => &[],
        };
        let sector = self.limits.sector;
        let job = &mut self.jobs[key];
        if let Some(&edge) = edges.iter().find(|&&edge| job.has_edge(edge, sector)) {
            job.step = Step::Edge(edge);
        } else {
            job.step = Step::Log;
            self.compute_guards(key);
        }
        true
    }

    /// Takes the stored part of a partly written sector, if it is intact: a corrupt sector must not
    /// get a valid guard by a write to another part of it.
    pub(super) fn edge_read(&mut self, key: usize, ended: Ended) {
        let Some(mut ended) = self.complete(ended) else { return };
        let (result, sector) = (ended.result, self.limits.sector);
        let verified = result.and_then(|_| {
            let buffer = ended.bio.memory.buffer_mut().ok_or(Error::IO)?;
            let stored = &mut buffer.as_mut_slice()[..sector.len()];
            let job = &mut self.jobs[key];
            let (edge, way) = (job.edge, job.way());
            let lba = sector.count(job.edge_offset(edge, sector));
            self.volume.overlay.each(lba, 1, |_, data| stored.copy_from_slice(data));
            let words = self.volume.cache.tuple(way, job.edge_sector(edge));
            let guard = checksum(self.volume.protection().kind, stored);
            self.volume.check(lba, guard, words, || is_zero(stored)).inspect_err(|mismatch| {
                if !self.mirrored {
                    self.volume.report(mismatch);
                }
            })?;
            job.merge_edge(edge, sector, stored);
            Ok(edge)
        });
        drop(ended);
        match verified {
            Ok(edge) => {
                self.next_edge(key, Some(edge));
                self.proceed(key);
            }
            Err(_) if self.mirrored => {
                let job = &self.jobs[key];
                let index = job.edge_sector(job.edge);
                self.heal(key, Purpose::Edge(job.edge), vec![index]);
            }
            Err(error) => self.finish(key, Err(error)),
        }
    }

    /// Computes the guards of what is about to be written, unless whoever filled the memory did.
    fn compute_guards(&mut self, key: usize) {
        let (kind, sector) = (self.volume.protection().kind, self.limits.sector.len());
        let job = &mut self.jobs[key];
        let count = job.sectors.count;
        let aligned = to_u64(count * sector) == job.bio.len;
        match &mut job.bio.memory {
            Memory::Buffer(_) if job.bio.guarded && aligned => {}
            Memory::Buffer(buffer) => {
                let (bytes, guards) = buffer.parts_mut();
                generate(kind, sector, &bytes[..count * sector], &mut guards[..count]);
            }
            Memory::Iov(iter) => {
                job.guards.resize(count, 0);
                iter.generate(kind, sector, count * sector, &mut job.guards);
            }
            Memory::Shared(_) | Memory::None => unreachable!("`check` saw memory"),
        }
    }

    /// Stores the tuples of what has been written. After an error those are the sectors that could
    /// be written alone: a device that ran out of space half-way leaves none without its tuple.
    pub(super) fn data_written(&mut self, key: usize, result: Result<(), Error>) {
        let sector = self.limits.sector;
        let job = &self.jobs[key];
        let result = result.and_then(|()| job.first_failure());
        let guards = job.new_guards();
        let (way, first) = (job.way(), job.sectors.first);
        let first_lba = sector.count(job.bio.offset);
        let mut stored = 0;
        for (index, &guard) in guards[..job.sectors.count].iter().enumerate() {
            if job.is_stored(index, sector) {
                let words = self.volume.tuple_words(first_lba + index as u64, guard);
                self.volume.cache.set_tuple(way, first + index, words);
                stored += 1;
            }
        }
        if stored > 0 {
            self.volume.cache.mark_dirty(way);
            self.volume.forget_reported(first_lba, job.sectors.count as u64);
        }
        match result {
            Ok(()) => self.finish(key, Ok(())),
            Err(error) => self.mend(key, 0, error),
        }
    }

    /// Clears sectors that were never written, from the range's sector `from` on, and then settles
    /// what could not be written: a write that failed may have stored a part of it.
    fn mend(&mut self, key: usize, from: usize, error: Error) {
        let job = &mut self.jobs[key];
        let (way, sectors, sector) = (job.way(), job.sectors, self.limits.sector);
        let cache = &self.volume.cache;
        let is_written = |index: &usize| cache.tuple(way, sectors.first + index) != [0, 0];
        let Some(first) = (from..sectors.count).find(|index| !is_written(index)) else {
            return self.settle(key, 0, error);
        };
        let next = (first..sectors.count).find(is_written).unwrap_or(sectors.count);
        let offset = sector.align_down(job.bio.offset) + to_u64(first * sector.len());
        let at = self.volume.geometry().data_at(offset);
        job.step = Step::Mend { error, next };
        let bio = Bio::new(Op::Discard, at, to_u64((next - first) * sector.len()), Memory::None);
        let token = Token { part: Part::Mend, job: key, way: None };
        self.send_bio(bio.with_user(token.encode()));
    }

    pub(super) fn mended(&mut self, key: usize, ended: Ended) {
        let Step::Mend { error, next } = self.jobs[key].step else {
            unreachable!("only a write that failed is mended");
        };
        if ended.result == Err(Error::Unsupported) && ended.bio.op == Op::Discard {
            // A disk that cannot discard can be made to write zeros.
            let op = Op::Zero { keep: true, fast: false };
            return self.send_bio(Bio { op, ..ended.bio });
        }
        // Where that failed too, the sector is found torn.
        self.mend(key, next, error);
    }

    /// Begins to make sectors read as zeros. Those that were never written do already. Returns
    /// whether to proceed.
    pub(super) fn begin_zero(&mut self, key: usize) -> bool {
        let job = &self.jobs[key];
        let (way, sectors) = (job.way(), job.sectors);
        let cache = &self.volume.cache;
        let mut range = sectors.first..sectors.first + sectors.count;
        let is_unwritten = range.all(|sector| cache.tuple(way, sector) == [0, 0]);
        let must_allocate = matches!(job.bio.op, Op::Zero { keep: true, .. });
        if is_unwritten && !must_allocate {
            self.finish(key, Ok(()));
            return false;
        }
        self.jobs[key].step = Step::Log;
        true
    }

    pub(super) fn send_zero(&mut self, key: usize) {
        let job = &mut self.jobs[key];
        job.step = Step::Below;
        let at = self.volume.geometry().data_at(job.bio.offset);
        let bio = Bio::new(job.bio.op, at, job.bio.len, Memory::None);
        let token = Token { part: Part::Zero, job: key, way: None };
        self.send_bio(bio.with_user(token.encode()));
    }

    pub(super) fn zeroed(&mut self, key: usize, ended: Ended) {
        let job = &mut self.jobs[key];
        let (way, sectors) = (job.way(), job.sectors);
        let fast = matches!(job.bio.op, Op::Zero { fast: true, .. });
        let is_write = ended.bio.op == Op::Write;
        let result = match ended.result {
            Ok(0) if is_write => Err(Error::IO),
            result => result,
        };
        match result {
            Err(later) if job.zero_error.is_some() => {
                let error = job.zero_error.unwrap_or(later);
                self.settle(key, 0, error);
            }
            Err(Error::Unsupported) if !is_write && !fast => self.write_zeros(key, ended.bio),
            Err(error) if !is_write && error != Error::Unsupported => {
                // Some of the range may be zeros already. A discard needs no space.
                job.zero_error = Some(error);
                self.send_bio(Bio { op: Op::Discard, ..ended.bio });
            }
            Err(error) => {
                let written =
                    Sectors { count: to_usize(self.limits.sector.count(job.done)), ..sectors };
                self.clear_tuples(key, way, written);
                if error == Error::Unsupported {
                    // Nothing was done.
                    return self.finish(key, Err(error));
                }
                self.settle(key, 0, error);
            }
            Ok(moved) if is_write && job.done + moved < job.bio.len => {
                job.done += moved;
                self.write_zeros(key, ended.bio);
            }
            Ok(_) => {
                let result = job.zero_error.map_or(Ok(()), Err);
                self.clear_tuples(key, way, sectors);
                self.finish(key, result);
            }
        }
    }

    /// Writes zeros, for storage below that knows no other way, a buffer at a time.
    fn write_zeros(&mut self, key: usize, bio: Bio) {
        let job = &self.jobs[key];
        let (done, left) = (job.done, job.bio.len - job.done);
        let at = self.volume.geometry().data_at(job.bio.offset) + done;
        let memory = match bio.memory {
            Memory::Buffer(buffer) => Memory::Buffer(buffer),
            _ => self.scratch.take(BUFFER_MIN).map_or(Memory::None, |mut buffer| {
                buffer.as_mut_slice().fill(0);
                Memory::Buffer(buffer)
            }),
        };
        if memory.is_empty() {
            // All scratch buffers are in use: the same is tried again when the device answers.
            let again = Bio::new(job.bio.op, at, left, Memory::None).with_user(bio.user);
            return self.send_bio(again);
        }
        let len = left.min(to_u64(memory.len()));
        self.send_bio(Bio::new(Op::Write, at, len, memory).with_user(bio.user));
    }

    /// Makes sectors ones that were never written.
    fn clear_tuples(&self, key: usize, way: crate::cache::Way, sectors: Sectors) {
        let cache = &self.volume.cache;
        let mut changed = false;
        for sector in sectors.first..sectors.first + sectors.count {
            if cache.tuple(way, sector) != [0, 0] {
                cache.set_tuple(way, sector, [0, 0]);
                changed = true;
            }
        }
        if changed {
            cache.mark_dirty(way);
            let first_lba = self.limits.sector.count(self.jobs[key].bio.offset);
            self.volume.forget_reported(first_lba, sectors.count as u64);
        }
    }
}
