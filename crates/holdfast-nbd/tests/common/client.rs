//! A blocking client of the NBD protocol, from `doc/proto.md`.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long anything may take before a test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a request may ask for.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// The flags of a request.
pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1;
    pub(crate) const NO_HOLE: u16 = 2;
    pub(crate) const DF: u16 = 4;
    pub(crate) const REQ_ONE: u16 = 8;
    pub(crate) const FAST_ZERO: u16 = 16;
}

/// The errors of a reply.
pub(crate) mod error {
    pub(crate) const EPERM: u32 = 1;
    pub(crate) const EIO: u32 = 5;
    pub(crate) const EINVAL: u32 = 22;
    pub(crate) const ENOSPC: u32 = 28;
    pub(crate) const EOVERFLOW: u32 = 75;
    pub(crate) const ENOTSUP: u32 = 95;
}

/// A stream that gives up after [`PATIENCE`].
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(crate) fn unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self::Unix(stream)
    }

    pub(crate) fn tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::Tcp(stream))
    }

    /// Returns another handle of the same connection.
    pub(crate) fn another(&self) -> Self {
        match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone().unwrap()),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone().unwrap()),
        }
    }

    pub(crate) fn set_nonblocking(&self) {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(true).unwrap(),
            Self::Tcp(stream) => stream.set_nonblocking(true).unwrap(),
        }
    }

    /// Returns whether the server has closed the connection, having read all that it sent.
    pub(crate) fn is_closed_after_all(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Sends as much as the connection takes without waiting, and returns how much that was.
    pub(crate) fn stuff(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.write(&bytes[sent..]) {
                Ok(len) => sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("the server has closed it: {error}"),
            }
        }
        sent
    }
}

impl Read for Socket {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(target),
            Self::Tcp(stream) => stream.read(target),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(source),
            Self::Tcp(stream) => stream.write(source),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a client wants its replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    /// With the context `base:allocation`.
    Structured,
}

/// The complete answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// 0 when there was none.
    pub(crate) error: u32,
    /// What was read; zeros where nothing came.
    pub(crate) data: Vec<u8>,
    /// Which parts of the data came, in the order in which they came.
    pub(crate) pieces: Vec<(u64, u64)>,
    /// Lengths and flags.
    pub(crate) extents: Vec<(u32, u32)>,
    /// How many chunks the answer had; 0 for a simple reply.
    pub(crate) chunks: usize,
}

#[derive(Debug)]
struct Pending {
    command: u16,
    offset: u64,
    answer: Answer,
}

/// A client that is attached to the export `disk`.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: Socket,
    pub(crate) mode: Mode,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    cookie: u64,
    pending: HashMap<u64, Pending>,
}

/// Returns the bytes of an option.
pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

