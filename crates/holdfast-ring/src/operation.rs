//! What can be pushed: an operation, with everything that the kernel is going to touch.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::rc::Rc;
use std::time::Duration;

use holdfast_iov::{Buffer, Bvec, Memory};
use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, Timespec};
use io_uring::{cqueue, opcode};
use rustix::fs::FallocateFlags;

use crate::batch;

/// An open file or socket. An operation holds it open until it has completed.
pub type File = Rc<OwnedFd>;

/// One operation of the kernel, and the memory it uses.
#[derive(Debug)]
pub enum Operation {
    /// Reads into `memory`, from its byte `skip` on.
    Read {
        /// The file.
        file: File,
        /// Where in the file, in bytes.
        offset: u64,
        /// The destination.
        memory: Memory,
        /// How many bytes of the memory are passed over.
        skip: usize,
        /// How many bytes to read.
        len: usize,
    },
    /// Writes from `memory`, from its byte `skip` on.
    Write {
        /// The file.
        file: File,
        /// Where in the file, in bytes.
        offset: u64,
        /// The source.
        memory: Memory,
        /// How many bytes of the memory are passed over.
        skip: usize,
        /// How many bytes to write.
        len: usize,
        /// Complete only when the data are durable.
        durable: bool,
    },
    /// Makes the file's data durable: fdatasync(2).
    Sync {
        /// The file.
        file: File,
    },
    /// Changes what is allocated: fallocate(2).
    Allocate {
        /// The file.
        file: File,
        /// What to do with the range.
        mode: FallocateFlags,
        /// Where the range begins, in bytes.
        offset: u64,
        /// How long the range is, in bytes.
        len: u64,
    },
    /// Receives into `buffer`, from its byte `start` on.
    Receive {
        /// The socket.
        socket: File,
        /// The destination.
        buffer: Buffer,
        /// How many bytes of the buffer are passed over.
        start: usize,
        /// The most bytes to receive.
        len: usize,
        /// Wait until all `len` have come, or the connection ends.
        all: bool,
    },
    /// Sends a message.
    Send {
        /// The socket.
        socket: File,
        /// What to send.
        message: Box<Message>,
    },
    /// Accepts a connection.
    Accept {
        /// The listening socket.
        listener: File,
        /// The connection, once the operation has completed well.
        accepted: Option<OwnedFd>,
    },
    /// Waits until an eventfd has been written, and resets it.
    Event {
        /// The eventfd.
        event: File,
        /// The counter it had.
        value: Box<u64>,
    },
    /// Completes when a time has passed.
    Timeout {
        /// The time from the submission on.
        after: Box<Timespec>,
    },
    /// Ends the operations of the ring on this file early, with ECANCELED.
    Cancel {
        /// The file.
        file: File,
    },
}

impl Operation {
    /// Returns an operation that completes when `after` has passed.
    pub fn timeout(after: Duration) -> Self {
        Self::Timeout { after: Box::new(Timespec::from(after)) }
    }

    /// Returns what it moves to or from a file.
    pub(crate) fn transfer(&self) -> Option<batch::Transfer> {
        let (file, writes, offset, len) = match self {
            Self::Read { file, offset, len, .. } => (file, false, *offset, *len),
            Self::Write { file, offset, len, .. } => (file, true, *offset, *len),
            _ => return None,
        };
        Some(batch::Transfer { file: file.as_raw_fd(), writes, offset, len })
    }

    /// Takes what the kernel has made out of a result.
    pub(crate) fn adopt(&mut self, result: &io::Result<u32>) {
        if let (Self::Accept { accepted, .. }, Ok(descriptor)) = (self, result) {
            let descriptor = descriptor.cast_signed();
            // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
            *accepted = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
}

/// Pieces to be sent in order, as one system call's worth of iovecs.
#[derive(Debug, Default)]
pub struct Message {
    pieces: Vec<Piece>,
    iovecs: Vec<libc::iovec>,
    header: Option<Box<libc::msghdr>>,
}

// The pieces are what is owned; `iovecs` and `header` point into them and are filled again at each
// push.
#[derive(Debug)]
struct Piece {
    source: Source,
    start: usize,
    end: usize,
}

#[derive(Debug)]
enum Source {
    Bytes(Box<[u8]>),
    Small([u8; Message::SMALL_MAX]),
    Buffer(Rc<Buffer>),
}

impl Message {
    /// How long a piece may be that is kept inside the message itself.
    pub const SMALL_MAX: usize = 36;
    /// The most pieces that are sent at once.
    const IOVECS_MAX: usize = 64;

    /// Appends bytes. Up to [`SMALL_MAX`](Self::SMALL_MAX) of them cost no allocation.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        let mut small = [0; Self::SMALL_MAX];
        let source = if let Some(target) = small.get_mut(..bytes.len()) {
            target.copy_from_slice(bytes);
            Source::Small(small)
        } else {
            Source::Bytes(bytes.into())
        };
        self.pieces.push(Piece { source, start: 0, end: bytes.len() });
    }

    /// Appends `len` bytes of a buffer, from its byte `start` on.
    ///
    /// # Panics
    ///
    /// When the buffer is shorter.
    pub fn push_buffer(&mut self, buffer: Rc<Buffer>, start: usize, len: usize) {
        let end = start + len;
        assert!(end <= buffer.len(), "a piece lies inside its buffer");
        self.pieces.push(Piece { source: Source::Buffer(buffer), start, end });
    }

    /// Returns how many bytes there are to send.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.end - piece.start).sum()
    }

