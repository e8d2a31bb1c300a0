//! Ranges of files as bios: the extent iterator, direct I/O, and what follows when it has ended.
//!
//! A file system implements [`Mapper`]: it says where a range of a file is, one [`Mapping`] at a time,
//! and is told of what has ended by an [`Ioend`]. [`DirectIo`] does everything else, for any number of
//! requests in flight on one queue of a device. This crate knows no file system.

#![forbid(unsafe_code)]

mod direct;
mod error;
mod ioend;
mod mapping;
mod request;

pub use direct::DirectIo;
pub use error::{Error, MappingFault};
pub use ioend::{Ioend, IoendKind};
pub use mapping::{Extents, How, Kind, Mapper, Mapping, Purpose};
pub use request::{Direction, Finished, Flags, Request};
