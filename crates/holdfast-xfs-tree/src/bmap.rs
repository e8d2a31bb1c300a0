//! The tree of a file's extents.

use holdfast_xfs_format::{BlockKind, Extent, RawExtent};
use zerocopy::IntoBytes;

use crate::shape::{Shape, long, set_long};

/// The tree of a file's extents.
#[derive(Debug)]
pub(crate) struct Bmap;

impl Shape for Bmap {
    type Record = Extent;
    /// The first block of the file.
    type Key = u64;

    const KIND: BlockKind = BlockKind::Bmap;
    const RECORD: usize = 16;
    const KEY: usize = 8;
    const POINTER: usize = 8;
    const KEY_MAX: u64 = u64::MAX;

    fn decode(bytes: &[u8]) -> Extent {
        let raw = RawExtent { high: long(bytes, 0).into(), low: long(bytes, 8).into() };
        Extent::decode(&raw)
    }

    fn encode(record: &Extent, bytes: &mut [u8]) {
        let raw = record.encode();
        bytes[..Self::RECORD].copy_from_slice(raw.as_bytes());
    }

    fn key(record: &Extent) -> u64 {
        record.file.0
    }

    fn decode_key(bytes: &[u8]) -> u64 {
        long(bytes, 0)
    }

    fn encode_key(key: &u64, bytes: &mut [u8]) {
        set_long(bytes, 0, *key);
    }
}
