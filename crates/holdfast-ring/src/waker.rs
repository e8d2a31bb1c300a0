//! Waking a thread that sleeps in its ring.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a reactor is told to look up from its ring.
#[derive(Debug)]
pub struct Waker {
    event: OwnedFd,
    stop: AtomicBool,
}

impl Waker {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self { event, stop: AtomicBool::new(false) }))
    }

    /// Wakes the reactor.
    pub fn wake(&self) {
        #[expect(clippy::host_endian_bytes, reason = "eventfd(2) counts in the machine's order")]
        let one = 1_u64.to_ne_bytes();
        // It fails only when the counter is full, and then the reactor wakes anyway.
        let _full = rustix::io::write(&self.event, &one);
    }

    /// Asks the reactor to finish what is in flight and to end.
    pub fn stop(&self) {
        // Release pairs with the acquire in `is_stopping`.
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Returns another descriptor of the eventfd, for [`Operation::Event`](crate::Operation::Event).
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn event(&self) -> io::Result<OwnedFd> {
        self.event.try_clone()
    }

    /// Returns whether the reactor was asked to end.
    pub fn is_stopping(&self) -> bool {
        // Acquire pairs with the release in `stop`.
        self.stop.load(Ordering::Acquire)
    }
}
