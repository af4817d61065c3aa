//! Routes of Gateway API by way of the API server: found live, missing, and what is written back.

use std::time::Duration;

use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice::cluster::{
    Cluster,
    builder::Options,
    kubernetes::{
        self,
        status::{Pace, StatusWriter},
    },
    object::Kind,
};
use sluice_tests::api_server::Fault;

use crate::rig::{PATIENCE, Reader, Server, eventually, fill, namespace, service};

const KINDS: [&str; 4] = ["httproutes", "grpcroutes", "referencegrants", "xmeshes"];

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
    let wanted = "Grant the agent's service account list on httproutes.gateway.networking.k8s.io";
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

const PACE: Pace = Pace {
    lease: Duration::from_secs(2),
    patience: Duration::from_millis(400),
    settle: Duration::from_millis(20),
    spacing: Duration::from_millis(5),
    again: Duration::from_millis(300),
    refused: Duration::from_millis(300),
};
const OTHER: &str = "example.com/gateway";

/// An agent that writes statuses, as far as the cluster is concerned.
async fn agent(server: &Server, name: &str) -> (Cluster, StatusWriter) {
    let cluster = cluster(server).await;
    let (verdicts, of_gateway) = (cluster.verdicts(), cluster.gateway_verdicts());
    let (client, troubles) = (server.client().await, cluster.troubles());
    let writer = StatusWriter::start(client, verdicts, of_gateway, name.to_owned(), troubles, PACE);
    (cluster, writer)
}

