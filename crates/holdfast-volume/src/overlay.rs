//! Sectors whose data are in memory only: those of the data journal that cannot be brought to their
//! place, because the device fails or because nothing may be written.

use std::collections::BTreeMap;

use holdfast_units::to_usize;

use crate::sync::{AtomicBool, Mutex, Ordering, lock};

#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// There is something in it. Looked at for each read, so that an empty one costs a load.
    is_used: AtomicBool,
    /// The data of each sector, by its address.
    sectors: Mutex<BTreeMap<u64, Box<[u8]>>>,
}

impl Overlay {
    pub(crate) fn new(sectors: BTreeMap<u64, Box<[u8]>>) -> Self {
        Self { is_used: AtomicBool::new(!sectors.is_empty()), sectors: Mutex::new(sectors) }
    }

    /// Returns whether there is nothing in it. Whoever has claimed a sector sees what the last holder did.
    pub(crate) fn is_empty(&self) -> bool {
        !self.is_used.load(Ordering::Relaxed)
    }

    /// Keeps the data of a sector, which the caller has claimed alone.
    pub(crate) fn put(&self, lba: u64, data: &[u8]) {
        lock(&self.sectors).insert(lba, data.into());
        self.is_used.store(true, Ordering::Relaxed);
    }

    /// Forgets the data of sectors, because they were written anew.
    pub(crate) fn forget(&self, first: u64, count: u64) {
        if !self.is_empty() {
            let mut sectors = lock(&self.sectors);
            for lba in first..first + count {
                sectors.remove(&lba);
            }
        }
    }

    /// Calls `give` with each of the sectors that are there, by its place among them, and its data.
    pub(crate) fn each(&self, first: u64, count: u64, mut give: impl FnMut(usize, &[u8])) {
        if self.is_empty() {
            return;
        }
        for (lba, data) in lock(&self.sectors).range(first..first + count) {
            give(to_usize(lba - first), data);
        }
    }
}
