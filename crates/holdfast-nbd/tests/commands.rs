//! What each command means, and what is refused.

use holdfast_bio::Error;
use holdfast_device::MemoryDevice;
use holdfast_sim::{Fault, Faults};
use std::io::Write as _;

use crate::common::{MIB, Mode, Setup, assert_same, call, command, error, flag, pattern};

const DATA: u32 = 0;
const HOLE_AND_ZERO: u32 = 3;

#[test]
fn a_flush_makes_what_was_written_durable() {
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let data = pattern(1, 3 << 20);
    assert_eq!(client.write(512, &data), 0);
    assert_eq!(client.flush(), 0);
    assert_same(&rig.read_stored(512, 3 << 20).unwrap(), &data);
}

#[test]
fn a_write_with_fua_is_durable_when_it_is_answered() {
    for mode in [Mode::Simple, Mode::Structured] {
        let rig = Setup::default().start();
        let mut client = rig.client(mode);
        let data = pattern(2, 3 << 20);
        assert_eq!(client.write_durably(1024, &data), 0);
        assert_same(&rig.read_stored(1024, 3 << 20).unwrap(), &data);
    }
}

#[test]
fn zeros_and_trims_with_fua_are_durable_when_they_are_answered() {
    for (command, flags) in [
        (command::WRITE_ZEROES, flag::FUA),
        (command::WRITE_ZEROES, flag::FUA | flag::NO_HOLE),
        (command::TRIM, flag::FUA),
    ] {
        let rig = Setup::default().start();
        let mut client = rig.client(Mode::Structured);
        assert_eq!(client.write_durably(0, &pattern(3, 4 << 20)), 0);
        assert_eq!(client.call(command, flags, 0, 4 << 20).error, 0);
        assert_same(&rig.read_stored(0, 4 << 20).unwrap(), &vec![0; 4 << 20]);
    }
}

#[test]
fn a_trimmed_range_reads_as_zeros_in_its_whole_sectors() {
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let mut data = pattern(4, 1 << 20);
    assert_eq!(client.write(0, &data), 0);
    assert_eq!(client.call(command::TRIM, 0, 4096 + 512, 3 * 4096).error, 0);
    data[2 * 4096..4 * 4096].fill(0);
    assert_same(&client.read(0, 1 << 20).unwrap(), &data);
    assert_eq!(client.call(command::TRIM, 0, 512, 1024).error, 0, "no whole sector");
    assert_same(&client.read(0, 1 << 20).unwrap(), &data);
}

#[test]
fn a_trim_of_4_gib_is_one_request() {
    let rig = Setup { capacity: 8 << 30, ..Setup::default() }.start_on_file();
    let mut client = rig.client(Mode::Structured);
    assert_eq!(client.write((4 << 30) - 8192, &pattern(5, 16384)), 0);
    assert_eq!(client.call(command::TRIM, 0, 0, u32::MAX - 511).error, 0);
    assert_eq!(client.read((4 << 30) - 8192, 4096), Ok(vec![0; 4096]));
    assert_same(&client.read(4 << 30, 4096).unwrap(), &pattern(5, 16384)[8192..12288]);
}

#[test]
fn written_zeroes_are_zeros_with_holes_and_without() {
    for on_file in [false, true] {
        for flags in [0, flag::NO_HOLE, flag::FAST_ZERO] {
            let setup = Setup::default();
            let rig = if on_file { setup.start_on_file() } else { setup.start() };
            let mut client = rig.client(Mode::Structured);
            let mut data = pattern(6, 5 << 20);
            assert_eq!(client.write(0, &data), 0);
            let answer = client.call(command::WRITE_ZEROES, flags, 1536, (4 << 20) + 512);
            // Memory cannot keep zeros allocated without writing them.
            assert_eq!(answer.error, 0, "{flags:#x}");
            data[1536..1536 + (4 << 20) + 512].fill(0);
            assert_same(&client.read(0, 5 << 20).unwrap(), &data);
        }
    }
}

#[test]
fn a_device_that_cannot_zero_fast_says_so_and_zeroes_slowly() {
    let faults = Faults { plain: true, ..Faults::default() };
    let rig = Setup { faults, ..Setup::default() }.start();
    let mut client = rig.client(Mode::Structured);
    let data = pattern(7, 1 << 20);
    assert_eq!(client.write(0, &data), 0);
    let answer = client.call(command::WRITE_ZEROES, flag::FAST_ZERO, 0, 1 << 20);
    assert_eq!(answer.error, error::ENOTSUP);
    assert_same(&client.read(0, 1 << 20).unwrap(), &data);
    assert_eq!(client.call(command::WRITE_ZEROES, 0, 0, 1 << 20).error, 0);
    assert_eq!(client.read(0, 1 << 20), Ok(vec![0; 1 << 20]));
}

#[test]
fn a_cache_request_succeeds_and_changes_nothing() {
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let data = pattern(8, 3 << 20);
    assert_eq!(client.write(0, &data), 0);
    assert_eq!(client.call(command::CACHE, 0, 512, 64 << 20 >> 1).error, 0);
    assert_same(&client.read(0, 3 << 20).unwrap(), &data);
}

