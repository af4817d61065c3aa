//! What the page sees of the running agent.

use std::sync::Arc;

use super::{Shared, lock, ready};
use crate::{
    admin::view::{self, Look},
    capture::Capture,
    clock::Nanos,
    cluster::{jwks, model::Snapshot},
    lease,
    observe::metrics::Metrics,
    proxy::Proxy,
};

/// The running agent, and what it has been told of its node.
pub(super) struct Seen {
    pub(super) running: Shared,
    pub(super) node: Option<Arc<str>>,
    pub(super) without_access_log: bool,
    pub(super) reclaim: bool,
    pub(super) metrics: Arc<Metrics>,
}

impl view::Agent for Seen {
    fn snapshot(&self) -> Arc<Snapshot> {
        let running = lock(&self.running);
        running.cluster.as_ref().map(|cluster| cluster.current().load_full()).unwrap_or_default()
    }

    fn look(&self) -> Look {
        let missing = ready::missing(&self.running);
        let running = lock(&self.running);
        let cluster = running.cluster.as_ref();
        let capture = running.capture.as_ref().map(Capture::status);
        let threads_trouble = capture.as_ref().and_then(|status| status.threads_trouble.clone());
        Look {
            node: self.node.clone(),
            missing,
            draining: running.stopping,
            snapshot: cluster.map(|cluster| cluster.current().load_full()).unwrap_or_default(),
            cluster: cluster.map(|cluster| cluster.status()),
            verdicts: cluster.map(|cluster| cluster.verdicts().borrow().clone()).unwrap_or_default(),
            without_access_log: self.without_access_log,
            tags: self.metrics.tags(Nanos::now()),
            uses: running.proxy.as_ref().map(Proxy::uses).unwrap_or_default(),
            pods: capture.as_ref().map(|status| status.pods.clone()).unwrap_or_default(),
            access_log_trouble: running.access_log_trouble.load_full(),
            reclaim: self.reclaim,
            reclaim_trouble: capture.as_ref().and_then(|status| status.reclaim_trouble.clone()),
            steering_trouble: capture.and_then(|status| status.steering_trouble),
            threads_trouble,
            leases: running.leases.as_ref().map(|leases| leases.status()).unwrap_or_default(),
        }
    }

    fn leases(&self) -> lease::Status {
        lock(&self.running).leases.as_ref().map(|leases| leases.status()).unwrap_or_default()
    }

    fn jwks(&self) -> Vec<jwks::State> {
        let running = lock(&self.running);
        running.cluster.as_ref().map(|cluster| cluster.status().jwks).unwrap_or_default()
    }

    fn release(&self) -> Result<usize, String> {
        let running = lock(&self.running);
        let Some(capture) = &running.capture else {
            return Err("the agent is starting or stopping: try again".to_owned());
        };
        capture.release().map_err(|error| format!("something is left, and will be tried again: {error}"))
    }
}
