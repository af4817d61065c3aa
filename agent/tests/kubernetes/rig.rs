//! A reader of the feed that remembers what it has lost, and the objects of a shop.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use sluice::cluster::{
    kubernetes,
    object::{Key, Kind, Name, Object},
    source::{Change, Feed},
};

use crate::server::Server;

/// Everything awaited comes within this, or never.
const LIMIT: Duration = Duration::from_secs(60);

/// The cluster as the feed tells it, batch by batch.
pub(crate) struct Reader {
    feed: Feed,
    pub(crate) objects: BTreeMap<Key, Object>,
    /// Kinds that have been told of as a whole.
    pub(crate) told: BTreeSet<Kind>,
    /// Objects that were there after one batch and not after the next.
    pub(crate) lost: Vec<Key>,
}

impl Reader {
    pub(crate) fn new(server: &Server) -> Self {
        let feed = kubernetes::open(server.client());
        Self { feed, objects: BTreeMap::new(), told: BTreeSet::new(), lost: Vec::new() }
    }

    /// Reads until the feed has told of everything once.
    pub(crate) async fn synced(server: &Server) -> Self {
        let mut reader = Self::new(server);
        reader.until("the first whole picture", |reader| reader.told.len() == Kind::ALL.len()).await;
        reader
    }

    /// Reads until it is so.
    pub(crate) async fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let reading = async {
            while !so(self) {
                let batch = self.feed.changes.recv().await.expect("the source goes on");
                self.take(batch);
            }
        };
        let read = tokio::time::timeout(LIMIT, reading).await;
        assert!(read.is_ok(), "{what} has not come; there are {:#?}", self.objects.keys());
    }

    /// Reads until a problem is told that says this; `None` for no problem at all. Gives all of them.
    pub(crate) async fn problems(&mut self, says: Option<&str>) -> Vec<String> {
        let mut health = self.feed.health.clone();
        let waiting = health.wait_for(|health| match says {
            Some(says) => health.problems.iter().any(|problem| problem.message.contains(says)),
            None => health.problems.is_empty(),
        });
        let told = tokio::time::timeout(LIMIT, waiting).await.is_ok();
        let health = self.feed.health.borrow();
        assert!(told, "{says:?} was never told: {:?}", health.problems);
        health.problems.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn heard(&self) -> tokio::time::Instant {
        self.feed.health.borrow().heard
    }

    /// What has been told in the meantime. Does not wait.
    pub(crate) fn drain(&mut self) {
        while let Ok(batch) = self.feed.changes.try_recv() {
            self.take(batch);
        }
    }

    pub(crate) fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.objects.contains_key(&key(kind, namespace, name))
    }

    fn take(&mut self, batch: Vec<Change>) {
        let before: BTreeSet<_> = self.objects.keys().cloned().collect();
        for change in batch {
            match change {
                Change::Applied(sighting) => {
                    assert_eq!(sighting.problems, []);
                    self.objects.insert(sighting.object.key(), sighting.object);
                }
                Change::Deleted(key) => {
                    self.objects.remove(&key);
                }
                Change::Restarted(kind, all) => {
                    self.told.insert(kind);
                    self.objects.retain(|key, _| key.kind != kind);
                    self.objects
                        .extend(all.into_iter().map(|sighting| (sighting.object.key(), sighting.object)));
                }
            }
        }
        self.lost.extend(before.into_iter().filter(|key| !self.objects.contains_key(key)));
    }
}

pub(crate) fn key(kind: Kind, namespace: &str, name: &str) -> Key {
    Key { kind, name: Name { namespace: namespace.into(), name: name.into() } }
}

/// Waits until it is so at the server.
pub(crate) async fn eventually(what: &str, so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, waiting).await.is_ok(), "{what} has not come");
}

pub(crate) fn namespace(name: &str, capture: Option<&str>) -> Value {
    let annotations = capture.map(|capture| json!({ "sluice.dev/capture": capture })).unwrap_or(json!({}));
    json!({ "metadata": { "name": name, "annotations": annotations } })
}

pub(crate) fn service(namespace: &str, name: &str, ip: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "clusterIP": ip, "clusterIPs": [ip], "ports": [{ "name": "http", "port": 80 }] },
    })
}

pub(crate) fn slice(namespace: &str, service: &str, pods: &[(&str, &str)]) -> Value {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|(pod, ip)| {
            json!({
                "addresses": [ip],
                "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "name": pod, "namespace": namespace, "uid": format!("{namespace}-{pod}") },
            })
        })
        .collect();
    json!({
        "metadata": {
            "name": format!("{service}-1"), "namespace": namespace,
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080 }],
    })
}

pub(crate) fn pod(namespace: &str, name: &str, ip: &str, tag: Option<&str>) -> Value {
    let labels = tag.map(|tag| json!({ "sluice.dev/tag": tag })).unwrap_or(json!({}));
    json!({
        "metadata": { "name": name, "namespace": namespace, "uid": format!("{namespace}-{name}"), "labels": labels },
        "spec": { "nodeName": "n1", "containers": [] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
    })
}

/// A namespace with a service `orders` of one pod `orders-1`.
pub(crate) fn fill(server: &Server, name: &str, capture: Option<&str>, number: u8) {
    server.apply("namespaces", namespace(name, capture));
    server.apply("services", service(name, "orders", &format!("10.96.{number}.1")));
    let ip = format!("10.1.{number}.1");
    server.apply("endpointslices", slice(name, "orders", &[("orders-1", &ip)]));
    server.apply("pods", pod(name, "orders-1", &ip, None));
}
