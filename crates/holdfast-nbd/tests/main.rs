//! The tests of this crate in one program, which is linked once.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_clients;
mod commands;
mod common;
mod data;
mod disks;
mod lifecycle;
