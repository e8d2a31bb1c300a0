//! A mount: XFS on any block device, as a FUSE file system, which users and programs see as any other.
//!
//! [`Mount::new`] makes it and [`Mount::run`] answers the kernel until it is unmounted, by umount(8) or
//! by [`unmount`]. Nothing is written: whatever would change something is refused with EROFS.
//!
//! Several threads take requests from the kernel, and each has a queue of its own on the device.
//! Metadata are read under one lock, with the queue of whoever holds it. The data of a file are read
//! outside of it, by extents that are known since the file was opened.

#![forbid(unsafe_code)]

mod attributes;
mod connect;
mod errno;
mod files;
mod filesystem;
mod mount;
mod options;
mod queues;
mod statistics;

pub use connect::unmount;
pub use mount::{Mount, MountError};
pub use options::Options;
