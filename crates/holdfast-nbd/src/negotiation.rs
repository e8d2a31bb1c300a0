//! The handshake: from the first byte to an export that both sides agreed on. It does no I/O: it is fed what a
//! client sent, and says what to send back.
//!
//! A client can make it neither loop nor grow: the data of an option, the number of options, and what lists may
//! add up to are all limited. How long a handshake may take is for the session to decide.

use std::sync::Arc;

use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::export::Export;
use crate::option::{self, ContextQuery, InfoQuery, Malformed};
use crate::wire::{self, OptionHeader};

/// The server's side of one handshake.
#[derive(Debug)]
pub struct Negotiation {
    exports: Arc<[Export]>,
    stage: Stage,
    zeroes: bool,
    structured: bool,
    /// For which export `base:allocation` was selected, as an index.
    context: Option<usize>,
    options: u32,
    /// How many bytes of lists may still be sent.
    list_left: usize,
}

impl Negotiation {
    /// Begins a handshake about `exports`, which [`check_exports`](crate::check_exports) accepted.
    ///
    /// Exports that it would not accept do no harm here, other than that long names and descriptions are cut.
    pub fn new(exports: Arc<[Export]>) -> Self {
        Self {
            exports,
            stage: Stage::ClientFlags,
            zeroes: true,
            structured: false,
            context: None,
            options: 0,
            list_left: LIST_LEN_MAX,
        }
    }

    /// Appends the greeting, which is to be sent before anything else.
    pub fn greeting(&self, output: &mut Vec<u8>) {
        let greeting = wire::Greeting {
            password: wire::INIT_PASSWD.into(),
            magic: wire::OPTION_MAGIC.into(),
            flags: (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES).into(),
        };
        output.extend_from_slice(greeting.as_bytes());
    }

