//! The medium: a file or block device through `io_uring`, and memory.

#![forbid(unsafe_code)]

mod file;
mod mapped;
mod memory;
mod open;
mod plain;

pub use file::FileDevice;
pub use memory::MemoryDevice;
pub use open::{Access, Backing, OpenError};
