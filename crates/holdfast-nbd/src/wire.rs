//! The bytes of the NBD protocol: its magics and numbers, and the layout of each message. Nothing here
//! decides anything.
//!
//! The names are those of NBD's `doc/proto.md`, without the leading `NBD_`.

use std::mem::offset_of;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

// Magics.
/// `NBDMAGIC`, the first thing that a server sends.
pub(crate) const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: this server speaks newstyle; also the start of each option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The longest string that the protocol allows, in bytes.
pub(crate) const STRING_LEN_MAX: usize = 4096;

// Handshake flags, and what a client answers to them.
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub(crate) const FLAG_NO_ZEROES: u16 = 1 << 1;
pub(crate) const FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
pub(crate) const FLAG_C_NO_ZEROES: u32 = 1 << 1;

// Transmission flags.
pub(crate) const FLAG_HAS_FLAGS: u16 = 1 << 0;
pub(crate) const FLAG_READ_ONLY: u16 = 1 << 1;
pub(crate) const FLAG_SEND_FLUSH: u16 = 1 << 2;
pub(crate) const FLAG_SEND_FUA: u16 = 1 << 3;
pub(crate) const FLAG_SEND_TRIM: u16 = 1 << 5;
pub(crate) const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(crate) const FLAG_SEND_DF: u16 = 1 << 7;
pub(crate) const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
pub(crate) const FLAG_SEND_CACHE: u16 = 1 << 10;
pub(crate) const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

// Options.
pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;

// Replies to options.
pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
pub(crate) const REP_ERR_INVALID: u32 = (1 << 31) + 3;
pub(crate) const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub(crate) const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

// Kinds of information about an export.
pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_NAME: u16 = 1;
pub(crate) const INFO_DESCRIPTION: u16 = 2;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// The one metadata context that this server has.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";
/// The query that means each context of the namespace `base`.
pub(crate) const BASE_WILDCARD: &str = "base:";

// Commands.
pub(crate) const CMD_READ: u16 = 0;
pub(crate) const CMD_WRITE: u16 = 1;
pub(crate) const CMD_DISC: u16 = 2;
pub(crate) const CMD_FLUSH: u16 = 3;
pub(crate) const CMD_TRIM: u16 = 4;
pub(crate) const CMD_CACHE: u16 = 5;
pub(crate) const CMD_WRITE_ZEROES: u16 = 6;
pub(crate) const CMD_BLOCK_STATUS: u16 = 7;

// Command flags.
pub(crate) const CMD_FLAG_FUA: u16 = 1 << 0;
pub(crate) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub(crate) const CMD_FLAG_DF: u16 = 1 << 2;
pub(crate) const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
pub(crate) const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

// Structured replies.
pub(crate) const REPLY_FLAG_DONE: u16 = 1 << 0;
pub(crate) const REPLY_TYPE_NONE: u16 = 0;
pub(crate) const REPLY_TYPE_OFFSET_DATA: u16 = 1;
pub(crate) const REPLY_TYPE_OFFSET_HOLE: u16 = 2;
pub(crate) const REPLY_TYPE_BLOCK_STATUS: u16 = 5;
pub(crate) const REPLY_TYPE_ERROR: u16 = (1 << 15) + 1;
pub(crate) const REPLY_TYPE_ERROR_OFFSET: u16 = (1 << 15) + 2;

// The flags of an extent in the context `base:allocation`.
pub(crate) const STATE_HOLE: u32 = 1 << 0;
pub(crate) const STATE_ZERO: u32 = 1 << 1;

/// What a server sends first.
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
pub(crate) struct Greeting {
    pub(crate) password: U64,
    pub(crate) magic: U64,
    pub(crate) flags: U16,
}

/// The start of each option; `length` bytes of data follow.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct OptionHeader {
    pub(crate) magic: U64,
    pub(crate) option: U32,
    pub(crate) length: U32,
}

