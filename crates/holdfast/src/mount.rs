//! `holdfast mount`

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use holdfast_device::Access;
use holdfast_fuse::{Mount, Options};

use crate::Outcome;
use crate::cli;
use crate::signals;
use crate::xfs::Opened;

pub(crate) fn run(arguments: &cli::Mount) -> anyhow::Result<Outcome> {
    let cli::Mount { image, directory, .. } = arguments;
    let opened = Opened::open(image, Access::ReadOnly)?;
    let absolute = |path: &Path| {
        path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
    };
    let directory = absolute(directory)?;
    let options = Options {
        source: absolute(image)?.into_os_string(),
        no_recovery: arguments.no_recovery,
        allow_other: arguments.allow_other,
        threads: arguments.threads.into(),
    };
    // Before there is a mount, since one whose process was killed stays, and nobody answers.
    let state = Arc::new(Mutex::new(State::default()));
    let (asked, mounted) = (Arc::clone(&state), directory.clone());
    signals::on_stop(move || {
        let mut state = asked.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_asked = true;
        if state.is_mounted {
            unmount(&mounted);
        }
    })?;
    let open = move || opened.queue().map_err(io::Error::other);
    let mount = Mount::new(open, &directory, &options)
        .with_context(|| format!("cannot mount {}", image.display()))?;
    announce(image, &directory, mount.is_clean());
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.is_mounted = true;
    if state.is_asked {
        unmount(&directory);
    }
    drop(state);
    mount.run().context("the mount cannot go on")?;
    tracing::info!("{} is unmounted", directory.display());
    Ok(Outcome::Fine)
}

/// What main and the thread of signals tell each other.
#[derive(Default)]
struct State {
    is_mounted: bool,
    is_asked: bool,
}

fn announce(image: &Path, directory: &Path, is_clean: bool) {
    let (image, directory) = (image.display(), directory.display());
    if !is_clean {
        tracing::warn!(
            "{image} was not unmounted: what was changed last may be missing or damaged"
        );
    }
    tracing::info!(
        "mounted {image} on {directory}, read-only; unmount it with: umount {directory}"
    );
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
