//! Each CRC bit by bit, as its standard defines it.

use crate::kind::GuardKind;

/// The guard of `data`.
pub(crate) fn guard(kind: GuardKind, data: &[u8]) -> u64 {
    match kind {
        // T10 SBC: polynomial 8BB7h, the highest bit first, from zero.
        GuardKind::Crc16 => data.iter().fold(0, |mut rest, byte| {
            rest ^= u64::from(*byte) << 8;
            for _ in 0..8 {
                rest = if rest & 0x8000 == 0 { rest << 1 } else { rest << 1 ^ 0x1_8BB7 };
            }
            rest
        }),
        // RFC 3720, 12.1: polynomial 11EDC6F41h, the lowest bit first, from ones, complemented.
        GuardKind::Crc32c => mirrored(0x1EDC_6F41_u32.reverse_bits().into(), 0xFFFF_FFFF, data),
        // NVM Command Set Specification: polynomial AD93D23594C93659h, otherwise likewise.
        GuardKind::Crc64 => mirrored(0xAD93_D235_94C9_3659_u64.reverse_bits(), u64::MAX, data),
    }
}

fn mirrored(polynomial: u64, ones: u64, data: &[u8]) -> u64 {
    let rest = data.iter().fold(ones, |mut rest, byte| {
        rest ^= u64::from(*byte);
        for _ in 0..8 {
            rest = if rest & 1 == 0 { rest >> 1 } else { rest >> 1 ^ polynomial };
        }
        rest
    });
    rest ^ ones
}
