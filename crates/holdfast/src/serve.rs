//! `holdfast serve`

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use holdfast_bio::{Bio, BlockDevice, ReadPolicy};
use holdfast_iov::Pool;
use holdfast_nbd::{BlockSizes, Export, Server, ServerLimits};
use holdfast_ring::{Ring, SharedRing, Waker};
use holdfast_socket::{Address, Listener};
use holdfast_units::to_usize;
use holdfast_vhost_user_blk::{
    Description, Options as VhostUserOptions, Server as VhostUser, Target,
};
use holdfast_volume::{OpenOptions, Queue, Volume};

use crate::Outcome;
use crate::announce::announce;
use crate::backing::{self, OpenVolume};
use crate::cli::Serve;
use crate::control::Control;
use crate::http::{self, Page};
use crate::live::Watch;
use crate::metrics::{self, Metrics};
use crate::resync::Resyncer;
use crate::scrub::{Activity, Counted, Plan, Scrubber, Steering};
use crate::signals;
use crate::store::{Device, Store};

/// The memory for data on their way, of all threads together.
const BUFFER_BYTES: usize = 48 << 20;
/// The operations that one thread has in flight.
const RING_ENTRIES: u32 = 2048;

pub(crate) fn run(arguments: &Serve) -> anyhow::Result<Outcome> {
    if let Some(file) = &arguments.xfs {
        return crate::serve_xfs::run(arguments, file);
    }
    let path = arguments.path.as_deref().context("there is no volume")?;
    if let Some(capacity) = arguments.create
        && !path.exists()
    {
        backing::create(&[path], false, |_| Ok(arguments.format.options(capacity)))?;
    }
    let options = OpenOptions {
        cache_bytes: to_usize(arguments.cache_size),
        read_only: arguments.read_only,
        durability: arguments.durability,
        ..OpenOptions::default()
    };
    let open = OpenVolume::open(path, &options)?;
    if arguments.read_policy == ReadPolicy::Never && open.store.mirror().is_some() {
        open.close()?;
        bail!(
            "--read-policy never writes memory that changes as it is, so that the legs of a mirror \
             would differ: use always or lazy"
        );
    }
    let served = serve(arguments, &open);
    // What failed to start or to go on still leaves a closed volume behind, if it can be flushed.
    let closed = flush(&open).and_then(|()| open.close());
    served.and(closed)?;
    tracing::info!("{} is closed", path.display());
    Ok(Outcome::Fine)
}

/// Serves an open volume until a signal, or until a part of the server cannot go on.
fn serve(arguments: &Serve, open: &OpenVolume) -> anyhow::Result<()> {
    // First: whoever reads that we listen may stop us at once.
    let (over, wait) = mpsc::channel();
    let stop = over.clone();
    signals::on_stop(move || {
        tracing::info!("stopping: what is in flight is finished (once more ends at once)");
        // The server may be stopping already.
        let _stopping = stop.send(());
    })?;
    let listeners = listen(arguments, open.path())?;
    let sockets = arguments.vhost_user.iter().map(|path| bind(&Address::Unix(path.clone())));
    let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
    let control = Control::bind(&open.volume.uuid_text(), &open.store);
    let shown = arguments.metrics.as_ref().map(bind).transpose()?;
    announce(open, &listeners, shown.as_ref(), arguments);
    let threads = if listeners.is_empty() { 0 } else { threads(arguments) };
    let wakers = (0..threads).map(|_| Waker::new()).collect::<Result<Vec<_>, _>>()?;
    let clients = Arc::<Activity>::default();
    let disk = Arc::new(Disk::of(open, &clients));
    let disks = start_disks(arguments, &disk, sockets)?;
    let served = watch_over(arguments, open, &clients, &disks, control, shown.as_ref()).and_then(
        |background| {
            let served = react_all(&disk, &listeners, &wakers, poll_time(arguments), &over, &wait);
            drop(background);
            served
        },
    );
    disks.into_iter().for_each(VhostUser::stop);
    served
}

