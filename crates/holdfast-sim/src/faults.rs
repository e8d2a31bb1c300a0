//! What goes wrong, and where.

use std::ops::Range;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Op};

use crate::random::Random;

/// A range in which operations fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which bytes of the device.
    pub range: Range<u64>,
    /// Whether reads fail, or all that changes what is stored.
    pub reads: bool,
    /// How they fail.
    pub error: Error,
}

/// What a [`FaultyDevice`] does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// How many of 100 transfers are short.
    pub short_percent: u8,
    /// End bios in any order, and some of them late.
    pub reorder: bool,
    /// How many of 100 submissions find the queue full.
    pub full_percent: u8,
    /// Say that zeroing, discarding and reserving are not supported.
    pub plain: bool,
    /// Where operations fail.
    pub faults: Vec<Fault>,
    /// How many bytes may still be written before the device says that it is full.
    pub space: Option<u64>,
    /// How flushes fail.
    pub flush: Option<Error>,
    /// Bios that fail, by their number, from 0 in the order in which they are taken. Any part of a
    /// write may be stored all the same.
    pub failures: Vec<(u64, Error)>,
}

/// A device around another that makes mistakes.
#[derive(Debug)]
pub struct FaultyDevice<D> {
    device: D,
    /// What goes wrong from now on.
    pub faults: Faults,
    random: Random,
    /// How many bios were taken.
    taken: u64,
    /// Ended below, and not yet told.
    held: Vec<Ended>,
    below: Vec<Ended>,
    /// The submitters' numbers and lengths, and how the bio is to fail, by our own number.
    submitted: Vec<Option<(u64, u64, Option<Error>)>>,
}

impl<D: BlockDevice> FaultyDevice<D> {
    /// The unit in which transfers are cut short, in bytes.
    const UNIT: u64 = 512;

    /// Puts the mistakes that `seed` determines around `device`.
    pub fn new(device: D, faults: Faults, seed: u64) -> Self {
        let random = Random::new(seed);
        let (held, below, submitted) = (Vec::new(), Vec::new(), Vec::new());
        Self { device, faults, random, taken: 0, held, below, submitted }
    }

    /// Returns the device below.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// Returns how a bio fails, and how many of its bytes come before that.
    fn error_for(&mut self, bio: &Bio) -> Option<(Error, u64)> {
        let number = self.taken;
        if let Some(&(_, error)) = self.faults.failures.iter().find(|&&(at, _)| at == number) {
            return Some((error, self.random.below(bio.len + 1)));
        }
        if bio.op == Op::Flush {
            return self.faults.flush.map(|error| (error, 0));
        }
        let manages_space = matches!(bio.op, Op::Zero { .. } | Op::Discard | Op::Allocate);
        if manages_space && self.faults.plain {
            return Some((Error::Unsupported, 0));
        }
        let end = bio.offset + bio.len;
        self.faults
            .faults
            .iter()
            .find(|fault| {
                let hits = fault.range.start < end && bio.offset < fault.range.end;
                hits && ((bio.op == Op::Read && fault.reads) || (bio.op.is_write() && !fault.reads))
            })
            .map(|fault| (fault.error, fault.range.start.saturating_sub(bio.offset)))
    }

    /// Cuts a transfer short, at random or because there is no more space. `false` when nothing of
    /// it can be done.
    fn shorten(&mut self, bio: &mut Bio) -> bool {
        if !matches!(bio.op, Op::Read | Op::Write) {
            return true;
        }
        if bio.len > Self::UNIT && self.random.chance(self.faults.short_percent) {
            bio.len = (1 + self.random.below(bio.len / Self::UNIT)) * Self::UNIT;
        }
        if let (Op::Write, Some(space)) = (bio.op, &mut self.faults.space) {
            bio.len = bio.len.min(*space / Self::UNIT * Self::UNIT);
            *space -= bio.len;
            return bio.len > 0;
        }
        true
    }

    /// Gives the submitter's bio back its own number and length.
    fn restore(&mut self, ended: &mut Ended) {
        let slot = usize::try_from(ended.bio.user).expect("it was a position");
        let submitted = self.submitted[slot].take().expect("it was submitted once");
        let (user, len, error) = submitted;
        (ended.bio.user, ended.bio.len) = (user, len);
        if let Some(error) = error {
            ended.result = Err(error);
        }
    }
}

