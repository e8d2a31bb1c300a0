//! What reads and writes see of blocks that are not there, not yet, or not whole.

use holdfast_bio::{Error as BioError, Op};
use holdfast_iomap::{Direction, Error, Flags, IoendKind, Kind, Mapping, MappingFault, Request};
use holdfast_iov::{IovIter, Memory, Region, VolatileMemory};
use holdfast_units::BlockSize;

use crate::common::fs::{FsError, State};
use crate::common::{BLOCK, Bench, CAPACITY, Event, FILE, STALE, data, volatile};

const DSYNC: Flags =
    Flags { nowait: false, dsync: true, atomic: false, polled: false, block_aligned: false };
const ATOMIC: Flags = Flags { dsync: false, atomic: true, ..DSYNC };

/// Returns a bench with a file whose blocks are all in one state.
fn file_of(blocks: usize, state: State) -> Bench {
    let mut bench = Bench::new();
    bench.fs.place(FILE, 0..blocks as u64, state);
    bench.fs.inode(FILE).size = (blocks * BLOCK) as u64;
    bench
}

/// Returns `bytes` with zeros around them.
fn in_zeros(len: usize, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut all = vec![0; len];
    all[at..][..bytes.len()].copy_from_slice(bytes);
    all
}

fn stored(bench: &Bench, address: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bench.medium.load(address as u64, &mut bytes);
    bytes
}

#[test]
fn holes_and_unwritten_blocks_read_as_zeros_without_io() {
    let mut bench = Bench::new();
    bench.fs.place(FILE, 1..2, State::Unwritten);
    bench.fs.inode(FILE).size = 3 * BLOCK as u64;
    assert_eq!(bench.read(0, 3 * BLOCK), (Ok(3 * BLOCK as u64), vec![0; 3 * BLOCK]));
    assert_eq!(bench.bios(), []);
}

#[test]
fn a_read_beyond_the_end_is_short_and_the_rest_of_its_memory_zeros() {
    let mut bench = file_of(2, State::Written);
    bench.fs.inode(FILE).size = BLOCK as u64 + 100;
    let (result, bytes) = bench.read(512, 3 * BLOCK);
    assert_eq!(result, Ok(BLOCK as u64 - 412));
    let stale = vec![STALE; BLOCK - 412];
    assert!(bytes == in_zeros(3 * BLOCK, 0, &stale));
    let moved: u64 = bench.bios().iter().map(|bio| bio.2).sum();
    assert_eq!(moved, BLOCK as u64, "nothing is read from behind the last sector");
    assert_eq!(bench.read(2 * BLOCK, BLOCK), (Ok(0), vec![0; BLOCK]));
}

#[test]
fn volatile_memory_behind_the_end_is_zeroed_too() {
    let mut bench = file_of(1, State::Written);
    bench.fs.inode(FILE).size = 100;
    let (memory, iter) = volatile(&[0x55; 2 * BLOCK], 0);
    let request = Request::new(Direction::Read, FILE, 0, BLOCK as u64, Memory::Iov(iter));
    let finished = bench.run(request);
    assert_eq!((finished.result, finished.request.memory.len()), (Ok(100), 2 * BLOCK));
    let mut bytes = vec![0; 2 * BLOCK];
    memory.region(0).unwrap().read(0, &mut bytes).unwrap();
    let expected = [vec![STALE; 100], vec![0; BLOCK - 100], vec![0x55; BLOCK]].concat();
    assert!(bytes == expected);
}

#[test]
fn what_a_write_leaves_of_unwritten_and_new_blocks_is_zeroed() {
    for allocates_new in [false, true] {
        let mut bench = Bench::new();
        bench.fs.allocates_new = allocates_new;
        bench.fs.inode(FILE).size = 8 * BLOCK as u64;
        let bytes = data(2 * BLOCK, 1);
        bench.write(BLOCK + 1024, &bytes).unwrap();
        assert!(bench.contents() == in_zeros(8 * BLOCK, BLOCK + 1024, &bytes));
        let kind = if allocates_new { IoendKind::New } else { IoendKind::Unwritten };
        assert!(bench.ioends().iter().all(|ioend| ioend.kind == kind));
    }
}

