//! A server that has no descriptor left. Alone in its program, since the limit is the program's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::{Client, Mode, Setup};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn without_descriptors_nobody_is_accepted_until_there_are_some_and_the_server_does_not_spin() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), maximum }).unwrap();
    let rig = Setup::default().start();
    let mut attached = rig.client(Mode::Simple);
    let began = rig.cpu_time();
    let mut taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.pop();
    // This takes the last.
    let waiting = UnixStream::connect(&rig.socket).unwrap();
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(attached.read(0, 512), Ok(vec![0; 512]));
    taken.clear();
    let used = rig.cpu_time() - began;
    assert!(used < Duration::from_millis(100), "the server spins: {used:?}");
    let mut waited = Client::attach(common::Socket::Unix(waiting), Mode::Simple).unwrap();
    assert_eq!(waited.read(0, 512), Ok(vec![0; 512]));
}
