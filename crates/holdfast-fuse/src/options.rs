//! How to mount.

use std::ffi::OsString;
use std::num::NonZeroUsize;

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is shown as the source of the mount, such as the path of the image.
    pub source: OsString,
    /// Take the file system as it is when its log is dirty, as
    /// [`MountOptions::no_recovery`](holdfast_xfs::MountOptions::no_recovery).
    pub no_recovery: bool,
    /// Let files be written, as [`MountOptions::write`](holdfast_xfs::MountOptions::write).
    pub write: bool,
    /// Read and write all files around the page cache, however they were opened: then what was written
    /// is with the device when the call returns, and nothing is read twice from memory.
    pub direct_io: bool,
    /// Let all users use the mount, as far as permissions allow it. Who is not root needs
    /// `user_allow_other` in `/etc/fuse.conf` for that.
    pub allow_other: bool,
    /// How many requests are answered at the same time.
    pub threads: NonZeroUsize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            source: "holdfast".into(),
            no_recovery: false,
            write: false,
            direct_io: false,
            allow_other: false,
            threads: NonZeroUsize::new(16).expect("16 is not 0"),
        }
    }
}
