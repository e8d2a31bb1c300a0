//! Opening volumes and their queues, as every command does.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use holdfast_bio::{Bio, BlockDevice, Error, Op};
use holdfast_device::{Access, Backing, FileDevice};
use holdfast_iov::Memory;
use holdfast_ring::{Ring, SharedRing};
use holdfast_volume::{CreateOptions, OpenOptions, Queue, RecoveryReport, Volume, VolumeError};
use uuid::Uuid;

use crate::progress::Progress;
use crate::store::{Device, Store};

/// The most sectors that are named after a crash. All are counted, and `holdfast verify` names them.
const NAMED_MAX: usize = 100;
/// The operations that a command has in flight.
const RING_ENTRIES: u32 = 256;

/// A volume that a command uses alone, in one thread.
pub(crate) struct OpenVolume {
    pub(crate) store: Arc<Store>,
    pub(crate) ring: SharedRing,
    pub(crate) volume: Arc<Volume>,
}

pub(crate) fn ring() -> anyhow::Result<SharedRing> {
    let ring = Ring::new(RING_ENTRIES).context(
        "io_uring cannot be used: it needs Linux 5.19 or newer, and kernel.io_uring_disabled=0",
    )?;
    Ok(ring.shared())
}

impl OpenVolume {
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> anyhow::Result<Self> {
        Self::open_without(path, None, options)
    }

    /// Opens a volume, of a mirror without the leg at a path.
    pub(crate) fn open_without(
        path: &Path,
        without: Option<&Path>,
        options: &OpenOptions,
    ) -> anyhow::Result<Self> {
        let access = if options.read_only { Access::ReadOnly } else { Access::ReadWrite };
        Self::of(Store::open(path, access, without)?, ring()?, options)
    }

    /// Opens the volume of a store.
    pub(crate) fn of(
        store: Store,
        ring: SharedRing,
        options: &OpenOptions,
    ) -> anyhow::Result<Self> {
        let path = store.named().path();
        let mut device = store.device(&ring)?;
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
        Ok(Self { store: Arc::new(store), ring, volume })
    }

    /// Returns where the volume is, as it was named.
    pub(crate) fn path(&self) -> &Path {
        self.store.named().path()
    }

    /// Opens a queue on this thread's ring.
    pub(crate) fn queue(&self) -> anyhow::Result<Queue<Device>> {
        Ok(Queue::new(&self.volume, self.store.device(&self.ring)?, || {})?)
    }

    /// Marks the volume as closed, after everything was flushed.
    pub(crate) fn close(&self) -> anyhow::Result<()> {
        close(&self.volume, &self.store, &self.ring)
    }
}

/// Marks a volume as closed, and its mirror, after everything was flushed.
pub(crate) fn close(volume: &Volume, store: &Store, ring: &SharedRing) -> anyhow::Result<()> {
    let cannot = || format!("cannot close {}", store.named().path().display());
    volume.close(&mut store.device(ring)?).with_context(cannot)?;
    store.mirror().map_or(Ok(()), |mirror| mirror.close()).with_context(cannot)
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
    let RecoveryReport { settled, restored, adopted, torn, unreadable, .. } = report;
    let path = path.display();
    tracing::warn!(
        "{path} was not closed: {settled} sectors had been written and not recorded, and are now"
    );
    if *restored > 0 {
        tracing::warn!("{restored} sectors of {path} were in the data journal only");
    }
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

/// Makes a volume of a size that is given as options by `choose`, which is told how many bytes the
/// smallest of the block devices has. With several paths it is a mirror. A block device that holds a
/// volume is only taken by `force`.
pub(crate) fn create(
    paths: &[&Path],
    force: bool,
    choose: impl FnOnce(Option<u64>) -> anyhow::Result<CreateOptions>,
) -> anyhow::Result<CreateOptions> {
    let devices = paths.iter().filter(|path| is_block_device(path));
    let device_bytes = devices
        .map(|path| Backing::open(path, Access::Peek).map(|found| found.bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let options = choose(device_bytes.into_iter().min())?;
    let mut backings = Vec::new();
    let created = paths
        .iter()
        .try_for_each(|path| {
            backings.push(Arc::new(Backing::create(path, options.geometry()?.device_len())?));
            Ok(())
        })
        .and_then(|()| create_on(&backings, force, &options));
    created.map(|()| options).inspect_err(|_: &anyhow::Error| {
        for path in backings.iter().map(|backing| backing.path()) {
            if !is_block_device(path)
                && let Err(error) = std::fs::remove_file(path)
            {
                tracing::warn!("{} is no volume, and cannot be removed: {error}", path.display());
            }
        }
    })
}

/// Makes a volume on what was opened for it.
fn create_on(
    backings: &[Arc<Backing>],
    force: bool,
    options: &CreateOptions,
) -> anyhow::Result<()> {
    let ring = ring()?;
    let devices = || backings.iter().filter(|backing| is_block_device(backing.path()));
    // A refusal must come before anything is wiped.
    for backing in devices() {
        check_fits(backing, options)?;
        let mut device = FileDevice::new(backing, &ring)?;
        if !force && holds_volume(&mut device) {
            let path = backing.path().display();
            bail!("{path} holds a Holdfast volume already (--force replaces it)");
        }
    }
    for backing in devices() {
        let mut device = FileDevice::new(backing, &ring)?;
        zero(&mut device, 0..options.geometry()?.device_len())?;
    }
    let store = Store::create(backings.to_vec())?;
    Ok(Volume::create(&mut store.device(&ring)?, options)?)
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
pub(crate) fn zero(device: &mut FileDevice, range: Range<u64>) -> anyhow::Result<()> {
    /// How much is zeroed between two looks at the progress.
    const STEP: u64 = 256 << 20;
    let block = device.limits().sector;
    // The last block may be larger than what the volume needs of it.
    let end = block.align_up(range.end).unwrap_or(range.end).min(device.limits().capacity);
    let mut progress = Progress::new("zeroing", end);
    let mut position = range.start;
    let mut keep = false;
    while position < end {
        let step = STEP.min(end - position);
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
