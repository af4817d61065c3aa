//! How much a Service may be asked for: rates and concurrency.

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mode;
use crate::{
    api::{
        field::{At, quoted},
        matching::{RequestMatch, check_header_name},
        number,
        span::{self, Span},
    },
    govern::policy,
};

/// Where none is said, the limit's own interval is a second.
const INTERVAL: Duration = Duration::from_secs(1);
const QUEUE_TIMEOUT: Duration = Duration::from_millis(500);
const WARM_UP: Duration = Duration::from_secs(10);
const COLD_FACTOR: f64 = 3.0;

/// A rate limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.queue) || self.type == 'Queue'")
        .message("queue goes with type Queue only").field_path(".queue"),
    validation = Rule::new("!has(self.warmUp) || self.type == 'WarmUp'")
        .message("warmUp goes with type WarmUp only").field_path(".warmUp"),
    validation = Rule::new("!has(self.burst) || self.type != 'Queue'")
        .message("burst does not go with type Queue, which lets requests through one by one").field_path(".burst"),
    validation = Rule::new("!has(self.scope) || self.scope != 'Cluster' || !has(self.key)")
        .message("key does not go with scope Cluster, which counts all requests together").field_path(".key"),
    validation = Rule::new("!has(self.scope) || self.scope != 'Cluster' || !has(self.type) || self.type == 'Reject'")
        .message("scope Cluster goes with type Reject only").field_path(".type")
)]
pub struct RateLimit {
    /// Name of the limit in metrics and in the responses to rejected requests. Unique within the policy.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// How many requests are admitted in an interval.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: i64,
    /// The interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(INTERVAL)))]
    pub interval: Option<Span<1, 86_400_000>>,
    /// How many requests may come at once after a quiet time; as many as requests says if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<i64>,
    /// What happens to a request above the limit. Reject: it is rejected. Queue: it waits for its turn, and is rejected
    /// if that would take longer than queue.timeout. WarmUp: it is rejected; after a quiet time the limit starts low
    /// and grows to its full height only under load.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = RateLimitType::default()))]
    pub behaviour: Option<RateLimitType>,
    /// Settings of type Queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// Settings of type WarmUp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<RateLimitWarmUp>,
    /// What is counted separately; all requests are counted together if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<LimitKey>,
    /// Whose requests are counted together. Node: those of all calling pods on a node. Caller: those of each calling
    /// pod. Their agents do not count together: what a Service gets in all is this limit times the number of nodes (or pods)
    /// that call it. Cluster: those of all calling pods of the cluster, as one limit, which the agents share by way of a
    /// Valkey or Redis (their setting --limit-store); without that it is counted on each node, as with Node. It goes with type
    /// Reject and without key. Endpoint: all that come to an endpoint (a pod), whoever calls, enrolled or not; the agent of its node counts them,
    /// and a client is an address. Not to be confused with key type Caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = Scope::default()))]
    pub scope: Option<Scope>,
    /// The requests that the limit applies to; all if not set.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<RequestMatch>,
    /// Enforce: the limit rejects. Observe: nothing is rejected, and what would have been rejected is counted. The policy's mode
    /// if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateLimitType {
    #[default]
    Reject,
    Queue,
    WarmUp,
}

/// Settings of rate limits of type Queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Queue {
    /// How long a request may wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(QUEUE_TIMEOUT)))]
    pub timeout: Option<Span<1, 60_000>>,
}

/// Settings of rate limits of type WarmUp.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitWarmUp {
    /// How long it takes, under load, until the limit is at its full height.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(WARM_UP)))]
    pub duration: Option<Span<1000, 3_600_000>>,
    /// The limit starts at its full height divided by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.1, max = 100), extend("default" = COLD_FACTOR))]
    pub cold_factor: Option<f64>,
}

/// What is counted separately.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.name) == !(self.type in ['Caller', 'Workload'])")
        .message("type Header and QueryParam need a name, type Caller and Workload go without").field_path(".name"),
    validation = Rule::new("self.type != 'Header' || !has(self.name) || self.name.matches(\"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$\")")
        .message("no header name: allowed are letters, digits and !#$%&'*+-.^_`|~").field_path(".name")
)]
pub struct LimitKey {
    /// Caller: each calling pod. Workload: all pods of a calling workload (Deployment, StatefulSet and so on) together,
    /// on a node. Header: each value of a header. QueryParam: each value of a query parameter. Requests without the
    /// header or parameter are counted together.
    #[serde(rename = "type")]
    pub key: LimitKeyType,
    /// Name of the header or of the parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LimitKeyType {
    #[default]
    Caller,
    Workload,
    Header,
    QueryParam,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    #[default]
    Node,
    Caller,
    Endpoint,
    Cluster,
}

