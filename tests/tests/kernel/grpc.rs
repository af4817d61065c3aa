//! gRPC calls over one channel, each governed by itself: warm-up, rolling restart, a breaker, a rate limit.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_tests::{Agent, App, Capture, LoadReport, Pod, Process, Service, World, eventually, test};

use crate::{
    python,
    rollout::{WARM_UP, follows_the_curve},
    script,
};

/// A gRPC service `echo`, and a pod that calls it.
struct Echo<'w> {
    world: &'w World,
    service: Service,
    client: Pod,
    agent: Agent,
}

impl<'w> Echo<'w> {
    fn open(world: &'w World) -> Result<Self> {
        world.namespace("shop", Capture::Enabled)?;
        let service = world.service("shop", "echo").port("grpc", 80, 50051).apply()?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        Ok(Self { world, service, client, agent })
    }

    /// An instance, to which nothing is sent before it is set ready.
    fn instance(&self, version: &str) -> Result<App> {
        let pod =
            self.world.pod("shop", &format!("echo-{version}")).label("app", "echo").unready().start()?;
        let process = serve(&pod, version, &[])?;
        Ok(App { process, pod })
    }

    /// An instance that has been there for long.
    fn old_instance(&self, version: &str) -> Result<App> {
        let app = self.instance(version)?;
        app.pod.set_ready_since(true, UNIX_EPOCH + Duration::from_secs(1_700_000_000))?;
        self.answers(version)?;
        Ok(app)
    }

    fn answers(&self, version: &str) -> Result<()> {
        eventually(&format!("{version} answers"), || {
            let report = self.calls(20, 1)?;
            ensure!(report.failed == 0 && report.chains.contains_key(version), "{report:?}");
            Ok(())
        })
    }

    fn policy(&self, spec: &Value) -> Result<()> {
        let mut policy = json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"namespace": "shop", "name": "echo"},
            "spec": spec,
        });
        policy["spec"]["targetRefs"] = json!([{"name": "echo"}]);
        self.world.apply(policy)
    }

    /// A client with one channel.
    fn load(&self, rate: u32, seconds: u32) -> Result<Process> {
        let target = format!("{}:{}", self.service.ipv4, self.service.port);
        let script = script("grpc_load.py");
        let args = [&*script, &*target, &*rate.to_string(), &*seconds.to_string()];
        self.client.spawn("grpc-load", python(), &args)
    }

    fn calls(&self, rate: u32, seconds: u32) -> Result<LoadReport> {
        Ok(report(self.load(rate, seconds)?)?.0)
    }

    /// How often the agent says that it has refused a call.
    fn refused(&self, name: &str) -> Result<u64> {
        let labels = [("destination_service", "echo"), ("decision", "rejected")];
        Ok(self.agent.metrics()?.sum(name, &labels) as u64)
    }
}

fn serve(pod: &Pod, version: &str, args: &[&str]) -> Result<Process> {
    let script = script("grpc_server.py");
    let mut server = pod.spawn("server", python(), &[&[&*script, "50051", version], args].concat())?;
    server.says("listening")?;
    Ok(server)
}

/// What became of the calls, and when the first was made.
fn report(mut load: Process) -> Result<(LoadReport, SystemTime)> {
    let status = load.wait()?;
    let said = load.log();
    ensure!(status.success(), "the client ended with {status}: {said}");
    let line = said.lines().rev().find(|line| line.starts_with('{')).context("it said nothing")?;
    let said: Value = serde_json::from_str(line)?;
    let began = said["began"].as_f64().context("it does not say when it began")?;
    Ok((serde_json::from_value(said)?, UNIX_EPOCH + Duration::from_secs_f64(began)))
}

#[test]
fn a_new_instance_gets_its_share_of_one_channel_little_by_little() {
    test("grpc-warmup", |world| {
        let echo = Echo::open(world)?;
        let _one = echo.old_instance("one")?;
        echo.policy(&json!({"loadBalancer": {"warmUp": {"duration": format!("{WARM_UP}s")}}}))?;
        let two = echo.instance("two")?;
        let load = echo.load(300, WARM_UP as u32 + 2)?;
        let ready = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        two.pod.set_ready(true)?;
        let (report, began) = report(load)?;
        follows_the_curve(&report, began, ready)
    });
}

#[test]
fn a_rolling_restart_loses_no_call() {
    test("grpc-rolling", |world| {
        let echo = Echo::open(world)?;
        let mut instances = vec![echo.old_instance("one")?];
        let two = echo.instance("two")?;
        two.pod.set_ready(true)?;
        instances.push(two);
        echo.answers("two")?;
        let load = echo.load(200, 8)?;
        for version in ["three", "four"] {
            let next = echo.instance(version)?;
            next.pod.set_ready(true)?;
            // As a Deployment with `minReadySeconds` does.
            std::thread::sleep(Duration::from_secs(1));
            let mut old = instances.remove(0);
            old.pod.set_terminating()?;
            old.process.signal(Signal::SIGTERM)?;
            old.process.wait()?;
            instances.push(next);
        }
        let (report, _) = report(load)?;
        ensure!(report.failed == 0 && report.sent == 1600, "{report:?}");
        let answered: Vec<_> = report.chains.keys().map(String::as_str).collect();
        ensure!(answered == ["four", "one", "three", "two"], "{answered:?}");
        Ok(())
    });
}

#[test]
fn a_sick_service_is_broken_off_and_comes_back() {
    test("grpc-breaker", |world| {
        let echo = Echo::open(world)?;
        let mut one = echo.old_instance("one")?;
        echo.policy(&json!({"circuitBreaker": {"minimumRequests": 10, "openDuration": "1s"}}))?;
        one.process.kill()?;
        one.process = serve(&one.pod, "one", &["sick"])?;
        eventually("it is broken off", || {
            let report = echo.calls(50, 1)?;
            let open = |what: &String| what.starts_with("UNAVAILABLE") && what != "UNAVAILABLE sick";
            let by_sluice = report.failures.keys().any(open);
            ensure!(by_sluice && report.ok == 0, "{report:?}");
            Ok(())
        })?;
        ensure!(echo.refused("sluice_circuit_breaker_requests_total")? > 0, "no refusal was counted");
        one.process.kill()?;
        one.process = serve(&one.pod, "one", &[])?;
        eventually("it comes back", || {
            let report = echo.calls(20, 1)?;
            ensure!(report.failed == 0, "{report:?}");
            Ok(())
        })
    });
}

#[test]
fn calls_above_the_limit_are_told_that_a_resource_is_exhausted() {
    test("grpc-throttle", |world| {
        let echo = Echo::open(world)?;
        let _one = echo.old_instance("one")?;
        let limit = json!([{"name": "all", "requests": 50, "burst": 1}]);
        echo.policy(&json!({"rateLimits": limit}))?;
        eventually("the limit is in force", || {
            ensure!(echo.calls(200, 1)?.failed > 0, "nothing is refused");
            Ok(())
        })?;
        let before = echo.refused("sluice_rate_limit_requests_total")?;
        let report = echo.calls(200, 4)?;
        // The last calls are answered within the time that the report spans.
        let most = 1.0 + 50.0 * report.seconds;
        ensure!(report.ok >= 50 && (report.ok as f64) <= most, "at most {most}: {report:?}");
        let refused = echo.refused("sluice_rate_limit_requests_total")? - before;
        ensure!(refused == report.failed, "{refused} refusals were counted: {report:?}");
        ensure!(report.failures.keys().all(|what| what.starts_with("RESOURCE_EXHAUSTED")), "{report:?}");
        Ok(())
    });
}
