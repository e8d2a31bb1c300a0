//! What was found.

mod page;
mod plots;
mod text;

use std::path::PathBuf;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::BenchError;
use crate::machine::Machine;
use crate::plan::{Load, Mode, Plan, Shows};
use crate::statistics::{Cell, Spread};
use crate::subject::Subject;

/// What was measured, with everything that it depends on.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub machine: Machine,
    /// On which file or device.
    pub path: PathBuf,
    /// What protects the volume.
    pub protection: String,
    /// How many bytes of the volume were used, and as many beside it.
    pub bytes: u64,
    /// How often each cell was measured.
    pub rounds: usize,
    /// How long each time, in seconds.
    pub seconds: f64,
    /// What was found.
    pub tables: Vec<Found>,
}

/// A table with its cells.
#[derive(Debug, Serialize)]
pub struct Found {
    /// What it is about.
    pub title: String,
    /// What is shown of its cells.
    pub shows: Shows,
    /// Its lines.
    pub lines: Vec<Line>,
}

/// A load in some modes.
#[derive(Debug, Serialize)]
pub struct Line {
    /// What it is called.
    pub name: String,
    /// What was done.
    pub load: Load,
    /// What was found, by mode.
    #[serde(serialize_with = "as_map")]
    pub cells: Vec<(Mode, Cell)>,
}

fn as_map<S: Serializer>(cells: &[(Mode, Cell)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(cells.len()))?;
    cells.iter().try_for_each(|(mode, cell)| map.serialize_entry(mode, cell))?;
    map.end()
}

impl Report {
    pub(crate) fn new(subject: &Subject, plan: &Plan, tables: Vec<Found>) -> Self {
        Self {
            machine: Machine::this(env!("CARGO_PKG_VERSION")),
            path: subject.path().to_owned(),
            protection: subject.protection(),
            bytes: subject.bytes(),
            rounds: plan.rounds,
            seconds: plan.seconds,
            tables,
        }
    }

    /// Returns the tables as lines of text.
    pub fn text(&self) -> String {
        text::of(self)
    }

    /// Returns the report as one page with plots, which needs nothing beside it.
    ///
    /// # Errors
    ///
    /// [`BenchError::Draw`].
    pub fn page(&self) -> Result<String, BenchError> {
        page::of(self)
    }

    /// Returns what was measured where, in one sentence for each thing.
    fn circumstances(&self) -> Vec<(&'static str, String)> {
        let machine = &self.machine;
        let gibibytes = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
        vec![
            (
                "machine",
                format!(
                    "{}, {} processors, {}",
                    machine.processor,
                    machine.processors,
                    gibibytes(machine.memory)
                ),
            ),
            ("kernel", machine.kernel.clone()),
            (
                "storage",
                format!("{}, {} used in each mode", self.path.display(), gibibytes(self.bytes)),
            ),
            ("volume", self.protection.clone()),
            ("program", format!("holdfast {}", machine.version)),
            (
                "measured",
                format!(
                    "{} rounds of {} s for each cell, in turns; medians",
                    self.rounds, self.seconds
                ),
            ),
        ]
    }
}

impl Line {
    pub(crate) fn cell(&self, mode: Mode) -> Option<&Cell> {
        self.cells.iter().find(|(of, _)| *of == mode).map(|(_, cell)| cell)
    }

    /// Returns how a mode compares with none: of rates, how much of it is left, and of latencies, how
    /// many times as long it takes.
    pub(crate) fn ratio(&self, shows: Shows, mode: Mode) -> Option<f64> {
        let (plain, other) = (self.cell(Mode::Plain)?, self.cell(mode)?);
        Some(shows.of(other).median / shows.of(plain).median)
    }
}

impl Shows {
    /// Returns what a plot shows of a cell.
    pub(crate) const fn of(self, cell: &Cell) -> Spread {
        match self {
            Self::Throughput => cell.mebibytes,
            Self::Latency => cell.p50,
            Self::Requests => cell.requests,
        }
    }

    /// Returns the unit of that.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "MiB/s",
            Self::Latency => "us",
            Self::Requests => "requests/s",
        }
    }
}

impl Found {
    /// Returns the modes that some line has.
    pub(crate) fn modes(&self) -> Vec<Mode> {
        let is_there = |mode: &Mode| self.lines.iter().any(|line| line.cell(*mode).is_some());
        Mode::ALL.into_iter().filter(is_there).collect()
    }

