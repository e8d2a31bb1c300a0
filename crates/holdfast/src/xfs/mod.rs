//! `holdfast xfs`

mod copy;
mod extents;
mod image;
mod list;
mod put;
mod report;
mod stat;
mod tree;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use holdfast_bio::SharedQueue;
use holdfast_device::Access;
use holdfast_xfs::{Inode, MountOptions};

use crate::Outcome;
use crate::cli::{Xfs, XfsAction, XfsCat};

pub(crate) use self::copy::is_corruption;
pub(crate) use self::image::{Image, Opened};

/// A file system that a command reads.
type Mounted = holdfast_xfs::Xfs<SharedQueue<Image>>;

pub(crate) fn run(arguments: &Xfs) -> anyhow::Result<Outcome> {
    if let XfsAction::Put(put) = &arguments.action {
        return put::run(arguments, put);
    }
    let options = MountOptions { no_recovery: arguments.no_recovery, ..MountOptions::default() };
    let path = &arguments.image;
    let image = SharedQueue::new(Opened::open(path, Access::ReadOnly)?.queue()?);
    let mut xfs = Mounted::mount(image, &options)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if !xfs.is_clean() {
        tracing::warn!(
            "what was changed last on {} may be missing or damaged: its log is not looked at",
            path.display()
        );
    }
    let ran = match &arguments.action {
        XfsAction::Ls(arguments) => list::run(&mut xfs, arguments),
        XfsAction::Stat(arguments) => stat::run(&mut xfs, arguments),
        XfsAction::Cat(arguments) => cat(&mut xfs, arguments),
        XfsAction::Get(arguments) => copy::run(&mut xfs, arguments),
        XfsAction::Extents(arguments) => extents::run(&mut xfs, arguments),
        XfsAction::Put(_) => unreachable!("it mounts the file system itself"),
    };
    match ran {
        // Who reads has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => Ok(Outcome::Fine),
        ran => ran,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_one = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(is_one)
            || cause.downcast_ref().and_then(serde_json::Error::io_error_kind)
                == Some(std::io::ErrorKind::BrokenPipe)
    })
}

/// Finds what a path of the file system leads to.
fn find(xfs: &mut Mounted, path: &OsStr, follow: bool) -> anyhow::Result<Inode> {
    xfs.walk(path.as_bytes(), follow).with_context(|| path.display().to_string())
}

fn cat(xfs: &mut Mounted, arguments: &XfsCat) -> anyhow::Result<Outcome> {
    /// How much is read at a time.
    const STEP: usize = 4 << 20;
    let mut out = std::io::stdout().lock();
    let mut buffer = vec![0; STEP];
    for path in &arguments.paths {
        let inode = find(xfs, path, true)?;
        let mut offset = 0;
        loop {
            let len = xfs
                .read(&inode, offset, &mut buffer)
                .with_context(|| path.display().to_string())?;
            if len == 0 {
                break;
            }
            out.write_all(&buffer[..len])?;
            offset += holdfast_units::to_u64(len);
        }
    }
    out.flush()?;
    Ok(Outcome::Fine)
}
