//! A listening socket and its client.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_bio::ReadPolicy;
use holdfast_socket::{Address, Listener};
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::control::Control;
use crate::counters::ClientCounters;
use crate::queue::Tuning;
use crate::target::Target;

/// How a disk is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many queues a client may use, 1 to 64. Each that it uses is a thread.
    pub queues: u16,
    /// How reads into the guest's memory are checked.
    pub read_policy: ReadPolicy,
    /// For how long a queue spins before it sleeps, at most; 0 for never.
    pub poll: Duration,
    /// The buffers of each queue that is used, in bytes.
    pub buffer_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: 1,
            read_policy: ReadPolicy::default(),
            poll: Duration::ZERO,
            buffer_bytes: 16 << 20,
        }
    }
}

impl Options {
    /// Returns the part of it that each queue has to know.
    pub(crate) const fn tuning(&self) -> Tuning {
        let &Self { read_policy, poll, buffer_bytes, .. } = self;
        Tuning { read_policy, poll, buffer_bytes }
    }
}

/// A disk at a socket: one client at a time, since a client that comes back must find what it had in
/// flight at rest.
#[derive(Debug)]
pub struct Server {
    counters: Arc<ClientCounters>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    /// Dropped last, which removes the socket.
    listener: Listener,
}

#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    socket: UnixListener,
    /// The connection of the client, to be cut when the server stops.
    connection: Mutex<Option<UnixStream>>,
}

impl Shared {
    fn connection(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Serves `target` at a listening socket, in threads of its own, until [`stop`](Self::stop).
    ///
    /// # Errors
    ///
    /// EMFILE, EAGAIN for too many threads, and EINVAL for a socket that is none in the file system, or for
    /// blocks that cannot be told to a guest.
    pub fn start<T: Target>(
        listener: Listener,
        target: Arc<T>,
        options: &Options,
    ) -> io::Result<Self> {
        let Address::Unix(path) = listener.address() else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "memory is shared through a unix socket only",
            ));
        };
        let disk = target.describe().checked()?;
        let counters = Arc::new(ClientCounters::new(path.clone(), options.queues));
        let socket = UnixListener::from(listener.descriptor()?);
        let (stopping, connection) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { stopping, socket, connection });
        let tuning = options.tuning();
        let (queues, theirs, ours) = (options.queues, Arc::clone(&counters), Arc::clone(&shared));
        let thread =
            std::thread::Builder::new().name("vhost socket".to_owned()).spawn(move || {
                let control =
                    || Control::new(Arc::clone(&target), disk, tuning, Arc::clone(&theirs), queues);
                accept(&ours, &theirs, control);
            })?;
        Ok(Self { counters, shared, thread, listener })
    }

    /// Returns what the clients of this socket have done.
    pub const fn counters(&self) -> &Arc<ClientCounters> {
        &self.counters
    }

    /// Cuts the connection, finishes what was taken, and ends the threads.
    pub fn stop(self) {
        // SeqCst: either the accepting thread sees this, or we see its connection.
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _not_listening =
            rustix::net::shutdown(&self.shared.socket, rustix::net::Shutdown::Both);
        if let Some(connection) = &*self.shared.connection() {
            let _gone = connection.shutdown(Shutdown::Both);
        }
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
        drop(self.listener);
    }
}

/// Serves one client after the other.
fn accept<T: Target>(shared: &Shared, counters: &ClientCounters, control: impl Fn() -> Control<T>) {
    loop {
        let accepted = shared.socket.accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let (stream, theirs) = match accepted.and_then(|(s, _)| Ok((s.try_clone()?, s))) {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!("a connection was not accepted: {error}");
                // Most likely descriptors have run out: trying again at once would fail again.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        *shared.connection() = Some(theirs);
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let socket = counters.socket().display();
        tracing::info!("a client has connected to {socket}");
        counters.set_connected(true);
        serve(stream, control());
        counters.set_connected(false);
        *shared.connection() = None;
        tracing::info!("the client of {socket} has gone");
    }
}

/// Does what a client says, until it has gone or said something that makes no sense.
fn serve<T: Target>(stream: UnixStream, control: Control<T>) {
    let control = Arc::new(Mutex::new(control));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&control));
    loop {
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => break,
            Err(error) => {
                tracing::warn!("the connection of a client is cut: {error}");
                break;
            }
        }
    }
    control.lock().unwrap_or_else(PoisonError::into_inner).stop_all();
}