/// Whose requests in flight are counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConcurrencyScope {
    #[default]
    Node,
    Endpoint,
}

/// A limit on how many requests are in flight, of all clients on a node together, or to each endpoint. Client pods share it fairly: one that stays below
/// its part of it is not rejected for what another asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.maxRequests) || has(self.adaptive)")
        .message("not set: needed unless adaptive is set").field_path(".maxRequests"),
    validation = Rule::new(
        "!has(self.adaptive) || self.adaptive.minRequests <= (has(self.maxRequests) ? self.maxRequests : 1000)"
    ).message("adaptive.minRequests is at most maxRequests, which is 1000 if not set").field_path(".adaptive.minRequests"),
    validation = Rule::new("!has(self.adaptive) || !has(self.scope) || self.scope != 'Endpoint'")
        .message("adaptive does not go with scope Endpoint: say maxRequests").field_path(".adaptive")
)]
pub struct Concurrency {
    /// How many requests may be in flight. With adaptive, the most that the limit may reach: 1000 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<i64>,
    /// Finds the limit itself. There is none, but maxRequests, while the Service keeps up with what it is asked, however long its
    /// responses take. When they take much longer than before and ever more requests are in flight, the limit falls to what the
    /// Service can answer; it ends when nothing was rejected for five seconds. Off if not set; an empty object turns it on with
    /// its defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
    /// Whose requests are counted together. Node: those of all calling pods on a node. Endpoint: all that come to an endpoint (a
    /// pod), whoever calls, enrolled or not; the agent of its node counts them. It goes with maxRequests alone. There is no scope Cluster, as rate limits have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = ConcurrencyScope::default()))]
    pub scope: Option<ConcurrencyScope>,
    /// Enforce: the limit rejects. Observe: nothing is rejected, and what would have been rejected is counted. The policy's mode
    /// if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// The highest limit that an adaptive one reaches where none is said, as Envoy has it.
pub(in crate::api) const ADAPTIVE_MAX: u32 = 1000;

/// Settings of an adaptive concurrency limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Adaptive {
    /// The limit never falls below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000), extend("default" = policy::Adaptive::default().min_requests))]
    pub min_requests: Option<i64>,
    /// How often the limit is computed again while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::Adaptive::default().update_interval)))]
    pub update_interval: Option<Span<10, 60_000>>,
    /// For how long the shortest response times are remembered; and how often they are measured again while there is a limit and
    /// responses stay slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::Adaptive::default().min_rtt_interval)))]
    pub min_rtt_interval: Option<Span<1000, 3_600_000>>,
}

impl RateLimit {
    pub(super) fn check(&self, mode: Mode, at: &At<'_>) -> policy::RateLimit {
        let behaviour = self.behaviour.unwrap_or_default();
        for (field, set, of) in [
            ("queue", self.queue.is_some(), RateLimitType::Queue),
            ("warmUp", self.warm_up.is_some(), RateLimitType::WarmUp),
        ] {
            if set && behaviour != of {
                at.field(field).refuse(format!("type is {behaviour:?}: {field} goes with type {of:?} only"));
            }
        }
        if let (RateLimitType::Queue, Some(burst)) = (behaviour, self.burst) {
            at.field("burst").refuse(format!(
                "{burst} is set: burst does not go with type Queue, which lets requests through one by one"
            ));
        }
        if self.scope == Some(Scope::Cluster) {
            if self.key.is_some() {
                at.field("key")
                    .refuse("key does not go with scope Cluster, which counts all requests together");
            }
            if behaviour != RateLimitType::Reject {
                at.field("type").refuse(format!("{behaviour:?}: scope Cluster goes with type Reject only"));
            }
        }
        let (queue, warm_up) =
            (self.queue.clone().unwrap_or_default(), self.warm_up.clone().unwrap_or_default());
        policy::RateLimit {
            name: self.name.as_str().into(),
            requests: self.requests as f64,
            interval: self.interval.as_ref().map_or(INTERVAL, |span| span.check(&at.field("interval"))),
            burst: match behaviour {
                RateLimitType::Queue => 1.0,
                RateLimitType::Reject | RateLimitType::WarmUp => self.burst.unwrap_or(self.requests) as f64,
            },
            behaviour: match behaviour {
                RateLimitType::Reject => policy::Behaviour::Reject,
                RateLimitType::Queue => policy::Behaviour::Queue { timeout: queue.check(&at.field("queue")) },
                RateLimitType::WarmUp => warm_up.check(&at.field("warmUp")),
            },
            key: self.key.as_ref().map_or(policy::LimitKey::None, |key| key.check(&at.field("key"))),
            scope: match self.scope.unwrap_or_default() {
                Scope::Node => policy::Scope::Node,
                Scope::Caller => policy::Scope::Caller,
                Scope::Endpoint => policy::Scope::Endpoint,
                Scope::Cluster => policy::Scope::Cluster,
            },
            matches: self
                .matches
                .as_ref()
                .map(|matches| matches.check(&at.field("match")))
                .unwrap_or_default(),
            mode: self.mode.unwrap_or(mode).policy(),
        }
    }
}

