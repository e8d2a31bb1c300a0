//! `holdfast xfs IMAGE get`

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs::{Ino, Inode, Kind, MappingState, Stat, Timestamp, XfsError};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::Outcome;
use crate::cli::XfsGet;
use crate::progress::Progress;

use super::tree::{DirectoryTwice, Met, inode_of, join};
use super::{Mounted, find};

/// How much is read at a time.
const STEP: usize = 4 << 20;

/// Something that is to be copied.
struct Item {
    ino: Ino,
    kind: Kind,
    /// Its path, for messages.
    path: Vec<u8>,
    target: PathBuf,
}

/// A copy that is being made.
struct Copy<'a> {
    xfs: &'a mut Mounted,
    buffer: Vec<u8>,
    progress: Progress,
    /// How many bytes of files have been dealt with.
    done: u64,
    /// Where files that have several names are already.
    linked: HashMap<Ino, PathBuf>,
    /// How many files could not be copied because they are corrupt.
    corrupt: u64,
    /// How many device nodes, pipes and sockets were met.
    special: u64,
}

pub(super) fn run(xfs: &mut Mounted, arguments: &XfsGet) -> anyhow::Result<Outcome> {
    let XfsGet { path, target } = arguments;
    if target.symlink_metadata().is_ok() {
        bail!("{} exists, and nothing is ever overwritten", target.display());
    }
    let inode = find(xfs, path, true)?;
    if inode.kind().is_special() {
        bail!("{}: device nodes, pipes and sockets are not copied", path.display());
    }
    let (items, bytes, corrupt) = plan(xfs, path.as_bytes(), inode, target)?;
    let mut copy = Copy {
        xfs,
        buffer: vec![0; STEP],
        progress: Progress::new("copying", bytes),
        done: 0,
        linked: HashMap::new(),
        corrupt,
        special: 0,
    };
    for item in &items {
        let copied = copy.item(item);
        copy.judge(item, copied)?;
    }
    // The deepest first, since what is made in a directory changes it.
    for item in items.iter().rev().filter(|item| item.kind == Kind::Directory) {
        let finished = copy.finish_directory(item);
        copy.judge(item, finished)?;
    }
    if copy.special > 0 {
        tracing::warn!("{} device nodes, pipes and sockets were not copied", copy.special);
    }
    Ok(if copy.corrupt == 0 { Outcome::Fine } else { Outcome::Problems })
}

/// Lists what is to be copied, directories before what is in them. Returns how many bytes that is, and
/// how much was found corrupt.
fn plan(
    xfs: &mut Mounted,
    path: &[u8],
    inode: Inode,
    target: &Path,
) -> anyhow::Result<(Vec<Item>, u64, u64)> {
    let mut items = Vec::new();
    let (mut bytes, mut corrupt) = (0_u64, 0);
    let mut met = Met::default();
    let mut waiting = vec![(path.to_vec(), target.to_owned(), inode)];
    while let Some((path, target, inode)) = waiting.pop() {
        let (ino, kind) = (inode.ino(), inode.kind());
        items.push(Item { ino, kind, path: path.clone(), target: target.clone() });
        if kind == Kind::Regular {
            bytes = bytes.saturating_add(inode.size());
        }
        if kind != Kind::Directory {
            continue;
        }
        let entries = met.entries(xfs, &inode);
        let entries = entries.with_context(|| String::from_utf8_lossy(&path).into_owned());
        for entry in tolerate(entries, &mut corrupt)?.unwrap_or_default() {
            let below = inode_of(xfs, &path, &entry);
            if let Some(inode) = tolerate(below, &mut corrupt)? {
                let target = target.join(OsStr::from_bytes(&entry.name));
                waiting.push((join(&path, &entry.name), target, inode));
            }
        }
    }
    Ok((items, bytes, corrupt))
}

