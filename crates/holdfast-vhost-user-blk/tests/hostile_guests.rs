//! Drivers that break every rule: it costs them their request or their queue, and nobody else anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use holdfast_sim::Random;
use holdfast_units::to_usize;
use holdfast_virtio_driver::Status;

use crate::common::{
    self, Answer, MIB, Over, Raw, RawQueue, Rig, Shared, assert_same, beside_a_neighbour,
    eventually, message, pattern, state, words,
};

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where a case may put a header, as an offset in the region.
const HEADER: u64 = Shared::ROOM;
const STATUS: u64 = Shared::ROOM + 0x100;
const TABLE: u64 = Shared::ROOM + 0x1000;
const DATA: u64 = Shared::ROOM + 0x1_0000;
const SIZE: u16 = 64;

/// What becomes of a bad request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It ends with an error.
    Error,
    /// The queue takes nothing any more, and the request is not given back.
    Queue,
}

/// Offers what a case has put into the descriptors, and returns what becomes of it.
fn offer(rig: &Rig, case: impl Fn(&Shared)) -> Outcome {
    let mut raw = rig.raw(0);
    let shared = Shared::new(MIB);
    raw.start_queue(&shared, SIZE);
    shared.write(HEADER, &words(&[0, 0]));
    shared.write(STATUS, &[0xff]);
    case(&shared);
    shared.offer(0, SIZE, 0);
    let (used, given_up) = (|| shared.used() > 0, AtomicBool::new(false));
    eventually("something happens", || {
        given_up.store(shared.is_given_up(), Ordering::Relaxed);
        used() || given_up.load(Ordering::Relaxed)
    });
    let mut status = [0];
    shared.region.read(to_usize(STATUS), &mut status).unwrap();
    // The queue that is given up can still be stopped.
    let base = raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]);
    assert_eq!(base, Answer::Says(state(0, 1)));
    match (given_up.into_inner(), shared.used(), status) {
        (true, 0, [0xff]) => Outcome::Queue,
        (false, 1, [1]) => Outcome::Error,
        other => panic!("{other:?}"),
    }
}

fn guest(at: u64) -> u64 {
    Shared::GUEST + at
}

/// A header and, behind what a case puts at descriptor 1, a status at descriptor 2.
fn around(shared: &Shared, address: u64, len: u32, flags: u16) {
    shared.describe(0, guest(HEADER), 16, NEXT, 1);
    shared.describe(1, address, len, flags | NEXT, 2);
    shared.describe(2, guest(STATUS), 1, WRITABLE, 0);
}

#[test]
fn requests_with_memory_that_is_none_end_with_an_error() {
    let end = guest(MIB);
    beside_a_neighbour(|rig| {
        for (address, len) in [
            (0, 512),
            (end, 512),
            (end - 511, 512),
            (u64::MAX, 512),
            (u64::MAX - 510, 511),
            (guest(DATA), u32::MAX - 64),
            (Shared::USER, 512),
        ] {
            for flags in [0, WRITABLE] {
                let case = |shared: &Shared| {
                    // A write when the data can be read.
                    shared.write(HEADER, &words(&[u64::from(flags == 0), 0]));
                    around(shared, address, len, flags);
                };
                assert_eq!(offer(rig, case), Outcome::Error, "{address:#x} {len}");
            }
        }
        let header = |shared: &Shared| {
            shared.describe(0, end - 8, 16, NEXT, 1);
            shared.describe(1, guest(STATUS), 1, WRITABLE, 0);
        };
        assert_eq!(offer(rig, header), Outcome::Error);
    });
}

