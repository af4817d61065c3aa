//! The taint that the agent takes off its node.

use kube::Client;
use serde_json::{Value, json};
use sluice::cluster::{
    kubernetes,
    problem::{Problem, Troubles},
};
use sluice_tests::api_server::Fault;
use tokio::sync::watch;

use crate::rig::{Server, eventually};

const KEY: &str = "sluice.dev/agent-not-ready";

fn node(taints: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "n1", "labels": { "a": "b" } },
        "spec": { "podCIDR": "10.1.0.0/24", "taints": taints },
    })
}

async fn take_off(client: &Client, troubles: &watch::Sender<Troubles>) -> bool {
    kubernetes::take_off_taint(client, "n1", KEY, troubles).await
}

fn spec(server: &Server) -> Value {
    server.get("nodes", "", "n1").unwrap()["spec"].clone()
}

#[tokio::test]
async fn it_goes_and_everything_else_stays() {
    let server = Server::start();
    let other = json!({ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" });
    let ours = |effect| json!({ "key": KEY, "effect": effect });
    server.apply("nodes", node(&json!([ours("NoSchedule"), other, ours("NoExecute")])));
    assert!(take_off(&server.client().await, &watch::Sender::default()).await);
    assert_eq!(spec(&server), json!({ "podCIDR": "10.1.0.0/24", "taints": [other] }));
    // There is none any more, and nothing is written.
    let version = server.version();
    assert!(!take_off(&server.client().await, &watch::Sender::default()).await);
    assert_eq!(server.version(), version);
}

#[tokio::test]
async fn a_node_without_taints_is_left_alone() {
    let server = Server::start();
    server.apply("nodes", json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }));
    assert!(!take_off(&server.client().await, &watch::Sender::default()).await);
}

#[tokio::test]
async fn what_fails_is_tried_again() {
    let server = Server::start();
    server.apply("nodes", node(&json!([{ "key": KEY, "effect": "NoSchedule" }])));
    // As if somebody else were always faster, and as if the server were in trouble.
    for code in [409, 503] {
        server.fault("patch", "nodes", Some(Fault::Status(code)));
        let (client, asked) = (server.client().await, server.requests());
        let taking = tokio::spawn(async move { take_off(&client, &watch::Sender::default()).await });
        eventually("two attempts", || server.requests() >= asked + 4).await;
        assert_eq!(spec(&server)["taints"].as_array().unwrap().len(), 1);
        server.fault("patch", "nodes", None);
        assert!(taking.await.unwrap());
        assert_eq!(spec(&server)["taints"], json!([]));
        server.apply("nodes", node(&json!([{ "key": KEY, "effect": "NoSchedule" }])));
    }
}

#[tokio::test]
async fn what_is_in_the_way_is_told_for_as_long_as_it_is() {
    let server = Server::start();
    let role = "deploy/overlays/startup-taint";
    for (verb, code, says) in [
        (
            "patch",
            Some(403),
            &["cannot take the taint sluice.dev/agent-not-ready off node n1 (403: ", "patch on nodes", role]
                [..],
        ),
        ("get", Some(403), &["get on nodes", role]),
        ("get", Some(500), &["(500: ", "no pods are scheduled there that do not tolerate it"]),
        ("get", None, &["(404: ", "SLUICE_NODE"]),
    ] {
        let client = server.client().await;
        let troubles = watch::Sender::new(Troubles::new());
        let told = troubles.clone();
        if code.is_some() {
            server.apply("nodes", node(&json!([{ "key": KEY, "effect": "NoSchedule" }])));
        } else {
            server.delete("nodes", "", "n1");
        }
        server.fault(verb, "nodes", code.map(Fault::Status));
        let taking = tokio::spawn(async move { take_off(&client, &troubles).await });
        let mut is_told = told.subscribe();
        let problems = is_told.wait_for(|troubles| !troubles.is_empty()).await.unwrap().clone();
        let [one] = &problems.values().map(Problem::told).collect::<Vec<_>>()[..] else {
            panic!("{problems:?}")
        };
        assert!(says.iter().all(|says| one.contains(says)), "{one}");
        server.fault(verb, "nodes", None);
        // A refusal is not tried again for a minute.
        if code == Some(500) {
            assert!(taking.await.unwrap());
            assert!(told.borrow().is_empty());
        } else {
            taking.abort();
        }
    }
}

#[tokio::test]
async fn its_role_allows_what_is_asked() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/overlays/startup-taint/role.yaml");
    let role: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap();
    let rule = json!([{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"] }]);
    assert_eq!(role[0]["rules"], rule);
    let server = Server::start();
    server.apply("nodes", node(&json!([{ "key": KEY, "effect": "NoSchedule" }])));
    take_off(&server.client().await, &watch::Sender::default()).await;
    let asked: Vec<_> = server.asked().into_iter().collect();
    assert_eq!(asked, [("get", "nodes".to_owned()), ("patch", "nodes".to_owned())]);
}
