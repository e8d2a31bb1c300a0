//! Protection information: what belongs to a sector beside its data, and how it is checked.
//!
//! A *tuple* holds a guard tag (a checksum of the sector), an application tag (a value that its
//! owner chose) and a reference tag (where the sector belongs). Its three formats are those of T10
//! SBC-4 (8 bytes, 16-bit guard) and of the NVMe command set (16 bytes, 32-bit and 64-bit guards).
//! All fields are big-endian, as in the standards.
//!
//! This crate does no I/O.

#![forbid(unsafe_code)]

mod protection;
mod tuple;

pub use holdfast_checksum::{GuardKind, UnknownGuard};
pub use protection::{Protection, ProtectionType};
pub use tuple::{Nvme32Tuple, Nvme64Tuple, T10Tuple, Tuple};