/// Returns the bytes of a request's header.
pub(crate) fn call(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

fn text(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap();
    [&len.to_be_bytes()[..], text.as_bytes()].concat()
}

fn bytes<const N: usize>(source: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number_16(source: &mut impl Read) -> io::Result<u16> {
    bytes(source).map(u16::from_be_bytes)
}

fn number_32(source: &mut impl Read) -> io::Result<u32> {
    bytes(source).map(u32::from_be_bytes)
}

fn number_64(source: &mut impl Read) -> io::Result<u64> {
    bytes(source).map(u64::from_be_bytes)
}

/// Reads the greeting and answers it.
pub(crate) fn greet(socket: &mut Socket) -> io::Result<()> {
    assert_eq!(&bytes::<16>(socket)?, b"NBDMAGICIHAVEOPT");
    assert_eq!(number_16(socket)?, 3, "fixed newstyle, no zeroes");
    socket.write_all(&3_u32.to_be_bytes())
}

/// Reads replies to an option up to the last, and returns its kind and the data of all.
pub(crate) fn option_replies(socket: &mut Socket, number: u32) -> io::Result<(u32, Vec<Vec<u8>>)> {
    let mut all = Vec::new();
    loop {
        assert_eq!(number_64(socket)?, 0x0003_e889_0455_65a9);
        assert_eq!(number_32(socket)?, number);
        let kind = number_32(socket)?;
        let mut data = vec![0; usize::try_from(number_32(socket)?).unwrap()];
        socket.read_exact(&mut data)?;
        all.push(data);
        if kind == 1 || kind >> 31 == 1 {
            return Ok((kind, all));
        }
    }
}

impl Client {
    const STRUCTURED_REPLY: u32 = 8;
    const SET_META_CONTEXT: u32 = 10;
    const GO: u32 = 7;

    /// Shakes hands.
    pub(crate) fn attach(mut socket: Socket, mode: Mode) -> io::Result<Self> {
        greet(&mut socket)?;
        if mode == Mode::Structured {
            socket.write_all(&option(Self::STRUCTURED_REPLY, &[]))?;
            assert_eq!(option_replies(&mut socket, Self::STRUCTURED_REPLY)?.0, 1);
            let context = text("base:allocation");
            let queries = [text("disk"), 1_u32.to_be_bytes().to_vec(), context].concat();
            socket.write_all(&option(Self::SET_META_CONTEXT, &queries))?;
            let (kind, contexts) = option_replies(&mut socket, Self::SET_META_CONTEXT)?;
            assert_eq!((kind, &contexts[0][..]), (1, &b"\0\0\0\x01base:allocation"[..]));
        }
        socket.write_all(&option(Self::GO, &[text("disk"), vec![0, 0]].concat()))?;
        let (kind, infos) = option_replies(&mut socket, Self::GO)?;
        assert_eq!(kind, 1);
        let export = infos.iter().find(|info| info.starts_with(&[0, 0])).unwrap();
        let size = u64::from_be_bytes(export[2..10].try_into().unwrap());
        let flags = u16::from_be_bytes(export[10..12].try_into().unwrap());
        Ok(Self { socket, mode, size, flags, cookie: 0, pending: HashMap::new() })
    }

    /// Notes that a request is going to be sent, and returns its bytes.
    pub(crate) fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
    ) -> (u64, Vec<u8>) {
        self.cookie += 0x0101_0101;
        let is_read = command == command::READ;
        let data = if is_read { vec![0; usize::try_from(len).unwrap()] } else { Vec::new() };
        let answer = Answer { data, ..Answer::default() };
        self.pending.insert(self.cookie, Pending { command, offset, answer });
        (self.cookie, call(command, flags, self.cookie, offset, len))
    }

    /// Sends a request without data, and returns its cookie.
    pub(crate) fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> u64 {
        let (cookie, header) = self.request(command, flags, offset, len);
        self.socket.write_all(&header).unwrap();
        cookie
    }

    /// Sends a write with its data, and returns its cookie.
    pub(crate) fn send_write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let len = u32::try_from(data.len()).unwrap();
        let (cookie, header) = self.request(command::WRITE, flags, offset, len);
        self.socket.write_all(&header).unwrap();
        self.socket.write_all(data).unwrap();
        cookie
    }

    /// Receives until one request is answered completely.
    pub(crate) fn receive(&mut self) -> io::Result<(u64, Answer)> {
        loop {
            let magic = number_32(&mut self.socket)?;
            let answered = match magic {
                0x6744_6698 => Some(self.simple_reply()?),
                0x668e_33ef => self.chunk()?,
                _ => panic!("{magic:#x} is no reply"),
            };
            if let Some(cookie) = answered {
                return Ok((cookie, self.pending.remove(&cookie).unwrap().answer));
            }
        }
    }

    fn simple_reply(&mut self) -> io::Result<u64> {
        let error = number_32(&mut self.socket)?;
        let cookie = number_64(&mut self.socket)?;
        let pending = self.pending.get_mut(&cookie).expect("a reply is to a request");
        assert!(pending.command != command::READ || self.mode == Mode::Simple);
        assert_eq!(pending.answer.chunks, 0, "a simple reply after a chunk");
        pending.answer.error = error;
        if error == 0 {
            self.socket.read_exact(&mut pending.answer.data)?;
        }
        Ok(cookie)
    }

    /// Receives a chunk, and returns the cookie if it was the last one of its reply.
    fn chunk(&mut self) -> io::Result<Option<u64>> {
        assert_eq!(self.mode, Mode::Structured);
        let socket = &mut self.socket;
        let (flags, kind) = (number_16(socket)?, number_16(socket)?);
        let (cookie, len) = (number_64(socket)?, number_32(socket)?);
        let pending = self.pending.get_mut(&cookie).expect("a chunk is of a request");
        let answer = &mut pending.answer;
        answer.chunks += 1;
        match kind {
            0 => assert_eq!((len, flags), (0, 1)),
            1 => {
                let start = number_64(socket)?.checked_sub(pending.offset).unwrap();
                let (from, len) = (usize::try_from(start).unwrap(), len - 8);
                let len = usize::try_from(len).unwrap();
                assert!(len > 0);
                socket.read_exact(&mut answer.data[from..][..len])?;
                answer.pieces.push((start, len as u64));
            }
            5 => {
                assert_eq!((number_32(socket)?, len % 8), (1, 4));
                for _ in 0..len / 8 {
                    answer.extents.push((number_32(socket)?, number_32(socket)?));
                }
            }
            0x8001 => {
                answer.error = number_32(socket)?;
                let message_len = number_16(socket)?;
                assert_eq!(len, 6 + u32::from(message_len));
                io::copy(&mut socket.take(message_len.into()), &mut io::sink())?;
            }
            _ => panic!("{kind:#x} is no chunk that was expected"),
        }
        if flags & 1 == 0 {
            return Ok(None);
        }
        if pending.command == command::READ && answer.error == 0 {
            let mut pieces = answer.pieces.clone();
            pieces.sort_unstable();
            let end = pieces.iter().fold(0, |end, &(start, len)| {
                assert_eq!(start, end, "chunks neither overlap nor leave anything out");
                end + len
            });
            assert_eq!(end, answer.data.len() as u64);
        }
        Ok(Some(cookie))
    }

    /// Receives until all requests are answered.
    pub(crate) fn finish(&mut self) -> HashMap<u64, Answer> {
        let mut answers = HashMap::new();
        while !self.pending.is_empty() {
            let (cookie, answer) = self.receive().unwrap();
            answers.insert(cookie, answer);
        }
        answers
    }

    /// Sends `requests` while receiving until all are answered.
    pub(crate) fn finish_all(&mut self, requests: &[u8]) -> HashMap<u64, Answer> {
        let mut socket = self.socket.another();
        thread::scope(|scope| {
            scope.spawn(move || socket.write_all(requests).unwrap());
            self.finish()
        })
    }

    /// Sends a request without data, and waits for its answer.
    pub(crate) fn call(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> Answer {
        let cookie = self.send(command, flags, offset, len);
        self.answer_to(cookie)
    }

    fn answer_to(&mut self, expected: u64) -> Answer {
        let (cookie, answer) = self.receive().unwrap();
        assert_eq!(cookie, expected, "nothing else was asked");
        answer
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        let answer = self.call(command::READ, 0, offset, len);
        if answer.error == 0 { Ok(answer.data) } else { Err(answer.error) }
    }

    /// Writes, and returns the error, or 0.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        let cookie = self.send_write(0, offset, data);
        self.answer_to(cookie).error
    }

    /// Writes durably, and returns the error, or 0.
    pub(crate) fn write_durably(&mut self, offset: u64, data: &[u8]) -> u32 {
        let cookie = self.send_write(flag::FUA, offset, data);
        self.answer_to(cookie).error
    }

    /// Flushes, and returns the error, or 0.
    pub(crate) fn flush(&mut self) -> u32 {
        self.call(command::FLUSH, 0, 0, 0).error
    }

    /// Asks what is allocated.
    pub(crate) fn extents(&mut self, flags: u16, offset: u64, len: u32) -> Vec<(u32, u32)> {
        let answer = self.call(command::BLOCK_STATUS, flags, offset, len);
        assert_eq!(answer.error, 0);
        answer.extents
    }
}
