//! A front end that says whatever it is told to, written from the protocol's text.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use holdfast_iov::{Place, Region};
use holdfast_units::to_usize;
use holdfast_virtqueue::{Driver, Piece, Rings, Table};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::{PATIENCE, eventually};

/// The numbers of messages.
pub(crate) mod message {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_LOG_BASE: u32 = 6;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const SET_CONFIG: u32 = 25;
    pub(crate) const GET_INFLIGHT_FD: u32 = 31;
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(crate) const ADD_MEM_REG: u32 = 37;
    pub(crate) const REM_MEM_REG: u32 = 38;
    /// The highest number that the protocol's text has.
    pub(crate) const LAST: u32 = 44;
}

/// The feature of logging what is written, which is for migrations.
pub(crate) const LOG_ALL: u32 = 26;
/// Bytes of the header: number, flags, size.
const HEADER: usize = 12;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

/// What a server says to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was carried out.
    Done,
    /// It was not.
    Refused,
    /// Something else, in bytes.
    Says(Vec<u8>),
    /// The server has closed the connection.
    Closed,
}

/// A connection on which nothing is checked.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    /// Those that were agreed on.
    pub(crate) features: u64,
}

impl Raw {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, features: 0 }
    }

    /// Connects, and agrees to everything that the server has, except for logging.
    pub(crate) fn agreed(path: &Path) -> Self {
        Self::agreed_without(path, 1 << LOG_ALL)
    }

    /// Connects, and agrees to everything that the server has, except for some features.
    pub(crate) fn agreed_without(path: &Path, less: u64) -> Self {
        let mut raw = Self::connect(path);
        let Answer::Says(features) = raw.ask(message::GET_FEATURES, &[], &[]) else {
            panic!("a server tells its features")
        };
        raw.features = u64::from_le_bytes(features.try_into().unwrap()) & !less;
        let Answer::Says(protocol) = raw.ask(message::GET_PROTOCOL_FEATURES, &[], &[]) else {
            panic!("a server tells its features")
        };
        raw.tell(message::SET_PROTOCOL_FEATURES, &protocol, &[]);
        raw.tell(message::SET_FEATURES, &raw.features.to_le_bytes(), &[]);
        raw
    }

    /// Sends bytes as they are, with descriptors. A server that has gone is no error.
    pub(crate) fn send(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)));
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
        if let Ok(sent) = sent {
            // What did not fit at once is sent without the descriptors.
            let _gone = self.stream.write_all(&bytes[sent..]);
        }
    }

    /// Sends a message that wants no answer.
    pub(crate) fn tell(&mut self, number: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        self.send(&bytes_of(number, VERSION, body), files);
    }

    /// Sends a message and takes the answer to it.
    pub(crate) fn ask(&mut self, number: u32, body: &[u8], files: &[BorrowedFd<'_>]) -> Answer {
        self.send(&bytes_of(number, VERSION | NEED_REPLY, body), files);
        self.answer(number)
    }

    fn answer(&self, number: u32) -> Answer {
        let mut header = [0; HEADER];
        if self.receive(&mut header).is_none() {
            return Answer::Closed;
        }
        let [found, flags, len] = [0, 4, 8].map(|at| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        });
        assert_eq!((found, flags & 7), (number, 5), "the answer to the message");
        let mut body = vec![0; usize::try_from(len).unwrap()];
        if self.receive(&mut body).is_none() {
            return Answer::Closed;
        }
        let is_plain = number >= message::SET_FEATURES && SETTERS.contains(&number);
        match u64::from_le_bytes(body.get(..8).unwrap_or(&[0; 8]).try_into().unwrap()) {
            0 if is_plain => Answer::Done,
            _ if is_plain => Answer::Refused,
            _ => Answer::Says(body),
        }
    }

    /// Receives all of `target`, and the last descriptor that comes with it.
    fn receive(&self, target: &mut [u8]) -> Option<Option<OwnedFd>> {
        let mut file = None;
        let mut done = 0;
        while done < target.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut target[done..])];
            let received = recvmsg(&self.stream, &mut into, &mut control, RecvFlags::empty());
            let bytes = match received {
                Ok(message) => message.bytes,
                Err(rustix::io::Errno::CONNRESET) => 0,
                Err(errno) => panic!("nothing came: {errno}"),
            };
            if bytes == 0 {
                return None;
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    file = files.last().or(file);
                }
            }
            done += bytes;
        }
        Some(file)
    }

    /// Asks for an in-flight log.
    pub(crate) fn in_flight_log(&mut self, queues: u16, size: u16) -> Option<(Vec<u8>, OwnedFd)> {
        let body = in_flight(0, 0, queues, size);
        self.tell(message::GET_INFLIGHT_FD, &body, &[]);
        let mut header = [0; HEADER];
        let file = self.receive(&mut header)?;
        let mut body = vec![0; 20];
        body.resize(usize::from(header[8]), 0);
        let file = self.receive(&mut body)?.or(file).expect("a log comes with its memory");
        Some((body, file))
    }

    /// Returns whether the server closes the connection, when it has said whatever it has to say.
    pub(crate) fn is_closed(&self) -> bool {
        let mut byte = [0];
        while self.receive(&mut byte).is_some() {}
        true
    }

    /// Shares one region, and starts queue 0 of `size` descriptors in it.
    pub(crate) fn start_queue(&mut self, shared: &Shared, size: u16) {
        let fd = shared.file.as_fd();
        assert_eq!(
            self.ask(message::SET_MEM_TABLE, &table(&[shared.entry()]), &[fd]),
            Answer::Done
        );
        self.start_vring(shared, size);
    }

    /// Starts queue 0 of `size` descriptors, in memory that the server has.
    pub(crate) fn start_vring(&mut self, shared: &Shared, size: u16) {
        let [kick, call, error] = [&shared.kick, &shared.call, &shared.error].map(AsFd::as_fd);
        let steps: [(u32, Vec<u8>, &[BorrowedFd<'_>]); 7] = [
            (message::SET_VRING_NUM, state(0, u32::from(size)), &[]),
            (message::SET_VRING_BASE, state(0, 0), &[]),
            (message::SET_VRING_ADDR, shared.addresses(0), &[]),
            (message::SET_VRING_CALL, 0_u64.to_le_bytes().into(), &[call]),
            (message::SET_VRING_ERR, 0_u64.to_le_bytes().into(), &[error]),
            (message::SET_VRING_KICK, 0_u64.to_le_bytes().into(), &[kick]),
            (message::SET_VRING_ENABLE, state(0, 1), &[]),
        ];
        for (number, body, files) in steps {
            assert_eq!(self.ask(number, &body, files), Answer::Done, "message {number}");
        }
    }
}

/// The messages to which the answer is only whether they were carried out.
const SETTERS: &[u32] = &[
    message::SET_FEATURES,
    message::SET_OWNER,
    message::RESET_OWNER,
    message::SET_MEM_TABLE,
    message::SET_VRING_NUM,
    message::SET_VRING_ADDR,
    message::SET_VRING_BASE,
    message::SET_VRING_KICK,
    message::SET_VRING_CALL,
    message::SET_VRING_ERR,
    message::SET_PROTOCOL_FEATURES,
    message::SET_VRING_ENABLE,
    message::SET_CONFIG,
    message::SET_INFLIGHT_FD,
    message::RESET_DEVICE,
    message::ADD_MEM_REG,
    message::REM_MEM_REG,
];

/// Returns the bytes of a message.
pub(crate) fn bytes_of(number: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    let mut bytes: Vec<u8> = [number, flags, len].iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.extend_from_slice(body);
    bytes
}

/// A region: guest address, length, address in the front end, offset in its file.
pub(crate) type Entry = [u64; 4];

pub(crate) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The body of a memory table.
pub(crate) fn table(entries: &[Entry]) -> Vec<u8> {
    let mut body = words(&[u64::try_from(entries.len()).unwrap()]);
    entries.iter().for_each(|entry| body.extend(words(entry)));
    body
}

/// The body of a message about one region.
pub(crate) fn one_region(entry: Entry) -> Vec<u8> {
    let mut body = words(&[0]);
    body.extend(words(&entry));
    body
}

/// The body of a message with a number for a queue.
pub(crate) fn state(index: u32, number: u32) -> Vec<u8> {
    [index.to_le_bytes(), number.to_le_bytes()].concat()
}

/// The body of a message about an in-flight log.
pub(crate) fn in_flight(len: u64, offset: u64, queues: u16, size: u16) -> Vec<u8> {
    let mut body = words(&[len, offset]);
    body.extend(queues.to_le_bytes());
    body.extend(size.to_le_bytes());
    // The structure has the alignment of its words.
    body.resize(24, 0);
    body
}

/// Memory that is shared with a server, and that its owner may shorten.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) file: File,
    pub(crate) region: Arc<Region>,
    pub(crate) kick: OwnedFd,
    pub(crate) call: OwnedFd,
    pub(crate) error: OwnedFd,
}

