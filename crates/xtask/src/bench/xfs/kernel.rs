//! Linux's own XFS on a loop device, and what its threads cost.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bench::cpu::Process;
use crate::run::{command, output};

/// How long a file system may be in use by what has ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// An image that is mounted over a loop device with direct I/O; unmounted when it is dropped.
pub(super) struct Mount {
    device: String,
    directory: String,
    is_open: bool,
}

impl Mount {
    pub(super) fn new(image: &str, directory: &str) -> Result<Self> {
        let arguments = ["--find", "--show", "--direct-io=on", image];
        let device = output(&mut command("losetup", &arguments))?.trim().to_owned();
        let mut mount = Self { device, directory: directory.to_owned(), is_open: false };
        output(&mut command("mount", &["-t", "xfs", &mount.device, directory]))?;
        mount.is_open = true;
        Ok(mount)
    }

    /// Whether the loop device does direct I/O, as it was told to.
    pub(super) fn is_direct(&self) -> Result<bool> {
        let name = self.device.trim_start_matches("/dev/");
        Ok(fs::read_to_string(format!("/sys/block/{name}/loop/dio"))?.trim() == "1")
    }

    /// Unmounts it. Linux closes the files of rings that were closed a while later.
    pub(super) fn close(mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let ended = command("umount", &[&self.directory]).output()?;
            if ended.status.success() {
                self.is_open = false;
                return Ok(());
            }
            let why = String::from_utf8_lossy(&ended.stderr);
            ensure!(Instant::now() < until, "cannot unmount {}: {why}", self.directory);
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // When it is not closed, something else has failed, and says why.
        if self.is_open {
            let _umount = command("umount", &["--lazy", &self.directory]).output();
        }
        // umount(8) has detached the device already, where it knows how.
        let _detach = command("losetup", &["--detach", &self.device]).output();
    }
}

/// How long processors have worked for threads of the kernel, in seconds: the work of a loop device is
/// done by them. What they do for others counts as well.
pub(super) fn kernel_threads_seconds() -> Result<f64> {
    /// The parent of all of them.
    const KTHREADD: u32 = 2;
    let mut seconds = 0.0;
    for entry in fs::read_dir("/proc")? {
        // One that has ended meanwhile is no more.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else { continue };
        let thread = Process::parse(&stat).filter(|process| process.parent == KTHREADD);
        seconds += thread.map_or(0.0, |thread| thread.cpu);
    }
    Ok(seconds)
}
