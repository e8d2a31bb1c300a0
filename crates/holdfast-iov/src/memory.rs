//! What an operation in flight owns.

use std::sync::Arc;

use crate::{Buffer, IovIter};

/// The memory of one operation. It goes down with the operation and comes back with its result.
#[derive(Debug, Default)]
pub enum Memory {
    /// No memory: the operation moves no data.
    #[default]
    None,
    /// A buffer, used from its first byte on.
    Buffer(Buffer),
    /// A buffer that several operations read at the same time, and that none may write to.
    Shared(Arc<Buffer>),
    /// Segments, used from the iterator's position on.
    Iov(IovIter),
}

impl Memory {
    /// Returns how many bytes there are from the start or the iterator's position on.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Buffer(buffer) => buffer.len(),
            Self::Shared(buffer) => buffer.len(),
            Self::Iov(iter) => iter.count(),
        }
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether somebody else may change the memory while the operation runs.
    pub fn is_volatile(&self) -> bool {
        match self {
            Self::None | Self::Buffer(_) | Self::Shared(_) => false,
            Self::Iov(iter) => iter.is_volatile(),
        }
    }

    /// Returns whether a read may go into the memory.
    pub fn is_writable(&self) -> bool {
        match self {
            Self::None | Self::Buffer(_) => true,
            Self::Shared(_) => false,
            Self::Iov(iter) => iter.is_writable(),
        }
    }

    /// Returns the same memory for another operation that only reads it, or `None` when it may
    /// change meanwhile. A buffer becomes a shared one.
    pub fn share(&mut self) -> Option<Self> {
        match std::mem::take(self) {
            Self::None => {}
            Self::Buffer(buffer) => *self = Self::Shared(Arc::new(buffer)),
            other => *self = other,
        }
        match self {
            Self::None => Some(Self::None),
            Self::Shared(buffer) => Some(Self::Shared(Arc::clone(buffer))),
            Self::Iov(iter) if !iter.is_volatile() => Some(Self::Iov(iter.clone())),
            Self::Iov(_) | Self::Buffer(_) => None,
        }
    }

    /// Turns a shared buffer that nobody else has any more back into a buffer.
    #[must_use]
    pub fn reclaim(self) -> Self {
        match self {
            Self::Shared(buffer) => Arc::try_unwrap(buffer).map_or_else(Self::Shared, Self::Buffer),
            other => other,
        }
    }

    /// Returns the buffer, if the memory is one.
    pub fn buffer(&self) -> Option<&Buffer> {
        match self {
            Self::Buffer(buffer) => Some(buffer),
            Self::Shared(buffer) => Some(buffer),
            Self::None | Self::Iov(_) => None,
        }
    }

    /// Returns the buffer, if the memory is one that nobody else has.
    pub fn buffer_mut(&mut self) -> Option<&mut Buffer> {
        match self {
            Self::Buffer(buffer) => Some(buffer),
            Self::None | Self::Shared(_) | Self::Iov(_) => None,
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::{Pool, Region, VolatileMemory};

    #[test]
    fn a_shared_buffer_is_a_buffer_again_when_nobody_else_has_it() {
        let mut memory = Memory::Buffer(Pool::new(1 << 20).unwrap().take(512).unwrap());
        let other = memory.share().unwrap();
        assert!(!memory.is_writable() && !other.is_writable());
        let memory = memory.reclaim();
        assert!(matches!(memory, Memory::Shared(_)));
        drop(other);
        assert!(matches!(memory.reclaim(), Memory::Buffer(_)));
    }

    #[test]
    fn memory_that_may_change_is_not_shared() {
        let region = Region::anonymous(4096).unwrap();
        let mut iter = IovIter::new(Arc::new(VolatileMemory::new(vec![region])));
        iter.push(0, 0, 512).unwrap();
        let mut memory = Memory::Iov(iter);
        assert!(memory.share().is_none());
        assert_eq!(memory.len(), 512);
    }
}
