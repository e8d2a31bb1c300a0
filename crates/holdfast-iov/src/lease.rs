//! Lending borrowed memory to operations that own what they work on.
//!
//! An operation in flight must own its memory, because the kernel goes on using it whatever happens
//! to the caller's stack. A borrowed slice can still be used without a copy: it is lent as an
//! [`IovIter`], and every iterator made from that one counts as a holder. When the call is over and
//! a holder is left, somebody may still write to the slice, and the process is ended.

use std::process;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::iter::IovIter;

/// Memory that is borrowed for as long as this lives.
#[derive(Debug)]
pub struct Lease {
    start: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: a lease is an address, a length, and a promise that both stay valid; those who use it
// hold operations that may run on any thread.
unsafe impl Send for Lease {}
// SAFETY: as for `Send`; a shared lease gives nothing but copies of the numbers.
unsafe impl Sync for Lease {}

impl Lease {
    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_writable(&self) -> bool {
        self.writable
    }
}

/// Ends the process when a lease outlives the borrow, also when the borrower panicked.
struct Term(Arc<Lease>);

impl Drop for Term {
    fn drop(&mut self) {
        // `get_mut` also orders what other threads did to the memory before the borrow's end.
        if Arc::get_mut(&mut self.0).is_none() {
            // Whoever still holds the memory may write to it after the borrow has ended.
            process::abort();
        }
    }
}

/// Lends `memory` to `borrower` as a source.
///
/// # Aborts
///
/// When an iterator over it still exists after `borrower` has returned or panicked.
pub fn lend<R>(memory: &[u8], borrower: impl FnOnce(IovIter) -> R) -> R {
    let start = NonNull::from(memory).cast();
    let lease = Lease { start, len: memory.len(), writable: false };
    run(lease, borrower)
}

/// Lends `memory` to `borrower` as a source or a destination.
///
/// # Aborts
///
/// When an iterator over it still exists after `borrower` has returned or panicked.
pub fn lend_mut<R>(memory: &mut [u8], borrower: impl FnOnce(IovIter) -> R) -> R {
    let len = memory.len();
    let start = NonNull::from(memory).cast();
    run(Lease { start, len, writable: true }, borrower)
}

fn run<R>(lease: Lease, borrower: impl FnOnce(IovIter) -> R) -> R {
    let term = Term(Arc::new(lease));
    let result = borrower(IovIter::lent(Arc::clone(&term.0)));
    drop(term);
    result
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn lent_memory_is_written_through_the_iterator() {
        let mut memory = [0; 8];
        lend_mut(&mut memory, |mut iter| assert_eq!(iter.copy_in(b"abc"), 3));
        assert_eq!(&memory, b"abc\0\0\0\0\0");
    }

    #[test]
    fn memory_lent_as_a_source_takes_nothing_in() {
        let memory = [7; 8];
        let copied = lend(&memory, |mut iter| iter.copy_in(b"abc"));
        assert_eq!((copied, memory), (0, [7; 8]));
    }
}
