//! Sluice's Kubernetes API: the kinds `TrafficPolicy`, `TrafficLane` and `AccessPolicy`, and the label and annotation keys that users
//! write on other objects.
//!
//! A kind is a Rust type, and everything else comes from it: its CustomResourceDefinition ([`definition`]), which makes the
//! API server refuse what makes no sense; the same checks as code, for manifests, the watch and `sluice check`
//! ([`read`]); and what governing works by, [`crate::govern::policy`], with every default filled in. Nothing else in the
//! agent spells these words out.

// KubeSchema repeats each type, as public as it is, inside a function.
#![allow(unreachable_pub)]
// Clippy takes several `printcolumn(...)` for one that is given twice.
#![allow(clippy::duplicated_attributes)]

pub mod access_policy;
pub mod address;
mod crds;
pub mod effective;
mod field;
mod foreign;
pub mod gateway;
mod hint;
pub mod jwt;
mod matching;
pub mod notes;
pub mod plain;
mod schema;
mod selector;
mod span;
mod target;
mod traffic_lane;
mod traffic_policy;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{CustomResourceExt, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use self::field::Errors;
pub use self::{
    access_policy::{
        AccessAction, AccessClient, AccessPolicy, AccessPolicySpec, AccessRequest, AccessRule, HiddenPaths,
        OnInvalid,
    },
    crds::{definition, manifests},
    field::{FieldError, field_of, path_of},
    hint::{closest, not_one_of, unknown_among},
    matching::{
        CallerMatch, CookieMatch, HeaderMatch, ParameterMatch, PathMatch, PathMatchType, RequestMatch,
        ValueMatchType,
    },
    schema::Schema,
    span::Span,
    target::TargetRef,
    traffic_lane::{
        EntryRule, LaneEndpoint, LaneFallback, Percentage, PercentageKey, PercentageKeyType, ServiceFallback,
        TrafficLane, TrafficLaneSpec,
    },
    traffic_policy::*,
};
use crate::{
    govern::{
        access::Access,
        policy::{Lane, Policy, Target},
        routes,
        tag::Tag,
    },
    observe::sampling::Ratio,
};

/// The group of Sluice's own kinds.
pub const GROUP: &str = "sluice.dev";
/// Their version, as `apiVersion` has it.
pub const API_VERSION: &str = "sluice.dev/v1alpha1";

// Patterns of the schema that are put into words where they are not met.
const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const SUBDOMAIN: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";
const TAG: &str = "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
const HEALTH_CHECK_PATH: &str = r"^/[^*]*\*?$";

/// Annotation on a Namespace or a Pod, `enabled` or `disabled`; a Pod's own word wins over its Namespace's.
pub const CAPTURE_ANNOTATION: &str = "sluice.dev/capture";

/// Annotation on a Service or a Namespace, `enabled`, `disabled` or a ratio from 0 to 1: how many requests to the Service, or
/// to the Namespace's Services, are lines of the access log. The Service's own word wins.
pub const ACCESS_LOG_ANNOTATION: &str = "sluice.dev/access-log";

/// Annotation on a Service or a Namespace, `enabled` or `disabled`: whether the agent ends connections to the Service, or to the
/// Namespace's Services, that are older than their pod's enrolment, when they are idle. The Service's own word wins.
pub const RECLAIM_ANNOTATION: &str = "sluice.dev/reclaim";

/// Annotation on a Namespace or a Service: whether connections to its endpoints' own addresses are managed.
pub const ENDPOINTS_ANNOTATION: &str = "sluice.dev/endpoints";

/// Annotation on a Namespace or a Pod, `trace` or `headers`: whether requests that come to the pod are read, so that its own
/// requests get their tag by the trace that they share. A Pod's own word wins over its Namespace's.
pub const PROPAGATION_ANNOTATION: &str = "sluice.dev/propagation";

/// Readiness gate of a Pod, and the condition that the agent of its node sets: the pod has warmed up.
pub const WARM_CONDITION: &str = "sluice.dev/warm";

/// Condition of a Pod that the agent of its node sets: since when requests come to it that are no health checks.
pub const FIRST_REQUEST_CONDITION: &str = "sluice.dev/first-request";

/// An annotation or a label that users put on their own objects.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// A label; else an annotation.
    pub label: bool,
    /// Kinds of the objects.
    pub kinds: &'static [&'static str],
    pub name: &'static str,
    /// In Markdown.
    pub values: &'static str,
    pub meaning: &'static str,
    /// Whether it may have a value; else what is wrong with it.
    pub check: fn(&str) -> Result<(), String>,
}

impl Mark {
    /// `annotation of a Namespace or Service`
    pub fn object(&self) -> String {
        let what = if self.label { "label" } else { "annotation" };
        format!("{what} of a {}", self.kinds.join(" or "))
    }

    /// The name without its group.
    pub fn key(&self) -> &'static str {
        self.name.split_once('/').map_or(self.name, |(_, key)| key)
    }
}