impl Shared {
    /// Where the region begins for the guest.
    pub(crate) const GUEST: u64 = 0x10_0000;
    /// Where the front end says that it has the region.
    pub(crate) const USER: u64 = 0x7000_0000_0000;
    /// Where the parts of queue 0 are in the region.
    pub(crate) const DESCRIPTORS: u64 = 0;
    pub(crate) const AVAILABLE: u64 = 0x1_0000;
    pub(crate) const USED: u64 = 0x2_0000;
    /// Where there is room for requests.
    pub(crate) const ROOM: u64 = 0x4_0000;

    pub(crate) fn new(len: u64) -> Self {
        let file = memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        let region = Region::shared(file.as_fd(), 0, usize::try_from(len).unwrap()).unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let (file, region) = (File::from(file), Arc::new(region));
        Self { file, region, kick: event(), call: event(), error: event() }
    }

    pub(crate) fn len(&self) -> u64 {
        u64::try_from(self.region.len()).unwrap()
    }

    pub(crate) fn entry(&self) -> Entry {
        [Self::GUEST, self.len(), Self::USER, 0]
    }

    /// The body of a message with the addresses of queue `index`.
    pub(crate) fn addresses(&self, index: u32) -> Vec<u8> {
        let places = [Self::DESCRIPTORS, Self::USED, Self::AVAILABLE].map(|at| Self::USER + at);
        addresses(index, 0, places, 0)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.region.write(usize::try_from(at).unwrap(), bytes).unwrap();
    }

