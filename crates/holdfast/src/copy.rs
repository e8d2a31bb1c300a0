//! `holdfast import` and `holdfast export`

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use holdfast_bio::{Bio, BlockDevice, Ended, Op};
use holdfast_iov::{BUFFER_MAX, BUFFER_MIN, Memory, Pool};
use holdfast_units::{to_u64, to_usize};
use holdfast_volume::{Durability, OpenOptions as VolumeOptions, Queue};
use rustix::fs::{FlockOperation, OFlags, SeekFrom};

use crate::Outcome;
use crate::backing::{self, OpenVolume};
use crate::cli::{Export, Import};
use crate::progress::Progress;
use crate::store::Device;

/// The most bios in flight.
const DEPTH: usize = 8;

/// A volume's queue with several bios in flight.
struct Pipeline {
    queue: Queue<Device>,
    pool: Pool,
    in_flight: usize,
    ended: Vec<Ended>,
}

impl Pipeline {
    fn new(open: &OpenVolume) -> anyhow::Result<Self> {
        let pool = Pool::new((DEPTH + 1) * BUFFER_MAX)?;
        Ok(Self { queue: open.queue()?, pool, in_flight: 0, ended: Vec::new() })
    }

    /// Submits a bio, after waiting until there is room for it.
    fn submit(
        &mut self,
        bio: Bio,
        each: &mut dyn FnMut(&Bio) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.wait_below(DEPTH, each)?;
        self.in_flight += 1;
        self.queue.start(bio);
        Ok(())
    }

    /// Waits until fewer than `limit` bios are in flight, and gives each that has ended to `each`.
    fn wait_below(
        &mut self,
        limit: usize,
        each: &mut dyn FnMut(&Bio) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while self.in_flight >= limit {
            self.queue.wait();
            self.queue.reap(&mut self.ended);
            let mut outcome = Ok(());
            for Ended { bio, result } in self.ended.drain(..) {
                // Each is counted, also behind one that failed.
                self.in_flight -= 1;
                let one = result
                    .with_context(|| format!("at byte {} of the volume", bio.offset))
                    .and_then(|_| each(&bio));
                outcome = outcome.and(one);
            }
            outcome?;
        }
        Ok(())
    }

    /// Makes everything durable that could be written. Returns the first error.
    fn finish(mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while self.in_flight > 0 {
            let waited = self.wait_below(1, &mut ignore);
            outcome = outcome.and(waited);
        }
        self.submit(Bio::flush(), &mut ignore)?;
        let flushed = self.wait_below(1, &mut ignore);
        outcome.and(flushed)
    }
}

fn ignore(_: &Bio) -> anyhow::Result<()> {
    Ok(())
}

pub(crate) fn import(arguments: &Import) -> anyhow::Result<Outcome> {
    let from = &arguments.from;
    let source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let len = rustix::fs::seek(&source, SeekFrom::End(0))
        .with_context(|| format!("cannot measure {}", from.display()))?;
    if arguments.path.exists() {
        if !arguments.force {
            bail!(
                "{} exists, and what it holds would be replaced (--force does it)",
                arguments.path.display()
            );
        }
    } else {
        let sector = arguments.format.sector;
        let Some(capacity) = sector.align_up(len).filter(|&capacity| capacity > 0) else {
            bail!("{} is empty: there is nothing to import", from.display());
        };
        backing::create(&[&arguments.path], false, |_| Ok(arguments.format.options(capacity)))?;
    }
    // After a crash the import has to be begun anew in any case.
    let options = VolumeOptions { durability: Durability::None, ..VolumeOptions::default() };
    let open = OpenVolume::open(&arguments.path, &options)?;
    let filled = fill(&open, from, &source, len);
    let closed = open.close();
    filled.and(closed)?;
    Ok(Outcome::Fine)
}

/// Copies a source of `len` bytes into a volume, and makes it durable.
fn fill(open: &OpenVolume, from: &Path, source: &File, len: u64) -> anyhow::Result<()> {
    let capacity = open.volume.geometry().capacity();
    if len > capacity {
        bail!(
            "{} has {len} bytes, and the volume only {capacity}: make a larger one",
            from.display()
        );
    }
    let mut pipeline = Pipeline::new(open)?;
    let copied = import_all(&mut pipeline, source, len, capacity);
    let finished = pipeline.finish();
    copied.and(finished)
}

