//! What is answered in a Service's place.

use bytes::Bytes;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Header;
use crate::{
    api::{
        field::{At, refuse_repeated},
        matching::{check_header_name, each},
        span::{self, Span},
    },
    govern::policy,
};

/// The most that a static answer's body holds, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Why [`StaleAnswer`] is not complete.
const WHO_GETS_IT: &str = "Name in varyBy the request headers that tell users apart (Authorization and cookies always do), or \
                           say shared: true if all users may get the same response: without either a user could get \
                           another's";

/// A response that replaces the Service's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.static) == (self.type == 'Static')")
        .message("type Static needs static, the other goes without").field_path(".static"),
    validation = Rule::new("has(self.stale) == (self.type == 'Stale')")
        .message("type Stale needs stale, the other goes without").field_path(".stale")
)]
pub struct Fallback {
    /// Name of the fallback in metrics. Unique within the policy.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The failures that it is used for. LimitExceeded: a rate limit or the concurrency limit rejected the request.
    /// CircuitOpen: the circuit breaker is open. NoEndpoint: no endpoint is available. ConnectFailure: no endpoint
    /// could be connected to, or the connection was reset. Timeout: a timeout expired. ServerError: the Service
    /// responded with a failure (see errors; 5xx by default), and no retry is left.
    #[schemars(length(min = 1, max = 6), extend("x-kubernetes-list-type" = "set"))]
    pub conditions: Vec<FallbackCondition>,
    /// Static: the response in static. Stale: the last good response to the same request; if there is none, the next
    /// fallback is used.
    #[serde(rename = "type")]
    pub action: FallbackType,
    /// The response of type Static.
    #[serde(default, rename = "static", skip_serializing_if = "Option::is_none")]
    pub answer: Option<StaticAnswer>,
    /// Settings of type Stale, which needs them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<StaleAnswer>,
}

/// A failure that a fallback is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FallbackCondition {
    LimitExceeded,
    CircuitOpen,
    NoEndpoint,
    ConnectFailure,
    Timeout,
    ServerError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FallbackType {
    Static,
    Stale,
}

/// A fixed response.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.body) || self.body == '' || !(self.status in [204, 205, 304])")
        .message("status 204, 205 and 304 go without a body").field_path(".body")
)]
pub struct StaticAnswer {
    /// Its status. For gRPC requests it is translated as gRPC clients do, unless there is a header grpc-status. With
    /// grpc-status 0 the body is the response message, and an empty body is a message with every field at its default.
    #[schemars(range(min = 200, max = 599))]
    pub status: i64,
    /// Its headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub headers: Vec<Header>,
    /// Its body: text of up to 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    #[x_kube(validation = Rule::new("bytes(self).size() <= 65536").message("longer than 64 KiB (65536 bytes of UTF-8)"))]
    pub body: Option<String>,
}

/// Settings of type Stale. Good responses to GET and HEAD are kept, unless they set cookies, or Cache-Control forbids
/// to store them or to use them when they are stale. They are used only for requests with the same Authorization,
/// Cookie, headers that Vary names, and headers in varyBy. One of varyBy and shared is needed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.varyBy) != (has(self.shared) && self.shared)")
        .message("varyBy names the request headers that tell users apart; if all users may get the same, say shared: true \
                  instead").field_path(".varyBy")
)]
pub struct StaleAnswer {
    /// The request headers that tell users apart, such as x-user-id. A response is used only for requests with the same
    /// values of all of these. Without them a user could get the response of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub vary_by: Option<Vec<String>>,
    /// True: the responses are the same for all users, as those of a catalogue, so any user may get them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// How old a response may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = span::text(policy::StaleBounds::default().max_age)))]
    pub max_age: Option<Span<1, 604_800_000>>,
    /// Bytes that the kept responses of the Service may take on a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 1_073_741_824), extend("default" = policy::StaleBounds::default().max_bytes))]
    pub max_bytes: Option<i64>,
}

impl Fallback {
    pub(super) fn check(&self, at: &At<'_>) -> Option<policy::Fallback> {
        refuse_repeated(&self.conditions, &at.field("conditions"));
        let action = match (self.action, &self.answer, &self.stale) {
            (FallbackType::Static, answer, stale) => {
                if stale.is_some() {
                    at.field("stale").refuse("type is Static: stale goes with type Stale only");
                }
                let Some(answer) = answer else {
                    at.field("static").refuse("not set: type Static needs it");
                    return None;
                };
                policy::FallbackAction::Static(answer.check(&at.field("static")))
            }
            (FallbackType::Stale, answer, stale) => {
                if answer.is_some() {
                    at.field("static").refuse("type is Stale: static goes with type Static only");
                }
                let Some(stale) = stale else {
                    at.field("stale").refuse(format!("not set: type Stale needs it. {WHO_GETS_IT}"));
                    return None;
                };
                policy::FallbackAction::Stale(stale.check(&at.field("stale")))
            }
        };
        let on = self.conditions.iter().map(|condition| match condition {
            FallbackCondition::LimitExceeded => policy::FallbackOn::LimitExceeded,
            FallbackCondition::CircuitOpen => policy::FallbackOn::CircuitOpen,
            FallbackCondition::NoEndpoint => policy::FallbackOn::NoEndpoint,
            FallbackCondition::ConnectFailure => policy::FallbackOn::ConnectFailure,
            FallbackCondition::Timeout => policy::FallbackOn::Timeout,
            FallbackCondition::ServerError => policy::FallbackOn::ServerError,
        });
        Some(policy::Fallback { name: self.name.as_str().into(), on: on.collect(), action })
    }
}

impl StaticAnswer {
    fn check(&self, at: &At<'_>) -> policy::StaticAnswer {
        let body = self.body.clone().unwrap_or_default();
        if body.len() > MAX_BODY {
            at.field("body").refuse(format!("{} bytes: allowed are 64 KiB ({MAX_BODY} bytes)", body.len()));
        }
        if !body.is_empty() && [204, 205, 304].contains(&self.status) {
            at.field("body").refuse(format!("status {} goes without a body", self.status));
        }
        policy::StaticAnswer {
            status: u16::try_from(self.status).unwrap_or_default(),
            headers: each(&self.headers, &at.field("headers"), Header::check),
            body: Bytes::from(body),
        }
    }
}

impl StaleAnswer {
    fn check(&self, at: &At<'_>) -> policy::StaleAnswer {
        let vary_by_at = at.field("varyBy");
        match (&self.vary_by, self.shared.unwrap_or_default()) {
            (None, false) => vary_by_at.refuse(format!("not set. {WHO_GETS_IT}")),
            (Some(_), true) => {
                vary_by_at.refuse("shared: true says that there is nothing that tells users apart");
            }
            _ => {}
        }
        let names = self.vary_by.as_deref().unwrap_or_default();
        refuse_repeated(names, &vary_by_at);
        let default = policy::StaleBounds::default();
        policy::StaleAnswer {
            bounds: policy::StaleBounds {
                max_age: self
                    .max_age
                    .as_ref()
                    .map_or(default.max_age, |span| span.check(&at.field("maxAge"))),
                max_bytes: self
                    .max_bytes
                    .map_or(default.max_bytes, |bytes| u64::try_from(bytes).unwrap_or_default()),
            },
            vary_by: each(names, &vary_by_at, |name, at| check_header_name(name, at)),
        }
    }
}
