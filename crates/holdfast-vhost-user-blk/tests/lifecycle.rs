//! How queues and servers start, stop and come back, while there is something to do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use holdfast_sim::Random;
use holdfast_units::{to_u64, to_usize};
use holdfast_virtio_driver::{BlkQueue, Completion, Options, Request, Segment, Shape, Status};

use crate::common::{
    self, Answer, Guest, MIB, Raw, RawQueue, Rig, Setup, Shared, assert_same, drain, eventually,
    guest_options, message, pattern, state, table, verify_until, words,
};

const EACH: u32 = 4608;
const COUNT: u64 = 60;

/// Puts many writes of different data into a queue, which begin at `offset`, and kicks it.
fn begin_writes(guest: &mut Guest, queue: u16, offset: u64) -> Vec<u8> {
    let data = pattern(offset, to_usize(COUNT * u64::from(EACH)));
    guest.memory.write(guest.base, &data).unwrap();
    let base = guest.base;
    let queue = guest.client.queue(queue);
    for number in 0..COUNT {
        let at = number * u64::from(EACH);
        let source = [Segment { address: base + at, len: EACH }];
        let write = Request::Write { sector: (offset + at) / 512, source: &source };
        queue.submit(&write, Shape::default()).unwrap();
    }
    queue.kick().unwrap();
    data
}

/// Waits for all requests of a queue, which must end well.
#[track_caller]
fn end_well(queue: &mut BlkQueue) {
    let ended = drain(queue);
    assert!(ended.iter().all(|ended| ended.status == Status::Ok));
}

#[test]
fn stopping_a_queue_finishes_what_it_has_and_it_goes_on_where_it_was() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    for round in 0..20 {
        let offset = round * MIB;
        let data = begin_writes(&mut guest, 1, offset);
        let bases = guest.client.stop().unwrap();
        let ended = guest.client.queue(1).places().used.load_u16(2, Ordering::Acquire);
        assert_eq!(bases[1], ended, "what was taken was given back");
        guest.client.resume().unwrap();
        end_well(guest.client.queue(1));
        assert_same(&guest.read(offset, data.len()).unwrap(), &data);
    }
}

#[test]
fn requests_that_the_device_has_are_finished_before_a_queue_stops() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    rig.disk.watch.hold();
    let data = begin_writes(&mut guest, 0, 0);
    eventually("the requests are taken", || rig.disk.watch.held() > 0);
    thread::scope(|scope| {
        let stopping = scope.spawn(|| guest.client.stop().unwrap());
        thread::sleep(std::time::Duration::from_millis(50));
        assert!(!stopping.is_finished());
        rig.disk.watch.release();
        let bases = stopping.join().unwrap();
        assert_eq!(u64::from(bases[0]), COUNT);
    });
    guest.client.resume().unwrap();
    end_well(guest.client.queue(0));
    assert_same(&guest.read(0, data.len()).unwrap(), &data);
}

#[test]
fn a_queue_that_is_not_enabled_takes_nothing() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    guest.client.enable(1, false).unwrap();
    let data = begin_writes(&mut guest, 1, 0);
    assert_eq!(guest.flush(), Status::Ok);
    thread::sleep(std::time::Duration::from_millis(50));
    assert!(guest.client.queue(1).completed().unwrap().is_none());
    guest.client.enable(1, true).unwrap();
    end_well(guest.client.queue(1));
    assert_same(&guest.read(0, data.len()).unwrap(), &data);
}

#[test]
fn a_server_that_stops_finishes_what_it_has_taken() {
    let mut rig = Setup { on_file: true, ..Setup::default() }.start();
    for round in 0..5 {
        let mut guest = rig.guest();
        let data = begin_writes(&mut guest, 0, round * MIB);
        rig.stop(0);
        assert!(guest.client.is_closed().unwrap());
        let mut ended = Vec::new();
        while let Some(completion) = guest.client.queue(0).completed().unwrap() {
            ended.push(completion);
        }
        assert!(ended.iter().all(|ended| ended.status == Status::Ok));
        rig.start_again(0);
        guest.client.reconnect().unwrap();
        end_well(guest.client.queue(0));
        assert_same(&guest.read(round * MIB, data.len()).unwrap(), &data);
    }
}

