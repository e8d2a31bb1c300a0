//! Guards over a private copy: what cannot keep the data in registers loads it once into memory of
//! its own, small enough for the first-level cache, and works from there.

use std::mem::MaybeUninit;
use std::slice;

use crc_fast::Digest;

use crate::copy::copy_volatile;
use crate::kind::GuardKind;

/// What is loaded at a time.
const PIECE: usize = 4096;

/// Takes stable bytes into the CRC register.
pub(crate) fn update(kind: GuardKind, register: u64, data: &[u8]) -> u64 {
    if register == kind.seed() {
        // The same, without a digest to set up.
        return crc_fast::checksum(kind.algorithm(), data) ^ kind.seed();
    }
    let mut digest = Digest::new_with_init_state(kind.algorithm(), register);
    digest.update(data);
    digest.get_state()
}

/// Takes `len` more bytes into the CRC register, and copies them to `target` if there is one.
///
/// # Safety
///
/// - `source` is readable for `len` bytes.
/// - `target`, if any, is writable for as many, and does not overlap `source`.
pub(crate) unsafe fn update_volatile(
    kind: GuardKind,
    mut register: u64,
    source: *const u8,
    target: Option<*mut u8>,
    len: usize,
) -> u64 {
    let mut private = [MaybeUninit::<u8>::uninit(); PIECE];
    let private: *mut u8 = private.as_mut_ptr().cast();
    let mut at = 0;
    while at < len {
        let piece = PIECE.min(len - at);
        // SAFETY:
        // - `source` is readable for `len` bytes, and `at + piece <= len`.
        // - `piece` fits into `private`, which is ours.
        unsafe { copy_volatile(source.wrapping_add(at), private, piece) };
        // SAFETY: so many bytes were just written, and nothing changes them while this is used.
        let data = unsafe { slice::from_raw_parts(private.cast_const(), piece) };
        register = update(kind, register, data);
        if let Some(target) = target {
            // SAFETY:
            // - `data` is a reference to `piece` bytes.
            // - `target` is writable for `len` bytes, and `at + piece <= len`.
            unsafe { copy_volatile(data.as_ptr(), target.wrapping_add(at), piece) };
        }
        at += piece;
    }
    register
}

/// Computes one guard for each interval of what is copied to `target`, which is private enough.
///
/// # Safety
///
/// `source` is readable for as many bytes as `target` has, which are one interval for each guard, and no
/// interval is empty.
pub(crate) unsafe fn generate_copied(
    kind: GuardKind,
    interval: usize,
    mut source: *const u8,
    target: &mut [u8],
    guards: &mut [u64],
) {
    let intervals = (PIECE / interval).max(1);
    let pieces = target.chunks_mut(intervals * interval).zip(guards.chunks_mut(intervals));
    for (piece, guards) in pieces {
        // SAFETY:
        // - our caller promises as many bytes of the source as `target` has, of which this is a piece.
        // - `piece` is a reference, so nothing overlaps it.
        unsafe { copy_volatile(source, piece.as_mut_ptr(), piece.len()) };
        source = source.wrapping_add(piece.len());
        for (data, guard) in piece.chunks_exact(interval).zip(guards) {
            *guard = kind.seed() ^ update(kind, kind.seed(), data);
        }
    }
}
