//! Timestamps of files that are written.

use std::time::SystemTime;

use holdfast_bio::BlockDevice;
use holdfast_xfs_format::{Flags, Ino, RawInode, Timestamp};

use crate::error::XfsError;
use crate::mount::Xfs;
use crate::transaction::Transaction;

/// Returns the time that it is.
pub(crate) fn now() -> Timestamp {
    // A clock before 1970 is as good as none.
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanoseconds: time.subsec_nanos() }
}

/// Encodes a time as an inode has it.
fn encode(raw: &RawInode, time: Timestamp) -> zerocopy::byteorder::big_endian::U64 {
    time.encode(raw.more_flags.get() & Flags::LARGE_TIMES != 0).into()
}

impl<D: BlockDevice> Xfs<D> {
    /// Sets when a file was last read and when its data were last changed, if they are given: utimensat(2).
    /// It was last changed itself now. A time that the inode cannot have becomes the nearest that it can.
    ///
    /// # Errors
    ///
    /// [`XfsError::ReadOnly`], [`XfsError::NoInode`], [`XfsError::Corrupt`], and whatever the device
    /// says.
    pub fn set_times(
        &mut self,
        ino: Ino,
        accessed: Option<Timestamp>,
        modified: Option<Timestamp>,
    ) -> Result<(), XfsError> {
        // What was written before must not change them afterwards.
        self.touch(ino)?;
        self.transact(|transaction| {
            transaction.edit_inode(ino, |raw| {
                if let Some(time) = accessed {
                    raw.accessed = encode(raw, time);
                }
                if let Some(time) = modified {
                    raw.modified = encode(raw, time);
                }
                raw.changed = encode(raw, now());
            })
        })?;
        self.refresh(ino)
    }
}

impl<D: BlockDevice> Transaction<'_, D> {
    /// Says when the data of a file were changed.
    pub(crate) fn touch(&mut self, ino: Ino, time: Timestamp) -> Result<(), XfsError> {
        self.edit_inode(ino, |raw| {
            raw.modified = encode(raw, time);
            raw.changed = raw.modified;
        })
    }
}
