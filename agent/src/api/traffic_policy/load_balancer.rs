//! How an endpoint is chosen, how a new one comes in, how an old one goes.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mode;
use crate::{
    api::{
        field::{At, quoted},
        span::{self, Span},
    },
    govern::policy,
};

/// How the endpoint for a request is chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// LeastTime: of two endpoints drawn at random, the one whose clients wait less, failures included; endpoints
    /// within a factor of two are equal, and the one with fewer unanswered requests is preferred. LeastRequest: of two,
    /// the one with fewer requests in flight. RoundRobin: in turn. Random: any.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = LoadBalancerType::default()))]
    pub algorithm: Option<LoadBalancerType>,
    /// Gives a new endpoint a growing share of the requests. Off if not set; an empty object turns it on with its
    /// defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// Panic threshold: if fewer than this percentage of the ready endpoints are available, all of them are used. An
    /// endpoint that is ejected, or in warmUp.delay, is not available; unlike in Envoy, readiness does not count. 0
    /// turns this off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        range(min = 0, max = 100),
        extend("default" = policy::LoadBalancer::default().panic_threshold_percent)
    )]
    pub panic_threshold_percent: Option<f64>,
    /// For clients that call endpoints themselves, where the annotation sluice.dev/endpoints of the Service or its
    /// Namespace is governed. Keep: a request stays with the endpoint that its client called, unless a lane says
    /// otherwise or the endpoint is terminating. Rebalance: each request is balanced like those to the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = DirectEndpoints::default()))]
    pub direct_endpoints: Option<DirectEndpoints>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DirectEndpoints {
    #[default]
    Keep,
    Rebalance,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LoadBalancerType {
    #[default]
    LeastTime,
    LeastRequest,
    RoundRobin,
    Random,
}

/// The share of a warm endpoint's requests that a new one gets: max(minimum, (t / duration) ^ (1 / aggression)), t being
/// the time since its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WarmUp {
    /// How long it takes until the endpoint gets a full share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::WarmUp::default().duration)))]
    pub duration: Option<Span<1000, 86_400_000>>,
    /// 1: the share grows linearly; above 1: faster at first; below 1: slower at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01, max = 100), extend("default" = policy::WarmUp::default().aggression))]
    pub aggression: Option<f64>,
    /// The share at the start, in percent of that of a warm endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01, max = 100), extend("default" = policy::WarmUp::default().minimum_percent))]
    pub minimum_percent: Option<f64>,
    /// How long a new endpoint gets no requests at all, before its share begins to grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::WarmUp::default().delay)))]
    pub delay: Option<Span<0, 3_600_000>>,
    /// When the warm-up starts. Ready: when the pod becomes Ready. FirstRequest: with the first request since its
    /// containers started that is not a health check. The agent of the pod's node sees the requests of its own enrolled
    /// pods, and all requests where a policy asks for something at the endpoint (an AccessPolicy, limits with scope
    /// Endpoint). With --warm-gate it writes what it saw to the pod's condition sluice.dev/first-request, so that agents
    /// of all nodes start at the same time; other agents go by what they sent themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = StartOn::default()))]
    pub start_on: Option<StartOn>,
    /// Paths whose requests are health checks and never start a warm-up: exact, or a prefix that ends with *.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 1024), regex(pattern = r"^/[^*]*\*?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub health_check_paths: Vec<String>,
    /// For pods with the readiness gate sluice.dev/warm, which get managed requests before they are Ready: the longest
    /// time from when their containers are ready until the gate is set, though the warm-up has not ended (with
    /// FirstRequest, where the agent of the pod's node sees no request). Twice delay and duration if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<Span<1000, 172_800_000>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StartOn {
    #[default]
    Ready,
    FirstRequest,
}

/// What happens to requests in flight to an endpoint that is terminating. It gets no new ones in any case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// How long they may go on before they are aborted; for as long as the endpoint serves them if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span<1, 3_600_000>>,
    /// Enforce: what takes longer is aborted. Observe: nothing is aborted, and what would have been aborted is counted. The
    /// policy's mode if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

impl LoadBalancer {
    pub(super) fn check(&self, at: &At<'_>) -> policy::LoadBalancer {
        let default = policy::LoadBalancer::default();
        policy::LoadBalancer {
            algorithm: match self.algorithm.unwrap_or_default() {
                LoadBalancerType::LeastTime => policy::Algorithm::LeastTime,
                LoadBalancerType::LeastRequest => policy::Algorithm::LeastRequest,
                LoadBalancerType::RoundRobin => policy::Algorithm::RoundRobin,
                LoadBalancerType::Random => policy::Algorithm::Random,
            },
            warmup: self.warm_up.as_ref().map(|rule| rule.check(&at.field("warmUp"))),
            panic_threshold_percent: self.panic_threshold_percent.unwrap_or(default.panic_threshold_percent),
            direct_endpoints: match self.direct_endpoints.unwrap_or_default() {
                DirectEndpoints::Keep => policy::DirectEndpoints::Keep,
                DirectEndpoints::Rebalance => policy::DirectEndpoints::Rebalance,
            },
        }
    }
}

impl WarmUp {
    fn check(&self, at: &At<'_>) -> policy::WarmUp {
        let default = policy::WarmUp::default();
        let paths = at.field("healthCheckPaths");
        for (i, path) in self.health_check_paths.iter().enumerate() {
            if let Some(earlier) = self.health_check_paths[..i].iter().position(|earlier| earlier == path) {
                paths.index(i).refuse(format!("{} is healthCheckPaths[{earlier}] already", quoted(path)));
            }
        }
        policy::WarmUp {
            duration: self
                .duration
                .as_ref()
                .map_or(default.duration, |span| span.check(&at.field("duration"))),
            aggression: self.aggression.unwrap_or(default.aggression),
            minimum_percent: self.minimum_percent.unwrap_or(default.minimum_percent),
            delay: self.delay.as_ref().map_or(default.delay, |span| span.check(&at.field("delay"))),
            start_on: match self.start_on.unwrap_or_default() {
                StartOn::Ready => policy::StartOn::Ready,
                StartOn::FirstRequest => policy::StartOn::FirstRequest,
            },
            health_check_paths: self.health_check_paths.iter().map(|path| path.as_str().into()).collect(),
            max_wait: self.max_wait.as_ref().map(|span| span.check(&at.field("maxWait"))),
        }
    }
}

impl Drain {
    pub(super) fn check(&self, mode: Mode, at: &At<'_>) -> policy::Drain {
        policy::Drain {
            timeout: self.timeout.as_ref().map(|span| span.check(&at.field("timeout"))),
            mode: self.mode.unwrap_or(mode).policy(),
        }
    }
}
