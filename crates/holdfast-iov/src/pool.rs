//! The buffer pool: memory for direct I/O, taken once.
//!
//! The memory is cut into chunks of 1 MiB, each of 64 units of 16 KiB. One word of 64 bits says
//! which units of a chunk are in use, and a buffer is a run of 1, 2, 4 .. 64 units at a multiple of
//! its size. Taking a buffer is one compare-exchange that sets its bits, giving it back is one
//! atomic that clears them, and neighbours that are free join by themselves.
//!
//! A request that is larger than what is free gets the largest buffer there is. One chunk is kept
//! back as a reserve, for those who would otherwise wait for ever.

use std::ptr::NonNull;
use std::sync::Arc;
use std::{io, slice};

use crate::map::Map;
use crate::sync::{AtomicU64, Ordering};

/// The largest buffer: 1 MiB.
pub const BUFFER_MAX: usize = CHUNK;
/// The smallest buffer: 16 KiB.
pub const BUFFER_MIN: usize = CHUNK / UNITS;
/// A buffer has room for one guard for each so many bytes.
pub const GUARD_INTERVAL: usize = 512;

const CHUNK: usize = 1 << 20;
const UNITS: usize = 64;
const GUARDS_OF_UNIT: usize = BUFFER_MIN / GUARD_INTERVAL;

/// Buffers of one region of memory. Clones share it, also between threads.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    data: Map,
    guards: Map,
    chunks: Box<[Chunk]>,
}

impl Pool {
    /// Maps a pool of `bytes`, rounded up to whole chunks of 1 MiB, and one more chunk as the
    /// reserve.
    ///
    /// # Errors
    ///
    /// Whatever mmap(2) says.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let chunks = bytes.div_ceil(CHUNK).max(1) + 1;
        let data = Map::anonymous(chunks * CHUNK)?;
        data.prefer_huge_pages();
        let guards = Map::anonymous(chunks * UNITS * GUARDS_OF_UNIT * size_of::<u64>())?;
        let chunks = (0..chunks).map(|_| Chunk::new()).collect();
        Ok(Self { shared: Arc::new(Shared { data, guards, chunks }) })
    }

    /// Takes a buffer of at least `bytes`, or the largest that is free when none is so large.
    /// `None` when nothing is free. The reserve is not touched.
    pub fn take(&self, bytes: usize) -> Option<Buffer> {
        let most = units_for(bytes);
        let chunks = 1..self.shared.chunks.len();
        let orders = (0..=most.trailing_zeros()).rev();
        orders
            .flat_map(|order| chunks.clone().map(move |chunk| (chunk, 1 << order)))
            .find_map(|(chunk, units)| self.take_from(chunk, units))
    }

    /// Takes a buffer of at least `bytes`, at most [`BUFFER_MAX`], or none.
    pub fn take_whole(&self, bytes: usize) -> Option<Buffer> {
        let units = units_for(bytes);
        (1..self.shared.chunks.len()).find_map(|chunk| self.take_from(chunk, units))
    }

    /// Takes a buffer as [`take`](Self::take) does, or the one in reserve when nothing else is
    /// free. Whoever holds the reserve must be able to finish without another buffer: then any
    /// number of writers make progress.
    pub fn take_or_reserve(&self, bytes: usize) -> Option<Buffer> {
        self.take(bytes).or_else(|| self.take_from(0, UNITS))
    }

    /// Takes a buffer of at least `bytes`, at most [`BUFFER_MAX`], or the one in reserve, which holds
    /// as much. What was said of the reserve holds here, too.
    pub fn take_whole_or_reserve(&self, bytes: usize) -> Option<Buffer> {
        self.take_whole(bytes).or_else(|| self.take_from(0, UNITS))
    }

    fn take_from(&self, chunk: usize, units: usize) -> Option<Buffer> {
        let unit = self.shared.chunks[chunk].take(units)?;
        Some(Buffer { pool: Arc::clone(&self.shared), chunk, unit, units })
    }

    /// Returns how many bytes are free, without the reserve. Others may take them meanwhile.
    pub fn free_bytes(&self) -> usize {
        self.shared.chunks[1..].iter().map(Chunk::free_units).sum::<usize>() * BUFFER_MIN
    }

    /// Returns how many bytes there are, without the reserve.
    pub fn total_bytes(&self) -> usize {
        (self.shared.chunks.len() - 1) * CHUNK
    }

    /// Returns the address and the length of the memory that all buffers are part of, for its
    /// registration with a device. It stays mapped while the pool or one of its buffers lives.
    pub fn memory(&self) -> (NonNull<u8>, usize) {
        (self.shared.data.start(), self.shared.data.len())
    }

    /// Returns whether `buffer` is one of this pool.
    pub fn owns(&self, buffer: &Buffer) -> bool {
        Arc::ptr_eq(&self.shared, &buffer.pool)
    }
}

