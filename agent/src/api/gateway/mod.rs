//! Routes of Gateway API whose parent is a Service: their fields as they stand in objects, and what is made of them.
//!
//! The types are Sluice's own and have the fields of the standard channel of release 1.6. (The crate `gateway-api` has types
//! too, which need a newer compiler than this project's, and whose enums make an object unreadable that says something newer;
//! here it is a field that is refused by its name.) A field that is not known is refused, too: what a user asks for is done, or
//! it is said that it is not.
//!
//! What is asked of Gateways, in parents of other kinds, is theirs, and not looked at. Hostnames mean nothing where the parent
//! is a Service, as the specification says.

mod filters;
mod matches;
mod rules;
mod shape;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use self::rules::{GrpcRule, HttpRule};
use super::{
    field::{self, At, Errors, FieldError},
    plain,
};
use crate::govern::routes::{
    Action, Kind, Rule,
    backends::{Backends, ServicePort},
};

/// The API group of routes and grants.
pub const GROUP: &str = "gateway.networking.k8s.io";
pub const VERSION: &str = "gateway.networking.k8s.io/v1";
/// Of grants, which older clusters have only as this.
pub const OLD_VERSION: &str = "gateway.networking.k8s.io/v1beta1";
/// The group of what is experimental, and the version of a mesh in it.
pub const EXPERIMENTAL_GROUP: &str = "gateway.networking.x-k8s.io";
pub const MESH_VERSION: &str = "gateway.networking.x-k8s.io/v1alpha1";
/// As what Sluice writes into statuses.
pub const CONTROLLER: &str = "sluice.dev/agent";
/// What is supported of Gateway API, by the names that its conformance tests have for it, in their order.
/// <https://gateway-api.sigs.k8s.io/concepts/conformance/>
pub const FEATURES: [&str; 34] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

/// What a route asks for, as far as it is about Services.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub kind: Kind,
    pub parents: Vec<Parent>,
    pub rules: Vec<Arc<Rule>>,
    /// What it refers to as a backend that is no Service, each with the field that says it.
    pub strangers: Vec<FieldError>,
}

impl Asked {
    /// The Services that its rules send to.
    pub fn backends(&self) -> impl Iterator<Item = &ServicePort> {
        let forwards = self.rules.iter().filter_map(|rule| match &rule.action {
            Action::Forward { backends, .. } => Some(backends),
            Action::Redirect(_) => None,
        });
        forwards.flat_map(Backends::iter).filter_map(|backend| backend.service.as_ref())
    }
}

/// A Service, or a port of it, whose requests a route is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    /// `None`: all.
    pub port: Option<u16>,
    /// The port's name.
    pub section: Option<Arc<str>>,
}

/// A parent that is a Service, as its route names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    pub parent: Parent,
    /// The fields of the reference, for the route's status.
    pub reference: Value,
}

/// Who may refer to Services of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    pub from: Vec<(Kind, Arc<str>)>,
    /// `None`: all Services of the namespace.
    pub to: Vec<Option<Arc<str>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec<R> {
    #[serde(default)]
    parent_refs: Vec<ParentRef>,
    /// Ignored where the parent is a Service.
    #[serde(default, rename = "hostnames")]
    _hostnames: Vec<String>,
    rules: Option<Vec<R>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ParentRef {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<i64>,
}

/// What an HTTPRoute of `namespace` asks for. `name`: as `shop/orders`; `None`: nothing that is about Services.
pub fn http_route(spec: &Value, namespace: &str, name: &str) -> Result<Option<Asked>, Vec<FieldError>> {
    route::<HttpRule>(spec, namespace, name)
}

/// The same of a GRPCRoute.
pub fn grpc_route(spec: &Value, namespace: &str, name: &str) -> Result<Option<Asked>, Vec<FieldError>> {
    route::<GrpcRule>(spec, namespace, name)
}

/// The parents of a route that are Services, as it names them, whatever else it says.
pub fn parents(spec: &Value, namespace: &str) -> Vec<Named> {
    const FIELDS: [&str; 6] = ["group", "kind", "namespace", "name", "sectionName", "port"];
    let all = spec["parentRefs"].as_array().into_iter().flatten();
    let ours = all.filter(|parent| is_service(parent["group"].as_str(), parent["kind"].as_str()));
    let named = ours.filter_map(|parent| {
        let fields =
            FIELDS.iter().filter_map(|field| Some(((*field).to_owned(), parent.get(field)?.clone())));
        Some(Named {
            parent: Parent {
                namespace: parent["namespace"].as_str().unwrap_or(namespace).into(),
                service: parent["name"].as_str()?.into(),
                port: parent["port"].as_u64().and_then(|port| u16::try_from(port).ok()),
                section: parent["sectionName"].as_str().map(Into::into),
            },
            reference: Value::Object(fields.collect()),
        })
    });
    named.collect()
}

/// A rule as it stands in a route of its kind.
trait Written: DeserializeOwned {
    const KIND: Kind;

    /// Of a route that has no rules: one that is about everything.
    fn implied() -> Vec<Self>;

    fn check(&self, place: &Place<'_>, at: &At<'_>) -> Option<Rule>;
}

/// Where a rule stands, and what it is collected for.
struct Place<'p> {
    /// The route's.
    namespace: &'p str,
    route: &'p str,
    index: usize,
    strangers: &'p std::cell::RefCell<Vec<FieldError>>,
}

