use super::*;
use crate::log::{Intent, Log};
use holdfast_checksum::GuardKind;
use holdfast_units::BlockSize;
use proptest::prelude::*;

const BLOCK: usize = 512;

fn geometry() -> Geometry {
    Geometry::new(3 << 20, BlockSize::PAGE, GuardKind::Crc64).unwrap()
}

fn epoch() -> NonZeroU64 {
    NonZeroU64::new(7).unwrap()
}

/// Returns a batch of one sector each, which is filled with the lowest byte of its address.
fn batch(lbas: &[u64], generation: u64, place: usize, position: Position) -> Vec<u8> {
    let log = Log::written(BlockSize::SECTOR, epoch(), &geometry(), true);
    let intents: Vec<_> = lbas.iter().map(|&lba| Intent { lba, count: 1, clears: false }).collect();
    let records_len: usize = intents.iter().map(|intent| log.record_len(intent)).sum();
    let layout = Layout::new(records_len, lbas.len() * PAGE, BLOCK);
    let mut bytes = vec![0; layout.len];
    let mut at = layout.records_at;
    for (index, intent) in intents.iter().enumerate() {
        let len = log.record_len(intent);
        let position = position.after(to_u64((at - layout.records_at) / LOG_UNIT));
        let tuples = |number| std::iter::once([intent.lba, number]);
        log.encode(&mut bytes[at..at + len], position, intent, tuples(1), tuples(2));
        at += len;
        bytes[layout.data_at + index * PAGE..][..PAGE].fill(intent.lba.to_le_bytes()[0]);
    }
    seal(&mut bytes, layout, epoch(), generation, place, position);
    bytes
}

fn journal() -> Vec<u8> {
    vec![0; to_usize(geometry().journal().1)]
}

fn put(journal: &mut [u8], place: usize, batch: &[u8]) {
    journal[place..][..batch.len()].copy_from_slice(batch);
}

fn lbas(journal: &[u8]) -> Vec<u64> {
    let batches = find_batches(journal, epoch(), &geometry());
    batches.iter().flat_map(|batch| &batch.records).map(|record| record.lba).collect()
}

#[test]
fn what_is_put_into_a_batch_is_found_with_its_data() {
    let (mut journal, position) = (journal(), Position::new(1, 40));
    put(&mut journal, PAGE, &batch(&[5, 300], 1, PAGE, position));
    let found = find_batches(&journal, epoch(), &geometry());
    let [first, second] = &found[0].records[..] else { panic!("{found:?}") };
    assert_eq!((first.position, first.new_words(5)), (position, Some([5, 1])));
    assert_eq!((second.lba, second.old_words(300)), (300, Some([300, 2])));
    assert!(first.data_of(5).unwrap().iter().all(|&byte| byte == 5));
    assert!(second.data_of(300).unwrap().iter().all(|&byte| byte == 44));
    assert_eq!(second.data_of(5), None);
}

#[test]
fn what_its_segment_had_four_generations_ago_does_not_count() {
    let (mut journal, position) = (journal(), Position::new(1, 0));
    let segment = lane_len(&geometry()) / SEGMENTS;
    for (generation, index) in [(2, 2), (5, 1), (6, 0)] {
        let place = index * segment;
        put(&mut journal, place, &batch(&[generation], generation, place, position));
    }
    let other_lane = lane_len(&geometry());
    put(&mut journal, other_lane, &batch(&[1], 1, other_lane, position));
    assert_eq!(lbas(&journal), [6, 5, 1]);
}

proptest! {
    #[test]
    fn a_flipped_bit_ends_a_batch(bit in 0..2 * PAGE * 8) {
        let mut journal = journal();
        let mut bytes = batch(&[9], 1, 0, Position::new(1, 0));
        prop_assert_eq!(bytes.len(), 2 * PAGE);
        bytes[bit / 8] ^= 1 << (bit % 8);
        put(&mut journal, 0, &bytes);
        prop_assert!(lbas(&journal).is_empty());
    }

    #[test]
    fn no_fields_make_the_parser_panic(
        fields in prop::collection::vec(prop_oneof![0..20_000_u32, any::<u32>()], 4),
        len in prop_oneof![Just(2 * PAGE), 0..BATCH_MAX],
        position: u64,
        noise in prop::collection::vec(any::<u8>(), 0..700),
    ) {
        let mut bytes = batch(&[9], 1, 0, Position::new(1, 0));
        bytes.resize(BATCH_MAX, 0);
        bytes[BLOCK..][..noise.len()].copy_from_slice(&noise);
        let (mut header, _) = RawBatch::read_from_prefix(&bytes).unwrap();
        header.position = U64::new(position);
        header.records_at = U32::new(fields[0]);
        header.records_len = U32::new(fields[1]);
        header.data_at = U32::new(fields[2]);
        header.len = if len == 0 { U32::new(fields[3]) } else { U32::new(u32::try_from(len).unwrap()) };
        bytes[..BATCH_HEADER].copy_from_slice(header.as_bytes());
        let end = len.max(BATCH_HEADER);
        let crc = checksum_of(&bytes[..end]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        let mut journal = journal();
        put(&mut journal, 0, &bytes);
        for record in find_batches(&journal, epoch(), &geometry()).iter().flat_map(|it| &it.records) {
            prop_assert_eq!(record.data.unwrap().len(), record.count * PAGE);
        }
    }
}
