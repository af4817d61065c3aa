//! A permission that is missing: who gives it, and how to find out whether it is there.

use std::{fmt, sync::Arc};

/// A permission that the agent lacks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    pub verb: &'static str,
    /// As RBAC names it, with its group behind it: `endpointslices.discovery.k8s.io`, `pods/status`.
    pub resource: &'static str,
    place: Place,
    /// What in `deploy/` has it, where that does not follow from the rest.
    overlay: Option<&'static str>,
    /// Whom the API server takes the agent for, as it says it.
    user: Option<Arc<str>>,
}

/// Where the permission is needed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// In all namespaces, or the resource has none.
    Cluster,
    Namespace(Arc<str>),
    /// In that of the agent.
    Own,
}

/// Whom an API server takes for nobody in particular: it has seen no credentials.
const NOBODY: &str = "system:anonymous";
/// These have no namespace, of which kubectl wants to hear nothing then.
const CLUSTERED: [&str; 4] = ["namespaces", "nodes", "xmeshes.gateway.networking.x-k8s.io", MESH_STATUS];
const MESH_STATUS: &str = "xmeshes.gateway.networking.x-k8s.io/status";

impl Grant {
    /// In the whole cluster, or, if it is named, in a namespace.
    pub fn new(verb: &'static str, resource: &'static str, namespace: &str) -> Self {
        let place = if namespace.is_empty() { Place::Cluster } else { Place::Namespace(namespace.into()) };
        Self { verb, resource, place, overlay: None, user: None }
    }

    /// In the namespace of the agent.
    pub fn own(verb: &'static str, resource: &'static str) -> Self {
        Self { verb, resource, place: Place::Own, overlay: None, user: None }
    }

    /// On this node, for its taint, with the permissions of an overlay of its own.
    pub fn taint(verb: &'static str) -> Self {
        Self { overlay: Some("deploy/overlays/startup-taint"), ..Self::new(verb, "nodes", "") }
    }

    /// With the user that the API server's message names. Without one it is the agent's service account.
    pub(super) fn for_whom(self, message: &str) -> Self {
        Self { user: user(message).map(Into::into), ..self }
    }

    /// What in `deploy/` has it.
    pub fn is_in(&self) -> &'static str {
        self.overlay.unwrap_or(match self.resource {
            "leases.coordination.k8s.io" => "the Role in deploy/base/rbac.yaml",
            "pods/status" => "deploy/overlays/warm-gate",
            _ => "the ClusterRole in deploy/base/rbac.yaml",
        })
    }

    /// The command that says whether it is there.
    fn check(&self) -> String {
        let (resource, part) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let part = if part.is_empty() { String::new() } else { format!(" --subresource={part}") };
        let place = match (&self.place, self.namespace_of_user()) {
            (Place::Namespace(namespace), _) => format!(" -n {namespace}"),
            (Place::Own, Some(namespace)) => format!(" -n {namespace}"),
            (Place::Cluster, _) if !CLUSTERED.contains(&self.resource) => " -A".to_owned(),
            _ => String::new(),
        };
        let user = self.user.as_ref().map(|user| format!(" --as={user}")).unwrap_or_default();
        format!("kubectl auth can-i {} {resource}{part}{place}{user}", self.verb)
    }

    fn namespace_of_user(&self) -> Option<&str> {
        let account = self.user.as_ref()?.strip_prefix("system:serviceaccount:")?;
        account.split_once(':').map(|(namespace, _)| namespace)
    }
}

/// `Grant the agent's service account list on pods: it is in ..., and \`kubectl auth can-i ...\` tells whether it is there.`
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, resource, .. } = self;
        write!(f, "Grant the agent's service account {verb} on {resource}: apply {}. ", self.is_in())?;
        write!(f, "`{}` says whether it is there.", self.check())
    }
}

/// The API server has seen no credentials.
pub(super) fn is_nobody(message: &str) -> bool {
    user(message) == Some(NOBODY)
}

/// `pods is forbidden: User "system:serviceaccount:sluice-system:sluice" cannot list resource "pods" in API group "" ...`
///
/// Only to name it: a name that is not plain could be more than a name to a shell.
fn user(message: &str) -> Option<&str> {
    let (user, _) = message.split_once("User \"")?.1.split_once('"')?;
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.:@/".contains(letter);
    (!user.is_empty() && user.chars().all(is_plain)).then_some(user)
}
