//! The NBD server: negotiation, requests, sessions.
//!
//! The protocol half does no I/O and knows no socket: [`Negotiation`] is fed what a client sent and says
//! what to send back, [`parse`] checks one request header completely, and [`reply`] writes the headers of
//! replies into arrays. Whatever a client sends, these return a value: they do not panic, and they allocate
//! nothing in proportion to a length that was not checked.
//!
//! What is supported, and what each refusal answers, is in `docs/nbd.md`.

#![forbid(unsafe_code)]

mod export;
mod negotiation;
mod option;
pub mod reply;
mod request;
mod server;
mod session;
mod task;
mod wire;

pub use export::{BlockSizes, Export, InvalidExport, PAYLOAD_LEN_MAX, check_exports, uri};
pub use negotiation::{
    Agreed, BASE_ALLOCATION_ID, INPUT_LEN_MAX, LIST_LEN_MAX, Negotiation, NegotiationError,
    OPTION_LEN_MAX, OPTIONS_MAX, Outcome, Step,
};
pub use reply::{ErrorCode, Extent, Header};
pub use request::{Command, REQUEST_LEN, RefusedWhy, Rejected, Request, parse};
pub use server::{Server, ServerLimits};
