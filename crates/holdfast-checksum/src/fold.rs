//! What the folding kernels have in common.

use crate::constants::Format;

/// What is done with what was loaded, as a parameter of the functions that load it.
pub(crate) const DROP: u8 = 0;
pub(crate) const STORE: u8 = 1;
/// Past the caches.
pub(crate) const STREAM: u8 = 2;

/// What a store past the caches must be aligned to.
pub(crate) const LINE: usize = 64;

/// Divides the register into what is added to the first `len` bytes of a message, and what is left
/// of it after them.
pub(crate) fn split_register<F: Format>(register: u64, len: usize) -> ([u8; 8], u64) {
    let lifted = register << (64 - F::KIND.bits());
    let shift = u32::try_from(8 * len).unwrap_or(u32::MAX);
    if F::MIRRORED {
        (register.to_le_bytes(), register.unbounded_shr(shift))
    } else {
        (lifted.to_be_bytes(), lifted.unbounded_shl(shift) >> (64 - F::KIND.bits()))
    }
}