fn route<R: Written>(spec: &Value, namespace: &str, name: &str) -> Result<Option<Asked>, Vec<FieldError>> {
    // Not ours to judge, before anything else is looked at.
    let parents = spec["parentRefs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !parents.iter().any(|parent| is_service(parent["group"].as_str(), parent["kind"].as_str())) {
        return Ok(None);
    }
    let mut read = shape::read::<Spec<R>>(spec);
    let Some(spec) = read.value.take() else { return Err(read.errors) };
    let errors = Errors::default();
    let at = errors.at("spec");
    let parents = at.field("parentRefs");
    let ours = spec.parent_refs.iter().enumerate();
    let ours = ours.filter(|(_, parent)| is_service(parent.group.as_deref(), parent.kind.as_deref()));
    let parents = ours.map(|(index, parent)| {
        let at = parents.index(index);
        Parent {
            namespace: parent.namespace.as_deref().unwrap_or(namespace).into(),
            service: parent.name.as_str().into(),
            port: parent.port.and_then(|number| port(number, &at.field("port"))),
            section: parent.section_name.as_deref().map(Into::into),
        }
    });
    let parents = parents.collect();
    let written = spec.rules.unwrap_or_else(R::implied);
    let strangers = std::cell::RefCell::default();
    let all = at.field("rules");
    let rules = written.iter().enumerate().filter_map(|(index, rule)| {
        let place = Place { namespace, route: name, index, strangers: &strangers };
        rule.check(&place, &all.index(index)).map(Arc::new)
    });
    let rules = rules.collect();
    if let Err(more) = errors.end(()) {
        let more = more.into_iter().filter(|error| !read.explains(&error.field)).collect::<Vec<_>>();
        read.errors.extend(more);
    }
    if !read.errors.is_empty() {
        return Err(read.errors);
    }
    Ok(Some(Asked { kind: R::KIND, parents, rules, strangers: strangers.into_inner() }))
}

fn is_service(group: Option<&str>, kind: Option<&str>) -> bool {
    group.is_some_and(is_core) && kind == Some("Service")
}

/// The group of Services, which many tools call so.
fn is_core(group: &str) -> bool {
    matches!(group, "" | "core")
}

fn port(number: i64, at: &At<'_>) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    if port.is_none() {
        at.refuse(format!("{number} is no port: allowed are 1 to 65535"));
    }
    port
}

#[derive(Debug, Deserialize)]
struct GrantSpec {
    #[serde(default)]
    from: Vec<GrantFrom>,
    #[serde(default)]
    to: Vec<GrantTo>,
}

#[derive(Debug, Deserialize)]
struct GrantFrom {
    #[serde(default)]
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Debug, Deserialize)]
struct GrantTo {
    #[serde(default)]
    group: String,
    kind: String,
    name: Option<String>,
}

/// What a ReferenceGrant allows routes. What it allows others is none of ours.
pub fn reference_grant(spec: &Value) -> Result<Grant, FieldError> {
    let spec: GrantSpec = serde_path_to_error::deserialize(spec).map_err(|error| {
        FieldError::new(format!("spec.{}", field::path_of(error.path())), plain::words(error.inner()))
    })?;
    let from = spec.from.into_iter().filter(|from| from.group == GROUP).filter_map(|from| {
        let kind = [Kind::Http, Kind::Grpc].into_iter().find(|kind| kind.as_str() == from.kind)?;
        Some((kind, from.namespace.into()))
    });
    let to = spec.to.into_iter().filter(|to| is_core(&to.group) && to.kind == "Service");
    Ok(Grant { from: from.collect(), to: to.map(|to| to.name.map(Into::into)).collect() })
}
