//! `holdfast xfs IMAGE extents`

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use holdfast_xfs::{Mapping, MappingState};
use serde::Serialize;

use crate::Outcome;
use crate::cli::XfsPaths;

use super::{Mounted, find};

/// The extents of a file, for programs. All numbers are bytes.
#[derive(Serialize)]
struct Json {
    path: String,
    size: u64,
    extents: Vec<JsonExtent>,
}

#[derive(Serialize)]
struct JsonExtent {
    offset: u64,
    len: u64,
    address: u64,
    unwritten: bool,
}

impl JsonExtent {
    /// Returns `None` for a hole.
    const fn new(mapping: &Mapping) -> Option<Self> {
        let &Mapping { offset, len, state } = mapping;
        let (address, unwritten) = match state {
            MappingState::Hole => return None,
            MappingState::Mapped { address } => (address, false),
            MappingState::Unwritten { address } => (address, true),
        };
        Some(Self { offset, len, address, unwritten })
    }
}

pub(super) fn run(xfs: &mut Mounted, arguments: &XfsPaths) -> anyhow::Result<Outcome> {
    let mut out = std::io::stdout().lock();
    let mut files = Vec::new();
    for path in &arguments.paths {
        let inode = find(xfs, path, false)?;
        let list = xfs.extents(&inode).with_context(|| path.display().to_string())?;
        let mappings = list.mappings(xfs.geometry());
        let extents: Vec<_> = mappings.filter_map(|mapping| JsonExtent::new(&mapping)).collect();
        if arguments.json {
            let path = path.to_string_lossy().into_owned();
            files.push(Json { path, size: inode.size(), extents });
        } else {
            print(&mut out, path, &extents)?;
        }
    }
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &files)?;
        writeln!(out)?;
    }
    Ok(Outcome::Fine)
}

fn print(out: &mut impl Write, path: &OsStr, extents: &[JsonExtent]) -> anyhow::Result<()> {
    out.write_all(path.as_bytes())?;
    let count = extents.len();
    writeln!(out, ": {count} extents\n{:>16} {:>14} {:>16}", "offset", "length", "on the device")?;
    for JsonExtent { offset, len, address, unwritten } in extents {
        let state = if *unwritten { " unwritten" } else { "" };
        writeln!(out, "{offset:>16} {len:>14} {address:>16}{state}")?;
    }
    Ok(())
}
