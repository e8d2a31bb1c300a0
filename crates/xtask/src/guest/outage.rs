//! Guest and server are killed together, as when a machine dies, while the guest writes to its file system.
//!
//! The guest says on its console what is fsynced. Whoever boots next is told, and looks for it.

use std::fmt;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::machine::{KillOrder, Machine};
use super::play::{Play, ensure_intact, ensure_no_errors};
use super::process::Desk;
use super::server::{Recovery, Server};

/// How many outages there are if nobody says otherwise.
pub(super) const ROUNDS: u32 = 20;
/// How long each of them may take.
pub(super) const ROUND_LIMIT: Duration = Duration::from_secs(120);

/// The writers of `tests/guest/outage.c`.
const WRITERS: usize = 6;
/// How long a guest goes on after its first step, before it is killed.
const LOAD_MS: Range<u64> = 200..5000;

/// How many outages, and the seed of what is written and when they come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outages {
    pub(super) rounds: u32,
    pub(super) seed: u64,
}

/// With ext4 on the volume.
pub(super) fn ext4(play: &Play<'_>) -> Result<String> {
    outages(play, "ext4")
}

/// With XFS on the volume.
pub(super) fn xfs(play: &Play<'_>) -> Result<String> {
    outages(play, "xfs")
}

fn outages(play: &Play<'_>, filesystem: &str) -> Result<String> {
    let Outages { rounds, seed } = play.outages;
    let deadline = Instant::now() + ROUND_LIMIT * (rounds + 1);
    let desk = Desk { directory: play.desk.directory, deadline };
    let play = Play { desk: &desk, ..*play };
    let mut server = Server::create(&play)?;
    let mut steps = Steps::default();
    let mut found = Vec::new();
    for round in 0..rounds {
        let first = if round == 0 { "outage-make" } else { "outage-check" };
        let machine = boot(&play, &format!("{first},outage-load"), filesystem, &steps)?;
        let (load, order) = choice(seed, round);
        let said = cut(&desk, machine, &mut server, load, order)?;
        steps.add(&said);
        ensure_intact(&server)?;
        let started = Instant::now();
        server.start()?;
        let recovered = Recovered { took: started.elapsed(), of: server.recovery()? };
        let milliseconds = load.as_millis();
        desk.log(&format!(
            "outage {round} after {milliseconds} ms, {order:?}: {recovered:?}; steps {steps}\n"
        ))?;
        ensure!(recovered.of.doubtful == 0, "the server does not know what to make of sectors");
        found.push(recovered);
    }
    last_check(&play, &mut server, filesystem, &steps)?;
    let total = steps.total();
    Ok(format!("{rounds} outages with seed {seed}, {total} steps; {}", summary(&found)))
}

fn boot<'a>(
    play: &Play<'a>,
    scenarios: &str,
    filesystem: &str,
    steps: &Steps,
) -> Result<Machine<'a>> {
    let (seed, steps) = (play.outages.seed.to_string(), steps.to_string());
    let more = [("filesystem", filesystem), ("seed", &seed), ("steps", &steps)];
    Machine::boot_with(play, scenarios, false, &more)
}

/// Lets the guest write for a while and kills it with its server; returns what it said.
fn cut(
    desk: &Desk<'_>,
    mut machine: Machine<'_>,
    server: &mut Server<'_>,
    load: Duration,
    order: KillOrder,
) -> Result<String> {
    desk.poll("the guest to write", Instant::now() + ROUND_LIMIT, || {
        let result = machine.result(server)?;
        ensure!(result.is_none(), "the guest found something wrong");
        Ok(machine.said()?.lines().any(|line| done(line).is_some()).then_some(()))
    })?;
    ensure_no_errors(server.counters()?)?;
    thread::sleep(load);
    ensure!(machine.result(server)?.is_none(), "the guest could not go on writing");
    machine.kill_with(server, order)
}

/// Nothing of the last outage is missing either, and the volume can be closed.
fn last_check(
    play: &Play<'_>,
    server: &mut Server<'_>,
    filesystem: &str,
    steps: &Steps,
) -> Result<()> {
    let mut machine = boot(play, "outage-check", filesystem, steps)?;
    ensure!(machine.wait(server)?, "the guest found something wrong");
    ensure_no_errors(server.counters()?)?;
    machine.power_off()?;
    server.stop()?;
    ensure_intact(server)
}

