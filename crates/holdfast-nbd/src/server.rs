//! One reactor of the server: a thread with a ring, on which its connections and its queue of the
//! disk run. Nothing is handed to another thread.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_bio::{Bio, DiskQueue, Ended};
use holdfast_iov::{BUFFER_MIN, Pool};
use holdfast_ring::{Channel, Completion, File, Operation, SharedRing, Waker};
use holdfast_socket::Listener;
use holdfast_units::{to_u64, to_usize};
use slab::Slab;

use crate::export::Export;
use crate::session::{Context, Session};
use crate::task::Tasks;

/// What the connections of a reactor may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// The most connections; more are closed at once. Each may take up to 96 KiB beside the pool.
    pub connections: usize,
    /// How long a client may take to agree on an export.
    pub handshake: Duration,
    /// How long a client may take to accept its replies once the server is stopping.
    pub farewell: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 256,
            handshake: Duration::from_secs(30),
            farewell: Duration::from_secs(5),
        }
    }
}

/// One reactor of an NBD server.
pub struct Server<Q: DiskQueue> {
    ring: SharedRing,
    channel: Channel,
    waker: Arc<Waker>,
    listeners: Vec<File>,
    context: Context<Q>,
    /// What sessions receive into, [`Session::RECEIVE_LEN`] bytes each.
    inputs: Pool,
    /// Listeners that could not accept, until the next tick: most likely descriptors have run out,
    /// and trying again at once would fail again at once.
    resting: Vec<usize>,
    sessions: Slab<Session>,
    /// Sessions for which something has ended.
    changed: Vec<usize>,
    /// Sessions that found too little memory.
    starved: Vec<usize>,
    limits: ServerLimits,
    stopping: Option<Instant>,
    ended: Vec<Ended>,
}

impl<Q: DiskQueue> fmt::Debug for Server<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("sessions", &self.sessions.len()).finish_non_exhaustive()
    }
}

/// What an operation of the server's own channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Accept,
    Wake,
    Tick,
    Cancel,
    Receive,
    Send,
}

impl Purpose {
    const ALL: [Self; 6] =
        [Self::Accept, Self::Wake, Self::Tick, Self::Cancel, Self::Receive, Self::Send];

    /// Puts the purpose and the number of a listener or session into a token.
    pub(crate) fn token(self, number: usize) -> u64 {
        to_u64(number) << 3 | self as u64
    }

    fn of(token: u64) -> (Self, usize) {
        (Self::ALL[to_usize(token & 7)], to_usize(token >> 3))
    }
}

/// The number of a bio that belongs to no session.
const HOUSEKEEPING: u64 = u64::MAX;

impl<Q: DiskQueue> Server<Q> {
    /// How often deadlines are looked at.
    const TICK: Duration = Duration::from_secs(1);
    /// The most turns without a look at the ring.
    const TURNS_MAX: u32 = 64;

    /// Sets a reactor up. `pool` is its own, and is registered with `ring` by the caller if that is
    /// wanted; `queue` notifies `waker`, and moves all that a bio asks for, since a short transfer fails its
    /// request.
    ///
    /// # Errors
    ///
    /// ENOMEM, EMFILE.
    pub fn new(
        ring: &SharedRing,
        queue: Q,
        pool: Pool,
        listeners: &[Listener],
        exports: Arc<[Export]>,
        waker: Arc<Waker>,
        limits: ServerLimits,
    ) -> io::Result<Self> {
        let descriptors = listeners.iter().map(|listener| listener.descriptor().map(Rc::new));
        let channel = Channel::open(ring);
        let reserve = Pool::new(limits.connections * Tasks::SMALL_BUFFERS * BUFFER_MIN)?;
        let inputs = Pool::new(limits.connections * Session::RECEIVE_LEN)?;
        Ok(Self {
            ring: Rc::clone(ring),
            channel: channel.clone(),
            waker,
            listeners: descriptors.collect::<Result<_, _>>()?,
            context: Context { queue, backlog: VecDeque::new(), pool, reserve, exports, channel },
            inputs,
            resting: Vec::new(),
            sessions: Slab::new(),
            changed: Vec::new(),
            starved: Vec::new(),
            limits,
            stopping: None,
            ended: Vec::new(),
        })
    }

    /// Serves until the waker says stop; then finishes what is in flight.
    ///
    /// # Errors
    ///
    /// When the ring cannot be used any more.
    pub fn run(mut self) -> io::Result<()> {
        for index in 0..self.listeners.len() {
            self.accept(index);
        }
        self.listen_to_waker()?;
        self.tick();
        loop {
            // Clients that always have something for us must not keep us from what others say.
            let mut turns = 0;
            while turns < Self::TURNS_MAX && self.turn() {
                turns += 1;
            }
            if self.waker.is_stopping() && self.stopping.is_none() {
                self.begin_stop();
                continue;
            }
            if self.stopping.is_some() && self.sessions.is_empty() {
                return Ok(());
            }
            let mut ring = self.ring.borrow_mut();
            if turns == Self::TURNS_MAX {
                ring.poll()?;
            } else {
                ring.wait()?;
            }
        }
    }

