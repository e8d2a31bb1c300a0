//! Words that threads share, in large pages, and how to have them near before they are needed.

use std::io;
use std::ops::Deref;
use std::slice;
use std::sync::atomic::AtomicU64;

use crate::map::Map;

/// A run of words that are 0 at first.
///
/// Who looks at them at random finds most of them in few pages: the kernel is asked for huge ones. It gives
/// memory when a page is first touched.
#[derive(Debug)]
pub struct ZeroedWords {
    map: Map,
    count: usize,
}

impl ZeroedWords {
    /// Maps so many words, at least one.
    ///
    /// # Errors
    ///
    /// Whatever mmap(2) says, ENOMEM in the first place.
    pub fn new(count: usize) -> io::Result<Self> {
        let len =
            count.max(1).checked_mul(size_of::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = Map::anonymous(len)?;
        map.prefer_huge_pages();
        Ok(Self { map, count })
    }
}

impl Deref for ZeroedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY:
        // - the mapping begins at a page, has `count` words that are initialised, and is ours as long as `self`.
        // - nobody else was given its address, so all accesses are through references to atomics.
        unsafe { slice::from_raw_parts(self.map.start().cast::<AtomicU64>().as_ptr(), self.count) }
    }
}

/// Has the processor fetch what is referred to, without waiting for it.
#[inline]
pub fn prefetch<T>(what: &T) {
    prefetch_line(std::ptr::from_ref(what).cast());
}

/// Has the processor fetch the line of an address, without waiting for it. Any address will do.
#[inline]
pub(crate) fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint reads nothing that the program sees, and raises no fault, whatever the address is.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _no_hint = address;
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn all_words_are_0_until_they_are_changed() {
        let words = ZeroedWords::new(1000).unwrap();
        words[999].store(7, Ordering::Relaxed);
        prefetch(&words[999]);
        let sum: u64 = words.iter().map(|word| word.load(Ordering::Relaxed)).sum();
        assert_eq!((words.len(), sum), (1000, 7));
    }
}
