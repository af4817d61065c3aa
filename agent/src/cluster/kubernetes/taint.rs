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

use super::{client::chain, troubles};
use crate::cluster::{
    cause::{Cause, Grant},
    problem::Problem,
};

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// After it was refused, which somebody has to see to; up to half as long again.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// By what the trouble is known among others.
const TROUBLE: &str = "taint";
const EFFECT: &str = "no pods are scheduled there that do not tolerate it";

/// Takes taints with that key off the node, however long it takes. Tells whether there was one. What stands in the way goes to
/// `troubles`.
pub async fn take_off(client: &Client, node: &str, key: &str, troubles: &troubles::Said) -> bool {
    loop {
        let (verb, error) = match try_to(client, node, key).await {
            Ok(done) => {
                troubles::no_longer(troubles, TROUBLE);
                return done;
            }
            Err(error) => error,
        };
        let pause = match &error {
            // Somebody else has changed the node in the meantime.
            kube::Error::Api(status) if status.code == 409 => Duration::ZERO,
            kube::Error::Api(status) if troubles::is_lasting(status.code) => {
                REFUSED_PAUSE.mul_f64(1.0 + fastrand::f64() / 2.0)
            }
            _ => PAUSE,
        };
        let what = format!("cannot take the taint {key} off node {node}");
        match &error {
            kube::Error::Api(status) if status.code == 404 => {
                let what = format!("{what} ({}: {}): {EFFECT}", status.code, status.message);
                troubles::tell(troubles, TROUBLE, Problem::with_source(what, Cause::NodeUnknown));
            }
            kube::Error::Api(status) if !troubles::is_passing(status.code) => {
                let grant = Grant::taint(verb);
                troubles::tell(troubles, TROUBLE, troubles::refused(&what, grant, status, EFFECT));
            }
            // Who does not reach the API server is told so by its watches.
            error => {
                tracing::debug!(
                    node,
                    taint = key,
                    error = chain(error),
                    "the taint is not off yet; retrying"
                );
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn try_to(client: &Client, node: &str, key: &str) -> Result<bool, (&'static str, kube::Error)> {
    let nodes = Api::<Node>::all(client.clone());
    let found = nodes.get(node).await.map_err(|error| ("get", error))?;
    let taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let left: Vec<_> = taints.iter().filter(|taint| taint.key != key).collect();
    if left.len() == taints.len() {
        return Ok(false);
    }
    let patch = json!({
        "metadata": { "resourceVersion": found.metadata.resource_version },
        "spec": { "taints": left },
    });
    let patched = nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map_err(|error| ("patch", error))?;
    tracing::info!(node, taint = key, "took the taint off the node: pods may come");
    Ok(true)
}
