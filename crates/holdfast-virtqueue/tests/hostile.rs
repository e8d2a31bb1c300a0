//! What no driver and no device should do, and what the other side says to it.

use std::sync::atomic::Ordering;

use holdfast_virtqueue::{
    BadChain, Broken, Chain, Descriptor, Driver, Misused, Table, Taken, Virtqueue,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{BASE, FREE, LEN, Shared, readable, writable};

const NEXT: u32 = 1;
const WRITE: u32 = 2;
const INDIRECT: u32 = 4;
/// Where the descriptors of the queue are.
const QUEUE: usize = 0;
/// The guest address of a table at `FREE`.
const TABLE: u64 = BASE + 0x8000;
const SIZE: u16 = 8;

fn device(shared: &Shared) -> Virtqueue {
    Virtqueue::new(shared.rings(), true, 0, None)
}

/// Makes descriptor 0 available, and returns what is wrong with it.
fn judge(shared: &Shared) -> Option<BadChain> {
    shared.make_available(&[0]);
    let taken = device(shared).take(&mut Chain::new(), &shared.memory).unwrap().unwrap();
    assert_eq!(taken.head, 0);
    taken.bad
}

/// Makes a table of some bytes the only descriptor of a request, and returns what is wrong with it.
fn judge_table(shared: &Shared, address: u64, len: u32) -> Option<BadChain> {
    shared.descriptor(QUEUE, 0, address, len, (INDIRECT, 0));
    judge(shared)
}

#[test]
fn a_loop_ends() {
    let shared = Shared::new(SIZE, 0);
    shared.descriptor(QUEUE, 0, BASE, 1, (NEXT, 1));
    shared.descriptor(QUEUE, 1, BASE, 1, (NEXT, 0));
    assert_eq!(judge(&shared), Some(BadChain::TooLong));
    shared.descriptor(QUEUE, 0, BASE, 0, (NEXT | WRITE, 0));
    assert_eq!(judge(&shared), Some(BadChain::TooLong));
    shared.descriptor(FREE, 0, BASE, 1, (NEXT, 0));
    assert_eq!(judge_table(&shared, TABLE, 16), Some(BadChain::TooLong));
}

#[test]
fn the_longest_request_is_taken_and_a_longer_one_is_not() {
    let shared = Shared::new(SIZE, 0);
    let max = u16::try_from(Chain::DESCRIPTORS_MAX).unwrap();
    for index in 0..=max {
        shared.descriptor(FREE, index, BASE, 1, (NEXT, index + 1));
    }
    shared.descriptor(FREE, max - 1, BASE, 1, (0, 0));
    assert_eq!(judge_table(&shared, TABLE, 16 * u32::from(max)), None);
    shared.descriptor(FREE, max - 1, BASE, 1, (NEXT, max));
    shared.descriptor(FREE, max, BASE, 1, (0, 0));
    let found = judge_table(&shared, TABLE, 16 * u32::from(max + 1));
    assert_eq!(found, Some(BadChain::TooLong));
}

#[test]
fn a_link_out_of_the_table_is_refused() {
    let shared = Shared::new(SIZE, 0);
    for next in [SIZE, 1000, u16::MAX] {
        shared.descriptor(QUEUE, 0, BASE, 1, (NEXT, next));
        let index = u32::from(next);
        assert_eq!(judge(&shared), Some(BadChain::Index { index, table: 8 }));
        shared.descriptor(FREE, 0, BASE, 1, (NEXT, next));
        assert_eq!(judge_table(&shared, TABLE, 32), Some(BadChain::Index { index, table: 2 }));
    }
}

#[test]
fn a_table_in_a_table_is_refused() {
    let shared = Shared::new(SIZE, 0);
    shared.descriptor(FREE, 0, TABLE + 64, 16, (INDIRECT, 0));
    shared.descriptor(FREE, 4, BASE, 1, (0, 0));
    assert_eq!(judge_table(&shared, TABLE, 16), Some(BadChain::Indirect));
    shared.descriptor(FREE, 0, BASE, 1, (NEXT, 1));
    shared.descriptor(FREE, 1, TABLE, 32, (INDIRECT | WRITE, 0));
    assert_eq!(judge_table(&shared, TABLE, 32), Some(BadChain::Indirect));
}

#[test]
fn a_table_before_another_descriptor_is_refused() {
    let shared = Shared::new(SIZE, 0);
    shared.descriptor(FREE, 0, BASE, 1, (0, 0));
    shared.descriptor(QUEUE, 0, TABLE, 16, (INDIRECT | NEXT, 1));
    shared.descriptor(QUEUE, 1, BASE, 1, (0, 0));
    assert_eq!(judge(&shared), Some(BadChain::Indirect));
}

#[test]
fn a_table_behind_other_descriptors_is_taken() {
    let shared = Shared::new(SIZE, 0);
    shared.descriptor(QUEUE, 0, BASE, 1, (NEXT, 5));
    // VirtIO 1.3, 2.7.5.3.2: the device ignores the write flag of such a descriptor.
    shared.descriptor(QUEUE, 5, TABLE, 32, (INDIRECT | WRITE, 0));
    shared.descriptor(FREE, 0, BASE, 2, (NEXT, 1));
    shared.descriptor(FREE, 1, BASE, 3, (WRITE, 0));
    shared.make_available(&[0]);
    let mut chain = Chain::new();
    let taken = device(&shared).take(&mut chain, &shared.memory).unwrap();
    assert_eq!(taken, Some(Taken { head: 0, bad: None }));
    let of = |len: u32| Descriptor { address: BASE, len };
    assert_eq!(chain.readable(), [of(1), of(2)]);
    assert_eq!(chain.writable(), [of(3)]);
}

#[test]
fn a_table_of_an_odd_length_is_refused() {
    let shared = Shared::new(SIZE, 0);
    for len in [0, 1, 15, 17, 31, u32::MAX] {
        let bad = BadChain::Table { address: TABLE, len };
        assert_eq!(judge_table(&shared, TABLE, len), Some(bad), "{len}");
    }
}

#[test]
fn a_table_outside_of_the_memory_is_refused() {
    let shared = Shared::new(SIZE, 0);
    let end = BASE + u64::try_from(LEN).unwrap();
    let places = [(0, 16), (end, 16), (end - 16, 32), (u64::MAX, 16), (BASE, 0xffff_fff0)];
    for (address, len) in places {
        let bad = BadChain::Table { address, len };
        assert_eq!(judge_table(&shared, address, len), Some(bad), "{address:#x}");
    }
}

#[test]
fn a_table_may_be_anywhere_in_the_memory() {
    let shared = Shared::new(SIZE, 0);
    let mut driver = Driver::new(shared.rings(), true);
    let mut device = device(&shared);
    let mut chain = Chain::new();
    for offset in 0..16 {
        let place = shared.place(FREE + offset, 32);
        let address = TABLE + u64::try_from(offset).unwrap();
        let table = Table::Indirect { direct: 0, address, place: &place };
        let head = driver.add(&[readable(1, 2), writable(3, 4)], table).unwrap();
        driver.publish();
        let taken = device.take(&mut chain, &shared.memory).unwrap();
        assert_eq!(taken, Some(Taken { head, bad: None }));
        assert_eq!(chain.readable(), [Descriptor { address: 1, len: 2 }]);
        assert_eq!(chain.writable(), [Descriptor { address: 3, len: 4 }]);
        device.complete(head, 0);
        device.publish();
        driver.collect().unwrap();
    }
}

#[test]
fn what_is_read_comes_before_what_is_written() {
    let shared = Shared::new(SIZE, 0);
    shared.descriptor(QUEUE, 0, BASE, 1, (WRITE | NEXT, 1));
    shared.descriptor(QUEUE, 1, BASE, 1, (0, 0));
    assert_eq!(judge(&shared), Some(BadChain::Order));
}

#[test]
fn too_many_bytes_are_refused() {
    let shared = Shared::new(SIZE, 0);
    shared.descriptor(QUEUE, 0, BASE, u32::MAX, (NEXT, 1));
    shared.descriptor(QUEUE, 1, BASE, 0, (WRITE, 1));
    assert_eq!(judge(&shared), None);
    shared.descriptor(QUEUE, 1, BASE, 1, (WRITE, 1));
    assert_eq!(judge(&shared), Some(BadChain::TooLarge));
}

#[test]
fn a_queue_whose_index_jumps_is_broken() {
    let shared = Shared::new(SIZE, 0);
    let mut device = device(&shared);
    let mut chain = Chain::new();
    for to in [SIZE + 1, 0x8000, u16::MAX] {
        shared.available().store_u16(2, to, Ordering::Release);
        let broken = Broken::Index { from: 0, to, size: SIZE };
        assert_eq!(device.take(&mut chain, &shared.memory), Err(broken));
    }
}

#[test]
fn a_queue_with_a_head_of_none_is_broken() {
    let shared = Shared::new(SIZE, 0);
    for head in [SIZE, u16::MAX] {
        shared.make_available(&[head]);
        let found = device(&shared).take(&mut Chain::new(), &shared.memory);
        assert_eq!(found, Err(Broken::Head { head, size: SIZE }));
    }
}

#[test]
fn a_queue_with_a_head_twice_is_broken() {
    let shared = Shared::new(SIZE, 0);
    shared.descriptor(QUEUE, 3, BASE, 1, (0, 0));
    shared.make_available(&[3, 3]);
    let mut device = device(&shared);
    let mut chain = Chain::new();
    device.take(&mut chain, &shared.memory).unwrap();
    let found = device.take(&mut chain, &shared.memory);
    assert_eq!(found, Err(Broken::Twice { head: 3 }));
}

#[test]
fn a_request_that_is_wrong_leaves_nothing_of_itself_to_the_next() {
    let shared = Shared::new(SIZE, 0);
    shared.descriptor(QUEUE, 0, BASE, u32::MAX, (NEXT | WRITE, 1));
    shared.descriptor(QUEUE, 1, BASE, 1, (NEXT | WRITE, 9));
    shared.descriptor(QUEUE, 2, BASE, 7, (0, 0));
    shared.make_available(&[0, 2]);
    let mut device = device(&shared);
    let mut chain = Chain::new();
    let taken = device.take(&mut chain, &shared.memory).unwrap().unwrap();
    assert_eq!(taken.bad, Some(BadChain::TooLarge));
    device.complete(0, 0);
    device.take(&mut chain, &shared.memory).unwrap();
    assert_eq!(chain.readable(), [Descriptor { address: BASE, len: 7 }]);
    assert_eq!(chain.writable(), []);
}

/// A driver with one request in flight, at descriptor 0, into which 10 bytes may be written.
fn driver(shared: &Shared) -> Driver {
    let mut driver = Driver::new(shared.rings(), true);
    driver.add(&[readable(BASE, 1), writable(BASE, 4), writable(BASE, 6)], Table::Direct).unwrap();
    driver.publish();
    driver
}

/// Stores a used element, shows it, and returns what the driver says.
fn answer(head: u32, written: u32) -> Misused {
    let shared = Shared::new(SIZE, 0);
    let mut driver = driver(&shared);
    shared.used().store_u32(4, head, Ordering::Relaxed);
    shared.used().store_u32(8, written, Ordering::Relaxed);
    shared.used().store_u16(2, 1, Ordering::Release);
    let found = driver.collect().unwrap_err();
    assert_eq!(driver.in_flight(), 1);
    found
}

#[test]
fn a_used_element_must_name_a_request() {
    for head in [1, 7, 8, 0x1_0000, u32::MAX] {
        assert_eq!(answer(head, 0), Misused::Head { head });
    }
}

#[test]
fn no_more_can_be_written_than_there_is_room() {
    assert_eq!(answer(0, 11), Misused::Written { written: 11, room: 10 });
}

#[test]
fn no_more_can_be_used_than_is_in_flight() {
    let shared = Shared::new(SIZE, 0);
    let mut driver = driver(&shared);
    for to in [2, u16::MAX] {
        shared.used().store_u16(2, to, Ordering::Release);
        let misused = Misused::Index { from: 0, to, in_flight: 1 };
        assert_eq!(driver.collect(), Err(misused));
        assert_eq!(driver.rewind(), Err(misused));
    }
}

#[test]
fn a_request_is_not_used_twice() {
    let shared = Shared::new(SIZE, 0);
    let mut driver = driver(&shared);
    driver.add(&[readable(BASE, 1)], Table::Direct).unwrap();
    driver.publish();
    shared.used().store_u16(2, 2, Ordering::Release);
    assert_eq!(driver.rewind(), Err(Misused::Head { head: 0 }));
    driver.collect().unwrap().unwrap();
    assert_eq!(driver.collect(), Err(Misused::Head { head: 0 }));
}

#[test]
fn a_driver_rewinds_what_was_not_given_back() {
    let shared = Shared::new(SIZE, 0xfffc);
    let mut driver = Driver::new(shared.rings(), true);
    let mut device = Virtqueue::new(shared.rings(), true, 0xfffc, None);
    let mut chain = Chain::new();
    let heads: Vec<_> =
        (0..6).map(|_| driver.add(&[readable(BASE, 1)], Table::Direct).unwrap()).collect();
    driver.publish();
    for _ in 0..5 {
        device.take(&mut chain, &shared.memory).unwrap().unwrap();
    }
    for head in [heads[3], heads[1]] {
        device.complete(head, 0);
        device.publish();
    }
    // Given back, and never shown.
    device.complete(heads[4], 0);
    assert_eq!(driver.collect().unwrap().map(|used| used.head), Some(heads[3]));
    driver.rewind().unwrap();
    let base = driver.used_index();
    let mut device = Virtqueue::new(shared.rings(), true, base, None);
    for head in [heads[0], heads[2], heads[4], heads[5]] {
        let taken = device.take(&mut chain, &shared.memory).unwrap();
        assert_eq!(taken.map(|taken| taken.head), Some(head));
        device.complete(head, 0);
        device.publish();
    }
    for head in [heads[1], heads[0], heads[2], heads[4], heads[5]] {
        assert_eq!(driver.collect().unwrap().map(|used| used.head), Some(head));
    }
    assert_eq!((driver.in_flight(), driver.free()), (0, SIZE));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Descriptors whose addresses, lengths and links are all of a few kinds, so that chains of them
    /// go somewhere.
    #[test]
    fn no_rings_make_a_device_panic(
        queue in vec((0_u64..0x300, 0_u32..4, 0_u16..8, 0_u16..10), 8),
        table in vec((0_u64..0x300, 0_u32..4, 0_u16..8, 0_u16..10), 8),
        heads in vec(0_u16..9, 1..20),
        index in 0_u16..12,
    ) {
        let shared = Shared::new(SIZE, 0);
        for (at, descriptors) in [(QUEUE, queue), (FREE, table)] {
            for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
                let address = BASE + 0x7f80 + address;
                let len = [16, 128, 0, u32::MAX][usize::try_from(len).unwrap()];
                shared.descriptor(at, index, address, len, (u32::from(flags), next));
            }
        }
        shared.make_available(&heads);
        shared.available().store_u16(2, index, Ordering::Release);
        let mut device = device(&shared);
        let mut chain = Chain::new();
        while let Ok(Some(taken)) = device.take(&mut chain, &shared.memory) {
            let bytes = chain.readable().iter().chain(chain.writable());
            assert!(bytes.map(|piece| u64::from(piece.len)).sum::<u64>() <= 1 << 32);
            device.complete(taken.head, 0);
            device.publish();
        }
    }

    #[test]
    fn no_used_ring_makes_a_driver_panic(bytes in vec(any::<u8>(), 8 * 8), to in 0_u16..10) {
        let shared = Shared::new(SIZE, 0);
        let mut driver = Driver::new(shared.rings(), false);
        while driver.add(&[writable(BASE, u32::MAX), readable(BASE, 1)], Table::Direct).is_ok() {}
        driver.publish();
        for (at, byte) in (4..).zip(bytes) {
            // Every other byte is small, so that some elements name requests.
            let byte = if at % 4 == 0 { byte % 8 } else { byte & 0x1 };
            shared.used().store_u8(at, byte, Ordering::Relaxed);
        }
        shared.used().store_u16(2, to, Ordering::Release);
        while let Ok(Some(_)) = driver.collect() {}
        let _rewound = driver.rewind();
    }
}
