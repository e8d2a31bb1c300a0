//! Where servers listen: an [`Address`] as users write it, and a [`Listener`] at one.
//!
//! This crate knows no protocol.

#![forbid(unsafe_code)]

mod address;

pub use address::{Address, Listener, ParseAddressError};
