//! Data that guests write and read, in every size, alignment and shape.

use holdfast_bio::ReadPolicy;
use holdfast_sim::Random;
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_virtio_driver::{Options, Range, Request, Segment, Shape, Status, TableShape};

use crate::common::{Guest, MIB, Rig, Setup, ask, assert_same, drain, guest_options, pattern};

const POLICIES: [ReadPolicy; 2] = [ReadPolicy::Always, ReadPolicy::Lazy];

/// Every kind of volume and server that data may take another way through.
fn rigs() -> impl Iterator<Item = Rig> {
    let sectors = [BlockSize::SECTOR, BlockSize::PAGE];
    let kinds = POLICIES.iter().flat_map(move |&policy| sectors.map(|sector| (policy, sector)));
    kinds.flat_map(|(policy, sector)| {
        [false, true].map(|on_file| Setup { sector, on_file, ..Setup::with_policy(policy) }.start())
    })
}

#[test]
fn every_size_and_alignment_is_read_as_it_was_written() {
    for rig in rigs() {
        let mut guest = rig.guest();
        let sizes = [512, 1024, 3584, 4096, 4608, 8192, 65536, 66048, 1 << 20, (1 << 20) + 512];
        for (round, &len) in (1..).zip(&sizes) {
            for offset in [0, 512, 4096, 7 * 512, MIB - 512, 63 * MIB - 1024] {
                for at in [0, 512, 1, 4095] {
                    let data = pattern(round ^ offset ^ at, len);
                    assert_eq!(guest.write_from(at, offset, &data), Status::Ok);
                    assert_same(&guest.read_to(at ^ 512, offset, len).unwrap(), &data);
                }
            }
        }
    }
}

#[test]
fn random_requests_leave_what_an_array_would_have() {
    const LEN: u64 = 512 << 10;
    for (seed, rig) in (1..).zip(rigs()) {
        let mut guest = rig.guest();
        let mut random = Random::new(seed);
        let mut model = vec![0; to_usize(LEN)];
        for _ in 0..400 {
            let offset = random.below(LEN / 512) * 512;
            let len = ((1 + random.below(40)) * 512).min(LEN - offset);
            let range = to_usize(offset)..to_usize(offset + len);
            match random.below(6) {
                0 | 1 => {
                    let data = pattern(random.next(), range.len());
                    assert_eq!(guest.write_from(random.below(5000), offset, &data), Status::Ok);
                    model[range].copy_from_slice(&data);
                }
                2 => {
                    let flags = if random.chance(50) { Range::UNMAP } else { 0 };
                    assert_eq!(guest.zero(offset, len, flags), Status::Ok);
                    model[range].fill(0);
                }
                3 => {
                    assert_eq!(guest.discard(offset, len), Status::Ok);
                    // Only whole sectors are given back.
                    let sector = rig.volume().geometry().sector();
                    let start = to_usize(sector.align_up(offset).unwrap());
                    let end = to_usize(sector.align_down(offset + len));
                    if start < end {
                        model[start..end].fill(0);
                    }
                }
                _ => assert_same(&guest.read(offset, range.len()).unwrap(), &model[range]),
            }
        }
        assert_same(&guest.read(0, model.len()).unwrap(), &model);
    }
}

#[test]
fn a_part_of_a_sector_is_written_and_its_neighbours_are_kept() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let mut expected = pattern(1, 3 * 4096);
    assert_eq!(guest.write(0, &expected), Status::Ok);
    for block in [0, 3, 7, 8, 12, 23] {
        let data = pattern(to_u64(block) + 2, 512);
        assert_eq!(guest.write(to_u64(block) * 512, &data), Status::Ok);
        expected[block * 512..][..512].copy_from_slice(&data);
    }
    assert_same(&guest.read(0, expected.len()).unwrap(), &expected);
}

#[test]
fn zeroed_blocks_read_as_zeros_and_their_neighbours_are_kept() {
    for (offset, len) in [(512, 512), (3584, 1024), (512, 8192), (4096, 4096), (1024, 11776)] {
        for flags in [0, Range::UNMAP] {
            let rig = Setup::default().start();
            let mut guest = rig.guest();
            let mut expected = pattern(offset, 4 * 4096);
            assert_eq!(guest.write(0, &expected), Status::Ok);
            assert_eq!(guest.zero(offset, len, flags), Status::Ok);
            expected[to_usize(offset)..][..to_usize(len)].fill(0);
            assert_same(&guest.read(0, expected.len()).unwrap(), &expected);
        }
    }
}

