//! Healing: on a mirror, what is bad on one leg is taken from another that has it intact.
//!
//! A sector is healed under the claim that the job holds, so a change in flight is never taken for
//! rot. Its copies are read from all legs, one after the other, into one scratch buffer. The first
//! that matches the sector's tuple is delivered, and written to the legs whose copy is another. Tuples
//! are compared when a group's are read: where legs differ, that tuple counts which the data of some
//! leg match.

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Mismatch, Op};
use holdfast_checksum::checksum;
use holdfast_iov::{Buffer, Memory};
use holdfast_units::{to_u64, to_usize};

use super::Queue;
use super::job::{Edge, Part, Place, Step, Token};
use super::read::is_final;
use crate::cache::Way;
use crate::geometry::TUPLE_BLOCK;
use crate::judge::is_zero;
use crate::words::{put_words, words_at};

/// Room for one copy in the buffer, of a sector or a tuple block.
const SLOT: usize = 4096;
/// There are four slots in the smallest buffer.
const SLOTS: usize = holdfast_iov::BUFFER_MIN / SLOT;

/// What is being healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The tuples of a group, which are on their way into this way of the cache.
    Fill(Way),
    /// What a job has read.
    Read,
    /// A sector of which a part is written.
    Edge(Edge),
    /// What is looked at on all legs.
    Repair,
}

/// What is below at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The tuple block of a leg.
    Tuples,
    /// A sector of a leg.
    Data,
    /// A sector that was intact, to a leg that has not got it.
    Write,
}

/// A job's healing.
#[derive(Debug)]
pub(super) struct Heal {
    purpose: Purpose,
    phase: Phase,
    /// The leg that is being read or written.
    leg: usize,
    /// The sectors of the group that are left to do, the present one last.
    sectors: Vec<usize>,
    /// The legs whose copy is in its slot, a bit for each.
    read: u8,
    /// The legs that could not be read.
    unread: u8,
    /// The slot that is intact.
    intact: usize,
    /// The legs that are still to be written.
    bad: u8,
    /// The tuple blocks of the legs, when they differ. The first is the one that is made right.
    blocks: Vec<Vec<u8>>,
    /// A leg's tuple block must be written again.
    rewrite: bool,
    error: Error,
    result: Result<(), Error>,
}

impl Heal {
    fn new(purpose: Purpose, phase: Phase, sectors: Vec<usize>) -> Box<Self> {
        Box::new(Self {
            purpose,
            phase,
            leg: 0,
            sectors,
            read: 0,
            unread: 0,
            intact: 0,
            bad: 0,
            blocks: Vec::new(),
            rewrite: false,
            error: Error::IO,
            result: Ok(()),
        })
    }

    fn legs_read(&self) -> impl Iterator<Item = usize> + use<> {
        let read = self.read;
        (0..SLOTS).filter(move |leg| read >> leg & 1 != 0)
    }

    /// Begins with the legs anew, for the next sector.
    const fn restart(&mut self, phase: Phase) {
        (self.phase, self.leg, self.read, self.unread) = (phase, 0, 0, 0);
    }
}

impl<D: BlockDevice> Queue<D> {
    /// Reads the tuples of a group from all legs.
    pub(super) fn fill_mirrored(&mut self, key: usize, way: Way, buffer: Buffer) {
        self.jobs[key].heal = Some(Heal::new(Purpose::Fill(way), Phase::Tuples, Vec::new()));
        self.go_on_healing(key, buffer);
    }

    /// Begins to heal sectors, which are given by their place in the group. There is one at least.
    pub(super) fn heal(&mut self, key: usize, purpose: Purpose, mut sectors: Vec<usize>) {
        sectors.reverse();
        let job = &mut self.jobs[key];
        job.heal = Some(Heal::new(purpose, Phase::Data, sectors));
        job.step = Step::Heal;
        self.proceed(key);
    }