    /// Returns how many pieces there are to send.
    pub const fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Returns whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Returns how many bytes the message keeps on the heap.
    pub fn heap_bytes(&self) -> usize {
        let heap_len = |piece: &Piece| match &piece.source {
            Source::Bytes(bytes) => bytes.len(),
            Source::Buffer(_) | Source::Small(_) => 0,
        };
        self.pieces.iter().map(heap_len).sum()
    }

    /// Returns how many bytes of buffers the message keeps.
    pub fn buffer_bytes(&self) -> usize {
        let buffer_len = |piece: &Piece| match &piece.source {
            Source::Buffer(buffer) => buffer.len(),
            Source::Bytes(_) | Source::Small(_) => 0,
        };
        self.pieces.iter().map(buffer_len).sum()
    }

    /// Moves all of `other` behind what is here.
    pub fn append(&mut self, other: &mut Self) {
        self.pieces.append(&mut other.pieces);
    }

    /// Drops what has been sent from the front.
    pub fn advance(&mut self, mut sent: usize) {
        let mut whole = 0;
        for piece in &mut self.pieces {
            let len = piece.end - piece.start;
            if sent < len {
                piece.start += sent;
                break;
            }
            sent -= len;
            whole += 1;
        }
        self.pieces.drain(..whole);
    }

    /// Points the iovecs at the pieces, which do not move while the box of the message lives.
    fn prepare(&mut self) -> *const libc::msghdr {
        self.iovecs.clear();
        self.iovecs.extend(self.pieces.iter().take(Self::IOVECS_MAX).map(|piece| {
            let bytes: &[u8] = match &piece.source {
                Source::Bytes(bytes) => bytes,
                Source::Small(bytes) => bytes,
                Source::Buffer(buffer) => buffer.as_slice(),
            };
            let bytes = &bytes[piece.start..piece.end];
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
        }));
        let header = self.header.get_or_insert_with(|| {
            // SAFETY: a msghdr is integers and pointers, for all of which zero is a value.
            Box::new(unsafe { std::mem::zeroed() })
        });
        header.msg_iov = self.iovecs.as_mut_ptr();
        header.msg_iovlen = self.iovecs.len();
        ptr::from_ref(&**header)
    }
}

/// Room for the pieces of an operation's memory, which serves one operation after the other.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    bvecs: Vec<Bvec>,
    iovecs: Vec<libc::iovec>,
}

impl Pieces {
    /// Room for more than so many pieces is not kept: few operations need it.
    const KEPT_MAX: usize = 256;

    /// Turns bvecs into the kernel's form. Without a limit on their number a transfer is only short.
    fn vectored(&mut self) -> (*const libc::iovec, u32) {
        const IOV_MAX: usize = 1024;
        let Self { bvecs, iovecs } = self;
        iovecs.clear();
        iovecs.extend(
            bvecs.iter().take(IOV_MAX).map(|bvec| libc::iovec {
                iov_base: bvec.start.as_ptr().cast(),
                iov_len: bvec.len,
            }),
        );
        (iovecs.as_ptr(), len_u32(iovecs.len()))
    }

    /// Returns whether another operation shall use them.
    pub(crate) const fn are_kept(&self) -> bool {
        self.bvecs.capacity() <= Self::KEPT_MAX && self.iovecs.capacity() <= Self::KEPT_MAX
    }
}

/// An operation in the slab of the ring, with the iovecs that point to its memory. It may be moved:
/// the kernel is only given addresses in pools, in mappings and on the heap.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) operation: Operation,
    pub(crate) pieces: Pieces,
}

impl Slot {
    pub(crate) const fn new(operation: Operation, pieces: Pieces) -> Self {
        Self { operation, pieces }
    }

