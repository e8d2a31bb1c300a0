//! The storage that is measured.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_bio::{BlockDevice, Bounce, ReadPolicy};
use holdfast_device::{Access, Backing, FileDevice};
use holdfast_integrity::GuardKind;
use holdfast_iov::{BUFFER_MAX, Pool};
use holdfast_ring::{Ring, SharedRing};
use holdfast_units::BlockSize;
use holdfast_volume::{CreateOptions, OpenOptions, Queue, Volume};

use crate::BenchError;
use crate::plan::{Load, Mode};

/// A file or block device, of which one part is a volume, and another is used as it is.
#[derive(Debug)]
pub struct Subject {
    backing: Arc<Backing>,
    volume: Arc<Volume>,
    /// The bytes of the device that are used without guards.
    plain: Range<u64>,
    /// The file is removed in the end.
    scratch: Option<PathBuf>,
    writable: bool,
}

/// What parts begin and end at.
const ALIGNMENT: BlockSize = match BlockSize::new(1 << 20) {
    Some(size) => size,
    None => panic!("a power of two"),
};

impl Subject {
    /// The least that can be measured with, in bytes: all requests of the largest load beside each other.
    pub const SIZE_MIN: u64 = 64 << 20;

    /// Makes a file with a volume of `size` bytes and as many bytes beside it. It is removed in the end.
    ///
    /// # Errors
    ///
    /// What hinders it, such as a file that is there.
    pub fn scratch(path: &Path, size: u64) -> Result<Self, BenchError> {
        let options = options(size)?;
        let plain = plain_part(&options)?;
        let backing = Backing::create(path, plain.end)?;
        // From here on it is ours to remove, also after an error.
        let scratch = Scratch(Some(path.to_owned()));
        let mut subject = Self::make(backing, &options, plain)?;
        subject.scratch = scratch.keep();
        Ok(subject)
    }

    /// Makes a volume of `size` bytes on a device, and uses as many bytes behind it. All that the device
    /// has there is lost.
    ///
    /// # Errors
    ///
    /// What hinders it: the device is in use, or too small.
    pub fn device(path: &Path, size: u64) -> Result<Self, BenchError> {
        let options = options(size)?;
        let plain = plain_part(&options)?;
        let backing = Backing::open_in_time(path, Access::ReadWrite)?;
        if backing.bytes() < plain.end {
            return Err(BenchError::Small { needed: plain.end, found: backing.bytes() });
        }
        Self::make(backing, &options, plain)
    }

    fn make(
        backing: Backing,
        options: &CreateOptions,
        plain: Range<u64>,
    ) -> Result<Self, BenchError> {
        let backing = Arc::new(backing);
        let mut device = device(&backing, &ring()?)?;
        Volume::create(&mut device, options)?;
        let volume = Volume::open(&mut device, &OpenOptions::default())?;
        Ok(Self { backing, volume, plain, scratch: None, writable: true })
    }

    /// Opens a volume that is there. It is only read; without guards, the bytes that it is stored as are.
    ///
    /// # Errors
    ///
    /// What hinders it, such as a server that has it open.
    pub fn existing(path: &Path) -> Result<Self, BenchError> {
        let backing = Arc::new(Backing::open_in_time(path, Access::ReadOnly)?);
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let volume = Volume::open(&mut device(&backing, &ring()?)?, &options)?;
        let geometry = volume.geometry();
        let first = ALIGNMENT.align_up(geometry.data_at(0)).unwrap_or(0);
        let plain = first..ALIGNMENT.align_down(geometry.device_len());
        let found = plain.end.saturating_sub(plain.start).min(geometry.capacity());
        if found < Self::SIZE_MIN {
            return Err(BenchError::Small { needed: Self::SIZE_MIN, found });
        }
        Ok(Self { backing, volume, plain, scratch: None, writable: false })
    }

    /// Returns whether it may be written to.
    pub const fn is_writable(&self) -> bool {
        self.writable
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        self.backing.path()
    }

    /// Returns how many bytes are used of the volume, and as many beside it.
    pub fn bytes(&self) -> u64 {
        self.volume.geometry().capacity()
    }

    /// Returns what protects the volume, for people.
    pub fn protection(&self) -> String {
        format!(
            "guard {}, sectors of {} bytes, durability {}",
            self.volume.protection().kind,
            self.volume.geometry().sector().bytes(),
            self.volume.durability()
        )
    }

    /// Opens a queue for this thread, as a load uses it in a mode, and says which bytes clients use.
    pub(crate) fn open(
        &self,
        mode: Mode,
        load: &Load,
    ) -> Result<(Box<dyn BlockDevice>, Range<u64>), BenchError> {
        let ring = ring()?;
        let device = device(&self.backing, &ring)?;
        let policy = match mode {
            Mode::Plain => return Ok((Box::new(device), self.plain.clone())),
            Mode::ZeroCopy => ReadPolicy::Never,
            Mode::Bounce => ReadPolicy::Always,
            Mode::Lazy => ReadPolicy::Lazy,
        };
        let wanted = usize::try_from(load.block).unwrap_or(BUFFER_MAX).saturating_mul(load.depth);
        let pool = Pool::new(wanted.next_multiple_of(BUFFER_MAX) + 2 * BUFFER_MAX)
            .map_err(BenchError::system("map a pool"))?;
        // Without, where the limit on locked memory is low, it works as well.
        let _unregistered = ring.borrow_mut().register(&pool);
        let queue = Queue::new(&self.volume, device, || {}).and_then(Queue::with_journal);
        let queue = queue.map_err(BenchError::system("open a queue"))?;
        let area = 0..ALIGNMENT.align_down(self.volume.geometry().capacity());
        Ok((Box::new(Bounce::new(queue, pool, policy)), area))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        match &self.scratch {
            Some(path) => drop(Scratch(Some(path.clone()))),
            None if self.writable => {
                // Without that it is as after a crash, and whoever opens it next recovers it.
                let closed = ring().and_then(|ring| {
                    self.volume.close(&mut device(&self.backing, &ring)?)?;
                    Ok(())
                });
                drop(closed);
            }
            None => {}
        }
    }
}

/// A file that is removed with this.
struct Scratch(Option<PathBuf>);

impl Scratch {
    fn keep(mut self) -> Option<PathBuf> {
        self.0.take()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Who looks at the directory sees it.
            let _left = std::fs::remove_file(path);
        }
    }
}

fn options(size: u64) -> Result<CreateOptions, BenchError> {
    if size < Subject::SIZE_MIN {
        return Err(BenchError::Small { needed: Subject::SIZE_MIN, found: size });
    }
    Ok(CreateOptions {
        capacity: ALIGNMENT.align_down(size),
        sector: BlockSize::PAGE,
        guard: GuardKind::Crc64,
        application_tag: CreateOptions::APPLICATION_TAG,
    })
}

/// Returns the part behind the volume.
fn plain_part(options: &CreateOptions) -> Result<Range<u64>, BenchError> {
    let start = options.geometry()?.device_len().next_multiple_of(ALIGNMENT.bytes());
    Ok(start..start + options.capacity)
}

fn ring() -> Result<SharedRing, BenchError> {
    const ENTRIES: u32 = 256;
    Ok(Ring::new(ENTRIES).map_err(BenchError::system("set io_uring up"))?.shared())
}

fn device(backing: &Arc<Backing>, ring: &SharedRing) -> Result<FileDevice, BenchError> {
    FileDevice::new(backing, ring).map_err(BenchError::system("open a queue"))
}
