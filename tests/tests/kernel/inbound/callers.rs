//! Who may call, what the application sees of its clients, and what is told of those that are denied.

use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Capture, Pod, StormReport, binary, eventually, test};

use super::{ANSWER, Got, PORT, agent, denies, get, get_from_node, guarded, only, policy, urls};

#[test]
fn the_application_sees_its_clients_and_only_those_that_may_call() {
    test("inbound", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("other", Capture::Enabled)?;
        world.namespace("plain", Capture::Unmentioned)?;
        let guarded = guarded(world, "::")?;
        let ours = world.pod("shop", "gateway").start()?;
        let theirs = world.pod("other", "stranger").start()?;
        let nobodys = world.pod("plain", "nobody").start()?;
        let agent = agent(world, &guarded)?;
        for url in urls(&guarded.pod) {
            ensure!(get(&theirs, &url)?.status == "200", "nothing is asked for yet");
        }
        policy(world, &only("shop"))?;
        let [v4, _] = urls(&guarded.pod);
        denies(world, &v4)?;
        for url in urls(&guarded.pod) {
            let got = get(&ours, &format!("{url}/a?b=c"))?;
            ensure!(got.status == "200", "{}", got.body);
            let answer = got.answer()?;
            ensure!(answer["accept"] == got.own && answer["getpeername"] == got.own, "{answer} {}", got.own);
            ensure!(answer["target"] == "/a?b=c", "{answer}");
            let own = answer["getsockname"][0].as_str().unwrap_or_default();
            ensure!(url.contains(own) && answer["getsockname"][1] == PORT, "{answer}");
            let headers = answer["headers"].as_object().context("headers")?;
            ensure!(headers.keys().map(String::as_str).eq(["accept", "host", "user-agent"]), "{answer}");
            for stranger in [&theirs, &nobodys] {
                let got = get(stranger, &url)?;
                ensure!(got.status == "403", "{} {}", got.status, got.body);
                let answer = got.answer()?;
                ensure!(answer["reason"] == "access_denied" && answer["policy"] == "shop/orders", "{answer}");
            }
        }
        let counted = |rule, decision| {
            let labels = [("policy_rule", rule), ("decision", decision), ("destination_service", "orders")];
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_access_requests_total", &labels))
        };
        ensure!(counted("ours", "allowed")? >= 2.0 && counted("no_rule", "denied")? >= 4.0);
        // What the pod sends to itself is nobody's business.
        ensure!(get(&guarded.pod, &v4)?.status == "200");
        // Nothing is denied that is only observed, and nothing at all once the policy is gone.
        let mut observed = only("shop");
        observed["mode"] = "Observe".into();
        policy(world, &observed)?;
        eventually("nothing is denied", || {
            ensure!(get(&theirs, &v4)?.status == "200");
            Ok(())
        })?;
        ensure!(counted("no_rule", "would_deny")? >= 1.0);
        policy(world, &only("shop"))?;
        denies(world, &v4)?;
        world.delete("AccessPolicy", "shop", "orders")?;
        eventually("nothing is denied", || {
            ensure!(get(&theirs, &v4)?.status == "200");
            Ok(())
        })?;
        let steered = agent.connects("inbound_steered_v4")?;
        ensure!(get(&theirs, &v4)?.status == "200");
        ensure!(agent.connects("inbound_steered_v4")? == steered, "nothing is asked for any more");
        Ok(())
    });
}

#[test]
fn paths_are_hidden_and_probes_are_not() {
    test("inbound-hidden", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("monitoring", Capture::Enabled)?;
        let guarded = guarded(world, "0.0.0.0")?;
        guarded.pod.edit(|pod| {
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({"httpGet": {"port": PORT, "path": "/actuator/health"}});
        })?;
        let client = world.pod("shop", "client").start()?;
        let prometheus = world.pod("monitoring", "prometheus").start()?;
        let _agent = agent(world, &guarded)?;
        let [url, _] = urls(&guarded.pod);
        policy(
            world,
            &json!({
                "rules": [{"name": "ours", "from": [{"namespace": "shop"}, {"namespace": "monitoring"}]}],
                "hidden": [{
                    "name": "management",
                    "paths": [{"value": "/actuator"}],
                    "from": [{"namespace": "monitoring"}],
                }],
            }),
        )?;
        denies(world, &url)?;
        for path in
            ["/actuator/env", "/x/..;/actuator", "/%61ctuator", "/actuator%2fenv", "/x?/../actuator/env"]
        {
            let target = format!("{url}{path}");
            let client_got =
                Got::of(&client.run("curl", &[&ANSWER[..], &["--path-as-is", &target]].concat())?)?;
            ensure!(client_got.status == "404", "{path}: {}", client_got.body);
            ensure!(get(&prometheus, &target)?.status == "200", "{path}");
        }
        ensure!(get(&client, &format!("{url}/orders"))?.status == "200");
        // The kubelet's probe, and what else comes from the node.
        ensure!(get_from_node(world, &format!("{url}/actuator/health"))?.status == "200");
        ensure!(get_from_node(world, &format!("{url}/actuator/env"))?.status == "404");
        ensure!(get_from_node(world, &format!("{url}/orders"))?.status == "403");
        Ok(())
    });
}

