//! Who asks a server.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use holdfast_device::Backing;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::de::DeserializeOwned;

use super::{Refusal, Request, name};
use crate::store::Store;

/// How long a server may take to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The most bytes of an answer. A server with a thousand queues has a tenth.
const ANSWER_MAX: u64 = 4 << 20;

/// Asks the server of a volume. `None` when nobody listens.
pub(crate) fn ask<T: DeserializeOwned>(
    uuid: &str,
    store: &Store,
    request: &Request,
) -> anyhow::Result<Option<T>> {
    let path = store.named().path().display();
    let stream = match UnixStream::connect_addr(&name(uuid, store)?) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot ask the server of {path}"));
        }
    };
    let (server, us) = (socket_peercred(&stream)?.uid, geteuid());
    let answer = match exchange(&stream, request) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("the server of {path} has not answered in {LIMIT:?}: it may be stopped");
        }
        exchanged => exchanged.with_context(|| format!("cannot ask the server of {path}"))?,
    };
    if server != us && !us.is_root() && (!server.is_root() || answer.is_empty()) {
        let user = server.as_raw();
        bail!("the server of {path} is that of user {user}, and answers to that user or root");
    }
    if answer.is_empty() {
        bail!("the server of {path} ended meanwhile");
    }
    if let Ok(Refusal { error }) = serde_json::from_slice(&answer) {
        bail!("the server of {path} refuses: {error}");
    }
    let understood = serde_json::from_slice(&answer);
    understood
        .map(Some)
        .with_context(|| format!("the server of {path} is of a version that is not understood"))
}

/// Returns what to say when a process has a volume locked, but does not listen.
pub(crate) fn silent(backing: &Backing, pid: u32) -> anyhow::Error {
    let path = backing.path().display();
    anyhow!(
        "{path} is in use by process {pid}, which answers nobody here: it is no server, or one beside \
         another, or in a container"
    )
}

/// Sends a request, and returns the whole answer.
fn exchange(mut stream: &UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut answer = Vec::new();
    let exchanged =
        stream.write_all(&line).and_then(|()| stream.take(ANSWER_MAX).read_to_end(&mut answer));
    match exchanged {
        // It has answered without reading what was asked, or refused to.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ) =>
        {
            Ok(answer)
        }
        exchanged => exchanged.map(|_| answer),
    }
}
