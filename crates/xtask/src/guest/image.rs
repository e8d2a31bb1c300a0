//! The guest: a kernel and an initramfs, built by `tests/guest/build.sh` into the target directory.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

use crate::run::{command, show};
use crate::workspace::Workspace;

/// Builds the guest, unless there is one that is newer than all that it is made of; returns its directory.
pub(super) fn ensure_built(workspace: &Workspace) -> Result<PathBuf> {
    ensure!(ARCH == "x86_64", "the guest is built for x86_64 only, and this is {ARCH}");
    let sources = workspace.root.join("tests/guest");
    let image = workspace.target.join("guest");
    if !is_newer(&image.join("initramfs.gz"), &sources)? {
        let image = image.to_str().context("the target directory is not UTF-8")?;
        show(command("tests/guest/build.sh", &[image]).current_dir(&workspace.root))?;
    }
    Ok(image)
}

/// Whether the file exists and is newer than each file of the directory.
fn is_newer(file: &Path, directory: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(file).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    let changed = |entry: std::io::Result<fs::DirEntry>| -> Result<SystemTime> {
        Ok(entry?.metadata()?.modified()?)
    };
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let times = entries.map(changed).collect::<Result<Vec<_>>>()?;
    Ok(times.iter().all(|time| *time < built))
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    /// An image and a source, of these ages in seconds.
    fn is_newer_with_ages(name: &str, image: u64, source: u64) -> bool {
        let directory = env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        let sources = directory.join("sources");
        fs::create_dir_all(&sources).unwrap();
        for (path, age) in [(directory.join("image"), image), (sources.join("init"), source)] {
            let time = SystemTime::now() - Duration::from_secs(age);
            File::create(path).unwrap().set_modified(time).unwrap();
        }
        let newer = is_newer(&directory.join("image"), &sources).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        newer
    }

    #[test]
    fn an_image_newer_than_its_sources_is_used_again() {
        assert!(is_newer_with_ages("newer", 10, 20));
    }

    #[test]
    fn an_image_older_than_a_source_is_not() {
        assert!(!is_newer_with_ages("older", 20, 10));
    }
}