/// All of them, for the reference and for `sluice check`.
pub const MARKS: [Mark; 7] = [
    Mark {
        label: false,
        kinds: &["Namespace"],
        name: CAPTURE_ANNOTATION,
        values: "`enabled`, `disabled`",
        meaning: "Its Services are managed, and its pods are enrolled. A change is live; open connections stay as they are.",
        check: |value| checked(parse_capture(value)),
    },
    Mark {
        label: false,
        kinds: &["Pod"],
        name: CAPTURE_ANNOTATION,
        values: "`enabled`, `disabled`",
        meaning: "`disabled` leaves the pod out. It has an effect in an enrolled namespace only.",
        check: |value| checked(parse_capture(value)),
    },
    Mark {
        label: false,
        kinds: &["Namespace", "Service"],
        name: ACCESS_LOG_ANNOTATION,
        values: "`enabled`, `disabled`, a ratio such as `\"0.01\"`",
        meaning: "How many of the requests to it the access log has. The Service goes before its Namespace.",
        check: |value| checked(parse_access_log(value)),
    },
    Mark {
        label: false,
        kinds: &["Namespace", "Service"],
        name: RECLAIM_ANNOTATION,
        values: "`enabled`, `disabled`",
        meaning: "`enabled`: connections to its ports that are declared to speak HTTP/1 and that are older than their pod's enrolment are ended when they are idle, so that their clients reconnect through the agent. The Service goes before its Namespace.",
        check: |value| checked(parse_capture(value)),
    },
    Mark {
        label: false,
        kinds: &["Namespace", "Service"],
        name: ENDPOINTS_ANNOTATION,
        values: "`governed`, `direct`",
        meaning: "`governed`: what clients send to the addresses of its pods themselves is managed, too, as registries and client-side load balancers do. The Service goes before its Namespace.",
        check: |value| checked(parse_endpoints(value)),
    },
    Mark {
        label: false,
        kinds: &["Namespace", "Pod"],
        name: PROPAGATION_ANNOTATION,
        values: "`headers`, `trace`, `thread`",
        meaning: "`trace`: requests to its pods that come to ports of managed Services pass the agent, and a request of the pod without a tag gets that of the request whose trace id it carries. `thread`: the same, and a request without such an id gets that of the request which the thread that sends it is handling, where a server handles each request on one thread. `headers`, the default: tags are carried by headers only. A Pod's own annotation goes before its Namespace's. It has an effect in an enrolled namespace only.",
        check: |value| checked(parse_propagation(value)),
    },
    Mark {
        label: true,
        kinds: &["Pod"],
        name: TAG_LABEL,
        values: "a tag such as `gray`",
        meaning: "The pod is in that lane, as client and as endpoint. It goes before the selectors of TrafficLanes.",
        check: |value| checked(value.parse::<Tag>()),
    },
];

fn checked<T, E: std::fmt::Display>(parsed: Result<T, E>) -> Result<(), String> {
    parsed.map(drop).map_err(|error| error.to_string())
}

/// What [`ENDPOINTS_ANNOTATION`] says: `true` for `governed`, `false` for `direct`.
pub fn parse_endpoints(value: &str) -> Result<bool, InvalidEndpoints> {
    match value {
        "governed" => Ok(true),
        "direct" => Ok(false),
        _ => Err(InvalidEndpoints(value.chars().take(80).collect())),
    }
}

/// Why a value of [`ENDPOINTS_ANNOTATION`] is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither \"governed\" nor \"direct\"; it counts as not set")]
pub struct InvalidEndpoints(String);

/// By what a pod's requests get the tag of the request that they are sent for: each of these also by what stands before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TagPropagation {
    /// By headers that say it.
    #[default]
    Headers,
    /// By the id of its trace.
    Trace,
    /// By the thread that handles it.
    Thread,
}

impl TagPropagation {
    pub const ALL: [Self; 3] = [Self::Headers, Self::Trace, Self::Thread];

    /// As annotations say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Headers => "headers",
            Self::Trace => "trace",
            Self::Thread => "thread",
        }
    }
}

/// What [`PROPAGATION_ANNOTATION`] says.
pub fn parse_propagation(value: &str) -> Result<TagPropagation, InvalidPropagation> {
    match TagPropagation::ALL.into_iter().find(|known| known.as_str() == value) {
        Some(known) => Ok(known),
        None => Err(InvalidPropagation(value.chars().take(80).collect())),
    }
}

/// Why a value of [`PROPAGATION_ANNOTATION`] is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither \"headers\" nor \"trace\" nor \"thread\"; it counts as not set")]
pub struct InvalidPropagation(String);

/// What [`ACCESS_LOG_ANNOTATION`] says.
pub fn parse_access_log(value: &str) -> Result<Ratio, InvalidAccessLog> {
    match value {
        "enabled" => Ok(Ratio::ALL),
        "disabled" => Ok(Ratio::NONE),
        ratio => ratio.parse().map_err(|_| InvalidAccessLog(value.chars().take(80).collect())),
    }
}