fn import_all(
    pipeline: &mut Pipeline,
    source: &File,
    len: u64,
    capacity: u64,
) -> anyhow::Result<()> {
    let mut progress = Progress::new("importing", capacity);
    let sector = pipeline.queue.limits().sector;
    let mut position = 0;
    while position < capacity {
        let (data, hole) = next_data(source, position, len)?.unwrap_or((capacity, capacity));
        // A sector that is data in part is data.
        let data = sector.align_down(data).max(position);
        if data > position {
            let len = pipeline.queue.limits().to_boundary(position, data - position);
            pipeline.submit(Bio::new(Op::Discard, position, len, Memory::None), &mut ignore)?;
            position += len;
        } else {
            let end = sector.align_up(hole).unwrap_or(capacity).min(capacity);
            position += import_chunk(pipeline, source, position..end, len)?;
        }
        progress.at(position);
    }
    Ok(())
}

/// Submits the write of the first chunk of a range. What lies behind the end of the source is zeros.
fn import_chunk(
    pipeline: &mut Pipeline,
    source: &File,
    range: Range<u64>,
    source_len: u64,
) -> anyhow::Result<u64> {
    let position = range.start;
    let len = pipeline.queue.limits().first_chunk(position, range.end - position, BUFFER_MAX);
    pipeline.wait_below(DEPTH, &mut ignore)?;
    let mut buffer =
        pipeline.pool.take_whole(to_usize(len)).context("there is a buffer for each bio")?;
    let (bytes, rest) = buffer.as_mut_slice()[..to_usize(len)]
        .split_at_mut(to_usize(len.min(source_len - position)));
    source.read_exact_at(bytes, position).context("cannot read the image")?;
    rest.fill(0);
    pipeline.submit(Bio::new(Op::Write, position, len, Memory::Buffer(buffer)), &mut ignore)?;
    Ok(len)
}

/// Returns where the next data of a file begin and end, or `None` when there are none before its
/// end.
fn next_data(source: &File, position: u64, len: u64) -> anyhow::Result<Option<(u64, u64)>> {
    if position >= len {
        return Ok(None);
    }
    let data = match rustix::fs::seek(source, SeekFrom::Data(position)) {
        Ok(found) => found,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A block device, or a file system without holes.
        Err(rustix::io::Errno::INVAL) => return Ok(Some((position, len))),
        Err(errno) => return Err(errno).context("cannot find the data of the image"),
    };
    let hole = rustix::fs::seek(source, SeekFrom::Hole(data))
        .context("cannot find the holes of the image")?;
    Ok(Some((data, hole)))
}

pub(crate) fn export(arguments: &Export) -> anyhow::Result<Outcome> {
    let options = VolumeOptions { read_only: true, ..VolumeOptions::default() };
    let open = OpenVolume::open(&arguments.path, &options)?;
    let capacity = open.volume.geometry().capacity();
    let (target, is_new) = open_target(&arguments.to, arguments.force)?;
    let exported = check_target(&arguments.to, &target, &open).and_then(|is_device| {
        size_target(&arguments.to, &target, is_device, capacity)?;
        export_all(&open, &target, !is_device)
    });
    if exported.is_err()
        && is_new
        && let Err(error) = std::fs::remove_file(&arguments.to)
    {
        tracing::warn!("{} is incomplete, and stays: {error}", arguments.to.display());
    }
    exported?;
    Ok(Outcome::Fine)
}

/// Copies the whole disk to a target, in which what is not written may be zeros.
fn export_all(open: &OpenVolume, target: &File, holes_are_zeros: bool) -> anyhow::Result<()> {
    let capacity = open.volume.geometry().capacity();
    let mut pipeline = Pipeline::new(open)?;
    let mut progress = Progress::new("exporting", capacity);
    let mut store = |bio: &Bio| {
        let bytes = bio.memory.buffer().map_or(&[][..], |buffer| buffer.as_slice());
        target
            .write_all_at(&bytes[..to_usize(bio.len)], bio.offset)
            .context("cannot write the image")
    };
    let mut position = 0;
    while position < capacity {
        let (run, is_data) = next_run(&mut pipeline, position, &mut store)?;
        if is_data || !holes_are_zeros {
            export_run(&mut pipeline, position, run, &mut store)?;
        }
        position += run;
        progress.at(position);
    }
    pipeline.wait_below(1, &mut store)?;
    target.sync_all().context("cannot make the image durable")
}

