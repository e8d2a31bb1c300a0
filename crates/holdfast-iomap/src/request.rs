//! What is asked for, and what became of it.

use holdfast_iov::Memory;

use crate::Error;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the memory.
    Read,
    /// From the memory.
    Write,
    /// Makes the range read as zeros, without memory, from any byte to any other: what is mapped is
    /// written, and holes and unwritten blocks stay. The size of the file stays, too.
    Zero,
}

/// How a request is to be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own, in any combination")]
pub struct Flags {
    /// Fail with [`Error::Again`] rather than wait for metadata, for another write to the same blocks,
    /// for a place in the queue of the device, or for a buffer.
    pub nowait: bool,
    /// A write ends when it is durable, with all that is needed to find it (`O_DSYNC`).
    pub dsync: bool,
    /// A write is one bio that is stored wholly or not at all.
    pub atomic: bool,
    /// The submitter polls for the end. Only a request that is one bio tells the device so.
    pub polled: bool,
    /// Every bio is made of whole blocks of the file system, for those who have a checksum for each.
    pub block_aligned: bool,
}

/// Bytes of a file to be read or written.
#[derive(Debug)]
pub struct Request<F> {
    /// What to do.
    pub direction: Direction,
    /// The file.
    pub file: F,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many bytes. The request is short when the memory has fewer.
    pub len: u64,
    /// The memory, which belongs to the request until it has ended.
    pub memory: Memory,
    /// The first byte of a buffer that is used. Segments are used from the iterator's position on.
    pub start: usize,
    /// How.
    pub flags: Flags,
    /// The submitter's own number, which comes back unchanged.
    pub user: u64,
}

impl<F> Request<F> {
    /// Returns a request that makes the `len` bytes at `offset` read as zeros.
    pub const fn zero(file: F, offset: u64, len: u64) -> Self {
        Self::new(Direction::Zero, file, offset, len, Memory::None)
    }

    /// Returns a request for the `len` bytes at `offset`.
    pub const fn new(direction: Direction, file: F, offset: u64, len: u64, memory: Memory) -> Self {
        let flags = Flags {
            nowait: false,
            dsync: false,
            atomic: false,
            polled: false,
            block_aligned: false,
        };
        Self { direction, file, offset, len, memory, start: 0, flags, user: 0 }
    }

    /// Says how the request is to be carried out.
    #[must_use]
    pub const fn with_flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    /// Gives the request the submitter's number.
    #[must_use]
    pub const fn with_user(mut self, user: u64) -> Self {
        self.user = user;
        self
    }

    pub(crate) const fn is_write(&self) -> bool {
        !matches!(self.direction, Direction::Read)
    }
}

/// A request that has ended.
#[derive(Debug)]
pub struct Finished<F, E> {
    /// The request as it was submitted, with its memory. No bio of it exists any more.
    pub request: Request<F>,
    /// How many bytes of the file were moved: fewer than were asked for when a read met the end of the
    /// file, or the memory was too short. What a read has of its memory behind the end of the file is
    /// zeros. After an error any part may have been moved.
    pub result: Result<u64, Error<E>>,
}
