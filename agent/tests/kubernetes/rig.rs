//! A reader of the feed that remembers what it has lost, and the objects of a shop.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use sluice::cluster::{
    kubernetes::{self, Patience},
    object::{Key, Kind, Name, Object},
    problem::Problem,
    source::{Change, Feed, WatchEnd},
};
use sluice_tests::api_server::ApiServer;
use tempfile::TempDir;

/// Everything awaited comes within this, or never.
const LIMIT: Duration = Duration::from_secs(60);
/// The token that the server's clients show.
pub(crate) const TOKEN: &str = "a-token";
/// Short enough to be waited for, and longer than this machine ever takes.
pub(crate) const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(2),
    quiet: Duration::from_secs(2),
    spread: Duration::from_millis(100),
    hold: Duration::from_secs(2),
};

/// The double, and what its clients need to find it.
pub(crate) struct Server {
    api: ApiServer,
    directory: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let mut server = Self::away();
        server.come().unwrap();
        server
    }

    pub(crate) fn away() -> Self {
        let server = Self { api: ApiServer::away().unwrap(), directory: tempfile::tempdir().unwrap() };
        server.set_tokens(Some(&[TOKEN]));
        server.kubeconfig(server.directory(), TOKEN).unwrap();
        server
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) async fn client(&self) -> Client {
        let path = self.directory().join("kubeconfig");
        kubernetes::client_of(move || find(path.clone()), PATIENCE).await.unwrap()
    }

    /// A watch each on Namespaces, the two of Sluice's own kinds, the four of Gateway API, and the three kinds of one opted-in
    /// namespace.
    pub(crate) async fn watched(&self) {
        eventually("the watches", || self.open().len() == 11).await;
    }
}

impl Deref for Server {
    type Target = ApiServer;

    fn deref(&self) -> &ApiServer {
        &self.api
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut ApiServer {
        &mut self.api
    }
}

async fn find(path: PathBuf) -> Result<Config, kubernetes::Error> {
    let unusable = |error: &dyn std::error::Error| kubernetes::Error::NoCluster(error.to_string());
    let kubeconfig = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(|e| unusable(&e))
}

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
    pub(crate) async fn new(server: &Server) -> Self {
        Self::patient(server, PATIENCE).await
    }

    pub(crate) async fn patient(server: &Server, patience: Patience) -> Self {
        let feed = kubernetes::open_with(server.client().await, patience);
        Self { feed, objects: BTreeMap::new(), told: BTreeSet::new(), lost: Vec::new() }
    }

    /// Reads until the feed has told of everything once.
    pub(crate) async fn synced(server: &Server) -> Self {
        let mut reader = Self::new(server).await;
        reader.until("the first whole picture", Self::is_synced).await;
        reader
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.told.len() == Kind::ALL.len()
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

    /// Reads until a new Service of that name is told of, and nothing has been lost.
    pub(crate) async fn hears_of(&mut self, server: &Server, name: &str, number: u8) {
        self.hears_of_in(server, "shop", name, &format!("10.96.1.{number}")).await;
    }

    pub(crate) async fn hears_of_in(&mut self, server: &Server, namespace: &str, name: &str, ip: &str) {
        server.apply("services", service(namespace, name, ip));
        self.until(name, |reader| reader.has(Kind::Service, namespace, name)).await;
        assert_eq!(self.lost, []);
    }

    /// Reads until a problem is told that says this; `None` for no problem at all. Gives all of them.
    pub(crate) async fn problems(&mut self, says: Option<&str>) -> Vec<String> {
        let mut health = self.feed.health.clone();
        let waiting = health.wait_for(|health| match says {
            Some(says) => health.problems.iter().any(|problem| problem.told().contains(says)),
            None => health.problems.is_empty(),
        });
        let told = tokio::time::timeout(LIMIT, waiting).await.is_ok();
        let health = self.feed.health.borrow();
        assert!(told, "{says:?} was never told: {:?}", health.problems);
        health.problems.iter().map(Problem::told).collect()
    }

    /// Enrolled namespaces that have never been read, and whether that lasts.
    pub(crate) fn unread(&self) -> Vec<(String, bool)> {
        let health = self.feed.health.borrow();
        health.unread.iter().map(|unread| (unread.namespace.to_string(), unread.refused)).collect()
    }

    /// When the source last knew that what it has told is so.
    pub(crate) fn heard(&self) -> tokio::time::Instant {
        self.feed.health.borrow().heard
    }

    /// Waits until the source has heard something later than this.
    pub(crate) async fn hears_after(&self, then: tokio::time::Instant) {
        eventually("news of the server", || self.heard() > then).await;
    }

    /// How often watches on the resource have ended so.
    pub(crate) fn ends(&self, resource: &str, end: WatchEnd) -> u64 {
        let health = self.feed.health.borrow();
        health.watches.get(resource).and_then(|watches| watches.ends.get(&end)).copied().unwrap_or_default()
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

/// Waits until it is so.
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
