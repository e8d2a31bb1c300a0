//! The tests of this crate in one program, which is linked once.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod common;
mod corruption;
mod flush;
mod golden;
mod journal;
mod log;
mod mirror;
mod model;
mod mutator;
mod scrub;
mod sizes;
mod threads;
