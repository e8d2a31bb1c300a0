//! Front ends that break every rule: it costs them their connection, and nobody else anything.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use holdfast_iov::Region;
use holdfast_sim::Random;
use holdfast_units::to_usize;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::common::{
    self, Answer, MIB, Over, Raw, RawQueue, Rig, Setup, Shared, addresses, beside_a_neighbour,
    bytes_of, eventually, in_flight, message, one_region, state, table, words,
};

fn memory(len: u64) -> File {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file.into()
}

/// Says something that a server must refuse, and checks that the connection is cut.
#[track_caller]
fn refused(rig: &Rig, number: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
    let mut raw = rig.raw(0);
    let answer = raw.ask(number, body, files);
    assert!(matches!(answer, Answer::Refused | Answer::Closed), "{number}: {answer:?}");
    assert!(raw.is_closed());
}

#[test]
fn bytes_that_are_no_messages_cut_the_connection() {
    beside_a_neighbour(|rig| {
        for (number, flags) in
            [(0, 1), (45, 1), (u32::MAX, 1), (1, 0), (1, 2), (1, 3), (1, 0x11), (1, u32::MAX)]
        {
            let mut raw = Raw::connect(&rig.path(0));
            raw.send(&bytes_of(number, flags, &[]), &[]);
            assert!(raw.is_closed());
        }
        for len in [0x1001, 0x10000, u32::MAX] {
            let mut raw = Raw::connect(&rig.path(0));
            let mut bytes = bytes_of(message::SET_MEM_TABLE, 1, &[]);
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            raw.send(&bytes, &[]);
            assert!(raw.is_closed());
        }
        let mut random = Random::new(1);
        for _ in 0..50 {
            let mut raw = Raw::connect(&rig.path(0));
            let bytes: Vec<u8> = (0..1000).flat_map(|_| random.next().to_le_bytes()).collect();
            raw.send(&bytes, &[]);
            assert!(raw.is_closed());
        }
    });
}

#[test]
fn every_message_with_a_body_of_another_length_cuts_the_connection_or_is_answered() {
    beside_a_neighbour(|rig| {
        let mut random = Random::new(2);
        for number in 0..=message::LAST {
            for len in [0, 1, 4, 7, 8, 9, 12, 16, 20, 24, 39, 40, 41, 48, 100, 4095, 4096] {
                let mut raw = rig.raw(0);
                let body: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[0] & 3).collect();
                raw.tell(number, &body, &[]);
                raw.tell(message::GET_FEATURES, &[], &[]);
                drop(raw);
            }
        }
    });
}

/// All that a well-behaved front end says, as one run of bytes for each message.
fn conversation(shared: &Shared, features: u64) -> Vec<(Vec<u8>, Vec<BorrowedFd<'_>>)> {
    let plain = |number, body: &[u8]| (bytes_of(number, 9, body), Vec::new());
    let [kick, call, error] = [&shared.kick, &shared.call, &shared.error].map(AsFd::as_fd);
    let with = |number, body: &[u8], file| (bytes_of(number, 9, body), vec![file]);
    vec![
        plain(message::SET_OWNER, &[]),
        plain(message::GET_FEATURES, &[]),
        plain(message::GET_PROTOCOL_FEATURES, &[]),
        plain(message::SET_PROTOCOL_FEATURES, &words(&[0xb20b])),
        plain(message::SET_FEATURES, &words(&[features])),
        plain(message::GET_QUEUE_NUM, &[]),
        plain(message::GET_MAX_MEM_SLOTS, &[]),
        plain(message::GET_INFLIGHT_FD, &in_flight(0, 0, 2, 64)),
        with(message::SET_MEM_TABLE, &table(&[shared.entry()]), shared.file.as_fd()),
        plain(message::SET_VRING_NUM, &state(0, 64)),
        plain(message::SET_VRING_BASE, &state(0, 0)),
        plain(message::SET_VRING_ADDR, &shared.addresses(0)),
        with(message::SET_VRING_CALL, &words(&[0]), call),
        with(message::SET_VRING_ERR, &words(&[0]), error),
        with(message::SET_VRING_KICK, &words(&[0]), kick),
        plain(message::SET_VRING_ENABLE, &state(0, 1)),
        plain(message::GET_VRING_BASE, &state(0, 0)),
    ]
}

