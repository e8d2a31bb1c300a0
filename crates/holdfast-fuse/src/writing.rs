//! Changing files that are there: their data, how long they are, and their times.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_bio::{BlockDevice as _, ReadPolicy};
use holdfast_iomap::{DirectIo, Direction, Error, How, Ioend, Mapper, Mapping, Request};
use holdfast_iov::{BUFFER_MAX, IovIter, Memory, Pool, lend};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_xfs::{Ino, Timestamp, Xfs, XfsError};

use crate::files::{Files, Known, OpenFile};
use crate::queues::Queues;

type Direct = DirectIo<Queues, Ino, XfsError>;

/// What is needed to write data: direct I/O for each thread that does.
pub(crate) struct Writers {
    /// Beside those of the metadata, which are read and written while data are in flight.
    queues: Queues,
    idle: Mutex<Vec<Direct>>,
}

/// What fallocate(2) can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allocation {
    /// Reserve space for what has none.
    Reserve {
        /// The size of the file stays, even where the range ends behind it.
        keep_size: bool,
    },
    /// Give space back.
    Punch,
    /// Make the range zeros, with space.
    Zero {
        /// As for `Reserve`.
        keep_size: bool,
    },
}

impl Allocation {
    /// Returns what the flags of fallocate(2) mean, if it is something that can be done.
    pub(crate) const fn new(mode: i32) -> Option<Self> {
        const KEEP_SIZE: i32 = 0x01;
        const PUNCH_HOLE: i32 = 0x02;
        const ZERO_RANGE: i32 = 0x10;
        let keep_size = mode & KEEP_SIZE != 0;
        match mode & !KEEP_SIZE {
            0 => Some(Self::Reserve { keep_size }),
            PUNCH_HOLE if keep_size => Some(Self::Punch),
            ZERO_RANGE => Some(Self::Zero { keep_size }),
            _ => None,
        }
    }
}

impl fmt::Debug for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writers").field("queues", &self.queues).finish_non_exhaustive()
    }
}

impl Writers {
    /// How much memory each direct I/O has, in bytes: for what must be copied before it is written.
    const POOL: usize = 4 * BUFFER_MAX;

    /// Uses the queues of the file system, [beside](Queues::beside) it.
    pub(crate) const fn new(queues: Queues) -> Self {
        Self { queues, idle: Mutex::new(Vec::new()) }
    }

    /// Returns what the bounds of a write must be multiples of.
    fn unit(&self) -> BlockSize {
        self.queues.limits().granularity
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Direct>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with direct I/O that nobody else uses.
    fn with<R>(&self, run: impl FnOnce(&mut Direct) -> R) -> Result<R, Error<XfsError>> {
        let idle = self.idle().pop();
        let mut direct = match idle {
            Some(direct) => direct,
            None => {
                let pool = Pool::new(Self::POOL).map_err(|error| XfsError::Memory {
                    source: holdfast_bio::Error::from(&error),
                })?;
                DirectIo::new(self.queues.clone(), pool, ReadPolicy::Always)
            }
        };
        let result = run(&mut direct);
        self.idle().push(direct);
        Ok(result)
    }
}

impl Files {
    /// Writes all of some bytes to a file.
    pub(crate) fn write(
        &self,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Error<XfsError>> {
        let writers = self.writers.as_ref().ok_or(XfsError::ReadOnly)?;
        let len = to_u64(data.len());
        let end = offset.checked_add(len).filter(|&end| i64::try_from(end).is_ok());
        let end = end.ok_or(Error::TooFar { offset, len })?;
        self.change(file, |known| {
            let unit = writers.unit();
            let bytes = self.whole_units(known, unit, offset, data)?;
            let first = unit.align_down(offset);
            let mut writing = Writing { files: self, queues: &writers.queues, end };
            writers.with(|direct| {
                lend(&bytes, |memory| run(direct, &mut writing, file.ino, first, memory))
            })?
        })
    }

    /// Does to a range of a file what fallocate(2) can do.
    pub(crate) fn allocate(
        &self,
        file: &OpenFile,
        what: Allocation,
        offset: u64,
        len: u64,
    ) -> Result<(), Error<XfsError>> {
        self.change(file, |_| {
            let mut xfs = self.xfs();
            match what {
                Allocation::Reserve { keep_size } => {
                    xfs.allocate(file.ino, offset, len, keep_size)?;
                }
                Allocation::Punch => xfs.punch(file.ino, offset, len)?,
                Allocation::Zero { keep_size } => xfs.zero(file.ino, offset, len, keep_size)?,
            }
            Ok(())
        })
    }

    /// Makes a file, open or not, as long as this.
    pub(crate) fn truncate(&self, ino: Ino, size: u64) -> Result<(), Error<XfsError>> {
        let file = self.acquire(ino)?;
        let truncated = self.change(&file, |_| Ok(self.xfs().truncate(ino, size)?));
        let released = self.release(&file);
        truncated.and(Ok(released?))
    }

    /// Sets the times of a file that are given.
    pub(crate) fn set_times(
        &self,
        ino: Ino,
        accessed: Option<Timestamp>,
        modified: Option<Timestamp>,
    ) -> Result<(), XfsError> {
        self.xfs().set_times(ino, accessed, modified)
    }

    /// Makes all that was written durable.
    pub(crate) fn sync(&self) -> Result<(), XfsError> {
        if self.writers.is_none() {
            return Ok(());
        }
        self.xfs().sync()
    }

    /// Changes a file while nobody else uses it, and looks at what has become of it.
    fn change(
        &self,
        file: &OpenFile,
        change: impl FnOnce(&Known) -> Result<(), Error<XfsError>>,
    ) -> Result<(), Error<XfsError>> {
        let mut known = file.known_alone();
        let changed = change(&known);
        // Also what failed may have done a part.
        match self.look(file.ino) {
            Ok(now) => {
                *known = now;
                changed
            }
            Err(error) => changed.and_then(|()| Err(error.into())),
        }
    }

    /// Returns the bytes of the units that data at `offset` touch: around the data those of the file.
    fn whole_units<'d>(
        &self,
        known: &Known,
        unit: BlockSize,
        offset: u64,
        data: &'d [u8],
    ) -> Result<Cow<'d, [u8]>, XfsError> {
        let end = offset + to_u64(data.len());
        let first = unit.align_down(offset);
        let last = unit.align_up(end).unwrap_or(end);
        if (first, last) == (offset, end) {
            return Ok(Cow::Borrowed(data));
        }
        let mut bytes = vec![0; to_usize(last - first)];
        let head = to_usize(offset - first);
        let (before, rest) = bytes.split_at_mut(head);
        let (middle, behind) = rest.split_at_mut(data.len());
        middle.copy_from_slice(data);
        for (at, part) in [(first, before), (end, behind)] {
            // Behind the end of the file are zeros.
            self.read(known, at, part.len(), |found| {
                found.map(|found| part[..found.len()].copy_from_slice(found))
            })?;
        }
        Ok(Cow::Owned(bytes))
    }
}

