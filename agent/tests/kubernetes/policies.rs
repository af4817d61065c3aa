//! TrafficPolicies and TrafficLanes by way of the API server: what is watched, what is missing, and what is written back.

use std::time::Duration;

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

use crate::rig::{PATIENCE, Reader, Server, eventually, fill, namespace};

const POLICIES: &str = "trafficpolicies";
const PACE: Pace = Pace {
    lease: Duration::from_secs(2),
    patience: Duration::from_millis(400),
    settle: Duration::from_millis(20),
    spacing: Duration::from_millis(5),
    again: Duration::from_millis(300),
    refused: Duration::from_millis(300),
};

fn policy(name: &str, generation: i64, target: &str) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": generation,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": { "targetRefs": [{ "name": target }], "timeouts": { "request": "5s" } },
    })
}

/// An agent, as far as the cluster is concerned.
struct Agent {
    cluster: Cluster,
    writer: StatusWriter,
}

impl Agent {
    async fn start(server: &Server, name: &str) -> Self {
        let client = server.client().await;
        let cluster = Cluster::start(kubernetes::open_with(client.clone(), PATIENCE), Options::default());
        let writer = StatusWriter::start(
            client,
            cluster.verdicts(),
            cluster.gateway_verdicts(),
            name.to_owned(),
            cluster.troubles(),
            PACE,
        );
        cluster.synced().await.unwrap();
        Self { cluster, writer }
    }

    fn timeout(&self) -> Option<Duration> {
        let snapshot = self.cluster.current().load_full();
        let service = &snapshot.destination("10.96.1.1:80".parse().unwrap())?.service;
        service.governor.policy().timeouts.request
    }
}

fn condition(server: &Server, name: &str, kind: &str) -> Option<Value> {
    let object = server.get(POLICIES, "shop", name)?;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    conditions.into_iter().find(|condition| condition["type"] == kind)
}

/// `True/Accepted`
fn said(server: &Server, name: &str, kind: &str) -> String {
    let condition = condition(server, name, kind).unwrap_or_default();
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("status"), text("reason"))
}

fn holder(server: &Server) -> Option<String> {
    let lease = server.get("leases", "default", "sluice-status")?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

fn written(server: &Server) -> usize {
    server.count("patch", POLICIES, "shop")
}

#[tokio::test]
async fn a_cluster_without_the_definitions_is_governed_without_policies() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    for (verb, resource) in
        [("list", POLICIES), ("watch", POLICIES), ("list", "trafficlanes"), ("watch", "trafficlanes")]
    {
        server.fault(verb, resource, Some(Fault::Status(404)));
    }
    let mut reader = Reader::synced(&server).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
    let problems = reader.problems(Some("CustomResourceDefinitions")).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("trafficlanes.sluice.dev and trafficpolicies.sluice.dev (404)"),
        "{problems:?}"
    );
    // The age of what is known does not grow because of it.
    let heard = reader.heard();
    reader.hears_after(heard).await;
    // They are installed.
    server.apply(POLICIES, policy("p", 1, "orders"));
    for (verb, resource) in
        [("list", POLICIES), ("watch", POLICIES), ("list", "trafficlanes"), ("watch", "trafficlanes")]
    {
        server.fault(verb, resource, None);
    }
    reader.until("the policy", |reader| reader.has(Kind::TrafficPolicy, "shop", "p")).await;
    assert_eq!(reader.problems(None).await, [""; 0]);
    assert_eq!(reader.lost, []);
}

#[tokio::test]
async fn policies_that_may_not_be_read_do_not_hold_up_the_rest() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    for verb in ["list", "watch"] {
        server.fault(verb, POLICIES, Some(Fault::Status(403)));
    }
    let mut reader = Reader::synced(&server).await;
    assert!(reader.has(Kind::Pod, "shop", "orders-1"));
    let problems =
        reader.problems(Some("Grant the agent's service account list on trafficpolicies.sluice.dev")).await;
    assert!(problems.iter().all(|problem| problem.contains("are managed without")), "{problems:?}");
}