#[test]
fn a_front_end_may_go_at_any_byte_of_what_it_says() {
    beside_a_neighbour(|rig| {
        let features = rig.raw(0).features;
        let shared = Shared::new(MIB);
        let conversation = conversation(&shared, features);
        for (last, (bytes, files)) in conversation.iter().enumerate() {
            for cut in [0, 1, 11, 12, 13, bytes.len() - 1, bytes.len()] {
                let mut raw = Raw::connect(&rig.path(0));
                for (bytes, files) in &conversation[..last] {
                    raw.send(bytes, files);
                }
                raw.send(&bytes[..cut.min(bytes.len())], files);
            }
        }
    });
}

#[test]
fn messages_in_any_order_are_refused_or_carried_out() {
    beside_a_neighbour(|rig| {
        let features = rig.raw(0).features;
        let shared = Shared::new(MIB);
        let conversation = conversation(&shared, features);
        let mut random = Random::new(3);
        for _ in 0..200 {
            let mut raw = rig.raw(0);
            for _ in 0..30 {
                let which = to_usize(random.below(conversation.len().try_into().unwrap()));
                let (bytes, files) = &conversation[which];
                raw.send(bytes, files);
                shared.kick();
            }
        }
    });
}

#[test]
fn descriptors_that_nobody_asked_for_cut_the_connection() {
    beside_a_neighbour(|rig| {
        let file = memory(4096);
        for count in [1, 2, 8, 32, 33, 253] {
            let files = vec![file.as_fd(); count];
            for number in 0..=message::LAST {
                let mut raw = rig.raw(0);
                raw.tell(number, &words(&[0]), &files);
                raw.tell(message::GET_FEATURES, &[], &files);
            }
            // In the middle of a message.
            let mut raw = rig.raw(0);
            let bytes = bytes_of(message::SET_VRING_NUM, 1, &state(0, 64));
            raw.send(&bytes[..12], &[]);
            thread::sleep(Duration::from_millis(2));
            raw.send(&bytes[12..], &files);
            raw.send(&bytes[..5], &[]);
            thread::sleep(Duration::from_millis(2));
            raw.send(&bytes[5..], &files);
        }
    });
}

#[test]
fn tables_of_memory_that_cannot_be_are_refused() {
    let good = Shared::new(MIB);
    let [short, sparse] = [memory(4096), memory(1 << 46)];
    let read_only = File::open("/etc/passwd").unwrap();
    let directory = File::open("/").unwrap();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let page = 4096;
    beside_a_neighbour(|rig| {
        let [guest, user] = [Shared::GUEST, Shared::USER];
        let one = |entry: [u64; 4], fd: BorrowedFd<'_>| {
            refused(rig, message::SET_MEM_TABLE, &table(&[entry]), &[fd]);
            refused(rig, message::ADD_MEM_REG, &one_region(entry), &[fd]);
        };
        one([guest, 2 * MIB, user, 0], good.file.as_fd());
        one([guest, page, user, MIB], good.file.as_fd());
        one([guest, page, user, 512], good.file.as_fd());
        one([guest, 0, user, 0], good.file.as_fd());
        one([guest, page + 1, user, 0], short.as_fd());
        one([u64::MAX - page + 2, page, user, 0], good.file.as_fd());
        one([guest, page, u64::MAX - page + 2, 0], good.file.as_fd());
        one([guest, page, user, u64::MAX - page + 1], good.file.as_fd());
        one([guest, u64::MAX, user, 0], good.file.as_fd());
        one([guest, 1 << 46, user, 0], sparse.as_fd());
        one([guest, page, user, 1 << 63], sparse.as_fd());
        for file in [read_only.as_fd(), directory.as_fd(), null.as_fd(), pipe.as_fd()] {
            one([guest, page, user, 0], file);
        }
        let fd = good.file.as_fd();
        let overlapping = table(&[good.entry(), [guest + MIB - page, page, user + MIB, 0]]);
        refused(rig, message::SET_MEM_TABLE, &overlapping, &[fd, fd]);
        refused(rig, message::SET_MEM_TABLE, &table(&[good.entry(), good.entry()]), &[fd, fd]);
        // Another number of regions than descriptors, or than it says.
        refused(rig, message::SET_MEM_TABLE, &table(&[good.entry()]), &[fd, fd]);
        refused(rig, message::SET_MEM_TABLE, &table(&[good.entry()]), &[]);
        refused(rig, message::SET_MEM_TABLE, &words(&[0]), &[fd]);
        for count in [2, 33, 0xffff_ffff, 1 << 32 | 1] {
            let mut body = words(&[count]);
            body.extend(words(&good.entry()));
            refused(rig, message::SET_MEM_TABLE, &body, &[fd]);
        }
    });
}

