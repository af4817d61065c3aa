//! Who is captured, from when on and until when.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, App, Capture, Load, Pod, Service, World, ask, eventually, test, test_in};

/// A service `web`, reachable with and without an agent.
fn web(world: &World) -> Result<(Service, App)> {
    world.namespace("shop", Capture::Enabled)?;
    world.kube_proxy()?;
    let app = App::start(world, "web", "v1", None)?;
    let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
    Ok((service, app))
}

/// Whether a request from the pod goes through the agent: it then arrives with the tag in both carriers.
fn captured(pod: &Pod, service: &Service) -> Result<bool> {
    let answer = ask(pod, &format!("{}/?headers", service.url()), &["baggage: x-mse-tag=gray"])?;
    let hop = answer.chain.first().context("nobody answered")?;
    Ok(hop.headers.contains_key("x-mse-tag"))
}

/// Good answers that went through the agent.
fn served(agent: &Agent) -> Result<f64> {
    Ok(agent.metrics()?.sum("sluice_requests_total", &[("code", "2xx")]))
}

fn annotate(world: &World, value: Option<&str>) -> Result<()> {
    world.edit("Namespace", "", "shop", |namespace| {
        namespace["metadata"]["annotations"] =
            value.map_or_else(|| json!({}), |value| json!({ "sluice.dev/capture": value }));
    })
}

#[test]
fn opting_in_and_out_takes_effect_live() {
    test("opt", |world| {
        let (service, _web) = web(world)?;
        let client = world.pod("shop", "client").start()?;
        let other = world.pod("shop", "other").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        agent.enrolled(&other)?;
        ensure!(captured(&client, &service)?);

        // The pod's own word goes before the namespace's.
        client.set_capture(Some("disabled"))?;
        agent.withdrawn(&client)?;
        ensure!(!captured(&client, &service)? && captured(&other, &service)?);
        client.set_capture(None)?;
        agent.enrolled(&client)?;
        ensure!(captured(&client, &service)?);

        annotate(world, None)?;
        agent.withdrawn(&client)?;
        agent.withdrawn(&other)?;
        ensure!(!captured(&client, &service)? && !captured(&other, &service)?);
        annotate(world, Some("enabled"))?;
        agent.enrolled(&client)?;
        agent.enrolled(&other)?;
        eventually("the service is governed again", || {
            ensure!(captured(&client, &service)? && captured(&other, &service)?);
            Ok(())
        })
    });
}

#[test]
fn connections_that_exist_outlive_both() {
    test("outlive", |world| {
        let (service, _web) = web(world)?;
        let client = world.pod("shop", "client").capture("disabled").start()?;
        let agent = world.agent().start()?;
        // One connection from before the enrolment, one from after it.
        let load = ["--connections", "1", "--rate", "100"];
        let before = Load::start(&client, &service.url(), &load)?;
        client.set_capture(Some("enabled"))?;
        agent.enrolled(&client)?;
        let redirected = agent.redirected()?;
        let after = Load::start(&client, &service.url(), &load)?;
        eventually("the second connection is captured", || {
            ensure!(agent.redirected()? == redirected + 1, "{} connects", agent.redirected()?);
            Ok(())
        })?;
        client.set_capture(Some("disabled"))?;
        agent.withdrawn(&client)?;
        let count = served(&agent)?;
        eventually("the captured connection goes on", || {
            let now = served(&agent)?;
            ensure!(now > count + 20.0, "{now} requests, {count} before");
            Ok(())
        })?;
        for report in [before.stop()?, after.stop()?] {
            ensure!(report.failed == 0 && report.connections == 1 && report.ok > 20, "{report:?}");
        }
        Ok(())
    });
}

#[test]
fn a_replaced_sandbox_is_enrolled_anew() {
    test("sandbox", |world| {
        let (service, _web) = web(world)?;
        let mut client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        for _ in 0..3 {
            agent.enrolled(&client)?;
            eventually("the pod is captured", || {
                ensure!(captured(&client, &service)?);
                Ok(())
            })?;
            client.replace_sandbox()?;
        }
        Ok(())
    });
}

#[test]
fn pods_that_come_later_are_enrolled_and_leave_nothing_when_they_end() {
    test("later", |world| {
        let (service, web) = web(world)?;
        let agent = world.agent().start()?;
        agent.enrolled(&web.pod)?;
        let handles = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).map(Iterator::count);
        let before = handles()?;
        for round in 0..10 {
            let pods = (0..3)
                .map(|index| world.pod("shop", &format!("job-{round}-{index}")).start())
                .collect::<Result<Vec<_>>>()?;
            for pod in &pods {
                agent.enrolled(pod)?;
                ensure!(captured(pod, &service)?, "{} is not captured", pod.name);
            }
            for pod in pods {
                pod.delete()?;
            }
        }
        eventually("the agent has let go of the pods", || {
            let now = handles()?;
            ensure!(now <= before, "{now} open files, {before} before");
            Ok(())
        })
    });
}

#[test]
fn host_network_pods_are_left_alone() {
    test("host", |world| {
        let (service, web) = web(world)?;
        let host = world.pod("shop", "host").capture("enabled").host_network().start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&web.pod)?;
        let client = world.pod("shop", "client").start()?;
        agent.enrolled(&client)?;
        let before = agent.redirected()?;
        ask(&client, &service.url(), &[])?;
        ensure!(agent.redirected()? == before + 1);
        // The node has no translation for itself: that the address is unreachable shows that nothing was redirected.
        let failed = host.command("curl")?.args(["-sS", "-m", "2", &service.url()]).output()?;
        ensure!(!failed.status.success(), "{failed:?}");
        ensure!(agent.redirected()? == before + 1);
        ensure!(!agent.log().contains("pod enrolled namespace=shop pod=host"));
        Ok(())
    });
}

#[test]
fn pods_under_systemds_names() -> Result<()> {
    let world = World::systemd("slices")?;
    test_in(&world, |world| {
        let (service, _web) = web(world)?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        ensure!(captured(&client, &service)?);
        let late = world.pod("shop", "late").start()?;
        agent.enrolled(&late)?;
        ensure!(captured(&late, &service)?);
        Ok(())
    });
    Ok(())
}