#[test]
fn what_was_written_is_data_and_the_rest_is_a_hole() {
    for on_file in [false, true] {
        let setup = Setup::default();
        let rig = if on_file { setup.start_on_file() } else { setup.start() };
        let mut client = rig.client(Mode::Structured);
        assert_eq!(client.write(8192, &[0; 4096]), 0);
        assert_eq!(client.write(7 * MIB, &pattern(9, 3 << 20)), 0);
        let expected = [
            (8192, HOLE_AND_ZERO),
            (4096, DATA),
            ((7 << 20) - 12288, HOLE_AND_ZERO),
            (3 << 20, DATA),
            (54 << 20, HOLE_AND_ZERO),
        ];
        assert_eq!(client.extents(0, 0, 64 << 20), expected, "across groups");
        assert_eq!(client.extents(flag::REQ_ONE, 8192, 64 << 16), [(4096, DATA)]);
        assert_eq!(client.extents(flag::REQ_ONE, 0, 4096), [(4096, HOLE_AND_ZERO)]);
        let unaligned = client.extents(0, 8192 - 512, 4096 + 1024);
        assert_eq!(unaligned, [(512, HOLE_AND_ZERO), (4096, DATA), (512, HOLE_AND_ZERO)]);
        assert_eq!(client.extents(0, 8192 + 512, 1024), [(1024, DATA)]);
        assert_eq!(client.call(command::TRIM, 0, 7 * MIB, 2 << 20).error, 0);
        let trimmed = client.extents(0, 7 * MIB, 4 << 20);
        assert_eq!(trimmed, [(2 << 20, HOLE_AND_ZERO), (1 << 20, DATA), (1 << 20, HOLE_AND_ZERO)]);
    }
}

#[test]
fn extents_that_alternate_are_all_told_though_not_at_once() {
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let sectors = 6000;
    for sector in (0..sectors).step_by(2) {
        client.send_write(0, sector * 4096, &[1; 4096]);
        if sector % 100 == 0 {
            client.finish();
        }
    }
    client.finish();
    let (mut at, mut answers) = (0, 0);
    while at < sectors * 4096 {
        let left = u32::try_from(sectors * 4096 - at).unwrap();
        for (len, flags) in client.extents(0, at, left) {
            assert_eq!((len, flags), (4096, if at / 4096 % 2 == 0 { DATA } else { HOLE_AND_ZERO }));
            at += 4096;
        }
        answers += 1;
    }
    assert_eq!(at, sectors * 4096);
    assert!(answers > 1, "more than one answer holds");
}

#[test]
fn the_status_of_a_sparse_disk_is_told_at_once() {
    let rig = Setup { capacity: 1 << 40, ..Setup::default() }.start_on_file();
    let mut client = rig.client(Mode::Structured);
    let began = std::time::Instant::now();
    for offset in (0..1_u64 << 40).step_by(4 << 30).take(20) {
        let len = u32::MAX - 511;
        assert_eq!(client.extents(0, offset, len), [(len, HOLE_AND_ZERO)]);
    }
    assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
}

#[test]
fn what_does_not_fit_is_refused_and_the_connection_goes_on() {
    let rig = Setup { maximum: 1 << 20, ..Setup::default() }.start();
    let end = 64 * MIB;
    for mode in [Mode::Simple, Mode::Structured] {
        let overlong = if mode == Mode::Simple { error::EINVAL } else { error::EOVERFLOW };
        let mut client = rig.client(mode);
        for (command, flags, offset, len, expected) in [
            (command::READ, 0, end, 512, error::EINVAL),
            (command::READ, 0, end - 512, 1024, error::EINVAL),
            (command::READ, 0, u64::MAX - 511, 512, error::EINVAL),
            (command::READ, 0, 0, 0, error::EINVAL),
            (command::READ, 0, 1, 512, error::EINVAL),
            (command::READ, 0, 0, 513, error::EINVAL),
            (command::READ, 0, 0, (1 << 20) + 512, overlong),
            (command::READ, 0, 0, u32::MAX, overlong),
            (command::READ, flag::NO_HOLE, 0, 512, error::EINVAL),
            (command::READ, 1 << 9, 0, 512, error::EINVAL),
            (command::TRIM, 0, end - 512, 1024, error::EINVAL),
            (command::TRIM, 0, 100, 512, error::EINVAL),
            (command::WRITE_ZEROES, 0, end, 512, error::ENOSPC),
            (command::CACHE, 0, end, 512, error::EINVAL),
            (command::FLUSH, 0, 512, 0, error::EINVAL),
            (command::BLOCK_STATUS, 0, end, 512, error::EINVAL),
            (9, 0, 0, 512, error::EINVAL),
            (u16::MAX, 0, 0, 512, error::EINVAL),
        ] {
            let found = client.call(command, flags, offset, len);
            assert_eq!(found.error, expected, "{command} {flags} {offset} {len}");
        }
        assert_eq!(client.write(end, &[1; 512]), error::ENOSPC);
        assert_eq!(client.write(7, &[1; 512]), error::EINVAL);
        assert_eq!(client.write(0, &vec![1; (1 << 20) + 512]), error::EINVAL);
        assert_eq!(client.write(0, &vec![1; 32 << 20]), error::EINVAL);
        assert_eq!(client.read(0, 1 << 20), Ok(vec![0; 1 << 20]));
    }
}

