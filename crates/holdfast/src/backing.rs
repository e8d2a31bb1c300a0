//! Opening volumes and their queues, as every command does.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use holdfast_bio::{Bio, BlockDevice, Error, Op};
use holdfast_device::{Access, Backing, FileDevice, OpenError};
use holdfast_iov::Memory;
use holdfast_ring::{Ring, SharedRing};
use holdfast_volume::{CreateOptions, OpenOptions, Queue, RecoveryReport, Volume, VolumeError};
use uuid::Uuid;

use crate::progress::Progress;

/// The most sectors that are named after a crash. All are counted, and `holdfast verify` names them.
const NAMED_MAX: usize = 100;
/// The operations that a command has in flight.
const RING_ENTRIES: u32 = 256;

/// A volume that a command uses alone, in one thread.
pub(crate) struct OpenVolume {
    pub(crate) backing: Arc<Backing>,
    pub(crate) ring: SharedRing,
    pub(crate) volume: Arc<Volume>,
}

pub(crate) fn ring() -> anyhow::Result<SharedRing> {
    let ring = Ring::new(RING_ENTRIES).context(
        "io_uring cannot be used: it needs Linux 5.19 or newer, and kernel.io_uring_disabled=0",
    )?;
    Ok(ring.shared())
}

/// How long a process that was killed may keep its lock.
const DYING: Duration = Duration::from_secs(3);

/// Opens a file or block device. The kernel gives up the lock of a process that was killed only when
/// what its rings had in flight has ended, so that is waited for. By then nobody can say whose it is.
fn open_in_time(path: &Path, access: Access) -> Result<Backing, OpenError> {
    let until = Instant::now() + DYING;
    loop {
        match Backing::open(path, access) {
            Err(OpenError::InUse { holder, .. })
                if holder.is_none_or(is_dead) && Instant::now() < until =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

/// Returns whether a process has ended, if only its parent does not know yet (proc(5)).
fn is_dead(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
        // The name may have anything in it, parentheses included.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        matches!(state, Some('Z' | 'X'))
    })
}

impl OpenVolume {
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> anyhow::Result<Self> {
        let access = if options.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let backing = Arc::new(open_in_time(path, access)?);
        let ring = ring()?;
        let mut device = FileDevice::new(&backing, &ring)?;
        let options = OpenOptions { boot: boot(), ..*options };
        let mut shown = None;
        let mut progress = |done, total| {
            shown.get_or_insert_with(|| Progress::counting("recovering groups", total)).at(done);
        };
        let volume = Volume::open_showing(&mut device, &options, &mut progress)
            .with_context(|| format!("cannot open {}", path.display()))?;
        drop(shown);
        if let Some(report) = volume.recovery() {
            tell_of_recovery(path, &volume, report);
        }
        Ok(Self { backing, ring, volume })
    }

    /// Opens a queue on this thread's ring.
    pub(crate) fn queue(&self) -> anyhow::Result<Queue<FileDevice>> {
        let device = FileDevice::new(&self.backing, &self.ring)?;
        Ok(Queue::new(&self.volume, device, || {})?)
    }

    /// Marks the volume as closed, after everything was flushed.
    pub(crate) fn close(&self) -> anyhow::Result<()> {
        let mut device = FileDevice::new(&self.backing, &self.ring)?;
        self.volume
            .close(&mut device)
            .with_context(|| format!("cannot close {}", self.backing.path().display()))
    }
}

/// Returns what identifies the kernel that runs, or zeros where nothing does.
fn boot() -> [u8; 16] {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| text.trim().parse::<Uuid>().ok())
        .map_or([0; 16], Uuid::into_bytes)
}

