//! Servers that are measured.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::cpu::Process;
use crate::run::line;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

/// A server, which is killed when it is dropped.
pub(super) struct Server {
    child: Child,
}

impl Server {
    /// Starts a server, and waits until it has made its socket. What it says goes to a file.
    pub(super) fn start(mut serve: Command, socket: &str, log: &str) -> Result<Self> {
        let said = fs::File::create(log).with_context(|| format!("cannot make {log}"))?;
        serve.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let child = serve.spawn().with_context(|| format!("cannot run `{}`", line(&serve)))?;
        let mut server = Self { child };
        let until = Instant::now() + START;
        while !Path::new(socket).exists() {
            let ended = server.child.try_wait()?;
            ensure!(ended.is_none(), "`{}` ended; see {log}", line(&serve));
            ensure!(Instant::now() < until, "`{}` does not listen", line(&serve));
            sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Returns how long processors have worked for it, in seconds.
    pub(super) fn cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(Process::parse(&stat).with_context(|| format!("cannot understand {path}"))?.cpu)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is of no more use in either case.
        let _gone = self.child.kill().and_then(|()| self.child.wait());
    }
}
