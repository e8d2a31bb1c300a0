//! One connection: what comes in, what goes out, and when it ends.
//!
//! A session never waits. It is told what has ended, and then [advances](Session::advance) as far
//! as it can. Write data are received into the buffers from which they are written.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_bio::{Bio, DiskQueue, Ended};
use holdfast_iov::{Buffer, Pool};
use holdfast_ring::{Channel, File, Message, Operation};

use crate::export::Export;
use crate::negotiation::{Agreed, INPUT_LEN_MAX, Negotiation, Outcome};
use crate::reply::{self, ErrorCode};
use crate::request::{REQUEST_LEN, Rejected, parse};
use crate::server::Purpose;
use crate::task::Tasks;

/// What the sessions of a reactor share.
pub(crate) struct Context<Q: DiskQueue> {
    pub(crate) queue: Q,
    /// Bios that found the queue full.
    pub(crate) backlog: VecDeque<Bio>,
    pub(crate) pool: Pool,
    /// Small buffers, [`Tasks::SMALL_BUFFERS`] for each connection, so that none has to wait for another's
    /// client.
    pub(crate) reserve: Pool,
    pub(crate) exports: Arc<[Export]>,
    pub(crate) channel: Channel,
}

impl<Q: DiskQueue> Context<Q> {
    /// Submits a bio, now or when the queue has room again.
    pub(crate) fn submit(&mut self, bio: Bio) {
        if let Err(bio) = self.queue.submit(bio) {
            self.backlog.push_back(bio);
        }
    }

    /// Submits what the queue had no room for, as far as it has now.
    pub(crate) fn retry(&mut self) {
        while let Some(bio) = self.backlog.pop_front() {
            if let Err(bio) = self.queue.submit(bio) {
                self.backlog.push_front(bio);
                break;
            }
        }
    }
}

pub(crate) struct Session {
    key: usize,
    socket: File,
    began: Instant,
    phase: Phase,
    /// What was received and not yet taken, while no receive into it is in flight.
    memory: Option<Buffer>,
    unread: Range<usize>,
    receiving: Option<Receiving>,
    /// Write data that are passed over, and the reply that follows them.
    drain: Option<(u64, Vec<u8>)>,
    /// How many bytes of data came with the last request.
    last_payload: u32,
    sending: bool,
    pub(crate) tasks: Tasks,
    closing: Option<&'static str>,
    /// The socket takes and gives nothing any more.
    broken: bool,
}

enum Phase {
    Negotiating(Negotiation),
    Transmission(Agreed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Headers,
    Payload,
}

const _: () = assert!(INPUT_LEN_MAX <= Session::RECEIVE_LEN, "a handshake is received at once");

impl Session {
    /// What is received at once, in bytes.
    pub(crate) const RECEIVE_LEN: usize = 64 << 10;
    /// From more data than these on a write is not received with others.
    const COPIED_MAX: u32 = 16 << 10;
    /// The most headers that are received at once.
    const HEADERS_MAX: usize = 32;

    pub(crate) fn new<Q: DiskQueue>(
        key: usize,
        socket: File,
        memory: Buffer,
        context: &Context<Q>,
    ) -> Self {
        let negotiation = Negotiation::new(Arc::clone(&context.exports));
        let mut tasks = Tasks::new(key);
        let mut greeting = Vec::new();
        negotiation.greeting(&mut greeting);
        tasks.outgoing.push_bytes(&greeting);
        Self {
            key,
            socket,
            began: Instant::now(),
            phase: Phase::Negotiating(negotiation),
            memory: Some(memory),
            unread: 0..0,
            receiving: None,
            drain: None,
            last_payload: 0,
            sending: false,
            tasks,
            closing: None,
            broken: false,
        }
    }

    /// Returns the session that a bio belongs to.
    pub(crate) fn key_of(user: u64) -> usize {
        Tasks::session_of(user)
    }

    pub(crate) fn bio_ended<Q: DiskQueue>(&mut self, context: &Context<Q>, ended: Ended) {
        self.tasks.bio_ended(context, ended);
    }

