//! Routes of Gateway API by way of the API server: found live, missing, and what is written back.

use serde_json::{Value, json};
use sluice::cluster::{
    Cluster,
    builder::Options,
    kubernetes::{self},
    object::Kind,
};
use sluice_tests::api_server::Fault;

use crate::rig::{PATIENCE, Reader, Server, eventually, fill, namespace, service};

const KINDS: [&str; 3] = ["httproutes", "grpcroutes", "referencegrants"];

/// Gateway API is not installed, or is again.
fn install(server: &Server, installed: bool) {
    for resource in KINDS {
        for verb in ["list", "watch"] {
            server.fault(verb, resource, (!installed).then_some(Fault::Status(404)));
        }
    }
}

/// An HTTPRoute of the Service `orders` in `shop`, to this backend.
fn route(namespace: &str, name: &str, backend: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {
            "name": name, "namespace": namespace, "uid": format!("uid-{namespace}-{name}"), "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "orders", "namespace": "shop", "port": 80 }],
            "rules": [{ "backendRefs": [backend] }],
        },
    })
}

/// The Services to which clients in `namespace` are sent that call `orders` in `shop`, and the route that says so.
fn sent(cluster: &Cluster, namespace: &str) -> Option<(String, Vec<String>)> {
    let snapshot = cluster.current().load_full();
    let address = "10.96.1.1:80".parse().unwrap();
    let routed = snapshot.routed(address, snapshot.destination(address)?)?;
    let group = routed.of(namespace)?;
    let route = group.routes.rules().next()?.route.to_string();
    Some((route, group.backends.keys().map(ToString::to_string).collect()))
}

async fn cluster(server: &Server) -> Cluster {
    let cluster = Cluster::start(kubernetes::open_with(server.client().await, PATIENCE), Options::default());
    cluster.synced().await.unwrap();
    cluster
}

#[tokio::test]
async fn a_cluster_without_gateway_api_misses_nothing_until_it_has_it() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    install(&server, false);
    let mut reader = Reader::synced(&server).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
    // It is nothing that anybody has to do something about, and the age of what is known does not grow because of it.
    let heard = reader.heard();
    reader.hears_after(heard).await;
    assert_eq!(reader.problems(None).await, [""; 0]);
    server.apply("httproutes", route("shop", "split", &json!({ "name": "orders", "port": 80 })));
    install(&server, true);
    reader.until("the route", |reader| reader.has(Kind::HttpRoute, "shop", "split")).await;
    assert_eq!(reader.lost, []);
}

#[tokio::test]
async fn a_missing_permission_is_named() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    for verb in ["list", "watch"] {
        server.fault(verb, "httproutes", Some(Fault::Status(403)));
    }
    let mut reader = Reader::synced(&server).await;
    let wanted = "grant the agent's service account list on httproutes.gateway.networking.k8s.io";
    let problems = reader.problems(Some(wanted)).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[tokio::test]
async fn routes_and_grants_hold_as_they_come_and_go() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    fill(&server, "bank", Some("enabled"), 2);
    server.apply("services", service("shop", "canary", "10.96.1.2"));
    let cluster = cluster(&server).await;
    assert_eq!(sent(&cluster, "shop"), None);

    server.apply("httproutes", route("shop", "split", &json!({ "name": "canary", "port": 80 })));
    let is = |namespace: &str, route: &str, backends: &[&str]| {
        let backends = backends.iter().map(|name| (*name).to_owned()).collect();
        sent(&cluster, namespace) == Some((route.to_owned(), backends))
    };
    eventually("the route", || is("shop", "shop/split", &["canary.shop:80"])).await;
    // A client's namespace has its own.
    server.apply("httproutes", route("bank", "own", &json!({ "name": "orders", "port": 80 })));
    eventually("the consumer's route", || is("bank", "bank/own", &["orders.bank:80"])).await;
    assert!(is("shop", "shop/split", &["canary.shop:80"]));

    // Another namespace has to allow it.
    let far = json!({ "name": "orders", "namespace": "bank", "port": 80 });
    server.apply("httproutes", route("shop", "split", &far));
    eventually("that it is forbidden", || is("shop", "shop/split", &[])).await;
    server.apply(
        "referencegrants",
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
            "metadata": { "name": "from-shop", "namespace": "bank" },
            "spec": {
                "from": [{ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop" }],
                "to": [{ "group": "", "kind": "Service" }],
            },
        }),
    );
    eventually("that it is allowed", || is("shop", "shop/split", &["orders.bank:80"])).await;

    // The backend's namespace leaves, and is back.
    server.apply("namespaces", namespace("bank", None));
    eventually("that it is gone", || is("shop", "shop/split", &[])).await;
    server.apply("namespaces", namespace("bank", Some("enabled")));
    eventually("that it is back", || is("shop", "shop/split", &["orders.bank:80"])).await;

    assert!(server.delete("referencegrants", "bank", "from-shop"));
    eventually("that it is forbidden again", || is("shop", "shop/split", &[])).await;
    assert!(server.delete("httproutes", "shop", "split"));
    eventually("that there is none", || sent(&cluster, "shop").is_none()).await;
}
