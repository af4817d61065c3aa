//! Why a request goes where it goes: every step of the decision, in the order in which [`governed`](super::governed) takes
//! them, with the rule and the object that caused it.
//!
//! [`live`] asks what would become of a request now: the very code that decides, on the snapshot in force, and on copies of
//! whatever that code changes (buckets, breakers, places, turns), so that asking has no effect. [`past`] tells what became of
//! a request, out of what [`decisions`](super::decisions) kept of it.

mod live;
mod past;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::live::{Asked, explain};
pub(crate) use self::past::tell;
use super::http1;

/// What the proxy answers to a request of HTTP/1 with such a target, where it passes none on, and what it says is wrong.
pub fn rejects(method: &str, target: &str) -> Option<String> {
    let refused = http1::check_target(method, target.as_bytes()).err()?;
    let reason = http1::reason_of(refused);
    Some(format!("{} {}: it has {}", reason.status(), reason.code(), refused.fault()))
}

/// A decision, step by step.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// What a request that has ended was, and what became of it; absent for one that is only asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// The calling pod, as in `shop/client`.
    pub caller: String,
    /// The service port, as in `orders.shop:80`; absent where none is governed at that address.
    pub service: Option<String>,
    pub method: String,
    /// Without the query.
    pub path: String,
    pub steps: Vec<Step>,
    /// The endpoints that could be chosen from; only of a request that is asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
    pub outcome: Outcome,
}

/// When a request was, and how it ended.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    /// Seconds since its answer ended.
    pub seconds_ago: f64,
    pub duration_ms: f64,
    /// 32 hexadecimal digits; absent if its headers said none.
    pub trace_id: Option<String>,
}

/// One step of a decision.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    pub stage: Stage,
    pub verdict: Verdict,
    pub message: String,
    /// The rule and the object behind it, as in `rule burst of TrafficPolicy shop/web`.
    pub source: Option<String>,
}

/// What `--trace-link` does to a request.
const LINKED: &str = "it gets a traceparent that says what its B3 headers do, whose trace came to the pod, or, without any, that of the request which its thread is handling (--trace-link)";

/// Why a request has the tag of another one that came to its pod.
fn by_thread(caller: &str) -> String {
    format!(
        "the thread of Pod {caller} that sends it: it is handling a request that came with this tag (sluice.dev/propagation: thread)"
    )
}

/// In the order in which a request meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Enrolled,
    Managed,
    Protocol,
    Request,
    Route,
    Tag,
    Rule,
    RateLimit,
    Concurrency,
    Lane,
    Endpoint,
    CircuitBreaker,
    Access,
    Timeout,
    Retry,
    Fallback,
}

impl Stage {
    pub fn title(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Managed => "managed",
            Self::Protocol => "protocol",
            Self::Request => "request",
            Self::Route => "route",
            Self::Tag => "tag",
            Self::Rule => "rule",
            Self::RateLimit => "rate limit",
            Self::Concurrency => "concurrency",
            Self::Lane => "lane",
            Self::Endpoint => "endpoint",
            Self::CircuitBreaker => "circuit breaker",
            Self::Access => "access",
            Self::Timeout => "timeout",
            Self::Retry => "retry",
            Self::Fallback => "fallback",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It goes on.
    Passes,
    /// It goes on, otherwise than it could have.
    Changes,
    /// A rule that only observes would have refused it.
    WouldStop,
    /// It ends here.
    Stops,
}

/// An endpoint that could be chosen.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    pub endpoint: String,
    pub pod: Option<String>,
    /// Absent: the baseline.
    pub lane: Option<String>,
    /// `usable`, `warming`, `waiting for its first request` (which begins its warm-up), `delayed`, `ejected`, `draining`, `not
    /// ready`, `not answering` (connection requests).
    pub state: String,
    /// The part of a warm endpoint's share that it gets, 0 to 1.
    pub share: f64,
    pub in_flight: u32,
    /// How long it usually takes to answer, as balancing goes by it (a geometric mean); absent if it has not answered yet.
    pub latency_ms: Option<f64>,
    /// How many percent of such requests it would get now, as drawn.
    pub percent: u32,
}

/// What comes of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// The endpoint that answers, or was asked last.
    pub endpoint: Option<String>,
    pub pod: Option<String>,
    /// What the caller gets; absent where the endpoint decides, or nobody got anything.
    pub status: Option<u16>,
    /// Why Sluice answers itself, as in `rate_limited`.
    pub reason: Option<String>,
    pub message: String,
}

impl Outcome {
    fn of(what: impl Into<String>) -> Self {
        Self { endpoint: None, pod: None, status: None, reason: None, message: what.into() }
    }
}

/// The steps, as they are gone through.
#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn say(&mut self, stage: Stage, verdict: Verdict, what: impl Into<String>, because: Option<String>) {
        self.0.push(Step { stage, verdict, message: what.into(), source: because });
    }
}

/// The rule of a policy, as an object's reader finds it.
fn rule(name: &str, policy: Option<&str>) -> String {
    match policy {
        Some(policy) => format!("{name} of TrafficPolicy {policy}"),
        None => name.to_owned(),
    }
}

/// As it came, if it is text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
