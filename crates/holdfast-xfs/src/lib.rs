//! XFS, version 5, read and written on any block device: a file, a block device, a protected volume.
//!
//! [`Xfs::mount`] checks what the file system is and that its log is clean. [`Xfs::walk`] and
//! [`Xfs::lookup`] find an [`Inode`]; [`Xfs::read_dir`], [`Xfs::read_link`], [`Xfs::attribute`] and
//! [`Xfs::read`] return what it holds, and [`Xfs::map`] where its bytes are. All metadata are verified
//! when they are read: checksum, file system, place and owner.
//!
//! ```no_run
//! # fn show(device: holdfast_device::MemoryDevice) -> Result<(), holdfast_xfs::XfsError> {
//! use holdfast_xfs::{MappingState, MountOptions, Xfs};
//!
//! let mut xfs = Xfs::mount(device, &MountOptions::default())?;
//! let file = xfs.walk(b"/home/disk.img", true)?;
//! let mut start = [0; 512];
//! xfs.read(&file, 0, &mut start)?;
//! if let MappingState::Mapped { address } = xfs.map(&file, 1 << 20)?.state {
//!     println!("the second MiB is at byte {address} of the device");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! With [`MountOptions::write`] a file that is [open](Xfs::open) is written by
//! [`DirectIo`](holdfast_iomap::DirectIo), for which [`Xfs`] is the [`Mapper`](holdfast_iomap::Mapper).
//! [`Xfs::allocate`], [`Xfs::punch`], [`Xfs::zero`] and [`Xfs::truncate`] change what space it has. Metadata
//! are changed in memory, and stored by [`Xfs::sync`] and [`Xfs::unmount`].
//!
//! One [`Xfs`] belongs to one thread and one queue of its device, and its calls block. What was read stays
//! in memory up to [`MountOptions::cache_bytes`], besides the extents of the inodes that callers hold; what
//! was changed and is not stored yet takes up to 32 MiB more.

#![forbid(unsafe_code)]

mod attr;
mod btree;
mod cache;
mod dir;
mod error;
mod extents;
mod hashes;
mod inode;
mod log;
mod mapper;
mod mount;
mod path;
mod read;
mod reader;
mod released;
mod source;
mod space;
mod symlink;
mod times;
mod transaction;
mod writer;

pub use dir::Entry;
pub use error::{Place, XfsError};
pub use extents::{ExtentList, Mapping, MappingState};
pub use holdfast_xfs_format::{FileType, Geometry, Ino, Kind, Superblock, Timestamp};
pub use inode::{Inode, Stat};
pub use mount::{MountOptions, Statistics, Xfs};
pub use reader::Reader;
