//! Histories that are right, and such that are not.

use proptest::prelude::*;

use super::*;

const BLOCK: u64 = 3;

/// A disk, one block of which is used.
struct Disk {
    model: Model,
}

impl Disk {
    fn new() -> Self {
        Self { model: Model::new(8) }
    }

    fn begin_write(&mut self) -> Moment {
        let begun = self.model.begin();
        self.model.write(begun, BLOCK, data(begun));
        begun
    }

    fn end(&mut self, begun: Moment) {
        self.model.end(begun, changed(), Effect::Sure);
    }

    fn fail(&mut self, begun: Moment) {
        self.model.end(begun, changed(), Effect::Unsure);
    }

    fn write(&mut self) -> Moment {
        let begun = self.begin_write();
        self.end(begun);
        begun
    }

    fn zero(&mut self) {
        let begun = self.model.begin();
        self.model.write(begun, BLOCK, Stored::Zeros);
        self.end(begun);
    }

    /// Ends a read that began at `begun` and found what `write` wrote. Returns whether it may.
    fn end_read(&mut self, begun: Moment, write: Moment) -> bool {
        self.end_read_of(begun, Found::Whole(origin(write, BLOCK)))
    }

    fn end_read_of(&mut self, begun: Moment, found: Found) -> bool {
        let is_right = self.model.check(begun, BLOCK, found).is_ok();
        self.model.end(begun, std::iter::empty(), Effect::Sure);
        is_right
    }

    fn reads(&mut self, write: Moment) -> bool {
        let begun = self.model.begin();
        self.end_read(begun, write)
    }

    fn reads_zeros(&mut self) -> bool {
        let begun = self.model.begin();
        self.end_read_of(begun, Found::Zeros)
    }
}

fn changed() -> impl Iterator<Item = Range<u64>> {
    std::iter::once(BLOCK..BLOCK + 1)
}

fn origin(request: Moment, block: u64) -> Origin {
    Origin { request, block }
}

fn data(request: Moment) -> Stored {
    Stored::Data(origin(request, BLOCK))
}

#[test]
fn a_fresh_disk_is_zeros() {
    assert!(Disk::new().reads_zeros());
}

#[test]
fn what_was_written_is_read() {
    let mut disk = Disk::new();
    let write = disk.write();
    assert!(disk.reads(write));
}

#[test]
fn a_lost_write_is_found() {
    let mut disk = Disk::new();
    let first = disk.write();
    disk.write();
    assert!(!disk.reads(first));
    assert!(!disk.reads_zeros());
}

#[test]
fn a_write_that_is_done_twice_is_found() {
    let mut disk = Disk::new();
    let first = disk.write();
    let second = disk.write();
    assert!(disk.reads(second));
    // The server does the first again.
    assert!(!disk.reads(first));
}

#[test]
fn a_write_that_is_done_twice_is_found_after_one_that_was_only_read() {
    let mut disk = Disk::new();
    let first = disk.write();
    let second = disk.begin_write();
    assert!(disk.reads(second));
    assert!(!disk.reads(first));
    disk.end(second);
    assert!(disk.reads(second));
}

#[test]
fn a_torn_block_is_found() {
    let mut disk = Disk::new();
    disk.write();
    let begun = disk.model.begin();
    assert!(!disk.end_read_of(begun, Found::Torn { at: 9, first: 1, other: 2 }));
}

#[test]
fn a_stale_read_is_found() {
    let mut disk = Disk::new();
    let first = disk.write();
    let read = disk.model.begin();
    let second = disk.write();
    // The read was there before the second write had ended.
    assert!(disk.end_read(read, first));
    let read = disk.model.begin();
    assert!(disk.end_read(read, second));
    assert!(!disk.reads(first));
}

#[test]
fn what_belongs_into_another_block_is_found() {
    let mut disk = Disk::new();
    let write = disk.write();
    let begun = disk.model.begin();
    assert!(!disk.end_read_of(begun, Found::Whole(origin(write, BLOCK + 1))));
}

#[test]
fn what_is_yet_to_be_written_is_found() {
    let mut disk = Disk::new();
    let read = disk.model.begin();
    assert!(!disk.end_read(read, Moment::of_number(99)));
}

#[test]
fn writes_in_flight_may_be_read_or_not() {
    let mut disk = Disk::new();
    let old = disk.write();
    let [first, second] = [disk.begin_write(), disk.begin_write()];
    assert!(disk.reads(old));
    assert!(disk.reads(second));
    assert!(disk.reads(first), "they may have been done in any order");
}

