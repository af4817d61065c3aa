//! Instances come and go under load, and nobody notices: warm-up and drain.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, App, Capture, Depot, Load, LoadReport, Pod, World, test};

/// Seconds.
pub(super) const WARM_UP: f64 = 10.0;

fn open(world: &World) -> Result<(Agent, Pod)> {
    world.namespace("shop", Capture::Enabled)?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok((agent, client))
}

/// A second instance that is ready since the second that is returned, beside an old one, under load.
fn warming(depot: &Depot<'_>) -> Result<(App, u64, Load, SystemTime)> {
    depot.policy(json!({"loadBalancer": {"warmUp": {"duration": format!("{WARM_UP}s")}}}))?;
    let load = depot.load(400, WARM_UP as u32 + 2)?;
    let began = SystemTime::now();
    let second = depot.instance("two")?;
    // Kubernetes tells the time of a transition in whole seconds.
    let ready = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    second.pod.set_ready(true)?;
    Ok((second, ready, load, began))
}

/// That the new instance got what the curve gives it, from the second after it was ready until it is warm. Then latencies
/// decide, and on a busy machine they differ.
pub(super) fn follows_the_curve(report: &LoadReport, began: SystemTime, ready: u64) -> Result<()> {
    ensure!(report.failed == 0, "{report:?}");
    let zero = began.duration_since(UNIX_EPOCH)?.as_secs_f64() - ready as f64;
    let (mut wanted, mut got, mut all) = (0.0, 0.0, 0.0);
    for (index, second) in report.timeline.iter().enumerate() {
        let count = |version| second.get(version).copied().unwrap_or_default() as f64;
        let since = zero + index as f64 + 0.5;
        // Whole seconds within the warm-up.
        if !(1.5..=WARM_UP - 0.5).contains(&since) {
            continue;
        }
        let factor = since / WARM_UP;
        let total = count("one") + count("two");
        wanted += total * factor / (1.0 + factor);
        got += count("two");
        all += total;
    }
    let off = (wanted - got).abs() / all;
    ensure!(all > 1000.0 && off < 0.03, "wanted {wanted:.0} and got {got:.0} of {all}: {report:?}");
    Ok(())
}

#[test]
fn a_new_instance_gets_its_share_little_by_little() {
    test("warmup", |world| {
        let (agent, client) = open(world)?;
        let depot = Depot::open(world, &agent, &client)?;
        let _first = depot.old_instance("one")?;
        let (_second, ready, load, began) = warming(&depot)?;
        follows_the_curve(&load.finish()?, began, ready)
    });
}

#[test]
fn the_curve_goes_on_under_a_new_agent() {
    test("warmup-restart", |world| {
        let (mut agent, client) = open(world)?;
        let (_apps, ready, load, began) = {
            let depot = Depot::open(world, &agent, &client)?;
            let first = depot.old_instance("one")?;
            let (second, ready, load, began) = warming(&depot)?;
            ((first, second), ready, load, began)
        };
        thread::sleep(Duration::from_secs(3));
        let mut next = world.agent().start()?;
        agent.terminate()?;
        ensure!(agent.wait()?.success(), "the first agent did not end in good order");
        std::mem::swap(&mut agent, &mut next);
        follows_the_curve(&load.finish()?, began, ready)
    });
}

#[test]
fn a_rolling_restart_loses_nothing() {
    test("rolling", |world| {
        let (agent, client) = open(world)?;
        let depot = Depot::open(world, &agent, &client)?;
        let mut instances = vec![depot.old_instance("one")?];
        let second = depot.instance("two")?;
        second.pod.set_ready(true)?;
        instances.push(second);
        depot.answers(&["one", "two"])?;
        let load = depot.load(500, 8)?;
        for version in ["three", "four"] {
            let next = depot.instance(version)?;
            next.pod.set_ready(true)?;
            // As a Deployment with `minReadySeconds` does.
            thread::sleep(Duration::from_secs(1));
            depot.end(instances.remove(0))?;
            instances.push(next);
        }
        let report = load.finish()?;
        ensure!(report.failed == 0 && report.sent > 3000, "{report:?}");
        let answered: Vec<_> = report.chains.keys().map(String::as_str).collect();
        ensure!(answered == ["four", "one", "three", "two"], "{answered:?}");
        Ok(())
    });
}
