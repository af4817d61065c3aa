//! The first request to a pod, which the agent of its node tells all others of.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sluice::{
    cluster::{
        Cluster,
        builder::Options,
        kubernetes::{self, first_request::FirstWriter, status::Pace},
        problem::Problem,
    },
    govern::endpoint::Endpoint,
};
use sluice_tests::api_server::Fault;

use crate::{
    rig::{PATIENCE, Server, eventually, fill, pod},
    warm_gate::{PACE, ago},
};

const CONDITION: &str = "sluice.dev/first-request";

/// The agent of a node, as far as first requests are concerned.
struct Agent {
    cluster: Cluster,
    _writer: FirstWriter,
}

impl Agent {
    async fn start(server: &Server, node: &str) -> Self {
        Self::start_at(server, node, PACE).await
    }

    async fn start_at(server: &Server, node: &str, pace: Pace) -> Self {
        let client = server.client().await;
        let options = Options { node: Some(node.into()), warm_gates: true, ..Options::default() };
        let cluster = Cluster::start(kubernetes::open_with(client.clone(), PATIENCE), options);
        cluster.fresh().await;
        let writer = FirstWriter::start(client, cluster.firsts(), cluster.troubles(), pace);
        Self { cluster, _writer: writer }
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        let snapshot = self.cluster.current().load_full();
        let (_, orders) = snapshot.destinations.iter().next().expect("the Service is there");
        orders.service.endpoints[0].clone()
    }

    /// A request goes to the pod, or is seen to come to it.
    fn sees_a_request(&self, server: &Server) {
        let endpoint = self.endpoint();
        let ready = endpoint.ready_since_nanos.expect("it is ready");
        endpoint.load.note_first_request(Some(ready), ready + ready_for(server));
    }

    /// How long after it was Ready the pod was asked, in whole seconds, as far as it knows.
    fn asked_after(&self) -> Option<i64> {
        let endpoint = self.endpoint();
        let ready = endpoint.ready_since_nanos?;
        Some((endpoint.load.first_request(Some(ready))? - ready) / 1_000_000_000)
    }

    fn problems(&self) -> Vec<String> {
        self.cluster.status().all_problems().map(Problem::told).collect()
    }
}

/// The pod `orders-1` of node `n1`, whose container started so many seconds ago and was Ready five seconds later.
fn running(seconds: u64) -> Value {
    let mut pod = pod("shop", "orders-1", "10.1.1.1", None);
    pod["status"]["conditions"] =
        json!([{ "type": "Ready", "status": "True", "lastTransitionTime": ago(seconds - 5) }]);
    pod["status"]["containerStatuses"] = json!([{ "name": "app", "image": "", "imageID": "", "ready": true,
        "restartCount": 0, "state": { "running": { "startedAt": ago(seconds) } } }]);
    pod
}

/// A namespace `shop` with a service `orders` of one pod, of which all requests go through its node's agent.
fn shop(server: &Server) {
    fill(server, "shop", Some("enabled"), 1);
    server.apply("pods", running(100));
    server.apply(
        "trafficpolicies",
        json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": { "name": "p", "namespace": "shop", "uid": "uid-p", "generation": 1 },
            "spec": {
                "targetRefs": [{ "name": "orders" }],
                "loadBalancer": { "warmUp": { "duration": "10m", "startOn": "FirstRequest" } },
                "rateLimits": [{ "name": "all", "requests": 1000, "scope": "Endpoint" }],
            },
        }),
    );
}

fn condition(server: &Server) -> Option<Value> {
    condition_of(server, CONDITION)
}

fn condition_of(server: &Server, kind: &str) -> Option<Value> {
    let conditions = server.get("pods", "shop", "orders-1")?["status"]["conditions"].as_array()?.clone();
    conditions.into_iter().find(|condition| condition["type"] == kind)
}

/// For how many nanoseconds the pod has been Ready.
fn ready_for(server: &Server) -> i64 {
    let ready = condition_of(server, "Ready").expect("it says so")["lastTransitionTime"].clone();
    let ready: Timestamp = ready.as_str().and_then(|ready| ready.parse().ok()).expect("a time");
    (Timestamp::now().as_nanosecond() - ready.as_nanosecond()) as i64
}

