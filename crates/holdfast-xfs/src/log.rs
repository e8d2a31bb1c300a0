//! Whether there is anything in the log that is not in its place yet.
//!
//! The log is written round and round, and each of its blocks says in which cycle. The head, behind the
//! last block that was written, is where the cycle falls. When the last record before it says that the
//! file system was unmounted, the log is clean. When anything is not as it should be, it is dirty.

use holdfast_bio::BlockDevice;
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs_format::{LOG_BLOCK, LogOperation, RawLogRecord, cycle_of};

use crate::error::XfsError;
use crate::mount::Xfs;

/// How many blocks the longest record has, with its head.
const RECORD_BLOCKS_MAX: u64 = 8 + 512;

/// The log.
#[derive(Clone, Copy)]
struct Log {
    /// Where it begins, in bytes from the start of the device.
    address: u64,
    /// How many blocks it has.
    blocks: u64,
}

impl<D: BlockDevice> Xfs<D> {
    /// Returns whether the log is clean.
    pub(crate) fn log_is_clean(&mut self) -> Result<bool, XfsError> {
        let geometry = self.superblock.geometry;
        let (start, blocks) = self.superblock.log.ok_or(XfsError::ExternalLog)?;
        let Some(address) = geometry.address_of(start) else { return Ok(false) };
        let bytes = u64::from(blocks) * geometry.block.bytes();
        let log = Log { address, blocks: bytes / to_u64(LOG_BLOCK) };
        let Some(head) = self.log_head(log)? else { return Ok(true) };
        self.ends_with_unmount(log, head)
    }

    /// Finds the block behind the last one that was written, or returns `None` when none ever was.
    fn log_head(&mut self, log: Log) -> Result<Option<u64>, XfsError> {
        let first = self.log_cycle(log, 0)?;
        if first == 0 {
            return Ok(None);
        }
        let last = self.log_cycle(log, log.blocks - 1)?;
        if first == last {
            return Ok(Some(0));
        }
        // Block `low` is of this cycle, block `high` of the one before.
        let (mut low, mut high) = (0, log.blocks - 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.log_cycle(log, middle)? == first { low = middle } else { high = middle }
        }
        Ok(Some(high))
    }

    /// Returns whether the last record before the head says that the file system was unmounted.
    fn ends_with_unmount(&mut self, log: Log, head: u64) -> Result<bool, XfsError> {
        // Not that of the metadata, if they have one of their own.
        let uuid = self.superblock.uuid;
        for back in 2..=RECORD_BLOCKS_MAX.min(log.blocks) {
            let at = (head + log.blocks - back) % log.blocks;
            let block = self.log_block(log, at)?;
            let Ok(record) = RawLogRecord::parse(&block, &uuid) else { return Ok(false) };
            let Some(record) = record else { continue };
            if u64::from(record.blocks()) != back || record.operations.get() != 1 {
                return Ok(false);
            }
            let behind_head = (at + u64::from(record.head_blocks())) % log.blocks;
            let operation = LogOperation::parse(&self.log_block(log, behind_head)?);
            return Ok(operation.is_some_and(|operation| operation.is_unmount));
        }
        Ok(false)
    }

    fn log_cycle(&mut self, log: Log, at: u64) -> Result<u32, XfsError> {
        Ok(cycle_of(&self.log_block(log, at)?))
    }

    fn log_block(&mut self, log: Log, at: u64) -> Result<[u8; LOG_BLOCK], XfsError> {
        let mut block = [0; LOG_BLOCK];
        let offset = at.saturating_mul(to_u64(LOG_BLOCK));
        self.source.read_at(log.address + offset, &mut block)?;
        Ok(block)
    }
}

const _: () = assert!(to_usize(RECORD_BLOCKS_MAX) * LOG_BLOCK < 1 << 20);
