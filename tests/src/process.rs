//! Processes of a world: started in their namespace and cgroup, watched, and ended by their own id.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{NetNs, wait::until};

/// Where a process runs: a network namespace and a cgroup.
#[derive(Clone, Debug)]
pub struct Place {
    pub netns: Arc<NetNs>,
    pub cgroup: PathBuf,
}

impl Place {
    /// A command that enters the cgroup, then the namespace, then starts the program: in this order and before
    /// its first socket, because the hooks that see a socket are those of the cgroup in which it was created.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let procs = self.cgroup.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("cannot open {}", procs.display()))?;
        let netns = Arc::clone(&self.netns);
        let mut command = Command::new(program.as_ref());
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                // 0 stands for the writing process.
                (&procs).write_all(b"0")?;
                setns(&*netns, CloneFlags::CLONE_NEWNET).map_err(Into::into)
            });
        }
        Ok(command)
    }
}

/// A running process whose output goes to a file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its standard output and error are appended to `log`.
    pub(crate) fn spawn(name: &str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let output = File::options().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to the process's standard input, if that is a pipe.
    pub fn tell(&mut self, text: &str) -> Result<()> {
        let stdin =
            self.child.stdin.as_mut().with_context(|| format!("{} is not to be told anything", self.name))?;
        stdin.write_all(text.as_bytes()).with_context(|| format!("cannot write to {}", self.name))
    }

    /// All that the process has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        until(&format!("{} ends", self.name), || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })
        .with_context(|| format!("its output:\n{}", self.log()))?;
        status.context("no exit status")
    }

    /// `SIGKILL`, and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }

    /// Waits until the process has written `text`.
    pub fn says(&mut self, text: &str) -> Result<()> {
        crate::eventually(&format!("{} says {text:?}", self.name), || {
            if self.log().contains(text) {
                return Ok(true);
            }
            match self.ended()? {
                Some(_) => Ok(self.log().contains(text)),
                None => bail!("its output so far:\n{}", self.log()),
            }
        })?
        .then_some(())
        .with_context(|| format!("{} ended before it said {text:?}:\n{}", self.name, self.log()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that has been reaped already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end and gives what it wrote; fails with both outputs if it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("cannot start {program}"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{program} failed ({status}):\n{stdout}{}", String::from_utf8_lossy(&stderr));
    }
    Ok(stdout)
}
