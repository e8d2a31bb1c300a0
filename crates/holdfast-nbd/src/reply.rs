//! The replies of the transmission phase, written into arrays. Nothing here sends or allocates, other than
//! [`block_status`], which appends to what it is given.
//!
//! With structured replies, a read is always answered by chunks, also when it is refused; all else may be
//! answered either way.

use std::ops::Deref;

use zerocopy::{Immutable, IntoBytes, Unaligned};

use crate::export::PAYLOAD_LEN_MAX;
use crate::wire::{
    self, ChunkHeader, DataPayload, ErrorOffsetPayload, ErrorPayload, HolePayload, SimpleReply,
};

/// The bytes of a reply, up to where the data of a read begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    bytes: [u8; Self::LEN_MAX],
    len: usize,
}

impl Header {
    /// The longest header, in bytes: a chunk with an error and its offset.
    pub const LEN_MAX: usize = size_of::<ChunkHeader>() + size_of::<ErrorOffsetPayload>();

    /// What is to be sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn of<T: IntoBytes + Immutable>(message: &T) -> Self {
        const { assert!(size_of::<T>() <= Self::LEN_MAX) };
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..size_of::<T>()].copy_from_slice(message.as_bytes());
        Self { bytes, len: size_of::<T>() }
    }
}

impl Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Writes a simple reply; after a read that succeeded the data follow.
///
/// Not for a read when structured replies were agreed on.
pub fn simple(cookie: u64, result: Result<(), ErrorCode>) -> Header {
    let error = result.err().map_or(0, ErrorCode::value);
    Header::of(&SimpleReply {
        magic: wire::SIMPLE_REPLY_MAGIC.into(),
        error: error.into(),
        cookie: cookie.into(),
    })
}

/// Writes the chunk before `length` bytes of data that were read at `offset`.
///
/// `done` says that nothing follows: no chunk, and no error that could still happen while the data are sent.
pub fn offset_data(cookie: u64, done: bool, offset: u64, length: u32) -> Header {
    debug_assert!(0 < length && length <= PAYLOAD_LEN_MAX, "{length} bytes of data in a chunk");
    let payload = DataPayload { offset: offset.into() };
    let mut chunk = Chunk::new(cookie, done, wire::REPLY_TYPE_OFFSET_DATA, payload);
    chunk.header.length += length;
    Header::of(&chunk)
}

/// Writes the last chunk of a reply that needs to say no more: success, unless an error chunk went before.
pub fn none_done(cookie: u64) -> Header {
    Header::of(&Chunk::new(cookie, true, wire::REPLY_TYPE_NONE, ()))
}

/// Writes the chunk that says that `length` bytes at `offset` read as zeroes.
pub fn offset_hole(cookie: u64, done: bool, offset: u64, length: u32) -> Header {
    debug_assert!(length > 0, "an empty hole");
    let payload = HolePayload { offset: offset.into(), length: length.into() };
    Header::of(&Chunk::new(cookie, done, wire::REPLY_TYPE_OFFSET_HOLE, payload))
}

/// Writes the chunk that says that the request failed.
pub fn error(cookie: u64, done: bool, error: ErrorCode) -> Header {
    let payload = ErrorPayload { error: error.value().into(), message_length: 0.into() };
    Header::of(&Chunk::new(cookie, done, wire::REPLY_TYPE_ERROR, payload))
}

/// Writes the chunk that says that the request failed at `offset`, which lies inside it.
pub fn error_offset(cookie: u64, done: bool, error: ErrorCode, offset: u64) -> Header {
    let payload = ErrorOffsetPayload {
        error: error.value().into(),
        message_length: 0.into(),
        offset: offset.into(),
    };
    Header::of(&Chunk::new(cookie, done, wire::REPLY_TYPE_ERROR_OFFSET, payload))
}

/// Appends the whole reply to a block status request: one chunk, the last.
///
/// `extents` follow each other from the request's offset on. There is at least one, none is empty, and those
/// after the first [`EXTENTS_MAX`] are left out.
pub fn block_status(cookie: u64, context: u32, extents: &[Extent], output: &mut Vec<u8>) {
    debug_assert!(!extents.is_empty(), "a block status without an extent");
    debug_assert!(extents.iter().all(|extent| extent.length > 0), "an empty extent");
    let extents = &extents[..extents.len().min(EXTENTS_MAX)];
    let payload = zerocopy::byteorder::big_endian::U32::new(context);
    let mut chunk = Chunk::new(cookie, true, wire::REPLY_TYPE_BLOCK_STATUS, payload);
    let descriptors = size_of_val(extents);
    chunk.header.length += u32::try_from(descriptors).expect("EXTENTS_MAX extents are 8 MiB");
    output.reserve(size_of_val(&chunk) + descriptors);
    output.extend_from_slice(chunk.as_bytes());
    for extent in extents {
        let descriptor =
            wire::Descriptor { length: extent.length.into(), flags: extent.flags.into() };
        output.extend_from_slice(descriptor.as_bytes());
    }
}

