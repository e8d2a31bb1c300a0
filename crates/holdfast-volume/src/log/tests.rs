//! Records, and what is believed of those that are found.

use super::*;
use crate::judge::Judge;
use crate::recovery::Recovery;
use crate::{CreateOptions, Volume};
use holdfast_bio::{Bio, BlockDevice, Op};
use holdfast_device::MemoryDevice;
use holdfast_iov::{Memory, Pool};
use holdfast_units::BlockSize;
use proptest::prelude::*;

fn geometry(guard: GuardKind) -> Geometry {
    Geometry::new(3 << 20, BlockSize::PAGE, guard).unwrap()
}

fn epoch(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn log(geometry: &Geometry) -> Log {
    let region = Region::anonymous(to_usize(geometry.log().1)).unwrap();
    Log::mapped(region, epoch(7), geometry)
}

fn words(log: &Log, lba: u64) -> [u64; 2] {
    if log.tuple_words == 1 { [lba + 1, 0] } else { [lba + 1, lba + 2] }
}

fn old_words(log: &Log, lba: u64) -> [u64; 2] {
    words(log, lba + 1000)
}

fn append(log: &Log, intent: &Intent) -> Option<Position> {
    let len = log.record_len(intent);
    let position = log.reserve(len, 1)?;
    let mut record = vec![0; len];
    let lbas = intent.lba..intent.lba + to_u64(intent.count);
    let (new, old) = (lbas.clone().map(|lba| words(log, lba)), lbas.map(|lba| old_words(log, lba)));
    log.encode(&mut record, position, intent, new, old);
    log.store(position, &record);
    Some(position)
}

const fn writes(lba: u64, count: usize) -> Intent {
    Intent { lba, count, clears: false }
}

fn bytes(log: &Log) -> Vec<u8> {
    let Medium::Mapped(region) = &log.medium else { panic!("it is mapped") };
    let mut bytes = vec![0; region.len()];
    region.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_appended_is_found_and_what_is_torn_is_not() {
    for guard in GuardKind::ALL {
        let geometry = geometry(guard);
        let log = log(&geometry);
        let count = geometry.sectors_of_group();
        let position = append(&log, &writes(0, count)).unwrap();
        let second = append(&log, &Intent { lba: 3, count: 5, clears: true }).unwrap();
        let mut bytes = bytes(&log);
        let half_len = half_len(&geometry, false);
        let parse = |bytes: &[u8], position: Position| {
            let half = bytes[position.half() * half_len..][..half_len].to_vec();
            let place = to_usize(position.place());
            let found = Record::parse(&half, position.half(), place, epoch(7), &geometry);
            found.map(|(record, _)| {
                [record.new_words(2), record.new_words(3), record.old_words(3), record.new_words(8)]
            })
        };
        let [two, three, eight] = [2, 3, 8].map(|lba| Some(words(&log, lba)));
        let old = Some(old_words(&log, 3));
        assert_eq!(parse(&bytes, position), Some([two, three, old, eight]));
        assert_eq!(parse(&bytes, second), Some([None, Some([0, 0]), old, None]));
        // The last tuple of the first record.
        let at = position.half() * half_len + HEADER + 2 * count * log.tuple_words * 8 - 1;
        bytes[at] ^= 1;
        assert_eq!(parse(&bytes, position), None);
    }
}

#[test]
fn a_record_of_another_epoch_or_another_place_is_none() {
    let geometry = geometry(GuardKind::Crc64);
    let log = log(&geometry);
    let position = append(&log, &writes(9, 1)).unwrap();
    let half =
        &bytes(&log)[position.half() * half_len(&geometry, false)..][..half_len(&geometry, false)];
    let parse = |half: &[u8], index, place, number| {
        Record::parse(half, index, place, epoch(number), &geometry).is_some()
    };
    assert!(parse(half, position.half(), 0, 7));
    assert!(!parse(half, position.half(), 0, 8));
    assert!(!parse(half, 1 - position.half(), 0, 7));
    let mut moved = vec![0; LOG_UNIT];
    moved.extend_from_slice(half);
    assert!(!parse(&moved, position.half(), 1, 7));
}

#[test]
fn both_halves_are_filled_and_a_half_is_used_again_when_it_was_given_up_and_stored() {
    let geometry = geometry(GuardKind::Crc64);
    let log = log(&geometry);
    let mut positions = Vec::new();
    while let Some(position) = append(&log, &writes(0, 100)) {
        positions.push(position);
    }
    let units = (HEADER + 2 * 100 * 16).div_ceil(LOG_UNIT);
    assert_eq!(positions.len(), 2 * (to_usize(log.halves.units()) / units));
    assert!(positions.is_sorted());
    assert_eq!(log.begin_flush(), None);
    let (first, second) = positions.split_at(positions.len() / 2);
    let asked: Vec<_> = first.iter().map(|&position| log.release(position)).collect();
    assert_eq!(asked.iter().position(|&asked| asked), Some(first.len() - 1));
    let round = log.begin_flush().unwrap();
    assert_eq!(
        append(&log, &writes(0, 1)).map(Position::half),
        Some(second[0].half()),
        "a small one fits"
    );
    assert_eq!(append(&log, &writes(0, 100)), None);
    log.flushed(round);
    assert_eq!(append(&log, &writes(0, 100)).map(Position::half), Some(first[0].half()));
}

/// Puts a record with a good checksum into a device's log, and whatever values.
fn forge(device: &mut MemoryDevice, geometry: &Geometry, half: usize, place: usize, record: &[u8]) {
    let mut record = record.to_vec();
    record.resize(record.len().next_multiple_of(512), 0);
    let crc = |len| checksum_of(&record[..len]);
    let payload = u32::from_le_bytes(record[32..36].try_into().unwrap());
    let flags = u32::from_le_bytes(record[36..40].try_into().unwrap());
    let copies = usize::from(flags & RECORD_CLEARED == 0) + usize::from(flags & RECORD_OLD != 0);
    let tuples = copies * to_usize(u64::from(payload)).min(250) * 16;
    let len = (HEADER + tuples).next_multiple_of(LOG_UNIT);
    let len = len.min(record.len());
    let crc = crc(len).to_le_bytes();
    record[..4].copy_from_slice(&crc);
    let at = geometry.log().0 + to_u64(half * half_len(geometry, false) + place * LOG_UNIT);
    let mut buffer = Pool::new(1 << 20).unwrap().take(record.len()).unwrap();
    buffer.as_mut_slice()[..record.len()].copy_from_slice(&record);
    let bio = Bio::new(Op::Write, at, to_u64(record.len()), Memory::Buffer(buffer));
    device.run(bio).result.unwrap();
}

proptest! {
    #[test]
    fn no_record_makes_recovery_panic_or_change_a_tuple_that_fits(
        records in prop::collection::vec(
            (
                prop_oneof![Just(0_u64), 0..800_u64, any::<u64>()],
                prop_oneof![0..600_u32, any::<u32>()],
                0..5_u32,
                prop::collection::vec(any::<u8>(), 0..500),
                any::<u64>(),
            ),
            1..6,
        ),
        any_position: bool,
    ) {
        let geometry = geometry(GuardKind::Crc64);
        let options = CreateOptions {
            capacity: geometry.capacity(),
            sector: geometry.sector(),
            guard: GuardKind::Crc64,
            application_tag: CreateOptions::APPLICATION_TAG,
        };
        let mut device = MemoryDevice::new(geometry.device_len());
        Volume::create(&mut device, &options).unwrap();
        for (index, (lba, count, flags, payload, position)) in records.iter().enumerate() {
            let place = index * 8;
            let half = index % 2;
            let here = to_u64(half + 2) << 24 | to_u64(place);
            let header = RawRecord {
                checksum: U32::ZERO,
                magic: RECORD_MAGIC,
                epoch: U64::new(7),
                position: U64::new(if any_position { *position } else { here }),
                lba: U64::new(*lba),
                count: U32::new(*count),
                flags: U32::new(*flags),
                durable: U64::new(0),
            };
            let record = [header.as_bytes(), payload].concat();
            forge(&mut device, &geometry, half, place, &record);
        }
        let superblock = Volume::peek(&mut device).unwrap();
        let judge = Judge::new(superblock.protection(), geometry.sector());
        let pages = device.pages_in_use();
        let mut progress = |_, _| {};
        Recovery::new(&mut device, &geometry, &judge, false, &mut progress)
            .and_then(|mut recovery| recovery.settle(epoch(7), None, false))
            .unwrap();
        // Everything is zeros and was never written, and no other tuple fits.
        prop_assert_eq!(device.pages_in_use(), pages);
    }
}
