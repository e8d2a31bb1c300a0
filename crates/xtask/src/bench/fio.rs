//! fio, and what it says of a load.

use std::ffi::OsStr;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{command, output};

/// What fio does.
pub(super) struct Load {
    pub(super) name: &'static str,
    /// As fio calls it: `read`, `randwrite`.
    pub(super) pattern: &'static str,
    pub(super) size: &'static str,
    pub(super) depth: u32,
    /// After so many writes; never when 0.
    pub(super) fsync: u32,
}

impl Load {
    /// Returns the length of a request, in bytes.
    pub(super) const fn bytes(&self) -> u32 {
        match self.size.as_bytes() {
            b"4k" => 4 << 10,
            b"64k" => 64 << 10,
            b"1M" => 1 << 20,
            _ => panic!("no such size"),
        }
    }
}

/// What a load came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// Requests a second.
    pub(super) per_second: f64,
    /// The latency that half of them did not exceed, in microseconds.
    pub(super) latency: f64,
    /// How many requests ended.
    pub(super) requests: f64,
    /// How long processors worked, in seconds.
    pub(super) cpu: f64,
}

/// Runs a load for so many seconds, or once over the whole of the target.
pub(super) fn run<S: AsRef<OsStr>>(
    target: &[S],
    load: &Load,
    seconds: Option<u32>,
) -> Result<Figures> {
    let mut fio = command("fio", &["--name=load", "--thread", "--randrepeat=0"]);
    fio.args(target);
    fio.args([format!("--rw={}", load.pattern), format!("--bs={}", load.size)]);
    fio.args([format!("--iodepth={}", load.depth), "--output-format=json".to_owned()]);
    if load.fsync > 0 {
        fio.arg(format!("--fsync={}", load.fsync));
    }
    if let Some(seconds) = seconds {
        fio.args(["--time_based", "--norandommap", &format!("--runtime={seconds}")]);
    }
    let text = output(&mut fio)?;
    // An engine may say on the same output that it is connected.
    let Some(start) = text.find('{') else { bail!("fio printed no JSON: {text}") };
    let json: Value = serde_json::from_str(&text[start..]).context("fio printed no JSON")?;
    let job = &json["jobs"][0];
    let moved = &job[if load.pattern.ends_with("read") { "read" } else { "write" }];
    let number = |value: &Value| value.as_f64().context("fio printed other JSON than expected");
    let percent = number(&job["usr_cpu"])? + number(&job["sys_cpu"])?;
    Ok(Figures {
        per_second: number(&moved["iops"])?,
        latency: number(&moved["clat_ns"]["percentile"]["50.000000"])? / 1e3,
        requests: number(&moved["total_ios"])?,
        cpu: percent / 100.0 * number(&job["job_runtime"])? / 1e3,
    })
}

/// The one in the middle; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