#[test]
fn the_memory_of_one_front_end_does_not_use_up_all_addresses() {
    let file = memory(1 << 42);
    beside_a_neighbour(|rig| {
        let mut raw = rig.raw(0);
        let mut added = 0;
        loop {
            let entry = [added << 42, 1 << 42, added << 42, 0];
            match raw.ask(message::ADD_MEM_REG, &one_region(entry), &[file.as_fd()]) {
                Answer::Done => added += 1,
                _ => break,
            }
        }
        // 16 TiB of the 128 that a process has.
        assert_eq!(added, 4);
        // What is not used of this is not mapped.
        let huge = in_flight(1 << 42, 0, 1, 64);
        let mut raw = rig.raw(0);
        let set = raw.ask(message::SET_INFLIGHT_FD, &huge, &[file.as_fd()]);
        assert_eq!(set, Answer::Done);
        let log = raw.ask(message::SET_LOG_BASE, &words(&[1 << 42, 0]), &[file.as_fd()]);
        assert_eq!(log, Answer::Closed);
    });
}

#[test]
fn more_regions_than_there_may_be_are_refused() {
    let file = memory(4096);
    beside_a_neighbour(|rig| {
        let mut raw = rig.raw(0);
        let mut added = 0;
        let entry = |number: u64| [number << 12, 4096, number << 12, 0];
        while raw.ask(message::ADD_MEM_REG, &one_region(entry(added)), &[file.as_fd()])
            == Answer::Done
        {
            added += 1;
        }
        assert_eq!(added, 509);
    });
}

#[test]
fn regions_that_are_not_there_cannot_be_removed() {
    let shared = Shared::new(MIB);
    beside_a_neighbour(|rig| {
        let [guest, len, user, _] = shared.entry();
        for other in [[guest + 4096, len, user, 0], [guest, len - 1, user, 0], [guest, len, 0, 0]] {
            let mut raw = rig.raw(0);
            raw.start_queue(&shared, 64);
            let answer = raw.ask(message::REM_MEM_REG, &one_region(other), &[]);
            assert!(matches!(answer, Answer::Refused | Answer::Closed));
        }
    });
}

#[test]
fn a_queue_whose_rings_are_taken_away_ends() {
    beside_a_neighbour(|rig| {
        for with_requests in [false, true] {
            let mut raw = rig.raw(0);
            let shared = Shared::new(MIB);
            raw.start_queue(&shared, 64);
            let mut queue = RawQueue::new(&shared, 64);
            assert_eq!(queue.run(0, 0, 512), 0);
            if with_requests {
                queue.begin(0, 0, 65536);
            }
            raw.ask(message::REM_MEM_REG, &one_region(shared.entry()), &[]);
            assert!(raw.is_closed());
        }
        // The same, with a table that has other memory.
        let mut raw = rig.raw(0);
        let shared = Shared::new(MIB);
        raw.start_queue(&shared, 64);
        let [guest, len, user, _] = shared.entry();
        let body = table(&[[guest, len, user + len, 0]]);
        raw.ask(message::SET_MEM_TABLE, &body, &[shared.file.as_fd()]);
        assert!(raw.is_closed());
    });
}

#[test]
fn addresses_of_rings_that_cannot_be_are_refused() {
    let shared = Shared::new(MIB);
    beside_a_neighbour(|rig| {
        let user = Shared::USER;
        let [d, u, a] = [Shared::DESCRIPTORS, Shared::USED, Shared::AVAILABLE].map(|at| user + at);
        for places in [
            [user + MIB, u, a],
            [d, user + MIB, a],
            [d, u, user + MIB],
            [user + MIB - 16, u, a],
            [d, user + MIB - 8, a],
            [d, u, user + MIB - 2],
            [u64::MAX - 15, u, a],
            [d, u64::MAX - 3, a],
            [d, u, u64::MAX - 1],
            [d + 8, u, a],
            [d, u + 2, a],
            [d, u, a + 1],
            [Shared::GUEST, u, a],
            [0, 0, 0],
        ] {
            let mut raw = rig.raw(0);
            raw.start_queue(&shared, 64);
            let body = addresses(0, 0, places, 0);
            let answer = raw.ask(message::SET_VRING_ADDR, &body, &[]);
            assert!(matches!(answer, Answer::Refused | Answer::Closed), "{places:x?} {answer:?}");
        }
        for (index, flags) in [(2, 0), (u32::MAX, 0), (0, 2), (0, u32::MAX)] {
            refused(rig, message::SET_VRING_ADDR, &addresses(index, flags, [d, u, a], 0), &[]);
        }
    });
}

