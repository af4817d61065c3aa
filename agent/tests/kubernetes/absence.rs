//! How the API server is away: what usually is wrong has a sentence of its own, with what to do, and the library's words behind it.

use std::fs;

use sluice_tests::api_server::Fault;
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use crate::rig::{Reader, Server, fill};

/// A server of which the kubeconfig says something else.
fn misnamed(from: &str, to: &str) -> Server {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let path = server.directory().join("kubeconfig");
    let text = fs::read_to_string(&path).expect("it is there");
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replace(from, to)).expect("it can be written");
    server
}

async fn says(server: &Server, sentence: &str, action: &str) {
    let problems = Reader::new(server).await.problems(Some(sentence)).await;
    let [one] = &problems[..] else { panic!("{problems:?}") };
    // The sentence begins, and the raw words are in parentheses behind it, with the address.
    assert!(one.starts_with(&format!("{sentence} (http")), "{one}");
    assert!(one.contains(action) && one.contains("): until then"), "{one}");
}

#[tokio::test]
async fn nobody_listens() {
    let server = Server::away();
    says(&server, "nothing listens at the API server's address", "Check that the API server runs").await;
}

#[tokio::test]
async fn its_certificate_is_for_another_name() {
    let server = misnamed("https://127.0.0.1", "https://localhost");
    let sentence =
        "the API server's certificate is not valid for the name or address by which the agent calls it";
    says(&server, sentence, "that is in its certificate").await;
}

#[tokio::test]
async fn its_certificate_is_of_an_unknown_authority() {
    let (server, other) = (Server::start(), Server::start());
    fs::copy(other.directory().join("ca.pem"), server.directory().join("ca.pem")).expect("it is there");
    let sentence = "the API server's certificate is of a CA that the agent does not trust";
    says(&server, sentence, "whether the CA that the agent is given is the cluster's").await;
}

#[tokio::test]
async fn it_has_no_address() {
    let server = misnamed("https://127.0.0.1", "https://api.invalid");
    says(&server, "the API server's name cannot be resolved", "Check the node's DNS").await;
}

#[tokio::test]
async fn it_wants_tls() {
    let server = misnamed("https://", "http://");
    says(&server, "what listens at the API server's address does not speak HTTP", "want https://").await;
}

#[tokio::test]
async fn what_listens_speaks_no_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it has one");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nno\n").await;
        }
    });
    let own = Server::away();
    let server = misnamed_to(own, address);
    says(
        &server,
        "what listens at the API server's address does not speak TLS",
        "Check the address and port",
    )
    .await;
}

fn misnamed_to(server: Server, address: std::net::SocketAddr) -> Server {
    let path = server.directory().join("kubeconfig");
    let text = fs::read_to_string(&path).expect("it is there");
    let text = text.replace(&server.address().to_string(), &address.to_string());
    fs::write(&path, text).expect("it can be written");
    server
}

#[tokio::test]
async fn what_responds_is_no_api_server() {
    for (fault, raw) in [
        (Fault::Redirect, "302 with a redirect to https://login.example/)"),
        (Fault::Page(200), "200 with a page for browsers)"),
        (Fault::Page(403), "403 with a page for browsers)"),
    ] {
        let server = Server::start();
        for verb in ["list", "watch"] {
            for resource in ["namespaces", "trafficpolicies", "trafficlanes", "accesspolicies"] {
                server.fault(verb, resource, Some(fault));
            }
            for resource in ["httproutes", "grpcroutes", "referencegrants", "xmeshes"] {
                server.fault(verb, resource, Some(fault));
            }
        }
        let sentence = "what responds at the API server's address is no API server: it redirects, or sends a page for browsers";
        says(&server, sentence, raw).await;
        says(&server, sentence, "proxies on the way that ask for a login").await;
    }
}