    /// Builds the kernel's entry. It points to what `self` owns, which must not be dropped before
    /// the completion has come.
    pub(crate) fn entry(&mut self, registered: Option<&holdfast_iov::Pool>) -> Entry {
        match &mut self.operation {
            Operation::Read { file, offset, memory, skip, len } => {
                assert!(memory.is_writable(), "the kernel must not write to what is shared");
                let fd = Fd(file.as_raw_fd());
                match transfer(memory, *skip, *len, registered, &mut self.pieces.bvecs) {
                    Transfer::Fixed(start, len) => {
                        opcode::ReadFixed::new(fd, start, len, 0).offset(*offset).build()
                    }
                    Transfer::Plain(start, len) => {
                        opcode::Read::new(fd, start, len).offset(*offset).build()
                    }
                    Transfer::Vectored => {
                        let (iovecs, count) = self.pieces.vectored();
                        opcode::Readv::new(fd, iovecs, count).offset(*offset).build()
                    }
                }
            }
            Operation::Write { file, offset, memory, skip, len, durable } => {
                let fd = Fd(file.as_raw_fd());
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                match transfer(memory, *skip, *len, registered, &mut self.pieces.bvecs) {
                    Transfer::Fixed(start, len) => opcode::WriteFixed::new(fd, start, len, 0)
                        .offset(*offset)
                        .rw_flags(flags)
                        .build(),
                    Transfer::Plain(start, len) => {
                        opcode::Write::new(fd, start, len).offset(*offset).rw_flags(flags).build()
                    }
                    Transfer::Vectored => {
                        let (iovecs, count) = self.pieces.vectored();
                        opcode::Writev::new(fd, iovecs, count)
                            .offset(*offset)
                            .rw_flags(flags)
                            .build()
                    }
                }
            }
            other => entry_without_transfer(other),
        }
    }
}

/// The entries of the operations that are not reads or writes of a file.
fn entry_without_transfer(operation: &mut Operation) -> Entry {
    match operation {
        Operation::Read { .. } | Operation::Write { .. } => {
            unreachable!("`Slot::entry` builds those")
        }
        Operation::Sync { file } => {
            opcode::Fsync::new(Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC).build()
        }
        Operation::Allocate { file, mode, offset, len } => {
            let mode = mode.bits().cast_signed();
            opcode::Fallocate::new(Fd(file.as_raw_fd()), *len).offset(*offset).mode(mode).build()
        }
        Operation::Receive { socket, buffer, start, len, all } => {
            let target = &mut buffer.as_mut_slice()[*start..][..*len];
            let flags = if *all { libc::MSG_WAITALL } else { 0 };
            let fd = Fd(socket.as_raw_fd());
            opcode::Recv::new(fd, target.as_mut_ptr(), len_u32(target.len())).flags(flags).build()
        }
        Operation::Send { socket, message } => {
            let header = message.prepare();
            let flags = libc::MSG_NOSIGNAL.cast_unsigned();
            opcode::SendMsg::new(Fd(socket.as_raw_fd()), header).flags(flags).build()
        }
        Operation::Accept { listener, .. } => {
            let fd = Fd(listener.as_raw_fd());
            opcode::Accept::new(fd, ptr::null_mut(), ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
        Operation::Event { event, value } => {
            let target = ptr::from_mut(&mut **value).cast();
            opcode::Read::new(Fd(event.as_raw_fd()), target, len_u32(size_of::<u64>())).build()
        }
        Operation::Timeout { after } => opcode::Timeout::new(ptr::from_ref(&**after)).build(),
        Operation::Cancel { file } => {
            opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(file.as_raw_fd())).all()).build()
        }
    }
}

enum Transfer {
    Fixed(*mut u8, u32),
    Plain(*mut u8, u32),
    Vectored,
}

/// Finds the addresses of `len` bytes of `memory` behind the first `skip`.
fn transfer(
    memory: &Memory,
    skip: usize,
    len: usize,
    registered: Option<&holdfast_iov::Pool>,
    bvecs: &mut Vec<Bvec>,
) -> Transfer {
    match memory {
        Memory::None => Transfer::Plain(ptr::null_mut(), 0),
        Memory::Buffer(buffer) => transfer_of(buffer, skip, len, registered),
        Memory::Shared(buffer) => transfer_of(buffer, skip, len, registered),
        Memory::Iov(iter) => {
            bvecs.clear();
            let mut rest = iter.clone();
            rest.advance(skip);
            rest.extract(len, bvecs);
            Transfer::Vectored
        }
    }
}

fn transfer_of(
    buffer: &Buffer,
    skip: usize,
    len: usize,
    registered: Option<&holdfast_iov::Pool>,
) -> Transfer {
    let end = skip.checked_add(len);
    let is_inside = end.is_some_and(|end| end <= buffer.len());
    assert!(is_inside, "a transfer lies inside its buffer");
    // SAFETY: `skip` lies inside the buffer, as asserted.
    let start = unsafe { buffer.start().add(skip) }.as_ptr();
    match registered {
        Some(pool) if pool.owns(buffer) => Transfer::Fixed(start, len_u32(len)),
        _ => Transfer::Plain(start, len_u32(len)),
    }
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("no transfer is longer than a bio")
}

/// Returns the result of a completion.
pub(crate) fn result_of(entry: &cqueue::Entry) -> io::Result<u32> {
    u32::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()))
}
