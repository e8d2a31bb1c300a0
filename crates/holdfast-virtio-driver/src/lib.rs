//! A client of vhost-user-blk servers: what a virtual machine is for them, without one.
//!
//! A [`Client`] has memory of a guest that it shares with the server, and queues ([`BlkQueue`]) whose
//! requests have any layout that the specification allows, and some that it does not. When the server
//! has died, [`Client::reconnect`] goes on with another as QEMU does. It is for tests and measurements,
//! and checks what the server does more than a guest would.
//!
//! Nothing here starts a thread or a server.

#![forbid(unsafe_code)]

mod bell;
mod client;
mod config;
mod error;
mod memory;
mod queue;
mod request;
mod session;

pub use client::{Client, Options};
pub use config::BlkConfig;
pub use error::ClientError;
pub use memory::Memory;
pub use queue::{BlkQueue, Completion, Places, Status, Token};
pub use request::{Range, Request, Segment, Shape, TableShape};
