//! The zone of the agent's own node, which topology hints are about.
//!
//! A pod cannot be told its node's labels by its manifest (before Kubernetes 1.35), so the node itself is asked, once, at
//! the start. That waits for the API server as everything does, but it must not hold up governing when only this is
//! refused: without a zone, hints restrict nothing.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};

use super::client::chain;

/// Says in which zone a node is.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is tried once the API server has told of everything else.
const ATTEMPTS: u32 = 5;

/// Asks for the zone of `node`. `None`: it has none, or nobody says.
///
/// `reachable` tells whether the API server has been heard meanwhile; until then it is tried for as long as it takes.
pub async fn zone(client: &Client, node: &str, reachable: impl Fn() -> bool) -> Option<Arc<str>> {
    let nodes = Api::<Node>::all(client.clone());
    let mut left = ATTEMPTS;
    loop {
        let error = match nodes.get_metadata(node).await {
            Ok(node) => {
                let zone = node.metadata.labels.unwrap_or_default().remove(ZONE_LABEL);
                return zone.filter(|zone| !zone.is_empty()).map(Into::into);
            }
            Err(error) => error,
        };
        if reachable() {
            left = left.saturating_sub(1);
        }
        let final_answer =
            matches!(&error, kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 404));
        if final_answer || left == 0 {
            tracing::warn!(
                node,
                error = chain(&error),
                "the node's zone is not known (verb get on nodes, or --zone): topology hints have no effect"
            );
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