    /// Takes what came from the client, appends what is to be sent, and says how much was consumed.
    ///
    /// `input` begins with what the last call did not consume. After [`Outcome::NeedMore`] there is nothing
    /// left to do without more bytes, and at most [`INPUT_LEN_MAX`] were not consumed. After
    /// [`Outcome::Transmission`] the bytes that were not consumed are the first request. An outcome other than
    /// `NeedMore` is final: later calls consume nothing and return it again; after an error they return
    /// [`Outcome::Closed`]. In each case `output` is worth sending, also when an error is returned.
    pub fn advance(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Step, NegotiationError> {
        let mut rest = input;
        let outcome = loop {
            let taken = match self.stage {
                Stage::ClientFlags => self.client_flags(rest),
                Stage::Options { fixed } => self.option(fixed, rest, output),
                Stage::Ended(outcome) => break outcome,
            };
            match taken {
                Ok(Some(taken)) => rest = &rest[taken..],
                Ok(None) => break Outcome::NeedMore,
                Err(error) => {
                    self.stage = Stage::Ended(Outcome::Closed);
                    return Err(error);
                }
            }
        };
        Ok(Step { consumed: input.len() - rest.len(), outcome })
    }

    fn client_flags(&mut self, input: &[u8]) -> Result<Option<usize>, NegotiationError> {
        let Ok((flags, _)) = zerocopy::byteorder::big_endian::U32::read_from_prefix(input) else {
            return Ok(None);
        };
        let flags = flags.get();
        if flags & !(wire::FLAG_C_FIXED_NEWSTYLE | wire::FLAG_C_NO_ZEROES) != 0 {
            return Err(NegotiationError::UnknownClientFlags { found: flags });
        }
        self.zeroes = flags & wire::FLAG_C_NO_ZEROES == 0;
        self.stage = Stage::Options { fixed: flags & wire::FLAG_C_FIXED_NEWSTYLE != 0 };
        Ok(Some(size_of_val(&flags)))
    }

    fn option(
        &mut self,
        fixed: bool,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Option<usize>, NegotiationError> {
        let Ok((header, rest)) = OptionHeader::ref_from_prefix(input) else {
            return Ok(None);
        };
        let (magic, option, found) = (header.magic.get(), header.option.get(), header.length.get());
        if magic != wire::OPTION_MAGIC {
            return Err(NegotiationError::BadMagic { expected: wire::OPTION_MAGIC, found: magic });
        }
        // proto.md, "Newstyle negotiation": such a client knows no other option, and no reply to one.
        if !fixed && option != wire::OPT_EXPORT_NAME {
            return Err(NegotiationError::NotFixedNewstyle { option });
        }
        let len = usize::try_from(found).unwrap_or(usize::MAX);
        if len > OPTION_LEN_MAX {
            return Err(NegotiationError::OptionTooLong { option, maximum: OPTION_LEN_MAX, found });
        }
        if self.options == OPTIONS_MAX {
            return Err(NegotiationError::TooManyOptions { maximum: OPTIONS_MAX });
        }
        let Some(data) = rest.get(..len) else {
            return Ok(None);
        };
        self.options += 1;
        self.answer(option, data, output)?;
        Ok(Some(size_of_val(header) + len))
    }

    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), NegotiationError> {
        if option == wire::OPT_EXPORT_NAME {
            return self.export_name(data, output);
        }
        let mut replies = Replies { option, output };
        let answered = match option {
            wire::OPT_ABORT => {
                // Data that should not be there are ignored: proto.md, `NBD_OPT_ABORT`.
                self.stage = Stage::Ended(Outcome::Closed);
                Ok(())
            }
            wire::OPT_LIST => self.list(data, &mut replies),
            wire::OPT_INFO | wire::OPT_GO => self.info(data, &mut replies),
            wire::OPT_STRUCTURED_REPLY => self.structured_reply(data),
            wire::OPT_LIST_META_CONTEXT => self.list_context(data, &mut replies),
            wire::OPT_SET_META_CONTEXT => self.set_context(data, &mut replies),
            _ => {
                Err(Refusal { kind: wire::REP_ERR_UNSUP, message: "this option is not supported" })
            }
        };
        match answered {
            Ok(()) => replies.send(wire::REP_ACK, &[]),
            Err(Refusal { kind, message }) => replies.send(kind, &[message.as_bytes()]),
        }
        Ok(())
    }

    fn export_name(&mut self, data: &[u8], output: &mut Vec<u8>) -> Result<(), NegotiationError> {
        let found = option::string(data).ok().and_then(|name| self.find(name));
        let Some((index, export)) = found else {
            let shown = &data[..data.len().min(wire::STRING_LEN_MAX)];
            return Err(NegotiationError::UnknownExport {
                name: String::from_utf8_lossy(shown).into(),
            });
        };
        let flags = export.flags(self.structured).into();
        let reply = wire::ExportNameReply { size: export.size.into(), flags };
        output.extend_from_slice(reply.as_bytes());
        if self.zeroes {
            output.extend_from_slice(&wire::EXPORT_NAME_ZEROES);
        }
        self.agree(index);
        Ok(())
    }

    fn list(&mut self, data: &[u8], replies: &mut Replies<'_>) -> Result<(), Refusal> {
        no_data(data)?;
        let header = size_of::<wire::OptionReply>() + size_of::<u32>();
        let len: usize = self
            .exports
            .iter()
            .map(|export| header + clipped(&export.name).len() + clipped(&export.description).len())
            .sum();
        self.list_left = self.list_left.checked_sub(len).ok_or(Refusal {
            kind: wire::REP_ERR_TOO_BIG,
            message: "no list this long, or so often, is sent to one client",
        })?;
        for export in self.exports.iter() {
            let name = clipped(&export.name).as_bytes();
            let description = clipped(&export.description).as_bytes();
            replies.send(wire::REP_SERVER, &[wire_len(name.len()).as_bytes(), name, description]);
        }
        Ok(())
    }

    /// Answers `OPT_INFO`, or `OPT_GO`, which differs in what happens next.
    fn info(&mut self, data: &[u8], replies: &mut Replies<'_>) -> Result<(), Refusal> {
        let query = InfoQuery::parse(data)?;
        let (index, export) = self.find(query.export).ok_or(UNKNOWN)?;
        let about = wire::InfoExport {
            kind: wire::INFO_EXPORT.into(),
            size: export.size.into(),
            flags: export.flags(self.structured).into(),
        };
        replies.send(wire::REP_INFO, &[about.as_bytes()]);
        // Also when it was not asked for: proto.md, `NBD_OPT_GO`, allows it, and a client ignores what it does
        // not know.
        let block_size = wire::InfoBlockSize {
            kind: wire::INFO_BLOCK_SIZE.into(),
            minimum: export.block_size.minimum.into(),
            preferred: export.block_size.preferred.into(),
            maximum: export.block_size.payload_max().into(),
        };
        replies.send(wire::REP_INFO, &[block_size.as_bytes()]);
        if query.name {
            replies.text(wire::INFO_NAME, &export.name);
        }
        if query.description {
            replies.text(wire::INFO_DESCRIPTION, &export.description);
        }
        if replies.option == wire::OPT_GO {
            self.agree(index);
        }
        Ok(())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), Refusal> {
        no_data(data)?;
        self.structured = true;
        Ok(())
    }

    fn list_context(&self, data: &[u8], replies: &mut Replies<'_>) -> Result<(), Refusal> {
        let (query, _) = self.context_query(data)?;
        if query.none || query.base_wildcard || query.base_allocation {
            // The id means nothing here, and should be zero.
            replies.context(0);
        }
        Ok(())
    }

    fn set_context(&mut self, data: &[u8], replies: &mut Replies<'_>) -> Result<(), Refusal> {
        // Each attempt replaces what was selected before, also one that fails.
        self.context = None;
        let (query, index) = self.context_query(data)?;
        if query.base_allocation {
            self.context = Some(index);
            replies.context(BASE_ALLOCATION_ID);
        }
        Ok(())
    }

    /// What `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT` have in common, and the export's index.
    fn context_query<'a>(&self, data: &'a [u8]) -> Result<(ContextQuery<'a>, usize), Refusal> {
        if !self.structured {
            return Err(Refusal {
                kind: wire::REP_ERR_INVALID,
                message: "metadata contexts need structured replies first",
            });
        }
        let query = ContextQuery::parse(data)?;
        let (index, _) = self.find(query.export).ok_or(UNKNOWN)?;
        Ok((query, index))
    }