/// Opens what is written to, as it is, and says whether it was made.
fn open_target(to: &Path, force: bool) -> anyhow::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    let opened = if backing::is_block_device(to) {
        if !force {
            bail!("{} is a block device (--force overwrites it)", to.display());
        }
        // open(2): fails when the device is in use, by a mounted file system for instance.
        options.custom_flags(OFlags::EXCL.bits().cast_signed()).open(to).map(|file| (file, false))
    } else {
        match options.create_new(true).open(to) {
            Err(error) if force && error.kind() == ErrorKind::AlreadyExists => {
                options.create_new(false).open(to).map(|file| (file, false))
            }
            made => made.map(|file| (file, true)),
        }
    };
    opened.with_context(|| {
        let hint = if to.exists() && !force { " (--force overwrites it)" } else { "" };
        format!("cannot write {}{hint}", to.display())
    })
}

/// Refuses a target that is the volume itself or in use, and says whether it is a block device.
fn check_target(to: &Path, target: &File, open: &OpenVolume) -> anyhow::Result<bool> {
    let (found, source) =
        (target.metadata()?, File::from(open.store.named().descriptor()?).metadata()?);
    let is_device = found.file_type().is_block_device();
    if !is_device && !found.is_file() {
        bail!("{} is neither a file nor a block device", to.display());
    }
    let is_same = if is_device {
        source.file_type().is_block_device() && found.rdev() == source.rdev()
    } else {
        (found.dev(), found.ino()) == (source.dev(), source.ino())
    };
    if is_same {
        bail!("{} is the volume itself", to.display());
    }
    match rustix::fs::flock(target, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("{} is in use by another process", to.display())
        }
        locked => locked.with_context(|| format!("cannot lock {}", to.display()))?,
    }
    Ok(is_device)
}

/// Makes a file empty and as large as the disk; a device must be large enough.
fn size_target(to: &Path, target: &File, is_device: bool, capacity: u64) -> anyhow::Result<()> {
    if is_device {
        let found = rustix::fs::seek(target, SeekFrom::End(0))?;
        if found < capacity {
            bail!("{} has {found} bytes, and the disk {capacity}", to.display());
        }
        return Ok(());
    }
    target
        .set_len(0)
        .and_then(|()| target.set_len(capacity))
        .with_context(|| format!("cannot size {}", to.display()))
}

/// Returns how many bytes from `position` on are data, or are not.
fn next_run(
    pipeline: &mut Pipeline,
    position: u64,
    store: &mut dyn FnMut(&Bio) -> anyhow::Result<()>,
) -> anyhow::Result<(u64, bool)> {
    let limits = pipeline.queue.limits();
    let data = pipeline.queue.data_after(position)?.unwrap_or(limits.capacity);
    if data > position {
        return Ok((data - position, false));
    }
    let len = limits.to_boundary(position, limits.capacity - position);
    let buffer = pipeline.pool.take_whole(BUFFER_MIN).context("there is a buffer to ask with")?;
    let mut run = (len, true);
    let map = Bio::new(Op::Map, position, len, Memory::Buffer(buffer));
    let mut take = |bio: &Bio| {
        let Op::Map = bio.op else { return store(bio) };
        let answers = bio.memory.buffer().map_or(&[][..], |buffer| buffer.as_slice());
        let answers = &answers[..to_usize(limits.sector.count(len))];
        let same = answers.iter().take_while(|&&answer| answer == answers[0]).count();
        run = (to_u64(same) * limits.sector.bytes(), answers[0] != 0);
        Ok(())
    };
    pipeline.submit(map, &mut take)?;
    // The answer is needed to go on; reads that were in flight are stored meanwhile.
    pipeline.wait_below(1, &mut take)?;
    Ok(run)
}

fn export_run(
    pipeline: &mut Pipeline,
    position: u64,
    len: u64,
    store: &mut dyn FnMut(&Bio) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let limits = pipeline.queue.limits();
    for (offset, chunk) in limits.chunks(position, len).collect::<Vec<_>>() {
        pipeline.wait_below(DEPTH, store)?;
        let buffer =
            pipeline.pool.take_whole(to_usize(chunk)).context("there is a buffer for each bio")?;
        pipeline.submit(Bio::new(Op::Read, offset, chunk, Memory::Buffer(buffer)), store)?;
    }
    Ok(())
}
