//! `holdfast mount`

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::Context;
use holdfast_fuse::{Mount, Options};

use crate::Outcome;
use crate::cli;
use crate::signals;
use crate::xfs::Opened;

pub(crate) fn run(arguments: &cli::Mount) -> anyhow::Result<Outcome> {
    let cli::Mount { image, directory, .. } = arguments;
    let opened = Opened::open(image)?;
    let absolute = |path: &Path| {
        path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
    };
    let (source, directory) = (absolute(image)?, absolute(directory)?);
    let options = Options {
        source: source.display().to_string(),
        no_recovery: arguments.no_recovery,
        allow_other: arguments.allow_other,
        threads: NonZeroUsize::from(
            std::num::NonZeroU16::new(arguments.threads).context("no threads")?,
        ),
    };
    let open = move || opened.queue().map_err(io::Error::other);
    let mount = Mount::new(open, &directory, &options)
        .with_context(|| format!("cannot mount {}", image.display()))?;
    if !mount.is_clean() {
        tracing::warn!(
            "{} was not unmounted: what was changed last may be missing or damaged",
            image.display()
        );
    }
    let mounted = directory.clone();
    signals::on_stop(move || unmount(&mounted))?;
    tracing::info!(
        "mounted {} on {}, read-only; unmount it with: umount {}",
        image.display(),
        directory.display(),
        directory.display()
    );
    mount.run().context("the mount cannot go on")?;
    tracing::info!("{} is unmounted", directory.display());
    Ok(Outcome::Fine)
}

fn unmount(directory: &Path) {
    match holdfast_fuse::unmount(directory) {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            "{} is in use: nobody finds it any more, and the mount ends with its last user (once \
             more ends it at once)",
            directory.display()
        ),
        Err(error) => tracing::error!(
            "cannot unmount {}: {error} (once more ends the process, and the mount with it)",
            directory.display()
        ),
    }
}