/// Returns the power of two of units that holds `bytes`, or that of the largest buffer.
fn units_for(bytes: usize) -> usize {
    bytes.div_ceil(BUFFER_MIN).clamp(1, UNITS).next_power_of_two()
}

/// A run of memory that its holder alone can reach. It goes back to its pool when dropped.
///
/// The bytes are those that the last holder left.
#[derive(Debug)]
pub struct Buffer {
    pool: Arc<Shared>,
    chunk: usize,
    unit: usize,
    units: usize,
}

impl Buffer {
    /// Returns the length in bytes.
    pub const fn len(&self) -> usize {
        self.units * BUFFER_MIN
    }

    /// Returns whether there are no bytes, which is never so.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    const fn first_unit(&self) -> usize {
        self.chunk * UNITS + self.unit
    }

    /// Returns the address of the first byte, a multiple of 4096.
    pub fn start(&self) -> NonNull<u8> {
        // SAFETY: the chunks' bits gave us these units, which lie inside the mapping.
        unsafe { self.pool.data.start().add(self.first_unit() * BUFFER_MIN) }
    }

    fn guards_start(&self) -> NonNull<u64> {
        let start = self.pool.guards.start().cast::<u64>();
        // SAFETY: there are `GUARDS_OF_UNIT` guards for each unit of the pool.
        unsafe { start.add(self.first_unit() * GUARDS_OF_UNIT) }
    }

    /// Returns the bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY:
        // - the units are mapped and initialised by the kernel, and ours alone while we live.
        // - the result borrows `self`, so nothing writes to them meanwhile.
        unsafe { slice::from_raw_parts(self.start().as_ptr(), self.len()) }
    }

    /// Returns the bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY:
        // - the units are mapped and initialised by the kernel, and ours alone while we live.
        // - the result borrows `self` mutably, so it is the only reference.
        unsafe { slice::from_raw_parts_mut(self.start().as_ptr(), self.len()) }
    }

    /// Returns the room for guards: one for each [`GUARD_INTERVAL`] bytes.
    pub fn guards(&self) -> &[u64] {
        let len = self.units * GUARDS_OF_UNIT;
        // SAFETY: as for `as_slice`; the guards of our units are ours alone.
        unsafe { slice::from_raw_parts(self.guards_start().as_ptr(), len) }
    }

    /// Returns the bytes and the room for guards, to be changed.
    pub fn parts_mut(&mut self) -> (&mut [u8], &mut [u64]) {
        let guards = self.guards_start().as_ptr();
        let guards_len = self.units * GUARDS_OF_UNIT;
        // SAFETY: as for `as_mut_slice`; data and guards are mappings apart.
        let guards = unsafe { slice::from_raw_parts_mut(guards, guards_len) };
        (self.as_mut_slice(), guards)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.chunks[self.chunk].give_back(self.unit, self.units);
    }
}

/// Which units of a chunk are in use: one bit for each.
#[derive(Debug)]
struct Chunk {
    in_use: AtomicU64,
}

impl Chunk {
    fn new() -> Self {
        Self { in_use: AtomicU64::new(0) }
    }

    /// Sets `units` bits at a multiple of `units` and returns the first, or `None`.
    fn take(&self, units: usize) -> Option<usize> {
        // Relaxed: this only guesses; the exchange below decides.
        let mut in_use = self.in_use.load(Ordering::Relaxed);
        loop {
            let unit = (0..UNITS).step_by(units).find(|&unit| in_use & mask(unit, units) == 0)?;
            // Acquire pairs with the release in `give_back`: what the last holder did to the bytes
            // has happened before we touch them. Relaxed on failure, as for the load.
            match self.in_use.compare_exchange_weak(
                in_use,
                in_use | mask(unit, units),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(unit),
                Err(found) => in_use = found,
            }
        }
    }

    fn give_back(&self, unit: usize, units: usize) {
        // Release pairs with the acquire in `take`.
        let before = self.in_use.fetch_and(!mask(unit, units), Ordering::Release);
        debug_assert_eq!(before & mask(unit, units), mask(unit, units), "given back twice");
    }

    fn free_units(&self) -> usize {
        // Relaxed: a number to steer by, out of date as soon as it is returned.
        self.in_use.load(Ordering::Relaxed).count_zeros() as usize
    }
}

