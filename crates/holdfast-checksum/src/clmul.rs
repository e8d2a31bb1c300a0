//! The kernel for AVX2 with PCLMULQDQ: as that for AVX-512, in registers of 128 bits.
//!
//! Eight accumulators, each folded past a block per step; at the end of an interval each is multiplied to where
//! the message ends, and the sum is divided by the polynomial.
//!
//! Loads and stores are assembly: the compiler can neither repeat them nor leave them out.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ptr;

use crate::constants::{Crc16, Crc32c, Crc64, Format, NARROW_BLOCK, NARROW_LANES};
use crate::copy::copy_volatile;
use crate::fold::{DROP, LINE, STORE, STREAM, split_register};
use crate::kind::GuardKind;
use crate::stores::Stores;

/// How many lanes are loaded at a time, which leaves registers for the accumulators.
const PART: usize = 4;

/// Computes one guard for each interval, and copies to `target` if there is one.
///
/// # Safety
///
/// - [`Level::Avx2`](crate::Level::Avx2) is available.
/// - `source` is readable for `interval * guards.len()` bytes.
/// - `target`, if any, is writable for as many, and overlaps neither `source` nor `guards`.
pub(crate) unsafe fn generate(
    kind: GuardKind,
    interval: usize,
    source: *const u8,
    target: Option<(*mut u8, Stores)>,
    guards: &mut [u64],
) {
    let (target, store) = match target {
        None => (ptr::null_mut(), DROP),
        Some((target, Stores::NonTemporal))
            if target.addr().is_multiple_of(LINE) && interval.is_multiple_of(NARROW_BLOCK) =>
        {
            (target, STREAM)
        }
        Some((target, _)) => (target, STORE),
    };
    let run = update_of(kind, store);
    for (index, guard) in guards.iter_mut().enumerate() {
        let at = index * interval;
        let (source, target) = (source.wrapping_add(at), target.wrapping_add(at));
        // SAFETY: this is interval `index` of those that our caller promises, without a target nothing is
        // stored, and the target and the intervals are aligned where that is needed.
        *guard = kind.seed() ^ unsafe { run(kind.seed(), source, target, interval) };
    }
    if store == STREAM {
        // What is stored after this is seen after it.
        // SAFETY: every x86-64 has the instruction.
        unsafe { _mm_sfence() };
    }
}

/// Takes `len` more bytes into the CRC register, and copies them to `target` if there is one.
///
/// # Safety
///
/// - [`Level::Avx2`](crate::Level::Avx2) is available.
/// - `source` is readable for `len` bytes.
/// - `target`, if any, is writable for as many, and does not overlap `source`.
pub(crate) unsafe fn update(
    kind: GuardKind,
    register: u64,
    source: *const u8,
    target: Option<*mut u8>,
    len: usize,
) -> u64 {
    let run = update_of(kind, if target.is_some() { STORE } else { DROP });
    // SAFETY: our caller promises all of it; without a target, nothing is stored.
    unsafe { run(register, source, target.unwrap_or(ptr::null_mut()), len) }
}

/// What takes bytes into a register: it, the source, the target, and their length.
type Update = unsafe fn(u64, *const u8, *mut u8, usize) -> u64;

fn update_of(kind: GuardKind, store: u8) -> Update {
    match (kind, store) {
        (GuardKind::Crc16, DROP) => update_format::<Crc16, DROP>,
        (GuardKind::Crc16, STORE) => update_format::<Crc16, STORE>,
        (GuardKind::Crc16, _) => update_format::<Crc16, STREAM>,
        (GuardKind::Crc32c, DROP) => update_format::<Crc32c, DROP>,
        (GuardKind::Crc32c, STORE) => update_format::<Crc32c, STORE>,
        (GuardKind::Crc32c, _) => update_format::<Crc32c, STREAM>,
        (GuardKind::Crc64, DROP) => update_format::<Crc64, DROP>,
        (GuardKind::Crc64, STORE) => update_format::<Crc64, STORE>,
        (GuardKind::Crc64, _) => update_format::<Crc64, STREAM>,
    }
}

