//! What may happen to an API server, and that none of it empties the model.

use sluice::cluster::object::Kind;

use crate::{
    rig::{Reader, eventually, fill, key, service},
    server::Server,
};

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let mut server = Server::away();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::new(&server);
    let problems = reader.problems(Some("nothing is captured until it is there")).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    reader.drain();
    assert!(reader.told.is_empty() && reader.objects.is_empty());
    server.come();
    reader.until("the first whole picture", |reader| reader.told.len() == Kind::ALL.len()).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
    assert_eq!(reader.problems(None).await, [""; 0]);
}

#[tokio::test]
async fn a_server_that_goes_away_leaves_everything_in_force() {
    let mut server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.go().await;
    let problems = reader.problems(Some("the last state stays in force")).await;
    assert_eq!(problems.len(), 1, "one problem, however many watches: {problems:?}");
    let heard = reader.heard();
    // It comes back another: one Service more, one less, and nothing to resume from.
    server.apply("services", service("shop", "users", "10.96.1.2"));
    server.apply("services", service("shop", "carts", "10.96.1.3"));
    server.delete("services", "shop", "orders");
    server.compact();
    server.come();
    reader.until("what was missed", |reader| reader.has(Kind::Service, "shop", "users")).await;
    assert!(reader.has(Kind::Service, "shop", "carts"));
    assert_eq!(reader.problems(None).await, [""; 0]);
    assert!(reader.heard() > heard);
    reader.drain();
    assert_eq!(reader.lost, [key(Kind::Service, "shop", "orders")]);
}

#[tokio::test]
async fn a_broken_connection_is_resumed_without_a_list() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    eventually("the watches", || server.open().len() == 4).await;
    let lists = server.count("list", "services", "shop");
    server.cut();
    server.apply("services", service("shop", "users", "10.96.1.2"));
    reader.until("what was missed", |reader| reader.has(Kind::Service, "shop", "users")).await;
    assert_eq!(server.count("list", "services", "shop"), lists);
    assert_eq!(reader.lost, []);
}

#[tokio::test]
async fn what_is_gone_is_listed_anew() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    eventually("the watches", || server.open().len() == 4).await;
    server.compact();
    server.cut();
    eventually("all lists anew", || {
        server.count("list", "namespaces", "") == 2
            && ["services", "endpointslices", "pods"]
                .into_iter()
                .all(|resource| server.count("list", resource, "shop") == 2)
    })
    .await;
    server.apply("services", service("shop", "users", "10.96.1.2"));
    reader.until("a change after it", |reader| reader.has(Kind::Service, "shop", "users")).await;
    assert_eq!(reader.lost, []);
    // 410 is nothing that is wrong.
    assert_eq!(reader.problems(None).await, [""; 0]);
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    for (verb, resource, code) in
        [("list", "services", 500), ("list", "pods", 429), ("watch", "namespaces", 503)]
    {
        server.fault(verb, resource, code);
    }
    let mut reader = Reader::new(&server);
    let problems = reader.problems(Some("does not answer as it should")).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    reader.drain();
    assert!(reader.told.is_empty(), "a namespace in parts is not told of");
    for (verb, resource) in [("list", "services"), ("list", "pods"), ("watch", "namespaces")] {
        server.fault(verb, resource, 0);
    }
    reader.until("the first whole picture", |reader| reader.told.len() == Kind::ALL.len()).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
}

#[tokio::test]
async fn what_is_forbidden_is_named_and_the_rest_goes_on() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.fault("list", "endpointslices", 403);
    let mut reader = Reader::synced(&server).await;
    // Without its endpoints the Service would be governed into nothing.
    assert_eq!(reader.objects.len(), 0, "{:?}", reader.objects.keys());
    let problems = reader.problems(Some("grant the agent's service account")).await;
    let says = "the API server refuses to list endpointslices.discovery.k8s.io in namespace shop (403: ";
    assert!(matches!(&problems[..], [problem] if problem.starts_with(says)), "{problems:?}");
    server.fault("list", "endpointslices", 0);
    reader.until("the namespace", |reader| reader.has(Kind::Namespace, "", "shop")).await;
    assert_eq!(reader.objects.len(), 4);
    assert_eq!(reader.problems(None).await, [""; 0]);
}

#[tokio::test]
async fn credentials_that_expire_change_nothing() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    eventually("the watches", || server.open().len() == 4).await;
    for resource in ["namespaces", "services", "endpointslices", "pods"] {
        server.fault("watch", resource, 401);
    }
    server.cut();
    let problems = reader.problems(Some("does not take the agent's credentials")).await;
    assert!(problems.iter().all(|problem| problem.contains("refuses to watch")), "{problems:?}");
    for resource in ["namespaces", "services", "endpointslices", "pods"] {
        server.fault("watch", resource, 0);
    }
    server.apply("services", service("shop", "users", "10.96.1.2"));
    reader.until("what was missed", |reader| reader.has(Kind::Service, "shop", "users")).await;
    assert_eq!(reader.problems(None).await, [""; 0]);
    assert_eq!(reader.lost, []);
}