#[test]
fn discarded_blocks_are_zeros_in_whole_sectors_and_untouched_elsewhere() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let mut expected = pattern(1, 8 * 4096);
    assert_eq!(guest.write(0, &expected), Status::Ok);
    let request = Request::Discard {
        ranges: &[
            Range { sector: 1, sectors: 6, flags: 0 },
            Range { sector: 7, sectors: 10, flags: 0 },
            Range { sector: 32, sectors: 31, flags: 0 },
        ],
    };
    assert_eq!(guest.ask(&request), Status::Ok);
    expected[4096..8192].fill(0);
    expected[16384..28672].fill(0);
    assert_same(&guest.read(0, expected.len()).unwrap(), &expected);
}

#[test]
fn sixteen_ranges_in_one_request_are_all_made_zeros() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let mut expected = pattern(1, 256 << 10);
    assert_eq!(guest.write(0, &expected), Status::Ok);
    let ranges: Vec<_> =
        (0..16).map(|number| Range { sector: number * 32 + 3, sectors: 9, flags: 0 }).collect();
    assert_eq!(guest.ask(&Request::WriteZeroes { ranges: &ranges }), Status::Ok);
    for range in ranges {
        expected[to_usize(range.sector * 512)..][..9 * 512].fill(0);
    }
    assert_same(&guest.read(0, expected.len()).unwrap(), &expected);
}

#[test]
fn a_range_over_many_groups_is_made_zeros() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let edges = [512, 31 * MIB, 63 * MIB];
    for edge in edges {
        assert_eq!(guest.write(edge - 512, &pattern(edge, 8192)), Status::Ok);
    }
    assert_eq!(guest.zero(512, 63 * MIB - 512, Range::UNMAP), Status::Ok);
    assert_same(&guest.read(0, 512).unwrap(), &pattern(512, 512));
    assert_same(&guest.read(512, 8192).unwrap(), &[0; 8192]);
    assert_same(&guest.read(31 * MIB - 512, 8192).unwrap(), &[0; 8192]);
    assert_same(&guest.read(63 * MIB - 512, 512).unwrap(), &[0; 512]);
    assert_same(&guest.read(63 * MIB, 7680).unwrap(), &pattern(63 * MIB, 8192)[512..]);
}

/// Cuts a buffer at random places. A piece may be empty, and need not be aligned to anything.
fn pieces(random: &mut Random, base: u64, len: usize, most: u64) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut at = 0;
    while at < to_u64(len) {
        let piece = random.below(most).min(to_u64(len) - at);
        segments.push(Segment { address: base + at, len: u32::try_from(piece).unwrap() });
        at += piece;
    }
    segments
}

#[test]
fn a_request_in_many_odd_pieces_moves_the_same_bytes() {
    for (seed, rig) in (1..).zip(rigs()) {
        let mut random = Random::new(seed);
        let mut guest =
            Guest::new(&rig.path(0), &Options { segments_max: 1000, ..guest_options() });
        let base = guest.base + 64;
        for round in 0..40 {
            let len = to_usize(1 + random.below(60)) * 512;
            let offset = random.below(2000) * 512;
            let data = pattern(round, len);
            guest.memory.write(base, &data).unwrap();
            let shape = Shape {
                table: [TableShape::Indirect, TableShape::After(1)][usize::from(random.chance(50))],
                header_cuts: u16::try_from(random.below(1 << 16)).unwrap(),
                joins_header: random.chance(50),
                joins_status: random.chance(50),
            };
            let source = pieces(&mut random, base, len, 900);
            let write = Request::Write { sector: offset / 512, source: &source };
            assert_eq!(ask(guest.client.queue(1), &write, shape).status, Status::Ok);
            let target = pieces(&mut random, base + MIB, len, 900);
            let read = Request::Read { sector: offset / 512, target: &target };
            let ended = ask(guest.client.queue(0), &read, shape);
            assert_eq!(
                (ended.status, ended.written),
                (Status::Ok, u32::try_from(len).unwrap() + 1)
            );
            let mut found = vec![0; len];
            guest.memory.read(base + MIB, &mut found).unwrap();
            assert_same(&found, &data);
        }
    }
}

