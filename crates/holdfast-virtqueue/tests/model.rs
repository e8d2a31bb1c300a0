//! Both sides of a queue against lists: requests arrive whole, once and in order, end in the order in
//! which they were given back, and nobody sleeps while there is something to do.

use std::collections::VecDeque;

use holdfast_virtqueue::{Chain, Descriptor, Driver, Full, Piece, Table, Taken, Used, Virtqueue};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{BASE, FREE, Shared, readable, writable};

/// What one side does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver adds a request: so many pieces that are read, and that are written, so many of them
    /// in the queue itself, if not all.
    Add(usize, usize, Option<usize>),
    DriverPublishes,
    DriverCollects,
    DriverDisables,
    DriverSleeps,
    DeviceTakes,
    /// The device gives one of those back that it has.
    DeviceCompletes(usize),
    DevicePublishes,
    DeviceDisables,
    DeviceSleeps,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..4, 0_usize..4, prop::option::of(0_usize..4))
            .prop_map(|(read, written, direct)| Step::Add(read.max(1), written, direct)),
        2 => Just(Step::DriverPublishes),
        4 => Just(Step::DriverCollects),
        1 => Just(Step::DriverDisables),
        2 => Just(Step::DriverSleeps),
        4 => Just(Step::DeviceTakes),
        4 => any::<usize>().prop_map(Step::DeviceCompletes),
        2 => Just(Step::DevicePublishes),
        1 => Just(Step::DeviceDisables),
        2 => Just(Step::DeviceSleeps),
    ];
    vec(step, 0..600)
}

/// A request as the model knows it.
#[derive(Clone, Debug)]
struct Known {
    head: u16,
    pieces: Vec<Piece>,
    descriptors: u16,
}

impl Known {
    /// What the device will say that it has written.
    fn written(&self) -> u32 {
        self.pieces.iter().filter(|piece| piece.is_writable).map(|piece| piece.len / 2).sum()
    }
}

struct Model {
    shared: Shared,
    driver: Driver,
    device: Virtqueue,
    chain: Chain,
    driver_sleeps: bool,
    device_sleeps: bool,
    added: u64,
    free: u16,
    /// Added and not published.
    new: VecDeque<Known>,
    /// Published and not taken.
    available: VecDeque<Known>,
    taken: Vec<Known>,
    /// Given back and not published.
    ended: VecDeque<Known>,
    /// Published and not collected.
    used: VecDeque<Known>,
}

impl Model {
    fn new(size: u16, begin: u16, event_index: bool) -> Self {
        let shared = Shared::new(size, begin);
        Self {
            driver: Driver::new(shared.rings(), event_index),
            device: Virtqueue::new(shared.rings(), event_index, begin, None),
            chain: Chain::new(),
            shared,
            driver_sleeps: false,
            device_sleeps: false,
            added: 0,
            free: size,
            new: VecDeque::new(),
            available: VecDeque::new(),
            taken: Vec::new(),
            ended: VecDeque::new(),
            used: VecDeque::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(read, written, direct) => self.add(read, written, direct),
            Step::DriverPublishes => self.driver_publishes(),
            Step::DriverCollects if !self.driver_sleeps => drop(self.driver_collects()),
            Step::DriverDisables if !self.driver_sleeps => self.driver.disable_interrupts(),
            Step::DriverSleeps if !self.driver_sleeps => {
                let has_some = self.driver.enable_interrupts();
                assert_eq!(has_some, !self.used.is_empty());
                self.driver_sleeps = !has_some;
            }
            Step::DeviceTakes if !self.device_sleeps => drop(self.device_takes()),
            Step::DeviceCompletes(which) => self.device_completes(which),
            Step::DevicePublishes => self.device_publishes(),
            Step::DeviceDisables if !self.device_sleeps => self.device.disable_kicks(),
            Step::DeviceSleeps if !self.device_sleeps => {
                let has_some = self.device.enable_kicks();
                assert_eq!(has_some, !self.available.is_empty());
                self.device_sleeps = !has_some;
            }
            // Who sleeps does nothing.
            _ => {}
        }
        assert_eq!(self.driver.free(), self.free);
        assert_eq!(usize::from(self.device.in_flight()), self.taken.len());
    }