#[tokio::test]
async fn what_became_of_a_policy_is_written_once() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply(POLICIES, policy("p", 1, "orders"));
    let agent = Agent::start(&server, "one").await;
    assert_eq!(agent.timeout(), Some(Duration::from_secs(5)));
    eventually("its status", || said(&server, "p", "Programmed") == "True/Programmed").await;
    let first = condition(&server, "p", "Accepted").unwrap();
    assert_eq!((&first["status"], &first["observedGeneration"]), (&json!("True"), &json!(1)));
    assert_eq!(holder(&server).as_deref(), Some("one"));
    tokio::time::sleep(PACE.again * 4).await;
    assert_eq!(written(&server), 1, "what it says already is not written again");

    // Lanes have a status as well.
    server.apply("trafficlanes", json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane",
        "metadata": { "name": "gray", "namespace": "shop", "uid": "uid-gray", "generation": 1 },
        "spec": { "tag": "gray", "targetRefs": [{ "name": "nobody" }], "entry": [{ "match": { "path": { "value": "/beta" } } }] },
    }));
    eventually("the lane's status", || {
        let lane = server.get("trafficlanes", "shop", "gray").unwrap_or_default();
        lane["status"]["conditions"][1]["reason"] == "TargetNotFound"
    })
    .await;

    // The same verdict on a new generation: the time stays.
    server.apply(POLICIES, {
        let mut next = server.get(POLICIES, "shop", "p").unwrap();
        next["metadata"]["generation"] = json!(2);
        next
    });
    eventually("the next generation", || {
        condition(&server, "p", "Accepted").is_some_and(|condition| condition["observedGeneration"] == 2)
    })
    .await;
    assert_eq!(
        condition(&server, "p", "Accepted").unwrap()["lastTransitionTime"],
        first["lastTransitionTime"]
    );

    // It comes to make no sense (an old CRD has let it pass): the last good version stays, and the status says why.
    server.apply(POLICIES, {
        let mut next = server.get(POLICIES, "shop", "p").unwrap();
        next["metadata"]["generation"] = json!(3);
        next["spec"]["timeouts"]["request"] = json!("soon");
        next
    });
    eventually("that it is invalid", || said(&server, "p", "Accepted") == "False/Invalid").await;
    let message = condition(&server, "p", "Accepted").unwrap()["message"].to_string();
    assert!(
        message.contains("spec.timeouts.request") && message.contains("(generation 2) stays active"),
        "{message}"
    );
    assert_eq!(agent.timeout(), Some(Duration::from_secs(5)));
    // And something of the wrong type hides nothing else.
    let mut odd = policy("odd", 1, "orders");
    odd["spec"] = json!({ "targetRefs": "orders" });
    server.apply(POLICIES, odd);
    server.apply(POLICIES, policy("q", 1, "nobody"));
    eventually("both", || {
        said(&server, "odd", "Accepted") == "False/Invalid"
            && said(&server, "q", "Accepted") == "False/TargetNotFound"
    })
    .await;
}

#[tokio::test]
async fn all_targets_of_a_policy_are_in_its_status() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut several = policy("p", 1, "orders");
    several["spec"]["targetRefs"] = json!([{ "name": "orders" }, { "name": "stock", "sectionName": "http" }]);
    server.apply(POLICIES, several);
    let _agent = Agent::start(&server, "one").await;
    let targets = |wanted: &str| {
        let server = &server;
        let wanted = wanted.to_owned();
        move || server.get(POLICIES, "shop", "p").unwrap()["status"]["targets"] == *wanted
    };
    eventually("the targets", targets("orders, stock:http")).await;
    let mut next = server.get(POLICIES, "shop", "p").unwrap();
    next["metadata"]["generation"] = json!(2);
    next["spec"]["targetRefs"] = json!([{ "kind": "Namespace", "name": "shop" }]);
    server.apply(POLICIES, next);
    eventually("the next targets", targets("Namespace shop")).await;
}

