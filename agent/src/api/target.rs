//! What an object is about: Services of its own namespace, or for a TrafficPolicy the namespace itself, or routes of it, as in
//! Gateway API's policy attachment.
//!
//! <https://gateway-api.sigs.k8s.io/geps/gep-713/>

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{
    field::{At, quoted},
    gateway,
};
use crate::govern::{policy::Target, routes};

pub(super) const MAX_TARGETS: usize = 64;

/// No target may cover another: the same Service, both times whole, or whole and one port of it.
pub(super) const UNIQUE_TARGETS: &str = "self.all(a, self.exists_one(b, a.name == b.name && a.kind == b.kind && \
     (!has(a.sectionName) || !has(b.sectionName) || a.sectionName == b.sectionName)))";
pub(super) const UNIQUE_TARGETS_MESSAGE: &str =
    "a Service is targeted once as a whole, or once for each port: no two targets may overlap";

/// For a policy: a namespace is not a target beside others.
pub(super) const NAMESPACE_ALONE: &str = "self.all(target, target.kind != 'Namespace') || self.size() == 1";
pub(super) const NAMESPACE_ALONE_MESSAGE: &str =
    "a policy that targets its Namespace has no other targets; single Services need policies of their own";
/// For a policy: routes are not targets beside others.
pub(super) const ROUTES_ALONE: &str = "self.all(target, target.kind in ['HTTPRoute', 'GRPCRoute']) || \
     self.all(target, !(target.kind in ['HTTPRoute', 'GRPCRoute']))";
pub(super) const ROUTES_ALONE_MESSAGE: &str =
    "a policy that targets routes has no other targets; Services need policies of their own";
/// For a policy at the endpoint.
pub(super) const NO_ROUTES: &str = "self.all(target, !(target.kind in ['HTTPRoute', 'GRPCRoute']))";
pub(super) const NO_ROUTES_MESSAGE: &str = "an AccessPolicy targets Services or the Namespace: it is enforced at the endpoint, where no route is known";
/// For a lane.
pub(super) const NO_NAMESPACE: &str = "self.all(target, target.kind == 'Service')";
pub(super) const NO_NAMESPACE_MESSAGE: &str =
    "a lane targets Services: without targetRefs it is about all of its namespace";

/// A Service of the same namespace, or one port of it; the namespace itself; or a route, or one rule of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.sectionName) || self.kind != 'Namespace'")
        .message("a Namespace has no ports").field_path(".sectionName"),
    validation = Rule::new(
        "(self.kind in ['HTTPRoute', 'GRPCRoute']) == (self.group == 'gateway.networking.k8s.io')"
    ).message(GROUP_MESSAGE).field_path(".group"),
    validation = Rule::new(
        "self.kind in ['HTTPRoute', 'GRPCRoute'] || (self.name.size() <= 63 && !self.name.contains('.'))"
    ).message(NAME_MESSAGE).field_path(".name")
)]
pub struct TargetRef {
    /// API group of the target: empty, the group of Services and Namespaces, or gateway.networking.k8s.io, that of
    /// routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = ""), extend("enum" = ["", "gateway.networking.k8s.io"]))]
    pub group: Option<String>,
    /// Kind of the target: Service, or, for a TrafficPolicy or AccessPolicy, Namespace (its own): Services inherit from that
    /// policy what their own policies do not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend("default" = "Service"),
        extend("enum" = ["Service", "Namespace", "HTTPRoute", "GRPCRoute"])
    )]
    pub kind: Option<String>,
    /// Name of the Service, the Namespace or the route.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Name of one of the Service's ports, or of one of the route's rules; all of them if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub section_name: Option<String>,
}

impl TargetRef {
    /// The Service that it names.
    pub(super) fn policy(&self) -> Option<Target> {
        (!self.is_namespace() && !self.is_route()).then(|| Target {
            service: self.name.as_str().into(),
            port: self.section_name.as_deref().map(Into::into),
        })
    }

    pub(super) fn is_namespace(&self) -> bool {
        self.kind.as_deref() == Some("Namespace")
    }