#[test]
fn what_a_write_leaves_of_written_blocks_stays() {
    let mut bench = file_of(1, State::Written);
    bench.write(512, &data(512, 1)).unwrap();
    assert_eq!(bench.bios().len(), 1);
    let expected = [vec![STALE; 512], data(512, 1), vec![STALE; BLOCK - 1024]].concat();
    assert!(bench.contents() == expected);
}

#[test]
fn a_write_past_the_end_zeroes_the_rest_of_its_last_block() {
    let mut bench = file_of(1, State::Written);
    bench.fs.inode(FILE).size = 512;
    bench.write(512, &data(512, 1)).unwrap();
    assert!(stored(&bench, BLOCK + 1024, BLOCK - 1024) == vec![0; BLOCK - 1024]);
    assert_eq!(bench.size(), 1024);
}

#[test]
fn a_short_or_failed_extraction_still_zeroes_the_tail_of_the_block() {
    // The memory ends at a sector, and in the middle of one.
    for memory_len in [1024, 1024 + 100] {
        let mut bench = Bench::new();
        let bytes = data(memory_len, 1);
        let (_memory, iter) = volatile(&bytes, 0);
        let len = 2 * BLOCK as u64;
        let finished = bench.run(Request::new(Direction::Write, FILE, 0, len, Memory::Iov(iter)));
        assert_eq!(finished.result, Ok(1024));
        assert_eq!(bench.size(), 1024);
        assert!(stored(&bench, BLOCK, BLOCK) == in_zeros(BLOCK, 0, &bytes[..1024]));
    }
}

#[test]
fn memory_without_a_single_sector_fails_and_changes_nothing() {
    let mut bench = Bench::new();
    let (_memory, iter) = volatile(&[1; 100], 0);
    let finished = bench.run(Request::new(Direction::Write, FILE, 0, 512, Memory::Iov(iter)));
    assert_eq!(finished.result, Err(Error::Memory { found: 100, unit: 512 }));
    assert_eq!(bench.bios(), []);
}

#[test]
fn the_size_changes_when_the_write_has_ended_and_not_before() {
    let mut bench = Bench::new();
    bench.submit(bench.write_of(0, &data(2 * BLOCK, 1)));
    assert_eq!((bench.disk().in_flight(), bench.size()), (1, 0));
    bench.finish(1).pop().unwrap().result.unwrap();
    assert_eq!(bench.size(), 2 * BLOCK);
    let sizes: Vec<_> = bench.ioends().iter().map(|ioend| ioend.size).collect();
    assert_eq!(sizes, [Some(2 * BLOCK as u64)]);
    bench.clear_log();
    bench.write(0, &data(BLOCK, 2)).unwrap();
    assert_eq!(bench.ioends()[0].size, None, "a write inside the file changes no size");
}

#[test]
fn a_failed_write_changes_neither_size_nor_extents() {
    for allocates_new in [false, true] {
        let mut bench = Bench::new();
        bench.fs.allocates_new = allocates_new;
        bench.fs.inode(FILE).size = 100;
        bench.disk().failures = vec![(1, BioError::IO)];
        assert_eq!(bench.write(512, &data(BLOCK, 1)), Err(Error::Bio(BioError::IO)));
        assert_eq!(bench.size(), 100);
        assert!(bench.contents() == vec![0; 100]);
        assert!(bench.fs.inode(FILE).blocks.values().all(|block| block.1 != State::Written));
    }
}

#[test]
fn a_write_behind_the_end_zeroes_what_lies_between() {
    // A byte count that is no multiple of anything, and one that is.
    for size in [100, 512, BLOCK - 1] {
        let mut bench = file_of(4, State::Written);
        bench.fs.inode(FILE).size = size as u64;
        let bytes = data(512, 1);
        bench.write(2 * BLOCK + 1024, &bytes).unwrap();
        let mut expected = in_zeros(2 * BLOCK + 1536, 2 * BLOCK + 1024, &bytes);
        expected[..size].fill(STALE);
        assert!(bench.contents() == expected, "{size}");
        assert_eq!(bench.ioends()[0].size, None, "zeros alone do not make the file longer");
    }
}

