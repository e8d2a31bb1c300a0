//! Memory for I/O, and whether it can change while the I/O runs.
//!
//! - [`VolatileMemory`] is shared with somebody else, a guest or a client, who may change it at any
//!   moment. No reference to it ever exists; it is copied, and checksummed, with one load of each
//!   byte.
//! - A [`Buffer`] from a [`Pool`] belongs to whoever holds it. It is stable, aligned for direct
//!   I/O, and has room for the guards of its sectors beside it.
//! - Memory that is [lent](lend) for the time of one call is stable because it is borrowed.
//!
//! An [`IovIter`] is a cursor over segments of the first or the last kind. [`Memory`] is what an
//! operation owns while it is in flight: a buffer or an iterator.
//!
//! This crate does no I/O.

mod guest;
mod iter;
mod lease;
mod map;
mod memory;
mod pool;
mod sync;
mod truncation;
mod volatile;
mod words;

pub use guest::{AddressError, GuestMemory, GuestRegion, Place};
pub use iter::{Bvec, IovIter, Segment, SegmentList};
pub use lease::{Lease, lend, lend_mut};
pub use memory::Memory;
pub use pool::{BUFFER_MAX, BUFFER_MIN, Buffer, GUARD_INTERVAL, Pool};
pub use volatile::{OutOfRange, Region, VolatileMemory};
pub use words::{ZeroedWords, prefetch};
