//! Mounting, running and unmounting.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use fuser::Session;
use holdfast_bio::BlockDevice;
use holdfast_xfs::{MountOptions, Xfs, XfsError};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use thiserror::Error;

use crate::files::Files;
use crate::options::Options;
use crate::queues::Queues;

/// Why something could not be mounted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MountError {
    /// The file system cannot be read.
    #[error(transparent)]
    Xfs(#[from] XfsError),
    /// No queue of the device could be opened.
    #[error("cannot open a queue of the device")]
    Device {
        /// Why.
        source: io::Error,
    },
    /// What it was to be mounted on is no directory.
    #[error("{} is no directory that something can be mounted on", path.display())]
    Directory {
        /// What it is.
        path: PathBuf,
    },
    /// The kernel or fusermount3(1) refused it.
    #[error(
        "cannot mount on {}: it needs /dev/fuse and, for all but root, fusermount3 (package fuse3)",
        path.display()
    )]
    Refused {
        /// The directory.
        path: PathBuf,
        /// What was said.
        source: io::Error,
    },
}

/// A file system that is mounted, and unmounted when this is dropped.
#[derive(Debug)]
pub struct Mount {
    session: Session<Files>,
    is_clean: bool,
}

impl Mount {
    /// Mounts the file system on a device on a directory. `open` opens a queue of the device for the
    /// thread in which it is called.
    ///
    /// # Errors
    ///
    /// [`MountError::Xfs`] as for [`Xfs::mount`], and what is wrong with the device or the directory.
    pub fn new<D: BlockDevice + 'static>(
        open: impl Fn() -> io::Result<D> + Send + Sync + 'static,
        directory: &Path,
        options: &Options,
    ) -> Result<Self, MountError> {
        if !directory.is_dir() {
            return Err(MountError::Directory { path: directory.to_owned() });
        }
        let queues = Queues::new(open).map_err(|source| MountError::Device { source })?;
        let how = MountOptions { no_recovery: options.no_recovery, ..MountOptions::default() };
        let xfs = Xfs::mount(queues, &how)?;
        let is_clean = xfs.is_clean();
        let session = Session::new(Files::new(xfs), directory, &options.config())
            .map_err(|source| MountError::Refused { path: directory.to_owned(), source })?;
        read_ahead(directory);
        Ok(Self { session, is_clean })
    }

    /// Returns whether the log was clean, so that nothing is missing.
    pub const fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// Answers the kernel until the file system is unmounted.
    ///
    /// # Errors
    ///
    /// What the kernel's device said that no request can follow.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

/// Lets the kernel read as much ahead as one request may be long, where only root may say so.
fn read_ahead(directory: &Path) {
    const KIBIBYTES: &str = "1024";
    // The kernel knows the number of the device without asking us.
    let found = rustix::fs::statx(CWD, directory, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    let written = found.map_err(io::Error::from).and_then(|found| {
        let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), KIBIBYTES)
    });
    if let Err(error) = written {
        tracing::debug!("the kernel reads as far ahead as it does by itself: {error}");
    }
}

/// Unmounts a directory. When it is in use it is only taken out of the tree of directories, and the
/// mount ends with its last user; returns whether it was so.
///
/// # Errors
///
/// What umount(2) or fusermount3(1) said.
pub fn unmount(directory: &Path) -> io::Result<bool> {
    match rustix::mount::unmount(directory, UnmountFlags::empty()) {
        Ok(()) => Ok(false),
        Err(Errno::BUSY) => {
            rustix::mount::unmount(directory, UnmountFlags::DETACH)?;
            Ok(true)
        }
        Err(Errno::PERM) => {
            if fusermount(&["-u"], directory)? {
                return Ok(false);
            }
            if fusermount(&["-u", "-z"], directory)? {
                return Ok(true);
            }
            Err(io::Error::other("fusermount3 refused it"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Has fusermount3(1) unmount, and returns whether it did.
fn fusermount(options: &[&str], directory: &Path) -> io::Result<bool> {
    let mut command = Command::new("fusermount3");
    command.args(options).args([OsStr::new("-q"), OsStr::new("--")]).arg(directory);
    Ok(command.status()?.success())
}
