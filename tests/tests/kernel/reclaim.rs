//! Connections that are older than their pod's enrolment, to Services that ask for them to be ended: clients that pool
//! reconnect, captured, and no request fails.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, Capture, Pod, Process, Service, World, eventually, test};

use crate::{privileges::capabilities, python, script};

const RECLAIM: [&str; 4] = ["--reclaim-rate", "20", "--reclaim-idle", "1"];

/// Has the Service's older connections ended, or not.
fn annotate(world: &World, service: &str, value: &str) -> Result<()> {
    world.edit("Service", "shop", service, |service| {
        service["metadata"]["annotations"] = json!({ "sluice.dev/reclaim": value });
    })
}

/// A client with a pool, which has used each of its connections.
fn pool(
    pod: &Pod,
    program: impl AsRef<Path>,
    file: &str,
    service: &Service,
    size: usize,
    pause: &str,
) -> Result<Process> {
    let mut command = pod.command(program)?;
    command.args([&script(file), &service.ipv4.to_string(), "80", &size.to_string(), pause]);
    let mut process = pod.spawn_command(file, command.stdin(Stdio::piped()))?;
    eventually(&format!("{file} has {size} connections"), || {
        ensure!(process.log().matches("connected").count() >= size, "{}", process.log());
        Ok(())
    })?;
    process.says("connected")?;
    Ok(process)
}

/// How many of its requests had a response, if all had.
fn stop(mut pool: Process) -> Result<usize> {
    pool.tell("stop\n")?;
    pool.says(" end")?;
    let log = pool.log();
    ensure!(log.contains(" failed=0 "), "{log}");
    let ok = log.split("ok=").nth(1).and_then(|rest| rest.split(' ').next()).context("no count")?;
    Ok(ok.parse()?)
}

fn older(agent: &Agent, pod: &Pod) -> Result<f64> {
    Ok(agent.metrics()?.sum("sluice_preexisting_connections_open", &[("source_pod", &pod.name)]))
}

fn reclaimed(agent: &Agent) -> Result<f64> {
    Ok(agent.metrics()?.sum("sluice_reclaimed_connections_total", &[]))
}

/// A service whose responses take so many milliseconds.
fn serve(world: &World, name: &str, delay: &str) -> Result<(Service, Process, Pod)> {
    let pod = world.pod("shop", &format!("{name}-0")).label("app", name).start()?;
    let process = pod.serve(&["--name", name, "--delay", delay])?;
    let service = world.service("shop", name).port("http", 80, 8080).apply()?;
    Ok((service, process, pod))
}

#[test]
fn clients_that_pool_reconnect_through_the_agent_and_lose_no_request() {
    test("reclaim", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        // Longer than the kernel's tick, so that a request and its response are told apart.
        let (web, _web) =
            serve(world, "web", "40").map(|(service, process, pod)| (service, (process, pod)))?;
        let clients = ["python", "node", "java"]
            .map(|name| world.pod("shop", name).capture("disabled").start())
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        // What the DaemonSet gives the agent is enough.
        let agent = world.agent().capabilities(&capabilities()?).args(&RECLAIM).start()?;
        let pools = [
            pool(&clients[0], python(), "pool.py", &web, 4, "2.5")?,
            pool(&clients[1], "node", "pool.mjs", &web, 4, "2.5")?,
            pool(&clients[2], "java", "Pool.java", &web, 4, "2.5")?,
        ];
        for client in &clients {
            client.set_capture(Some("enabled"))?;
            agent.enrolled(client)?;
            let held = older(&agent, client)?;
            ensure!(held >= 4.0, "{}: {held}", client.name);
        }
        // Nobody has asked for it yet.
        let (_, said, _) = agent.sluice(&["status"])?;
        ensure!(said.contains("annotate the Service with sluice.dev/reclaim: enabled"), "{said}");
        ensure!(reclaimed(&agent)? < 0.5);
        annotate(world, "web", "enabled")?;
        for client in &clients {
            eventually(&format!("the connections of {} are ended", client.name), || {
                let held = older(&agent, client)?;
                ensure!(held < 0.5, "{held} are left");
                Ok(())
            })?;
        }
        ensure!(reclaimed(&agent)? >= 12.0, "{}", reclaimed(&agent)?);
        eventually("they are captured", || {
            for client in &clients {
                let labels = [("source_pod", &*client.name)];
                let open = agent.metrics()?.sum("sluice_pod_connections_open", &labels);
                ensure!(open >= 4.0, "{}: {open} connections", client.name);
            }
            Ok(())
        })?;
        for pool in pools {
            let ok = stop(pool)?;
            ensure!(ok > 4, "{ok} requests");
        }
        let (_, said, _) = agent.sluice(&["status"])?;
        ensure!(!said.contains("older than"), "{said}");
        Ok(())
    });
}

#[test]
fn what_waits_for_a_response_or_is_busy_is_not_ended() {
    test("reclaim-busy", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        // One whose responses take longer than idle connections stay, one that is always asked, one that is not to be touched.
        let (slow, _slow) =
            serve(world, "slow", "3000").map(|(service, process, pod)| (service, (process, pod)))?;
        let (busy, _busy) =
            serve(world, "busy", "40").map(|(service, process, pod)| (service, (process, pod)))?;
        let (other, _other) =
            serve(world, "other", "40").map(|(service, process, pod)| (service, (process, pod)))?;
        let client = world.pod("shop", "client").capture("disabled").start()?;
        let agent = world.agent().args(&RECLAIM).start()?;
        let waiting = pool(&client, python(), "pool.py", &slow, 3, "0")?;
        let asking = pool(&client, python(), "pool.py", &busy, 3, "0.2")?;
        let untouched = pool(&client, python(), "pool.py", &other, 3, "2")?;
        annotate(world, "slow", "enabled")?;
        annotate(world, "busy", "enabled")?;
        annotate(world, "other", "disabled")?;
        client.set_capture(Some("enabled"))?;
        agent.enrolled(&client)?;
        // An idle one of the same Service is, so that it is known that the agent has looked.
        let mut looks = 0;
        while looks < 3 {
            let one = world.pod("shop", &format!("idle-{looks}")).capture("disabled").start()?;
            let idle = pool(&one, python(), "pool.py", &slow, 1, "600")?;
            one.set_capture(Some("enabled"))?;
            agent.enrolled(&one)?;
            eventually("the idle one is ended", || {
                let held = older(&agent, &one)?;
                ensure!(held < 0.5, "{held}");
                Ok(())
            })?;
            drop(idle);
            looks += 1;
        }
        let held = older(&agent, &client)?;
        ensure!((held - 9.0).abs() < 0.5, "{held} of 9 are left");
        for pool in [waiting, asking, untouched] {
            let ok = stop(pool)?;
            ensure!(ok >= 3, "{ok} requests");
        }
        Ok(())
    });
}
