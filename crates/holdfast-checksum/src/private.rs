//! Guards over a private copy: what cannot keep the data in registers loads it once into memory of
//! its own, small enough for the first-level cache, and works from there.

use std::mem::MaybeUninit;
use std::slice;

use crc_fast::Digest;

#[cfg(target_arch = "x86_64")]
use crate::copy::copy_avx2;
use crate::copy::copy_words;
use crate::kind::GuardKind;
use crate::level::Level;

const PRIVATE_BYTES: usize = 4096;

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
/// - `level` is available.
/// - `source` is readable for `len` bytes.
/// - `target`, if any, is writable for as many, and does not overlap `source`.
pub(crate) unsafe fn update_volatile(
    level: Level,
    kind: GuardKind,
    mut register: u64,
    source: *const u8,
    target: Option<*mut u8>,
    len: usize,
) -> u64 {
    let mut private = [MaybeUninit::<u8>::uninit(); PRIVATE_BYTES];
    let private: *mut u8 = private.as_mut_ptr().cast();
    let mut at = 0;
    while at < len {
        let piece = PRIVATE_BYTES.min(len - at);
        // SAFETY:
        // - `source` is readable for `len` bytes, and `at + piece <= len`.
        // - `piece` fits into `private`, which is ours.
        unsafe { copy(level, source.wrapping_add(at), private, piece) };
        // SAFETY: so many bytes were just written, and nothing changes them while this is used.
        let data = unsafe { slice::from_raw_parts(private.cast_const(), piece) };
        register = update(kind, register, data);
        if let Some(target) = target {
            // SAFETY:
            // - `data` is a reference to `piece` bytes.
            // - `target` is writable for `len` bytes, and `at + piece <= len`.
            unsafe { copy(level, data.as_ptr(), target.wrapping_add(at), piece) };
        }
        at += piece;
    }
    register
}

/// # Safety
///
/// As for [`copy_volatile`](crate::copy_volatile), and `level` is available.
unsafe fn copy(level: Level, source: *const u8, target: *mut u8, len: usize) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY:
        // - the level is available, and the one before has AVX2, too.
        // - our caller promises the rest.
        Level::Avx512 | Level::Avx2 => unsafe { copy_avx2(source, target, len) },
        // SAFETY: our caller promises what is asked for.
        _ => unsafe { copy_words(source, target, len) },
    }
}
