//! Split virtqueues (virtio 1.3, section 2.7) over volatile memory.
//!
//! [`Virtqueue`] is the device's side: it takes requests off the ring, whatever the driver has put
//! there, and gives them back. [`Inflight`] remembers which it has, in memory that outlives the
//! process, so that another one can go on. [`Driver`] is the other side of the same ring, for
//! clients and tests.
//!
//! Everything that the other side wrote is loaded once and checked before it is used. This crate does
//! no I/O and notifies nobody.

#![forbid(unsafe_code)]

mod chain;
mod device;
mod driver;
mod inflight;
mod layout;

pub use chain::{BadChain, Chain, Descriptor};
pub use device::{Broken, Taken, Virtqueue};
pub use driver::{Driver, Full, Misused, Piece, Table, Used};
pub use inflight::{Inflight, InflightError};
pub use layout::{QUEUE_SIZE_MAX, RingError, Rings};
