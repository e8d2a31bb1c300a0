//! How far a scrub is and what it found, as it is shown.

use std::fmt;
use std::time::{Duration, SystemTime};

use holdfast_volume::format::ScrubRecord;
use indicatif::{BinaryBytes, FormattedDuration, HumanDuration};
use serde::{Deserialize, Serialize};

/// Returns the time, in seconds since 1970.
pub(crate) fn now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_secs())
}

/// What a scrub is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// There was none.
    Never,
    /// It is under way.
    Running,
    /// Somebody has stopped it.
    Stopped,
    /// It is under way, says the volume: a server goes on with it, and its next server will.
    UnderWay,
    /// It has read everything.
    Finished,
}

/// A scrub: the pass that is under way or, when none is, the last.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) position_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) percent: f64,
    /// What the server has reached lately, in bytes of data per second.
    pub(crate) rate_bytes_per_second: Option<u64>,
    pub(crate) eta_seconds: Option<u64>,
    /// When the pass began, in seconds since 1970.
    pub(crate) started: Option<u64>,
    /// When the last complete pass ended, in seconds since 1970.
    pub(crate) finished: Option<u64>,
    /// When the next pass is due, in seconds since 1970.
    pub(crate) next: Option<u64>,
    pub(crate) verified_bytes: u64,
    pub(crate) corrupt_sectors: u64,
    pub(crate) unreadable_sectors: u64,
    pub(crate) repaired_sectors: u64,
    /// The first corrupt sectors that this server has found in the pass.
    pub(crate) corrupt_lbas: Vec<u64>,
    /// The first sectors that this server could not read in the pass.
    pub(crate) unreadable_lbas: Vec<u64>,
}

impl Status {
    /// Returns what is known without a server.
    pub(crate) fn stored(record: &ScrubRecord, capacity: u64) -> Self {
        let state = match record {
            ScrubRecord { started: 0, .. } => State::Never,
            ScrubRecord { paused: true, .. } => State::Stopped,
            ScrubRecord { under_way: true, .. } => State::UnderWay,
            _ => State::Finished,
        };
        let known = |time: u64| (time > 0).then_some(time);
        Self {
            state,
            position_bytes: record.position,
            size_bytes: capacity,
            percent: percent(record.position, capacity),
            rate_bytes_per_second: None,
            eta_seconds: None,
            started: known(record.started),
            finished: known(record.finished),
            next: None,
            verified_bytes: record.verified,
            corrupt_sectors: record.corrupt,
            unreadable_sectors: record.unreadable,
            repaired_sectors: record.repaired,
            corrupt_lbas: Vec::new(),
            unreadable_lbas: Vec::new(),
        }
    }

    /// Returns whether something is wrong with what was looked at.
    pub(crate) const fn has_problems(&self) -> bool {
        self.corrupt_sectors > 0 || self.unreadable_sectors > 0
    }

    /// Says in one line what the scrub is doing.
    pub(crate) fn line(&self) -> String {
        let size = BinaryBytes(self.size_bytes);
        let far = format!("{:.1} % of {size}", self.percent);
        match self.state {
            State::Never => "never".to_owned(),
            State::Running => format!("running, {far}{}", self.speed()),
            State::Stopped => format!("stopped at {far}"),
            State::UnderWay => format!("under way, {far}"),
            State::Finished => format!("finished {}", ago(self.finished)),
        }
    }

