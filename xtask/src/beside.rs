//! A task of xtask that runs beside others, where those leave processors or the network idle: `cargo xtask ci` fetches programs
//! while it compiles, and compiles while tests wait.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, say};
use crate::workspace;

/// How much a task matters beside what it runs beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    Same,
    /// It gets processors that nobody else wants: tests are not to wait for it.
    Idle,
}

/// A running task. It ends with this value.
#[derive(Debug)]
pub(crate) struct Beside {
    words: String,
    /// With all that it starts, in a process group of its own.
    process: Child,
    /// What it says, which would be mixed up with what others say.
    log: PathBuf,
    has_ended: bool,
}

impl Beside {
    /// Starts `cargo xtask` with these words.
    pub(crate) fn start(words: &[&str], weight: Weight) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;

        let xtask = std::env::current_exe().context("where xtask is")?;
        let log = workspace::target_dir()?.join(format!("beside-{}.log", words[0]));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let idle = shell::which("chrt").filter(|_| weight == Weight::Idle);
        let mut command = match idle {
            Some(chrt) => {
                let mut command = Command::new(chrt);
                command.args(["--idle", "0"]).arg(xtask);
                command
            }
            None => Command::new(xtask),
        };
        command.args(words).current_dir(workspace::root()).process_group(0);
        command.stdin(std::process::Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let words = words.join(" ");
        say(&format!("beside: {words}"));
        let process = command.spawn().with_context(|| format!("cannot start xtask {words}"))?;
        Ok(Self { words, process, log, has_ended: false })
    }

    /// Waits until it has done its work; fails with what it said.
    pub(crate) fn end(mut self) -> Result<()> {
        let status = self.process.wait().with_context(|| format!("cannot wait for xtask {}", self.words))?;
        self.has_ended = true;
        if !status.success() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("xtask {} failed beside others: {status}; it said:\n{said}", self.words);
        }
        say(&format!("beside: {} is done", self.words));
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.has_ended {
            // What it has started would go on.
            let _ = Command::new("kill").args(["-TERM", "--", &format!("-{}", self.process.id())]).status();
            let _ = self.process.wait();
        }
    }
}
