//! The tests of this crate in one program, which is linked once.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod hostile;
mod inflight;
mod model;
mod threads;