#[tokio::test]
async fn a_policy_that_is_not_active_is_reported_once_as_an_event() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply(POLICIES, policy("a", 1, "orders"));
    server.apply(POLICIES, policy("b", 1, "orders"));
    let mut invalid = policy("c", 1, "orders");
    invalid["spec"]["timeouts"]["request"] = json!("soon");
    server.apply(POLICIES, invalid);
    let agent = Agent::start(&server, "one").await;
    let reported = |server: &Server| {
        let said = |event: Value| format!("{} {}", event["regarding"]["name"], event["reason"]);
        let mut reported: Vec<_> = server.all("events", "shop").into_iter().map(said).collect();
        reported.sort();
        reported
    };
    let both = [r#""b" "Conflicted""#, r#""c" "Invalid""#];
    eventually("both are reported", || reported(&server) == both).await;
    let event =
        server.all("events", "shop").into_iter().find(|event| event["reason"] == "Conflicted").unwrap();
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["regarding"]["uid"], "uid-b");
    assert_eq!(event["reportingInstance"], "one");
    assert!(event["note"].as_str().unwrap().contains("TrafficPolicy shop/a"), "{event}");
    // Somebody takes the status away: it is written again, also by the next holder, and not reported again.
    for name in ["b", "c"] {
        let before = written(&server);
        let mut bare = server.get(POLICIES, "shop", name).unwrap();
        bare.as_object_mut().unwrap().remove("status");
        server.apply(POLICIES, bare);
        eventually("its status", || {
            written(&server) > before && !said(&server, name, "Accepted").starts_with('/')
        })
        .await;
    }
    drop(agent);
    let mut bare = server.get(POLICIES, "shop", "b").unwrap();
    bare.as_object_mut().unwrap().remove("status");
    server.apply(POLICIES, bare);
    let _other = Agent::start(&server, "other").await;
    eventually("the other writes", || said(&server, "b", "Accepted") == "False/Conflicted").await;
    assert_eq!(reported(&server), both);
    assert_eq!(server.count("create", "events", "shop"), 2);
}

#[tokio::test]
async fn where_events_are_forbidden_the_status_is_written_all_the_same() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.fault("create", "events", Some(Fault::Status(403)));
    for name in ["a", "b", "c"] {
        server.apply(POLICIES, policy(name, 1, "orders"));
    }
    let _agent = Agent::start(&server, "one").await;
    eventually("the conditions", || {
        ["b", "c"].iter().all(|name| said(&server, name, "Accepted") == "False/Conflicted")
    })
    .await;
    assert_eq!(server.all("events", "shop"), [Value::Null; 0]);
}

#[tokio::test]
async fn a_policy_in_a_namespace_that_is_not_enrolled_says_so_until_it_is() {
    let server = Server::start();
    fill(&server, "shop", None, 1);
    server.apply(POLICIES, policy("p", 1, "orders"));
    let agent = Agent::start(&server, "one").await;
    eventually("that it is not enrolled", || said(&server, "p", "Accepted") == "False/NamespaceNotEnrolled")
        .await;
    assert_eq!(said(&server, "p", "Programmed"), "False/NamespaceNotEnrolled");
    let message = condition(&server, "p", "Accepted").unwrap()["message"].to_string();
    assert!(message.contains("kubectl annotate namespace shop sluice.dev/capture=enabled"), "{message}");
    // One that comes later, too.
    server.apply(POLICIES, policy("q", 1, "orders"));
    eventually("that of the next", || said(&server, "q", "Accepted") == "False/NamespaceNotEnrolled").await;
    // For that, nothing but what is watched in the whole cluster is watched there.
    assert_eq!(agent.timeout(), None);
    let open = server.open();
    assert!(open.iter().all(|(_, namespace)| namespace.is_empty()) && open.len() == 8, "{open:?}");

    server.apply("namespaces", namespace("shop", Some("enabled")));
    eventually("that it is active", || said(&server, "p", "Programmed") == "True/Programmed").await;
    assert_eq!(agent.timeout(), Some(Duration::from_secs(5)));
    eventually("that the other is not", || said(&server, "q", "Accepted") == "False/Conflicted").await;
    server.apply("namespaces", namespace("shop", None));
    eventually("that it is no more", || said(&server, "p", "Accepted") == "False/NamespaceNotEnrolled").await;
    assert_eq!(agent.timeout(), None);
}

