//! The requests of a connection that are being carried out, as bios of the volume.
//!
//! A request is cut into chunks that are one bio each. A client can make the server hold memory by
//! not reading its replies or not sending its data; so a session gets no more than half of what
//! would be free without what it holds. When many have done that and nothing is left, there are
//! still the small buffers of the reserve, with which each session goes on, if slowly.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use holdfast_bio::{Bio, DiskQueue, Ended, Error, Limits, Op};
use holdfast_iov::{BUFFER_MIN, Buffer, Memory};
use holdfast_ring::Message;
use holdfast_units::{to_u64, to_usize};
use slab::Slab;

use crate::negotiation::Agreed;
use crate::reply::{self, ErrorCode, Extent, Header};
use crate::request::{Command, Request};
use crate::session::Context;

/// One request.
#[derive(Debug)]
struct Task {
    request: Request,
    how: How,
    /// Where the next chunk begins.
    next: u64,
    end: u64,
    in_flight: usize,
    error: Option<Error>,
}

/// How a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    /// One reply when everything is done.
    Whole,
    /// A chunk of a structured reply for each chunk that was read.
    Chunks,
    /// One run of bytes, longer than one buffer: everything is verified first, since once the reply
    /// has begun there is no way to report an error.
    VerifyFirst,
    /// The same, when everything has been verified: it is read again, in order, and sent.
    Deliver,
    /// One reply when what was done before is durable.
    MakeDurable {
        /// The flush has been submitted.
        asked: bool,
    },
    /// A write whose data did not all come before the connection ended: there is no reply.
    Forgotten,
    /// What is allocated, for the meta context with this number.
    Status(u32, Vec<Extent>),
}

/// The write whose data are being received.
#[derive(Debug)]
struct Payload {
    task: usize,
    chunk: Option<Chunk>,
}

/// The part of a write that is being received.
#[derive(Debug)]
struct Chunk {
    /// `None` while the ring has it.
    buffer: Option<Buffer>,
    bytes: usize,
    offset: u64,
    len: u64,
    /// Where in the buffer data are missing.
    missing: Range<usize>,
}

pub(crate) struct Tasks {
    session: usize,
    pub(crate) structured: bool,
    pub(crate) outgoing: Message,
    /// Replies that wait until a reply in several parts is out.
    deferred: Message,
    exclusive: Option<usize>,
    /// The long run that is verified now, and is the next to be delivered. To verify others already
    /// would be work for nothing while the client does not take what there is.
    verifying: Option<usize>,
    /// What the message that is being sent keeps, in bytes.
    sending_bytes: usize,
    /// What of it is no data, in bytes.
    sending_heap_bytes: usize,
    tasks: Slab<Task>,
    /// Tasks with chunks to submit.
    todo: VecDeque<usize>,
    payload: Option<Payload>,
    /// What the bios and the payload keep, in bytes.
    held: usize,
    starved: bool,
    hopeless: bool,
}

impl Tasks {
    /// The most requests in flight on a connection.
    const REQUESTS_MAX: usize = 256;
    /// The most answers about what is allocated that are being made.
    const STATUS_MAX: usize = 8;
    /// From so many bytes of unsent replies without data on, no request is begun.
    const HEAP_BYTES_MAX: usize = 64 << 10;
    /// The most chunks of one request in flight.
    const CHUNKS_MAX: usize = 8;
    /// The most extents in one answer about what is allocated.
    const EXTENTS_MAX: usize = 1024;
    /// How many buffers of the reserve may be held: one when nothing else is, and one by the task
    /// that others wait for.
    pub(crate) const SMALL_BUFFERS: usize = 2;

    pub(crate) fn new(session: usize) -> Self {
        Self {
            session,
            structured: false,
            outgoing: Message::default(),
            deferred: Message::default(),
            exclusive: None,
            verifying: None,
            sending_bytes: 0,
            sending_heap_bytes: 0,
            tasks: Slab::new(),
            todo: VecDeque::new(),
            payload: None,
            held: 0,
            starved: false,
            hopeless: false,
        }
    }

    pub(crate) fn session_of(user: u64) -> usize {
        to_usize(user >> 32)
    }

