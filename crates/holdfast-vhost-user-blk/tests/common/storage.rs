//! A volume over memory or a file, on which the tests can look and which they can make wait.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Op};
use holdfast_device::{Backing, FileDevice, MemoryDevice};
use holdfast_iov::Region;
use holdfast_ring::{Channel, Operation, Ring, SharedRing, Waker};
use holdfast_sim::{Faults, FaultyDevice};
use holdfast_vhost_user_blk::{Description, Target};
use holdfast_volume::{CreateOptions, OpenOptions, Queue, Volume};

use super::eventually;

/// What the volume is on.
#[derive(Debug)]
pub(crate) enum Medium {
    /// Memory, through a device that makes mistakes.
    Memory(Mutex<MemoryDevice>, Faults),
    File(Backing),
}

impl Medium {
    pub(crate) fn memory(bytes: u64, faults: Faults) -> Arc<Self> {
        Arc::new(Self::Memory(Mutex::new(MemoryDevice::new(bytes)), faults))
    }

    pub(crate) fn file(path: &Path, bytes: u64) -> Arc<Self> {
        Arc::new(Self::File(Backing::create(path, bytes).unwrap()))
    }

    /// Opens a queue of the medium that makes no mistakes.
    fn plain(&self) -> Box<dyn BlockDevice> {
        match self {
            Self::Memory(device, _) => Box::new(device.lock().unwrap().clone()),
            Self::File(backing) => {
                let ring = Ring::new(64).unwrap().shared();
                Box::new(FileDevice::new(backing, &ring).unwrap())
            }
        }
    }

    pub(crate) fn create(&self, options: &CreateOptions) {
        Volume::create(&mut Boxed(self.plain()), options).unwrap();
    }

    pub(crate) fn open(&self, options: &OpenOptions) -> Arc<Volume> {
        Volume::open(&mut Boxed(self.plain()), options).unwrap()
    }
}

/// What the tests see of a storage's devices, and do to them.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    is_held: AtomicBool,
    is_dead: AtomicBool,
    devices: AtomicU64,
    dead: AtomicU64,
    flushes: AtomicU64,
    held: AtomicU64,
    wakers: Mutex<Vec<Arc<Waker>>>,
}

impl Watch {
    /// Makes the devices keep what is submitted, as if they had died.
    pub(crate) fn hold(&self) {
        self.is_held.store(true, Ordering::SeqCst);
    }

    /// Lets everything go on.
    pub(crate) fn release(&self) {
        self.is_held.store(false, Ordering::SeqCst);
        self.wakers.lock().unwrap().iter().for_each(|waker| waker.wake());
    }

    /// Makes every thread that has a device of this storage end where it is, as if its process had been
    /// killed.
    pub(crate) fn kill(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        self.release();
        let counts = || [&self.dead, &self.devices].map(|count| count.load(Ordering::SeqCst));
        eventually("all threads have ended", || counts()[0] == counts()[1]);
    }

    /// Returns how many bios were kept, ever.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// Returns how many flushes came to the devices.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }
}

/// An open volume, for any number of servers.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) volume: Arc<Volume>,
    pub(crate) medium: Arc<Medium>,
    pub(crate) watch: Arc<Watch>,
}

impl Disk {
    pub(crate) fn open(medium: &Arc<Medium>, options: &OpenOptions) -> Arc<Self> {
        let (volume, medium) = (medium.open(options), Arc::clone(medium));
        Arc::new(Self { volume, medium, watch: Arc::default() })
    }

    /// Flushes and closes the volume, which nobody uses any more.
    pub(crate) fn close(&self) {
        let mut queue = Queue::new(&self.volume, Boxed(self.medium.plain()), || {}).unwrap();
        queue.run(Bio::flush()).result.unwrap();
        drop(queue);
        self.volume.close(&mut Boxed(self.medium.plain())).unwrap();
    }
}

impl Target for Disk {
    type Queue = Queue<Watched>;

    fn describe(&self) -> Description {
        let (volume, geometry) = (&self.volume, self.volume.geometry());
        let told = Description::new(geometry.capacity(), geometry.sector(), &volume.uuid_text());
        Description { read_only: volume.is_read_only(), ..told }
    }

    fn queue(&self, ring: &SharedRing, waker: &Arc<Waker>) -> io::Result<Self::Queue> {
        let waker = Arc::clone(waker);
        Queue::new(&self.volume, self.device(ring)?, move || waker.wake())
    }
}

impl Disk {
    fn device(&self, ring: &SharedRing) -> io::Result<Watched> {
        let device: Box<dyn BlockDevice> = match &*self.medium {
            Medium::Memory(device, faults) => {
                Box::new(FaultyDevice::new(device.lock().unwrap().clone(), faults.clone(), 1))
            }
            Medium::File(backing) => Box::new(FileDevice::new(backing, ring)?),
        };
        let waker = Waker::new()?;
        self.watch.wakers.lock().unwrap().push(Arc::clone(&waker));
        let channel = Channel::open(ring);
        let listening = Operation::Event { event: event(&waker)?, value: Box::new(0) };
        channel.push(0, listening).expect("the ring is new");
        let watch = Arc::clone(&self.watch);
        watch.devices.fetch_add(1, Ordering::SeqCst);
        Ok(Watched { device: Boxed(device), channel, waker, watch, kept: Vec::new() })
    }
}

fn event(waker: &Waker) -> io::Result<Rc<OwnedFd>> {
    waker.event().map(Rc::new)
}

/// A device that says through the ring that it may have something to tell, whatever is below.
pub(crate) struct Watched {
    device: Boxed,
    channel: Channel,
    waker: Arc<Waker>,
    watch: Arc<Watch>,
    kept: Vec<Bio>,
}

impl Watched {
    fn is_held(&self) -> bool {
        self.watch.is_held.load(Ordering::SeqCst)
    }
}

impl BlockDevice for Watched {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        if self.is_held() {
            self.watch.held.fetch_add(1, Ordering::SeqCst);
            self.kept.push(bio);
            return Ok(());
        }
        if bio.op == Op::Flush {
            self.watch.flushes.fetch_add(1, Ordering::SeqCst);
        }
        let submitted = self.device.submit(bio);
        self.waker.wake();
        submitted
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        if self.watch.is_dead.load(Ordering::SeqCst) {
            self.watch.dead.fetch_add(1, Ordering::SeqCst);
            loop {
                thread::park();
            }
        }
        while let Some(completion) = self.channel.pop() {
            completion.result.unwrap();
            self.channel.push(0, completion.operation).expect("there was room for it before");
        }
        if !self.is_held() {
            for bio in std::mem::take(&mut self.kept) {
                self.submit(bio).expect("the device has room for what was kept");
            }
        }
        let before = ended.len();
        self.device.reap(ended);
        if ended.len() > before {
            // A device that makes mistakes may have kept some for later.
            self.waker.wake();
        }
    }

    fn wait(&mut self) {
        self.device.wait();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.device.data_after(offset)
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        self.device.map(offset, len)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.devices.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Any device.
struct Boxed(Box<dyn BlockDevice>);

impl BlockDevice for Boxed {
    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        self.0.submit(bio)
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        self.0.reap(ended);
    }

    fn wait(&mut self) {
        self.0.wait();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.0.data_after(offset)
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        self.0.map(offset, len)
    }
}
