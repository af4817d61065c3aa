//! `sluice status` in each of the states that an agent can be in: what is wrong is told once, its cause first, and with what to
//! do about it. (`--nocapture` shows the texts.)

use std::process::Stdio;

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{
    Agent, Capture, World,
    api_server::{ApiServer, Fault},
    eventually, test, test_in,
};

use crate::{
    python, script,
    standing::{Helper, worker},
};

/// What it says, without what differs from machine to machine, and how many problems it has.
fn status(agent: &Agent, when: &str) -> Result<(String, usize)> {
    let (code, said, complaint) = agent.sluice(&["status"])?;
    println!("--- {when}\n{said}");
    let problems = said.matches("\n  - ").count();
    // Who asks in a script is told by the exit status.
    ensure!((code == 0) == (problems == 0) && complaint.is_empty(), "{code}: {complaint}\n{said}");
    Ok((said, problems))
}

#[test]
fn of_an_agent_that_works() {
    test("status", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        let app = world.pod("shop", "web-0").label("app", "web").start()?;
        let _served = app.serve(&["--name", "web", "--delay", "40"])?;
        let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
        let client = world.pod("shop", "client").capture("disabled").start()?;
        let mut agent = world.agent().args(&["--node", world.node_name()]).start()?;
        agent.enrolled(&app)?;
        let (said, problems) = status(&agent, "healthy, idle")?;
        ensure!(
            problems == 0 && said.contains("nothing is wrong") && said.contains("1 enrolled, 0 pending"),
            "{said}"
        );

        // Connections that are older than the enrolment.
        let mut command = client.command(python())?;
        command.args([&script("pool.py"), &service.ipv4.to_string(), "80", "2", "600"]).stdin(Stdio::piped());
        let mut pool = client.spawn_command("pool", &mut command)?;
        eventually("both are connected", || {
            ensure!(pool.log().matches("connected").count() == 2, "{}", pool.log());
            Ok(())
        })?;
        client.set_capture(Some("enabled"))?;
        agent.enrolled(&client)?;
        let (said, problems) = status(&agent, "older connections")?;
        let wanted = "Pod shop/client has 2 connections that are older than its enrolment, to web.shop:80";
        ensure!(problems == 1 && said.contains(wanted), "{said}");
        pool.kill()?;
        eventually("they are gone", || {
            let (_, said, _) = agent.sluice(&["status"])?;
            ensure!(said.contains("nothing is wrong"), "{said}");
            Ok(())
        })?;

        // A pod that has no cgroup here.
        world.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": "odd", "uid": "0dd00000-0000-4000-8000-000000000000" },
            "spec": { "nodeName": world.node_name(), "containers": [{ "name": "app" }] },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.244.9.9" }] },
        }))?;
        eventually("it is told", || {
            let (_, said, _) = agent.sluice(&["status"])?;
            ensure!(said.contains("shop/odd"), "{said}");
            Ok(())
        })?;
        let (said, problems) = status(&agent, "odd pod")?;
        let wanted =
            "Pod shop/odd is not enrolled, so its connections bypass the agent: its cgroup is not among";
        ensure!(problems == 1 && said.contains(wanted) && said.contains("2 enrolled, 1 pending"), "{said}");
        let pending = agent.metrics()?.sum("sluice_pods", &[("state", "pending")]);
        ensure!((pending - 1.0).abs() < 0.5, "{pending}");
        ensure!(said.contains(", ready\n"), "it holds nothing up: {said}");
        world.delete("Pod", "shop", "odd")?;

        // A worker that is stuck.
        let stopped = Helper::start("stop_thread.py", worker(&agent)?, "stopped")?;
        eventually("it is silent", || {
            let (code, _) = agent.get("/readyz")?;
            ensure!(code == 503, "{code}");
            Ok(())
        })?;
        let (said, problems) = status(&agent, "worker stuck")?;
        ensure!(problems == 1 && said.contains("NOT READY") && said.contains("a worker is silent"), "{said}");
        drop(stopped);
        agent.ready()
    });
}

#[test]
fn of_an_agent_whose_api_server_goes_away() -> Result<()> {
    let world = World::watched("status-away")?;
    test_in(&world, |world| {
        world.namespace("shop", Capture::Enabled)?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().args(&["--node", world.node_name()]).start()?;
        agent.enrolled(&client)?;
        let (said, problems) = status(&agent, "healthy, with an API server")?;
        ensure!(problems == 0, "{said}");
        world.api(ApiServer::go)?;
        eventually("it is told", || {
            let (_, said, _) = agent.sluice(&["status"])?;
            ensure!(said.contains("API server"), "{said}");
            Ok(())
        })?;
        let (said, problems) = status(&agent, "API server away")?;
        ensure!(problems == 1 && said.contains(", ready\n") && said.contains("1 enrolled"), "{said}");
        world.api(ApiServer::come)?;
        eventually("it is back", || {
            let (_, said, _) = agent.sluice(&["status"])?;
            ensure!(said.contains("nothing is wrong"), "{said}");
            Ok(())
        })
    });
    Ok(())
}

#[test]
fn of_an_agent_that_may_not_read_pods() -> Result<()> {
    let world = World::watched("status-forbidden")?;
    test_in(&world, |world| {
        world.namespace("shop", Capture::Enabled)?;
        let _client = world.pod("shop", "client").start()?;
        for verb in ["list", "watch"] {
            world.api(|api| {
                api.fault(verb, "pods", Some(Fault::Status(403)));
                Ok(())
            })?;
        }
        let mut agent = world.agent().args(&["--node", world.node_name()]).spawn()?;
        eventually("it is told", || {
            let (_, said, _) = agent.sluice(&["status"])?;
            ensure!(said.contains("pods"), "{said}");
            ensure!(said.contains("403"), "{said}");
            Ok(())
        })?;
        let (said, _) = status(&agent, "permission missing")?;
        ensure!(said.contains("NOT READY") && said.matches("403").count() == 1, "{said}");
        for verb in ["list", "watch"] {
            world.api(|api| {
                api.fault(verb, "pods", None);
                Ok(())
            })?;
        }
        agent.ready()
    });
    Ok(())
}
