//! The control socket, both ends of it: `holdfast info --live` connects, and the server says what it has
//! done and closes. Nothing can be asked or changed.
//!
//! The socket is an abstract one (unix(7)): there is nothing to clean up, and a block device has no
//! directory to put a socket into. Such a name belongs to whoever takes it first, so both ends look
//! who the other is.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_device::Backing;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use crate::live::{Live, Watch};

/// How long a client may take to read the answer.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
/// How long a server may take to answer.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// The most bytes of an answer. A server with a thousand queues has a tenth.
const ANSWER_MAX: u64 = 4 << 20;

/// A control socket on which nobody listens yet.
#[derive(Debug)]
pub(crate) struct Control(UnixListener);

impl Control {
    /// Takes the name of the volume. `None`, after a warning, when that cannot be: a server is worth
    /// more than its counters.
    pub(crate) fn bind(uuid: &str, backing: &Backing) -> Option<Self> {
        match name(uuid, backing).and_then(|name| UnixListener::bind_addr(&name)) {
            Ok(listener) => Some(Self(listener)),
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::AddrInUse => "another server of the volume does".to_owned(),
                    _ => error.to_string(),
                };
                tracing::warn!("this server does not answer `holdfast info --live`: {why}");
                None
            }
        }
    }

    /// Answers, in a thread of its own that ends with the process.
    pub(crate) fn start(self, watch: Arc<Watch>) -> io::Result<()> {
        thread::Builder::new().name("control".to_owned()).spawn(move || {
            loop {
                let answered = self.0.accept().and_then(|(client, _)| answer(&client, &watch));
                if let Err(error) = answered {
                    tracing::debug!("`holdfast info --live` was not answered: {error}");
                    // Most likely descriptors have run out: trying again at once would fail again.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
        Ok(())
    }
}

/// Tells a client what was counted, if it may know.
fn answer(mut client: &UnixStream, watch: &Watch) -> io::Result<()> {
    let user = socket_peercred(client)?.uid;
    if !user.is_root() && user != geteuid() {
        tracing::debug!("user {} asked for the counters, and got none", user.as_raw());
        return Ok(());
    }
    client.set_write_timeout(Some(WRITE_LIMIT))?;
    client.write_all(&serde_json::to_vec(&watch.look())?)
}

/// Asks the server of a volume what it has done. `holder` is the process that has the volume locked.
pub(crate) fn ask(uuid: &str, backing: &Backing, holder: Option<u32>) -> anyhow::Result<Live> {
    let path = backing.path().display();
    let stream = match UnixStream::connect_addr(&name(uuid, backing)?) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match holder {
            Some(pid) => bail!(
                "{path} is in use by process {pid}, which answers no `info --live` here: it is no \
                 server, or one beside another, or in a container"
            ),
            None => bail!(
                "nobody serves {path}, so nothing is counted: start `holdfast serve {path}`, or leave \
                 --live out"
            ),
        },
        Err(error) => {
            return Err(error).with_context(|| format!("cannot ask the server of {path}"));
        }
    };
    let (server, us) = (socket_peercred(&stream)?.uid, geteuid());
    stream.set_read_timeout(Some(READ_LIMIT))?;
    let mut answer = Vec::new();
    match stream.take(ANSWER_MAX).read_to_end(&mut answer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            bail!("the server of {path} has not answered in {READ_LIMIT:?}: it may be stopped");
        }
        received => received.with_context(|| format!("cannot ask the server of {path}"))?,
    };
    if server != us && !us.is_root() && (!server.is_root() || answer.is_empty()) {
        let user = server.as_raw();
        bail!("the server of {path} is that of user {user}, and answers to that user or root");
    }
    if answer.is_empty() {
        bail!("the server of {path} ended meanwhile");
    }
    serde_json::from_slice(&answer)
        .with_context(|| format!("the server of {path} is of a version that is not understood"))
}

/// Returns the name of a volume's control socket. A copy of a volume has the same uuid, so where the
/// volume is stored is in the name as well.
fn name(uuid: &str, backing: &Backing) -> io::Result<SocketAddr> {
    let metadata = File::from(backing.descriptor()?).metadata()?;
    let place = if metadata.file_type().is_block_device() {
        format!("device-{:x}", metadata.rdev())
    } else {
        format!("{:x}-{:x}", metadata.dev(), metadata.ino())
    };
    SocketAddr::from_abstract_name(format!("holdfast/{uuid}/{place}"))
}
