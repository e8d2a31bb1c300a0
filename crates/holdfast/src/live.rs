//! What a running server has done. The control socket gives it as JSON, and Prometheus gets the same
//! numbers.

use std::sync::Arc;
use std::time::Instant;

use holdfast_bio::ReadPolicy;
use holdfast_vhost_user_blk::{ClientCounters, QueueCounts};
use holdfast_volume::Volume;
use holdfast_volume::format::ErrorCounts;
use serde::{Deserialize, Serialize};

use crate::legs::{self, LegReport};
use crate::resync::{self, Resyncer};
use crate::scrub::{Status, Steering};
use crate::store::Store;

/// Where a running server counts.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) since: Instant,
    pub(crate) read_policy: ReadPolicy,
    pub(crate) volume: Arc<Volume>,
    pub(crate) scrub: Arc<Steering>,
    pub(crate) store: Arc<Store>,
    pub(crate) resyncer: Arc<Resyncer>,
    pub(crate) clients: Vec<Arc<ClientCounters>>,
}

/// What a server had counted at one moment. Requests went on meanwhile, so that numbers need not
/// belong together.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Live {
    /// The mismatches that were met since the volume was created.
    pub(crate) errors: ErrorCounts,
    /// How far the scrub is. Servers that cannot scrub say nothing of it.
    #[serde(default)]
    pub(crate) scrub: Option<Status>,
    /// The legs of a mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) legs: Option<Vec<LegReport>>,
    /// How far the last leg is, or was, that got what it missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resync: Option<resync::Status>,
    #[serde(flatten)]
    pub(crate) running: Running,
}

/// A server and its clients.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: u64,
    pub(crate) read_policy: String,
    pub(crate) clients: Vec<Client>,
}

/// A socket for a virtual machine. NBD clients are not counted one by one.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Client {
    pub(crate) socket: String,
    pub(crate) connected: bool,
    pub(crate) queues: Vec<QueueCounts>,
}

impl Watch {
    /// Reads all counters.
    pub(crate) fn look(&self) -> Live {
        let client = |client: &Arc<ClientCounters>| Client {
            socket: client.socket().display().to_string(),
            connected: client.is_connected(),
            queues: client.queues().collect(),
        };
        Live {
            errors: self.volume.errors(),
            scrub: Some(self.scrub.status()),
            legs: self.store.mirror().map(|mirror| legs::report(mirror)),
            resync: self.resyncer.status(),
            running: Running {
                pid: std::process::id(),
                uptime_seconds: self.since.elapsed().as_secs(),
                read_policy: self.read_policy.to_string(),
                clients: self.clients.iter().map(client).collect(),
            },
        }
    }
}