/// The start of each reply to an option, other than to `OPT_EXPORT_NAME`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct OptionReply {
    pub(crate) magic: U64,
    pub(crate) option: U32,
    pub(crate) kind: U32,
    pub(crate) length: U32,
}

/// The reply to `OPT_EXPORT_NAME`, before its zeroes.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ExportNameReply {
    pub(crate) size: U64,
    pub(crate) flags: U16,
}

/// The zeroes after [`ExportNameReply`], unless both sides agreed to leave them out.
pub(crate) const EXPORT_NAME_ZEROES: [u8; 124] = [0; 124];

/// The data of `INFO_EXPORT`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct InfoExport {
    pub(crate) kind: U16,
    pub(crate) size: U64,
    pub(crate) flags: U16,
}

/// The data of `INFO_BLOCK_SIZE`, in bytes.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct InfoBlockSize {
    pub(crate) kind: U16,
    pub(crate) minimum: U32,
    pub(crate) preferred: U32,
    pub(crate) maximum: U32,
}

/// A request; the data of a write follow.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RequestHeader {
    pub(crate) magic: U32,
    pub(crate) flags: U16,
    pub(crate) command: U16,
    pub(crate) cookie: U64,
    pub(crate) offset: U64,
    pub(crate) length: U32,
}

/// A simple reply; the data of a read follow when `error` is zero.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct SimpleReply {
    pub(crate) magic: U32,
    pub(crate) error: U32,
    pub(crate) cookie: U64,
}

/// The start of each chunk of a structured reply; `length` bytes of payload follow.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ChunkHeader {
    pub(crate) magic: U32,
    pub(crate) flags: U16,
    pub(crate) kind: U16,
    pub(crate) cookie: U64,
    pub(crate) length: U32,
}

/// The payload of `REPLY_TYPE_OFFSET_DATA`, before the data.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct DataPayload {
    pub(crate) offset: U64,
}

/// The payload of `REPLY_TYPE_OFFSET_HOLE`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct HolePayload {
    pub(crate) offset: U64,
    pub(crate) length: U32,
}

/// The payload of `REPLY_TYPE_ERROR`, with an empty message.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ErrorPayload {
    pub(crate) error: U32,
    pub(crate) message_length: U16,
}

/// The payload of `REPLY_TYPE_ERROR_OFFSET`, with an empty message.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ErrorOffsetPayload {
    pub(crate) error: U32,
    pub(crate) message_length: U16,
    pub(crate) offset: U64,
}

/// One extent of `REPLY_TYPE_BLOCK_STATUS`, after the metadata context's id.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Descriptor {
    pub(crate) length: U32,
    pub(crate) flags: U32,
}

const _: () = {
    assert!(size_of::<Greeting>() == 18);
    assert!(size_of::<OptionHeader>() == 16);
    assert!(offset_of!(OptionHeader, length) == 12);
    assert!(size_of::<OptionReply>() == 20);
    assert!(offset_of!(OptionReply, length) == 16);
    assert!(size_of::<ExportNameReply>() == 10);
    assert!(size_of::<InfoExport>() == 12);
    assert!(size_of::<InfoBlockSize>() == 14);
    assert!(size_of::<RequestHeader>() == 28);
    assert!(offset_of!(RequestHeader, cookie) == 8);
    assert!(offset_of!(RequestHeader, offset) == 16);
    assert!(offset_of!(RequestHeader, length) == 24);
    assert!(size_of::<SimpleReply>() == 16);
    assert!(offset_of!(SimpleReply, cookie) == 8);
    assert!(size_of::<ChunkHeader>() == 20);
    assert!(offset_of!(ChunkHeader, cookie) == 8);
    assert!(size_of::<DataPayload>() == 8);
    assert!(size_of::<HolePayload>() == 12);
    assert!(size_of::<ErrorPayload>() == 6);
    assert!(size_of::<ErrorOffsetPayload>() == 14);
    assert!(offset_of!(ErrorOffsetPayload, offset) == 6);
    assert!(size_of::<Descriptor>() == 8);
};
