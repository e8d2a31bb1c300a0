//! The functions of the crate at a level of one's choice.

use crate::copy::copy_volatile;
use crate::kind::GuardKind;
use crate::level::Level;
use crate::private;
use crate::stores::Stores;
use crate::stream::Stream;
#[cfg(target_arch = "x86_64")]
use crate::{avx512, clmul};

/// The functions of the crate at one level and with one kind of stores, for those who choose them.
///
/// All levels return the same. The functions at the root of the crate are those of the best, and store
/// into the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// Is available.
    level: Level,
    stores: Stores,
}

impl Kernels {
    /// Returns the functions at `level`, or `None` if this processor lacks it.
    pub fn at(level: Level) -> Option<Self> {
        level.is_available().then_some(Self { level, stores: Stores::default() })
    }

    /// Returns the functions at the fastest level of this processor.
    #[inline]
    pub fn best() -> Self {
        Self { level: Level::best(), stores: Stores::default() }
    }

    /// Makes copies use these stores.
    #[inline]
    #[must_use]
    pub const fn storing(mut self, stores: Stores) -> Self {
        self.stores = stores;
        self
    }

    /// As [`copy_volatile`].
    ///
    /// # Safety
    ///
    /// - `source` is readable for `len` bytes during the call, whoever else writes them meanwhile.
    /// - `target` is writable for `len` bytes during the call, and nothing refers to them.
    /// - The two do not overlap.
    #[inline]
    pub unsafe fn copy(self, source: *const u8, target: *mut u8, len: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.stores == Stores::NonTemporal && self.level == Level::Avx512 {
            // SAFETY: the level is available, and our caller promises the rest.
            unsafe { avx512::stream(source, target, len) };
            return;
        }
        // SAFETY: our caller promises what is asked for.
        unsafe { copy_volatile(source, target, len) };
    }

    /// As [`checksum`](crate::checksum).
    pub fn checksum(self, kind: GuardKind, data: &[u8]) -> u64 {
        self.update(kind, kind.seed(), data) ^ kind.seed()
    }

    /// As [`generate`](crate::generate).
    ///
    /// # Panics
    ///
    /// Unless `data` holds exactly one interval for each guard.
    pub fn generate(self, kind: GuardKind, interval: usize, data: &[u8], guards: &mut [u64]) {
        assert_intervals(data.len(), interval, guards);
        if self.level_for(kind) != Level::Portable {
            // SAFETY: `data` is a reference to as many bytes as are needed, as was just checked.
            unsafe { self.generate_raw(kind, interval, data.as_ptr(), None, guards) };
            return;
        }
        for (index, guard) in guards.iter_mut().enumerate() {
            *guard = self.checksum(kind, &data[index * interval..][..interval]);
        }
    }

    /// As [`generate_volatile`](crate::generate_volatile).
    ///
    /// # Panics
    ///
    /// Unless `len` is exactly one interval for each guard.
    ///
    /// # Safety
    ///
    /// `source` is readable for `len` bytes during the call, whoever else writes them meanwhile.
    pub unsafe fn generate_volatile(
        self,
        kind: GuardKind,
        interval: usize,
        source: *const u8,
        len: usize,
        guards: &mut [u64],
    ) {
        assert_intervals(len, interval, guards);
        // SAFETY: our caller promises `len` bytes, which are one interval for each guard.
        unsafe { self.generate_raw(kind, interval, source, None, guards) };
    }