    pub(crate) fn received(&mut self, buffer: Buffer, result: io::Result<u32>) {
        let receiving = self.receiving.take();
        let received = result.as_ref().map_or(0, |&len| holdfast_units::to_usize(len.into()));
        match receiving {
            Some(Receiving::Payload) => self.tasks.payload_received(buffer, received),
            _ => {
                self.memory = Some(buffer);
                self.unread.end += received;
            }
        }
        match result {
            Ok(0) => self.close("the client has closed it"),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(client = self.key, "nothing can be received: {error}");
                self.close("the client is gone");
            }
        }
    }

    pub(crate) fn sent(&mut self, mut message: Message, result: io::Result<u32>) {
        self.sending = false;
        match result {
            Ok(sent) => {
                message.advance(holdfast_units::to_usize(sent.into()));
                self.tasks.put_back(message);
            }
            Err(error) => {
                tracing::debug!(client = self.key, "nothing can be sent: {error}");
                self.abort();
            }
        }
    }

    /// Does all that can be done now.
    pub(crate) fn advance<Q: DiskQueue>(&mut self, context: &mut Context<Q>) {
        self.tasks.begin_turn();
        if self.tasks.is_hopeless() {
            self.abort();
        }
        if self.closing.is_none() {
            self.take_input(context);
        }
        self.tasks.pump(context);
        if self.broken {
            self.tasks.give_up();
        } else {
            self.start_send(context);
        }
        if self.closing.is_none() {
            self.start_receive(context);
        } else if self.tasks.is_idle() && !self.sending {
            self.shut_down();
        }
    }

    /// Takes what was received, as far as it is complete.
    fn take_input<Q: DiskQueue>(&mut self, context: &mut Context<Q>) {
        let Some(memory) = self.memory.take() else { return };
        while self.closing.is_none() && self.take_piece(context, &memory) {}
        self.memory = Some(memory);
    }

    fn take_piece<Q: DiskQueue>(&mut self, context: &mut Context<Q>, memory: &Buffer) -> bool {
        let unread = &memory.as_slice()[self.unread.clone()];
        let agreed = match &mut self.phase {
            Phase::Transmission(agreed) => *agreed,
            Phase::Negotiating(negotiation) => {
                let mut output = Vec::new();
                let advanced = negotiation.advance(unread, &mut output);
                self.tasks.outgoing.push_bytes(&output);
                return match advanced {
                    Ok(step) => {
                        self.unread.start += step.consumed;
                        self.negotiated(step.outcome)
                    }
                    Err(error) => {
                        tracing::warn!(client = self.key, "the handshake failed: {error}");
                        self.close("the handshake failed");
                        false
                    }
                };
            }
        };
        if let Some((left, _)) = &mut self.drain {
            let taken = (*left).min(holdfast_units::to_u64(unread.len()));
            *left -= taken;
            self.unread.start += holdfast_units::to_usize(taken);
            if *left > 0 {
                return false;
            }
            if let Some((_, reply)) = self.drain.take() {
                self.tasks.reply(&reply);
            }
            return true;
        }
        if self.tasks.wants_payload() {
            let taken = self.tasks.take_payload(context, unread);
            self.unread.start += taken;
            return !self.tasks.wants_payload();
        }
        match unread.first_chunk::<REQUEST_LEN>() {
            Some(header) if self.tasks.has_room() => {
                let header = *header;
                self.unread.start += REQUEST_LEN;
                self.request(context, &header, &agreed);
                true
            }
            _ => false,
        }
    }

