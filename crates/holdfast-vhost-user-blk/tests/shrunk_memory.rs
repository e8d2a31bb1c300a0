//! A client that shortens its memory after the server has mapped it: what is loaded from there raises SIGBUS,
//! which must cost the client its queue, and nobody else anything.
//!
//! Alone in its program, since a signal that is not handled ends the program:
//!
//! ```sh
//! cargo test -p holdfast-vhost-user-blk --test shrunk_memory
//! ```

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use common::{
    Answer, MIB, RawQueue, Rig, Setup, Shared, beside_a_neighbour, eventually, in_flight, message,
    state, table, words,
};
use holdfast_bio::ReadPolicy;
use holdfast_vhost_user_blk::Options;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const READ: u32 = 0;
const WRITE: u32 = 1;

/// Starts queue 0 in memory of 1 MiB, and offers a request of each kind whose data are behind the first
/// half. Then only `keep` bytes of the memory are left.
fn shorten(rig: &Rig, keep: u64, before: bool) {
    for kind in [READ, WRITE] {
        let mut raw = rig.raw(0);
        let shared = Shared::new(MIB);
        raw.start_queue(&shared, 64);
        let mut queue = RawQueue::new(&shared, 64);
        assert_eq!(queue.run(kind, 0, 512), 0);
        let shorten = || ftruncate(&shared.file, keep).unwrap();
        // What the test itself stores must still be there.
        let far = Shared::GUEST + MIB / 2 + 512;
        shared.describe(10, Shared::GUEST + Shared::ROOM, 16, 1, 11);
        shared.describe(11, far, 65536, 1 | if kind == READ { 2 } else { 0 }, 12);
        shared.describe(12, RawQueue::STATUS, 1, 2, 0);
        shared.write(Shared::ROOM, &words(&[u64::from(kind), 8]));
        if before {
            shorten();
        }
        if keep > 0 || !before {
            shared.offer(1, 64, 10);
        } else {
            shared.kick();
        }
        if !before {
            shorten();
        }
        thread::sleep(Duration::from_millis(20));
        shared.kick();
        thread::sleep(Duration::from_millis(20));
        let answer = raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]);
        assert!(matches!(answer, Answer::Says(_) | Answer::Closed), "{answer:?}");
    }
}

#[test]
fn memory_of_data_that_goes_before_the_request_fails_it_or_the_queue() {
    beside_a_neighbour(|rig| shorten(rig, MIB / 2, true));
}

#[test]
fn memory_of_data_that_goes_during_the_request_fails_it_or_the_queue() {
    beside_a_neighbour(|rig| (0..20).for_each(|_| shorten(rig, MIB / 2, false)));
}

#[test]
fn memory_of_the_rings_that_goes_costs_the_queue() {
    beside_a_neighbour(|rig| {
        shorten(rig, 0, true);
        (0..20).for_each(|_| shorten(rig, 0, false));
        shorten(rig, 4096, false);
    });
}

#[test]
fn a_polling_queue_whose_memory_goes_ends() {
    let setup = Setup::with_policy(ReadPolicy::Always);
    let options = Options { poll: Duration::from_millis(5), ..setup.options };
    let mut rig = Setup { options, ..setup }.start();
    shorten(&rig, 0, true);
    shorten(&rig, 0, false);
    rig.stop(0);
}

#[test]
fn an_in_flight_log_that_goes_costs_the_queue() {
    beside_a_neighbour(|rig| {
        for before in [true, false] {
            let mut raw = rig.raw(0);
            let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, 8192).unwrap();
            let body = in_flight(8192, 0, 2, 64);
            let set = raw.ask(message::SET_INFLIGHT_FD, &body, &[file.as_fd()]);
            assert_eq!(set, Answer::Done);
            let shared = Shared::new(MIB);
            let table = table(&[shared.entry()]);
            let set = raw.ask(message::SET_MEM_TABLE, &table, &[shared.file.as_fd()]);
            assert_eq!(set, Answer::Done);
            if before {
                ftruncate(&file, 0).unwrap();
                raw.tell(message::SET_VRING_NUM, &state(0, 64), &[]);
                raw.tell(message::SET_VRING_ADDR, &shared.addresses(0), &[]);
                raw.tell(message::SET_VRING_KICK, &words(&[0]), &[shared.kick.as_fd()]);
                raw.tell(message::SET_VRING_ENABLE, &state(0, 1), &[]);
            } else {
                raw.start_vring(&shared, 64);
                let mut queue = RawQueue::new(&shared, 64);
                assert_eq!(queue.run(READ, 0, 512), 0);
                ftruncate(&file, 0).unwrap();
                queue.begin(READ, 0, 512);
                thread::sleep(Duration::from_millis(20));
            }
            let answer = raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]);
            assert!(matches!(answer, Answer::Says(_) | Answer::Closed), "{answer:?}");
        }
    });
}

#[test]
fn a_dirty_log_that_goes_harms_nobody() {
    beside_a_neighbour(|rig| {
        let mut raw = rig.raw(0);
        let shared = Shared::new(MIB);
        raw.start_queue(&shared, 64);
        let file = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 8192).unwrap();
        let body = words(&[8192, 0]);
        let answer = raw.ask(message::SET_LOG_BASE, &body, &[file.as_fd()]);
        assert_eq!(answer, Answer::Says(body));
        let features = (raw.features | 1 << common::LOG_ALL).to_le_bytes();
        assert_eq!(raw.ask(message::SET_FEATURES, &features, &[]), Answer::Done);
        ftruncate(&file, 0).unwrap();
        let mut queue = RawQueue::new(&shared, 64);
        queue.begin(READ, 0, 4096);
        eventually("the request ends or the queue does", || {
            shared.used() > 0 || shared.is_given_up()
        });
        let answer = raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]);
        assert!(matches!(answer, Answer::Says(_) | Answer::Closed), "{answer:?}");
    });
}