/// # Safety
///
/// As for [`update`]; `target` counts unless `THEN` is [`DROP`], and is aligned to a line for [`STREAM`].
#[target_feature(enable = "avx2,pclmulqdq")]
unsafe fn update_format<F: Format, const THEN: u8>(
    mut register: u64,
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> u64 {
    let done = len - len % NARROW_BLOCK;
    if done > 0 {
        let register_vector = register_vector::<F>(register);
        // SAFETY: these are the whole blocks of those that our caller promises.
        let sum = unsafe { sum_blocks::<F, THEN>(register_vector, source, target, done) };
        register = divide::<F>(sum);
    }
    if done < len {
        let (source, target) = (source.wrapping_add(done), target.wrapping_add(done));
        // SAFETY: these are the last bytes of those that our caller promises, less than a block.
        register = unsafe { update_short::<F, THEN>(register, source, target, len - done) };
    }
    register
}

/// Takes less than a block into the register, through a private copy at the end of a block of
/// zeros: in front of a message, they leave its CRC alone.
///
/// # Safety
///
/// As for [`update_format`], and `0 < len < NARROW_BLOCK`.
#[target_feature(enable = "avx2,pclmulqdq")]
unsafe fn update_short<F: Format, const THEN: u8>(
    register: u64,
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> u64 {
    let mut block = [0; NARROW_BLOCK];
    let private = &mut block[NARROW_BLOCK - len..];
    // SAFETY:
    // - `source` is readable for `len` bytes, as our caller promises.
    // - `private` is a reference to as many.
    unsafe { copy_volatile(source, private.as_mut_ptr(), len) };
    if THEN != DROP {
        // SAFETY:
        // - `private` is a reference to `len` bytes.
        // - `target` is writable for as many, as our caller promises.
        unsafe { copy_volatile(private.as_ptr(), target, len) };
    }
    let (first, rest) = split_register::<F>(register, len);
    for (byte, first) in private.iter_mut().zip(first) {
        *byte ^= first;
    }
    let (zero, nowhere) = (_mm_setzero_si128(), ptr::null_mut());
    // SAFETY: `block` is one block, and nothing is stored.
    let sum = unsafe { sum_blocks::<F, DROP>(zero, block.as_ptr(), nowhere, NARROW_BLOCK) };
    divide::<F>(sum) ^ rest
}

/// Returns the register as what is added to the first 16 bytes of a message.
#[inline]
#[target_feature(enable = "avx2")]
fn register_vector<F: Format>(register: u64) -> __m128i {
    pair(if F::MIRRORED { [register, 0] } else { [0, register << (64 - F::KIND.bits())] })
}

/// Returns what leaves, divided by the polynomial, the CRC of `len` bytes of `source`, times `x^(64-bits)`.
///
/// # Safety
///
/// - `len` is a multiple of a block, and not 0.
/// - So many bytes of `source` are readable.
/// - As many of `target`, unless `THEN` is [`DROP`], are writable, and do not overlap the others.
/// - `target` is aligned to a line for [`STREAM`].
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
unsafe fn sum_blocks<F: Format, const THEN: u8>(
    register: __m128i,
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> __m128i {
    let mut sums = [_mm_setzero_si128(); NARROW_LANES];
    for (part, sums) in sums.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
        // SAFETY: there is at least one block.
        *sums = unsafe { load_part::<F, THEN>(source, target, part * PART * 16) };
    }
    sums[0] = _mm_xor_si128(sums[0], register);
    let fold = pair(F::CONSTANTS.fold_narrow);
    for at in (NARROW_BLOCK..len).step_by(NARROW_BLOCK) {
        for (part, sums) in sums.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
            // SAFETY: this is a part of a block of those that our caller promises.
            let data = unsafe { load_part::<F, THEN>(source, target, at + part * PART * 16) };
            for (sum, data) in sums.iter_mut().zip(data) {
                *sum = multiply_add(*sum, fold, data);
            }
        }
    }
    let mut end = _mm_setzero_si128();
    // The lanes of this block are the last ones of a wider one.
    let finish = F::CONSTANTS.finish.as_flattened().as_chunks::<2>().0;
    for (sum, factors) in sums.iter().zip(&finish[finish.len() - NARROW_LANES..]) {
        end = multiply_add(*sum, pair(*factors), end);
    }
    end
}

/// Loads the lanes at `source + at`, stores them at `target + at` unless `THEN` is [`DROP`], and returns them
/// with the first bit highest (or, mirrored, lowest) in each.
///
/// # Safety
///
/// They are readable there, writable there unless `THEN` is [`DROP`], and aligned to a line there for
/// [`STREAM`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_part<F: Format, const THEN: u8>(
    source: *const u8,
    target: *mut u8,
    at: usize,
) -> [__m128i; PART] {
    // SAFETY: our caller promises them.
    let mut data = unsafe { load(source, at) };
    match THEN {
        DROP => {}
        // SAFETY: our caller promises them.
        STREAM => unsafe { store_past_caches(target, at, data) },
        // SAFETY: our caller promises them.
        _ => unsafe { store(target, at, data) },
    }
    if !F::MIRRORED {
        let reversed = pair([0x0809_0a0b_0c0d_0e0f, 0x0001_0203_0405_0607]);
        for data in &mut data {
            *data = _mm_shuffle_epi8(*data, reversed);
        }
    }
    data
}

