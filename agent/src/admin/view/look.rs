//! What the rest of the agent tells when it is looked at.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use crate::{
    capture::PodStatus,
    cluster::{self, jwks, model::Snapshot, verdict::Verdicts},
    lease,
    observe::metrics::PodTags,
    proxy::PodUse,
};

/// The running agent, for whoever looks at it. Neither must block.
pub trait Agent: Send + Sync + 'static {
    /// The cluster as of now; empty while it is not known.
    fn snapshot(&self) -> Arc<Snapshot>;
    fn look(&self) -> Look;
    /// How limits of the whole cluster stand.
    fn leases(&self) -> lease::Status {
        self.look().leases
    }
    /// How the sources of keys fare that policies name.
    fn jwks(&self) -> Vec<jwks::State> {
        self.look().cluster.map(|cluster| cluster.jwks).unwrap_or_default()
    }
    /// Removes what refuses connections while no agent is there, and leaves nothing of it behind any more. Says how much it was.
    ///
    /// # Errors
    /// Why it cannot, or not yet.
    fn release(&self) -> Result<usize, String> {
        Ok(0)
    }
}

/// The agent at a moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The node's name, if it is known.
    pub node: Option<Arc<str>>,
    /// Why the agent is not ready; empty if it is.
    pub missing: Vec<Missing>,
    /// It is stopping, and carries only what is open: it attends no pod any more.
    pub draining: bool,
    pub snapshot: Arc<Snapshot>,
    /// How the cluster is known; `None` while it is not.
    pub cluster: Option<cluster::Status>,
    /// What became of each TrafficPolicy and TrafficLane.
    pub verdicts: Arc<Verdicts>,
    /// The pods that are enrolled, or should be.
    pub pods: Arc<[PodStatus]>,
    /// What enrolled pods use of the proxy.
    pub uses: Vec<PodUse>,
    /// What became of tags in pods that call.
    pub tags: Vec<PodTags>,
    /// The access log is off, whatever annotations say.
    pub without_access_log: bool,
    /// Why lines of the access log cannot be written at the moment.
    pub access_log_trouble: Option<Arc<String>>,
    /// Connections that are older than their pod's enrolment are ended where a Service asks for it; why they cannot be.
    pub reclaim: bool,
    pub reclaim_trouble: Option<Arc<String>>,
    /// Why no AccessPolicy can be enforced on this node.
    pub steering_trouble: Option<Arc<String>>,
    /// Why threads of pods that ask for it cannot be followed on this node.
    pub threads_trouble: Option<Arc<String>>,
    /// How limits of the whole cluster stand.
    pub leases: lease::Status,
}

/// Connections of a pod to a service that are older than its enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Older {
    pub service: String,
    pub connections: usize,
    /// They are ended when they are idle.
    pub reclaimed: bool,
}

impl Look {
    /// What became of tags in this pod; `None`: it has to do with none.
    pub fn tags(&self, namespace: &str, name: &str) -> Option<&PodTags> {
        self.tags.iter().find(|tags| (&*tags.namespace, &*tags.name) == (namespace, name))
    }

    /// Why requests to a pod that asks for it (`sluice.dev/propagation`) are not read.
    pub fn unread<'a>(&'a self, pod: &'a PodStatus) -> Option<&'a str> {
        if !pod.workload.is_read() {
            return None;
        }
        self.steering_trouble.as_deref().or(pod.steered.trouble.as_ref()).map(String::as_str)
    }

    /// The services to which a pod has connections that are older than its enrolment.
    pub fn older(&self, pod: &PodStatus) -> Vec<Older> {
        let mut older: BTreeMap<String, (usize, bool)> = BTreeMap::new();
        for address in &*pod.older {
            let service = self.snapshot.destination(*address).map(|found| &found.service);
            let name = service.map_or_else(|| address.to_string(), ToString::to_string);
            let (connections, reclaimed) = older.entry(name).or_default();
            *connections += 1;
            *reclaimed = self.reclaim && service.is_some_and(|service| service.is_reclaimed());
        }
        let line = |(service, (connections, reclaimed))| Older { service, connections, reclaimed };
        older.into_iter().map(line).collect()
    }
}

/// A reason why the agent is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// A clause that begins with its subject.
    pub message: String,
    /// What to do about it.
    pub action: Cow<'static, str>,
    /// `status` tells it where it tells of the pod, or of the API server.
    pub elsewhere: bool,
}

impl Missing {
    /// With what to do about it.
    pub fn told(&self) -> String {
        format!("{}. {}", self.message.trim_end_matches('.'), self.action)
    }
}
