//! Timestamps, of which there are two kinds.

/// A point in time, of the range of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds from there on, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    const NANOSECONDS: u64 = 1_000_000_000;
    /// What the nanoseconds of large timestamps are counted from: the earliest that the others know.
    const EPOCH: i64 = i32::MIN as i64;

    /// Returns what 8 bytes say: nanoseconds since December 1901 when timestamps are large
    /// (`bigtime`), and seconds and nanoseconds of 32 bits each otherwise.
    pub const fn decode(value: u64, is_large: bool) -> Self {
        if is_large {
            let (seconds, rest) = (value / Self::NANOSECONDS, value % Self::NANOSECONDS);
            // A u64 of nanoseconds has 34 bits of seconds, and the rest is below 2^30.
            #[expect(clippy::cast_possible_truncation, reason = "the rest is below 10^9")]
            return Self { seconds: seconds.cast_signed() + Self::EPOCH, nanoseconds: rest as u32 };
        }
        #[expect(clippy::cast_possible_truncation, reason = "these are the two halves")]
        let (seconds, nanoseconds) = ((value >> 32) as u32, value as u32);
        let seconds = seconds.cast_signed() as i64;
        Self { seconds, nanoseconds }
    }

    /// Returns the 8 bytes that say so, or the earliest or the latest of their kind when this is none of
    /// those that they can say.
    pub const fn encode(self, is_large: bool) -> u64 {
        let (first, last) = Self::range(is_large);
        let time = if self.seconds < first.seconds {
            first
        } else if self.seconds > last.seconds {
            last
        } else {
            self
        };
        let nanoseconds = time.nanoseconds as u64;
        if is_large {
            let seconds = (time.seconds - Self::EPOCH).unsigned_abs();
            return seconds.saturating_mul(Self::NANOSECONDS).saturating_add(nanoseconds);
        }
        (time.seconds.cast_unsigned() & 0xffff_ffff) << 32 | nanoseconds
    }

    /// Returns the earliest and the latest time of a kind.
    const fn range(is_large: bool) -> (Self, Self) {
        if is_large {
            return (Self::decode(0, true), Self::decode(u64::MAX, true));
        }
        let first = Self { seconds: i32::MIN as i64, nanoseconds: 0 };
        (first, Self { seconds: i32::MAX as i64, nanoseconds: 999_999_999 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_timestamps_reach_from_1901_to_2486() {
        let first = Timestamp::decode(0, true);
        let last = Timestamp::decode(u64::MAX, true);
        assert_eq!((first.seconds, first.nanoseconds), (-2_147_483_648, 0));
        assert_eq!((last.seconds, last.nanoseconds), (16_299_260_425, 709_551_615));
    }

    #[test]
    fn what_cannot_be_said_becomes_the_nearest_that_can() {
        let time = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        for is_large in [false, true] {
            for time in [time(0, 0), time(-1, 999_999_999), time(i64::from(i32::MAX), 5)] {
                assert_eq!(Timestamp::decode(time.encode(is_large), is_large), time);
            }
            let last = Timestamp::decode(time(i64::MAX, 0).encode(is_large), is_large);
            assert_eq!(last, Timestamp::range(is_large).1);
            let first = Timestamp::decode(time(i64::MIN, 0).encode(is_large), is_large);
            assert_eq!(first, Timestamp::range(is_large).0);
        }
    }

    #[test]
    fn small_timestamps_are_signed() {
        let time = Timestamp::decode(0xffff_ffff_0000_0007, false);
        assert_eq!(time, Timestamp { seconds: -1, nanoseconds: 7 });
    }
}
