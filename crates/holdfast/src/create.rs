//! `holdfast create`

use std::io::Write;

use anyhow::bail;
use holdfast_volume::Geometry;
use indicatif::BinaryBytes;

use crate::Outcome;
use crate::backing;
use crate::cli::Create;

pub(crate) fn run(arguments: &Create) -> anyhow::Result<Outcome> {
    let format = arguments.format;
    let options = backing::create(&arguments.path, arguments.force, |device_bytes| {
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
        arguments.path.display(),
        BinaryBytes(options.capacity),
        options.sector,
        options.guard
    );
    Ok(Outcome::Fine)
}
