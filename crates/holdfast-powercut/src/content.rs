//! What a run stores: the words of the torture, which say which write a unit is from and where it
//! belongs.
//!
//! The lowest bits of each word are free: a guest changes them while the write is in flight.

use std::fmt;

use holdfast_torture::content::{self, BLOCK, FREE, Moment, Origin, SCRIBBLED_OF, WORD};
use holdfast_units::{to_u64, to_usize};

/// What is known is known of so many bytes at a time: no power cut tears them.
pub(crate) const UNIT: usize = BLOCK;

/// Fills whole units, of which the first is `unit`, with what `write` stores there.
pub(crate) fn fill(bytes: &mut [u8], write: usize, unit: usize) {
    let request = Moment::of_number(to_u64(write));
    for (bytes, unit) in bytes.chunks_exact_mut(UNIT).zip(unit..) {
        Origin { request, block: to_u64(unit) }.fill(bytes);
    }
}

/// Returns another value that the byte at `at` of a write's data may have, of `free` bits.
pub(crate) fn changed(at: usize, free: u8) -> Option<u8> {
    let index = at % UNIT / WORD;
    // The first byte of a word has the lowest bits of its index behind the free bits.
    let low = u8::try_from(index << FREE.count_ones() & 0xf0).ok()?;
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
        match content::Found::of(bytes, scribbled) {
            content::Found::Zeros => Self::Zeros,
            content::Found::Whole(origin) if origin.block == to_u64(unit) => {
                Self::Write(to_usize(origin.request.number()))
            }
            _ => Self::Foreign { word: u64::from_le_bytes(bytes.as_chunks().0[0]) },
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
