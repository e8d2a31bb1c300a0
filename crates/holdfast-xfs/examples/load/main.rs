//! Reads or writes a file of an XFS, on a raw image or in a volume, with so many requests in flight, and
//! prints how many ended and what they cost: for `cargo xtask bench xfs`, which compares it with Linux.
//!
//! `load IMAGE /PATH --op read|write --pattern sequential|random --block BYTES --depth N`: the memory of the
//! requests is volatile, as that of a virtual machine is, and the device needs stable pages. So every byte
//! that is written goes through a bounce buffer, and with the read policy `always` every byte that is read.
//! On a volume guards are computed and verified.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program whose result is a line")]

mod image;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use holdfast_bio::{ReadPolicy, SharedQueue};
use holdfast_iomap::{DirectIo, Direction, Finished, Request};
use holdfast_iov::{IovIter, Memory, Pool, Region, VolatileMemory};
use holdfast_units::{to_u64, to_usize};
use holdfast_volume::Durability;
use holdfast_xfs::{Ino, MountOptions, Xfs, XfsError};

use crate::image::{Image, Opened};

/// What is measured.
#[derive(Debug, Parser)]
struct Arguments {
    /// A raw image, or a volume.
    image: PathBuf,
    /// The file, of which all whole blocks are used.
    path: String,
    /// What requests do.
    #[arg(long, value_enum)]
    op: Op,
    /// Where requests go.
    #[arg(long, value_enum)]
    pattern: Pattern,
    /// Bytes of a request.
    #[arg(long)]
    block: usize,
    /// Requests in flight.
    #[arg(long)]
    depth: usize,
    /// How long.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How reads into volatile memory are done.
    #[arg(long, default_value = "always")]
    read_policy: ReadPolicy,
    /// What of a volume is to survive a crash: full, bitmap or none.
    #[arg(long, default_value = "full")]
    durability: Durability,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    Sequential,
    Random,
}

/// The memory for data that are copied on their way, in bytes.
const POOL: usize = 64 << 20;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let opened = Opened::open(&arguments.image, arguments.durability)?;
    let pool = Pool::new(POOL)?;
    let options = MountOptions { write: true, ..MountOptions::default() };
    let queue = opened.queue(&pool)?;
    let mut xfs = Xfs::mount(queue.clone(), &options)?;
    let inode = xfs.walk(arguments.path.as_bytes(), true)?;
    let file = inode.ino();
    xfs.open(file)?;
    let direct = DirectIo::new(queue, pool, arguments.read_policy);
    let mut load = Load::new(&arguments, file, inode.size(), direct)?;
    let result = load.run(&mut xfs, Duration::from_secs_f64(arguments.seconds));
    drop(load);
    xfs.close(file)?;
    xfs.unmount()?;
    opened.close()?;
    let Measured { seconds, cpu_seconds, mut latencies } = result?;
    latencies.sort_unstable();
    let at = |part: usize| {
        latencies.get(latencies.len().saturating_sub(1) * part / 100).copied().unwrap_or_default()
    };
    let (requests, p50, p99) = (latencies.len(), at(50), at(99));
    println!(
        r#"{{"requests":{requests},"seconds":{seconds:.6},"cpu_seconds":{cpu_seconds:.2},"p50_ns":{p50},"p99_ns":{p99}}}"#
    );
    Ok(())
}

/// What a load came to.
struct Measured {
    seconds: f64,
    /// Of all threads of the process, those that the kernel adds for it included.
    cpu_seconds: f64,
    /// Of each request, in nanoseconds.
    latencies: Vec<u32>,
}

/// Requests for a file that follow each other, in one thread.
struct Load {
    direct: DirectIo<SharedQueue<Image>, Ino, XfsError>,
    /// Those that are not in flight.
    idle: Vec<Request<Ino>>,
    pattern: Pattern,
    /// How many blocks the file has, and their size.
    blocks: u64,
    block: u64,
    /// The block before the next in sequence, or what the next random one is made from.
    state: u64,
}

impl Load {
    fn new(
        arguments: &Arguments,
        file: Ino,
        size: u64,
        direct: DirectIo<SharedQueue<Image>, Ino, XfsError>,
    ) -> Result<Self> {
        let &Arguments { op, pattern, block, depth, .. } = arguments;
        let blocks = size / to_u64(block.max(1));
        ensure!(block > 0 && blocks > 0 && depth > 0, "a request, of at most the file's size");
        let region = Region::anonymous(block * depth)?;
        region.write(0, &vec![0x5a; block * depth])?;
        let memory = Arc::new(VolatileMemory::new(vec![region]));
        let direction = match op {
            Op::Read => Direction::Read,
            Op::Write => Direction::Write,
        };
        let requests = (0..depth).map(|number| {
            let mut iter = IovIter::new(Arc::clone(&memory));
            iter.push(0, number * block, block)?;
            Ok(Request::new(direction, file, 0, to_u64(block), Memory::Iov(iter)))
        });
        let idle = requests.collect::<Result<_>>()?;
        let state = if pattern == Pattern::Random { 0x9e37_79b9_7f4a_7c15 } else { 0 };
        Ok(Self { direct, idle, pattern, blocks, block: to_u64(block), state })
    }

    /// Returns where the next request begins, in bytes.
    fn next_offset(&mut self) -> u64 {
        let number = match self.pattern {
            Pattern::Sequential => {
                self.state += 1;
                self.state - 1
            }
            Pattern::Random => {
                // xorshift64*
                self.state ^= self.state >> 12;
                self.state ^= self.state << 25;
                self.state ^= self.state >> 27;
                self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
            }
        };
        number % self.blocks * self.block
    }

    fn run(&mut self, xfs: &mut Xfs<SharedQueue<Image>>, time: Duration) -> Result<Measured> {
        let (begin, cpu) = (Instant::now(), cpu_seconds()?);
        let end = begin + time;
        let nanoseconds = |instant: Instant| {
            u64::try_from(instant.duration_since(begin).as_nanos()).unwrap_or(u64::MAX)
        };
        let mut latencies = Vec::with_capacity(1 << 20);
        let mut finished: Vec<Finished<Ino, XfsError>> = Vec::new();
        let mut last = begin;
        for request in std::mem::take(&mut self.idle) {
            self.submit(xfs, request, nanoseconds(Instant::now()));
        }
        while self.direct.in_flight() > 0 {
            self.direct.wait();
            self.direct.reap(xfs, &mut finished);
            for Finished { request, result } in finished.drain(..) {
                let moved = to_usize(result?);
                ensure!(to_u64(moved) == self.block, "{moved} bytes at {}", request.offset);
                last = Instant::now();
                let now = nanoseconds(last);
                latencies.push(u32::try_from(now - request.user).unwrap_or(u32::MAX));
                if last < end {
                    self.submit(xfs, request, now);
                }
            }
        }
        let seconds = last.duration_since(begin).as_secs_f64();
        Ok(Measured { seconds, cpu_seconds: cpu_seconds()? - cpu, latencies })
    }

    /// Submits a request, which remembers when.
    fn submit(&mut self, xfs: &mut Xfs<SharedQueue<Image>>, mut request: Request<Ino>, now: u64) {
        request.offset = self.next_offset();
        self.direct.submit(xfs, request.with_user(now));
    }
}

/// Returns how long processors have worked for this process (proc(5)).
fn cpu_seconds() -> Result<f64> {
    /// What proc(5) counts in.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name may have anything in it, parentheses included.
    let (_, rest) = stat.rsplit_once(") ").context("/proc/self/stat has no name")?;
    let ticks = rest.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}
