//! Submission and completion.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use holdfast_iov::Pool;
use holdfast_units::to_u64;
use io_uring::types::CancelBuilder;
use io_uring::{IoUring, opcode};
use slab::Slab;

use crate::batch::Batch;
use crate::channel::Channel;
use crate::operation::{Operation, Pieces, Slot, result_of};
use crate::spin::Spin;

/// A ring that several users in one thread share.
pub type SharedRing = Rc<RefCell<Ring>>;

/// An operation that has completed.
#[derive(Debug)]
pub struct Completion {
    /// The submitter's number.
    pub token: u64,
    /// The operation, with its memory.
    pub operation: Operation,
    /// What the kernel returned: bytes, or a descriptor.
    pub result: io::Result<u32>,
}

/// One `io_uring`, and everything that the kernel may touch because of it.
///
/// It is used by the thread that made it.
pub struct Ring {
    // Declared before `slots`: the kernel's side is closed first. By then nothing is in flight.
    uring: IoUring,
    slots: Slab<Pushed>,
    /// What operations that have completed left for others.
    pieces: Vec<Pieces>,
    channels: Vec<VecDeque<Completion>>,
    /// The pool whose memory is registered as the fixed buffer 0, kept mapped while it is.
    registered: Option<Pool>,
    capacity: usize,
    batch: Batch,
    spin: Spin,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.slots.len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Pushed {
    slot: Slot,
    channel: usize,
    token: u64,
}

/// The number of completions that belong to nobody: those of the cancellation at the end.
const NOBODY: u64 = u64::MAX;

impl Ring {
    /// Sets a ring up for `entries` operations in flight.
    ///
    /// # Errors
    ///
    /// Whatever `io_uring_setup(2)` says: ENOSYS or EPERM where it is turned off.
    pub fn new(entries: u32) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_cqsize(entries.saturating_mul(2))
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            // Kernels before 6.1 know neither flag.
            .or_else(|_| IoUring::new(entries))?;
        Ok(Self {
            uring,
            slots: Slab::new(),
            pieces: Vec::new(),
            channels: Vec::new(),
            registered: None,
            capacity: usize::try_from(entries).expect("a u32 fits") * 2,
            batch: Batch::default(),
            spin: Spin::new(Spin::PATIENCE),
        })
    }

    /// Makes the ring shareable.
    pub fn shared(self) -> SharedRing {
        Rc::new(RefCell::new(self))
    }