/// A run of bytes in one state, as `base:allocation` has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    /// In bytes, more than none.
    pub length: u32,
    /// [`Extent::HOLE`] and [`Extent::ZERO`], or nothing.
    pub flags: u32,
}

impl Extent {
    /// Nothing is stored there.
    pub const HOLE: u32 = wire::STATE_HOLE;
    /// It reads as zeroes.
    pub const ZERO: u32 = wire::STATE_ZERO;

    /// Sectors that were written.
    pub const fn data(length: u32) -> Self {
        Self { length, flags: 0 }
    }

    /// Sectors that were never written, or were trimmed.
    pub const fn unwritten(length: u32) -> Self {
        Self { length, flags: Self::HOLE | Self::ZERO }
    }
}

/// The most extents in one reply: proto.md, `NBD_REPLY_TYPE_BLOCK_STATUS`, advises against more.
pub const EXTENTS_MAX: usize = 1 << 20;

/// The errors that a client knows. Their values are the protocol's, which are not always the host's `errno`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum ErrorCode {
    /// The export is read-only.
    Perm = 1,
    /// The medium failed, or what it held was not what was written.
    Io = 5,
    /// There was no memory.
    NoMem = 12,
    /// The request breaks a rule.
    Inval = 22,
    /// A write past the end, or no space.
    NoSpc = 28,
    /// A read that is too long to answer.
    Overflow = 75,
    /// Zeroing would not be faster than writing.
    NotSup = 95,
    /// The server is going away.
    Shutdown = 108,
}

impl ErrorCode {
    /// The number on the wire.
    pub const fn value(self) -> u32 {
        self as u32
    }
}

#[derive(Clone, Copy, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
struct Chunk<P: Unaligned> {
    header: ChunkHeader,
    payload: P,
}

impl<P: Unaligned> Chunk<P> {
    fn new(cookie: u64, done: bool, kind: u16, payload: P) -> Self {
        let length = const {
            assert!(size_of::<P>() <= Header::LEN_MAX);
            #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
            let length = size_of::<P>() as u32;
            length
        };
        let header = ChunkHeader {
            magic: wire::STRUCTURED_REPLY_MAGIC.into(),
            flags: if done { wire::REPLY_FLAG_DONE } else { 0 }.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            length: length.into(),
        };
        Self { header, payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: u64 = 0x0102_0304_0506_0708;

    #[test]
    fn a_simple_success_has_no_error() {
        let expected = b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(simple(COOKIE, Ok(())).as_bytes(), expected);
    }

    #[test]
    fn a_simple_failure_has_the_error() {
        let expected = b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(simple(COOKIE, Err(ErrorCode::NoSpc)).as_bytes(), expected);
    }

    #[test]
    fn a_data_chunk_counts_its_offset_in_its_length() {
        let header = offset_data(COOKIE, false, 0x1000, 0x200);
        let expected = b"\x66\x8e\x33\xef\0\0\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\x02\x08\
            \0\0\0\0\0\0\x10\0";
        assert_eq!(header.as_bytes(), expected);
    }

    #[test]
    fn the_last_data_chunk_says_so() {
        assert_eq!(offset_data(COOKIE, true, 0, 1)[4..6], [0, 1]);
    }

    #[test]
    fn the_empty_chunk_is_the_last() {
        let expected = b"\x66\x8e\x33\xef\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0";
        assert_eq!(none_done(COOKIE).as_bytes(), expected);
    }

    #[test]
    fn a_hole_has_an_offset_and_a_length() {
        let expected = b"\x66\x8e\x33\xef\0\0\0\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\
            \0\0\0\0\0\0\x10\0\0\0\x20\0";
        assert_eq!(offset_hole(COOKIE, false, 0x1000, 0x2000).as_bytes(), expected);
    }

    #[test]
    fn an_error_chunk_has_an_empty_message() {
        let expected = b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x06\
            \0\0\0\x05\0\0";
        assert_eq!(error(COOKIE, true, ErrorCode::Io).as_bytes(), expected);
    }

    #[test]
    fn an_error_with_an_offset_has_it_after_the_message() {
        let expected = b"\x66\x8e\x33\xef\0\0\x80\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0e\
            \0\0\0\x05\0\0\0\0\0\0\0\0\x12\0";
        assert_eq!(error_offset(COOKIE, false, ErrorCode::Io, 0x1200).as_bytes(), expected);
    }

    #[test]
    fn a_block_status_is_one_last_chunk() {
        let mut output = vec![0xaa];
        block_status(COOKIE, 7, &[Extent::data(512), Extent::unwritten(1024)], &mut output);
        let expected =
            b"\xaa\x66\x8e\x33\xef\0\x01\0\x05\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x14\
            \0\0\0\x07\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\x03";
        assert_eq!(output, expected);
    }

    #[test]
    fn a_block_status_leaves_out_extents_over_the_limit() {
        let mut output = Vec::new();
        block_status(COOKIE, 7, &vec![Extent::data(512); EXTENTS_MAX + 1], &mut output);
        assert_eq!(output.len(), 20 + 4 + 8 * EXTENTS_MAX);
    }
}
