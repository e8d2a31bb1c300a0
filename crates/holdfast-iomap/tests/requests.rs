//! What any request does: its mappings and bios, its errors, and its memory.

use holdfast_bio::{Error as BioError, Op};
use holdfast_iomap::{
    Direction, Error, Extents, Flags, How, IoendKind, Kind, Mapper, Mapping, MappingFault, Purpose,
    Request,
};
use holdfast_iov::Memory;
use holdfast_units::BlockSize;

use crate::common::fs::{FsError, State};
use crate::common::{BLOCK, Bench, CAPACITY, Event, FILE, data, volatile};

const NOWAIT: Flags =
    Flags { nowait: true, dsync: false, atomic: false, polled: false, block_aligned: false };

/// Returns a bench with a file of `blocks` blocks, each in a place of its own.
fn scattered(blocks: usize) -> Bench {
    let mut bench = Bench::new();
    bench.fs.run = 1;
    bench.fs.place(FILE, 0..blocks as u64, State::Written);
    bench.fs.inode(FILE).size = (blocks * BLOCK) as u64;
    bench
}

#[test]
fn one_request_goes_over_many_extents_and_bios() {
    let mut bench = scattered(8);
    let bytes = data(8 * BLOCK, 1);
    assert_eq!(bench.write(0, &bytes), Ok(bytes.len() as u64));
    let bios = bench.bios();
    assert_eq!(bios.len(), 8);
    assert!(bios.iter().all(|&(op, _, len)| (op, len) == (Op::Write, BLOCK as u64)));
    assert!(bench.contents() == bytes);
    assert_eq!(bench.read(0, 8 * BLOCK), (Ok(bytes.len() as u64), bytes));
}

#[test]
fn an_error_seen_by_a_completion_stops_further_submission() {
    let mut bench = scattered(60);
    bench.disk().ends_per_reap = 4;
    bench.disk().failures = vec![(2, BioError::NoSpace)];
    bench.submit(bench.write_of(0, &data(60 * BLOCK, 1)));
    assert_eq!(bench.disk().in_flight(), 16, "no more than a window is submitted");
    assert!(bench.reap().is_empty(), "what was submitted is waited for");
    let finished = bench.finish(1).pop().unwrap();
    assert_eq!(finished.result, Err(Error::Bio(BioError::NoSpace)));
    let ended =
        bench.events().iter().filter(|event| matches!(event, Event::BioEnded { .. })).count();
    assert_eq!((bench.bios().len(), ended), (16, 16));
}

#[test]
fn every_byte_that_was_submitted_is_told_once_also_after_an_error() {
    let mut bench = scattered(20);
    bench.disk().failures = vec![(2, BioError::NoSpace)];
    let result = bench.write(0, &data(20 * BLOCK, 1));
    assert_eq!(result, Err(Error::Bio(BioError::NoSpace)));
    let told: u64 = bench.ioends().iter().map(|ioend| ioend.len).sum();
    assert!(bench.ioends().iter().all(|ioend| ioend.result.is_err()));
    assert_eq!(told, bench.bios().iter().map(|bio| bio.2).sum());
}

#[test]
fn bios_are_released_before_their_request_completes() {
    let mut bench = Bench::with(|disk| disk.limits.stable_pages = true);
    bench.fs.place(FILE, 0..4, State::Unwritten);
    let (_memory, iter) = volatile(&data(4 * BLOCK, 1), 0);
    bench.fs.watched = Some(bench.pool.clone());
    let len = (4 * BLOCK) as u64;
    let finished = bench.run(Request::new(Direction::Write, FILE, 0, len, Memory::Iov(iter)));
    assert_eq!(finished.result, Ok(len));
    assert_eq!(bench.ioends().len(), 1, "the file system saw that all buffers were free");
}

#[test]
fn a_buffer_comes_back_as_one_after_it_was_moved_in_parts() {
    let mut bench = scattered(3);
    let finished = bench.run(bench.write_of(0, &data(3 * BLOCK, 1)));
    assert!(finished.request.memory.buffer().is_some());
    let read = bench.run(bench.read_of(0, 3 * BLOCK));
    assert!(matches!(read.request.memory, Memory::Buffer(_)));
}

#[test]
fn a_shared_buffer_is_written_and_stays_shared() {
    let mut bench = scattered(3);
    let mut memory = bench.buffer(&data(3 * BLOCK, 1));
    let shared = memory.share().unwrap();
    let len = (3 * BLOCK) as u64;
    let finished = bench.run(Request::new(Direction::Write, FILE, 0, len, shared));
    assert!(matches!(finished.request.memory, Memory::Shared(_)));
    assert!(bench.contents() == data(3 * BLOCK, 1));
}

