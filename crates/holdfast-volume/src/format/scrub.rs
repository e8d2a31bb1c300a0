//! What a superblock remembers of scrubs.

use core::mem::offset_of;

use holdfast_units::BlockSize;
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::scrub::ScrubReport;

/// The part of the superblock that is about scrubs. All zeros say that there was none.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawScrub {
    /// How much of the disk the pass has done, in bytes from its start.
    pub position: U64,
    /// When the pass began, in seconds since 1970.
    pub started: U64,
    /// When the last complete pass ended, in seconds since 1970.
    pub finished: U64,
    /// How many bytes the pass has verified.
    pub verified: U64,
    /// How many corrupt sectors the pass has found.
    pub corrupt: U64,
    /// How many sectors the pass could not read.
    pub unreadable: U64,
    /// How many sectors the pass has repaired.
    pub repaired: U64,
    /// [`RawScrub::UNDER_WAY`] and [`RawScrub::PAUSED`].
    pub flags: U64,
}

const _: () = {
    assert!(size_of::<RawScrub>() == 64);
    assert!(offset_of!(RawScrub, finished) == 16);
    assert!(offset_of!(RawScrub, flags) == 56);
};

impl RawScrub {
    /// A pass has begun, and has not ended.
    pub const UNDER_WAY: u64 = 1;
    /// Somebody asked the pass to wait.
    pub const PAUSED: u64 = 2;

    /// Reads it for a disk of `capacity` bytes. Any bytes mean something: what is behind the end of
    /// the disk is at its end.
    pub(super) fn parse(&self, capacity: u64, sector: BlockSize) -> ScrubRecord {
        let flags = self.flags.get();
        let under_way = flags & Self::UNDER_WAY != 0;
        ScrubRecord {
            position: sector.align_down(self.position.get().min(capacity)),
            started: self.started.get(),
            finished: self.finished.get(),
            verified: self.verified.get(),
            corrupt: self.corrupt.get(),
            unreadable: self.unreadable.get(),
            repaired: self.repaired.get(),
            under_way,
            paused: under_way && flags & Self::PAUSED != 0,
        }
    }
}

/// How far a scrub is and what it found: the pass that is under way or, when none is, the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubRecord {
    /// How much of the disk is done, in bytes from its start. What was found belongs to this part.
    pub position: u64,
    /// When the pass began, in seconds since 1970; 0 when there was none.
    pub started: u64,
    /// When the last complete pass ended, in seconds since 1970; 0 when there was none.
    pub finished: u64,
    /// How many bytes were verified. The rest are holes of the file below.
    pub verified: u64,
    /// How many corrupt sectors were found.
    pub corrupt: u64,
    /// How many sectors could not be read.
    pub unreadable: u64,
    /// How many sectors were repaired.
    pub repaired: u64,
    /// The pass has not ended.
    pub under_way: bool,
    /// The pass waits until it is started again.
    pub paused: bool,
}

impl ScrubRecord {
    /// Returns whether a pass is under way and not paused.
    pub const fn is_running(&self) -> bool {
        self.under_way && !self.paused
    }

    /// Returns whether something is wrong with what was looked at.
    pub const fn has_problems(&self) -> bool {
        self.corrupt > 0 || self.unreadable > 0
    }

    /// Begins a pass at `now`, in seconds since 1970, or goes on with the one that is under way.
    pub fn start(&mut self, now: u64) {
        if self.under_way {
            self.paused = false;
            return;
        }
        let finished = self.finished;
        *self = Self { started: now.max(1), finished, under_way: true, ..Self::default() };
    }

    /// Lets the pass wait, if one is under way.
    pub const fn pause(&mut self) {
        self.paused = self.under_way;
    }

    /// Adds what was found up to `position` of a disk of `capacity` bytes, the end of which ends the
    /// pass.
    pub fn advance(&mut self, position: u64, found: &ScrubReport, capacity: u64, now: u64) {
        self.position = position;
        self.verified = self.verified.saturating_add(found.verified);
        self.corrupt = self.corrupt.saturating_add(found.corrupt);
        self.unreadable = self.unreadable.saturating_add(found.unreadable.len() as u64);
        if position >= capacity {
            (self.under_way, self.paused) = (false, false);
            self.finished = now.max(1);
        }
    }

    /// Returns the bytes of it.
    pub(super) fn to_raw(self) -> RawScrub {
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        let under_way = flag(self.under_way, RawScrub::UNDER_WAY);
        RawScrub {
            position: U64::new(self.position),
            started: U64::new(self.started),
            finished: U64::new(self.finished),
            verified: U64::new(self.verified),
            corrupt: U64::new(self.corrupt),
            unreadable: U64::new(self.unreadable),
            repaired: U64::new(self.repaired),
            flags: U64::new(under_way | flag(self.paused, RawScrub::PAUSED)),
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use holdfast_bio::Error;
    use proptest::prelude::*;

    const CAPACITY: u64 = 1 << 20;

    fn found(verified: u64, corrupt: u64, unreadable: u64) -> ScrubReport {
        let unreadable = (0..unreadable).map(|offset| (offset, Error::IO)).collect();
        ScrubReport { verified, corrupt, unreadable, ..ScrubReport::default() }
    }

    #[test]
    fn a_pass_that_is_paused_goes_on_where_it_was() {
        let mut record = ScrubRecord::default();
        record.start(10);
        record.advance(4096, &found(4096, 1, 0), CAPACITY, 11);
        record.pause();
        assert!(record.under_way && !record.is_running());
        record.start(20);
        assert!(record.is_running());
        assert_eq!((record.position, record.started, record.corrupt), (4096, 10, 1));
    }

    #[test]
    fn the_end_of_the_disk_ends_the_pass_and_its_result_stays_until_the_next() {
        let mut record = ScrubRecord::default();
        record.start(10);
        record.advance(4096, &found(4096, 1, 2), CAPACITY, 11);
        record.advance(CAPACITY, &found(8192, 1, 0), CAPACITY, 12);
        let ended = ScrubRecord {
            position: CAPACITY,
            started: 10,
            finished: 12,
            verified: 12_288,
            corrupt: 2,
            unreadable: 2,
            ..ScrubRecord::default()
        };
        assert_eq!(record, ended);
        record.start(30);
        let begun =
            ScrubRecord { started: 30, finished: 12, under_way: true, ..ScrubRecord::default() };
        assert_eq!(record, begun);
    }

    #[test]
    fn nothing_is_paused_when_nothing_is_under_way() {
        let mut record = ScrubRecord::default();
        record.pause();
        assert_eq!(record, ScrubRecord::default());
    }

    #[test]
    fn a_position_that_cannot_be_is_one_on_the_disk() {
        let sector = BlockSize::PAGE;
        let mut raw = ScrubRecord { under_way: true, ..ScrubRecord::default() }.to_raw();
        for (stored, expected) in [(u64::MAX, CAPACITY), (4097, 4096), (4095, 0)] {
            raw.position = U64::new(stored);
            assert_eq!(raw.parse(CAPACITY, sector).position, expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_stored_is_remembered(sectors in 0..256_u64, counts: [u64; 6], flags in 0..4_u64) {
            let [started, finished, verified, corrupt, unreadable, repaired] = counts;
            let under_way = flags & 1 != 0;
            let record = ScrubRecord {
                position: sectors * 4096,
                started, finished, verified, corrupt, unreadable, repaired,
                under_way,
                paused: under_way && flags & 2 != 0,
            };
            prop_assert_eq!(record.to_raw().parse(CAPACITY, BlockSize::PAGE), record);
        }
    }
}
