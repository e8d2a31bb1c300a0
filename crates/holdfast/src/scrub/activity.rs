//! What clients do with the storage below, for those who are to keep out of their way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_bio::{Bio, BlockDevice, Ended, Error, GuardLimits, Limits, Op};
use holdfast_iov::{Memory, Region};

/// What was done by some moment. The numbers need not belong together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// How many bios were submitted.
    pub(crate) begun: u64,
    /// How many of them have ended.
    pub(crate) ended: u64,
}

impl Traffic {
    const fn plus(self, other: Self) -> Self {
        Self {
            begun: self.begun.wrapping_add(other.begun),
            ended: self.ended.wrapping_add(other.ended),
        }
    }
}

/// The traffic of all queues that clients use, and of those that are gone.
#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<Lanes>);

#[derive(Debug, Default)]
struct Lanes {
    open: Vec<Arc<Lane>>,
    gone: Traffic,
}

/// The traffic of one queue. Only the thread of the queue adds to it.
#[derive(Debug, Default)]
struct Lane {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Lane {
    fn traffic(&self) -> Traffic {
        // What has ended first: what ends meanwhile then looks as if it were in flight.
        let ended = self.ended.load(Ordering::Relaxed);
        Traffic { begun: self.begun.load(Ordering::Relaxed), ended }
    }
}

/// Adds to a counter that only one thread adds to, so that it costs no bus lock.
fn add(counter: &AtomicU64, more: u64) {
    // Relaxed: a scrub that looks a moment too early looks again.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl Activity {
    /// Returns what was done so far.
    pub(crate) fn traffic(&self) -> Traffic {
        let lanes = self.lock();
        lanes.open.iter().fold(lanes.gone, |sum, lane| sum.plus(lane.traffic()))
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue of a device whose traffic is counted. Flushes are not: they are short, and the server has
/// some of its own.
#[derive(Debug)]
pub(crate) struct Counted<D> {
    device: D,
    lane: Arc<Lane>,
    activity: Arc<Activity>,
}

impl<D> Counted<D> {
    /// Counts what is done with `device`.
    pub(crate) fn new(device: D, activity: &Arc<Activity>) -> Self {
        let lane = Arc::<Lane>::default();
        activity.lock().open.push(Arc::clone(&lane));
        Self { device, lane, activity: Arc::clone(activity) }
    }
}

impl<D> Drop for Counted<D> {
    fn drop(&mut self) {
        let mut lanes = self.activity.lock();
        lanes.open.retain(|lane| !Arc::ptr_eq(lane, &self.lane));
        // What was in flight will not be told to anybody.
        let Traffic { begun, .. } = self.lane.traffic();
        lanes.gone = lanes.gone.plus(Traffic { begun, ended: begun });
    }
}

impl<D: BlockDevice> BlockDevice for Counted<D> {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        let is_flush = bio.op == Op::Flush;
        self.device.submit(bio)?;
        if !is_flush {
            add(&self.lane.begun, 1);
        }
        Ok(())
    }

    fn read_guarded(
        &mut self,
        offset: u64,
        memory: &mut Memory,
        format: GuardLimits,
        guards: &mut [u64],
    ) -> Option<Result<(), Error>> {
        let read = self.device.read_guarded(offset, memory, format, guards)?;
        add(&self.lane.begun, 1);
        add(&self.lane.ended, 1);
        Some(read)
    }

    fn expect_read(&self, offset: u64) {
        self.device.expect_read(offset);
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let first = ended.len();
        self.device.reap(ended);
        let count = ended[first..].iter().filter(|ended| ended.bio.op != Op::Flush).count();
        if count > 0 {
            add(&self.lane.ended, holdfast_units::to_u64(count));
        }
    }

    fn legs(&self) -> usize {
        self.device.legs()
    }

    fn wait(&mut self) {
        self.device.wait();
    }

    fn has_notes(&self) -> bool {
        self.device.has_notes()
    }

    fn poll(&mut self) {
        self.device.poll();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.device.data_after(offset)
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        self.device.map(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_device::{Backing, FileDevice};
    use holdfast_iov::{Memory, Pool};
    use holdfast_ring::Ring;

    fn device(dir: &tempfile::TempDir) -> FileDevice {
        let backing = Backing::create(&dir.path().join("disk"), 1 << 20).unwrap();
        FileDevice::new(&backing, &Ring::new(8).unwrap().shared()).unwrap()
    }

    fn buffer() -> Memory {
        Memory::Buffer(Pool::new(1 << 20).unwrap().take(4096).unwrap())
    }

    #[test]
    fn what_is_in_flight_is_seen_and_what_was_done_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let activity = Arc::<Activity>::default();
        let mut counted = Counted::new(device(&dir), &activity);
        let mut seen = vec![activity.traffic()];
        counted.submit(Bio::new(Op::Read, 0, 4096, buffer())).unwrap();
        seen.push(activity.traffic());
        counted.wait();
        counted.reap(&mut Vec::new());
        seen.push(activity.traffic());
        drop(counted);
        seen.push(activity.traffic());
        let traffic = |begun, ended| Traffic { begun, ended };
        assert_eq!(seen, [traffic(0, 0), traffic(1, 0), traffic(1, 1), traffic(1, 1)]);
    }

    #[test]
    fn a_queue_that_is_dropped_leaves_nothing_in_flight() {
        let dir = tempfile::tempdir().unwrap();
        let activity = Arc::<Activity>::default();
        let mut counted = Counted::new(device(&dir), &activity);
        counted.submit(Bio::new(Op::Write, 0, 4096, buffer())).unwrap();
        drop(counted);
        assert_eq!(activity.traffic(), Traffic { begun: 1, ended: 1 });
    }

    #[test]
    fn a_flush_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let activity = Arc::<Activity>::default();
        let mut counted = Counted::new(device(&dir), &activity);
        counted.run(Bio::flush()).result.unwrap();
        assert_eq!(activity.traffic(), Traffic::default());
    }
}
