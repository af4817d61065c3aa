//! The zone of the agent's own node.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sluice::cluster::kubernetes;
use sluice_tests::api_server::Fault;

use crate::rig::{Server, eventually};

fn node(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels } })
}

async fn zone(server: &Server, node: &str) -> Option<String> {
    kubernetes::zone(&server.client().await, node, || true).await.as_deref().map(str::to_owned)
}

#[tokio::test]
async fn it_is_what_the_nodes_label_says() {
    let server = Server::start();
    server.apply("nodes", node("a", &json!({ "topology.kubernetes.io/zone": "west-1" })));
    server.apply("nodes", node("b", &json!({ "kubernetes.io/os": "linux" })));
    server.apply("nodes", node("c", &json!({ "topology.kubernetes.io/zone": "" })));
    assert_eq!(zone(&server, "a").await.as_deref(), Some("west-1"));
    assert_eq!(zone(&server, "b").await, None);
    assert_eq!(zone(&server, "c").await, None);
}

#[tokio::test]
async fn who_may_not_ask_goes_on_without() {
    let server = Server::start();
    server.apply("nodes", node("a", &json!({ "topology.kubernetes.io/zone": "west-1" })));
    server.fault("get", "nodes", Some(Fault::Status(403)));
    assert_eq!(zone(&server, "a").await, None);
    assert_eq!(zone(&server, "unheard-of").await, None);
}

#[tokio::test]
async fn a_server_that_only_fails_at_this_does_not_hold_up_the_rest() {
    let server = Server::start();
    server.apply("nodes", node("a", &json!({ "topology.kubernetes.io/zone": "west-1" })));
    server.fault("get", "nodes", Some(Fault::Status(500)));
    assert_eq!(zone(&server, "a").await, None);
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let mut server = Server::away();
    let client = server.client().await;
    let reachable = std::sync::Arc::new(AtomicBool::new(false));
    let seen = reachable.clone();
    let asking = tokio::spawn(async move {
        kubernetes::zone(&client, "a", || {
            seen.store(true, Ordering::Relaxed);
            false
        })
        .await
    });
    // It has failed once.
    eventually("an attempt", || reachable.load(Ordering::Relaxed)).await;
    server.apply("nodes", node("a", &json!({ "topology.kubernetes.io/zone": "west-1" })));
    server.come().unwrap();
    assert_eq!(asking.await.unwrap().as_deref(), Some("west-1"));
}