#[tokio::test]
async fn one_agent_writes_and_another_takes_over_when_it_is_gone() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let one = Agent::start(&server, "one").await;
    let two = Agent::start(&server, "two").await;
    server.apply(POLICIES, policy("p", 1, "orders"));
    eventually("its status", || said(&server, "p", "Accepted") == "True/Accepted").await;
    let first = holder(&server).unwrap();
    let (holding, other, heir) = if first == "one" { (one, two, "two") } else { (two, one, "one") };
    for generation in 2..5 {
        server.apply(POLICIES, policy("p", generation, "orders"));
        eventually("the next", || said(&server, "p", "Accepted") == "True/Accepted").await;
        assert_eq!(holder(&server).as_deref(), Some(&*first));
    }
    drop(holding.writer);
    server.apply(POLICIES, policy("p", 5, "nobody"));
    eventually("the heir", || said(&server, "p", "Accepted") == "False/TargetNotFound").await;
    assert_eq!(holder(&server).as_deref(), Some(heir));
    drop(other);
}

#[tokio::test]
async fn whoever_loses_the_lease_writes_no_more() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply(POLICIES, policy("p", 1, "orders"));
    let _agent = Agent::start(&server, "one").await;
    eventually("its status", || said(&server, "p", "Accepted") == "True/Accepted").await;
    // Somebody else has it, and renews it all the while.
    let take = |number: u32| {
        let mut lease = server.get("leases", "default", "sluice-status").unwrap();
        lease["spec"]["holderIdentity"] = json!("another");
        lease["spec"]["leaseTransitions"] = json!(number);
        server.apply("leases", lease);
    };
    take(1);
    // What it held is over by its own clock.
    tokio::time::sleep(PACE.lease).await;
    let before = written(&server);
    server.apply(POLICIES, policy("p", 2, "nobody"));
    for number in 2..12 {
        tokio::time::sleep(PACE.lease / 4).await;
        take(number);
    }
    assert_eq!(written(&server), before);
    assert_eq!(holder(&server).as_deref(), Some("another"));
    // It is let go of.
    eventually("its return", || said(&server, "p", "Accepted") == "False/TargetNotFound").await;
    assert_eq!(holder(&server).as_deref(), Some("one"));
}

#[tokio::test]
async fn nobody_is_fought_over_a_status() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply(POLICIES, policy("p", 1, "orders"));
    let _agent = Agent::start(&server, "one").await;
    eventually("its status", || said(&server, "p", "Accepted") == "True/Accepted").await;
    // Overwritten each time at once: what is written again is written ever more seldom.
    let until = tokio::time::Instant::now() + PACE.again * 10;
    let mut overwritten = 0;
    while tokio::time::Instant::now() < until {
        if said(&server, "p", "Accepted") == "True/Accepted" {
            server.apply(POLICIES, policy("p", 1, "orders"));
            overwritten += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!((2..=5).contains(&overwritten), "{overwritten}");
}

#[tokio::test]
async fn statuses_that_may_not_be_written_change_nothing_else() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.fault("patch", POLICIES, Some(Fault::Status(403)));
    let agent = Agent::start(&server, "one").await;
    server.apply(POLICIES, policy("p", 1, "orders"));
    eventually("the policy", || agent.timeout() == Some(Duration::from_secs(5))).await;
    eventually("the lease", || holder(&server).is_some()).await;
    let requests = server.requests();
    tokio::time::sleep(PACE.again * 5).await;
    assert!(server.requests() - requests <= 10, "it asks again and again");
    assert_eq!(written(&server), 0);
}
