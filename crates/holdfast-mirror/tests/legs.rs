//! A mirror against arrays: what its legs hold, whatever they do.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{BYTES, Device, Medium, START, path, run, run_all, states, transfer, unplug, write};
use holdfast_bio::{Bio, BlockDevice, Error, Op};
use holdfast_device::MemoryDevice;
use holdfast_iov::{IovIter, Memory, Region, VolatileMemory};
use holdfast_mirror::LegState::{Detached, InSync, Out, Resyncing};
use holdfast_mirror::{Mirror, MirrorError, Missed, RECORD_OFFSETS, read_record};
use holdfast_sim::{Fault, Faults, Random};
use holdfast_units::{to_u64, to_usize};

const LEN: usize = 1 << 20;
/// Ranges that are written at the same time do not overlap: each has its part.
const PARTS: u64 = 8;

/// Legs whose transfers are short, late and out of order.
fn clumsy() -> Faults {
    Faults { short_percent: 30, reorder: true, full_percent: 20, ..Faults::default() }
}

/// Writes, clears and reads at random, and keeps the array up to date.
fn churn(device: &mut Device, model: &mut [u8], random: &mut Random, rounds: usize) {
    for _ in 0..rounds {
        let mut bios = Vec::new();
        for part in 0..PARTS {
            let size = to_u64(LEN) / PARTS;
            let (first, count) = (random.below(size / 512 - 64), 1 + random.below(64));
            let at = part * size + first * 512;
            let bytes = vec![u8::try_from(1 + random.below(255)).unwrap(); to_usize(count * 512)];
            let op = match random.below(8) {
                0 => Op::Discard,
                1 | 2 => Op::Read,
                _ => Op::Write,
            };
            let bio = transfer(op, START + at, &bytes);
            bios.push(if op == Op::Discard { Bio { memory: Memory::None, ..bio } } else { bio });
        }
        for ended in run_all(device, bios) {
            let at = to_usize(ended.bio.offset - START);
            let moved = to_usize(ended.result.unwrap());
            let expected = &mut model[at..][..to_usize(ended.bio.len)];
            match (ended.bio.op, &ended.bio.memory) {
                (Op::Write, Memory::Buffer(buffer)) => {
                    assert_eq!(to_u64(moved), ended.bio.len, "a write is never short");
                    expected.copy_from_slice(&buffer.as_slice()[..moved]);
                }
                (Op::Read, Memory::Buffer(buffer)) => {
                    assert_eq!(buffer.as_slice()[..moved], expected[..moved]);
                }
                _ => expected.fill(0),
            }
        }
    }
}

#[test]
fn all_legs_hold_what_was_written_though_transfers_are_short_late_and_out_of_order() {
    for seed in 0..8 {
        let medium = Medium::new(2 + to_usize(seed % 3));
        let mut device = medium.device(&medium.create(), &clumsy(), seed);
        let mut model = vec![0; LEN];
        churn(&mut device, &mut model, &mut Random::new(seed), 60);
        for leg in 0..medium.legs.len() {
            assert!(medium.bytes(leg, LEN) == model, "leg {leg}, seed {seed}");
        }
    }
}

#[test]
fn a_leg_that_fails_is_out_and_what_it_missed_is_all_that_must_be_copied() {
    for seed in 0..8 {
        let medium = Medium::new(2);
        let mirror = medium.create();
        let mut device = medium.device(&mirror, &clumsy(), seed);
        let (mut model, mut random) = (vec![0; LEN], Random::new(seed));
        churn(&mut device, &mut model, &mut random, 10);
        let bad = to_usize(seed % 2);
        unplug(&mut device, bad);
        churn(&mut device, &mut model, &mut random, 20);
        assert_eq!((mirror.state(bad), mirror.state(1 - bad)), (Out, InSync));
        assert!(medium.bytes(1 - bad, LEN) == model);
        assert!(medium.bytes(bad, LEN) != model);
        // As after a crash: nothing is closed.
        drop((device, mirror));
        let mirror = medium.open(&[bad, 1 - bad]);
        assert_eq!((mirror.state(bad), mirror.state(1 - bad)), (Out, InSync));
        let found = read_record(&medium.legs[bad]);
        let leg = medium.legs[bad].clone();
        let (number, missed) =
            mirror.attach(&path(bad), leg, found.as_ref(), false, |_| {}).unwrap();
        let Missed::Ranges(ranges) = missed else { panic!("what it missed is known") };
        assert_eq!((number, ranges.len(), ranges[0].end - ranges[0].start), (bad, 1, 4 << 20));
        let mut device = medium.device(&mirror, &clumsy(), seed);
        let second = &model[LEN / 2..];
        // What is written meanwhile goes to both.
        write(&mut device, START + to_u64(LEN / 2), second);
        let first = model[..LEN / 2].to_vec();
        let copy = transfer(Op::Write, START, &first);
        assert_eq!(run(&mut device, copy.with_leg(u8::try_from(bad).unwrap())).result, Ok(1 << 19));
        assert_eq!(mirror.state(bad), Resyncing);
        mirror.resynced(bad).unwrap();
        assert!(medium.bytes(bad, LEN) == model);
        drop((device, mirror));
        assert_eq!(states(&medium.open(&[0, 1]), 2), [InSync, InSync]);
    }
}

