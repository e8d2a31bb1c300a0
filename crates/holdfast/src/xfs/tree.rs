//! Going through directories.

use std::collections::HashSet;
use std::{error, fmt};

use anyhow::Context;
use holdfast_xfs::{Entry, Ino, Inode};

use super::Mounted;

/// A directory is in more than one place, so the file system is corrupt.
#[derive(Debug)]
pub(super) struct DirectoryTwice {
    ino: Ino,
}

impl fmt::Display for DirectoryTwice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "directory {} is in more than one place", self.ino)
    }
}

impl error::Error for DirectoryTwice {}

/// The directories that were met, each of which can be met only once.
#[derive(Default)]
pub(super) struct Met(HashSet<Ino>);

impl Met {
    /// Returns the entries of a directory but for `.` and `..`, by name.
    pub(super) fn entries(&mut self, xfs: &mut Mounted, dir: &Inode) -> anyhow::Result<Vec<Entry>> {
        if !self.0.insert(dir.ino()) {
            return Err(DirectoryTwice { ino: dir.ino() }.into());
        }
        let mut entries = Vec::new();
        let mut position = 0;
        loop {
            let more = xfs.read_dir(dir, position)?;
            let Some(last) = more.last() else { break };
            position = last.next;
            entries.extend(more.into_iter().filter(|entry| !is_own(&entry.name)));
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}

fn is_own(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Returns a path with a name behind it.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if path.is_empty() || path.ends_with(b"/") { b"" } else { b"/" };
    [path, separator, name].concat()
}

/// Returns the inode of an entry.
pub(super) fn inode_of(xfs: &mut Mounted, path: &[u8], entry: &Entry) -> anyhow::Result<Inode> {
    let path = || String::from_utf8_lossy(&join(path, &entry.name)).into_owned();
    xfs.inode(entry.ino).with_context(path)
}