impl Queue {
    fn check(&self, at: &At<'_>) -> Duration {
        self.timeout.as_ref().map_or(QUEUE_TIMEOUT, |span| span.check(&at.field("timeout")))
    }
}

impl RateLimitWarmUp {
    fn check(&self, at: &At<'_>) -> policy::Behaviour {
        policy::Behaviour::WarmUp {
            duration: self.duration.as_ref().map_or(WARM_UP, |span| span.check(&at.field("duration"))),
            cold_factor: self.cold_factor.unwrap_or(COLD_FACTOR),
        }
    }
}

impl LimitKey {
    fn check(&self, at: &At<'_>) -> policy::LimitKey {
        let at = at.field("name");
        match (self.key, self.name.as_deref()) {
            (LimitKeyType::Caller, None) => policy::LimitKey::Caller,
            (LimitKeyType::Workload, None) => policy::LimitKey::Workload,
            (key @ (LimitKeyType::Caller | LimitKeyType::Workload), Some(name)) => {
                at.refuse(format!("{}: type {key:?} goes without a name", quoted(name)));
                policy::LimitKey::Caller
            }
            (LimitKeyType::Header, Some(name)) => {
                check_header_name(name, &at).map_or(policy::LimitKey::None, policy::LimitKey::Header)
            }
            (LimitKeyType::QueryParam, Some(name)) => policy::LimitKey::QueryParameter(name.into()),
            (key, None) => {
                at.refuse(format!("not set: type {key:?} needs a name"));
                policy::LimitKey::None
            }
        }
    }
}

impl Concurrency {
    pub(super) fn check(&self, mode: Mode, at: &At<'_>) -> policy::Concurrency {
        if self.max_requests.is_none() && self.adaptive.is_none() {
            at.field("maxRequests").refuse("not set: needed unless adaptive is set");
        }
        let max_requests = self.max_requests.map_or(ADAPTIVE_MAX, number);
        let adaptive = self.adaptive.as_ref().map(|adaptive| {
            let at = at.field("adaptive");
            let checked = adaptive.check(&at);
            // What is out of bounds is refused by itself.
            if checked.min_requests > max_requests && max_requests > 0 {
                at.field("minRequests").refuse(format!(
                    "{} is above maxRequests, {max_requests}: it is at most that",
                    checked.min_requests
                ));
            }
            checked
        });
        if self.scope == Some(ConcurrencyScope::Endpoint) && self.adaptive.is_some() {
            at.field("adaptive").refuse("adaptive does not go with scope Endpoint: say maxRequests");
        }
        let scope = match self.scope.unwrap_or_default() {
            ConcurrencyScope::Node => policy::Scope::Node,
            ConcurrencyScope::Endpoint => policy::Scope::Endpoint,
        };
        policy::Concurrency { max_requests, adaptive, scope, mode: self.mode.unwrap_or(mode).policy() }
    }
}

impl Adaptive {
    fn check(&self, at: &At<'_>) -> policy::Adaptive {
        let default = policy::Adaptive::default();
        policy::Adaptive {
            min_requests: self.min_requests.map_or(default.min_requests, number),
            update_interval: self
                .update_interval
                .as_ref()
                .map_or(default.update_interval, |span| span.check(&at.field("updateInterval"))),
            min_rtt_interval: self
                .min_rtt_interval
                .as_ref()
                .map_or(default.min_rtt_interval, |span| span.check(&at.field("minRttInterval"))),
        }
    }
}
