//! A volume after arbitrary damage: opened read-only, scrubbed, opened for writing, read, written, reopened.
//!
//! Nothing panics or hangs, opening read-only changes nothing, and a read that succeeds returns what was written.
//! What one damaged byte hits fails, and the scrub names it.

#![no_main]

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Error, Op, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_iov::{Memory, Pool};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::format::{RawSuperblock, SUPERBLOCK_LEN, SUPERBLOCK_OFFSETS};
use holdfast_volume::{
    Client, CreateOptions, Geometry, OpenOptions, Queue, Scrub, TUPLE_BLOCK, Volume, VolumeError,
};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use zerocopy::{FromBytes, IntoBytes};

/// What clients read and write at a time.
const UNIT: usize = 512;
/// Only so many edits and accesses are made, so that each input is quick.
const STEPS_MAX: usize = 24;

#[derive(Arbitrary, Debug)]
struct Input {
    format: u8,
    /// How many bytes of the device are cut off.
    truncated: Option<u32>,
    edits: Vec<Edit>,
    accesses: Vec<Access>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Edit {
    /// Eight bytes of a superblock.
    Superblock {
        copy: bool,
        at: u16,
        value: u64,
        checksum: bool,
    },
    /// A small number instead of eight bytes of both superblocks, with good checksums.
    Field {
        at: u8,
        value: u16,
    },
    Data {
        sector: u16,
        at: u16,
        bits: u8,
    },
    Tuple {
        sector: u16,
        at: u8,
        bits: u8,
    },
    /// Data and tuple of one sector in the place of another: a write that went astray.
    Astray {
        from: u16,
        to: u16,
    },
    Anywhere {
        at: u32,
        bits: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Access {
    unit: u16,
    units: u8,
    write: Option<u8>,
}

fuzz_target!(|input: Input| {
    BASES.with(|bases| {
        let format = usize::from(input.format) % FORMATS;
        run(bases[format].get_or_init(|| Base::new(format)), &input);
    });
});

const FORMATS: usize = 6;

thread_local! {
    static BASES: [OnceCell<Base>; FORMATS] = const { [const { OnceCell::new() }; FORMATS] };
    static POOL: Pool = Pool::new(16 << 20).unwrap();
}

fn pool() -> Pool {
    POOL.with(Clone::clone)
}

/// A volume as it was before any damage.
struct Base {
    geometry: Geometry,
    tuple_size: usize,
    pages: BTreeMap<u64, Vec<u8>>,
    /// What the disk reads as.
    disk: Vec<u8>,
    written: BTreeSet<usize>,
}

impl Base {
    fn new(format: usize) -> Self {
        let guard = GuardKind::ALL[format % 3];
        let sector = [BlockSize::SECTOR, BlockSize::PAGE][format / 3];
        // One group, and a few sectors of the second.
        let group = Geometry::new(sector.bytes(), sector, guard).unwrap().group_data();
        let capacity = group.bytes() + 5 * sector.bytes();
        let options = CreateOptions { capacity, sector, guard, application_tag: 0x4846 };
        let geometry = options.geometry().unwrap();
        let mut device = MemoryDevice::new(geometry.device_len());
        Volume::create(&mut device, &options).unwrap();
        let mut disk = vec![0; to_usize(capacity)];
        let sectors_of_group = geometry.sectors_of_group();
        let written: BTreeSet<usize> =
            (2..6).chain(sectors_of_group - 2..sectors_of_group + 2).collect();
        let mut opened = Opened::new(&device, false).unwrap();
        for &number in &written {
            let at = number * sector.len();
            for (index, byte) in disk[at..][..sector.len()].iter_mut().enumerate() {
                *byte = (index * 7 + index / 256 + number * 31 + 1) as u8;
            }
            opened.client.write_at(to_u64(at), &disk[at..][..sector.len()]).unwrap();
        }
        opened.client.flush().unwrap();
        opened.close(&device);
        // The same in every process, or nothing that was found could be repeated.
        for offset in SUPERBLOCK_OFFSETS {
            change_superblock(&mut device, offset, true, |raw| {
                raw.uuid = [7; 16];
                raw.created = 1_800_000_000.into();
            });
        }
        let mut pages = BTreeMap::new();
        let mut next = 0;
        while let Some(at) = device.data_after(next).unwrap() {
            let len = PAGE.min(geometry.device_len() - at);
            pages.insert(at, get(&mut device, at, to_usize(len)));
            next = at + PAGE;
        }
        let tuple_size = TUPLE_BLOCK / sectors_of_group;
        Self { geometry, tuple_size, pages, disk, written }
    }

    fn device(&self, truncated: Option<u32>) -> MemoryDevice {
        let len = self.geometry.device_len();
        let cut = truncated.map_or(0, |cut| u64::from(cut) % len / 512 * 512);
        let mut device = MemoryDevice::new(len - cut);
        for (&at, page) in self.pages.range(..len - cut) {
            let fits = page.len().min(to_usize(len - cut - at));
            put(&mut device, at, &page[..fits]);
        }
        device
    }

    fn sectors(&self) -> usize {
        self.disk.len() / self.geometry.sector().len()
    }

    fn data_at(&self, sector: usize) -> u64 {
        self.geometry.data_at(to_u64(sector * self.geometry.sector().len()))
    }

    fn tuple_at(&self, sector: usize) -> u64 {
        let of_group = self.geometry.sectors_of_group();
        let in_block = sector % of_group * self.tuple_size;
        self.geometry.tuples_at(to_u64(sector / of_group)) + to_u64(in_block)
    }

    /// Returns the sector whose data or tuple is at `position` of the device.
    fn sector_of(&self, position: u64) -> Option<usize> {
        let group = (0..self.geometry.groups())
            .rev()
            .find(|&group| self.geometry.tuples_at(group) <= position)?;
        let inside = to_usize(position - self.geometry.tuples_at(group));
        let in_group = match inside.checked_sub(TUPLE_BLOCK) {
            None => inside / self.tuple_size,
            Some(data) => data / self.geometry.sector().len(),
        };
        Some(to_usize(group) * self.geometry.sectors_of_group() + in_group)
            .filter(|&sector| sector < self.sectors())
    }
}

const PAGE: u64 = 4096;

/// What is known of the sectors after the damage.
#[derive(Default)]
struct Damage {
    /// How often each sector was changed. Those hit once must fail.
    hits: BTreeMap<usize, usize>,
}

impl Damage {
    fn hit(&mut self, sector: usize) {
        *self.hits.entry(sector).or_default() += 1;
    }

    /// What was changed more than once may have been forged, or be what it was.
    fn must_fail(&self, sector: usize) -> bool {
        self.hits.get(&sector) == Some(&1)
    }

    fn may_fail(&self, sector: usize) -> bool {
        self.hits.contains_key(&sector)
    }
}

fn run(base: &Base, input: &Input) {
    let mut device = base.device(input.truncated);
    let mut damage = Damage::default();
    for &edit in input.edits.iter().take(STEPS_MAX) {
        apply(base, &mut device, edit, &mut damage);
    }
    let before: Vec<_> = SUPERBLOCK_OFFSETS.map(|at| get_if_there(&mut device, at)).into();
    let pages_before = device.pages_in_use();
    if let Ok(mut opened) = Opened::new(&device, true) {
        // With another geometry, no sector is where it was: then all that is asked for is no panic.
        let known = opened.client.queue().volume().geometry() == &base.geometry;
        scrub(&mut opened, base, known.then_some(&damage));
        for access in input.accesses.iter().take(STEPS_MAX) {
            let (range, len) = opened.range(*access);
            read(&mut opened, base, range, len, known.then_some(&damage), &base.disk);
        }
        opened.close(&device);
    }
    let after: Vec<_> = SUPERBLOCK_OFFSETS.map(|at| get_if_there(&mut device, at)).into();
    assert!(before == after && device.pages_in_use() == pages_before, "read-only, and changed");
    match Opened::new(&device, false) {
        Ok(opened) => write_and_reopen(base, input, &device, opened, damage),
        Err(error) => {
            let after: Vec<_> = SUPERBLOCK_OFFSETS.map(|at| get_if_there(&mut device, at)).into();
            assert!(before == after, "refused, and changed: {error}");
        }
    }
}

fn write_and_reopen(
    base: &Base,
    input: &Input,
    device: &MemoryDevice,
    mut opened: Opened,
    mut damage: Damage,
) {
    let known = opened.client.queue().volume().geometry() == &base.geometry;
    let sector = base.geometry.sector().len();
    let mut disk = base.disk.clone();
    for access in input.accesses.iter().take(STEPS_MAX) {
        let (at, len) = opened.range(*access);
        let Some(byte) = access.write else {
            read(&mut opened, base, at, len, known.then_some(&damage), &disk);
            continue;
        };
        let result = opened.client.write_at(to_u64(at), &vec![byte; len]);
        if !known {
            continue;
        }
        for number in at / sector..(at + len).div_ceil(sector) {
            let is_whole = at <= number * sector && (number + 1) * sector <= at + len;
            if result.is_err() {
                // Old or new; and what is damaged still is, or was written whole.
                *damage.hits.entry(number).or_default() += 2;
            } else if is_whole {
                damage.hits.remove(&number);
            } else {
                assert!(!damage.must_fail(number), "a part of a corrupt sector was written");
            }
        }
        let edges = [at / sector, (at + len - 1) / sector];
        let (head, tail) = (!at.is_multiple_of(sector), !(at + len).is_multiple_of(sector));
        let may_fail = (head && damage.may_fail(edges[0])) || (tail && damage.may_fail(edges[1]));
        assert!(result.is_ok() || may_fail, "{result:?}");
        if result.is_ok() {
            disk[at..][..len].fill(byte);
        }
    }
    assert_eq!(opened.client.flush(), Ok(()));
    let errors = opened.client.queue().volume().errors();
    opened.close(device);
    let mut opened = Opened::new(device, true).expect("what was closed can be opened");
    assert!(opened.client.queue().volume().recovery().is_none());
    assert_eq!(opened.client.queue().volume().errors(), errors);
    for access in input.accesses.iter().take(STEPS_MAX) {
        let (at, len) = opened.range(*access);
        read(&mut opened, base, at, len, known.then_some(&damage), &disk);
    }
    opened.close(device);
}

/// A volume that is open, with one client.
struct Opened {
    volume: Arc<Volume>,
    client: Client<MemoryDevice>,
}

impl Opened {
    fn new(device: &MemoryDevice, read_only: bool) -> Result<Self, VolumeError> {
        let options = OpenOptions { cache_bytes: 0, read_only, ..OpenOptions::default() };
        let volume = Volume::open(&mut device.clone(), &options)?;
        let queue = Queue::new(&volume, device.clone(), || {}).unwrap();
        Ok(Self { volume, client: Client::new(queue, pool(), ReadPolicy::Lazy) })
    }

    /// Returns offset and length of an access, in bytes of this volume.
    fn range(&self, access: Access) -> (usize, usize) {
        let units = to_usize(self.volume.geometry().capacity()) / UNIT;
        let first = usize::from(access.unit) % units;
        let count = (usize::from(access.units) % 64 + 1).min(units - first);
        (first * UNIT, count * UNIT)
    }

    fn close(self, device: &MemoryDevice) {
        drop(self.client);
        self.volume.close(&mut device.clone()).unwrap();
    }
}

/// Reads, and compares with what was written where the place of everything is known.
fn read(
    opened: &mut Opened,
    base: &Base,
    at: usize,
    len: usize,
    damage: Option<&Damage>,
    disk: &[u8],
) {
    let mut found = vec![0xa5; len];
    let result = opened.client.read_at(to_u64(at), &mut found);
    let Some(damage) = damage else { return };
    let sector = base.geometry.sector().len();
    let mut sectors = at / sector..(at + len).div_ceil(sector);
    match result {
        Err(error) => assert!(sectors.any(|number| damage.may_fail(number)), "{error}"),
        Ok(()) => {
            for number in sectors {
                assert!(!damage.must_fail(number), "sector {number} is corrupt");
                let from = at.max(number * sector);
                let to = (at + len).min((number + 1) * sector);
                let same = found[from - at..to - at] == disk[from..to];
                assert!(same || damage.may_fail(number), "sector {number} is wrong");
            }
        }
    }
}

/// Scrubs, and compares what it names with what is damaged.
fn scrub(opened: &mut Opened, base: &Base, damage: Option<&Damage>) {
    let mut scrub = Scrub::new(opened.client.queue(), usize::MAX).unwrap();
    while scrub.step().unwrap().is_some() {}
    let report = scrub.finish();
    assert_eq!(report.corrupt, to_u64(report.mismatches.len()));
    assert!(report.unreadable.is_empty());
    let Some(damage) = damage else { return };
    let named: BTreeSet<_> = report.mismatches.iter().map(|found| to_usize(found.lba)).collect();
    assert!(named.iter().all(|&number| damage.may_fail(number)), "{named:?}");
    let must = (0..base.sectors()).filter(|&number| damage.must_fail(number));
    assert!(must.clone().all(|number| named.contains(&number)), "{named:?}");
}

fn apply(base: &Base, device: &mut MemoryDevice, edit: Edit, damage: &mut Damage) {
    let sector_len = base.geometry.sector().len();
    let number = |sector: u16| usize::from(sector) % base.sectors();
    match edit {
        Edit::Superblock { copy, at, value, checksum } => {
            let at = usize::from(at) % (SUPERBLOCK_LEN - 8);
            change_superblock(device, SUPERBLOCK_OFFSETS[usize::from(copy)], checksum, |raw| {
                raw.as_mut_bytes()[at..][..8].copy_from_slice(&value.to_le_bytes());
            });
        }
        Edit::Field { at, value } => {
            let at = (usize::from(at) * 8) % offset_of!(RawSuperblock, reserved);
            for offset in SUPERBLOCK_OFFSETS {
                change_superblock(device, offset, true, |raw| {
                    raw.as_mut_bytes()[at..][..8].copy_from_slice(&u64::from(value).to_le_bytes());
                });
            }
        }
        Edit::Data { sector, at, bits } => {
            let at = base.data_at(number(sector)) + to_u64(usize::from(at) % sector_len);
            flip(base, device, at, bits, damage);
        }
        Edit::Tuple { sector, at, bits } => {
            let at = base.tuple_at(number(sector)) + to_u64(usize::from(at) % base.tuple_size);
            flip(base, device, at, bits, damage);
        }
        Edit::Anywhere { at, bits } => {
            flip(base, device, u64::from(at) % base.geometry.device_len(), bits, damage);
        }
        Edit::Astray { from, to } => {
            let (from, to) = (number(from), number(to));
            let capacity = device.limits().capacity;
            let whole = [from, to].map(|sector| base.data_at(sector) + to_u64(sector_len));
            if from != to && whole.iter().all(|&end| end <= capacity) {
                let data = get(device, base.data_at(from), sector_len);
                put(device, base.data_at(to), &data);
                for byte in 0..to_u64(base.tuple_size) {
                    let [old, new] =
                        [to, from].map(|sector| get_byte(device, base.tuple_at(sector) + byte));
                    device.corrupt(base.tuple_at(to) + byte, old ^ new);
                }
                damage.hit(to);
                if !base.written.contains(&from) || damage.may_fail(from) {
                    // A sector that was never written has no address, and looks the same everywhere.
                    damage.hit(to);
                }
            }
        }
    }
}

/// Flips bits of one byte, which every kind of guard notices.
fn flip(base: &Base, device: &MemoryDevice, at: u64, bits: u8, damage: &mut Damage) {
    if bits != 0 && at < device.limits().capacity {
        device.corrupt(at, bits);
        if let Some(sector) = base.sector_of(at) {
            damage.hit(sector);
        }
    }
}

fn change_superblock(
    device: &mut MemoryDevice,
    offset: u64,
    checksum: bool,
    change: impl FnOnce(&mut RawSuperblock),
) {
    let Some(bytes) = get_if_there(device, offset) else { return };
    let mut raw = RawSuperblock::read_from_bytes(&bytes).unwrap();
    change(&mut raw);
    if checksum {
        // Just below the greatest sequence, a volume can be opened only a last time.
        if raw.sequence.get() > 1 << 62 {
            raw.sequence = u64::MAX.into();
        }
        raw.checksum = raw.compute_checksum().into();
    }
    put(device, offset, raw.as_bytes());
}

fn get_if_there(device: &mut MemoryDevice, offset: u64) -> Option<Vec<u8>> {
    let fits = offset + to_u64(SUPERBLOCK_LEN) <= device.limits().capacity;
    fits.then(|| get(device, offset, SUPERBLOCK_LEN))
}

fn get_byte(device: &mut MemoryDevice, at: u64) -> u8 {
    get(device, at / 512 * 512, 512)[to_usize(at % 512)]
}

fn get(device: &mut MemoryDevice, offset: u64, len: usize) -> Vec<u8> {
    transfer(device, Op::Read, offset, &mut vec![0; len]).unwrap()
}

fn put(device: &mut MemoryDevice, offset: u64, bytes: &[u8]) {
    transfer(device, Op::Write, offset, bytes).unwrap();
}

fn transfer(
    device: &mut MemoryDevice,
    op: Op,
    offset: u64,
    bytes: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut buffer = pool().take_whole(bytes.len()).unwrap();
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    device.submit(Bio::new(op, offset, to_u64(bytes.len()), Memory::Buffer(buffer))).unwrap();
    let mut ended = Vec::new();
    device.reap(&mut ended);
    let ended = ended.pop().unwrap();
    ended.result?;
    Ok(ended.bio.memory.buffer().unwrap().as_slice()[..bytes.len()].to_vec())
}
