//! What is written through the server is read through it: in any order, from any connection, at
//! any size that the protocol has.

use std::thread;

use holdfast_sim::Random;
use holdfast_socket::Address;
use holdfast_units::{BlockSize, to_usize};

use crate::common::{
    self, Client, MIB, Mode, Setup, Socket, assert_same, command, error, flag, pattern,
};

const PAYLOAD_MAX: usize = 32 << 20;

/// Returns the numbers below `count`, shuffled.
fn shuffled(random: &mut Random, count: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    for last in (1..numbers.len()).rev() {
        numbers.swap(last, to_usize(random.below(last as u64 + 1)));
    }
    numbers
}

/// Works on its own megabytes of the disk: batches of mixed reads and writes that are all in
/// flight at once, each of another slot, against a model.
fn run_batches(client: &mut Client, base: u64, seed: u64, batches: usize, batch: u64) {
    const SLOT: u64 = 16 << 10;
    let mut random = Random::new(seed);
    let mut model = vec![0; to_usize(batch * SLOT)];
    for _ in 0..batches {
        let mut reads = Vec::new();
        let mut writes = Vec::new();
        let mut requests = Vec::new();
        for slot in shuffled(&mut random, batch) {
            let start = slot * SLOT + random.below(SLOT / 512) * 512;
            let len = 512 + random.below(((slot + 1) * SLOT - start) / 512) * 512;
            let range = to_usize(start)..to_usize(start + len);
            if random.chance(50) {
                let data = pattern(random.next(), range.len());
                let len = u32::try_from(len).unwrap();
                let (cookie, header) = client.request(command::WRITE, 0, base + start, len);
                requests.extend(header);
                requests.extend(&data);
                writes.push(cookie);
                model[range].copy_from_slice(&data);
            } else {
                let flags =
                    if client.mode == Mode::Structured && random.chance(30) { flag::DF } else { 0 };
                let len = u32::try_from(len).unwrap();
                let (cookie, header) = client.request(command::READ, flags, base + start, len);
                requests.extend(header);
                reads.push((cookie, range));
            }
        }
        let mut answers = client.finish_all(&requests);
        for cookie in writes {
            assert_eq!(answers.remove(&cookie).unwrap().error, 0);
        }
        for (cookie, range) in reads {
            assert_same(&answers.remove(&cookie).unwrap().data, &model[range]);
        }
        assert!(answers.is_empty());
    }
    let found = client.read(base, u32::try_from(model.len()).unwrap()).unwrap();
    assert_same(&found, &model);
}

#[test]
fn two_hundred_requests_in_flight_get_the_right_data() {
    for mode in [Mode::Simple, Mode::Structured] {
        let rig = Setup::default().start();
        run_batches(&mut rig.client(mode), MIB + 512, 1, 10, 200);
    }
}

#[test]
fn more_requests_than_the_server_takes_at_once_are_all_answered() {
    let rig = Setup::default().start();
    run_batches(&mut rig.client(Mode::Structured), 0, 2, 2, 1000);
}

#[test]
fn a_volume_with_small_sectors_gets_the_right_data() {
    let rig = Setup { sector: BlockSize::SECTOR, ..Setup::default() }.start();
    run_batches(&mut rig.client(Mode::Structured), 512, 3, 5, 200);
}

#[test]
fn sixteen_connections_at_once_get_the_right_data() {
    let rig = Setup::default().start();
    thread::scope(|scope| {
        for number in 0..16 {
            let rig = &rig;
            scope.spawn(move || {
                let mode = if number % 2 == 0 { Mode::Simple } else { Mode::Structured };
                run_batches(&mut rig.client(mode), number * 4 * MIB, number, 4, 200);
            });
        }
    });
}

#[test]
fn little_memory_is_enough_for_sixteen_connections() {
    let rig = Setup { pool_bytes: 1 << 20, ..Setup::default() }.start();
    thread::scope(|scope| {
        for number in 0..16 {
            let rig = &rig;
            scope.spawn(move || {
                let mode = if number % 2 == 0 { Mode::Simple } else { Mode::Structured };
                run_batches(&mut rig.client(mode), number * 4 * MIB, number, 3, 60);
            });
        }
    });
}

#[test]
fn a_file_is_served_to_eight_connections_through_two_reactors() {
    let rig = Setup { reactors: 2, ..Setup::default() }.start_on_file();
    thread::scope(|scope| {
        for number in 0..8 {
            let rig = &rig;
            scope.spawn(move || {
                let mode = if number % 2 == 0 { Mode::Simple } else { Mode::Structured };
                run_batches(&mut rig.client(mode), number * 8 * MIB, number, 4, 200);
            });
        }
    });
}

#[test]
fn two_reactors_serve_clients_that_write_the_same_sectors() {
    let rig = Setup { reactors: 2, ..Setup::default() }.start();
    write_stripes(&rig, 8, 20);
}

