//! `holdfast xfs IMAGE put`

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail};
use holdfast_bio::{BlockDevice, ReadPolicy, SharedQueue};
use holdfast_device::Access;
use holdfast_iomap::{DirectIo, Direction, Finished, Request};
use holdfast_iov::{BUFFER_MAX, Buffer, Memory, Pool};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_xfs::{Ino, Kind, MountOptions, XfsError};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::image::{Image, Opened};
use super::{Mounted, find};
use crate::Outcome;
use crate::cli::{Xfs, XfsPut};
use crate::progress::Progress;

/// How many requests are in flight.
const DEPTH: usize = 8;

/// A file that is being written.
struct Put {
    xfs: Mounted,
    direct: DirectIo<SharedQueue<Image>, Ino, XfsError>,
    pool: Pool,
    ino: Ino,
    /// What requests begin and end at.
    unit: BlockSize,
    finished: Vec<Finished<Ino, XfsError>>,
}

pub(super) fn run(arguments: &Xfs, put: &XfsPut) -> anyhow::Result<Outcome> {
    let path = &arguments.image;
    if arguments.no_recovery {
        bail!("--no-recovery is for reading: what is not understood is not written");
    }
    let source =
        File::open(&put.source).with_context(|| format!("cannot open {}", put.source.display()))?;
    let opened = Opened::open(path, Access::ReadWrite)?;
    let options = MountOptions { write: true, ..MountOptions::default() };
    let data = SharedQueue::new(opened.queue()?);
    let mut xfs = Mounted::mount(data.clone(), &options)
        .with_context(|| format!("cannot write to {}", path.display()))?;
    let inode = find(&mut xfs, &put.path, true)?;
    if inode.kind() != Kind::Regular {
        bail!("{} is no regular file", put.path.display());
    }
    let mut written = Put::new(xfs, data, inode.ino())?;
    let done = written.copy(&source, put.offset).with_context(|| put.path.display().to_string());
    // Also after an error all is brought to its place: the file system is whole.
    let ended = written.end().with_context(|| format!("cannot unmount {}", path.display()));
    done.and(ended)?;
    opened.close()?;
    Ok(Outcome::Fine)
}

impl Put {
    fn new(mut xfs: Mounted, data: SharedQueue<Image>, ino: Ino) -> anyhow::Result<Self> {
        let limits = data.limits();
        let unit = limits.granularity.max(limits.sector);
        let pool = Pool::new(2 * DEPTH * BUFFER_MAX)?;
        let direct = DirectIo::new(data, pool.clone(), ReadPolicy::Always);
        xfs.open(ino)?;
        Ok(Self { xfs, direct, pool, ino, unit, finished: Vec::new() })
    }

    fn copy(&mut self, source: &File, offset: Option<u64>) -> anyhow::Result<()> {
        let len = source.metadata()?.len();
        let start = offset.unwrap_or(0);
        let end = start.checked_add(len).context("no file can be so long")?;
        let size = match offset {
            // What was there goes first, so that holes of the source are holes.
            None => {
                self.xfs.truncate(self.ino, 0)?;
                end
            }
            Some(_) => self.xfs.inode(self.ino)?.size().max(end),
        };
        // At once: each write that makes a file longer would wait for the one before.
        self.xfs.truncate(self.ino, size)?;
        let mut progress = Progress::new("writing", len);
        let mut at = 0;
        while let Some(data) = next_data(source, at, len)? {
            at = data;
            // A hole of the source is as good as zeros where something was.
            let is_sparse = offset.is_none();
            let until = if is_sparse { end_of_data(source, at, len)? } else { len };
            // In large pieces, and before their data are on their way.
            self.xfs.allocate(self.ino, start + at, until - at, true)?;
            while at < until {
                at += self.piece(source, at, start, until)?;
                progress.at(at);
            }
        }
        while self.direct.in_flight() > 0 {
            self.reap()?;
        }
        // The last unit may reach behind the end.
        self.xfs.truncate(self.ino, size)?;
        self.xfs.sync()?;
        Ok(())
    }

