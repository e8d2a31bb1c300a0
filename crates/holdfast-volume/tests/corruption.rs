//! Every flipped bit is found, blamed on its sector, and on no other.

use std::sync::Arc;

use holdfast_bio::{Error, Mismatch, Op, Tag};
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_sim::Random;
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::{Client, Volume};

use crate::common::{
    self, FileMedium, Medium, client, fill, flip, formats, open, options, peek, poke, tuple_at,
};

/// A volume, what it must hold, and which of its sectors were written.
struct Scene<M: Medium> {
    medium: M,
    guard: GuardKind,
    sector: BlockSize,
    expected: Vec<u8>,
    written: Vec<bool>,
}

/// A flipped bit.
#[derive(Clone, Copy, Debug)]
struct Flip {
    lba: u64,
    /// Where the data or the tuple is that the bit is in, in bytes of the device.
    at: u64,
    bit: u64,
    tag: Tag,
}

type Queues<M> = (Arc<Volume>, Client<<M as Medium>::Device>);

/// Returns a size of two groups and a bit.
fn capacity(guard: GuardKind, sector: BlockSize) -> u64 {
    2 * common::group_bytes(guard, sector) + 7 * sector.bytes()
}

fn device_len(guard: GuardKind, sector: BlockSize) -> u64 {
    options(guard, sector, capacity(guard, sector)).geometry().unwrap().device_len()
}

fn in_memory(guard: GuardKind, sector: BlockSize, random: &mut Random) -> Scene<MemoryDevice> {
    Scene::new(MemoryDevice::new(device_len(guard, sector)), guard, sector, random)
}

fn in_a_file(guard: GuardKind, sector: BlockSize, random: &mut Random) -> Scene<FileMedium> {
    Scene::new(FileMedium::new(device_len(guard, sector)), guard, sector, random)
}

impl<M: Medium> Scene<M> {
    /// Makes a volume of which some sectors were written, and one of those was discarded.
    fn new(medium: M, guard: GuardKind, sector: BlockSize, random: &mut Random) -> Self {
        let capacity = capacity(guard, sector);
        Volume::create(&mut medium.device(), &options(guard, sector, capacity)).unwrap();
        let sectors = to_usize(sector.count(capacity));
        let (expected, written) = (vec![0; to_usize(capacity)], vec![false; sectors]);
        let mut scene = Self { medium, guard, sector, expected, written };
        let (volume, mut client) = scene.open();
        for _ in 0..12 {
            let count = (1 + random.below(12)).min(to_u64(sectors));
            let first = random.below(to_u64(sectors) - count + 1);
            scene.write(&mut client, first, count, random.next());
        }
        scene.write(&mut client, to_u64(sectors) - 1, 1, random.next());
        scene.write(&mut client, 0, 3, random.next());
        client.clear(Op::Discard, sector.bytes(), sector.bytes()).unwrap();
        scene.expected[sector.len()..2 * sector.len()].fill(0);
        scene.written[1] = false;
        client.flush().unwrap();
        scene.close(&volume, client);
        scene
    }

    fn open(&self) -> Queues<M> {
        let volume = open(&self.medium);
        let client = client(&self.medium, &volume);
        (volume, client)
    }

    fn close(&self, volume: &Arc<Volume>, client: Client<M::Device>) {
        drop(client);
        volume.close(&mut self.medium.device()).unwrap();
    }

    fn write(&mut self, client: &mut Client<M::Device>, first: u64, count: u64, seed: u64) {
        let sector = self.sector.len();
        let range = to_usize(first) * sector..to_usize(first + count) * sector;
        fill(&mut self.expected[range.clone()], seed);
        let offset = first * self.sector.bytes();
        client.write_at(offset, &self.expected[range]).unwrap();
        self.written[to_usize(first)..to_usize(first + count)].fill(true);
    }

    /// Chooses a bit of the data or the tuple of a sector.
    fn choose(&self, random: &mut Random) -> Flip {
        let written = random.chance(60);
        let lba = loop {
            let lba = random.below(to_u64(self.written.len()));
            if self.written[to_usize(lba)] == written {
                break lba;
            }
        };
        let volume = open(&self.medium);
        if random.chance(50) {
            let bit = random.below(self.sector.bytes() * 8);
            let at = volume.geometry().data_at(lba * self.sector.bytes());
            return Flip { lba, at, bit, tag: if written { Tag::Guard } else { Tag::Unwritten } };
        }
        let (at, size) = tuple_at(&volume, lba);
        let bit = random.below(size * 8);
        let tag = if written { self.field(bit) } else { self.tag_of_unwritten(lba, bit) };
        Flip { lba, at, bit, tag }
    }

    /// Returns which field of a stored tuple a bit is in.
    fn field(&self, bit: u64) -> Tag {
        let (guard_end, application_end) = match self.guard {
            GuardKind::Crc16 => (2, 4),
            GuardKind::Crc32c => (4, 6),
            GuardKind::Crc64 => (8, 10),
        };
        match bit / 8 {
            byte if byte < guard_end => Tag::Guard,
            byte if byte < application_end => Tag::Application,
            _ => Tag::Reference,
        }
    }

