//! What the agent may not write: each is told once, with what to do, and no longer than it is so.

use std::time::Duration;

use serde_json::{Value, json};
use sluice::cluster::{
    Cluster,
    builder::Options,
    kubernetes::{
        self,
        status::{Pace, StatusWriter},
    },
    problem::Problem,
};
use sluice_tests::api_server::Fault;

use crate::rig::{PATIENCE, Server, eventually, fill};

const POLICIES: &str = "trafficpolicies";
const PACE: Pace = Pace {
    lease: Duration::from_secs(2),
    patience: Duration::from_millis(50),
    settle: Duration::from_millis(5),
    spacing: Duration::from_millis(5),
    again: Duration::from_millis(50),
    refused: Duration::from_millis(50),
};

/// An agent that writes statuses.
struct Agent {
    cluster: Cluster,
    _writer: StatusWriter,
}

impl Agent {
    async fn start(server: &Server) -> Self {
        let client = server.client().await;
        let cluster = Cluster::start(kubernetes::open_with(client.clone(), PATIENCE), Options::default());
        let (verdicts, of_gateway) = (cluster.verdicts(), cluster.gateway_verdicts());
        let writer =
            StatusWriter::start(client, verdicts, of_gateway, "one".to_owned(), cluster.troubles(), PACE);
        cluster.synced().await.expect("it is told of");
        Self { cluster, _writer: writer }
    }

    fn troubles(&self) -> Vec<String> {
        self.cluster.status().troubles.iter().map(Problem::told).collect()
    }

    /// Waits for one trouble, and for no other.
    async fn trouble(&self) -> String {
        eventually("a trouble", || !self.troubles().is_empty()).await;
        let troubles = self.troubles();
        assert_eq!(troubles.len(), 1, "{troubles:#?}");
        troubles[0].clone()
    }

    async fn has_none(&self) {
        eventually("the end of it", || self.troubles().is_empty()).await;
    }
}

/// A shop with a policy for a Service of that name.
fn shop(service: &str) -> Server {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply(POLICIES, policy(1, service));
    server
}

fn policy(generation: i64, service: &str) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": { "name": "p", "namespace": "shop", "uid": "uid-p", "generation": generation },
        "spec": { "targetRefs": [{ "name": service }], "timeouts": { "request": "5s" } },
    })
}

fn is_written(server: &Server) -> bool {
    let conditions = server.get(POLICIES, "shop", "p").unwrap_or_default()["status"]["conditions"].clone();
    conditions.as_array().is_some_and(|conditions| conditions.len() == 2)
}

#[tokio::test]
async fn a_lease_that_may_not_be_taken_is_named_until_it_may_be() {
    for (verb, code, remedy) in [
        ("get", 403, "get on leases.coordination.k8s.io: apply the Role in deploy/base/rbac.yaml"),
        ("create", 403, "create on leases.coordination.k8s.io"),
        ("get", 401, "Check that the agent's service account"),
        ("create", 500, "If it names a webhook, look at that"),
    ] {
        let server = shop("orders");
        server.fault(verb, "leases", Some(Fault::Status(code)));
        let agent = Agent::start(&server).await;
        let told = agent.trouble().await;
        assert!(told.starts_with(&format!("cannot {verb} leases.coordination.k8s.io ({code}: ")), "{told}");
        assert!(told.contains("active all the same") && told.contains(remedy), "{told}");
        server.fault(verb, "leases", None);
        eventually("its status", || is_written(&server)).await;
        agent.has_none().await;
    }
}

#[tokio::test]
async fn a_status_that_may_not_be_written_is_named_until_it_may_be() {
    let server = shop("orders");
    server.fault("patch", POLICIES, Some(Fault::Status(403)));
    let agent = Agent::start(&server).await;
    let told = agent.trouble().await;
    assert!(told.starts_with("cannot patch trafficpolicies.sluice.dev/status (403: "), "{told}");
    assert!(told.contains("the ClusterRole in deploy/base/rbac.yaml"), "{told}");
    // It is the same trouble, however often it is tried.
    let asked = server.requests();
    eventually("more attempts", || server.requests() > asked + 9).await;
    assert_eq!(agent.trouble().await, told);
    server.fault("patch", POLICIES, None);
    eventually("its status", || is_written(&server)).await;
    agent.has_none().await;
}

#[tokio::test]
async fn where_there_is_nothing_to_write_nothing_is_in_the_way_of_it() {
    for (verb, resource) in [("get", "leases"), ("patch", POLICIES)] {
        let server = shop("orders");
        server.fault(verb, resource, Some(Fault::Status(403)));
        let agent = Agent::start(&server).await;
        agent.trouble().await;
        server.delete(POLICIES, "shop", "p");
        agent.has_none().await;
    }
}

#[tokio::test]
async fn an_event_that_may_not_be_created_is_named_until_it_may_be_or_there_is_none() {
    for is_granted in [true, false] {
        let server = shop("nobody");
        server.fault("create", "events", Some(Fault::Status(403)));
        let agent = Agent::start(&server).await;
        let told = agent.trouble().await;
        assert!(told.starts_with("cannot create events.events.k8s.io (403: "), "{told}");
        assert!(told.contains("are reported in their status only"), "{told}");
        assert!(is_written(&server));
        if is_granted {
            server.fault("create", "events", None);
            eventually("the event", || !server.all("events", "shop").is_empty()).await;
        } else {
            server.apply(POLICIES, policy(2, "orders"));
        }
        agent.has_none().await;
    }
}

#[tokio::test]
async fn what_passes_by_itself_is_no_trouble() {
    for code in [429, 503] {
        let server = shop("orders");
        server.fault("get", "leases", Some(Fault::Status(code)));
        let agent = Agent::start(&server).await;
        let asked = server.requests();
        eventually("attempts", || server.requests() > asked + 9).await;
        assert_eq!(agent.troubles(), [""; 0], "{code}");
        server.fault("get", "leases", None);
        eventually("its status", || is_written(&server)).await;
    }
}
