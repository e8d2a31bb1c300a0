//! The kernel for AVX-512 with VPCLMULQDQ: from one load into registers, to the store and the CRC.
//!
//! The data is gathered in four accumulators of 512 bits, each folded past a block per step. At the
//! end of an interval every lane is multiplied to where the message ends, which needs no order
//! among them; the sums of four intervals are then divided by the polynomial side by side.
//!
//! Loads and stores are assembly: the compiler can neither repeat them nor leave them out.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::ptr;

use crate::constants::{ACCUMULATORS, BLOCK, Crc16, Crc32c, Crc64, Format};
use crate::copy::copy_volatile;
use crate::fold::{DROP, LINE, STORE, STREAM, define_moves, fence_after, plan, update_short};
use crate::kind::GuardKind;
use crate::stores::Stores;

/// How many intervals are divided side by side.
const BATCH: usize = 4;

/// Computes one guard for each interval, and copies to `target` if there is one.
///
/// # Safety
///
/// - [`Level::Avx512`](crate::Level::Avx512) is available.
/// - `source` is readable for `interval * guards.len()` bytes.
/// - `target`, if any, is writable for as many, and overlaps neither `source` nor `guards`.
pub(crate) unsafe fn generate(
    kind: GuardKind,
    interval: usize,
    source: *const u8,
    target: Option<(*mut u8, Stores)>,
    guards: &mut [u64],
) {
    let (target, store) = plan(target, interval, BLOCK);
    let run: unsafe fn(usize, *const u8, *mut u8, &mut [u64]) = match (kind, store) {
        (GuardKind::Crc16, DROP) => generate_format::<Crc16, DROP>,
        (GuardKind::Crc16, STORE) => generate_format::<Crc16, STORE>,
        (GuardKind::Crc16, _) => generate_format::<Crc16, STREAM>,
        (GuardKind::Crc32c, DROP) => generate_format::<Crc32c, DROP>,
        (GuardKind::Crc32c, STORE) => generate_format::<Crc32c, STORE>,
        (GuardKind::Crc32c, _) => generate_format::<Crc32c, STREAM>,
        (GuardKind::Crc64, DROP) => generate_format::<Crc64, DROP>,
        (GuardKind::Crc64, STORE) => generate_format::<Crc64, STORE>,
        (GuardKind::Crc64, _) => generate_format::<Crc64, STREAM>,
    };
    // SAFETY: our caller promises all of it, without a target nothing is stored, and the target and the
    // intervals are aligned where that is needed.
    unsafe { run(interval, source, target, guards) };
    fence_after(store);
}

/// Copies past the caches.
///
/// # Safety
///
/// - [`Level::Avx512`](crate::Level::Avx512) is available.
/// - `source` is readable for `len` bytes, `target` writable, and they do not overlap.
pub(crate) unsafe fn stream(source: *const u8, target: *mut u8, len: usize) {
    let head = target.align_offset(LINE).min(len);
    let body = (len - head) / BLOCK * BLOCK;
    // SAFETY: these are the first bytes of those that our caller promises.
    unsafe { copy_volatile(source, target, head) };
    let (from, to) = (source.wrapping_add(head), target.wrapping_add(head));
    // SAFETY: `head + body <= len`, and `to` is aligned unless `body` is 0.
    unsafe { stream_blocks(from, to, body) };
    let (done, rest) = (head + body, len - head - body);
    // SAFETY: these are the last bytes of those that our caller promises.
    unsafe { copy_volatile(source.wrapping_add(done), target.wrapping_add(done), rest) };
}

/// # Safety
///
/// As for [`stream`]; `len` is a multiple of a block, and `target` is aligned to a line if that is not 0.
#[target_feature(enable = "avx512f")]
unsafe fn stream_blocks(source: *const u8, target: *mut u8, len: usize) {
    for at in (0..len).step_by(BLOCK) {
        // SAFETY: this is a block of those that our caller promises.
        let data = unsafe { load(source, at) };
        // SAFETY: as above.
        unsafe { store_past_caches(target, at, data) };
    }
    _mm_sfence();
}

/// Takes `len` more bytes into the CRC register, and copies them to `target` if there is one.
///
/// # Safety
///
/// - [`Level::Avx512`](crate::Level::Avx512) is available.
/// - `source` is readable for `len` bytes.
/// - `target`, if any, is writable for as many, and does not overlap `source`.
pub(crate) unsafe fn update(
    kind: GuardKind,
    register: u64,
    source: *const u8,
    target: Option<*mut u8>,
    len: usize,
) -> u64 {
    let run: unsafe fn(u64, *const u8, *mut u8, usize) -> u64 = match (kind, target) {
        (GuardKind::Crc16, None) => update_format::<Crc16, DROP>,
        (GuardKind::Crc16, Some(_)) => update_format::<Crc16, STORE>,
        (GuardKind::Crc32c, None) => update_format::<Crc32c, DROP>,
        (GuardKind::Crc32c, Some(_)) => update_format::<Crc32c, STORE>,
        (GuardKind::Crc64, None) => update_format::<Crc64, DROP>,
        (GuardKind::Crc64, Some(_)) => update_format::<Crc64, STORE>,
    };
    // SAFETY: our caller promises all of it; without a target, nothing is stored.
    unsafe { run(register, source, target.unwrap_or(ptr::null_mut()), len) }
}