    fn find(&self, name: &str) -> Option<(usize, &Export)> {
        self.exports.iter().enumerate().find(|(_, export)| export.name == name)
    }

    fn agree(&mut self, export: usize) {
        // A context that was selected for another export counts for nothing.
        let base_allocation = (self.context == Some(export)).then_some(BASE_ALLOCATION_ID);
        let agreed = Agreed { export, structured: self.structured, base_allocation };
        self.stage = Stage::Ended(Outcome::Transmission(agreed));
    }
}

/// What one call of [`Negotiation::advance`] came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// How many bytes of the input are done with.
    pub consumed: usize,
    /// What to do next.
    pub outcome: Outcome,
}

/// What to do after [`Negotiation::advance`], once its output was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Read more from the client, and call it again.
    NeedMore,
    /// Serve requests.
    Transmission(Agreed),
    /// Close: the client said goodbye, and was answered.
    Closed,
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Agreed {
    /// Which export, as an index.
    pub export: usize,
    /// Whether reads are answered with structured replies.
    pub structured: bool,
    /// The id of the metadata context `base:allocation`, if it was selected; only with structured replies.
    pub base_allocation: Option<u32>,
}

/// The most data of one option, in bytes: with its header 16 KiB. A longer one ends the connection.
pub const OPTION_LEN_MAX: usize = (16 << 10) - size_of::<OptionHeader>();

/// How many bytes have to be kept for [`Negotiation::advance`] at most: one option.
pub const INPUT_LEN_MAX: usize = size_of::<OptionHeader>() + OPTION_LEN_MAX;

