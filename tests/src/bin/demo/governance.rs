//! What a TrafficPolicy does: a new instance warms up, a burst is rate limited, a failing dependency is broken off and comes
//! back, a rolling restart loses nothing.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Agent, App, Depot, LoadReport, Shop, World};

use crate::story::{Story, say, table};

pub(crate) fn show(world: &World, shop: &Shop, agent: &Agent, story: &mut Story) -> Result<()> {
    // A service of its own, so that the chain goes on undisturbed.
    let depot = Depot::open(world, agent, &shop.client)?;
    let first = depot.old_instance("one")?;
    let second = warm_up(&depot, story)?;
    throttle(&depot, story)?;
    depot.end(second)?;
    let first = break_off(&depot, first, story)?;
    restart(&depot, first, story)?;
    depot.no_policy()
}

/// A second instance joins, and gets its share little by little.
fn warm_up(depot: &Depot<'_>, story: &mut Story) -> Result<App> {
    const DURATION: u32 = 15;
    story.chapter("A new instance warms up");
    depot.policy(json!({"loadBalancer": {"warmUp": {"duration": format!("{DURATION}s")}}}))?;
    let load = depot.load(600, DURATION + 2)?;
    let began = SystemTime::now();
    thread::sleep(Duration::from_millis(1100));
    let second = depot.instance("two")?;
    // Kubernetes tells the time of a transition in whole seconds.
    let ready = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    second.pod.set_ready(true)?;
    let report = load.finish()?;
    say(&format!(
        "600 requests a second; a new instance becomes Ready beside an old one, with a warm-up of {DURATION} s:"
    ));
    let zero = began.duration_since(UNIX_EPOCH)?.as_secs_f64() - ready as f64;
    let mut furthest = 0.0_f64;
    let mut rows = Vec::new();
    // A machine that has other things to do sends less in some seconds: these are taken together with the next, each with what
    // the curve says of it.
    let (mut seconds, mut all, mut of_new, mut of_curve) = (0_u32, 0.0, 0.0, 0.0);
    let (mut shown, mut counted) = (0, 0.0);
    for (second, counts) in report.timeline.iter().enumerate() {
        let (old, new) = (count(counts, "one"), count(counts, "two"));
        let since = zero + second as f64 + 0.5;
        // Once it is warm latencies decide, and those of such a machine differ: whole seconds before.
        if !(1.5..=f64::from(DURATION) - 0.5).contains(&since) {
            continue;
        }
        let factor = since / f64::from(DURATION);
        seconds += 1;
        all += old + new;
        of_new += new;
        of_curve += (old + new) * factor / (1.0 + factor);
        if all < 300.0 {
            continue;
        }
        let (wanted, got) = (of_curve / all, of_new / all);
        furthest = furthest.max((wanted - got).abs());
        let bar = "#".repeat((got * 60.0).round() as usize);
        let percent = |part: f64| format!("{:4.1} %", part * 100.0);
        rows.push((format!("{since:.1} s"), vec![percent(wanted), percent(got), bar]));
        (shown, counted) = (shown + seconds, counted + all);
        (seconds, all, of_new, of_curve) = (0, 0.0, 0.0, 0.0);
    }
    table(&["target", "actual", ""], rows.into_iter());
    say(&format!("furthest from the curve in any second: {:.1} percentage points", furthest * 100.0));
    // A share of six hundred draws scatters by two points: four times that is no chance.
    story.claim(
        report.failed == 0 && shown >= 10 && counted >= 3000.0 && furthest < 0.08,
        "its share follows the curve, and no request fails",
    );
    Ok(second)
}

fn throttle(depot: &Depot<'_>, story: &mut Story) -> Result<()> {
    story.chapter("A burst is rate limited");
    depot.policy(json!({
        "rateLimits": [{"name": "burst", "requests": 100, "interval": "1s", "burst": 20}],
    }))?;
    let report = depot.load(500, 5)?.finish()?;
    say("a limit of 100 requests a second with a burst of 20; 500 a second come:");
    per_second(&report, &[("2xx", &["one", "two"]), ("429 rate_limited", &["status 429 rate_limited"])]);
    let refused = report.failures.get("status 429 rate_limited").copied().unwrap_or_default();
    let allowed = 20.0 + 100.0 * report.seconds;
    story.claim(report.failed == refused && refused > 0, "what is above gets 429 at once, from Sluice");
    story.claim(
        (report.ok as f64) < allowed * 1.05 && report.ok as f64 > allowed * 0.8,
        "what the limit allows gets a response of the service",
    );
    Ok(())
}

fn break_off(depot: &Depot<'_>, mut only: App, story: &mut Story) -> Result<App> {
    story.chapter("A circuit breaker opens for a failing dependency, and closes again");
    depot.policy(json!({
        "circuitBreaker": {"interval": "4s", "minimumRequests": 20, "errorPercent": 50, "openDuration": "2s"},
    }))?;
    depot.answers(&["one"])?;
    let load = depot.load(100, 14)?;
    thread::sleep(Duration::from_secs(2));
    // The same pod, whose program now answers with nothing but errors.
    depot.restart(&mut only, "one", &["--status", "500"])?;
    thread::sleep(Duration::from_secs(6));
    depot.restart(&mut only, "one", &[])?;
    let report = load.finish()?;
    say("100 requests a second; the service fails from second 2 to second 8:");
    per_second(
        &report,
        &[
            ("2xx", &["one"]),
            ("failed by the service", &["status 500"]),
            ("503 circuit_open", &["status 503 circuit_open"]),
        ],
    );
    let open = report.failures.get("status 503 circuit_open").copied().unwrap_or_default();
    let failed = report.failures.get("status 500").copied().unwrap_or_default();
    story.claim(open > failed, "most of the time the failing service gets no request");
    let last = report.timeline.iter().rev().nth(1);
    story.claim(
        last.is_some_and(|second| count(second, "one") > 0.0 && second.len() == 1),
        "when it recovers, it gets requests again",
    );
    Ok(only)
}

fn restart(depot: &Depot<'_>, first: App, story: &mut Story) -> Result<()> {
    story.chapter("A rolling restart loses nothing");
    depot.policy(json!({}))?;
    let mut instances = vec![first, depot.instance("two")?];
    instances[1].pod.set_ready(true)?;
    depot.answers(&["one", "two"])?;
    let load = depot.load(500, 12)?;
    for version in ["three", "four"] {
        thread::sleep(Duration::from_secs(1));
        let next = depot.instance(version)?;
        next.pod.set_ready(true)?;
        thread::sleep(Duration::from_secs(1));
        depot.end(instances.remove(0))?;
        instances.push(next);
    }
    let report = load.finish()?;
    say("500 requests a second; both instances are replaced, one after the other:");
    per_second(&report, &[("one", &["one"]), ("two", &["two"]), ("three", &["three"]), ("four", &["four"])]);
    say(&format!("{} requests, {} failed", report.sent, report.failed));
    story.claim(report.failed == 0 && report.sent > 5000, "not one request fails");
    Ok(())
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