/// What a controller says in a route's status: the entries as `Service orders: Accepted True/Accepted 1, ...`.
fn said(server: &Server, namespace: &str, name: &str, controller: &str) -> Vec<String> {
    let object = server.get("httproutes", namespace, name).unwrap_or_default();
    let entries = object["status"]["parents"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry = |entry: &Value| {
        let conditions = entry["conditions"].as_array().cloned().unwrap_or_default();
        let conditions = conditions.iter().map(|one| {
            let (kind, status, reason) = (text(&one["type"]), text(&one["status"]), text(&one["reason"]));
            format!("{kind} {status}/{reason} {}", one["observedGeneration"])
        });
        let parent = &entry["parentRef"];
        format!(
            "{} {}: {}",
            text(&parent["kind"]),
            text(&parent["name"]),
            conditions.collect::<Vec<_>>().join(", ")
        )
    };
    entries.iter().filter(|one| one["controllerName"] == controller).map(entry).collect()
}

fn message(server: &Server, name: &str, condition: usize) -> String {
    let object = server.get("httproutes", "shop", name).unwrap_or_default();
    let entries = object["status"]["parents"].as_array().cloned().unwrap_or_default();
    let ours = entries.iter().find(|entry| entry["controllerName"] == "sluice.dev/agent");
    ours.map(|entry| entry["conditions"][condition]["message"].to_string()).unwrap_or_default()
}

fn good(generation: i64) -> String {
    format!(
        "Service orders: Accepted True/Accepted {generation}, ResolvedRefs True/ResolvedRefs {generation}"
    )
}

#[tokio::test]
async fn what_became_of_a_route_stands_in_its_status() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let orders = json!({ "name": "orders", "port": 80 });
    let mut split = route("shop", "split", &orders);
    // A Gateway's controller has said something of its parent, and Sluice does not touch it.
    let gateway = json!({ "name": "public" });
    split["spec"]["parentRefs"].as_array_mut().unwrap().push(gateway.clone());
    let entry = json!({
        "parentRef": gateway, "controllerName": OTHER,
        "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    split["status"] = json!({ "parents": [entry] });
    server.apply("httproutes", split);
    let (_cluster, _writer) = agent(&server, "one").await;
    let is = |name: &str, wanted: &str| said(&server, "shop", name, "sluice.dev/agent") == [wanted];
    eventually("its status", || is("split", &good(1))).await;
    let there = server.get("httproutes", "shop", "split").unwrap();
    assert_eq!(there["status"]["parents"][0], entry);
    assert_eq!(there["status"]["parents"][1]["parentRef"], there["spec"]["parentRefs"][0]);
    let written = || server.count("patch", "httproutes", "shop");
    assert_eq!(written(), 1);
    tokio::time::sleep(PACE.again * 4).await;
    assert_eq!(written(), 1, "what it says already is not written again");

    for (name, spec, wanted) in [
        (
            "missing",
            json!([{ "backendRefs": [{ "name": "nobody", "port": 80 }] }]),
            "Service orders: Accepted True/Accepted 1, ResolvedRefs False/BackendNotFound 1",
        ),
        (
            "forbidden",
            json!([{ "backendRefs": [{ "name": "orders", "namespace": "bank", "port": 80 }] }]),
            "Service orders: Accepted True/Accepted 1, ResolvedRefs False/RefNotPermitted 1",
        ),
        (
            "kind",
            json!([{ "backendRefs": [{ "group": "example.com", "kind": "Other", "name": "x", "port": 80 }] }]),
            "Service orders: Accepted True/Accepted 1, ResolvedRefs False/InvalidKind 1",
        ),
        (
            "unsupported",
            json!([{ "filters": [{ "type": "ExtensionRef", "extensionRef": { "group": "a.b", "kind": "C", "name": "d" } }] }]),
            "Service orders: Accepted False/UnsupportedValue 1, ResolvedRefs Unknown/Pending 1",
        ),
    ] {
        let mut object = route("shop", name, &orders);
        object["spec"]["rules"] = spec;
        server.apply("httproutes", object);
        eventually(name, || is(name, wanted)).await;
    }
    let why = message(&server, "unsupported", 0);
    assert!(why.contains("spec.rules[0].filters[0]") && why.contains("ExtensionRef"), "{why}");
    let why = message(&server, "missing", 1);
    assert!(why.contains("Service nobody.shop:80"), "{why}");
    let mut lost = route("shop", "lost", &orders);
    lost["spec"]["parentRefs"][0]["name"] = json!("nobody");
    server.apply("httproutes", lost);
    let wanted = "Service nobody: Accepted False/NoMatchingParent 1, ResolvedRefs True/ResolvedRefs 1";
    eventually("a parent that is not there", || is("lost", wanted)).await;

    // Nothing is said in Sluice's name where it has nothing to say any more.
    server.apply("namespaces", namespace("shop", None));
    eventually("that it says nothing", || said(&server, "shop", "split", "sluice.dev/agent").is_empty())
        .await;
    assert_eq!(server.get("httproutes", "shop", "split").unwrap()["status"]["parents"], json!([entry]));
}

/// Two controllers that write into the same list, again and again: no word of either is lost.
#[tokio::test]
async fn two_controllers_write_into_one_status() {
    const ROUNDS: i64 = 40;
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply("httproutes", route("shop", "split", &json!({ "name": "orders", "port": 80 })));
    let (_cluster, _writer) = agent(&server, "one").await;
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
    let resource = ApiResource::from_gvk_with_plural(&kind, "httproutes");
    let api: Api<DynamicObject> = Api::namespaced_with(server.client().await, "shop", &resource);
    for round in 1..=ROUNDS {
        // Somebody changes the route, which gives Sluice something to write ...
        let change = json!({ "metadata": { "generation": round } });
        api.patch("split", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
        // ... while the other controller writes, as controllers do.
        loop {
            let mut there = api.get("split").await.unwrap();
            let parents = there.data["status"]["parents"].as_array().cloned().unwrap_or_default();
            let mut parents: Vec<_> =
                parents.into_iter().filter(|one| one["controllerName"] != OTHER).collect();
            parents.push(json!({
                "parentRef": { "name": "public" }, "controllerName": OTHER,
                "conditions": [{ "type": "Accepted", "status": "True", "reason": "Accepted", "observedGeneration": round }],
            }));
            there.data["status"] = json!({ "parents": parents });
            match api.replace_status("split", &PostParams::default(), &there).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => panic!("{error}"),
            }
        }
        let other = format!(" public: Accepted True/Accepted {round}");
        eventually("both", || {
            said(&server, "shop", "split", OTHER) == [other.as_str()]
                && said(&server, "shop", "split", "sluice.dev/agent") == [good(round)]
        })
        .await;
    }
}

#[tokio::test]
async fn a_mesh_says_what_it_supports() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mesh = |name: &str, controller: &str| {
        json!({
            "apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XMesh",
            "metadata": { "name": name, "uid": format!("uid-{name}"), "generation": 1 },
            "spec": { "controllerName": controller },
        })
    };
    server.apply("xmeshes", mesh("sluice", "sluice.dev/agent"));
    server.apply("xmeshes", mesh("other", "example.com/mesh"));
    let mut with_parameters = mesh("parameters", "sluice.dev/agent");
    with_parameters["spec"]["parametersRef"] = json!({ "group": "", "kind": "ConfigMap", "name": "x" });
    server.apply("xmeshes", with_parameters);
    let (_cluster, _writer) = agent(&server, "one").await;
    let accepted = |name: &str| {
        let object = server.get("xmeshes", "", name).unwrap_or_default();
        object["status"]["conditions"][0]["reason"].as_str().unwrap_or_default().to_owned()
    };
    eventually("both", || accepted("sluice") == "Accepted" && accepted("parameters") == "InvalidParameters")
        .await;
    let features = server.get("xmeshes", "", "sluice").unwrap()["status"]["supportedFeatures"].clone();
    let features: Vec<_> =
        features.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(features.is_sorted() && features.contains(&"MeshConsumerRoute"), "{features:?}");
    let written = server.count("patch", "xmeshes", "");
    tokio::time::sleep(PACE.again * 4).await;
    assert_eq!(server.count("patch", "xmeshes", ""), written);
    assert_eq!(server.get("xmeshes", "", "other").unwrap().get("status"), None);
}
