//! What is changed in the headers of requests and responses, and whose tags are believed.

use http::{HeaderName, HeaderValue};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    api::{
        FieldError,
        field::{At, quoted, refuse_repeated},
        matching::{CallerMatch, check_header_name, each},
    },
    govern::{carrier::Carrier, headers, lane, policy},
};

/// What a policy must not set or remove: the proxy frames messages, and says itself where they come from.
pub(super) fn not_reserved(name: &str) -> String {
    format!("!({name}.lowerAscii() in {})", headers::reserved_in_cel())
}

/// Headers of requests that a policy cannot change in any cluster: what carries the tag by default. An agent with another
/// `--tag-header` refuses that one, too ([`tag_changes`]).
fn carriers() -> impl Iterator<Item = &'static str> {
    std::iter::once(lane::DEFAULT_TAG_HEADER).chain(Carrier::ALL.map(|carrier| carrier.header().as_str()))
}

/// No change of a request is about a header that carries the tag.
fn no_carrier() -> String {
    let carriers = carriers().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let free = |name: &str| format!("!({name}.lowerAscii() in [{carriers}])");
    let none = |list: &str, name: &str| {
        format!("(!has(self.request.{list}) || self.request.{list}.all(one, {}))", free(name))
    };
    format!(
        "!has(self.request) || ({} && {} && {})",
        none("set", "one.name"),
        none("add", "one.name"),
        none("remove", "one")
    )
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.request) || has(self.response)")
        .message("empty: request or response is needed"),
    validation = Rule::new(no_carrier()).message("x-mse-tag, baggage, tracestate and sw8-correlation carry the tag: they cannot be changed")
        .field_path(".request")
)]
pub struct Headers {
    /// Changes of requests, before they are sent to an endpoint. Rules and limits see the request as it came. The
    /// headers that carry the tag (x-mse-tag, and what the agent's --tag-header names instead; baggage, tracestate,
    /// sw8-correlation) cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<HeaderChanges>,
    /// Changes of the Service's responses, before they are passed on. Responses that Sluice itself makes are not
    /// changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<HeaderChanges>,
}

/// Changes of headers: first remove, then set, then add.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("has(self.set) || has(self.add) || has(self.remove)")
        .message("empty: set, add or remove is needed")
)]
pub struct HeaderChanges {
    /// Headers that replace all headers of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub set: Vec<Header>,
    /// Headers that are added to those of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub add: Vec<Header>,
    /// Names of headers that are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = Rule::new(format!("self.all(name, {})", not_reserved("name")))
        .message("Sluice sets these headers itself"))]
    pub remove: Vec<String>,
}

/// A header with its value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Name of the header. Headers that frame a message, or that Sluice itself sets, are not allowed.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$"))]
    #[x_kube(validation = Rule::new(not_reserved("self")).message("Sluice sets this header itself"))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 4096), regex(pattern = r"^[^\x00-\x08\x0a-\x1f\x7f]*$"))]
    pub value: String,
}

/// Removes the tag (the tag header, and the member of baggage) from requests that come from outside, so that clients
/// there cannot choose a lane. Entry rules and the calling pod's own tag apply as always.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StripTags {
    /// The clients whose requests come from outside, such as an ingress controller; every client if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub from: Vec<CallerMatch>,
}

impl Headers {
    pub(super) fn check(&self, at: &At<'_>) -> policy::HeaderEdits {
        if self.request.is_none() && self.response.is_none() {
            at.refuse("empty: request or response is needed");
        }
        if let Some(request) = &self.request {
            request.keep_tag(&at.field("request"));
        }
        let changes = |changes: &Option<HeaderChanges>, field| {
            changes.as_ref().map(|changes| changes.check(&at.field(field))).unwrap_or_default()
        };
        policy::HeaderEdits {
            request: changes(&self.request, "request"),
            response: changes(&self.response, "response"),
        }
    }
}

impl HeaderChanges {
    /// Refuses changes of what carries the tag.
    fn keep_tag(&self, at: &At<'_>) {
        let check = |name: &str, at: &At<'_>| {
            if carriers().any(|carrier| name.eq_ignore_ascii_case(carrier)) {
                at.refuse(carries_the_tag(name));
            }
        };
        for (field, headers) in [("set", &self.set), ("add", &self.add)] {
            for (i, header) in headers.iter().enumerate() {
                check(&header.name, &at.field(field).index(i).field("name"));
            }
        }
        for (i, name) in self.remove.iter().enumerate() {
            check(name, &at.field("remove").index(i));
        }
    }

    fn check(&self, at: &At<'_>) -> policy::Edits {
        if self.set.is_empty() && self.add.is_empty() && self.remove.is_empty() {
            at.refuse("empty: set, add or remove is needed");
        }
        for (field, headers) in [("set", &self.set), ("add", &self.add)] {
            super::unique_names(headers.iter().map(|header| &*header.name), &at.field(field));
        }
        refuse_repeated(&self.remove, &at.field("remove"));
        policy::Edits {
            remove: each(&self.remove, &at.field("remove"), |name, at| check_name(name, at)),
            set: each(&self.set, &at.field("set"), Header::check),
            add: each(&self.add, &at.field("add"), Header::check),
        }
    }
}

impl Header {
    pub(super) fn check(&self, at: &At<'_>) -> Option<(HeaderName, HeaderValue)> {
        let name = check_name(&self.name, &at.field("name"))?;
        let value = at.field("value").parse(
            &self.value,
            "header value: control characters are not allowed",
            |value| HeaderValue::from_bytes(value.as_bytes()).ok(),
        );
        Some((name, value?))
    }
}

impl StripTags {
    pub(super) fn check(&self, at: &At<'_>) -> policy::StripTags {
        policy::StripTags { from: each(&self.from, &at.field("from"), |from, at| Some(from.check(at))) }
    }
}

fn carries_the_tag(name: &str) -> String {
    format!("{} carries the tag: it cannot be changed", quoted(name))
}

/// Where a policy changes headers of requests that carry the tag, by the names that an agent has for it.
pub fn tag_changes(spec: &Value, names: &[HeaderName]) -> Vec<FieldError> {
    let mut found = Vec::new();
    let mut look = |headers: &Value, at: &str| {
        for list in ["set", "add", "remove"] {
            for (i, one) in headers["request"][list].as_array().into_iter().flatten().enumerate() {
                let (name, field) = match one {
                    Value::String(name) => (Some(&**name), format!("{at}.request.{list}[{i}]")),
                    one => (one["name"].as_str(), format!("{at}.request.{list}[{i}].name")),
                };
                if let Some(name) = name.filter(|name| names.iter().any(|carrier| carrier == *name)) {
                    found.push(FieldError::new(field, carries_the_tag(name)));
                }
            }
        }
    };
    look(&spec["headers"], "spec.headers");
    for (i, rule) in spec["rules"].as_array().into_iter().flatten().enumerate() {
        look(&rule["headers"], &format!("spec.rules[{i}].headers"));
    }
    found
}

fn check_name(text: &str, at: &At<'_>) -> Option<HeaderName> {
    let name = check_header_name(text, at)?;
    if !headers::may_be_set(name.as_str().as_bytes()) {
        at.refuse(format!("{}: Sluice sets this header itself", quoted(text)));
    }
    Some(name)
}
