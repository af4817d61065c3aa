//! The taint that keeps pods off a node until its agent manages them.
//!
//! A pod that starts before the agent has enrolled it connects past the agent, and may hold on to that connection. Whoever makes
//! nodes may give them a taint that only the agent tolerates (it tolerates all); the agent takes it off its node, once, when it
//! is ready. Nothing else of the node is touched: the change names the version that it changes.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::client::chain;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// After it was refused, which somebody has to see to.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// Takes taints with that key off the node, however long it takes. Tells whether there was one.
pub async fn take_off(client: &Client, node: &str, key: &str) -> bool {
    let mut complained = false;
    loop {
        let error = match try_to(client, node, key).await {
            Ok(done) => return done,
            Err(error) => error,
        };
        let pause = match &error {
            // Somebody else has changed the node in the meantime.
            kube::Error::Api(status) if status.code == 409 => Duration::ZERO,
            kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404) => REFUSED_PAUSE,
            _ => PAUSE,
        };
        if !pause.is_zero() && !std::mem::replace(&mut complained, true) {
            tracing::warn!(
                node,
                taint = key,
                error = chain(&error),
                "cannot take the taint off the node (verbs get and patch on nodes): no pods are scheduled there that do not \
                 tolerate it; retrying"
            );
        }
        tokio::time::sleep(pause).await;
    }
}

async fn try_to(client: &Client, node: &str, key: &str) -> Result<bool, kube::Error> {
    let nodes = Api::<Node>::all(client.clone());
    let found = nodes.get(node).await?;
    let taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let left: Vec<_> = taints.iter().filter(|taint| taint.key != key).collect();
    if left.len() == taints.len() {
        return Ok(false);
    }
    let patch = json!({
        "metadata": { "resourceVersion": found.metadata.resource_version },
        "spec": { "taints": left },
    });
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
    tracing::info!(node, taint = key, "took the taint off the node: pods may come");
    Ok(true)
}
