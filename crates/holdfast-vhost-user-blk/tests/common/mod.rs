//! What the tests of the server share: servers over a volume, and guests that use them.

#![allow(dead_code, unused_imports, reason = "each test uses its part of this")]

mod guest;
mod raw;
mod storage;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_bio::ReadPolicy;
use holdfast_checksum::GuardKind;
use holdfast_iov::Pool;
use holdfast_sim::Faults;
use holdfast_socket::{Address, Listener};
use holdfast_units::BlockSize;
use holdfast_vhost_user_blk::{Options, QueueCounts, Server};
use holdfast_virtio_driver::Status;
use holdfast_volume::{CreateOptions, OpenOptions, Queue, Volume};
use tempfile::TempDir;

pub(crate) use self::guest::{Guest, ask, drain, guest_options, verify_until};
pub(crate) use self::raw::{
    Answer, LOG_ALL, Raw, RawQueue, Shared, addresses, bytes_of, in_flight, message, one_region,
    state, table, words,
};
pub(crate) use self::storage::{Disk, Medium, Watch, Watched};

pub(crate) const MIB: u64 = 1 << 20;
/// How long anything may take. Sanitizers and valgrind are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// How a volume is made and served. The default is what most tests want.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) capacity: u64,
    pub(crate) sector: BlockSize,
    pub(crate) on_file: bool,
    pub(crate) read_only: bool,
    pub(crate) faults: Faults,
    pub(crate) options: Options,
    pub(crate) sockets: usize,
}

impl Default for Setup {
    /// 64 MiB of memory that ends requests in any order and moves some in pieces, two queues.
    fn default() -> Self {
        Self {
            capacity: 64 * MIB,
            sector: BlockSize::PAGE,
            on_file: false,
            read_only: false,
            faults: Faults { reorder: true, short_percent: 5, ..Faults::default() },
            options: Options { queues: 2, ..Options::default() },
            sockets: 1,
        }
    }
}

impl Setup {
    pub(crate) fn with_policy(read_policy: ReadPolicy) -> Self {
        let setup = Self::default();
        Self { options: Options { read_policy, ..setup.options }, ..setup }
    }

    pub(crate) fn start(&self) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let options = CreateOptions {
            capacity: self.capacity,
            sector: self.sector,
            guard: GuardKind::Crc16,
            application_tag: CreateOptions::APPLICATION_TAG,
        };
        let bytes = options.geometry().unwrap().device_len();
        let medium = if self.on_file {
            Medium::file(&directory.path().join("disk"), bytes)
        } else {
            Medium::memory(bytes, self.faults.clone())
        };
        medium.create(&options);
        let open = OpenOptions { read_only: self.read_only, ..OpenOptions::default() };
        let disk = Disk::open(&medium, &open);
        let mut rig = Rig { disk, servers: Vec::new(), options: self.options, directory };
        for socket in 0..self.sockets {
            let server = rig.server_at(socket);
            rig.servers.push(Some(server));
        }
        rig
    }
}

/// Servers that cannot be stopped, which live as long as the program.
static LEFT_BEHIND: Mutex<Vec<Server>> = Mutex::new(Vec::new());

/// Servers of one volume, each at a socket of its own, stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) disk: Arc<Disk>,
    servers: Vec<Option<Server>>,
    options: Options,
    directory: TempDir,
}

impl Rig {
    pub(crate) fn path(&self, socket: usize) -> PathBuf {
        self.directory.path().join(format!("blk-{socket}"))
    }

    fn server_at(&self, socket: usize) -> Server {
        let listener = Listener::bind(Address::Unix(self.path(socket))).unwrap();
        Server::start(listener, Arc::clone(&self.disk), &self.options).unwrap()
    }

    pub(crate) fn server(&self, socket: usize) -> &Server {
        self.servers[socket].as_ref().expect("the server runs")
    }

    /// Stops a server, which must not take long.
    pub(crate) fn stop(&mut self, socket: usize) {
        let began = Instant::now();
        self.servers[socket].take().expect("the server runs").stop();
        assert!(began.elapsed() < PATIENCE / 4, "it took {:?} to stop", began.elapsed());
    }

    pub(crate) fn start_again(&mut self, socket: usize) {
        self.servers[socket] = Some(self.server_at(socket));
    }

    /// Stops everything, and serves the volume anew as another process would that comes after this one.
    pub(crate) fn reopen(&mut self) {
        (0..self.servers.len()).for_each(|socket| self.stop(socket));
        self.disk.close();
        self.disk = Disk::open(&self.disk.medium, &OpenOptions::default());
        (0..self.servers.len()).for_each(|socket| self.start_again(socket));
    }

