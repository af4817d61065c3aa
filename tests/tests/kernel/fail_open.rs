//! The agent dies, the agent hangs: pods reach their services all the same, and nothing is left behind.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Agent, App, Capture, Load, LoadReport, Pod, Service, World, ask, eventually, test};

const BAGGAGE: &str = "baggage: x-mse-tag=gray";
const CONNECTIONS: u64 = 8;
/// How often the agent is killed.
const ROUNDS: u64 = 3;

/// A service with and without an agent, and an enrolled pod that calls it.
fn open(world: &World) -> Result<(Service, App, Pod, Agent)> {
    world.namespace("shop", Capture::Enabled)?;
    world.kube_proxy()?;
    let app = App::start(world, "web", "v1", None)?;
    let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok((service, app, client, agent))
}

/// Load with a new connection for each request, and each request telling whether it went through an agent.
fn load(client: &Pod, service: &Service) -> Result<Load> {
    let connections = CONNECTIONS.to_string();
    let args =
        ["--new-connections", "--connections", &connections, "--header", BAGGAGE, "--mark", "x-mse-tag"];
    Load::start(client, &service.url(), &args)
}

/// Waits until a request of another client of the same pod goes the expected way.
fn goes(client: &Pod, service: &Service, through: bool) -> Result<()> {
    eventually(if through { "connections are captured" } else { "connections go direct" }, || {
        let answer = ask(client, &format!("{}/?headers", service.url()), &[BAGGAGE])?;
        let hop = answer.chain.first().context("nobody answered")?;
        ensure!(hop.headers.contains_key("x-mse-tag") == through, "{hop:?}");
        Ok(())
    })
}

fn direct(report: &LoadReport) -> u64 {
    report.ok - report.marked
}

#[test]
fn kill_9_fails_nothing_but_what_is_in_flight() {
    test("kill", |world| {
        let (service, _app, client, mut agent) = open(world)?;
        let load = load(&client, &service)?;
        for _ in 0..ROUNDS {
            goes(&client, &service, true)?;
            agent.kill()?;
            goes(&client, &service, false)?;
            agent = world.agent().start()?;
            agent.enrolled(&client)?;
        }
        goes(&client, &service, true)?;
        let report = load.stop()?;
        ensure!(report.failed <= ROUNDS * CONNECTIONS, "{report:?}");
        // Cut off, also as early as in the handshake; but nobody is sent to a listener that is not there any more.
        let cut_off = ["closed", "reset", "connect: connection reset"];
        ensure!(report.failures.keys().all(|kind| cut_off.contains(&kind.as_str())), "{report:?}");
        ensure!(report.marked > 0 && direct(&report) > 0, "{report:?}");
        Ok(())
    });
}

#[test]
fn a_hanging_agent_is_passed_by() {
    test("hang", |world| {
        let (service, _app, client, agent) = open(world)?;
        goes(&client, &service, true)?;
        // Patient clients, which the agent leaves waiting.
        let patient = ["--new-connections", "--connections", "4", "--timeout", "60000"];
        let patient = Load::start(&client, &service.url(), &patient)?;
        eventually("there is load", || {
            ensure!(agent.metrics()?.sum("sluice_requests_total", &[]) > 50.0);
            Ok(())
        })?;
        agent.stop()?;
        // A connection that reaches the hanging agent fails; soon none does any more.
        eventually("connections go direct", || {
            let said = client.run("curl", &["-sS", "-m", "2", &service.url()])?;
            ensure!(said.contains("web"), "{said}");
            Ok(())
        })?;
        let during = load(&client, &service)?;
        goes(&client, &service, false)?;
        let report = during.stop()?;
        ensure!(report.failed == 0 && report.marked == 0 && report.ok > 0, "{report:?}");
        agent.cont()?;
        goes(&client, &service, true)?;
        ensure!(agent.connects("bypassed_agent_unresponsive")? > 0);
        let report = patient.stop()?;
        ensure!(report.failed == 0 && report.ok > 50, "{report:?}");
        Ok(())
    });
}

#[test]
fn an_agent_that_keeps_everybody_waiting_is_passed_by() {
    test("late", |world| {
        let (service, _app, client, agent) = open(world)?;
        goes(&client, &service, true)?;
        // It runs for a moment now and then, so that each of its timers fires in less than a second.
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let late = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    agent.stop()?;
                    thread::sleep(Duration::from_millis(700));
                    agent.cont()?;
                    thread::sleep(Duration::from_millis(60));
                }
                Ok::<_, anyhow::Error>(())
            });
            let passed = goes(&client, &service, false);
            done.store(true, Ordering::Relaxed);
            late.join().expect("it does not panic").and(passed)
        })?;
        goes(&client, &service, true)?;
        ensure!(agent.connects("bypassed_agent_unresponsive")? > 0);
        ensure!(agent.metrics()?.sum("sluice_worker_delay_seconds", &[]) > 0.5);
        Ok(())
    });
}

/// The eBPF objects that a process holds, by kind and id.
fn held(pid: u32) -> Result<BTreeSet<(String, u32)>> {
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A file that was closed meanwhile holds nothing.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        for line in info.lines() {
            if let Some((kind @ ("prog_id" | "map_id" | "link_id"), id)) = line.split_once(":\t") {
                held.insert((kind.to_owned(), id.trim().parse()?));
            }
        }
    }
    Ok(held)
}

/// Those of `held` that the kernel still has.
fn left(held: &BTreeSet<(String, u32)>) -> Result<Vec<(String, u32)>> {
    let mut present = BTreeSet::new();
    for program in aya::programs::loaded_programs() {
        present.insert(("prog_id".to_owned(), program?.id()));
    }
    for map in aya::maps::loaded_maps() {
        present.insert(("map_id".to_owned(), map?.id()));
    }
    for link in aya::programs::loaded_links() {
        present.insert(("link_id".to_owned(), link?.id()));
    }
    Ok(held.intersection(&present).cloned().collect())
}

#[test]
fn nothing_is_left_in_the_kernel() {
    test("nothing-left", |world| {
        let (service, _app, client, mut agent) = open(world)?;
        for killed in [true, false] {
            goes(&client, &service, true)?;
            let held = held(agent.pid())?;
            let count = |kind: &str| held.iter().filter(|(other, _)| other == kind).count();
            // At least connect4, connect6 and sock_ops, attached, and the maps that they share.
            ensure!(count("prog_id") + count("link_id") >= 3 && count("map_id") >= 5, "{held:?}");
            ensure!(left(&held)?.len() == held.len(), "not all that the agent holds is there: {held:?}");
            if killed {
                agent.kill()?;
            } else {
                agent.terminate()?;
                let status = agent.wait()?;
                ensure!(status.success(), "{status}: {}", agent.log());
            }
            // The kernel frees them a moment after the last file is closed.
            eventually("the kernel has let go", || {
                let left = left(&held)?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })?;
            goes(&client, &service, false)?;
            agent = world.agent().start()?;
            agent.enrolled(&client)?;
        }
        Ok(())
    });
}
