//! The control socket: a client sends one line of JSON, a [`Request`], and the server answers with
//! JSON and closes. `holdfast info --live`, `scrub`, `attach` and `detach` are the clients.
//!
//! The socket is an abstract one (unix(7)): there is nothing to clean up, and a block device has no
//! directory to put a socket into. Such a name belongs to whoever takes it first, so both ends look
//! who the other is.

mod client;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::limited::Limited;
use crate::live::Watch;
use crate::store::Store;

pub(crate) use self::client::{ask, silent};

/// How long a client may take, from its connection to the last byte of the answer.
const LIMIT: Duration = Duration::from_secs(1);
/// The most bytes of a request.
const REQUEST_MAX: usize = 4096;

/// What a server can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// What it has done: the answer is a [`Live`](crate::live::Live).
    Counters,
    /// To begin a scrub or to go on with one: the answer is a [`Status`](crate::scrub::Status).
    ScrubStart,
    /// To stop a scrub: the same.
    ScrubStop,
    /// How far a scrub is: the same.
    ScrubStatus,
    /// To let a leg have what it missed: the answer is a [`Done`].
    Attach {
        /// Where it is, from the root on.
        leg: PathBuf,
        /// Throw away what is on it.
        discard: bool,
    },
    /// To take a leg out: the same.
    Detach {
        /// Where it is, from the root on.
        leg: PathBuf,
    },
}

/// The answer to a request that was carried out, or begun, and of which there is nothing to tell.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Done {
    done: bool,
}

/// The answer to a request that is not carried out.
#[derive(Debug, Deserialize, Serialize)]
struct Refusal {
    error: String,
}

/// A control socket on which nobody listens yet.
#[derive(Debug)]
pub(crate) struct Control(UnixListener);

impl Control {
    /// Takes the name of the volume. `None`, after a warning, when that cannot be: a server is worth
    /// more than its counters.
    pub(crate) fn bind(uuid: &str, store: &Store) -> Option<Self> {
        match name(uuid, store).and_then(|name| UnixListener::bind_addr(&name)) {
            Ok(listener) => Some(Self(listener)),
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::AddrInUse => "another server of the volume does".to_owned(),
                    _ => error.to_string(),
                };
                tracing::warn!(
                    "this server does not answer `holdfast info --live` and `holdfast scrub`: {why}"
                );
                None
            }
        }
    }

    /// Answers, in a thread of its own that ends with the process.
    pub(crate) fn start(self, watch: Arc<Watch>) -> io::Result<()> {
        thread::Builder::new().name("control".to_owned()).spawn(move || {
            loop {
                let answered = self.0.accept().and_then(|(client, _)| answer(client, &watch));
                if let Err(error) = answered {
                    tracing::debug!("a client of the control socket was not answered: {error}");
                    // Descriptors may have run out: trying again at once would fail again.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
        Ok(())
    }
}

/// Does what a client asks for, if it may ask.
fn answer(client: UnixStream, watch: &Watch) -> io::Result<()> {
    let user = socket_peercred(&client)?.uid;
    if !user.is_root() && user != geteuid() {
        tracing::debug!("user {} asked for something, and got no answer", user.as_raw());
        return Ok(());
    }
    let mut client = Limited::new(client.into(), LIMIT);
    let answer = match read_line(&mut client)? {
        Some(line) => match serde_json::from_slice(&line) {
            Ok(request) => respond(request, watch)?,
            Err(error) => refuse(&format!("it does not know this request: {error}"))?,
        },
        None => refuse("the request is too long")?,
    };
    client.write_all(&answer)
}

/// Reads a request, up to the end of its line or of what the client sends. `None` when it is too
/// long.
fn read_line(client: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut line = vec![0; REQUEST_MAX];
    let mut len = 0;
    while len < REQUEST_MAX {
        let more = client.read(&mut line[len..])?;
        let end = line[len..len + more].iter().position(|&byte| byte == b'\n');
        if end.is_some() || more == 0 {
            line.truncate(len + end.unwrap_or(more));
            return Ok(Some(line));
        }
        len += more;
    }
    Ok(None)
}

/// Carries out a request, and returns the answer.
fn respond(request: Request, watch: &Watch) -> io::Result<Vec<u8>> {
    let answer = match request {
        Request::Counters => serde_json::to_vec(&watch.look()),
        Request::ScrubStart => match watch.scrub.start() {
            Some(status) => serde_json::to_vec(&status),
            None => return refuse("it cannot scrub any more, and its log says why"),
        },
        Request::ScrubStop => serde_json::to_vec(&watch.scrub.pause()),
        Request::ScrubStatus => serde_json::to_vec(&watch.scrub.status()),
        Request::Attach { leg, discard } => {
            return done(watch.resyncer.begin(vec![leg], discard));
        }
        Request::Detach { leg } => return done(watch.resyncer.detach(&leg)),
    };
    Ok(answer?)
}

fn done(result: anyhow::Result<()>) -> io::Result<Vec<u8>> {
    match result {
        Ok(()) => Ok(serde_json::to_vec(&Done { done: true })?),
        Err(error) => refuse(&format!("{error:#}")),
    }
}

fn refuse(why: &str) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Refusal { error: why.to_owned() })?)
}

/// Returns the name of a volume's control socket. A copy of a volume has the same uuid, so where the
/// volume is stored is in the name as well. A mirror has a name of its own instead, whichever of its
/// legs are there.
fn name(uuid: &str, store: &Store) -> io::Result<SocketAddr> {
    if let Some(mirror) = store.mirror() {
        let mirror = u128::from_be_bytes(mirror.uuid());
        return SocketAddr::from_abstract_name(format!("holdfast/{uuid}/mirror-{mirror:032x}"));
    }
    let metadata = File::from(store.named().descriptor()?).metadata()?;
    let place = if metadata.file_type().is_block_device() {
        format!("device-{:x}", metadata.rdev())
    } else {
        format!("{:x}-{:x}", metadata.dev(), metadata.ino())
    };
    SocketAddr::from_abstract_name(format!("holdfast/{uuid}/{place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(mut bytes: &[u8]) -> Option<Vec<u8>> {
        read_line(&mut bytes).unwrap()
    }

    #[test]
    fn a_request_ends_with_its_line_or_with_what_is_sent() {
        assert_eq!(line(b"{}\nmore").as_deref(), Some(b"{}".as_slice()));
        assert_eq!(line(b"{}").as_deref(), Some(b"{}".as_slice()));
        assert_eq!(line(b"").as_deref(), Some(b"".as_slice()));
    }

    #[test]
    fn a_request_that_comes_in_pieces_is_one() {
        let mut pieces = b"{\"a\"".chain(b":1".as_slice()).chain(b"}\n".as_slice());
        assert_eq!(read_line(&mut pieces).unwrap().as_deref(), Some(b"{\"a\":1}".as_slice()));
    }

    #[test]
    fn a_request_without_end_is_refused() {
        assert_eq!(read_line(&mut io::repeat(b'a')).unwrap(), None);
    }

    #[test]
    fn requests_are_objects_that_say_what_they_are() {
        let text = serde_json::to_string(&Request::ScrubStart).unwrap();
        assert_eq!(text, r#"{"request":"scrub-start"}"#);
        let counters: Request = serde_json::from_str(r#"{"request":"counters"}"#).unwrap();
        assert_eq!(counters, Request::Counters);
        serde_json::from_str::<Request>(r#"{"request":"format"}"#).unwrap_err();
    }
}
