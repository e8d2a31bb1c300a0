//! What the tests of the server share: a server in a thread of its own, and a client that was
//! written from the protocol's text and uses nothing of the crate.

#![allow(dead_code, unused_imports, reason = "each test uses its part of this")]

mod client;
mod woken;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use holdfast_bio::{BlockDevice, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::{Backing, FileDevice, MemoryDevice};
use holdfast_iov::Pool;
use holdfast_nbd::{BlockSizes, Export, Server, ServerLimits};
use holdfast_ring::{Ring, SharedRing, Waker};
use holdfast_sim::{Faults, FaultyDevice};
use holdfast_socket::{Address, Listener};
use holdfast_units::BlockSize;
use holdfast_volume::{CreateOptions, OpenOptions, Queue, Volume};

pub(crate) use self::client::{
    Answer, Client, Mode, PATIENCE, Socket, call, command, error, flag, greet, option,
    option_replies,
};
use self::woken::Woken;

pub(crate) const MIB: u64 = 1 << 20;

/// How a server is set up. The default is what most tests want.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) capacity: u64,
    pub(crate) sector: BlockSize,
    pub(crate) pool_bytes: usize,
    pub(crate) limits: ServerLimits,
    pub(crate) read_only: bool,
    pub(crate) maximum: u32,
    pub(crate) reactors: usize,
    pub(crate) faults: Faults,
    pub(crate) addresses: Vec<Address>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            capacity: 64 * MIB,
            sector: BlockSize::PAGE,
            pool_bytes: 16 << 20,
            limits: ServerLimits::default(),
            read_only: false,
            maximum: 32 << 20,
            reactors: 1,
            faults: Faults { reorder: true, short_percent: 5, ..Faults::default() },
            addresses: Vec::new(),
        }
    }
}

impl Setup {
    fn options(&self) -> CreateOptions {
        CreateOptions {
            capacity: self.capacity,
            sector: self.sector,
            guard: GuardKind::Crc16,
            application_tag: CreateOptions::APPLICATION_TAG,
        }
    }

    /// Starts a server over memory that makes the setup's mistakes.
    pub(crate) fn start(self) -> Rig {
        let options = self.options();
        let mut device = MemoryDevice::new(options.geometry().unwrap().device_len());
        Volume::create(&mut device, &options).unwrap();
        self.start_on(device)
    }

    /// Starts a server over what `device` holds already.
    pub(crate) fn start_on(self, mut device: MemoryDevice) -> Rig {
        let open = OpenOptions { read_only: self.read_only, ..OpenOptions::default() };
        let volume = Volume::open(&mut device, &open).unwrap();
        let (faults, shared) = (self.faults.clone(), device.clone());
        let make = move |_: &SharedRing, waker: &Arc<Waker>| {
            Woken::new(FaultyDevice::new(shared.clone(), faults.clone(), 1), waker)
        };
        Rig::start(&self, &volume, device, make)
    }

    /// Starts a server over a sparse file.
    pub(crate) fn start_on_file(self) -> Rig {
        self.start_on_backing(|backing, ring, _| FileDevice::new(backing, ring).unwrap())
    }

    /// Starts a server over a sparse file that makes the setup's mistakes.
    pub(crate) fn start_on_faulty_file(self) -> Rig {
        let faults = self.faults.clone();
        self.start_on_backing(move |backing, ring, waker| {
            let device = FileDevice::new(backing, ring).unwrap();
            Woken::new(FaultyDevice::new(device, faults.clone(), 1), waker)
        })
    }

    fn start_on_backing<D: BlockDevice + 'static>(
        self,
        make: impl Fn(&Backing, &SharedRing, &Arc<Waker>) -> D + Clone + Send + 'static,
    ) -> Rig {
        let options = self.options();
        let dir = tempfile::tempdir().unwrap();
        let bytes = options.geometry().unwrap().device_len();
        let backing = Backing::create(&dir.path().join("disk"), bytes).unwrap();
        let ring = Ring::new(64).unwrap().shared();
        let mut device = FileDevice::new(&backing, &ring).unwrap();
        Volume::create(&mut device, &options).unwrap();
        let volume = Volume::open(&mut device, &OpenOptions::default()).unwrap();
        let backing = Arc::new(backing);
        let make = move |ring: &SharedRing, waker: &Arc<Waker>| make(&backing, ring, waker);
        let mut rig = Rig::start(&self, &volume, MemoryDevice::new(0), make);
        rig.disk_dir = Some(dir);
        rig
    }
}

/// A server that runs in threads, stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Rig {
    /// The memory below the volume, if it is memory.
    device: Mutex<MemoryDevice>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) socket: PathBuf,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) wakers: Vec<Arc<Waker>>,
    threads: Vec<JoinHandle<Report>>,
    /// Where the kernel tells about each reactor's thread.
    tasks: Vec<PathBuf>,
    _socket_dir: tempfile::TempDir,
    disk_dir: Option<tempfile::TempDir>,
}

/// What is left when a reactor has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) free: usize,
    pub(crate) total: usize,
}

