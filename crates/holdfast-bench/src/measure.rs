//! The measurements, in turns.

use std::collections::HashMap;

use holdfast_units::to_usize;

use crate::BenchError;
use crate::drive::{self, Sample};
use crate::plan::{Load, Mode, Order, Plan, Transfer};
use crate::report::{Found, Line, Report};
use crate::statistics::Cell;
use crate::subject::Subject;

/// Measures what a plan says. `progress` is told what has been done, of how much.
///
/// # Errors
///
/// What hinders it: a request that fails, or a lack of memory.
pub fn measure(
    subject: &Subject,
    plan: &Plan,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, BenchError> {
    let fills = if subject.is_writable() { 2 } else { 0 };
    let total = u64::try_from(plan.measurements()).unwrap_or(u64::MAX) + fills;
    let mut done = 0;
    let mut step = |progress: &mut dyn FnMut(u64, u64)| {
        done += 1;
        progress(done, total);
    };
    if subject.is_writable() {
        for mode in [Mode::Plain, Mode::Bounce] {
            fill(subject, mode)?;
            step(progress);
        }
    }
    let mut samples: HashMap<(usize, usize, Mode), Vec<Sample>> = HashMap::new();
    for round in 0..plan.rounds {
        for (table, rows) in plan.tables.iter().map(|table| &table.rows).enumerate() {
            for (row, what) in rows.iter().enumerate() {
                // Who is first in one round is last in another.
                let first = round % what.modes.len();
                let (behind, before) = what.modes.split_at(first);
                for &mode in before.iter().chain(behind) {
                    let load = &what.load;
                    let sample = drive::run(load, plan.time(), || subject.open(mode, load))?;
                    samples.entry((table, row, mode)).or_default().push(sample);
                    step(progress);
                }
            }
        }
    }
    let tables = plan.tables.iter().enumerate().map(|(table, planned)| Found {
        title: planned.title.clone(),
        shows: planned.shows,
        lines: planned
            .rows
            .iter()
            .enumerate()
            .map(|(row, planned)| Line {
                name: planned.name.clone(),
                load: planned.load,
                cells: planned
                    .modes
                    .iter()
                    .filter_map(|&mode| {
                        let samples = samples.get(&(table, row, mode))?;
                        Some((mode, Cell::of(samples, planned.load.block)))
                    })
                    .collect(),
            })
            .collect(),
    });
    Ok(Report::new(subject, plan, tables.collect()))
}

/// Writes all once, so that what is read is there.
fn fill(subject: &Subject, mode: Mode) -> Result<(), BenchError> {
    const BLOCK: u64 = 1 << 20;
    let load = Load {
        transfer: Transfer::Write,
        order: Order::Sequential,
        block: BLOCK,
        depth: 8,
        clients: 1,
        processors: None,
    };
    drive::once(&load, to_usize(subject.bytes() / BLOCK), || subject.open(mode, &load))
}
