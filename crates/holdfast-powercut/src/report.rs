//! What came out, as a table.

use std::fmt;

use holdfast_volume::Durability;

use crate::plan::DURABILITIES;

/// What was done, and what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs.
    pub runs: u64,
    /// Power cuts of runs: one at each event of the device.
    pub cuts: u64,
    /// Kills of the process, with the machine going on.
    pub kills: u64,
    /// Power cuts of recoveries.
    pub recoveries: u64,
    /// Sectors that were judged.
    pub sectors: u64,
    /// Sectors that were torn, and said to be.
    pub torn: u64,
    /// Sectors that were corrupted on purpose.
    pub injected: u64,
    /// Those of them that were found.
    pub found: u64,
    /// Those that nobody promised to find.
    pub excused: u64,
    /// Sectors that were torn and have the guard of what they should be, by chance: one of 65,536 with
    /// guards of 16 bits.
    pub chance: u64,
    /// Sectors that cannot be read since a write of them failed.
    pub damaged: u64,
    /// Sectors that cannot be read since a flush lied.
    pub lost: u64,
    /// Runs in which something was wrong.
    pub alarms: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        let Self { runs, cuts, kills, recoveries, sectors, torn, injected, found, excused, .. } =
            other;
        self.runs += runs;
        self.cuts += cuts;
        self.kills += kills;
        self.recoveries += recoveries;
        self.sectors += sectors;
        self.torn += torn;
        self.injected += injected;
        self.found += found;
        self.excused += excused;
        self.chance += other.chance;
        self.damaged += other.damaged;
        self.lost += other.lost;
        self.alarms += other.alarms;
    }
}

/// The sums of many runs, for each durability.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: [Counts; DURABILITIES.len()],
}

impl Table {
    /// Adds what came out of a run.
    pub fn add(&mut self, durability: Durability, counts: &Counts) {
        let row = DURABILITIES.iter().position(|one| *one == durability);
        self.rows[row.expect("all are in the list")].add(counts);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<10} {:>7} {:>9} {:>8} {:>9} {:>13} {:>8} {:>8} {:>8} {:>7} {:>7} {:>7} {:>7} {:>6}",
            "durability",
            "runs",
            "cuts",
            "kills",
            "in recov.",
            "sectors",
            "torn",
            "injected",
            "found",
            "excused",
            "chance",
            "damaged",
            "lost",
            "wrong"
        )?;
        for (durability, counts) in DURABILITIES.iter().zip(&self.rows) {
            let Counts { runs, cuts, kills, recoveries, sectors, torn, .. } = counts;
            let Counts { injected, found, excused, chance, damaged, lost, alarms, .. } = counts;
            let name = durability.name();
            write!(
                f,
                "\n{name:<10} {runs:>7} {cuts:>9} {kills:>8} {recoveries:>9} {sectors:>13} {torn:>8} \
                 {injected:>8} {found:>8} {excused:>7} {chance:>7} {damaged:>7} {lost:>7} {alarms:>6}"
            )?;
        }
        Ok(())
    }
}
