//! `holdfast create`

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use holdfast_volume::Geometry;
use indicatif::BinaryBytes;

use crate::Outcome;
use crate::backing;
use crate::cli::Create;

pub(crate) fn run(arguments: &Create) -> anyhow::Result<Outcome> {
    let format = arguments.format;
    let legs = arguments.mirror.iter().map(PathBuf::as_path);
    let paths: Vec<&Path> = std::iter::once(arguments.path.as_path()).chain(legs).collect();
    let options = backing::create(&paths, arguments.force, |device_bytes| {
        let capacity = match (arguments.size, device_bytes) {
            (Some(size), _) => size,
            (None, Some(bytes)) => {
                let fits = Geometry::capacity_of_device(bytes, format.sector, format.guard);
                let Some(capacity) = fits else {
                    bail!("{} is too small for a volume", arguments.path.display());
                };
                capacity
            }
            (None, None) => bail!("give the size of the disk, such as --size 10G"),
        };
        Ok(format.options(capacity))
    })?;
    // The volume is there, also when nobody reads the answer.
    let _closed = writeln!(
        std::io::stdout(),
        "{}: a disk of {} in sectors of {} bytes, guard {}",
        names(&paths),
        BinaryBytes(options.capacity),
        options.sector,
        options.guard
    );
    Ok(Outcome::Fine)
}

/// Returns the paths of all legs in one line.
fn names(paths: &[&Path]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", mirrored to ")
}
