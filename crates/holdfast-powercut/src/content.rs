//! What a run stores: every word of a unit says which write it is from, for which unit, and where in
//! the unit it belongs.
//!
//! The lowest bits of each word are free: a guest changes them while the write is in flight.

use std::fmt;

use holdfast_units::to_u64;

/// What is known is known of so many bytes at a time: no power cut tears them.
pub(crate) const UNIT: usize = 512;
const WORD: usize = 8;
/// The free bits of a word, all in its first byte.
pub(crate) const FREE: u8 = 0x0f;
/// In a unit that is read into memory that changes, one of so many words, the last, is written to
/// meanwhile and says nothing.
pub(crate) const SCRIBBLED_OF: usize = 8;

/// What words have, from the lowest bit: 4 free bits, 6 of the index in the unit, 20 of the unit, 26
/// of the write, 8 that are never all zeros.
const INDEX_AT: u32 = 4;
const UNIT_AT: u32 = 10;
const WRITE_AT: u32 = 30;
const MARK_AT: u32 = 56;
const MARK: u64 = 0xb7;

/// Returns the first word of a unit, with free bits of 0.
fn base(write: usize, unit: usize) -> u64 {
    debug_assert!(write < 1 << (MARK_AT - WRITE_AT) && unit < 1 << (WRITE_AT - UNIT_AT));
    MARK << MARK_AT | to_u64(write) << WRITE_AT | to_u64(unit) << UNIT_AT
}

/// Fills whole units, of which the first is `unit`, with what `write` stores there.
pub(crate) fn fill(bytes: &mut [u8], write: usize, unit: usize) {
    for (bytes, unit) in bytes.chunks_exact_mut(UNIT).zip(unit..) {
        let base = base(write, unit);
        for (word, index) in bytes.as_chunks_mut::<WORD>().0.iter_mut().zip(0..) {
            *word = (base | index << INDEX_AT).to_le_bytes();
        }
    }
}

/// Returns another value that the byte at `at` of a write's data may have, of `free` bits.
pub(crate) fn changed(at: usize, free: u8) -> Option<u8> {
    let index = at % UNIT / WORD;
    // The first byte of a word has the lowest bits of its index behind the free bits.
    let low = u8::try_from(index << INDEX_AT & 0xf0).ok()?;
    at.is_multiple_of(WORD).then_some(low | free & FREE)
}

/// Returns whether the byte at `at` of data that are read may be overwritten meanwhile.
pub(crate) const fn is_scribbled(at: usize) -> bool {
    at / WORD % SCRIBBLED_OF == SCRIBBLED_OF - 1
}

/// What a unit is found to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Zeros.
    Zeros,
    /// All of what one write stored here.
    Write(usize),
    /// Anything else.
    Foreign {
        /// The first word.
        word: u64,
    },
}

impl Found {
    /// Looks at a unit. Where `scribbled` says so, the last of each [`SCRIBBLED_OF`] words is not
    /// looked at.
    pub(crate) fn of(bytes: &[u8], unit: usize, scribbled: bool) -> Self {
        let (words, _) = bytes.as_chunks::<WORD>();
        let first = u64::from_le_bytes(words[0]);
        let write = first >> WRITE_AT & ((1 << (MARK_AT - WRITE_AT)) - 1);
        let write = holdfast_units::to_usize(write);
        let (expected, mask) =
            if first == 0 { (0, u64::MAX) } else { (base(write, unit), !u64::from(FREE)) };
        let step = u64::from(first != 0) << INDEX_AT;
        let is_right = words.iter().zip(0_u64..).all(|(word, index)| {
            let is_checked = !scribbled || index % to_u64(SCRIBBLED_OF) != to_u64(SCRIBBLED_OF) - 1;
            !is_checked || u64::from_le_bytes(*word) & mask == expected + index * step
        });
        match is_right {
            true if first == 0 => Self::Zeros,
            true => Self::Write(write),
            false => Self::Foreign { word: first },
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("zeros"),
            Self::Write(write) => write!(f, "write {write}"),
            Self::Foreign { word } => write!(f, "{word:#018x}.."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(write: usize, unit: usize) -> [u8; UNIT] {
        let mut bytes = [0; UNIT];
        fill(&mut bytes, write, unit);
        bytes
    }

    #[test]
    fn a_unit_says_which_write_it_is_from() {
        assert_eq!(Found::of(&unit(77, 5), 5, false), Found::Write(77));
        assert_eq!(Found::of(&[0; UNIT], 5, false), Found::Zeros);
    }

    #[test]
    fn a_unit_in_another_place_is_foreign() {
        assert!(matches!(Found::of(&unit(77, 5), 6, false), Found::Foreign { .. }));
    }

    #[test]
    fn free_bits_may_have_any_value() {
        let mut bytes = unit(77, 5);
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = changed(at, 0x5a).unwrap_or(*byte);
        }
        assert_ne!(bytes, unit(77, 5));
        assert_eq!(Found::of(&bytes, 5, false), Found::Write(77));
    }

    #[test]
    fn a_flipped_bit_that_is_not_free_is_found() {
        for bit in (0..UNIT * 8).filter(|bit| bit % 64 >= 4) {
            let mut bytes = unit(77, 5);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Found::of(&bytes, 5, false), Found::Write(77), "bit {bit}");
        }
    }

    #[test]
    fn zeros_are_zeros_to_the_last_bit() {
        for bit in 0..UNIT * 8 {
            let mut bytes = [0; UNIT];
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Found::of(&bytes, 5, false), Found::Foreign { .. }), "bit {bit}");
        }
    }

    #[test]
    fn two_writes_in_a_unit_are_foreign() {
        let mut bytes = unit(77, 5);
        bytes[256..].copy_from_slice(&unit(78, 5)[256..]);
        assert!(matches!(Found::of(&bytes, 5, false), Found::Foreign { .. }));
    }

    #[test]
    fn what_is_scribbled_on_says_nothing() {
        let mut bytes = unit(77, 5);
        (0..UNIT).filter(|at| is_scribbled(*at)).for_each(|at| bytes[at] = 0xff);
        assert_eq!(Found::of(&bytes, 5, true), Found::Write(77));
        assert!(matches!(Found::of(&bytes, 5, false), Found::Foreign { .. }));
    }
}
