//! What a guard costs beside the copy that is needed anyway: requests are copied, checksummed, and
//! both, in one pass and in two, hot in cache, and the copies also from memory to memory. Where Debian's `libisal2` is
//! installed, ISA-L's copy with a CRC-16 is measured beside them.
//!
//! The speed of a shared machine changes from moment to moment, with what else runs on the core. So
//! no case is measured to its end before the next one begins: each round takes one short sample of
//! every case, those that are compared one right after the other, in an order that rotates. What is
//! compared is of one round.
//!
//! `-- avx2` and `-- portable` measure what processors with less get, as far as the code is ours: `crc-fast` uses the
//! best instructions of this processor nevertheless.
//!
//! Does nothing unless told `--bench`, as `cargo bench` does and `cargo test --benches` does not.

#![expect(clippy::print_stdout, reason = "the tables are what it is run for")]

use std::env;
use std::ffi::c_void;
use std::fmt;
use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use holdfast_checksum::{GuardKind, Kernels, Level, Stores};

/// The bytes of an interval, and of each request that is cut into such.
const INTERVALS: [(usize, &[usize]); 2] =
    [(512, &[512, 4096, 64 << 10, 1 << 20]), (4096, &[4096, 64 << 10, 1 << 20])];

/// The bytes of requests that are found in no cache: each is another part of so many bytes.
const COLD: [usize; 2] = [64 << 10, 1 << 20];
const COLD_BYTES: usize = 256 << 20;

/// What is done with each request. The first is what the others are compared with.
const WORKS: [Work; 11] = [
    Work::Copy,
    Work::Guard(GuardKind::Crc16),
    Work::Guard(GuardKind::Crc32c),
    Work::Guard(GuardKind::Crc64),
    Work::CopyGuard(GuardKind::Crc16),
    Work::CopyGuard(GuardKind::Crc32c),
    Work::CopyGuard(GuardKind::Crc64),
    Work::IsaL,
    Work::CopyThenGuard(GuardKind::Crc16),
    Work::CopyThenGuard(GuardKind::Crc32c),
    Work::CopyThenGuard(GuardKind::Crc64),
];

const WARM_UPS: usize = 3;

/// A multiple of the number of works: each is then as often first, second and last.
const ROUNDS: usize = 66;

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
    let level = level();
    let kernels = Kernels::at(level).expect("this processor has the level");
    let column = |len, interval, slots| Column::new(Request::new(kernels, len, interval, slots));
    let mut columns: Vec<Column> = INTERVALS
        .iter()
        .flat_map(|&(interval, lens)| lens.iter().map(move |&len| column(len, interval, 1)))
        .chain(COLD.map(|len| column(len, PAGE, COLD_BYTES / len)))
        .collect();
    for round in 0..WARM_UPS {
        rotated(&mut columns, round, |column| column.warm_up(round));
    }
    for round in 0..ROUNDS {
        rotated(&mut columns, round, |column| column.measure(round));
    }

    println!("instructions: {level:?}");
    println!("processor: {}", processor());
    println!("{ROUNDS} rounds after {WARM_UPS} of warm-up, samples of about {SAMPLE:?}");
    for columns in columns.chunk_by(|left, right| left.request.kind() == right.request.kind()) {
        let (interval, is_cold) = columns[0].request.kind();
        let place = if is_cold { "from memory to memory" } else { "in cache" };
        let what = format!("{interval} bytes a guard, {place}");
        println!("\n{what}: GB/s of payload, median [10th-90th percentile]");
        print_table(columns, Column::rate);
        println!("\n{what}: times the rate of memcpy in the same round, median");
        print_table(columns, Column::ratio);
    }
}

