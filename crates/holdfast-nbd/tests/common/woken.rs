//! A device that completes without the ring, for a server that waits at its ring.

use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits};
use holdfast_ring::Waker;

/// Wakes the server whenever the device below may have something to tell.
#[derive(Debug)]
pub(crate) struct Woken<D> {
    device: D,
    waker: Arc<Waker>,
}

impl<D> Woken<D> {
    pub(crate) fn new(device: D, waker: &Arc<Waker>) -> Self {
        Self { device, waker: Arc::clone(waker) }
    }
}

impl<D: BlockDevice> BlockDevice for Woken<D> {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        self.device.submit(bio)?;
        self.waker.wake();
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let before = ended.len();
        self.device.reap(ended);
        if ended.len() > before {
            // The device may have kept some of them for later.
            self.waker.wake();
        }
    }

    fn wait(&mut self) {
        self.device.wait();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.device.data_after(offset)
    }
}