/// Whoever looks why a request was denied finds who made it and the rule; and who calls is known before anybody is denied.
#[test]
fn who_is_denied_is_told() {
    test("inbound-told", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("other", Capture::Enabled)?;
        let guarded = guarded(world, "0.0.0.0")?;
        let theirs = world.pod("other", "stranger").start()?;
        let agent = world.agent().args(&["--access-log", "json"]).start()?;
        agent.enrolled(&guarded.pod)?;
        let mut observed = only("shop");
        observed["mode"] = "Observe".into();
        policy(world, &observed)?;
        let [url, _] = urls(&guarded.pod);
        let of_client = |decision| {
            let labels =
                [("source_namespace", "other"), ("source_workload", "stranger"), ("decision", decision)];
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_access_client_requests_total", &labels))
        };
        eventually("it is counted", || {
            ensure!(get(&theirs, &url)?.status == "200");
            ensure!(of_client("would_deny")? >= 1.0);
            Ok(())
        })?;
        policy(world, &only("shop"))?;
        denies(world, &url)?;
        ensure!(get(&theirs, &format!("{url}/orders?secret=1"))?.status == "403");
        ensure!(of_client("denied")? >= 1.0);
        let (status, said, complaint) = agent.sluice(&["explain", "--last", "20", "-o", "json"])?;
        ensure!(status == 0, "{status}: {complaint}");
        for word in
            ["client other/stranger", "\"access\"", "rule no_rule of AccessPolicy shop/orders", "/orders"]
        {
            ensure!(said.contains(word), "{word}: {said}");
        }
        eventually("it is logged", || {
            let log = agent.log();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let is_it = |line: &Value| line["reason"] == "access_denied" && line["path"] == "/orders";
            let line = lines.rfind(is_it).context("no line")?;
            ensure!(line["source_namespace"] == "other" && line["source_pod"] == "stranger", "{line}");
            ensure!(
                line["service"] == "orders.shop:80"
                    && line["status"] == 403
                    && line["policy"] == "shop/orders",
                "{line}"
            );
            Ok(())
        })
    });
}

/// So many, from few local ports: all but those that leave before they ask for anything.
#[test]
fn each_of_50_000_short_connections_is_its_own_clients() {
    test("inbound-storm", |world| {
        const CONNECTIONS: u64 = 50_000;
        const CLIENTS: u64 = 4;
        world.namespace("shop", Capture::Enabled)?;
        let pod = world.pod("shop", "orders-1").label("app", "orders").start()?;
        let mut server =
            pod.spawn("server", binary("sluice-peers")?, &["serve", "--port", &PORT.to_string()])?;
        server.says("listening")?;
        world.service("shop", "orders").port("http", 80, PORT).apply()?;
        let clients = (0..CLIENTS)
            .map(|number| world.pod("shop", &format!("client-{number}")).start())
            .collect::<Result<Vec<_>>>()?;
        // Each is used again and again, soon after a reset; and the agent's, too.
        for client in &clients {
            client.netns().sysctl("net/ipv4/ip_local_port_range", "40000 40127")?;
        }
        pod.netns().sysctl("net/ipv4/ip_local_port_range", "40000 44095")?;
        let agent = world.agent().start()?;
        agent.enrolled(&pod)?;
        policy(world, &only("shop"))?;
        let urls = urls(&pod);
        denies(world, &urls[0])?;
        let targets = urls.each_ref().map(|url| url.trim_start_matches("http://"));
        let count = (CONNECTIONS / CLIENTS).to_string();
        let args = [&["call", "--connections", &count], &targets[..]].concat();
        let call = |client: &Pod| -> Result<StormReport> {
            Ok(serde_json::from_str(&client.run(binary("sluice-peers")?, &args)?)?)
        };
        let call = &call;
        let mut all = StormReport::default();
        thread::scope(|scope| -> Result<()> {
            let calls: Vec<_> = clients.iter().map(|client| scope.spawn(move || call(client))).collect();
            for call in calls {
                all.add(call.join().expect("it does not panic")?);
            }
            Ok(())
        })?;
        ensure!(all.wrong == 0 && all.failed == 0, "{all:?}");
        ensure!(all.right + all.abandoned == CONNECTIONS && all.right >= CONNECTIONS / 2, "{all:?}");
        // Also those that were reset as soon as they had asked are who they say, if the application saw them.
        let seen: StormReport =
            serde_json::from_str(&pod.run("curl", &["-sS", "-m", "10", &format!("{}/report", urls[0])])?)?;
        ensure!(seen.wrong == 0 && seen.right >= all.right, "{seen:?} {all:?}");
        ensure!(agent.connects("inbound_client_lost")? == 0);
        let steered = agent.connects("inbound_steered_v4")? + agent.connects("inbound_steered_v6")?;
        ensure!(steered >= CONNECTIONS, "some went past: {steered}");
        Ok(())
    });
}
