//! What two real pods get of the requests of a third, without any policy.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sluice_tests::{App, Capture, Depot, Load, LoadReport, World, eventually, test};

/// Two instances, started with these arguments.
fn pair(name: &str, args: [&[&str]; 2], body: impl FnOnce(&Depot<'_>, &[App; 2]) -> Result<()>) {
    test(name, |world: &World| {
        world.namespace("shop", Capture::Enabled)?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let depot = Depot::open(world, &agent, &client)?;
        let apps = [depot.instance_with("one", args[0])?, depot.instance_with("two", args[1])?];
        for app in &apps {
            app.pod.set_ready(true)?;
        }
        eventually("both are asked", || {
            let report = depot.requests(40)?;
            ensure!(report.chains.len() == 2 || report.failed > 0 && report.chains.len() == 1, "{report:?}");
            Ok(())
        })?;
        body(&depot, &apps)
    });
}

/// What each of the two got in each second, the first and the last left out, which are none.
fn seconds(report: &LoadReport) -> Vec<(f64, f64)> {
    let count = |second: &std::collections::BTreeMap<String, u64>, version| {
        second.get(version).copied().unwrap_or_default() as f64
    };
    let all = report.timeline.iter().map(|second| (count(second, "one"), count(second, "two")));
    let all: Vec<_> = all.collect();
    all.get(1..all.len().saturating_sub(1)).unwrap_or_default().to_vec()
}

/// The first one's part of all.
fn part(seconds: &[(f64, f64)]) -> f64 {
    let one: f64 = seconds.iter().map(|(one, _)| one).sum();
    one / seconds.iter().map(|(one, two)| one + two).sum::<f64>()
}

#[test]
fn two_equal_pods_get_the_same_in_every_second() {
    pair("equals", [&[], &[]], |depot, _| {
        for (rate, length) in [(10, 10), (100, 6), (300, 8), (1000, 6)] {
            let report = depot.load(rate, length)?.finish()?;
            ensure!(report.failed == 0, "{report:?}");
            let seconds = seconds(&report);
            let all = part(&seconds);
            // Chance alone leaves these bounds in less than one of a hundred thousand seconds of 200 requests; a busy machine,
            // on which the one or the other waits for its CPU, may do it once.
            ensure!((0.42..=0.58).contains(&all), "{all} at {rate} a second: {seconds:?}");
            let full = seconds.iter().filter(|(one, two)| one + two >= 200.0);
            let outside = full.filter(|second| !(0.4..=0.6).contains(&part(&[**second]))).count();
            ensure!(outside <= 1, "{outside} at {rate} a second: {seconds:?}");
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_takes_three_times_as_long_gets_at_most_a_quarter_and_comes_back() {
    pair("slow", [&["--delay", "60"], &["--delay", "20"]], |depot, apps| {
        // Of so few as sixty requests the part would scatter by 5 points.
        for (rate, length) in [(10, 16), (100, 5)] {
            // The first seconds are to find it out.
            drop(depot.load(rate, length)?.finish()?);
            let seconds = seconds(&depot.load(rate, length)?.finish()?);
            let slow = part(&seconds);
            ensure!(slow <= 0.25, "{slow} at {rate} a second: {seconds:?}");
        }
        // As fast as the other from now on. (A pod that comes back is no new endpoint.)
        let [slow, _] = apps;
        slow.process.signal(Signal::SIGUSR1)?;
        let seconds = seconds(&depot.load(100, 16)?.finish()?);
        let first = part(&seconds[..8]);
        ensure!(first > 0.1, "it is asked again: {seconds:?}");
        let last = part(&seconds[seconds.len() - 4..]);
        ensure!((0.35..=0.65).contains(&last), "{last} in the end: {seconds:?}");
        Ok(())
    });
}

#[test]
fn a_pod_that_fails_at_once_gets_less_than_its_share() {
    pair("fails", [&["--status", "500"], &[]], |depot, _| {
        for rate in [10, 300] {
            let report = depot.load(rate, 6)?.finish()?;
            let failed = report.failed as f64 / report.sent as f64;
            ensure!(failed > 0.0 && failed < 0.2, "{failed} at {rate} a second: {report:?}");
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_hangs_gets_a_trickle() {
    pair("hangs", [&[], &[]], |depot, apps| {
        let [hangs, _] = apps;
        hangs.process.signal(Signal::SIGSTOP)?;
        // One client, one request after the other, for a second each at most.
        let url = depot.service.url();
        let one_by_one = ["--connections", "1", "--timeout", "1000", "--requests", "200"];
        let report = Load::start(depot.client, &url, &one_by_one)?.finish()?;
        ensure!(report.failed <= 12, "{report:?}");
        let many = ["--connections", "16", "--timeout", "1000", "--rate", "100", "--seconds", "5"];
        let report = Load::start(depot.client, &url, &many)?.finish()?;
        ensure!(report.failed as f64 <= report.sent as f64 * 0.1, "{report:?}");
        hangs.process.signal(Signal::SIGCONT)?;
        let seconds = seconds(&depot.load(100, 16)?.finish()?);
        let last = part(&seconds[seconds.len() - 4..]);
        ensure!((0.3..=0.7).contains(&last), "{last} in the end: {seconds:?}");
        Ok(())
    });
}