    /// As [`copy_generate`](crate::copy_generate).
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
        self,
        kind: GuardKind,
        interval: usize,
        source: *const u8,
        target: *mut u8,
        len: usize,
        guards: &mut [u64],
    ) {
        assert_intervals(len, interval, guards);
        // SAFETY: our caller promises `len` bytes, which are one interval for each guard.
        unsafe { self.generate_raw(kind, interval, source, Some(target), guards) };
    }

    /// As [`copy_generate`](Self::copy_generate), into memory that nobody else reaches.
    ///
    /// # Panics
    ///
    /// Unless `target` is exactly one interval for each guard.
    ///
    /// # Safety
    ///
    /// `source` is readable for as many bytes as `target` has, during the call, whoever else writes them
    /// meanwhile.
    pub unsafe fn copy_out_generate(
        self,
        kind: GuardKind,
        interval: usize,
        source: *const u8,
        target: &mut [u8],
        guards: &mut [u64],
    ) {
        assert_intervals(target.len(), interval, guards);
        if self.level_for(kind) != Level::Portable || interval == 0 {
            let target = Some(target.as_mut_ptr());
            // SAFETY: our caller promises the source, and the target is a reference to one interval for each
            // guard, so it overlaps nothing.
            unsafe { self.generate_raw(kind, interval, source, target, guards) };
            return;
        }
        // SAFETY: our caller promises as many bytes of the source as there are in the target, which are one
        // interval for each guard.
        unsafe { private::generate_copied(kind, interval, source, target, guards) };
    }

    /// As [`Stream::new`].
    pub fn stream(self, kind: GuardKind) -> Stream {
        Stream::at(self, kind)
    }

    /// # Safety
    ///
    /// - `source` is readable for `interval * guards.len()` bytes.
    /// - `target`, if any, is writable for as many, and overlaps neither `source` nor `guards`.
    unsafe fn generate_raw(
        self,
        kind: GuardKind,
        interval: usize,
        source: *const u8,
        target: Option<*mut u8>,
        guards: &mut [u64],
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.level == Level::Avx512 {
            let target = target.map(|target| (target, self.stores));
            // SAFETY: the level is available, and our caller promises the rest.
            unsafe { avx512::generate(kind, interval, source, target, guards) };
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if self.level_for(kind) == Level::Avx2 {
            let target = target.map(|target| (target, self.stores));
            // SAFETY: the level is available, and our caller promises the rest.
            unsafe { clmul::generate(kind, interval, source, target, guards) };
            return;
        }
        let seed = kind.seed();
        for (index, guard) in guards.iter_mut().enumerate() {
            let at = index * interval;
            let target = target.map(|target| target.wrapping_add(at));
            let source = source.wrapping_add(at);
            // SAFETY: this is interval `index` of those that our caller promises.
            *guard = seed ^ unsafe { self.update_volatile(kind, seed, source, target, interval) };
        }
    }

    /// Returns the level for guards of a kind. Where there is no AVX-512, the processor's own instruction for
    /// CRC-32C is faster than multiplications, and `crc-fast` uses it.
    fn level_for(self, kind: GuardKind) -> Level {
        match (self.level, kind) {
            (Level::Avx2, GuardKind::Crc32c) => Level::Portable,
            (level, _) => level,
        }
    }

    /// Takes stable bytes into the CRC register.
    pub(crate) fn update(self, kind: GuardKind, register: u64, data: &[u8]) -> u64 {
        if self.level_for(kind) != Level::Portable {
            // SAFETY: `data` is a reference to as many bytes.
            return unsafe {
                self.update_volatile(kind, register, data.as_ptr(), None, data.len())
            };
        }
        private::update(kind, register, data)
    }

    /// Takes `len` more bytes into the CRC register, and copies them to `target` if there is one.
    ///
    /// # Safety
    ///
    /// - `source` is readable for `len` bytes.
    /// - `target`, if any, is writable for as many, and does not overlap `source`.
    pub(crate) unsafe fn update_volatile(
        self,
        kind: GuardKind,
        register: u64,
        source: *const u8,
        target: Option<*mut u8>,
        len: usize,
    ) -> u64 {
        #[cfg(target_arch = "x86_64")]
        if self.level == Level::Avx512 {
            // SAFETY: the level is available, and our caller promises the rest.
            return unsafe { avx512::update(kind, register, source, target, len) };
        }
        #[cfg(target_arch = "x86_64")]
        if self.level_for(kind) == Level::Avx2 {
            // SAFETY: the level is available, and our caller promises the rest.
            return unsafe { clmul::update(kind, register, source, target, len) };
        }
        // SAFETY: our caller promises what is asked for.
        unsafe { private::update_volatile(kind, register, source, target, len) }
    }
}

