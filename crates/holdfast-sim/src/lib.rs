//! A device with a seed, for tests: whatever it does wrong, it does again for the same seed.
//!
//! [`FaultyDevice`] is a layer around another device. It ends bios in any order and late, moves
//! fewer bytes than it was asked to, and fails where it is told to. [`PowerDevice`] keeps what is
//! cached and what is durable apart, and tells what a power cut may leave at any moment of a run.

#![forbid(unsafe_code)]

mod faults;
mod power;
mod random;

pub use faults::{Fault, Faults, FaultyDevice};
pub use power::{Journal, PowerDevice, Replay};
pub use random::Random;
