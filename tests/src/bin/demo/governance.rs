//! What a TrafficPolicy does: a new instance warms up, a burst is throttled, a failing dependency is broken off and comes
//! back, a rolling restart loses nothing.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_tests::{Agent, App, Load, LoadReport, Pod, Process, Service, Shop, World, eventually};

use crate::story::{Story, say, table};

const SERVICE: &str = "depot";
const POLICY: &str = "depot";

pub(crate) fn show(world: &World, shop: &Shop, agent: &Agent, story: &mut Story) -> Result<()> {
    let service = world.service("shop", SERVICE).port("http", 80, 8080).apply()?;
    let depot = Depot { world, shop, agent, service };
    let first = depot.instance("one", &[])?;
    // It has been there for long.
    first.pod.set_ready_since(true, UNIX_EPOCH + Duration::from_secs(1_700_000_000))?;
    depot.answers(&["one"])?;
    let second = depot.warm_up(story)?;
    depot.throttle(story)?;
    drop(second);
    let first = depot.break_off(first, story)?;
    depot.restart(first, story)?;
    world.delete("TrafficPolicy", "shop", POLICY)
}

/// How long the programs go on after SIGTERM, in milliseconds.
const LINGER: &str = "1000";

/// A service of its own, so that the chain goes on undisturbed.
struct Depot<'d> {
    world: &'d World,
    shop: &'d Shop,
    agent: &'d Agent,
    service: Service,
}

