//! Copies that load each byte of their source once and store each byte of their target once.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256i;

/// Copies between memory of which either side may be changed by others meanwhile.
///
/// # Safety
///
/// - `source` is readable for `len` bytes during the call, whoever else writes them meanwhile.
/// - `target` is writable for `len` bytes during the call, and nothing refers to them.
/// - The two do not overlap.
#[inline]
pub unsafe fn copy_volatile(source: *const u8, target: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: our caller promises what is asked for.
    unsafe {
        copy_string(source, target, len);
    };
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: our caller promises what is asked for.
    unsafe {
        copy_words(source, target, len);
    };
}

/// # Safety
///
/// As for [`copy_volatile`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_string(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY:
    // - it reads `len` bytes of `source` and writes `len` of `target`, and nothing else.
    // - the direction flag is clear, as it is wherever Rust code runs.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") source => _,
            inout("rdi") target => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies 32 bytes at a time.
///
/// # Safety
///
/// As for [`copy_volatile`], and AVX2 is available.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn copy_avx2(source: *const u8, target: *mut u8, len: usize) {
    let mut at = 0;
    while len - at >= 32 {
        // SAFETY: 32 bytes from `at` on are in range.
        let value = unsafe { load_avx2(source.wrapping_add(at)) };
        // SAFETY: as above.
        unsafe { store_avx2(target.wrapping_add(at), value) };
        at += 32;
    }
    // SAFETY: `at <= len`, and what is copied here was not copied above.
    unsafe { copy_words(source.wrapping_add(at), target.wrapping_add(at), len - at) };
}

/// # Safety
///
/// 32 bytes at `source` are readable.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_avx2(source: *const u8) -> __m256i {
    let value;
    // SAFETY: the bytes are readable, and this does nothing but read them.
    unsafe {
        asm!(
            "vmovdqu {value}, [{source}]",
            value = out(ymm_reg) value,
            source = in(reg) source,
            options(readonly, nostack, preserves_flags),
        );
    }
    value
}

/// # Safety
///
/// 32 bytes at `target` are writable.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_avx2(target: *mut u8, value: __m256i) {
    // SAFETY: the bytes are writable, and this does nothing but write them.
    unsafe {
        asm!(
            "vmovdqu [{target}], {value}",
            value = in(ymm_reg) value,
            target = in(reg) target,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies a word at a time where source and target are aligned alike, else a byte.
///
/// # Safety
///
/// As for [`copy_volatile`].
pub(crate) unsafe fn copy_words(source: *const u8, target: *mut u8, len: usize) {
    const WORD: usize = size_of::<u64>();
    let mut at = 0;
    while at < len {
        let (source, target) = (source.wrapping_add(at), target.wrapping_add(at));
        let words = (source.cast::<u64>(), target.cast::<u64>());
        if len - at >= WORD && words.0.is_aligned() && words.1.is_aligned() {
            // SAFETY: a word is in range, and aligned.
            let word = unsafe { words.0.read_volatile() };
            // SAFETY: as above.
            unsafe { words.1.write_volatile(word) };
            at += WORD;
        } else {
            // SAFETY: `at < len`.
            let byte = unsafe { source.read_volatile() };
            // SAFETY: as above.
            unsafe { target.write_volatile(byte) };
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Copy = unsafe fn(*const u8, *mut u8, usize);

    fn copies() -> Vec<Copy> {
        let mut copies: Vec<Copy> = vec![copy_volatile, copy_words];
        #[cfg(target_arch = "x86_64")]
        if crate::Level::Avx2.is_available() {
            copies.push(copy_avx2);
        }
        #[cfg(target_arch = "x86_64")]
        if crate::Level::Avx512.is_available() {
            copies.push(crate::avx512::stream);
        }
        copies
    }

    proptest! {
        #[test]
        fn a_copy_fills_its_target_and_nothing_else(
            source_at in 0_usize..70,
            target_at in 0_usize..70,
            len in prop_oneof![0_usize..400, 400_usize..5000],
        ) {
            let source: Vec<u8> = (1..=250).cycle().take(source_at + len).collect();
            for copy in copies() {
                let mut target = vec![0; target_at + len + 70];
                let mut expected = target.clone();
                expected[target_at..][..len].copy_from_slice(&source[source_at..]);
                // SAFETY: both slices are as long as `len`, and each has its own allocation.
                unsafe {
                    copy(source[source_at..].as_ptr(), target[target_at..].as_mut_ptr(), len);
                };
                prop_assert_eq!(&target, &expected);
            }
        }
    }
}
