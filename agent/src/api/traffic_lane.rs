//! `TrafficLane`: a set of workloads that share a tag, and the requests that enter it, as users write it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Status, address,
    field::{At, Errors, FieldError, quoted, refuse_repeated},
    matching::{RequestMatch, check_header_name, each},
    schema, selector,
    target::{self, NO_NAMESPACE, NO_NAMESPACE_MESSAGE, TargetRef, UNIQUE_TARGETS, UNIQUE_TARGETS_MESSAGE},
    traffic_policy::unique_names,
};
use crate::govern::{policy, tag::Tag};

/// A set of pods that share a tag, and the requests that enter it. A request with the tag stays on these pods along the
/// whole chain of calls, wherever they have a usable endpoint.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "TrafficLane",
    plural = "trafficlanes",
    shortname = "tl",
    category = "sluice",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    doc = "TrafficLane names the workloads that share a tag (a gray release, a branch's environment) and the requests \
           that enter the lane.",
    label("gateway.networking.k8s.io/policy", "Direct"),
    label("app.kubernetes.io/part-of", "sluice"),
    printcolumn(name = "Tag", type_ = "string", json_path = ".spec.tag"),
    printcolumn(name = "Fallback", type_ = "string", json_path = ".spec.fallback"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    // Both conditions fail for the same reason; that of this one says also what is active in part only.
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "!has(self.fallbackLanes) || !(self.tag in self.fallbackLanes)"
    ).message("a lane does not fall back to itself").field_path(".fallbackLanes"),
    validation = Rule::new(
        "!has(self.serviceFallbacks) || \
         self.serviceFallbacks.all(one, !has(one.lanes) || !(self.tag in one.lanes))"
    ).message("a lane does not fall back to itself").field_path(".serviceFallbacks")
)]
pub struct TrafficLaneSpec {
    /// The tag that requests of the lane carry in the tag header and in those of tracers, and pods in the label sluice.dev/tag
    /// (which works without a TrafficLane, too).
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub tag: String,
    /// The pods of this namespace that belong to the lane, besides those with the label sluice.dev/tag. A pod's label
    /// has precedence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selector::schema")]
    pub workload_selector: Option<LabelSelector>,
    /// Endpoints of the lane outside the cluster, such as the computer of a developer: requests of the lane to a Service go
    /// there as well. They have to be reachable from the client pods, whose NetworkPolicies apply, and always count as ready;
    /// outlierDetection ejects one that is not there. Not for headless Services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub endpoints: Vec<LaneEndpoint>,
    /// What happens to a request of the lane at a Service of this namespace that has no usable endpoint in the lane.
    /// Baseline: pods without a tag get it, and it keeps its tag. Fail: it is rejected with 503, also at Services that
    /// never had an endpoint in the lane; serviceFallbacks makes exceptions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = LaneFallback::default()))]
    pub fallback: Option<LaneFallback>,
    /// Tags of other lanes, such as staging, that such a request tries first, in this order. It keeps its own tag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub fallback_lanes: Vec<String>,
    /// Exceptions: Services of this namespace with another fallback or other fallbackLanes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub service_fallbacks: Vec<ServiceFallback>,
    /// The Services of this namespace at which requests may enter the lane, or ports of them; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(
        validation = Rule::new(UNIQUE_TARGETS).message(UNIQUE_TARGETS_MESSAGE),
        validation = Rule::new(NO_NAMESPACE).message(NO_NAMESPACE_MESSAGE)
    )]
    pub target_refs: Vec<TargetRef>,
    /// Which lane is tried first where a request could enter several: the one with the higher number. With equal
    /// numbers, entry rules without a percentage come first, and then the older lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000), extend("default" = 0))]
    pub priority: Option<i64>,
    /// Whether a request keeps the tag of this lane that it carries when it comes to a Service at which requests may enter
    /// (targetRefs). true: it does. false: the tag is removed there, from all headers and whoever sends it, and the entry rules are
    /// asked as for a request without one; other tags stay, and so do pods of the lane in it. Where a tag was set first cannot be
    /// told: a pod without a tag that passes one on to such a Service loses it, too. So target Services that are called from
    /// outside only; between all others tags are kept. Without entry rules it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub trust_incoming_tag: Option<bool>,
    /// The requests that enter the lane: those that one of these rules matches. Requests that have a tag, and requests
    /// of pods that have one, keep it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub entry: Vec<EntryRule>,
}