/// A name, and what puts such a request into a queue.
type Bad = (&'static str, fn(&Shared));

/// Descriptors from which no way of answering can be learnt.
const UNANSWERABLE: [Bad; 17] = [
    ("a loop", |shared| {
        shared.describe(0, guest(HEADER), 16, NEXT, 1);
        shared.describe(1, guest(DATA), 512, NEXT | WRITABLE, 1);
    }),
    ("a loop of all", |shared| {
        for index in 0..SIZE {
            shared.describe(index, guest(DATA), 1, NEXT, (index + 1) % SIZE);
        }
    }),
    ("a next behind the table", |shared| shared.describe(0, guest(HEADER), 16, NEXT, SIZE)),
    ("a next far behind the table", |shared| shared.describe(0, guest(HEADER), 16, NEXT, 0xffff)),
    ("readable behind writable", |shared| {
        shared.describe(0, guest(STATUS), 1, NEXT | WRITABLE, 1);
        shared.describe(1, guest(HEADER), 16, 0, 0);
    }),
    ("nothing to write to", |shared| shared.describe(0, guest(HEADER), 16, 0, 0)),
    ("nothing at all", |shared| shared.describe(0, guest(HEADER), 0, 0, 0)),
    ("an empty status", |shared| {
        shared.describe(0, guest(HEADER), 16, NEXT, 1);
        shared.describe(1, guest(STATUS), 0, WRITABLE, 0);
    }),
    ("a status outside of the memory", |shared| {
        shared.describe(0, guest(HEADER), 16, NEXT, 1);
        shared.describe(1, guest(MIB), 1, WRITABLE, 0);
    }),
    ("a status behind the last address", |shared| {
        shared.describe(0, guest(HEADER), 16, NEXT, 1);
        shared.describe(1, u64::MAX, 2, WRITABLE, 0);
    }),
    ("more bytes than 2^32", |shared| {
        around(shared, guest(DATA), u32::MAX, WRITABLE);
        shared.describe(2, guest(STATUS), u32::MAX, WRITABLE, 0);
    }),
    ("an empty table", |shared| shared.describe(0, guest(TABLE), 0, INDIRECT, 0)),
    ("half a descriptor", |shared| shared.describe(0, guest(TABLE), 24, INDIRECT, 0)),
    ("a table outside of the memory", |shared| {
        shared.describe(0, guest(MIB) - 16, 32, INDIRECT, 0);
    }),
    ("a table as long as can be", |shared| {
        shared.describe(0, guest(TABLE), u32::MAX - 15, INDIRECT, 0);
    }),
    ("a table that is not the last", |shared| {
        shared.describe(0, guest(TABLE), 16, INDIRECT | NEXT, 1);
        shared.describe(1, guest(STATUS), 1, WRITABLE, 0);
    }),
    ("a table in a table", |shared| {
        shared.describe(0, guest(TABLE), 32, INDIRECT, 0);
        let raw = |shared: &Shared, at: u64, address: u64, len: u64, flags: u64| {
            shared.write(TABLE + at * 16, &words(&[address, len | flags << 32 | 1 << 48]));
        };
        raw(shared, 0, guest(HEADER), 16, u64::from(NEXT));
        raw(shared, 1, guest(TABLE), 32, u64::from(INDIRECT));
    }),
];

#[test]
fn descriptors_that_leave_no_way_to_answer_cost_the_queue() {
    beside_a_neighbour(|rig| {
        for (name, case) in UNANSWERABLE {
            assert_eq!(offer(rig, case), Outcome::Queue, "{name}");
        }
    });
}

#[test]
fn a_table_with_more_descriptors_than_a_request_may_have_costs_the_queue() {
    beside_a_neighbour(|rig| {
        let case = |shared: &Shared| {
            let link = |index: u64| 1 | u64::from(NEXT) << 32 | (index + 1) << 48;
            let table: Vec<u64> = (0..1025).flat_map(|at| [guest(DATA), link(at)]).collect();
            shared.write(TABLE, &words(&table));
            shared.describe(0, guest(TABLE), 1025 * 16, INDIRECT, 0);
        };
        assert_eq!(offer(rig, case), Outcome::Queue);
    });
}

/// Starts a queue, has `case` break it, and waits until it is given up.
fn given_up(rig: &Rig, case: impl Fn(&Shared, &mut RawQueue<'_>)) {
    let mut raw = rig.raw(0);
    let shared = Shared::new(MIB);
    raw.start_queue(&shared, SIZE);
    let mut queue = RawQueue::new(&shared, SIZE);
    assert_eq!(queue.run(0, 0, 512), 0);
    case(&shared, &mut queue);
    shared.kick();
    eventually("the queue is given up", || shared.is_given_up());
    assert!(matches!(raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]), Answer::Says(_)));
}

#[test]
fn rings_that_say_nonsense_cost_the_queue() {
    beside_a_neighbour(|rig| {
        for index in [SIZE + 2, 0, 0x8000, 0xffff] {
            given_up(rig, |shared, _| {
                shared.write(Shared::AVAILABLE + 2, &index.to_le_bytes());
            });
        }
        for head in [SIZE, SIZE + 1, 0xffff] {
            given_up(rig, |shared, _| shared.offer(1, SIZE, head));
        }
    });
}

#[test]
fn a_request_offered_again_before_it_has_ended_costs_the_queue() {
    beside_a_neighbour(|rig| {
        given_up(rig, |shared, _| {
            // Both are taken in one go.
            shared.describe(5, guest(HEADER), 16, NEXT, 6);
            shared.describe(6, guest(DATA), 4096, NEXT | WRITABLE, 7);
            shared.describe(7, guest(STATUS), 1, WRITABLE, 0);
            shared.write(Shared::AVAILABLE + 4 + 2, &[5_u16, 5].map(u16::to_le_bytes).concat());
            shared.write(Shared::AVAILABLE + 2, &3_u16.to_le_bytes());
        });
    });
}

