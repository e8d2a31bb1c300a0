//! The tests of this crate in one program, which is linked once.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod crash;
mod damaged;
mod golden;
mod images;
mod random;
mod trouble;
mod write;
