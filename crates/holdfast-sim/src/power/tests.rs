use super::*;
use holdfast_iov::Pool;

const CAPACITY: u64 = 1 << 20;
const LEN: usize = 8192;
/// So many cuts show whatever can be left.
const SEEDS: u64 = 300;

fn write(device: &mut PowerDevice, offset: u64, len: usize, byte: u8, fua: bool) {
    let mut buffer = Pool::new(1 << 20).unwrap().take_whole(len).unwrap();
    buffer.as_mut_slice().fill(byte);
    let mut bio = Bio::new(Op::Write, offset, to_u64(len), Memory::Buffer(buffer));
    bio.fua = fua;
    device.submit(bio).unwrap();
}

fn reap(device: &mut PowerDevice) -> Vec<Ended> {
    let mut ended = Vec::new();
    while !device.flights.is_empty() {
        device.reap(&mut ended);
    }
    ended
}

fn flush(device: &mut PowerDevice) {
    assert_eq!(device.run(Bio::flush()).result, Ok(0));
}

/// Returns the first byte of each 512 of the first `LEN` bytes.
fn units(device: &PowerDevice) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    device.peek(0, &mut bytes);
    for unit in bytes.chunks(512) {
        assert!(unit.iter().all(|byte| *byte == unit[0]), "512 bytes are torn");
    }
    bytes.iter().step_by(512).copied().collect()
}

/// Returns what cuts at `position` leave.
fn cuts(device: &PowerDevice, position: usize) -> Vec<Vec<u8>> {
    let journal = device.journal();
    let mut replay = journal.replay();
    replay.advance_to(position);
    (0..SEEDS).map(|seed| units(&device.after_cut(&replay, seed))).collect()
}

/// Returns all bytes that cuts leave anywhere.
fn bytes(cuts: &[Vec<u8>]) -> BTreeSet<u8> {
    cuts.iter().flatten().copied().collect()
}

#[test]
fn what_was_not_flushed_is_kept_or_lost_by_512_bytes() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    for position in [1, 2] {
        reap(&mut device);
        let cuts = cuts(&device, position);
        assert_eq!(bytes(&cuts), [0, 1].into());
        let has_torn = cuts.iter().any(|cut| cut.contains(&0) && cut.contains(&1));
        assert!(has_torn && cuts.contains(&vec![0; 16]) && cuts.contains(&vec![1; 16]));
    }
}

#[test]
fn what_had_ended_before_the_flush_began_is_durable() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    reap(&mut device);
    flush(&mut device);
    assert_eq!(bytes(&cuts(&device, 3)), [1].into());
    assert_eq!(bytes(&cuts(&device, 2)), [0, 1].into());
}

#[test]
fn what_had_not_ended_when_the_flush_began_is_not_durable() {
    let mut device = PowerDevice::new(CAPACITY);
    let mut other = device.queue(0, 0);
    write(&mut device, 0, LEN, 1, false);
    other.submit(Bio::flush()).unwrap();
    reap(&mut device);
    reap(&mut other);
    assert_eq!(bytes(&cuts(&device, 3)), [0, 1].into());
}

#[test]
fn a_flush_covers_the_writes_of_other_queues() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    reap(&mut device);
    flush(&mut device.queue(0, 0));
    assert_eq!(bytes(&cuts(&device, 3)), [1].into());
}

#[test]
fn overlapping_writes_come_in_any_order_and_none_older_than_what_is_durable() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    reap(&mut device);
    flush(&mut device);
    for byte in [2, 3] {
        write(&mut device, 0, LEN, byte, false);
        reap(&mut device);
    }
    assert_eq!(bytes(&cuts(&device, device.position())), [1, 2, 3].into());
}

#[test]
fn a_durable_write_is_durable_and_nothing_else() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    reap(&mut device);
    write(&mut device, 0, 4096, 2, true);
    reap(&mut device);
    let cuts = cuts(&device, 4);
    assert!(cuts.iter().all(|cut| cut[..8] == [2; 8]), "an older write came back");
    assert!(cuts.iter().any(|cut| cut[8..] == [0; 8]), "another was made durable");
}

#[test]
fn an_older_write_stays_behind_a_durable_one_also_after_a_flush() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    reap(&mut device);
    write(&mut device, 512, 512, 2, true);
    reap(&mut device);
    flush(&mut device);
    let mut expected = vec![1; 16];
    expected[1] = 2;
    assert!(cuts(&device, 5).iter().all(|cut| *cut == expected));
}

#[test]
fn a_discard_is_a_change_like_any_other() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, true);
    reap(&mut device);
    for op in [Op::Discard, Op::Zero { keep: true, fast: true }] {
        let discard = Bio::new(op, 0, 4096, Memory::None);
        assert_eq!(device.run(discard).result, Ok(4096));
        let cuts = cuts(&device, device.position());
        assert!(cuts.iter().all(|cut| cut[8..] == [1; 8]));
        assert!(cuts.iter().any(|cut| cut[..8].contains(&0) && cut[..8].contains(&1)));
    }
}

#[test]
fn a_flush_that_lies_makes_nothing_durable_and_the_next_does() {
    let mut device = PowerDevice::new(CAPACITY);
    device.lie(0);
    write(&mut device, 0, LEN, 1, false);
    reap(&mut device);
    let submitted = device.position();
    flush(&mut device);
    assert_eq!(bytes(&cuts(&device, 3)), [0, 1].into());
    assert_eq!(device.journal().doubtful_since(3), Some(submitted));
    flush(&mut device);
    assert_eq!(bytes(&cuts(&device, 4)), [1].into());
    assert_eq!(device.journal().doubtful_since(4), None);
}

