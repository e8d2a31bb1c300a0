//! What a file system answers: where a range of a file is.

use std::error::Error as StdError;
use std::fmt::Debug;

use holdfast_units::{BlockSize, to_u64};

use crate::{Error, Ioend, MappingFault};

/// Where the bytes of a mapping are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nowhere: they read as zeros.
    Hole,
    /// In somebody's cache, and space is reserved for them. Direct I/O cannot reach them.
    Delayed,
    /// On the device.
    Mapped {
        /// Where the mapping begins on the device, in bytes.
        address: u64,
    },
    /// Nowhere, but with a place on the device. They read as zeros until they are written.
    Unwritten {
        /// Where the mapping begins on the device, in bytes.
        address: u64,
    },
    /// With the metadata of the file. What the mapping is longer than these bytes reads as zeros.
    Inline(Box<[u8]>),
}

impl Kind {
    /// Returns where the bytes have their place on the device, or `None` when they have none.
    pub const fn address(&self) -> Option<u64> {
        match self {
            Self::Mapped { address } | Self::Unwritten { address } => Some(*address),
            Self::Hole | Self::Delayed | Self::Inline(_) => None,
        }
    }
}

/// A range of a file that is all of one kind and in one place.
///
/// Unless it is inline it begins and ends at blocks of the file system. It may be longer than what
/// was asked for, or shorter, but has the first byte of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// Where the bytes are.
    pub kind: Kind,
    /// The space was allocated for this write, so what is on the device means nothing. Until the
    /// ioend of the write nobody may read it there, and never if that is an error.
    pub new: bool,
    /// The write goes to a new place, since others share the old one. The ioend puts it in place of the
    /// old one.
    pub shared: bool,
    /// Of a shared mapping: the old place, in bytes of the device, for what of a block is not written.
    /// `None` when that was zeros.
    pub source: Option<u64>,
}

impl Mapping {
    /// Returns a mapping that is neither new nor shared.
    pub const fn new(offset: u64, len: u64, kind: Kind) -> Self {
        Self { offset, len, kind, new: false, shared: false, source: None }
    }

    /// Returns where byte `at` of the file is on the device, or `None` when it has no place there.
    pub const fn address_of(&self, at: u64) -> Option<u64> {
        match self.kind.address() {
            Some(address) => Some(address + (at - self.offset)),
            None => None,
        }
    }

    /// Returns whether what a write leaves of a block must be filled in.
    pub(crate) const fn is_fresh(&self) -> bool {
        self.new || self.shared || matches!(self.kind, Kind::Unwritten { .. })
    }

    /// Checks what could end in an endless loop or in the wrong place.
    fn check(&self, at: u64, block: BlockSize) -> Result<(), MappingFault> {
        let end = self.offset.checked_add(self.len).ok_or(MappingFault::Elsewhere)?;
        if at < self.offset || at >= end {
            return Err(MappingFault::Elsewhere);
        }
        if let Kind::Inline(bytes) = &self.kind {
            let len = to_u64(bytes.len());
            let fits = len <= self.len && self.len <= block.bytes();
            return if fits { Ok(()) } else { Err(MappingFault::Inline) };
        }
        if !block.is_aligned(self.offset) || !block.is_aligned(self.len) {
            return Err(MappingFault::NotBlocks);
        }
        let wraps = |address: u64| address.checked_add(self.len).is_none();
        if self.kind.address().is_some_and(wraps) || self.source.is_some_and(wraps) {
            return Err(MappingFault::OutsideDevice);
        }
        Ok(())
    }
}

/// What a mapping is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To read.
    Read,
    /// To write: holes get space, and what is shared gets a place of its own.
    Write,
    /// To write zeros to what is mapped. Holes and unwritten ranges stay as they are.
    Zero,
    /// To tell it to somebody.
    Report,
}

/// How a mapping is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// What for.
    pub purpose: Purpose,
    /// Say [`Error::Again`] rather than wait for I/O or for somebody else.
    pub nowait: bool,
    /// All of the range is to be written by one bio.
    pub atomic: bool,
}

impl How {
    /// Returns how a mapping is wanted by somebody who can wait.
    pub const fn new(purpose: Purpose) -> Self {
        Self { purpose, nowait: false, atomic: false }
    }
}

/// A file system, as far as the data of its files are concerned.
///
/// It is asked by [`DirectIo`](crate::DirectIo), which lies below it: so each call has the file system
/// as an argument, and nothing below keeps it. What it answers should come from memory; an answer for
/// which metadata must be read blocks the queue, unless `nowait` forbids it.
///
/// Requests of one `DirectIo` that write to the same block are carried out one after the other. Who
/// writes to one file through several, or truncates it, must keep these apart himself.
pub trait Mapper {
    /// What a file is called: its number, or a handle.
    type File: Copy + Ord + Debug;
    /// Why the file system failed.
    type Error: StdError + Clone + 'static;

    /// Returns the size of the blocks in which the file has its space.
    fn block(&self, file: Self::File) -> BlockSize;

    /// Returns the size of the file in bytes.
    fn size(&self, file: Self::File) -> u64;