#[test]
fn holes_and_unwritten_blocks_between_the_end_and_the_write_stay() {
    let mut bench = Bench::new();
    bench.fs.place(FILE, 1..2, State::Unwritten);
    bench.write(3 * BLOCK, &data(BLOCK, 1)).unwrap();
    assert!(bench.contents() == in_zeros(4 * BLOCK, 3 * BLOCK, &data(BLOCK, 1)));
    assert_eq!(bench.bios().len(), 1);
    assert_eq!(bench.fs.inode(FILE).blocks.len(), 2);
}

#[test]
fn when_the_zeros_fail_the_data_are_not_written() {
    let mut bench = file_of(2, State::Written);
    bench.fs.inode(FILE).size = 100;
    bench.disk().failures = vec![(0, BioError::IO)];
    assert_eq!(bench.write(BLOCK, &data(BLOCK, 1)), Err(Error::Bio(BioError::IO)));
    assert!(bench.bios().iter().all(|bio| bio.1 + bio.2 <= 2 * BLOCK as u64));
    assert_eq!(bench.size(), 100);
}

#[test]
fn a_long_gap_is_zeroed_in_many_bios() {
    let mut bench = Bench::with(|disk| disk.limits.bytes_max = 3 * 512);
    bench.fs.place(FILE, 0..64, State::Written);
    bench.fs.inode(FILE).size = 100;
    bench.write(63 * BLOCK, &data(512, 1)).unwrap();
    let mut expected = in_zeros(63 * BLOCK + 512, 63 * BLOCK, &data(512, 1));
    expected[..100].fill(STALE);
    assert!(bench.contents() == expected);
}

#[test]
fn a_range_from_any_byte_to_any_other_is_zeroed() {
    for state in [State::Written, State::Shared(None)] {
        for (at, len) in [(100, 7), (100, 2 * BLOCK), (512, 512), (511, 1), (0, 3 * BLOCK)] {
            let mut bench = file_of(3, state);
            let result = bench.run(Request::zero(FILE, at as u64, len as u64)).result;
            assert_eq!(result, Ok(len as u64));
            let mut expected = vec![STALE; 3 * BLOCK];
            expected[at..at + len].fill(0);
            assert!(bench.contents() == expected, "{at} {len} {state:?}");
        }
    }
}

#[test]
fn zeroing_leaves_holes_unwritten_blocks_and_the_size_as_they_are() {
    let mut bench = Bench::new();
    bench.fs.place(FILE, 1..2, State::Unwritten);
    bench.fs.place(FILE, 3..4, State::Written);
    bench.fs.inode(FILE).size = 2 * BLOCK as u64;
    bench.run(Request::zero(FILE, 0, 8 * BLOCK as u64)).result.unwrap();
    let block = BLOCK as u64;
    assert_eq!(bench.bios(), [(Op::Write, 2 * block, block)]);
    assert_eq!((bench.size(), bench.fs.inode(FILE).blocks.len()), (2 * BLOCK, 2));
}

#[test]
fn zeroing_durably_is_flushed_and_committed() {
    let mut bench = file_of(1, State::Written);
    let request = Request::zero(FILE, 100, 1000).with_flags(DSYNC);
    assert_eq!(bench.run(request).result, Ok(1000));
    assert_eq!(bench.bios().last(), Some(&(Op::Flush, 0, 0)));
    assert_eq!(bench.events().last(), Some(&Event::Commit));
}

#[test]
fn zeroing_cannot_be_atomic_and_does_not_go_beyond_any_file() {
    let mut bench = file_of(1, State::Written);
    let result = bench.run(Request::zero(FILE, 0, 512).with_flags(ATOMIC)).result;
    assert_eq!(result, Err(Error::NotAtomic { offset: 0, len: 512 }));
    let result = bench.run(Request::zero(FILE, 1, u64::MAX)).result;
    assert_eq!(result, Err(Error::TooFar { offset: 1, len: u64::MAX }));
}

