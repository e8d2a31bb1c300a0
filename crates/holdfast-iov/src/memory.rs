//! What an operation in flight owns.

use crate::{Buffer, IovIter};

/// The memory of one operation. It goes down with the operation and comes back with its result.
#[derive(Debug, Default)]
pub enum Memory {
    /// No memory: the operation moves no data.
    #[default]
    None,
    /// A buffer, used from its first byte on.
    Buffer(Buffer),
    /// Segments, used from the iterator's position on.
    Iov(IovIter),
}

impl Memory {
    /// Returns how many bytes there are from the start or the iterator's position on.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Buffer(buffer) => buffer.len(),
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
            Self::None | Self::Buffer(_) => false,
            Self::Iov(iter) => iter.is_volatile(),
        }
    }

    /// Returns the buffer, if the memory is one.
    pub fn buffer(&self) -> Option<&Buffer> {
        match self {
            Self::Buffer(buffer) => Some(buffer),
            Self::None | Self::Iov(_) => None,
        }
    }

    /// Returns the buffer, if the memory is one.
    pub fn buffer_mut(&mut self) -> Option<&mut Buffer> {
        match self {
            Self::Buffer(buffer) => Some(buffer),
            Self::None | Self::Iov(_) => None,
        }
    }
}
