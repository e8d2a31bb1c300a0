//! What a seed stands for: the format, how the volume is used, and what goes wrong below it.

use std::fmt;
use std::ops::Range;

use holdfast_bio::{Error, Op, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_sim::{Faults, Random};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::{CreateOptions, Durability};

/// In which way requests come to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// In buffers of a pool, as from NBD.
    Pool,
    /// In memory that changes meanwhile, as from a virtual machine.
    Guest(ReadPolicy),
    /// By blocking calls, from borrowed memory.
    Client,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool => f.write_str("buffers"),
            Self::Guest(policy) => write!(f, "a guest ({policy})"),
            Self::Client => f.write_str("blocking calls"),
        }
    }
}

/// What goes wrong below, besides the power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing.
    None,
    /// Some bios fail.
    Errors,
    /// One flush lies.
    Lie(u64),
}

/// What a seed stands for.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) guard: GuardKind,
    pub(crate) sector: BlockSize,
    pub(crate) capacity: u64,
    pub(crate) durability: Durability,
    /// How many disks the volume is on: more than 1 for a mirror.
    pub(crate) legs: usize,
    pub(crate) cache_bytes: usize,
    pub(crate) trouble: Trouble,
    /// The run ends with the session in which so many bios were written below.
    pub(crate) writes: usize,
    /// Requests are as long as can be, so that the tuple log is full soon.
    pub(crate) is_long: bool,
    /// Requests are short, and to few sectors, so that the data journal is full soon.
    pub(crate) is_hot: bool,
    /// Where most requests are, in bytes.
    zones: Vec<Range<u64>>,
}

/// How the volume is used from one opening to the next.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) lanes: Vec<Path>,
    /// The requests of a lane that are in flight.
    pub(crate) depth: usize,
    /// After so many requests it ends.
    pub(crate) requests: usize,
    /// The volume is closed at the end, and not left as by a process that is killed.
    pub(crate) closes: bool,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) op: Op,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) fua: bool,
}

const KIB: u64 = 1 << 10;
/// A long request: a whole group, or two.
const LONG: u64 = 256 * KIB;

impl Plan {
    /// Makes the plan of a seed. The formats and durabilities are taken in turn, so that some seeds in
    /// a row have all of them.
    pub(crate) fn new(seed: u64, random: &mut Random) -> Self {
        let turn = |of: &mut u64, count: u64| {
            let index = *of % count;
            *of /= count;
            to_usize(index)
        };
        let mut rest = seed;
        let durability = Durability::ALL[turn(&mut rest, 3)];
        let guard = GuardKind::ALL[turn(&mut rest, 3)];
        let sector = [BlockSize::SECTOR, BlockSize::PAGE][turn(&mut rest, 2)];
        let legs = [1, 1, 1, 2 + to_usize(random.below(2))][turn(&mut rest, 4)];
        let trouble = match random.below(8) {
            0 => Trouble::Lie(4 + random.below(40)),
            1 => Trouble::Errors,
            _ => Trouble::None,
        };
        let is_small = sector == BlockSize::SECTOR && durability == Durability::Full;
        let is_long = is_small && legs == 1 && random.chance(6);
        let is_hot = durability == Durability::Full && legs == 1 && !is_long && random.chance(25);
        let group = group_bytes(guard, sector);
        // More groups than the smallest cache has ways for, where groups are small.
        let groups = (1024 * KIB / group).max(1) + random.below((512 * KIB / group).max(1));
        let capacity = group * groups + (1 + random.below(6)) * 48 * KIB;
        let cache_bytes = if random.chance(50) { 0 } else { 1 << 20 };
        let writes = to_usize(if is_hot { 200 } else { 40 } + random.below(30));
        let zones = zones(capacity, group, random);
        let plan = Self {
            guard,
            sector,
            capacity,
            durability,
            legs,
            cache_bytes,
            trouble,
            writes,
            is_long,
            is_hot,
            zones,
        };
        debug_assert!(plan.options().geometry().is_ok(), "{plan:?}");
        plan
    }

    /// Returns how the volume is created.
    pub(crate) const fn options(&self) -> CreateOptions {
        let &Self { guard, sector, capacity, .. } = self;
        CreateOptions { capacity, sector, guard, application_tag: CreateOptions::APPLICATION_TAG }
    }

    /// Returns whether requests may fail: those of a mirror do not, since only one leg fails.
    pub(crate) fn may_fail(&self) -> bool {
        self.trouble == Trouble::Errors && self.legs == 1
    }

    /// Returns whether what a power cut tore may still be read.
    pub(crate) fn adopts(&self) -> bool {
        self.durability != Durability::Full
    }

    /// Returns what the devices of a session do wrong.
    pub(crate) fn faults(&self, random: &mut Random) -> Faults {
        let mut faults = Faults {
            short_percent: [0, 0, 5, 20][to_usize(random.below(4))],
            full_percent: [0, 0, 10][to_usize(random.below(3))],
            plain: random.chance(15),
            ..Faults::default()
        };
        if self.trouble == Trouble::Errors {
            for _ in 0..=random.below(3) {
                let error = match random.below(3) {
                    0 => Error::IO,
                    1 => Error::NoSpace,
                    // ETIMEDOUT
                    _ => Error::Device { errno: 110 },
                };
                faults.failures.push((random.below(60), error));
            }
        }
        faults
    }

    const fn is_often(&self) -> bool {
        self.is_long || self.is_hot
    }

