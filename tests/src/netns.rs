//! Network namespaces, held by an open file and by nothing else: when the harness and the processes inside are gone,
//! so is the namespace. No name below `/run/netns` that somebody would have to remove.

use std::{
    fs::File,
    io::Write as _,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// Makes a namespace of which only the loopback interface exists, and that is up.
    pub fn create() -> Result<Self> {
        // A thread of its own, because the namespace is a property of the thread.
        let file = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (are you root?)")?;
            File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")
        })
        .join()
        .expect("the thread above does not panic")?;
        let netns = Self { file };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// A path by which other programs can open the namespace for as long as this value lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` on a thread inside the namespace. The thread stays in the cgroup of the harness.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
                Ok(work())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that runs inside the namespace, in the cgroup of the harness.
    pub fn command(&self, program: &str) -> Result<Command> {
        let file = self.file.try_clone().context("cannot duplicate a namespace handle")?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(Into::into));
        }
        Ok(command)
    }

    /// Feeds the lines of `batch` to `ip -batch`.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], batch)
    }

    /// Runs a program inside the namespace with `input` on its standard input, and fails with what it complained about.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        let mut child = self
            .command(program)?
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run `{program}`"))?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        // A program that ends early closes the pipe; its exit status tells more than the broken pipe.
        let written = stdin.write_all(input.as_bytes()).and_then(|()| stdin.write_all(b"\n"));
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("`{program}` failed: {}\n{input}", String::from_utf8_lossy(&output.stderr).trim());
        }
        written.with_context(|| format!("cannot write to `{program}`"))
    }

    /// Sets a kernel parameter of the namespace, named by its path below `/proc/sys`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{name}"), value))?
            .with_context(|| format!("cannot set {name} to {value}"))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
