//! A mount, from its beginning to its end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use holdfast_bio::BlockDevice;
use holdfast_xfs::{MountOptions, Xfs, XfsError};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use thiserror::Error;

use crate::connect::{connect, unmount};
use crate::files::Files;
use crate::filesystem::Requests;
use crate::options::Options;
use crate::queues::Queues;
use crate::writing::Writers;

/// Why something could not be mounted, or not to the end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MountError {
    /// The file system cannot be read, or not be written.
    #[error(transparent)]
    Xfs(#[from] XfsError),
    /// No queue of the device could be opened.
    #[error("cannot open a queue of the device")]
    Device {
        /// Why.
        source: io::Error,
    },
    /// The kernel's device failed.
    #[error("no more requests of the kernel can be received")]
    Session {
        /// What was said.
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
    /// There until it runs.
    session: Option<Session<Requests>>,
    /// There until it has run.
    files: Option<Arc<Files>>,
    directory: PathBuf,
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
        let &Options { no_recovery, write, direct_io, .. } = options;
        let how = MountOptions { no_recovery, write, ..MountOptions::default() };
        let writers = write.then(|| Writers::new(queues.beside()));
        let xfs = Xfs::mount(queues, &how)?;
        let refused = |source| MountError::Refused { path: directory.to_owned(), source };
        let is_clean = xfs.is_clean();
        let device = connect(directory, options).map_err(refused)?;
        let files = Arc::new(Files::new(xfs, writers));
        let requests = Requests { files: Arc::clone(&files), direct_io };
        let directory = directory.to_owned();
        let mut mount = Self { session: None, files: Some(files), directory, is_clean };
        mount.session = Some(start(requests, device, options).map_err(refused)?);
        read_ahead(&mount.directory);
        Ok(mount)
    }

    /// Returns whether the log was clean, so that nothing is missing.
    pub const fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// Answers the kernel until the file system is unmounted, and stores all that is not yet. Then no
    /// queue of the device is left.
    ///
    /// # Errors
    ///
    /// [`MountError::Session`] for what the kernel's device said that no request can follow; then it is
    /// unmounted here. [`MountError::Xfs`] when something could not be stored: the file system then
    /// stays marked as being written.
    pub fn run(mut self) -> Result<(), MountError> {
        let ran = self.session.take().map_or(Ok(()), Session::run);
        if ran.is_ok() {
            // Nothing of ours is mounted there any more.
            self.directory = PathBuf::new();
        }
        // All who answered requests have ended with the session.
        let files = self.files.take().and_then(Arc::into_inner);
        let stored = files.map_or(Ok(()), Files::unmount);
        ran.map_err(|source| MountError::Session { source })?;
        Ok(stored?)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.directory.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = unmount(&self.directory) {
            tracing::warn!("cannot unmount {}: {error}", self.directory.display());
        }
    }
}

/// Agrees with the kernel on how to speak.
fn start(requests: Requests, device: OwnedFd, options: &Options) -> io::Result<Session<Requests>> {
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(options.threads.get());
    config.clone_fd = true;
    Session::from_fd(requests, device, acl, config)
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
