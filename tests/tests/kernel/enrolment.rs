//! Who is captured, from when on and until when.

use std::{fs, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_tests::{App, Capture, Load, Pod, Service, World, ask, eventually, test, test_in, test_with_both};

use crate::python;

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

/// Sends each line that it is told over one connection, and says what comes back.
const CONVERSATION: &str = "import socket, sys\n\
    connection = socket.create_connection((sys.argv[1], int(sys.argv[2]))).makefile('rw')\n\
    print('server:', connection.readline(), end='', flush=True)\n\
    for line in sys.stdin:\n\
    \x20 connection.write(line); connection.flush(); print('server:', connection.readline(), end='', flush=True)\n";

#[test]
fn connections_that_exist_outlive_both() {
    test("outlive", |world| {
        let (service, _web) = web(world)?;
        world.policy_for_all("shop")?;
        let database = world.pod("shop", "db-0").label("app", "db").start()?;
        let _database = database.serve(&["--tcp", "--name", "db", "--port", "7000"])?;
        let database = world.service("shop", "db").port("tcp", 700, 7000).apply()?;
        let client = world.pod("shop", "client").capture("disabled").start()?;
        let agent = world.agent().start()?;
        let start = || {
            let mut command = client.command(python())?;
            command.args(["-c", CONVERSATION, &database.ipv4.to_string(), "700"]).stdin(Stdio::piped());
            let mut process = client.spawn_command("conversation", &mut command)?;
            process.says("server: db v1\n")?;
            Load::start(&client, &service.url(), &["--connections", "4"]).map(|load| (process, load))
        };
        let passing = {
            let mut command = client.command(python())?;
            command.args(["-c", CONVERSATION, &database.ipv4.to_string(), "700"]).stdin(Stdio::piped());
            let mut process = client.spawn_command("passing", &mut command)?;
            process.says("server: db v1\n")?;
            process
        };
        // Connections from before the enrolment, and connections from after it.
        let before = start()?;
        client.set_capture(Some("enabled"))?;
        agent.enrolled(&client)?;
        // They are named, as long as they are open.
        let older = |service: &str| {
            let (_, said, _) = agent.sluice(&["status"])?;
            let named =
                said.lines().any(|line| line.contains("older than its enrolment") && line.contains(service));
            anyhow::Ok((named, said))
        };
        for service in ["to db.shop:700", "to web.shop:80"] {
            let (named, said) = older(service)?;
            ensure!(named, "{service}: {said}");
        }
        let kept = |agent: &sluice_tests::Agent| {
            Ok::<_, anyhow::Error>(
                agent.metrics()?.sum("sluice_preexisting_connections_open", &[("source_pod", "client")]),
            )
        };
        let held = kept(&agent)?;
        ensure!(held >= 6.0, "{held}");
        drop(passing);
        eventually("one is gone", || {
            let now = kept(&agent)?;
            ensure!(now < held, "{now}");
            Ok(())
        })?;
        let after = start()?;
        eventually("the new ones are captured", || {
            ensure!(agent.redirected()? == 5, "{} connects were redirected", agent.redirected()?);
            Ok(())
        })?;
        client.set_capture(Some("disabled"))?;
        agent.withdrawn(&client)?;
        // Whether a kept HTTP connection goes on or its client is told to reconnect is the agent's choice.
        for (mut conversation, load) in [before, after] {
            conversation.tell("still there?\n")?;
            conversation.says("server: still there?\n")?;
            let report = load.stop()?;
            ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
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
fn init_containers_are_captured_and_pods_that_are_done_are_let_go() {
    test_with_both("lives", |world| {
        let (service, _web) = web(world)?;
        let agent = world.agent().start()?;
        for (name, end) in [("job", "Succeeded"), ("evicted", "Failed")] {
            let pod = world.pod("shop", name).unready().start()?;
            let phase = |phase: &str| pod.edit(|pod| pod["status"]["phase"] = phase.into());
            // An init container, or a native sidecar before its application: there is a process, but nothing is ready.
            phase("Pending")?;
            agent.enrolled(&pod)?;
            ensure!(captured(&pod, &service)?, "{name}: not from its first container on");
            phase("Running")?;
            ensure!(captured(&pod, &service)?, "{name}: not while it runs");
            // What the kubelet says before the sandbox is gone.
            phase(end)?;
            agent.withdrawn(&pod)?;
            ensure!(!captured(&pod, &service)?, "{name}: after its end too");
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_a_mesh_has_taken_is_left_alone() {
    test("meshed", |world| {
        let (service, _web) = web(world)?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        ensure!(captured(&client, &service)?);
        client.edit(|pod| {
            if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
                containers.push(json!({ "name": "istio-proxy", "image": "proxy" }));
            }
        })?;
        agent.withdrawn(&client)?;
        ensure!(!captured(&client, &service)?);
        let left_alone = agent.metrics()?.sum("sluice_pods", &[("state", "other_mesh")]);
        ensure!((left_alone - 1.0).abs() < 0.5, "{left_alone} pods are left alone");
        Ok(())
    });
}

#[test]
fn an_agent_that_is_itself_among_the_pods() {
    test("among", |world| {
        let (service, _web) = web(world)?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().among_pods().start()?;
        agent.enrolled(&client)?;
        ensure!(captured(&client, &service)?);
        // The agent's own connections, made in the pod's namespace, do not come back to it.
        ensure!(agent.redirected()? == 1 && agent.connects("lost")? == 0);
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
