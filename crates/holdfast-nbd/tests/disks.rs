//! Disks that are no volumes: memory, and devices that are full or move less than they were asked to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use holdfast_bio::{Bio, BlockDevice, DiskQueue, Ended, Limits, Op};
use holdfast_device::MemoryDevice;
use holdfast_iov::Pool;
use holdfast_nbd::{BlockSizes, Export, Server, ServerLimits};
use holdfast_ring::{Ring, Waker};
use holdfast_sim::{Faults, FaultyDevice};
use holdfast_socket::{Address, Listener};
use tempfile::TempDir;

use crate::common::{Client, MIB, Mode, Socket, assert_same, command, error, eventually, pattern};

/// A server of a disk in a thread of its own, stopped when this is dropped.
struct Served {
    directory: TempDir,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start<Q: DiskQueue>(open: impl FnOnce() -> Q + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let waker = Waker::new().unwrap();
        let listener = Listener::bind(Address::Unix(directory.path().join("nbd"))).unwrap();
        let theirs = Arc::clone(&waker);
        let thread = thread::spawn(move || {
            let queue = open();
            let export = Export {
                name: "disk".to_owned(),
                description: String::new(),
                size: queue.limits().capacity,
                read_only: false,
                block_size: BlockSizes { minimum: 512, ..BlockSizes::default() },
            };
            let (ring, pool) = (Ring::new(256).unwrap().shared(), Pool::new(8 << 20).unwrap());
            let (listeners, limits) = ([listener], ServerLimits::default());
            Server::new(&ring, queue, pool, &listeners, [export].into(), theirs, limits)
                .unwrap()
                .run()
                .unwrap();
        });
        Self { directory, waker, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        let socket = Socket::unix(&self.directory.path().join("nbd"));
        Client::attach(socket, Mode::Structured).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.waker.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok());
    }
}

/// A device that nobody wakes: it is asked as long as it has something in flight, or has refused something.
struct Polled {
    device: FaultyDevice<MemoryDevice>,
    in_flight: usize,
    has_refused: bool,
    /// There is something that the next flush stores.
    has_news: Arc<AtomicBool>,
}

impl Polled {
    fn new(faults: Faults, has_news: Arc<AtomicBool>) -> Self {
        let device = FaultyDevice::new(MemoryDevice::new(8 * MIB), faults, 1);
        Self { device, in_flight: 0, has_refused: false, has_news }
    }
}

impl BlockDevice for Polled {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        let is_flush = bio.op == Op::Flush;
        let submitted = self.device.submit(bio);
        if is_flush && submitted.is_ok() {
            self.has_news.store(false, Ordering::SeqCst);
        }
        self.has_refused = submitted.is_err();
        self.in_flight += usize::from(submitted.is_ok());
        submitted
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let before = ended.len();
        self.device.reap(ended);
        self.in_flight -= ended.len() - before;
    }

    fn wait(&mut self) {
        self.device.wait();
    }

    fn has_notes(&self) -> bool {
        self.in_flight > 0 || self.has_refused
    }
}

impl DiskQueue for Polled {
    fn has_news(&self) -> bool {
        self.has_news.load(Ordering::SeqCst)
    }
}

#[test]
fn memory_is_served_as_it_is() {
    let served = Served::start(|| MemoryDevice::new(8 * MIB));
    let mut client = served.client();
    let data = pattern(1, 3 << 20);
    assert_eq!(client.write(512, &data), 0);
    assert_eq!(client.call(command::TRIM, 0, MIB, 1 << 20).error, 0);
    assert_eq!(client.flush(), 0);
    let found = client.read(512, 3 << 20).unwrap();
    let (head, middle) = ((1 << 20) - 512, 1 << 20);
    assert_same(&found[..head], &data[..head]);
    assert_same(&found[head..][..middle], &vec![0; middle]);
    assert_same(&found[head + middle..], &data[head + middle..]);
}

#[test]
fn what_finds_no_room_goes_on() {
    let faults = Faults { full_percent: 60, reorder: true, ..Faults::default() };
    let served = Served::start(|| Polled::new(faults, Arc::default()));
    let mut client = served.client();
    for round in 0..8 {
        let data = pattern(round, 2 << 20);
        assert_eq!(client.write_durably(round * 512, &data), 0);
        assert_same(&client.read(round * 512, 2 << 20).unwrap(), &data);
    }
}

#[test]
fn a_short_transfer_is_an_error() {
    let faults = Faults { short_percent: 100, ..Faults::default() };
    let served = Served::start(|| Polled::new(faults, Arc::default()));
    let mut client = served.client();
    // A single sector is never cut.
    assert_eq!(client.write(0, &pattern(1, 512)), 0);
    let errors: Vec<u32> = (0..20).map(|round| client.write(0, &pattern(round, 1 << 16))).collect();
    assert!(errors.contains(&error::EIO), "{errors:?}");
    let found: Vec<_> = (0..20).map(|_| client.read(0, 1 << 16)).collect();
    assert!(found.contains(&Err(error::EIO)));
}

#[test]
fn news_are_stored_though_no_client_asks() {
    let has_news = Arc::new(AtomicBool::new(true));
    let theirs = Arc::clone(&has_news);
    let served = Served::start(move || Polled::new(Faults::default(), theirs));
    eventually("a flush stores the news", || !has_news.load(Ordering::SeqCst));
    drop(served);
}
