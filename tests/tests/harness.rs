//! The harness itself, without an agent: a test that leans on it must be able to trust it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Answer, Capture, LoadReport, World, binary, eventually, test};

#[test]
fn pods_reach_each_other_and_cluster_ips() {
    test("reach", |world| {
        world.namespace("shop", Capture::Unmentioned)?;
        let stock = world.pod("shop", "stock-1").label("app", "stock").start()?;
        let _stock = stock.serve(&["--name", "stock"])?;
        let service = world.service("shop", "stock").port("http", 80, 8080).apply()?;
        world.kube_proxy()?;
        let orders = world.pod("shop", "orders-1").label("app", "orders").start()?;
        let _orders = orders.serve(&["--name", "orders", "--next", &service.url()])?;
        let orders_service = world.service("shop", "orders").port("http", 80, 8080).apply()?;
        let client = world.pod("shop", "client").start()?;

        for url in [
            format!("http://{}:8080", orders.ipv4()),
            format!("http://[{}]:8080", orders.ipv6()),
            orders_service.url(),
            orders_service.url6(),
        ] {
            let answer: Answer = serde_json::from_str(&client.run("curl", &["-sS", "-m", "5", &url])?)?;
            let pods: Vec<_> = answer.chain.iter().map(|hop| hop.pod.as_str()).collect();
            ensure!(pods == ["orders-1", "stock-1"], "{url} gave {answer:?}");
        }
        let load = binary("sluice-load")?;
        let report = client.run(load, &[&orders_service.url(), "--requests", "200"])?;
        let report: LoadReport = serde_json::from_str(report.lines().last().context("no report")?)?;
        ensure!((report.sent, report.ok) == (200, 200), "{report:?}");
        Ok(())
    });
}

#[test]
fn cluster_ips_follow_readiness() {
    test("ready", |world| {
        world.namespace("shop", Capture::Unmentioned)?;
        world.kube_proxy()?;
        let first = world.pod("shop", "stock-1").label("app", "stock").start()?;
        let second = world.pod("shop", "stock-2").label("app", "stock").start()?;
        let _first = first.serve(&["--name", "stock", "--version", "one"])?;
        let _second = second.serve(&["--name", "stock", "--version", "two"])?;
        let service = world.service("shop", "stock").port("http", 80, 8080).apply()?;
        let client = world.pod("shop", "client").start()?;
        let ask = || -> Result<LoadReport> {
            let load = binary("sluice-load")?;
            let report = client.run(load, &[&service.url(), "--requests", "100", "--new-connections"])?;
            Ok(serde_json::from_str(report.lines().last().context("no report")?)?)
        };
        ensure!(ask()?.chains.len() == 2);
        first.set_ready(false)?;
        ensure!(ask()?.chains.keys().eq(["two"]));
        first.set_ready(true)?;
        second.set_terminating()?;
        ensure!(ask()?.chains.keys().eq(["one"]));
        first.delete()?;
        let report = ask()?;
        ensure!(report.ok == 0 && report.failures.keys().eq(["connect: connection refused"]), "{report:?}");
        Ok(())
    });
}

#[test]
fn the_kubelets_other_spelling() -> Result<()> {
    let world = World::systemd("systemd")?;
    let mut pod = world.pod("shop", "a").start()?;
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pod.pause()))?;
    let slice = format!(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/",
        pod.uid.replace('-', "_")
    );
    ensure!(groups.contains(&slice), "{groups}");
    let before = (pod.ipv4(), pod.run("readlink", &["/proc/self/ns/net"])?);
    pod.replace_sandbox()?;
    let after = (pod.ipv4(), pod.run("readlink", &["/proc/self/ns/net"])?);
    ensure!(before.0 != after.0 && before.1 != after.1, "{before:?} {after:?}");
    Ok(())
}

/// Not a test by itself: the maker of a world that the test below kills.
#[test]
fn maker() -> Result<()> {
    if std::env::var_os("SLUICE_TEST_MAKER").is_none() {
        return Ok(());
    }
    let world = World::new("orphan")?;
    let pod = world.pod("shop", "a").start()?;
    println!("made {} {}", pod.pause(), world.pods_cgroup().display());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_harness_leaves_nothing() -> Result<()> {
    use std::io::{BufRead as _, BufReader};
    let mut maker = Command::new(std::env::current_exe()?)
        .args(["--exact", "maker", "--nocapture"])
        .env("SLUICE_TEST_MAKER", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(maker.stdout.take().context("no output")?);
    let line = output
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("made "))
        .context("no world was made")?;
    let mut words = line.split_once("made ").context("no world was made")?.1.split(' ');
    let (pause, cgroup) = (words.next().context("no pid")?, words.next().context("no cgroup")?);
    let pause = format!("/proc/{pause}");
    ensure!(Path::new(&pause).exists() && Path::new(cgroup).exists());
    maker.kill()?;
    maker.wait()?;
    eventually("the orphan's processes and cgroups are gone", || {
        ensure!(!Path::new(&pause).exists() && !Path::new(cgroup).exists());
        Ok(())
    })
}
