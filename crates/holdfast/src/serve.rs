//! `holdfast serve`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use anyhow::Context;
use holdfast_bio::{Bio, BlockDevice};
use holdfast_device::FileDevice;
use holdfast_iov::Pool;
use holdfast_nbd::{Address, BlockSizes, Export, Listener, Server, ServerLimits, Waker};
use holdfast_ring::Ring;
use holdfast_units::to_usize;
use holdfast_volume::{OpenOptions, Queue};
use indicatif::BinaryBytes;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Outcome;
use crate::backing::{self, OpenVolume};
use crate::cli::Serve;

/// The memory for data on their way, of all threads together.
const BUFFER_BYTES: usize = 48 << 20;
/// The operations that one thread has in flight.
const RING_ENTRIES: u32 = 2048;

pub(crate) fn run(arguments: &Serve) -> anyhow::Result<Outcome> {
    let path = &arguments.path;
    if let Some(capacity) = arguments.create
        && !path.exists()
    {
        backing::create(path, false, |_| Ok(arguments.format.options(capacity)))?;
    }
    let options =
        OpenOptions { cache_bytes: to_usize(arguments.cache_size), read_only: arguments.read_only };
    let open = OpenVolume::open(path, &options)?;
    let served = serve(arguments, &open);
    // What failed to start or to go on still leaves a closed volume behind, if it can be flushed.
    let closed = flush(&open).and_then(|()| open.close());
    served.and(closed)?;
    tracing::info!("{} is closed", path.display());
    Ok(Outcome::Fine)
}

/// Serves an open volume until the reactors stop.
fn serve(arguments: &Serve, open: &OpenVolume) -> anyhow::Result<()> {
    let listeners = listen(arguments)?;
    let threads = threads(arguments);
    let wakers = (0..threads).map(|_| Waker::new()).collect::<Result<Vec<_>, _>>()?;
    stop_on_signals(&wakers)?;
    announce(open, &listeners);
    let exports: Arc<[Export]> = Arc::new([export(open)]);
    thread::scope(|scope| {
        let reactors: Vec<_> = wakers
            .iter()
            .map(|waker| {
                let (open, listeners, exports) =
                    (Shared::of(open), &listeners, Arc::clone(&exports));
                let wakers = &wakers;
                scope.spawn(move || {
                    let result = react(&open, listeners, exports, waker, threads);
                    // One that cannot go on takes the others with it.
                    wakers.iter().for_each(|waker| waker.stop());
                    result
                })
            })
            .collect();
        reactors.into_iter().try_for_each(|reactor| {
            reactor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// What the threads share of an open volume. Its ring is the main thread's.
struct Shared<'a> {
    backing: &'a holdfast_device::Backing,
    volume: &'a Arc<holdfast_volume::Volume>,
}

impl<'a> Shared<'a> {
    const fn of(open: &'a OpenVolume) -> Self {
        Self { backing: &open.backing, volume: &open.volume }
    }
}

/// Runs one reactor until its waker says stop.
fn react(
    open: &Shared<'_>,
    listeners: &[Listener],
    exports: Arc<[Export]>,
    waker: &Arc<Waker>,
    threads: usize,
) -> anyhow::Result<()> {
    let pool = Pool::new(BUFFER_BYTES / threads)?;
    let mut ring = Ring::new(RING_ENTRIES).context("cannot set io_uring up")?;
    if let Err(error) = ring.register(&pool) {
        tracing::debug!("the buffers are not registered, which costs a little speed: {error}");
    }
    let ring = ring.shared();
    let device = FileDevice::new(open.backing, &ring)?;
    let to_wake = Arc::clone(waker);
    let queue = Queue::new(open.volume, device, move || to_wake.wake())?;
    let limits = ServerLimits::default();
    let server = Server::new(&ring, queue, pool, listeners, exports, Arc::clone(waker), limits)?;
    server.run().context("the server cannot go on")?;
    Ok(())
}

fn flush(open: &OpenVolume) -> anyhow::Result<()> {
    let ended = open.queue()?.run(Bio::flush());
    ended
        .result
        .map(drop)
        .context("the last flush failed: what was written since the one before it may be lost")
}

fn threads(arguments: &Serve) -> usize {
    const MOST: usize = 4;
    let processors = thread::available_parallelism().map_or(1, usize::from);
    arguments.threads.map_or_else(|| processors.min(MOST), usize::from)
}

fn listen(arguments: &Serve) -> anyhow::Result<Vec<Listener>> {
    let beside = [Address::Unix(socket_beside(&arguments.path))];
    let addresses = if arguments.nbd.is_empty() { &beside[..] } else { &arguments.nbd };
    let bind = |address: &Address| {
        Listener::bind(address.clone()).with_context(|| format!("cannot listen at {address}"))
    };
    addresses.iter().map(bind).collect()
}

/// Returns the socket of those who name none: `disk.sock` for `disk.hf`.
fn socket_beside(path: &Path) -> PathBuf {
    path.with_extension("sock")
}

fn export(open: &OpenVolume) -> Export {
    let geometry = open.volume.geometry();
    Export {
        name: String::new(),
        description: "a Holdfast volume".to_owned(),
        size: geometry.capacity(),
        read_only: open.volume.is_read_only(),
        block_size: BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: holdfast_nbd::PAYLOAD_LEN_MAX,
        },
    }
}

/// Stops the reactors at the first SIGINT or SIGTERM, and the process at the second.
fn stop_on_signals(wakers: &[Arc<Waker>]) -> anyhow::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 2, Arc::clone(&asked))?;
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let wakers = wakers.to_vec();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            tracing::info!("stopping: what is in flight is finished (once more ends at once)");
            wakers.iter().for_each(|waker| waker.stop());
        }
    })?;
    Ok(())
}

/// Says what is served and how to attach to it.
fn announce(open: &OpenVolume, listeners: &[Listener]) {
    let geometry = open.volume.geometry();
    let mode = if open.volume.is_read_only() { ", read-only" } else { "" };
    let mut text = format!(
        "serving {}: {} in sectors of {} bytes, guard {}{mode}\n",
        open.backing.path().display(),
        BinaryBytes(geometry.capacity()),
        geometry.sector(),
        open.volume.protection().kind,
    );
    for listener in listeners {
        let uri = listener.address().uri();
        let client = match listener.address() {
            Address::Unix(path) => format!("nbd-client -unix {} /dev/nbd0", path.display()),
            Address::Tcp(address) => {
                format!("nbd-client {} {} /dev/nbd0", address.ip(), address.port())
            }
        };
        text += &format!(
            "\nlistening at {}; attach with\n  qemu-img info '{uri}'\n  nbdcopy disk.img '{uri}'\n  \
             qemu-system-x86_64 -drive 'file={uri},format=raw,if=virtio,discard=unmap'\n  {client}\n",
            listener.address()
        );
    }
    // Whoever started the server may have closed its output, and wants it to run all the same.
    let _closed = writeln!(std::io::stdout(), "{text}");
}