fn assert_intervals(len: usize, interval: usize, guards: &[u64]) {
    assert_eq!(Some(len), interval.checked_mul(guards.len()), "one interval for each guard");
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
    use std::thread;

    use super::*;
    use crate::oracle;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn every_kernels() -> Vec<Kernels> {
        let levels = Level::ALL.into_iter().filter_map(Kernels::at);
        let stores = [Stores::Temporal, Stores::NonTemporal];
        levels.flat_map(|kernels| stores.map(|stores| kernels.storing(stores))).collect()
    }

    /// Checks `data` against the guards of a standard, in the order of the kinds, at every level.
    fn assert_guards(data: &[u8], expected: [u64; 3]) {
        for kernels in every_kernels() {
            let found = GuardKind::ALL.map(|kind| kernels.checksum(kind, data));
            assert_eq!(found, expected, "{kernels:?}");
        }
        assert_eq!(GuardKind::ALL.map(|kind| oracle::guard(kind, data)), expected);
    }

    #[test]
    fn the_check_values_of_the_catalogue_are_met() {
        assert_guards(b"123456789", [0xD0DB, 0xE306_9283, 0xAE8B_1486_0A79_9888]);
    }

    #[test]
    fn the_guards_of_nothing_are_those_of_the_seeds() {
        assert_guards(b"", [0, 0, 0]);
    }

    #[test]
    fn the_examples_of_rfc_3720_are_met() {
        // RFC 3720, B.4.
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (data, expected) in [
            (&[0; 32][..], 0x8A91_36AA),
            (&[0xFF; 32], 0x62A8_AB43),
            (&ascending, 0x46DD_794E),
            (&descending, 0x113F_DB5C),
        ] {
            for kernels in every_kernels() {
                assert_eq!(kernels.checksum(GuardKind::Crc32c, data), expected, "{kernels:?}");
            }
        }
    }

    #[test]
    fn the_examples_of_nvme_are_met() {
        // NVM Command Set specification, the test cases of the 64b CRC: 4 KiB each.
        let ascending: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let descending: Vec<u8> = (0..=255).rev().cycle().take(4096).collect();
        for (data, expected) in [
            (&[0; 4096][..], 0x6482_D367_EB22_B64E),
            (&[0xFF; 4096], 0xC0DD_BA73_02EC_A3AC),
            (&ascending, 0x3E72_9F5F_6750_449C),
            (&descending, 0x9A2D_F64B_8E9E_517E),
        ] {
            for kernels in every_kernels() {
                assert_eq!(kernels.checksum(GuardKind::Crc64, data), expected, "{kernels:?}");
            }
            assert_eq!(oracle::guard(GuardKind::Crc64, data), expected);
        }
    }

    #[test]
    fn the_guard_of_a_sector_of_zeros_is_zero_in_t10_dif() {
        for kernels in every_kernels() {
            assert_eq!(kernels.checksum(GuardKind::Crc16, &[0; 512]), 0, "{kernels:?}");
        }
    }

    fn intervals() -> impl Strategy<Value = usize> {
        prop_oneof![
            4 => select(vec![256, 512, 768, 1024, 4096]),
            2 => 1..700_usize,
            1 => select(vec![0, 1, 7, 8, 64, 255, 257, 520, 4095, 4097, 4104, 8193]),
        ]
    }

    /// Bytes that differ from run to run, and from their neighbours.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn every_level_agrees_with_the_oracle(
            interval in intervals(),
            count in 0_usize..10,
            (source_at, target_at) in (0_usize..65, 0_usize..65),
            seed: u64,
        ) {
            let len = interval * count;
            let source = noise(seed, source_at + len);
            let source = &source[source_at..];
            for kind in GuardKind::ALL {
                let expected: Vec<u64> = (0..count)
                    .map(|index| oracle::guard(kind, &source[index * interval..][..interval]))
                    .collect();
                for kernels in every_kernels() {
                    let mut guards = vec![1; count];
                    kernels.generate(kind, interval, source, &mut guards);
                    prop_assert_eq!(&guards, &expected, "generate {} {:?}", kind, kernels);

                    let mut guards = vec![1; count];
                    // SAFETY: `source` is a slice of `len` bytes.
                    unsafe {
                        kernels.generate_volatile(kind, interval, source.as_ptr(), len, &mut guards);
                    };
                    prop_assert_eq!(&guards, &expected, "generate_volatile {} {:?}", kind, kernels);

                    let mut guards = vec![1; count];
                    let mut target = vec![0x5A; target_at + len + 65];
                    let mut copied = target.clone();
                    copied[target_at..][..len].copy_from_slice(source);
                    let into = target[target_at..].as_mut_ptr();
                    // SAFETY: both slices are `len` bytes long, in allocations of their own.
                    unsafe {
                        kernels.copy_generate(
                            kind, interval, source.as_ptr(), into, len, &mut guards,
                        );
                    };
                    prop_assert_eq!(&guards, &expected, "copy_generate {} {:?}", kind, kernels);
                    prop_assert_eq!(&target, &copied, "copy_generate {} {:?}", kind, kernels);

                    let mut guards = vec![1; count];
                    target.fill(0x5A);
                    let (from, into) = (source.as_ptr(), &mut target[target_at..][..len]);
                    // SAFETY: `source` is a slice of `len` bytes.
                    unsafe { kernels.copy_out_generate(kind, interval, from, into, &mut guards) };
                    prop_assert_eq!(&guards, &expected, "copy_out_generate {} {:?}", kind, kernels);
                    prop_assert_eq!(&target, &copied, "copy_out_generate {} {:?}", kind, kernels);
                }
            }
        }

        #[test]
        fn a_stream_cut_anywhere_is_the_guard_of_the_whole(
            pieces in prop::collection::vec(
                prop_oneof![0_usize..20, 0_usize..600, select(vec![256, 512, 4096, 5000])], 0..8,
            ),
            source_at in 0_usize..65,
            way in prop::collection::vec(0..3, 8),
            seed: u64,
        ) {
            let len: usize = pieces.iter().sum();
            let source = noise(seed, source_at + len);
            let source = &source[source_at..];
            for kind in GuardKind::ALL {
                for kernels in every_kernels() {
                    let mut stream = kernels.stream(kind);
                    let mut at = 0;
                    for (piece, way) in pieces.iter().zip(&way) {
                        let piece = &source[at..][..*piece];
                        feed(&mut stream, piece, *way);
                        at += piece.len();
                    }
                    prop_assert_eq!(
                        stream.finish(), oracle::guard(kind, source), "{} {:?}", kind, kernels
                    );
                }
            }
        }
    }

    fn feed(stream: &mut Stream, piece: &[u8], way: i32) {
        let mut target = vec![0; piece.len()];
        match way {
            0 => stream.update(piece),
            // SAFETY: it is a slice.
            1 => unsafe { stream.update_volatile(piece.as_ptr(), piece.len()) },
            _ => {
                // SAFETY: both are slices of this length, in allocations of their own.
                unsafe { stream.copy(piece.as_ptr(), target.as_mut_ptr(), piece.len()) };
                assert_eq!(target, piece);
            }
        }
    }

    /// Runs `round` for every level and kind while another thread goes on changing `source`, and
    /// again until one round has seen a change.
    fn while_changing(source: &[AtomicU8], round: impl Fn(Kernels, GuardKind) -> bool) {
        let done = AtomicBool::new(false);
        let change = || {
            let mut value = 0_u8;
            while !done.load(Ordering::Relaxed) {
                // About one byte in each cache line, to come round soon.
                for byte in source.iter().step_by(61) {
                    byte.store(value, Ordering::Relaxed);
                    value = value.wrapping_mul(5).wrapping_add(1);
                }
                // Each pass stores other values than the one before.
                value = value.wrapping_add(3);
            }
        };
        let run = || {
            let mut changed = false;
            while !changed {
                for kernels in every_kernels() {
                    for kind in GuardKind::ALL {
                        changed |= round(kernels, kind);
                    }
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(change);
            // A failure must not leave the other thread running.
            let result = catch_unwind(AssertUnwindSafe(run));
            done.store(true, Ordering::Relaxed);
            if let Err(panic) = result {
                resume_unwind(panic);
            }
        });
    }

    /// Copies `source` while it changes, and returns whether it was ever no longer what had been
    /// copied.
    fn assert_guards_of_target(
        source: &[AtomicU8],
        interval: usize,
        copy: impl Fn(*const u8, &mut [u8], &mut [u64]),
        guard: impl Fn(&[u8]) -> u64,
    ) -> bool {
        let count = source.len() / interval;
        let mut target = vec![0; count * interval];
        let mut guards = vec![0; count];
        let mut changed = false;
        for _ in 0..1000 {
            copy(source.as_ptr().cast(), &mut target, &mut guards);
            let expected: Vec<u64> = target.chunks(interval).map(&guard).collect();
            assert_eq!(guards, expected);
            let mut pairs = source.iter().zip(&target);
            changed |= pairs.any(|(byte, copied)| byte.load(Ordering::Relaxed) != *copied);
        }
        changed
    }

    #[test]
    fn the_guards_are_those_of_the_copy_while_the_source_changes() {
        let source: Vec<AtomicU8> = (0..8192 + 13).map(|_| AtomicU8::new(0)).collect();
        while_changing(&source, |kernels, kind| {
            let guard = |data: &[u8]| crc_fast::checksum(kind.algorithm(), data);
            let run = |interval| {
                let copy = |from: *const u8, into: &mut [u8], guards: &mut [u64]| {
                    let (into, len) = (into.as_mut_ptr(), into.len());
                    // SAFETY: the source is longer, and both are allocations.
                    unsafe { kernels.copy_generate(kind, interval, from, into, len, guards) };
                };
                assert_guards_of_target(&source, interval, copy, guard)
            };
            [512, 4096, 520, 601, 8193].map(run).contains(&true)
        });
    }

    #[test]
    fn the_guard_of_a_stream_is_that_of_its_copy_while_the_source_changes() {
        let source: Vec<AtomicU8> = (0..4096).map(|_| AtomicU8::new(0)).collect();
        while_changing(&source, |kernels, kind| {
            let guard = |data: &[u8]| crc_fast::checksum(kind.algorithm(), data);
            let copy = |from: *const u8, into: &mut [u8], guards: &mut [u64]| {
                let mut stream = kernels.stream(kind);
                let mut at = 0;
                for len in [1, 300, 7, 2048, 1740] {
                    let target = into[at..][..len].as_mut_ptr();
                    // SAFETY: the pieces are as long as the source and the target in all.
                    unsafe { stream.copy(from.wrapping_add(at), target, len) };
                    at += len;
                }
                guards[0] = stream.finish();
            };
            assert_guards_of_target(&source, 4096, copy, guard)
        });
    }
}
