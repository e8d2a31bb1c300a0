//! Bits that rot in a volume while nobody has it open.

use std::ops::Range;

use holdfast_sim::{PowerDevice, Random};
use holdfast_units::{to_u64, to_usize};
use holdfast_volume::{Durability, Geometry};

use crate::content::UNIT;
use crate::judge::Judge;
use crate::model::View;
use crate::plan::{Plan, Trouble};
use crate::rig::leg_bytes;
use crate::run::Run;

/// Where a bit is flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Data,
    Tuple,
}

impl Place {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Tuple => "tuple",
        }
    }
}

/// What the volume owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// The sector cannot be read.
    Find,
    /// That, or it has the right data, since the log has the tuple or the data once more.
    FindOrMend,
    /// It has the right data, since another leg has them.
    Mend,
    /// Nothing: a torn sector looks the same.
    Nothing,
}

/// A sector of which a bit is flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flip {
    pub(crate) lba: u64,
    pub(crate) place: Place,
    pub(crate) duty: Duty,
}

impl Flip {
    /// Flips a bit of some sector of an image, taken at `position` of the run, but not of one of
    /// `others`.
    pub(crate) fn new(
        judge: &Judge<'_>,
        image: &PowerDevice,
        position: usize,
        others: &[Self],
        random: &mut Random,
    ) -> Option<Self> {
        let Judge { plan, run, .. } = judge;
        let geometry = plan.options().geometry().ok()?;
        let lba = choose(plan, run, position, random);
        if others.iter().any(|other| other.lba == lba) {
            return None;
        }
        let place = if random.chance(60) { Place::Data } else { Place::Tuple };
        let (at, len) = match place {
            Place::Data => (geometry.data_at(lba * plan.sector.bytes()), plan.sector.bytes()),
            Place::Tuple => tuple_at(&geometry, lba),
        };
        let leg = to_usize(random.below(to_u64(plan.legs)));
        image
            .disk(leg, leg_bytes(plan).ok()?)
            .corrupt(at + random.below(len), 1 << random.below(8));
        let is_clean = run.is_closed(position);
        let is_in_session = judge.is_in_session(judge.units_of(lba), position);
        let is_in_dirty_region = || judge.is_in_session(region_of(&geometry, lba), position);
        let duty = match (plan.durability, place) {
            _ if is_clean => Duty::Find,
            (Durability::Full, _) if is_in_session => Duty::FindOrMend,
            (Durability::Full, _) => Duty::Find,
            (Durability::Bitmap, _) if !is_in_dirty_region() => Duty::Find,
            (Durability::Bitmap | Durability::None, _) => Duty::Nothing,
        };
        let duty = match duty {
            // What was being written may be torn on the other legs, and a leg that fails is out.
            Duty::Find if plan.legs > 1 && (is_in_session || plan.trouble != Trouble::None) => {
                Duty::FindOrMend
            }
            Duty::Find if plan.legs > 1 => Duty::Mend,
            duty => duty,
        };
        Some(Self { lba, place, duty })
    }
}

/// Chooses a sector: one that was written or cleared, or any.
fn choose(plan: &Plan, run: &Run, position: usize, random: &mut Random) -> u64 {
    let view = View::Cut { position, durable: 0 };
    let clears = random.chance(30);
    let all = 0..run.model.units();
    let count =
        run.model.writes_of(all.clone(), view).filter(|write| write.clears == clears).count();
    let which = to_usize(random.below(to_u64(count.max(1))));
    let mut chosen = run.model.writes_of(all.clone(), view).filter(|write| write.clears == clears);
    // The first that clears is all of the disk.
    let units = chosen.nth(which).map_or(all, |write| write.units.clone());
    let unit = to_u64(units.start) + random.below(to_u64(units.len()));
    plan.sector.count(unit * to_u64(UNIT))
}

/// Returns the units of the region of which a bitmap knows whether it is being written.
fn region_of(geometry: &Geometry, lba: u64) -> Range<usize> {
    let region = geometry.group_data().bytes().max(1 << 20);
    let from = lba * geometry.sector().bytes() / region * region;
    let to = (from + region).min(geometry.capacity());
    to_usize(from) / UNIT..to_usize(to) / UNIT
}

/// Returns where the tuple of a sector is, and how long it is.
fn tuple_at(geometry: &Geometry, lba: u64) -> (u64, u64) {
    let offset = lba * geometry.sector().bytes();
    let size = to_u64(geometry.tuple_words() * 8);
    let index = geometry.sector().count(geometry.group_data().offset_in(offset));
    (geometry.tuples_at(geometry.group_of(offset)) + index * size, size)
}
