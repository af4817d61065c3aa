//! What the kernel counts of pods' connections, exactly.

use anyhow::{Result, ensure};
use sluice_tests::{Agent, AgentBuilder, Capture, Pod, Process, Service, World, ask, eventually, test};

use crate::script;

struct Shop {
    server: Pod,
    _processes: [Process; 2],
    web: Service,
    client: Pod,
    agent: Agent,
}

/// A port of the server pod that belongs to no service.
const PORT: &str = "9000";

fn open(world: &World, agent: impl FnOnce(AgentBuilder) -> AgentBuilder) -> Result<Shop> {
    world.namespace("shop", Capture::Enabled)?;
    let server = world.pod("shop", "web-1").label("app", "web").start()?;
    let mut known = server.spawn("known", "python3", &[&script("flows.py"), "serve", PORT])?;
    known.says("listening")?;
    let web = server.serve(&["--name", "web"])?;
    let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
    let client = world.pod("shop", "client").start()?;
    let agent = agent(world.agent()).start()?;
    agent.enrolled(&client)?;
    Ok(Shop { server, _processes: [known, web], web: service, client, agent })
}

impl Shop {
    fn run(&self, args: &[&str]) -> Result<()> {
        self.client.run("python3", &[&[script("flows.py").as_str()], args].concat()).map(drop)
    }

    /// A number of the client's connections to this service, on this path.
    fn number(&self, name: &str, service: &str, path: &str, further: &[(&str, &str)]) -> Result<u64> {
        let labels = [("source_pod", "client"), ("destination_service", service), ("path", path)];
        Ok(self.agent.metrics()?.sum(name, &[&labels, further].concat()) as u64)
    }

    /// Waits until these numbers, and no others, are there: connections opened, failed and closed, bytes sent and
    /// received. The last segments of a connection may still be on their way when its application has ended.
    fn counted(&self, service: &str, path: &str, wanted: [u64; 5]) -> Result<()> {
        eventually(&format!("{path} to {service}: {wanted:?}"), || {
            let connections = |outcome| {
                self.number("sluice_flow_connections_total", service, path, &[("outcome", outcome)])
            };
            let bytes = |direction| {
                self.number("sluice_flow_bytes_total", service, path, &[("direction", direction)])
            };
            let counted = [
                connections("opened")?,
                connections("failed")?,
                connections("closed")?,
                bytes("sent")?,
                bytes("received")?,
            ];
            ensure!(counted == wanted, "{counted:?}");
            Ok(())
        })
    }
}

#[test]
fn connections_and_bytes_are_counted_exactly() {
    // Among the pods, as in a cluster: what the agent itself opens in a pod's network is not the pod's.
    test("flows", |world| {
        let shop = open(world, AgentBuilder::among_pods)?;
        let (ipv4, ipv6) = (shop.server.ipv4().to_string(), shop.server.ipv6().to_string());
        shop.run(&["ask", &ipv4, PORT, "20", "server"])?;
        shop.counted("other", "direct", [20, 0, 20, 20_000, 60_000])?;
        shop.run(&["ask", &ipv4, PORT, "10", "client"])?;
        shop.run(&["ask", &ipv6, PORT, "5", "server"])?;
        shop.run(&["ask", &format!("::ffff:{ipv4}"), PORT, "5", "client"])?;
        shop.counted("other", "direct", [40, 0, 40, 40_000, 120_000])?;
        shop.run(&["refused", &ipv4, "9", "3"])?;
        shop.counted("other", "direct", [40, 3, 40, 40_000, 120_000])?;
        let mut held = shop.client.spawn("hold", "python3", &[&script("flows.py"), "hold", &ipv4, PORT])?;
        held.says("holding")?;
        shop.counted("other", "direct", [41, 3, 40, 40_000, 120_000])?;
        held.kill()?;
        shop.counted("other", "direct", [41, 3, 41, 40_000, 120_000])?;
        let rtts = shop.number("sluice_flow_rtt_seconds_count", "other", "direct", &[])?;
        ensure!(rtts == 41, "{rtts} of 41 connections have a round trip time");
        ensure!(
            shop.agent.metrics()?.sum("sluice_flow_rtt_seconds_sum", &[("path", "direct")]) > 0.0,
            "they took some time"
        );

        // Redirected, and with the service's name; the ways between curl, the agent and the server differ.
        for _ in 0..5 {
            ask(&shop.client, &shop.web.url(), &[])?;
        }
        eventually("five redirected connections", || {
            let connections = |outcome| {
                let outcome = [("outcome", outcome)];
                shop.number("sluice_flow_connections_total", "web", "redirected", &outcome)
            };
            let counted = [connections("opened")?, connections("failed")?, connections("closed")?];
            ensure!(counted == [5, 0, 5], "{counted:?}");
            Ok(())
        })?;
        shop.counted("other", "direct", [41, 3, 41, 40_000, 120_000])?;
        ensure!(shop.number("sluice_flow_connections_total", "web", "direct", &[])? == 0);
        ensure!(shop.agent.connects("flow_lost")? == 0);
        Ok(())
    });
}

#[test]
fn a_service_that_is_not_captured_has_its_name() {
    test("flows-direct", |world| {
        let mut shop = open(world, |agent| agent)?;
        world.kube_proxy()?;
        // The kernel redirects nothing while the agent hangs.
        shop.agent.stop()?;
        eventually("a connection goes direct", || {
            let seen = shop.client.run("curl", &["-sS", "-m", "2", &shop.web.url()])?;
            ensure!(seen.contains("\"web\""), "{seen}");
            Ok(())
        })?;
        shop.agent.cont()?;
        shop.agent.ready()?;
        eventually("it was counted", || {
            let opened = [("outcome", "opened")];
            ensure!(shop.number("sluice_flow_connections_total", "web", "direct", &opened)? == 1);
            Ok(())
        })
    });
}

#[test]
fn without_flow_numbers_capture_is_as_ever() {
    test("flows-off", |world| {
        let shop = open(world, |agent| agent.args(&["--kernel-flows", "disabled"]))?;
        ask(&shop.client, &shop.web.url(), &[])?;
        ensure!(shop.agent.redirected()? >= 1);
        ensure!(shop.agent.metrics()?.series("sluice_flow_connections_total", &[]).count() == 0);
        Ok(())
    });
}