/// Why a value of [`ACCESS_LOG_ANNOTATION`] is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither \"enabled\" nor \"disabled\" nor a ratio from 0 to 1; it counts as not set")]
pub struct InvalidAccessLog(String);

/// Label on a Pod: the tag (lane) of that workload.
pub const TAG_LABEL: &str = "sluice.dev/tag";

/// What [`CAPTURE_ANNOTATION`] says: `true` for `enabled`, `false` for `disabled`.
pub fn parse_capture(value: &str) -> Result<bool, InvalidCapture> {
    match value {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err(InvalidCapture(value.chars().take(80).collect())),
    }
}

/// Why a value of [`CAPTURE_ANNOTATION`] is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither \"enabled\" nor \"disabled\"; it counts as not set")]
pub struct InvalidCapture(String);

/// What became of an object, told by the agents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Accepted: the object is valid, its target exists, and no older object has precedence. Programmed: it is active.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
    /// What a TrafficPolicy is for, as `kubectl get` shows it: the names of its targets, each with the name of its port if it has
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub targets: Option<String>,
}

/// One of Sluice's own kinds.
pub trait Kind: Resource<DynamicType = ()> + CustomResourceExt + DeserializeOwned {
    /// What governing works by.
    type Checked;

    /// What the API server is told about `spec`.
    fn schema() -> &'static Schema;

    /// What the object asks for, with every default filled in; or all that is wrong with it.
    fn check(&self) -> Result<Self::Checked, Vec<FieldError>>;

    /// The Services that it is about, as it names them.
    fn targets(&self) -> Vec<Target>;

    /// The routes that it is about.
    fn routes(&self) -> Vec<routes::Target>;

    /// Whether it is about its namespace.
    fn is_for_namespace(&self) -> bool;
}

macro_rules! kind {
    ($kind:ident => $checked:ident) => {
        impl Kind for $kind {
            type Checked = $checked;

            fn schema() -> &'static Schema {
                static SCHEMA: std::sync::LazyLock<Schema> = std::sync::LazyLock::new(|| {
                    let json = crds::schema_of(&definition::<$kind>(), "spec");
                    Schema::new(&json)
                        .expect("the schema that is made of the types is structural: a test makes it")
                });
                &SCHEMA
            }

            fn check(&self) -> Result<$checked, Vec<FieldError>> {
                self.check()
            }

            fn targets(&self) -> Vec<Target> {
                self.spec.target_refs.iter().filter_map(TargetRef::policy).collect()
            }

            fn routes(&self) -> Vec<routes::Target> {
                self.spec.target_refs.iter().filter_map(TargetRef::route).collect()
            }

            fn is_for_namespace(&self) -> bool {
                self.spec.target_refs.iter().any(TargetRef::is_namespace)
            }
        }
    };
}

kind!(TrafficPolicy => Policy);
kind!(TrafficLane => Lane);
kind!(AccessPolicy => Access);

/// Reads an object as it was written, and checks it: everything that is wrong with it, where the API server would say no
/// more than that it cannot decode it. As for the API server, a field that is null is not set.
pub fn read<K: Kind>(object: &Value) -> Result<(K, K::Checked), Vec<FieldError>> {
    let errors = Errors::default();
    let at = errors.at("spec");
    let mut losses = Vec::new();
    let spec = match &object["spec"] {
        Value::Null => {
            at.refuse("not set: it is needed");
            None
        }
        spec => K::schema().shape(spec, &at, &mut losses),
    };
    let Some(spec) = spec else {
        return Err(errors.end(()).err().unwrap_or_default());
    };
    let mut whole = object.clone();
    whole["spec"] = spec;
    // Only the agents write it, and what they find there they write anew.
    if serde_json::from_value::<Status>(whole["status"].take()).is_err()
        && let Value::Object(fields) = &mut whole
    {
        fields.remove("status");
    }
    let checked = match serde_path_to_error::deserialize::<_, K>(whole) {
        Ok(object) => object.check().map(|checked| (object, checked)),
        Err(e) => Err(vec![FieldError::new(path_of(e.path()), plain::words(e.inner()))]),
    };
    match (errors.end(()), checked) {
        (Ok(()), checked) => checked,
        (Err(misshapen), Ok(_)) => Err(misshapen),
        (Err(mut misshapen), Err(more)) => {
            // What was left out of an object may be why the rest of it looks wrong.
            let in_doubt = |error: &FieldError| losses.iter().any(|loss| loss.explains(&error.field));
            misshapen.extend(more.into_iter().filter(|error| !in_doubt(error)));
            Err(misshapen)
        }
    }
}

/// `shop/orders`
fn full_name(metadata: &ObjectMeta) -> String {
    let name = metadata.name.as_deref().unwrap_or_default();
    format!("{}/{name}", metadata.namespace.as_deref().unwrap_or("default"))
}

/// A number that the schema bounds. One that is out of bounds was refused, and what becomes of it does not matter.
fn number(number: i64) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests;