    /// Returns whether another request may begin. Replies that the client does not take count as
    /// requests, or there would be no end to them.
    pub(crate) fn has_room(&self) -> bool {
        // The data of a read are a piece of their own.
        let replies = (self.outgoing.pieces() + self.deferred.pieces()) / 2;
        let heap_bytes =
            self.sending_heap_bytes + self.outgoing.heap_bytes() + self.deferred.heap_bytes();
        let is_status = |(_, task): &(usize, &Task)| matches!(task.how, How::Status(..));
        self.tasks.len() + replies < Self::REQUESTS_MAX
            && heap_bytes < Self::HEAP_BYTES_MAX
            && self.tasks.iter().filter(is_status).count() < Self::STATUS_MAX
    }

    /// Returns whether nothing is in flight or waits to be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.outgoing.is_empty() && self.deferred.is_empty()
    }

    pub(crate) const fn is_starved(&self) -> bool {
        self.starved
    }

    /// Returns whether a reply has begun that cannot be completed.
    pub(crate) const fn is_hopeless(&self) -> bool {
        self.hopeless
    }

    /// Begins a request.
    pub(crate) fn begin<Q: DiskQueue>(
        &mut self,
        context: &Context<Q>,
        request: Request,
        agreed: &Agreed,
    ) {
        let how = match request.command {
            Command::Read if self.structured && !request.dont_fragment => How::Chunks,
            Command::Read => How::VerifyFirst,
            Command::BlockStatus => {
                How::Status(agreed.base_allocation.unwrap_or_default(), Vec::new())
            }
            _ => How::Whole,
        };
        let range = range_of(&request, &context.queue.limits());
        let task =
            Task { request, how, next: range.start, end: range.end, in_flight: 0, error: None };
        let key = self.tasks.insert(task);
        match request.command {
            Command::Write => self.payload = Some(Payload { task: key, chunk: None }),
            Command::Flush => self.flush(key),
            _ => {}
        }
        if request.command != Command::Write {
            self.todo.push_back(key);
        }
    }

    /// Makes what a task has done durable before it is answered.
    fn flush(&mut self, key: usize) {
        let task = &mut self.tasks[key];
        // One chunk of no bytes.
        (task.how, task.next, task.end) = (How::MakeDurable { asked: false }, 0, 0);
    }

    /// Begins a turn: whether there is too little memory is found out anew.
    pub(crate) const fn begin_turn(&mut self) {
        self.starved = false;
    }

    /// Submits what can be submitted.
    pub(crate) fn pump<Q: DiskQueue>(&mut self, context: &mut Context<Q>) {
        for _ in 0..self.todo.len() {
            let Some(key) = self.todo.pop_front() else { break };
            // A task may be noted several times, and what has taken its place since need not be.
            let is_ready = self.tasks.contains(key) && !self.is_receiving(key);
            if is_ready && !self.submit_chunks(context, key) {
                self.todo.push_back(key);
            }
        }
    }

    /// Returns whether a task waits for data from the client.
    fn is_receiving(&self, key: usize) -> bool {
        self.payload.as_ref().is_some_and(|payload| payload.task == key)
    }

    /// Submits chunks of a task. Returns whether it needs no further turn before one has ended.
    fn submit_chunks<Q: DiskQueue>(&mut self, context: &mut Context<Q>, key: usize) -> bool {
        loop {
            self.skip_holes(context, key);
            let task = &self.tasks[key];
            let limit = match task.how {
                How::Deliver | How::Status(..) => 1,
                _ => Self::CHUNKS_MAX,
            };
            if task.in_flight >= limit {
                return true;
            }
            if task.how == (How::MakeDurable { asked: false }) {
                self.tasks[key].how = How::MakeDurable { asked: true };
                self.submit(context, key, Bio::flush());
                return true;
            }
            if task.next == task.end || task.error.is_some() {
                if task.in_flight > 0 {
                    return true;
                }
                match self.settle(key) {
                    Settled::Done => return true,
                    Settled::Continues => continue,
                }
            }
            let may_go_on = match task.how {
                How::VerifyFirst => self.begin_verifying(context, key),
                How::Deliver => self.begin_delivery(key),
                _ => true,
            };
            if !may_go_on {
                return false;
            }
            let Some(bio) = self.next_bio(context, key) else {
                self.starved = true;
                return false;
            };
            self.tasks[key].next += bio.len;
            self.submit(context, key, bio);
        }
    }

    fn submit<Q: DiskQueue>(&mut self, context: &mut Context<Q>, key: usize, bio: Bio) {
        self.held += bio.memory.buffer().map_or(0, Buffer::len);
        self.tasks[key].in_flight += 1;
        let user = to_u64(self.session) << 32 | to_u64(key);
        context.submit(bio.with_user(user));
    }

    /// Lets one run at a time be verified that is longer than a buffer. `false` while it is another.
    fn begin_verifying<Q: DiskQueue>(&mut self, context: &Context<Q>, key: usize) -> bool {
        let Request { offset, length, .. } = self.tasks[key].request;
        let limits = context.queue.limits();
        let is_long = limits.first_chunk(offset, length.into(), limits.bytes_max) < length.into();
        !is_long || *self.verifying.get_or_insert(key) == key
    }

    /// Reserves what goes out for the reply of one task. `false` while it is another's.
    fn begin_delivery(&mut self, key: usize) -> bool {
        match self.exclusive {
            Some(holder) => holder == key,
            None => {
                self.exclusive = Some(key);
                self.verifying.take_if(|verified| *verified == key);
                let header = self.whole_header(key);
                self.outgoing.push_bytes(&header);
                true
            }
        }
    }

    /// Returns the header of a reply that is one run of bytes.
    fn whole_header(&self, key: usize) -> Header {
        let Request { cookie, offset, length, .. } = self.tasks[key].request;
        if self.structured {
            reply::offset_data(cookie, true, offset, length)
        } else {
            reply::simple(cookie, Ok(()))
        }
    }

    /// Passes over what the storage below knows to be a hole, where there is nothing to do for it.
    fn skip_holes<Q: DiskQueue>(&mut self, context: &Context<Q>, key: usize) {
        let task = &mut self.tasks[key];
        let skips = match task.request.command {
            Command::Trim | Command::Cache | Command::BlockStatus => true,
            Command::WriteZeroes => !task.request.no_hole,
            _ => false,
        };
        if !skips || task.next == task.end || task.in_flight > 0 || task.error.is_some() {
            return;
        }
        let data = match context.queue.data_after(task.next) {
            Ok(data) => data.map_or(task.end, |data| data.min(task.end)),
            // Then every sector is looked at.
            Err(_) => task.next,
        };
        if data > task.next {
            let start = task.next.max(task.request.offset);
            task.next = data;
            if let How::Status(_, extents) = &mut task.how {
                add_extent(extents, data.min(task.request.end()) - start, false);
            }
        }
    }

    /// Makes the next bio of a task, or `None` when there is no memory for it now.
    fn next_bio<Q: DiskQueue>(&self, context: &Context<Q>, key: usize) -> Option<Bio> {
        let limits = context.queue.limits();
        let Task { request, ref how, next, end, .. } = self.tasks[key];
        let left = end - next;
        match request.command {
            Command::Read => {
                let buffer =
                    self.take_buffer(context, limits.buffer_len(next, left), *how == How::Deliver)?;
                let len = limits.first_chunk(next, left, buffer.len());
                let bio = Bio::new(Op::Read, next, len, Memory::Buffer(buffer));
                Some(bio.with_start(to_usize(limits.sector.offset_in(next))))
            }
            Command::Trim => {
                let len = limits.to_boundary(next, left);
                Some(Bio::new(Op::Discard, next, len, Memory::None))
            }
            Command::WriteZeroes => self.zero_bio(context, &limits, key),
            Command::Cache | Command::BlockStatus => {
                let buffer = self.take_buffer(context, BUFFER_MIN, false)?;
                // One byte for each sector.
                let most = to_u64(buffer.len()) * limits.sector.bytes();
                let len = limits.to_boundary(next, left).min(most);
                Some(Bio::new(Op::Map, next, len, Memory::Buffer(buffer)))
            }
            Command::Write | Command::Flush | Command::Disconnect => None,
        }
    }

    /// Makes the next bio of a request to write zeros: whole sectors are made zeros, parts of
    /// sectors are written.
    fn zero_bio<Q: DiskQueue>(
        &self,
        context: &Context<Q>,
        limits: &Limits,
        key: usize,
    ) -> Option<Bio> {
        let Task { request, next, end, .. } = self.tasks[key];
        let sector = limits.sector;
        let aligned_end = sector.align_down(end);
        if sector.is_aligned(next) && next < aligned_end {
            let op = Op::Zero { keep: request.no_hole, fast: request.fast_zero };
            let len = limits.to_boundary(next, aligned_end - next);
            return Some(Bio::new(op, next, len, Memory::None));
        }
        let mut buffer = self.take_buffer(context, sector.len(), false)?;
        buffer.as_mut_slice()[..sector.len()].fill(0);
        let head = sector.offset_in(next);
        let len = (end - next).min(sector.bytes() - head);
        let bio = Bio::new(Op::Write, next, len, Memory::Buffer(buffer));
        Some(bio.with_start(to_usize(head)))
    }

    /// Takes a buffer of `want` bytes, or a smaller one, as far as this session may.
    ///
    /// With `for_run` it is for the reply that all others wait for, whatever those hold.
    fn take_buffer<Q: DiskQueue>(
        &self,
        context: &Context<Q>,
        want: usize,
        for_run: bool,
    ) -> Option<Buffer> {
        if self.starved && !for_run {
            // Nothing has come back since it was looked at.
            return None;
        }
        let receiving = self.payload.as_ref().and_then(|payload| payload.chunk.as_ref());
        let leaving = self.sending_bytes + self.outgoing.buffer_bytes();
        let held = self.held
            + receiving.map_or(0, |chunk| chunk.bytes)
            + leaving
            + self.deferred.buffer_bytes();
        let allowed = context.pool.free_bytes().saturating_sub(held) / 2;
        let ordinary = || context.pool.take(want.min(allowed));
        if let Some(buffer) = (allowed >= BUFFER_MIN).then(ordinary).flatten() {
            return Some(buffer);
        }
        // Whoever waits now waits for its own bios and its own client, and for nobody else's.
        let is_next = if for_run { leaving == 0 } else { held == 0 };
        is_next.then(|| context.reserve.take_whole(BUFFER_MIN)).flatten()
    }

    pub(crate) fn bio_ended<Q: DiskQueue>(&mut self, context: &Context<Q>, ended: Ended) {
        let key = to_usize(ended.bio.user & u64::from(u32::MAX));
        self.held -= ended.bio.memory.buffer().map_or(0, Buffer::len);
        let task = &mut self.tasks[key];
        task.in_flight -= 1;
        match ended.result {
            // What was not moved was not read, or is not stored.
            Ok(moved) if moved < ended.bio.len => {
                task.error.get_or_insert(Error::IO);
            }
            Ok(_) => self.chunk_done(context, key, ended.bio),
            Err(error) => {
                task.error.get_or_insert(error);
            }
        }
        if self.tasks.contains(key) && !self.is_receiving(key) {
            self.todo.push_back(key);
        }
    }

    fn chunk_done<Q: DiskQueue>(&mut self, context: &Context<Q>, key: usize, bio: Bio) {
        let task = &mut self.tasks[key];
        let last = task.next == task.end && task.in_flight == 0 && task.error.is_none();
        let single = bio.len == u64::from(task.request.length);
        let cookie = task.request.cookie;
        let Memory::Buffer(buffer) = bio.memory else { return };
        match &mut task.how {
            How::Chunks => {
                let len = u32::try_from(bio.len).expect("a chunk is shorter than its request");
                let header = reply::offset_data(cookie, last, bio.offset, len);
                self.push_data(&header, buffer, bio.start, bio.len);
                if last {
                    self.tasks.remove(key);
                }
            }
            How::VerifyFirst if single => {
                let header = self.whole_header(key);
                self.push_data(&header, buffer, bio.start, bio.len);
                self.tasks.remove(key);
            }
            How::Deliver => {
                self.outgoing.push_buffer(Rc::new(buffer), bio.start, to_usize(bio.len));
            }
            How::Status(_, extents) => {
                let sector = context.queue.limits().sector;
                let answers = &buffer.as_slice()[..to_usize(sector.count(bio.len))];
                for (offset, &answer) in (bio.offset..).step_by(sector.len()).zip(answers) {
                    // The first and the last sector may lie only partly in the request.
                    let start = offset.max(task.request.offset);
                    let end = (offset + sector.bytes()).min(task.request.end());
                    add_extent(extents, end - start, answer != 0);
                }
                let enough = if task.request.req_one { 1 } else { Self::EXTENTS_MAX };
                if extents.len() > enough {
                    task.end = task.next;
                }
            }
            How::Whole | How::VerifyFirst | How::MakeDurable { .. } | How::Forgotten => {}
        }
    }

    fn push_data(&mut self, header: &Header, buffer: Buffer, start: usize, len: u64) {
        let message = self.message();
        message.push_bytes(header);
        message.push_buffer(Rc::new(buffer), start, to_usize(len));
    }

    /// Returns the message to which whole replies are added.
    const fn message(&mut self) -> &mut Message {
        if self.exclusive.is_some() { &mut self.deferred } else { &mut self.outgoing }
    }

    /// Adds a reply.
    pub(crate) fn reply(&mut self, bytes: &[u8]) {
        self.message().push_bytes(bytes);
    }

    /// Goes on with a task of which nothing is in flight and nothing is left to submit.
    fn settle(&mut self, key: usize) -> Settled {
        let task = &mut self.tasks[key];
        let (cookie, fua) = (task.request.cookie, task.request.fua);
        let result = task.error.map_or(Ok(()), |error| Err(error_code(&error)));
        match (&mut task.how, result) {
            (How::VerifyFirst, Ok(())) => {
                (task.how, task.next) = (How::Deliver, task.request.offset);
                return Settled::Continues;
            }
            (How::Whole, Ok(())) if fua => {
                self.flush(key);
                return Settled::Continues;
            }
            (How::Deliver, result) => {
                // The client counts on bytes that cannot be delivered.
                self.hopeless |= result.is_err();
                self.exclusive = None;
                self.outgoing.append(&mut self.deferred);
            }
            (How::Status(context, extents), Ok(())) => {
                let extents: Vec<Extent> = if task.request.req_one {
                    extents.drain(..1).collect()
                } else {
                    std::mem::take(extents)
                };
                let mut bytes = Vec::new();
                reply::block_status(cookie, *context, &extents, &mut bytes);
                self.reply(&bytes);
            }
            (How::Forgotten, _) => {}
            (_, result) => {
                let header = match result {
                    Err(code) if self.structured => reply::error(cookie, true, code),
                    Ok(()) if self.structured => reply::none_done(cookie),
                    result => reply::simple(cookie, result),
                };
                self.reply(&header);
            }
        }
        self.verifying.take_if(|verified| *verified == key);
        self.tasks.remove(key);
        Settled::Done
    }

    /// Returns whether what the client sends next are the data of a write.
    pub(crate) const fn wants_payload(&self) -> bool {
        self.payload.is_some()
    }

    /// Takes data of a write that came with its header. Returns how many bytes were data.
    pub(crate) fn take_payload<Q: DiskQueue>(
        &mut self,
        context: &mut Context<Q>,
        unread: &[u8],
    ) -> usize {
        let mut taken = 0;
        while let Some(chunk) = self.chunk(context) {
            let len = chunk.missing.len().min(unread.len() - taken);
            if let Some(buffer) = &mut chunk.buffer {
                let target = &mut buffer.as_mut_slice()[chunk.missing.start..][..len];
                target.copy_from_slice(&unread[taken..][..len]);
                chunk.missing.start += len;
                taken += len;
            }
            if chunk.buffer.is_none() || !chunk.missing.is_empty() {
                break;
            }
            self.write_chunk(context);
        }
        taken
    }

    /// Returns the part of a write that is to be received next, with memory for it.
    fn chunk<Q: DiskQueue>(&mut self, context: &Context<Q>) -> Option<&mut Chunk> {
        let payload = self.payload.as_ref()?;
        if payload.chunk.is_none() {
            let limits = context.queue.limits();
            let Task { next, end, .. } = self.tasks[payload.task];
            let Some(buffer) =
                self.take_buffer(context, limits.buffer_len(next, end - next), false)
            else {
                self.starved = true;
                return None;
            };
            let len = limits.first_chunk(next, end - next, buffer.len());
            let head = to_usize(limits.sector.offset_in(next));
            let (bytes, missing) = (buffer.len(), head..head + to_usize(len));
            let chunk = Chunk { buffer: Some(buffer), bytes, offset: next, len, missing };
            self.payload.as_mut()?.chunk = Some(chunk);
        }
        self.payload.as_mut()?.chunk.as_mut()
    }

    /// Submits a part of a write that has been received.
    fn write_chunk<Q: DiskQueue>(&mut self, context: &mut Context<Q>) {
        let Some(payload) = &mut self.payload else { return };
        let Some(Chunk { buffer: Some(buffer), offset, len, .. }) = payload.chunk.take() else {
            return;
        };
        let key = payload.task;
        let task = &mut self.tasks[key];
        task.next += len;
        if task.next == task.end {
            self.payload = None;
        }
        let start = to_usize(context.queue.limits().sector.offset_in(offset));
        let bio = Bio::new(Op::Write, offset, len, Memory::Buffer(buffer)).with_start(start);
        self.submit(context, key, bio);
    }

    /// Returns where data of a write are to be received.
    pub(crate) fn payload_target<Q: DiskQueue>(
        &mut self,
        context: &Context<Q>,
    ) -> Option<(Buffer, Range<usize>)> {
        let chunk = self.chunk(context)?;
        Some((chunk.buffer.take()?, chunk.missing.clone()))
    }

    /// Takes memory back into which data of a write were received.
    pub(crate) fn payload_received(&mut self, buffer: Buffer, received: usize) {
        if let Some(chunk) = self.payload.as_mut().and_then(|payload| payload.chunk.as_mut()) {
            chunk.buffer = Some(buffer);
            chunk.missing.start += received;
        }
    }

    /// Forgets a write whose data will not come. It is never acknowledged.
    pub(crate) fn forget_payload(&mut self) {
        if let Some(payload) = self.payload.take() {
            let task = &mut self.tasks[payload.task];
            (task.how, task.end) = (How::Forgotten, task.next);
            self.todo.push_back(payload.task);
        }
    }

    /// Ends all tasks as soon as nothing of them is in flight, and sends nothing more.
    pub(crate) fn give_up(&mut self) {
        for (_, task) in &mut self.tasks {
            task.error.get_or_insert(Error::IO);
            task.end = task.next;
        }
        self.tasks.retain(|_, task| task.in_flight > 0);
        (self.exclusive, self.verifying) = (None, None);
        (self.outgoing, self.deferred) = (Message::default(), Message::default());
    }

    /// Takes what is to be sent.
    pub(crate) fn take_outgoing(&mut self) -> Option<Box<Message>> {
        if self.outgoing.is_empty() {
            return None;
        }
        let message = Box::new(std::mem::take(&mut self.outgoing));
        self.sending_bytes = message.buffer_bytes();
        self.sending_heap_bytes = message.heap_bytes();
        Some(message)
    }

    /// Takes back what was not sent.
    pub(crate) fn put_back(&mut self, mut message: Message) {
        (self.sending_bytes, self.sending_heap_bytes) = (0, 0);
        message.append(&mut self.outgoing);
        self.outgoing = message;
    }
}

