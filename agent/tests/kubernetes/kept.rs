//! An agent that is started anew while the API server is away.

use std::time::Duration;

use sluice::cluster::{Cluster, Start, builder::Options, kept::StateFile, kubernetes};

use crate::rig::{PATIENCE, Server, eventually, fill, service};

async fn start(server: &Server) -> Cluster {
    let file = StateFile { path: server.directory().join("state.gz"), node: Some("n1".into()) };
    let feed = kubernetes::open_with(server.client().await, PATIENCE);
    Cluster::start_with(feed, Options::default(), Start { state: Some(file), ..Start::default() })
}

#[tokio::test]
async fn it_goes_on_by_what_was_kept_and_takes_over_what_is_new() {
    let mut server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let before = start(&server).await;
    before.fresh().await;
    eventually("the file", || server.directory().join("state.gz").exists()).await;
    drop(before);
    server.go().unwrap();
    server.apply("services", service("shop", "users", "10.96.1.2"));
    server.compact();

    let cluster = start(&server).await;
    let orders = "10.96.1.1:80".parse().unwrap();
    let snapshot = cluster.synced().await.expect("there is what was kept");
    let kept = snapshot.destination(orders).expect("it was kept").service.clone();
    assert_eq!(kept.endpoints.len(), 1);
    eventually("the report", || cluster.status().restored).await;
    assert!(tokio::time::timeout(Duration::from_secs(1), cluster.fresh()).await.is_err());

    let mut snapshots = cluster.snapshots();
    server.come().unwrap();
    let users = "10.96.1.2:80".parse().unwrap();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let now = snapshot.destination(orders).expect("it is never gone");
        assert!(std::sync::Arc::ptr_eq(&now.service, &kept), "nor another");
        if snapshot.destination(users).is_some() {
            break;
        }
        tokio::time::timeout(Duration::from_secs(60), snapshots.changed()).await.unwrap().unwrap();
    }
    cluster.fresh().await;
    assert!(!cluster.status().restored);
}
