//! When what was written is durable, and what a sector does that has become corrupt.

use holdfast_bio::ReadPolicy;
use holdfast_sim::Faults;
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_vhost_user_blk::{Options, QueueCounts};
use holdfast_virtio_driver::{Range, Request, Segment, Status};
use holdfast_volume::TUPLE_BLOCK;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

use crate::common::{
    self, Answer, MIB, Raw, RawQueue, Rig, Setup, Shared, assert_same, drain, message, pattern,
};

const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const OK: u8 = 0;

#[test]
fn a_flush_makes_durable_what_was_written() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let data = pattern(1, 64 << 10);
    assert_eq!(guest.write(512, &data), Status::Ok);
    assert_eq!(rig.disk.watch.flushes(), 0);
    assert_eq!(guest.flush(), Status::Ok);
    assert_eq!(rig.disk.watch.flushes(), 1);
    assert_same(&rig.read_stored(512, data.len()).unwrap(), &data);
}

#[test]
fn a_flush_that_fails_is_told() {
    let faults = Faults { flush: Some(holdfast_bio::Error::IO), ..Faults::default() };
    let rig = Setup { faults, ..Setup::default() }.start();
    let mut guest = rig.guest();
    assert_eq!(guest.write(0, &pattern(1, 4096)), Status::Ok);
    assert_eq!(guest.flush(), Status::IoError);
}

/// Starts the one queue of a front end that is driven by hand.
fn started(raw: &mut Raw) -> Shared {
    let shared = Shared::new(MIB);
    raw.start_queue(&shared, 128);
    shared
}

/// Returns how many flushes come to the device because of one write.
fn flushes_of_a_write(rig: &Rig, shared: &Shared, queue: &mut RawQueue<'_>, seed: u64) -> u64 {
    let before = rig.disk.watch.flushes();
    let data = pattern(seed, 8192);
    shared.write(RawQueue::DATA - Shared::GUEST, &data);
    assert_eq!(queue.run(WRITE, seed * 16, 8192), OK);
    let flushes = rig.disk.watch.flushes() - before;
    assert_same(&rig.read_stored(seed * 8192, 8192).unwrap(), &data);
    flushes
}

/// Chooses whether writes may be acknowledged before they are durable.
fn set_writeback(raw: &mut Raw, value: u8) -> Answer {
    let mut body = [32_u32, 1, 1].map(u32::to_le_bytes).as_flattened().to_vec();
    body.push(value);
    raw.ask(message::SET_CONFIG, &body, &[])
}

#[test]
fn turning_the_write_cache_off_makes_each_write_durable_and_on_again_not() {
    let rig = Setup::default().start();
    let mut raw = rig.raw(0);
    let shared = started(&mut raw);
    let mut queue = RawQueue::new(&shared, 128);
    assert_eq!(flushes_of_a_write(&rig, &shared, &mut queue, 1), 0);
    assert_eq!(set_writeback(&mut raw, 0), Answer::Done);
    assert!(flushes_of_a_write(&rig, &shared, &mut queue, 2) > 0);
    // Whatever is not 0 turns it on.
    for (value, seed) in [(1, 300), (0xff, 301)] {
        assert_eq!(set_writeback(&mut raw, value), Answer::Done);
        assert_eq!(flushes_of_a_write(&rig, &shared, &mut queue, seed), 0);
    }
    assert_eq!(queue.run(FLUSH, 0, 0), OK);
}

#[test]
fn a_driver_that_cannot_flush_gets_durable_writes() {
    let rig = Setup::default().start();
    let less = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE | 1 << common::LOG_ALL;
    let mut raw = Raw::agreed_without(&rig.path(0), less);
    let shared = started(&mut raw);
    let mut queue = RawQueue::new(&shared, 128);
    assert!(flushes_of_a_write(&rig, &shared, &mut queue, 1) > 0);
}

#[test]
fn the_next_client_begins_with_the_write_cache_on() {
    let rig = Setup::default().start();
    let mut raw = rig.raw(0);
    assert_eq!(set_writeback(&mut raw, 0), Answer::Done);
    drop(raw);
    let mut raw = rig.raw(0);
    let shared = started(&mut raw);
    let mut queue = RawQueue::new(&shared, 128);
    assert_eq!(flushes_of_a_write(&rig, &shared, &mut queue, 1), 0);
}

/// Returns the counters that corruption changes.
fn corruption(rig: &Rig) -> [u64; 4] {
    let QueueCounts { failed, guard_errors, application_errors, reference_errors, .. } =
        rig.counts(0);
    [failed, guard_errors, application_errors, reference_errors]
}