#[test]
fn a_part_of_a_buffer_is_moved_from_where_it_starts() {
    let mut bench = scattered(2);
    let mut request = bench.write_of(0, &data(3 * BLOCK, 1));
    (request.start, request.len) = (700, 2 * BLOCK as u64);
    let finished = bench.run(request);
    assert_eq!(finished.result, Ok(2 * BLOCK as u64));
    assert!(bench.contents() == data(3 * BLOCK, 1)[700..][..2 * BLOCK]);
}

#[test]
fn a_read_at_an_odd_start_is_zeroed_behind_the_end_of_the_file_only() {
    let mut bench = scattered(1);
    bench.fs.inode(FILE).size = 1000;
    let mut request = bench.read_of(0, 3 * BLOCK);
    (request.start, request.len) = (700, BLOCK as u64);
    let finished = bench.run(request);
    assert_eq!(finished.result, Ok(1000));
    let bytes = &finished.request.memory.buffer().unwrap().as_slice()[..3 * BLOCK];
    let zeros = bytes.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at);
    assert!(zeros.eq(1700..700 + BLOCK));
}

#[test]
fn short_transfers_are_gone_on_with() {
    for moves_max in [512, 1536, 100_000] {
        let mut bench = scattered(4);
        bench.disk().moves_max = moves_max;
        let bytes = data(4 * BLOCK - 512, 1);
        assert_eq!(bench.write(512, &bytes), Ok(bytes.len() as u64));
        assert_eq!(bench.read(512, bytes.len()), (Ok(bytes.len() as u64), bytes));
    }
}

#[test]
fn a_transfer_that_ends_inside_a_sector_is_gone_on_with_from_its_beginning() {
    let mut bench = scattered(2);
    bench.disk().tells_less = 24;
    let bytes = data(2 * BLOCK, 1);
    assert_eq!(bench.write(0, &bytes), Ok(bytes.len() as u64));
    assert_eq!(bench.bios()[2], (Op::Write, 2 * BLOCK as u64 - 512, 512));
    assert_eq!(bench.read(0, bytes.len()), (Ok(bytes.len() as u64), bytes));
}

#[test]
fn a_buffer_that_suits_the_sectors_of_the_device_is_not_copied() {
    for (start, copied) in [(512, false), (0, true), (1024, true)] {
        let mut bench = Bench::with(|disk| disk.limits.sector = BlockSize::PAGE);
        bench.fs.place(FILE, 0..2, State::Written);
        bench.fs.inode(FILE).size = 2 * BLOCK as u64;
        let mut request = bench.write_of(512, &data(BLOCK + 1024, 1));
        (request.start, request.len) = (start, BLOCK as u64);
        bench.run(request).result.unwrap();
        let bytes = &data(BLOCK + 1024, 1)[start..][..BLOCK];
        assert!(bench.contents()[512..512 + BLOCK] == *bytes);
        assert_eq!(bench.io.device().counters().bounced > 0, copied, "{start}");
    }
}

#[test]
fn a_transfer_of_nothing_is_an_error() {
    let mut bench = scattered(1);
    bench.disk().moves_max = 0;
    assert_eq!(bench.write(0, &data(BLOCK, 1)), Err(Error::Bio(BioError::IO)));
}

#[test]
fn what_finds_the_queue_full_is_sent_later() {
    let mut bench = scattered(40);
    bench.disk().depth = 3;
    let bytes = data(40 * BLOCK, 1);
    let (first, second) = bytes.split_at(17 * BLOCK);
    bench.submit(bench.write_of(0, first));
    bench.submit(bench.write_of(first.len(), second));
    assert!(bench.finish(2).iter().all(|finished| finished.result.is_ok()));
    assert!(bench.contents() == bytes);
}

#[test]
fn an_error_keeps_what_found_the_queue_full_from_being_sent() {
    let mut bench = scattered(16);
    bench.disk().depth = 3;
    bench.disk().failures = vec![(0, BioError::NoSpace)];
    let result = bench.write(0, &data(16 * BLOCK, 1));
    assert_eq!(result, Err(Error::Bio(BioError::NoSpace)));
    assert_eq!(bench.bios().len(), 3);
}

#[test]
fn nowait_gives_eagain_where_metadata_are_not_there() {
    let mut bench = scattered(4);
    bench.fs.unknown_from = 2 * BLOCK as u64;
    let result = bench.write_with(0, &data(4 * BLOCK, 1), NOWAIT);
    assert_eq!(result, Err(Error::Again));
    let ended =
        bench.events().iter().filter(|event| matches!(event, Event::BioEnded { .. })).count();
    assert_eq!(ended, 2, "what was submitted before was waited for");
    assert_eq!(bench.write_with(0, &data(2 * BLOCK, 1), NOWAIT), Ok(2 * BLOCK as u64));
}