    /// Takes what a job has read on a mirror, and ends it, or heals what is bad.
    pub(super) fn mirror_read(&mut self, key: usize, result: Result<(), Error>) {
        let bad = match result {
            Err(error @ (Error::Unsupported | Error::Range { .. })) => {
                return self.finish(key, Err(error));
            }
            // What no leg can read in one piece may be read in smaller ones.
            Err(_) => self.all_sectors(key),
            Ok(()) => {
                let bad = self.mismatches(key);
                let bio = &self.jobs[key].bio;
                let again = bad.iter().find(|(_, mismatch)| !is_final(bio, mismatch));
                if let Some(&(_, mismatch)) = again {
                    return self.finish(key, Err(mismatch.into()));
                }
                if bad.is_empty() && self.jobs[key].unread_legs != 0 {
                    self.all_sectors(key)
                } else {
                    bad.into_iter().map(|(sector, _)| sector).collect()
                }
            }
        };
        if bad.is_empty() {
            return self.finish(key, Ok(()));
        }
        self.heal(key, Purpose::Read, bad);
    }

    /// Returns all sectors of a job, by their places in the group.
    pub(super) fn all_sectors(&self, key: usize) -> Vec<usize> {
        let sectors = self.jobs[key].sectors;
        (sectors.first..sectors.first + sectors.count).collect()
    }

    /// Sends what is to be done next.
    pub(super) fn go_on_healing(&mut self, key: usize, buffer: Buffer) {
        let (geometry, sector) = (*self.volume.geometry(), self.limits.sector);
        let job = &mut self.jobs[key];
        job.step = Step::Below;
        let heal = job.heal.as_ref().expect("the job is healing");
        let (op, at, slot, len) = match heal.phase {
            Phase::Tuples => (Op::Read, geometry.tuples_at(job.group), heal.leg, TUPLE_BLOCK),
            Phase::Data | Phase::Write => {
                let index = *heal.sectors.last().expect("there is a present sector");
                let lba = job.group * to_u64(geometry.sectors_of_group()) + to_u64(index);
                let at = geometry.data_at(lba * sector.bytes());
                match heal.phase {
                    Phase::Write => (Op::Write, at, heal.intact, sector.len()),
                    _ => (Op::Read, at, heal.leg, sector.len()),
                }
            }
        };
        let leg = u8::try_from(heal.leg).expect("a leg's number");
        let token = Token { part: Part::Heal, job: key, way: None };
        let bio = Bio::new(op, at, to_u64(len), Memory::Buffer(buffer)).with_start(slot * SLOT);
        self.send_bio(bio.with_leg(leg).with_user(token.encode()));
    }

    /// Goes on when something was read or written.
    pub(super) fn healing_moved(&mut self, key: usize, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let Ended { bio, result } = ended;
        let Memory::Buffer(buffer) = bio.memory else {
            unreachable!("a bio comes back with its memory");
        };
        let legs = self.device.legs().min(SLOTS);
        let heal = self.jobs[key].heal.as_mut().expect("the job is healing");
        if heal.phase == Phase::Write {
            // What could not be written is the device's affair: the leg is out.
            heal.bad &= !(1 << heal.leg);
        } else {
            match result {
                Ok(_) => heal.read |= 1 << heal.leg,
                // There is no such leg now.
                Err(Error::Unsupported) => {}
                Err(error) => {
                    heal.unread |= 1 << heal.leg;
                    heal.error = error;
                }
            }
            heal.leg += 1;
            if heal.leg < legs {
                return self.go_on_healing(key, buffer);
            }
        }
        match heal.phase {
            Phase::Tuples => self.compare_tuples(key, buffer),
            Phase::Data => self.judge_copies(key, buffer),
            Phase::Write => self.write_intact(key, buffer),
        }
    }

