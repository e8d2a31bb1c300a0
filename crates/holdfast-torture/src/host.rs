//! A scratch volume, in memory or in a file, and a server for it in this process.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Mismatch, ReadPolicy};
use holdfast_device::{Access, Backing, FileDevice, MemoryDevice};
use holdfast_ring::{Ring, SharedRing, Waker};
use holdfast_socket::{Address, Listener};
use holdfast_vhost_user_blk::{Description, Options, Server, Target};
use holdfast_volume::{CreateOptions, OpenOptions, Queue, Scrub, ScrubReport, Volume};

use crate::TortureError;
use crate::medium::RingMemory;
use crate::outcome::ServerCounts;

/// What a scratch volume is stored on.
#[derive(Clone, Debug)]
pub(crate) enum Medium {
    Memory(MemoryDevice),
    File(Arc<Backing>),
}

impl Medium {
    /// Makes a volume in memory.
    pub(crate) fn memory(options: &CreateOptions) -> Result<Self, TortureError> {
        let mut device = MemoryDevice::new(options.geometry()?.device_len());
        Volume::create(&mut device, options)?;
        Ok(Self::Memory(device))
    }

    /// Makes a volume in a new file.
    pub(crate) fn file(path: &Path, options: &CreateOptions) -> Result<Self, TortureError> {
        let backing = Backing::create(path, options.geometry()?.device_len())?;
        Volume::create(&mut FileDevice::new(&backing, &ring()?).map_err(opening())?, options)?;
        drop(backing);
        Self::open(path)
    }

    /// Opens a file that has a volume.
    pub(crate) fn open(path: &Path) -> Result<Self, TortureError> {
        Ok(Self::File(Arc::new(Backing::open_in_time(path, Access::ReadWrite)?)))
    }
}

/// Returns a small ring.
fn ring() -> Result<SharedRing, TortureError> {
    Ring::new(64).map(Ring::shared).map_err(TortureError::system("set io_uring up"))
}

fn opening() -> impl FnOnce(io::Error) -> TortureError {
    TortureError::system("open a queue of the scratch volume")
}

/// A server in this process.
#[derive(Debug)]
pub(crate) struct Host {
    medium: Medium,
    volume: Arc<Volume>,
    server: Server,
    socket: PathBuf,
}

/// A medium as the queues of the server use it.
struct Disk<D> {
    volume: Arc<Volume>,
    below: D,
    /// Small writes go to the data journal first.
    journaled: bool,
}

impl<D> Disk<D> {
    fn describe(&self) -> Description {
        let geometry = self.volume.geometry();
        Description::new(geometry.capacity(), geometry.sector(), &self.volume.uuid_text())
    }

    fn queue<B: BlockDevice>(&self, device: B, waker: &Arc<Waker>) -> io::Result<Queue<B>> {
        let waker = Arc::clone(waker);
        let queue = Queue::new(&self.volume, device, move || waker.wake())?;
        if self.journaled { queue.with_journal() } else { Ok(queue) }
    }
}

impl Target for Disk<MemoryDevice> {
    type Queue = Queue<RingMemory>;

    fn describe(&self) -> Description {
        self.describe()
    }

    fn queue(&self, ring: &SharedRing, waker: &Arc<Waker>) -> io::Result<Self::Queue> {
        self.queue(RingMemory::new(self.below.clone(), ring, 0)?, waker)
    }
}

impl Target for Disk<Arc<Backing>> {
    type Queue = Queue<FileDevice>;

    fn describe(&self) -> Description {
        self.describe()
    }

    fn queue(&self, ring: &SharedRing, waker: &Arc<Waker>) -> io::Result<Self::Queue> {
        self.queue(FileDevice::new(&self.below, ring)?, waker)
    }
}

