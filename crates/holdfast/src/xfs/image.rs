//! What holds a file system: a raw image or block device, or a volume.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use holdfast_bio::{Bio, BlockDevice, DiskQueue, Ended, Error, Limits, Op};
use holdfast_device::Access;
use holdfast_iov::{BUFFER_MIN, Buffer, Memory, Pool, Region};
use holdfast_ring::SharedRing;
use holdfast_volume::{OpenOptions, Queue, Volume};

use crate::backing::{self, OpenVolume};
use crate::store::{Device, Store};

/// A queue of a device that holds a file system.
#[derive(Debug)]
pub(crate) enum Image {
    Raw(Device),
    /// Every sector is verified before it is returned.
    Volume(Box<VolumeQueue>),
}

/// A queue of a volume.
#[derive(Debug)]
pub(crate) struct VolumeQueue {
    queue: Queue<Device>,
    in_flight: usize,
    /// Its thread looks at it only while it waits for something.
    is_blocking: bool,
}

impl VolumeQueue {
    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        self.queue.submit(bio)?;
        self.in_flight += 1;
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let before = ended.len();
        self.queue.reap(ended);
        let reaped = ended.len() - before;
        self.in_flight -= reaped;
        if self.is_blocking && self.in_flight == 0 && reaped > 0 {
            // The volume may have begun something of its own, for which other queues wait.
            self.queue.drain();
        }
    }
}

/// What holds a file system and is open, for any number of threads.
#[derive(Debug)]
pub(crate) struct Opened {
    store: Arc<Store>,
    volume: Option<Arc<Volume>>,
}

impl Opened {
    /// Opens what is at a path: for reading, which others may do at the same time, or for writing, which
    /// nobody else may.
    pub(crate) fn open(path: &Path, access: Access) -> anyhow::Result<Self> {
        let store = Store::open(path, access, None)?;
        let ring = backing::ring()?;
        let mut device = store.device(&ring)?;
        if begins_with_xfs(&mut device)
            .with_context(|| format!("cannot read {}", path.display()))?
        {
            return Ok(Self { store: Arc::new(store), volume: None });
        }
        drop(device);
        let read_only = access == Access::ReadOnly;
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let open = OpenVolume::of(store, ring, &options)
            .with_context(|| format!("{} holds no XFS, and is no volume", path.display()))?;
        Ok(Self { store: open.store, volume: Some(open.volume) })
    }

    /// Marks a volume as closed that was open for writing, after the file system was unmounted.
    pub(crate) fn close(&self) -> anyhow::Result<()> {
        let Some(volume) = &self.volume else { return Ok(()) };
        if volume.is_read_only() {
            return Ok(());
        }
        backing::close(volume, &self.store, &backing::ring()?)
    }

    /// Opens the queue of this thread, whose calls block.
    pub(crate) fn queue(&self) -> anyhow::Result<Image> {
        let mut image = self.queue_on(&backing::ring()?, || {})?;
        if let Image::Volume(volume) = &mut image {
            volume.is_blocking = true;
        }
        Ok(image)
    }

    /// Opens a queue on a ring. `wake` is called by other threads that leave it something to do.
    pub(crate) fn queue_on(
        &self,
        ring: &SharedRing,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> anyhow::Result<Image> {
        let device = self.store.device(ring)?;
        Ok(match &self.volume {
            None => Image::Raw(device),
            Some(volume) => {
                let queue = Queue::new(volume, device, wake)?;
                Image::Volume(Box::new(VolumeQueue { queue, in_flight: 0, is_blocking: false }))
            }
        })
    }
}

/// Returns whether the device itself is a file system.
fn begins_with_xfs(device: &mut Device) -> anyhow::Result<bool> {
    /// What any device reads.
    const LEN: u64 = 4096;
    let buffer = Pool::new(BUFFER_MIN)?.take(BUFFER_MIN).context("a new pool has a buffer")?;
    let ended = device.run(Bio::new(Op::Read, 0, LEN, Memory::Buffer(buffer)));
    let len = holdfast_units::to_usize(ended.result?);
    let bytes = ended.bio.memory.buffer().map(Buffer::as_slice).unwrap_or_default();
    Ok(bytes[..len].starts_with(b"XFSB"))
}

impl DiskQueue for Image {}

impl BlockDevice for Image {
    fn limits(&self) -> Limits {
        match self {
            Self::Raw(device) => device.limits(),
            Self::Volume(volume) => volume.queue.limits(),
        }
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        match self {
            Self::Raw(device) => device.submit(bio),
            Self::Volume(volume) => volume.submit(bio),
        }
    }

    fn legs(&self) -> usize {
        match self {
            Self::Raw(device) => device.legs(),
            Self::Volume(volume) => volume.queue.legs(),
        }
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        match self {
            Self::Raw(device) => device.reap(ended),
            Self::Volume(volume) => volume.reap(ended),
        }
    }

    fn wait(&mut self) {
        match self {
            Self::Raw(device) => device.wait(),
            Self::Volume(volume) => volume.queue.wait(),
        }
    }

    fn has_notes(&self) -> bool {
        match self {
            Self::Raw(device) => device.has_notes(),
            Self::Volume(volume) => volume.queue.has_notes(),
        }
    }

    fn poll(&mut self) {
        match self {
            Self::Raw(device) => device.poll(),
            Self::Volume(volume) => volume.queue.poll(),
        }
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        match self {
            Self::Raw(device) => device.data_after(offset),
            Self::Volume(volume) => volume.queue.data_after(offset),
        }
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        match self {
            Self::Raw(device) => device.map(offset, len),
            Self::Volume(volume) => volume.queue.map(offset, len),
        }
    }
}