#[test]
fn nowait_gives_eagain_where_another_write_has_the_block() {
    let mut bench = scattered(1);
    bench.submit(bench.write_of(0, &data(512, 1)).with_user(1));
    bench.submit(bench.write_of(1024, &data(512, 2)).with_flags(NOWAIT).with_user(2));
    let results = bench.finish(2).into_iter().map(|item| (item.request.user, item.result.is_ok()));
    let mut results: Vec<_> = results.collect();
    results.sort_unstable();
    assert_eq!(results, [(1, true), (2, false)]);
}

#[test]
fn nowait_gives_eagain_where_the_queue_is_full() {
    let mut bench = scattered(1);
    bench.disk().depth = 0;
    let finished = bench.run(bench.write_of(0, &data(512, 1)).with_flags(NOWAIT));
    assert_eq!(finished.result, Err(Error::Again));
    assert!(matches!(finished.request.memory, Memory::Buffer(_)));
}

#[test]
fn only_a_request_of_one_bio_is_polled() {
    let mut bench = scattered(2);
    let polled = Flags { polled: true, ..Flags::default() };
    bench.write_with(0, &data(512, 1), polled).unwrap();
    bench.write_with(0, &data(2 * BLOCK, 1), polled).unwrap();
    // It ends the file inside a block, so the rest of the block is a bio, too.
    bench.fs.inode(FILE).size = 0;
    bench.write_with(0, &data(512, 1), polled).unwrap();
    let events = bench.events();
    let polled = events.iter().filter_map(|event| match event {
        Event::Submitted { polled, .. } => Some(*polled),
        _ => None,
    });
    assert_eq!(polled.collect::<Vec<_>>(), [true, false, false, false, false]);
}

#[test]
fn block_aligned_requests_are_made_of_whole_blocks() {
    let aligned = Flags { block_aligned: true, ..Flags::default() };
    let mut bench = Bench::with(|disk| disk.limits.bytes_max = BLOCK + 512);
    bench.fs.place(FILE, 0..4, State::Written);
    bench.fs.inode(FILE).size = 4 * BLOCK as u64;
    let bytes = data(4 * BLOCK, 1);
    bench.write_with(0, &bytes, aligned).unwrap();
    assert!(bench.bios().iter().all(|bio| bio.2 == BLOCK as u64), "{:?}", bench.bios());
    let unaligned = bench.write_with(512, &bytes[..BLOCK], aligned);
    let unit = BLOCK as u64;
    assert_eq!(unaligned, Err(Error::Misaligned { offset: 512, len: unit, unit }));
    bench.clear_log();
    bench.write(0, &bytes).unwrap();
    assert_eq!(bench.bios()[0].2, BLOCK as u64 + 512, "without the flag they are cut anywhere");
}

#[test]
fn a_block_that_is_too_long_for_a_bio_is_an_error_when_blocks_must_be_whole() {
    let aligned = Flags { block_aligned: true, ..Flags::default() };
    let mut bench = Bench::with(|disk| disk.limits.bytes_max = 512);
    bench.fs.place(FILE, 0..1, State::Written);
    let result = bench.write_with(0, &data(BLOCK, 1), aligned);
    assert!(matches!(result, Err(Error::Bio(BioError::Range { .. }))), "{result:?}");
}

#[test]
fn volatile_memory_is_bounced_when_the_device_needs_stable_memory() {
    for (stable_pages, is_volatile, skip, bounced) in [
        (true, true, 0, true),
        (true, false, 0, false),
        (false, true, 0, false),
        (false, true, 100, true),
    ] {
        let mut bench = Bench::with(|disk| disk.limits.stable_pages = stable_pages);
        bench.fs.place(FILE, 0..2, State::Written);
        let bytes = data(2 * BLOCK, 1);
        let (_memory, iter) = volatile(&bytes, skip);
        let memory = if is_volatile { Memory::Iov(iter) } else { bench.buffer(&bytes) };
        let request = Request::new(Direction::Write, FILE, 0, 2 * BLOCK as u64, memory);
        bench.run(request).result.unwrap();
        let counters = bench.io.device().counters();
        assert_eq!(counters.bounced > 0, bounced, "{stable_pages} {is_volatile} {skip}");
        assert!(bench.contents() == bytes);
    }
}