#[test]
fn a_killed_process_loses_only_what_was_in_flight() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    reap(&mut device);
    write(&mut device, 4096, 4096, 2, false);
    let journal = device.journal();
    let mut replay = journal.replay();
    replay.advance_to(3);
    let kills: Vec<_> = (0..SEEDS).map(|seed| units(&device.after_kill(&replay, seed))).collect();
    assert!(kills.iter().all(|kill| kill[..8] == [1; 8]));
    assert_eq!(bytes(&kills), [1, 2].into());
}

#[test]
fn a_cut_of_a_seed_is_the_same_again() {
    let mut device = PowerDevice::new(CAPACITY);
    for byte in 1..20 {
        write(&mut device, u64::from(byte % 3) * 2048, 4096, byte, false);
    }
    reap(&mut device);
    assert_eq!(cuts(&device, 25), cuts(&device, 25));
}

#[test]
fn the_order_is_that_of_the_seed() {
    let order = |seed| {
        let mut device = PowerDevice::new(CAPACITY).queue(60, seed);
        for user in 0..20 {
            device.submit(Bio::flush().with_user(user)).unwrap();
        }
        let ended = reap(&mut device);
        ended.iter().map(|ended| ended.bio.user).collect::<Vec<u64>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert_eq!(order(1).into_iter().collect::<BTreeSet<u64>>(), (0..20).collect());
}

#[test]
fn a_write_in_flight_is_not_read() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    assert_eq!(units(&device), [0; 16]);
    reap(&mut device);
    assert_eq!(units(&device), [1; 16]);
    assert_eq!(units(&device.settled()), [1; 16]);
}

#[test]
fn what_is_in_flight_ends_when_its_queue_is_dropped() {
    let device = PowerDevice::new(CAPACITY);
    let mut queue = device.queue(90, 0);
    write(&mut queue, 0, LEN, 1, false);
    drop(queue);
    assert_eq!(units(&device), [1; 16]);
}

#[test]
fn versions_are_complete_changes_in_their_order() {
    let mut device = PowerDevice::new(CAPACITY);
    for (offset, len, byte) in [(0, LEN, 1), (0, 1024, 2), (1024, 3072, 2), (8192, 4096, 3)] {
        write(&mut device, offset, len, byte, false);
        reap(&mut device);
    }
    let versions = device.journal().versions(0, 4096, device.position());
    assert_eq!(versions, [[0; 4096], [1; 4096], [2; 4096]]);
}

#[test]
fn what_came_before_something_durable_is_no_version_any_more() {
    let mut device = PowerDevice::new(CAPACITY);
    write(&mut device, 0, LEN, 1, false);
    reap(&mut device);
    write(&mut device, 0, 512, 2, false);
    reap(&mut device);
    flush(&mut device);
    let second = device.journal().versions(0, 512, device.position());
    assert_eq!(second, [[2; 512]], "the first cannot come back");
    write(&mut device, 0, LEN, 3, true);
    let third = device.journal().versions(0, 512, device.position());
    assert_eq!(third, [[2; 512], [3; 512]], "it has begun");
    reap(&mut device);
    assert_eq!(device.journal().versions(0, 512, device.position()), [[3; 512]]);
}

#[test]
fn a_flipped_bit_is_in_every_cut() {
    let mut device = PowerDevice::new(CAPACITY).settled();
    (0..512).for_each(|at| device.corrupt(at, 0x40));
    write(&mut device, 512, 512, 1, true);
    reap(&mut device);
    assert!(cuts(&device, 2).iter().all(|cut| cut[..3] == [0x40, 1, 0]));
}

#[test]
fn a_range_past_the_end_is_refused() {
    let mut device = PowerDevice::new(4096);
    let found = device.run(Bio::new(Op::Discard, 4096, 512, Memory::None)).result;
    assert_eq!(found, Err(Error::Range { offset: 4096, len: 512 }));
}

#[test]
fn disks_of_one_medium_have_caches_of_their_own() {
    let half = CAPACITY / 2;
    let whole = PowerDevice::new(CAPACITY);
    let [mut first, mut second] = [0, 1].map(|number| whole.disk(number, half));
    assert_eq!(first.limits().capacity, half);
    for (disk, byte) in [(&mut first, 1), (&mut second, 2)] {
        write(disk, 0, LEN, byte, false);
        reap(disk);
    }
    flush(&mut first);
    let (journal, position) = (whole.journal(), whole.position());
    let mut replay = journal.replay();
    replay.advance_to(position);
    let mut lost = 0;
    for seed in 0..SEEDS {
        let cut = whole.after_cut(&replay, seed);
        assert_eq!(units(&cut.disk(0, half)), [1; LEN / 512]);
        lost += usize::from(units(&cut.disk(1, half)).contains(&0));
    }
    assert!(lost > 0, "what was flushed elsewhere was durable");
    assert_eq!(units(&second), [2; LEN / 512]);
    assert_eq!((first.data_after(0), first.data_after(65536)), (Ok(Some(0)), Ok(None)));
}

#[test]
fn a_lie_of_one_disk_is_in_doubt_until_that_disk_flushes() {
    let whole = PowerDevice::new(CAPACITY);
    let [mut first, mut second] = [0, 1].map(|number| whole.disk(number, CAPACITY / 2));
    whole.lie(0);
    write(&mut first, 0, LEN, 1, false);
    reap(&mut first);
    let submitted = whole.position();
    flush(&mut first);
    flush(&mut second);
    let doubt = |whole: &PowerDevice| whole.journal().doubtful_since(whole.position());
    assert_eq!(doubt(&whole), Some(submitted));
    flush(&mut first);
    assert_eq!(doubt(&whole), None);
}
