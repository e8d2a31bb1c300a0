//! What a volume is stored on: a disk, or the legs of a mirror, which lose their power together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Error, Op};
use holdfast_iov::Memory;
use holdfast_mirror::{
    Disk, LegState, Medium, Mirror, MirrorDevice, MirrorError, Missed, OWN_AREA, assemble,
    read_record,
};
use holdfast_sim::{Faults, FaultyDevice, PowerDevice, Random};
use holdfast_units::{BlockSize, to_u64};
use holdfast_volume::{Queue, Resync, Volume};

use crate::alarm::Wrong;
use crate::plan::Plan;
use crate::run::no_memory;

/// A queue of what a volume is stored on.
pub(crate) type Device = Disk<FaultyDevice<PowerDevice>>;

/// What a volume is stored on, opened.
#[derive(Debug)]
pub(crate) struct Rig {
    power: PowerDevice,
    legs: usize,
    leg_bytes: u64,
    mirror: Option<Arc<Mirror>>,
}

/// A leg, for the records of the mirror.
#[derive(Debug)]
struct LegMedium {
    power: PowerDevice,
    bytes: u64,
}

impl Medium for LegMedium {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        self.power.peek(offset, target);
        Ok(())
    }

    fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error> {
        self.power.store(offset, source);
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        self.power.sync();
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Returns where a leg pretends to be.
fn path(leg: usize) -> PathBuf {
    PathBuf::from(format!("/legs/{leg}.hf"))
}

/// Returns how many bytes each disk of a plan has.
pub(crate) fn leg_bytes(plan: &Plan) -> Result<u64, Wrong> {
    let len = plan.options().geometry().map_err(Wrong::NotOpened)?.device_len();
    Ok(BlockSize::PAGE.align_up(len).expect("a small disk"))
}

impl Rig {
    /// Makes new disks what a plan says.
    pub(crate) fn create(plan: &Plan) -> Result<Self, Wrong> {
        let leg_bytes = leg_bytes(plan)?;
        let power = PowerDevice::new(leg_bytes * to_u64(plan.legs));
        let mut rig = Self { power, legs: plan.legs, leg_bytes, mirror: None };
        if plan.legs > 1 {
            let legs = (0..plan.legs).map(|leg| (path(leg), rig.medium(leg)));
            rig.mirror = Some(Mirror::create(legs.collect()).map_err(mirror_error)?);
        }
        Ok(rig)
    }

    /// Opens the disks of a plan: of a mirror, the legs that are good.
    pub(crate) fn open(power: &PowerDevice, plan: &Plan) -> Result<Self, Wrong> {
        let (power, leg_bytes) = (power.queue(0, 0), leg_bytes(plan)?);
        let mut rig = Self { power, legs: plan.legs, leg_bytes, mirror: None };
        if plan.legs > 1 {
            let leg_at = |wanted: &Path| {
                let leg = (0..plan.legs).find(|&leg| path(leg) == wanted);
                leg.map(|leg| rig.medium(leg)).ok_or_else(|| "it is not there".to_owned())
            };
            // Any may be named, also one that is out.
            let found =
                (0..plan.legs).map(|leg| assemble(&path(leg), rig.medium(leg), None, leg_at));
            let legs = found.reduce(Result::or).expect("a mirror has legs");
            let legs = legs.map_err(mirror_error)?;
            let legs = legs.ok_or_else(|| Wrong::Mirror("no leg is one".to_owned()))?;
            rig.mirror = Some(Mirror::open(legs, false).map_err(mirror_error)?);
        }
        Ok(rig)
    }

    /// Returns the medium of all disks.
    pub(crate) const fn power(&self) -> &PowerDevice {
        &self.power
    }

    /// Returns a leg, or the only disk.
    pub(crate) fn disk(&self, leg: usize) -> PowerDevice {
        self.power.disk(leg, self.leg_bytes)
    }

    /// Returns where a leg begins on the medium, in bytes.
    pub(crate) const fn start_of(&self, leg: usize) -> u64 {
        self.leg_bytes * leg as u64
    }

    /// Returns the legs that hold all, or the only disk.
    pub(crate) fn good_legs(&self) -> Vec<usize> {
        let is_good = |leg: &usize| {
            self.mirror.as_ref().is_none_or(|mirror| mirror.state(*leg) == LegState::InSync)
        };
        (0..self.legs).filter(is_good).collect()
    }

    fn medium(&self, leg: usize) -> LegMedium {
        LegMedium { power: self.disk(leg), bytes: self.leg_bytes }
    }

    /// Opens a queue, of which `late_percent` of 100 bios stay in flight when it is reaped. Of a mirror
    /// only the last leg fails.
    pub(crate) fn queue(
        &self,
        late_percent: u8,
        faults: &Faults,
        random: &mut Random,
    ) -> Result<Device, Wrong> {
        let last = self.legs - 1;
        let sound = Faults { failures: Vec::new(), ..faults.clone() };
        let disks = (0..self.legs)
            .map(|leg| (self.disk(leg), if leg == last { faults.clone() } else { sound.clone() }));
        let (disks, mut random): (Vec<_>, _) = (disks.collect(), Random::new(random.next()));
        let mut open = move |leg: usize| {
            disks.get(leg).map(|(disk, faults)| {
                let queue = disk.queue(late_percent, random.next());
                FaultyDevice::new(queue, faults.clone(), random.next())
            })
        };
        match &self.mirror {
            None => Ok(Disk::Plain(Box::new(open(0).expect("there is a disk")))),
            Some(mirror) => MirrorDevice::new(mirror, move |leg| Ok(open(leg)))
                .map(|device| Disk::Mirror(Box::new(device)))
                .map_err(no_memory),
        }
    }

    /// Opens a queue on which nothing goes wrong.
    pub(crate) fn good_queue(&self) -> Result<Device, Wrong> {
        self.queue(0, &Faults::default(), &mut Random::new(0))
    }

    /// Lets the legs that are out have what they missed.
    pub(crate) fn resync(&self, volume: &Arc<Volume>) -> Result<(), Wrong> {
        let Some(mirror) = &self.mirror else { return Ok(()) };
        for leg in (0..self.legs).filter(|&leg| mirror.state(leg) == LegState::Out) {
            let (path, medium) = (path(leg), self.medium(leg));
            let found = read_record(&medium);
            if mirror.forget(&path, found.as_ref(), false).map_err(mirror_error)? {
                self.wipe(leg);
            }
            let (number, missed) = mirror
                .attach(&path, medium, found.as_ref(), false, |_| {})
                .map_err(mirror_error)?;
            self.copy(volume, number, &missed)?;
            mirror.resynced(number).map_err(mirror_error)?;
        }
        Ok(())
    }

    /// Makes a leg hold nothing but the mirror's record.
    fn wipe(&self, leg: usize) {
        let mut disk = self.disk(leg);
        for range in [0..OWN_AREA.start, OWN_AREA.end..self.leg_bytes] {
            let len = range.end - range.start;
            let discarded = disk.run(Bio::new(Op::Discard, range.start, len, Memory::None));
            discarded.result.expect("a disk on which nothing goes wrong");
        }
    }

    fn copy(&self, volume: &Arc<Volume>, leg: usize, missed: &Missed) -> Result<(), Wrong> {
        let failed = |error| Wrong::Failed { what: "a resync".to_owned(), error };
        let leg = u8::try_from(leg).expect("a mirror has few legs");
        let mut queue = Queue::new(volume, self.good_queue()?, || {}).map_err(no_memory)?;
        let ranges = match missed {
            Missed::All => None,
            Missed::Ranges(ranges) => Some(&ranges[..]),
        };
        let mut resync = Resync::new(&mut queue, leg, ranges).map_err(no_memory)?;
        while resync.step().map_err(failed)? {}
        if let Disk::Mirror(mut device) = self.good_queue()? {
            device.copy_to(leg, volume.geometry().groups_offset()).map_err(failed)?;
        }
        resync.finish().map(drop).map_err(failed)
    }

    /// Ends the use of the disks in good order.
    pub(crate) fn close(&self) -> Result<(), Wrong> {
        self.mirror.as_ref().map_or(Ok(()), |mirror| mirror.close()).map_err(mirror_error)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is for `map_err`")]
fn mirror_error(error: MirrorError) -> Wrong {
    Wrong::Mirror(error.to_string())
}