#[test]
fn a_bounced_read_over_several_extents_is_copied_back() {
    let mut bench = Bench::with(|disk| disk.limits.stable_pages = true);
    bench.fs.run = 1;
    bench.write(0, &data(4 * BLOCK, 1)).unwrap();
    let (memory, iter) = volatile(&[0x55; 4 * BLOCK], 4);
    let len = 4 * BLOCK as u64;
    bench.run(Request::new(Direction::Read, FILE, 0, len, Memory::Iov(iter))).result.unwrap();
    let mut found = vec![0; 4 * BLOCK];
    memory.region(0).unwrap().read(4, &mut found).unwrap();
    assert!(found == data(4 * BLOCK, 1));
}

#[test]
fn what_does_not_suit_the_device_is_refused() {
    let mut bench = scattered(1);
    let mut result = |offset, len| {
        let request = Request::new(Direction::Read, FILE, offset, len, Memory::None);
        bench.run(request).result
    };
    assert_eq!(result(100, 512), Err(Error::Misaligned { offset: 100, len: 512, unit: 512 }));
    assert_eq!(result(512, 100), Err(Error::Misaligned { offset: 512, len: 100, unit: 512 }));
    let (offset, len) = (u64::MAX - 511, 512);
    assert_eq!(result(offset, len), Err(Error::TooFar { offset, len }));
    assert_eq!(result(0, 512), Err(Error::Memory { found: 0, unit: 512 }));
    assert_eq!(result(0, 0), Ok(0));
}

#[test]
fn a_read_only_device_takes_no_writes_and_memory_lent_as_a_source_no_reads() {
    let mut bench = Bench::with(|disk| disk.limits.read_only = true);
    assert_eq!(bench.write(0, &data(512, 1)), Err(Error::Bio(BioError::ReadOnly)));
    let source = [0; 512];
    let result = holdfast_iov::lend(&source, |iter| {
        bench.run(Request::new(Direction::Read, FILE, 0, 512, Memory::Iov(iter))).result
    });
    assert_eq!(result, Err(Error::Bio(BioError::Unsupported)));
}

#[test]
fn lent_memory_is_used_without_a_copy_and_let_go() {
    let mut bench = scattered(2);
    let bytes = data(2 * BLOCK, 1);
    let buffer = bench.buffer(&bytes);
    let source = &buffer.buffer().unwrap().as_slice()[..2 * BLOCK];
    holdfast_iov::lend(source, |iter| {
        let memory = Memory::Iov(iter);
        let request = Request::new(Direction::Write, FILE, 0, 2 * BLOCK as u64, memory);
        bench.run(request).result.unwrap();
    });
    assert_eq!(bench.io.device().counters().bounced, 0);
    assert!(bench.contents() == bytes);
}

#[test]
fn the_file_systems_error_is_the_requests() {
    let mut bench = scattered(4);
    bench.fs.corrupt_from = 3 * BLOCK as u64;
    let corrupt = Error::FileSystem(FsError::Corrupt);
    assert_eq!(bench.write(0, &data(4 * BLOCK, 1)), Err(corrupt.clone()));
    bench.fs.corrupt_from = u64::MAX;
    bench.fs.complete_fails = true;
    assert_eq!(bench.write(0, &data(BLOCK, 1)), Err(corrupt.clone()));
    bench.fs.complete_fails = false;
    bench.fs.end_fails = true;
    assert_eq!(bench.write(0, &data(BLOCK, 1)), Err(corrupt.clone()));
    bench.fs.corrupt_from = 0;
    assert_eq!(bench.write(0, &data(BLOCK, 1)), Err(corrupt));
}

#[test]
fn mappings_that_cannot_be_used_are_refused() {
    let block = BLOCK as u64;
    let mapped = |offset, len, address| Mapping::new(offset, len, Kind::Mapped { address });
    let inline = |len: usize| Kind::Inline(vec![0; len].into_boxed_slice());
    let shared = Mapping { source: Some(u64::MAX - 511), ..mapped(0, block, 0) };
    for (answer, fault) in [
        (mapped(block, block, 0), MappingFault::Elsewhere),
        (mapped(0, 0, 0), MappingFault::Elsewhere),
        (mapped(0, u64::MAX - 4095, u64::MAX - 511), MappingFault::OutsideDevice),
        (mapped(0, block, CAPACITY as u64), MappingFault::OutsideDevice),
        (mapped(0, block, 100), MappingFault::NotBlocks),
        (mapped(0, block + 512, 0), MappingFault::NotBlocks),
        (shared, MappingFault::OutsideDevice),
        (Mapping::new(0, block, Kind::Delayed), MappingFault::Delayed),
        (Mapping::new(0, block, Kind::Hole), MappingFault::HoleForWrite),
        (Mapping::new(0, block, inline(BLOCK + 1)), MappingFault::Inline),
        (Mapping::new(0, 1 << 40, inline(1)), MappingFault::Inline),
    ] {
        let mut bench = Bench::new();
        bench.fs.answer = Some(answer.clone());
        let result = bench.write(0, &data(512, 1));
        assert_eq!(result, Err(Error::Mapping { offset: 0, fault }), "{answer:?}");
        let events = bench.events();
        let ends = events.iter().filter(|event| matches!(event, Event::End { done: 0, .. }));
        assert_eq!(ends.count(), 1, "{answer:?}");
    }
}