    /// The route that it names.
    pub(super) fn route(&self) -> Option<routes::Target> {
        Some(routes::Target {
            kind: self.route_kind()?,
            route: self.name.as_str().into(),
            rule: self.section_name.as_deref().map(Into::into),
        })
    }

    pub(super) fn is_route(&self) -> bool {
        self.route_kind().is_some()
    }

    fn route_kind(&self) -> Option<routes::Kind> {
        [routes::Kind::Http, routes::Kind::Grpc].into_iter().find(|kind| kind.as_str() == self.kind())
    }

    fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("Service")
    }

    fn covers(&self, other: &Self) -> bool {
        self.name == other.name
            && self.kind() == other.kind()
            && (self.section_name.is_none()
                || other.section_name.is_none()
                || self.section_name == other.section_name)
    }
}

const GROUP_MESSAGE: &str = "HTTPRoute and GRPCRoute are of the group gateway.networking.k8s.io, Service and Namespace of the empty group";
const NAME_MESSAGE: &str = "the name of a Service or a Namespace has at most 63 characters: a-z, 0-9 and -";

/// Refuses targets that overlap. What the schema says of each by itself is checked by it.
pub(super) fn check(targets: &[TargetRef], at: &At<'_>) {
    for (i, target) in targets.iter().enumerate().take(MAX_TARGETS) {
        if let Some(port) = target.section_name.as_ref().filter(|_| target.is_namespace()) {
            at.index(i).field("sectionName").refuse(format!("{}: a Namespace has no ports", quoted(port)));
        }
        let group = target.group.as_deref().unwrap_or_default();
        let is_known = matches!(group, "" | gateway::GROUP);
        if is_known && target.is_route() != (group == gateway::GROUP) {
            at.index(i).field("group").refuse(format!("{}: {GROUP_MESSAGE}", quoted(group)));
        }
        if !target.is_route() && (target.name.len() > 63 || target.name.contains('.')) {
            at.index(i).field("name").refuse(format!("{}: {NAME_MESSAGE}", quoted(&target.name)));
        }
    }
    // Beyond the schema's limit there is no point in comparing all with all.
    for (i, target) in targets.iter().enumerate().take(MAX_TARGETS) {
        if let Some(earlier) = targets[..i].iter().position(|earlier| earlier.covers(target)) {
            at.index(i).refuse(format!(
                "{} is targeted by {}[{earlier}] already: {UNIQUE_TARGETS_MESSAGE}",
                quoted(&target.name),
                at
            ));
        }
    }
}

/// Refuses what a policy must not target: `namespace` is its own.
pub(super) fn check_namespace(targets: &[TargetRef], namespace: &str, at: &At<'_>) {
    let of_namespace = targets.iter().enumerate().find(|(_, target)| target.is_namespace());
    let Some((i, target)) = of_namespace else { return };
    if targets.len() > 1 {
        at.refuse(NAMESPACE_ALONE_MESSAGE);
    } else if target.name != namespace {
        at.index(i).field("name").refuse(format!(
            "{} is another namespace: a policy is about its own, {}",
            quoted(&target.name),
            quoted(namespace)
        ));
    }
}

/// Refuses routes beside other targets.
pub(super) fn check_routes(targets: &[TargetRef], at: &At<'_>) {
    if targets.iter().any(TargetRef::is_route) && !targets.iter().all(TargetRef::is_route) {
        at.refuse(ROUTES_ALONE_MESSAGE);
    }
}

/// Refuses routes.
pub(super) fn check_no_routes(targets: &[TargetRef], at: &At<'_>) {
    if targets.iter().any(TargetRef::is_route) {
        at.refuse(NO_ROUTES_MESSAGE);
    }
}

/// Refuses what a lane must not target.
pub(super) fn check_services(targets: &[TargetRef], at: &At<'_>) {
    if targets.iter().any(|target| target.is_namespace() || target.is_route()) {
        at.refuse(NO_NAMESPACE_MESSAGE);
    }
}
