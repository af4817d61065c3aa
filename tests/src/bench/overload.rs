//! A service that gets slower the more it has to do, and callers that ask for three times what it can give.
//!
//! With `n` requests in work an answer takes `20 ms * (1 + (n / 20)²)`, so the service gives most with 20 in work: 500
//! answers a second. Nobody tells it that a caller has gone: it works on for callers that no longer wait, as most
//! services do. Callers wait for a second. What counts is goodput: answers that came in time.

use std::{fmt, fmt::Write as _};

use anyhow::{Result, ensure};
use serde_json::json;

use super::Record;
use crate::{Agent, Capture, Load, LoadReport, Pod, Service, World, eventually};

/// What it is called beside the loads.
pub const NAME: &str = "overload";

const KNEE: u32 = 20;
const DELAY_MILLIS: u32 = 20;
/// Three times of what the service can give.
const RATE: u32 = 3 * KNEE * 1000 / (2 * DELAY_MILLIS);
/// Enough to flood it: each is one caller that waits for its answer.
const CALLERS: u32 = 400;
const TIMEOUT_MILLIS: u32 = 1000;
/// Load that is not counted, before each measurement.
const WARMUP_SECONDS: u32 = 4;
const SECONDS: u32 = 10;

/// What callers and Sluice do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// As many callers as the service can serve best.
    Best,
    /// Overload, and no limit.
    Unlimited,
    /// Overload, and the adaptive limit with its defaults.
    Adaptive,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Best => "no overload",
            Self::Unlimited => "no limit",
            Self::Adaptive => "adaptive limit",
        })
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub case: Case,
    pub report: LoadReport,
}

impl Outcome {
    /// Answers a second that came in time.
    pub fn goodput(&self) -> f64 {
        self.report.ok as f64 / self.report.seconds
    }

    fn failed(&self, kind: &str) -> f64 {
        self.report.failures.get(kind).copied().unwrap_or_default() as f64 / self.report.seconds
    }

    pub fn record(&self) -> Record {
        let answered = self.report.ok > 0;
        Record {
            proxy: "sluice".to_owned(),
            load: format!("{NAME}: {}", self.case),
            rps: Some(self.goodput()),
            p50_us: answered.then_some(self.report.p50_us as f64),
            p99_us: answered.then_some(self.report.p99_us as f64),
            ..Record::default()
        }
    }
}

/// Plays all cases, each with a service of its own; `progress` is told each as it begins.
pub fn run(mut progress: impl FnMut(Case)) -> Result<Vec<Outcome>> {
    let world = World::new("overload")?;
    world.namespace("bench", Capture::Enabled)?;
    let client = world.pod("bench", "client").start()?;
    let service = world.service("bench", "origin").port("http", 80, 8080).apply()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    let bench = Bench { world: &world, client: &client, service: &service, agent: &agent };
    [Case::Best, Case::Unlimited, Case::Adaptive]
        .into_iter()
        .map(|case| {
            progress(case);
            Ok(Outcome { case, report: bench.play(case)? })
        })
        .collect()
}

struct Bench<'w> {
    world: &'w World,
    client: &'w Pod,
    service: &'w Service,
    agent: &'w Agent,
}

