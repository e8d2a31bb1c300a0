//! The guards of T10 and NVMe protection information, alone and in one pass with a copy.
//!
//! A guard is the CRC of one interval of data: a sector of 512 or 4096 bytes, as a rule. The data
//! may lie in memory that another thread or a guest changes at any moment. Whatever is computed
//! over such memory loads each byte exactly once, and when it is copied, that one load feeds both
//! the store and the guard: so a guard always agrees with the copy, if not with the source.
//!
//! Nothing here allocates, and nothing here takes a reference to memory that can change.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod clmul;
#[cfg(target_arch = "x86_64")]
mod constants;
mod copy;
#[cfg(target_arch = "x86_64")]
mod fold;
mod kernels;
mod kind;
mod level;
#[cfg(test)]
mod oracle;
mod private;
mod stores;
mod stream;

pub use copy::copy_volatile;
pub use kernels::Kernels;
pub use kind::{GuardKind, UnknownGuard};
pub use level::Level;
pub use stores::Stores;
pub use stream::Stream;

/// Returns the guard of one run of stable bytes.
pub fn checksum(kind: GuardKind, data: &[u8]) -> u64 {
    Kernels::best().checksum(kind, data)
}

/// Computes one guard for each `interval` bytes of stable data.
///
/// # Panics
///
/// Unless `data` holds exactly one interval for each guard.
pub fn generate(kind: GuardKind, interval: usize, data: &[u8], guards: &mut [u64]) {
    Kernels::best().generate(kind, interval, data, guards);
}

/// Computes one guard for each `interval` bytes of memory that may change, loading each byte once.
///
/// # Panics
///
/// Unless `len` is exactly one interval for each guard.
///
/// # Safety
///
/// `source` is readable for `len` bytes during the call, whoever else writes them meanwhile.
pub unsafe fn generate_volatile(
    kind: GuardKind,
    interval: usize,
    source: *const u8,
    len: usize,
    guards: &mut [u64],
) {
    // SAFETY: our caller promises what is asked for.
    unsafe { Kernels::best().generate_volatile(kind, interval, source, len, guards) };
}

/// Copies, and computes one guard for each `interval` bytes, in one pass.
///
/// Each byte is loaded once and stored once, and that load feeds both the store and the guard: the
/// guards are those of the bytes that were stored, whatever happened to the source meanwhile.
///
/// # Panics
///
/// Unless `len` is exactly one interval for each guard.
///
/// # Safety
///
/// - `source` is readable for `len` bytes during the call, whoever else writes them meanwhile.
/// - `target` is writable for `len` bytes during the call, and nothing refers to them.
/// - The two do not overlap each other or `guards`.
pub unsafe fn copy_generate(
    kind: GuardKind,
    interval: usize,
    source: *const u8,
    target: *mut u8,
    len: usize,
    guards: &mut [u64],
) {
    // SAFETY: our caller promises what is asked for.
    unsafe { Kernels::best().copy_generate(kind, interval, source, target, len, guards) };
}