impl<D: BlockDevice> BlockDevice for FaultyDevice<D> {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, mut bio: Bio) -> Result<(), Bio> {
        if self.random.chance(self.faults.full_percent) {
            return Err(bio);
        }
        let (user, len) = (bio.user, bio.len);
        let mut failure = None;
        let found = self.error_for(&bio);
        self.taken += 1;
        if let Some((error, before)) = found {
            let before = before / Self::UNIT * Self::UNIT;
            if bio.op != Op::Write || before == 0 {
                self.held.push(Ended { bio, result: Err(error) });
                return Ok(());
            }
            // As file systems do: what lies before the fault is stored, and not told.
            bio.len = before;
            failure = Some(error);
        }
        if !self.shorten(&mut bio) {
            bio.len = len;
            self.held.push(Ended { bio, result: Err(Error::NoSpace) });
            return Ok(());
        }
        let free = self.submitted.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.submitted.len());
        self.submitted.resize(self.submitted.len().max(slot + 1), None);
        self.submitted[slot] = Some((user, len, failure));
        bio.user = slot as u64;
        self.device.submit(bio).map_err(|mut bio| {
            self.submitted[slot] = None;
            self.taken -= 1;
            (bio.user, bio.len) = (user, len);
            bio
        })
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let mut below = std::mem::take(&mut self.below);
        self.device.reap(&mut below);
        for mut item in below.drain(..) {
            self.restore(&mut item);
            self.held.push(item);
        }
        self.below = below;
        if !self.faults.reorder {
            ended.append(&mut self.held);
            return;
        }
        // At least one, so that whoever waits goes on.
        let count = self.random.below(self.held.len() as u64 + 1).max(1);
        for _ in 0..count.min(self.held.len() as u64) {
            let which = self.random.below(self.held.len() as u64);
            let which = usize::try_from(which).expect("below a length");
            ended.push(self.held.swap_remove(which));
        }
    }

    fn wait(&mut self) {
        if self.held.is_empty() {
            self.device.wait();
        }
    }

    fn atomic_bytes_max(&self) -> u64 {
        self.device.atomic_bytes_max()
    }

    fn legs(&self) -> usize {
        self.device.legs()
    }

    fn has_notes(&self) -> bool {
        !self.held.is_empty() || self.device.has_notes()
    }

    fn poll(&mut self) {
        self.device.poll();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.device.data_after(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_device::MemoryDevice;
    use holdfast_iov::{Memory, Pool};

    const CAPACITY: u64 = 1 << 20;

    fn device(faults: Faults, seed: u64) -> FaultyDevice<MemoryDevice> {
        FaultyDevice::new(MemoryDevice::new(CAPACITY), faults, seed)
    }

    fn transfer(op: Op, offset: u64, len: u64) -> Bio {
        let len_usize = usize::try_from(len).unwrap();
        let buffer = Pool::new(1 << 20).unwrap().take_whole(len_usize).unwrap();
        Bio::new(op, offset, len, Memory::Buffer(buffer))
    }

    fn run(device: &mut FaultyDevice<MemoryDevice>, bio: Bio) -> Ended {
        device.submit(bio).unwrap();
        let mut ended = Vec::new();
        while ended.is_empty() {
            device.wait();
            device.reap(&mut ended);
        }
        ended.pop().unwrap()
    }

    #[test]
    fn without_faults_all_is_well() {
        let mut device = device(Faults::default(), 1);
        let ended = run(&mut device, transfer(Op::Write, 512, 8192).with_user(77));
        assert_eq!((ended.result, ended.bio.user, ended.bio.len), (Ok(8192), 77, 8192));
    }

    #[test]
    fn a_short_transfer_comes_back_with_its_own_length_and_number() {
        let mut device = device(Faults { short_percent: 100, ..Faults::default() }, 2);
        let moved: Vec<u64> = (0..100)
            .map(|user| {
                let ended = run(&mut device, transfer(Op::Read, 0, 8192).with_user(user));
                assert_eq!((ended.bio.user, ended.bio.len), (user, 8192));
                ended.result.unwrap()
            })
            .collect();
        let is_short = |moved: &&u64| **moved < 8192;
        assert!(moved.iter().all(|moved| moved % 512 == 0 && (512..=8192).contains(moved)));
        assert!(moved.iter().filter(is_short).count() > 50, "{moved:?}");
    }

    #[test]
    fn a_fault_hits_what_overlaps_it_and_only_its_direction() {
        let fault = Fault { range: 4096..8192, reads: true, error: Error::IO };
        let mut device = device(Faults { faults: vec![fault], ..Faults::default() }, 3);
        let mut result = |op, offset, len| run(&mut device, transfer(op, offset, len)).result;
        assert_eq!(result(Op::Read, 0, 4096), Ok(4096));
        assert_eq!(result(Op::Read, 8192, 4096), Ok(4096));
        assert_eq!(result(Op::Read, 3584, 1024), Err(Error::IO));
        assert_eq!(result(Op::Read, 7680, 1024), Err(Error::IO));
        assert_eq!(result(Op::Write, 4096, 4096), Ok(4096));
    }

    #[test]
    fn a_full_device_takes_what_fits_and_then_nothing() {
        let mut device = device(Faults { space: Some(6000), ..Faults::default() }, 4);
        let mut write = || run(&mut device, transfer(Op::Write, 0, 4096)).result;
        assert_eq!([write(), write(), write()], [Ok(4096), Ok(1536), Err(Error::NoSpace)]);
        assert_eq!(run(&mut device, transfer(Op::Read, 0, 4096)).result, Ok(4096));
        device.faults.space = None;
        assert_eq!(run(&mut device, transfer(Op::Write, 0, 4096)).result, Ok(4096));
    }

    #[test]
    fn the_bio_that_is_to_fail_fails_and_no_other() {
        let timeout = Error::Device { errno: 110 };
        let mut device = device(Faults { failures: vec![(1, timeout)], ..Faults::default() }, 7);
        let mut write = || run(&mut device, transfer(Op::Write, 0, 4096)).result;
        assert_eq!([write(), write(), write()], [Ok(4096), Err(timeout), Ok(4096)]);
    }

    #[test]
    fn a_plain_device_cannot_manage_space() {
        let mut device = device(Faults { plain: true, ..Faults::default() }, 5);
        let zero = Op::Zero { keep: false, fast: true };
        for op in [Op::Discard, Op::Allocate, zero] {
            let found = run(&mut device, Bio::new(op, 0, 4096, Memory::None)).result;
            assert_eq!(found, Err(Error::Unsupported));
        }
    }

    #[test]
    fn a_flush_fails_as_it_is_told() {
        let mut device = device(Faults { flush: Some(Error::IO), ..Faults::default() }, 6);
        assert_eq!(run(&mut device, Bio::flush()).result, Err(Error::IO));
        assert_eq!(run(&mut device, transfer(Op::Write, 0, 512)).result, Ok(512));
    }

    #[test]
    fn all_end_in_an_order_that_the_seed_determines() {
        let order = |seed| {
            let mut device = device(Faults { reorder: true, ..Faults::default() }, seed);
            for user in 0..20 {
                device.submit(transfer(Op::Read, 0, 512).with_user(user)).unwrap();
            }
            let mut ended = Vec::new();
            while ended.len() < 20 {
                device.wait();
                device.reap(&mut ended);
            }
            ended.iter().map(|ended| ended.bio.user).collect::<Vec<u64>>()
        };
        let (first, mut sorted) = (order(7), order(7));
        assert_eq!(first, sorted);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<u64>>());
        assert_ne!(first, sorted);
        assert_ne!(first, order(8));
    }

    #[test]
    fn a_full_queue_gives_the_bio_back_as_it_was() {
        let mut device = device(Faults { full_percent: 100, ..Faults::default() }, 9);
        let bio = device.submit(transfer(Op::Read, 512, 1024).with_user(5)).unwrap_err();
        assert_eq!((bio.offset, bio.len, bio.user), (512, 1024, 5));
    }
}
