//! Endpoints that swallow connection requests, as those of a node that has vanished do.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, App, Capture, Load, Pod, Service, World, ask, eventually, test};

use crate::{grpc_calls, grpc_process};

/// `orders` of two instances that are asked in turn. `one` does not answer the client's connection requests.
struct Silent {
    orders: Service,
    apps: Vec<App>,
    client: Pod,
    agent: Agent,
}

impl Silent {
    fn open(world: &World, protocol: &str) -> Result<Self> {
        world.namespace("shop", Capture::Enabled)?;
        let orders = world.service("shop", "orders").port(protocol, 80, 8080).apply()?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "namespace": "shop", "name": "orders" },
            "spec": { "targetRefs": [{ "name": "orders" }], "loadBalancer": { "type": "RoundRobin" } },
        }))?;
        let mut apps = Vec::new();
        for version in ["one", "two"] {
            let pod = world.pod("shop", &format!("orders-{version}")).label("app", "orders").start()?;
            let process = match protocol {
                "grpc" => grpc_process(&pod, 8080, version)?,
                _ => pod.serve(&["--name", "orders", "--version", version])?,
            };
            apps.push(App { process, pod });
        }
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let silent = Self { orders, apps, client, agent };
        silent.route("add")?;
        Ok(silent)
    }

    /// Without a way back the kernel of `one` drops what asks it for a connection.
    fn route(&self, what: &str) -> Result<()> {
        self.apps[0].pod.netns().ip(&format!("route {what} blackhole {}", self.client.ipv4()))
    }

    /// `one` has been asked, in vain.
    fn has_waited(&self) -> Result<()> {
        let waited = self.agent.metrics()?.sum("sluice_upstream_connects_total", &[("outcome", "timeout")]);
        ensure!(waited >= 1.0, "{waited} connection requests were not answered");
        Ok(())
    }
}

#[test]
fn http_requests_go_to_who_answers() {
    test("silent-http", |world| {
        let silent = Silent::open(world, "http")?;
        let url = silent.orders.url();
        let report = Load::start(&silent.client, &url, &["--requests", "400"])?.finish()?;
        ensure!(report.failed == 0 && report.chains.keys().eq(["two"]), "{report:?}");
        silent.has_waited()?;
        // Nothing of a request has been sent before there is a connection: what cannot be done twice goes elsewhere, too.
        for _ in 0..20 {
            let said = silent.client.run("curl", &["-sS", "--fail", "-m", "10", "-d", "one order", &url])?;
            ensure!(said.contains("two"), "{said}");
        }
        silent.route("del")?;
        eventually("who answers again gets its share again", || {
            let mut answers = BTreeMap::<_, u32>::new();
            for _ in 0..10 {
                *answers.entry(ask(&silent.client, &url, &[])?.versions()).or_default() += 1;
            }
            ensure!(answers == BTreeMap::from([("one".into(), 5), ("two".into(), 5)]), "{answers:?}");
            Ok(())
        })
    });
}

#[test]
fn grpc_calls_go_to_who_answers() {
    test("silent-grpc", |world| {
        let silent = Silent::open(world, "grpc")?;
        let target = format!("{}:{}", silent.orders.ipv4, silent.orders.port);
        let answers = grpc_calls(&silent.client, &target, 400, &[])?;
        ensure!(answers == BTreeMap::from([("two".into(), 400)]), "{answers:?}");
        silent.has_waited()?;
        silent.route("del")?;
        eventually("who answers again gets its share again", || {
            let answers = grpc_calls(&silent.client, &target, 40, &[])?;
            ensure!(answers == BTreeMap::from([("one".into(), 20), ("two".into(), 20)]), "{answers:?}");
            Ok(())
        })
    });
}
