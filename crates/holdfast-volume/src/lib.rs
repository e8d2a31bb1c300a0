//! The protected volume: a block device in which every sector carries protection information.
//!
//! A [`Volume`] is what all queues share: the geometry, the tuple cache, the claims on sectors, the
//! counters. A [`Queue`] is one thread's way to it, a [`BlockDevice`](holdfast_bio::BlockDevice)
//! around the queue of the device below. `docs/format.md` describes what is stored.

#![forbid(unsafe_code)]

mod cache;
mod claims;
mod client;
mod error;
mod flush;
pub mod format;
mod geometry;
mod inbox;
mod intents;
mod journal;
mod judge;
mod log;
mod opening;
mod overlay;
mod queue;
mod raw;
mod recovery;
mod resync;
mod scrub;
mod superblock;
mod sync;
mod volume;
mod words;

pub use client::Client;
pub use error::VolumeError;
pub use format::Durability;
pub use geometry::{Geometry, TUPLE_BLOCK};
pub use queue::Queue;
pub use recovery::RecoveryReport;
pub use resync::Resync;
pub use scrub::{Scrub, ScrubBatch, ScrubReport};
pub use volume::{CreateOptions, OpenOptions, Volume};
