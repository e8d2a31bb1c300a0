//! A mount: XFS on any block device, as a FUSE file system, which users and programs see as any other.
//!
//! [`Mount::new`] makes it and [`Mount::run`] answers the kernel until it is unmounted, by umount(8) or
//! by [`unmount`]. With [`Options::write`] the data, sizes and times of files that are there can be
//! changed; names, owners, permissions and attributes cannot, which is refused with EROFS.
//!
//! Several threads take requests from the kernel, and each has queues of its own on the device.
//! Metadata are read and changed under one lock, with the queue of whoever holds it. The data of a file
//! are read and written outside of it. Each file that is open has a lock of its own, which many who read
//! hold together and who changes the file alone.

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
mod writing;

pub use connect::unmount;
pub use mount::{Mount, MountError};
pub use options::Options;
