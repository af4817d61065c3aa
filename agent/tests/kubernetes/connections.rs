//! How many connections, watches and bytes an agent costs the API server.

use std::time::Duration;

use sluice::cluster::object::Kind;
use sluice_tests::api_server::Break;

use crate::rig::{Reader, Server, eventually, fill, service};

#[tokio::test]
async fn one_connection_carries_all_watches() {
    let server = Server::start();
    for number in 1..=20 {
        fill(&server, &format!("shop-{number}"), Some("enabled"), number);
    }
    let mut reader = Reader::synced(&server).await;
    eventually("the watches", || server.open().len() == WATCHES + 3).await;
    assert_eq!(server.connections().0, 1);
    // Watches that are broken off come back over it.
    server.interrupt(Break::Cut);
    server.apply("services", service("shop-1", "users", "10.96.1.77"));
    reader.until("news", |reader| reader.has(Kind::Service, "shop-1", "users")).await;
    assert_eq!(server.connections().0, 1);
    assert_eq!(reader.lost, []);
}

/// Of the whole cluster.
const WATCHES: usize = 8;

#[tokio::test]
async fn there_are_more_where_a_connection_takes_no_more_streams() {
    let server = Server::start();
    server.set_cluster_wide(false);
    for number in 1..=60 {
        fill(&server, &format!("shop-{number}"), Some("enabled"), number);
    }
    let mut reader = Reader::synced(&server).await;
    eventually("the watches", || server.open().len() == WATCHES + 60 * 3).await;
    assert_eq!(reader.problems(None).await, [""; 0], "it goes on in each namespace");
    let all =
        |reader: &Reader| (1..=60).all(|number| reader.has(Kind::Pod, &format!("shop-{number}"), "orders-1"));
    reader.until("the pods of all", all).await;
    // What was asked before the first connection was there had begun others, which are given up.
    eventually("as many connections as are needed", || (3..=4).contains(&server.connections().0)).await;
}

#[tokio::test]
async fn a_server_without_http2_is_watched_all_the_same() {
    let server = Server::start();
    server.set_http2(false);
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.watched().await;
    assert!(server.connections().0 >= 6, "{:?}", server.connections());
    reader.hears_of(&server, "users", 2).await;
}

#[tokio::test]
async fn a_connection_that_is_lost_is_made_anew() {
    let mut server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.watched().await;
    server.go().unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.come().unwrap();
    reader.hears_of(&server, "users", 2).await;
    server.watched().await;
    assert_eq!(server.connections().0, 1);
}

/// What the API server pays for an agent of a cluster in which many namespaces are enrolled, and others are not.
#[tokio::test]
async fn what_is_not_enrolled_is_not_kept() {
    let server = Server::start();
    for number in 1..=10 {
        fill(&server, &format!("shop-{number}"), Some("enabled"), number);
        fill(&server, &format!("other-{number}"), None, 100 + number);
    }
    let mut reader = Reader::synced(&server).await;
    eventually("the watches", || server.open().len() == WATCHES + 3).await;
    let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Pod];
    let others =
        |reader: &Reader| reader.objects.keys().filter(|key| key.name.namespace.starts_with("other")).count();
    assert_eq!(others(&reader), 0);
    assert_eq!(reader.objects.keys().filter(|key| kinds.contains(&key.kind)).count(), 30);
    server.apply("services", service("other-1", "users", "10.96.101.2"));
    reader.hears_of_in(&server, "shop-1", "users", "10.96.1.2").await;
    assert_eq!(others(&reader), 0);
    // One that is enrolled later has watches of its own, and all that is in it is told.
    server.apply("namespaces", crate::rig::namespace("other-1", Some("enabled")));
    reader.until("its objects", |reader| reader.has(Kind::Service, "other-1", "users")).await;
    assert!(reader.has(Kind::Pod, "other-1", "orders-1"));
    eventually("its watches", || server.open().len() == WATCHES + 6).await;
    assert_eq!(reader.lost, []);
}
