//! Agents that are killed, hang, or hand over, and pods without IPv6.

use anyhow::{Result, ensure};
use sluice_tests::{Agent, Capture, Load, Pod, World, binary, eventually, test};

use super::{Guarded, PORT, agent, denies, get, get_from_node, only, policy, urls};
use crate::{python, script};

/// Load on the application itself, with a new connection for each request.
fn load(client: &Pod, guarded: &Guarded) -> Result<Load> {
    Load::start(client, &urls(&guarded.pod)[0], &["--new-connections", "--connections", "4"])
}

fn open(world: &World) -> Result<(Guarded, Pod, Agent)> {
    world.namespace("shop", Capture::Enabled)?;
    let pod = world.pod("shop", "orders-1").label("app", "orders").start()?;
    let mut server = pod.spawn("service", binary("sluice-service")?, &["--name", "orders"])?;
    server.says("listening")?;
    world.service("shop", "orders").port("http", 80, PORT).apply()?;
    let guarded = Guarded { pod, server };
    let client = world.pod("shop", "client").start()?;
    let agent = agent(world, &guarded)?;
    policy(world, &only("shop"))?;
    denies(world, &urls(&guarded.pod)[0])?;
    Ok((guarded, client, agent))
}

#[test]
fn an_agent_that_is_killed_fails_nothing_but_what_is_in_flight() {
    test("inbound-kill", |world| {
        let (guarded, client, mut one) = open(world)?;
        let load = load(&client, &guarded)?;
        let url = &urls(&guarded.pod)[0];
        for _ in 0..2 {
            one.kill()?;
            // Without an agent nothing is enforced.
            ensure!(get_from_node(world, url)?.status == "200");
            one = agent(world, &guarded)?;
            denies(world, url)?;
        }
        let report = load.stop()?;
        ensure!(report.failed <= 8 && report.ok > 100, "{report:?}");
        let cut_off = ["closed", "reset", "connect: connection reset"];
        ensure!(report.failures.keys().all(|kind| cut_off.contains(&kind.as_str())), "{report:?}");
        Ok(())
    });
}

#[test]
fn an_agent_that_hangs_is_passed_by() {
    test("inbound-hang", |world| {
        let (guarded, client, agent) = open(world)?;
        let url = &urls(&guarded.pod)[0];
        agent.stop()?;
        eventually("connections go direct", || {
            let output = world.node().command("curl")?.args(["-sS", "-m", "2", url]).output()?;
            ensure!(String::from_utf8_lossy(&output.stdout).contains("orders"), "{output:?}");
            Ok(())
        })?;
        let during = load(&client, &guarded)?;
        ensure!(get_from_node(world, url)?.status == "200");
        let report = during.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        agent.cont()?;
        denies(world, url)?;
        ensure!(agent.connects("inbound_bypassed_agent_unresponsive")? > 0);
        Ok(())
    });
}

#[test]
fn agents_hand_over_without_a_failed_request() {
    test("inbound-hand-over", |world| {
        let (guarded, client, mut old) = open(world)?;
        let load = load(&client, &guarded)?;
        let url = &urls(&guarded.pod)[0];
        for _ in 0..3 {
            let new = agent(world, &guarded)?;
            // Never is nothing enforced.
            ensure!(get_from_node(world, url)?.status == "403");
            old.terminate()?;
            let status = old.wait()?;
            ensure!(status.success(), "{status}: {}", old.log());
            ensure!(get_from_node(world, url)?.status == "403");
            old = new;
        }
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        Ok(())
    });
}

#[test]
fn pods_without_ipv6_are_guarded_too() {
    test("inbound-v4", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let pod = world.pod("shop", "orders-1").label("app", "orders").ipv4_only().start()?;
        let mut server =
            pod.spawn("server", python(), &[&script("peer_server.py"), &PORT.to_string(), "0.0.0.0"])?;
        server.says("listening")?;
        world.service("shop", "orders").port("http", 80, PORT).apply()?;
        let guarded = Guarded { pod, server };
        let client = world.pod("shop", "client").start()?;
        let _agent = agent(world, &guarded)?;
        policy(world, &only("shop"))?;
        let [url, _] = urls(&guarded.pod);
        denies(world, &url)?;
        let got = get(&client, &url)?;
        ensure!(got.status == "200" && got.answer()?["accept"] == got.own, "{}", got.body);
        Ok(())
    });
}
