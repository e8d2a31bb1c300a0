//! The thread that scrubs: it has a ring and a queue of the volume, as the reactors of clients have.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use holdfast_bio::{Bio, BlockDevice, Ended};
use holdfast_ring::{Channel, Operation, Ring, SharedRing, Waker};
use holdfast_volume::{Queue, ScrubBatch, Volume};

use super::activity::Activity;
use super::pace::Pacer;
use super::steering::{Steering, Task};
use crate::store::{Device, Store};

/// The operations that the thread has in flight: reads, tuple blocks of a flush, and the waker's.
const RING_ENTRIES: u32 = 256;

/// The scrub of a server, in a thread of its own.
#[derive(Debug)]
pub(crate) struct Scrubber {
    steering: Arc<Steering>,
    thread: Option<JoinHandle<()>>,
}

impl Scrubber {
    /// Starts the thread, which scrubs when `steering` says so, and in the pauses of `clients`.
    pub(crate) fn start(
        steering: Arc<Steering>,
        store: Arc<Store>,
        volume: Arc<Volume>,
        clients: Arc<Activity>,
    ) -> io::Result<Self> {
        let shared = Arc::clone(&steering);
        let thread = Builder::new().name("scrub".to_owned()).spawn(move || {
            let scrubbed = Reactor::new(&shared, &store, &volume, clients);
            if let Err(error) = scrubbed.and_then(Reactor::run) {
                shared.break_off(&error);
            }
        })?;
        Ok(Self { steering, thread: Some(thread) })
    }
}

impl Drop for Scrubber {
    /// Finishes what is in flight, and waits for the end of the thread.
    fn drop(&mut self) {
        self.steering.end();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

struct Reactor<'a> {
    steering: &'a Steering,
    ring: SharedRing,
    channel: Channel,
    queue: Queue<Device>,
    batch: ScrubBatch,
    clients: Arc<Activity>,
    pacer: Pacer,
    since: Instant,
    ended: Vec<Ended>,
}

impl<'a> Reactor<'a> {
    fn new(
        steering: &'a Steering,
        store: &Store,
        volume: &Arc<Volume>,
        clients: Arc<Activity>,
    ) -> anyhow::Result<Self> {
        let waker = Waker::new()?;
        let ring = Ring::new(RING_ENTRIES).context("cannot set io_uring up")?.shared();
        let device = store.device(&ring)?;
        let channel = Channel::open(&ring);
        let event = Operation::Event { event: Rc::new(waker.event()?), value: Box::new(0) };
        push(&channel, event)?;
        let queue = Queue::new(volume, device, move || waker.wake())?;
        Ok(Self {
            steering,
            ring,
            channel,
            queue,
            batch: ScrubBatch::new()?,
            clients,
            pacer: Pacer::default(),
            since: Instant::now(),
            ended: Vec::new(),
        })
    }

    fn run(mut self) -> anyhow::Result<()> {
        // Times are those since the thread has begun.
        let mut ready = Duration::ZERO;
        loop {
            match self.steering.next(self.since + ready) {
                Task::End => return Ok(()),
                Task::Store => self.flush()?,
                Task::Read { position, rate } => {
                    let begun = self.since.elapsed();
                    self.pacer.look(begun, self.clients.traffic());
                    let turn = self.pacer.turn(begun, rate);
                    let read = self.read(position, turn.bytes)?;
                    self.pacer.took(read, self.since.elapsed() - begun);
                    ready = turn.next(ready, begun, read);
                }
            }
        }
    }

    /// Has the volume store what it remembers.
    fn flush(&mut self) -> anyhow::Result<()> {
        if self.queue.volume().has_news() {
            self.queue.start(Bio::flush());
            while self.ended.is_empty() {
                self.reap()?;
            }
            // The volume has logged why it failed, and what is not stored is still known.
            self.ended.clear();
        }
        Ok(())
    }

    /// Reads and verifies so many bytes from `position` on. Returns how many were data.
    fn read(&mut self, position: u64, bytes: u64) -> anyhow::Result<u64> {
        self.batch.begin(&mut self.queue, position, bytes);
        while !self.batch.is_over() {
            self.reap()?;
            for ended in self.ended.drain(..) {
                self.batch.take(&mut self.queue, ended);
            }
        }
        match self.batch.finish() {
            Ok((end, found)) => {
                self.steering.advance(end, &found);
                // Also what was bad has cost its time.
                Ok(end - position - found.holes)
            }
            Err(error) => {
                self.steering.give_up(&error);
                Ok(0)
            }
        }
    }

    /// Takes what has ended, and sleeps if there is nothing.
    fn reap(&mut self) -> anyhow::Result<()> {
        self.queue.reap(&mut self.ended);
        let mut is_woken = false;
        while let Some(completion) = self.channel.pop() {
            is_woken = true;
            completion.result.context("other threads cannot wake this one")?;
            push(&self.channel, completion.operation)?;
        }
        if self.ended.is_empty() && !is_woken && !self.queue.has_notes() {
            self.ring.borrow_mut().enter(1)?;
            self.queue.reap(&mut self.ended);
        }
        Ok(())
    }
}

/// Waits for the waker once more.
fn push(channel: &Channel, event: Operation) -> anyhow::Result<()> {
    channel.push(0, event).map_err(|_| anyhow::anyhow!("the ring is full"))
}
