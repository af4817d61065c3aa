//! Credentials that end, and those that take their place.

use std::fs;

use kube::Config;
use sluice::cluster::{kubernetes, object::Kind};
use sluice_tests::api_server::Break;

use crate::rig::{PATIENCE, Reader, Server, eventually, fill, service};

#[tokio::test]
async fn a_token_that_was_replaced_is_read_anew_before_anybody_notices() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.watched().await;
    fs::write(server.directory().join("token"), "another-token").unwrap();
    server.set_tokens(Some(&["another-token"]));
    server.interrupt(Break::Cut);
    reader.hears_of(&server, "users", 2).await;
    assert_eq!(reader.problems(None).await, [""; 0]);
}

#[tokio::test]
async fn credentials_that_expire_change_nothing() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.watched().await;
    server.set_tokens(Some(&["another-token"]));
    server.interrupt(Break::Cut);
    let problems = reader.problems(Some("does not take the agent's credentials")).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    eventually("all of them", || server.open().is_empty()).await;
    server.apply("services", service("shop", "users", "10.96.1.2"));
    fs::write(server.directory().join("token"), "another-token").unwrap();
    reader.until("what was missed", |reader| reader.has(Kind::Service, "shop", "users")).await;
    assert_eq!(reader.problems(None).await, [""; 0]);
    assert_eq!(reader.lost, []);
}

#[tokio::test]
async fn a_server_that_is_no_url_is_named() {
    for server in ["127.0.0.1:6443", "kubernetes.default.svc"] {
        let find = move || async move { Ok(Config::new(server.parse().unwrap())) };
        let Err(error) = kubernetes::client_of(find, PATIENCE).await else { panic!("{server} will do") };
        let says = format!(
            "the cluster's configuration cannot be used: its server {server} is no URL such as https://10.0.0.1:6443"
        );
        assert_eq!(error.to_string(), says);
    }
}

#[tokio::test]
async fn a_client_certificate_will_do() {
    let server = Server::start();
    server.set_tokens(Some(&[]));
    fill(&server, "shop", Some("enabled"), 1);
    server.kubeconfig_with_certificate(server.directory()).unwrap();
    let reader = Reader::synced(&server).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_not_talked_to() {
    let (server, other) = (Server::start(), Server::start());
    fill(&server, "shop", Some("enabled"), 1);
    let authority = fs::read(server.directory().join("ca.pem")).unwrap();
    fs::copy(other.directory().join("ca.pem"), server.directory().join("ca.pem")).unwrap();
    let mut reader = Reader::new(&server).await;
    let problems = reader.problems(Some("until then pods are enrolled by the state file")).await;
    assert!(matches!(&problems[..], [problem] if problem.contains("certificate")), "{problems:?}");
    // The authority was replaced, and now its certificate is where it belongs.
    fs::write(server.directory().join("ca.pem"), authority).unwrap();
    reader.until("the first whole picture", Reader::is_synced).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
}