/// What happens to a request of the lane where it has no usable endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LaneFallback {
    #[default]
    Baseline,
    Fail,
}

/// The exception for one Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.fallback) || has(self.lanes)").message("fallback or lanes is needed")
)]
pub struct ServiceFallback {
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Replaces the lane's fallback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<LaneFallback>,
    /// Replaces the lane's fallbackLanes; an empty list is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 8),
        inner(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub lanes: Option<Vec<String>>,
}

/// An endpoint outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LaneEndpoint {
    /// Name of the Service of this namespace that it responds for.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub service: String,
    /// Name of one of the Service's ports; all of its ports if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub section_name: Option<String>,
    /// Address and port, as in `192.168.1.20:8080` or `[fd00::20]:8080`; of an address family that the Service has.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^([0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"))]
    pub address: String,
}

/// Requests that enter the lane: those that match, or a share of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.match) || has(self.percentage)").message("match or percentage is needed")
)]
pub struct EntryRule {
    /// The requests that the rule applies to; all if not set.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<RequestMatch>,
    /// Only a percentage of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percentage>,
}

/// A stable percentage of requests: those with the same key always get the same result, and when it grows, it only
/// adds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Percentage {
    /// The percentage.
    #[schemars(range(min = 0, max = 100))]
    pub percent: f64,
    /// The key by which requests are told apart.
    pub key: PercentageKey,
}