impl Depot<'_> {
    /// An instance that nothing is sent to before it is set ready.
    fn instance(&self, version: &str, args: &[&str]) -> Result<App> {
        let name = format!("{SERVICE}-{version}");
        let pod = self.world.pod("shop", &name).label("app", SERVICE).unready().start()?;
        let process = serve(&pod, version, args)?;
        Ok(App { process, pod })
    }

    fn load(&self, rate: u32, seconds: u32) -> Result<Load> {
        let (rate, seconds) = (rate.to_string(), seconds.to_string());
        let args = ["--rate", &rate, "--seconds", &seconds, "--connections", "16"];
        Load::start(&self.shop.client, &self.service.url(), &args)
    }

    /// Waits until exactly these versions answer.
    fn answers(&self, versions: &[&str]) -> Result<()> {
        eventually(&format!("{versions:?} answer"), || {
            let report =
                Load::start(&self.shop.client, &self.service.url(), &["--requests", "40"])?.finish()?;
            ensure!(report.failed == 0 && report.chains.keys().eq(versions), "{report:?}");
            Ok(())
        })
    }

    /// Applies a policy for the service, and waits until it is in force.
    fn policy(&self, spec: Value) -> Result<()> {
        let generation = || -> Result<f64> { Ok(self.agent.metrics()?.sum("sluice_state_generation", &[])) };
        let before = generation()?;
        let mut spec = spec;
        spec["targetRefs"] = json!([{"group": "", "kind": "Service", "name": SERVICE}]);
        self.world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": POLICY, "namespace": "shop"},
            "spec": spec,
        }))?;
        eventually("the policy is in force", || {
            ensure!(generation()? > before, "no new snapshot");
            Ok(())
        })
    }

    /// A second instance joins, and gets its share little by little.
    fn warm_up(&self, story: &mut Story) -> Result<App> {
        const DURATION: u32 = 15;
        const MINIMUM: f64 = 0.1;
        story.chapter("A new instance warms up");
        self.policy(json!({"loadBalancer": {"warmup": {"duration": format!("{DURATION}s")}}}))?;
        let load = self.load(600, DURATION + 3)?;
        let began = SystemTime::now();
        thread::sleep(Duration::from_millis(1100));
        let second = self.instance("two", &[])?;
        // Kubernetes tells the time of a transition in whole seconds.
        let ready = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        second.pod.set_ready(true)?;
        let report = load.finish()?;
        say(&format!(
            "600 requests a second; beside one old instance a new one gets ready, with a warm-up of {DURATION} s:"
        ));
        let zero = began.duration_since(UNIX_EPOCH)?.as_secs_f64() - ready as f64;
        let mut furthest = 0.0_f64;
        let mut rows = Vec::new();
        for (second, counts) in report.timeline.iter().enumerate() {
            let (old, new) = (count(counts, "one"), count(counts, "two"));
            let since = zero + second as f64 + 0.5;
            if old + new < 300.0 || since < 1.5 {
                continue;
            }
            let factor = (since.max(1.0) / f64::from(DURATION)).clamp(MINIMUM, 1.0);
            let (wanted, got) = (factor / (1.0 + factor), new / (old + new));
            furthest = furthest.max((wanted - got).abs());
            let bar = "#".repeat((got * 60.0).round() as usize);
            let percent = |part: f64| format!("{:4.1} %", part * 100.0);
            rows.push((format!("{since:.1} s"), vec![percent(wanted), percent(got), bar]));
        }
        let shown = rows.len();
        table(&["wanted", "got", ""], rows.into_iter());
        say(&format!("furthest from the curve in any second: {:.1} percentage points", furthest * 100.0));
        // Six hundred draws scatter by two points; four of those are not by chance.
        story.claim(
            report.failed == 0 && shown >= 10 && furthest < 0.08,
            "its share follows the curve, and no request fails",
        );
        Ok(second)
    }

    fn throttle(&self, story: &mut Story) -> Result<()> {
        story.chapter("A burst is throttled");
        self.policy(json!({
            "rateLimits": [{"name": "burst", "requests": 100, "interval": "1s", "burst": 20}],
        }))?;
        let report = self.load(500, 5)?.finish()?;
        say("a limit of 100 requests a second, at once no more than 20; 500 a second come:");
        per_second(&report, &[("answered", &["one", "two"]), ("429 throttled", &["status 429 throttled"])]);
        let refused = report.failures.get("status 429 throttled").copied().unwrap_or_default();
        let allowed = 20.0 + 100.0 * report.seconds;
        story.claim(
            report.failed == refused && refused > 0,
            "what is above is answered 429 at once, and says that it was Sluice",
        );
        story.claim(
            (report.ok as f64) < allowed * 1.05 && report.ok as f64 > allowed * 0.8,
            "as much as was allowed is answered by the service",
        );
        Ok(())
    }

    fn break_off(&self, mut only: App, story: &mut Story) -> Result<App> {
        story.chapter("A failing dependency is broken off, and comes back");
        self.policy(json!({
            "circuitBreaker": {"interval": "4s", "minimumRequests": 20, "errorPercent": 50, "openDuration": "2s"},
        }))?;
        self.answers(&["one"])?;
        let load = self.load(100, 14)?;
        thread::sleep(Duration::from_secs(2));
        // The same pod, whose program now answers with nothing but errors.
        let restart = |app: &mut App, args: &[&str]| -> Result<()> {
            app.process.kill()?;
            app.process = serve(&app.pod, "one", args)?;
            Ok(())
        };
        restart(&mut only, &["--status", "500"])?;
        thread::sleep(Duration::from_secs(6));
        restart(&mut only, &[])?;
        let report = load.finish()?;
        say("100 requests a second; the service fails from second 2 to second 8:");
        per_second(
            &report,
            &[
                ("answered", &["one"]),
                ("failed by the service", &["status 500"]),
                ("503 circuit_open", &["status 503 circuit_open"]),
            ],
        );
        let open = report.failures.get("status 503 circuit_open").copied().unwrap_or_default();
        let failed = report.failures.get("status 500").copied().unwrap_or_default();
        story.claim(open > failed, "most of the time the failing service is not asked at all");
        let last = report.timeline.iter().rev().nth(1);
        story.claim(
            last.is_some_and(|second| count(second, "one") > 0.0 && second.len() == 1),
            "when it answers again, it is asked again",
        );
        Ok(only)
    }

    fn restart(&self, first: App, story: &mut Story) -> Result<()> {
        story.chapter("A rolling restart loses nothing");
        self.policy(json!({}))?;
        let mut instances = vec![first, self.instance("two", &[])?];
        instances[1].pod.set_ready(true)?;
        self.answers(&["one", "two"])?;
        let load = self.load(500, 12)?;
        for version in ["three", "four"] {
            thread::sleep(Duration::from_secs(1));
            let next = self.instance(version, &[])?;
            next.pod.set_ready(true)?;
            thread::sleep(Duration::from_secs(1));
            // The pod is marked and its program told at the same moment, as the kubelet does it.
            let mut leaving = instances.remove(0);
            leaving.pod.set_terminating()?;
            leaving.process.signal(Signal::SIGTERM)?;
            leaving.process.wait()?;
            instances.push(next);
        }
        let report = load.finish()?;
        say("500 requests a second; both instances are replaced, one after the other:");
        per_second(
            &report,
            &[("one", &["one"]), ("two", &["two"]), ("three", &["three"]), ("four", &["four"])],
        );
        say(&format!("{} requests, {} failed", report.sent, report.failed));
        story.claim(report.failed == 0 && report.sent > 5000, "not one request fails");
        Ok(())
    }
}

fn serve(pod: &Pod, version: &str, args: &[&str]) -> Result<Process> {
    pod.serve(&[&["--name", SERVICE, "--version", version, "--linger", LINGER], args].concat())
}

fn count(second: &std::collections::BTreeMap<String, u64>, what: &str) -> f64 {
    second.get(what).copied().unwrap_or_default() as f64
}

/// What happened in each second, by columns that add some kinds up.
fn per_second(report: &LoadReport, columns: &[(&str, &[&str])]) {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let rows = report.timeline.iter().enumerate().map(|(index, second)| {
        let cells = columns
            .iter()
            .map(|(_, kinds)| format!("{}", kinds.iter().map(|kind| count(second, kind)).sum::<f64>()));
        (format!("second {index}"), cells.collect())
    });
    table(&names, rows);
}