#[test]
fn neighbours_in_one_sector_are_not_lost_when_written_by_several() {
    write_stripes(&Setup::default().start(), 8, 20);
    write_stripes(&Setup::default().start_on_file(), 8, 20);
}

/// Each of `writers` connections owns every so-many-th block of 512 bytes, and writes, zeroes and
/// reads it while the others do the same beside it.
fn write_stripes(rig: &common::Rig, writers: u64, rounds: u64) {
    const BLOCKS: u64 = 16;
    let position = |writer: u64, block: u64| 4096 * 5 + (block * writers + writer) * 512;
    thread::scope(|scope| {
        for writer in 0..writers {
            scope.spawn(move || {
                let mut client = rig.client(Mode::Structured);
                for round in 0..rounds {
                    let seed = |block| (round * BLOCKS + block) * writers + writer;
                    let zeroed = |block| (block + round) % 5 == 0;
                    for block in 0..BLOCKS {
                        let at = position(writer, block);
                        if zeroed(block) {
                            client.send(command::WRITE_ZEROES, 0, at, 512);
                        } else {
                            client.send_write(0, at, &pattern(seed(block), 512));
                        }
                    }
                    assert!(client.finish().values().all(|answer| answer.error == 0));
                    for block in 0..BLOCKS {
                        let found = client.read(position(writer, block), 512).unwrap();
                        let expected =
                            if zeroed(block) { vec![0; 512] } else { pattern(seed(block), 512) };
                        assert_same(&found, &expected);
                    }
                }
            });
        }
    });
}

#[test]
fn requests_of_32_mib_carry_the_right_data() {
    let on_memory = Setup::default().start();
    let on_file = Setup::default().start_on_file();
    for (rig, mode, flags) in [
        (&on_memory, Mode::Structured, 0),
        (&on_memory, Mode::Structured, flag::DF),
        (&on_memory, Mode::Simple, 0),
        (&on_file, Mode::Structured, 0),
        (&on_file, Mode::Simple, 0),
    ] {
        let mut client = rig.client(mode);
        let data = pattern(flags.into(), PAYLOAD_MAX);
        assert_eq!(client.write(1536, &data), 0);
        let answer = client.call(command::READ, flags, 1536, u32::try_from(PAYLOAD_MAX).unwrap());
        assert_eq!(answer.error, 0);
        assert_same(&answer.data, &data);
        if flags == flag::DF {
            assert_eq!(answer.chunks, 1);
        }
    }
}

#[test]
fn one_run_of_bytes_over_a_corrupt_sector_is_refused_and_the_connection_goes_on() {
    for (mode, flags) in [(Mode::Simple, 0), (Mode::Structured, flag::DF)] {
        let rig = Setup::default().start();
        let mut client = rig.client(mode);
        assert_eq!(client.write(0, &pattern(1, PAYLOAD_MAX)), 0);
        assert_eq!(client.flush(), 0);
        rig.corrupt(20 * MIB + 5);
        let answer = client.call(command::READ, flags, 0, u32::try_from(PAYLOAD_MAX).unwrap());
        assert_eq!((answer.error, answer.pieces), (error::EIO, Vec::new()));
        assert_same(&client.read(19 * MIB, 1 << 20).unwrap(), &pattern(1, 20 << 20)[19 << 20..]);
        assert_eq!(client.read(20 * MIB, 4096), Err(error::EIO));
    }
}

#[test]
fn chunks_beside_a_corrupt_sector_are_delivered_before_the_error() {
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let data = pattern(2, PAYLOAD_MAX);
    assert_eq!(client.write(0, &data), 0);
    rig.corrupt(20 * MIB + 5);
    let answer = client.call(command::READ, 0, 0, u32::try_from(PAYLOAD_MAX).unwrap());
    assert_eq!(answer.error, error::EIO);
    assert!(answer.pieces.iter().any(|&(_, len)| len > 0), "{:?}", answer.pieces);
    for &(start, len) in &answer.pieces {
        let range = to_usize(start)..to_usize(start + len);
        assert!(!range.contains(&to_usize(20 * MIB + 5)));
        assert_same(&answer.data[range.clone()], &data[range]);
    }
    assert_same(&client.read(0, 4096).unwrap(), &data[..4096]);
}

#[test]
fn others_are_served_while_corrupt_runs_are_asked_for() {
    let rig = Setup::default().start();
    assert_eq!(rig.client(Mode::Simple).write(0, &pattern(1, PAYLOAD_MAX)), 0);
    rig.corrupt(31 * MIB);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = rig.client(Mode::Simple);
            for _ in 0..4 {
                assert_eq!(client.read(0, u32::try_from(PAYLOAD_MAX).unwrap()), Err(error::EIO));
            }
        });
        scope.spawn(|| run_batches(&mut rig.client(Mode::Structured), 40 * MIB, 4, 4, 200));
    });
}

