//! `io_uring`, with operations that own their memory.
//!
//! The kernel may touch an operation's memory from its submission until its completion, whatever
//! happens to its submitter. So an [`Operation`] is moved into the ring when it is pushed and comes
//! back in its [`Completion`]; dropping the ring cancels what can be cancelled and waits for the
//! rest.
//!
//! Several users share one ring, each through a [`Channel`] of its own, so that one system call
//! submits and collects for all of them.

mod batch;
mod channel;
mod operation;
mod ring;
mod spin;
mod waker;

pub use channel::Channel;
pub use operation::{File, Message, Operation};
pub use ring::{Completion, Ring, SharedRing};
pub use spin::Spin;
pub use waker::Waker;
