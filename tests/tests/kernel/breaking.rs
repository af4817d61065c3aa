//! A weak dependency behind a TrafficPolicy.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, Capture, Pod, Process, Service, World, eventually, test};

/// A service `web` with one instance, and a pod that calls it.
struct Web {
    // First, so that it is ended before its pod.
    process: Process,
    pod: Pod,
    service: Service,
    client: Pod,
    agent: Agent,
}

fn web(world: &World, status: &str) -> Result<Web> {
    world.namespace("shop", Capture::Enabled)?;
    let pod = world.pod("shop", "web-1").label("app", "web").start()?;
    let process = pod.serve(&["--name", "web", "--status", status])?;
    let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok(Web { process, pod, service, client, agent })
}

fn policy(spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]},
    });
    if let (Some(target), Value::Object(fields)) = (policy["spec"].as_object_mut(), spec) {
        target.extend(fields);
    }
    policy
}

impl Web {
    /// The head and the body of one answer.
    fn ask(&self, headers: &[&str]) -> Result<String> {
        let url = self.service.url();
        let mut args = vec!["-sS", "-i", "-m", "10", &*url];
        args.extend(headers.iter().flat_map(|header| ["-H", header]));
        Ok(self.client.run("curl", &args)?.to_lowercase())
    }

    /// The instance ends, and another one starts in its pod.
    fn becomes(&mut self, status: &str) -> Result<()> {
        self.process.kill()?;
        self.process = self.pod.serve(&["--name", "web", "--status", status])?;
        Ok(())
    }
}

#[test]
fn a_failing_dependency_is_broken_off_and_comes_back() {
    test("breaker", |world| {
        let mut web = web(world, "500")?;
        let breaker = |open: &str| {
            let breaker = json!({"minimumRequests": 5, "openDuration": open});
            policy(json!({"circuitBreaker": breaker}))
        };
        world.apply(breaker("1h"))?;
        eventually("it is broken off", || {
            let said = web.ask(&[])?;
            ensure!(said.starts_with("http/1.1 503 "), "{said}");
            ensure!(said.contains("x-sluice-reason: circuit_open"), "{said}");
            ensure!(said.contains("retry-after: "), "{said}");
            Ok(())
        })?;
        // Recovered, but nobody asks it before the time is over.
        web.becomes("200")?;
        for _ in 0..10 {
            let said = web.ask(&[])?;
            ensure!(said.contains("x-sluice-reason: circuit_open"), "{said}");
        }
        let refused = web.agent.metrics()?.sum(
            "sluice_circuit_breaker_requests_total",
            &[("destination_service", "web"), ("decision", "rejected")],
        );
        ensure!(refused >= 11.0, "{refused} requests were refused");
        // A shorter time counts from when it was broken off.
        world.apply(breaker("1s"))?;
        eventually("it comes back", || {
            let said = web.ask(&[])?;
            ensure!(said.starts_with("http/1.1 200 "), "{said}");
            Ok(())
        })?;
        for _ in 0..20 {
            let said = web.ask(&[])?;
            ensure!(said.starts_with("http/1.1 200 "), "{said}");
        }
        Ok(())
    });
}

#[test]
fn a_dependency_that_is_gone_is_answered_for_from_memory() {
    test("fallback", |world| {
        let mut web = web(world, "200")?;
        let on = ["ServerError", "ConnectFailure"];
        let stale = json!([{"name": "last", "conditions": on, "type": "Stale", "stale": {"maxAge": "10m", "shared": true}}]);
        world.apply(policy(json!({"fallbacks": stale})))?;
        let ann = ["authorization: bearer ann"];
        eventually("a good answer is kept, and given when the service fails", || {
            web.becomes("200")?;
            let said = web.ask(&ann)?;
            ensure!(said.starts_with("http/1.1 200 ") && !said.contains("x-sluice-reason"), "{said}");
            web.becomes("500")?;
            let said = web.ask(&ann)?;
            ensure!(said.starts_with("http/1.1 200 ") && said.contains("\nage: "), "{said}");
            ensure!(said.contains("x-sluice-reason: upstream_error") && said.contains("\"web\""), "{said}");
            Ok(())
        })?;
        let said = web.ask(&["authorization: bearer bob"])?;
        ensure!(said.starts_with("http/1.1 500 "), "another caller's answer: {said}");
        web.process.kill()?;
        let said = web.ask(&ann)?;
        ensure!(said.starts_with("http/1.1 200 ") && said.contains("\nage: "), "{said}");
        Ok(())
    });
}