#[test]
fn a_read_only_export_takes_no_change() {
    let setup = Setup::default();
    let rig = setup.clone().start();
    assert_eq!(rig.client(Mode::Simple).write_durably(0, &pattern(10, 8192)), 0);
    let device: MemoryDevice = rig.device();
    drop(rig);
    let rig = Setup { read_only: true, ..setup }.start_on(device);
    let mut client = rig.client(Mode::Structured);
    assert_eq!(client.flags & 2, 2);
    assert_eq!(client.write(0, &[1; 8192]), error::EPERM);
    assert_eq!(client.call(command::TRIM, 0, 0, 4096).error, error::EPERM);
    assert_eq!(client.call(command::WRITE_ZEROES, 0, 0, 4096).error, error::EPERM);
    assert_eq!(client.flush(), 0);
    assert_same(&client.read(0, 8192).unwrap(), &pattern(10, 8192));
}

#[test]
fn a_full_disk_below_is_told_and_what_is_there_is_served_on() {
    let faults = Faults { space: Some(8 << 20), ..Faults::default() };
    let rig = Setup { faults, ..Setup::default() }.start();
    let mut client = rig.client(Mode::Structured);
    assert_eq!(client.write(0, &pattern(11, 1 << 20)), 0);
    assert_eq!(client.write(8 * MIB, &pattern(12, 16 << 20)), error::ENOSPC);
    assert_eq!(client.write(8 * MIB, &pattern(12, 512)), error::ENOSPC);
    assert_same(&client.read(0, 1 << 20).unwrap(), &pattern(11, 1 << 20));
    assert_eq!(client.read(60 * MIB, 4096), Ok(vec![0; 4096]));
}

#[test]
fn an_error_below_is_told_to_those_whom_it_concerns() {
    let setup = Setup::default();
    let geometry = holdfast_volume::CreateOptions {
        capacity: setup.capacity,
        sector: setup.sector,
        guard: holdfast_checksum::GuardKind::Crc16,
        application_tag: 1,
    }
    .geometry()
    .unwrap();
    let fault = |offset: u64, reads| {
        let start = geometry.data_at(offset);
        Fault { range: start..start + 4096, reads, error: Error::IO }
    };
    let faults =
        Faults { faults: vec![fault(10 * MIB, false), fault(20 * MIB, true)], ..Faults::default() };
    let rig = Setup { faults, ..setup }.start();
    for mode in [Mode::Simple, Mode::Structured] {
        let mut client = rig.client(mode);
        assert_eq!(client.write(8 * MIB, &pattern(13, 4 << 20)), error::EIO);
        assert_eq!(client.write_durably(8 * MIB, &pattern(13, 4 << 20)), error::EIO);
        assert_eq!(client.write(20 * MIB, &pattern(14, 4096)), 0);
        assert_eq!(client.read(18 * MIB, 4 << 20), Err(error::EIO));
        assert_eq!(client.read(20 * MIB, 4096), Err(error::EIO));
        assert_eq!(client.write(30 * MIB, &pattern(15, 4096)), 0);
        assert_same(&client.read(30 * MIB, 4096).unwrap(), &pattern(15, 4096));
    }
}

/// The read ends when the write begins, and may leave its place in the server to it.
#[test]
fn a_write_of_which_a_part_fails_before_all_its_data_came_is_answered_once() {
    let fault = Fault { range: 0..u64::MAX, reads: false, error: Error::IO };
    let faults = Faults { faults: vec![fault], ..Faults::default() };
    let rig = Setup { faults, ..Setup::default() }.start_on_faulty_file();
    let mut client = rig.client(Mode::Structured);
    for _ in 0..20 {
        let (short, mut bytes) = client.request(command::WRITE, 0, 0, 512);
        bytes.resize(bytes.len() + 512, 7);
        let (read, header) = client.request(command::READ, 0, 0, 2 << 20);
        bytes.extend(header);
        let (long, header) = client.request(command::WRITE, 0, 0, 3 << 20);
        bytes.extend(header);
        bytes.resize(bytes.len() + (2 << 20) + 4096, 7);
        client.socket.write_all(&bytes).unwrap();
        // The server is to see the failure before the rest.
        std::thread::sleep(std::time::Duration::from_millis(10));
        client.socket.write_all(&vec![7; (1 << 20) - 4096]).unwrap();
        let answers = client.finish();
        let errors = [short, read, long].map(|cookie| answers[&cookie].error);
        assert_eq!(errors, [error::EIO, 0, error::EIO]);
    }
}

#[test]
fn a_client_that_takes_its_leave_gets_the_replies_that_are_due() {
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let read = client.send(command::READ, 0, 0, 4 << 20);
    let header = call(command::DISC, 0, 0, 0, 0);
    client.socket.write_all(&header).unwrap();
    let answers = client.finish();
    assert_eq!(answers[&read].error, 0);
    assert!(client.socket.is_closed_after_all());
}
