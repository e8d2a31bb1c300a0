//! What can go wrong for a client.

use std::io;

use holdfast_iov::AddressError;
use holdfast_virtqueue::{Full, Misused, RingError};
use thiserror::Error;

/// What a client could not do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A message of the vhost-user protocol failed; the server may have closed the connection.
    #[error("{message} failed")]
    Message {
        /// The name of the message.
        message: &'static str,
        /// What went wrong.
        source: vhost::Error,
    },
    /// A system call failed.
    #[error("cannot {doing}")]
    System {
        /// What it was for.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The server lacks features that the client cannot do without, or that it had before.
    #[error("the server offers {what} {found:#x}, which lacks some of {needed:#x}")]
    Features {
        /// Which kind of features.
        what: &'static str,
        /// The bits that it must have.
        needed: u64,
        /// The bits that it has.
        found: u64,
    },
    /// The server has too few of something.
    #[error("the server has {found} {what}, and {needed} are needed")]
    TooFew {
        /// What it has too few of.
        what: &'static str,
        /// How many are needed.
        needed: u64,
        /// How many it has.
        found: u64,
    },
    /// The device configuration is shorter than that of any block device.
    #[error("the device configuration has {found} bytes of {needed}")]
    Config {
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// No region has so much memory left.
    #[error("no region has {len} bytes left, aligned to {alignment}")]
    Memory {
        /// How much, in bytes.
        len: u64,
        /// What the address must be a multiple of.
        alignment: u64,
    },
    /// An address is no memory of the guest.
    #[error("no memory")]
    Address(#[from] AddressError),
    /// The options make no queue.
    #[error("no queue")]
    Rings(#[from] RingError),
    /// The queue is full: collect some requests first.
    #[error("the queue is full")]
    Full(#[from] Full),
    /// The request has more descriptors or ranges than [`Options::segments_max`] leaves room for.
    ///
    /// [`Options::segments_max`]: crate::Options::segments_max
    #[error("{found} {what} in a request, of {max} at most")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// The server stored into the used ring what no device may.
    #[error("the server broke the used ring")]
    Misused(#[from] Misused),
    /// The server says that it cannot go on with this queue.
    #[error("the server gave up queue {queue}")]
    GivenUp {
        /// The number of the queue.
        queue: u16,
    },
    /// Without an in-flight log, or to be stopped, the client must have its queues.
    #[error("queue {queue} was taken and not put back")]
    Taken {
        /// The number of the queue.
        queue: u16,
    },
}

impl ClientError {
    /// Returns a function that says which message failed.
    pub(crate) fn message(message: &'static str) -> impl FnOnce(vhost::Error) -> Self {
        move |source| Self::Message { message, source }
    }

    /// Returns a function that says what a system call was for.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { doing, source: source.into() }
    }
}
