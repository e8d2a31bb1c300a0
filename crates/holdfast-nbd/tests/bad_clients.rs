//! Clients that do not keep to the protocol, or to any pace, and the others beside them.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_nbd::ServerLimits;

use crate::common::{
    self, Client, MIB, Mode, Rig, Setup, Socket, assert_same, call, command, error, flag, greet,
    option, option_replies, pattern,
};

const SHORT: ServerLimits = ServerLimits {
    connections: 256,
    handshake: Duration::from_secs(30),
    farewell: Duration::from_millis(300),
};

/// Writes and reads a megabyte a few times, and returns how long that took.
fn serve_another(rig: &Rig) -> Duration {
    let began = Instant::now();
    let mut client = rig.client(Mode::Structured);
    for round in 0..4 {
        let data = pattern(round, 1 << 20);
        assert_eq!(client.write(round * MIB + 512, &data), 0);
        assert_same(&client.read(round * MIB + 512, 1 << 20).unwrap(), &data);
    }
    began.elapsed()
}

/// Checks that a server stops soon, and has all its memory back.
fn stops_within_its_farewell(mut rig: Rig) {
    let began = Instant::now();
    for report in rig.stop() {
        assert_eq!(report.free, report.total);
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn garbage_instead_of_a_handshake_closes_the_connection() {
    let rig = Setup { limits: SHORT, ..Setup::default() }.start();
    for garbage in [
        &[0xff; 100][..],
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &[0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    ] {
        let mut socket = rig.connect();
        socket.write_all(garbage).unwrap();
        assert!(socket.is_closed_after_all());
    }
    serve_another(&rig);
}

#[test]
fn garbage_instead_of_a_request_closes_the_connection() {
    let rig = Setup { limits: SHORT, ..Setup::default() }.start();
    for mode in [Mode::Simple, Mode::Structured] {
        let mut client = rig.client(mode);
        let read = client.send(command::READ, 0, 0, 4096);
        client.socket.write_all(&[0xee; 28]).unwrap();
        assert_eq!(client.finish()[&read].error, 0, "what came before is answered");
        assert!(client.socket.is_closed_after_all());
    }
    serve_another(&rig);
}

#[test]
fn an_option_as_long_as_the_protocol_page_allows_is_answered() {
    let rig = Setup::default().start();
    let mut socket = rig.connect();
    greet(&mut socket).unwrap();
    for len in [0, 100, 12_000, holdfast_nbd::OPTION_LEN_MAX] {
        socket.write_all(&option(77, &vec![0; len])).unwrap();
        assert_eq!(option_replies(&mut socket, 77).unwrap().0, (1 << 31) + 1);
    }
    socket.write_all(&option(77, &vec![0; holdfast_nbd::OPTION_LEN_MAX + 1])).unwrap();
    assert!(socket.is_closed_after_all());
}

#[test]
fn a_write_that_is_too_long_to_be_passed_over_closes_the_connection() {
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    client.send(command::WRITE, 0, 0, (32 << 20) + 512);
    assert!(client.socket.is_closed_after_all());
}

#[test]
fn clients_that_stop_in_the_middle_disturb_nobody() {
    let rig = Setup { limits: SHORT, ..Setup::default() }.start();
    serve_another(&rig);
    let alone = serve_another(&rig);
    let mut stalled = Vec::new();
    for number in 0..8 {
        let mut client = rig.client(Mode::Structured);
        let (_, header) = client.request(command::WRITE, 0, 8 * MIB, 4 << 20);
        let sent = [&header[..14], &header[..]][number % 2];
        client.socket.write_all(sent).unwrap();
        if number % 2 == 1 {
            client.socket.write_all(&vec![9; 300_000 * number]).unwrap();
        }
        stalled.push(client);
    }
    let load = rig.load_while(|| thread::sleep(Duration::from_secs(1)));
    assert!(load < 0.05, "the server spins: {load}");
    let beside = serve_another(&rig);
    assert!(beside < alone * 20 + Duration::from_millis(200), "{beside:?}, alone {alone:?}");
    stops_within_its_farewell(rig);
}

/// More of them than there is memory for a buffer each.
#[test]
fn any_number_of_clients_that_stop_in_the_middle_leave_memory_for_others() {
    let limits = ServerLimits { connections: 64, ..SHORT };
    let rig = Setup { limits, pool_bytes: 1 << 20, ..Setup::default() }.start();
    let mut stalled = Vec::new();
    for _ in 0..50 {
        let mut client = rig.client(Mode::Structured);
        client.send(command::WRITE, 0, 8 * MIB, 4 << 20);
        client.socket.write_all(&[9; 10_000]).unwrap();
        stalled.push(client);
    }
    serve_another(&rig);
    let load = rig.load_while(|| thread::sleep(Duration::from_secs(1)));
    assert!(load < 0.05, "the server spins: {load}");
    stops_within_its_farewell(rig);
}

/// Attaches a client that asks for gigabytes and takes nothing of them.
fn greedy(rig: &Rig, mode: Mode, flags: u16) -> Client {
    let mut client = rig.client(mode);
    client.socket.set_nonblocking();
    let mut requests = Vec::new();
    for number in 0..200 {
        requests.extend(call(command::READ, flags, number, number % 2 * 512, 8 << 20));
    }
    client.socket.stuff(&requests);
    client
}

#[test]
fn clients_that_take_no_replies_leave_memory_for_others() {
    for (mode, flags) in [(Mode::Structured, 0), (Mode::Structured, flag::DF), (Mode::Simple, 0)] {
        let rig = Setup { limits: SHORT, ..Setup::default() }.start();
        let mut clients = vec![greedy(&rig, mode, flags)];
        serve_another(&rig);
        clients.extend((0..9).map(|_| greedy(&rig, mode, flags)));
        serve_another(&rig);
        clients.extend((0..30).map(|_| greedy(&rig, mode, flags)));
        serve_another(&rig);
        common::eventually("the server is quiet", || {
            rig.load_while(|| thread::sleep(Duration::from_millis(300))) < 0.05
        });
        stops_within_its_farewell(rig);
    }
}

/// Replies without data need memory too.
#[test]
fn a_client_that_takes_no_replies_is_not_listened_to_for_ever() {
    const LOTS: usize = 16 << 20;
    let refused = call(command::READ, 0, 1, 1, 1);
    let flush = call(command::FLUSH, 0, 1, 0, 0);
    let status = call(command::BLOCK_STATUS, 0, 1, 0, 4096);
    let zeroes = call(command::WRITE_ZEROES, 0, 1, 0, 4096);
    for request in [refused, flush, status, zeroes] {
        let rig = Setup { limits: SHORT, ..Setup::default() }.start();
        let mut client = rig.client(Mode::Structured);
        client.socket.set_nonblocking();
        let requests = request.repeat((1 << 20) / request.len());
        let (mut sent, mut idle) = (0, 0);
        while idle < 50 && sent < LOTS {
            let more = client.socket.stuff(&requests[sent % request.len()..]);
            sent += more;
            idle = if more == 0 { idle + 1 } else { 0 };
            thread::sleep(Duration::from_millis(10));
        }
        assert!(sent < LOTS, "the server has taken {sent} bytes of requests");
        serve_another(&rig);
        stops_within_its_farewell(rig);
    }
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let mut rig = Setup::default().start();
    for round in 0..20 {
        for mode in [Mode::Simple, Mode::Structured] {
            let mut with_requests = rig.client(mode);
            for number in 0..20 {
                with_requests.send_write(flag::FUA, number * MIB, &pattern(number, 8192));
            }
            for number in 0..20 {
                with_requests.send(command::READ, 0, number * MIB, 8 << 20);
            }
            let mut with_half_a_write = rig.client(mode);
            with_half_a_write.send(command::READ, 0, 0, 4 << 20);
            with_half_a_write.send(command::WRITE, 0, 0, 4 << 20);
            with_half_a_write.socket.set_nonblocking();
            with_half_a_write.socket.stuff(&vec![1; 100_000 * round]);
            let mut with_part_of_a_reply = rig.client(mode);
            with_part_of_a_reply.send(command::READ, 0, 0, 32 << 20);
            with_part_of_a_reply.socket.read_exact(&mut [0; 10_000]).unwrap();
            let mut in_the_handshake = rig.connect();
            in_the_handshake.write_all(b"\0\0\0\x03IHAVE").unwrap();
        }
    }
    serve_another(&rig);
    for report in rig.stop() {
        assert_eq!(report.free, report.total);
    }
}

#[test]
fn a_handshake_that_takes_too_long_is_cut_and_an_attached_client_is_not() {
    let handshake = Duration::from_millis(300);
    let rig = Setup { limits: ServerLimits { handshake, ..SHORT }, ..Setup::default() }.start();
    let mut attached = rig.client(Mode::Structured);
    let mut slow = rig.connect();
    slow.write_all(&[0, 0, 0, 3]).unwrap();
    let began = Instant::now();
    assert!(slow.is_closed_after_all());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(attached.read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn connections_over_the_limit_are_closed_until_there_is_room() {
    let limits = ServerLimits { connections: 3, ..SHORT };
    let rig = Setup { limits, ..Setup::default() }.start();
    let mut clients: Vec<Client> = (0..3).map(|_| rig.client(Mode::Structured)).collect();
    for _ in 0..5 {
        Client::attach(rig.connect(), Mode::Structured).unwrap_err();
    }
    for client in &mut clients {
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
    clients.pop();
    common::eventually("there is room again", || {
        Client::attach(rig.connect(), Mode::Simple).is_ok()
    });
}

#[test]
fn data_of_refused_writes_are_passed_over() {
    let rig = Setup { maximum: 1 << 20, ..Setup::default() }.start();
    let mut client = rig.client(Mode::Structured);
    let mut bytes = Vec::new();
    let mut writes = Vec::new();
    for number in 0..40_u64 {
        let len = u32::try_from(512 * (1 + number * 150)).unwrap();
        let (cookie, header) = client.request(command::WRITE, 0, 3, len);
        bytes.extend(header);
        // What looks like a request is data here.
        let decoy = call(command::WRITE, 0, 0, 0, 512);
        bytes.extend(decoy.iter().cycle().take(len.try_into().unwrap()));
        writes.push(cookie);
        client_read(&mut client, &mut bytes, number);
    }
    let answers = client.finish_all(&bytes);
    for (cookie, answer) in answers {
        let expected = if writes.contains(&cookie) { error::EINVAL } else { 0 };
        assert_eq!(answer.error, expected);
    }
    assert_eq!(client.extents(0, 0, 64 << 20), [(64 << 20, 3)]);
}

fn client_read(client: &mut Client, bytes: &mut Vec<u8>, number: u64) {
    for offset in 0..number {
        bytes.extend(client.request(command::READ, 0, offset * 512, 512).1);
    }
}

/// However the bytes are cut on their way.
#[test]
fn requests_may_come_in_pieces_of_any_size() {
    let rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let data = pattern(1, 8192);
    let mut bytes = Vec::new();
    for number in 0..6 {
        bytes.extend(client.request(command::WRITE, 0, number * 8192 + 512, 8192).1);
        bytes.extend(&data);
        bytes.extend(client.request(command::FLUSH, 0, 0, 0).1);
        bytes.extend(client.request(command::TRIM, 0, 8 * MIB, 512).1);
    }
    let mut random = holdfast_sim::Random::new(2);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let len = rest.len().min(1 + usize::try_from(random.below(60)).unwrap());
        client.socket.write_all(&rest[..len]).unwrap();
        rest = &rest[len..];
    }
    assert!(client.finish().values().all(|answer| answer.error == 0));
    for number in 0..6 {
        assert_same(&client.read(number * 8192 + 512, 8192).unwrap(), &data);
    }
}

#[test]
fn a_server_that_is_told_to_stop_cuts_clients_that_stall() {
    let rig = Setup { limits: SHORT, ..Setup::default() }.start();
    let _silent: Socket = rig.connect();
    let _takes_nothing = greedy(&rig, Mode::Simple, 0);
    let mut stalls = rig.client(Mode::Structured);
    stalls.send(command::WRITE, 0, 0, 1 << 20);
    stalls.socket.write_all(&[1; 5000]).unwrap();
    serve_another(&rig);
    stops_within_its_farewell(rig);
}
