//! `holdfast import` and `holdfast export`

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use holdfast_bio::{Bio, BlockDevice, Ended, Op};
use holdfast_device::FileDevice;
use holdfast_iov::{BUFFER_MAX, BUFFER_MIN, Memory, Pool};
use holdfast_units::{to_u64, to_usize};
use holdfast_volume::{OpenOptions as VolumeOptions, Queue};
use rustix::fs::{OFlags, SeekFrom};

use crate::Outcome;
use crate::backing::{self, OpenVolume};
use crate::cli::{Export, Import};
use crate::progress::Progress;

/// The most bios in flight.
const DEPTH: usize = 8;

/// A volume's queue with several bios in flight.
struct Pipeline {
    queue: Queue<FileDevice>,
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
        if let Err(bio) = self.queue.submit(bio) {
            unreachable!("a volume's queue is never full: {bio:?}");
        }
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
            for Ended { bio, result } in self.ended.drain(..) {
                self.in_flight -= 1;
                result.with_context(|| format!("at byte {} of the volume", bio.offset))?;
                each(&bio)?;
            }
        }
        Ok(())
    }

    /// Makes everything durable.
    fn finish(mut self) -> anyhow::Result<()> {
        self.wait_below(1, &mut ignore)?;
        self.submit(Bio::flush(), &mut ignore)?;
        self.wait_below(1, &mut ignore)
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
    if !arguments.path.exists() {
        let sector = arguments.format.sector;
        let Some(capacity) = sector.align_up(len).filter(|&capacity| capacity > 0) else {
            bail!("{} is empty: there is nothing to import", from.display());
        };
        backing::create(&arguments.path, |_| Ok(arguments.format.options(capacity)))?;
    }
    let open = OpenVolume::open(&arguments.path, &VolumeOptions::default())?;
    let capacity = open.volume.geometry().capacity();
    if len > capacity {
        bail!(
            "{} has {len} bytes, and the volume only {capacity}: make a larger one",
            from.display()
        );
    }
    let mut pipeline = Pipeline::new(&open)?;
    let mut progress = Progress::new("importing", capacity);
    let sector = pipeline.queue.limits().sector;
    let mut position = 0;
    while position < capacity {
        let (data, hole) = next_data(&source, position, len)?.unwrap_or((capacity, capacity));
        // A sector that is data in part is data.
        let data = sector.align_down(data).max(position);
        if data > position {
            let len = pipeline.queue.limits().to_boundary(position, data - position);
            pipeline.submit(Bio::new(Op::Discard, position, len, Memory::None), &mut ignore)?;
            position += len;
        } else {
            let end = sector.align_up(hole).unwrap_or(capacity).min(capacity);
            position += import_chunk(&mut pipeline, &source, position..end, len)?;
        }
        progress.at(position);
    }
    pipeline.finish()?;
    open.close()?;
    Ok(Outcome::Fine)
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
    let (target, holes_are_zeros) = open_target(&arguments.to, arguments.force, capacity)?;
    let mut pipeline = Pipeline::new(&open)?;
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
    target.sync_all().context("cannot make the image durable")?;
    Ok(Outcome::Fine)
}

/// Opens what is written to, and says whether what is not written there is zeros.
fn open_target(to: &Path, force: bool, capacity: u64) -> anyhow::Result<(File, bool)> {
    let is_device = backing::is_block_device(to);
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    if is_device {
        // open(2): fails when the device is in use, by a mounted file system for instance.
        options.custom_flags(OFlags::EXCL.bits().cast_signed());
    } else {
        options.create(true).truncate(true).create_new(!force);
    }
    let target = options.open(to).with_context(|| {
        let hint = if to.exists() && !force { " (--force overwrites it)" } else { "" };
        format!("cannot write {}{hint}", to.display())
    })?;
    if is_device {
        let found = rustix::fs::seek(&target, SeekFrom::End(0))?;
        if found < capacity {
            bail!("{} has {found} bytes, and the disk {capacity}", to.display());
        }
    } else {
        target.set_len(capacity).with_context(|| format!("cannot size {}", to.display()))?;
    }
    Ok((target, !is_device))
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
