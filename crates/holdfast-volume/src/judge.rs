//! Whether the data of a sector and its tuple belong together. Nothing here does I/O.

use holdfast_bio::{Mismatch, Tag};
use holdfast_checksum::checksum;
use holdfast_integrity::{Protection, Tuple};
use holdfast_units::BlockSize;

/// The guard tag that, with the application tag of all ones, says that a sector is torn.
const TORN: u64 = 1;

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

    /// Returns the words of the tuple of sector `lba` with this guard.
    pub(crate) fn words(&self, lba: u64, guard: u64) -> [u64; 2] {
        self.protection.tuple(lba, guard).to_words(self.protection.kind)
    }

    /// Returns the tuple of a sector that after a crash had neither its old nor its new data.
    pub(crate) fn torn_words(&self, lba: u64) -> [u64; 2] {
        let reference = self.protection.reference(lba);
        let torn = Tuple { guard: TORN, application: Protection::ESCAPE, reference };
        torn.to_words(self.protection.kind)
    }

    /// Returns whether a tuple says that its sector is torn.
    pub(crate) fn is_torn(&self, lba: u64, words: [u64; 2]) -> bool {
        words == self.torn_words(lba)
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
            // As nearly always: it is as it was written, and the mark of a torn sector is something else.
            if words == self.words(lba, guard) && self.protection.application != Protection::ESCAPE
            {
                return Ok(());
            }
            if self.is_torn(lba, words) {
                return Err(Mismatch { tag: Tag::Torn, lba, expected: 0, found: guard });
            }
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

/// Returns whether all bytes are 0, without a branch for each.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}