#[test]
fn inline_data_are_zeroed_and_not_made_longer() {
    let mut bench = Bench::new();
    bench.fs.inode(FILE).inline = Some(data(700, 1));
    bench.fs.inode(FILE).size = 700;
    bench.run(Request::zero(FILE, 600, 1000)).result.unwrap();
    assert!(bench.contents() == in_zeros(700, 0, &data(700, 1)[..600]));
    bench.run(Request::zero(FILE, 100, 50)).result.unwrap();
    let expected = [&data(700, 1)[..100], &[0; 50], &data(700, 1)[150..600], &[0; 100]].concat();
    assert!(bench.contents() == expected);
}

#[test]
fn two_writes_to_one_unwritten_block_do_not_zero_each_other() {
    let mut bench = file_of(1, State::Unwritten);
    bench.submit(bench.write_of(0, &data(512, 1)));
    bench.submit(bench.write_of(2048, &data(512, 2)));
    assert!(bench.finish(2).iter().all(|finished| finished.result.is_ok()));
    let mut expected = in_zeros(BLOCK, 0, &data(512, 1));
    expected[2048..2560].copy_from_slice(&data(512, 2));
    assert!(bench.contents() == expected);
}

#[test]
fn appends_in_flight_together_do_not_zero_each_other() {
    let mut bench = file_of(4, State::Written);
    bench.fs.inode(FILE).size = 0;
    let bytes = data(4 * BLOCK, 1);
    for (at, piece) in bytes.chunks(BLOCK).enumerate() {
        bench.submit(bench.write_of(at * BLOCK, piece));
    }
    bench.finish(4);
    assert!(bench.contents() == bytes);
}

#[test]
fn writes_to_other_blocks_and_files_go_on_together() {
    let mut bench = file_of(4, State::Written);
    for block in 0..4 {
        bench.submit(bench.write_of(block * BLOCK, &data(BLOCK, 1)));
    }
    let mut other = bench.write_of(0, &data(BLOCK, 1));
    other.file = FILE + 1;
    bench.submit(other);
    assert_eq!(bench.disk().in_flight(), 5);
}

#[test]
fn unwritten_blocks_are_converted_only_after_their_data_are_there() {
    let mut bench = file_of(2, State::Unwritten);
    bench.disk().ends_per_reap = 1;
    bench.disk().limits.bytes_max = BLOCK;
    bench.submit(bench.write_of(0, &data(2 * BLOCK, 1)));
    assert!(bench.reap().is_empty());
    assert_eq!((bench.ioends(), bench.contents()), (vec![], vec![0; 2 * BLOCK]));
    bench.finish(1);
    assert!(bench.contents() == data(2 * BLOCK, 1));
}

#[test]
fn a_durable_write_is_flushed_then_told_then_committed() {
    let mut bench = file_of(2, State::Unwritten);
    bench.write_with(512, &data(BLOCK, 1), DSYNC).unwrap();
    let events = bench.events();
    let place = |wanted: &dyn Fn(&Event) -> bool| events.iter().position(wanted).unwrap();
    let last = |wanted: &dyn Fn(&Event) -> bool| events.iter().rposition(wanted).unwrap();
    let is_write_end = |event: &Event| *event == Event::BioEnded { op: Op::Write };
    let is_flush = |event: &Event| matches!(event, Event::Submitted { op: Op::Flush, .. });
    let flush_end = place(&|event| *event == Event::BioEnded { op: Op::Flush });
    let told = place(&|event| matches!(event, Event::Complete(_)));
    let committed = place(&|event| *event == Event::Commit);
    assert!(last(&is_write_end) < place(&is_flush));
    assert!(flush_end < told && told < committed);
}

#[test]
fn a_durable_write_of_one_bio_needs_no_flush() {
    let mut bench = file_of(2, State::Written);
    bench.write_with(512, &data(BLOCK, 1), DSYNC).unwrap();
    let events = bench.events();
    let submitted = events.iter().filter_map(|event| match event {
        Event::Submitted { op, fua, .. } => Some((*op, *fua)),
        _ => None,
    });
    assert_eq!(submitted.collect::<Vec<_>>(), [(Op::Write, true)]);
    assert_eq!(events.last(), Some(&Event::Commit));
}