#[test]
fn what_no_leg_can_do_fails_and_puts_none_out() {
    let medium = Medium::new(2);
    let mirror = medium.create();
    let fault = Fault { range: START..BYTES, reads: false, error: Error::NoSpace };
    let faults = Faults { faults: vec![fault], ..Faults::default() };
    let mut device = medium.device(&mirror, &faults, 1);
    let ended = run(&mut device, transfer(Op::Write, START, &[1; 4096]));
    assert_eq!(ended.result, Err(Error::NoSpace));
    assert!(ended.bio.memory.buffer().is_some());
    assert_eq!(states(&mirror, 2), [InSync, InSync]);
}

#[test]
fn what_one_leg_does_not_know_is_refused_and_puts_none_out() {
    let medium = Medium::new(2);
    let mirror = medium.create();
    let mut device = medium.device(&mirror, &Faults::default(), 1);
    device.leg_mut(1).unwrap().faults.plain = true;
    let ended = run(&mut device, Bio::new(Op::Discard, START, 4096, Memory::None));
    assert_eq!(ended.result, Err(Error::Unsupported));
    assert_eq!(states(&mirror, 2), [InSync, InSync]);
}

#[test]
fn a_read_of_a_leg_that_fails_comes_from_another_and_says_so() {
    let medium = Medium::new(3);
    let mirror = medium.create();
    let mut device = medium.device(&mirror, &Faults::default(), 1);
    write(&mut device, START, &[5; 4096]);
    unplug(&mut device, 0);
    unplug(&mut device, 2);
    let found: Vec<_> = (0..3)
        .map(|_| {
            let ended = run(&mut device, transfer(Op::Read, START, &[0; 4096]));
            assert_eq!(ended.bio.memory.buffer().unwrap().as_slice()[..4096], [5; 4096]);
            // The one that can be read is not among those that could not.
            (ended.result, ended.bio.unread_legs & 0b010)
        })
        .collect();
    assert_eq!(found, [(Ok(4096), 0); 3]);
    // A leg that cannot be read is not out: it may hold all the same, and what is read is repaired.
    assert_eq!(states(&mirror, 3), [InSync; 3]);
    let errors: u64 = mirror.legs().iter().map(|(_, leg)| leg.errors).sum();
    assert!(errors > 0);
    unplug(&mut device, 1);
    let ended = run(&mut device, transfer(Op::Read, START, &[0; 4096]));
    assert_eq!((ended.result, ended.bio.unread_legs), (Err(Error::IO), 0b111));
}

#[test]
fn a_leg_whose_flush_fails_is_out_and_the_last_ones_failure_is_told() {
    let medium = Medium::new(2);
    let mirror = medium.create();
    let mut device = medium.device(&mirror, &Faults::default(), 1);
    device.leg_mut(0).unwrap().faults.flush = Some(Error::IO);
    write(&mut device, START, &[5; 4096]);
    assert_eq!(run(&mut device, Bio::flush()).result, Ok(0));
    assert_eq!(states(&mirror, 2), [Out, InSync]);
    device.leg_mut(1).unwrap().faults.flush = Some(Error::IO);
    assert_eq!(run(&mut device, Bio::flush()).result, Err(Error::IO));
    assert_eq!(states(&mirror, 2), [Out, InSync]);
    // What it had taken and not flushed may be lost, and is copied.
    drop((device, mirror));
    let mirror = medium.open(&[1, 0]);
    let found = read_record(&medium.legs[0]);
    let (_, missed) =
        mirror.attach(&path(0), medium.legs[0].clone(), found.as_ref(), false, |_| {}).unwrap();
    assert_eq!(missed, Missed::Ranges(std::iter::once(0..4 << 20).collect()));
}

