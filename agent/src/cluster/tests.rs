//! How a source is followed: what is published when, and what is said of problems.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    object::{Frontend, Kind, Name, Namespace, Object, Prefer, Service, ServicePort},
    source::{Change, Sighting},
    *,
};
use crate::cluster::model::Protocol;

fn sighting(object: Object) -> Sighting {
    Sighting { object, problems: Vec::new() }
}

fn namespace() -> Sighting {
    sighting(Object::Namespace(Namespace { name: "shop".into(), capture: Some(true), access_log: None }))
}

fn service(number: u8) -> Sighting {
    sighting(Object::Service(Service {
        name: Name { namespace: "shop".into(), name: format!("s{number}").into() },
        frontend: Frontend::ClusterIps(vec![[10, 96, 0, number].into()]),
        ports: vec![ServicePort { name: None, port: 80, protocol: Protocol::Detect }],
        session_affinity: false,
        node_local: false,
        prefer: Prefer::Any,
        publish_not_ready_addresses: false,
        access_log: None,
    }))
}

fn follow() -> (mpsc::Sender<Batch>, watch::Sender<Health>, Cluster) {
    let (changes, receiver) = mpsc::channel(64);
    let (health, health_receiver) = watch::channel(Health::new(Instant::now()));
    let cluster = Cluster::start(Feed { changes: receiver, health: health_receiver }, Options::default());
    (changes, health, cluster)
}

async fn first_words(changes: &mpsc::Sender<Batch>) {
    for kind in Kind::ALL {
        let all = if kind == Kind::Namespace { vec![namespace()] } else { Vec::new() };
        changes.send(vec![Change::Restarted(kind, all)]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_snapshot_waits_for_everything() {
    let (changes, _health, cluster) = follow();
    changes.send(vec![Change::Restarted(Kind::Namespace, vec![namespace()])]).await.unwrap();
    changes.send(vec![Change::Restarted(Kind::Service, vec![service(1)])]).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(60), cluster.synced()).await.is_err());
    assert_eq!(cluster.status().generation, 0);
    for kind in Kind::ALL.into_iter().skip(2) {
        changes.send(vec![Change::Restarted(kind, Vec::new())]).await.unwrap();
    }
    let first = cluster.synced().await.unwrap();
    assert_eq!((first.generation, first.destinations.len()), (1, 1));
    assert_eq!(cluster.current().load().generation, 1);
    tokio::task::yield_now().await;
    let counts = Counts { namespaces: 1, services: 1, endpoints: 0, destinations: 1, pods: 0 };
    assert_eq!((cluster.status().generation, cluster.status().counts), (1, counts));
}

#[tokio::test(start_paused = true)]
async fn a_burst_makes_few_snapshots_and_the_last_one_is_complete() {
    let (changes, _health, cluster) = follow();
    first_words(&changes).await;
    cluster.synced().await.unwrap();
    for number in 0..200 {
        changes.send(vec![Change::Applied(service(number))]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut snapshots = cluster.snapshots();
    let last = snapshots.wait_for(|snapshot| snapshot.destinations.len() == 200).await.unwrap();
    // 200 ms at no more than one in 25 ms.
    assert!((2..=12).contains(&last.generation), "{}", last.generation);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_source_changes_nothing() {
    let (changes, health, cluster) = follow();
    first_words(&changes).await;
    changes.send(vec![Change::Applied(service(1))]).await.unwrap();
    let mut snapshots = cluster.snapshots();
    snapshots.wait_for(|snapshot| snapshot.destinations.len() == 1).await.unwrap();
    let heard = cluster.status().heard;
    drop((changes, health));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(cluster.current().load().destinations.len(), 1);
    assert_eq!(cluster.status().heard, heard);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_too_early_is_told_from_one_that_is_slow() {
    let (changes, _health, cluster) = follow();
    changes.send(vec![Change::Restarted(Kind::Namespace, vec![namespace()])]).await.unwrap();
    drop(changes);
    assert!(cluster.synced().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_last_to_hold_a_snapshot_is_never_a_reader() {
    let (changes, _health, cluster) = follow();
    first_words(&changes).await;
    let held = cluster.synced().await.unwrap();
    changes.send(vec![Change::Applied(service(1))]).await.unwrap();
    let mut snapshots = cluster.snapshots();
    snapshots.wait_for(|snapshot| snapshot.destinations.len() == 1).await.unwrap();
    let weak = Arc::downgrade(&held);
    assert_eq!(weak.strong_count(), 2, "the reader and the follower");
    drop(held);
    assert_eq!(weak.strong_count(), 1, "the follower");
    tokio::time::sleep(FORGET * 2).await;
    assert_eq!(weak.strong_count(), 0);
}