    fn negotiated(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::NeedMore => false,
            Outcome::Transmission(agreed) => {
                tracing::debug!(client = self.key, ?agreed, "the client has attached");
                self.tasks.structured = agreed.structured;
                self.phase = Phase::Transmission(agreed);
                true
            }
            Outcome::Closed => {
                self.close("the client chose no export");
                false
            }
        }
    }

    fn request<Q: DiskQueue>(
        &mut self,
        context: &Context<Q>,
        header: &[u8; REQUEST_LEN],
        agreed: &Agreed,
    ) {
        let export = &context.exports[agreed.export];
        match parse(header, export, agreed) {
            Ok(request) => {
                let is_write = request.command == crate::Command::Write;
                self.last_payload = if is_write { request.length } else { 0 };
                if request.command == crate::Command::Disconnect {
                    self.close("the client has taken its leave");
                } else {
                    self.tasks.begin(context, request, agreed);
                }
            }
            Err(Rejected::Refused { cookie, error, payload, why, .. }) => {
                tracing::warn!(client = self.key, "a request was refused: {why}");
                let reply = self.error_reply(cookie, error);
                self.drain = Some((payload.into(), reply));
            }
            Err(fatal) => {
                tracing::warn!(client = self.key, "the connection is closed: {fatal}");
                self.close("the client does not keep to the protocol");
            }
        }
    }

    fn error_reply(&self, cookie: u64, error: ErrorCode) -> Vec<u8> {
        let header = if self.tasks.structured {
            reply::error(cookie, true, error)
        } else {
            reply::simple(cookie, Err(error))
        };
        header.to_vec()
    }

    fn start_send<Q: DiskQueue>(&mut self, context: &Context<Q>) {
        if self.sending {
            return;
        }
        let Some(message) = self.tasks.take_outgoing() else { return };
        let send = Operation::Send { socket: Rc::clone(&self.socket), message };
        match context.channel.push(Purpose::Send.token(self.key), send) {
            Ok(()) => self.sending = true,
            Err(_) => self.abort(),
        }
    }

    fn start_receive<Q: DiskQueue>(&mut self, context: &Context<Q>) {
        if self.receiving.is_some() {
            return;
        }
        let socket = Rc::clone(&self.socket);
        let (what, operation) = if self.tasks.wants_payload() {
            if !self.unread.is_empty() {
                // They come first, and there was no memory for them.
                return;
            }
            let Some((buffer, range)) = self.tasks.payload_target(context) else { return };
            let (start, len) = (range.start, range.len());
            (Receiving::Payload, Operation::Receive { socket, buffer, start, len, all: true })
        } else {
            let full = self.unread.len() >= REQUEST_LEN;
            if full && matches!(self.phase, Phase::Transmission(_)) && self.drain.is_none() {
                // There is a request already, for which there is no room now.
                return;
            }
            let Some(mut buffer) = self.memory.take() else { return };
            let unread = self.unread.clone();
            self.unread = 0..unread.len();
            buffer.as_mut_slice().copy_within(unread, 0);
            let start = self.unread.len();
            let len = self.receive_len(start, buffer.len());
            (Receiving::Headers, Operation::Receive { socket, buffer, start, len, all: false })
        };
        match context.channel.push(Purpose::Receive.token(self.key), operation) {
            Ok(()) => self.receiving = Some(what),
            Err(_) => self.abort(),
        }
    }

    /// Returns how much may be received behind `start` bytes of a buffer of `len`. After a write another is
    /// likely: data that are cheaper to copy than to receive alone come with their headers.
    fn receive_len(&self, start: usize, len: usize) -> usize {
        match (&self.phase, &self.drain) {
            (Phase::Negotiating(_), _) => INPUT_LEN_MAX - start,
            (_, Some(_)) => len - start,
            _ => match self.last_payload {
                0 => Self::HEADERS_MAX * REQUEST_LEN - start,
                1..=Self::COPIED_MAX => len - start,
                _ => REQUEST_LEN - start,
            },
        }
    }

    /// Takes no more requests. What was accepted is finished and answered.
    fn close(&mut self, why: &'static str) {
        self.closing.get_or_insert(why);
        self.tasks.forget_payload();
    }

    /// Takes no more requests, because the server is stopping.
    pub(crate) fn stop(&mut self) {
        self.close("the server is stopping");
    }

    /// Ends the connection without further replies.
    pub(crate) fn abort(&mut self) {
        self.close("it was cut");
        self.broken = true;
        self.shut_down();
    }

    /// Ends what is being received and sent.
    fn shut_down(&self) {
        // The client may have been faster.
        let _gone = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    pub(crate) const fn is_starved(&self) -> bool {
        self.tasks.is_starved()
    }

    /// Returns whether the handshake has taken longer than `limit`.
    pub(crate) fn is_overdue(&self, now: Instant, limit: Duration) -> bool {
        matches!(self.phase, Phase::Negotiating(_)) && now - self.began > limit
    }

    /// Returns whether nothing is left to be done.
    pub(crate) fn has_ended(&self) -> bool {
        let quiet = self.receiving.is_none() && !self.sending;
        self.closing.is_some() && quiet && self.tasks.is_idle()
    }

    pub(crate) fn say_farewell(&self) {
        let why = self.closing.unwrap_or("it is over");
        tracing::debug!(client = self.key, "the connection has ended: {why}");
    }
}