    /// Serves the volume anew as the next process would after this one was killed: what runs is left
    /// behind as it is, and everything that is only in memory is lost.
    pub(crate) fn crash_and_start_again(&mut self) {
        self.disk.watch.kill();
        self.disk = Disk::open(&self.disk.medium, &OpenOptions::default());
        for socket in 0..self.servers.len() {
            let left_behind = self.servers[socket].take();
            LEFT_BEHIND.lock().unwrap().extend(left_behind);
            std::fs::remove_file(self.path(socket)).unwrap();
            self.start_again(socket);
        }
    }

    pub(crate) fn guest(&self) -> Guest {
        Guest::new(&self.path(0), &guest_options())
    }

    /// Returns a front end at a socket that has agreed on everything, except for logging.
    pub(crate) fn raw(&self, socket: usize) -> Raw {
        Raw::agreed(&self.path(socket))
    }

    pub(crate) fn volume(&self) -> &Arc<Volume> {
        &self.disk.volume
    }

    /// Returns what all queues of a socket have done together.
    pub(crate) fn counts(&self, socket: usize) -> QueueCounts {
        self.server(socket).counters().queues().fold(QueueCounts::default(), |sum, one| {
            QueueCounts {
                requests: sum.requests + one.requests,
                failed: sum.failed + one.failed,
                bytes: sum.bytes + one.bytes,
                bounced: sum.bounced + one.bounced,
                zero_copy: sum.zero_copy + one.zero_copy,
                reread_good: sum.reread_good + one.reread_good,
                reread_bad: sum.reread_bad + one.reread_bad,
                guard_errors: sum.guard_errors + one.guard_errors,
                application_errors: sum.application_errors + one.application_errors,
                reference_errors: sum.reference_errors + one.reference_errors,
            }
        })
    }

    /// Returns the memory below the volume.
    pub(crate) fn memory(&self) -> holdfast_device::MemoryDevice {
        match &*self.disk.medium {
            Medium::Memory(device, _) => device.lock().unwrap().clone(),
            Medium::File(_) => panic!("the volume is on a file"),
        }
    }

    /// Flips a bit of what is stored for byte `offset` of the disk.
    pub(crate) fn corrupt(&self, offset: u64) {
        self.memory().corrupt(self.volume().geometry().data_at(offset), 1);
    }

    /// Reads through the volume as it is stored now, as a server that was killed would find it.
    pub(crate) fn read_stored(
        &self,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, holdfast_bio::Error> {
        let open = OpenOptions { read_only: true, ..OpenOptions::default() };
        let volume = Volume::open(&mut self.memory(), &open).unwrap();
        let queue = Queue::new(&volume, self.memory(), || {}).unwrap();
        let pool = Pool::new(1 << 20).unwrap();
        let mut client = holdfast_volume::Client::new(queue, pool, ReadPolicy::Lazy);
        let mut bytes = vec![0; len];
        client.read_at(offset, &mut bytes).map(|()| bytes)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.disk.watch.release();
        for server in self.servers.drain(..).flatten() {
            if thread::panicking() {
                // What the test broke may never end.
                LEFT_BEHIND.lock().unwrap().push(server);
            } else {
                server.stop();
            }
        }
    }
}

/// Runs `body` with a server of two sockets, at the second of which somebody writes and reads all the
/// time; afterwards another guest is served at the first, and the servers stop.
pub(crate) fn beside_a_neighbour(body: impl FnOnce(&Rig)) {
    let mut rig = Setup { sockets: 2, ..Setup::default() }.start();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (path, told) = (rig.path(1), &is_over);
        let neighbour = scope.spawn(move || verify_until(&path, 32 * MIB, 66048, told));
        // It is told that it is over also when something failed.
        let over = Over(&is_over);
        body(&rig);
        let mut guest = rig.guest();
        let data = pattern(1, 8192);
        assert_eq!(guest.write(512, &data), Status::Ok);
        assert_same(&guest.read(512, 8192).unwrap(), &data);
        drop(over);
        assert!(neighbour.join().unwrap() > 1);
    });
    assert_eq!(rig.counts(1).failed, 0);
    rig.stop(0);
    rig.stop(1);
}

/// Says when it is dropped that it is over.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns `len` bytes, different at each position and for each seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = holdfast_sim::Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "lengths");
    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "first byte that differs");
}

/// Waits until `condition` holds, for no longer than the patience.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}
