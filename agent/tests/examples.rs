//! The manifests in `deploy/examples` are what users start from: the agent must read them without complaint.

use std::{path::Path, time::Duration};

use sluice::cluster::{Cluster, builder, manifests};

#[tokio::test]
async fn the_examples_are_read_without_complaint() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/shop");
    let feed = manifests::open(&directory).unwrap();
    let cluster = Cluster::start(feed, builder::Options::default());
    let snapshot = tokio::time::timeout(Duration::from_secs(30), cluster.synced()).await.unwrap().unwrap();
    let status = cluster.status();
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    let orders = &snapshot.destinations[&"10.96.7.3:8080".parse().unwrap()].service;
    assert_eq!(orders.to_string(), "orders.shop:8080");
    assert_eq!((orders.baseline.len(), orders.lanes.len()), (1, 1));
    assert!(snapshot.pods.values().all(|pod| pod.capture));
}
