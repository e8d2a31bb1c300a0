//! A bio on its way through the volume.

use holdfast_bio::{Bio, Error, Op};
use holdfast_iov::Memory;
use holdfast_units::{BlockSize, to_u64, to_usize};

use crate::cache::Way;
use crate::claims::{Mode, Sectors};
use crate::geometry::Geometry;
use crate::log::Position;
use crate::queue::flush::Lead;
use crate::queue::heal::Heal;
use crate::queue::repair::Repair;
use crate::queue::settle::Settling;

#[derive(Debug)]
pub(super) struct Job {
    /// The submitter's bio. Its memory is below while data are moved.
    pub(super) bio: Bio,
    pub(super) group: u64,
    /// The sectors of the group that the range touches.
    pub(super) sectors: Sectors,
    pub(super) place: Place,
    pub(super) step: Step,
    /// How much of the whole sectors' data is moved, in bytes.
    pub(super) done: u64,
    /// The edge that is being read.
    pub(super) edge: Edge,
    /// The guards of what is being written, where the memory has no room for them.
    pub(super) guards: Vec<u64>,
    /// A write that failed, and is repeated a sector at a time.
    pub(super) narrow: Option<Narrow>,
    /// Why the range could not be made zeros, while it is discarded instead.
    pub(super) zero_error: Option<Error>,
    /// How far it is with what it could not write.
    pub(super) settling: Option<Settling>,
    /// The region that it has entered.
    pub(super) region: Option<usize>,
    /// Its record in the tuple log.
    pub(super) record: Option<Position>,
    /// How often tuples could not be stored to make room, in the cache or in the log.
    pub(super) room_failures: u8,
    /// The legs of a mirror that could not be read, though another could.
    pub(super) unread_legs: u8,
    /// What of it is bad on a leg of a mirror, while that is healed.
    pub(super) heal: Option<Box<Heal>>,
    /// How far a repair of a mirror is.
    pub(super) repair: Option<Box<Repair>>,
    /// Nobody submitted it: a flush for this.
    pub(super) internal: Option<Internal>,
}

/// What a flush is for that nobody submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Internal {
    /// Room in the tuple log.
    Room,
    /// The data journal.
    Stage,
    /// What records are about to be written of.
    Records,
}

/// A write of several sectors that failed. The device may have stored any of them, and does not say
/// which; written one by one, each is stored or is not.
#[derive(Debug)]
pub(super) struct Narrow {
    /// Why it failed first.
    pub(super) error: Error,
    /// The sectors that could not be written alone either, counted from the first.
    pub(super) failed: Vec<usize>,
}

/// What a job holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Nowhere,
    Pinned(Way),
    Claimed(Way, Mode),
}

/// What a job does next.
#[derive(Debug)]
pub(super) enum Step {
    /// Pin the tuples of its group.
    Pin,
    /// Read them into this way.
    Fill(Way),
    /// Write those of another group back, which this way holds.
    WriteBack(Way),
    /// Claim its sectors.
    Claim,
    /// Begin what it is for.
    Act,
    /// Read, judge and write what is bad on a leg of a mirror.
    Heal,
    /// Read a sector of which only a part is written.
    Edge(Edge),
    /// Say in the log what its tuples will be.
    Log,
    /// Wait until that is durable.
    Commit,
    /// Move its data.
    Data,
    /// Wait for the device.
    Below,
    /// Wait for the device to clear what a write that failed may have left, and go on with the
    /// range's sector `next`.
    Mend { error: Error, next: usize },
    /// Read a sector that could not be written, to see what it has.
    Settle,
    /// Lead a flush.
    Lead(Lead),
    /// Wait for the flush that another leads.
    Follow,
}

/// A sector of which only a part is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    Head,
    Tail,
}

impl Job {
    pub(super) fn new(bio: Bio, geometry: &Geometry) -> Self {
        let (group, sectors) = geometry.sectors_of(bio.offset, bio.len);
        Self {
            group,
            sectors,
            place: Place::Nowhere,
            step: Step::Pin,
            done: 0,
            edge: Edge::Head,
            guards: Vec::new(),
            narrow: None,
            zero_error: None,
            settling: None,
            region: None,
            record: None,
            room_failures: 0,
            unread_legs: 0,
            heal: None,
            repair: None,
            internal: None,
            bio,
        }
    }

    /// Returns how the job claims its sectors.
    pub(super) const fn mode(&self) -> Mode {
        match self.bio.op {
            Op::Read | Op::Map | Op::Repair => Mode::Shared,
            _ => Mode::Exclusive,
        }
    }

    /// Returns the sectors that the job claims: those of its range, or of the whole group when all of
    /// it must stay as it is.
    pub(super) fn sectors_to_claim(&self, geometry: &Geometry) -> Sectors {
        if self.bio.op == Op::Repair && self.bio.leg.is_some() {
            return Sectors { first: 0, count: geometry.sectors_of_group() };
        }
        self.sectors
    }

    /// Goes on after an error of a write, a sector at a time. `Err` when there was only one.
    pub(super) fn narrow_down(&mut self, error: Error, sector: BlockSize) -> Result<(), Error> {
        if self.sectors.count == 1 {
            return Err(error);
        }
        let index = to_usize(sector.count(self.done));
        match &mut self.narrow {
            None => {
                self.narrow = Some(Narrow { error, failed: Vec::new() });
                self.done = sector.align_down(self.done);
            }
            Some(narrow) => {
                narrow.failed.push(index);
                self.done = to_u64((index + 1) * sector.len());
            }
        }
        Ok(())
    }