/// Counts and reports what is corrupt, so that the rest can be copied.
fn tolerate<T>(result: anyhow::Result<T>, corrupt: &mut u64) -> anyhow::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if crate::is_corruption(&error) => {
            tracing::error!("{error:#}");
            *corrupt += 1;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Copy<'_> {
    fn judge(&mut self, item: &Item, result: anyhow::Result<()>) -> anyhow::Result<()> {
        let result = result.with_context(|| String::from_utf8_lossy(&item.path).into_owned());
        tolerate(result, &mut self.corrupt).map(drop)
    }

    fn item(&mut self, item: &Item) -> anyhow::Result<()> {
        let target = &item.target;
        let cannot = || format!("cannot make {}", target.display());
        if item.kind == Kind::Directory {
            return fs::create_dir(target).with_context(cannot);
        }
        if item.kind.is_special() {
            self.special += 1;
            return Ok(());
        }
        let inode = self.xfs.inode(item.ino)?;
        if inode.stat().links > 1 {
            if let Some(made) = self.linked.get(&item.ino) {
                self.done = self.done.saturating_add(inode.size());
                return fs::hard_link(made, target).with_context(cannot);
            }
            self.linked.insert(item.ino, target.clone());
        }
        if item.kind == Kind::Symlink {
            let link = self.xfs.read_link(&inode)?;
            symlink(OsStr::from_bytes(&link), target).with_context(cannot)?;
            return set_times(target, inode.stat());
        }
        let copied = self.file(&inode, target);
        if copied.is_err() {
            self.linked.remove(&item.ino);
            // Half a file would look like a whole one; the first error is the one to tell.
            let _removed = fs::remove_file(target);
        }
        copied
    }

    fn file(&mut self, inode: &Inode, target: &Path) -> anyhow::Result<()> {
        let cannot = || format!("cannot write {}", target.display());
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(target);
        let file = file.with_context(cannot)?;
        let size = inode.size();
        file.set_len(size).with_context(cannot)?;
        let start = self.done;
        let mut position = 0;
        while position < size {
            let mapping = self.xfs.map(inode, position)?;
            let end = mapping.end().min(size);
            if matches!(mapping.state, MappingState::Mapped { .. }) {
                self.run(inode, &file, position, end).with_context(cannot)?;
            }
            position = end;
            self.progress.at(start.saturating_add(position));
        }
        self.done = start.saturating_add(size);
        file.set_permissions(permissions(inode.stat())).with_context(cannot)?;
        set_times(target, inode.stat())
    }

    /// Copies a part of a file that is stored.
    fn run(&mut self, inode: &Inode, file: &File, start: u64, end: u64) -> anyhow::Result<()> {
        let mut position = start;
        while position < end {
            let len = to_usize((end - position).min(to_u64(STEP)));
            let buffer = &mut self.buffer[..len];
            let len = self.xfs.read(inode, position, buffer)?;
            file.write_all_at(&buffer[..len], position)?;
            position += to_u64(len.max(1));
            self.progress.at(self.done.saturating_add(position));
        }
        Ok(())
    }

    fn finish_directory(&mut self, item: &Item) -> anyhow::Result<()> {
        let inode = self.xfs.inode(item.ino)?;
        let cannot = || format!("cannot finish {}", item.target.display());
        fs::set_permissions(&item.target, permissions(inode.stat())).with_context(cannot)?;
        set_times(&item.target, inode.stat())
    }
}

/// Returns who may do what. What would run as somebody else does not, since owners are not copied.
fn permissions(stat: &Stat) -> Permissions {
    Permissions::from_mode(u32::from(stat.mode & 0o1777))
}

fn set_times(target: &Path, stat: &Stat) -> anyhow::Result<()> {
    let time = |Timestamp { seconds, nanoseconds }: Timestamp| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    let times =
        Timestamps { last_access: time(stat.accessed), last_modification: time(stat.modified) };
    utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("cannot set the times of {}", target.display()))
}

/// Returns whether a command ended because a file system is corrupt.
pub(crate) fn is_corruption(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref().is_some_and(XfsError::is_corruption) || cause.is::<DirectoryTwice>()
}