    /// Returns the tag that a bit makes wrong in the tuple of a sector that was never written: the
    /// reference tag is judged first, and 0 is that of sector 0.
    fn tag_of_unwritten(&self, lba: u64, bit: u64) -> Tag {
        let size = to_u64(holdfast_integrity::Tuple::size(self.guard));
        let reference = match self.field(bit) {
            Tag::Reference => 1_u128 << ((size - 1 - bit / 8) * 8 + bit % 8),
            _ => 0,
        };
        if reference == u128::from(lba) { Tag::Application } else { Tag::Reference }
    }

    fn offset(&self, lba: u64) -> u64 {
        lba * self.sector.bytes()
    }

    /// Reads sectors, and fails when anything but what was written is delivered.
    fn read(&self, client: &mut Client<M::Device>, first: u64, end: u64) -> Result<(), Error> {
        let (from, to) = (to_usize(self.offset(first)), to_usize(self.offset(end)));
        let mut found = vec![0xee; to - from];
        client.read_at(to_u64(from), &mut found)?;
        assert!(found == self.expected[from..to], "wrong bytes from {first} to {end}");
        Ok(())
    }

    /// Flips a bit and checks that it is found, and only there.
    fn corrupt(&mut self, flipped: Flip, random: &mut Random) {
        let Flip { lba, at, bit, tag } = flipped;
        flip(&mut self.medium.device(), at, bit);
        let (volume, mut client) = self.open();
        let before = volume.errors();
        let report = common::scrub(client.queue());
        let found: Vec<_> = report.mismatches.iter().map(|found| (found.lba, found.tag)).collect();
        assert_eq!((report.corrupt, found), (1, vec![(lba, tag)]), "{flipped:?}");
        let blamed = |result| match result {
            Err(Error::Mismatch(Mismatch { lba, tag, .. })) => Some((lba, tag)),
            _ => None,
        };
        let last = to_u64(self.written.len()) - 1;
        assert_eq!(blamed(self.read(&mut client, lba, lba + 1)), Some((lba, tag)), "{flipped:?}");
        let first = lba.saturating_sub(random.below(6));
        let end = (lba + 1 + random.below(6)).min(last + 1);
        assert_eq!(blamed(self.read(&mut client, first, end)), Some((lba, tag)), "{flipped:?}");
        let errors = volume.errors();
        assert_eq!(errors.total(), before.total() + 3, "{flipped:?}: {errors:?}");
        for (first, end) in [(lba.saturating_sub(4), lba), (lba + 1, (lba + 5).min(last + 1))] {
            if first < end {
                self.read(&mut client, first, end).unwrap();
            }
        }
        if self.sector == BlockSize::PAGE && random.chance(30) {
            let part = self.offset(lba) + random.below(8) * 512;
            assert_eq!(blamed(client.write_at(part, &[7; 512])), Some((lba, tag)), "{flipped:?}");
        }
        self.heal(flipped, (volume, client), random);
    }

    /// Flips the bit back or writes the sector anew, and checks that all is well.
    fn heal(&mut self, flipped: Flip, queues: Queues<M>, random: &mut Random) {
        let (volume, mut client) = queues;
        let Flip { lba, at, bit, .. } = flipped;
        match random.below(3) {
            0 => {
                self.close(&volume, client);
                flip(&mut self.medium.device(), at, bit);
                let (volume, mut client) = self.open();
                common::assert_clean(client.queue());
                self.close(&volume, client);
                return;
            }
            1 => self.write(&mut client, lba, 1, random.next()),
            _ => {
                client.clear(Op::Discard, self.offset(lba), self.sector.bytes()).unwrap();
                // A never-written sector's data are not looked at by a discard.
                self.write(&mut client, lba, 1, random.next());
            }
        }
        self.read(&mut client, lba, lba + 1).unwrap();
        common::assert_clean(client.queue());
        client.flush().unwrap();
        self.close(&volume, client);
    }

    fn check(mut self, places: usize, random: &mut Random) {
        for _ in 0..places {
            let flipped = self.choose(random);
            self.corrupt(flipped, random);
        }
        let (volume, mut client) = self.open();
        common::assert_clean(client.queue());
        self.read(&mut client, 0, to_u64(self.written.len())).unwrap();
        self.close(&volume, client);
    }
}

#[test]
fn a_flipped_bit_in_memory_is_blamed_on_its_sector() {
    for (guard, sector) in formats() {
        let random = &mut Random::new(11);
        in_memory(guard, sector, random).check(150, random);
    }
}

#[test]
fn a_flipped_bit_in_a_file_is_blamed_on_its_sector() {
    for (guard, sector) in formats() {
        let random = &mut Random::new(12);
        in_a_file(guard, sector, random).check(17, random);
    }
}

