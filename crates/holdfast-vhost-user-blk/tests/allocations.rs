//! From the kick to the completion a queue's thread allocates nothing. Alone in its program, since the
//! allocator is the program's.
//!
//! With `HOLDFAST_ALLOCATIONS=1` and `--nocapture` it tells who allocates.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Guest, MIB, drain, guest_options, pattern};
use holdfast_bio::ReadPolicy;
use holdfast_checksum::GuardKind;
use holdfast_device::{Backing, FileDevice};
use holdfast_ring::{Ring, SharedRing, Waker};
use holdfast_socket::{Address, Listener};
use holdfast_units::{BlockSize, to_u64};
use holdfast_vhost_user_blk::{Description, Options, Server, Target};
use holdfast_virtio_driver::{Request, Segment, Shape, Status};
use holdfast_volume::{CreateOptions, OpenOptions, Queue, Volume};

/// The system's allocator, which counts what the threads of queues ask of it.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// This is the thread of a queue.
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// The queue is in its steady state.
static IS_STEADY: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

fn count() {
    if IS_STEADY.load(Ordering::Relaxed) && IS_WATCHED.get() {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // What this allocates is not counted.
        IS_WATCHED.set(false);
        if std::env::var_os("HOLDFAST_ALLOCATIONS").is_some() {
            #[expect(clippy::print_stderr, reason = "it was asked for")]
            {
                eprintln!("{}", std::backtrace::Backtrace::force_capture());
            }
        }
        IS_WATCHED.set(true);
    }
}

// SAFETY: every request is passed on as it is to the allocator of the system, which keeps the promises.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps what `alloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: `memory` is from `System`, and the caller keeps what `dealloc` asks for.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: `memory` is from `System`, and the caller keeps what `realloc` asks for.
        unsafe { System.realloc(memory, layout, len) }
    }
}

/// How often is looked, each time for 2048 requests.
const WINDOWS: usize = 4;

/// A volume on a file, whose queues are watched.
struct Disk {
    volume: Arc<Volume>,
    backing: Backing,
}

impl Disk {
    fn create(path: &Path) -> Self {
        let options = CreateOptions {
            capacity: 64 * MIB,
            sector: BlockSize::PAGE,
            guard: GuardKind::Crc16,
            application_tag: CreateOptions::APPLICATION_TAG,
        };
        let backing = Backing::create(path, options.geometry().unwrap().device_len()).unwrap();
        let ring = Ring::new(64).unwrap().shared();
        let mut device = FileDevice::new(&backing, &ring).unwrap();
        Volume::create(&mut device, &options).unwrap();
        let volume = Volume::open(&mut device, &OpenOptions::default()).unwrap();
        Self { volume, backing }
    }
}

impl Target for Disk {
    type Queue = Queue<FileDevice>;

    fn describe(&self) -> Description {
        let geometry = self.volume.geometry();
        Description::new(geometry.capacity(), geometry.sector(), &self.volume.uuid_text())
    }

    fn queue(&self, ring: &SharedRing, waker: &Arc<Waker>) -> io::Result<Self::Queue> {
        IS_WATCHED.set(true);
        let waker = Arc::clone(waker);
        Queue::new(&self.volume, FileDevice::new(&self.backing, ring)?, move || waker.wake())
    }
}

/// Writes and reads `len` bytes at a time, with up to `depth` requests in the queue, all over the
/// buffer, `shift` bytes behind a page.
fn write_and_read(guest: &mut Guest, len: usize, depth: usize, shift: u64, rounds: usize) {
    let base = guest.base + shift;
    let queue = guest.client.queue(0);
    for round in 0..rounds {
        for is_write in [true, false] {
            for number in 0..depth {
                let at = to_u64((round + number) * len % (Guest::BUFFER - len));
                let segment = [Segment { address: base + at, len: u32::try_from(len).unwrap() }];
                let sector = at / 512;
                let request = if is_write {
                    Request::Write { sector, source: &segment }
                } else {
                    Request::Read { sector, target: &segment }
                };
                queue.submit(&request, Shape::default()).unwrap();
            }
            // All of them are there at once, so that what must grow does so in the beginning.
            assert!(drain(queue).iter().all(|ended| ended.status == Status::Ok));
        }
    }
}

#[test]
fn a_queue_allocates_nothing_when_it_is_warm() {
    assert!(is_seen(), "the allocator counts");
    for policy in [ReadPolicy::Always, ReadPolicy::Lazy] {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::create(&directory.path().join("disk")));
        let path = directory.path().join("socket");
        let listener = Listener::bind(Address::Unix(path.clone())).unwrap();
        let options = Options { read_policy: policy, ..Options::default() };
        let server = Server::start(listener, disk, &options).unwrap();
        let options = holdfast_virtio_driver::Options { queues: 1, ..guest_options() };
        let mut guest = Guest::new(&path, &options);
        assert_eq!(guest.write(0, &pattern(1, Guest::BUFFER)), Status::Ok);
        for (len, depth, shift) in [
            (4096, 1, 0),
            (65536, 1, 0),
            (4096, 32, 0),
            (65536, 16, 0),
            (4096, 16, 24),
            (65536, 16, 24),
        ] {
            // With more at a time than later, when the volume may have something to do for itself.
            write_and_read(&mut guest, len, depth + 10, shift, 40);
            // A list grows when more ends at the same time than ever before, which is no matter of
            // requests. What is allocated for a request is allocated in each of these windows.
            let windows = (0..WINDOWS).map(|_| {
                COUNT.store(0, Ordering::Relaxed);
                IS_STEADY.store(true, Ordering::SeqCst);
                write_and_read(&mut guest, len, depth, shift, 1024 / depth);
                IS_STEADY.store(false, Ordering::SeqCst);
                COUNT.load(Ordering::Relaxed)
            });
            let found: Vec<_> = windows.collect();
            assert_eq!(found.iter().min(), Some(&0), "{policy:?} {len} {depth} {shift}: {found:?}");
            assert!(found.iter().sum::<u64>() < 20, "{policy:?} {len} {depth} {shift}: {found:?}");
        }
        drop(guest);
        server.stop();
    }
}

/// Returns whether an allocation is counted.
fn is_seen() -> bool {
    IS_WATCHED.set(true);
    IS_STEADY.store(true, Ordering::SeqCst);
    drop(std::hint::black_box(Box::new(1)));
    IS_STEADY.store(false, Ordering::SeqCst);
    IS_WATCHED.set(false);
    COUNT.load(Ordering::Relaxed) == 2
}
