//! The scenarios: what the guest does, and with which volume and server.

use std::time::Duration;

use anyhow::Result;

use super::outage;
use super::play::{self, Play};

/// A fresh volume, and a guest that has it as its disk.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) guard: &'static str,
    pub(super) sector: &'static str,
    pub(super) queues: u16,
    pub(super) policy: &'static str,
    pub(super) memory_mib: u32,
    /// What the guest runs, as `tests/guest/scenarios.sh` names it.
    pub(super) scenarios: &'static str,
    /// The disk is a file of an XFS on the volume.
    pub(super) in_xfs: bool,
    /// How long each phase of a mutation takes.
    pub(super) seconds: u32,
    /// Some four times what it takes on two idle processors.
    pub(super) limit: Duration,
    /// Whether qemu-storage-daemon passes as well. Version 7.2 gives I/O errors or stands still when a
    /// new one takes over requests in flight, and it has no policy.
    pub(super) peer: bool,
    /// Plays it, and returns what there is to say if all was well.
    pub(super) play: fn(&Play<'_>) -> Result<String>,
}

const DEFAULT: Case = Case {
    name: "",
    about: "",
    guard: "crc64",
    sector: "4096",
    queues: 1,
    policy: "lazy",
    memory_mib: 512,
    scenarios: "",
    in_xfs: false,
    seconds: 3,
    limit: Duration::from_secs(240),
    peer: true,
    play: play::once,
};

/// What runs alone, to be quick.
pub(super) const SHORT: Case = Case {
    name: "short",
    about: "ext4, and direct requests whose buffers change in flight, in one boot",
    queues: 2,
    scenarios: "ext4,mutate",
    seconds: 2,
    ..DEFAULT
};

/// Also in the short run, as is the next.
pub(super) const OUTAGE_EXT4: Case = Case {
    name: "outage-ext4",
    about: "guest and server are killed together; the journal is replayed, what was fsynced is there",
    guard: "crc16",
    sector: "512",
    queues: 2,
    limit: outage::ROUND_LIMIT,
    peer: false,
    play: outage::ext4,
    ..DEFAULT
};

pub(super) const OUTAGE_XFS: Case = Case {
    name: "outage-xfs",
    about: "the same with XFS",
    guard: "crc32c",
    sector: "4096",
    play: outage::xfs,
    ..OUTAGE_EXT4
};

/// What runs when nothing is named.
pub(super) const ALL: &[Case] = &[
    Case {
        name: "pattern",
        about: "the whole disk is written, read and trimmed; each sector names itself",
        guard: "crc16",
        sector: "512",
        queues: 2,
        scenarios: "pattern",
        ..DEFAULT
    },
    Case {
        name: "persist",
        about: "what was flushed is there after the server stopped, and after it was killed",
        guard: "crc32c",
        play: play::persist,
        ..DEFAULT
    },
    Case {
        name: "xfs",
        about: "mkfs, copy, changing buffers, unmount, compare, trim, xfs_repair",
        queues: 2,
        policy: "always",
        scenarios: "xfs",
        ..DEFAULT
    },
    Case {
        name: "ext4",
        about: "mkfs, copy, changing buffers, unmount, compare, trim, e2fsck",
        guard: "crc16",
        scenarios: "ext4",
        ..DEFAULT
    },
    Case {
        name: "file",
        about: "the disk is a file of an XFS on a volume: patterns, changing buffers, ext4; xfs_repair",
        queues: 2,
        scenarios: "pattern,mutate,ext4",
        in_xfs: true,
        peer: false,
        ..DEFAULT
    },
    Case {
        name: "file-swap",
        about: "swap on a file of an XFS on a volume",
        guard: "crc32c",
        memory_mib: 320,
        scenarios: "swap",
        in_xfs: true,
        peer: false,
        ..DEFAULT
    },
    Case {
        name: "swap",
        about: "memory of 1.35 times the guest's changes while it is swapped out",
        guard: "crc32c",
        sector: "512",
        queues: 2,
        memory_mib: 320,
        scenarios: "swap",
        ..DEFAULT
    },
    Case {
        name: "mutate",
        about: "direct requests whose buffers change in flight",
        queues: 2,
        scenarios: "mutate",
        ..DEFAULT
    },
    Case {
        name: "mutate-always",
        about: "the same, and all reads go through a buffer",
        guard: "crc16",
        sector: "512",
        policy: "always",
        scenarios: "mutate",
        ..DEFAULT
    },
    Case {
        name: "restart",
        about: "the server is stopped and started under a guest that goes on",
        guard: "crc32c",
        queues: 2,
        scenarios: "mutate,ext4",
        seconds: 2,
        peer: false,
        play: play::stopped,
        ..DEFAULT
    },
    Case {
        name: "crash",
        about: "the same, but the server is killed, and what was in flight is done again",
        queues: 2,
        scenarios: "pattern,mutate,ext4",
        seconds: 2,
        limit: Duration::from_secs(400),
        peer: false,
        play: play::killed,
        ..DEFAULT
    },
    OUTAGE_EXT4,
    OUTAGE_XFS,
    Case {
        name: "never",
        about: "without a copy of what changes in flight, the test of it fails",
        queues: 2,
        policy: "never",
        scenarios: "mutate",
        seconds: 1,
        peer: false,
        play: play::unprotected,
        ..DEFAULT
    },
];
