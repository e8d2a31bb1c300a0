//! What the folding kernels have in common.

use std::arch::x86_64::_mm_sfence;
use std::ptr;

use crate::constants::Format;
use crate::copy::copy_volatile;
use crate::stores::Stores;

/// What is done with what was loaded, as a parameter of the functions that load it.
pub(crate) const DROP: u8 = 0;
pub(crate) const STORE: u8 = 1;
/// Past the caches.
pub(crate) const STREAM: u8 = 2;

/// What a store past the caches must be aligned to.
pub(crate) const LINE: usize = 64;

/// Returns the target, if any, and what is done with what was loaded from intervals of this length, in a kernel
/// that takes so many bytes at a time.
pub(crate) fn plan(
    target: Option<(*mut u8, Stores)>,
    interval: usize,
    block: usize,
) -> (*mut u8, u8) {
    match target {
        None => (ptr::null_mut(), DROP),
        Some((target, Stores::NonTemporal))
            if target.addr().is_multiple_of(LINE) && interval.is_multiple_of(block) =>
        {
            (target, STREAM)
        }
        Some((target, _)) => (target, STORE),
    }
}

/// Makes what was stored past the caches seen before what is stored after this.
pub(crate) fn fence_after(then: u8) {
    if then == STREAM {
        // SAFETY: every x86-64 has the instruction.
        unsafe { _mm_sfence() };
    }
}

/// Takes less than a block into the register, through a private copy at the end of a block of zeros: in front of a
/// message, they leave its CRC alone. `divide` returns the CRC of a block, without a seed.
///
/// # Safety
///
/// - `0 < len < BLOCK`.
/// - `source` is readable for `len` bytes.
/// - `target`, unless `THEN` is [`DROP`], is writable for as many, and does not overlap `source`.
#[inline]
pub(crate) unsafe fn update_short<F: Format, const THEN: u8, const BLOCK: usize>(
    register: u64,
    source: *const u8,
    target: *mut u8,
    len: usize,
    divide: impl FnOnce(&[u8; BLOCK]) -> u64,
) -> u64 {
    let mut block = [0; BLOCK];
    let private = &mut block[BLOCK - len..];
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
    divide(&block) ^ rest
}

/// Divides the register into what is added to the first `len` bytes of a message, and what is left
/// of it after them.
fn split_register<F: Format>(register: u64, len: usize) -> ([u8; 8], u64) {
    let lifted = register << (64 - F::KIND.bits());
    let shift = u32::try_from(8 * len).unwrap_or(u32::MAX);
    if F::MIRRORED {
        (register.to_le_bytes(), register.unbounded_shr(shift))
    } else {
        (lifted.to_be_bytes(), lifted.unbounded_shl(shift) >> (64 - F::KIND.bits()))
    }
}

/// Defines the loads and stores of four registers, next to each other in memory.
///
/// They are assembly, so that the compiler can neither repeat them nor leave them out.
macro_rules! define_moves {
    ($vector:ty, $class:ident, $features:literal, $step:literal, $move:literal) => {
        /// Loads at `source + at`, each byte once.
        ///
        /// # Safety
        ///
        /// It is readable there.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load(source: *const u8, at: usize) -> [$vector; 4] {
            let (a, b, c, d);
            // SAFETY: the bytes are readable, and this does nothing but read them.
            unsafe {
                asm!(
                    concat!($move, " {a}, [{source} + {at}]"),
                    concat!($move, " {b}, [{source} + {at} + {second}]"),
                    concat!($move, " {c}, [{source} + {at} + {third}]"),
                    concat!($move, " {d}, [{source} + {at} + {fourth}]"),
                    a = out($class) a,
                    b = out($class) b,
                    c = out($class) c,
                    d = out($class) d,
                    source = in(reg) source,
                    at = in(reg) at,
                    second = const $step,
                    third = const 2 * $step,
                    fourth = const 3 * $step,
                    options(readonly, nostack, preserves_flags),
                );
            }
            [a, b, c, d]
        }

        $crate::fold::define_moves! {
            #[doc = "Stores at `target + at`, each byte once."]
            #[doc = ""]
            #[doc = "# Safety"]
            #[doc = ""]
            #[doc = "It is writable there."]
            store, $vector, $class, $features, $step, $move
        }

        $crate::fold::define_moves! {
            #[doc = "Stores at `target + at` past the caches, each byte once. What comes after it may be seen before"]
            #[doc = "it, up to the next fence."]
            #[doc = ""]
            #[doc = "# Safety"]
            #[doc = ""]
            #[doc = "It is writable there, and aligned to a line."]
            store_past_caches, $vector, $class, $features, $step, "vmovntdq"
        }
    };
    (
        $(#[$doc:meta])*
        $name:ident, $vector:ty, $class:ident, $features:literal, $step:literal, $move:literal
    ) => {
        $(#[$doc])*
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $name(target: *mut u8, at: usize, [a, b, c, d]: [$vector; 4]) {
            // SAFETY: the bytes are writable, and aligned where that is needed; this does nothing but write them.
            unsafe {
                asm!(
                    concat!($move, " [{target} + {at}], {a}"),
                    concat!($move, " [{target} + {at} + {second}], {b}"),
                    concat!($move, " [{target} + {at} + {third}], {c}"),
                    concat!($move, " [{target} + {at} + {fourth}], {d}"),
                    a = in($class) a,
                    b = in($class) b,
                    c = in($class) c,
                    d = in($class) d,
                    target = in(reg) target,
                    at = in(reg) at,
                    second = const $step,
                    third = const 2 * $step,
                    fourth = const 3 * $step,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}
pub(crate) use define_moves;