/// The client takes each reply as one piece: bytes of another in the middle would be noticed.
#[test]
fn replies_that_wait_for_a_long_run_come_whole_and_after_it() {
    for mode in [Mode::Simple, Mode::Structured] {
        let rig = Setup::default().start();
        let mut client = rig.client(mode);
        let data = pattern(3, 48 << 20);
        assert_eq!(client.write(0, &data[..PAYLOAD_MAX]), 0);
        assert_eq!(client.write(32 * MIB, &data[PAYLOAD_MAX..]), 0);
        let flags = if mode == Mode::Structured { flag::DF } else { 0 };
        let mut expected = Vec::new();
        for round in 0..4_u64 {
            for (offset, len) in [(round * 4096, 8 << 20), (30 * MIB, 3 << 20), (512, 4096)] {
                let len_sent = u32::try_from(len).unwrap();
                expected.push((client.send(command::READ, flags, offset, len_sent), offset, len));
            }
            client.send(command::FLUSH, 0, 0, 0);
            client.send(command::READ, 0, 64 * MIB, 512);
        }
        let answers = client.finish();
        for (cookie, offset, len) in expected {
            assert_same(&answers[&cookie].data, &data[to_usize(offset)..][..len]);
        }
        let refused = answers.values().filter(|answer| answer.error == error::EINVAL).count();
        assert_eq!(refused, 4);
    }
}

/// What waits for a long run keeps memory that the run needs as well.
#[test]
fn a_long_run_is_delivered_while_many_replies_wait_for_it() {
    let rig = Setup { pool_bytes: 2 << 20, ..Setup::default() }.start();
    let mut client = rig.client(Mode::Simple);
    let data = pattern(4, 8 << 20);
    assert_eq!(client.write(0, &data), 0);
    let mut expected = Vec::new();
    for round in 0..3 {
        expected.push((client.send(command::READ, 0, 0, 8 << 20), 0, 8 << 20));
        for number in 0..80_u64 {
            let offset = (round * 80 + number) * 16384;
            expected.push((client.send(command::READ, 0, offset, 16384), to_usize(offset), 16384));
        }
    }
    let answers = client.finish();
    for (cookie, offset, len) in expected {
        assert_same(&answers[&cookie].data, &data[offset..][..len]);
    }
}

#[test]
fn any_offset_and_length_of_512_bytes_can_be_written_zeroed_trimmed_and_read() {
    const LEN: u64 = 256 << 10;
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let mut random = Random::new(5);
    let mut model = vec![0; to_usize(LEN)];
    for _ in 0..600 {
        let offset = random.below(LEN / 512) * 512;
        let len = (1 + random.below(40)) * 512;
        let len = len.min(LEN - offset);
        let range = to_usize(offset)..to_usize(offset + len);
        let sent = u32::try_from(len).unwrap();
        match random.below(4) {
            0 => {
                let data = pattern(random.next(), range.len());
                assert_eq!(client.write(offset, &data), 0);
                model[range].copy_from_slice(&data);
            }
            1 => {
                assert_eq!(client.call(command::WRITE_ZEROES, 0, offset, sent).error, 0);
                model[range].fill(0);
            }
            2 => {
                assert_eq!(client.call(command::TRIM, 0, offset, sent).error, 0);
                // Only whole sectors are given back.
                let (start, end) = (range.start.next_multiple_of(4096), range.end / 4096 * 4096);
                if start < end {
                    model[start..end].fill(0);
                }
            }
            _ => assert_same(&client.read(offset, sent).unwrap(), &model[range]),
        }
    }
    assert_same(&client.read(0, u32::try_from(LEN).unwrap()).unwrap(), &model);
}

#[test]
fn what_one_connection_wrote_another_reads_and_a_third_makes_durable() {
    for reactors in [1, 2] {
        let rig = Setup { reactors, ..Setup::default() }.start();
        let [mut first, mut second, mut third] = [(); 3].map(|()| rig.client(Mode::Structured));
        let data = pattern(6, 3 << 20);
        for round in 0..8 {
            assert_eq!(first.write(round * 4 * MIB + 512, &data), 0);
            assert_same(&second.read(round * 4 * MIB + 512, 3 << 20).unwrap(), &data);
            assert_eq!(third.flush(), 0);
            assert_same(&rig.read_stored(round * 4 * MIB + 512, 3 << 20).unwrap(), &data);
        }
    }
}

#[test]
fn tcp_carries_the_same_data() {
    let anywhere = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let rig = Setup { addresses: vec![anywhere], ..Setup::default() }.start();
    let Address::Tcp(address) = *rig.listeners[1].address() else { panic!("it is TCP") };
    for mode in [Mode::Simple, Mode::Structured] {
        let mut client = Client::attach(Socket::tcp(address).unwrap(), mode).unwrap();
        run_batches(&mut client, 0, 7, 4, 200);
        let data = pattern(8, PAYLOAD_MAX);
        assert_eq!(client.write(0, &data), 0);
        assert_same(&client.read(0, u32::try_from(PAYLOAD_MAX).unwrap()).unwrap(), &data);
        assert_eq!(client.write(0, &vec![0; 4 << 20]), 0);
    }
}