/// Returns the bits of `units` units from `unit` on.
const fn mask(unit: usize, units: usize) -> u64 {
    (u64::MAX >> (UNITS - units)) << unit
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_buffer_is_aligned_and_holds_what_was_asked() {
        let pool = Pool::new(4 << 20).unwrap();
        let sizes = [1, BUFFER_MIN, BUFFER_MIN + 1, 100_000, BUFFER_MAX];
        let buffers: Vec<Buffer> = sizes.iter().map(|&size| pool.take(size).unwrap()).collect();
        let fits = buffers.iter().zip(sizes).all(|(buffer, size)| {
            buffer.len() >= size && buffer.start().addr().get().is_multiple_of(4096)
        });
        assert!(fits);
    }

    #[test]
    fn under_pressure_the_largest_that_is_free_is_given() {
        let pool = Pool::new(CHUNK).unwrap();
        let _half = pool.take(BUFFER_MAX / 2).unwrap();
        assert_eq!(pool.take(BUFFER_MAX).unwrap().len(), BUFFER_MAX / 2);
    }

    #[test]
    fn the_reserve_is_left_when_all_else_is_taken() {
        let pool = Pool::new(CHUNK).unwrap();
        let _all = pool.take(BUFFER_MAX).unwrap();
        assert!(pool.take(1).is_none());
        let reserve = pool.take_or_reserve(1).unwrap();
        assert!(pool.take_or_reserve(1).is_none());
        drop(reserve);
        assert!(pool.take_or_reserve(1).is_some());
    }

    #[test]
    fn guards_of_neighbours_do_not_overlap() {
        let pool = Pool::new(CHUNK).unwrap();
        let mut buffers: Vec<Buffer> = (0..UNITS).map(|_| pool.take(1).unwrap()).collect();
        for (number, buffer) in (0_u64..).zip(&mut buffers) {
            buffer.parts_mut().1.fill(number);
        }
        assert!(
            (0..)
                .zip(&buffers)
                .all(|(number, buffer)| { buffer.guards().iter().all(|&guard| guard == number) })
        );
    }

    proptest! {
        #[test]
        fn no_two_buffers_overlap_and_all_come_back(
            steps in prop::collection::vec((1..BUFFER_MAX, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let pool = Pool::new(3 * CHUNK).unwrap();
            let mut held: Vec<Buffer> = Vec::new();
            for (size, which, take) in steps {
                if take {
                    held.extend(pool.take(size));
                } else if !held.is_empty() {
                    held.swap_remove(which.index(held.len()));
                }
                let mut ranges: Vec<_> = held.iter()
                    .map(|buffer| (buffer.start().addr().get(), buffer.len())).collect();
                ranges.sort_unstable();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            }
            held.clear();
            prop_assert_eq!(pool.free_bytes(), pool.total_bytes());
        }
    }
}

#[cfg(all(test, loom))]
#[expect(clippy::arc_with_non_send_sync, reason = "loom watches what threads share")]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::thread;

    /// A chunk whose two halves are cells that loom watches for races.
    struct Watched {
        chunk: Chunk,
        halves: [UnsafeCell<u32>; 2],
    }

    #[test]
    fn loom_a_unit_has_one_holder_at_a_time() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let watched = Arc::new(Watched {
                chunk: Chunk::new(),
                halves: [UnsafeCell::new(0), UnsafeCell::new(0)],
            });
            let holders: Vec<_> = (0..3)
                .map(|_| {
                    let watched = Arc::clone(&watched);
                    thread::spawn(move || {
                        if let Some(unit) = watched.chunk.take(UNITS / 2) {
                            let half = &watched.halves[unit / (UNITS / 2)];
                            // SAFETY: the bits say that this half is ours; loom fails if not.
                            half.with_mut(|cell| unsafe { *cell += 1 });
                            watched.chunk.give_back(unit, UNITS / 2);
                        }
                    })
                })
                .collect();
            for holder in holders {
                holder.join().unwrap();
            }
            assert_eq!(watched.chunk.free_units(), UNITS);
        });
    }

    #[test]
    fn loom_the_whole_chunk_waits_for_both_halves() {
        loom::model(|| {
            let chunk = Arc::new(Chunk::new());
            let half = chunk.take(UNITS / 2).unwrap();
            let other = {
                let chunk = Arc::clone(&chunk);
                thread::spawn(move || chunk.give_back(half, UNITS / 2))
            };
            if let Some(unit) = chunk.take(UNITS) {
                assert_eq!(unit, 0);
                chunk.give_back(unit, UNITS);
            }
            other.join().unwrap();
            assert_eq!(chunk.free_units(), UNITS);
        });
    }
}
