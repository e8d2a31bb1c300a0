//! The dirty log: every page of a guest that the server writes to is marked while the guest is migrated.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::AsFd;

use holdfast_iov::Region;
use holdfast_units::to_usize;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::common::{
    Answer, LOG_ALL, MIB, Raw, RawQueue, Rig, Setup, Shared, addresses, eventually, message,
    pattern, words,
};

const PAGE: u64 = 4096;
/// What the front end says is the guest address of the used ring.
const USED: u64 = Shared::GUEST + Shared::USED;

/// A front end that logs, with queue 0 running.
struct Migration {
    _rig: Rig,
    raw: Raw,
    shared: Shared,
    log: Region,
}

impl Migration {
    fn begin(log_bytes: u64) -> Self {
        Self::begin_with(log_bytes, 64)
    }

    /// Begins to run, and then to log, as QEMU does.
    fn begin_with(log_bytes: u64, queue_size: u16) -> Self {
        let rig = Setup::default().start();
        let mut raw = rig.raw(0);
        let shared = Shared::new(MIB);
        raw.start_queue(&shared, queue_size);
        let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, log_bytes).unwrap();
        let log = Region::shared(file.as_fd(), 0, to_usize(log_bytes)).unwrap();
        let body = words(&[log_bytes, 0]);
        let answer = raw.ask(message::SET_LOG_BASE, &body, &[file.as_fd()]);
        assert_eq!(answer, Answer::Says(body));
        let mut migration = Self { _rig: rig, raw, shared, log };
        migration.set_logging(true);
        migration
    }

    fn set_logging(&mut self, is_on: bool) {
        let features = self.raw.features | u64::from(is_on) << LOG_ALL;
        let set = self.raw.ask(message::SET_FEATURES, &features.to_le_bytes(), &[]);
        assert_eq!(set, Answer::Done);
        let places = [Shared::DESCRIPTORS, Shared::USED, Shared::AVAILABLE];
        let body = addresses(0, u32::from(is_on), places.map(|at| Shared::USER + at), USED);
        assert_eq!(self.raw.ask(message::SET_VRING_ADDR, &body, &[]), Answer::Done);
    }

    /// Returns the guest's pages that are marked, and forgets them.
    fn pages(&self) -> BTreeSet<u64> {
        let mut bytes = vec![0; self.log.len()];
        self.log.read(0, &mut bytes).unwrap();
        self.log.write(0, &vec![0; bytes.len()]).unwrap();
        let is_set = |page: &u64| bytes[to_usize(page / 8)] & 1 << (page % 8) != 0;
        (0..u64::try_from(bytes.len()).unwrap() * 8).filter(is_set).collect()
    }
}

impl Migration {
    /// Waits until just these pages are marked: the used ring is, after the guest has seen it.
    #[track_caller]
    fn assert_marked(&self, expected: &BTreeSet<u64>) {
        let found = RefCell::new(BTreeSet::new());
        eventually("the pages are marked", || {
            found.borrow_mut().append(&mut self.pages());
            assert!(found.borrow().is_subset(expected), "{found:?}, and not only {expected:?}");
            *found.borrow() == *expected
        });
    }
}

fn pages_of(ranges: &[(u64, u64)]) -> BTreeSet<u64> {
    ranges.iter().flat_map(|&(at, len)| at / PAGE..=(at + len - 1) / PAGE).collect()
}

#[test]
fn a_read_marks_its_data_its_status_and_the_used_ring() {
    let migration = Migration::begin(PAGE);
    let mut queue = RawQueue::new(&migration.shared, 64);
    migration.pages();
    assert_eq!(queue.run(0, 0, 65536), 0);
    let expected = pages_of(&[(RawQueue::DATA, 65536), (RawQueue::STATUS, 1), (USED, 8)]);
    migration.assert_marked(&expected);
}

#[test]
fn a_write_marks_its_status_and_the_used_ring_only() {
    let migration = Migration::begin(PAGE);
    let mut queue = RawQueue::new(&migration.shared, 64);
    migration.shared.write(RawQueue::DATA - Shared::GUEST, &pattern(1, 8192));
    migration.pages();
    assert_eq!(queue.run(1, 0, 8192), 0);
    migration.assert_marked(&pages_of(&[(RawQueue::STATUS, 1), (USED, 8)]));
}

#[test]
fn a_read_that_fails_marks_what_it_may_have_written() {
    let migration = Migration::begin(PAGE);
    let mut queue = RawQueue::new(&migration.shared, 64);
    migration.pages();
    assert_eq!(queue.run(0, u64::MAX, 512), 1);
    let expected = pages_of(&[(RawQueue::DATA, 512), (RawQueue::STATUS, 1), (USED, 8)]);
    migration.assert_marked(&expected);
}

#[test]
fn a_log_that_is_too_short_for_the_guest_is_filled_as_far_as_it_reaches() {
    // Up to the page before the last of the data.
    let last = (RawQueue::DATA + 65536) / PAGE - 2;
    let bytes = last.div_ceil(8);
    let migration = Migration::begin(bytes);
    let mut queue = RawQueue::new(&migration.shared, 64);
    migration.pages();
    assert_eq!(queue.run(0, 0, 65536), 0);
    let mut expected = pages_of(&[(RawQueue::DATA, 65536), (RawQueue::STATUS, 1), (USED, 8)]);
    expected.retain(|page| page / 8 < bytes);
    migration.assert_marked(&expected);
}

#[test]
fn nothing_is_marked_before_it_is_asked_for_and_after_it_ended() {
    let mut migration = Migration::begin(PAGE);
    for is_on in [false, true, false] {
        migration.set_logging(is_on);
        migration.pages();
        // The queue was started anew by the message about its addresses.
        let mut queue = RawQueue::new(&migration.shared, 64);
        assert_eq!(queue.run(0, 0, 512), 0);
        let expected = [(RawQueue::DATA, 512), (RawQueue::STATUS, 1), (USED, 8)];
        migration.assert_marked(&pages_of(if is_on { &expected } else { &[] }));
    }
}

#[test]
fn the_used_ring_is_marked_in_every_page_that_it_has() {
    let migration = Migration::begin_with(PAGE, 1024);
    let mut queue = RawQueue::new(&migration.shared, 1024);
    for number in 0..600 {
        migration.pages();
        assert_eq!(queue.run(8, 0, 0), 1);
        let element = (USED + 4 + number * 8, 8);
        migration.assert_marked(&pages_of(&[(RawQueue::STATUS, 1), (USED, 4), element]));
    }
}
