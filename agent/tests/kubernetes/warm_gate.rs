//! The readiness gate that the agent sets when a pod is warm.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use sluice::cluster::{
    Cluster,
    builder::Options,
    kubernetes::{self, status::Pace, warm_gate::GateWriter},
    problem::Problem,
};
use sluice_tests::api_server::Fault;

use crate::rig::{PATIENCE, Server, eventually, fill, namespace, pod, slice};

const GATE: &str = "sluice.dev/warm";
pub(crate) const PACE: Pace = Pace {
    lease: Duration::from_secs(2),
    patience: Duration::from_millis(400),
    settle: Duration::from_millis(20),
    spacing: Duration::from_millis(5),
    again: Duration::from_millis(300),
    refused: Duration::from_millis(300),
};

/// An agent, as far as gates are concerned.
struct Agent {
    cluster: Cluster,
    _writer: GateWriter,
}

impl Agent {
    async fn start(server: &Server) -> Self {
        let client = server.client().await;
        let options = Options { node: Some("n1".into()), warm_gates: true, ..Options::default() };
        let cluster = Cluster::start(kubernetes::open_with(client.clone(), PATIENCE), options);
        cluster.fresh().await;
        let (gates, trouble) = (cluster.gates(), cluster.troubles());
        let writer = GateWriter::start(client, "n1", gates, trouble, PACE, PATIENCE);
        Self { cluster, _writer: writer }
    }

    fn problems(&self) -> Vec<String> {
        self.cluster.status().all_problems().map(Problem::told).collect()
    }
}

pub(crate) fn ago(seconds: u64) -> String {
    let then = SystemTime::now() - Duration::from_secs(seconds);
    k8s_openapi::jiff::Timestamp::try_from(then).unwrap().to_string()
}

/// With the gate, its containers ready for so many seconds.
fn gated(namespace: &str, name: &str, ip: &str, seconds: u64) -> Value {
    let mut pod = pod(namespace, name, ip, None);
    pod["spec"]["readinessGates"] = json!([{ "conditionType": GATE }]);
    pod["status"]["conditions"] = json!([
        { "type": "PodScheduled", "status": "True" },
        { "type": "ContainersReady", "status": "True", "lastTransitionTime": ago(seconds) },
        { "type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady", "lastTransitionTime": ago(seconds) },
    ]);
    pod
}

fn policy(warm_up: &Value) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": { "name": "p", "namespace": "shop", "uid": "uid-p", "generation": 1 },
        "spec": { "targetRefs": [{ "name": "orders" }], "loadBalancer": { "warmUp": warm_up } },
    })
}

fn condition(server: &Server, namespace: &str, name: &str) -> Option<Value> {
    let conditions = server.get("pods", namespace, name)?["status"]["conditions"].as_array()?.clone();
    conditions.into_iter().find(|condition| condition["type"] == GATE)
}

/// `True/WarmedUp`
fn said(server: &Server, namespace: &str, name: &str) -> String {
    let condition = condition(server, namespace, name).unwrap_or_default();
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("status"), text("reason"))
}

/// A namespace `shop` with a service `orders` of a pod `orders-1`, and another pod of it that is not Ready.
fn shop(server: &Server) {
    fill(server, "shop", Some("enabled"), 1);
    let mut slice = slice("shop", "orders", &[("orders-1", "10.1.1.1"), ("orders-2", "10.1.1.2")]);
    slice["endpoints"][1]["conditions"] = json!({ "ready": false, "serving": false });
    server.apply("endpointslices", slice);
}

#[tokio::test]
async fn it_is_set_when_the_warm_up_ends_and_everything_else_stays() {
    let server = Server::start();
    shop(&server);
    server.apply("trafficpolicies", policy(&json!({ "duration": "30s" })));
    server.apply("pods", gated("shop", "orders-2", "10.1.1.2", 22));
    let agent = Agent::start(&server).await;
    eventually("it says that it warms up", || said(&server, "shop", "orders-2") == "False/WarmingUp").await;
    let written = server.count("patch", "pods", "shop");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.count("patch", "pods", "shop"), written, "and once is enough");
    // Its containers were ready before, as another agent would have seen it.
    let mut again = server.get("pods", "shop", "orders-2").unwrap();
    again["status"]["conditions"][1]["lastTransitionTime"] = ago(31).into();
    server.apply("pods", again);
    eventually("it is warm", || said(&server, "shop", "orders-2") == "True/WarmedUp").await;
    let pod = server.get("pods", "shop", "orders-2").unwrap();
    let kinds: Vec<_> =
        pod["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["PodScheduled", "ContainersReady", "Ready", GATE]);
    assert_eq!((&pod["status"]["podIP"], &pod["spec"]["nodeName"]), (&json!("10.1.1.2"), &json!("n1")));
    assert!(condition(&server, "shop", "orders-2").unwrap()["lastTransitionTime"].is_string());

    // A container is down: it is to warm up anew.
    let mut down = pod;
    down["status"]["conditions"][1]["status"] = "False".into();
    down["status"]["containerStatuses"] = json!([{ "name": "app", "image": "", "imageID": "", "ready": false,
        "restartCount": 1, "state": { "waiting": { "reason": "CrashLoopBackOff" } } }]);
    server.apply("pods", down);
    eventually("it is cold", || said(&server, "shop", "orders-2") == "False/ContainerRestarted").await;
    assert_eq!(agent.problems(), Vec::<String>::new());
}