    /// Returns how the volume is used next.
    pub(crate) fn session(&self, random: &mut Random) -> Session {
        // Memory that changes is not written to a mirror: the legs would differ.
        let policies = if self.legs > 1 { 2 } else { 3 };
        let policy = |random: &mut Random| {
            [ReadPolicy::Always, ReadPolicy::Lazy, ReadPolicy::Never]
                [to_usize(random.below(policies))]
        };
        let lanes = match random.below(6) {
            0 => vec![Path::Client],
            _ => (0..=random.below(3))
                .map(|_| match random.below(2) {
                    0 => Path::Pool,
                    _ => Path::Guest(policy(random)),
                })
                .collect(),
        };
        let depth = to_usize(1 + random.below(6));
        let requests =
            to_usize(if self.is_often() { 120 + random.below(60) } else { 4 + random.below(20) });
        Session { lanes, depth, requests, closes: random.chance(60) }
    }

    /// Returns the next request.
    pub(crate) fn ask(&self, random: &mut Random) -> Ask {
        let op = match random.below(100) {
            _ if self.is_long && random.chance(80) => Op::Write,
            0..62 => Op::Write,
            62..74 => Op::Read,
            74..80 => Op::Discard,
            80..86 => Op::Zero { keep: random.chance(50), fast: false },
            _ => Op::Flush,
        };
        if op == Op::Flush {
            return Ask { op, offset: 0, len: 0, fua: false };
        }
        // Parts of sectors are read and written, but only whole ones cleared.
        if self.is_long && op == Op::Write {
            // What lies before is written seldom, and its tuples are in the log for long.
            let offset = (1 + random.below(self.capacity / LONG - 1)) * LONG;
            return Ask { op, offset, len: LONG, fua: false };
        }
        if self.is_hot && op == Op::Write && random.chance(90) {
            let zone = &self.zones[0];
            let len = self.sector.bytes() * (1 + random.below(16 * KIB / self.sector.bytes()));
            let offset = zone.start + self.sector.align_down(random.below(zone.end - zone.start));
            let fua = random.chance(5);
            return Ask { op, offset, len: len.min(zone.end - offset), fua };
        }
        let may_be_part = matches!(op, Op::Write | Op::Read) && random.chance(60);
        let grain = if may_be_part { BlockSize::SECTOR } else { self.sector }.bytes();
        let zone = &self.zones[to_usize(random.below(to_u64(self.zones.len())))];
        let most = match random.below(20) {
            0 => 128 * KIB,
            1..5 => 32 * KIB,
            _ => 6 * KIB,
        };
        let offset = (zone.start + random.below(zone.end - zone.start)) / grain * grain;
        let len = (1 + random.below((most / grain).max(1))) * grain;
        let fua = op.is_write() && random.chance(15);
        Ask { op, offset, len: len.min(self.capacity - offset), fua }
    }
}

fn group_bytes(guard: GuardKind, sector: BlockSize) -> u64 {
    let application_tag = CreateOptions::APPLICATION_TAG;
    let options = CreateOptions { capacity: sector.bytes(), sector, guard, application_tag };
    let geometry = options.geometry().expect("a volume may have one sector");
    geometry.group_data().bytes()
}

/// Returns a few small ranges, so that requests overlap: around the end of a group, at the end of the
/// disk, and elsewhere.
fn zones(capacity: u64, group: u64, random: &mut Random) -> Vec<Range<u64>> {
    let around = |middle: u64, half: u64| {
        let middle = middle.min(capacity);
        middle.saturating_sub(half)..(middle + half).min(capacity)
    };
    let mut zones = vec![
        around(group, 16 * KIB),
        around(group, 4 * KIB),
        around(capacity, 24 * KIB),
        around(random.below(capacity), 8 * KIB),
        around(random.below(capacity), 64 * KIB),
    ];
    // Each group now and then, so that tuple blocks push each other out of the cache.
    zones.extend((0..capacity.div_ceil(group)).map(|index| around(index * group, 8 * KIB)));
    zones
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guard, sector, capacity, cache_bytes, trouble, .. } = self;
        let durability = self.durability.name();
        write!(f, "{guard} {sector} {durability}, {} KiB, ", capacity / KIB)?;
        if self.legs > 1 {
            write!(f, "{} legs, ", self.legs)?;
        }
        write!(f, "cache of {cache_bytes} bytes, trouble: {trouble:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_seeds_have_every_format_and_durability() {
        let mut plans: Vec<_> = (0..18)
            .map(|seed| {
                let plan = Plan::new(seed, &mut Random::new(seed));
                (plan.guard.to_string(), plan.sector, plan.durability.name())
            })
            .collect();
        plans.sort_unstable();
        plans.dedup();
        assert_eq!(plans.len(), 18);
    }

    #[test]
    fn a_volume_has_two_groups_or_more() {
        for seed in 0..300 {
            let plan = Plan::new(seed, &mut Random::new(seed));
            let geometry = plan.options().geometry().unwrap();
            assert!((2..30).contains(&geometry.groups()), "{plan}");
            assert!((1 << 20..4 << 20).contains(&plan.capacity), "{plan}");
        }
    }

    #[test]
    fn requests_lie_on_the_disk_and_clear_whole_sectors() {
        let mut random = Random::new(1);
        for seed in 0..100 {
            let plan = Plan::new(seed, &mut random);
            for _ in 0..100 {
                let Ask { op, offset, len, .. } = plan.ask(&mut random);
                assert!(offset + len <= plan.capacity && (len > 0 || op == Op::Flush));
                let grain = match op {
                    Op::Read | Op::Write => BlockSize::SECTOR,
                    _ => plan.sector,
                };
                assert!(grain.is_aligned(offset) && grain.is_aligned(len), "{op:?}");
            }
        }
    }
}
