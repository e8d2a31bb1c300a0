//! What a running server has done, as Prometheus reads it (`OpenMetrics` 1.0).

use std::fmt;
use std::sync::Arc;

use holdfast_vhost_user_blk::QueueCounts;
use holdfast_volume::format::ErrorCounts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use crate::live::Watch;
use crate::scrub::{State, Status};

/// Where Prometheus looks by default.
pub(crate) const PATH: &str = "/metrics";
/// What the text is.
pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of one server.
#[derive(Debug)]
pub(crate) struct Metrics(Registry);

impl Metrics {
    pub(crate) fn new(watch: Arc<Watch>) -> Self {
        let mut registry = Registry::with_prefix("holdfast");
        registry.register_collector(Box::new(watch));
        Self(registry)
    }

    /// Returns the metrics as they are now.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.0).expect("a String takes everything");
        text
    }
}

/// A counter that each queue has. The name ends with `_total` where it is read.
struct PerQueue {
    name: &'static str,
    help: &'static str,
    /// The label that tells its parts apart, if there are several.
    label: Option<&'static str>,
    parts: &'static [Part],
}

/// A value of the label, and what has it.
type Part = (&'static str, fn(&QueueCounts) -> u64);

const PER_QUEUE: &[PerQueue] = &[
    PerQueue {
        name: "requests",
        help: "Requests that have ended, well or not.",
        label: None,
        parts: &[("", |queue| queue.requests)],
    },
    PerQueue {
        name: "requests_failed",
        help: "Requests that ended with an error.",
        label: None,
        parts: &[("", |queue| queue.failed)],
    },
    PerQueue {
        name: "bytes",
        help: "Bytes read or written by requests that ended well.",
        label: None,
        parts: &[("", |queue| queue.bytes)],
    },
    PerQueue {
        name: "bios_bounced",
        help: "Block I/Os that went through a buffer.",
        label: None,
        parts: &[("", |queue| queue.bounced)],
    },
    PerQueue {
        name: "bios_zero_copy",
        help: "Block I/Os with the memory of the virtual machine itself.",
        label: None,
        parts: &[("", |queue| queue.zero_copy)],
    },
    PerQueue {
        name: "rereads",
        help: "Block I/Os read again after a guard mismatch, and how they were then.",
        label: Some("result"),
        parts: &[("good", |queue| queue.reread_good), ("bad", |queue| queue.reread_bad)],
    },
    PerQueue {
        name: "tag_errors",
        help: "Block I/Os that failed because of a tag.",
        label: Some("tag"),
        parts: &[
            ("guard", |queue| queue.guard_errors),
            ("application", |queue| queue.application_errors),
            ("reference", |queue| queue.reference_errors),
        ],
    },
];

impl Collector for Watch {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let live = self.look();
        for PerQueue { name, help, label, parts } in PER_QUEUE {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for client in &live.running.clients {
                for (index, queue) in client.queues.iter().enumerate() {
                    let index = index.to_string();
                    let labels = [("client", client.socket.as_str()), ("queue", index.as_str())];
                    for (part, count) in *parts {
                        let label = label.map(|label| (label, *part));
                        let labels: Vec<_> = labels.into_iter().chain(label).collect();
                        family
                            .encode_family(&labels)?
                            .encode_counter(&count(queue), NO_EXEMPLAR)?;
                    }
                }
            }
        }
        let help = "Times that a sector was found corrupt since the volume was created.";
        let mut family =
            encoder.encode_descriptor("volume_errors", help, None, MetricType::Counter)?;
        for (tag, count) in by_tag(live.errors) {
            family.encode_family(&[("tag", tag)])?.encode_counter(&count, NO_EXEMPLAR)?;
        }
        let help = "Whether a virtual machine is connected.";
        let mut family =
            encoder.encode_descriptor("client_connected", help, None, MetricType::Gauge)?;
        for client in &live.running.clients {
            let labels = [("client", client.socket.as_str())];
            family.encode_family(&labels)?.encode_gauge(&u32::from(client.connected))?;
        }
        live.scrub.as_ref().map_or(Ok(()), |scrub| encode_scrub(&mut encoder, scrub))
    }
}

/// Shows a scrub: the pass that is under way or, when none is, the last.
fn encode_scrub(encoder: &mut DescriptorEncoder<'_>, scrub: &Status) -> fmt::Result {
    let is_running = u64::from(scrub.state == State::Running);
    let (started, finished) = (scrub.started.unwrap_or(0), scrub.finished.unwrap_or(0));
    for (name, help, value) in [
        ("running", "Whether a scrub reads the volume now.", is_running),
        ("position_bytes", "How much of the disk the scrub has done.", scrub.position_bytes),
        ("size_bytes", "How much the disk has.", scrub.size_bytes),
        ("verified_bytes", "What the scrub has verified, without holes.", scrub.verified_bytes),
        ("corrupt_sectors", "Corrupt sectors that it has found.", scrub.corrupt_sectors),
        ("unreadable_sectors", "Sectors that it could not read.", scrub.unreadable_sectors),
        ("started_timestamp_seconds", "When the scrub began, or 0.", started),
        ("finished_timestamp_seconds", "When the last complete one ended, or 0.", finished),
    ] {
        let name = format!("scrub_{name}");
        encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
    }
    Ok(())
}

/// No example goes with a count.
const NO_EXEMPLAR: Option<&Exemplar<[(&str, &str); 0], u64>> = None;

fn by_tag(errors: ErrorCounts) -> [(&'static str, u64); 4] {
    let ErrorCounts { guard, application, reference, unwritten } = errors;
    [
        ("guard", guard),
        ("application", application),
        ("reference", reference),
        ("unwritten", unwritten),
    ]
}