    /// Writes what the source has from `at` on, and returns how much that was.
    fn piece(&mut self, source: &File, at: u64, start: u64, end: u64) -> anyhow::Result<u64> {
        while self.direct.in_flight() >= DEPTH {
            self.reap()?;
        }
        let target = start + at;
        let first = self.unit.align_down(target);
        let most = first + to_u64(BUFFER_MAX) - target;
        let len = (end - at).min(most);
        let last = self.unit.align_up(target + len).context("no file can be so long")?;
        let mut buffer = self.pool.take_whole(to_usize(last - first));
        while buffer.is_none() {
            self.reap()?;
            buffer = self.pool.take_whole(to_usize(last - first));
        }
        let mut buffer = buffer.context("there is a buffer")?;
        let bytes = &mut buffer.as_mut_slice()[..to_usize(last - first)];
        self.fill_edges(bytes, first, target..target + len)?;
        let inside = to_usize(target - first)..to_usize(target + len - first);
        source.read_exact_at(&mut bytes[inside], at).context("cannot read the source")?;
        self.submit(first, last - first, buffer);
        Ok(len)
    }

    /// Reads what the file has of the first and the last unit, where they are not written as a whole.
    fn fill_edges(
        &mut self,
        bytes: &mut [u8],
        first: u64,
        written: std::ops::Range<u64>,
    ) -> anyhow::Result<()> {
        let (unit, last) = (self.unit, first + to_u64(bytes.len()));
        let edges = [unit.align_down(written.start), unit.align_down(written.end)];
        for edge in edges.into_iter().filter(|&edge| edge < last) {
            let is_whole = written.start <= edge && edge + unit.bytes() <= written.end;
            if is_whole {
                continue;
            }
            // Those who write the unit now must have done so.
            while self.direct.in_flight() > 0 {
                self.reap()?;
            }
            let inode = self.xfs.inode(self.ino)?;
            let target = &mut bytes[to_usize(edge - first)..][..unit.len()];
            target.fill(0);
            self.xfs.read(&inode, edge, target)?;
        }
        Ok(())
    }

    fn submit(&mut self, offset: u64, len: u64, buffer: Buffer) {
        let memory = Memory::Buffer(buffer);
        let request = Request::new(Direction::Write, self.ino, offset, len, memory);
        self.direct.submit(&mut self.xfs, request);
    }

    /// Waits for requests to end.
    fn reap(&mut self) -> anyhow::Result<()> {
        self.direct.wait();
        self.direct.reap(&mut self.xfs, &mut self.finished);
        if self.finished.is_empty() {
            std::thread::yield_now();
        }
        for finished in self.finished.drain(..) {
            finished.result?;
        }
        Ok(())
    }

    fn end(mut self) -> anyhow::Result<()> {
        // After an error some may still be in flight, and whether they fail is of no interest.
        while self.direct.in_flight() > 0 {
            let _failed = self.reap();
        }
        self.xfs.close(self.ino)?;
        Ok(self.xfs.unmount()?)
    }
}

/// Returns where the next data of a file are, from a byte on.
fn next_data(source: &File, from: u64, len: u64) -> io::Result<Option<u64>> {
    if from >= len {
        return Ok(None);
    }
    match seek(source, SeekFrom::Data(from)) {
        Ok(data) => Ok(Some(data).filter(|&data| data < len)),
        Err(Errno::NXIO) => Ok(None),
        // What cannot tell has data everywhere.
        Err(Errno::INVAL) => Ok(Some(from)),
        Err(error) => Err(error.into()),
    }
}

/// Returns where the data end that a file has at a byte.
fn end_of_data(source: &File, from: u64, len: u64) -> io::Result<u64> {
    match seek(source, SeekFrom::Hole(from)) {
        Ok(hole) => Ok(hole.min(len)),
        Err(Errno::INVAL) => Ok(len),
        Err(error) => Err(error.into()),
    }
}
