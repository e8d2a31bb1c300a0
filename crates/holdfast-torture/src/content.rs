//! What torture stores: every word of a block says which request wrote it, for which block, and
//! where in the block it belongs. So what is read back convicts whoever misplaced, tore or lost it.
//!
//! The lowest bits of each word are free: they are what changes while the memory is in flight, and
//! any value of them is right.

use std::fmt;

pub use crate::model::Moment;

/// The unit of what is known: a block of every Linux block interface, in bytes.
pub const BLOCK: usize = 512;
/// The bytes of a word.
pub const WORD: usize = 8;
/// The words of a block.
pub(crate) const WORDS: usize = BLOCK / WORD;
/// In a block that is read into memory that changes, one of so many words, the last, is written to
/// meanwhile and says nothing.
pub const SCRIBBLED_OF: usize = 8;
/// The free bits of a word, all in its first byte.
pub const FREE: u8 = 0x0f;

/// What the words of a block have, from the lowest bit: 4 free bits, 6 of the index in the block, 20
/// of the block, 26 of the request, 8 that are never all zeros.
const INDEX_AT: u32 = 4;
const BLOCK_AT: u32 = 10;
const REQUEST_AT: u32 = 30;
const MARK_AT: u32 = 56;
const MARK: u64 = 0xb7;
/// The blocks and requests that a word has room for.
pub(crate) const BLOCKS_MAX: u64 = 1 << (REQUEST_AT - BLOCK_AT);
pub(crate) const REQUESTS_MAX: u64 = 1 << (MARK_AT - REQUEST_AT);

/// Which request wrote a block, and as which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// When the request began, which names it.
    pub request: Moment,
    /// The block that the words name: the one that they are in, unless a page was written to several
    /// blocks at once.
    pub block: u64,
}

impl Origin {
    /// Returns the first word, with free bits of 0.
    fn base(self) -> u64 {
        let request = self.request.number();
        debug_assert!(request < REQUESTS_MAX && self.block < BLOCKS_MAX, "{self}");
        MARK << MARK_AT | request << REQUEST_AT | self.block << BLOCK_AT
    }

    /// Fills a block.
    pub fn fill(self, block: &mut [u8]) {
        let base = self.base();
        for (bytes, index) in block.chunks_exact_mut(WORD).zip(0..) {
            bytes.copy_from_slice(&(base | index << INDEX_AT).to_le_bytes());
        }
    }

    /// Returns the origin that a word names, and the index of the word in its block.
    fn of_word(word: u64) -> Option<(Self, u64)> {
        let field = |from: u32, to: u32| word >> from & ((1 << (to - from)) - 1);
        let request = Moment::of_number(field(REQUEST_AT, MARK_AT));
        let origin = Self { request, block: field(BLOCK_AT, REQUEST_AT) };
        (word >> MARK_AT == MARK).then_some((origin, field(INDEX_AT, BLOCK_AT)))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what request {} wrote for block {}", self.request, self.block)
    }
}

/// What a block is found to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeros.
    Zeros,
    /// All of what one request wrote.
    Whole(Origin),
    /// A word that is no part of what the first word says.
    Torn {
        /// The index of the word in the block.
        at: usize,
        /// The first word that says something.
        first: u64,
        /// The word at `at`.
        other: u64,
    },
}

impl Found {
    /// Looks at a block. Where `scribbled` says so, the last of each [`SCRIBBLED_OF`] words is not
    /// looked at.
    pub fn of(block: &[u8], scribbled: bool) -> Self {
        let (words, _) = block.as_chunks::<WORD>();
        let word = |at: usize| u64::from_le_bytes(words[at]) & !u64::from(FREE);
        // Zeros have free bits as well when they are read, and those must be 0.
        let first = u64::from_le_bytes(words[0]);
        let expected = |at: usize| if first == 0 { 0 } else { word(0) | (at as u64) << INDEX_AT };
        let is_checked = |at: usize| !scribbled || at % SCRIBBLED_OF != SCRIBBLED_OF - 1;
        let free = |at: usize| first == 0 && words[at][0] & FREE != 0;
        let wrong = (0..WORDS).find(|&at| is_checked(at) && (word(at) != expected(at) || free(at)));
        match (wrong, Origin::of_word(first)) {
            (None, _) if first == 0 => Self::Zeros,
            (None, Some((origin, 0))) => Self::Whole(origin),
            (at, _) => {
                let at = at.unwrap_or(0);
                Self::Torn { at, first, other: u64::from_le_bytes(words[at]) }
            }
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |word: u64| match Origin::of_word(word) {
            Some((origin, index)) => format!("{origin}, word {index}"),
            None => format!("{word:#018x}"),
        };
        match *self {
            Self::Zeros => f.write_str("zeros"),
            Self::Whole(origin) => origin.fmt(f),
            Self::Torn { at, first, other } => {
                write!(f, "in word 0 {}, and in word {at} {}", say(first), say(other))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(request: u64, block: u64) -> Origin {
        Origin { request: Moment::of_number(request), block }
    }

    fn block(origin: Origin) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        origin.fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_block_says_where_it_is_from() {
        for origin in [origin(1, 0), origin(REQUESTS_MAX - 1, BLOCKS_MAX - 1), origin(0, 7)] {
            assert_eq!(Found::of(&block(origin), false), Found::Whole(origin));
        }
    }

    #[test]
    fn free_bits_may_have_any_value() {
        let mut bytes = block(origin(5, 6));
        for (word, value) in bytes.chunks_mut(WORD).zip((0..16).cycle()) {
            word[0] ^= value;
        }
        assert_eq!(Found::of(&bytes, false), Found::Whole(origin(5, 6)));
    }

    #[test]
    fn a_flipped_bit_that_is_not_free_is_found() {
        for bit in (0..BLOCK * 8).filter(|bit| bit % 64 >= 4) {
            let mut bytes = block(origin(5, 6));
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Found::of(&bytes, false), Found::Whole(origin(5, 6)), "bit {bit}");
        }
    }

    #[test]
    fn a_block_of_two_writes_is_torn() {
        let mut bytes = block(origin(5, 6));
        bytes[256..].copy_from_slice(&block(origin(6, 6))[256..]);
        assert!(matches!(Found::of(&bytes, false), Found::Torn { at: 32, .. }));
        bytes[256..].fill(0);
        assert!(matches!(Found::of(&bytes, false), Found::Torn { at: 32, .. }));
    }

    #[test]
    fn a_shifted_block_is_torn() {
        let mut bytes = block(origin(5, 6));
        bytes.rotate_left(WORD);
        assert!(matches!(Found::of(&bytes, false), Found::Torn { .. }));
    }

    #[test]
    fn zeros_are_zeros_to_the_last_bit() {
        let mut bytes = [0; BLOCK];
        assert_eq!(Found::of(&bytes, false), Found::Zeros);
        bytes[80] = 1;
        assert!(matches!(Found::of(&bytes, false), Found::Torn { at: 10, .. }));
    }

    #[test]
    fn words_that_are_scribbled_on_say_nothing() {
        let mut bytes = block(origin(5, 6));
        for group in bytes.chunks_mut(WORD * SCRIBBLED_OF) {
            group[WORD * (SCRIBBLED_OF - 1)..].fill(0xff);
        }
        assert_eq!(Found::of(&bytes, true), Found::Whole(origin(5, 6)));
        assert!(matches!(Found::of(&bytes, false), Found::Torn { at: 7, .. }));
    }
}
