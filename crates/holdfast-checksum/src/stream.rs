//! One guard over bytes that arrive in pieces.

use crate::kernels::Kernels;
use crate::kind::GuardKind;

/// The guard of an interval that arrives in pieces, as from a scatter list cut at odd places.
#[derive(Clone, Debug)]
pub struct Stream {
    kernels: Kernels,
    kind: GuardKind,
    register: u64,
}

impl Stream {
    /// Begins a guard.
    pub fn new(kind: GuardKind) -> Self {
        Self::at(Kernels::best(), kind)
    }

    pub(crate) const fn at(kernels: Kernels, kind: GuardKind) -> Self {
        Self { kernels, kind, register: kind.seed() }
    }

    /// Takes a piece of stable bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.register = self.kernels.update(self.kind, self.register, data);
    }

    /// Takes a piece of memory that may change, loading each byte once.
    ///
    /// # Safety
    ///
    /// `source` is readable for `len` bytes during the call, whoever else writes them meanwhile.
    pub unsafe fn update_volatile(&mut self, source: *const u8, len: usize) {
        let Self { kernels, kind, register } = *self;
        // SAFETY: our caller promises what is asked for.
        self.register = unsafe { kernels.update_volatile(kind, register, source, None, len) };
    }

    /// Takes a piece and copies it in the same pass, each byte loaded once and stored once.
    ///
    /// # Safety
    ///
    /// - `source` is readable for `len` bytes during the call, whoever else writes them meanwhile.
    /// - `target` is writable for `len` bytes during the call, and nothing refers to them.
    /// - The two do not overlap.
    pub unsafe fn copy(&mut self, source: *const u8, target: *mut u8, len: usize) {
        let Self { kernels, kind, register } = *self;
        let target = Some(target);
        // SAFETY: our caller promises what is asked for.
        self.register = unsafe { kernels.update_volatile(kind, register, source, target, len) };
    }

    /// Returns the guard of all pieces, in their order.
    pub fn finish(self) -> u64 {
        self.register ^ self.kind.seed()
    }
}