#[test]
fn a_server_stops_while_a_guest_keeps_asking() {
    for poll_us in [0, 100] {
        let setup = Setup::default();
        let poll = std::time::Duration::from_micros(poll_us);
        let options = holdfast_vhost_user_blk::Options { poll, ..setup.options };
        let mut rig = Setup { options, ..setup }.start();
        let mut guest = rig.guest();
        let mut queue = guest.client.take_queue(0);
        let (base, is_over) = (guest.base, AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let target = [Segment { address: base, len: 4096 }];
                while !is_over.load(Ordering::Relaxed) {
                    let read = Request::Read { sector: 0, target: &target };
                    while queue.submit(&read, Shape::default()).is_ok() {}
                    queue.kick().unwrap();
                    while queue.completed().unwrap().is_some() {}
                }
            });
            eventually("the guest asks", || rig.counts(0).requests > 1000);
            rig.stop(0);
            is_over.store(true, Ordering::Relaxed);
        });
    }
}

/// Kills a server in the middle of writes, and lets the next carry them out.
fn survive_a_crash(on_file: bool, in_flight_log: bool) {
    let mut rig = Setup { on_file, sockets: 1, ..Setup::default() }.start();
    let options = Options { in_flight_log, ..guest_options() };
    let mut guest = Guest::new(&rig.path(0), &options);
    assert_eq!(guest.client.has_in_flight_log(), in_flight_log);
    for round in 0..4 {
        // Something has ended before, so that the running numbers are not all 0.
        assert_eq!(guest.flush(), Status::Ok);
        rig.disk.watch.hold();
        let data = begin_writes(&mut guest, 0, round * MIB);
        eventually("the requests are taken", || rig.disk.watch.held() > 0);
        rig.crash_and_start_again();
        guest.client.reconnect().unwrap();
        end_well(guest.client.queue(0));
        assert_same(&guest.read(round * MIB, data.len()).unwrap(), &data);
        assert_eq!(guest.flush(), Status::Ok);
    }
}

#[test]
fn requests_in_flight_in_a_crash_are_carried_out_by_the_next_server() {
    survive_a_crash(false, true);
    survive_a_crash(true, true);
}

#[test]
fn without_a_log_the_guest_offers_them_again() {
    survive_a_crash(false, false);
}

#[test]
fn two_sockets_of_one_volume_do_not_tear_the_sectors_that_they_share() {
    const BLOCKS: u64 = 64;
    let rig = Setup { sockets: 2, ..Setup::default() }.start();
    thread::scope(|scope| {
        for writer in 0..2_u64 {
            let path = rig.path(to_usize(writer));
            scope.spawn(move || {
                let mut guest = Guest::new(&path, &guest_options());
                for round in 0..20 {
                    for block in 0..BLOCKS {
                        let offset = (block * 2 + writer) * 512;
                        let data = pattern(round ^ offset, 512);
                        assert_eq!(guest.write(offset, &data), Status::Ok);
                    }
                    for block in 0..BLOCKS {
                        let offset = (block * 2 + writer) * 512;
                        assert_same(
                            &guest.read(offset, 512).unwrap(),
                            &pattern(round ^ offset, 512),
                        );
                    }
                }
            });
        }
    });
    assert_eq!(rig.counts(0).requests, rig.counts(1).requests);
}

#[test]
fn what_one_socket_wrote_the_other_reads() {
    let rig = Setup { sockets: 2, on_file: true, ..Setup::default() }.start();
    let [mut first, mut second] = [0, 1].map(|at| Guest::new(&rig.path(at), &guest_options()));
    for round in 0..10 {
        let data = pattern(round, 100 << 9);
        assert_eq!(first.write(round * 512, &data), Status::Ok);
        assert_same(&second.read(round * 512, data.len()).unwrap(), &data);
        std::mem::swap(&mut first, &mut second);
    }
}

#[test]
fn the_next_client_is_served_when_the_one_before_has_gone() {
    let rig = Setup::default().start();
    let first = rig.guest();
    thread::scope(|scope| {
        let second = scope.spawn(|| rig.guest().read(0, 512).unwrap());
        thread::sleep(std::time::Duration::from_millis(100));
        assert!(!second.is_finished(), "one client at a time");
        drop(first);
        assert_same(&second.join().unwrap(), &[0; 512]);
    });
}