/// Runs the reactors of NBD clients until somebody says that it is over.
fn react_all(
    disk: &Disk,
    listeners: &[Listener],
    wakers: &[Arc<Waker>],
    poll: Duration,
    over: &mpsc::Sender<()>,
    wait: &mpsc::Receiver<()>,
) -> anyhow::Result<()> {
    let exports: Arc<[Export]> = Arc::new([export(&disk.volume)]);
    thread::scope(|scope| {
        let spawn = |waker| {
            let (over, exports) = (over.clone(), Arc::clone(&exports));
            scope.spawn(move || {
                let result = react(disk, listeners, exports, waker, poll, wakers.len());
                // One that cannot go on takes the others with it. Nobody listens at the end.
                let _ending = over.send(());
                result
            })
        };
        let reactors: Vec<_> = wakers.iter().map(spawn).collect();
        // Only an error if all senders are gone, and the caller has one.
        let _never = wait.recv();
        wakers.iter().for_each(|waker| waker.stop());
        reactors.into_iter().try_for_each(|reactor| {
            reactor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// What goes on besides serving. It ends before the clients' queues do.
struct Background {
    _scrubber: Scrubber,
    resyncer: Arc<Resyncer>,
}

impl Drop for Background {
    fn drop(&mut self) {
        self.resyncer.stop();
    }
}

/// Starts what goes on besides serving: the scrub, what a crash or the end of a server interrupted,
/// and showing what the server does.
fn watch_over(
    arguments: &Serve,
    open: &OpenVolume,
    clients: &Arc<Activity>,
    disks: &[VhostUser],
    control: Option<Control>,
    shown: Option<&Listener>,
) -> anyhow::Result<Background> {
    let plan = Plan { days: arguments.scrub, rate_max: arguments.scrub_rate };
    let steering = Arc::new(Steering::new(&open.volume, plan));
    let (store, volume) = (Arc::clone(&open.store), Arc::clone(&open.volume));
    let scrubber = Scrubber::start(Arc::clone(&steering), store, volume, Arc::clone(clients))
        .context("cannot start the thread that scrubs")?;
    let resyncer = Resyncer::new(&open.store, &open.volume);
    let background = Background { _scrubber: scrubber, resyncer: Arc::clone(&resyncer) };
    let legs = open.store.interrupted();
    if !legs.is_empty() && !open.volume.is_read_only() {
        resyncer.begin(legs, false)?;
    }
    observe(arguments, open, steering, resyncer, disks, control, shown)?;
    Ok(background)
}

/// Shows what the server does to `info --live`, and to Prometheus if there is a listener for it, and
/// lets `holdfast scrub` steer.
fn observe(
    arguments: &Serve,
    open: &OpenVolume,
    scrub: Arc<Steering>,
    resyncer: Arc<Resyncer>,
    disks: &[VhostUser],
    control: Option<Control>,
    shown: Option<&Listener>,
) -> anyhow::Result<()> {
    let watch = Arc::new(Watch {
        since: Instant::now(),
        read_policy: arguments.read_policy,
        volume: Arc::clone(&open.volume),
        scrub,
        store: Arc::clone(&open.store),
        resyncer,
        clients: disks.iter().map(|disk| Arc::clone(disk.counters())).collect(),
    });
    if let Some(control) = control {
        control.start(Arc::clone(&watch)).context("cannot answer `holdfast info --live`")?;
    }
    if let Some(listener) = shown {
        let metrics = Metrics::new(watch);
        let page = Page {
            path: metrics::PATH,
            media_type: metrics::MEDIA_TYPE,
            text: move || metrics.text(),
        };
        http::start("metrics", listener.descriptor()?, page).context("cannot show metrics")?;
    }
    Ok(())
}

/// An open volume as all threads that serve it share it.
struct Disk {
    store: Arc<Store>,
    volume: Arc<Volume>,
    clients: Arc<Activity>,
}

impl Disk {
    fn of(open: &OpenVolume, clients: &Arc<Activity>) -> Self {
        let (store, volume) = (Arc::clone(&open.store), Arc::clone(&open.volume));
        Self { store, volume, clients: Arc::clone(clients) }
    }
}

impl Target for Disk {
    type Queue = Queue<Counted<Device>>;

    fn describe(&self) -> Description {
        let (volume, geometry) = (&self.volume, self.volume.geometry());
        let told = Description::new(geometry.capacity(), geometry.sector(), &volume.uuid_text());
        Description { read_only: volume.is_read_only(), ..told }
    }

    fn queue(&self, ring: &SharedRing, waker: &Arc<Waker>) -> std::io::Result<Self::Queue> {
        let device = Counted::new(self.store.device(ring)?, &self.clients);
        let waker = Arc::clone(waker);
        Queue::new(&self.volume, device, move || waker.wake())?.with_journal()
    }
}

/// Starts to serve a disk to virtual machines.
pub(crate) fn start_disks<T: Target>(
    arguments: &Serve,
    disk: &Arc<T>,
    sockets: Vec<Listener>,
) -> anyhow::Result<Vec<VhostUser>> {
    let options = VhostUserOptions {
        queues: arguments.queues,
        read_policy: arguments.read_policy,
        poll: poll_time(arguments),
        ..VhostUserOptions::default()
    };
    if !sockets.is_empty() && options.read_policy == ReadPolicy::Never {
        tracing::warn!(
            "--read-policy never is for measuring only: a guest that changes its memory during I/O \
             stores bad guards and gets false errors"
        );
    }
    let mut disks = Vec::with_capacity(sockets.len());
    for socket in sockets {
        match VhostUser::start(socket, Arc::clone(disk), &options) {
            Ok(started) => disks.push(started),
            Err(error) => {
                // Nobody may write to a volume that is about to be closed.
                disks.into_iter().for_each(VhostUser::stop);
                return Err(error).context("cannot serve virtual machines");
            }
        }
    }
    Ok(disks)
}

/// Returns how long threads look for requests before they sleep.
fn poll_time(arguments: &Serve) -> Duration {
    Duration::from_micros(u64::from(arguments.poll))
}

/// Runs one reactor until its waker says stop.
fn react(
    disk: &Disk,
    listeners: &[Listener],
    exports: Arc<[Export]>,
    waker: &Arc<Waker>,
    poll: Duration,
    threads: usize,
) -> anyhow::Result<()> {
    let pool = Pool::new(BUFFER_BYTES / threads)?;
    let mut ring = Ring::new(RING_ENTRIES).context("cannot set io_uring up")?;
    ring.set_patience(poll);
    if let Err(error) = ring.register(&pool) {
        tracing::debug!("the buffers are not registered, which costs a little speed: {error}");
    }
    let ring = ring.shared();
    let queue = disk.queue(&ring, waker)?;
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

/// Listens for NBD clients.
fn listen(arguments: &Serve, path: &Path) -> anyhow::Result<Vec<Listener>> {
    let beside = [Address::Unix(socket_beside(path))];
    let is_default = arguments.nbd.is_empty() && arguments.vhost_user.is_empty();
    let addresses = if is_default { &beside[..] } else { &arguments.nbd };
    addresses.iter().map(bind).collect()
}

pub(crate) fn bind(address: &Address) -> anyhow::Result<Listener> {
    Listener::bind(address.clone()).with_context(|| format!("cannot listen at {address}"))
}

/// Returns the socket of those who name none: `disk.sock` for `disk.hf`.
fn socket_beside(path: &Path) -> PathBuf {
    path.with_extension("sock")
}

fn export(volume: &Volume) -> Export {
    let geometry = volume.geometry();
    Export {
        name: String::new(),
        description: "a Holdfast volume".to_owned(),
        size: geometry.capacity(),
        read_only: volume.is_read_only(),
        block_size: BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: holdfast_nbd::PAYLOAD_LEN_MAX,
        },
    }
}
