//! What was measured on, and the processor time that went by.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;

/// The machine and its software, for those who compare reports.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The model of the processor.
    pub processor: String,
    /// How many of them this process may use.
    pub processors: usize,
    /// Memory, in bytes.
    pub memory: u64,
    /// The kernel and its version.
    pub kernel: String,
    /// The version of this program.
    pub version: String,
    /// When it was measured, in seconds since 1970.
    pub time: u64,
}

impl Machine {
    /// Looks at this machine.
    pub fn this(version: &str) -> Self {
        let name = rustix::system::uname();
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        let processor = model.map_or("unknown", |model| model.trim_start_matches([' ', '\t', ':']));
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = memory.split_ascii_whitespace().nth(1).and_then(|text| text.parse().ok());
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            processor: processor.to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kibibytes.unwrap_or(0_u64) << 10,
            kernel: format!(
                "{} {}",
                name.sysname().to_string_lossy(),
                name.release().to_string_lossy()
            ),
            version: version.to_owned(),
            time: since.map_or(0, |since| since.as_secs()),
        }
    }
}

/// The processor time that all threads of the process have used, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessorTime {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl ProcessorTime {
    pub(crate) fn now() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("it can be asked for oneself");
        let seconds = |time: nix::sys::time::TimeVal| {
            Duration::from_micros(time.num_microseconds().unsigned_abs()).as_secs_f64()
        };
        Self { user: seconds(usage.user_time()), system: seconds(usage.system_time()) }
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }
}
