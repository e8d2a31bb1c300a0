//! How far something is: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(crate) struct Progress {
    what: &'static str,
    unit: Unit,
    bar: ProgressBar,
    total: u64,
    began: Instant,
    said: Instant,
}

/// What is counted.
#[derive(Clone, Copy)]
enum Unit {
    Bytes,
    Things,
}

impl Progress {
    /// How long nothing is shown, because most things are over by then.
    const QUIET: Duration = Duration::from_secs(1);
    /// How often a line is logged where there is no terminal.
    const LINES: Duration = Duration::from_secs(10);

    /// Begins something that has `total` bytes.
    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        Self::of(what, total, Unit::Bytes)
    }

    /// Begins something that has `total` parts.
    pub(crate) fn counting(what: &'static str, total: u64) -> Self {
        Self::of(what, total, Unit::Things)
    }

    fn of(what: &'static str, total: u64, unit: Unit) -> Self {
        let style = ProgressStyle::with_template(match unit {
            Unit::Bytes => {
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
            }
            Unit::Things => "{msg} {wide_bar} {human_pos}/{human_len} {eta}",
        });
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(what);
        let now = Instant::now();
        Self { what, unit, bar, total, began: now, said: now }
    }

    pub(crate) fn at(&mut self, position: u64) {
        self.bar.set_position(position);
        let now = Instant::now();
        if self.bar.is_hidden() && now - self.began > Self::QUIET {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if self.bar.is_hidden() && now - self.said > Self::LINES {
            self.said = now;
            let (what, total) = (self.what, self.total);
            match self.unit {
                Unit::Bytes => {
                    tracing::info!("{what}: {} of {}", BinaryBytes(position), BinaryBytes(total));
                }
                Unit::Things => tracing::info!("{what}: {position} of {total}"),
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