/// How long the guest goes on in a round, and who is killed first.
fn choice(seed: u64, round: u32) -> (Duration, KillOrder) {
    let random = mix(mix(seed) ^ u64::from(round));
    let order = if random >> 63 == 0 { KillOrder::GuestFirst } else { KillOrder::ServerFirst };
    let load = LOAD_MS.start + random % (LOAD_MS.end - LOAD_MS.start);
    (Duration::from_millis(load), order)
}

/// A number that looks random, from any other (splitmix64).
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The last step that each writer is known to have done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps([u64; WRITERS]);

impl Steps {
    /// Adds what a guest said. A line whose end is missing says nothing.
    fn add(&mut self, said: &str) {
        for line in said.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            if let Some((writer, step)) = done(line)
                && let Some(last) = self.0.get_mut(writer)
            {
                *last = step.max(*last);
            }
        }
    }

    fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|step| step.to_string()).join(","))
    }
}

/// The writer and the step of a line that says that it is done.
fn done(line: &str) -> Option<(usize, u64)> {
    let (writer, step) = line.strip_prefix("DONE ")?.trim_end().split_once(' ')?;
    Some((writer.parse().ok()?, step.parse().ok()?))
}

/// What a server recovered, and how long it took from its start until it listened.
#[derive(Clone, Copy, Debug)]
struct Recovered {
    took: Duration,
    of: Recovery,
}

/// The smallest, the middle and the largest of each figure.
fn summary(found: &[Recovered]) -> String {
    let records = spread(found.iter().map(|one| one.of.records));
    let settled = spread(found.iter().map(|one| one.of.settled));
    let milliseconds = spread(found.iter().map(|one| one.took.as_millis()));
    let found = (records, settled, milliseconds);
    let (Some(records), Some(settled), Some(milliseconds)) = found else {
        return "nothing to recover".to_owned();
    };
    format!(
        "recovery: records {records}, sectors settled {settled}, start of the server {milliseconds} ms"
    )
}

fn spread<T: Ord + Copy + fmt::Display>(values: impl Iterator<Item = T>) -> Option<String> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    let (first, last) = (values.first()?, values.last()?);
    Some(format!("{first}..{}..{last}", values[values.len() / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_of_each_writer_is_kept() {
        let mut steps = Steps::default();
        steps.add("PASS outage-mount (0.1 s)\r\nDONE 0 1\r\nDONE 5 7\r\nDONE 0 2\r\n");
        assert_eq!(steps.to_string(), "2,0,0,0,0,7");
    }

    #[test]
    fn a_line_that_was_cut_off_says_nothing() {
        let mut steps = Steps::default();
        steps.add("DONE 1 41\r\nDONE 1 42");
        assert_eq!(steps, Steps([0, 41, 0, 0, 0, 0]));
    }

    #[test]
    fn a_writer_that_there_is_not_does_nothing() {
        let mut steps = Steps::default();
        steps.add("DONE 6 1\nDONE x 1\nDONE 1\n");
        assert_eq!(steps.total(), 0);
    }

    #[test]
    fn the_same_seed_chooses_the_same_moments() {
        assert_eq!(choice(7, 3), choice(7, 3));
    }

    #[test]
    fn rounds_differ_in_moment_and_order() {
        let moments: Vec<_> = (0..20).map(|round| choice(7, round)).collect();
        let guest_first = moments.iter().filter(|one| one.1 == KillOrder::GuestFirst).count();
        let loads = Duration::from_millis(LOAD_MS.start)..Duration::from_millis(LOAD_MS.end);
        let in_range = |(load, _): &(Duration, _)| loads.contains(load);
        assert!((3..17).contains(&guest_first) && moments.iter().all(in_range));
    }

    #[test]
    fn a_summary_says_least_middle_and_most() {
        assert_eq!(spread([5, 1, 9].into_iter()).unwrap(), "1..5..9");
    }
}