/// Writes memory to a file, all of it.
fn run(
    direct: &mut Direct,
    writing: &mut Writing<'_>,
    ino: Ino,
    offset: u64,
    memory: IovIter,
) -> Result<(), Error<XfsError>> {
    let len = to_u64(memory.count());
    let request = Request::new(Direction::Write, ino, offset, len, Memory::Iov(memory));
    let moved = direct.run(writing, request).result?;
    if moved == len { Ok(()) } else { Err(holdfast_bio::Error::IO.into()) }
}

/// The file system while a write is in flight that ends at a byte. Others use it between its answers.
struct Writing<'f> {
    files: &'f Files,
    /// With what it is in flight.
    queues: &'f Queues,
    end: u64,
}

impl Writing<'_> {
    /// Returns the metadata. Whoever has them may wait for what is in flight here, so that goes on.
    fn xfs(&self) -> MutexGuard<'_, Xfs<Queues>> {
        /// How long nobody looks at what is in flight.
        const PATIENCE: Duration = Duration::from_micros(20);
        loop {
            if let Some(xfs) = self.files.try_xfs() {
                return xfs;
            }
            self.queues.go_on();
            std::thread::sleep(PATIENCE);
        }
    }
}

impl Mapper for Writing<'_> {
    type File = Ino;
    type Error = XfsError;

    fn block(&self, file: Ino) -> BlockSize {
        self.xfs().block(file)
    }

    fn size(&self, file: Ino) -> u64 {
        self.xfs().size(file)
    }

    fn begin(
        &mut self,
        file: Ino,
        offset: u64,
        len: u64,
        how: How,
    ) -> Result<Mapping, Error<XfsError>> {
        self.xfs().begin(file, offset, len, how)
    }

    fn complete(&mut self, ioend: &Ioend<Ino, XfsError>) -> Result<(), Error<XfsError>> {
        // Whole units were written, and the file ends where the data do.
        let size = ioend.size.map(|size| size.min(self.end));
        self.xfs().complete(&Ioend { size, ..ioend.clone() })
    }

    fn commit(&mut self, file: Ino) -> Result<(), Error<XfsError>> {
        self.xfs().commit(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fallocate_can_do_is_told_from_what_it_cannot() {
        let modes = [0x00, 0x01, 0x03, 0x10, 0x11, 0x02, 0x08, 0x20, 0x40];
        let found = modes.map(Allocation::new);
        let reserve = |keep_size| Some(Allocation::Reserve { keep_size });
        let zero = |keep_size| Some(Allocation::Zero { keep_size });
        let expected = [
            reserve(false),
            reserve(true),
            Some(Allocation::Punch),
            zero(false),
            zero(true),
            None,
            None,
            None,
            None,
        ];
        assert_eq!(found, expected);
    }
}
