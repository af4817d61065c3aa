//! What an object is about: Services of its own namespace, as in Gateway API's policy attachment.
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

/// A Service of the same namespace, or one port of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group of the target: empty, that of Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = ""), extend("enum" = [""]))]
    pub group: Option<String>,
    /// Kind of the target: Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "Service"), extend("enum" = ["Service"]))]
    pub kind: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Name of one of the Service's ports; all of its ports if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub section_name: Option<String>,
}

impl TargetRef {
    pub(super) fn policy(&self) -> Target {
        Target { service: self.name.as_str().into(), port: self.section_name.as_deref().map(Into::into) }
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
