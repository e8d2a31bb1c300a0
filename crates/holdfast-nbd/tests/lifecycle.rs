//! How a server starts, waits, and stops.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use holdfast_socket::Address;

use crate::common::{
    Client, MIB, Mode, Rig, Setup, Socket, assert_same, command, flag, pattern, unix_path,
};

fn assert_all_returned(rig: &mut Rig) {
    for report in rig.stop() {
        assert_eq!(report.free, report.total);
    }
}

#[test]
fn stopping_answers_what_was_accepted_and_closes_the_connections() {
    for on_file in [false, true] {
        let setup = Setup { reactors: 2, ..Setup::default() };
        let mut rig = if on_file { setup.start_on_file() } else { setup.start() };
        let (begun, has_begun) = mpsc::channel();
        let takers: Vec<_> = (0..6_u64)
            .map(|number| {
                let (client, begun) = (rig.client(Mode::Structured), begun.clone());
                thread::spawn(move || take_until_the_end(client, number * MIB, &begun))
            })
            .collect();
        for _ in &takers {
            has_begun.recv().unwrap();
        }
        let began = Instant::now();
        assert_all_returned(&mut rig);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        for taker in takers {
            taker.join().unwrap();
        }
    }
}

/// Asks for more than can be done at once, and takes whole replies until the end: no part of one,
/// and no error.
fn take_until_the_end(mut client: Client, base: u64, begun: &mpsc::Sender<()>) {
    let mut bytes = Vec::new();
    for number in 0..100_u64 {
        let (_, header) = client.request(command::WRITE, flag::FUA, base + number * 4096, 4096);
        bytes.extend(header);
        bytes.extend(pattern(number, 4096));
        bytes.extend(client.request(command::READ, 0, 32 * MIB, 256 << 10).1);
    }
    let mut socket = client.socket.another();
    let sender = thread::spawn(move || socket.write_all(&bytes));
    let mut last = client.receive();
    begun.send(()).unwrap();
    while let Ok((_, answer)) = last {
        assert_eq!(answer.error, 0);
        last = client.receive();
    }
    // A reset, if there were requests that the server had not taken.
    let end = last.unwrap_err().kind();
    assert!(matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end}");
    let _cut_short = sender.join().unwrap();
}

#[test]
fn an_acknowledged_write_is_there_after_a_stop() {
    let mut rig = Setup::default().start();
    let mut client = rig.client(Mode::Structured);
    let data = pattern(1, 2 << 20);
    assert_eq!(client.write(512, &data), 0);
    assert_eq!(client.flush(), 0);
    assert_all_returned(&mut rig);
    assert!(client.socket.is_closed_after_all());
    assert_same(&rig.read_stored(512, 2 << 20).unwrap(), &data);
}

#[test]
fn the_socket_is_there_while_the_listener_is() {
    let mut rig = Setup::default().start();
    let path = unix_path(&rig.listeners[0]).to_owned();
    assert_eq!(path, rig.socket);
    assert!(path.exists());
    assert_all_returned(&mut rig);
    rig.listeners.clear();
    assert!(!path.exists());
}

#[test]
fn a_tcp_listener_answers_only_at_its_own_address() {
    let anywhere = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let rig = Setup { addresses: vec![anywhere], ..Setup::default() }.start();
    let Address::Tcp(address) = *rig.listeners[1].address() else { panic!("it is TCP") };
    let mut client = Client::attach(Socket::tcp(address).unwrap(), Mode::Structured).unwrap();
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    let elsewhere = TcpStream::connect(("127.0.0.2", address.port()));
    assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_server_with_idle_clients_uses_no_processor_time() {
    for on_file in [false, true] {
        let setup = Setup { reactors: 2, ..Setup::default() };
        let rig = if on_file { setup.start_on_file() } else { setup.start() };
        let mut clients: Vec<Client> = (0..4).map(|_| rig.client(Mode::Structured)).collect();
        for client in &mut clients {
            assert_eq!(client.write(0, &[1; 4096]), 0);
        }
        let load = rig.load_while(|| thread::sleep(Duration::from_millis(1200)));
        assert!(load < 0.05, "{load}");
    }
}

/// Two clients fill what little memory there is with replies that they do not take; a third goes on
/// when they do take them.
#[test]
fn clients_that_found_no_memory_go_on_when_there_is_some() {
    let rig = Setup { pool_bytes: 1 << 20, ..Setup::default() }.start();
    let mut hoarders: Vec<Client> = (0..8).map(|_| rig.client(Mode::Structured)).collect();
    for hoarder in &mut hoarders {
        for _ in 0..4 {
            hoarder.send(command::READ, 0, 0, 1 << 20);
        }
    }
    let mut client = rig.client(Mode::Structured);
    for number in 0..20 {
        let (_, header) = client.request(command::WRITE, 0, number * MIB, 1 << 20);
        client.socket.write_all(&header).unwrap();
        client.socket.write_all(&vec![3; 1 << 20]).unwrap();
    }
    assert!(client.finish().values().all(|answer| answer.error == 0));
    let load = rig.load_while(|| thread::sleep(Duration::from_millis(500)));
    assert!(load < 0.05, "the server spins: {load}");
    for hoarder in &mut hoarders {
        assert!(hoarder.finish().values().all(|answer| answer.error == 0));
    }
}
