//! What differs between the trees: records, keys, and how both are stored.

use std::fmt::Debug;

use holdfast_xfs_format::BlockKind;

/// A kind of B+tree.
pub(crate) trait Shape {
    type Record: Copy + Debug + PartialEq;
    /// What records are ordered by.
    type Key: Copy + Debug + Ord;

    const KIND: BlockKind;
    /// The size of a record, in bytes.
    const RECORD: usize;
    /// The size of a key in a node, in bytes: twice that of one key, when there are high keys.
    const KEY: usize;
    /// The size of a pointer to a block, in bytes: 4 or 8.
    const POINTER: usize;
    /// Records can overlap, so that nodes have the highest key of each block below as well.
    const OVERLAPS: bool = false;
    /// A key that no record is behind.
    const KEY_MAX: Self::Key;

    fn decode(bytes: &[u8]) -> Self::Record;
    fn encode(record: &Self::Record, bytes: &mut [u8]);
    fn key(record: &Self::Record) -> Self::Key;
    fn decode_key(bytes: &[u8]) -> Self::Key;
    fn encode_key(key: &Self::Key, bytes: &mut [u8]);
    /// Returns the key of the last thing that a record covers.
    fn high_key(record: &Self::Record) -> Self::Key {
        Self::key(record)
    }
}

/// Returns the 32-bit number at byte `at`. Callers pass whole records.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Returns the 64-bit number at byte `at`. Callers pass whole records.
pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Stores a 32-bit number at byte `at`.
pub(crate) fn set_word(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Stores a 64-bit number at byte `at`.
pub(crate) fn set_long(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
