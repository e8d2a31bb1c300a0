//! The vhost-user-blk server: virtio disks for virtual machines, in which every sector is checked
//! while the guest keeps changing its memory.
//!
//! What is served is a [`Target`]: a volume, or any other disk. Each queue that a guest uses is a thread
//! with its own ring, buffers and queue of the disk; from the kick to the completion a request stays there. What a front end says on the socket is done in
//! another thread, one for each socket.
//!
//! What is supported, and what happens to what is not, is in `docs/vhost-user-blk.md`.

#![forbid(unsafe_code)]

mod config;
mod control;
mod counters;
mod dirty;
#[cfg(fuzzing)]
pub mod fuzzing;
mod queue;
mod request;
mod server;
mod shared;
mod target;

pub use counters::{ClientCounters, QueueCounts};
pub use server::{Options, Server};
pub use target::{Description, Target};
