//! Changes of real images made by mkfs.xfs, judged by xfsprogs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fork;
mod free;
mod support;
