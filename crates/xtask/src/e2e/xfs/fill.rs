//! Files of all kinds and forms, made by Linux.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};

use crate::e2e::bytes::noise;
use crate::e2e::scene::Scene;
use crate::run::command;

/// The files whose extents are compared.
pub(super) const MAPPED: &[&str] =
    &["fragments", "sparse", "reserved", "plain", "shared", "copy-on-write", "empty"];

/// What a file system can hold.
pub(super) struct Shape {
    /// How many files the largest directory has.
    pub(super) files: usize,
    /// Timestamps reach behind 2038.
    pub(super) large_times: bool,
    /// Files can share their data.
    pub(super) shares: bool,
}

pub(super) fn fill(scene: &Scene, root: &str, shape: &Shape) -> Result<()> {
    let at = |name: &str| Path::new(root).join(name);
    directories(root, shape.files).context("directories")?;
    names(root).context("names")?;
    data(scene, root, shape.shares).context("data")?;
    attributes(scene, root).context("attributes")?;
    let device = makedev(259, 70_000);
    for (name, kind) in [
        ("block", FileType::BlockDevice),
        ("character", FileType::CharacterDevice),
        ("fifo", FileType::Fifo),
        ("socket", FileType::Socket),
    ] {
        mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o640), device)?;
    }
    std::os::unix::fs::chown(at("fifo"), Some(70_000), Some(4_000_000_000))?;
    fs::set_permissions(at("plain"), fs::Permissions::from_mode(0o6751))?;
    times(root, shape.large_times).context("timestamps")
}

/// Directories in all forms: in the inode, a block, a leaf, nodes; and deep ones.
fn directories(root: &str, files: usize) -> Result<()> {
    for (name, count) in [("none", 0), ("short", 3), ("block", 20), ("leaf", 200), ("node", files)]
    {
        let dir = Path::new(root).join(format!("dir-{name}"));
        fs::create_dir(&dir)?;
        for number in 0..count {
            // Names of many lengths; some have the same hash.
            File::create(dir.join(format!("{number:06}{}", "x".repeat(number % 60))))?;
        }
        // Holes between entries, and entries in them.
        for number in (0..count).filter(|number| number % 5 == 1) {
            fs::remove_file(dir.join(format!("{number:06}{}", "x".repeat(number % 60))))?;
        }
        for number in (0..count).filter(|number| number % 15 == 1) {
            fs::create_dir(dir.join(format!("d{number}")))?;
        }
    }
    let mut deep = PathBuf::from(root);
    for level in 0..120 {
        deep.push(format!("level-{level}"));
        fs::create_dir(&deep)?;
    }
    Ok(fs::write(deep.join("bottom"), "deep")?)
}

/// Long names, names that are no text, and links.
fn names(root: &str) -> Result<()> {
    let at = |name: &[u8]| Path::new(root).join(OsStr::from_bytes(name));
    for name in [&[b'n'; 255][..], b"\xff\xfe\n", "\u{e9}\u{4e16}".as_bytes(), b" "] {
        fs::write(at(name), name)?;
    }
    for len in [1, 59, 300, 335, 336, 337, 500, 967, 968, 969, 1020, 1023] {
        symlink("t".repeat(len), at(format!("link-{len}").as_bytes()))?;
    }
    symlink(OsStr::from_bytes(b"\xff"), at(b"link-no-text"))?;
    fs::hard_link(at(b" "), at(b"dir-none/another name"))?;
    // Names with the same hash: the lowest bit of a byte is the highest of the next.
    for dir in ["dir-block", "dir-leaf", "dir-node"] {
        for name in [&b"same`A"[..], b"samea\xc1"] {
            fs::write(at(dir.as_bytes()).join(OsStr::from_bytes(name)), name)?;
        }
    }
    Ok(())
}

/// Files with extents in the inode and in trees, holes, reserved and shared space.
fn data(scene: &Scene, root: &str, shares: bool) -> Result<()> {
    let at = |name: &str| format!("{root}/{name}");
    File::create(at("empty"))?;
    fs::write(at("plain"), noise(1, 3_000_001))?;
    let fragments = File::create(at("fragments"))?;
    let piece = noise(2, 4096);
    for number in 0..5000_u64 {
        fragments.write_all_at(&piece, number * 8192)?;
    }
    fragments.sync_all()?;
    let sparse = File::create(at("sparse"))?;
    for (seed, offset) in [(3, 12_345), (4, 1 << 30), (5, (1 << 40) + 7)] {
        sparse.write_all_at(&noise(seed, 5000), offset)?;
    }
    sparse.set_len((1 << 41) + 1)?;
    let reserve = ["-f", "-c", "falloc 0 1m", "-c", "pwrite 192k 64k", "-c", "falloc -k 2m 1m"];
    scene.ok(command("xfs_io", &reserve).arg(at("reserved")))?;
    let reflink = if shares { "always" } else { "never" };
    let copy = |to| {
        let mut copy = command("cp", &[&format!("--reflink={reflink}"), &at("plain")]);
        scene.ok(copy.arg(at(to)))
    };
    copy("shared")?;
    copy("copy-on-write")?;
    let file = File::options().write(true).open(at("copy-on-write"))?;
    file.write_all_at(&noise(6, 100_000), 1_000_000)?;
    Ok(file.sync_all()?)
}

/// Attributes in the inode, in a leaf, in nodes, and in blocks of their own.
fn attributes(scene: &Scene, root: &str) -> Result<()> {
    for (name, count, len) in [
        ("short", 2, 5),
        ("leaf", 12, 90),
        ("nodes", 400, 70),
        ("remote", 3, 3000),
        ("longest", 2, 65_536),
        ("empty", 1, 0),
    ] {
        let path = Path::new(root).join(format!("attributes-{name}"));
        fs::write(&path, name)?;
        for number in 0..count {
            let value = noise(number + 1, len);
            for prefix in ["user", "trusted", "security"] {
                let name =
                    format!("{prefix}.{number}{}", "a".repeat(usize::try_from(number % 90)?));
                lsetxattr(&path, &*name, &value, XattrFlags::empty())?;
            }
        }
    }
    let path = format!("{root}/attributes-acl");
    fs::write(&path, "acl")?;
    // Version 2; owner, user 1000, group, group 5, mask, others: tag, permissions, who.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, who) in [
        (1, 7, u32::MAX),
        (2, 6, 1000),
        (4, 5, u32::MAX),
        (8, 4, 5),
        (0x10, 7, u32::MAX),
        (0x20, 1, u32::MAX),
    ] {
        acl.extend([tag, 0, permissions, 0]);
        acl.extend(who.to_le_bytes());
    }
    lsetxattr(&path, "system.posix_acl_access", &acl, XattrFlags::empty())?;
    let dir = format!("{root}/dir-short");
    lsetxattr(&dir, "system.posix_acl_default", &acl, XattrFlags::empty())?;
    scene.ok(&mut command("cp", &["-a", &path, &format!("{root}/attributes-copied")]))?;
    Ok(())
}

/// Timestamps over the whole range.
fn times(root: &str, large: bool) -> Result<()> {
    let last = if large { 16_299_260_424 } else { i64::from(i32::MAX) };
    // 1901, 1969, 1970, 2038, 2038 and a second, 2446.
    let points = [-2_147_483_648, -1, 0, i64::from(i32::MAX), 1 << 31, 15_000_000_000, last];
    for (number, seconds) in points.into_iter().filter(|&point| point <= last).enumerate() {
        let path = format!("{root}/time-{number}");
        fs::write(&path, "")?;
        let time = |nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time(999_999_999), last_modification: time(1) };
        utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
