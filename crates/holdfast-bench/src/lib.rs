//! What protection costs: the same storage is read and written with and without it, in turns, so that what
//! else the machine does meets all of them, and the medians are compared.
//!
//! [`Subject`] is the storage, [`Plan`] what is done to it, [`measure`] does it, and [`Report`] shows what
//! was found: as tables, as JSON, and as a page with plots.
//!
//! Nothing is turned off to be faster: the volume has the default guard, sector size and durability.

#![forbid(unsafe_code)]

mod drive;
mod machine;
mod measure;
mod plan;
mod report;
mod statistics;
mod subject;

pub use machine::Machine;
pub use measure::measure;
pub use plan::{Load, Mode, Order, Plan, Row, Shows, Table, Transfer};
pub use report::{Found, Line, Report};
pub use statistics::{Cell, Spread};
pub use subject::Subject;

use std::io;

use holdfast_device::OpenError;
use holdfast_volume::VolumeError;
use thiserror::Error;

/// Why nothing could be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The storage cannot be opened or made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The volume cannot be made or opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The storage is too small.
    #[error("{found} bytes are too few to measure with: give at least {needed}")]
    Small {
        /// How many bytes are needed.
        needed: u64,
        /// How many there are.
        found: u64,
    },
    /// A ring, memory or a thread could not be had.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A request failed.
    #[error("a request of {len} bytes at byte {offset} failed: {error}")]
    Request {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// How.
        error: holdfast_bio::Error,
    },
    /// The report could not be made.
    #[error("cannot draw: {0}")]
    Draw(String),
}

impl BenchError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
