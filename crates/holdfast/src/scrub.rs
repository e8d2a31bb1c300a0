//! `holdfast scrub`, and what it steers: a server that reads and verifies its volume in the background.

mod activity;
mod meter;
mod pace;
mod scrubber;
mod status;
mod steering;

use std::io::Write;

use anyhow::{Context, bail};
use holdfast_device::Access;
use holdfast_volume::Volume;

use crate::Outcome;
use crate::backing;
use crate::cli::{Scrub, ScrubAction, ScrubTarget};
use crate::control::{self, Request};
use crate::info::Use;
use crate::store::Store;

pub(crate) use self::activity::{Activity, Counted};
pub(crate) use self::pace::Plan;
pub(crate) use self::scrubber::Scrubber;
pub(crate) use self::status::{State, Status};
pub(crate) use self::steering::Steering;

pub(crate) fn run(arguments: &Scrub) -> anyhow::Result<Outcome> {
    let (target, request) = match &arguments.action {
        ScrubAction::Start(target) => (target, Request::ScrubStart),
        ScrubAction::Stop(target) => (target, Request::ScrubStop),
        ScrubAction::Status(target) => (target, Request::ScrubStatus),
    };
    let path = &target.path;
    let store = Store::open(path, Access::Peek, None)?;
    let peeked = store.named();
    let mut device = store.device(&backing::ring()?)?;
    let superblock =
        Volume::peek(&mut device).with_context(|| format!("cannot read {}", path.display()))?;
    let asked = control::ask::<Status>(&superblock.uuid_text(), &store, &request)?;
    let is_served = asked.is_some();
    let status = match asked {
        Some(status) => status,
        None if request == Request::ScrubStatus => {
            Status::stored(&superblock.scrub, superblock.geometry.capacity())
        }
        None => {
            if let Some(pid) = Use::of(peeked, &superblock)?.holder() {
                return Err(control::silent(peeked, pid));
            }
            let path = path.display();
            bail!(
                "nobody serves {path}, and a server is what scrubs: start `holdfast serve {path}`"
            );
        }
    };
    show(target, &status, is_served)?;
    // Only who asks for the result is told by the exit code that it is bad.
    let is_asked = request == Request::ScrubStatus;
    Ok(if is_asked && status.has_problems() { Outcome::Problems } else { Outcome::Fine })
}

fn show(target: &ScrubTarget, status: &Status, is_served: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if target.json {
        serde_json::to_writer_pretty(&mut out, status)?;
        writeln!(out)?;
    } else {
        let server = if is_served { "running" } else { "not running" };
        write!(out, "server           {server}\n{status}")?;
    }
    Ok(())
}
