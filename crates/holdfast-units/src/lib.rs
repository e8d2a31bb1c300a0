//! Which integer is which: block sizes, alignment, and the two conversions between an offset in a
//! device and a length in memory. Nothing here knows a device.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

use core::fmt;
use core::ops::Range;

const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "holdfast needs a 64-bit machine");

/// Returns an offset or a length in a device as a length in memory.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, as asserted above")]
pub const fn to_usize(value: u64) -> usize {
    value as usize
}

/// Returns a length in memory as a length in a device.
pub const fn to_u64(value: usize) -> u64 {
    value as u64
}

/// A power of two, in bytes: what offsets and lengths are multiples of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize {
    shift: u8,
}

impl BlockSize {
    /// The unit of every Linux block interface: 512 bytes.
    pub const SECTOR: Self = Self { shift: 9 };
    /// A page, and the default sector of a volume: 4096 bytes.
    pub const PAGE: Self = Self { shift: 12 };

    /// Returns the block size of `bytes`, or `None` when that is no power of two.
    pub const fn new(bytes: u64) -> Option<Self> {
        if !bytes.is_power_of_two() {
            return None;
        }
        // At most 63.
        #[expect(clippy::cast_possible_truncation, reason = "a u64 has fewer than 256 bits")]
        Some(Self { shift: bytes.trailing_zeros() as u8 })
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// Returns the size in bytes, as a length in memory.
    #[expect(clippy::len_without_is_empty, reason = "a block has at least one byte")]
    pub const fn len(self) -> usize {
        1 << self.shift
    }

    /// Returns how many whole blocks lie in `bytes`.
    pub const fn count(self, bytes: u64) -> u64 {
        bytes >> self.shift
    }

    /// Returns the byte at which block `index` begins, or `None` past 2^64.
    pub const fn start_of(self, index: u64) -> Option<u64> {
        index.checked_mul(self.bytes())
    }

    /// Returns how far `offset` lies behind the beginning of its block.
    pub const fn offset_in(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// Returns whether `offset` is a multiple of the block size.
    pub const fn is_aligned(self, offset: u64) -> bool {
        self.offset_in(offset) == 0
    }

    /// Returns the greatest multiple that is not above `offset`.
    pub const fn align_down(self, offset: u64) -> u64 {
        offset - self.offset_in(offset)
    }

    /// Returns the smallest multiple that is not below `offset`, or `None` past 2^64.
    pub const fn align_up(self, offset: u64) -> Option<u64> {
        match offset.checked_add(self.bytes() - 1) {
            Some(sum) => Some(self.align_down(sum)),
            None => None,
        }
    }
}

impl BlockSize {
    /// Cuts the `len` bytes at `offset` at blocks. Returns of each piece the index of its block, how far it
    /// lies behind the beginning of that, and which of the bytes it has.
    pub fn pieces(
        self,
        offset: u64,
        len: usize,
    ) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            let at = offset + to_u64(done);
            let in_block = to_usize(self.offset_in(at));
            let piece = done..len.min(done + self.len() - in_block);
            done = piece.end;
            (!piece.is_empty()).then_some((self.count(at), in_block, piece))
        })
    }
}

impl fmt::Debug for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockSize({})", self.bytes())
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_are_block_sizes() {
        let accepted: Vec<u64> = (0..20).filter(|&n| BlockSize::new(n).is_some()).collect();
        assert_eq!(accepted, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn aligning_up_past_the_last_block_is_none() {
        assert_eq!(BlockSize::PAGE.align_up(u64::MAX - 4094), None);
    }

    #[test]
    fn pieces_end_at_blocks_and_are_the_whole_range() {
        let pieces: Vec<_> = BlockSize::SECTOR.pieces(1000, 1100).collect();
        assert_eq!(
            pieces,
            [(1, 488, 0..24), (2, 0, 24..536), (3, 0, 536..1048), (4, 0, 1048..1100)]
        );
        assert_eq!(BlockSize::SECTOR.pieces(1000, 0).count(), 0);
    }

    #[test]
    fn aligning_brackets_the_offset() {
        let page = BlockSize::PAGE;
        for offset in [0, 1, 4095, 4096, 4097, 1 << 40] {
            let (down, up) = (page.align_down(offset), page.align_up(offset).unwrap());
            assert!(down <= offset && offset <= up && up - down <= 4096);
        }
    }
}
