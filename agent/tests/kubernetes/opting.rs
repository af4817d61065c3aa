//! What is watched, what is told, and how changes get through.

use std::time::Duration;

use sluice::cluster::{
    Cluster,
    builder::Options,
    kubernetes,
    object::{Kind, Object},
};

use crate::rig::{Reader, Server, eventually, fill, namespace, pod, service, slice};

fn watches(server: &Server, namespace: &str) -> usize {
    server.open().iter().filter(|(_, of)| of == namespace).count()
}

#[tokio::test]
async fn only_opted_in_namespaces_are_asked_for() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    fill(&server, "bank", None, 2);
    fill(&server, "pub", Some("disabled"), 3);
    let reader = Reader::synced(&server).await;
    let namespaced = reader.objects.keys().filter(|key| key.kind != Kind::Namespace);
    assert!(namespaced.clone().all(|key| &*key.name.namespace == "shop"), "{:?}", reader.objects);
    assert_eq!(namespaced.count(), 3);
    server.watched().await;
    for (resource, namespace) in [("services", "bank"), ("pods", "pub"), ("services", ""), ("pods", "")] {
        for verb in ["list", "watch"] {
            assert_eq!(server.count(verb, resource, namespace), 0, "{verb} {resource} {namespace}");
        }
    }
}

#[tokio::test]
async fn a_namespace_opts_in_and_out_live_and_as_a_whole() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    fill(&server, "bank", None, 2);
    let mut reader = Reader::synced(&server).await;

    server.apply("namespaces", namespace("bank", Some("enabled")));
    let opted_in = |reader: &Reader| {
        let key = crate::rig::key(Kind::Namespace, "", "bank");
        matches!(reader.objects.get(&key), Some(Object::Namespace(bank)) if bank.capture == Some(true))
    };
    reader.until("bank", opted_in).await;
    for (kind, name) in
        [(Kind::Service, "orders"), (Kind::EndpointSlice, "orders-1"), (Kind::Pod, "orders-1")]
    {
        assert!(reader.has(kind, "bank", name), "{kind} comes with its namespace");
    }
    eventually("the watches", || watches(&server, "bank") == 3).await;
    assert_eq!(reader.lost, []);

    server.apply("namespaces", namespace("bank", None));
    reader.until("bank's end", |reader| !opted_in(reader)).await;
    assert!(!reader.objects.keys().any(|key| &*key.name.namespace == "bank"), "{:?}", reader.objects.keys());
    eventually("the watches' end", || watches(&server, "bank") == 0).await;
    assert_eq!(reader.lost.len(), 3);
    assert!(reader.has(Kind::Service, "shop", "orders"));

    // And once more: nothing of the first time is in the way.
    server.apply("namespaces", namespace("bank", Some("enabled")));
    reader.until("bank again", |reader| reader.has(Kind::Service, "bank", "orders")).await;
    server.delete("namespaces", "", "bank");
    reader.until("bank's deletion", |reader| !reader.has(Kind::Namespace, "", "bank")).await;
    assert!(!reader.has(Kind::Pod, "bank", "orders-1"));
}

#[tokio::test]
async fn changes_get_through() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.apply("services", service("shop", "users", "10.96.1.2"));
    reader.until("a new Service", |reader| reader.has(Kind::Service, "shop", "users")).await;
    server.delete("services", "shop", "orders");
    reader.until("a Service's end", |reader| !reader.has(Kind::Service, "shop", "orders")).await;
    let mut done = pod("shop", "orders-1", "10.1.1.1", None);
    done["status"]["phase"] = "Succeeded".into();
    server.apply("pods", done);
    reader.until("a pod's end", |reader| !reader.has(Kind::Pod, "shop", "orders-1")).await;
    assert_eq!(reader.lost.len(), 2);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let server = Server::start();
    server.set_streaming(false);
    server.set_page(3);
    fill(&server, "shop", Some("enabled"), 1);
    for number in 2..=20 {
        server.apply("services", service("shop", &format!("s{number}"), &format!("10.96.1.{number}")));
    }
    let reader = Reader::synced(&server).await;
    assert_eq!(reader.objects.keys().filter(|key| key.kind == Kind::Service).count(), 20);
}

#[tokio::test]
async fn a_slice_may_come_before_its_pod() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let cluster = Cluster::start(kubernetes::open(server.client().await), Options::default());
    cluster.synced().await.unwrap();
    let mut snapshots = cluster.snapshots();
    let address = "10.96.1.1:80".parse().unwrap();
    let limit = Duration::from_secs(60);
    let pods = [("orders-1", "10.1.1.1"), ("gray-1", "10.1.1.2")];
    server.apply("endpointslices", slice("shop", "orders", &pods));
    let early = snapshots.wait_for(|snapshot| {
        snapshot.destination(address).is_some_and(|found| found.service.endpoints.len() == 2)
    });
    let early = tokio::time::timeout(limit, early).await.unwrap().unwrap().clone();
    // Nobody knows yet that it is gray: it must not get everybody's requests.
    let ready = |snapshot: &sluice::cluster::model::Snapshot| {
        let service = &snapshot.destination(address).unwrap().service;
        service
            .baseline
            .iter()
            .filter(|endpoint| endpoint.ready)
            .map(|endpoint| endpoint.address)
            .collect::<Vec<_>>()
    };
    assert_eq!(ready(&early), ["10.1.1.1:8080".parse().unwrap()]);
    server.apply("pods", pod("shop", "gray-1", "10.1.1.2", Some("gray")));
    let late = snapshots.wait_for(|snapshot| {
        snapshot.destination(address).is_some_and(|found| found.service.lanes.len() == 1)
    });
    let late = tokio::time::timeout(limit, late).await.unwrap().unwrap().clone();
    assert_eq!(ready(&late), ["10.1.1.1:8080".parse().unwrap()]);
}