    /// Registers the memory of `pool`, so that the kernel does not map it anew for each operation.
    /// Operations on other memory go on working.
    ///
    /// # Errors
    ///
    /// ENOMEM where the limit on locked memory (`ulimit -l`) is lower than the pool. The ring works
    /// as well without.
    pub fn register(&mut self, pool: &Pool) -> io::Result<()> {
        let (start, len) = pool.memory();
        let iovec = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len };
        // SAFETY: the memory stays mapped while the ring lives, since the ring keeps the pool.
        unsafe { self.uring.submitter().register_buffers(&[iovec]) }?;
        self.registered = Some(pool.clone());
        Ok(())
    }

    pub(crate) fn add_channel(&mut self) -> usize {
        self.channels.push(VecDeque::new());
        self.channels.len() - 1
    }

    /// Pushes an operation, to be submitted by the next [`enter`](Self::enter) at the latest; gives it
    /// back when too many are in flight.
    pub(crate) fn push(
        &mut self,
        channel: usize,
        token: u64,
        operation: Operation,
    ) -> Result<(), Operation> {
        if self.slots.len() >= self.capacity {
            return Err(operation);
        }
        let is_due = match operation.transfer() {
            Some(transfer) => self.batch.push(transfer),
            // A flush takes long, and others wait for it.
            None => matches!(operation, Operation::Sync { .. }),
        };
        let mut slot = Slot::new(operation, self.pieces.pop().unwrap_or_default());
        let vacant = self.slots.vacant_entry();
        let entry = slot.entry(self.registered.as_ref()).user_data(to_u64(vacant.key()));
        vacant.insert(Pushed { slot, channel, token });
        while !self.try_push(&entry) {
            // The submission queue is full: the kernel takes what is in it.
            if let Err(error) = self.uring.submit() {
                assert_passing(&error);
            }
        }
        if is_due {
            self.batch.submitted();
            // Whoever enters meets the error as well.
            let _later = self.uring.submit();
        }
        Ok(())
    }

    fn try_push(&mut self, entry: &io_uring::squeue::Entry) -> bool {
        // SAFETY: what the entry points to is owned by a slot, which is removed only when the
        // completion has been taken from the completion queue.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    /// Submits what was pushed, waits until `want` completions are there, and sorts them to their
    /// channels.
    ///
    /// # Errors
    ///
    /// What `io_uring_enter(2)` says, except for EINTR, EAGAIN and EBUSY, which are no errors: come
    /// again.
    pub fn enter(&mut self, want: usize) -> io::Result<()> {
        self.batch.submitted();
        match self.uring.submit_and_wait(want) {
            Ok(_) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        self.collect();
        Ok(())
    }

    /// Makes [`wait`](Self::wait) look for at most `max` before it sleeps, instead of [`Spin::PATIENCE`]; never when
    /// that is 0.
    pub fn set_patience(&mut self, max: Duration) {
        self.spin = Spin::new(max);
    }

    /// Submits what was pushed, and waits until there are completions: for a while by looking, where that
    /// pays, and then asleep.
    ///
    /// # Errors
    ///
    /// As for [`enter`](Self::enter).
    pub fn wait(&mut self) -> io::Result<()> {
        self.poll()?;
        while !self.has_completions() && self.spin.keep_looking() {
            std::thread::yield_now();
            self.poll()?;
        }
        if !self.has_completions() {
            self.spin.sleeping();
            self.enter(1)?;
        }
        self.spin.worked();
        Ok(())
    }

    /// Submits what was pushed and sorts the completions that are there, with a system call only
    /// where one is needed: for those who look again and again rather than to wait.
    ///
    /// # Errors
    ///
    /// As for [`enter`](Self::enter).
    pub fn poll(&mut self) -> io::Result<()> {
        let submission = self.uring.submission();
        let needs_call = !submission.is_empty() || submission.taskrun();
        drop(submission);
        if needs_call {
            return self.enter(0);
        }
        self.collect();
        Ok(())
    }

    fn collect(&mut self) {
        let mut queue = self.uring.completion();
        queue.sync();
        for entry in &mut queue {
            if entry.user_data() == NOBODY {
                continue;
            }
            let key = holdfast_units::to_usize(entry.user_data());
            let Pushed { slot, channel, token } = self.slots.remove(key);
            let result = result_of(&entry);
            let Slot { mut operation, pieces } = slot;
            if pieces.are_kept() {
                self.pieces.push(pieces);
            }
            if operation.transfer().is_some() {
                self.batch.completed();
            }
            operation.adopt(&result);
            self.channels[channel].push_back(Completion { token, operation, result });
        }
    }

    pub(crate) fn pop(&mut self, channel: usize) -> Option<Completion> {
        self.channels[channel].pop_front()
    }

    /// Returns whether completions wait in any channel.
    pub fn has_completions(&self) -> bool {
        self.channels.iter().any(|channel| !channel.is_empty())
    }

    /// Returns how many operations are in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }
}

/// Returns whether an error of `io_uring_enter(2)` goes away by itself.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// A submission queue that stays full leaves nothing to do but to try again; anything that does
/// not pass by itself is a broken ring.
fn assert_passing(error: &io::Error) {
    assert!(is_passing(error), "io_uring does not take submissions: {error}");
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.slots.is_empty() {
            return;
        }
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(NOBODY);
        while !self.try_push(&cancel) {
            if let Err(error) = self.uring.submit() {
                assert_passing(&error);
            }
        }
        while !self.slots.is_empty() {
            if self.enter(1).is_err() {
                // The kernel may go on writing to memory that is about to be freed, also while a
                // panic unwinds.
                std::process::abort();
            }
        }
    }
}

