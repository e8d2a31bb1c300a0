//! What Linux itself says of a file system.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, StatxFlags, StatxTimestamp, statx};
use serde_json::{Value, json};

use crate::e2e::scene::Scene;
use crate::run::command;

/// A mounted file system; unmounted when it is dropped.
pub(super) struct Mount {
    pub(super) path: String,
    is_open: bool,
}

impl Mount {
    /// Mounts an image.
    pub(super) fn new(scene: &Scene, image: &str, read_only: bool) -> Result<Self> {
        let options = if read_only { "loop,ro" } else { "loop" };
        Self::at(scene, "mount", &["-t", "xfs", "-o", options, image])
    }

    /// Mounts memory, in which images and copies cost no I/O.
    pub(super) fn memory(scene: &Scene) -> Result<Self> {
        Self::at(scene, "memory", &["-t", "tmpfs", "-o", "size=3g", "tmpfs"])
    }

    fn at(scene: &Scene, name: &str, what: &[&str]) -> Result<Self> {
        let path = scene.path(name);
        fs::create_dir_all(&path)?;
        scene.ok(command("mount", what).arg(&path))?;
        Ok(Self { path, is_open: true })
    }

    pub(super) fn close(mut self, scene: &Scene) -> Result<()> {
        scene.ok(&mut command("umount", &[&self.path]))?;
        self.is_open = false;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_open {
            // The scenario has failed, and says why.
            let _ = command("umount", &["--lazy", &self.path]).status();
        }
    }
}

/// Every path below a directory, with a slash in front, and what Linux says of it.
pub(super) fn tree(root: &Path) -> Result<BTreeMap<Vec<u8>, Value>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(PathBuf::from("/"), root.to_owned())];
    while let Some((name, path)) = waiting.pop() {
        for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
            let entry = entry?;
            let (name, path) = (name.join(entry.file_name()), entry.path());
            found.insert(name.as_os_str().as_bytes().to_vec(), describe(&path)?);
            if entry.file_type()?.is_dir() {
                waiting.push((name, path));
            }
        }
    }
    Ok(found)
}

/// What Linux says of a file, in the words of the program.
pub(super) fn describe(path: &Path) -> Result<Value> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, flags)
        .with_context(|| path.display().to_string())?;
    let time =
        |time: StatxTimestamp| json!({ "seconds": time.tv_sec, "nanoseconds": time.tv_nsec });
    let kind = match stat.stx_mode >> 12 {
        0o1 => "fifo",
        0o2 => "character-device",
        0o4 => "directory",
        0o6 => "block-device",
        0o10 => "file",
        0o12 => "symlink",
        _ => "socket",
    };
    let mut value = json!({
        "inode": stat.stx_ino,
        "type": kind,
        "mode": stat.stx_mode,
        "links": stat.stx_nlink,
        "uid": stat.stx_uid,
        "gid": stat.stx_gid,
        "size": stat.stx_size,
        "blocks": stat.stx_blocks,
        "io_bytes": stat.stx_blksize,
        "accessed": time(stat.stx_atime),
        "modified": time(stat.stx_mtime),
        "changed": time(stat.stx_ctime),
        "created": time(stat.stx_btime),
    });
    if kind.ends_with("-device") {
        value["device"] = json!({ "major": stat.stx_rdev_major, "minor": stat.stx_rdev_minor });
    }
    if kind == "symlink" {
        value["target"] = json!(fs::read_link(path)?.to_string_lossy());
    }
    Ok(value)
}

/// The attributes of a file, their values in hexadecimal.
pub(super) fn attributes(path: &Path) -> Result<BTreeMap<String, String>> {
    /// Longer than all names that a file can list.
    const LIST: usize = 64 << 10;
    let mut list = vec![0; LIST];
    let len = rustix::fs::llistxattr(path, &mut list[..])?;
    let names = list[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut found = BTreeMap::new();
    let mut value = vec![0; LIST];
    for name in names {
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        let text = value[..len].iter().map(|byte| format!("{byte:02x}")).collect();
        found.insert(String::from_utf8_lossy(name).into_owned(), text);
    }
    Ok(found)
}

/// A part of a file that is stored: where in the file, how much, where on the device, in bytes; and whether
/// it is only reserved.
pub(super) type Extent = (u64, u64, u64, bool);

/// The extents of a file.
pub(super) fn extents(scene: &Scene, path: &str) -> Result<Vec<Extent>> {
    const SECTOR: u64 = 512;
    const UNWRITTEN: u64 = 0x800;
    let text = scene.quiet(&mut command("xfs_io", &["-r", "-c", "fiemap -v", path]))?;
    let mut extents = Vec::new();
    for line in text.lines() {
        // `0: [0..127]: 96..223 128 0x801`; a hole has no address.
        let Some((_, rest)) = line.split_once(": [") else { continue };
        let Some((range, rest)) = rest.split_once("]:") else { continue };
        let words: Vec<_> = rest.split_whitespace().collect();
        let [address, blocks, flags] = words[..] else { continue };
        let first = |range: &str| -> Result<u64> {
            let (first, _) = range.split_once("..").context("a range without an end")?;
            Ok(first.parse::<u64>()? * SECTOR)
        };
        let flags = u64::from_str_radix(flags.trim_start_matches("0x"), 16)?;
        let len = blocks.parse::<u64>()? * SECTOR;
        extents.push((first(range)?, len, first(address)?, flags & UNWRITTEN != 0));
    }
    Ok(extents)
}
