//! QEMU with the guest, and what it says on its serial console.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::play::Play;
use super::process::{Desk, Running};
use super::server::{SOCKET, Server};
use crate::run::command;

/// Where the serial consoles of all boots of a scenario are, one after the other.
pub(super) const SERIAL: &str = "serial.log";
/// What QEMU itself has to say: of each server that went away, among other things.
pub(super) const COMPLAINTS: &str = "qemu.log";

const POWER_OFF: Duration = Duration::from_secs(30);

/// Who of a guest and its server is killed some microseconds before the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KillOrder {
    GuestFirst,
    ServerFirst,
}

/// A guest that was booted; killed when it is dropped.
pub(super) struct Machine<'a> {
    desk: &'a Desk<'a>,
    qemu: Running,
    /// Where its part of the log begins.
    log_start: usize,
}

impl<'a> Machine<'a> {
    /// Boots a guest that runs these scenarios, separated by commas. With `reconnect`, its disk
    /// waits for a new server when the old one goes away.
    pub(super) fn boot(play: &Play<'a>, scenarios: &str, reconnect: bool) -> Result<Self> {
        Self::boot_with(play, scenarios, reconnect, &[])
    }

    /// Boots a guest that is told more than that, as names and values.
    pub(super) fn boot_with(
        play: &Play<'a>,
        scenarios: &str,
        reconnect: bool,
        more: &[(&str, &str)],
    ) -> Result<Self> {
        let case = play.case;
        let memory = case.memory_mib;
        let backend = format!("memory-backend-memfd,id=memory,share=on,size={memory}M");
        let socket =
            format!("socket,id=disk,path={SOCKET}{}", if reconnect { ",reconnect=1" } else { "" });
        let disk = format!("vhost-user-blk-pci,chardev=disk,num-queues={}", case.queues);
        let (kernel, initramfs) =
            (format!("{}/vmlinuz", play.image), format!("{}/initramfs.gz", play.image));
        let mut parameters = format!(
            "console=ttyS0 quiet loglevel=1 panic=-1 oops=panic \
             holdfast.scenarios={scenarios} holdfast.seconds={}",
            case.seconds
        );
        for (name, value) in more {
            parameters.push_str(&format!(" holdfast.{name}={value}"));
        }
        let memory = memory.to_string();
        // Software emulation, which is everywhere: machines that run tests are often guests themselves.
        let mut qemu = command(
            "qemu-system-x86_64",
            &["-machine", "pc,accel=tcg,memory-backend=memory", "-cpu", "max", "-smp", "2"],
        );
        qemu.args(["-m", &memory, "-object", &backend, "-chardev", &socket, "-device", &disk]);
        qemu.args(["-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio"]);
        qemu.args(["-no-reboot", "-kernel", &kernel, "-initrd", &initramfs]);
        qemu.args(["-append", &parameters]);
        let log_start = play.desk.text(SERIAL).map_or(0, |text| text.len());
        Ok(Self { desk: play.desk, qemu: play.desk.start(&qemu, SERIAL, COMPLAINTS)?, log_start })
    }

    /// Whether the guest has its disk and has begun.
    pub(super) fn has_begun(&self) -> Result<bool> {
        Ok(self.said()?.contains("PASS disk"))
    }

    /// Whether the scenarios passed, as soon as that is known; fails when it cannot be known any more.
    pub(super) fn result(&mut self, server: &mut Server<'_>) -> Result<Option<bool>> {
        if let Some(passed) = passed(&self.said()?) {
            return Ok(Some(passed));
        }
        server.ensure_running()?;
        ensure!(self.qemu.is_running()?, "QEMU ended; see {COMPLAINTS}");
        Ok(None)
    }

    /// Waits for the end of the scenarios, and returns whether they passed.
    pub(super) fn wait(&mut self, server: &mut Server<'_>) -> Result<bool> {
        let desk = self.desk;
        desk.poll("the guest's result", desk.deadline, || self.result(server))
    }

    /// Lets the guest power off, for which it waits.
    pub(super) fn power_off(mut self) -> Result<()> {
        let mut stdin = self.qemu.take_stdin().context("the guest was powered off already")?;
        stdin.write_all(b"\n").context("cannot write to the guest's console")?;
        let status = self.desk.wait(&mut self.qemu, Instant::now() + POWER_OFF)?;
        if !status.success() {
            bail!("QEMU ended with {status}; see {COMPLAINTS}");
        }
        Ok(())
    }

    /// Kills it and the server at the same time; returns what it said until then.
    pub(super) fn kill_with(self, server: &mut Server<'_>, order: KillOrder) -> Result<String> {
        let (desk, log_start) = (self.desk, self.log_start);
        let disk = server.take()?;
        match order {
            KillOrder::GuestFirst => Running::kill_both(self.qemu, disk)?,
            KillOrder::ServerFirst => Running::kill_both(disk, self.qemu)?,
        }
        Ok(desk.text(SERIAL)?.get(log_start..).unwrap_or_default().to_owned())
    }

    /// What it has said since it was booted.
    pub(super) fn said(&self) -> Result<String> {
        let text = self.desk.text(SERIAL)?;
        Ok(text.get(self.log_start..).unwrap_or_default().to_owned())
    }
}

/// What the guest said of its scenarios, if it did.
fn passed(console: &str) -> Option<bool> {
    let result = console.lines().find_map(|line| line.strip_prefix("GUEST-RESULT: "))?;
    Some(result.trim_end() == "PASS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_passes_when_it_says_so() {
        assert_eq!(passed("PASS pattern (3.0 s)\r\nGUEST-RESULT: PASS\r\n"), Some(true));
    }

    #[test]
    fn a_guest_fails_when_it_says_so() {
        assert_eq!(passed("FAIL pattern (3.0 s)\r\nGUEST-RESULT: FAIL\r\n"), Some(false));
    }

    #[test]
    fn a_guest_that_goes_on_has_no_result() {
        assert_eq!(passed("PASS pattern (3.0 s)\r\n"), None);
    }
}