#[test]
fn a_write_that_is_not_to_be_durable_is_neither_flushed_nor_committed() {
    let mut bench = file_of(2, State::Unwritten);
    bench.write(0, &data(BLOCK, 1)).unwrap();
    assert!(bench.bios().iter().all(|bio| bio.0 == Op::Write));
    assert!(!bench.events().contains(&Event::Commit));
}

#[test]
fn when_the_flush_fails_nothing_is_converted_or_committed() {
    let mut bench = Bench::new();
    // The data are the second bio, between two of zeros.
    bench.disk().failures = vec![(3, BioError::IO)];
    let result = bench.write_with(512, &data(512, 1), DSYNC);
    assert_eq!(result, Err(Error::Bio(BioError::IO)));
    assert_eq!(bench.bios().last().map(|bio| bio.0), Some(Op::Flush));
    assert_eq!(bench.size(), 0);
    assert!(!bench.events().contains(&Event::Commit));
}

#[test]
fn an_atomic_write_is_one_bio() {
    let mut bench = file_of(4, State::Written);
    bench.write_with(0, &data(4 * BLOCK, 1), ATOMIC).unwrap();
    let events = bench.events();
    let bios = events.iter().filter_map(|event| match event {
        Event::Submitted { len, atomic, .. } => Some((*len, *atomic)),
        _ => None,
    });
    assert_eq!(bios.collect::<Vec<_>>(), [(4 * BLOCK as u64, true)]);
}

#[test]
fn an_atomic_write_that_cannot_be_one_bio_is_invalid_and_writes_nothing() {
    let refused = |bench: &mut Bench, offset: usize, len: usize| {
        let result = bench.write_with(offset, &data(len, 1), ATOMIC);
        let (offset, len) = (offset as u64, len as u64);
        assert_eq!(result, Err(Error::NotAtomic { offset, len }));
        assert_eq!(bench.bios(), []);
    };
    let mut bench = file_of(40, State::Written);
    refused(&mut bench, 0, 3 * BLOCK);
    refused(&mut bench, BLOCK, 2 * BLOCK);
    refused(&mut bench, 0, 32 * BLOCK);
    bench.disk().limits.bytes_max = BLOCK;
    refused(&mut bench, 0, 2 * BLOCK);
    let mut bench = Bench::new();
    bench.fs.place(FILE, 0..1, State::Written);
    bench.fs.place(FILE, 1..2, State::Unwritten);
    refused(&mut bench, 0, 2 * BLOCK);
}

#[test]
fn an_atomic_write_from_memory_of_two_providers_is_invalid() {
    let mut bench = file_of(2, State::Written);
    let regions = (0..2).map(|provider| Region::anonymous(BLOCK).unwrap().with_provider(provider));
    let mut iter = IovIter::new(std::sync::Arc::new(VolatileMemory::new(regions.collect())));
    iter.push(0, 0, BLOCK).unwrap();
    iter.push(1, 0, BLOCK).unwrap();
    let len = 2 * BLOCK as u64;
    let request = Request::new(Direction::Write, FILE, 0, len, Memory::Iov(iter));
    let result = bench.run(request.with_flags(ATOMIC)).result;
    assert_eq!(result, Err(Error::NotAtomic { offset: 0, len }));
}

#[test]
fn an_atomic_write_from_memory_that_is_too_short_is_invalid() {
    let mut bench = file_of(2, State::Written);
    let mut request = bench.write_of(0, &data(2 * BLOCK, 1)).with_flags(ATOMIC);
    request.start = request.memory.len() - BLOCK;
    let len = 2 * BLOCK as u64;
    assert_eq!(bench.run(request).result, Err(Error::NotAtomic { offset: 0, len }));
}

#[test]
fn an_atomic_write_that_is_cut_short_fails() {
    let mut bench = file_of(2, State::Written);
    bench.disk().moves_max = BLOCK as u64;
    let result = bench.write_with(0, &data(2 * BLOCK, 1), ATOMIC);
    assert_eq!(result, Err(Error::Bio(BioError::IO)));
    assert_eq!(bench.bios().len(), 1);
}

