//! The in-flight log: a device is killed at every point of a random run, and another goes on from the
//! memory that it leaves behind. Every request that was taken and not shown as used comes again, in
//! the order in which they were taken, and none of them twice.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use holdfast_virtqueue::{Chain, Driver, Inflight, InflightError, Table, Virtqueue};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{BASE, FREE, Shared, readable};

#[derive(Clone, Copy, Debug)]
enum Step {
    Add,
    DriverPublishes,
    DriverCollects,
    Take,
    Complete(usize),
    Publish,
    /// The device is replaced for good.
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Add),
        3 => Just(Step::DriverPublishes),
        4 => Just(Step::DriverCollects),
        4 => Just(Step::Take),
        4 => any::<usize>().prop_map(Step::Complete),
        2 => Just(Step::Publish),
        1 => Just(Step::Kill),
    ];
    vec(step, 0..200)
}

/// The log as the protocol describes it.
mod log {
    pub(super) const BATCH_AT: usize = 12;

    pub(super) fn in_flight_at(head: u16) -> usize {
        16 + 16 * usize::from(head)
    }

    pub(super) fn next_at(head: u16) -> usize {
        in_flight_at(head) + 6
    }

    pub(super) fn counter_at(head: u16) -> usize {
        in_flight_at(head) + 8
    }
}

struct Run {
    shared: Shared,
    event_index: bool,
    begin: u16,
    driver: Driver,
    device: Virtqueue,
    chain: Chain,
    new: VecDeque<u16>,
    available: VecDeque<u16>,
    /// In flight by the log, in the order of the first time that they were taken.
    logged: Vec<u16>,
    /// Those of them that this device does not have yet.
    again: VecDeque<u16>,
    taken: Vec<u16>,
    ended: Vec<u16>,
}

impl Run {
    fn new(size: u16, begin: u16, event_index: bool) -> Self {
        let shared = Shared::new(size, begin);
        let log = Some(shared.log());
        Self {
            driver: Driver::new(shared.rings(), event_index),
            device: Virtqueue::new(shared.rings(), event_index, begin, log),
            chain: Chain::new(),
            shared,
            event_index,
            begin,
            new: VecDeque::new(),
            available: VecDeque::new(),
            logged: Vec::new(),
            again: VecDeque::new(),
            taken: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add => {
                let pieces = [readable(BASE, 1), readable(BASE, 1)];
                self.new.extend(self.driver.add(&pieces, Table::Direct));
            }
            Step::DriverPublishes => {
                self.driver.publish();
                self.available.append(&mut self.new);
            }
            Step::DriverCollects => {
                self.driver.collect().unwrap();
            }
            Step::Take => self.take(),
            Step::Complete(which) => self.complete(which),
            Step::Publish => self.publish(),
            Step::Kill => self.kill(),
        }
        self.check(&self.shared.copy());
    }

    fn take(&mut self) {
        let before = self.shared.copy();
        let found = self.device.take(&mut self.chain, &self.shared.memory).unwrap();
        let expected = self.again.pop_front().or_else(|| {
            let head = self.available.front().copied()?;
            // The counter was stored, and the request not marked.
            before.log_place().store_u64(log::counter_at(head), u64::MAX, Ordering::Relaxed);
            self.check(&before);
            self.logged.push(head);
            self.available.pop_front()
        });
        assert_eq!(found.map(|taken| taken.head), expected);
        self.taken.extend(expected);
    }

    fn complete(&mut self, which: usize) {
        if self.taken.is_empty() {
            return;
        }
        let head = self.taken.swap_remove(which % self.taken.len());
        let before = self.shared.copy();
        self.device.complete(head, 0);
        self.ended.push(head);
        // The link of the batch was stored, then its beginning, and no used element.
        let (old, new) = (before.log_place(), self.shared.log_place());
        let next = new.load_u16(log::next_at(head), Ordering::Relaxed);
        old.store_u16(log::next_at(head), next, Ordering::Relaxed);
        self.check(&before.copy());
        old.store_u16(log::BATCH_AT, head, Ordering::Relaxed);
        self.check(&before);
    }