/// # Safety
///
/// As for [`generate`]; `target` counts unless `THEN` is [`DROP`], and is aligned to a line, as `interval` is,
/// for [`STREAM`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,pclmulqdq,vpclmulqdq")]
unsafe fn generate_format<F: Format, const THEN: u8>(
    interval: usize,
    source: *const u8,
    target: *mut u8,
    guards: &mut [u64],
) {
    let seed = F::KIND.seed();
    if interval == 0 || !interval.is_multiple_of(BLOCK) {
        for (index, guard) in guards.iter_mut().enumerate() {
            let at = index * interval;
            let (source, target) = (source.wrapping_add(at), target.wrapping_add(at));
            // SAFETY: this is interval `index` of those that our caller promises.
            *guard = seed ^ unsafe { update_format::<F, THEN>(seed, source, target, interval) };
        }
        return;
    }
    let seed_vector = register_vector::<F>(seed);
    let mut at = 0;
    let mut next = || {
        let range = at..at + interval;
        at = range.end;
        // SAFETY: this is the next interval of those that our caller promises, and it is a multiple
        // of a block.
        unsafe { sum_blocks::<F, THEN>(seed_vector, source, target, range) }
    };
    let (batches, rest) = guards.as_chunks_mut::<BATCH>();
    for batch in batches {
        *batch = guards_of::<F>([next(), next(), next(), next()]);
    }
    if rest.is_empty() {
        return;
    }
    let zero = _mm512_setzero_si512();
    let first = next();
    let second = if rest.len() > 1 { next() } else { zero };
    let third = if rest.len() > 2 { next() } else { zero };
    for (guard, value) in rest.iter_mut().zip(guards_of::<F>([first, second, third, zero])) {
        *guard = value;
    }
}

/// # Safety
///
/// As for [`update`]; `target` counts unless `THEN` is [`DROP`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,pclmulqdq,vpclmulqdq")]
unsafe fn update_format<F: Format, const THEN: u8>(
    mut register: u64,
    source: *const u8,
    target: *mut u8,
    len: usize,
) -> u64 {
    let done = len - len % BLOCK;
    if done > 0 {
        let register_vector = register_vector::<F>(register);
        // SAFETY: these are the whole blocks of those that our caller promises.
        let sum = unsafe { sum_blocks::<F, THEN>(register_vector, source, target, 0..done) };
        register = divide_one::<F>(sum);
    }
    if done < len {
        let (source, target) = (source.wrapping_add(done), target.wrapping_add(done));
        let divide_block = |block: &[u8; BLOCK]| {
            let (zero, nowhere) = (_mm512_setzero_si512(), ptr::null_mut());
            // SAFETY: `block` is one block, and nothing is stored.
            let sum = unsafe { sum_blocks::<F, DROP>(zero, block.as_ptr(), nowhere, 0..BLOCK) };
            divide_one::<F>(sum)
        };
        // SAFETY: these are the last bytes of those that our caller promises, less than a block.
        register = unsafe {
            update_short::<F, THEN, BLOCK>(register, source, target, len - done, divide_block)
        };
    }
    register
}

/// Returns the register as what is added to the first 64 bytes of a message.
#[inline]
#[target_feature(enable = "avx512f")]
fn register_vector<F: Format>(register: u64) -> __m512i {
    let (low, high) =
        if F::MIRRORED { (register, 0) } else { (0, register << (64 - F::KIND.bits())) };
    vector(&[low, high, 0, 0, 0, 0, 0, 0])
}

/// Returns four lanes whose sum leaves, divided by the polynomial, the CRC of the bytes of `source`
/// in `range`, times `x^(64-bits)`.
///
/// # Safety
///
/// - `range` is a multiple of a block, and not empty.
/// - The bytes of `source` in `range` are readable.
/// - Those of `target`, unless `THEN` is [`DROP`], are writable, and do not overlap the others.
/// - `target` is aligned to a line for [`STREAM`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,pclmulqdq,vpclmulqdq")]
unsafe fn sum_blocks<F: Format, const THEN: u8>(
    register: __m512i,
    source: *const u8,
    target: *mut u8,
    range: Range<usize>,
) -> __m512i {
    let mut at = range.start;
    // SAFETY: there is at least one block.
    let mut sums = unsafe { load_block::<F, THEN>(source, target, at) };
    sums[0] = _mm512_xor_si512(sums[0], register);
    let fold = pairs(F::CONSTANTS.fold);
    at += BLOCK;
    while at < range.end {
        // SAFETY: this is a block in `range`.
        let data = unsafe { load_block::<F, THEN>(source, target, at) };
        for (sum, data) in sums.iter_mut().zip(data) {
            *sum = multiply_add(*sum, fold, data);
        }
        at += BLOCK;
    }
    let mut end = _mm512_setzero_si512();
    for (sum, factors) in sums.iter().zip(&F::CONSTANTS.finish) {
        end = multiply_add(*sum, vector(factors), end);
    }
    end
}

