//! `holdfast xfs IMAGE stat`

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use holdfast_xfs::{Inode, Kind};
use serde::Serialize;

use crate::Outcome;
use crate::cli::XfsPaths;

use super::report::{JsonFile, hexadecimal, kind_name, permissions, time};
use super::{Mounted, find};

/// A file with its attributes, for programs.
#[derive(Serialize)]
struct Json {
    #[serde(flatten)]
    file: JsonFile,
    attributes: Vec<JsonAttribute>,
}

#[derive(Serialize)]
struct JsonAttribute {
    name: String,
    /// In hexadecimal.
    value: String,
}

/// All that is printed of a file.
struct File {
    inode: Inode,
    target: Option<Vec<u8>>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) fn run(xfs: &mut Mounted, arguments: &XfsPaths) -> anyhow::Result<Outcome> {
    let mut out = std::io::stdout().lock();
    let mut files = Vec::new();
    for path in &arguments.paths {
        let inode = find(xfs, path, false)?;
        let file = read(xfs, inode).with_context(|| path.display().to_string())?;
        if arguments.json {
            files.push(json(path, &file));
        } else {
            print(&mut out, path, &file)?;
        }
    }
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &files)?;
        writeln!(out)?;
    }
    Ok(Outcome::Fine)
}

fn read(xfs: &mut Mounted, inode: Inode) -> anyhow::Result<File> {
    let is_link = inode.kind() == Kind::Symlink;
    let target = is_link.then(|| xfs.read_link(&inode)).transpose()?;
    let mut attributes = Vec::new();
    for name in xfs.attributes(&inode)? {
        let value = xfs.attribute(&inode, &name)?.unwrap_or_default();
        attributes.push((name, value));
    }
    Ok(File { inode, target, attributes })
}

fn json(path: &OsStr, file: &File) -> Json {
    let attributes = file.attributes.iter().map(|(name, value)| JsonAttribute {
        name: String::from_utf8_lossy(name).into_owned(),
        value: hexadecimal(value),
    });
    let attributes = attributes.collect();
    Json {
        file: JsonFile::new(path.as_bytes(), file.inode.stat(), file.target.as_deref()),
        attributes,
    }
}

fn print(out: &mut impl Write, path: &OsStr, file: &File) -> anyhow::Result<()> {
    let stat = file.inode.stat();
    write!(out, "path        ")?;
    out.write_all(path.as_bytes())?;
    if let Some(target) = &file.target {
        out.write_all(b" -> ")?;
        out.write_all(target)?;
    }
    writeln!(out, "\ntype        {}", kind_name(stat.kind))?;
    if let Some((major, minor)) = stat.device {
        writeln!(out, "device      {major}, {minor}")?;
    }
    writeln!(out, "inode       {}, generation {}", stat.ino, stat.generation)?;
    writeln!(out, "mode        {:04o} {}", stat.mode & 0o7777, permissions(stat))?;
    writeln!(out, "links       {}", stat.links)?;
    writeln!(out, "owner       {}:{}, project {}", stat.uid, stat.gid, stat.project)?;
    writeln!(
        out,
        "size        {} bytes, {} on the disk",
        stat.size,
        stat.sectors.saturating_mul(512)
    )?;
    writeln!(out, "extents     {}", stat.extents)?;
    for (name, value) in [
        ("accessed", stat.accessed),
        ("modified", stat.modified),
        ("changed", stat.changed),
        ("created", stat.created),
    ] {
        writeln!(out, "{name:<11} {} UTC", time(value, true))?;
    }
    for (name, value) in &file.attributes {
        write!(out, "attribute   ")?;
        out.write_all(name)?;
        let is_text = value.iter().all(|byte| (b' '..=b'~').contains(byte));
        let text = if is_text {
            format!("{:?}", String::from_utf8_lossy(value))
        } else {
            format!("0x{}", hexadecimal(value))
        };
        writeln!(out, " = {text}")?;
    }
    Ok(())
}