/// The key by which requests are told apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.name) == (self.type != 'ClientAddress')")
        .message("type Header and Cookie need a name, type ClientAddress goes without").field_path(".name")
)]
pub struct PercentageKey {
    /// Header: the value of a header. Cookie: the value of a cookie. ClientAddress: the address of the calling pod.
    /// Requests without the header or cookie do not enter the lane.
    #[serde(rename = "type")]
    pub key: PercentageKeyType,
    /// Name of the header or cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$"))]
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PercentageKeyType {
    #[default]
    Header,
    Cookie,
    ClientAddress,
}

impl TrafficLane {
    /// What it asks for, with every default filled in; or all that is wrong with it.
    pub fn check(&self) -> Result<policy::Lane, Vec<FieldError>> {
        let errors = Errors::default();
        let at = errors.at("spec");
        let spec = &self.spec;
        target::check(&spec.target_refs, &at.field("targetRefs"));
        target::check_services(&spec.target_refs, &at.field("targetRefs"));
        let entry_at = at.field("entry");
        for (i, rule) in spec.entry.iter().enumerate() {
            let says_something = rule.matches.is_some() || rule.percentage.is_some();
            let earlier = spec.entry[..i].iter().position(|earlier| earlier.takes_the_same(rule));
            if let Some(earlier) = earlier.filter(|_| says_something) {
                entry_at.index(i).refuse(format!(
                    "it is about the same requests as {entry_at}[{earlier}]: say one percentage for them"
                ));
            }
        }
        let selector = spec.workload_selector.as_ref();
        let selector = selector.map(|selector| selector::check(selector, &at.field("workloadSelector")));
        let entry = each(&spec.entry, &entry_at, |rule, at| Some(rule.check(at)));
        let fallback = policy::Detour {
            lanes: self.fallback_lanes(&spec.fallback_lanes, &at.field("fallbackLanes")),
            then: spec.fallback.unwrap_or_default().policy(),
        };
        let services_at = at.field("serviceFallbacks");
        unique_names(spec.service_fallbacks.iter().map(|service| &*service.name), &services_at);
        let service_fallbacks = each(&spec.service_fallbacks, &services_at, |service, at| {
            if service.fallback.is_none() && service.lanes.is_none() {
                at.refuse("empty: fallback or lanes is needed");
            }
            let lanes = service.lanes.as_ref().map(|tags| self.fallback_lanes(tags, &at.field("lanes")));
            let detour = policy::Detour {
                lanes: lanes.unwrap_or_else(|| fallback.lanes.clone()),
                then: service.fallback.map_or(fallback.then, LaneFallback::policy),
            };
            Some((service.name.as_str().into(), detour))
        });
        let endpoints_at = at.field("endpoints");
        refuse_repeated(&spec.endpoints, &endpoints_at);
        let endpoints = each(&spec.endpoints, &endpoints_at, LaneEndpoint::check);
        schema::check(<Self as super::Kind>::schema(), spec, &at);
        errors.end(())?;
        let tag = spec.tag.parse::<Tag>().map_err(|e| vec![FieldError::new("spec.tag", e.to_string())])?;
        Ok(policy::Lane {
            name: super::full_name(&self.metadata).into(),
            tag,
            selector,
            fallback,
            service_fallbacks: service_fallbacks.into_iter().collect(),
            endpoints,
            priority: i32::try_from(spec.priority.unwrap_or_default()).unwrap_or_default(),
            targets: spec.target_refs.iter().filter_map(TargetRef::policy).collect(),
            trusts_incoming_tag: spec.trust_incoming_tag.unwrap_or(true),
            entry,
        })
    }
}

impl TrafficLane {
    fn fallback_lanes(&self, tags: &[String], at: &At<'_>) -> Vec<Tag> {
        refuse_repeated(tags, at);
        each(tags, at, |tag, at| {
            if *tag == self.spec.tag {
                at.refuse(format!("{} is the lane itself: a lane does not fall back to itself", quoted(tag)));
            }
            at.parse(
                tag,
                "tag: 1 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit",
                |tag| tag.parse().ok(),
            )
        })
    }
}

impl LaneEndpoint {
    fn check(&self, at: &At<'_>) -> Option<policy::LaneEndpoint> {
        let address = address::check(&self.address, &at.field("address"))?;
        let target = policy::Target {
            service: self.service.as_str().into(),
            port: self.section_name.as_deref().map(Into::into),
        };
        Some(policy::LaneEndpoint { target, address })
    }
}

impl LaneFallback {
    fn policy(self) -> policy::LaneFallback {
        match self {
            Self::Baseline => policy::LaneFallback::Baseline,
            Self::Fail => policy::LaneFallback::Fail,
        }
    }
}

impl EntryRule {
    fn takes_the_same(&self, other: &Self) -> bool {
        self.matches.clone().unwrap_or_default() == other.matches.clone().unwrap_or_default()
            && self.percentage.as_ref().map(|percentage| &percentage.key)
                == other.percentage.as_ref().map(|percentage| &percentage.key)
    }

    fn check(&self, at: &At<'_>) -> policy::EntryRule {
        if self.matches.is_none() && self.percentage.is_none() {
            at.refuse("empty: match or percentage is needed");
        }
        policy::EntryRule {
            matches: self
                .matches
                .as_ref()
                .map(|matches| matches.check(&at.field("match")))
                .unwrap_or_default(),
            percentage: self
                .percentage
                .as_ref()
                .and_then(|percentage| percentage.check(&at.field("percentage"))),
        }
    }
}

impl Percentage {
    fn check(&self, at: &At<'_>) -> Option<policy::Percentage> {
        Some(policy::Percentage { percent: self.percent, key: self.key.check(&at.field("key"))? })
    }
}

impl PercentageKey {
    fn check(&self, at: &At<'_>) -> Option<policy::PercentageKey> {
        let at = at.field("name");
        match (self.key, self.name.as_deref()) {
            (PercentageKeyType::Header, Some(name)) => {
                check_header_name(name, &at).map(policy::PercentageKey::Header)
            }
            (PercentageKeyType::Cookie, Some(name)) => Some(policy::PercentageKey::Cookie(name.into())),
            (PercentageKeyType::ClientAddress, None) => Some(policy::PercentageKey::ClientAddress),
            (PercentageKeyType::ClientAddress, Some(name)) => {
                at.refuse(format!("{}: type ClientAddress goes without a name", quoted(name)));
                None
            }
            (key, None) => {
                at.refuse(format!("not set: type {key:?} needs a name"));
                None
            }
        }
    }
}