    /// Returns the headers of the table: of the lines, of each mode, of the ratio of each but the first.
    fn headers(&self) -> Vec<String> {
        let (value, modes) = (self.shows.header(), self.modes());
        let cells = modes.iter().map(|mode| format!("{}\n{value}", mode.name()));
        let ratios = modes.iter().skip(1).map(|mode| format!("{}\nratio", mode.name()));
        std::iter::once(self.title.clone()).chain(cells).chain(ratios).collect()
    }

    /// Returns the cells of a line, as text.
    fn columns(&self, line: &Line) -> Vec<String> {
        let modes = self.modes();
        let text =
            |mode: &Mode| line.cell(*mode).map_or_else(String::new, |cell| self.shows.text(cell));
        let ratio = |mode: &Mode| {
            line.ratio(self.shows, *mode).map_or_else(String::new, |ratio| format!("{ratio:.2}"))
        };
        let ratios = modes.iter().skip(1).map(ratio);
        std::iter::once(line.name.clone()).chain(modes.iter().map(text)).chain(ratios).collect()
    }
}

impl Shows {
    const fn header(self) -> &'static str {
        match self {
            Self::Throughput => "MiB/s (usr/sys %)",
            Self::Latency => "p50 (p99) us",
            Self::Requests => "k/s (k per cpu s)",
        }
    }

    fn text(self, cell: &Cell) -> String {
        match self {
            Self::Throughput => format!(
                "{:.0} ({:.0}/{:.0})",
                cell.mebibytes.median, cell.user_percent, cell.system_percent
            ),
            Self::Latency => format!("{:.1} ({:.1})", cell.p50.median, cell.p99.median),
            Self::Requests => format!(
                "{:.1} ({:.1})",
                cell.requests.median / 1000.0,
                cell.requests_per_processor.median / 1000.0
            ),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::{Order, Transfer};

    /// Returns a report with a table of each kind.
    pub(crate) fn report() -> Report {
        let spread = |median| Spread { median, min: median * 0.9, max: median * 1.1 };
        let cell = |median: f64| Cell {
            mebibytes: spread(median),
            requests: spread(median * 256.0),
            requests_per_processor: spread(median * 512.0),
            user_percent: 20.0,
            system_percent: 30.0,
            p50: spread(1e6 / median),
            p99: spread(2e6 / median),
            curve: vec![(50.0, 1e6 / median), (99.0, 2e6 / median)],
        };
        let load = Load {
            transfer: Transfer::Read,
            order: Order::Random,
            block: 4096,
            depth: 1,
            clients: 1,
            processors: None,
        };
        let line = |name: &str| Line {
            name: name.to_owned(),
            load,
            cells: vec![(Mode::Plain, cell(1000.0)), (Mode::Bounce, cell(980.0))],
        };
        let table = |shows| Found {
            title: "a <title>".to_owned(),
            shows,
            lines: vec![line("read 4k"), line("read 64k")],
        };
        Report {
            machine: Machine::this("1.2.3"),
            path: "/a/disk".into(),
            protection: "guard crc64".to_owned(),
            bytes: 1 << 30,
            rounds: 3,
            seconds: 0.2,
            tables: vec![table(Shows::Throughput), table(Shows::Latency), table(Shows::Requests)],
        }
    }

    #[test]
    fn a_ratio_is_to_what_has_no_guards() {
        let report = report();
        let ratios = report.tables.iter().map(|table| {
            let columns = table.columns(&table.lines[0]);
            (columns[1].clone(), columns[3].clone())
        });
        let expected =
            [("1000 (20/30)", "0.98"), ("1000.0 (2000.0)", "1.02"), ("256.0 (512.0)", "0.98")];
        assert_eq!(
            ratios.collect::<Vec<_>>(),
            expected.map(|(cell, ratio)| (cell.to_owned(), ratio.to_owned()))
        );
    }

    #[test]
    fn as_json_the_cells_have_the_names_of_their_modes() {
        let json = serde_json::to_value(report()).unwrap();
        let cells = &json["tables"][0]["lines"][1]["cells"];
        assert_eq!(cells["plain"]["mebibytes"]["median"], 1000.0);
        assert_eq!(cells["bounce"]["user_percent"], 20.0);
    }
}
