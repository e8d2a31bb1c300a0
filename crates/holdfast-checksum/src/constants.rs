//! The multipliers of the folding kernels, computed from the polynomials.
//!
//! A message is a polynomial over GF(2) whose first bit has the highest power. A *lane* is 128 bits
//! of it, `H * x^64 + L`. What follows it by `n` bits may be replaced by a shorter polynomial that
//! leaves the same remainder, `H * (x^(n+64) mod P) + L * (x^n mod P)`: one multiplication each.
//!
//! Where the first bit of a byte is its lowest (CRC-32C, CRC-64) everything is mirrored: bit 0 of a
//! register is its highest power. Mirrored factors of 64 bits have a mirrored product of 127 bits,
//! which in a register of 128 reads as the product times x; the constants make up for that.

use crate::kind::GuardKind;

/// How many accumulators of 512 bits the kernel has.
pub(crate) const ACCUMULATORS: usize = 4;

/// How many bytes the kernel takes at a time: one register for each accumulator.
pub(crate) const BLOCK: usize = ACCUMULATORS * 64;

const LANE_BITS: usize = 128;

/// How many accumulators of 128 bits the narrow kernel has, and how many bytes it takes at a time.
pub(crate) const NARROW_LANES: usize = 8;
pub(crate) const NARROW_BLOCK: usize = NARROW_LANES * 16;

/// What the kernels multiply with. In each pair the first is for the low half of a lane.
#[derive(Debug)]
pub(crate) struct Constants {
    /// Moves a lane past one block.
    pub(crate) fold: [u64; 2],
    /// Moves a lane past one block of the narrow kernel.
    pub(crate) fold_narrow: [u64; 2],
    /// Moves each lane of the last block to the end of the message, and `bits` further: what the
    /// sum of the products leaves, times `x^(64-bits)`, is the CRC times `x^(64-bits)`.
    pub(crate) finish: [[u64; 8]; ACCUMULATORS],
    /// The quotient `x^(64+bits) / P` and the divisor `P * x^(64-bits)`, each without one of its 65
    /// terms: the highest, or where mirrored the lowest.
    pub(crate) divide: [u64; 2],
}

/// A kind of guard as the kernel knows it, at compile time.
pub(crate) trait Format {
    const KIND: GuardKind;
    /// The polynomial without its highest term.
    const TERMS: u64;
    /// Whether the lowest bit of a byte has its highest power.
    const MIRRORED: bool;
    const CONSTANTS: Constants =
        Polynomial { bits: Self::KIND.bits(), terms: Self::TERMS, mirrored: Self::MIRRORED }
            .constants();
}

#[derive(Debug)]
pub(crate) struct Crc16;

impl Format for Crc16 {
    const KIND: GuardKind = GuardKind::Crc16;
    const TERMS: u64 = 0x8BB7;
    const MIRRORED: bool = false;
}

#[derive(Debug)]
pub(crate) struct Crc32c;

impl Format for Crc32c {
    const KIND: GuardKind = GuardKind::Crc32c;
    const TERMS: u64 = 0x1EDC_6F41;
    const MIRRORED: bool = true;
}

#[derive(Debug)]
pub(crate) struct Crc64;

impl Format for Crc64 {
    const KIND: GuardKind = GuardKind::Crc64;
    const TERMS: u64 = 0xAD93_D235_94C9_3659;
    const MIRRORED: bool = true;
}

struct Polynomial {
    bits: u32,
    terms: u64,
    mirrored: bool,
}

impl Polynomial {
    const fn constants(&self) -> Constants {
        // A mirrored product reads as if it were multiplied by x.
        let fold = self.lane(8 * BLOCK - self.mirrored as usize, 0);
        let fold_narrow = self.lane(8 * NARROW_BLOCK - self.mirrored as usize, 0);
        let mut finish = [[0; 8]; ACCUMULATORS];
        let lanes = ACCUMULATORS * 4;
        let mut at = 0;
        while at < lanes {
            let lane = self.finish((lanes - 1 - at) * LANE_BITS);
            finish[at / 4][at % 4 * 2] = lane[0];
            finish[at / 4][at % 4 * 2 + 1] = lane[1];
            at += 1;
        }
        Constants { fold, fold_narrow, finish, divide: self.divide() }
    }

    /// The multipliers for a lane after which `following` bits come.
    const fn finish(&self, following: usize) -> [u64; 2] {
        // The shift lifts the sum so that the part above x^bits fills one half of a register. The
        // exponent is what else is needed to have moved by 64 in all, with the mirrored x.
        let room = 64 - self.mirrored as usize;
        let shift = room.saturating_sub(self.bits as usize);
        self.lane(following + room - shift, shift)
    }

    /// The multipliers that move the second half of a lane by `exponent`, and the first by 64 more.
    const fn lane(&self, exponent: usize, shift: usize) -> [u64; 2] {
        let first = self.factor(exponent + 64, shift);
        let second = self.factor(exponent, shift);
        if self.mirrored { [first, second] } else { [second, first] }
    }

    const fn factor(&self, exponent: usize, shift: usize) -> u64 {
        let factor = self.power(exponent) << shift;
        if self.mirrored { factor.reverse_bits() } else { factor }
    }

    /// Returns `x^exponent mod P`.
    const fn power(&self, exponent: usize) -> u64 {
        let mut rest = 1;
        let mut at = 0;
        while at < exponent {
            rest = self.times_x(rest).1;
            at += 1;
        }
        rest
    }

    /// Returns the quotient and the remainder of `rest * x / P`.
    const fn times_x(&self, rest: u64) -> (u64, u64) {
        let carry = (rest >> (self.bits - 1)) & 1;
        let mask = u64::MAX >> (64 - self.bits);
        (carry, ((rest << 1) & mask) ^ (carry * self.terms))
    }

    const fn divide(&self) -> [u64; 2] {
        // Long division: the highest of the 65 terms of the quotient, x^64, leaves `terms`.
        let mut quotient = 0;
        let mut rest = self.terms;
        let mut at = 0;
        while at < 64 {
            let (carry, next) = self.times_x(rest);
            quotient = (quotient << 1) | carry;
            rest = next;
            at += 1;
        }
        let divisor = self.terms << (64 - self.bits);
        if self.mirrored {
            let highest = 1 << 63;
            [(highest | quotient >> 1).reverse_bits(), (highest | divisor >> 1).reverse_bits()]
        } else {
            [quotient, divisor]
        }
    }
}