impl Bench<'_> {
    fn play(&self, case: Case) -> Result<LoadReport> {
        let name = format!("origin-{case:?}").to_lowercase();
        let origin = self.world.pod("bench", &name).label("app", "origin").start()?;
        let (delay, knee) = (DELAY_MILLIS.to_string(), KNEE.to_string());
        let _process = origin.serve(&["--name", "origin", "--delay", &delay, "--knee", &knee])?;
        if case == Case::Adaptive {
            self.world.apply(json!({
                "apiVersion": "sluice.dev/v1alpha1",
                "kind": "TrafficPolicy",
                "metadata": {"namespace": "bench", "name": "origin"},
                "spec": {
                    "targetRefs": [{"group": "", "kind": "Service", "name": "origin"}],
                    "concurrency": {"adaptive": {}},
                },
            }))?;
            eventually("the limit is in force", || {
                self.load(1, RATE, &["--requests", "1"])?;
                let asked = self.agent.metrics()?.sum("sluice_concurrency_limit_requests_total", &[]);
                ensure!(asked > 0.0, "nothing has asked the limit");
                Ok(())
            })?;
        } else {
            eventually("the service answers", || {
                let report = self.load(1, RATE, &["--requests", "1"])?;
                ensure!(report.ok == 1, "{report:?}");
                Ok(())
            })?;
        }
        let (callers, rate) = if case == Case::Best { (KNEE, u32::MAX) } else { (CALLERS, RATE) };
        self.load(callers, rate, &["--seconds", &WARMUP_SECONDS.to_string()])?;
        self.load(callers, rate, &["--seconds", &SECONDS.to_string()])
    }

    fn load(&self, callers: u32, rate: u32, more: &[&str]) -> Result<LoadReport> {
        let (callers, rate, timeout) = (callers.to_string(), rate.to_string(), TIMEOUT_MILLIS.to_string());
        let args = ["--connections", &callers, "--rate", &rate, "--timeout", &timeout];
        Load::start(self.client, &self.service.url(), &[&args, more].concat())?.finish()
    }
}

/// Side by side, for people.
pub fn table(outcomes: &[Outcome]) -> String {
    let best = outcomes.iter().find(|outcome| outcome.case == Case::Best).map_or(0.0, Outcome::goodput);
    let mut out = format!(
        "\noverload: a service that collapses, asked for {RATE} answers a second by {CALLERS} callers that wait for \
         {TIMEOUT_MILLIS} ms\n{:<16}{:>12}{:>9}{:>10}{:>10}{:>12}{:>14}\n",
        "", "goodput/s", "of best", "p50 ms", "p99 ms", "refused/s", "timed out/s"
    );
    for outcome in outcomes {
        let millis = |micros: u64| match outcome.report.ok {
            0 => "-".to_owned(),
            _ => format!("{:.0}", micros as f64 / 1e3),
        };
        let _ = writeln!(
            out,
            "{:<16}{:>12.0}{:>8.0}%{:>10}{:>10}{:>12.0}{:>14.0}",
            outcome.case,
            outcome.goodput(),
            if best > 0.0 { outcome.goodput() / best * 100.0 } else { 0.0 },
            millis(outcome.report.p50_us),
            millis(outcome.report.p99_us),
            outcome.failed("status 429 concurrency_limited"),
            outcome.failed("timeout"),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(case: Case, ok: u64, failures: &[(&str, u64)]) -> Outcome {
        let failures = failures.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        let report = LoadReport {
            ok,
            failures,
            seconds: 10.0,
            p50_us: 32_000,
            p99_us: 61_400,
            ..LoadReport::default()
        };
        Outcome { case, report }
    }

    #[test]
    fn the_table_says_what_each_case_gives() {
        let text = table(&[
            outcome(Case::Best, 4000, &[]),
            outcome(Case::Unlimited, 0, &[("timeout", 3990)]),
            outcome(Case::Adaptive, 3600, &[("status 429 concurrency_limited", 11_400)]),
        ]);
        let rows: Vec<Vec<&str>> = text.lines().skip(3).map(|row| row.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["no", "overload", "400", "100%", "32", "61", "0", "0"]);
        assert_eq!(rows[1], ["no", "limit", "0", "0%", "-", "-", "0", "399"]);
        assert_eq!(rows[2], ["adaptive", "limit", "360", "90%", "32", "61", "1140", "0"]);
    }

    #[test]
    fn a_record_has_no_latency_where_nothing_was_answered() {
        assert_eq!(outcome(Case::Unlimited, 0, &[]).record().p99_us, None);
        let record = outcome(Case::Adaptive, 10, &[]).record();
        assert_eq!((record.load.as_str(), record.p99_us), ("overload: adaptive limit", Some(61_400.0)));
    }
}