#[test]
fn blocks_that_are_smaller_than_what_the_device_can_move_are_refused() {
    let mut bench = Bench::with(|disk| disk.limits.granularity = BlockSize::new(8192).unwrap());
    assert_eq!(bench.write(0, &data(8192, 1)), Err(Error::Bio(BioError::Unsupported)));
}

#[test]
fn the_file_system_is_told_how_much_of_each_mapping_was_used() {
    let mut bench = Bench::new();
    bench.fs.place(FILE, 0..2, State::Written);
    bench.fs.place(FILE, 2..3, State::Unwritten);
    bench.fs.inode(FILE).size = 3 * BLOCK as u64;
    bench.read(512, 2 * BLOCK).0.unwrap();
    let events = bench.events();
    let ends = events.iter().filter_map(|event| match event {
        Event::End { offset, done } => Some((*offset, *done)),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [(0, 2 * BLOCK as u64 - 512), (2 * BLOCK as u64, 512)]);
}

#[test]
fn extents_are_listed_one_after_the_other() {
    let mut bench = scattered(2);
    bench.fs.place(FILE, 5..6, State::Unwritten);
    let how = How::new(Purpose::Report);
    let mut extents = Extents::new(0, 6 * BLOCK as u64, how);
    let mut found = Vec::new();
    while let Some(mapping) = extents.next(&mut bench.fs, FILE).unwrap() {
        found.push((mapping.offset / BLOCK as u64, mapping.len / BLOCK as u64));
        extents.advance(extents.left());
    }
    assert_eq!(found, [(0, 1), (1, 1), (2, 3), (5, 1)]);
    assert_eq!(bench.fs.size(FILE), 2 * BLOCK as u64, "asking changes nothing");
}

#[test]
fn the_extents_end_where_one_was_not_used_up() {
    let mut bench = scattered(2);
    let mut extents = Extents::new(0, 2 * BLOCK as u64, How::new(Purpose::Report));
    assert!(extents.next(&mut bench.fs, FILE).unwrap().is_some());
    extents.advance(512);
    assert_eq!(extents.next(&mut bench.fs, FILE).unwrap(), None);
    assert_eq!((extents.at(), extents.left()), (512, 0));
}

#[test]
fn ioends_of_adjacent_writes_are_merged_and_those_of_reads_are_not() {
    let mut bench = Bench::new();
    bench.fs.place(FILE, 0..8, State::Unwritten);
    bench.fs.inode(FILE).size = 8 * BLOCK as u64;
    for block in [2, 0, 1, 6, 3] {
        bench.submit(bench.write_of(block * BLOCK, &data(BLOCK, 1)));
    }
    bench.finish(5);
    let kind = IoendKind::Unwritten;
    let found = bench.ioends().into_iter().map(|item| (item.offset, item.len, item.kind));
    let block = BLOCK as u64;
    assert_eq!(found.collect::<Vec<_>>(), [(0, 4 * block, kind), (6 * block, block, kind)]);
    bench.clear_log();
    for at in 0..4 {
        bench.submit(bench.read_of(at * BLOCK, BLOCK));
    }
    bench.finish(4);
    let ioends = bench.ioends();
    assert!(ioends.len() == 4 && ioends.iter().all(|ioend| ioend.kind == IoendKind::Read));
}

#[test]
fn a_request_that_failed_does_not_fail_its_neighbour() {
    let mut bench = scattered(2);
    bench.disk().failures = vec![(1, BioError::IO)];
    for block in 0..2 {
        bench.submit(bench.write_of(block * BLOCK, &data(BLOCK, 1)).with_user(block as u64));
    }
    let mut finished = bench.finish(2);
    finished.sort_unstable_by_key(|item| item.request.user);
    let results: Vec<_> = finished.into_iter().map(|item| item.result).collect();
    assert_eq!(results, [Ok(BLOCK as u64), Err(Error::Bio(BioError::IO))]);
}
