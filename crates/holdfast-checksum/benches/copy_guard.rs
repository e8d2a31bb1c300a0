//! What a guard costs beside the copy that is needed anyway: each request is copied, checksummed,
//! and both in one pass, hot in cache. Prints the rate of payload.

use std::hint::black_box;

use divan::counter::BytesCount;
use divan::{Bencher, Divan};

use holdfast_checksum::{GuardKind, checksum, copy_generate, copy_volatile, generate};

/// The bytes of a request and of an interval in it.
const REQUESTS: [(usize, usize); 7] = [
    (512, 512),
    (4096, 512),
    (4096, 4096),
    (64 << 10, 512),
    (64 << 10, 4096),
    (1 << 20, 512),
    (1 << 20, 4096),
];

/// Requests for what knows no intervals.
const SIZES: [usize; 4] = [512, 4096, 64 << 10, 1 << 20];

const PAGE: usize = 4096;

fn main() {
    // The first use looks for the instructions of the processor.
    black_box(checksum(GuardKind::Crc16, &[0; 512]));
    Divan::from_args().main();
}

/// A source and a target of one request, with its guards.
///
/// None of the three begins at the same place in a page as another: 4 KiB apart, a load waits for a
/// store that it has nothing to do with.
struct Request {
    source: Vec<u8>,
    target: Vec<u8>,
    guards: Vec<u64>,
    len: usize,
}

impl Request {
    fn new(len: usize, interval: usize) -> Self {
        let source = (0..=250).cycle().take(len + 2 * PAGE).collect();
        let target = vec![1; len + 2 * PAGE];
        Self { source, target, guards: vec![0; len / interval + PAGE / 4], len }
    }

    fn parts(&mut self) -> (&[u8], &mut [u8], &mut [u64]) {
        let source = self.source.as_ptr().align_offset(PAGE);
        let target = self.target.as_ptr().align_offset(PAGE) + PAGE / 2;
        let guards = self.guards.as_ptr().align_offset(PAGE) + PAGE / 8 / 4 * 3;
        let count = self.guards.len() - PAGE / 4;
        (
            &self.source[source..][..self.len],
            &mut self.target[target..][..self.len],
            &mut self.guards[guards..][..count],
        )
    }
}

#[divan::bench(args = SIZES, sample_size = 64, max_time = 0.4)]
fn memcpy(bencher: Bencher<'_, '_>, len: usize) {
    let mut request = Request::new(len, len);
    let (source, target, _) = request.parts();
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        target.copy_from_slice(black_box(source));
        black_box(&mut *target);
    });
}

#[divan::bench(args = SIZES, sample_size = 64, max_time = 0.4)]
fn volatile(bencher: Bencher<'_, '_>, len: usize) {
    let mut request = Request::new(len, len);
    let (source, target, _) = request.parts();
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        // SAFETY: both slices have `len` bytes and do not overlap.
        unsafe { copy_volatile(source.as_ptr(), target.as_mut_ptr(), len) };
    });
}

#[divan::bench(args = REQUESTS, consts = [16, 32, 64], sample_size = 64, max_time = 0.4)]
fn guard<const BITS: u32>(bencher: Bencher<'_, '_>, (len, interval): (usize, usize)) {
    let mut request = Request::new(len, interval);
    let (source, _, guards) = request.parts();
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        generate(kind(BITS), interval, black_box(source), guards);
    });
}

#[divan::bench(args = REQUESTS, consts = [16, 32, 64], sample_size = 64, max_time = 0.4)]
fn copy_guard<const BITS: u32>(bencher: Bencher<'_, '_>, (len, interval): (usize, usize)) {
    let mut request = Request::new(len, interval);
    let (source, target, guards) = request.parts();
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        let (source, target) = (source.as_ptr(), target.as_mut_ptr());
        // SAFETY: both slices have `len` bytes, and overlap neither each other nor the guards.
        unsafe { copy_generate(kind(BITS), interval, source, target, len, guards) };
    });
}

fn kind(bits: u32) -> GuardKind {
    GuardKind::ALL.into_iter().find(|kind| kind.bits() == bits).expect("one kind for each width")
}