#[test]
fn numbers_of_queues_that_cannot_be_are_refused() {
    let shared = Shared::new(MIB);
    beside_a_neighbour(|rig| {
        for size in [0, 3, 63, 65, 2048, 0x8000, 0x1_0000, u32::MAX] {
            refused(rig, message::SET_VRING_NUM, &state(0, size), &[]);
        }
        refused(rig, message::SET_VRING_BASE, &state(0, 0x1_0000), &[]);
        for number in [
            message::SET_VRING_NUM,
            message::SET_VRING_BASE,
            message::GET_VRING_BASE,
            message::SET_VRING_ENABLE,
        ] {
            for index in [2, 0xff, 0x100, u32::MAX] {
                refused(rig, number, &state(index, 1), &[]);
            }
        }
        refused(rig, message::SET_VRING_ENABLE, &state(0, 2), &[]);
        for number in [message::SET_VRING_KICK, message::SET_VRING_CALL, message::SET_VRING_ERR] {
            refused(rig, number, &words(&[2]), &[shared.kick.as_fd()]);
            refused(rig, number, &words(&[0xff]), &[shared.kick.as_fd()]);
            refused(rig, number, &words(&[0]), &[]);
            refused(rig, number, &words(&[0x100]), &[shared.kick.as_fd()]);
            refused(rig, number, &words(&[0]), &[shared.kick.as_fd(), shared.call.as_fd()]);
        }
        for (number, value) in [(message::SET_VRING_NUM, 128), (message::SET_VRING_BASE, 1)] {
            let mut raw = rig.raw(0);
            raw.start_queue(&shared, 64);
            let answer = raw.ask(number, &state(0, value), &[]);
            assert!(matches!(answer, Answer::Refused | Answer::Closed));
        }
        refused(rig, message::SET_FEATURES, &words(&[u64::MAX]), &[]);
    });
}

#[test]
fn configuration_that_is_none_is_refused() {
    beside_a_neighbour(|rig| {
        let body = |offset: u32, size: u32, bytes: usize| {
            let mut body = [offset, size, 1].map(u32::to_le_bytes).as_flattened().to_vec();
            body.resize(12 + bytes, 2);
            body
        };
        for (offset, size, bytes) in
            [(0, 60, 60), (31, 1, 1), (32, 2, 2), (33, 1, 1), (59, 1, 1), (4095, 1, 1), (32, 1, 8)]
        {
            refused(rig, message::SET_CONFIG, &body(offset, size, bytes), &[]);
        }
        for (offset, size) in [(0, 60), (59, 2), (60, 1), (1000, 500), (4095, 1), (0, 4000)] {
            let mut raw = rig.raw(0);
            let len = to_usize(size.into());
            let Answer::Says(answer) = raw.ask(message::GET_CONFIG, &body(offset, size, len), &[])
            else {
                panic!("configuration can be read")
            };
            assert_eq!(answer.len(), 12 + len);
        }
        for (offset, size, bytes) in
            [(u32::MAX, 1, 1), (4096, 1, 1), (0, 4097, 60), (0, 0, 0), (0, 60, 59), (0, 60, 0)]
        {
            let mut raw = rig.raw(0);
            let answer = raw.ask(message::GET_CONFIG, &body(offset, size, bytes), &[]);
            assert_eq!(answer, Answer::Closed);
        }
    });
}

#[test]
fn in_flight_logs_that_cannot_be_are_refused() {
    let [page, large] = [memory(4096), memory(1 << 20)];
    beside_a_neighbour(|rig| {
        let fd = [large.as_fd()];
        for (len, offset, queues, size) in [
            (1 << 20, 0, 0, 64),
            (1 << 20, 0, 1, 0),
            (1 << 20, 0, 1, 1025),
            (1 << 20, 0, u16::MAX, u16::MAX),
            (100, 0, 1, 64),
            (1 << 20, 512, 1, 64),
            (1 << 20, 1 << 20, 1, 64),
            (4096, u64::MAX - 4095, 1, 64),
        ] {
            refused(rig, message::SET_INFLIGHT_FD, &in_flight(len, offset, queues, size), &fd);
        }
        refused(rig, message::SET_INFLIGHT_FD, &in_flight(1 << 20, 0, 4, 64), &[page.as_fd()]);
        refused(rig, message::SET_INFLIGHT_FD, &in_flight(4096, 0, 1, 64), &[]);
        for (queues, size) in [(0, 64), (1, 0), (1, 1025), (u16::MAX, u16::MAX)] {
            assert!(rig.raw(0).in_flight_log(queues, size).is_none());
        }
        assert!(rig.raw(0).in_flight_log(64, 1024).is_some());
    });
}

