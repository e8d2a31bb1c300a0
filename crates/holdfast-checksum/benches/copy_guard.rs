//! What a guard costs beside the copy that is needed anyway: requests are copied, checksummed, and
//! both, in one pass and in two, hot in cache.
//!
//! The speed of a shared machine changes from moment to moment, with what else runs on the core. So
//! no case is measured to its end before the next one begins: each round takes one short sample of
//! every case, those that are compared one right after the other, in an order that rotates. What is
//! compared is of one round.
//!
//! Does nothing unless told `--bench`, as `cargo bench` does and `cargo test --benches` does not.

#![expect(clippy::print_stdout, reason = "the tables are what it is run for")]

use std::env;
use std::fmt;
use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use holdfast_checksum::{GuardKind, Level, copy_generate, generate};

/// The bytes of an interval, and of each request that is cut into such.
const INTERVALS: [(usize, &[usize]); 2] =
    [(512, &[512, 4096, 64 << 10, 1 << 20]), (4096, &[4096, 64 << 10, 1 << 20])];

/// What is done with each request. The first is what the others are compared with.
const WORKS: [Work; 10] = [
    Work::Copy,
    Work::Guard(GuardKind::Crc16),
    Work::Guard(GuardKind::Crc32c),
    Work::Guard(GuardKind::Crc64),
    Work::CopyGuard(GuardKind::Crc16),
    Work::CopyGuard(GuardKind::Crc32c),
    Work::CopyGuard(GuardKind::Crc64),
    Work::CopyThenGuard(GuardKind::Crc16),
    Work::CopyThenGuard(GuardKind::Crc32c),
    Work::CopyThenGuard(GuardKind::Crc64),
];

const WARM_UPS: usize = 3;

/// A multiple of the number of works: each is then as often first, second and last.
const ROUNDS: usize = 60;

/// How long a sample takes at the speed of the fastest warm-up.
const SAMPLE: Duration = Duration::from_millis(1);

/// The payload of a sample of a warm-up, which is to tell how many requests fill [`SAMPLE`].
const WARM_UP_BYTES: usize = 8 << 20;

const PAGE: usize = 4096;

const LINE: usize = 64;

fn main() {
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut columns: Vec<Column> = INTERVALS
        .iter()
        .flat_map(|&(interval, lens)| lens.iter().map(move |&len| Column::new(len, interval)))
        .collect();
    for round in 0..WARM_UPS {
        rotated(&mut columns, round, |column| column.warm_up(round));
    }
    for round in 0..ROUNDS {
        rotated(&mut columns, round, |column| column.measure(round));
    }

    println!("instructions: {:?}", Level::best());
    println!("processor: {}", processor());
    println!("{ROUNDS} rounds after {WARM_UPS} of warm-up, samples of about {SAMPLE:?}");
    for columns in columns.chunk_by(|left, right| left.request.interval == right.request.interval) {
        let interval = columns[0].request.interval;
        println!("\n{interval} bytes a guard: GB/s of payload, median [10th-90th percentile]");
        print_table(columns, Column::rate);
        println!("\n{interval} bytes a guard: times the rate of memcpy in the same round, median");
        print_table(columns, Column::ratio);
    }
}

/// Calls `each` for every item, the one at `first` first.
fn rotated<T>(items: &mut [T], first: usize, each: impl FnMut(&mut T)) {
    let (end, start) = items.split_at_mut(first % items.len());
    start.iter_mut().chain(end).for_each(each);
}

fn print_table(columns: &[Column], cell: impl Fn(&Column, usize) -> String) {
    let print_line = |label: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>21}")).collect();
        println!("{label:<24}{cells}");
    };
    print_line("", columns.iter().map(Column::label).collect());
    for (row, work) in WORKS.iter().enumerate() {
        print_line(&work.to_string(), columns.iter().map(|column| cell(column, row)).collect());
    }
}

/// Returns what Linux says of the first processor.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let mut fields = info.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.trim() == name).map_or("unknown", |(_, value)| value.trim())
    };
    format!("{}, family {}, model {}", field("model name"), field("cpu family"), field("model"))
}

/// One thing to do with a request.
#[derive(Clone, Copy)]
enum Work {
    Copy,
    /// Only reads.
    Guard(GuardKind),
    /// In one pass.
    CopyGuard(GuardKind),
    /// In two passes, the second over the target.
    CopyThenGuard(GuardKind),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => write!(f, "memcpy"),
            Self::Guard(kind) => write!(f, "guard {kind}"),
            Self::CopyGuard(kind) => write!(f, "copy+guard {kind}"),
            Self::CopyThenGuard(kind) => write!(f, "memcpy then guard {kind}"),
        }
    }
}

/// Every work on requests of one kind.
struct Column {
    request: Request,
    cases: [Case; WORKS.len()],
}

impl Column {
    fn new(len: usize, interval: usize) -> Self {
        let cases = WORKS.map(|work| Case { work, repetitions: 1, rates: Vec::new() });
        Self { request: Request::new(len, interval), cases }
    }