    /// Compares the tuple blocks of the legs.
    fn compare_tuples(&mut self, key: usize, buffer: Buffer) {
        let heal = self.jobs[key].heal.as_mut().expect("the job is healing");
        let Purpose::Fill(way) = heal.purpose else {
            unreachable!("only a fill reads tuples");
        };
        heal.rewrite = heal.unread != 0;
        let block = |leg: usize| &buffer.as_slice()[leg * SLOT..][..TUPLE_BLOCK];
        let Some(first) = heal.legs_read().next() else {
            let error = heal.error;
            drop(buffer);
            self.volume.cache.abandon(way);
            return self.finish(key, Err(error));
        };
        if heal.legs_read().all(|leg| block(leg) == block(first)) {
            heal.blocks = vec![block(first).to_vec()];
            return self.healed(key, buffer);
        }
        heal.rewrite = true;
        heal.blocks = heal.legs_read().map(|leg| block(leg).to_vec()).collect();
        let geometry = self.volume.geometry();
        let tuple = |block: &Vec<u8>, index| words_at(block, geometry.tuple_words(), index);
        let differs = |&index: &usize| {
            let first = tuple(&heal.blocks[0], index);
            heal.blocks.iter().any(|other| tuple(other, index) != first)
        };
        heal.sectors = (0..geometry.sectors_of_group()).rev().filter(differs).collect();
        heal.restart(Phase::Data);
        self.begin_sector(key, buffer);
    }

    /// Begins with the last sector of the list, or ends when there is none.
    fn begin_sector(&mut self, key: usize, buffer: Buffer) {
        let sectors = self.sectors_of(self.jobs[key].group);
        let heal = self.jobs[key].heal.as_mut().expect("the job is healing");
        let Some(&index) = heal.sectors.last() else { return self.healed(key, buffer) };
        if index < sectors {
            return self.go_on_healing(key, buffer);
        }
        // Behind the end of the disk there are no sectors, and the tuples are zeros.
        put_words(&mut heal.blocks[0], self.volume.geometry().tuple_words(), index, [0, 0]);
        heal.sectors.pop();
        self.begin_sector(key, buffer);
    }

    /// Returns how many sectors a group has: the last may have fewer than the others.
    fn sectors_of(&self, group: u64) -> usize {
        let (geometry, sector) = (self.volume.geometry(), self.limits.sector);
        let left = geometry.capacity() - group * geometry.group_data().bytes();
        to_usize(sector.count(left)).min(geometry.sectors_of_group())
    }

    /// Looks for a copy that is intact.
    fn judge_copies(&mut self, key: usize, buffer: Buffer) {
        let job = &self.jobs[key];
        let tuple_words = self.volume.geometry().tuple_words();
        let heal = job.heal.as_ref().expect("the job is healing");
        let index = *heal.sectors.last().expect("there is a present sector");
        let lba = job.group * to_u64(self.volume.geometry().sectors_of_group()) + to_u64(index);
        let mut tuples: Vec<_> = match heal.purpose {
            Purpose::Fill(_) => {
                heal.blocks.iter().map(|block| words_at(block, tuple_words, index)).collect()
            }
            _ => vec![self.volume.cache.tuple(job.way(), index)],
        };
        // A leg that has lost everything looks as if nothing had been written: that counts last.
        tuples.sort_by_key(|&words| words == [0, 0]);
        let copy = |leg: usize| &buffer.as_slice()[leg * SLOT..][..self.limits.sector.len()];
        let check = |words: [u64; 2], leg: usize| {
            let guard = checksum(self.volume.protection().kind, copy(leg));
            self.volume.check(lba, guard, words, || is_zero(copy(leg)))
        };
        let pairs =
            || tuples.iter().flat_map(|&words| heal.legs_read().map(move |leg| (words, leg)));
        let intact = pairs().find(|&(words, leg)| check(words, leg).is_ok());
        let Some((words, intact)) = intact else {
            let mismatch = pairs().find_map(|(words, leg)| check(words, leg).err());
            let first = heal.legs_read().next();
            return self.not_intact(key, index, mismatch, first, buffer);
        };
        let differs = |leg: &usize| copy(*leg) != copy(intact);
        let differing = heal.legs_read().filter(differs).fold(0, |bad, leg| bad | 1 << leg);
        let bad = differing | heal.unread;
        let is_fill = matches!(heal.purpose, Purpose::Fill(_));
        if bad != 0 || is_fill {
            self.volume.count_healed();
            tracing::debug!("LBA {lba} is intact on leg {intact}: legs {bad:#b} get it");
        }
        self.deliver(key, index, copy(intact));
        let read_only = self.volume.is_read_only();
        let heal = self.jobs[key].heal.as_mut().expect("the job is healing");
        if let Some(block) = heal.blocks.first_mut() {
            put_words(block, tuple_words, index, words);
        }
        heal.intact = intact;
        heal.bad = if read_only { 0 } else { bad };
        heal.phase = Phase::Write;
        self.write_intact(key, buffer);
    }

