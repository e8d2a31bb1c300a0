//! One queue: a thread with a ring, buffers and a queue of the disk of its own. From the kick to the
//! completion a request stays in this thread; nothing is locked, allocated or handed over.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use holdfast_bio::{
    Bio, BlockDevice, Bounce, BounceCounters, DiskQueue, Ended, Error, Op, ReadPolicy,
};
use holdfast_iov::{GuestMemory, IovIter, Memory, Pool};
use holdfast_ring::{Channel, Operation, Ring, SharedRing, Spin, Waker};
use holdfast_units::{to_u64, to_usize};
use holdfast_virtqueue::{BadChain, Chain, Rings, Taken, Virtqueue};
use thiserror::Error;

use crate::counters::QueueCounters;
use crate::dirty::DirtyLog;
use crate::request::{Refused, Request, Run, Status};
use crate::target::{Description, Target};

/// Why a request cannot even be answered.
#[derive(Debug, Error)]
enum Unanswerable {
    #[error(transparent)]
    Chain(#[from] BadChain),
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// The front end took memory away that it had shared.
#[derive(Debug, Error)]
#[error("memory of the guest was taken away")]
struct Lost;

/// What a queue needs to begin.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) virtqueue: Virtqueue,
    pub(crate) memory: Arc<GuestMemory>,
    /// Without one the front end wants the queue to be polled.
    pub(crate) kick: Option<OwnedFd>,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) error: Option<OwnedFd>,
    pub(crate) log: Option<Arc<DirtyLog>>,
    /// The guest address at which the used ring is logged, if it is.
    pub(crate) log_used: Option<u64>,
    pub(crate) write_through: bool,
    pub(crate) disk: Description,
}

/// How all queues are run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) read_policy: ReadPolicy,
    pub(crate) poll: Duration,
    pub(crate) buffer_bytes: usize,
}

/// What another thread asks of a running queue.
#[derive(Debug)]
pub(crate) enum Command {
    /// The guest's memory is another. Requests that were taken before keep theirs.
    Memory(Arc<GuestMemory>, Rings),
    Enable(bool),
    Call(Option<OwnedFd>),
    Error(Option<OwnedFd>),
    WriteThrough(bool),
    Log(Option<Arc<DirtyLog>>),
}

/// A request in its place, the number of its first descriptor.
#[derive(Debug, Default)]
struct Flight {
    request: Request,
    data: Option<IovIter>,
    /// The run that is submitted next, and how many bytes of it have been.
    run: usize,
    submitted: u64,
    in_flight: usize,
    /// It waits for a buffer, and goes on when something has ended.
    starved: bool,
    error: Option<Error>,
    bytes: u64,
}

/// The thread of one queue.
pub(crate) struct Reactor<Q: DiskQueue> {
    ring: SharedRing,
    channel: Channel,
    bounce: Bounce<Q>,
    /// Bios that found the queue of the disk full.
    backlog: VecDeque<Bio>,
    pool: Pool,
    virtqueue: Virtqueue,
    memory: Arc<GuestMemory>,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    log: Option<Arc<DirtyLog>>,
    log_used: Option<u64>,
    write_through: bool,
    disk: Description,
    must_poll: bool,
    enabled: bool,
    /// The driver broke the queue: nothing is taken any more.
    broken: bool,
    /// For the guest's next request, and for what is in flight: the one may come soon, the other not.
    spins: [Spin; 2],
    chain: Chain,
    flights: Box<[Flight]>,
    /// Requests that made no sense.
    refused: u64,
    /// Requests that found no buffer.
    starved: VecDeque<u16>,
    ended: Vec<Ended>,
    counters: Arc<QueueCounters>,
    bounced: BounceCounters,
    mailbox: Arc<Mailbox>,
}

/// How other threads reach a queue.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(crate) waker: Arc<Waker>,
    /// `None` when the queue has ended.
    commands: Mutex<Option<Commands>>,
}