    /// Returns the mapping that has byte `offset` of the file. The `len` bytes from there are what is
    /// wanted, and more than 0. For a write the answer is never a hole.
    ///
    /// # Errors
    ///
    /// [`Error::Again`] when the answer would take time and `how` forbids it; whatever else hinders.
    fn begin(
        &mut self,
        file: Self::File,
        offset: u64,
        len: u64,
        how: How,
    ) -> Result<Mapping, Error<Self::Error>>;

    /// Learns that `done` bytes of what was asked for have been submitted, and that nothing more will
    /// be by this answer. Called once for each answer of [`begin`](Self::begin); the bytes may still
    /// be in flight.
    ///
    /// # Errors
    ///
    /// Whatever hinders. The request then fails.
    fn end(
        &mut self,
        file: Self::File,
        mapping: &Mapping,
        done: u64,
        how: How,
    ) -> Result<(), Error<Self::Error>> {
        let _unused = (file, mapping, done, how);
        Ok(())
    }

    /// Stores bytes with the metadata of the file, where a mapping for a write was inline, and makes
    /// the file at least as long as they reach.
    ///
    /// # Errors
    ///
    /// Whatever hinders; that it is not supported, unless the file system says otherwise.
    fn store_inline(
        &mut self,
        file: Self::File,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Error<Self::Error>> {
        let _unused = (file, offset, bytes);
        Err(Error::Bio(holdfast_bio::Error::Unsupported))
    }

    /// Learns that I/O has ended. Every byte that was submitted is told once, whatever became of it.
    ///
    /// After a write that succeeded the file system converts unwritten blocks that the range touches,
    /// puts new and shared ones in their place, and makes the file as long as [`Ioend::size`] says:
    /// together, so that no crash finds one without the other. Its own record of this must not become
    /// durable before the data are: for a durable write they are, for all others after the next flush of
    /// the device.
    ///
    /// # Errors
    ///
    /// Whatever hinders. The requests whose data these were then fail.
    fn complete(
        &mut self,
        ioend: &Ioend<Self::File, Self::Error>,
    ) -> Result<(), Error<Self::Error>>;

    /// Makes durable what must be found after a crash to read what was written to the file. The data of
    /// that write are durable. Those of other writes, which [`complete`](Self::complete) told of, too,
    /// may not be: if their records become durable along with it, the device is flushed first.
    ///
    /// # Errors
    ///
    /// Whatever hinders. The write then fails.
    fn commit(&mut self, file: Self::File) -> Result<(), Error<Self::Error>>;
}

/// Asks a file system for a range, one mapping after the other: the extent iterator.
///
/// Whoever uses it calls [`next`](Self::next) for a mapping, [`advance`](Self::advance) for what was
/// done with it, and so on until there is none.
#[derive(Debug)]
pub struct Extents {
    at: u64,
    end: u64,
    how: How,
    /// The mapping, and where in the file it was begun with.
    current: Option<(Mapping, u64)>,
}

impl Extents {
    /// Returns an iterator over the `len` bytes at `offset`, cut off at 2^64.
    pub const fn new(offset: u64, len: u64, how: How) -> Self {
        Self { at: offset, end: offset.saturating_add(len), how, current: None }
    }

    /// Returns the byte of the file that is next.
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Returns the mapping that has the next byte.
    pub fn current(&self) -> Option<&Mapping> {
        self.current.as_ref().map(|(mapping, _)| mapping)
    }

    /// Returns how many bytes of the range are left in the current mapping.
    pub fn left(&self) -> u64 {
        self.current().map_or(0, |mapping| (mapping.offset + mapping.len).min(self.end) - self.at)
    }

    /// Says that the next `bytes` bytes have been dealt with.
    ///
    /// # Panics
    ///
    /// When fewer are [left](Self::left).
    pub fn advance(&mut self, bytes: u64) {
        assert!(bytes <= self.left(), "{bytes} bytes forward of {} that are left", self.left());
        self.at += bytes;
    }

    /// Goes on to the mapping that has the next byte. `None` at the end of the range, and when the
    /// current mapping was not used up, which means to stop.
    ///
    /// # Errors
    ///
    /// [`Error::Mapping`] for an answer that cannot be used, and whatever the file system says.
    pub fn next<M: Mapper>(
        &mut self,
        mapper: &mut M,
        file: M::File,
    ) -> Result<Option<&Mapping>, Error<M::Error>> {
        let stops = self.left() > 0;
        self.finish(mapper, file)?;
        if stops || self.at == self.end {
            return Ok(None);
        }
        let mapping = mapper.begin(file, self.at, self.end - self.at, self.how)?;
        let checked = mapping.check(self.at, mapper.block(file));
        self.current = Some((mapping, self.at));
        if let Err(fault) = checked {
            let unusable = self.current.take().map(|(mapping, _)| mapping);
            if let Some(mapping) = unusable {
                mapper.end(file, &mapping, 0, self.how)?;
            }
            return Err(Error::Mapping { offset: self.at, fault });
        }
        Ok(self.current())
    }

    /// Tells the file system that the current mapping is not used any more, if there is one.
    ///
    /// # Errors
    ///
    /// Whatever it says.
    pub fn finish<M: Mapper>(
        &mut self,
        mapper: &mut M,
        file: M::File,
    ) -> Result<(), Error<M::Error>> {
        match self.current.take() {
            Some((mapping, began)) => mapper.end(file, &mapping, self.at - began, self.how),
            None => Ok(()),
        }
    }
}
