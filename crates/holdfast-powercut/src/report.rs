//! What came out, as a table.

use std::fmt;

use holdfast_volume::Durability;

/// What was done, and what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs.
    pub runs: u64,
    /// Runs in which the tuple log was used all around, and begun anew.
    pub turned: u64,
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
    /// Sectors that were in the data journal and not in their place.
    pub restored: u64,
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
    /// Sectors that are older than they should be since a flush lied, and are not known to be.
    pub silent: u64,
    /// Runs in which something was wrong.
    pub alarms: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.turned += other.turned;
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.recoveries += other.recoveries;
        self.sectors += other.sectors;
        self.torn += other.torn;
        self.restored += other.restored;
        self.injected += other.injected;
        self.found += other.found;
        self.excused += other.excused;
        self.chance += other.chance;
        self.damaged += other.damaged;
        self.lost += other.lost;
        self.silent += other.silent;
        self.alarms += other.alarms;
    }
}

/// The sums of many runs, for each durability.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: [Counts; Durability::ALL.len()],
}

impl Table {
    /// Adds what came out of a run.
    pub fn add(&mut self, durability: Durability, counts: &Counts) {
        let row = Durability::ALL.iter().position(|one| *one == durability);
        self.rows[row.expect("all are in the list")].add(counts);
    }
}

/// A column: its name, how wide it is, and what is in it.
type Column = (&'static str, usize, fn(&Counts) -> u64);

const COLUMNS: [Column; 16] = [
    ("runs", 6, |counts| counts.runs),
    ("turned", 7, |counts| counts.turned),
    ("cuts", 9, |counts| counts.cuts),
    ("kills", 8, |counts| counts.kills),
    ("in recovery", 12, |counts| counts.recoveries),
    ("sectors", 13, |counts| counts.sectors),
    ("torn", 9, |counts| counts.torn),
    ("restored", 9, |counts| counts.restored),
    ("injected", 9, |counts| counts.injected),
    ("found", 8, |counts| counts.found),
    ("excused", 8, |counts| counts.excused),
    ("chance", 7, |counts| counts.chance),
    ("damaged", 8, |counts| counts.damaged),
    ("lost", 7, |counts| counts.lost),
    ("silent", 7, |counts| counts.silent),
    ("wrong", 6, |counts| counts.alarms),
];

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<10}", "durability")?;
        COLUMNS.iter().try_for_each(|(name, width, _)| write!(f, " {name:>width$}"))?;
        for (durability, counts) in Durability::ALL.iter().zip(&self.rows) {
            write!(f, "\n{:<10}", durability.name())?;
            COLUMNS.iter().try_for_each(|(_, width, of)| write!(f, " {:>width$}", of(counts)))?;
        }
        Ok(())
    }
}