impl Rig {
    fn start<D: BlockDevice + 'static>(
        setup: &Setup,
        volume: &Arc<Volume>,
        device: MemoryDevice,
        make: impl Fn(&SharedRing, &Arc<Waker>) -> D + Clone + Send + 'static,
    ) -> Self {
        let socket_dir = tempfile::tempdir().unwrap();
        let socket = socket_dir.path().join("nbd.sock");
        let addresses = [Address::Unix(socket.clone())].into_iter().chain(setup.addresses.clone());
        let listeners: Vec<_> = addresses.map(|address| Listener::bind(address).unwrap()).collect();
        let listeners = Arc::new(listeners);
        let exports: Arc<[Export]> = Arc::new([export(setup)]);
        let mut rig = Self {
            device: Mutex::new(device),
            volume: Arc::clone(volume),
            socket,
            listeners: Vec::new(),
            wakers: Vec::new(),
            threads: Vec::new(),
            tasks: Vec::new(),
            _socket_dir: socket_dir,
            disk_dir: None,
        };
        for _ in 0..setup.reactors {
            let waker = Waker::new().unwrap();
            rig.wakers.push(Arc::clone(&waker));
            let (ready, is_ready) = mpsc::channel();
            let (listeners, exports, make) =
                (Arc::clone(&listeners), Arc::clone(&exports), make.clone());
            let (volume, limits, pool_bytes) = (Arc::clone(volume), setup.limits, setup.pool_bytes);
            rig.threads.push(thread::spawn(move || {
                let pool = Pool::new(pool_bytes).unwrap();
                let mut ring = Ring::new(2048).unwrap();
                let _unregistered = ring.register(&pool);
                let ring = ring.shared();
                let to_wake = Arc::clone(&waker);
                let queue =
                    Queue::new(&volume, make(&ring, &waker), move || to_wake.wake()).unwrap();
                let server =
                    Server::new(&ring, queue, pool.clone(), &listeners, exports, waker, limits);
                let server = server.unwrap();
                drop(listeners);
                ready.send(fs::canonicalize("/proc/thread-self").unwrap()).unwrap();
                server.run().unwrap();
                drop(ring);
                Report { free: pool.free_bytes(), total: pool.total_bytes() }
            }));
            rig.tasks.push(is_ready.recv().unwrap());
        }
        rig.listeners = Arc::into_inner(listeners).unwrap();
        rig
    }

    /// Returns a queue of the memory below the volume.
    pub(crate) fn device(&self) -> MemoryDevice {
        self.device.lock().unwrap().clone()
    }

    /// Attaches a client.
    pub(crate) fn client(&self, mode: Mode) -> Client {
        Client::attach(Socket::unix(&self.socket), mode).unwrap()
    }

    /// Connects, and says nothing yet.
    pub(crate) fn connect(&self) -> Socket {
        Socket::unix(&self.socket)
    }

    /// Stops all reactors, and returns what each left when it had ended.
    pub(crate) fn stop(&mut self) -> Vec<Report> {
        self.wakers.iter().for_each(|waker| waker.stop());
        self.threads.drain(..).map(|thread| thread.join().unwrap()).collect()
    }

    /// Returns the processor time that the reactors have used, without what the kernel's workers did
    /// for them.
    pub(crate) fn cpu_time(&self) -> Duration {
        let nanoseconds = |task: &PathBuf| -> u64 {
            let text = fs::read_to_string(task.join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse().unwrap()
        };
        Duration::from_nanos(self.tasks.iter().map(nanoseconds).sum())
    }

    /// Returns which part of one processor the reactors use while `body` runs for some time.
    pub(crate) fn load_while(&self, body: impl FnOnce()) -> f64 {
        let (began, used) = (Instant::now(), self.cpu_time());
        body();
        (self.cpu_time() - used).as_secs_f64() / began.elapsed().as_secs_f64()
    }

    /// Reads through the volume as it is stored now, as a server that was killed would find it.
    pub(crate) fn read_stored(
        &self,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, holdfast_bio::Error> {
        let open = OpenOptions { read_only: true, ..OpenOptions::default() };
        let volume = Volume::open(&mut self.device(), &open).unwrap();
        let queue = Queue::new(&volume, self.device(), || {}).unwrap();
        let pool = Pool::new(1 << 20).unwrap();
        let mut client = holdfast_volume::Client::new(queue, pool, ReadPolicy::Lazy);
        let mut bytes = vec![0; len];
        client.read_at(offset, &mut bytes).map(|()| bytes)
    }

    /// Flips a bit of what is stored for byte `offset` of the disk.
    pub(crate) fn corrupt(&self, offset: u64) {
        self.device().corrupt(self.volume.geometry().data_at(offset), 1);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.wakers.iter().for_each(|waker| waker.stop());
        for thread in self.threads.drain(..) {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking(), "a reactor panicked");
        }
    }
}

fn export(setup: &Setup) -> Export {
    Export {
        name: "disk".to_owned(),
        description: "a disk for tests".to_owned(),
        size: setup.capacity,
        read_only: setup.read_only,
        block_size: BlockSizes { minimum: 512, preferred: 4096, maximum: setup.maximum },
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
pub(crate) fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "lengths");
    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "first byte that differs");
}

/// Waits until `condition` holds, for no longer than the client's patience.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the path of a rig's Unix socket as the listener tells it.
pub(crate) fn unix_path(listener: &Listener) -> &Path {
    match listener.address() {
        Address::Unix(path) => path,
        Address::Tcp(address) => panic!("{address} is no path"),
    }
}