#[test]
fn what_a_write_leaves_of_a_shared_block_is_copied() {
    let mut bench = Bench::new();
    bench.fs.place(FILE, 0..3, State::Written);
    let old = data(3 * BLOCK, 9);
    bench.fs.inode(FILE).size = 3 * BLOCK as u64;
    bench.write(0, &old).unwrap();
    for block in bench.fs.inode(FILE).blocks.values_mut() {
        block.1 = State::Shared(None);
    }
    let bytes = data(BLOCK, 1);
    bench.write(512, &bytes).unwrap();
    let mut expected = old.clone();
    expected[512..][..BLOCK].copy_from_slice(&bytes);
    assert!(bench.contents() == expected);
    assert!(stored(&bench, BLOCK, 3 * BLOCK) == old, "the others still have the old bytes");
    assert_eq!(bench.ioends().last().unwrap().kind, IoendKind::Shared);
}

#[test]
fn what_a_shared_block_has_behind_the_end_of_the_file_is_not_copied() {
    let mut bench = file_of(1, State::Shared(None));
    bench.fs.inode(FILE).size = 1000;
    bench.write(0, &data(512, 1)).unwrap();
    let expected = [data(512, 1), vec![STALE; 488], vec![0; BLOCK - 1000]].concat();
    assert!(stored(&bench, 2 * BLOCK, BLOCK) == expected);
}

#[test]
fn a_block_is_copied_to_another_place_in_its_sector() {
    let mut bench = Bench::with(|disk| disk.limits.sector = BlockSize::new(8192).unwrap());
    bench.fs.place(FILE, 0..2, State::Shared(None));
    bench.fs.inode(FILE).size = 2 * BLOCK as u64;
    // The second block moves from the first half of a sector to the second half of another.
    bench.medium.store(2 * BLOCK as u64, &data(BLOCK, 9));
    bench.write(BLOCK + 512, &data(1024, 1)).unwrap();
    let mut expected = [vec![STALE; BLOCK], data(BLOCK, 9)].concat();
    expected[BLOCK + 512..][..1024].copy_from_slice(&data(1024, 1));
    assert!(bench.contents() == expected);
}

#[test]
fn what_is_copied_is_read_in_parts_where_the_device_cannot_read_it_at_once() {
    let mut bench = Bench::with(|disk| {
        disk.limits.sector = BlockSize::new(8192).unwrap();
        disk.limits.bytes_max = 8192;
    });
    // The old place goes over the end of a sector, and no bio is longer than one.
    let source = 6144;
    bench.fs.inode(FILE).size = BLOCK as u64;
    bench.medium.store(source, &data(BLOCK, 9));
    let mut mapping = Mapping::new(0, BLOCK as u64, Kind::Mapped { address: 16_384 });
    (mapping.shared, mapping.source) = (true, Some(source));
    bench.fs.answer = Some(mapping);
    bench.write(BLOCK - 512, &data(512, 1)).unwrap();
    let expected = [&data(BLOCK, 9)[..BLOCK - 512], &data(512, 1)].concat();
    assert!(stored(&bench, 16_384, BLOCK) == expected);
}

#[test]
fn a_shared_block_that_moved_has_nothing_stale_behind_the_end() {
    let mut bench = file_of(1, State::Shared(None));
    bench.fs.inode(FILE).size = 100;
    // The old bytes are read and written, and zeros behind them, and then come the data.
    bench.disk().failures = vec![(3, BioError::IO)];
    assert_eq!(bench.write(1024, &data(512, 1)), Err(Error::Bio(BioError::IO)));
    let expected = [vec![STALE; 100], vec![0; BLOCK - 100]].concat();
    assert!(stored(&bench, 2 * BLOCK, BLOCK) == expected);
}

#[test]
fn a_failed_write_to_a_shared_block_leaves_the_old_one() {
    let mut bench = file_of(1, State::Shared(None));
    bench.disk().failures = vec![(0, BioError::IO)];
    assert_eq!(bench.write(0, &data(BLOCK, 1)), Err(Error::Bio(BioError::IO)));
    assert!(bench.contents() == vec![STALE; BLOCK]);
}

