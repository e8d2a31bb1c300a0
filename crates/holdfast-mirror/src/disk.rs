//! One device, or a mirror of several: whoever opens a volume finds out which.

use holdfast_bio::{Bio, BlockDevice, Ended, Error, GuardLimits, Limits};
use holdfast_iov::{Memory, Region};

use crate::device::MirrorDevice;

/// A queue of what may be a mirror.
#[derive(Debug)]
pub enum Disk<D> {
    /// One device alone.
    Plain(Box<D>),
    /// Several, each of which holds all.
    Mirror(Box<MirrorDevice<D>>),
}

impl<D: BlockDevice> BlockDevice for Disk<D> {
    fn limits(&self) -> Limits {
        match self {
            Self::Plain(device) => device.limits(),
            Self::Mirror(device) => device.limits(),
        }
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        match self {
            Self::Plain(device) => device.submit(bio),
            Self::Mirror(device) => device.submit(bio),
        }
    }

    fn read_guarded(
        &mut self,
        offset: u64,
        memory: &mut Memory,
        format: GuardLimits,
        guards: &mut [u64],
    ) -> Option<Result<(), Error>> {
        match self {
            Self::Plain(device) => device.read_guarded(offset, memory, format, guards),
            Self::Mirror(device) => device.read_guarded(offset, memory, format, guards),
        }
    }

    fn expect_read(&self, offset: u64) {
        match self {
            Self::Plain(device) => device.expect_read(offset),
            Self::Mirror(device) => device.expect_read(offset),
        }
    }

    fn legs(&self) -> usize {
        match self {
            Self::Plain(device) => device.legs(),
            Self::Mirror(device) => device.legs(),
        }
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        match self {
            Self::Plain(device) => device.reap(ended),
            Self::Mirror(device) => device.reap(ended),
        }
    }

    fn wait(&mut self) {
        match self {
            Self::Plain(device) => device.wait(),
            Self::Mirror(device) => device.wait(),
        }
    }

    fn has_notes(&self) -> bool {
        match self {
            Self::Plain(device) => device.has_notes(),
            Self::Mirror(device) => device.has_notes(),
        }
    }

    fn poll(&mut self) {
        match self {
            Self::Plain(device) => device.poll(),
            Self::Mirror(device) => device.poll(),
        }
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        match self {
            Self::Plain(device) => device.data_after(offset),
            Self::Mirror(device) => device.data_after(offset),
        }
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        match self {
            Self::Plain(device) => device.map(offset, len),
            Self::Mirror(device) => device.map(offset, len),
        }
    }
}
