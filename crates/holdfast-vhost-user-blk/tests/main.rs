//! The tests of this crate in one program, which is linked once.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod common;
mod data;
mod durability;
mod hostile_front_ends;
mod hostile_guests;
mod lifecycle;
mod migration;
mod requests;
mod targets;