    fn warm_up(&mut self, round: usize) {
        self.request.first_line = round;
        let repetitions = WARM_UP_BYTES / self.request.len;
        rotated(&mut self.cases, round, |case| {
            let duration = self.request.run(case.work, repetitions);
            let fitting = SAMPLE.as_nanos() * repetitions as u128 / duration.as_nanos().max(1);
            let fitting = usize::try_from(fitting).expect("a request takes some time");
            case.repetitions = case.repetitions.max(fitting);
        });
    }

    fn measure(&mut self, round: usize) {
        self.request.first_line = round;
        rotated(&mut self.cases, round, |case| {
            let duration = self.request.run(case.work, case.repetitions);
            let bytes = self.request.len * case.repetitions;
            case.rates.push(bytes as f64 / duration.as_secs_f64() / 1e9);
        });
    }

    /// Returns the bytes of a request, for people.
    fn label(&self) -> String {
        match self.request.len {
            len if len < 1 << 10 => format!("{len} B"),
            len if len < 1 << 20 => format!("{} KiB", len >> 10),
            len => format!("{} MiB", len >> 20),
        }
    }

    fn rate(&self, row: usize) -> String {
        let [low, median, high] = percentiles(self.cases[row].rates.clone(), [10, 50, 90]);
        format!("{median:.1} [{low:>5.1}-{high:>5.1}]")
    }

    fn ratio(&self, row: usize) -> String {
        let pairs = self.cases[row].rates.iter().zip(&self.cases[0].rates);
        let [median] = percentiles(pairs.map(|(rate, memcpy)| rate / memcpy).collect(), [50]);
        format!("{median:.3}")
    }
}

/// Returns the values nearest to the places `percents` in the order of all.
fn percentiles<const N: usize>(mut values: Vec<f64>, percents: [usize; N]) -> [f64; N] {
    values.sort_by(f64::total_cmp);
    percents.map(|percent| values[((values.len() - 1) * percent + 50) / 100])
}

/// One work on the requests of a column.
struct Case {
    work: Work,
    /// How many requests a sample has.
    repetitions: usize,
    /// In GB/s, one of each round.
    rates: Vec<f64>,
}

/// A source and a target of one request, with its guards.
///
/// None of the three begins at the same place in a page as another: 4 KiB apart, a load waits for a
/// store that it has nothing to do with. A short request may meet the stack in this way, which is
/// elsewhere in each process: so all three move through the page, from round to round.
struct Request {
    source: Vec<u8>,
    target: Vec<u8>,
    guards: Vec<u64>,
    len: usize,
    interval: usize,
    /// Where in a page the source begins, in cache lines, modulo a page.
    first_line: usize,
}

impl Request {
    fn new(len: usize, interval: usize) -> Self {
        let source = (0..=250).cycle().take(len + 3 * PAGE).collect();
        let target = vec![1; len + 3 * PAGE];
        let guards = vec![0; len / interval + 3 * PAGE / 8];
        Self { source, target, guards, len, interval, first_line: 0 }
    }

    /// Returns how long the `work` takes, done so many times.
    fn run(&mut self, work: Work, repetitions: usize) -> Duration {
        let (len, interval) = (self.len, self.interval);
        let (source, target, guards) = self.parts();
        match work {
            Work::Copy => time(repetitions, || copy(source, target)),
            Work::Guard(kind) => time(repetitions, || {
                generate(kind, interval, black_box(source), guards);
                black_box(&mut *guards);
            }),
            Work::CopyGuard(kind) => time(repetitions, || {
                let (source, target) = (black_box(source).as_ptr(), target.as_mut_ptr());
                // SAFETY: both slices have `len` bytes, and overlap neither each other nor the
                // guards.
                unsafe { copy_generate(kind, interval, source, target, len, guards) };
                black_box(&mut *guards);
            }),
            Work::CopyThenGuard(kind) => time(repetitions, || {
                copy(source, target);
                generate(kind, interval, target, guards);
                black_box(&mut *guards);
            }),
        }
    }

    fn parts(&mut self) -> (&[u8], &mut [u8], &mut [u64]) {
        let first = self.first_line * LINE % PAGE;
        let source = self.source.as_ptr().align_offset(PAGE) + first;
        let target = self.target.as_ptr().align_offset(PAGE) + first + PAGE / 2;
        let guards = self.guards.as_ptr().align_offset(PAGE) + (first + PAGE / 4 * 3) / 8;
        (
            &self.source[source..][..self.len],
            &mut self.target[target..][..self.len],
            &mut self.guards[guards..][..self.len / self.interval],
        )
    }
}

fn copy(source: &[u8], target: &mut [u8]) {
    target.copy_from_slice(black_box(source));
    black_box(target);
}

/// Returns how long `repetitions` take after one that brings memory and code into the caches.
fn time(repetitions: usize, mut once: impl FnMut()) -> Duration {
    once();
    let start = Instant::now();
    for _ in 0..repetitions {
        once();
    }
    start.elapsed()
}
