//! Clients that keep a number of requests in flight.

use std::ops::Range;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use holdfast_bio::{Bio, BlockDevice, Ended, Limits};
use holdfast_iov::{IovIter, Memory, Region, VolatileMemory};
use holdfast_units::{to_u64, to_usize};
use rustix::thread::CpuSet;

use crate::BenchError;
use crate::machine::ProcessorTime;
use crate::plan::{Load, Order};

/// What was measured once.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// How long it took.
    pub(crate) seconds: f64,
    /// The processor time of the process and of the kernel for it, in seconds.
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// The latency of each request, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Default for Sample {
    fn default() -> Self {
        let latency = Histogram::new(3).expect("3 digits are allowed");
        Self { seconds: 0.0, user: 0.0, system: 0.0, latency }
    }
}

impl Sample {
    pub(crate) fn requests(&self) -> u64 {
        self.latency.len()
    }

    /// Adds what another found beside it.
    pub(crate) fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("all histograms grow");
    }
}

/// Runs a client until it has done so many requests.
pub(crate) fn once<D: BlockDevice>(
    load: &Load,
    requests: usize,
    open: impl Fn() -> Result<(D, Range<u64>), BenchError>,
) -> Result<(), BenchError> {
    let (device, area) = open()?;
    let mut client = Client::new(device, area, load)?;
    client.left = requests;
    client.run(None).map(drop)
}

/// Runs clients for a time. `open` opens the device of each, in its thread, and says which bytes of it
/// clients use.
pub(crate) fn run<D: BlockDevice>(
    load: &Load,
    time: Duration,
    open: impl Fn() -> Result<(D, Range<u64>), BenchError> + Sync,
) -> Result<Sample, BenchError> {
    let start = Barrier::new(load.clients + 1);
    std::thread::scope(|scope| {
        let (start, open) = (&start, &open);
        let clients: Vec<_> = (0..load.clients)
            .map(|number| {
                scope.spawn(move || {
                    let opened = stay_on(load.processors).and_then(|()| open());
                    let client = opened.and_then(|(device, area)| {
                        Client::new(device, share(&area, number, load.clients), load)
                    });
                    // All begin when the slowest is ready, and nobody waits for one that failed.
                    start.wait();
                    client?.run(Some(Instant::now() + time))
                })
            })
            .collect();
        start.wait();
        let (began, before) = (Instant::now(), ProcessorTime::now());
        let mut all = Sample::default();
        let mut result = Ok(());
        for client in clients {
            match client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                Ok(latency) => all.latency.add(&latency).expect("all histograms grow"),
                Err(error) => result = Err(error),
            }
        }
        result?;
        let used = ProcessorTime::now().since(&before);
        all.seconds = began.elapsed().as_secs_f64();
        (all.user, all.system) = (used.user, used.system);
        Ok(all)
    })
}

/// Keeps this thread on the first so many processors.
fn stay_on(processors: Option<usize>) -> Result<(), BenchError> {
    let Some(count) = processors else { return Ok(()) };
    let allowed = rustix::thread::sched_getaffinity(None)
        .map_err(|error| BenchError::system("ask for processors")(error.into()))?;
    let mut chosen = CpuSet::new();
    let numbers = (0..CpuSet::MAX_CPU).filter(|&number| allowed.is_set(number));
    numbers.take(count).for_each(|number| chosen.set(number));
    rustix::thread::sched_setaffinity(None, &chosen)
        .map_err(|error| BenchError::system("choose processors")(error.into()))
}

/// Returns the part of an area that one of several clients uses.
fn share(area: &Range<u64>, number: usize, clients: usize) -> Range<u64> {
    const ALIGNMENT: u64 = 1 << 20;
    let each = (area.end - area.start) / to_u64(clients) / ALIGNMENT * ALIGNMENT;
    let start = area.start + each * to_u64(number);
    start..start + each
}

/// One client.
struct Client<'l, D> {
    device: D,
    limits: Limits,
    area: Range<u64>,
    load: &'l Load,
    next: u64,
    /// How many requests are still to be submitted.
    left: usize,
    random: fastrand::Rng,
    /// What is not in flight.
    idle: Vec<(u64, Memory)>,
    /// When each request began.
    began: Vec<Instant>,
}

impl<'l, D: BlockDevice> Client<'l, D> {
    fn new(device: D, area: Range<u64>, load: &'l Load) -> Result<Self, BenchError> {
        let (depth, block) = (load.depth, to_usize(load.block));
        let needed = load.block * to_u64(depth);
        if area.end - area.start < needed {
            return Err(BenchError::Small { needed, found: area.end - area.start });
        }
        let region = Region::anonymous(depth * block).map_err(BenchError::system("map memory"))?;
        let mut random = fastrand::Rng::with_seed(area.start);
        let mut bytes = vec![0; block];
        for at in (0..depth * block).step_by(block) {
            random.fill(&mut bytes);
            region.write(at, &bytes).expect("it is inside");
        }
        let memory = Arc::new(VolatileMemory::new(vec![region]));
        let idle = (0..depth).map(|slot| {
            let mut iter = IovIter::new(Arc::clone(&memory));
            iter.push(0, slot * block, block).expect("it is inside");
            (to_u64(slot), Memory::Iov(iter))
        });
        let (idle, began) = (idle.collect(), vec![Instant::now(); depth]);
        let (limits, next) = (device.limits(), area.start);
        let left = usize::MAX;
        Ok(Self { device, limits, area, load, next, left, random, idle, began })
    }

