//! One I/O for a block device, and what a layer of the stack is.
//!
//! Requests go down by value, completions come up by value, and nobody is called from below: a
//! [`Bio`] is submitted to a [`BlockDevice`], and comes back in an [`Ended`] with its memory and
//! its result. A layer is a device around a device; [`Bounce`] is one.
//!
//! This crate does no I/O and knows no format.

#![forbid(unsafe_code)]

mod bio;
mod bounce;
mod device;
mod error;
mod limits;
mod shared;

pub use bio::{Bio, Ended, Op};
pub use bounce::{Bounce, BounceCounters, ParseReadPolicyError, ReadPolicy};
pub use device::{BlockDevice, DiskQueue};
pub use error::{Error, Mismatch, Tag};
pub use limits::{GuardLimits, Limits};
pub use shared::SharedQueue;
