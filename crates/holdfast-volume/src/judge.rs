//! Whether the data of a sector and its tuple belong together. Nothing here does I/O.

use holdfast_bio::{Mismatch, Tag};
use holdfast_checksum::checksum;
use holdfast_integrity::{Protection, Tuple};
use holdfast_units::BlockSize;

/// What is needed to check any sector of a volume.
#[derive(Debug)]
pub(crate) struct Judge {
    protection: Protection,
    /// The guard of a sector of zeros.
    zero_guard: u64,
}

impl Judge {
    pub(crate) fn new(protection: Protection, sector: BlockSize) -> Self {
        let zero_guard = checksum(protection.kind, &vec![0; sector.len()]);
        Self { protection, zero_guard }
    }

    pub(crate) const fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Checks the stored words of sector `lba` against the checksum of its data. `is_zero` is asked
    /// whether a sector that was never written consists of zeros.
    pub(crate) fn check(
        &self,
        lba: u64,
        guard: u64,
        words: [u64; 2],
        is_zero: impl FnOnce() -> bool,
    ) -> Result<(), Mismatch> {
        if words != [0, 0] {
            let stored = Tuple::from_words(self.protection.kind, words);
            return self.protection.check(lba, guard, stored);
        }
        let expected = self.zero_guard;
        if guard == expected && is_zero() {
            return Ok(());
        }
        Err(Mismatch { tag: Tag::Unwritten, lba, expected, found: guard })
    }
}
