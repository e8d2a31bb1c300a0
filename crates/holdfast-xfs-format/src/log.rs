//! The log, as far as it must be known to see whether there is anything to replay in it.

use core::mem::offset_of;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{FormatError, Structure, expect, require, short};

/// The unit of the log, in bytes. Each of its blocks says in which cycle it was written.
pub const LOG_BLOCK: usize = 512;

/// The number that a record begins with.
const MAGIC: u32 = 0xfeed_babe;
/// How many bytes of a record one block of its head has the words for.
const BYTES_OF_HEAD: u32 = 32 << 10;
/// The longest record.
const RECORD_MAX: u32 = 256 << 10;

/// The head of a record (`xlog_rec_header`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawLogRecord {
    /// `0xfeedbabe`.
    pub magic: U32,
    /// In which cycle it was written.
    pub cycle: U32,
    /// 2, or 1 for old logs.
    pub version: U32,
    /// How many bytes follow the head.
    pub len: U32,
    /// Where the record is: its cycle and its block.
    pub lsn: U64,
    /// The first record that is still needed.
    pub tail: U64,
    /// CRC-32C of head and body, or 0.
    pub crc: little_endian::U32,
    /// The block of the record before.
    pub previous: U32,
    /// How many operations there are in it.
    pub operations: U32,
    /// The first words of its blocks, in whose place the cycle stands.
    pub words: [U32; 64],
    /// In which byte order the operations are.
    pub format: U32,
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// How long records are at most, in bytes.
    pub size: U32,
}

/// The head of an operation in a record (`xlog_op_header`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawLogOperation {
    /// The transaction; the cycle stands here in the first operation of a block.
    pub transaction: U32,
    /// How many bytes follow.
    pub len: U32,
    /// Who wrote it.
    pub client: u8,
    /// What it is about.
    pub flags: u8,
    /// 0.
    pub reserved: U16,
}

const _: () = {
    assert!(size_of::<RawLogRecord>() == 324);
    assert!(offset_of!(RawLogRecord, words) == 44);
    assert!(offset_of!(RawLogRecord, uuid) == 304);
    assert!(size_of::<RawLogOperation>() == 12);
};

/// Returns in which cycle a block of the log was written. 0 is never.
pub fn cycle_of(block: &[u8; LOG_BLOCK]) -> u32 {
    let [[a, b, c, d], [e, f, g, h]] = [0, 4].map(|at| {
        let word = block.get(at..).and_then(|rest| rest.first_chunk::<4>());
        word.copied().unwrap_or_default()
    });
    let first = u32::from_be_bytes([a, b, c, d]);
    if first == MAGIC { u32::from_be_bytes([e, f, g, h]) } else { first }
}

impl RawLogRecord {
    /// Takes the head of a record apart, or returns `None` when the block is none.
    ///
    /// # Errors
    ///
    /// The field that cannot be so.
    pub fn parse<'a>(
        block: &'a [u8; LOG_BLOCK],
        uuid: &[u8; 16],
    ) -> Result<Option<&'a Self>, FormatError> {
        const STRUCTURE: Structure = Structure::LogRecord;
        let (raw, _) = Self::ref_from_prefix(block)
            .map_err(|_| short(STRUCTURE, size_of::<Self>(), block.len()))?;
        if raw.magic.get() != MAGIC {
            return Ok(None);
        }
        let (version, len, size) = (raw.version.get(), raw.len.get(), raw.size.get());
        require(STRUCTURE, "version", u64::from(version), matches!(version, 1 | 2))?;
        require(STRUCTURE, "length", u64::from(len), len <= RECORD_MAX)?;
        require(STRUCTURE, "size", u64::from(size), size <= RECORD_MAX)?;
        if raw.uuid != *uuid {
            return Err(FormatError::Uuid { structure: STRUCTURE });
        }
        expect(STRUCTURE, "cycle", raw.lsn.get() >> 32, u64::from(raw.cycle.get()))?;
        Ok(Some(raw))
    }

    /// Returns how many blocks the head has.
    pub const fn head_blocks(&self) -> u32 {
        let size = self.size.get();
        if self.version.get() == 2 && size > BYTES_OF_HEAD {
            size.div_ceil(BYTES_OF_HEAD)
        } else {
            1
        }
    }

    /// Returns how many blocks the record has, with its head.
    #[expect(clippy::cast_possible_truncation, reason = "a block has 512 bytes")]
    pub const fn blocks(&self) -> u32 {
        self.head_blocks() + self.len.get().div_ceil(LOG_BLOCK as u32)
    }
}

/// What the log must know of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOperation {
    /// It says that the file system was unmounted, and that nothing before it is needed.
    pub is_unmount: bool,
}

impl LogOperation {
    const UNMOUNT: u8 = 1 << 5;

    /// Takes the first operation of a record apart, in the first block behind its head.
    pub fn parse(block: &[u8; LOG_BLOCK]) -> Option<Self> {
        let (raw, _) = RawLogOperation::ref_from_prefix(block).ok()?;
        Some(Self { is_unmount: raw.flags & Self::UNMOUNT != 0 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> [u8; LOG_BLOCK] {
        let mut block = [0; LOG_BLOCK];
        for (at, word) in [(0, MAGIC), (4, 3), (8, 2), (12, 512), (16, 3), (320, 256 << 10)] {
            block[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        block[304..320].fill(9);
        block
    }

    #[test]
    fn a_head_has_a_block_for_each_32_kib() {
        let block = head();
        let record = RawLogRecord::parse(&block, &[9; 16]).unwrap().unwrap();
        assert_eq!((record.head_blocks(), record.blocks(), cycle_of(&block)), (8, 9, 3));
    }

    #[test]
    fn a_record_of_another_file_system_is_refused() {
        assert!(matches!(
            RawLogRecord::parse(&head(), &[8; 16]),
            Err(FormatError::Uuid { structure: Structure::LogRecord })
        ));
        assert!(RawLogRecord::parse(&[0; LOG_BLOCK], &[9; 16]).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn a_record_is_never_longer_than_a_log_may_have(
            bytes in proptest::collection::vec(any::<u8>(), 296),
        ) {
            let mut block = head();
            block[8..304].copy_from_slice(&bytes);
            if let Ok(Some(record)) = RawLogRecord::parse(&block, &[9; 16]) {
                prop_assert!(record.blocks() <= 8 + 512);
            }
        }
    }
}