#[test]
fn what_was_flushed_before_a_leg_failed_is_not_copied_to_it() {
    let medium = Medium::new(2);
    let mirror = medium.create();
    let mut device = medium.device(&mirror, &Faults::default(), 1);
    write(&mut device, START, &[5; 4096]);
    assert_eq!(run(&mut device, Bio::flush()).result, Ok(0));
    assert_eq!(run(&mut device, Bio::flush()).result, Ok(0));
    unplug(&mut device, 1);
    write(&mut device, 40 << 20, &[6; 4096]);
    let found = read_record(&medium.legs[1]);
    let (_, missed) =
        mirror.attach(&path(1), medium.legs[1].clone(), found.as_ref(), false, |_| {}).unwrap();
    assert_eq!(missed, Missed::Ranges(std::iter::once(40 << 20..44 << 20).collect()));
}

#[test]
fn memory_that_changes_is_not_written_since_legs_would_differ() {
    let medium = Medium::new(2);
    let mut device = medium.device(&medium.create(), &Faults::default(), 1);
    let memory = Arc::new(VolatileMemory::new(vec![Region::anonymous(4096).unwrap()]));
    let mut iter = IovIter::new(memory);
    iter.push(0, 0, 4096).unwrap();
    let ended = run(&mut device, Bio::new(Op::Write, START, 4096, Memory::Iov(iter)));
    assert_eq!((ended.result, ended.bio.memory.len()), (Err(Error::Unsupported), 4096));
}

#[test]
fn legs_that_were_each_written_without_the_other_are_refused() {
    let medium = Medium::new(2);
    drop(medium.create());
    for leg in [0, 1] {
        let mirror = medium.open(&[leg]);
        assert_eq!((mirror.state(leg), mirror.state(1 - leg)), (InSync, Out));
    }
    let found = medium.assemble(&[0, 1]).map(drop);
    let Err(error @ MirrorError::SplitBrain { .. }) = found else { panic!("{found:?}") };
    let text = error.to_string();
    assert!(text.contains("/legs/0.hf") && text.contains("/legs/1.hf"), "{text}");
    assert!(text.contains("attach --discard") && text.contains("generation 2"), "{text}");
    // Without the other, either goes on; the other then gets everything.
    let mirror = medium.open(&[1]);
    let found = read_record(&medium.legs[0]);
    let (_, missed) =
        mirror.attach(&path(0), medium.legs[0].clone(), found.as_ref(), false, |_| {}).unwrap();
    assert_eq!(missed, Missed::All);
    mirror.resynced(0).unwrap();
    drop(mirror);
    assert_eq!(states(&medium.open(&[0, 1]), 2), [InSync, InSync]);
}

#[test]
fn a_record_of_which_one_copy_has_rotted_is_good_and_is_written_again() {
    let medium = Medium::new(2);
    drop(medium.create());
    medium.legs[0].store(RECORD_OFFSETS[0], &[0xaa; 4096]);
    medium.legs[1].store(RECORD_OFFSETS[1], &[0xaa; 4096]);
    assert_eq!(states(&medium.open(&[0, 1]), 2), [InSync, InSync]);
    medium.legs[0].store(RECORD_OFFSETS[1], &[0xaa; 4096]);
    medium.legs[1].store(RECORD_OFFSETS[0], &[0xaa; 4096]);
    assert_eq!(states(&medium.open(&[1, 0]), 2), [InSync, InSync]);
}

#[test]
fn a_crash_during_a_resync_never_leaves_a_leg_that_is_read() {
    let medium = Medium::new(2);
    let mirror = medium.create();
    let mut device = medium.device(&mirror, &Faults::default(), 1);
    unplug(&mut device, 1);
    write(&mut device, START, &[5; 4096]);
    let attach = |mirror: &Mirror| {
        let found = read_record(&medium.legs[1]);
        mirror.attach(&path(1), medium.legs[1].clone(), found.as_ref(), false, |_| {}).unwrap().1
    };
    let first = attach(&mirror);
    drop((device, mirror));
    let found = medium.assemble(&[1]).map(drop);
    assert!(matches!(found, Err(MirrorError::NoLeg { .. })), "{found:?}");
    let mirror = medium.open(&[1, 0]);
    assert_eq!(states(&mirror, 2), [InSync, Out]);
    assert_eq!(attach(&mirror), first);
}

#[test]
fn a_detached_leg_is_no_leg_and_comes_back_with_what_it_missed() {
    let medium = Medium::new(3);
    let mirror = medium.create();
    mirror.detach(&path(2)).unwrap();
    mirror.detach(&path(0)).unwrap();
    let last = mirror.detach(&path(1));
    assert_eq!(last, Err(MirrorError::Last { path: "/legs/1.hf".to_owned() }));
    let mut device = medium.device(&mirror, &Faults::default(), 1);
    write(&mut device, 40 << 20, &[6; 4096]);
    drop((device, mirror));
    let alone = medium.assemble(&[2]).map(drop);
    assert!(matches!(alone, Err(MirrorError::NoLeg { state: "detached", .. })), "{alone:?}");
    let mirror = medium.open(&[1, 0, 2]);
    assert_eq!(states(&mirror, 3), [Detached, InSync, Detached]);
    let found = read_record(&medium.legs[2]);
    let (_, missed) =
        mirror.attach(&path(2), medium.legs[2].clone(), found.as_ref(), false, |_| {}).unwrap();
    assert_eq!(missed, Missed::Ranges(std::iter::once(40 << 20..44 << 20).collect()));
}

