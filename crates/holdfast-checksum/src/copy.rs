//! Copies that load each byte of their source once and store each byte of their target once.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

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

/// Copies a word at a time where source and target are aligned alike, else a byte.
///
/// # Safety
///
/// As for [`copy_volatile`].
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn copy_words(source: *const u8, target: *mut u8, len: usize) {
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