    /// Returns where the next request is. None crosses what no bio may cross.
    fn next_offset(&mut self) -> u64 {
        let block = self.load.block;
        let blocks = (self.area.end - self.area.start) / block;
        loop {
            let offset = match self.load.order {
                Order::Random => self.area.start + self.random.u64(0..blocks) * block,
                Order::Sequential => {
                    let offset = self.next;
                    self.next += block;
                    if self.next + block > self.area.end {
                        self.next = self.area.start;
                    }
                    offset
                }
            };
            if self.limits.to_boundary(offset, block) == block {
                return offset;
            }
        }
    }

    /// Keeps requests in flight until a moment, or until none are left, and returns their latencies, in
    /// nanoseconds.
    fn run(mut self, until: Option<Instant>) -> Result<Histogram<u64>, BenchError> {
        let mut latency = Sample::default().latency;
        let (mut in_flight, mut failed, mut ended) = (0_usize, None, Vec::new());
        loop {
            if failed.is_none() && until.is_none_or(|until| Instant::now() < until) {
                in_flight += self.submit();
            }
            if in_flight == 0 {
                return failed.map_or(Ok(latency), Err);
            }
            self.device.wait();
            self.device.reap(&mut ended);
            if ended.is_empty() {
                // What it waits for is with another client.
                std::thread::yield_now();
            }
            in_flight -= ended.len();
            let now = Instant::now();
            for Ended { bio, result } in ended.drain(..) {
                let (offset, len) = (bio.offset, bio.len);
                let result = result.and_then(|moved| {
                    if moved == len { Ok(()) } else { Err(holdfast_bio::Error::IO) }
                });
                if let Err(error) = result {
                    failed.get_or_insert(BenchError::Request { offset, len, error });
                }
                let took = now.duration_since(self.began[to_usize(bio.user)]).as_nanos();
                latency.record(u64::try_from(took).unwrap_or(u64::MAX)).expect("it grows");
                self.idle.push((bio.user, bio.memory));
            }
        }
    }

    /// Submits all that is idle, and returns how many went.
    fn submit(&mut self) -> usize {
        let before = self.idle.len();
        while self.left > 0
            && let Some((slot, memory)) = self.idle.pop()
        {
            let (op, offset) = (self.load.transfer.op(), self.next_offset());
            let bio = Bio::new(op, offset, self.load.block, memory).with_user(slot);
            self.began[to_usize(slot)] = Instant::now();
            if let Err(bio) = self.device.submit(bio) {
                self.idle.push((bio.user, bio.memory));
                break;
            }
            self.left -= 1;
        }
        before - self.idle.len()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_device::MemoryDevice;

    use super::*;
    use crate::plan::Transfer;

    const LOAD: Load = Load {
        transfer: Transfer::Read,
        order: Order::Sequential,
        block: 64 << 10,
        depth: 3,
        clients: 2,
        processors: Some(1),
    };

    #[test]
    fn every_request_of_every_client_is_counted() {
        let open = || Ok((MemoryDevice::new(8 << 20), 1 << 20..8 << 20));
        let sample = run(&LOAD, Duration::from_millis(20), open).unwrap();
        assert!(sample.requests() >= 6, "{}", sample.requests());
        assert!(sample.seconds >= 0.02 && sample.user + sample.system > 0.0);
    }

    #[test]
    fn a_request_that_fails_is_the_error() {
        let open = || Ok((MemoryDevice::new(4 << 20), 4 << 20..8 << 20));
        let error = run(&LOAD, Duration::from_secs(600), open).unwrap_err();
        assert!(
            matches!(error, BenchError::Request { offset, .. } if offset >= 4 << 20),
            "{error}"
        );
    }

    #[test]
    fn clients_do_not_meet_and_stay_inside() {
        let shares: Vec<_> = (0..3).map(|number| share(&(5 << 20..15 << 20), number, 3)).collect();
        assert_eq!(shares, [5 << 20..8 << 20, 8 << 20..11 << 20, 11 << 20..14 << 20]);
        for order in [Order::Random, Order::Sequential] {
            let load = Load { order, ..LOAD };
            let mut client =
                Client::new(MemoryDevice::new(8 << 20), 1 << 20..2 << 20, &load).unwrap();
            let offsets: Vec<u64> = (0..40).map(|_| client.next_offset()).collect();
            let inside = |&offset: &u64| ((1 << 20)..=(2 << 20) - (64 << 10)).contains(&offset);
            assert!(offsets.iter().all(inside), "{offsets:?}");
        }
    }
}
