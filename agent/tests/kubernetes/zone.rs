//! The zone of the agent's own node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use sluice::cluster::{
    kubernetes::Asking,
    problem::{Problem, Troubles},
};
use sluice_tests::api_server::Fault;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::rig::{Server, eventually};

const NODES: &str = "nodes";

fn node(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels } })
}

fn in_zone(name: &str) -> Value {
    node(name, &json!({ "topology.kubernetes.io/zone": "west-1" }))
}

/// Somebody who asks.
struct Agent {
    told: mpsc::Receiver<Option<Arc<str>>>,
    troubles: watch::Sender<Troubles>,
    asking: JoinHandle<()>,
}

impl Agent {
    async fn start(
        server: &Server,
        node: &str,
        reachable: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let (tell, told) = mpsc::channel(1);
        let (client, troubles) = (server.client().await, watch::Sender::default());
        let later = Duration::from_millis(50);
        let asking = Asking { client, node: node.into(), tell, troubles: troubles.clone(), later };
        Self { told, troubles, asking: tokio::spawn(asking.run(reachable)) }
    }

    /// What is told next.
    async fn zone(&mut self) -> Option<String> {
        self.told.recv().await.expect("it is told").as_deref().map(str::to_owned)
    }

    fn problems(&self) -> Vec<String> {
        self.troubles.borrow().values().map(Problem::told).collect()
    }
}

/// The first that is told.
pub(crate) async fn of(server: &Server, node: &str) -> Option<String> {
    Agent::start(server, node, || true).await.zone().await
}

#[tokio::test]
async fn it_is_what_the_nodes_label_says() {
    let server = Server::start();
    server.apply(NODES, in_zone("a"));
    server.apply(NODES, node("b", &json!({ "kubernetes.io/os": "linux" })));
    server.apply(NODES, node("c", &json!({ "topology.kubernetes.io/zone": "" })));
    assert_eq!(of(&server, "a").await.as_deref(), Some("west-1"));
    assert_eq!(of(&server, "b").await, None);
    assert_eq!(of(&server, "c").await, None);
}

#[tokio::test]
async fn who_may_not_ask_goes_on_without_and_asks_again() {
    let server = Server::start();
    server.apply(NODES, in_zone("a"));
    server.fault("get", NODES, Some(Fault::Status(403)));
    let mut agent = Agent::start(&server, "a", || true).await;
    assert_eq!(agent.zone().await, None);
    let problems = agent.problems();
    let [one] = &problems[..] else { panic!("{problems:?}") };
    assert!(one.starts_with("the zone of node a is not known (403: cannot get nodes"), "{one}");
    assert!(
        one.contains("--zone") && one.contains("Grant the agent's service account get on nodes"),
        "{one}"
    );
    // It is asked on, and told once.
    let asked = server.requests();
    eventually("more attempts", || server.requests() > asked + 2).await;
    assert_eq!(agent.problems(), problems);
    server.fault("get", NODES, None);
    assert_eq!(agent.zone().await.as_deref(), Some("west-1"));
    agent.asking.await.unwrap();
    assert_eq!(agent.troubles.borrow().len(), 0);
}

#[tokio::test]
async fn a_node_that_is_not_there_is_told_of_until_it_is() {
    let server = Server::start();
    let mut agent = Agent::start(&server, "a", || true).await;
    assert_eq!(agent.zone().await, None);
    let problems = agent.problems();
    assert!(problems.len() == 1 && problems[0].contains("SLUICE_NODE"), "{problems:?}");
    server.apply(NODES, in_zone("a"));
    assert_eq!(agent.zone().await.as_deref(), Some("west-1"));
}

#[tokio::test]
async fn who_wants_to_know_no_more_is_not_asked_for() {
    let server = Server::start();
    server.fault("get", NODES, Some(Fault::Status(403)));
    let mut agent = Agent::start(&server, "a", || true).await;
    assert_eq!(agent.zone().await, None);
    drop(agent.told);
    agent.asking.await.unwrap();
}

#[tokio::test]
async fn a_server_that_only_fails_at_this_does_not_hold_up_the_rest() {
    let server = Server::start();
    server.apply(NODES, in_zone("a"));
    server.fault("get", NODES, Some(Fault::Status(500)));
    assert_eq!(of(&server, "a").await, None);
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let mut server = Server::away();
    let reachable = Arc::new(AtomicBool::new(false));
    let seen = reachable.clone();
    let is_reachable = move || {
        seen.store(true, Ordering::Relaxed);
        false
    };
    let mut agent = Agent::start(&server, "a", is_reachable).await;
    // It has failed once.
    eventually("an attempt", || reachable.load(Ordering::Relaxed)).await;
    server.apply(NODES, in_zone("a"));
    server.come().unwrap();
    assert_eq!(agent.zone().await.as_deref(), Some("west-1"));
}
