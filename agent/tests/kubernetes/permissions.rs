//! What the agent asks of the API server, against what its roles in `deploy/` allow: nothing is missing there, and
//! nothing is allowed that it does not ask for.

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_json::{Value, json};
use sluice::cluster::{
    Cluster,
    builder::Options,
    kubernetes::{
        self,
        status::{Pace, StatusWriter},
    },
};

use crate::{
    rig::{PATIENCE, Reader, Server, fill},
    zone,
};

/// Verb and resource of every rule.
fn granted(kind: &str) -> BTreeSet<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/rbac.yaml");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap();
    let role = documents.iter().find(|object| object["kind"] == kind).unwrap();
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                let full = if group.is_empty() { resource } else { format!("{resource}.{group}") };
                granted.extend(strings(&rule["verbs"]).into_iter().map(|verb| (verb, full.clone())));
            }
        }
    }
    granted
}

/// An object of the agent's own kinds.
fn own(kind: &str, generation: i64, spec: &Value) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {
            "name": "a", "namespace": "shop", "uid": kind, "generation": generation,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
    })
}

fn asked(server: &Server) -> BTreeSet<(String, String)> {
    server.asked().into_iter().map(|(verb, resource)| (verb.to_owned(), resource)).collect()
}

#[tokio::test]
async fn the_roles_allow_what_is_asked_and_no_more() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply("nodes", json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }));
    server.apply("trafficlanes", own("TrafficLane", 1, &json!({ "tag": "gray" })));
    let client = server.client().await;
    zone::of(&server, "n1").await;
    // Servers that have streaming lists are asked to watch only, others to list, too.
    server.set_streaming(false);
    drop(Reader::synced(&server).await);
    server.set_streaming(true);
    let cluster = Cluster::start(kubernetes::open_with(client.clone(), PATIENCE), Options::default());
    let millis = Duration::from_millis;
    let pace = Pace {
        lease: millis(1000),
        patience: millis(10),
        settle: millis(5),
        spacing: millis(5),
        again: millis(50),
        refused: millis(50),
    };
    let _writer = StatusWriter::start(
        client,
        cluster.verdicts(),
        cluster.gateway_verdicts(),
        "one".to_owned(),
        cluster.troubles(),
        pace,
    );
    cluster.synced().await.unwrap();
    let granted: BTreeSet<_> = granted("ClusterRole").into_iter().chain(granted("Role")).collect();
    // There is always something new to say, so that the right to say it is renewed.
    let mut generation = 0;
    let saying = async {
        while !granted.is_subset(&asked(&server)) {
            generation += 1;
            let spec = json!({ "targetRefs": [{ "name": "orders" }], "timeouts": { "request": "5s" } });
            server.apply("trafficpolicies", own("TrafficPolicy", generation, &spec));
            let spec = json!({ "targetRefs": [{ "name": "orders" }], "rules": [{ "name": "all" }] });
            server.apply("accesspolicies", own("AccessPolicy", generation, &spec));
            // One that is not active is reported.
            server.apply("trafficlanes", own("TrafficLane", generation, &json!({ "tag": 7 })));
            for (resource, kind) in [("httproutes", "HTTPRoute"), ("grpcroutes", "GRPCRoute")] {
                let parent = json!({ "group": "", "kind": "Service", "name": "orders" });
                server.apply(resource, own(kind, generation, &json!({ "parentRefs": [parent] })));
            }
            let mut mesh = own("XMesh", generation, &json!({ "controllerName": "sluice.dev/agent" }));
            mesh["metadata"].as_object_mut().unwrap().remove("namespace");
            server.apply("xmeshes", mesh);
            // Faster than a slow machine writes them all: each has its turn nevertheless.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let all = tokio::time::timeout(Duration::from_secs(60), saying).await.is_ok();
    let asked = asked(&server);
    assert!(all, "allowed, and never asked for: {:?}", granted.difference(&asked));
    assert_eq!(asked, granted, "asked for, and not allowed");
    assert_eq!(
        server.agents().into_iter().collect::<Vec<_>>(),
        [concat!("sluice/", env!("CARGO_PKG_VERSION"))]
    );
}
