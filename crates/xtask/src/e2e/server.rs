//! `holdfast serve`, from its first connection to its exit status.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::scene::{Background, Scene};
use crate::run::command;

const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(10);

/// A served volume; killed when it is dropped before `stop`.
pub(super) struct Server<'a> {
    scene: &'a Scene,
    program: Background,
    socket: String,
}

impl<'a> Server<'a> {
    /// Makes a volume of this size, with these other options, and serves it.
    pub(super) fn create(
        scene: &'a Scene,
        volume: &str,
        size: &str,
        options: &[&str],
    ) -> Result<Self> {
        scene.ok(scene.holdfast(&["create", volume, "--size", size]).args(options))?;
        Self::start(scene, volume, &[])
    }

    /// Serves a volume at the socket beside it, with these other options, and waits until it answers
    /// there.
    pub(super) fn start(scene: &'a Scene, volume: &str, options: &[&str]) -> Result<Self> {
        let socket = Path::new(volume).with_extension("sock").display().to_string();
        let mut serve = scene.holdfast(&["serve", volume]);
        let mut program = scene.start(serve.args(options), "server.log")?;
        scene.poll("the server to listen", Instant::now() + START, || {
            ensure!(program.is_running()?, "the server ended at once; see server.log");
            Ok(UnixStream::connect(&socket).ok())
        })?;
        Ok(Self { scene, program, socket })
    }

    /// Where clients find the volume.
    pub(super) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket)
    }

    pub(super) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Waits until the server has died that somebody has killed.
    pub(super) fn wait_for_death(mut self) -> Result<()> {
        self.scene.wait(&mut self.program, Instant::now() + STOP).map(drop)
    }

    /// Asks the server to end, and checks that it does so in time and in peace.
    pub(super) fn stop(mut self) -> Result<()> {
        ensure!(self.program.is_running()?, "the server ended before it was asked to");
        let kill = format!("kill -TERM {}", self.pid());
        // The shell has a kill of its own; Debian's smallest systems have no other.
        self.scene.ok(&mut command("sh", &["-c", &kill]))?;
        let status = self.scene.wait(&mut self.program, Instant::now() + STOP)?;
        if !status.success() {
            bail!("the server ended with {status} after SIGTERM");
        }
        let said = fs::read(self.scene.path("server.log"))?;
        ensure!(!String::from_utf8_lossy(&said).contains("panicked at"), "the server panicked");
        Ok(())
    }
}