impl Host {
    /// Serves the volume of a medium at a socket. A medium that `rots` has no data journal: that would store a
    /// sector once more that has rotted in its place.
    pub(crate) fn start(
        medium: Medium,
        socket: &Path,
        queues: u16,
        read_policy: ReadPolicy,
        cache_bytes: usize,
        rots: bool,
    ) -> Result<Self, TortureError> {
        let journaled = !rots;
        let volume = open(&medium, cache_bytes)?;
        let listener = Listener::bind(Address::Unix(socket.into()))
            .map_err(TortureError::system("listen at a socket"))?;
        let options = Options { queues, read_policy, ..Options::default() };
        let started = match &medium {
            Medium::Memory(device) => {
                let disk = Disk { volume: Arc::clone(&volume), below: device.clone(), journaled };
                Server::start(listener, Arc::new(disk), &options)
            }
            Medium::File(backing) => {
                let (volume, below) = (Arc::clone(&volume), Arc::clone(backing));
                let disk = Disk { volume, below, journaled };
                Server::start(listener, Arc::new(disk), &options)
            }
        };
        let server = started.map_err(TortureError::system("start the server"))?;
        Ok(Self { medium, volume, server, socket: socket.into() })
    }

    /// Returns where the server listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the volume.
    pub(crate) const fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Stops the server, closes the volume, opens it again and reads everything. Returns what the
    /// server has counted, what was found, and how many mismatches were counted before.
    pub(crate) fn finish(self) -> Result<(ServerCounts, ScrubReport, u64), TortureError> {
        let counters = Arc::clone(self.server.counters());
        self.server.stop();
        let counts = counters.queues().fold(ServerCounts::default(), ServerCounts::plus);
        match self.medium {
            Medium::Memory(ref device) => close(&self.volume, || Ok(device.clone()))?,
            Medium::File(ref backing) => {
                let ring = ring()?;
                close(&self.volume, || FileDevice::new(backing, &ring).map_err(opening()))?;
            }
        }
        drop(self.volume);
        let (report, errors) = scrub(&self.medium)?;
        Ok((counts, report, errors))
    }
}

fn open(medium: &Medium, cache_bytes: usize) -> Result<Arc<Volume>, TortureError> {
    let options = OpenOptions { cache_bytes, ..OpenOptions::default() };
    Ok(match medium {
        Medium::Memory(device) => Volume::open(&mut device.clone(), &options)?,
        Medium::File(backing) => {
            let mut device = FileDevice::new(backing, &ring()?).map_err(opening())?;
            Volume::open(&mut device, &options)?
        }
    })
}

fn close<D: BlockDevice>(
    volume: &Arc<Volume>,
    device: impl Fn() -> Result<D, TortureError>,
) -> Result<(), TortureError> {
    let mut queue = Queue::new(volume, device()?, || {}).map_err(opening())?;
    queue.run(Bio::flush()).result?;
    queue.drain();
    drop(queue);
    Ok(volume.close(&mut device()?)?)
}

/// Opens the volume, reads everything and checks everything. Returns what was found, and how many
/// mismatches the volume had counted before.
pub(crate) fn scrub(medium: &Medium) -> Result<(ScrubReport, u64), TortureError> {
    const CACHE: usize = 8 << 20;
    let volume = open(medium, CACHE)?;
    let errors = volume.errors().total();
    let report = match medium {
        Medium::Memory(device) => scrub_by(&volume, device.clone()),
        Medium::File(backing) => {
            let ring = ring()?;
            scrub_by(&volume, FileDevice::new(backing, &ring).map_err(opening())?)
        }
    };
    Ok((report?, errors))
}

fn scrub_by<D: BlockDevice>(volume: &Arc<Volume>, device: D) -> Result<ScrubReport, TortureError> {
    const NAMED: usize = 10_000;
    let mut queue = Queue::new(volume, device, || {}).map_err(opening())?;
    let mut scrub = Scrub::new(&mut queue, NAMED).map_err(opening())?;
    while scrub.step()?.is_some() {}
    Ok(scrub.finish())
}

/// Returns the sectors that a scrub found to be corrupt.
pub(crate) fn corrupt_sectors(report: &ScrubReport) -> impl Iterator<Item = u64> + '_ {
    report.mismatches.iter().map(|&Mismatch { lba, .. }| lba)
}