/// Opens a channel on a shared ring.
impl Channel {
    /// Adds a user to `ring`.
    pub fn open(ring: &SharedRing) -> Self {
        let index = ring.borrow_mut().add_channel();
        Self::new(Rc::clone(ring), index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Message;
    use holdfast_iov::{IovIter, Memory, Region, VolatileMemory};
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Instant;

    fn finish(ring: &SharedRing, channel: &Channel) -> Completion {
        ring.borrow_mut().enter(1).unwrap();
        channel.pop().expect("one operation was in flight")
    }

    fn file_with(bytes: &[u8]) -> crate::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Rc::new(OwnedFd::from(file))
    }

    #[test]
    fn a_read_fills_the_buffer_that_comes_back() {
        let ring = Ring::new(8).unwrap().shared();
        let channel = Channel::open(&ring);
        let pool = Pool::new(1 << 20).unwrap();
        ring.borrow_mut().register(&pool).unwrap();
        let memory = Memory::Buffer(pool.take(4096).unwrap());
        let file = file_with(b"0123456789");
        channel.push(7, Operation::Read { file, offset: 3, memory, skip: 2, len: 4 }).unwrap();
        let done = finish(&ring, &channel);
        let Operation::Read { memory: Memory::Buffer(buffer), .. } = &done.operation else {
            panic!("a read comes back as a read");
        };
        assert_eq!((done.token, &buffer.as_slice()[2..6]), (7, &b"3456"[..]));
    }

    #[test]
    fn a_write_gathers_segments() {
        let ring = Ring::new(8).unwrap().shared();
        let channel = Channel::open(&ring);
        let region = Region::anonymous(4096).unwrap();
        region.write(0, b"abcdef").unwrap();
        let mut iter = IovIter::new(Arc::new(VolatileMemory::new(vec![region])));
        iter.push(0, 4, 2).unwrap();
        iter.push(0, 0, 2).unwrap();
        let file = file_with(b"");
        let write = Operation::Write {
            file: Rc::clone(&file),
            offset: 0,
            memory: Memory::Iov(iter),
            skip: 1,
            len: 3,
            durable: true,
        };
        channel.push(1, write).unwrap();
        assert_eq!(finish(&ring, &channel).result.unwrap(), 3);
        let mut found = [0; 3];
        rustix::io::pread(&*file, &mut found, 0).unwrap();
        assert_eq!(&found, b"fab");
    }

    #[test]
    fn a_transfer_is_on_its_way_before_the_ring_is_entered() {
        let ring = Ring::new(8).unwrap().shared();
        let channel = Channel::open(&ring);
        let pool = Pool::new(1 << 20).unwrap();
        let mut buffer = pool.take(4096).unwrap();
        buffer.as_mut_slice().fill(7);
        let file = file_with(b"");
        let write = Operation::Write {
            file: Rc::clone(&file),
            offset: 0,
            memory: Memory::Buffer(buffer),
            skip: 0,
            len: 4096,
            durable: false,
        };
        channel.push(1, write).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        let mut found = [0];
        while rustix::io::pread(&*file, &mut found, 0).unwrap() == 0 && Instant::now() < until {
            std::thread::yield_now();
        }
        assert_eq!(found, [7]);
        assert_eq!(usize::try_from(finish(&ring, &channel).result.unwrap()), Ok(4096));
    }

    #[test]
    fn a_message_is_sent_in_order_and_can_be_resumed() {
        let ring = Ring::new(8).unwrap().shared();
        let channel = Channel::open(&ring);
        let pool = Pool::new(1 << 20).unwrap();
        let mut buffer = pool.take(4096).unwrap();
        buffer.as_mut_slice()[10..14].copy_from_slice(b"data");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut message = Box::new(Message::default());
        message.push_bytes(b"xxhead");
        message.push_buffer(Rc::new(buffer), 10, 4);
        message.advance(2);
        let socket = Rc::new(OwnedFd::from(ours));
        channel.push(1, Operation::Send { socket, message }).unwrap();
        assert_eq!(finish(&ring, &channel).result.unwrap(), 8);
        let mut found = [0; 8];
        theirs.read_exact(&mut found).unwrap();
        assert_eq!(&found, b"headdata");
    }

    #[test]
    fn dropping_the_ring_ends_what_would_wait_for_ever() {
        let ring = Ring::new(8).unwrap().shared();
        let channel = Channel::open(&ring);
        let pool = Pool::new(1 << 20).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let socket = Rc::new(OwnedFd::from(ours));
        let buffer = pool.take(4096).unwrap();
        let receive = Operation::Receive { socket, buffer, start: 0, len: 16, all: true };
        channel.push(1, receive).unwrap();
        ring.borrow_mut().enter(0).unwrap();
        drop((channel, ring));
        assert_eq!(pool.free_bytes(), pool.total_bytes());
    }

    #[test]
    fn a_full_ring_gives_the_operation_back() {
        let ring = Ring::new(1).unwrap().shared();
        let channel = Channel::open(&ring);
        let file = file_with(b"");
        let refused = (0..100)
            .find(|&n| channel.push(n, Operation::Sync { file: Rc::clone(&file) }).is_err());
        assert_eq!(refused, Some(2));
    }
}
