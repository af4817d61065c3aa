//! What the rest of the agent tells when it is looked at.

use std::sync::Arc;

use crate::{
    capture::PodStatus,
    cluster::{self, model::Snapshot, verdict::Verdicts},
    proxy::PodUse,
};

/// The running agent, for whoever looks at it. Neither must block.
pub trait Agent: Send + Sync + 'static {
    /// The cluster as of now; empty while it is not known.
    fn snapshot(&self) -> Arc<Snapshot>;
    fn look(&self) -> Look;
}

/// The agent at a moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The node's name, if it is known.
    pub node: Option<Arc<str>>,
    /// Why the agent does not govern; empty if it does.
    pub missing: Vec<String>,
    pub snapshot: Arc<Snapshot>,
    /// How the cluster is known; `None` while it is not.
    pub cluster: Option<cluster::Status>,
    /// What became of each TrafficPolicy and TrafficLane.
    pub verdicts: Arc<Verdicts>,
    /// The pods that are enrolled, or should be.
    pub pods: Arc<[PodStatus]>,
    /// What enrolled pods use of the proxy.
    pub uses: Vec<PodUse>,
}