#[test]
fn another_queue_of_the_same_guest_goes_on() {
    beside_a_neighbour(|rig| {
        let mut guest = rig.guest();
        let places = guest.client.queue(1).places().clone();
        places.available.store_u16(2, 0x4000, Ordering::SeqCst);
        guest.client.queue(1).kick_always().unwrap();
        let is_given_up = guest
            .client
            .queue(1)
            .wait(common::PATIENCE)
            .is_err_and(|error| error.to_string().contains("gave up"));
        assert!(is_given_up);
        let data = pattern(1, 4096);
        assert_eq!(guest.write(0, &data), Status::Ok);
        assert_same(&guest.read(0, 4096).unwrap(), &data);
    });
}

#[test]
fn a_thousand_descriptors_of_one_page_are_one_request_like_others() {
    beside_a_neighbour(|rig| {
        let mut raw = rig.raw(0);
        let shared = Shared::new(MIB);
        raw.start_queue(&shared, SIZE);
        for kind in [1, 0] {
            shared.write(HEADER, &words(&[kind, 0]));
            let mut table = vec![guest(HEADER), 16 | u64::from(NEXT) << 32 | 1 << 48];
            let flags = u64::from(NEXT | if kind == 0 { WRITABLE } else { 0 });
            for index in 1..1023 {
                table.extend([guest(DATA), 4096 | flags << 32 | (index + 1) << 48]);
            }
            table.extend([guest(STATUS), 1 | u64::from(WRITABLE) << 32]);
            shared.write(TABLE, &words(&table));
            shared.describe(0, guest(TABLE), 1024 * 16, INDIRECT, 0);
            shared.write(STATUS, &[0xff]);
            let before = shared.used();
            shared.offer(before, SIZE, 0);
            eventually("the request ends", || shared.used() != before);
            let mut status = [0xff];
            shared.region.read(to_usize(STATUS), &mut status).unwrap();
            assert_eq!(status, [0]);
        }
    });
}

#[test]
fn a_status_inside_of_the_data_is_the_guests_own_affair() {
    beside_a_neighbour(|rig| {
        for policy_at in [DATA, DATA + 511, DATA + 4095] {
            let mut raw = rig.raw(0);
            let shared = Shared::new(MIB);
            raw.start_queue(&shared, SIZE);
            shared.describe(0, guest(HEADER), 16, NEXT, 1);
            shared.describe(1, guest(DATA), 4096, NEXT | WRITABLE, 2);
            shared.describe(2, guest(policy_at), 1, WRITABLE, 0);
            shared.offer(0, SIZE, 0);
            eventually("the request ends", || shared.used() == 1);
        }
    });
}

#[test]
fn data_in_the_rings_themselves_break_only_the_queue() {
    beside_a_neighbour(|rig| {
        let mut guest = rig.guest();
        assert_eq!(guest.write(0, &pattern(3, 65536)), Status::Ok);
        drop(guest);
        for at in [Shared::DESCRIPTORS, Shared::AVAILABLE, Shared::USED] {
            let mut raw = rig.raw(0);
            let shared = Shared::new(MIB);
            raw.start_queue(&shared, SIZE);
            around(&shared, Shared::GUEST + at, 4096, WRITABLE);
            shared.offer(0, SIZE, 0);
            thread::sleep(Duration::from_millis(20));
            shared.kick();
            raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]);
        }
    });
}

/// Everything in memory changes at random, while kicks come.
fn scribble(shared: &Shared, seed: u64, is_over: &AtomicBool) {
    let mut random = Random::new(seed);
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..50 {
            let index = u16::try_from(random.below(u64::from(SIZE))).unwrap();
            let at = match random.below(8) {
                0 => random.next(),
                _ => guest(random.below(MIB)),
            };
            let len =
                u32::try_from([16, 512, 4096, random.below(1 << 32)][to_usize(random.below(4))]);
            let flags = u16::try_from(random.below(8)).unwrap();
            let next = u16::try_from(random.below(u64::from(SIZE) + 1)).unwrap();
            shared.describe(index, at, len.unwrap(), flags, next);
            let header = [random.below(16), random.below(MIB)];
            shared.write(HEADER + random.below(64) * 16, &words(&header));
        }
        // Mostly rings that can be: the queue must not be given up at once.
        let index = shared.read_u16(Shared::AVAILABLE + 2);
        let head = u16::try_from(random.below(u64::from(SIZE))).unwrap();
        if random.chance(2) {
            shared.write(Shared::AVAILABLE + random.below(140), &random.next().to_le_bytes());
        }
        shared.offer(index, SIZE, head);
    }
}

