//! The three formats of a tuple.

use core::mem::offset_of;

use holdfast_checksum::GuardKind;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

/// The 8-byte tuple with a CRC-16 guard: T10 SBC-4, 4.21.2, and the NVMe 16b guard format.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct T10Tuple {
    /// The guard tag.
    pub guard: U16,
    /// The application tag.
    pub application: U16,
    /// The reference tag.
    pub reference: U32,
}

/// The 16-byte tuple with a CRC-32C guard: NVMe command set, 32b guard format, without a storage
/// tag.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Nvme32Tuple {
    /// The guard tag.
    pub guard: U32,
    /// The application tag.
    pub application: U16,
    /// The upper 16 bits of the reference tag's 80, which are always 0 here.
    pub reference_high: U16,
    /// The lower 64 bits of the reference tag.
    pub reference: U64,
}

/// The 16-byte tuple with a CRC-64/NVMe guard: NVMe command set, 64b guard format, without a
/// storage tag.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Nvme64Tuple {
    /// The guard tag.
    pub guard: U64,
    /// The application tag.
    pub application: U16,
    /// The reference tag: 48 bits.
    pub reference: [u8; 6],
}

const _: () = {
    assert!(size_of::<T10Tuple>() == 8);
    assert!(offset_of!(T10Tuple, application) == 2);
    assert!(offset_of!(T10Tuple, reference) == 4);
    assert!(size_of::<Nvme32Tuple>() == 16);
    assert!(offset_of!(Nvme32Tuple, application) == 4);
    assert!(offset_of!(Nvme32Tuple, reference) == 8);
    assert!(size_of::<Nvme64Tuple>() == 16);
    assert!(offset_of!(Nvme64Tuple, application) == 8);
    assert!(offset_of!(Nvme64Tuple, reference) == 10);
};

/// A tuple, whatever its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The guard tag, as wide as the format's.
    pub guard: u64,
    /// The application tag.
    pub application: u16,
    /// The reference tag, as wide as the format's.
    pub reference: u64,
}

impl Tuple {
    /// Returns the size of a tuple of this kind, in bytes.
    pub const fn size(kind: GuardKind) -> usize {
        Self::words(kind) * size_of::<u64>()
    }

    /// Returns the size of a tuple of this kind, in words of 64 bits.
    pub const fn words(kind: GuardKind) -> usize {
        match kind {
            GuardKind::Crc16 => 1,
            GuardKind::Crc32c | GuardKind::Crc64 => 2,
        }
    }

    /// Returns how many bits of the reference tag a tuple of this kind keeps, of the 64 used here.
    pub const fn reference_mask(kind: GuardKind) -> u64 {
        match kind {
            GuardKind::Crc16 => u32::MAX as u64,
            GuardKind::Crc32c => u64::MAX,
            GuardKind::Crc64 => (1 << 48) - 1,
        }
    }

    /// Returns the tuple's bytes as big-endian words; the second is 0 for the format that has one.
    #[expect(clippy::cast_possible_truncation, reason = "the format keeps only so many bits")]
    pub fn to_words(self, kind: GuardKind) -> [u64; 2] {
        let application = U16::new(self.application);
        match kind {
            GuardKind::Crc16 => {
                let (guard, reference) =
                    (U16::new(self.guard as u16), U32::new(self.reference as u32));
                let word: U64 = transmute!(T10Tuple { guard, application, reference });
                [word.get(), 0]
            }
            GuardKind::Crc32c => {
                let guard = U32::new(self.guard as u32);
                let (reference_high, reference) = (U16::ZERO, U64::new(self.reference));
                let tuple = Nvme32Tuple { guard, application, reference_high, reference };
                let words: [U64; 2] = transmute!(tuple);
                words.map(U64::get)
            }
            GuardKind::Crc64 => {
                let [_, _, reference @ ..] = self.reference.to_be_bytes();
                let tuple = Nvme64Tuple { guard: U64::new(self.guard), application, reference };
                let words: [U64; 2] = transmute!(tuple);
                words.map(U64::get)
            }
        }
    }

    /// Returns the tuple whose bytes are these big-endian words.
    pub fn from_words(kind: GuardKind, words: [u64; 2]) -> Self {
        let words = words.map(U64::new);
        match kind {
            GuardKind::Crc16 => {
                let tuple: T10Tuple = transmute!(words[0]);
                Self {
                    guard: tuple.guard.get().into(),
                    application: tuple.application.get(),
                    reference: tuple.reference.get().into(),
                }
            }
            GuardKind::Crc32c => {
                let tuple: Nvme32Tuple = transmute!(words);
                Self {
                    guard: tuple.guard.get().into(),
                    application: tuple.application.get(),
                    // Bits in the part that is always 0 must not go unseen: no sector has an
                    // address with the highest bit set.
                    reference: match tuple.reference_high.get() {
                        0 => tuple.reference.get(),
                        _ => tuple.reference.get() | 1 << 63,
                    },
                }
            }
            GuardKind::Crc64 => {
                let tuple: Nvme64Tuple = transmute!(words);
                let [a, b, c, d, e, f] = tuple.reference;
                Self {
                    guard: tuple.guard.get(),
                    application: tuple.application.get(),
                    reference: u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_where_the_standards_put_them() {
        let tuple =
            Tuple { guard: 0x0102_0304_0506_0708, application: 0xa1a2, reference: 0xb1b2_b3b4 };
        let bytes = |kind| tuple.to_words(kind).map(u64::to_be_bytes).concat();
        assert_eq!(bytes(GuardKind::Crc16)[..8], [7, 8, 0xa1, 0xa2, 0xb1, 0xb2, 0xb3, 0xb4]);
        assert_eq!(
            bytes(GuardKind::Crc32c),
            [5, 6, 7, 8, 0xa1, 0xa2, 0, 0, 0, 0, 0, 0, 0xb1, 0xb2, 0xb3, 0xb4]
        );
        assert_eq!(
            bytes(GuardKind::Crc64),
            [1, 2, 3, 4, 5, 6, 7, 8, 0xa1, 0xa2, 0, 0, 0xb1, 0xb2, 0xb3, 0xb4]
        );
    }

    proptest! {
        #[test]
        fn a_tuple_survives_its_words(
            kind in prop::sample::select(GuardKind::ALL.to_vec()),
            guard: u64, application: u16, reference: u64,
        ) {
            let guard = guard & (u64::MAX >> (64 - kind.bits()));
            let reference = reference & Tuple::reference_mask(kind);
            let tuple = Tuple { guard, application, reference };
            prop_assert_eq!(Tuple::from_words(kind, tuple.to_words(kind)), tuple);
        }

        #[test]
        fn every_bit_of_the_words_makes_another_tuple(
            kind in prop::sample::select(GuardKind::ALL.to_vec()),
            bit in 0..128_usize, guard: u64, reference in 0..1_u64 << 40,
        ) {
            let bit = bit % (Tuple::words(kind) * 64);
            let tuple = Tuple { guard, application: 7, reference };
            let mut words = tuple.to_words(kind);
            let before = Tuple::from_words(kind, words);
            words[bit / 64] ^= 1 << (bit % 64);
            prop_assert_ne!(Tuple::from_words(kind, words), before);
        }
    }
}