#[test]
fn in_flight_logs_with_any_content_cost_no_more_than_the_queue() {
    beside_a_neighbour(|rig| {
        let mut random = Random::new(4);
        for round in 0..200 {
            let mut raw = rig.raw(0);
            let file = memory(4096);
            let log = Region::shared(file.as_fd(), 0, 4096).unwrap();
            let bytes: Vec<u8> = (0..4096)
                .map(|_| if random.chance(50) { 0 } else { random.next().to_le_bytes()[0] & 0x3f })
                .collect();
            log.write(0, &bytes).unwrap();
            if round % 4 > 0 {
                // A log that claims to be of this queue.
                log.write(8, &[1, 0, 64, 0]).unwrap();
            }
            let body = in_flight(4096, 0, 2, 64);
            let set = raw.ask(message::SET_INFLIGHT_FD, &body, &[file.as_fd()]);
            assert_eq!(set, Answer::Done);
            let shared = Shared::new(MIB);
            for index in 0..64 {
                let flags = u16::try_from(random.below(4)).unwrap();
                shared.describe(index, Shared::GUEST + Shared::ROOM, 16, flags, index ^ 1);
            }
            let table = table(&[shared.entry()]);
            raw.tell(message::SET_MEM_TABLE, &table, &[shared.file.as_fd()]);
            raw.tell(message::SET_VRING_NUM, &state(0, 64), &[]);
            raw.tell(message::SET_VRING_ADDR, &shared.addresses(0), &[]);
            raw.tell(message::SET_VRING_KICK, &words(&[0]), &[shared.kick.as_fd()]);
            raw.tell(message::SET_VRING_ENABLE, &state(0, 1), &[]);
            raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]);
        }
    });
}

#[test]
fn a_front_end_that_takes_no_answers_does_not_keep_the_server_from_stopping() {
    let mut rig = Setup { sockets: 2, ..Setup::default() }.start();
    let mut raw = rig.raw(0);
    raw.stream.set_nonblocking(true).unwrap();
    let question = bytes_of(message::GET_FEATURES, 9, &[]);
    let mut full = 0;
    // The server blocks when its answers fill the socket, and then so do we.
    while full < 20 {
        match raw.stream.write(&question) {
            Ok(written) if written > 0 => full = 0,
            _ => {
                full += 1;
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
    assert!(rig.server(0).counters().is_connected());
    rig.stop(0);
}

#[test]
fn a_front_end_that_says_nothing_does_not_keep_the_server_from_stopping() {
    let mut rig = Setup { sockets: 2, ..Setup::default() }.start();
    let silent = Raw::connect(&rig.path(0));
    let mut half = Raw::connect(&rig.path(1));
    half.send(&bytes_of(message::SET_VRING_NUM, 1, &state(0, 64))[..5], &[]);
    eventually("they are connected", || {
        [0, 1].iter().all(|&socket| rig.server(socket).counters().is_connected())
    });
    rig.stop(0);
    rig.stop(1);
    drop((silent, half));
}

#[test]
fn queues_that_start_and_stop_all_the_time_harm_nobody() {
    beside_a_neighbour(|rig| {
        let mut raw = rig.raw(0);
        let shared = Shared::new(MIB);
        raw.start_queue(&shared, 64);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let over = Over(&is_over);
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    shared.kick();
                    thread::yield_now();
                }
            });
            for _ in 0..100 {
                let kick = [shared.kick.as_fd()];
                assert_eq!(raw.ask(message::SET_VRING_KICK, &words(&[0]), &kick), Answer::Done);
                let moved = raw.ask(message::SET_VRING_ADDR, &shared.addresses(0), &[]);
                assert_eq!(moved, Answer::Done);
            }
            drop(over);
        });
    });
}

#[test]
fn many_connections_at_once_wait_for_their_turn() {
    beside_a_neighbour(|rig| {
        let waiting: Vec<Raw> = (0..100).map(|_| Raw::connect(&rig.path(0))).collect();
        drop(waiting);
    });
}

/// Memory that an owner keeps open is not closed twice, and none stays mapped.
#[test]
fn descriptors_are_given_back() {
    let (sender, receiver) = std::os::unix::net::UnixStream::pair().unwrap();
    let sender: OwnedFd = sender.into();
    let rig = Setup::default().start();
    let mut raw = rig.raw(0);
    raw.tell(message::SET_VRING_CALL, &words(&[0]), &[sender.as_fd()]);
    drop(sender);
    drop(raw);
    // The end of the pair comes when nobody has the other one any more.
    receiver.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let mut byte = [0];
    assert_eq!(rustix::io::read(&receiver, &mut byte).unwrap(), 0);
}