    fn push(&self, token: u64, operation: Operation) {
        if self.channel.push(token, operation).is_err() {
            // The ring has room for every session's two operations and the queue's.
            tracing::error!("the ring is full, and an operation of the server is lost");
        }
    }

    fn accept(&self, index: usize) {
        let listener = Rc::clone(&self.listeners[index]);
        self.push(Purpose::Accept.token(index), Operation::Accept { listener, accepted: None });
    }

    fn listen_to_waker(&self) -> io::Result<()> {
        let event = Rc::new(self.waker.event()?);
        self.push(Purpose::Wake.token(0), Operation::Event { event, value: Box::new(0) });
        Ok(())
    }

    fn tick(&self) {
        self.push(Purpose::Tick.token(0), Operation::timeout(Self::TICK));
    }

    /// Does what can be done without waiting. Returns whether there was anything.
    fn turn(&mut self) -> bool {
        let mut busy = false;
        let mut ended = std::mem::take(&mut self.ended);
        self.context.queue.reap(&mut ended);
        self.context.retry();
        for item in ended.drain(..) {
            busy = true;
            self.bio_ended(item);
        }
        self.ended = ended;
        while let Some(completion) = self.channel.pop() {
            busy = true;
            self.completed(completion);
        }
        // Once for all that has ended, so that replies are sent together.
        let mut changed = std::mem::take(&mut self.changed);
        if busy {
            changed.append(&mut self.starved);
        }
        changed.sort_unstable();
        changed.dedup();
        for key in changed.drain(..) {
            self.resume(key);
        }
        self.changed = changed;
        busy || self.context.queue.has_notes()
    }

    fn bio_ended(&mut self, ended: Ended) {
        if ended.bio.user == HOUSEKEEPING {
            return;
        }
        let key = Session::key_of(ended.bio.user);
        if let Some(session) = self.sessions.get_mut(key) {
            session.bio_ended(&self.context, ended);
            self.changed.push(key);
        }
    }

    fn completed(&mut self, completion: Completion) {
        let (purpose, number) = Purpose::of(completion.token);
        match purpose {
            Purpose::Accept => self.accepted(number, completion),
            Purpose::Wake => {
                if let Err(error) = self.listen_to_waker() {
                    tracing::error!("other threads cannot wake this one any more: {error}");
                }
            }
            Purpose::Tick => self.ticked(),
            Purpose::Cancel => {}
            Purpose::Receive | Purpose::Send => {
                let Some(session) = self.sessions.get_mut(number) else { return };
                match completion.operation {
                    Operation::Receive { buffer, .. } => {
                        session.received(buffer, completion.result);
                    }
                    Operation::Send { message, .. } => session.sent(*message, completion.result),
                    _ => {}
                }
                self.changed.push(number);
            }
        }
    }

    /// Lets a session do what it can, and forgets it when it has ended.
    fn resume(&mut self, key: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.advance(&mut self.context);
        if session.is_starved() && !self.starved.contains(&key) {
            self.starved.push(key);
        }
        if session.has_ended() {
            let session = self.sessions.remove(key);
            session.say_farewell();
        }
    }

    fn accepted(&mut self, index: usize, completion: Completion) {
        if self.stopping.is_some() {
            return;
        }
        let Operation::Accept { accepted: Some(socket), .. } = completion.operation else {
            if let Err(error) = completion.result {
                tracing::warn!("a connection was not accepted: {error}");
            }
            self.resting.push(index);
            return;
        };
        self.accept(index);
        let memory = self.inputs.take_whole(Session::RECEIVE_LEN);
        let (Some(memory), true) = (memory, self.sessions.len() < self.limits.connections) else {
            tracing::warn!("a connection was closed: {} are open", self.sessions.len());
            return;
        };
        // Replies are sent as a whole, so waiting for more to send only costs time. A socket in the
        // file system has no such option.
        let _not_tcp = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        // A machine that vanished is noticed some time.
        let _not_tcp = rustix::net::sockopt::set_socket_keepalive(&socket, true);
        let entry = self.sessions.vacant_entry();
        let key = entry.key();
        entry.insert(Session::new(key, Rc::new(socket), memory, &self.context));
        tracing::debug!(client = key, "a client has connected");
        self.resume(key);
    }

    fn ticked(&mut self) {
        self.tick();
        for index in std::mem::take(&mut self.resting) {
            self.accept(index);
        }
        let now = Instant::now();
        let farewell_over = self.stopping.is_some_and(|since| now - since > self.limits.farewell);
        for (key, session) in &mut self.sessions {
            if session.is_overdue(now, self.limits.handshake) {
                tracing::warn!(client = key, "the handshake took too long");
                session.abort();
            } else if farewell_over {
                tracing::warn!(client = key, "the client takes no replies: the connection is cut");
                session.abort();
            }
        }
        let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.resume(key);
        }
        if self.context.queue.has_news() {
            // A flush stores it.
            self.context.submit(Bio::flush().with_user(HOUSEKEEPING));
        }
    }

    fn begin_stop(&mut self) {
        self.stopping = Some(Instant::now());
        self.resting.clear();
        let listeners: Vec<File> = std::mem::take(&mut self.listeners);
        for file in listeners {
            self.push(Purpose::Cancel.token(0), Operation::Cancel { file });
        }
        let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.sessions[key].stop();
            self.resume(key);
        }
    }
}
