//! The zone of the agent's own node, which topology hints are about.
//!
//! A pod cannot be told its node's labels by its manifest (before Kubernetes 1.35), so the node itself is asked at the start.
//! That waits for the API server as everything does, but it must not hold up governing when only this is refused: without a zone,
//! hints restrict nothing. It is asked for again then, so that a permission that is given later counts without a restart.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::{client::chain, troubles};
use crate::cluster::{
    cause::{Cause, Grant},
    problem::Problem,
};

/// Says in which zone a node is.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is tried once the API server has told of everything else.
const ATTEMPTS: u32 = 5;
/// Between two attempts when the rest goes on without; up to half as long again.
pub const LATER: Duration = Duration::from_secs(60);
/// By what the trouble is known among others.
const TROUBLE: &str = "zone";
const EFFECT: &str = "topology hints have no effect, unless --zone names it";

/// A node, whose zone is asked for.
pub struct Asking {
    pub client: Client,
    pub node: Arc<str>,
    /// Hears what to go by: `None` for a node without a zone, and for one of which nobody says it, as far as is known.
    pub tell: mpsc::Sender<Option<Arc<str>>>,
    /// Where is said why it is not known.
    pub troubles: troubles::Said,
    /// Between two attempts when the rest goes on without.
    pub later: Duration,
}

impl Asking {
    /// Asks until there is an answer, or nobody wants to hear it any more.
    ///
    /// `reachable` tells whether the API server has been heard meanwhile; until then nothing goes on without an answer.
    pub async fn run(self, reachable: impl Fn() -> bool) {
        let nodes = Api::<Node>::all(self.client.clone());
        let (mut left, mut is_told) = (ATTEMPTS, false);
        loop {
            let error = match nodes.get_metadata(&self.node).await {
                Ok(node) => {
                    let zone = node.metadata.labels.unwrap_or_default().remove(ZONE_LABEL);
                    let zone: Option<Arc<str>> = zone.filter(|zone| !zone.is_empty()).map(Into::into);
                    tracing::info!(zone = zone.as_deref().unwrap_or("none"), "asked for this node's zone");
                    troubles::no_longer(&self.troubles, TROUBLE);
                    // Who wanted to hear it may have ended.
                    let _ = self.tell.send(zone).await;
                    return;
                }
                Err(error) => error,
            };
            if reachable() {
                left = left.saturating_sub(1);
            }
            let is_lasting =
                matches!(&error, kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 404));
            if !is_told && !is_lasting && left > 0 {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            self.complain(&error);
            if !std::mem::replace(&mut is_told, true) && self.tell.send(None).await.is_err() {
                return;
            }
            let later = self.later.mul_f64(1.0 + fastrand::f64() / 2.0);
            tokio::select! {
                () = self.tell.closed() => return,
                () = tokio::time::sleep(later) => {}
            }
        }
    }

    /// Says why it is not known. That the API server is away is said by its watches, and no problem of its own.
    fn complain(&self, error: &kube::Error) {
        let kube::Error::Api(status) = error else {
            tracing::info!(node = %self.node, error = chain(error), "the node's zone is not known yet: {EFFECT}");
            return;
        };
        let what = format!("the zone of node {} is not known", self.node);
        let problem = if status.code == 404 {
            let what = format!("{what} ({}: {}): {EFFECT}", status.code, status.message);
            Problem::with_source(what, Cause::NodeUnknown)
        } else {
            troubles::refused(&what, Grant::new("get", "nodes", ""), status, EFFECT)
        };
        troubles::tell(&self.troubles, TROUBLE, problem);
    }
}
