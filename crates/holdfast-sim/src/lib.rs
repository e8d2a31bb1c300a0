//! A device with a seed, for tests: whatever it does wrong, it does again for the same seed.
//!
//! [`FaultyDevice`] is a layer around another device. It ends bios in any order and late, moves
//! fewer bytes than it was asked to, and fails where it is told to.

#![forbid(unsafe_code)]

mod faults;
mod random;

pub use faults::{Fault, Faults, FaultyDevice};
pub use random::Random;