#[test]
fn a_buffer_may_lie_in_two_regions() {
    for policy in POLICIES {
        let rig = Setup::with_policy(policy).start();
        let mut guest = rig.guest();
        let border = guest.memory.border().unwrap();
        let middle = u64::midpoint(border.start, border.end);
        for before in [512, 4096, 1000] {
            let address = middle - before;
            let segment = [Segment { address, len: 8192 }];
            let data = pattern(before, 8192);
            guest.memory.write(address, &data).unwrap();
            assert_eq!(guest.ask(&Request::Write { sector: 9, source: &segment }), Status::Ok);
            guest.memory.write(address, &[0; 8192]).unwrap();
            assert_eq!(guest.ask(&Request::Read { sector: 9, target: &segment }), Status::Ok);
            let mut found = vec![0; 8192];
            guest.memory.read(address, &mut found).unwrap();
            assert_same(&found, &data);
        }
    }
}

#[test]
fn one_page_listed_for_every_sector_gets_the_data_of_one_of_them() {
    for policy in POLICIES {
        let rig = Setup::with_policy(policy).start();
        let mut guest = rig.guest();
        let data = pattern(1, 16 * 4096);
        assert_eq!(guest.write(0, &data), Status::Ok);
        let target = [Segment { address: guest.base, len: 4096 }; 16];
        assert_eq!(guest.ask(&Request::Read { sector: 0, target: &target }), Status::Ok);
        let mut found = vec![0; 4096];
        guest.memory.read(guest.base, &mut found).unwrap();
        assert!(data.chunks(4096).any(|sector| sector == found));
        assert_eq!(rig.volume().errors().guard, 0);
    }
}

#[test]
fn full_queues_of_every_kind_move_the_right_data() {
    for (event_index, indirect, poll_us) in [(true, true, 0), (false, true, 50), (true, false, 50)]
    {
        let setup = Setup::default();
        let poll = std::time::Duration::from_micros(poll_us);
        let setup =
            Setup { options: holdfast_vhost_user_blk::Options { poll, ..setup.options }, ..setup };
        let rig = setup.start();
        let options = Options { event_index, indirect, ..guest_options() };
        let mut guest = Guest::new(&rig.path(0), &options);
        fill_and_check(&mut guest, 4);
    }
}

/// Writes and reads with as many requests as fit the queue, again and again.
fn fill_and_check(guest: &mut Guest, rounds: u64) {
    const EACH: u64 = 4096 + 512;
    for round in 0..rounds {
        let data = pattern(round, 32 * to_usize(EACH));
        guest.memory.write(guest.base, &data).unwrap();
        for is_write in [true, false] {
            let queue = guest.client.queue(u16::from(!is_write));
            for number in 0..32 {
                let at = number * EACH + if is_write { 0 } else { MIB };
                let segment = [Segment { address: guest.base + at, len: 4608 }];
                let sector = number * EACH / 512 + round;
                let request = match is_write {
                    true => Request::Write { sector, source: &segment },
                    false => Request::Read { sector, target: &segment },
                };
                queue.submit(&request, Shape::default()).unwrap();
                if number % 5 == 0 {
                    queue.kick().unwrap();
                }
            }
            let ended = drain(queue);
            assert!(ended.iter().all(|ended| ended.status == Status::Ok));
        }
        let mut found = vec![0; data.len()];
        guest.memory.read(guest.base + MIB, &mut found).unwrap();
        assert_same(&found, &data);
    }
}

#[test]
fn little_buffer_memory_is_enough() {
    for policy in POLICIES {
        let setup = Setup::with_policy(policy);
        let options = holdfast_vhost_user_blk::Options { buffer_bytes: 1, ..setup.options };
        let rig = Setup { options, ..setup }.start();
        let mut guest = rig.guest();
        fill_and_check(&mut guest, 2);
        let data = pattern(9, Guest::BUFFER);
        assert_eq!(guest.write(512, &data), Status::Ok);
        assert_same(&guest.read(512, Guest::BUFFER).unwrap(), &data);
    }
}
