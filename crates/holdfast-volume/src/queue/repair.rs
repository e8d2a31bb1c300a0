//! Repairing a mirror: a range is compared on all legs, or copied to a leg that missed it.

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Op};
use holdfast_iov::Memory;
use holdfast_units::{to_u64, to_usize};

use super::Queue;
use super::heal::Purpose;
use super::job::{Part, Step, Token};
use crate::geometry::TUPLE_BLOCK;

/// How far a repair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The range is being read from this leg, to be compared.
    Compare(u8),
    /// The range is being read from any leg, to be copied.
    Fetch,
    /// It is being written to the leg.
    Store(u8),
    /// There is nothing in the range: the leg's data are being cleared.
    ClearData(u8),
    /// Nor in the group: the leg's tuples are being cleared.
    ClearTuples(u8),
}

/// A job's repair.
#[derive(Debug)]
pub(super) struct Repair {
    phase: Phase,
    /// The sectors of the group that are bad on some leg.
    bad: Vec<usize>,
}

impl Repair {
    /// Returns what is done below, and to which leg.
    pub(super) const fn transfer(&self) -> (Op, Option<u8>) {
        match self.phase {
            Phase::Compare(leg) => (Op::Read, Some(leg)),
            Phase::Fetch => (Op::Read, None),
            Phase::Store(leg) | Phase::ClearData(leg) | Phase::ClearTuples(leg) => {
                (Op::Write, Some(leg))
            }
        }
    }
}

impl<D: BlockDevice> Queue<D> {
    /// Begins a repair of claimed sectors. Returns whether to proceed.
    pub(super) fn begin_repair(&mut self, key: usize) -> bool {
        let job = &mut self.jobs[key];
        let (way, sectors) = (job.way(), job.sectors);
        let cache = &self.volume.cache;
        let mut range = sectors.first..sectors.first + sectors.count;
        let is_unwritten = range.all(|sector| cache.tuple(way, sector) == [0, 0]);
        let phase = match job.bio.leg {
            None => Phase::Compare(0),
            Some(leg) if is_unwritten => Phase::ClearData(leg),
            Some(_) => Phase::Fetch,
        };
        job.repair = Some(Box::new(Repair { phase, bad: Vec::new() }));
        if matches!(phase, Phase::ClearData(_)) {
            self.clear_leg(key, Op::Discard);
            return false;
        }
        job.step = Step::Data;
        true
    }

    /// Goes on when the range was read or written.
    pub(super) fn repair_moved(&mut self, key: usize, result: Result<(), Error>) {
        let legs = u8::try_from(self.device.legs()).expect("a mirror has few legs");
        let phase = self.repair(key).phase;
        self.jobs[key].done = 0;
        let mut bad = match result {
            Ok(()) if matches!(phase, Phase::Store(_)) => Vec::new(),
            Ok(()) => self.mismatches(key).into_iter().map(|(sector, _)| sector).collect(),
            // There is no such leg now.
            Err(Error::Unsupported) if matches!(phase, Phase::Compare(_)) => Vec::new(),
            Err(error @ (Error::Unsupported | Error::Range { .. })) => {
                return self.finish(key, Err(error));
            }
            Err(error) if matches!(phase, Phase::Store(_)) => return self.finish(key, Err(error)),
            Err(_) => self.all_sectors(key),
        };
        let repair = self.repair(key);
        repair.bad.append(&mut bad);
        match phase {
            Phase::Compare(leg) if leg + 1 < legs => {
                repair.phase = Phase::Compare(leg + 1);
                self.send_data(key);
            }
            Phase::Store(_) => {
                self.volume.cache.mark_dirty(self.jobs[key].way());
                self.finish(key, Ok(()));
            }
            _ => {
                repair.bad.sort_unstable();
                repair.bad.dedup();
                let bad = std::mem::take(&mut repair.bad);
                if bad.is_empty() {
                    self.repair_healed(key, Ok(()));
                } else {
                    self.heal(key, Purpose::Repair, bad);
                }
            }
        }
    }

    /// Goes on after all was healed that can be.
    pub(super) fn repair_healed(&mut self, key: usize, result: Result<(), Error>) {
        let leg = self.jobs[key].bio.leg;
        let repair = self.repair(key);
        match leg {
            None => self.finish(key, result),
            Some(leg) => {
                repair.phase = Phase::Store(leg);
                self.send_data(key);
            }
        }
    }

    fn repair(&mut self, key: usize) -> &mut Repair {
        self.jobs[key].repair.as_mut().expect("the job is a repair")
    }

    /// Lets the leg have zeros where there is nothing, in this way.
    fn clear_leg(&mut self, key: usize, op: Op) {
        let geometry = *self.volume.geometry();
        let (phase, job) = (self.repair(key).phase, &mut self.jobs[key]);
        job.step = Step::Below;
        let (at, len) = match phase {
            Phase::ClearTuples(_) => (geometry.tuples_at(job.group), to_u64(TUPLE_BLOCK)),
            _ => (geometry.data_at(job.bio.offset), job.bio.len),
        };
        let memory = if op == Op::Write {
            let mut memory = std::mem::take(&mut job.bio.memory);
            let buffer = memory.buffer_mut().expect("`check` saw a buffer");
            buffer.as_mut_slice()[..to_usize(len)].fill(0);
            memory
        } else {
            Memory::None
        };
        let mut bio = Bio::new(op, at, len, memory);
        bio.leg = job.bio.leg;
        let token = Token { part: Part::Clear, job: key, way: None };
        self.send_bio(bio.with_user(token.encode()));
    }

    /// Goes on when a leg was cleared, or could not be in that way.
    pub(super) fn leg_cleared(&mut self, key: usize, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let Ended { bio, result } = ended;
        if bio.op == Op::Write {
            self.jobs[key].bio.memory = bio.memory;
        }
        match (result, bio.op) {
            (Err(Error::Unsupported), Op::Discard) => {
                return self.clear_leg(key, Op::Zero { keep: true, fast: false });
            }
            (Err(Error::Unsupported), Op::Zero { .. }) => return self.clear_leg(key, Op::Write),
            (Err(error), _) => return self.finish(key, Err(error)),
            (Ok(_), _) => {}
        }
        let way = self.jobs[key].way();
        let phase = self.repair(key).phase;
        match phase {
            // Nobody writes to the group, all of which is claimed, and nobody has: its tuples need
            // not be stored on the other legs.
            Phase::ClearData(leg) if self.volume.cache.is_fresh(way) => {
                self.repair(key).phase = Phase::ClearTuples(leg);
                self.clear_leg(key, Op::Discard);
            }
            Phase::ClearData(_) => {
                self.volume.cache.mark_dirty(way);
                self.finish(key, Ok(()));
            }
            _ => self.finish(key, Ok(())),
        }
    }
}
