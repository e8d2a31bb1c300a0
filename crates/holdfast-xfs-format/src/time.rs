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
    fn small_timestamps_are_signed() {
        let time = Timestamp::decode(0xffff_ffff_0000_0007, false);
        assert_eq!(time, Timestamp { seconds: -1, nanoseconds: 7 });
    }
}
