//! A burst, and the limits of a TrafficPolicy.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, App, Capture, Load, Pod, Service, World, eventually, test};

struct Web {
    service: Service,
    _app: App,
    client: Pod,
    agent: Agent,
}

fn web(world: &World, flags: &[&str]) -> Result<Web> {
    world.namespace("shop", Capture::Enabled)?;
    let pod = world.pod("shop", "web-1").label("app", "web").start()?;
    let process = pod.serve(&[&["--name", "web"], flags].concat())?;
    let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok(Web { service, _app: App { process, pod }, client, agent })
}

/// Ten requests an hour to `/burst`, and one to a path of its own, which shows when the policy is in force.
fn policy(mode: &str, probe: &str) -> Value {
    let limit = |name: &str, requests: u32, mode: &str, path: &str| {
        let path = json!({"type": "Exact", "value": path});
        json!({"name": name, "requests": requests, "interval": "1h", "mode": mode, "match": {"path": path}})
    };
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rateLimits": [limit("burst", 10, mode, "/burst"), limit(&probe[1..], 1, "Enforce", probe)],
        },
    })
}

impl Web {
    fn ask(&self, path: &str, more: &[&str]) -> Result<String> {
        let url = format!("{}{path}", self.service.url());
        Ok(self.client.run("curl", &[&["-sS", "-i", "-m", "10"], more, &[&url]].concat())?.to_lowercase())
    }

    /// Writes the policy and waits until it is in force.
    fn governed_by(&self, world: &World, mode: &str, probe: &str) -> Result<()> {
        world.apply(policy(mode, probe))?;
        eventually("the policy is in force", || {
            let said = self.ask(probe, &[])?;
            ensure!(said.starts_with("http/1.1 429 "), "{said}");
            Ok(())
        })
    }

    /// A hundred requests: how many were answered, and how many refused.
    fn burst(&self) -> Result<(u64, u64)> {
        let url = format!("{}/burst", self.service.url());
        let report = Load::start(&self.client, &url, &["--requests", "100"])?.finish()?;
        let refused = report.failures.get("status 429 rate_limited").copied().unwrap_or_default();
        ensure!(report.ok + refused == 100, "{report:?}");
        Ok((report.ok, refused))
    }

    /// How many requests the limit has allowed, refused...
    fn decided(&self, decision: &str) -> Result<u64> {
        let labels = [("destination_service", "web"), ("rule", "burst"), ("decision", decision)];
        Ok(self.agent.metrics()?.sum("sluice_rate_limit_requests_total", &labels) as u64)
    }
}

#[test]
fn a_burst_is_throttled_to_the_request() {
    test("burst", |world| {
        let web = web(world, &[])?;
        web.governed_by(world, "Enforce", "/first")?;
        ensure!(web.burst()? == (10, 90));
        let said = web.ask("/burst", &[])?;
        for part in ["http/1.1 429 ", "x-sluice-reason: rate_limited", "\"rule\":\"burst\"", "shop/web"] {
            ensure!(said.contains(part), "no {part} in {said}");
        }
        let after = said.lines().find_map(|line| line.strip_prefix("retry-after: "));
        let after: u32 = after.unwrap_or_default().trim().parse()?;
        ensure!((1..=360).contains(&after), "a request is regained every six minutes: {after}");
        // To gRPC it is RESOURCE_EXHAUSTED.
        let grpc = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-X", "POST"];
        let said = web.ask("/burst", &grpc)?;
        ensure!(said.starts_with("http/2 200") && said.contains("grpc-status: 8"), "{said}");
        // Other paths are none of the limit's business.
        ensure!(web.ask("/other", &[])?.starts_with("http/1.1 200 "));
        let decided = (web.decided("allowed")?, web.decided("rejected")?);
        ensure!(decided == (10, 92), "{decided:?}");
        Ok(())
    });
}

#[test]
fn a_limit_that_observes_refuses_nobody_and_keeps_count() {
    test("observe", |world| {
        let web = web(world, &[])?;
        web.governed_by(world, "Observe", "/first")?;
        ensure!(web.burst()? == (100, 0));
        let decided = (web.decided("allowed")?, web.decided("would_reject")?);
        ensure!(decided == (10, 90), "{decided:?}");
        // Enforced from now on, and what was let through counts.
        web.governed_by(world, "Enforce", "/second")?;
        ensure!(web.burst()? == (0, 100));
        Ok(())
    });
}

#[test]
fn no_more_is_in_flight_than_may_be() {
    test("inflight", |world| {
        let web = web(world, &["--delay", "2000"])?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "concurrency": {"maxRequests": 3},
            },
        }))?;
        let asked = || Ok(web.agent.metrics()?.sum("sluice_concurrency_limit_requests_total", &[]));
        eventually("the policy is in force", || {
            web.ask("/", &[])?;
            let asked: Result<f64> = asked();
            ensure!(asked? > 0.0);
            Ok(())
        })?;
        // Each of eight callers asks once: three at a time are answered.
        let args = ["--connections", "8", "--requests", "8"];
        let report = Load::start(&web.client, &web.service.url(), &args)?.finish()?;
        ensure!(
            report.ok == 3 && report.failures.get("status 429 concurrency_limited") == Some(&5),
            "{report:?}"
        );
        Ok(())
    });
}
