//! A file system that is a map from blocks of files to blocks of a disk.

use std::collections::BTreeMap;

use holdfast_iomap::{Error, How, Ioend, IoendKind, Kind, Mapper, Mapping, Purpose};
use holdfast_iov::Pool;
use holdfast_units::BlockSize;
use thiserror::Error as ThisError;

use super::{BLOCK, Event, Log};

const LEN: u64 = BLOCK as u64;

#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub(crate) enum FsError {
    #[error("the extents of the file are corrupt")]
    Corrupt,
}

/// What is known of a block that has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Written,
    Unwritten,
    /// Allocated for a write that has not ended.
    Fresh,
    Delayed,
    /// Others have it, too. A write that has not ended goes to the other place.
    Shared(Option<u64>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Inode {
    pub(crate) size: u64,
    /// Address and state, by the number of the block in the file.
    pub(crate) blocks: BTreeMap<u64, (u64, State)>,
    pub(crate) inline: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct TestFs {
    log: Log,
    pub(crate) files: BTreeMap<u32, Inode>,
    /// Where the next block is allocated, in bytes.
    pub(crate) next: u64,
    /// After so many blocks in a row one is left out.
    pub(crate) run: u64,
    /// Blocks are allocated as new ones, and not as unwritten ones.
    pub(crate) allocates_new: bool,
    /// From which byte of a file on metadata would have to be read.
    pub(crate) unknown_from: u64,
    /// From which byte of a file on the extents are corrupt.
    pub(crate) corrupt_from: u64,
    /// What the next question is answered.
    pub(crate) answer: Option<Mapping>,
    pub(crate) complete_fails: bool,
    pub(crate) end_fails: bool,
    /// Of this pool all must be free whenever something has ended.
    pub(crate) watched: Option<Pool>,
}

impl TestFs {
    pub(crate) fn new(log: Log) -> Self {
        Self {
            log,
            files: BTreeMap::new(),
            next: LEN,
            run: u64::MAX,
            allocates_new: false,
            unknown_from: u64::MAX,
            corrupt_from: u64::MAX,
            answer: None,
            complete_fails: false,
            end_fails: false,
            watched: None,
        }
    }

    pub(crate) fn inode(&mut self, file: u32) -> &mut Inode {
        self.files.entry(file).or_default()
    }

    /// Gives blocks of a file a place.
    pub(crate) fn place(&mut self, file: u32, blocks: std::ops::Range<u64>, state: State) {
        for block in blocks {
            let address = self.allocate();
            self.inode(file).blocks.insert(block, (address, state));
        }
    }

    fn allocate(&mut self) -> u64 {
        if self.run != u64::MAX && (self.next / LEN).is_multiple_of(self.run + 1) {
            self.next += LEN;
        }
        self.next += LEN;
        self.next - LEN
    }

    /// Returns what a program would read.
    pub(crate) fn contents(&self, file: u32, mut load: impl FnMut(u64, &mut [u8])) -> Vec<u8> {
        let Some(inode) = self.files.get(&file) else { return Vec::new() };
        if let Some(inline) = &inode.inline {
            return inline.clone();
        }
        let mut bytes = vec![0; usize::try_from(inode.size).unwrap()];
        for (at, piece) in bytes.chunks_mut(BLOCK).enumerate() {
            if let Some((address, State::Written | State::Shared(_))) =
                inode.blocks.get(&(at as u64))
            {
                load(*address, piece);
            }
        }
        bytes
    }

    fn map_block(&mut self, file: u32, block: u64, purpose: Purpose) -> Mapping {
        let mut found = self.inode(file).blocks.get(&block).copied();
        let mut mapping = Mapping::new(block * LEN, LEN, Kind::Hole);
        if purpose == Purpose::Write && found.is_none() {
            let state = if self.allocates_new { State::Fresh } else { State::Unwritten };
            self.place(file, block..block + 1, state);
            found = self.inode(file).blocks.get(&block).copied();
        }
        let Some((address, state)) = found else { return mapping };
        let changes = matches!(purpose, Purpose::Write | Purpose::Zero);
        match state {
            State::Delayed => mapping.kind = Kind::Delayed,
            State::Written => mapping.kind = Kind::Mapped { address },
            State::Unwritten => mapping.kind = Kind::Unwritten { address },
            State::Fresh if purpose == Purpose::Write => {
                (mapping.kind, mapping.new) = (Kind::Mapped { address }, true);
            }
            State::Fresh => {}
            State::Shared(_) if !changes => mapping.kind = Kind::Mapped { address },
            State::Shared(other) => {
                let other = other.unwrap_or_else(|| self.allocate());
                self.inode(file).blocks.insert(block, (address, State::Shared(Some(other))));
                mapping.kind = Kind::Mapped { address: other };
                (mapping.shared, mapping.source) = (true, Some(address));
            }
        }
        mapping
    }
}

/// Makes `next` part of `mapping`, if both are one.
fn extend(mapping: &mut Mapping, next: &Mapping) -> bool {
    let behind = |place: Option<u64>| place.map(|address| address + mapping.len);
    let same_kind = match (&mapping.kind, &next.kind) {
        (Kind::Hole, Kind::Hole) | (Kind::Delayed, Kind::Delayed) => true,
        (Kind::Mapped { .. }, Kind::Mapped { .. })
        | (Kind::Unwritten { .. }, Kind::Unwritten { .. }) => {
            behind(mapping.kind.address()) == next.kind.address()
        }
        _ => false,
    };
    let same = same_kind
        && (mapping.new, mapping.shared) == (next.new, next.shared)
        && behind(mapping.source) == next.source;
    if same {
        mapping.len += next.len;
    }
    same
}

impl Mapper for TestFs {
    type File = u32;
    type Error = FsError;

    fn block(&self, _: u32) -> BlockSize {
        BlockSize::new(LEN).unwrap()
    }

    fn size(&self, file: u32) -> u64 {
        self.files.get(&file).map_or(0, |inode| inode.size)
    }

    fn begin(
        &mut self,
        file: u32,
        offset: u64,
        len: u64,
        how: How,
    ) -> Result<Mapping, Error<FsError>> {
        self.log.borrow_mut().push(Event::Begin { offset, len, how });
        if let Some(mapping) = self.answer.take() {
            return Ok(mapping);
        }
        if how.nowait && offset >= self.unknown_from {
            return Err(Error::Again);
        }
        if offset >= self.corrupt_from {
            return Err(Error::FileSystem(FsError::Corrupt));
        }
        if let Some(inline) = &self.inode(file).inline {
            return Ok(Mapping::new(0, LEN, Kind::Inline(inline.clone().into_boxed_slice())));
        }
        let last = (offset + len - 1) / LEN;
        let first = offset / LEN;
        let mut mapping = self.map_block(file, first, how.purpose);
        for block in first + 1..=last {
            if block * LEN >= self.unknown_from.min(self.corrupt_from) {
                break;
            }
            let next = self.map_block(file, block, how.purpose);
            if !extend(&mut mapping, &next) {
                break;
            }
        }
        Ok(mapping)
    }

    fn end(&mut self, _: u32, mapping: &Mapping, done: u64, _: How) -> Result<(), Error<FsError>> {
        self.log.borrow_mut().push(Event::End { offset: mapping.offset, done });
        if self.end_fails { Err(Error::FileSystem(FsError::Corrupt)) } else { Ok(()) }
    }

    fn store_inline(&mut self, file: u32, offset: u64, bytes: &[u8]) -> Result<(), Error<FsError>> {
        self.log.borrow_mut().push(Event::Inline { offset, len: bytes.len() });
        let inode = self.inode(file);
        let stored = inode.inline.get_or_insert_default();
        let offset = usize::try_from(offset).unwrap();
        stored.resize(stored.len().max(offset + bytes.len()), 0);
        stored[offset..][..bytes.len()].copy_from_slice(bytes);
        inode.size = stored.len() as u64;
        Ok(())
    }

    fn complete(&mut self, ioend: &Ioend<u32, FsError>) -> Result<(), Error<FsError>> {
        self.log.borrow_mut().push(Event::Complete(ioend.clone()));
        if let Some(pool) = &self.watched {
            assert_eq!(pool.free_bytes(), pool.total_bytes(), "a bio is still there");
        }
        if self.complete_fails {
            return Err(Error::FileSystem(FsError::Corrupt));
        }
        let inode = self.inode(ioend.file);
        for block in ioend.offset / LEN..ioend.end().div_ceil(LEN) {
            let Some((address, state)) = inode.blocks.get_mut(&block) else { continue };
            match (ioend.kind, *state, ioend.result.is_ok()) {
                (IoendKind::Unwritten, State::Unwritten, true)
                | (IoendKind::New, State::Fresh, true) => *state = State::Written,
                (IoendKind::Shared, State::Shared(Some(other)), true) => {
                    (*address, *state) = (other, State::Written);
                }
                (IoendKind::Shared, State::Shared(_), false) => *state = State::Shared(None),
                _ => {}
            }
        }
        inode.size = inode.size.max(ioend.size.unwrap_or(0));
        Ok(())
    }

    fn commit(&mut self, _: u32) -> Result<(), Error<FsError>> {
        self.log.borrow_mut().push(Event::Commit);
        Ok(())
    }
}
