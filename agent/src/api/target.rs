//! What an object is about: Services of its own namespace, or for a TrafficPolicy the namespace itself, as in Gateway API's
//! policy attachment.
//!
//! <https://gateway-api.sigs.k8s.io/geps/gep-713/>

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::field::{At, quoted};
use crate::govern::policy::Target;

pub(super) const MAX_TARGETS: usize = 64;

/// No target may cover another: the same Service, both times whole, or whole and one port of it.
pub(super) const UNIQUE_TARGETS: &str = "self.all(a, self.exists_one(b, a.name == b.name && \
     (!has(a.sectionName) || !has(b.sectionName) || a.sectionName == b.sectionName)))";
pub(super) const UNIQUE_TARGETS_MESSAGE: &str =
    "a Service is targeted once as a whole, or once for each port: no two targets may overlap";

/// For a policy: a namespace is not a target beside others.
pub(super) const NAMESPACE_ALONE: &str = "self.all(target, target.kind != 'Namespace') || self.size() == 1";
pub(super) const NAMESPACE_ALONE_MESSAGE: &str =
    "a policy that targets its Namespace has no other targets; single Services need policies of their own";
/// For a lane.
pub(super) const NO_NAMESPACE: &str = "self.all(target, target.kind != 'Namespace')";
pub(super) const NO_NAMESPACE_MESSAGE: &str =
    "a lane targets Services: without targetRefs it is about all of its namespace";

/// A Service of the same namespace, or one port of it; or the namespace itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.sectionName) || self.kind != 'Namespace'")
        .message("a Namespace has no ports").field_path(".sectionName")
)]
pub struct TargetRef {
    /// API group of the target: empty, the group of Services and Namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = ""), extend("enum" = [""]))]
    pub group: Option<String>,
    /// Kind of the target: Service, or, for a TrafficPolicy, Namespace (its own): Services inherit from that policy
    /// what their own policies do not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "Service"), extend("enum" = ["Service", "Namespace"]))]
    pub kind: Option<String>,
    /// Name of the Service, or of the Namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Name of one of the Service's ports; all of its ports if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub section_name: Option<String>,
}

impl TargetRef {
    /// The Service that it names.
    pub(super) fn policy(&self) -> Option<Target> {
        (!self.is_namespace()).then(|| Target {
            service: self.name.as_str().into(),
            port: self.section_name.as_deref().map(Into::into),
        })
    }

    pub(super) fn is_namespace(&self) -> bool {
        self.kind.as_deref() == Some("Namespace")
    }

    fn covers(&self, other: &Self) -> bool {
        self.name == other.name
            && (self.section_name.is_none()
                || other.section_name.is_none()
                || self.section_name == other.section_name)
    }
}

/// Refuses targets that overlap. What the schema says of each by itself is checked by it.
pub(super) fn check(targets: &[TargetRef], at: &At<'_>) {
    for (i, target) in targets.iter().enumerate().take(MAX_TARGETS) {
        if let Some(port) = target.section_name.as_ref().filter(|_| target.is_namespace()) {
            at.index(i).field("sectionName").refuse(format!("{}: a Namespace has no ports", quoted(port)));
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

/// Refuses what a lane must not target.
pub(super) fn check_services(targets: &[TargetRef], at: &At<'_>) {
    if targets.iter().any(TargetRef::is_namespace) {
        at.refuse(NO_NAMESPACE_MESSAGE);
    }
}
