//! What the file system is on: a raw image, or a volume.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use holdfast_bio::{Bio, BlockDevice, Ended, Limits, SharedQueue};
use holdfast_device::{Access, Backing, FileDevice};
use holdfast_iov::Pool;
use holdfast_ring::Ring;
use holdfast_volume::{Durability, OpenOptions, Queue, Volume};

/// An image that is open.
pub(crate) struct Opened {
    backing: Backing,
    volume: Option<Arc<Volume>>,
}

/// The queue of it.
#[derive(Debug)]
pub(crate) enum Image {
    /// Nothing protects its sectors, but its memory must not change.
    Raw(FileDevice),
    Volume(Box<Queue<FileDevice>>),
}

impl Opened {
    /// Opens what begins with a superblock of XFS, or else is a volume.
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<Self> {
        let mut magic = [0; 4];
        std::io::Read::read_exact(&mut std::fs::File::open(path)?, &mut magic)?;
        let backing = Backing::open_in_time(path, Access::ReadWrite)?;
        if &magic == b"XFSB" {
            return Ok(Self { backing, volume: None });
        }
        let options = OpenOptions { durability, ..OpenOptions::default() };
        let volume = Volume::open(&mut device(&backing, None)?, &options)?;
        Ok(Self { backing, volume: Some(volume) })
    }

    /// Opens the queue, for metadata and for data from the memory of a pool.
    pub(crate) fn queue(&self, pool: &Pool) -> Result<SharedQueue<Image>> {
        let device = device(&self.backing, Some(pool))?;
        Ok(SharedQueue::new(match &self.volume {
            None => Image::Raw(device),
            Some(volume) => Image::Volume(Box::new(Queue::new(volume, device, || {})?)),
        }))
    }

    /// Closes a volume, after its queue.
    pub(crate) fn close(&self) -> Result<()> {
        if let Some(volume) = &self.volume {
            volume.close(&mut device(&self.backing, None)?)?;
        }
        Ok(())
    }
}

fn device(backing: &Backing, pool: Option<&Pool>) -> Result<FileDevice> {
    let mut ring = Ring::new(64)?;
    if let Some(pool) = pool {
        ring.register(pool)?;
    }
    Ok(FileDevice::new(backing, &ring.shared())?)
}

impl BlockDevice for Image {
    fn limits(&self) -> Limits {
        match self {
            Self::Raw(device) => Limits { stable_pages: true, ..device.limits() },
            Self::Volume(queue) => queue.limits(),
        }
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        match self {
            Self::Raw(device) => device.submit(bio),
            Self::Volume(queue) => queue.submit(bio),
        }
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        match self {
            Self::Raw(device) => device.reap(ended),
            Self::Volume(queue) => queue.reap(ended),
        }
    }

    fn wait(&mut self) {
        match self {
            Self::Raw(device) => device.wait(),
            Self::Volume(queue) => queue.wait(),
        }
    }
}
