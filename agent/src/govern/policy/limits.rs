//! How much a service may be asked for: rates (ARCHITECTURE.md#rate-limits) and concurrency
//! (ARCHITECTURE.md#limits-on-requests-in-flight).

use std::{sync::Arc, time::Duration};

use http::HeaderName;

use super::{Mode, RequestMatch};

/// A limit on how many requests come in a time.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// Unique within the policy; made-up answers and metrics name it.
    pub name: Arc<str>,
    /// Requests that are admitted in an [`interval`](Self::interval); above 0.
    pub requests: f64,
    /// Above 0.
    pub interval: Duration,
    /// Requests that may come at once after a quiet time; at least 1.
    pub burst: f64,
    pub behaviour: Behaviour,
    pub key: LimitKey,
    pub scope: Scope,
    /// The requests that it is about.
    pub matches: RequestMatch,
    pub mode: Mode,
}

impl RateLimit {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests / self.interval.as_secs_f64()
    }

    /// A part of it, as a limit of its own: with that part of the rate and of the burst.
    #[must_use]
    pub fn part(&self, part: f64) -> Self {
        Self { requests: self.requests * part, burst: (self.burst * part).max(1.0), ..self.clone() }
    }
}

/// What becomes of a request above the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Behaviour {
    /// It is refused (token bucket).
    Reject,
    /// It waits its turn (uniform pacing), and is refused if that would take longer.
    Queue { timeout: Duration },
    /// As `Reject`, and after a quiet time the limit itself grows from `rate / cold_factor` to `rate` within `duration`
    /// of load (Sentinel's warm-up, Guava's `SmoothWarmingUp`).
    WarmUp { duration: Duration, cold_factor: f64 },
}

/// What is counted by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LimitKey {
    /// Everything together.
    #[default]
    None,
    /// Each calling pod.
    Caller,
    /// All pods of a calling workload together.
    Workload,
    /// Each value of a header; requests without it are counted together.
    Header(HeaderName),
    /// Each value of a query parameter; requests without it are counted together.
    QueryParameter(Arc<str>),
}

/// What a limit holds for. Agents count together with [`Scope::Cluster`] only: nothing multiplies by the number of nodes
/// silently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All callers on a node together.
    #[default]
    Node,
    /// Each calling pod by itself.
    Caller,
    /// Each endpoint, whoever calls: kept by the agent of its node.
    Endpoint,
    /// All callers of the cluster together: each agent has a [share](crate::govern::throttle::Share) of it. Without a
    /// key, and with [`Behaviour::Reject`].
    Cluster,
}

/// A limit on how many requests are in flight, of the callers on a node together, or to an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Concurrency {
    /// At least 1. With `adaptive`, the most that it may reach.
    pub max_requests: u32,
    pub adaptive: Option<Adaptive>,
    /// [`Scope::Node`] or [`Scope::Endpoint`].
    pub scope: Scope,
    pub mode: Mode,
}

/// The gradient controller: `g = clamp(1.25 * minRTT / sampleRTT, 0.5, 2)`, `L' = clamp(g * L + sqrt(g * L), min, max)`.
/// <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter>
#[derive(Clone, Debug, PartialEq)]
pub struct Adaptive {
    /// At least 1.
    pub min_requests: u32,
    /// How often the limit is computed anew; above 0.
    pub update_interval: Duration,
    /// How often the time of an idle service is measured anew; above 0.
    pub min_rtt_interval: Duration,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self {
            min_requests: 3,
            update_interval: Duration::from_millis(100),
            min_rtt_interval: Duration::from_secs(60),
        }
    }
}
