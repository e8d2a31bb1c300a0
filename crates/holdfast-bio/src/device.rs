//! The one seam between layers.

use holdfast_iov::{Memory, Region};

use crate::{Bio, Ended, Error, GuardLimits, Limits};

/// Something that bios can be submitted to: a file, memory, a volume, a layer around any of them.
///
/// Dropping a device waits for what is in flight, since the kernel may still use its memory.
pub trait BlockDevice {
    /// Returns what the device asks of its submitters.
    fn limits(&self) -> Limits;

    /// Starts `bio`, or gives it back when the queue is full: reap, and submit it again.
    ///
    /// # Errors
    ///
    /// The bio itself. Whatever is wrong with it is told by its [`Ended`].
    fn submit(&mut self, bio: Bio) -> Result<(), Bio>;

    /// Reads one interval for each guard at once, where the device has the bytes in memory, and computes the
    /// guards by the same loads: they are of what the memory got, whoever changes it afterwards. `None` when a
    /// bio has to be submitted.
    fn read_guarded(
        &mut self,
        offset: u64,
        memory: &mut Memory,
        format: GuardLimits,
        guards: &mut [u64],
    ) -> Option<Result<(), Error>> {
        let _unused = (offset, memory, format, guards);
        None
    }

    /// Says that the bytes from `offset` on will be read at once: a hint for a device that has them in memory, by
    /// which they come nearer while the submitter finds out whether they may be read.
    fn expect_read(&self, offset: u64) {
        let _unused = offset;
    }

    /// Returns the most bytes that the device stores wholly or not at all, when their number is a
    /// power of two and they begin at a multiple of it: 0 for a device that promises nothing.
    fn atomic_bytes_max(&self) -> u64 {
        0
    }

    /// Returns how many legs the device has that each hold all of it: more than 1 for a mirror, also
    /// while some of them are missing.
    fn legs(&self) -> usize {
        1
    }

    /// Moves the bios that have ended to the back of `ended`, in any order. Never blocks.
    fn reap(&mut self, ended: &mut Vec<Ended>);

    /// Blocks until there may be something to reap. Returns at once when nothing is in flight.
    fn wait(&mut self);

    /// Returns whether something may be reaped of which the ring does not tell: what ended at once, or what other
    /// threads leave to be done here. Reap before sleeping. A layer asks what is below it as well.
    fn has_notes(&self) -> bool {
        false
    }

    /// Lets what was submitted go on, and what has ended be reaped, without waiting: for those who
    /// wait for something else. A layer passes it on.
    fn poll(&mut self) {}

    /// Runs one bio to its end, on a device on which nothing else is in flight.
    fn run(&mut self, bio: Bio) -> Ended
    where
        Self: Sized,
    {
        let mut waiting = Some(bio);
        let mut ended = Vec::new();
        loop {
            if let Some(bio) = waiting.take() {
                waiting = self.submit(bio).err();
            }
            self.wait();
            self.reap(&mut ended);
            if let Some(item) = ended.pop() {
                return item;
            }
        }
    }

    /// Returns the first offset from `offset` on at which data may be stored, or `None` when from
    /// there on the device has only holes. A device that cannot tell returns `offset`.
    ///
    /// # Errors
    ///
    /// Whatever the device below said.
    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        Ok(Some(offset))
    }

    /// Maps a range of what is stored, and reserves the space that it needs. What is stored into
    /// the memory outlives the process; it outlives the machine only after a flush. `None` for
    /// storage that cannot be mapped.
    ///
    /// # Errors
    ///
    /// [`Error::Range`] for what does not lie inside the device, [`Error::NoSpace`], and whatever
    /// the device below said.
    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        let _unused = (offset, len);
        Ok(None)
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Box<D> {
    fn limits(&self) -> Limits {
        (**self).limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        (**self).submit(bio)
    }

    fn read_guarded(
        &mut self,
        offset: u64,
        memory: &mut Memory,
        format: GuardLimits,
        guards: &mut [u64],
    ) -> Option<Result<(), Error>> {
        (**self).read_guarded(offset, memory, format, guards)
    }

    fn expect_read(&self, offset: u64) {
        (**self).expect_read(offset);
    }

    fn atomic_bytes_max(&self) -> u64 {
        (**self).atomic_bytes_max()
    }

    fn legs(&self) -> usize {
        (**self).legs()
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        (**self).reap(ended);
    }

    fn wait(&mut self) {
        (**self).wait();
    }

    fn has_notes(&self) -> bool {
        (**self).has_notes()
    }

    fn poll(&mut self) {
        (**self).poll();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        (**self).data_after(offset)
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        (**self).map(offset, len)
    }
}

/// One thread's way to a disk that is served to clients.
///
/// The thread sleeps in its ring. What the queue has in flight ends there; what other threads leave to be done
/// here they announce by waking the thread.
pub trait DiskQueue: BlockDevice {
    /// Returns whether there is something that a flush would store, though no client asks for it.
    fn has_news(&self) -> bool {
        false
    }
}
