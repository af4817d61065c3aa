//! What the examples run ends when it is told to, as process 1 of a container.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sluice_tests::{eventually, test};

/// The commands of all containers in `deploy/examples`.
fn commands(directory: &Path, found: &mut Vec<Vec<String>>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            commands(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let objects: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(&path)?)?;
            for object in objects {
                let containers = object["spec"]["template"]["spec"]["containers"].as_array().cloned();
                for container in containers.unwrap_or_default() {
                    let words = container["command"].as_array().cloned().unwrap_or_default();
                    let words: Vec<String> =
                        words.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                    if !words.is_empty() {
                        found.push(words);
                    }
                }
            }
        }
    }
    Ok(())
}

/// A command as process 1 of a PID namespace. Its process and what it started go with it.
struct First {
    /// Waits for process 1, and takes it along if it is killed.
    parent: Child,
    pid: Pid,
}

impl First {
    fn start(command: &[String]) -> Result<Self> {
        let mut parent = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start unshare")?;
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let child = || {
            let pid: i32 = fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()?;
            // It has become what it is to be, and has a child of its own or waits for nothing.
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            line.starts_with(command[0].as_bytes()).then(|| Pid::from_raw(pid))
        };
        let found = eventually("process 1 has started", || child().context("it has not"));
        match found {
            Ok(pid) => Ok(Self { parent, pid }),
            Err(error) => {
                let _ = parent.kill();
                let _ = parent.wait();
                Err(error)
            }
        }
    }

    /// Whether process 1 handles SIGTERM (`SigCgt` of its status; bit 0 is signal 1).
    fn handles_sigterm(&self) -> Result<bool> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("no SigCgt")?;
        let caught = u64::from_str_radix(line.trim(), 16)?;
        Ok(caught & (1 << (Signal::SIGTERM as u64 - 1)) != 0)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

#[test]
fn their_containers_end_on_sigterm() {
    test("examples-end", |_| {
        let mut found = Vec::new();
        commands(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples"), &mut found)?;
        ensure!(!found.is_empty(), "no command in deploy/examples");
        for command in found {
            let mut first = First::start(&command)?;
            eventually("it handles SIGTERM", || {
                ensure!(first.handles_sigterm()?, "{command:?} as process 1 does not handle SIGTERM");
                Ok(())
            })?;
            kill(first.pid, Signal::SIGTERM)?;
            eventually("it ends", || {
                ensure!(
                    first.parent.try_wait()?.is_some(),
                    "{command:?} as process 1 does not end on SIGTERM"
                );
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// The test above can fail.
#[test]
fn a_bare_sleep_would_not() {
    test("examples-sleep", |_| {
        let first = First::start(&["sleep".to_owned(), "infinity".to_owned()])?;
        ensure!(!first.handles_sigterm()?);
        Ok(())
    });
}
