//! A request while it is in flight.

use std::ops::Range;

use holdfast_iov::{IovIter, Memory};
use holdfast_units::{BlockSize, to_usize};

use super::pad::Pad;
use crate::{Direction, Error, Extents, How, IoendKind, Purpose, Request};

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for another write to the same blocks.
    Blocked,
    /// Zeros are written from the end of the file on.
    Gap,
    /// The data are moved, or zeros are written that somebody asked for.
    Data,
    /// The device is flushed.
    Flush,
}

/// A range that was submitted, and what the file system must do when it has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) kind: IoendKind,
}

/// What a bio is to its flight.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Data,
    Pad(Pad),
    Flush,
}

/// A bio, by its number.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) flight: usize,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) struct Flight<F, E> {
    pub(super) request: Request<F>,
    pub(super) stage: Stage,
    pub(super) block: BlockSize,
    /// What offsets and lengths of bios are multiples of.
    pub(super) unit: BlockSize,
    /// The size of the file when the request began.
    pub(super) size: u64,
    /// How many bytes the request moves unless it fails.
    pub(super) total: u64,
    pub(super) extents: Extents,
    /// What of the memory is not yet in a bio, once it was cut.
    rest: Option<IovIter>,
    /// What must be sent before anything else.
    pub(super) pad: Option<Pad>,
    /// There was something to pad, so that the request is not one bio.
    pub(super) padded: bool,
    /// The blocks that are written to, also those that are filled in.
    claim: Range<u64>,
    pub(super) in_flight: usize,
    /// Data or the memory's zeros, in bytes from the request's start on.
    pub(super) done: u64,
    /// The one bio was durable when it ended.
    pub(super) durable: bool,
    /// Nothing is left to submit in this stage.
    pub(super) submitted: bool,
    pub(super) drained: bool,
    pub(super) error: Option<Error<E>>,
    pub(super) runs: Vec<Run>,
}

impl<F: Copy + Ord, E> Flight<F, E> {
    pub(super) fn new(request: Request<F>, runs: Vec<Run>) -> Self {
        Self {
            request,
            stage: Stage::Blocked,
            block: BlockSize::SECTOR,
            unit: BlockSize::SECTOR,
            size: 0,
            total: 0,
            extents: Extents::new(0, 0, How::new(Purpose::Read)),
            rest: None,
            pad: None,
            padded: false,
            claim: 0..0,
            in_flight: 0,
            done: 0,
            durable: false,
            submitted: false,
            drained: false,
            error: None,
            runs,
        }
    }

    /// Looks at how long the file is now, and says what is to be done first.
    pub(super) fn begin(&mut self, size: u64) {
        self.size = size;
        let request = &self.request;
        if !request.is_write() {
            let in_file = size.saturating_sub(request.offset);
            let in_file = self.unit.align_up(in_file).unwrap_or(in_file);
            self.total = self.total.min(in_file);
        } else if request.direction == Direction::Write && self.total > 0 && request.offset > size {
            self.stage = Stage::Gap;
            let how = How { purpose: Purpose::Zero, ..self.how() };
            self.extents = Extents::new(size, request.offset - size, how);
            return;
        }
        self.begin_data();
    }

    /// Begins to move the data.
    pub(super) fn begin_data(&mut self) {
        self.stage = Stage::Data;
        self.submitted = false;
        self.drained = false;
        self.padded = false;
        self.runs.clear();
        self.extents = Extents::new(self.request.offset, self.total, self.how());
    }

    const fn how(&self) -> How {
        let purpose = match self.request.direction {
            Direction::Read => Purpose::Read,
            Direction::Write => Purpose::Write,
            Direction::Zero => Purpose::Zero,
        };
        let flags = &self.request.flags;
        How { purpose, nowait: flags.nowait, atomic: flags.atomic }
    }

    /// Says which blocks the request writes to, in a file that is `size` bytes long now.
    pub(super) fn claim(&mut self, size: u64) {
        let end = self.request.offset + self.total;
        let first = self.request.offset.min(size);
        self.claim = self.block.align_down(first)..self.block.align_up(end).unwrap_or(u64::MAX);
    }

    /// Returns whether both write to one block.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        self.request.file == other.request.file
            && self.claim.start < other.claim.end
            && other.claim.start < self.claim.end
    }

    /// Returns whether zeros are written, and not the memory's bytes.
    pub(super) fn only_zeroes(&self) -> bool {
        self.stage == Stage::Gap || self.request.direction == Direction::Zero
    }

    /// Returns whether one bio of `len` bytes would be all of the request.
    pub(super) const fn is_whole(&self, len: u64) -> bool {
        self.done == 0 && len == self.total
    }

    /// Takes the next `len` bytes off the memory, as segments.
    pub(super) fn take_memory(&mut self, len: u64) -> IovIter {
        self.rest().split_to(to_usize(len))
    }

    /// Returns what of the memory is not yet in a bio.
    pub(super) fn rest(&mut self) -> &mut IovIter {
        let (memory, start) = (&mut self.request.memory, self.request.start);
        self.rest.get_or_insert_with(|| {
            let mut iter = match std::mem::take(memory) {
                Memory::Buffer(buffer) => IovIter::of_buffer(buffer),
                Memory::Shared(buffer) => IovIter::of_shared(buffer),
                Memory::Iov(iter) => {
                    let rest = iter.clone();
                    *memory = Memory::Iov(iter);
                    return rest;
                }
                Memory::None => unreachable!("a request without memory moves nothing"),
            };
            iter.advance(start);
            iter
        })
    }

    /// Gives the memory back to the request, when no bio has a part of it any more.
    pub(super) fn restore_memory(&mut self) {
        if let (Some(rest), Memory::None) = (self.rest.take(), &self.request.memory) {
            self.request.memory = rest.into_memory();
        }
    }

    /// Stores zeros in the memory from byte `from` of the request on, as far as it was to be read.
    pub(super) fn zero_memory(&mut self, from: u64) {
        let start = self.request.start;
        let (from, len) = (to_usize(from), to_usize(self.request.len));
        match &mut self.request.memory {
            Memory::Buffer(buffer) => {
                let end = start.saturating_add(len).min(buffer.len());
                if let Some(behind) = buffer.as_mut_slice().get_mut(start + from..end) {
                    behind.fill(0);
                }
            }
            Memory::Iov(iter) if from < len.min(iter.count()) => {
                let mut behind = iter.clone();
                behind.advance(from);
                behind.zero(len - from);
            }
            Memory::None | Memory::Shared(_) | Memory::Iov(_) => {}
        }
    }

    /// Notes that a range has been submitted.
    pub(super) fn push_run(&mut self, offset: u64, len: u64, kind: IoendKind) {
        match self.runs.last_mut() {
            Some(last) if last.kind == kind && last.offset + last.len == offset => last.len += len,
            _ => self.runs.push(Run { offset, len, kind }),
        }
    }

    /// Fails the request, unless it has already.
    pub(super) fn fail(&mut self, error: impl Into<Error<E>>) {
        if self.error.is_none() {
            self.error = Some(error.into());
        }
    }
}