#[tokio::test]
async fn what_one_agent_sees_begins_the_warm_up_for_all() {
    let server = Server::start();
    shop(&server);
    let (here, there) = (Agent::start(&server, "n1").await, Agent::start(&server, "n2").await);
    assert_eq!((here.asked_after(), there.asked_after()), (None, None), "it has not been asked");
    here.sees_a_request(&server);
    eventually("the condition", || condition(&server).is_some_and(|told| told["status"] == "True")).await;
    eventually("the other node's agent knows", || there.asked_after().is_some()).await;
    let conditions = server.get("pods", "shop", "orders-1").unwrap()["status"]["conditions"].clone();
    assert_eq!(conditions.as_array().map(Vec::len), Some(2), "what others say stays: {conditions}");

    // Once is enough, and agents that start anew know it.
    let written = server.count("patch", "pods", "shop");
    there.sees_a_request(&server);
    for node in ["n1", "n2"] {
        let again = Agent::start(&server, node).await;
        let (before, now) = (there.asked_after().unwrap(), again.asked_after().unwrap());
        assert!(now.abs_diff(before) <= 2, "{now} and {before} seconds after it was Ready");
        again.sees_a_request(&server);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.count("patch", "pods", "shop"), written);
    assert_eq!(here.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn only_the_agent_of_the_pods_node_tells() {
    let server = Server::start();
    shop(&server);
    let (here, there) = (Agent::start(&server, "n1").await, Agent::start(&server, "n2").await);
    there.sees_a_request(&server);
    assert!(there.asked_after().is_some(), "it goes by what it sees itself");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((condition(&server), here.asked_after()), (None, None));
}

#[tokio::test]
async fn a_container_that_starts_anew_is_asked_for_the_first_time_again() {
    let server = Server::start();
    shop(&server);
    let (here, there) = (Agent::start(&server, "n1").await, Agent::start(&server, "n2").await);
    here.sees_a_request(&server);
    eventually("both know", || condition(&server).is_some() && there.asked_after().is_some()).await;
    let before = condition(&server).unwrap();
    // It has been up for a second, which is later than that request.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut restarted = server.get("pods", "shop", "orders-1").unwrap();
    for condition in restarted["status"]["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "Ready" {
            condition["lastTransitionTime"] = ago(1).into();
        }
    }
    restarted["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = ago(2).into();
    server.apply("pods", restarted);
    eventually("nobody has asked it", || here.asked_after().is_none() && there.asked_after().is_none()).await;
    here.sees_a_request(&server);
    eventually("it is told again", || condition(&server).is_some_and(|now| now != before)).await;
    eventually("the other node's agent knows", || there.asked_after().is_some()).await;
}

#[tokio::test]
async fn where_it_is_forbidden_each_agent_goes_by_what_it_sees() {
    let server = Server::start();
    shop(&server);
    server.fault("patch", "pods", Some(Fault::Status(403)));
    let agent = Agent::start(&server, "n1").await;
    assert_eq!(agent.problems(), Vec::<String>::new(), "there is nothing to tell yet");
    agent.sees_a_request(&server);
    eventually("a problem", || agent.problems().len() == 1).await;
    let problems = agent.problems();
    assert!(
        problems[0].contains("FirstRequest") && problems[0].contains("overlays/warm-gate"),
        "{problems:?}"
    );
    assert!(agent.asked_after().is_some());
}

#[tokio::test]
async fn what_fails_is_tried_again() {
    for code in [404, 409, 422, 503] {
        let server = Server::start();
        shop(&server);
        server.fault("patch", "pods", Some(Fault::Status(code)));
        let agent = Agent::start(&server, "n1").await;
        agent.sees_a_request(&server);
        let asked = server.requests();
        eventually("attempts", || server.requests() > asked + 1).await;
        assert_eq!(condition(&server), None);
        server.fault("patch", "pods", None);
        eventually("the condition", || condition(&server).is_some()).await;
        assert_eq!(agent.problems(), Vec::<String>::new());
    }
}
