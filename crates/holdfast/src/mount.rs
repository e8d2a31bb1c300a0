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
    let access = if arguments.rw { Access::ReadWrite } else { Access::ReadOnly };
    let opened = Arc::new(Opened::open(&arguments.image, access)?);
    let mounted = mount(arguments, &opened);
    // What could not be mounted leaves a closed volume behind as well.
    let closed = opened.close();
    mounted.and(closed)?;
    Ok(Outcome::Fine)
}

/// Mounts it, and answers the kernel until it is unmounted.
fn mount(arguments: &cli::Mount, opened: &Arc<Opened>) -> anyhow::Result<()> {
    let cli::Mount { image, directory, .. } = arguments;
    let absolute = |path: &Path| {
        path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
    };
    let directory = absolute(directory)?;
    let options = Options {
        source: absolute(image)?.into_os_string(),
        no_recovery: arguments.no_recovery,
        write: arguments.rw,
        direct_io: arguments.direct_io,
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
    let opened = Arc::clone(opened);
    let open = move || opened.queue().map_err(io::Error::other);
    let mount = Mount::new(open, &directory, &options)
        .with_context(|| format!("cannot mount {}", image.display()))?;
    announce(arguments, &directory, mount.is_clean());
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.is_mounted = true;
    if state.is_asked {
        unmount(&directory);
    }
    drop(state);
    mount.run().with_context(|| format!("the mount of {}", image.display()))?;
    tracing::info!("{} is unmounted", directory.display());
    Ok(())
}

/// What main and the thread of signals tell each other.
#[derive(Default)]
struct State {
    is_mounted: bool,
    is_asked: bool,
}

fn announce(arguments: &cli::Mount, directory: &Path, is_clean: bool) {
    let (image, directory) = (arguments.image.display(), directory.display());
    let access = if arguments.rw { "for writing to its files" } else { "read-only" };
    if !is_clean {
        tracing::warn!(
            "{image} was not unmounted: what was changed last may be missing or damaged"
        );
    }
    tracing::info!("mounted {image} on {directory}, {access}; unmount it with: umount {directory}");
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