/// The most options in one handshake. One more ends the connection.
pub const OPTIONS_MAX: u32 = 1024;

/// The most that all lists in one handshake may add up to, in bytes. One more list is refused.
///
/// Without it, a client could ask for a list a thousand times in one packet, and have each of them written to
/// memory.
pub const LIST_LEN_MAX: usize = 4 << 20;

/// The id of the metadata context `base:allocation` in replies.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Why a handshake cannot go on: close the connection.
///
/// All else that can be wrong is answered, and the client may try again.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NegotiationError {
    /// The protocol demands the end of the connection.
    #[error("the client's flags are {found:#x}, of which some are unknown")]
    UnknownClientFlags {
        /// All that were set.
        found: u32,
    },
    /// Where the next option begins is unknown.
    #[error("an option begins with {found:#x} instead of {expected:#x}")]
    BadMagic {
        /// What options begin with.
        expected: u64,
        /// What this one began with.
        found: u64,
    },
    /// The client could not read a refusal.
    #[error("the option {option} came from a client that did not agree to fixed newstyle")]
    NotFixedNewstyle {
        /// Its number.
        option: u32,
    },
    /// More than any client has to say.
    #[error("the option {option} has {found} bytes of data, and {maximum} are allowed")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// In bytes.
        maximum: usize,
        /// In bytes.
        found: u32,
    },
    /// The client does not mean to come to an end.
    #[error("there were more than {maximum} options")]
    TooManyOptions {
        /// [`OPTIONS_MAX`].
        maximum: u32,
    },
    /// The old way to choose an export has no refusal.
    #[error("there is no export {name:?}")]
    UnknownExport {
        /// What the client asked for, as far as it can be shown.
        name: String,
    },
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    ClientFlags,
    /// `fixed` says whether the client can read refusals, and so may send other options than `EXPORT_NAME`.
    Options {
        fixed: bool,
    },
    Ended(Outcome),
}

/// An answer after which the client may try something else.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    kind: u32,
    /// For the person at the client.
    message: &'static str,
}

impl From<Malformed> for Refusal {
    fn from(Malformed(message): Malformed) -> Self {
        Self { kind: wire::REP_ERR_INVALID, message }
    }
}

const UNKNOWN: Refusal =
    Refusal { kind: wire::REP_ERR_UNKNOWN, message: "there is no such export" };

/// Where the replies to one option go.
struct Replies<'a> {
    option: u32,
    output: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn send(&mut self, kind: u32, parts: &[&[u8]]) {
        let header = wire::OptionReply {
            magic: wire::OPTION_REPLY_MAGIC.into(),
            option: self.option.into(),
            kind: kind.into(),
            length: wire_len(parts.iter().map(|part| part.len()).sum()),
        };
        self.output.extend_from_slice(header.as_bytes());
        for part in parts {
            self.output.extend_from_slice(part);
        }
    }

    fn text(&mut self, kind: u16, text: &str) {
        let kind = zerocopy::byteorder::big_endian::U16::new(kind);
        self.send(wire::REP_INFO, &[kind.as_bytes(), clipped(text).as_bytes()]);
    }

    fn context(&mut self, id: u32) {
        let id = zerocopy::byteorder::big_endian::U32::new(id);
        self.send(wire::REP_META_CONTEXT, &[id.as_bytes(), wire::BASE_ALLOCATION.as_bytes()]);
    }
}

fn no_data(data: &[u8]) -> Result<(), Malformed> {
    if data.is_empty() { Ok(()) } else { Err(Malformed("this option has no data")) }
}

/// As much of `text` as the protocol allows in a string. [`Export::check`] refuses a longer one.
fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(wire::STRING_LEN_MAX)]
}

fn wire_len(len: usize) -> zerocopy::byteorder::big_endian::U32 {
    u32::try_from(len).expect("replies are a few clipped strings").into()
}

#[cfg(test)]
mod tests;