/// Loads lanes at `source + at`, each byte once.
///
/// # Safety
///
/// They are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(source: *const u8, at: usize) -> [__m128i; PART] {
    let (a, b, c, d);
    // SAFETY: the bytes are readable, and this does nothing but read them.
    unsafe {
        asm!(
            "vmovdqu {a}, [{source} + {at}]",
            "vmovdqu {b}, [{source} + {at} + 16]",
            "vmovdqu {c}, [{source} + {at} + 32]",
            "vmovdqu {d}, [{source} + {at} + 48]",
            a = out(xmm_reg) a,
            b = out(xmm_reg) b,
            c = out(xmm_reg) c,
            d = out(xmm_reg) d,
            source = in(reg) source,
            at = in(reg) at,
            options(readonly, nostack, preserves_flags),
        );
    }
    [a, b, c, d]
}

/// Stores lanes at `target + at`, each byte once.
///
/// # Safety
///
/// They are writable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(target: *mut u8, at: usize, [a, b, c, d]: [__m128i; PART]) {
    // SAFETY: the bytes are writable, and this does nothing but write them.
    unsafe {
        asm!(
            "vmovdqu [{target} + {at}], {a}",
            "vmovdqu [{target} + {at} + 16], {b}",
            "vmovdqu [{target} + {at} + 32], {c}",
            "vmovdqu [{target} + {at} + 48], {d}",
            a = in(xmm_reg) a,
            b = in(xmm_reg) b,
            c = in(xmm_reg) c,
            d = in(xmm_reg) d,
            target = in(reg) target,
            at = in(reg) at,
            options(nostack, preserves_flags),
        );
    }
}

/// Stores lanes at `target + at` past the caches, each byte once. What comes after it may be seen
/// before it, up to the next fence.
///
/// # Safety
///
/// They are writable, and aligned to a line.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_past_caches(target: *mut u8, at: usize, [a, b, c, d]: [__m128i; PART]) {
    // SAFETY: the bytes are writable and aligned, and this does nothing but write them.
    unsafe {
        asm!(
            "vmovntdq [{target} + {at}], {a}",
            "vmovntdq [{target} + {at} + 16], {b}",
            "vmovntdq [{target} + {at} + 32], {c}",
            "vmovntdq [{target} + {at} + 48], {d}",
            a = in(xmm_reg) a,
            b = in(xmm_reg) b,
            c = in(xmm_reg) c,
            d = in(xmm_reg) d,
            target = in(reg) target,
            at = in(reg) at,
            options(nostack, preserves_flags),
        );
    }
}

/// Multiplies both halves of a lane by theirs of `factors`, and adds the products to `addend`.
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
fn multiply_add(lane: __m128i, factors: __m128i, addend: __m128i) -> __m128i {
    let low = _mm_clmulepi64_si128::<0x00>(lane, factors);
    let high = _mm_clmulepi64_si128::<0x11>(lane, factors);
    _mm_xor_si128(_mm_xor_si128(low, addend), high)
}

/// Divides the sum of a message: returns the CRC register.
#[inline]
#[target_feature(enable = "avx2,pclmulqdq")]
fn divide<F: Format>(sum: __m128i) -> u64 {
    let factors = pair(F::CONSTANTS.divide);
    // As in the wider kernel, which says why.
    if F::MIRRORED {
        let quotient = _mm_clmulepi64_si128::<0x00>(sum, factors);
        let product = _mm_clmulepi64_si128::<0x10>(quotient, factors);
        let high = high(_mm_xor_si128(sum, product));
        if F::KIND.bits() == 64 { high ^ low(quotient) } else { high }
    } else {
        let product = _mm_clmulepi64_si128::<0x01>(sum, factors);
        let quotient = _mm_xor_si128(product, sum);
        let product = _mm_clmulepi64_si128::<0x11>(quotient, factors);
        low(_mm_xor_si128(sum, product)) >> (64 - F::KIND.bits())
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn low(lane: __m128i) -> u64 {
    _mm_cvtsi128_si64(lane).cast_unsigned()
}

#[inline]
#[target_feature(enable = "avx2")]
fn high(lane: __m128i) -> u64 {
    _mm_extract_epi64::<1>(lane).cast_unsigned()
}

#[inline]
#[target_feature(enable = "avx2")]
fn pair([low, high]: [u64; 2]) -> __m128i {
    _mm_set_epi64x(high.cast_signed(), low.cast_signed())
}