    pub(crate) fn read_u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.region.read(usize::try_from(at).unwrap(), &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Stores a descriptor: address, length, flags, next.
    pub(crate) fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(Self::DESCRIPTORS + u64::from(index) * 16, &bytes);
    }

    /// Makes the request that begins with a descriptor the only one that is new, the `number`th of all.
    pub(crate) fn offer(&self, number: u16, size: u16, head: u16) {
        let at = Self::AVAILABLE + 4 + u64::from(number % size) * 2;
        self.write(at, &head.to_le_bytes());
        self.write(Self::AVAILABLE + 2, &number.wrapping_add(1).to_le_bytes());
        self.kick();
    }

    #[expect(clippy::host_endian_bytes, reason = "eventfd(2) counts in the machine's order")]
    pub(crate) fn kick(&self) {
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Returns whether the server has said that it gives the queue up.
    pub(crate) fn is_given_up(&self) -> bool {
        rustix::io::read(&self.error, &mut [0; 8]).is_ok()
    }

    /// Returns the index of the used ring.
    pub(crate) fn used(&self) -> u16 {
        self.read_u16(Self::USED + 2)
    }
}

/// The body of a message with the addresses of a queue: descriptors, used ring, available ring.
pub(crate) fn addresses(index: u32, flags: u32, places: [u64; 3], log: u64) -> Vec<u8> {
    let mut body = state(index, flags);
    body.extend(words(&places));
    body.extend(words(&[log]));
    body
}

/// Queue 0 in shared memory, as a driver has it that keeps to the rules.
#[derive(Debug)]
pub(crate) struct RawQueue<'a> {
    shared: &'a Shared,
    driver: Driver,
}

impl<'a> RawQueue<'a> {
    /// Where data may be, as a guest address.
    pub(crate) const DATA: u64 = Shared::GUEST + Shared::ROOM + 0x1_0000;
    /// Where the status is, as a guest address: in a page of its own.
    pub(crate) const STATUS: u64 = Shared::GUEST + Shared::ROOM + 0x2000;
    const HEADER: u64 = Shared::ROOM;

    pub(crate) fn new(shared: &'a Shared, size: u16) -> Self {
        let place = |at, len| Place::new(&shared.region, to_usize(at), len).unwrap();
        let rings = Rings::new(
            u32::from(size),
            place(Shared::DESCRIPTORS, Rings::descriptors_len(size)),
            place(Shared::AVAILABLE, Rings::available_len(size)),
            place(Shared::USED, Rings::used_len(size)),
        );
        Self { shared, driver: Driver::new(rings.unwrap(), false) }
    }

    /// Begins a request with `len` bytes of data at [`DATA`](Self::DATA).
    pub(crate) fn begin(&mut self, kind: u32, sector: u64, len: u32) {
        self.shared.write(Self::HEADER, &words(&[u64::from(kind), sector]));
        self.shared.write(Self::STATUS - Shared::GUEST, &[0xff]);
        let piece = |address, len, is_writable| Piece { address, len, is_writable };
        let mut pieces = vec![piece(Shared::GUEST + Self::HEADER, 16, false)];
        if len > 0 {
            pieces.push(piece(Self::DATA, len, kind == 0));
        }
        pieces.push(piece(Self::STATUS, 1, true));
        self.driver.add(&pieces, Table::Direct).unwrap();
        self.driver.publish();
        self.shared.kick();
    }

    /// Returns the status of a request, when it has ended.
    #[track_caller]
    pub(crate) fn end(&mut self) -> u8 {
        eventually("a request ends", || self.driver.has_used());
        self.driver.collect().unwrap().unwrap();
        let mut status = [0];
        let at = Self::STATUS - Shared::GUEST;
        self.shared.region.read(to_usize(at), &mut status).unwrap();
        status[0]
    }

    /// Runs one request to its end, and returns its status.
    #[track_caller]
    pub(crate) fn run(&mut self, kind: u32, sector: u64, len: u32) -> u8 {
        self.begin(kind, sector, len);
        self.end()
    }
}
