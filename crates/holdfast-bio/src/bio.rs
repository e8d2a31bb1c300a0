//! The unit of work of the block layer.

use holdfast_iov::Memory;
use holdfast_units::to_usize;

use crate::Error;

/// What a bio does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Reads into the memory.
    Read,
    /// Writes from the memory.
    Write,
    /// Makes the range read as zeros.
    Zero {
        /// Keep the space allocated, so that a later write cannot fail for want of it.
        keep: bool,
        /// Fail with [`Error::Unsupported`] rather than write zeros one by one.
        fast: bool,
    },
    /// Gives the space of the range back. A volume reads as zeros afterwards.
    Discard,
    /// Makes all that was acknowledged before durable.
    Flush,
    /// Reserves space for the range, so that a later write cannot fail for want of it.
    Allocate,
    /// Asks which sectors of the range hold data. The answer is one byte of the buffer for each
    /// sector: 0 for one that was never written or was discarded, 1 for data.
    Map,
    /// Verifies the range on every leg of a mirror, and lets each leg have what is intact on
    /// another. A leg that the bio names is not looked at, but gets all of the range. The buffer
    /// is room to work in.
    Repair,
}

impl Op {
    /// Returns whether the operation changes what is stored.
    pub const fn is_write(self) -> bool {
        matches!(
            self,
            Self::Write | Self::Zero { .. } | Self::Discard | Self::Allocate | Self::Repair
        )
    }
}

/// One I/O of a device: a range of bytes, and the memory it moves.
///
/// A volume takes a buffer for a range that begins inside a sector when it begins at that place of
/// the sector in the buffer too. So the volume can fill in the rest of the sector and write it
/// whole.
#[derive(Debug)]
pub struct Bio {
    /// What to do.
    pub op: Op,
    /// Where, in bytes from the start of the device.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u64,
    /// The first byte of the memory that is used.
    pub start: usize,
    /// Acknowledge a write only when it is durable (FUA). A flush of a volume then also stores the
    /// tuples that are durable in its log.
    pub fua: bool,
    /// Store the write wholly or not at all, whenever the power is cut. Only for ranges that the
    /// [device](crate::BlockDevice::atomic_bytes_max) takes so. No layer cuts it in parts.
    pub atomic: bool,
    /// The submitter polls until this bio has ended, and does nothing else meanwhile: a hint for a
    /// device that can do without an interrupt then.
    pub polled: bool,
    /// The guards of the buffer's whole sectors have been computed while it was filled.
    pub guarded: bool,
    /// The submitter reads again, and what it meets then is reported: into a buffer, after a
    /// mismatch that may only mean that its memory changed; or, when this is a buffer already,
    /// after any.
    pub tentative: bool,
    /// The memory, which belongs to the bio until it has ended. A read into memory that was lent as
    /// a source only is [`Error::Unsupported`].
    pub memory: Memory,
    /// The submitter's own number, which comes back unchanged.
    pub user: u64,
    /// Of a mirror, the leg to read from or to write to. Without one a read comes from any, and
    /// all else goes to all.
    pub leg: Option<u8>,
    /// The legs of a mirror that could not be read before one could, a bit for each. The device
    /// says so when the bio ends.
    pub unread_legs: u8,
}

impl Bio {
    /// Returns a bio that moves the bytes at `offset` between the device and `memory`.
    pub const fn new(op: Op, offset: u64, len: u64, memory: Memory) -> Self {
        Self {
            op,
            offset,
            len,
            start: 0,
            fua: false,
            atomic: false,
            polled: false,
            guarded: false,
            tentative: false,
            memory,
            user: 0,
            leg: None,
            unread_legs: 0,
        }
    }

    /// Returns a bio that makes all that was acknowledged durable.
    pub const fn flush() -> Self {
        Self::new(Op::Flush, 0, 0, Memory::None)
    }

    /// Makes the bio use its memory from byte `start` on.
    #[must_use]
    pub const fn with_start(mut self, start: usize) -> Self {
        self.start = start;
        self
    }

    /// Makes the bio one for this leg of a mirror.
    #[must_use]
    pub const fn with_leg(mut self, leg: u8) -> Self {
        self.leg = Some(leg);
        self
    }

    /// Gives the bio the submitter's number.
    #[must_use]
    pub const fn with_user(mut self, user: u64) -> Self {
        self.user = user;
        self
    }
}

/// A bio that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The bio as it was submitted, with its memory.
    pub bio: Bio,
    /// How many bytes were moved. A device at the bottom may move fewer than it was asked to; a
    /// volume moves all or fails.
    pub result: Result<u64, Error>,
}

impl Ended {
    /// Returns a bio that moves what a short transfer has left over. `Err` when there is no more to be done: all
    /// is moved, or the bio failed. One that moved nothing at all of what it was to move has failed.
    ///
    /// # Errors
    ///
    /// The end of the bio.
    #[inline]
    pub fn into_rest(mut self) -> Result<Bio, Self> {
        match self.result {
            Ok(0) if self.bio.len > 0 => self.result = Err(Error::IO),
            Ok(moved) if moved < self.bio.len => {
                let mut bio = self.bio;
                bio.offset += moved;
                bio.len -= moved;
                bio.guarded = false;
                match &mut bio.memory {
                    Memory::Iov(iter) => iter.advance(to_usize(moved)),
                    _ => bio.start += to_usize(moved),
                }
                return Ok(bio);
            }
            _ => {}
        }
        Err(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_iov::{Pool, lend};

    fn ended(bio: Bio, moved: u64) -> Ended {
        Ended { bio, result: Ok(moved) }
    }

    #[test]
    fn the_rest_of_a_short_transfer_is_the_rest_of_its_memory() {
        let buffer = Pool::new(1 << 20).unwrap().take(4096).unwrap();
        let bio = Bio::new(Op::Read, 1536, 2048, Memory::Buffer(buffer)).with_start(1536);
        let rest = ended(bio.with_user(7), 512).into_rest().unwrap();
        assert_eq!((rest.offset, rest.len, rest.start, rest.user), (2048, 1536, 2048, 7));
        lend(&[0; 4096], |iter| {
            let bio = Bio::new(Op::Write, 0, 4096, Memory::Iov(iter));
            let rest = ended(bio, 1024).into_rest().unwrap();
            assert_eq!((rest.offset, rest.len, rest.memory.len()), (1024, 3072, 3072));
        });
    }

    #[test]
    fn of_what_was_moved_or_failed_there_is_no_rest() {
        let bio = || Bio::new(Op::Discard, 0, 4096, Memory::None);
        assert_eq!(ended(bio(), 4096).into_rest().unwrap_err().result, Ok(4096));
        assert_eq!(ended(Bio::flush(), 0).into_rest().unwrap_err().result, Ok(0));
        let failed = Ended { bio: bio(), result: Err(Error::NoSpace) };
        assert_eq!(failed.into_rest().unwrap_err().result, Err(Error::NoSpace));
        assert_eq!(ended(bio(), 0).into_rest().unwrap_err().result, Err(Error::IO));
    }
}