    /// Returns whether the range's sector `index` has been written.
    pub(super) fn is_stored(&self, index: usize, sector: BlockSize) -> bool {
        let passed = index < to_usize(sector.count(self.done));
        passed && !self.narrow.as_ref().is_some_and(|narrow| narrow.failed.contains(&index))
    }

    /// Returns why a part of the range could not be written, though the rest was.
    pub(super) fn first_failure(&self) -> Result<(), Error> {
        match &self.narrow {
            Some(narrow) if !narrow.failed.is_empty() => Err(narrow.error),
            _ => Ok(()),
        }
    }

    /// Returns the guards of what is being written, for at least so many sectors as there are.
    pub(super) fn new_guards(&self) -> &[u64] {
        match &self.bio.memory {
            Memory::Buffer(buffer) => buffer.guards(),
            Memory::Iov(_) | Memory::Shared(_) | Memory::None => &self.guards,
        }
    }

    /// Returns the way whose sectors are claimed.
    pub(super) fn way(&self) -> Way {
        match self.place {
            Place::Claimed(way, _) => way,
            Place::Pinned(_) | Place::Nowhere => unreachable!("the job has claimed its sectors"),
        }
    }

    /// Returns where in its sector the range begins, in bytes.
    pub(super) fn head(&self, sector: BlockSize) -> usize {
        to_usize(sector.offset_in(self.bio.offset))
    }

    /// Returns where in its sector the range ends, in bytes; 0 at the end of the sector.
    pub(super) fn tail(&self, sector: BlockSize) -> usize {
        to_usize(sector.offset_in(self.bio.offset + self.bio.len))
    }

    /// Returns whether the sector at this edge is written only in part. A single sector with two
    /// edges is taken care of as the head.
    pub(super) fn has_edge(&self, edge: Edge, sector: BlockSize) -> bool {
        let single = self.sectors.count == 1;
        match edge {
            Edge::Head => self.head(sector) != 0 || (single && self.tail(sector) != 0),
            Edge::Tail => !single && self.tail(sector) != 0,
        }
    }

    /// Returns the place in the group of the sector at this edge.
    pub(super) const fn edge_sector(&self, edge: Edge) -> usize {
        match edge {
            Edge::Head => self.sectors.first,
            Edge::Tail => self.sectors.first + self.sectors.count - 1,
        }
    }

    /// Returns the offset of the sector at this edge, in bytes of the volume.
    pub(super) fn edge_offset(&self, edge: Edge, sector: BlockSize) -> u64 {
        match edge {
            Edge::Head => sector.align_down(self.bio.offset),
            Edge::Tail => sector.align_down(self.bio.offset + self.bio.len),
        }
    }

    /// Puts what is not written of the sector at this edge into the memory.
    pub(super) fn merge_edge(&mut self, edge: Edge, sector: BlockSize, stored: &[u8]) {
        let (head, tail) = (self.head(sector), self.tail(sector));
        let (single, last) = (self.sectors.count == 1, self.sectors.count - 1);
        let Memory::Buffer(buffer) = &mut self.bio.memory else {
            unreachable!("memory without room for whole sectors has no edges");
        };
        let at = if edge == Edge::Head { 0 } else { last * sector.len() };
        let target = &mut buffer.as_mut_slice()[at..][..sector.len()];
        if edge == Edge::Head {
            target[..head].copy_from_slice(&stored[..head]);
        }
        if tail != 0 && (edge == Edge::Tail || single) {
            target[tail..].copy_from_slice(&stored[tail..sector.len()]);
        }
    }
}

/// What a bio below is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) part: Part,
    pub(super) job: usize,
    pub(super) way: Option<Way>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Fill,
    WriteBack,
    Edge,
    Reserve,
    Intents,
    Log,
    Data,
    Mend,
    Heal,
    Settle,
    Clear,
    Zero,
    FlushTuples,
    FlushSuperblock,
    FlushDevice,
    Batch,
    SegmentRecords,
    Sectors,
}

impl Part {
    const ALL: [Self; 18] = [
        Self::Fill,
        Self::WriteBack,
        Self::Edge,
        Self::Reserve,
        Self::Intents,
        Self::Log,
        Self::Data,
        Self::Mend,
        Self::Heal,
        Self::Settle,
        Self::Clear,
        Self::Zero,
        Self::FlushTuples,
        Self::FlushSuperblock,
        Self::FlushDevice,
        Self::Batch,
        Self::SegmentRecords,
        Self::Sectors,
    ];
}

impl Token {
    const JOB_BITS: u32 = 24;
    const WAY_BITS: u32 = 35;

    /// Puts the token into a bio's number: 5 bits of part, 24 of job, 35 of way and one.
    pub(super) fn encode(self) -> u64 {
        let part = self.part as u64;
        let job = self.job as u64;
        let way = self.way.map_or(0, |way| way.index() as u64 + 1);
        debug_assert!(job < 1 << Self::JOB_BITS && way < 1 << Self::WAY_BITS);
        part << (Self::JOB_BITS + Self::WAY_BITS) | job << Self::WAY_BITS | way
    }

    pub(super) fn decode(number: u64) -> Self {
        let part = to_usize(number >> (Self::JOB_BITS + Self::WAY_BITS));
        let job = to_usize(number >> Self::WAY_BITS & ((1 << Self::JOB_BITS) - 1));
        let way = to_usize(number & ((1 << Self::WAY_BITS) - 1));
        Self { part: Part::ALL[part], job, way: way.checked_sub(1).map(Way::at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_number() {
        for part in Part::ALL {
            for way in [None, Some(Way::at(0)), Some(Way::at(1 << 30))] {
                let token = Token { part, job: (1 << 24) - 1, way };
                assert_eq!(Token::decode(token.encode()), token);
            }
        }
    }
}