#[tokio::test]
async fn it_is_set_at_once_where_nothing_is_to_wait_for() {
    let server = Server::start();
    shop(&server);
    server.apply("namespaces", namespace("bank", None));
    server.apply("pods", gated("shop", "orders-2", "10.1.1.2", 0));
    server.apply("pods", gated("bank", "teller", "10.1.2.1", 0));
    let mut elsewhere = gated("bank", "elsewhere", "10.1.2.2", 0);
    elsewhere["spec"]["nodeName"] = "n2".into();
    server.apply("pods", elsewhere);
    let _agent = Agent::start(&server).await;
    for (namespace, name) in [("shop", "orders-2"), ("bank", "teller")] {
        eventually(name, || said(&server, namespace, name) == "True/NoWarmUp").await;
    }
    // And one that comes later.
    server.apply("pods", gated("bank", "late", "10.1.2.3", 0));
    eventually("late", || said(&server, "bank", "late") == "True/NoWarmUp").await;
    assert_eq!(condition(&server, "bank", "elsewhere"), None, "its own agent says it");
}

#[tokio::test]
async fn what_is_forbidden_is_told_once_and_tried_again() {
    let server = Server::start();
    shop(&server);
    server.apply("pods", gated("shop", "orders-2", "10.1.1.2", 0));
    server.fault("patch", "pods", Some(Fault::Status(403)));
    let agent = Agent::start(&server).await;
    eventually("a problem", || agent.problems().len() == 1).await;
    assert!(agent.problems()[0].contains("deploy/overlays/warm-gate"), "{:?}", agent.problems());
}

#[tokio::test]
async fn what_fails_is_tried_again() {
    let server = Server::start();
    shop(&server);
    for (code, name, ip) in
        [(409, "a", "10.1.1.2"), (404, "b", "10.1.1.3"), (503, "c", "10.1.1.4"), (422, "d", "10.1.1.5")]
    {
        server.fault("patch", "pods", Some(Fault::Status(code)));
        server.apply("pods", gated("shop", name, ip, 0));
        let agent = Agent::start(&server).await;
        let asked = server.requests();
        eventually("attempts", || server.requests() > asked + 2).await;
        assert_eq!(condition(&server, "shop", name), None);
        server.fault("patch", "pods", None);
        eventually(name, || said(&server, "shop", name) == "True/NoWarmUp").await;
        assert_eq!(agent.problems(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn another_pod_of_that_name_is_left_alone() {
    let server = Server::start();
    shop(&server);
    let agent = Agent::start(&server).await;
    let body = json!({ "metadata": { "uid": "another" }, "status": { "conditions": [{ "type": GATE, "status": "True" }] } });
    server.apply("pods", gated("shop", "orders-2", "10.1.1.2", 0));
    eventually("it is set", || said(&server, "shop", "orders-2") == "True/NoWarmUp").await;
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(server.client().await, "shop");
    let patched = pods
        .patch_status("orders-2", &kube::api::PatchParams::default(), &kube::api::Patch::Strategic(body))
        .await;
    assert!(matches!(patched, Err(kube::Error::Api(status)) if status.code == 409), "as the real one does");
    drop(agent);
}

#[tokio::test]
async fn its_role_allows_what_is_asked() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/overlays/warm-gate/role.yaml");
    let role: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap();
    let rule = json!([{ "apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"] }]);
    assert_eq!(role[0]["rules"], rule);
    let server = Server::start();
    shop(&server);
    server.apply("pods", gated("shop", "orders-2", "10.1.1.2", 0));
    let _agent = Agent::start(&server).await;
    eventually("it is set", || said(&server, "shop", "orders-2") == "True/NoWarmUp").await;
    let asked: BTreeSet<_> =
        server.asked().into_iter().filter(|(_, what)| what.starts_with("pods")).collect();
    let wanted = [("patch", "pods/status".to_owned()), ("watch", "pods".to_owned())];
    assert_eq!(asked, BTreeSet::from(wanted), "the base role has the watch");
}
