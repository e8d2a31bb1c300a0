//! How a case is played: the boots of the guest, the runs of the server, and what is checked then.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::case::Case;
use super::counters::Counters;
use super::machine::Machine;
use super::outage::Outages;
use super::process::Desk;
use super::server::{Kind, Server};

/// How long a server runs before it is taken away from a guest, which takes a second to find it.
const BETWEEN_RESTARTS: Duration = Duration::from_millis(2500);
const RECONNECT: Duration = Duration::from_secs(30);
const RESTARTS_MIN: u32 = 5;

/// What there is while one case is played.
pub(super) struct Play<'a> {
    pub(super) desk: &'a Desk<'a>,
    pub(super) kind: Kind<'a>,
    pub(super) case: &'a Case,
    /// The directory of the guest's kernel.
    pub(super) image: &'a str,
    /// For the cases that have any.
    pub(super) outages: Outages,
}

/// One boot, and nothing special.
pub(super) fn once(play: &Play<'_>) -> Result<String> {
    let mut server = Server::create(play)?;
    let counters = pass(play, &mut server, play.case.scenarios)?;
    server.stop()?;
    ensure_intact(&server)?;
    Ok(counters.to_string())
}

/// Three boots, and a server for each, of which the second is killed.
pub(super) fn persist(play: &Play<'_>) -> Result<String> {
    let mut server = Server::create(play)?;
    let mut counters = pass(play, &mut server, "write")?;
    server.stop()?;
    server.start()?;
    counters += pass(play, &mut server, "check,rewrite")?;
    server.kill()?;
    server.start()?;
    counters += pass(play, &mut server, "recheck")?;
    server.stop()?;
    ensure_intact(&server)?;
    Ok(counters.to_string())
}

/// One boot, and several servers that are asked to end.
pub(super) fn stopped(play: &Play<'_>) -> Result<String> {
    restarted(play, |server| server.stop())
}

/// One boot, and several servers that are killed.
pub(super) fn killed(play: &Play<'_>) -> Result<String> {
    restarted(play, |server| server.kill())
}

fn restarted(play: &Play<'_>, end: impl Fn(&mut Server<'_>) -> Result<()>) -> Result<String> {
    let desk = play.desk;
    let mut server = Server::create(play)?;
    let mut machine = Machine::boot(play, play.case.scenarios, true)?;
    desk.poll("the guest to begin", desk.deadline, || {
        machine.result(&mut server)?;
        Ok(machine.has_begun()?.then_some(()))
    })?;
    let mut counters = Counters::default();
    let mut restarts = 0;
    let passed = loop {
        let result = result_soon(desk, &mut machine, &mut server)?;
        let counted = server.counters()?;
        ensure_no_errors(counted)?;
        desk.log(&format!("{counted}\n"))?;
        counters += counted;
        if let Some(passed) = result {
            break passed;
        }
        end(&mut server)?;
        server.start()?;
        restarts += 1;
        wait_for_use(desk, &mut machine, &mut server)?;
    };
    ensure!(passed, "the guest found something wrong");
    ensure!(restarts >= RESTARTS_MIN, "only {restarts} restarts: the guest must take longer");
    machine.power_off()?;
    server.stop()?;
    ensure_intact(&server)?;
    Ok(format!("{restarts} restarts; {counters}"))
}

/// Gives guest and server some time; returns the guest's result if there is one by then.
fn result_soon(
    desk: &Desk<'_>,
    machine: &mut Machine<'_>,
    server: &mut Server<'_>,
) -> Result<Option<bool>> {
    let until = Instant::now() + BETWEEN_RESTARTS;
    desk.poll("the guest's result", desk.deadline, || match machine.result(server)? {
        None if Instant::now() < until => Ok(None),
        result => Ok(Some(result)),
    })
}

/// Waits until a server that was started under a guest has requests, or the guest has a result.
fn wait_for_use(desk: &Desk<'_>, machine: &mut Machine<'_>, server: &mut Server<'_>) -> Result<()> {
    desk.poll("the guest to use the new server", Instant::now() + RECONNECT, || {
        let used = !server.has_counters() || server.counters()?.requests() > 0;
        Ok((used || machine.result(server)?.is_some()).then_some(()))
    })
}

/// One boot with a policy that protects from nothing, so that something must go wrong.
pub(super) fn unprotected(play: &Play<'_>) -> Result<String> {
    let mut server = Server::create(play)?;
    let mut machine = Machine::boot(play, play.case.scenarios, false)?;
    let passed = machine.wait(&mut server)?;
    let counters = server.counters()?;
    machine.power_off()?;
    server.stop()?;
    let faults = server.verify()?;
    ensure!(!passed || faults > 0, "nothing went wrong: what has this test to say, then?");
    let guest = if passed { "no" } else { "some" };
    Ok(format!("the guest saw {guest} errors, verify finds {faults}; {counters}"))
}

/// Boots the guest, which must pass; returns what the server counted until then.
fn pass(play: &Play<'_>, server: &mut Server<'_>, scenarios: &str) -> Result<Counters> {
    let mut machine = Machine::boot(play, scenarios, false)?;
    ensure!(machine.wait(server)?, "the guest found something wrong");
    let counters = server.counters()?;
    ensure_no_errors(counters)?;
    ensure!(counters.requests() > 0 || !server.has_counters(), "the server counted no request");
    machine.power_off()?;
    Ok(counters)
}

pub(super) fn ensure_no_errors(counters: Counters) -> Result<()> {
    ensure!(counters.errors() == 0, "the server found errors: {counters}");
    Ok(())
}

pub(super) fn ensure_intact(server: &Server<'_>) -> Result<()> {
    let faults = server.verify()?;
    ensure!(faults == 0, "verify finds {faults} faults");
    Ok(())
}
