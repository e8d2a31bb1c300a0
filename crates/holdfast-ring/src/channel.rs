//! One user of a shared ring.

use crate::operation::Operation;
use crate::ring::{Completion, SharedRing};

/// One of the users of a shared ring: its operations, and only their completions.
#[derive(Clone, Debug)]
pub struct Channel {
    ring: SharedRing,
    index: usize,
}

impl Channel {
    pub(crate) const fn new(ring: SharedRing, index: usize) -> Self {
        Self { ring, index }
    }

    /// Pushes an operation, to be submitted when the ring is entered next.
    ///
    /// # Errors
    ///
    /// The operation itself, when too many are in flight.
    pub fn push(&self, token: u64, operation: Operation) -> Result<(), Operation> {
        self.ring.borrow_mut().push(self.index, token, operation)
    }

    /// Returns an operation that has completed.
    pub fn pop(&self) -> Option<Completion> {
        self.ring.borrow_mut().pop(self.index)
    }

    /// Returns the ring.
    pub const fn ring(&self) -> &SharedRing {
        &self.ring
    }
}
