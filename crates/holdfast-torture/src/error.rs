//! Why the torture could not go on. What the server does wrong is no error: it is the result.

use std::io;
use std::path::PathBuf;

use holdfast_device::OpenError;
use holdfast_virtio_driver::ClientError;
use holdfast_volume::VolumeError;
use thiserror::Error;

/// Why the torture could not go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TortureError {
    /// The client could not go on.
    #[error("the client cannot go on")]
    Client(#[from] ClientError),
    /// The file of a volume cannot be used.
    #[error("the scratch volume")]
    Open(#[from] OpenError),
    /// The volume cannot be used.
    #[error("the scratch volume")]
    Volume(#[from] VolumeError),
    /// An I/O of a volume that nobody serves failed.
    #[error("the scratch volume")]
    Bio(#[from] holdfast_bio::Error),
    /// Something of the system failed.
    #[error("cannot {doing}")]
    System {
        /// What it was for.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The server has stopped to answer.
    #[error("the server has answered none of {in_flight} requests for {seconds} seconds")]
    Hung {
        /// How many requests are in flight.
        in_flight: usize,
        /// For how long.
        seconds: u64,
    },
    /// The connection was closed, and not by us.
    #[error("the server closed the connection")]
    Gone,
    /// A program ended as it should not.
    #[error("{} ended with {status}{said}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// The last that it said, behind a colon.
        said: String,
    },
    /// The disk is none that the torture can use.
    #[error("the disk of {blocks} blocks is none for this test")]
    Disk {
        /// Its size in blocks of 512 bytes.
        blocks: u64,
    },
}

impl TortureError {
    /// Returns a function that says what a system call was for.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { doing, source: source.into() }
    }
}
