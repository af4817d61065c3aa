//! How a source is followed: what is published when, and what is said of problems.

use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    kept::StateFile,
    object::{Frontend, Kind, Name, Namespace, Object, Prefer, Service, ServicePort},
    source::{Change, Sighting},
    *,
};
use crate::{cluster::model::Protocol, govern::caller::Labels};

fn sighting(object: Object) -> Sighting {
    Sighting { object, problems: Vec::new() }
}

fn namespace() -> Sighting {
    sighting(Object::Namespace(Namespace {
        name: "shop".into(),
        capture: Some(true),
        access_log: None,
        reclaim: None,
        endpoints: None,
        propagation: None,
    }))
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
        selector: Labels::default(),
        access_log: None,
        reclaim: None,
        endpoints: None,
        created: None,
    }))
}

fn follow() -> (mpsc::Sender<Batch>, watch::Sender<Health>, Cluster) {
    let (changes, receiver) = mpsc::channel(64);
    let (health, health_receiver) = watch::channel(Health::new(Instant::now()));
    let cluster =
        Cluster::start(Feed { changes: receiver, health: health_receiver, held: None }, Options::default());
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

/// A state file with one Service, of a minute ago.
fn kept(number: u8) -> (tempfile::TempDir, StateFile) {
    let directory = tempfile::tempdir().unwrap();
    let file = StateFile { path: directory.path().join("state.gz"), node: None };
    let objects = [namespace().object, service(number).object];
    let then = std::time::SystemTime::now() - Duration::from_secs(60);
    file.write(&objects, Some("west"), then).unwrap();
    (directory, file)
}

fn follow_with(start: Start) -> (mpsc::Sender<Batch>, watch::Sender<Health>, Cluster) {
    let (changes, receiver) = mpsc::channel(64);
    let (health, health_receiver) = watch::channel(Health::new(Instant::now()));
    let feed = Feed { changes: receiver, health: health_receiver, held: None };
    (changes, health, Cluster::start_with(feed, Options::default(), start))
}

fn addresses(snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<_> = snapshot.destinations.keys().map(ToString::to_string).collect();
    all.sort();
    all
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_used_until_the_source_says_something() {
    let (_directory, file) = kept(1);
    let begun = Instant::now();
    let (changes, _health, cluster) = follow_with(Start { state: Some(file), ..Start::default() });
    let first = cluster.synced().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(addresses(&first), ["10.96.0.1:80"]);
    let fresh = tokio::time::timeout(Duration::from_secs(3600), cluster.fresh()).await;
    assert!(fresh.is_err(), "the source has said nothing");
    let status = cluster.status();
    assert!(status.restored && status.heard.elapsed() >= Duration::from_secs(3660), "{status:?}");
    // It comes back with one Service more; the other one is never gone, and no other.
    let kept = first.destinations.values().next().unwrap().service.clone();
    let mut snapshots = cluster.snapshots();
    let words = Kind::ALL.into_iter().map(|kind| {
        let all = match kind {
            Kind::Namespace => vec![namespace()],
            Kind::Service => vec![service(1), service(2)],
            _ => Vec::new(),
        };
        Change::Restarted(kind, all)
    });
    changes.send(words.collect()).await.unwrap();
    let now = snapshots.wait_for(|snapshot| snapshot.destinations.len() == 2).await.unwrap().clone();
    assert_eq!(addresses(&now), ["10.96.0.1:80", "10.96.0.2:80"]);
    let address = "10.96.0.1:80".parse().unwrap();
    assert!(Arc::ptr_eq(&now.destination(address).unwrap().service, &kept));
    cluster.fresh().await;
    assert!(!cluster.status().restored);
}

#[tokio::test(start_paused = true)]
async fn that_the_state_file_cannot_be_written_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let in_the_way = directory.path().join("state");
    std::fs::write(&in_the_way, "").unwrap();
    let file = StateFile { path: in_the_way.join("file"), node: None };
    let (changes, _health, cluster) = follow_with(Start { state: Some(file), ..Start::default() });
    first_words(&changes).await;
    let told = async |wanted: bool| {
        while cluster.status().state_file_trouble.is_some() != wanted {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let limit = Duration::from_secs(3600);
    tokio::time::timeout(limit, told(true)).await.expect("it is reported");
    std::fs::remove_file(&in_the_way).unwrap();
    tokio::time::timeout(limit, told(false)).await.expect("and no longer");
}

#[tokio::test(start_paused = true)]
async fn what_the_source_says_goes_before_what_is_kept() {
    let (_directory, file) = kept(9);
    let (changes, _health, cluster) = follow_with(Start { state: Some(file), ..Start::default() });
    first_words(&changes).await;
    cluster.fresh().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(addresses(&cluster.current().load()), [""; 0]);
    assert_eq!(cluster.status().generation, 1);
}

#[tokio::test(start_paused = true)]
async fn the_source_waits_for_the_zone_and_what_is_kept_does_not() {
    let (_directory, file) = kept(1);
    let (tell, zone) = mpsc::channel(1);
    let (reached, is_reached) = watch::channel(false);
    let start = Start { state: Some(file), zone: Some(zone), reached: Some(reached) };
    let (changes, _health, cluster) = follow_with(start);
    cluster.synced().await.unwrap();
    assert!(!*is_reached.borrow(), "the source has said nothing");
    changes.send(Kind::ALL.map(|kind| Change::Restarted(kind, Vec::new())).into()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(*is_reached.borrow());
    assert_eq!(addresses(&cluster.current().load()), ["10.96.0.1:80"], "the zone is not known");
    tell.send(Some("west".into())).await.unwrap();
    cluster.fresh().await;
    assert_eq!(addresses(&cluster.current().load()), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_becomes_known_later_counts() {
    let directory = tempfile::tempdir().unwrap();
    let file = StateFile { path: directory.path().join("state.gz"), node: None };
    let (tell, zone) = mpsc::channel(1);
    let start = Start { state: Some(file.clone()), zone: Some(zone), ..Start::default() };
    let (changes, _health, cluster) = follow_with(start);
    let kept = || file.read(std::time::SystemTime::now()).unwrap().unwrap().zone;
    first_words(&changes).await;
    tell.send(None).await.unwrap();
    cluster.fresh().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(kept(), None);
    tell.send(Some("west".into())).await.unwrap();
    drop(tell);
    tokio::time::sleep(Duration::from_secs(1)).await;
    changes.send(vec![Change::Applied(service(1))]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(kept().as_deref(), Some("west"), "and its end is no other answer");
}

#[tokio::test(start_paused = true)]
async fn what_the_source_says_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = StateFile { path: directory.path().join("state.gz"), node: None };
    let (changes, health, cluster) = follow_with(Start { state: Some(file.clone()), ..Start::default() });
    let found = || file.read(std::time::SystemTime::now()).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(found().is_none(), "there is nothing to keep");
    first_words(&changes).await;
    cluster.fresh().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(found().unwrap().objects, 1);
    // What comes in a burst is written once it is over, and not for each of it.
    for number in 1..=5 {
        changes.send(vec![Change::Applied(service(number))]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(found().unwrap().objects, 1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(found().unwrap().objects, 6);
    // Where nothing changes it is noted that it still holds.
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    file.confirm(old).unwrap();
    health.send_modify(|health| health.heard = Instant::now());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let modified = std::fs::metadata(&file.path).unwrap().modified().unwrap();
    assert!(modified > old + Duration::from_secs(60), "{modified:?}");
}