/// Whether a task is over.
enum Settled {
    Done,
    Continues,
}

/// Returns the bytes of the volume that a request is about, in the unit in which it is carried out.
fn range_of(request: &Request, limits: &Limits) -> Range<u64> {
    let (start, end, sector) = (request.offset, request.end(), limits.sector);
    match request.command {
        // Only whole sectors can be given back; the rest of the range stays as it is.
        Command::Trim => {
            let start = sector.align_up(start).map_or(end, |start| start.min(end));
            start..sector.align_down(end).max(start)
        }
        // The volume's size is a multiple of the sector.
        Command::Cache | Command::BlockStatus => {
            sector.align_down(start)..sector.align_up(end).unwrap_or(end)
        }
        _ => start..end,
    }
}

/// Adds bytes to the last extent if it is of the same kind, or as an extent of their own.
fn add_extent(extents: &mut Vec<Extent>, len: u64, is_data: bool) {
    let len = u32::try_from(len).expect("an extent is shorter than its request");
    let extent = if is_data { Extent::data(len) } else { Extent::unwritten(len) };
    match extents.last_mut() {
        Some(last) if last.flags == extent.flags => last.length += len,
        _ => extents.push(extent),
    }
}

/// Returns what a client is told.
fn error_code(error: &Error) -> ErrorCode {
    match error {
        Error::NoSpace => ErrorCode::NoSpc,
        Error::ReadOnly => ErrorCode::Perm,
        Error::Range { .. } => ErrorCode::Inval,
        Error::Unsupported => ErrorCode::NotSup,
        _ => ErrorCode::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_bio::BlockDevice;
    use holdfast_checksum::GuardKind;
    use holdfast_device::MemoryDevice;
    use holdfast_iov::Pool;
    use holdfast_ring::{Channel, Ring};
    use holdfast_sim::{Fault, Faults, FaultyDevice};
    use holdfast_units::BlockSize;
    use holdfast_volume::{CreateOptions, OpenOptions, Queue, Volume};

    type FaultyContext = Context<Queue<FaultyDevice<MemoryDevice>>>;

    /// A volume to which nothing can be written.
    fn unwritable() -> FaultyContext {
        let options = CreateOptions {
            capacity: 8 << 20,
            sector: BlockSize::PAGE,
            guard: GuardKind::Crc16,
            application_tag: CreateOptions::APPLICATION_TAG,
        };
        let mut device = MemoryDevice::new(options.geometry().unwrap().device_len());
        Volume::create(&mut device, &options).unwrap();
        let volume = Volume::open(&mut device, &OpenOptions::default()).unwrap();
        let fault = Fault { range: 0..u64::MAX, reads: false, error: Error::IO };
        let faults = Faults { faults: vec![fault], ..Faults::default() };
        Context {
            queue: Queue::new(&volume, FaultyDevice::new(device, faults, 1), || {}).unwrap(),
            backlog: VecDeque::new(),
            pool: Pool::new(16 << 20).unwrap(),
            reserve: Pool::new(1 << 20).unwrap(),
            exports: [].into(),
            channel: Channel::open(&Ring::new(8).unwrap().shared()),
        }
    }

    fn request(command: Command, length: u32) -> Request {
        Request {
            cookie: 1,
            command,
            offset: 0,
            length,
            fua: false,
            no_hole: false,
            dont_fragment: false,
            req_one: false,
            fast_zero: false,
        }
    }

    fn end_all(tasks: &mut Tasks, context: &mut FaultyContext) {
        let mut ended = Vec::new();
        while context.queue.in_flight() > 0 {
            context.queue.reap(&mut ended);
        }
        for item in ended {
            tasks.bio_ended(context, item);
        }
    }

    #[test]
    fn a_failed_write_waits_for_its_data_in_the_place_of_a_read_that_has_ended() {
        let mut context = unwritable();
        let agreed = Agreed { export: 0, structured: true, base_allocation: None };
        let mut tasks = Tasks::new(0);
        tasks.structured = true;
        tasks.begin(&context, request(Command::Read, 2 << 20), &agreed);
        tasks.pump(&mut context);
        end_all(&mut tasks, &mut context);
        tasks.begin(&context, request(Command::Write, 2 << 20), &agreed);
        let data = vec![7; 2 << 20];
        let taken = tasks.take_payload(&mut context, &data[..3 << 19]);
        end_all(&mut tasks, &mut context);
        tasks.pump(&mut context);
        tasks.take_payload(&mut context, &data[taken..]);
        end_all(&mut tasks, &mut context);
        tasks.pump(&mut context);
        assert_eq!((taken, tasks.tasks.len(), tasks.wants_payload()), (3 << 19, 0, false));
    }

    #[test]
    fn neighbours_of_one_kind_become_one_extent() {
        let mut extents = Vec::new();
        for (len, is_data) in [(512, false), (4096, false), (4096, true), (512, false)] {
            add_extent(&mut extents, len, is_data);
        }
        assert_eq!(extents, [Extent::unwritten(4608), Extent::data(4096), Extent::unwritten(512)]);
    }
}
