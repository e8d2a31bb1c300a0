//! What a disk may hold: for each block, the writes of which one must be there.
//!
//! The disk is a set of registers, one a block. A request takes effect at some moment between its
//! begin and its end. So a read may find what a write left that
//!
//! - began before the read ended, and
//! - was not followed by another that began after it had ended, and had its effect before the
//!   read began.
//!
//! A write has had its effect when it has ended, or when a read that found it has. Whatever else is
//! found is wrong: a lost write shows as an older one, and so does one that was done again after it
//! had been answered. Nothing here does I/O or knows threads: the one who calls is the clock.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use crate::content::{Found, Origin};

/// When something happened: the number of an event. No two events have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// Before everything.
    const START: Self = Self(0);
    /// Not yet.
    pub(crate) const NEVER: Self = Self(u64::MAX);

    /// Returns the moment of an event.
    pub const fn of_number(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number of the event.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a write leaves in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Zeros.
    Zeros,
    /// What its words say.
    Data(Origin),
    /// Whatever its memory held, which nobody knows.
    Anything,
}

impl Stored {
    fn is(self, found: &Found) -> bool {
        match (self, found) {
            (Self::Zeros, Found::Zeros) | (Self::Anything, _) => true,
            (Self::Data(origin), Found::Whole(found)) => origin == *found,
            _ => false,
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("zeros"),
            Self::Data(origin) => origin.fmt(f),
            Self::Anything => f.write_str("anything"),
        }
    }
}

/// A write that may be what a block holds.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    stored: Stored,
    begun: Moment,
    /// When it was answered: later it has no effect.
    ended: Moment,
    /// When it has had its effect at the latest; never, as long as that is not sure.
    done: Moment,
}

/// What must have been there, and what was.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    block: u64,
    found: Found,
    right: Vec<Stored>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} has {}, and not ", self.block, self.found)?;
        for (index, right) in self.right.iter().enumerate() {
            write!(f, "{}{right}", if index > 0 { " or " } else { "" })?;
        }
        Ok(())
    }
}

/// How a request that writes has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It was done.
    Sure,
    /// It failed: each of its blocks is the old or the new.
    Unsure,
}

/// What a disk may hold.
#[derive(Debug)]
pub(crate) struct Model {
    blocks: Vec<Vec<Candidate>>,
    clock: u64,
    /// When the requests in flight began.
    in_flight: BTreeSet<Moment>,
}

impl Model {
    /// Returns the model of a disk of zeros.
    pub(crate) fn new(blocks: usize) -> Self {
        let zeros = Candidate {
            stored: Stored::Zeros,
            begun: Moment::START,
            ended: Moment::START,
            done: Moment::START,
        };
        Self { blocks: vec![vec![zeros]; blocks], clock: 0, in_flight: BTreeSet::new() }
    }

    /// Returns the moment of an event that happens now.
    pub(crate) const fn tick(&mut self) -> Moment {
        self.clock += 1;
        Moment(self.clock)
    }

    /// Returns how many events there were.
    pub(crate) const fn events(&self) -> u64 {
        self.clock
    }

    /// Says that a request begins. The moment is its name.
    pub(crate) fn begin(&mut self) -> Moment {
        let begun = self.tick();
        self.in_flight.insert(begun);
        begun
    }

    /// Says what a request that has begun writes to a block.
    pub(crate) fn write(&mut self, begun: Moment, block: u64, stored: Stored) {
        let candidate = Candidate { stored, begun, ended: Moment::NEVER, done: Moment::NEVER };
        self.block(block).push(candidate);
    }

    /// Returns the moment before which nobody in flight began, and nobody who comes will.
    pub(crate) fn oldest(&self) -> Moment {
        self.in_flight.first().copied().unwrap_or(Moment(self.clock + 1))
    }

    /// Says that a request is answered, which was to change these blocks.
    pub(crate) fn end(
        &mut self,
        begun: Moment,
        changed: impl Iterator<Item = Range<u64>>,
        effect: Effect,
    ) {
        let now = self.tick();
        let was_in_flight = self.in_flight.remove(&begun);
        debug_assert!(was_in_flight, "a request ends once");
        let oldest = self.oldest();
        for block in changed.flatten() {
            let candidates = self.block(block);
            if let Some(own) = candidates.iter_mut().find(|own| own.begun == begun) {
                own.ended = now;
                if effect == Effect::Sure {
                    own.done = own.done.min(now);
                }
            }
            prune(candidates, oldest);
        }
    }

    /// Judges what a read that began at `begun` has found in a block, before its end.
    pub(crate) fn check(&mut self, begun: Moment, block: u64, found: Found) -> Result<(), Fault> {
        let now = Moment(self.clock + 1);
        let candidates = self.block(block);
        let is_right = |candidate: &Candidate, all: &[Candidate]| {
            candidate.stored.is(&found) && !is_followed(candidate, all, begun)
        };
        let mut right = (0..candidates.len()).filter(|&at| is_right(&candidates[at], candidates));
        match (right.next(), right.next()) {
            // Just this one can have been read: so it has had its effect.
            (Some(only), None) => {
                let seen = &mut candidates[only];
                seen.done = seen.done.min(now);
                Ok(())
            }
            (Some(_), Some(_)) => Ok(()),
            (None, _) => {
                let right = candidates.iter().filter(|one| !is_followed(one, candidates, begun));
                Err(Fault { block, found, right: right.map(|one| one.stored).collect() })
            }
        }
    }

    /// Returns whether a read that began at `begun` may find this in a block. Where it may, nothing is
    /// concluded from it.
    pub(crate) fn allows(&self, begun: Moment, block: u64, found: Found) -> bool {
        let all = &self.blocks[holdfast_units::to_usize(block)];
        all.iter().any(|one| one.stored.is(&found) && !is_followed(one, all, begun))
    }

    /// Returns whether a block holds data and nothing else, whichever request they are from.
    pub(crate) fn is_data(&self, block: u64) -> bool {
        let candidates = &self.blocks[holdfast_units::to_usize(block)];
        candidates.iter().all(|one| matches!(one.stored, Stored::Data(_)))
    }

    /// Returns whether a write to a block is in flight.
    pub(crate) fn is_written_now(&self, block: u64) -> bool {
        let candidates = &self.blocks[holdfast_units::to_usize(block)];
        candidates.iter().any(|one| one.ended == Moment::NEVER)
    }

    fn block(&mut self, block: u64) -> &mut Vec<Candidate> {
        &mut self.blocks[holdfast_units::to_usize(block)]
    }
}

/// Returns whether another write has replaced this one for whoever begins at `begun`.
fn is_followed(this: &Candidate, all: &[Candidate], begun: Moment) -> bool {
    all.iter().any(|later| this.ended < later.begun && later.done < begun)
}

/// Removes what nobody can read who began at `oldest` or later.
fn prune(candidates: &mut Vec<Candidate>, oldest: Moment) {
    let mut at = 0;
    while at < candidates.len() {
        // One that followed is itself only removed for another that followed it.
        if is_followed(&candidates[at], candidates, oldest) {
            candidates.swap_remove(at);
        } else {
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests;
