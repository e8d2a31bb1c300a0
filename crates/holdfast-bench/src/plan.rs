//! What is measured, and in which tables it is shown.

use std::time::Duration;

use holdfast_bio::Op;
use serde::Serialize;

/// How data get to and from the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Between the caller's memory and the storage itself, without any guard.
    Plain,
    /// Between the caller's memory and a volume, which trusts that it does not change meanwhile.
    ZeroCopy,
    /// Through buffers of our own, reads and writes alike.
    Bounce,
    /// Writes through buffers; reads into the caller's memory, and again into a buffer when it changed.
    Lazy,
}

impl Mode {
    /// All, as the columns of the tables.
    pub const ALL: [Self; 4] = [Self::Plain, Self::ZeroCopy, Self::Bounce, Self::Lazy];

    /// Returns what it is called in a report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "zero copy, no guards",
            Self::ZeroCopy => "zero copy, guards",
            Self::Bounce => "bounce, guards",
            Self::Lazy => "lazy, guards",
        }
    }
}

/// Where data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transfer {
    /// From the storage.
    Read,
    /// To the storage.
    Write,
}

impl Transfer {
    pub(crate) const BOTH: [Self; 2] = [Self::Read, Self::Write];

    pub(crate) const fn op(self) -> Op {
        match self {
            Self::Read => Op::Read,
            Self::Write => Op::Write,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Where a request is after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Behind it.
    Sequential,
    /// Anywhere.
    Random,
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Where data go.
    pub transfer: Transfer,
    /// Where requests are.
    pub order: Order,
    /// The length of a request, in bytes.
    pub block: u64,
    /// How many requests each client has in flight.
    pub depth: usize,
    /// How many clients there are, each a thread with a queue of its own.
    pub clients: usize,
    /// On how many processors they run. `None` is all.
    pub processors: Option<usize>,
}

impl Load {
    const fn new(transfer: Transfer, order: Order, block: u64, depth: usize) -> Self {
        Self { transfer, order, block, depth, clients: 1, processors: None }
    }

    /// Returns whether a mode is another one for this load: lazy writes are bounced.
    fn has(&self, mode: Mode) -> bool {
        mode != Mode::Lazy || self.transfer == Transfer::Read
    }
}

/// A line of a table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is called.
    pub name: String,
    /// What is done.
    pub load: Load,
    /// In which ways.
    pub modes: Vec<Mode>,
}

/// What a table shows of its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shows {
    /// MiB/s, and the processor time of user and kernel in per cent of one processor.
    Throughput,
    /// Median and 99th percentile, in microseconds.
    Latency,
    /// Requests a second, and for each second of processor time.
    Requests,
}

/// Some loads that are compared.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// What it is about.
    pub title: String,
    /// What its cells are.
    pub shows: Shows,
    /// What was done.
    pub rows: Vec<Row>,
}

/// What is measured, for how long and how often.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The tables.
    pub tables: Vec<Table>,
    /// How often each cell is measured.
    pub rounds: usize,
    /// How long each time, in seconds.
    pub seconds: f64,
}

const SIZES: [(u64, &str); 3] = [(4 << 10, "4k"), (64 << 10, "64k"), (1 << 20, "1M")];

impl Plan {
    /// Returns the plan for storage that may be written or only be read, on a machine with so many
    /// processors.
    pub fn new(writable: bool, processors: usize, rounds: usize, time: Duration) -> Self {
        let transfers: Vec<Transfer> =
            Transfer::BOTH.into_iter().take(if writable { 2 } else { 1 }).collect();
        let tables = vec![
            by_size("sequential, 16 requests in flight", Shows::Throughput, &transfers, 16),
            by_size("latency, 1 request in flight", Shows::Latency, &transfers, 1),
            random(&transfers),
            scaling(processors),
        ];
        Self { tables, rounds, seconds: time.as_secs_f64() }
    }

    /// Returns how long each measurement takes.
    pub fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Returns how many measurements there are.
    pub fn measurements(&self) -> usize {
        let cells = self.tables.iter().flat_map(|table| &table.rows).map(|row| row.modes.len());
        cells.sum::<usize>() * self.rounds
    }
}

fn row(name: String, load: Load, modes: &[Mode]) -> Row {
    Row { name, load, modes: modes.iter().copied().filter(|&mode| load.has(mode)).collect() }
}

fn by_size(title: &str, shows: Shows, transfers: &[Transfer], depth: usize) -> Table {
    let rows = transfers.iter().flat_map(|&transfer| {
        SIZES.map(|(block, size)| {
            let load = Load::new(transfer, Order::Sequential, block, depth);
            row(format!("{} {size}", transfer.name()), load, &Mode::ALL)
        })
    });
    Table { title: title.to_owned(), shows, rows: rows.collect() }
}

fn random(transfers: &[Transfer]) -> Table {
    let rows = transfers.iter().flat_map(|&transfer| {
        [1, 16, 128].map(|depth| {
            let load = Load::new(transfer, Order::Random, SIZES[0].0, depth);
            row(format!("{} QD{depth}", transfer.name()), load, &Mode::ALL)
        })
    });
    Table { title: "random 4k".to_owned(), shows: Shows::Requests, rows: rows.collect() }
}

fn scaling(processors: usize) -> Table {
    let load = Load::new(Transfer::Read, Order::Random, SIZES[0].0, 16);
    let mut rows = Vec::new();
    let modes = [Mode::Plain, Mode::Lazy];
    let mut on = 1;
    while on < processors {
        let load = Load { clients: 4, processors: Some(on), ..load };
        rows.push(row(format!("4 clients, {}", count(on, "processor")), load, &modes));
        on *= 2;
    }
    for clients in [1, 2, 4] {
        let all = count(processors, "processor");
        rows.push(row(
            format!("{}, {all}", count(clients, "client")),
            Load { clients, ..load },
            &modes,
        ));
    }
    Table {
        title: "random reads of 4k, 16 in flight for each client".to_owned(),
        shows: Shows::Requests,
        rows,
    }
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_only_be_read_is_not_written() {
        let loads = |writable| {
            let plan = Plan::new(writable, 2, 1, Duration::ZERO);
            plan.tables.into_iter().flat_map(|table| table.rows).map(|row| row.load.transfer)
        };
        assert!(loads(false).all(|transfer| transfer == Transfer::Read));
        assert!(loads(true).any(|transfer| transfer == Transfer::Write));
    }

    #[test]
    fn writes_are_not_measured_twice_as_lazy_and_bounced() {
        let plan = Plan::new(true, 8, 3, Duration::from_secs(1));
        for row in plan.tables.iter().flat_map(|table| &table.rows) {
            assert_eq!(row.load.transfer == Transfer::Read, row.modes.contains(&Mode::Lazy));
        }
        // 21 cells by size, twice; 21 at random; 2 for each of 6 ways to scale.
        assert_eq!(plan.measurements(), 3 * (3 * 21 + 2 * 6));
    }
}
