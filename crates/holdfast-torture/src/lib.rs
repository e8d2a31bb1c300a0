//! The worst guest there is, as a client of a vhost-user-blk server: it changes its buffers during
//! every request, lists pages twice, cuts requests at odd places, and overlaps them. It knows what
//! must be read, whatever the order in which the server does what it was asked at the same time.
//!
//! A [`Case`] is one run against a server in this process. Which guards are stored is judged by a
//! scrub at the end.

#![forbid(unsafe_code)]

mod arena;
mod case;
pub mod content;
mod error;
mod guest;
mod host;
mod medium;
mod model;
mod mutator;
mod outcome;
mod plan;
mod random;
mod restart;
mod rot;
mod scatter;

pub use case::{Case, Storage};
pub use error::TortureError;
pub use outcome::{Corrupted, Outcome, ServerCounts, Table};
pub use restart::Restarts;
