//! A device in memory that answers through the ring of its thread, later and in another order.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits};
use holdfast_device::MemoryDevice;
use holdfast_ring::{Channel, Operation, SharedRing, Waker};

use crate::random::Random;

/// One queue of a [`MemoryDevice`].
///
/// A bio is carried out after the thread has looked at its ring, and ends when it has looked once
/// more: so there is time for memory to change before and after, and for other bios to overtake it.
/// And whoever sleeps in the ring is woken, as by a file.
#[derive(Debug)]
pub(crate) struct RingMemory {
    memory: MemoryDevice,
    channel: Channel,
    waker: Arc<Waker>,
    pending: Vec<Bio>,
    done: Vec<Ended>,
    random: Random,
}

impl RingMemory {
    /// Opens a queue on the ring of the calling thread.
    pub(crate) fn new(memory: MemoryDevice, ring: &SharedRing, seed: u64) -> io::Result<Self> {
        let (channel, waker, random) = (Channel::open(ring), Waker::new()?, Random::new(seed));
        let event = Operation::Event { event: Rc::new(waker.event()?), value: Box::new(0) };
        channel.push(0, event).map_err(|_| io::Error::other("the ring is full"))?;
        Ok(Self { memory, channel, waker, pending: Vec::new(), done: Vec::new(), random })
    }
}

impl BlockDevice for RingMemory {
    fn limits(&self) -> Limits {
        self.memory.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        self.pending.push(bio);
        self.waker.wake();
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let mut is_time = false;
        while let Some(completion) = self.channel.pop() {
            is_time = true;
            let again = self.channel.push(completion.token, completion.operation);
            assert!(again.is_ok(), "there is room for what has just completed");
        }
        if !is_time {
            return;
        }
        if self.random.chance(10) {
            // On few cores nobody else would have stored to the memory meanwhile.
            std::thread::yield_now();
        }
        ended.append(&mut self.done);
        // Some are left for the next time.
        while !self.pending.is_empty() && !self.random.chance(10) {
            let at = self.random.index(self.pending.len());
            let bio = self.pending.swap_remove(at);
            if let Err(bio) = self.memory.submit(bio) {
                self.pending.push(bio);
                break;
            }
        }
        self.memory.reap(&mut self.done);
        if !self.pending.is_empty() || !self.done.is_empty() {
            self.waker.wake();
        }
    }

    fn wait(&mut self) {
        if self.pending.is_empty() && self.done.is_empty() {
            return;
        }
        // An error comes again, and then nothing is reaped for ever: the test is stopped.
        let _again = self.channel.ring().borrow_mut().enter(1);
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.memory.data_after(offset)
    }
}