/// Says what became of a volume that was not closed.
fn tell_of_recovery(path: &Path, volume: &Volume, report: &RecoveryReport) {
    let RecoveryReport { settled, adopted, torn, unreadable, .. } = report;
    let path = path.display();
    tracing::warn!(
        "{path} was not closed: {settled} sectors had been written and not recorded, and are now"
    );
    if *adopted > 0 {
        tracing::warn!(
            "{adopted} sectors of {path} were taken as they are: with this durability nothing tells \
             what they were to be"
        );
    }
    let sector = volume.geometry().sector();
    for (lbas, what) in [(torn, "torn by the crash, or corrupt"), (unreadable, "unreadable")] {
        for lba in lbas.iter().take(NAMED_MAX) {
            tracing::error!("{path}: the sector at LBA {lba} ({sector} bytes) is {what}");
        }
        if lbas.len() > NAMED_MAX {
            tracing::error!("{path}: and {} more are {what}", lbas.len() - NAMED_MAX);
        }
    }
    if !torn.is_empty() {
        tracing::error!(
            "they had neither their old nor their new data: reads of them fail until they are \
             written, or accepted as they are with `holdfast verify --accept LBA.. {path}`"
        );
    }
}

/// Makes a volume of a size that is given as options by `choose`, which is told how many bytes a
/// block device has. A block device that holds a volume is only taken by `force`.
pub(crate) fn create(
    path: &Path,
    force: bool,
    choose: impl FnOnce(Option<u64>) -> anyhow::Result<CreateOptions>,
) -> anyhow::Result<CreateOptions> {
    let is_device = is_block_device(path);
    let device_bytes =
        is_device.then(|| Backing::open(path, Access::Peek).map(|found| found.bytes()));
    let options = choose(device_bytes.transpose()?)?;
    let backing = Backing::create(path, options.geometry()?.device_len())?;
    let created = (|| {
        let mut device = FileDevice::new(&backing, &ring()?)?;
        if is_device {
            // A refusal must come before anything is wiped.
            check_fits(&backing, &options)?;
            if !force && holds_volume(&mut device) {
                bail!("{} holds a Holdfast volume already (--force replaces it)", path.display());
            }
            zero(&mut device, options.geometry()?.device_len())?;
        }
        Ok(Volume::create(&mut device, &options)?)
    })();
    created.map(|()| options).inspect_err(|_: &anyhow::Error| {
        if !is_device && let Err(error) = std::fs::remove_file(path) {
            tracing::warn!("{} is no volume, and cannot be removed: {error}", path.display());
        }
    })
}

/// Returns whether a device holds a volume, if only one for a newer program.
fn holds_volume(device: &mut FileDevice) -> bool {
    match Volume::peek(device) {
        Ok(_) => true,
        Err(VolumeError::Format(error)) => error.is_newer(),
        Err(_) => false,
    }
}

/// Refuses a device that has no room for the volume, or that cannot write its sectors.
fn check_fits(backing: &Backing, options: &CreateOptions) -> anyhow::Result<()> {
    let (sector, block) = (options.sector, backing.block());
    if block > sector {
        return Err(VolumeError::Sector { sector, block }.into());
    }
    let (needed, found) = (options.geometry()?.device_len(), backing.bytes());
    if needed > found {
        return Err(VolumeError::TooSmall { needed, found }.into());
    }
    Ok(())
}

/// Makes a device read as zeros, in the way that is cheapest for it: what was never written must be
/// zeros, and a device may hold anything.
fn zero(device: &mut FileDevice, len: u64) -> anyhow::Result<()> {
    /// How much is zeroed between two looks at the progress.
    const STEP: u64 = 256 << 20;
    let block = device.limits().sector;
    // The last block may be larger than what the volume needs of it.
    let len = block.align_up(len).unwrap_or(len).min(device.limits().capacity);
    let mut progress = Progress::new("zeroing", len);
    let mut position = 0;
    let mut keep = false;
    while position < len {
        let step = STEP.min(len - position);
        let op = Op::Zero { keep, fast: false };
        match device.run(Bio::new(op, position, step, Memory::None)).result {
            // A device that cannot unmap can be told to write zeros.
            Err(Error::Unsupported) if !keep => keep = true,
            Err(error) => return Err(error).context("cannot zero the device"),
            Ok(_) => position += step,
        }
        progress.at(position);
    }
    Ok(())
}

pub(crate) fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dead_from_its_end_on_also_when_nobody_has_asked_for_it() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let until = Instant::now() + DYING;
        while !is_dead(child.id()) && Instant::now() < until {
            thread::yield_now();
        }
        assert!(is_dead(child.id()) && !is_dead(std::process::id()));
        child.wait().unwrap();
        assert!(is_dead(child.id()));
    }
}