#[test]
fn a_guest_whose_memory_changes_all_the_time_harms_nobody() {
    beside_a_neighbour(|rig| {
        for round in 0..40 {
            let mut raw = rig.raw(0);
            let shared = Shared::new(MIB);
            raw.start_queue(&shared, SIZE);
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                let over = Over(&is_over);
                for thread in 0..2 {
                    let (shared, is_over) = (&shared, &is_over);
                    scope.spawn(move || scribble(shared, round * 2 + thread, is_over));
                }
                thread::sleep(Duration::from_millis(30));
                assert!(matches!(
                    raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]),
                    Answer::Says(_)
                ));
                drop(over);
            });
        }
    });
}

/// Offers the same small request again and again, faster than the server can look away.
fn ask_for_ever(shared: &Shared, is_over: &AtomicBool) {
    let mut number: u16 = 0;
    while !is_over.load(Ordering::Relaxed) {
        let ahead = number.wrapping_sub(shared.used());
        if ahead < SIZE {
            number = number.wrapping_add(1);
            shared.write(Shared::AVAILABLE + 2, &number.to_le_bytes());
        }
        if ahead == 0 {
            shared.kick();
        }
    }
}

#[test]
fn a_guest_that_never_stops_asking_can_be_stopped_and_told_things() {
    beside_a_neighbour(|rig| {
        let mut raw = rig.raw(0);
        let shared = Shared::new(MIB);
        raw.start_queue(&shared, SIZE);
        // Each is refused, which needs no device.
        shared.write(HEADER, &words(&[99, 0]));
        for index in 0..SIZE / 2 {
            shared.describe(index * 2, guest(HEADER), 16, NEXT, index * 2 + 1);
            shared.describe(index * 2 + 1, guest(STATUS), 1, WRITABLE, 0);
        }
        let heads: Vec<u8> =
            (0..SIZE).flat_map(|index| (index % (SIZE / 2) * 2).to_le_bytes()).collect();
        shared.write(Shared::AVAILABLE + 4, &heads);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let over = Over(&is_over);
            scope.spawn(|| ask_for_ever(&shared, &is_over));
            eventually("it asks", || rig.counts(0).requests > 1000);
            for _ in 0..20 {
                assert_eq!(raw.ask(message::SET_VRING_CALL, &words(&[0x100]), &[]), Answer::Done);
                let enabled = raw.ask(message::SET_VRING_ENABLE, &state(0, 1), &[]);
                assert_eq!(enabled, Answer::Done);
            }
            assert!(matches!(raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]), Answer::Says(_)));
            drop(over);
        });
    });
}

/// Starts a queue in which the server blocks as soon as it calls, if it lets itself be blocked.
#[test]
fn an_eventfd_that_is_full_does_not_stop_the_server() {
    beside_a_neighbour(|rig| {
        let mut raw = rig.raw(0);
        let shared = Shared::new(MIB);
        raw.start_queue(&shared, SIZE);
        let full = rustix::event::eventfd(u32::MAX, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        #[expect(clippy::host_endian_bytes, reason = "eventfd(2) counts in the machine's order")]
        let rest = (u64::MAX - 1 - u64::from(u32::MAX)).to_ne_bytes();
        rustix::io::write(&full, &rest).unwrap();
        let call = [std::os::fd::AsFd::as_fd(&full)];
        assert_eq!(raw.ask(message::SET_VRING_CALL, &words(&[0]), &call), Answer::Done);
        let mut queue = RawQueue::new(&shared, SIZE);
        for _ in 0..3 {
            assert_eq!(queue.run(0, 0, 512), 0);
        }
        assert!(matches!(raw.ask(message::GET_VRING_BASE, &state(0, 0), &[]), Answer::Says(_)));
    });
}

#[test]
fn descriptors_that_are_no_eventfds_do_not_stop_the_server() {
    let file = tempfile::tempfile().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    // A pipe that is full.
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let (gone, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let zero = std::fs::File::options().read(true).write(true).open("/dev/zero").unwrap();
    beside_a_neighbour(|rig| {
        use std::os::fd::AsFd;
        for number in [message::SET_VRING_KICK, message::SET_VRING_CALL, message::SET_VRING_ERR] {
            for fd in [file.as_fd(), reader.as_fd(), writer.as_fd(), gone.as_fd(), zero.as_fd()] {
                let mut raw: Raw = rig.raw(0);
                let shared = Shared::new(MIB);
                raw.start_queue(&shared, SIZE);
                let answer = raw.ask(number, &words(&[0]), &[fd]);
                assert!(matches!(answer, Answer::Done | Answer::Refused | Answer::Closed));
                around(&shared, guest(DATA), 512, WRITABLE);
                shared.offer(0, SIZE, 0);
                thread::sleep(Duration::from_millis(5));
                shared.offer(1, SIZE, 0xffff);
                thread::sleep(Duration::from_millis(5));
                raw.tell(message::GET_VRING_BASE, &state(0, 0), &[]);
            }
        }
    });
}
