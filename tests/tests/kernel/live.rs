//! The cluster changes while requests are on their way.

use anyhow::{Result, ensure};
use sluice_tests::{Agent, App, Capture, Load, Pod, Service, World, ask, eventually, test, test_with_both};

/// A service `web` with two instances that differ by version, both in the baseline.
struct Web {
    service: Service,
    one: App,
    two: App,
    client: Pod,
    agent: Agent,
}

fn instance(world: &World, version: &str) -> Result<App> {
    let pod = world.pod("shop", &format!("web-{version}")).label("app", "web").start()?;
    let process = pod.serve(&["--name", "web", "--version", version])?;
    Ok(App { process, pod })
}

fn web(world: &World) -> Result<Web> {
    world.namespace("shop", Capture::Enabled)?;
    let (one, two) = (instance(world, "one")?, instance(world, "two")?);
    let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok(Web { service, one, two, client, agent })
}

impl Web {
    /// Who answers a hundred requests.
    fn answers(&self) -> Result<Vec<String>> {
        let report = Load::start(&self.client, &self.service.url(), &["--requests", "100"])?.finish()?;
        ensure!(report.failed == 0, "{report:?}");
        Ok(report.chains.into_keys().collect())
    }

    fn answered_by(&self, expected: &[&str]) -> Result<()> {
        eventually(&format!("{expected:?} answer"), || {
            let answers = self.answers()?;
            ensure!(answers == expected, "{answers:?} answer");
            Ok(())
        })
    }
}

#[test]
fn endpoints_come_and_go_without_a_failed_request() {
    test_with_both("endpoints", |world| {
        let web = web(world)?;
        let load = Load::start(&web.client, &web.service.url(), &["--connections", "4"])?;
        web.answered_by(&["one", "two"])?;
        // Terminating, with its process ended as soon as nobody sends to it: nothing new, also not over kept connections.
        web.one.pod.set_terminating()?;
        web.answered_by(&["two"])?;
        web.one.process.signal(nix::sys::signal::Signal::SIGTERM)?;
        web.answered_by(&["two"])?;
        let three = instance(world, "three")?;
        web.answered_by(&["three", "two"])?;
        web.two.pod.set_ready(false)?;
        web.answered_by(&["three"])?;
        web.two.pod.set_ready(true)?;
        web.answered_by(&["three", "two"])?;
        drop(three.process);
        let report = load.stop()?;
        // What was in flight to the last one when its process was killed may have failed, and nothing else.
        ensure!(report.failed <= 4, "{report:?}");
        Ok(())
    });
}

#[test]
fn a_refused_connection_is_tried_elsewhere() {
    test("refused", |world| {
        let mut web = web(world)?;
        // Ended, and Kubernetes has not noticed: its connections are refused.
        web.one.process.kill()?;
        let report =
            Load::start(&web.client, &web.service.url(), &["--requests", "200", "--new-connections"])?
                .finish()?;
        ensure!(report.ok == 200 && report.chains.keys().eq(["two"]), "{report:?}");
        let retried = web.agent.metrics()?.sum("sluice_retries_total", &[("cause", "connect_failure")]);
        ensure!(retried > 0.0, "nothing was tried again");
        // Nobody is left: an answer that says why.
        web.two.process.kill()?;
        let said = web.client.run("curl", &["-sS", "-i", "-m", "10", &web.service.url()])?;
        ensure!(said.starts_with("HTTP/1.1 503 "), "{said}");
        ensure!(said.to_lowercase().contains("x-sluice-reason: upstream_connect"), "{said}");
        Ok(())
    });
}

#[test]
fn a_broken_manifest_changes_nothing() {
    test("broken", |world| {
        let web = web(world)?;
        let path = world.manifests().join("service.shop.web.yaml");
        let good = std::fs::read_to_string(&path)?;
        std::fs::write(&path, good.replace("port: 80\n", "port: 80000\n").replace("kind:", "kind: ["))?;
        eventually("the agent names the file", || {
            let log = web.agent.log();
            ensure!(log.contains("service.shop.web.yaml"), "{log}");
            Ok(())
        })?;
        web.answered_by(&["one", "two"])?;
        // A port out of range: named as well.
        std::fs::write(&path, good.replace("port: 80\n", "port: 80000\n"))?;
        eventually("the agent names the value", || {
            let log = web.agent.log();
            ensure!(log.contains("80000"), "{log}");
            Ok(())
        })?;
        std::fs::write(&path, good)?;
        web.answered_by(&["one", "two"])
    });
}

#[test]
fn services_come_and_go() {
    test_with_both("services", |world| {
        let web = web(world)?;
        world.kube_proxy()?;
        let more = world
            .service("shop", "more")
            .selector("app", "web")
            .port("http", 8000, 8080)
            .port("admin", 8001, 8080)
            .apply()?;
        let through = |url: &str| -> Result<bool> {
            let answer = ask(&web.client, &format!("{url}/?headers"), &["baggage: x-mse-tag=gray"])?;
            Ok(answer.chain.iter().all(|hop| hop.headers.contains_key("x-mse-tag")))
        };
        for url in [more.url(), format!("http://{}:8001", more.ipv4), format!("http://[{}]:8001", more.ipv6)]
        {
            eventually(&format!("{url} is governed"), || {
                ensure!(through(&url)?);
                Ok(())
            })?;
        }
        more.edit(|service| {
            if let Some(ports) = service["spec"]["ports"].as_array_mut() {
                ports.remove(0);
            }
        })?;
        eventually("the first port is not governed any more", || {
            let redirected = web.agent.redirected()?;
            // Nothing translates it any more either.
            ensure!(through(&more.url()).is_err());
            ensure!(web.agent.redirected()? == redirected);
            Ok(())
        })?;
        ensure!(through(&format!("http://{}:8001", more.ipv4))?);
        Ok(())
    });
}

#[test]
fn a_headless_services_endpoint_is_the_callers_choice() {
    test_with_both("headless", |world| {
        let web = web(world)?;
        world.policy_for_all("shop")?;
        world.service("shop", "peers").selector("app", "web").port("http", 8080, 8080).headless().apply()?;
        for app in [&web.one, &web.two] {
            let url = format!("http://{}:8080", app.pod.ipv4());
            eventually("the pod's address is governed", || {
                let answer = ask(&web.client, &format!("{url}/?headers"), &["baggage: x-mse-tag=gray"])?;
                ensure!(answer.chain[0].headers.contains_key("x-mse-tag"), "{answer:?}");
                Ok(())
            })?;
            for _ in 0..10 {
                let answer = ask(&web.client, &url, &[])?;
                ensure!(answer.chain[0].pod == app.pod.name, "{answer:?}");
            }
        }
        Ok(())
    });
}