/// Returns what is wrong with a sector: the tag, in the only mismatch that a scrub finds.
fn tags_found(scene: &Scene<MemoryDevice>) -> Vec<(u64, Tag)> {
    let (volume, mut client) = scene.open();
    let report = common::scrub(client.queue());
    scene.close(&volume, client);
    report.mismatches.iter().map(|found| (found.lba, found.tag)).collect()
}

#[test]
fn each_field_has_its_tag() {
    for (guard, sector) in formats() {
        let mut scene = in_memory(guard, sector, &mut Random::new(13));
        scene.written.fill(false);
        let volume = open(&scene.medium);
        let (written, unwritten) = (2, 1);
        let (tuple, size) = tuple_at(&volume, written);
        let (guard_bytes, device) = (guard.bits() / 8, &mut scene.medium.device());
        for (at, lba, tag) in [
            (volume.geometry().data_at(written * sector.bytes()), written, Tag::Guard),
            (volume.geometry().data_at(unwritten * sector.bytes()), unwritten, Tag::Unwritten),
            (tuple, written, Tag::Guard),
            (tuple + u64::from(guard_bytes), written, Tag::Application),
            (tuple + size - 1, written, Tag::Reference),
        ] {
            flip(device, at, 3);
            assert_eq!(tags_found(&scene), [(lba, tag)], "{guard} {sector}");
            flip(device, at, 3);
        }
        assert_eq!(tags_found(&scene), []);
    }
}

#[test]
fn a_write_to_a_part_of_a_corrupt_sector_does_not_launder_it() {
    for guard in GuardKind::ALL {
        let mut scene = in_memory(guard, BlockSize::PAGE, &mut Random::new(14));
        let at = open(&scene.medium).geometry().data_at(2 * 4096);
        flip(&mut scene.medium.device(), at, 4000 * 8);
        let stored = peek(&mut scene.medium.device(), at, 4096);
        let (volume, mut client) = scene.open();
        let lba_of = |result| match result {
            Err(Error::Mismatch(mismatch)) => Some(mismatch.lba),
            _ => None,
        };
        for part in 0..8 {
            assert_eq!(lba_of(client.write_at(2 * 4096 + part * 512, &[9; 512])), Some(2));
        }
        // Also as the edge of a longer write, from either side.
        assert_eq!(lba_of(client.write_at(512, &[9; 2 * 4096])), Some(2));
        assert_eq!(lba_of(client.write_at(2 * 4096 + 512, &[9; 2 * 4096])), Some(2));
        client.flush().unwrap();
        assert!(peek(&mut scene.medium.device(), at, 4096) == stored, "the sector was written");
        assert_eq!(lba_of(scene.read(&mut client, 2, 3)), Some(2));
        scene.write(&mut client, 2, 1, 77);
        scene.read(&mut client, 2, 3).unwrap();
        common::assert_clean(client.queue());
        scene.close(&volume, client);
    }
}

/// Copies data and tuple of one sector over those of another, as a write does that was led astray.
fn copy_sector(scene: &Scene<MemoryDevice>, from: u64, to: u64) {
    let volume = open(&scene.medium);
    let device = &mut scene.medium.device();
    let data_at = |lba| volume.geometry().data_at(lba * scene.sector.bytes());
    let data = peek(device, data_at(from), scene.sector.len());
    poke(device, data_at(to), &data);
    let tuple = common::stored_tuple(device, &volume, from);
    let (at, _) = tuple_at(&volume, to);
    let block = BlockSize::SECTOR;
    let mut bytes = peek(device, block.align_down(at), block.len());
    bytes[to_usize(block.offset_in(at))..][..tuple.len()].copy_from_slice(&tuple);
    poke(device, block.align_down(at), &bytes);
}

#[test]
fn a_misdirected_write_is_a_wrong_reference_tag() {
    for (guard, sector) in formats() {
        let scene = in_memory(guard, sector, &mut Random::new(15));
        let last = to_u64(scene.written.len()) - 1;
        copy_sector(&scene, 0, last);
        assert_eq!(tags_found(&scene), [(last, Tag::Reference)], "{guard} {sector}");
        let (volume, _client) = scene.open();
        // Found by one scrub, counted once.
        assert_eq!(volume.errors().reference, 1);
    }
}

#[test]
fn swapped_sectors_are_both_found() {
    for (guard, sector) in formats() {
        let scene = in_memory(guard, sector, &mut Random::new(16));
        let last = to_u64(scene.written.len()) - 1;
        let volume = open(&scene.medium);
        let device = &mut scene.medium.device();
        let places = [0, last].map(|lba| volume.geometry().data_at(lba * sector.bytes()));
        let [first, second] = places.map(|at| peek(device, at, sector.len()));
        poke(device, places[0], &second);
        poke(device, places[1], &first);
        assert_eq!(tags_found(&scene), [(0, Tag::Guard), (last, Tag::Guard)]);
    }
}