/// Commands, and who waits for them.
type Commands = Vec<(Command, mpsc::SyncSender<()>)>;

impl Mailbox {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { waker: Waker::new()?, commands: Mutex::new(Some(Vec::new())) }))
    }

    /// Has a command carried out, and waits until it has been. A queue that has ended needs none.
    pub(crate) fn carry_out(&self, command: Command) {
        let (done, wait) = mpsc::sync_channel(1);
        match &mut *self.lock() {
            Some(commands) => commands.push((command, done)),
            None => return,
        }
        self.waker.wake();
        let _ended = wait.recv();
    }

    fn take(&self) -> Commands {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Commands>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Q: DiskQueue> Drop for Reactor<Q> {
    fn drop(&mut self) {
        // Whoever waits for a command is told that there is nobody.
        *self.mailbox.lock() = None;
    }
}

/// What an operation of the reactor's own channel is for.
const KICK: u64 = 0;
const WAKE: u64 = 1;
/// The operations that one queue has in flight.
const RING_ENTRIES: u32 = 1024;

impl<Q: DiskQueue> Reactor<Q> {
    /// The most bios of one request in flight.
    const BIOS_MAX: usize = 16;
    /// The most turns without a look at the ring.
    const TURNS_MAX: u32 = 64;
    /// For how long to look for the end of what is in flight, at most. With a device that takes longer, waking up
    /// costs less than looking, which takes time from the guest that waits for it.
    const DEVICE_PATIENCE: Duration = Duration::from_micros(16);

    /// Sets the queue up in the thread in which it will run.
    pub(crate) fn new<T: Target<Queue = Q>>(
        target: &T,
        tuning: &Tuning,
        setup: Setup,
        counters: Arc<QueueCounters>,
        mailbox: Arc<Mailbox>,
    ) -> io::Result<Self> {
        let pool = Pool::new(tuning.buffer_bytes)?;
        let mut ring = Ring::new(RING_ENTRIES)?;
        if let Err(error) = ring.register(&pool) {
            tracing::debug!("the buffers are not registered, which costs a little speed: {error}");
        }
        let ring = ring.shared();
        let queue = target.queue(&ring, &mailbox.waker)?;
        let channel = Channel::open(&ring);
        let listen = |token, event| {
            let event = Operation::Event { event: Rc::new(event), value: Box::new(0) };
            channel.push(token, event).map_err(|_| io::Error::other("the ring is full"))
        };
        listen(WAKE, mailbox.waker.event()?)?;
        let must_poll = setup.kick.is_none();
        if let Some(kick) = setup.kick {
            listen(KICK, kick)?;
        }
        let size = usize::from(setup.virtqueue.size());
        Ok(Self {
            ring,
            channel,
            bounce: Bounce::new(queue, pool.clone(), tuning.read_policy),
            backlog: VecDeque::new(),
            pool,
            virtqueue: setup.virtqueue,
            memory: setup.memory,
            call: setup.call,
            error: setup.error,
            log: setup.log,
            log_used: setup.log_used,
            write_through: setup.write_through,
            disk: setup.disk,
            must_poll,
            enabled: true,
            broken: false,
            spins: [tuning.poll, tuning.poll.min(Self::DEVICE_PATIENCE)].map(Spin::new),
            chain: Chain::new(),
            flights: (0..size).map(|_| Flight::default()).collect(),
            refused: 0,
            starved: VecDeque::with_capacity(size),
            ended: Vec::with_capacity(size),
            counters,
            bounced: BounceCounters::default(),
            mailbox,
        })
    }

    /// Serves the queue until the waker says stop; then finishes what was taken, and returns the running
    /// number of the request that would be next.
    pub(crate) fn run(mut self) -> io::Result<u16> {
        // A server that was killed may have given requests back of which the guest has not heard.
        notify(self.call.as_ref());
        let mut turns = 0_u32;
        loop {
            if self.turn() {
                self.spins.iter_mut().for_each(Spin::worked);
                turns = turns.wrapping_add(1);
                // A driver that always has something for us must not keep us from what others say.
                if turns.is_multiple_of(Self::TURNS_MAX) {
                    self.ring.borrow_mut().poll()?;
                }
                continue;
            }
            let stopping = self.mailbox.waker.is_stopping();
            if stopping && self.virtqueue.in_flight() == 0 {
                return Ok(self.virtqueue.next_available());
            }
            let takes = self.takes() && !stopping;
            let spin = &mut self.spins[usize::from(self.virtqueue.in_flight() > 0)];
            if takes && (self.must_poll || spin.keep_looking()) {
                self.ring.borrow_mut().poll()?;
                std::thread::yield_now();
                continue;
            }
            if takes && self.virtqueue.enable_kicks() {
                continue;
            }
            spin.sleeping();
            self.ring.borrow_mut().enter(1)?;
            if takes {
                self.virtqueue.disable_kicks();
            }
        }
    }

    const fn takes(&self) -> bool {
        self.enabled && !self.broken
    }

    /// Does what can be done without waiting. Returns whether there was anything.
    fn turn(&mut self) -> bool {
        let mut busy = self.listen();
        let mut ended = std::mem::take(&mut self.ended);
        self.bounce.reap(&mut ended);
        self.retry();
        busy |= !ended.is_empty();
        for item in ended.drain(..) {
            self.bio_ended(item);
        }
        self.ended = ended;
        if busy {
            for _ in 0..self.starved.len() {
                let Some(head) = self.starved.pop_front() else { break };
                self.flights[usize::from(head)].starved = false;
                self.advance(head);
            }
        }
        if self.takes() && !self.mailbox.waker.is_stopping() {
            busy |= self.take_requests();
        }
        self.publish();
        busy || self.bounce.device_mut().has_notes()
    }

    /// Looks at what the kernel says: a kick, or a call from another thread.
    fn listen(&mut self) -> bool {
        let mut busy = false;
        while let Some(completion) = self.channel.pop() {
            busy = true;
            if completion.result.is_err() {
                tracing::warn!("an eventfd of a queue cannot be read: the queue is polled");
                self.must_poll = true;
                continue;
            }
            if completion.token == WAKE {
                self.obey();
            }
            // The same operation again, with what it has allocated.
            if self.channel.push(completion.token, completion.operation).is_err() {
                self.must_poll = true;
            }
        }
        busy
    }

    fn obey(&mut self) {
        for (command, done) in self.mailbox.take() {
            match command {
                Command::Memory(memory, rings) => {
                    self.virtqueue.move_to(rings);
                    self.memory = memory;
                }
                Command::Enable(enabled) => self.enabled = enabled,
                Command::Call(call) => {
                    self.call = call;
                    // What was given back before this one was there was told to nobody.
                    notify(self.call.as_ref());
                }
                Command::Error(error) => self.error = error,
                Command::WriteThrough(value) => self.write_through = value,
                Command::Log(log) => self.log = log,
            }
            // The other thread may have gone meanwhile.
            let _gone = done.send(());
        }
    }

    /// Takes what there is, but not for ever: a driver may add as fast as we take.
    fn take_requests(&mut self) -> bool {
        let mut busy = false;
        for _ in 0..self.virtqueue.size() {
            match self.virtqueue.take(&mut self.chain, &self.memory) {
                Ok(None) => return busy,
                Ok(Some(taken)) => {
                    busy = true;
                    if let Err(why) = self.begin(taken) {
                        self.stop_taking(&why);
                        return true;
                    }
                }
                Err(broken) => {
                    self.stop_taking(&broken);
                    return true;
                }
            }
        }
        busy
    }

    /// Takes nothing any more, since the driver broke the queue (virtio 1.3, 2.1.1: it is the device
    /// that needs a reset, not others).
    fn stop_taking(&mut self, why: &dyn std::error::Error) {
        tracing::error!("a guest's driver broke its queue, which takes no more requests: {why}");
        self.broken = true;
        notify(self.error.as_ref());
    }

    /// Begins a request. `Err` when there is no way to tell the guest how it ended: nothing may look
    /// like a success.
    fn begin(&mut self, taken: Taken) -> Result<(), Unanswerable> {
        let Taken { head, bad } = taken;
        let flight = &mut self.flights[usize::from(head)];
        (flight.run, flight.submitted, flight.in_flight, flight.bytes) = (0, 0, 0, 0);
        (flight.error, flight.data) = (None, None);
        let parsed = match bad {
            Some(bad) => return Err(self.abandon(head, bad.into())),
            None => flight.request.parse(&self.chain, &self.memory, &self.disk),
        };
        match parsed {
            Err(refused) if flight.request.status.is_none() => {
                return Err(self.abandon(head, refused.into()));
            }
            Err(refused) => {
                self.refused += 1;
                // A guest must not be able to fill a disk with what it is told.
                if self.refused.is_power_of_two() {
                    let count = self.refused;
                    tracing::warn!(count, "a request of a guest was refused: {refused}");
                }
                self.finish(head, refused.status());
            }
            Ok(()) if flight.request.wants_id => {
                flight.request.data().copy_in(&self.disk.id);
                self.finish(head, Status::Ok);
            }
            Ok(()) => {
                flight.data = Some(flight.request.data());
                self.advance(head);
            }
        }
        Ok(())
    }

    fn abandon(&mut self, head: u16, why: Unanswerable) -> Unanswerable {
        self.flights[usize::from(head)].request.clear();
        self.virtqueue.abandon(head);
        why
    }

    /// Submits what may be of a request, and ends it when everything has ended.
    fn advance(&mut self, head: u16) {
        loop {
            let flight = &mut self.flights[usize::from(head)];
            let is_over = flight.error.is_some() || flight.run == flight.request.runs.len();
            if is_over || flight.in_flight == Self::BIOS_MAX {
                break;
            }
            let Some(mut bio) = self.next_bio(head) else {
                self.flights[usize::from(head)].starved = true;
                self.starved.push_back(head);
                return;
            };
            bio.user = u64::from(head);
            bio.fua = self.write_through && bio.op.is_write();
            let flight = &mut self.flights[usize::from(head)];
            flight.in_flight += 1;
            self.submit(bio);
        }
        let flight = &mut self.flights[usize::from(head)];
        if flight.in_flight == 0 {
            let status = match flight.error {
                None => Status::Ok,
                Some(Error::Unsupported) => Status::Unsupported,
                Some(_) => Status::Error,
            };
            self.finish(head, status);
        }
    }

    /// Submits a bio, now or when the queue of the disk has room again.
    fn submit(&mut self, bio: Bio) {
        if let Err(bio) = self.bounce.submit(bio) {
            self.backlog.push_back(bio);
        }
    }

    /// Submits what the queue of the disk had no room for, as far as it has now.
    fn retry(&mut self) {
        while let Some(bio) = self.backlog.pop_front() {
            if let Err(bio) = self.bounce.submit(bio) {
                self.backlog.push_front(bio);
                break;
            }
        }
    }

    /// Makes the next bio of a request. `None` when there is no buffer for it now.
    fn next_bio(&mut self, head: u16) -> Option<Bio> {
        let limits = self.bounce.limits();
        let flight = &mut self.flights[usize::from(head)];
        let Run { op, offset, len } = flight.request.runs[flight.run];
        let (offset, left) = (offset + flight.submitted, len - flight.submitted);
        let bio = match op {
            Op::Read | Op::Write => {
                let chunk = limits.first_chunk(offset, left, limits.bytes_max);
                let data = flight.data.as_mut()?;
                Bio::new(op, offset, chunk, Memory::Iov(data.split_to(to_usize(chunk))))
            }
            Op::Zero { .. } => zeros(&self.pool, op, offset, left, &limits)?,
            _ => Bio::new(op, offset, limits.to_boundary(offset, left), Memory::None),
        };
        flight.submitted += bio.len;
        if flight.submitted == len {
            flight.run += 1;
            flight.submitted = 0;
        }
        if matches!(op, Op::Read | Op::Write) {
            flight.bytes += bio.len;
        }
        Some(bio)
    }

    fn bio_ended(&mut self, ended: Ended) {
        let Ended { bio, result } = match ended.into_rest() {
            Ok(rest) => return self.submit(rest),
            Err(ended) => ended,
        };
        let head = u16::try_from(bio.user).expect("a bio carries its request's number");
        let flight = &mut self.flights[usize::from(head)];
        // The guest's memory is let go of.
        drop(bio);
        flight.in_flight -= 1;
        if let Err(error) = result {
            self.counters.mismatched(&error);
            flight.error.get_or_insert(error);
        }
        let goes_on = flight.in_flight == 0 || flight.run < flight.request.runs.len();
        if goes_on && !flight.starved {
            self.advance(head);
        }
    }

    /// Gives a request back to the guest.
    fn finish(&mut self, head: u16, status: Status) {
        let flight = &mut self.flights[usize::from(head)];
        flight.data = None;
        let mut written = 0;
        if let Some(place) = &flight.request.status {
            // Release: the data are there.
            place.store_u8(0, status.byte(), Ordering::Release);
            written = flight.request.writable.saturating_add(1);
        }
        if let Some(log) = &self.log {
            for buffer in &flight.request.written {
                log.mark(buffer.address, u64::from(buffer.len));
            }
        }
        self.counters.ended(flight.bytes, status == Status::Ok);
        flight.request.clear();
        self.virtqueue.complete(head, written);
    }

    /// Shows the guest what was given back.
    fn publish(&mut self) {
        let (first, count) = self.virtqueue.unpublished();
        if count == 0 {
            return;
        }
        let now = self.bounce.counters();
        self.counters.bounced(std::mem::replace(&mut self.bounced, now), now);
        if self.memory.is_lost() {
            // What was read from it may be our own zeros: the guest is not told that anything went well.
            if !self.broken {
                self.stop_taking(&Lost);
            }
            return;
        }
        if self.virtqueue.publish() {
            notify(self.call.as_ref());
        }
        if let (Some(log), Some(used)) = (&self.log, self.log_used) {
            log.mark(used, 4);
            for index in 0..count {
                let at = self.virtqueue.used_element(first.wrapping_add(index));
                log.mark(used.wrapping_add(to_u64(at)), 8);
            }
        }
    }
}

/// Makes a bio that writes zeros: whole sectors are made zeros, parts of sectors are written.
fn zeros(
    pool: &Pool,
    op: Op,
    offset: u64,
    left: u64,
    limits: &holdfast_bio::Limits,
) -> Option<Bio> {
    let sector = limits.sector;
    let head = sector.offset_in(offset);
    if head == 0 && left >= sector.bytes() {
        let len = limits.to_boundary(offset, sector.align_down(left));
        return Some(Bio::new(op, offset, len, Memory::None));
    }
    let mut buffer = pool.take_or_reserve(sector.len())?;
    buffer.as_mut_slice()[..sector.len()].fill(0);
    let len = left.min(sector.bytes() - head);
    Some(Bio::new(Op::Write, offset, len, Memory::Buffer(buffer)).with_start(to_usize(head)))
}

/// Adds one to an eventfd. Nothing can be done where that fails: the guest polls, or is gone.
fn notify(event: Option<&OwnedFd>) {
    #[expect(clippy::host_endian_bytes, reason = "eventfd(2) counts in the machine's order")]
    let one = 1_u64.to_ne_bytes();
    if let Some(event) = event {
        let _gone = rustix::io::write(event, &one);
    }
}