/// Loads the block at `source + at`, stores it at `target + at` unless `THEN` is [`DROP`], and returns it
/// with the first bit highest (or, mirrored, lowest) in each lane.
///
/// # Safety
///
/// It is readable there, writable there unless `THEN` is [`DROP`], and aligned to a line there for
/// [`STREAM`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_block<F: Format, const THEN: u8>(
    source: *const u8,
    target: *mut u8,
    at: usize,
) -> [__m512i; ACCUMULATORS] {
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
        let reversed = pairs([0x0809_0a0b_0c0d_0e0f, 0x0001_0203_0405_0607]);
        for data in &mut data {
            *data = _mm512_shuffle_epi8(*data, reversed);
        }
    }
    data
}

define_moves!(__m512i, zmm_reg, "avx512f", 64, "vmovdqu64");

/// Multiplies both halves of each lane by theirs of `factors`, and adds the products to `addend`.
#[inline]
#[target_feature(enable = "avx512f,pclmulqdq,vpclmulqdq")]
fn multiply_add(lanes: __m512i, factors: __m512i, addend: __m512i) -> __m512i {
    let low = _mm512_clmulepi64_epi128::<0x00>(lanes, factors);
    let high = _mm512_clmulepi64_epi128::<0x11>(lanes, factors);
    add(low, high, addend)
}

/// Adds three polynomials.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,pclmulqdq,vpclmulqdq")]
fn divide_one<F: Format>(sum: __m512i) -> u64 {
    let zero = _mm512_setzero_si512();
    words(divide::<F>([sum, zero, zero, zero]))[0]
}

/// Divides the sums of whole messages.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,pclmulqdq,vpclmulqdq")]
fn guards_of<F: Format>(sums: [__m512i; BATCH]) -> [u64; BATCH] {
    let seed = _mm256_set1_epi64x(F::KIND.seed().cast_signed());
    words(_mm256_xor_si256(divide::<F>(sums), seed))
}

/// Adds the lanes of each sum and divides: returns the CRC register for each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,pclmulqdq,vpclmulqdq")]
fn divide<F: Format>(sums: [__m512i; BATCH]) -> __m256i {
    let sums = add_lanes(sums);
    let factors = pairs(F::CONSTANTS.divide);
    // With `high` for the half of a sum that is above x^64:
    // the quotient is the part above x^64 of high * (x^(64+bits) / P).
    // The remainder is the part below x^64 of sum - quotient * (P * x^(64-bits)).
    if F::MIRRORED {
        // A mirrored product lacks nothing but the lowest of the 65 terms of its factor.
        let quotients = _mm512_clmulepi64_epi128::<0x00>(sums, factors);
        let products = _mm512_clmulepi64_epi128::<0x10>(quotients, factors);
        // The lowest term of the divisor is 1 if it was not shifted.
        let lowest = if F::KIND.bits() == 64 {
            _mm512_unpacklo_epi64(quotients, quotients)
        } else {
            _mm512_setzero_si512()
        };
        halves(add(sums, products, lowest), true)
    } else {
        // The highest of the 65 terms of the first factor was left out: add what it is for.
        let products = _mm512_clmulepi64_epi128::<0x01>(sums, factors);
        let quotients = _mm512_xor_si512(products, sums);
        let products = _mm512_clmulepi64_epi128::<0x11>(quotients, factors);
        let lifted = halves(_mm512_xor_si512(sums, products), false);
        _mm256_srl_epi64(lifted, _mm_cvtsi64_si128((64 - F::KIND.bits()).into()))
    }
}

/// Returns the sum of the lanes of each vector, in the lane that has its number.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_lanes(sums: [__m512i; BATCH]) -> __m512i {
    let [a, b, c, d] = sums;
    // Lanes 0+2 and 1+3 of the first, then of the second.
    let ab = _mm512_xor_si512(
        _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b),
        _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b),
    );
    let cd = _mm512_xor_si512(
        _mm512_shuffle_i64x2::<0b01_00_01_00>(c, d),
        _mm512_shuffle_i64x2::<0b11_10_11_10>(c, d),
    );
    _mm512_xor_si512(
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab, cd),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab, cd),
    )
}

/// Returns the low or the high half of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(lanes: __m512i, high: bool) -> __m256i {
    let first = u64::from(high);
    let which = vector(&[first, first + 2, first + 4, first + 6, 0, 0, 0, 0]);
    _mm512_castsi512_si256(_mm512_permutexvar_epi64(which, lanes))
}

#[inline]
#[target_feature(enable = "avx")]
fn words(vector: __m256i) -> [u64; 4] {
    let mut words = [0; 4];
    // SAFETY: `words` has 32 bytes.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) };
    words
}

#[inline]
#[target_feature(enable = "avx512f")]
fn vector(words: &[u64; 8]) -> __m512i {
    let [a, b, c, d, e, f, g, h] = words.map(u64::cast_signed);
    _mm512_set_epi64(h, g, f, e, d, c, b, a)
}

/// Returns the same two words in each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs([low, high]: [u64; 2]) -> __m512i {
    vector(&[low, high, low, high, low, high, low, high])
}
