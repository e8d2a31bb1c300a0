//! A file of an XFS as a disk: each thread that serves it has a [`FileQueue`].
//!
//! One thread, the keeper, has the file system. A queue knows where the file's blocks are, and asks the
//! keeper only when that changes: a hole or a reserved block is written, a flush, a discard. All else
//! goes from the queue to its own queue of the device. The size of the disk is that of the file when it
//! was opened.

#![forbid(unsafe_code)]

mod file;
mod keeper;
mod mapper;
mod queue;

pub use file::{FileDisk, FileError};
pub use queue::FileQueue;
