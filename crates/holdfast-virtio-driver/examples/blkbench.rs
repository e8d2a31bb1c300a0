//! Measures vhost-user-blk servers side by side: random requests, aligned to their size, over the
//! whole disk. The targets take turns within each round, so that what else the machine does meets
//! them all. The client does not touch the data.
//!
//! ```sh
//! cargo run --release -p holdfast-virtio-driver --example blkbench -- \
//!     holdfast=/run/a.sock qemu=/run/b.sock --block 4k,64k --op read,write --depth 1,16
//! ```

#![expect(clippy::print_stdout, reason = "its output is a table")]

use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use holdfast_virtio_driver::{BlkQueue, Client, Options, Request, Segment, Shape, Status, Token};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// How long a request may take before the server is taken for dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures vhost-user-blk servers side by side.
#[derive(Debug, Parser)]
struct Arguments {
    /// The servers, each `NAME=SOCKET`. Ratios are to the last.
    #[arg(required = true)]
    targets: Vec<Target>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds before each measurement that do not count.
    #[arg(long, default_value_t = 0.2)]
    warm_up: f64,
    /// How many times each is measured; medians are printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes of a request.
    #[arg(long, value_delimiter = ',', default_value = "4k,64k,1M", value_parser = bytes)]
    block: Vec<u64>,
    /// What requests do.
    #[arg(long, value_delimiter = ',', default_value = "read,write")]
    op: Vec<Op>,
    /// Requests at once, in each queue.
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    depth: Vec<u16>,
    /// Queues, each driven by a thread.
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// Descriptors of each queue.
    #[arg(long, default_value_t = 128)]
    queue_size: u16,
    /// Bytes of the disk that are used, from its beginning; all without this.
    #[arg(long, value_parser = bytes)]
    span: Option<u64>,
    /// To look for ended requests all the time, and not to sleep.
    #[arg(long)]
    poll: bool,
    /// To print each result as a line of JSON, and no table.
    #[arg(long)]
    json: bool,
    /// Not to ask for event indexes.
    #[arg(long)]
    no_event_index: bool,
    /// Not to put descriptors into tables of their own.
    #[arg(long)]
    no_indirect: bool,
}

/// A server.
#[derive(Clone, Debug)]
struct Target {
    name: String,
    socket: PathBuf,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, socket) = text.split_once('=').context("it must be NAME=SOCKET")?;
        Ok(Self { name: name.to_owned(), socket: socket.into() })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Op {
    Read,
    Write,
}

fn bytes(text: &str) -> Result<u64, parse_size::Error> {
    parse_size::Config::new().with_binary().parse_size(text)
}

/// What is measured at a time.
#[derive(Clone, Copy, Debug)]
struct Load {
    op: Op,
    block: u32,
    depth: u16,
    /// The blocks of the disk that are used.
    blocks: u64,
    polls: bool,
    warm_up: Duration,
    measured: Duration,
}

/// The result of one measurement.
#[derive(Clone, Copy, Debug)]
struct Sample {
    requests: f64,
    requests_per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

/// A server, and the memory for its requests: one buffer for each request of each queue.
#[derive(Debug)]
struct Connected {
    name: String,
    client: Client,
    buffers: Vec<u64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut targets = arguments
        .targets
        .iter()
        .map(|target| {
            connect(target, &arguments).with_context(|| format!("cannot use {}", target.name))
        })
        .collect::<Result<Vec<_>>>()?;
    if !arguments.json {
        println!("| op | block | depth | target | MB/s | IOPS | p50 us | p99 us | ratio |");
        println!("| --- | --: | --: | --- | --: | --: | --: | --: | --: |");
    }
    for &op in &arguments.op {
        for &block in &arguments.block {
            for &depth in &arguments.depth {
                let rows = measure(&mut targets, &arguments, op, block, depth)?;
                if arguments.json {
                    print_json(&targets, &rows);
                } else {
                    print(&targets, &rows, op, block, depth);
                }
            }
        }
    }
    Ok(())
}

fn connect(target: &Target, arguments: &Arguments) -> Result<Connected> {
    let block = arguments.block.iter().copied().max().context("no block size")?;
    let depth = arguments.depth.iter().copied().max().context("no depth")?;
    ensure!(block.is_multiple_of(512) && block > 0, "blocks are of whole sectors");
    let count = u64::from(depth) * u64::from(arguments.queues);
    let options = Options {
        queues: arguments.queues,
        queue_size: arguments.queue_size,
        memory_bytes: block * (count + 1),
        event_index: !arguments.no_event_index,
        indirect: !arguments.no_indirect,
        ..Options::default()
    };
    let client = Client::connect(&target.socket, &options)?;
    let descriptors = if client.has_feature(VIRTIO_RING_F_INDIRECT_DESC) { 1 } else { 3 };
    let fit = arguments.queue_size / descriptors;
    ensure!(depth <= fit, "{depth} requests at once, of which {fit} fit into a queue");
    let memory = client.memory();
    let buffers = (0..count).map(|_| memory.allocate(block, 4096)).collect::<Result<_, _>>()?;
    Ok(Connected { name: target.name.clone(), client, buffers })
}

/// Measures all targets, round by round. Returns the samples of each.
fn measure(
    targets: &mut [Connected],
    arguments: &Arguments,
    op: Op,
    block: u64,
    depth: u16,
) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); targets.len()];
    for _ in 0..arguments.rounds {
        for (target, samples) in targets.iter_mut().zip(&mut samples) {
            let capacity = target.client.config().capacity_bytes();
            let span = arguments.span.unwrap_or(capacity).min(capacity);
            let load = Load {
                op,
                block: u32::try_from(block)?,
                depth,
                blocks: span / block,
                polls: arguments.poll,
                warm_up: Duration::from_secs_f64(arguments.warm_up),
                measured: Duration::from_secs_f64(arguments.seconds),
            };
            ensure!(load.blocks > 0, "{} is smaller than a block", target.name);
            let sample = target.run(load).with_context(|| target.name.clone());
            samples.push(sample?);
        }
    }
    Ok(samples)
}