#[test]
fn a_client_that_goes_in_the_middle_of_its_requests_leaves_whole_sectors() {
    let rig = Setup { sockets: 2, ..Setup::default() }.start();
    let is_over = AtomicBool::new(false);
    let mut torn = 0;
    thread::scope(|scope| {
        let other = scope.spawn(|| verify_until(&rig.path(1), 32 * MIB, 66048, &is_over));
        for _ in 0..40 {
            let mut guest = rig.guest();
            let data = begin_writes(&mut guest, 0, 0);
            drop(guest);
            let mut guest = rig.guest();
            let found = guest.read(0, data.len()).unwrap();
            let mut is_whole = true;
            for (found, data) in found.chunks(512).zip(data.chunks(512)) {
                // What the server had not taken when the client went was never written.
                is_whole &= found == data || found == [0; 512];
            }
            torn += usize::from(!is_whole);
        }
        // Also when something is wrong: the other client would go on for ever.
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(torn, 0);
        assert!(other.join().unwrap() > 1);
    });
}

#[test]
fn regions_come_and_go_while_requests_run() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let in_third = guest.memory.allocate_in(2, 65536, 4096).unwrap();
    let mut queue = guest.client.take_queue(0);
    let (memory, base, is_over) = (guest.memory.clone(), guest.base, AtomicBool::new(false));
    let good = AtomicU64::new(0);
    thread::scope(|scope| {
        let driver = scope.spawn(|| {
            let mut random = Random::new(1);
            while !is_over.load(Ordering::Relaxed) {
                // Half of the buffers are in the region that comes and goes.
                let address = if random.chance(50) { base } else { in_third };
                let data = pattern(good.load(Ordering::Relaxed) + 1, 8192);
                memory.write(address, &data).unwrap();
                let segment = [Segment { address, len: 8192 }];
                let wrote = one(&mut queue, &Request::Write { sector: 8, source: &segment });
                memory.write(address, &[0; 8192]).unwrap();
                let read = one(&mut queue, &Request::Read { sector: 8, target: &segment });
                assert!(
                    address == in_third || (wrote.status, read.status) == (Status::Ok, Status::Ok)
                );
                if (wrote.status, read.status) == (Status::Ok, Status::Ok) {
                    let mut found = vec![0; 8192];
                    memory.read(address, &mut found).unwrap();
                    assert_same(&found, &data);
                    good.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let began = Instant::now();
        // On a busy machine all changes may be over before the other thread begins.
        let mut changes = 0;
        while changes < 100
            || (good.load(Ordering::Relaxed) <= 10 && began.elapsed() < common::PATIENCE)
        {
            guest.client.set_region(2, false).unwrap();
            guest.client.set_region(2, true).unwrap();
            changes += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        driver.join().unwrap();
        let good = good.load(Ordering::Relaxed);
        assert!(good > 10, "{good}");
    });
}

/// Runs one request to its end.
fn one(queue: &mut BlkQueue, request: &Request<'_>) -> Completion {
    common::ask(queue, request, Shape::default())
}

#[test]
fn requests_in_flight_keep_the_region_that_is_removed() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let data = pattern(1, 65536);
    assert_eq!(guest.write(0, &data), Status::Ok);
    let address = guest.memory.allocate_in(2, 65536, 4096).unwrap();
    rig.disk.watch.hold();
    let target = [Segment { address, len: 65536 }];
    let queue = guest.client.queue(0);
    queue.submit(&Request::Read { sector: 0, target: &target }, Shape::default()).unwrap();
    queue.kick().unwrap();
    eventually("the request is taken", || rig.disk.watch.held() > 0);
    guest.client.set_region(2, false).unwrap();
    rig.disk.watch.release();
    end_well(guest.client.queue(0));
    let mut found = vec![0; data.len()];
    guest.memory.read(address, &mut found).unwrap();
    assert_same(&found, &data);
    assert_eq!(guest.ask(&Request::Read { sector: 0, target: &target }), Status::IoError);
}

#[test]
fn the_whole_memory_is_shared_anew_at_other_addresses_while_a_queue_runs() {
    let rig = Setup::default().start();
    let mut raw = rig.raw(0);
    let shared = Shared::new(4 * MIB);
    raw.start_queue(&shared, 64);
    let is_over = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    thread::scope(|scope| {
        let driver = scope.spawn(|| {
            let mut queue = RawQueue::new(&shared, 64);
            while !is_over.load(Ordering::Relaxed) {
                let data = pattern(rounds.load(Ordering::Relaxed), 65536);
                shared.write(RawQueue::DATA - Shared::GUEST, &data);
                assert_eq!(queue.run(1, 8, 65536), 0);
                shared.write(RawQueue::DATA - Shared::GUEST, &[0; 65536]);
                assert_eq!(queue.run(0, 8, 65536), 0);
                let mut found = vec![0; 65536];
                shared.region.read(to_usize(RawQueue::DATA - Shared::GUEST), &mut found).unwrap();
                assert_same(&found, &data);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut asked = 0;
        while asked < 200 || rounds.load(Ordering::Relaxed) < 2 && !driver.is_finished() {
            asked += 1;
            let fd = std::os::fd::AsFd::as_fd(&shared.file);
            let again = raw.ask(message::SET_MEM_TABLE, &table(&[shared.entry()]), &[fd]);
            assert_eq!(again, Answer::Done);
        }
        is_over.store(true, Ordering::Relaxed);
        driver.join().unwrap();
    });
}

#[test]
fn a_queue_is_stopped_by_asking_for_its_base_and_started_by_a_kick() {
    let rig = Setup::default().start();
    let mut raw = rig.raw(0);
    let shared = Shared::new(MIB);
    raw.start_queue(&shared, 64);
    let mut queue = RawQueue::new(&shared, 64);
    for round in 0..70 {
        assert_eq!(queue.run(0, 0, 512), 0);
        let base = raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]);
        assert_eq!(base, Answer::Says(state(0, round * 2 + 1)));
        queue.begin(0, 0, 512);
        thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(shared.used(), u16::try_from(round).unwrap() * 2 + 1);
        assert_eq!(raw.ask(message::SET_VRING_BASE, &state(0, round * 2 + 1), &[]), Answer::Done);
        let [kick, call] = [&shared.kick, &shared.call].map(std::os::fd::AsFd::as_fd);
        assert_eq!(raw.ask(message::SET_VRING_CALL, &words(&[0]), &[call]), Answer::Done);
        assert_eq!(raw.ask(message::SET_VRING_KICK, &words(&[0]), &[kick]), Answer::Done);
        assert_eq!(queue.end(), 0);
        let number = to_u64(usize::try_from(round).unwrap());
        assert_eq!(rig.counts(0).requests, number * 2 + 2);
        // The running numbers go on.
        let base = raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]);
        assert_eq!(base, Answer::Says(state(0, round * 2 + 2)));
        assert_eq!(raw.ask(message::SET_VRING_KICK, &words(&[0]), &[kick]), Answer::Done);
    }
}

#[test]
fn a_queue_without_a_kick_is_polled() {
    let rig = Setup::default().start();
    let mut raw = rig.raw(0);
    let shared = Shared::new(MIB);
    raw.start_queue(&shared, 64);
    assert_eq!(raw.ask(message::SET_VRING_KICK, &words(&[0x100]), &[]), Answer::Done);
    assert_eq!(raw.ask(message::SET_VRING_CALL, &words(&[0x100]), &[]), Answer::Done);
    let mut queue = RawQueue::new(&shared, 64);
    for _ in 0..10 {
        assert_eq!(queue.run(0, 0, 4096), 0);
    }
}

#[test]
fn a_reset_device_can_be_started_again_from_the_beginning() {
    let rig = Setup::default().start();
    let mut raw = rig.raw(0);
    let shared = Shared::new(MIB);
    for _ in 0..3 {
        shared.write(0, &vec![0; to_usize(MIB)]);
        raw.start_queue(&shared, 64);
        let mut queue = RawQueue::new(&shared, 64);
        assert_eq!(queue.run(0, 0, 512), 0);
        assert_eq!(raw.ask(message::RESET_DEVICE, &[], &[]), Answer::Done);
        queue.begin(0, 0, 512);
        thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(shared.used(), 1);
        let features = raw.features.to_le_bytes();
        assert_eq!(raw.ask(message::SET_FEATURES, &features, &[]), Answer::Done);
    }
}

/// Leaves nothing behind: neither threads nor descriptors.
#[test]
fn clients_leave_no_rings_behind() {
    let rig = Setup::default().start();
    let count = |rig: &Rig| std::sync::Arc::strong_count(&rig.disk);
    let before = count(&rig);
    for _ in 0..20 {
        let mut guest = rig.guest();
        guest.read(0, 512).unwrap();
        let raw_is_refused = Raw::connect(&rig.path(0));
        drop((guest, raw_is_refused));
    }
    eventually("the clients have gone", || count(&rig) == before);
}