#[test]
fn a_leg_that_is_attached_while_queues_are_open_is_opened_by_each() {
    let medium = Medium::new(2);
    let mirror = medium.create();
    let mut device = medium.device(&mirror, &Faults { reorder: true, ..Faults::default() }, 1);
    unplug(&mut device, 1);
    write(&mut device, START, &[5; 4096]);
    assert_eq!(states(&mirror, 2), [InSync, Out]);
    let found = read_record(&medium.legs[1]);
    let leg = medium.legs[1].clone();
    mirror.attach(&path(1), leg, found.as_ref(), false, |_| {}).unwrap();
    write(&mut device, START + 4096, &[6; 4096]);
    assert_eq!(states(&mirror, 2), [InSync, Resyncing]);
    assert_eq!(medium.bytes(1, 8192)[4096..], [6; 4096]);
}

#[test]
fn what_was_in_flight_on_a_leg_that_is_another_now_ends_and_does_not_count() {
    let medium = Medium::new(2);
    let mirror = medium.create();
    let mut device = medium.device(&mirror, &Faults::default(), 1);
    unplug(&mut device, 1);
    // It has failed below, and nobody has heard of it when the leg is attached again.
    device.submit(transfer(Op::Write, START, &[5; 4096])).unwrap();
    let mut other = medium.device(&mirror, &Faults::default(), 2);
    unplug(&mut other, 1);
    write(&mut other, START + 4096, &[6; 4096]);
    let found = read_record(&medium.legs[1]);
    let leg = medium.legs[1].clone();
    mirror.attach(&path(1), leg, found.as_ref(), false, |_| {}).unwrap();
    write(&mut device, START + 8192, &[7; 4096]);
    let mut ended = Vec::new();
    device.reap(&mut ended);
    assert_eq!(states(&mirror, 2), [InSync, Resyncing]);
    let found = [medium.bytes(0, 12288), medium.bytes(1, 12288)];
    assert_eq!(found.map(|bytes| [bytes[0], bytes[4096], bytes[8192]]), [[5, 6, 7], [0, 0, 7]]);
}

#[test]
fn a_leg_that_is_an_older_copy_of_itself_gets_everything() {
    let medium = Medium::new(2);
    let mirror = medium.create();
    let copy = MemoryDevice::new(BYTES);
    let mut bytes = vec![0; 1 << 20];
    medium.legs[1].load(0, &mut bytes);
    copy.store(0, &bytes);
    for _ in 0..2 {
        mirror.detach(&path(1)).unwrap();
        let found = read_record(&medium.legs[1]);
        let leg = medium.legs[1].clone();
        assert_eq!(mirror.forget(&path(1), found.as_ref(), false), Ok(false));
        mirror.attach(&path(1), leg, found.as_ref(), false, |_| {}).unwrap();
        mirror.resynced(1).unwrap();
    }
    mirror.detach(&path(1)).unwrap();
    let found = read_record(&copy);
    assert_eq!(mirror.forget(&path(1), found.as_ref(), false), Ok(true));
    // It is, from then on, whatever comes.
    drop(mirror);
    let mirror = medium.open(&[0]);
    let found = read_record(&medium.legs[1]);
    assert_eq!(mirror.forget(&path(1), found.as_ref(), false), Ok(true));
}

#[test]
fn a_fifth_leg_and_a_path_that_cannot_be_remembered_are_refused() {
    let medium = Medium::new(4);
    let mirror = medium.create();
    let fifth = || MemoryDevice::new(BYTES);
    let found = mirror.attach(&path(4), fifth(), None, false, |_| {});
    assert_eq!(found, Err(MirrorError::Full));
    let medium = Medium::new(2);
    let long = PathBuf::from(format!("/elsewhere/{}", "x".repeat(200)));
    let found = medium.create().attach(&long, fifth(), None, false, |_| {});
    assert!(matches!(found, Err(MirrorError::Path { .. })), "{found:?}");
}

#[test]
fn a_queue_without_any_work_waits_for_nothing() {
    let medium = Medium::new(2);
    let mut device = medium.device(&medium.create(), &Faults::default(), 1);
    device.wait();
    assert_eq!((device.legs(), device.limits().capacity), (2, BYTES));
}
