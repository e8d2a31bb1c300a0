//! How the mirror's own records get to a leg: by calls that block, apart from all queues. They are
//! rare, and whoever needs one waits for it anyway.

use std::fmt;
use std::sync::Arc;

use holdfast_bio::Error;
use holdfast_device::{Backing, MemoryDevice};

use crate::record::{MISSED_WORDS, RECORD_LEN, RECORD_OFFSETS, Record};
use crate::record::{missed_from_bytes, missed_offsets, missed_to_bytes};

/// A leg, for the mirror's own records.
pub trait Medium: fmt::Debug + Send + Sync {
    /// Reads whole blocks.
    ///
    /// # Errors
    ///
    /// Whatever the device says.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error>;

    /// Writes whole blocks.
    ///
    /// # Errors
    ///
    /// Whatever the device says.
    fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error>;

    /// Makes all that was written durable.
    ///
    /// # Errors
    ///
    /// Whatever the device says.
    fn sync(&self) -> Result<(), Error>;

    /// Returns how many bytes there are.
    fn bytes(&self) -> u64;
}

impl Medium for Backing {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        Self::read_at(self, offset, target)
    }

    fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error> {
        Self::write_at(self, offset, source)
    }

    fn sync(&self) -> Result<(), Error> {
        Self::sync(self)
    }

    fn bytes(&self) -> u64 {
        Self::bytes(self)
    }
}

impl Medium for MemoryDevice {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        self.load(offset, target);
        Ok(())
    }

    fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error> {
        self.store(offset, source);
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn bytes(&self) -> u64 {
        holdfast_bio::BlockDevice::limits(self).capacity
    }
}

impl<M: Medium + ?Sized> Medium for Arc<M> {
    fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        (**self).read_at(offset, target)
    }

    fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error> {
        (**self).write_at(offset, source)
    }

    fn sync(&self) -> Result<(), Error> {
        (**self).sync()
    }

    fn bytes(&self) -> u64 {
        (**self).bytes()
    }
}

/// Reads the newer of the two copies of a record. `None` when there is none, or it cannot be read.
pub fn read_record<M: Medium + ?Sized>(medium: &M) -> Option<Record> {
    let copies = RECORD_OFFSETS.map(|offset| read_copy(medium, offset));
    copies.into_iter().flatten().max_by_key(|record| record.generation)
}

fn read_copy<M: Medium + ?Sized>(medium: &M, offset: u64) -> Option<Record> {
    let mut bytes = vec![0; RECORD_LEN];
    let fits = offset + RECORD_LEN as u64 <= medium.bytes();
    let read = fits && medium.read_at(offset, &mut bytes).is_ok();
    read.then(|| Record::parse(&bytes)).flatten()
}

/// Writes both copies of a record, of which one is durable at any time: the one that counts until now
/// is written last, since the other may be what an earlier crash has torn.
pub(crate) fn write_record(medium: &dyn Medium, record: &Record) -> Result<(), Error> {
    let [first, second] = RECORD_OFFSETS;
    let age = |offset| read_copy(medium, offset).map(|found| found.generation);
    let order = if age(first) < age(second) { [first, second] } else { [second, first] };
    for offset in order {
        medium.write_at(offset, &record.to_bytes())?;
        medium.sync()?;
    }
    Ok(())
}

/// Returns whether both copies of a record are as they should be.
pub(crate) fn is_stored(medium: &dyn Medium, record: &Record) -> bool {
    let expected = record.to_bytes();
    RECORD_OFFSETS.into_iter().all(|offset| {
        let mut bytes = vec![0; RECORD_LEN];
        medium.read_at(offset, &mut bytes).is_ok() && bytes == expected
    })
}

/// Reads what is stored of the regions that a leg missed.
pub(crate) fn read_missed(medium: &dyn Medium, leg: usize) -> Vec<u64> {
    let mut words = vec![0; MISSED_WORDS];
    for (index, offset) in missed_offsets(leg).enumerate() {
        let mut bytes = vec![0; RECORD_LEN];
        let read = medium.read_at(offset, &mut bytes).is_ok();
        missed_from_bytes(read.then_some(&bytes[..]), &mut words, index);
    }
    words
}

/// Writes the regions that a leg missed. They are durable after the next sync.
pub(crate) fn write_missed(medium: &dyn Medium, leg: usize, words: &[u64]) -> Result<(), Error> {
    for (index, offset) in missed_offsets(leg).enumerate() {
        medium.write_at(offset, &missed_to_bytes(words, index))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::record::{LEGS_MAX, Leg, LegState};

    /// A leg whose power is cut in the middle of a write, after so many others.
    #[derive(Debug)]
    struct Cut {
        memory: MemoryDevice,
        left: AtomicUsize,
    }

    impl Medium for Cut {
        fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
            Medium::read_at(&self.memory, offset, target)
        }

        fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error> {
            if self.left.load(Ordering::Relaxed) == 0 {
                self.memory.store(offset, &source[..512]);
                return Err(Error::IO);
            }
            self.left.fetch_sub(1, Ordering::Relaxed);
            Medium::write_at(&self.memory, offset, source)
        }

        fn sync(&self) -> Result<(), Error> {
            Ok(())
        }

        fn bytes(&self) -> u64 {
            Medium::bytes(&self.memory)
        }
    }

    fn record(generation: u64) -> Record {
        let mut legs = [const { Leg::empty() }; LEGS_MAX];
        legs[0].state = LegState::InSync;
        // Behind the first 512 bytes.
        legs[1].seen = generation;
        Record { uuid: [1; 16], generation, changed: 0, region: 1 << 22, leg: 0, legs }
    }

    #[test]
    fn one_copy_is_whole_however_often_writing_them_is_cut_off() {
        let cut = Cut { memory: MemoryDevice::new(1 << 20), left: AtomicUsize::new(2) };
        write_record(&cut, &record(1)).unwrap();
        let mut newest = 1;
        for generation in 2..20 {
            let left = usize::from(generation % 3 != 0);
            cut.left.store(left, Ordering::Relaxed);
            write_record(&cut, &record(generation)).unwrap_err();
            newest = if left > 0 { generation } else { newest };
            assert_eq!(read_record(&cut).map(|found| found.generation), Some(newest));
        }
    }
}