/// Returns what the command line asks for, or the best.
fn level() -> Level {
    let asked = env::args().skip(1).find_map(|argument| match argument.as_str() {
        "avx512" => Some(Level::Avx512),
        "avx2" => Some(Level::Avx2),
        "portable" => Some(Level::Portable),
        _ => None,
    });
    asked.unwrap_or_else(Level::best)
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
    /// The same, CRC-16, by ISA-L.
    IsaL,
    /// In two passes, the second over the target.
    CopyThenGuard(GuardKind),
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => write!(f, "memcpy"),
            Self::Guard(kind) => write!(f, "guard {kind}"),
            Self::CopyGuard(kind) => write!(f, "copy+guard {kind}"),
            Self::IsaL => write!(f, "copy+guard ISA-L crc16"),
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
    fn new(request: Request) -> Self {
        let cases = WORKS.map(|work| Case { work, repetitions: 1, rates: Vec::new() });
        Self { request, cases }
    }

    fn warm_up(&mut self, round: usize) {
        self.request.first_line = round;
        let repetitions = WARM_UP_BYTES / self.request.len;
        rotated(&mut self.cases, round, |case| {
            let Some(duration) = self.request.run(case.work, repetitions) else { return };
            let fitting = SAMPLE.as_nanos() * repetitions as u128 / duration.as_nanos().max(1);
            let fitting = usize::try_from(fitting).expect("a request takes some time");
            case.repetitions = case.repetitions.max(fitting);
        });
    }

    fn measure(&mut self, round: usize) {
        self.request.first_line = round;
        rotated(&mut self.cases, round, |case| {
            let Some(duration) = self.request.run(case.work, case.repetitions) else { return };
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
        if self.cases[row].rates.is_empty() {
            return "not installed".to_owned();
        }
        let [low, median, high] = percentiles(self.cases[row].rates.clone(), [10, 50, 90]);
        format!("{median:.1} [{low:>5.1}-{high:>5.1}]")
    }

    fn ratio(&self, row: usize) -> String {
        if self.cases[row].rates.is_empty() {
            return String::new();
        }
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

/// Sources and targets of requests, with the guards of one. Requests take turns with them: where there is one of each,
/// it is in a cache.
///
/// None of the three begins at the same place in a page as another: 4 KiB apart, a load waits for a
/// store that it has nothing to do with. A short request may meet the stack in this way, which is
/// elsewhere in each process: so all three move through the page, from round to round. Targets begin at a cache line.
struct Request {
    source: Vec<u8>,
    target: Vec<u8>,
    guards: Vec<u64>,
    len: usize,
    interval: usize,
    slots: usize,
    /// Which slot is next.
    slot: usize,
    /// Where in a page the source begins, in cache lines, modulo a page.
    first_line: usize,
    kernels: Kernels,
    isa_l: Option<IsaL>,
}

impl Request {
    fn new(kernels: Kernels, len: usize, interval: usize, slots: usize) -> Self {
        let source = (0..=250).cycle().take(slots * len + 3 * PAGE).collect();
        let target = vec![1; slots * len + 3 * PAGE];
        let guards = vec![0; len / interval + 3 * PAGE / 8];
        // What is in no cache is not used soon, or it would be.
        let stores = if slots > 1 { Stores::for_later(len) } else { Stores::Temporal };
        let (kernels, isa_l) = (kernels.storing(stores), isa_l());
        Self {
            source,
            target,
            guards,
            len,
            interval,
            slots,
            slot: 0,
            first_line: 0,
            kernels,
            isa_l,
        }
    }

    /// Returns what requests of one table have in common.
    const fn kind(&self) -> (usize, bool) {
        (self.interval, self.slots > 1)
    }

    /// Returns how long the `work` takes, done so many times. `None` when it cannot be done here.
    fn run(&mut self, work: Work, repetitions: usize) -> Option<Duration> {
        let Self { interval, kernels, isa_l, .. } = *self;
        Some(match work {
            Work::Copy => self.time(repetitions, |source, target, _| copy(source, target)),
            Work::Guard(kind) => self.time(repetitions, |source, _, guards| {
                kernels.generate(kind, interval, black_box(source), guards);
            }),
            Work::CopyGuard(kind) => self.time(repetitions, |source, target, guards| {
                let source = black_box(source).as_ptr();
                // SAFETY: both slices have `len` bytes.
                unsafe { kernels.copy_out_generate(kind, interval, source, target, guards) };
            }),
            Work::IsaL => {
                let run = isa_l?;
                self.time(repetitions, |source, target, guards| {
                    let pieces =
                        source.chunks_exact(interval).zip(target.chunks_exact_mut(interval));
                    for ((source, target), guard) in pieces.zip(guards) {
                        let (from, into) = (source.as_ptr(), target.as_mut_ptr());
                        // SAFETY: both slices have `interval` bytes; ISA-L reads one and writes the other.
                        *guard = unsafe { run(0, into, from, source.len() as u64) }.into();
                    }
                })
            }
            Work::CopyThenGuard(kind) => self.time(repetitions, |source, target, guards| {
                copy(source, target);
                kernels.generate(kind, interval, target, guards);
            }),
        })
    }

    /// Returns how long `repetitions` take after one that brings code, and what can be, into the caches.
    fn time(
        &mut self,
        repetitions: usize,
        mut once: impl FnMut(&[u8], &mut [u8], &mut [u64]),
    ) -> Duration {
        let (source_at, target_at, guards_at) = self.begins();
        let Self { source, target, guards, len, slots, .. } = self;
        let guards = &mut guards[guards_at..][..*len / self.interval];
        let mut start = Instant::now();
        for repetition in 0..=repetitions {
            if repetition == 1 {
                start = Instant::now();
            }
            let at = self.slot * *len;
            once(&source[source_at + at..][..*len], &mut target[target_at + at..][..*len], guards);
            black_box(&mut *guards);
            self.slot = if self.slot + 1 == *slots { 0 } else { self.slot + 1 };
        }
        start.elapsed()
    }

    /// Returns where the sources, the targets and the guards begin in their vectors.
    fn begins(&self) -> (usize, usize, usize) {
        let first = self.first_line * LINE % PAGE;
        (
            self.source.as_ptr().align_offset(PAGE) + first,
            self.target.as_ptr().align_offset(PAGE) + first + PAGE / 2,
            self.guards.as_ptr().align_offset(PAGE) + (first + PAGE / 4 * 3) / 8,
        )
    }
}

fn copy(source: &[u8], target: &mut [u8]) {
    target.copy_from_slice(black_box(source));
    black_box(target);
}

/// `crc16_t10dif_copy`: a seed, a target, a source, and their length.
type IsaL = unsafe extern "C" fn(u16, *mut u8, *const u8, u64) -> u16;

/// Finds ISA-L, if it is installed.
fn isa_l() -> Option<IsaL> {
    // SAFETY: the library has no initializers that ask for anything.
    let library = unsafe { libc::dlopen(c"libisal.so.2".as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        return None;
    }
    // SAFETY: `library` is one, and is never closed.
    let symbol = unsafe { libc::dlsym(library, c"crc16_t10dif_copy".as_ptr()) };
    // SAFETY: ISA-L's crc.h declares the function like this; a null pointer is none.
    unsafe { std::mem::transmute::<*mut c_void, Option<IsaL>>(symbol) }
}