    fn add(&mut self, read: usize, written: usize, direct: Option<usize>) {
        let mut address = BASE + 0x9000 + self.added * 16 % 0x1000;
        let mut pieces = Vec::new();
        for len in 0..u32::try_from(read + written).unwrap() {
            let piece = if pieces.len() < read { readable } else { writable };
            pieces.push(piece(address, len));
            address += u64::from(len);
        }
        // As many tables as there may be requests that were not taken; half are not aligned to 8.
        let at = FREE + usize::try_from(self.added % 256).unwrap() * 132;
        let place = self.shared.place(at, 16 * pieces.len());
        let address = BASE + u64::try_from(at).unwrap();
        let (table, needed) = match direct {
            Some(direct) if direct < pieces.len() => {
                (Table::Indirect { direct, address, place: &place }, direct + 1)
            }
            _ => (Table::Direct, pieces.len()),
        };
        let added = self.driver.add(&pieces, table);
        if needed > usize::from(self.free) {
            assert_eq!(added, Err(Full { needed, free: self.free }));
        } else {
            let descriptors = u16::try_from(needed).unwrap();
            self.free -= descriptors;
            self.added += 1;
            self.new.push_back(Known { head: added.unwrap(), pieces, descriptors });
        }
    }

    fn driver_publishes(&mut self) {
        let is_asked = self.driver.publish();
        let has_new = !self.new.is_empty();
        self.available.append(&mut self.new);
        if is_asked {
            self.device_sleeps = false;
        }
        assert!(has_new || !is_asked, "nobody is told of nothing");
        assert!(!self.device_sleeps || self.available.is_empty(), "the device sleeps on");
    }

    fn driver_collects(&mut self) -> bool {
        let found = self.driver.collect().unwrap();
        let known = self.used.pop_front();
        let expected = known.as_ref().map(|known| (known.head, known.written()));
        assert_eq!(found.map(|Used { head, written }| (head, written)), expected);
        self.free += known.map_or(0, |known| known.descriptors);
        found.is_some()
    }

    fn device_takes(&mut self) -> bool {
        let taken = self.device.take(&mut self.chain, &self.shared.memory).unwrap();
        let Some(known) = self.available.pop_front() else {
            assert_eq!(taken, None);
            return false;
        };
        assert_eq!(taken, Some(Taken { head: known.head, bad: None }));
        let of = |is_writable: bool| -> Vec<_> {
            let pieces = known.pieces.iter().filter(|piece| piece.is_writable == is_writable);
            pieces.map(|&Piece { address, len, .. }| Descriptor { address, len }).collect()
        };
        assert_eq!(self.chain.readable(), of(false));
        assert_eq!(self.chain.writable(), of(true));
        self.taken.push(known);
        true
    }

    fn device_completes(&mut self, which: usize) {
        if self.taken.is_empty() {
            return;
        }
        let known = self.taken.swap_remove(which % self.taken.len());
        self.device.complete(known.head, known.written());
        self.ended.push_back(known);
    }

    fn device_publishes(&mut self) {
        let is_asked = self.device.publish();
        let has_new = !self.ended.is_empty();
        self.used.append(&mut self.ended);
        if is_asked {
            self.driver_sleeps = false;
        }
        assert!(has_new || !is_asked, "nobody is told of nothing");
        assert!(!self.driver_sleeps || self.used.is_empty(), "the driver sleeps on");
    }

    /// Lets everything end.
    fn finish(&mut self) {
        self.driver_publishes();
        (self.driver_sleeps, self.device_sleeps) = (false, false);
        while self.device_takes() {}
        while !self.taken.is_empty() {
            self.device_completes(0);
        }
        self.device_publishes();
        while self.driver_collects() {}
        assert_eq!((self.driver.in_flight(), self.driver.free()), (0, self.shared.size));
        assert_eq!(self.driver.used_index(), self.driver.next_available());
        assert_eq!(self.device.next_available(), self.driver.next_available());
    }
}

/// Running numbers of which many are about to wrap around.
fn begins() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), any::<u16>(), 0xff00..=0xffff_u16, 0x7f80..=0x8080_u16]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_agree_with_the_model(
        exponent in 0_u32..=8,
        begin in begins(),
        event_index in any::<bool>(),
        steps in steps(),
    ) {
        let mut model = Model::new(1 << exponent, begin, event_index);
        for step in steps {
            model.step(step);
        }
        model.finish();
    }
}

#[test]
fn running_numbers_go_around_many_times() {
    for event_index in [false, true] {
        let mut model = Model::new(4, 0xfff0, event_index);
        for number in 0..100_000 {
            model.step(Step::Add(1, number % 2, None));
            model.step(Step::DriverPublishes);
            model.step(Step::DeviceTakes);
            model.step(Step::DeviceSleeps);
            model.step(Step::DeviceCompletes(0));
            model.step(Step::DevicePublishes);
            model.step(Step::DriverCollects);
            model.step(Step::DriverSleeps);
        }
        model.finish();
        assert_eq!(model.added, 100_000);
    }
}