#[test]
fn of_two_writes_at_a_time_either_may_be_the_last() {
    for last in [0, 1] {
        let mut disk = Disk::new();
        let writes = [disk.begin_write(), disk.begin_write()];
        disk.end(writes[0]);
        disk.end(writes[1]);
        assert!(disk.reads(writes[last]));
    }
}

#[test]
fn a_failed_write_may_be_there_or_not_until_the_next() {
    let mut disk = Disk::new();
    let old = disk.write();
    let failed = disk.begin_write();
    disk.fail(failed);
    assert!(disk.reads(old));
    assert!(disk.reads(failed));
    assert!(!disk.reads(old), "it was there, and nobody wrote the old again");
    let last = disk.write();
    assert!(disk.reads(last));
    assert!(!disk.reads(failed));
}

#[test]
fn zeros_are_a_write() {
    let mut disk = Disk::new();
    let write = disk.write();
    disk.zero();
    assert!(!disk.reads(write));
    assert!(disk.reads_zeros());
    disk.write();
    assert!(!disk.reads_zeros());
}

#[test]
fn memory_that_nobody_knows_may_be_anything_until_the_next_write() {
    let mut disk = Disk::new();
    let begun = disk.model.begin();
    disk.model.write(begun, BLOCK, Stored::Anything);
    disk.end(begun);
    let read = disk.model.begin();
    assert!(disk.end_read_of(read, Found::Torn { at: 1, first: 2, other: 3 }));
    disk.write();
    let read = disk.model.begin();
    assert!(!disk.end_read_of(read, Found::Torn { at: 1, first: 2, other: 3 }));
}

#[test]
fn only_data_at_rest_are_data() {
    let mut disk = Disk::new();
    assert!(!disk.model.is_data(BLOCK));
    disk.write();
    assert!(disk.model.is_data(BLOCK) && !disk.model.is_written_now(BLOCK));
    disk.begin_write();
    assert!(disk.model.is_written_now(BLOCK));
}

#[test]
fn a_fault_says_what_was_there_and_what_belongs_there() {
    let mut disk = Disk::new();
    let [first, second] = [disk.write(), disk.write()];
    let begun = disk.model.begin();
    let found = Found::Whole(origin(first, BLOCK));
    let fault = disk.model.check(begun, BLOCK, found).unwrap_err();
    let expected = format!(
        "block 3 has what request {first} wrote for block 3, and not what request {second} wrote \
         for block 3"
    );
    assert_eq!(fault.to_string(), expected);
}

/// One step of a history: which request, of those in flight, and what becomes of it.
fn steps() -> impl Strategy<Value = Vec<(u8, prop::sample::Index)>> {
    prop::collection::vec((0_u8..100, any::<prop::sample::Index>()), 1..200)
}

proptest! {
    /// A disk that does each request at one moment between begin and end is never blamed, and what
    /// is remembered of it stays small.
    #[test]
    fn a_disk_that_keeps_the_order_is_right(steps in steps()) {
        let mut disk = Disk::new();
        let mut stored = Found::Zeros;
        // Requests in flight: whether it writes, whether it was done, and what it found.
        let mut in_flight: Vec<(Moment, bool, Option<Found>)> = Vec::new();
        for (number, which) in steps {
            let now = in_flight.len();
            match number {
                0..25 => in_flight.push((disk.begin_write(), true, None)),
                25..50 => in_flight.push((disk.model.begin(), false, None)),
                _ if now == 0 => {}
                50..75 => {
                    let (begun, writes, done) = &mut in_flight[which.index(now)];
                    if *writes && done.is_none() {
                        stored = Found::Whole(origin(*begun, BLOCK));
                    }
                    done.get_or_insert(stored);
                }
                _ => match in_flight.swap_remove(which.index(now)) {
                    (begun, true, Some(_)) => disk.end(begun),
                    (begun, true, None) => disk.fail(begun),
                    (begun, false, found) => {
                        prop_assert!(disk.end_read_of(begun, found.unwrap_or(stored)));
                    }
                },
            }
            prop_assert!(in_flight.len() < 3 || disk.model.blocks[3].len() < 200);
        }
        for (begun, writes, done) in in_flight {
            match (writes, done) {
                (true, Some(_)) => disk.end(begun),
                (true, None) => disk.fail(begun),
                (false, found) => {
                    prop_assert!(disk.end_read_of(begun, found.unwrap_or(stored)));
                }
            }
        }
        let last = disk.write();
        prop_assert_eq!(disk.model.blocks[3].len(), 1);
        prop_assert!(disk.reads(last));
    }
}