    /// Puts the intact bytes of a sector where the job wants them.
    fn deliver(&mut self, key: usize, index: usize, bytes: &[u8]) {
        let sector = self.limits.sector;
        let job = &mut self.jobs[key];
        let purpose = job.heal.as_ref().map(|heal| heal.purpose);
        match purpose {
            Some(Purpose::Edge(edge)) => job.merge_edge(edge, sector, bytes),
            Some(Purpose::Read | Purpose::Repair) => {
                let at = (index - job.sectors.first) * sector.len();
                match &mut job.bio.memory {
                    Memory::Buffer(buffer) => {
                        buffer.as_mut_slice()[at..][..bytes.len()].copy_from_slice(bytes);
                    }
                    Memory::Iov(iter) => {
                        let mut target = iter.clone();
                        target.advance(at);
                        target.copy_in(bytes);
                    }
                    Memory::Shared(_) | Memory::None => unreachable!("`check` saw memory"),
                }
            }
            Some(Purpose::Fill(_)) | None => {}
        }
    }

    /// Goes on after no copy of a sector matches.
    fn not_intact(
        &mut self,
        key: usize,
        index: usize,
        mismatch: Option<Mismatch>,
        first: Option<usize>,
        buffer: Buffer,
    ) {
        let purpose = self.jobs[key].heal.as_ref().map(|heal| heal.purpose);
        if purpose == Some(Purpose::Repair) {
            // A leg that is copied gets it as it is, so that it stays what it is.
            match first {
                Some(leg) => {
                    let copy = &buffer.as_slice()[leg * SLOT..][..self.limits.sector.len()];
                    self.deliver(key, index, copy);
                }
                None => self.deliver(key, index, &[0; SLOT][..self.limits.sector.len()]),
            }
        }
        // Whoever reads the sectors of a group that is filled is told.
        if !matches!(purpose, Some(Purpose::Fill(_))) {
            // A scrub reads again, a sector at a time, and only that is reported.
            if !self.jobs[key].bio.tentative {
                mismatch.iter().for_each(|mismatch| self.volume.report(mismatch));
            }
            let heal = self.jobs[key].heal.as_mut().expect("the job is healing");
            let error = mismatch.map_or(heal.error, Error::Mismatch);
            heal.result = heal.result.and(Err(error));
        }
        let heal = self.jobs[key].heal.as_mut().expect("the job is healing");
        (heal.bad, heal.phase) = (0, Phase::Write);
        self.write_intact(key, buffer);
    }

    /// Writes the present sector to the next leg that has not got it, or goes on with the next sector.
    fn write_intact(&mut self, key: usize, buffer: Buffer) {
        let heal = self.jobs[key].heal.as_mut().expect("the job is healing");
        if heal.bad != 0 {
            heal.leg = (0..SLOTS).find(|leg| heal.bad >> leg & 1 != 0).unwrap_or(0);
            return self.go_on_healing(key, buffer);
        }
        heal.sectors.pop();
        heal.restart(Phase::Data);
        self.begin_sector(key, buffer);
    }

    /// Goes on with what the job was at, after all was healed that can be.
    fn healed(&mut self, key: usize, buffer: Buffer) {
        drop(buffer);
        let heal = self.jobs[key].heal.take().expect("the job is healing");
        match (heal.purpose, heal.result) {
            (Purpose::Fill(way), _) => {
                self.volume.cache.filled(way, &heal.blocks[0]);
                if heal.rewrite && !self.volume.is_read_only() {
                    self.volume.cache.mark_dirty(way);
                }
                let job = &mut self.jobs[key];
                (job.place, job.step) = (Place::Pinned(way), Step::Claim);
                self.proceed(key);
            }
            (Purpose::Read, result) => self.finish(key, result),
            (Purpose::Repair, result) => self.repair_healed(key, result),
            (Purpose::Edge(edge), Ok(())) => {
                self.next_edge(key, Some(edge));
                self.proceed(key);
            }
            (Purpose::Edge(_), Err(error)) => self.finish(key, Err(error)),
        }
    }
}