#[test]
fn a_shared_last_block_is_moved_and_zeroed_when_the_file_grows_behind_it() {
    for (size, at) in [(100, 1024), (100, BLOCK), (1000, 2 * BLOCK + 512)] {
        let mut bench = file_of(2, State::Shared(None));
        bench.fs.inode(FILE).size = size as u64;
        bench.write(at, &data(512, 1)).unwrap();
        let mut expected = in_zeros(at + 512, at, &data(512, 1));
        expected[..size].fill(STALE);
        assert!(bench.contents() == expected, "{size} {at}");
        assert!(stored(&bench, BLOCK, 2 * BLOCK) == vec![STALE; 2 * BLOCK]);
    }
}

#[test]
fn delayed_data_are_an_error() {
    let mut bench = file_of(1, State::Delayed);
    let fault = MappingFault::Delayed;
    assert_eq!(bench.read(0, BLOCK).0, Err(Error::Mapping { offset: 0, fault }));
}

#[test]
fn inline_data_are_read_and_written() {
    let mut bench = Bench::new();
    bench.fs.inode(FILE).inline = Some(data(700, 1));
    bench.fs.inode(FILE).size = 700;
    let (result, bytes) = bench.read(512, 1024);
    assert_eq!(result, Ok(188));
    assert!(bytes == in_zeros(1024, 0, &data(700, 1)[512..]));
    assert_eq!(bench.write_with(512, &data(512, 2), DSYNC), Ok(512));
    let expected = [&data(700, 1)[..512], &data(512, 2)].concat();
    assert!(bench.contents() == expected);
    assert_eq!(bench.bios(), []);
    assert_eq!(bench.events().last(), Some(&Event::Commit));
}

#[test]
fn what_the_file_is_longer_than_its_inline_data_reads_as_zeros() {
    let mut bench = Bench::new();
    bench.fs.inode(FILE).inline = Some(data(700, 1));
    bench.fs.inode(FILE).size = 2000;
    let (result, bytes) = bench.read(512, 2048);
    assert_eq!(result, Ok(1488));
    assert!(bytes == in_zeros(2048, 0, &data(700, 1)[512..]));
    assert_eq!(bench.read(1024, 512), (Ok(512), vec![0; 512]));
}

#[test]
fn a_corrupt_extent_behind_others_fails_the_request_and_keeps_the_size() {
    let mut bench = Bench::new();
    bench.fs.corrupt_from = 2 * BLOCK as u64;
    let result = bench.write(0, &data(4 * BLOCK, 1));
    assert_eq!(result, Err(Error::FileSystem(FsError::Corrupt)));
    assert_eq!(bench.size(), 0);
}

#[test]
fn a_read_of_a_hole_that_the_file_system_makes_up_ends() {
    let mut bench = file_of(1, State::Written);
    bench.fs.inode(FILE).size = CAPACITY as u64;
    bench.fs.answer = Some(Mapping::new(0, u64::MAX - 4095, Kind::Hole));
    assert_eq!(bench.read(0, 2 * BLOCK), (Ok(2 * BLOCK as u64), vec![0; 2 * BLOCK]));
}

#[test]
fn without_a_buffer_for_the_rest_of_a_block_a_write_waits() {
    let mut bench = file_of(1, State::Unwritten);
    let all: Vec<_> = std::iter::from_fn(|| bench.pool.take_or_reserve(1 << 20)).collect();
    let (_memory, iter) = volatile(&data(512, 1), 0);
    bench.submit(Request::new(Direction::Write, FILE, 512, 512, Memory::Iov(iter)));
    assert!(bench.reap().is_empty() && bench.bios().is_empty());
    let (_memory, iter) = volatile(&data(512, 1), 0);
    let other = Request::new(Direction::Write, FILE + 1, 512, 512, Memory::Iov(iter));
    let nowait = Flags { nowait: true, ..Flags::default() };
    assert_eq!(bench.run(other.with_flags(nowait)).result, Err(Error::Again));
    drop(all);
    bench.finish(1).pop().unwrap().result.unwrap();
    assert!(bench.contents() == in_zeros(BLOCK, 512, &data(512, 1)));
}
