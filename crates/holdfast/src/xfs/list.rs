//! `holdfast xfs IMAGE ls`

use std::io::{BufWriter, StdoutLock, Write};
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use holdfast_xfs::{Inode, Kind};

use crate::Outcome;
use crate::cli::XfsLs;

use super::report::{JsonFile, permissions, time};
use super::tree::{Met, inode_of, join};
use super::{Mounted, find};

/// What is printed, and how.
struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    long: bool,
    json: bool,
    /// How many files were printed as JSON.
    printed: u64,
}

pub(super) fn run(xfs: &mut Mounted, arguments: &XfsLs) -> anyhow::Result<Outcome> {
    let &XfsLs { ref path, long, recursive, json } = arguments;
    let inode = find(xfs, path, true)?;
    let out = BufWriter::new(std::io::stdout().lock());
    let mut printer = Printer { out, long, json, printed: 0 };
    if json {
        write!(printer.out, "[")?;
    }
    if inode.is_directory() {
        list(xfs, &mut printer, path.as_bytes(), inode, recursive)?;
    } else {
        printer.file(xfs, path.as_bytes(), path.as_bytes(), &inode)?;
    }
    if json {
        writeln!(printer.out, "\n]")?;
    }
    printer.out.flush()?;
    Ok(Outcome::Fine)
}

fn list(
    xfs: &mut Mounted,
    printer: &mut Printer,
    path: &[u8],
    inode: Inode,
    recursive: bool,
) -> anyhow::Result<()> {
    let mut met = Met::default();
    let mut waiting = vec![(path.to_vec(), inode)];
    while let Some((path, dir)) = waiting.pop() {
        if recursive {
            printer.heading(&path)?;
        }
        let entries =
            met.entries(xfs, &dir).with_context(|| String::from_utf8_lossy(&path).into_owned())?;
        let mut below = Vec::new();
        for entry in entries {
            // Names alone are in the directory.
            if !printer.needs_inode() && !recursive {
                printer.name(&entry.name)?;
                continue;
            }
            let inode = inode_of(xfs, &path, &entry)?;
            let whole = join(&path, &entry.name);
            printer.file(xfs, &whole, &entry.name, &inode)?;
            if recursive && inode.is_directory() {
                below.push((whole, inode));
            }
        }
        waiting.extend(below.into_iter().rev());
    }
    Ok(())
}

impl Printer {
    const fn needs_inode(&self) -> bool {
        self.long || self.json
    }

    fn heading(&mut self, path: &[u8]) -> anyhow::Result<()> {
        if !self.json {
            self.out.write_all(if self.printed > 0 { b"\n" } else { b"" })?;
            self.name(&[path, b":"].concat())?;
            self.printed += 1;
        }
        Ok(())
    }

    fn name(&mut self, name: &[u8]) -> anyhow::Result<()> {
        self.out.write_all(name)?;
        Ok(self.out.write_all(b"\n")?)
    }

    fn file(
        &mut self,
        xfs: &mut Mounted,
        path: &[u8],
        name: &[u8],
        inode: &Inode,
    ) -> anyhow::Result<()> {
        if !self.needs_inode() {
            return self.name(name);
        }
        let target = (inode.kind() == Kind::Symlink)
            .then(|| xfs.read_link(inode))
            .transpose()
            .with_context(|| String::from_utf8_lossy(path).into_owned())?;
        if self.json {
            let separator = if self.printed == 0 { "\n" } else { ",\n" };
            self.printed += 1;
            self.out.write_all(separator.as_bytes())?;
            let file = JsonFile::new(path, inode.stat(), target.as_deref());
            return Ok(serde_json::to_writer(&mut self.out, &file)?);
        }
        let stat = inode.stat();
        let size = match stat.device {
            Some((major, minor)) => format!("{major}, {minor}"),
            None => stat.size.to_string(),
        };
        write!(
            self.out,
            "{} {:>3} {:>5} {:>5} {size:>12} {} ",
            permissions(stat),
            stat.links,
            stat.uid,
            stat.gid,
            time(stat.modified, false)
        )?;
        self.out.write_all(name)?;
        if let Some(target) = target {
            self.out.write_all(b" -> ")?;
            self.out.write_all(&target)?;
        }
        Ok(self.out.write_all(b"\n")?)
    }
}