    fn publish(&mut self) {
        let before = self.shared.copy();
        self.device.publish();
        let ended = std::mem::take(&mut self.ended);
        self.logged.retain(|head| !ended.contains(head));
        if ended.is_empty() {
            return;
        }
        // The index was stored, and the log says nothing of it, or part of it.
        before.used().store_u16(2, self.driver.used_index(), Ordering::Relaxed);
        self.check(&before.copy());
        for head in ended {
            before.log_place().store_u8(log::in_flight_at(head), 0, Ordering::Relaxed);
            self.check(&before.copy());
        }
    }

    fn kill(&mut self) {
        let log = Some(self.shared.log());
        // What the base is said to be has no meaning.
        let base = self.begin.wrapping_add(12345);
        self.device = Virtqueue::new(self.shared.rings(), self.event_index, base, log);
        self.again = self.logged.iter().copied().collect();
        (self.taken, self.ended) = (Vec::new(), Vec::new());
    }

    /// Checks what another device would take from this memory.
    fn check(&self, left: &Shared) {
        let mut device = Virtqueue::new(left.rings(), self.event_index, 0, Some(left.log()));
        let mut chain = Chain::new();
        let taken = std::iter::from_fn(|| device.take(&mut chain, &left.memory).unwrap());
        let found: Vec<_> = taken.map(|taken| taken.head).collect();
        let expected: Vec<_> = self.logged.iter().chain(&self.available).copied().collect();
        assert_eq!(found, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_killed_device_loses_nothing_and_repeats_nothing_that_was_shown(
        exponent in 1_u32..=5,
        begin in prop_oneof![Just(0), any::<u16>(), 0xffe0..=0xffff_u16],
        event_index in any::<bool>(),
        steps in steps(),
    ) {
        let mut run = Run::new(1 << exponent, begin, event_index);
        for step in steps {
            run.step(step);
        }
    }
}

#[test]
fn a_log_of_another_kind_is_refused() {
    let shared = Shared::new(16, 0);
    let place = shared.log_place();
    place.store_u16(8, 2, Ordering::Relaxed);
    assert_eq!(Inflight::new(place, 16).unwrap_err(), InflightError::Version { found: 2 });
}

#[test]
fn a_log_for_another_size_is_refused() {
    let shared = Shared::new(16, 0);
    drop(Virtqueue::new(shared.rings(), false, 0, Some(shared.log())));
    let found = Inflight::new(shared.log_place(), 8).unwrap_err();
    assert_eq!(found, InflightError::Size { found: 16, size: 8 });
}

#[test]
fn a_log_that_is_too_short_or_misaligned_is_refused() {
    let shared = Shared::new(16, 0);
    let short = InflightError::Short { needed: 16 + 256, found: 271 };
    assert_eq!(Inflight::new(shared.place(FREE, 271), 16).unwrap_err(), short);
    let short = InflightError::Short { needed: 16 + 256, found: 272 };
    assert_eq!(Inflight::new(shared.place(FREE + 4, 272), 16).unwrap_err(), short);
}

proptest! {
    #[test]
    fn no_log_makes_a_device_panic_or_take_anything_twice(
        bytes in vec(any::<u8>(), 16 + 16 * 8),
        used in any::<u16>(),
        available in any::<u16>(),
    ) {
        let shared = Shared::new(8, used);
        for (at, byte) in bytes.iter().enumerate() {
            shared.log_place().store_u8(at, *byte, Ordering::Relaxed);
        }
        shared.log_place().store_u16(8, 1, Ordering::Relaxed);
        shared.log_place().store_u16(10, 8, Ordering::Relaxed);
        shared.available().store_u16(2, available, Ordering::Relaxed);
        let mut device = Virtqueue::new(shared.rings(), true, 0, Some(shared.log()));
        let mut chain = Chain::new();
        let mut heads = Vec::new();
        while let Ok(Some(taken)) = device.take(&mut chain, &shared.memory) {
            assert!(!heads.contains(&taken.head));
            heads.push(taken.head);
        }
        for head in heads {
            device.complete(head, 0);
            device.publish();
        }
    }
}
