//! What keeps an agent from working is told, and what can be mended is mended.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Agent, App, Capture, Load, Pod, Service, World, ask, eventually, test};

use crate::{python, script};

const BAGGAGE: &str = "baggage: x-mse-tag=gray";

/// A helper that runs until this is dropped.
pub(crate) struct Helper(Child);

impl Helper {
    /// Runs a script, and waits until it says that it has done its work.
    pub(crate) fn start(name: &str, argument: impl AsRef<OsStr>, done: &str) -> Result<Self> {
        let mut command = Command::new(python());
        let child = command.arg(script(name)).arg(argument).stdout(Stdio::piped()).spawn()?;
        let mut helper = Self(child);
        let mut said = String::new();
        BufReader::new(helper.0.stdout.take().context("it is piped")?).read_line(&mut said)?;
        ensure!(said.trim() == done, "{name} said {said:?}");
        Ok(helper)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shop(world: &World) -> Result<(Service, App)> {
    world.namespace("shop", Capture::Enabled)?;
    world.kube_proxy()?;
    let app = App::start(world, "web", "v1", None)?;
    Ok((world.service("shop", "web").port("http", 80, 8080).apply()?, app))
}

/// Whether a request of the pod went through the agent.
fn captured(client: &Pod, service: &Service) -> Result<bool> {
    let answer = ask(client, &format!("{}/?headers", service.url()), &[BAGGAGE])?;
    let hop = answer.chain.first().context("nobody answered")?;
    Ok(hop.headers.contains_key("x-mse-tag"))
}

/// Waits until `/readyz` says that it is not, for this reason, and `sluice status` says it too.
fn unready(agent: &Agent, why: &str) -> Result<()> {
    eventually(&format!("/readyz says {why:?}"), || {
        let (status, said) = agent.get("/readyz")?;
        ensure!(status == 503 && said.contains(why), "{status}: {said}");
        Ok(())
    })?;
    let (_, said, _) = agent.sluice(&["status"])?;
    ensure!(said.contains("NOT READY") && said.matches(why).count() == 1, "{said}");
    Ok(())
}

/// Removes a cgroup and those below it, in which there is no process.
fn remove(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("cannot remove {}", group.display()))
}

#[test]
fn a_cgroup_of_pods_that_is_made_again_is_attached_to_again() {
    test("made-again", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let mut agent = world.agent().start()?;
        for _ in 0..2 {
            remove(world.pods_cgroup())?;
            unready(&agent, "the eBPF programs are not attached")?;
            fs::create_dir_all(world.pods_cgroup())?;
            agent.ready()?;
        }
        let (service, _app) = shop(world)?;
        let client = world.pod("shop", "client").start()?;
        agent.enrolled(&client)?;
        eventually("connections are captured", || {
            ensure!(captured(&client, &service)?);
            Ok(())
        })?;
        // And it stops as any other.
        agent.terminate()?;
        ensure!(agent.wait()?.success());
        ensure!(!captured(&client, &service)?);
        Ok(())
    });
}

#[test]
fn a_program_that_runs_before_ours_is_named() {
    test("behind", |world| {
        let first = Helper::start("other_program.py", world.pods_cgroup(), "attached")?;
        let mut agent = world.agent().spawn()?;
        unready(&agent, "before Sluice does: \"other\"")?;
        // One that came later is behind ours, and in nobody's way.
        let second = Helper::start("other_program.py", world.pods_cgroup(), "attached")?;
        drop(first);
        agent.ready()?;
        // Another agent's programs before ours are those of one that hands over.
        let mut next = world.agent().spawn()?;
        unready(&next, "before Sluice does: \"other\"")?;
        drop(second);
        next.ready()?;
        Ok(())
    });
}

/// The thread of a worker.
pub(crate) fn worker(agent: &Agent) -> Result<OsString> {
    let threads = format!("/proc/{}/task", agent.pid());
    let worker = fs::read_dir(threads)?.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        name.starts_with("sluice-worker-").then(|| entry.file_name())
    });
    worker.min().context("there is a worker")
}

#[test]
fn a_worker_that_hangs_ends_the_agent() {
    test("stuck", |world| {
        let (service, _app) = shop(world)?;
        let client = world.pod("shop", "client").start()?;
        let mut agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let _stopped = Helper::start("stop_thread.py", worker(&agent)?, "stopped")?;
        unready(&agent, "a worker is silent")?;
        ensure!(!captured(&client, &service)?, "connections go direct");
        let ended = agent.wait()?;
        ensure!(ended.code() == Some(1), "{ended}");
        ensure!(agent.log().contains("a worker does not come back"), "{}", agent.log());
        ensure!(!captured(&client, &service)?);
        Ok(())
    });
}

/// A terminal that is closed, or a logrotate that means well, resets nothing.
#[test]
fn signals_that_mean_nothing_end_nothing() {
    test("signals", |world| {
        let (service, _app) = shop(world)?;
        let client = world.pod("shop", "client").start()?;
        let mut agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let load = Load::start(&client, &service.url(), &["--connections", "4"])?;
        for name in agent.idle_signals()? {
            let line = format!("signal=\"{name}\"");
            eventually("it is said", || {
                let log = agent.log();
                ensure!(log.contains("has no effect") && log.contains(&line), "{name}: {log}");
                Ok(())
            })?;
        }
        ensure!(agent.ended()?.is_none(), "{}", agent.log());
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        ensure!(captured(&client, &service)?, "it goes on");
        agent.terminate()?;
        ensure!(agent.wait()?.success(), "{}", agent.log());
        Ok(())
    });
}