impl Connected {
    /// Loads all queues at once.
    fn run(&mut self, load: Load) -> Result<Sample> {
        let per_queue = self.buffers.len() / usize::from(self.client.queues());
        let queues: Vec<_> =
            (0..self.client.queues()).map(|index| self.client.take_queue(index)).collect();
        let mut latencies: Vec<u32> = Vec::new();
        let ran = thread::scope(|scope| {
            let threads: Vec<_> = queues
                .into_iter()
                .zip(self.buffers.chunks(per_queue))
                .map(|(mut queue, buffers)| {
                    scope.spawn(move || {
                        let ran = drive(&mut queue, buffers, load);
                        (queue, ran)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        for (queue, ran) in ran {
            self.client.put_queue(queue);
            latencies.extend(ran?);
        }
        ensure!(!latencies.is_empty(), "no request has ended");
        latencies.sort_unstable();
        let at = |part: usize| f64::from(latencies[(latencies.len() - 1) * part / 100]) / 1e3;
        let count = f64::from(u32::try_from(latencies.len())?);
        Ok(Sample {
            requests: count,
            requests_per_second: count / load.measured.as_secs_f64(),
            p50_us: at(50),
            p99_us: at(99),
        })
    }
}

/// Keeps `load.depth` requests in flight. Returns the latencies of those that ended in the measured
/// time, in nanoseconds.
fn drive(queue: &mut BlkQueue, buffers: &[u64], load: Load) -> Result<Vec<u32>> {
    let mut random = Random::new(u64::from(queue.index()));
    let begin = Instant::now() + load.warm_up;
    let end = begin + load.measured;
    let mut latencies = Vec::with_capacity(1 << 20);
    // Who has which buffer since when.
    let mut running: Vec<(Token, u64, Instant)> = Vec::with_capacity(usize::from(load.depth));
    for &buffer in &buffers[..usize::from(load.depth)] {
        let token = submit(queue, buffer, random.below(load.blocks), load)?;
        running.push((token, buffer, Instant::now()));
    }
    queue.kick()?;
    while !running.is_empty() {
        while let Some(completion) = queue.completed()? {
            let now = Instant::now();
            let index = running.iter().position(|(token, ..)| *token == completion.token);
            let (_, buffer, since) = running.swap_remove(index.context("an unknown token")?);
            if completion.status != Status::Ok {
                bail!("a request ended with {:?}", completion.status);
            }
            if now >= begin && now < end {
                let latency = now.duration_since(since).as_nanos();
                latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
            }
            if now < end {
                let token = submit(queue, buffer, random.below(load.blocks), load)?;
                running.push((token, buffer, now));
            }
        }
        queue.kick()?;
        if !load.polls && !running.is_empty() && !queue.wait(PATIENCE)? {
            bail!("no request has ended for {} s", PATIENCE.as_secs());
        }
    }
    Ok(latencies)
}

fn submit(queue: &mut BlkQueue, buffer: u64, block: u64, load: Load) -> Result<Token> {
    let segment = [Segment { address: buffer, len: load.block }];
    let sector = block * u64::from(load.block / 512);
    let request = match load.op {
        Op::Read => Request::Read { sector, target: &segment },
        Op::Write => Request::Write { sector, source: &segment },
    };
    Ok(queue.submit(&request, Shape::default())?)
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<_> = samples.iter().map(of).collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

fn print(targets: &[Connected], samples: &[Vec<Sample>], op: Op, block: u64, depth: u16) {
    let rates: Vec<_> =
        samples.iter().map(|samples| median(samples, |one| one.requests_per_second)).collect();
    let last = rates.last().copied().unwrap_or(f64::NAN);
    let op = match op {
        Op::Read => "read",
        Op::Write => "write",
    };
    let size = match block {
        block if block.is_multiple_of(1 << 20) => format!("{} MiB", block >> 20),
        block if block.is_multiple_of(1 << 10) => format!("{} KiB", block >> 10),
        block => format!("{block} B"),
    };
    for ((target, samples), rate) in targets.iter().zip(samples).zip(rates) {
        let megabytes = rate * f64::from(u32::try_from(block).unwrap_or(u32::MAX)) / 1e6;
        println!(
            "| {op} | {size} | {depth} | {} | {megabytes:.1} | {rate:.0} | {:.1} | {:.1} | {:.2} |",
            target.name,
            median(samples, |one| one.p50_us),
            median(samples, |one| one.p99_us),
            rate / last,
        );
    }
}

fn print_json(targets: &[Connected], samples: &[Vec<Sample>]) {
    for (target, samples) in targets.iter().zip(samples) {
        let of = |of: fn(&Sample) -> f64| median(samples, of);
        let result = serde_json::json!({
            "target": target.name,
            "requests": of(|one| one.requests),
            "requests_per_second": of(|one| one.requests_per_second),
            "p50_us": of(|one| one.p50_us),
            "p99_us": of(|one| one.p99_us),
        });
        println!("{result}");
    }
}

/// Numbers that look random: xorshift64*.
struct Random(u64);

impl Random {
    const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number less than `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}
