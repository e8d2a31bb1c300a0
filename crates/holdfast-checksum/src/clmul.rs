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
use crate::fold::{DROP, STORE, STREAM, define_moves, fence_after, plan, update_short};
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
    let (target, store) = plan(target, interval, NARROW_BLOCK);
    let run = update_of(kind, store);
    for (index, guard) in guards.iter_mut().enumerate() {
        let at = index * interval;
        let (source, target) = (source.wrapping_add(at), target.wrapping_add(at));
        // SAFETY: this is interval `index` of those that our caller promises, without a target nothing is
        // stored, and the target and the intervals are aligned where that is needed.
        *guard = kind.seed() ^ unsafe { run(kind.seed(), source, target, interval) };
    }
    fence_after(store);
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
        let divide_block = |block: &[u8; NARROW_BLOCK]| {
            let (zero, nowhere) = (_mm_setzero_si128(), ptr::null_mut());
            // SAFETY: `block` is one block, and nothing is stored.
            let sum = unsafe { sum_blocks::<F, DROP>(zero, block.as_ptr(), nowhere, NARROW_BLOCK) };
            divide::<F>(sum)
        };
        // SAFETY: these are the last bytes of those that our caller promises, less than a block.
        register = unsafe {
            update_short::<F, THEN, NARROW_BLOCK>(
                register,
                source,
                target,
                len - done,
                divide_block,
            )
        };
    }
    register
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

define_moves!(__m128i, xmm_reg, "avx2", 16, "vmovdqu");

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
