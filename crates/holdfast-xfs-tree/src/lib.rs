//! The B+trees of XFS, and what is free, owned and shared in its allocation groups, changed in memory.
//!
//! Blocks come from, and go back to, whoever implements [`Blocks`]; nothing here does I/O. A change
//! that fails has done a part of what it was to do, so none of it may be stored then.

#![forbid(unsafe_code)]

mod blocks;
mod bmap;
mod error;
mod file_system;
mod fork;
mod free;
mod group;
mod list;
mod node;
mod refcount;
mod reserve;
mod rmap;
mod shape;
mod space;
mod tree;

pub use blocks::{BlockRef, Blocks, Role};
pub use error::TreeError;
pub use file_system::FileSystem;
pub use fork::BmapFork;
pub use free::{Request, Run};
pub use group::Group;
pub use refcount::Shared;
pub use rmap::{Owned, Owner};
pub use space::{Space, Span, Wanted};