#[test]
fn just_the_reads_over_a_corrupt_sector_fail_and_each_is_counted_once() {
    for policy in [ReadPolicy::Always, ReadPolicy::Lazy] {
        for sector in [BlockSize::SECTOR, BlockSize::PAGE] {
            let rig = Setup { sector, ..Setup::with_policy(policy) }.start();
            let mut guest = rig.guest();
            let data = pattern(1, 64 << 10);
            assert_eq!(guest.write(0, &data), Status::Ok);
            rig.corrupt(5 * 4096 + 17);
            let bad = 5 * 4096..5 * 4096 + sector.len();
            let mut expected = 0;
            for (offset, len) in [
                (0, 4096),
                (0, 65536),
                (4096, 16384),
                (4 * 4096, 4096),
                (5 * 4096, 512),
                (6 * 4096, 8192),
            ] {
                let range = offset..offset + len;
                let found = guest.read(to_u64(offset), len);
                if range.start < bad.end && bad.start < range.end {
                    assert_eq!(found, Err(Status::IoError));
                    expected += 1;
                } else {
                    assert_same(&found.unwrap(), &data[range]);
                }
            }
            assert_eq!(corruption(&rig), [expected, expected, 0, 0]);
            assert_eq!(rig.volume().errors().guard, expected);
            // Written whole, it is good again.
            assert_eq!(guest.write(5 * 4096, &data[..4096]), Status::Ok);
            assert_same(&guest.read(5 * 4096, 4096).unwrap(), &data[..4096]);
        }
    }
}

#[test]
fn a_write_to_a_part_of_a_corrupt_sector_fails_and_is_counted() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    assert_eq!(guest.write(0, &pattern(1, 16384)), Status::Ok);
    rig.corrupt(4096 + 3000);
    assert_eq!(guest.write(4096, &[1; 512]), Status::IoError);
    assert_eq!(guest.zero(4096 + 512, 512, 0), Status::IoError);
    assert_eq!(guest.read(4096, 4096), Err(Status::IoError));
    assert_eq!(corruption(&rig), [3, 3, 0, 0]);
    assert_eq!(guest.zero(4096, 4096, Range::UNMAP), Status::Ok);
    assert_same(&guest.read(4096, 4096).unwrap(), &[0; 4096]);
}

#[test]
fn a_mismatch_is_counted_by_its_tag() {
    let mut rig = Setup::default().start();
    let mut guest = rig.guest();
    assert_eq!(guest.write(0, &pattern(1, 16384)), Status::Ok);
    assert_eq!(guest.flush(), Status::Ok);
    drop(guest);
    let geometry = *rig.volume().geometry();
    let tuple = to_u64(TUPLE_BLOCK / geometry.sectors_of_group());
    assert_eq!(tuple, 8, "guard, application tag, reference tag of T10");
    // Once it was closed, the tuples are where they belong.
    rig.reopen();
    for (sector, byte) in [(0, 0), (1, 2), (2, 7)] {
        rig.memory().corrupt(geometry.tuples_at(0) + sector * tuple + byte, 0x10);
    }
    let mut guest = rig.guest();
    for sector in 0..3 {
        assert_eq!(guest.read(sector * 4096, 4096), Err(Status::IoError));
    }
    assert_same(&guest.read(3 * 4096, 4096).unwrap(), &pattern(1, 16384)[12288..]);
    assert_eq!(corruption(&rig), [3, 1, 1, 1]);
}

#[test]
fn data_of_a_corrupt_read_are_never_told_to_be_good() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    assert_eq!(guest.write(0, &pattern(1, to_usize(MIB))), Status::Ok);
    for sector in 0..256 {
        if sector % 7 == 0 {
            rig.corrupt(sector * 4096 + sector);
        }
    }
    let target: Vec<_> =
        (0..256).map(|number| Segment { address: guest.base + number * 4096, len: 4096 }).collect();
    for (sector, target) in target.iter().enumerate() {
        let request = Request::Read { sector: to_u64(sector) * 8, target: &[*target] };
        let is_bad = sector.is_multiple_of(7);
        assert_eq!(guest.ask(&request) == Status::IoError, is_bad, "sector {sector}");
    }
    let request = Request::Read { sector: 0, target: &target[..100] };
    assert_eq!(guest.ask(&request), Status::IoError);
}

/// A request that waits for a buffer must not be ended once more when it gets its turn.
#[test]
fn requests_that_wait_for_buffers_while_others_of_theirs_fail_end_once() {
    let setup = Setup::with_policy(ReadPolicy::Always);
    let rig = Setup { options: Options { buffer_bytes: 1, ..setup.options }, ..setup }.start();
    let mut guest = rig.guest();
    assert_eq!(guest.write(0, &pattern(1, 2 << 20)), Status::Ok);
    (0..512).filter(|sector| sector % 3 == 0).for_each(|sector| rig.corrupt(sector * 4096 + 1));
    let base = guest.base;
    let queue = guest.client.queue(0);
    for round in 0..200 {
        // Each range has a part of a sector at both ends.
        let ranges: Vec<_> = (0..16)
            .map(|number| Range {
                sector: (round * 16 + number) % 500 * 8 + 3,
                sectors: 9,
                flags: 0,
            })
            .collect();
        let segment = [Segment { address: base, len: 1 << 20 }];
        for _ in 0..4 {
            queue
                .submit(&Request::Read { sector: 0, target: &segment }, Default::default())
                .unwrap();
            let zero = Request::WriteZeroes { ranges: &ranges };
            queue.submit(&zero, Default::default()).unwrap();
        }
        let ended = drain(queue);
        assert_eq!(ended.len(), 8);
    }
}
