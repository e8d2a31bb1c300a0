//! Why a request failed.

use thiserror::Error as ThisError;

/// What is wrong with an answer of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum MappingFault {
    /// It says nothing about the byte that was asked for, or is empty.
    #[error("it does not cover that byte")]
    Elsewhere,
    /// It does not begin and end at blocks of the file system, or its address is none of the device's.
    #[error("it is not made of whole blocks")]
    NotBlocks,
    /// It lies behind the end of the device, or wraps around.
    #[error("it does not lie inside the device")]
    OutsideDevice,
    /// A hole, for a write.
    #[error("it is a hole, and nothing can be written to one")]
    HoleForWrite,
    /// Data that are still to get a place: whoever has them must have written them before.
    #[error("its data have no place yet: they must be written back first")]
    Delayed,
    /// More inline data than the mapping is long, or than a block.
    #[error("its inline data are too long")]
    Inline,
}

/// Why a request failed. `E` is the error of the file system.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
#[expect(clippy::error_impl_error, reason = "it is named by its crate, as `std::io::Error` is")]
pub enum Error<E> {
    /// The request was not to wait, and would have to (EAGAIN): submit it again without `nowait`.
    #[error("the request would have to wait")]
    Again,
    /// What the device said.
    #[error(transparent)]
    Bio(#[from] holdfast_bio::Error),
    /// What the file system said.
    #[error("{0}")]
    FileSystem(#[source] E),
    /// Where the request begins, or how long it is, does not suit the device or the blocks that were
    /// asked for (EINVAL).
    #[error("{len} bytes at {offset} are no multiple of {unit} bytes")]
    Misaligned {
        /// Where the request begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// What both must be multiples of, in bytes.
        unit: u64,
    },
    /// The range ends past 2^63 (EFBIG).
    #[error("{len} bytes at {offset} are beyond the end of any file")]
    TooFar {
        /// Where the request begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
    },
    /// An atomic write that cannot be one bio: of another length than a power of two, not at a multiple
    /// of it, longer than the device takes, or in several extents or pieces of memory (EINVAL).
    #[error("{len} bytes at {offset} cannot be written by one bio, as an atomic write must be")]
    NotAtomic {
        /// Where the request begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
    },
    /// The memory has not one unit of bytes (EFAULT).
    #[error("the memory has {found} bytes, less than the {unit} that can be moved at once")]
    Memory {
        /// How many bytes there are.
        found: u64,
        /// How many there must be.
        unit: u64,
    },
    /// The file system gave an answer that cannot be used: it, or what it was made from, is corrupt.
    #[error("the mapping of byte {offset} cannot be used: {fault}")]
    Mapping {
        /// The byte of the file that was asked for.
        offset: u64,
        /// What is wrong.
        fault: MappingFault,
    },
}
