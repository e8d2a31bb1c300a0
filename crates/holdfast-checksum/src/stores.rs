//! Where what is copied goes first.

/// Whether stores go through the caches of the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stores {
    /// They do: the target is used soon.
    #[default]
    Temporal,
    /// They go past them where the processor can: the target is not used soon, and memory that is not in
    /// a cache need not be read to be overwritten.
    NonTemporal,
}

impl Stores {
    /// From so many bytes on it pays to go past the caches, if somebody uses them later.
    const FAR: usize = 64 << 10;
    /// And if only a device does, or nobody for long.
    const STORED: usize = 4096;

    /// Returns what is best for the copy of so many bytes of one request, for somebody who uses them later.
    #[inline]
    pub const fn for_later(bytes: usize) -> Self {
        if bytes >= Self::FAR { Self::NonTemporal } else { Self::Temporal }
    }

    /// Returns what is best for so many bytes that are stored: in memory that a device reads, or that is the
    /// storage.
    #[inline]
    pub const fn for_storage(bytes: usize) -> Self {
        if bytes >= Self::STORED { Self::NonTemporal } else { Self::Temporal }
    }
}
