//! A pod with the readiness gate `sluice.dev/warm` is warmed before it is Ready, and Ready when it is warm.

use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sluice_tests::{Agent, App, Capture, Depot, Pod, World, eventually, test_in};

const GATE: &str = "sluice.dev/warm";

/// What the API server says of the pod's gate.
fn gate(world: &World, pod: &Pod) -> Result<Option<Value>> {
    let object = world.api(|api| Ok(api.get("pods", &pod.namespace, &pod.name)))?;
    let object = object.context("the pod is there")?;
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    Ok(conditions.find(|condition| condition["type"] == GATE).cloned())
}

/// What the kubelet says of a pod whose containers are ready since then: it is Ready when its gate is True. Tells whether it is.
fn kubelet(world: &World, pod: &Pod, since: &str) -> Result<bool> {
    let gate = gate(world, pod)?;
    let is_ready = gate.as_ref().is_some_and(|gate| gate["status"] == "True");
    let mut conditions = vec![
        json!({"type": "ContainersReady", "status": "True", "lastTransitionTime": since}),
        json!({"type": "Ready", "status": if is_ready { "True" } else { "False" }, "lastTransitionTime": since}),
    ];
    conditions.extend(gate);
    pod.edit(|pod| pod["status"]["conditions"] = conditions.into())?;
    Ok(is_ready)
}

/// This second, as Kubernetes writes it.
fn now() -> Result<String> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let now = Timestamp::from_second(i64::try_from(seconds)?).map_err(|error| anyhow!("{error}"))?;
    Ok(now.to_string())
}

fn open(world: &World) -> Result<(Agent, Pod)> {
    world.namespace("shop", Capture::Enabled)?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().args(&["--node", world.node_name(), "--warm-gate", "enabled"]).start()?;
    agent.enrolled(&client)?;
    Ok((agent, client))
}

/// An instance with the gate.
fn gated(world: &World, version: &str) -> Result<App> {
    let pod = world.pod("shop", &format!("depot-{version}")).label("app", "depot");
    let pod = pod.readiness_gate(GATE).unready().start()?;
    let process = pod.serve(&["--name", "depot", "--version", version, "--linger", "1000"])?;
    Ok(App { process, pod })
}

fn is(world: &World, pod: &Pod, status: &str, reason: &str) -> Result<()> {
    let gate = gate(world, pod)?.unwrap_or_default();
    ensure!(gate["status"] == status && gate["reason"] == reason, "{gate}");
    Ok(())
}

#[test]
fn a_rolling_update_takes_no_old_pod_away_before_a_new_one_is_warm() -> Result<()> {
    let world = World::watched("warm-gate")?;
    test_in(&world, |world| {
        let (agent, client) = open(world)?;
        let depot = Depot::open(world, &agent, &client)?;
        let old = depot.old_instance("one")?;
        depot.policy(json!({"loadBalancer": {"warmUp": {"duration": "8s"}}}))?;
        let load = depot.load(300, 14)?;
        let new = gated(world, "two")?;
        let since = now()?;
        ensure!(!kubelet(world, &new.pod, &since)?, "it is not warm yet");
        eventually("it warms up", || is(world, &new.pod, "False", "WarmingUp"))?;
        // Kubernetes says that it is not ready, and it is asked.
        depot.answers(&["one", "two"])?;
        let metrics = agent.metrics()?;
        ensure!(metrics.sum("sluice_readiness_gates", &[("state", "warming_up")]) > 0.5, "one warms up");
        eventually("it is warm", || is(world, &new.pod, "True", "WarmedUp"))?;
        ensure!(kubelet(world, &new.pod, &since)?, "it is Ready");
        depot.end(old)?;
        let report = load.finish()?;
        ensure!(report.failed == 0 && report.sent > 3000, "{report:?}");
        depot.answers(&["two"])?;
        eventually("it counts as warm", || {
            let metrics = agent.metrics()?;
            ensure!(metrics.sum("sluice_readiness_gates", &[("state", "warm")]) > 0.5, "{}", agent.log());
            Ok(())
        })
    });
    Ok(())
}

#[test]
fn where_nothing_warms_up_nobody_waits() -> Result<()> {
    let world = World::watched("warm-gate-none")?;
    test_in(&world, |world| {
        let (mut agent, _client) = open(world)?;
        world.namespace("bank", Capture::Unmentioned)?;
        let outside = world.pod("bank", "teller").readiness_gate(GATE).unready().start()?;
        let inside = gated(world, "one")?;
        for pod in [&outside, &inside.pod] {
            kubelet(world, pod, &now()?)?;
            eventually("it is set at once", || is(world, pod, "True", "NoWarmUp"))?;
        }
        // While the agent is away nobody says it; the next one does.
        agent.kill()?;
        let late = gated(world, "two")?;
        kubelet(world, &late.pod, &now()?)?;
        ensure!(gate(world, &late.pod)?.is_none(), "there is nobody to say it");
        let args = ["--node", world.node_name(), "--warm-gate", "enabled"];
        let _agent = world.agent().args(&args).start()?;
        eventually("it is set", || is(world, &late.pod, "True", "NoWarmUp"))
    });
    Ok(())
}