    fn speed(&self) -> String {
        let rate = self.rate_bytes_per_second;
        let rate = rate.map(|rate| format!(", {}/s", BinaryBytes(rate)));
        let left = self.eta_seconds.map(|left| {
            let left = FormattedDuration(Duration::from_secs(left));
            format!(", {left} to go")
        });
        rate.unwrap_or_default() + &left.unwrap_or_default()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "scrub            {}", self.line())?;
        if self.state != State::Never {
            writeln!(f, "begun            {}", ago(self.started))?;
            writeln!(f, "verified         {}", BinaryBytes(self.verified_bytes))?;
            let (corrupt, unreadable) = (self.corrupt_sectors, self.unreadable_sectors);
            writeln!(f, "corrupt sectors  {corrupt}{}", named(corrupt, &self.corrupt_lbas))?;
            let named = named(unreadable, &self.unreadable_lbas);
            writeln!(f, "unreadable       {unreadable}{named}")?;
            writeln!(f, "repaired         {}", self.repaired_sectors)?;
        }
        if self.state != State::Finished && self.finished.is_some() {
            writeln!(f, "last finished    {}", ago(self.finished))?;
        }
        if let Some(next) = self.next {
            let left = HumanDuration(Duration::from_secs(next.saturating_sub(now())));
            writeln!(f, "next             in {left}")?;
        }
        Ok(())
    }
}

/// Returns the addresses that are known of so many sectors.
fn named(count: u64, lbas: &[u64]) -> String {
    if lbas.is_empty() {
        return String::new();
    }
    let list: Vec<_> = lbas.iter().map(u64::to_string).collect();
    let more = if count > lbas.len() as u64 { ", .." } else { "" };
    format!(": LBA {}{more}", list.join(", "))
}

/// Says how long ago something was.
fn ago(time: Option<u64>) -> String {
    let passed = time.map(|time| Duration::from_secs(now().saturating_sub(time)));
    passed.map_or_else(|| "never".to_owned(), |passed| format!("{} ago", HumanDuration(passed)))
}

/// Returns how many hundredths of a disk are done, with one digit behind the point.
fn percent(position: u64, capacity: u64) -> f64 {
    let thousandths = u128::from(position) * 1000 / u128::from(capacity.max(1));
    f64::from(u32::try_from(thousandths).unwrap_or(1000)) / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn status(record: &ScrubRecord) -> Status {
        Status::stored(record, GIB)
    }

    #[test]
    fn what_is_stored_tells_a_pass_that_is_under_way_from_one_that_is_stopped() {
        let record = ScrubRecord {
            position: GIB / 8,
            started: now(),
            under_way: true,
            ..ScrubRecord::default()
        };
        let found = status(&record);
        assert_eq!((found.state, found.percent), (State::UnderWay, 12.5));
        assert_eq!(found.line(), "under way, 12.5 % of 1.00 GiB");
        let stopped = status(&ScrubRecord { paused: true, ..record });
        assert_eq!(stopped.line(), "stopped at 12.5 % of 1.00 GiB");
    }

    #[test]
    fn a_volume_without_a_scrub_says_never_and_no_more() {
        assert_eq!(status(&ScrubRecord::default()).to_string(), "scrub            never\n");
    }

    #[test]
    fn the_first_corrupt_sectors_are_named() {
        let record = ScrubRecord { started: 1, finished: 2, corrupt: 3, ..ScrubRecord::default() };
        let found = Status { corrupt_lbas: vec![5, 77], ..status(&record) };
        let text = found.to_string();
        assert!(text.contains("corrupt sectors  3: LBA 5, 77, ..\n"), "{text}");
        assert!(text.contains("unreadable       0\n"), "{text}");
        assert!(found.has_problems());
    }

    #[test]
    fn a_running_pass_says_how_fast_it_is_and_how_long_it_takes() {
        let running = Status {
            state: State::Running,
            rate_bytes_per_second: Some(GIB / 16),
            eta_seconds: Some(16),
            ..status(&ScrubRecord { started: 1, under_way: true, ..ScrubRecord::default() })
        };
        let expected = "running, 0.0 % of 1.00 GiB, 64.00 MiB/s, 00:00:16 to go";
        assert_eq!(running.line(), expected);
    }

    #[test]
    fn a_disk_of_any_size_has_a_percentage() {
        assert_eq!(percent(u64::MAX, u64::MAX), 100.0);
        assert_eq!((percent(0, 0), percent(1, 3)), (0.0, 33.3));
    }
}
