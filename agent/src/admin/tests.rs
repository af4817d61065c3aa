use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

fn start(readiness: impl Readiness) -> SocketAddr {
    let admin =
        Admin::bind(ANY, Arc::new(Metrics::new()), Arc::new(readiness)).expect("loopback can be bound");
    let address = admin.address().expect("it is bound");
    tokio::spawn(admin.serve());
    address
}

/// Sends bytes and reads until the server closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer))
        .await
        .expect("it closes")
        .expect("it answers with text");
    answer
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer =
        exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

#[tokio::test]
async fn metrics_are_served_as_text_for_prometheus() {
    let address = start(Vec::new);
    let answer = exchange(address, "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4\r\n"), "{answer}");
    assert!(answer.contains("\n# TYPE sluice_connections_total counter\n"), "{answer}");
    assert!(answer.contains("sluice_build_info{version="), "{answer}");
}

#[tokio::test]
async fn readiness_says_what_is_missing_and_health_does_not_care() {
    let ready = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&ready);
    let address =
        start(
            move || {
                if state.load(Ordering::Relaxed) { vec![] } else { vec!["one".to_owned(), "two".to_owned()] }
            },
        );
    assert_eq!(get(address, "/readyz").await, (503, "one\ntwo\n".to_owned()));
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".to_owned()));
    ready.store(true, Ordering::Relaxed);
    assert_eq!(get(address, "/readyz?verbose").await, (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let address = start(Vec::new);
    assert_eq!(get(address, "/").await.0, 404);
    assert_eq!(get(address, "/metrics/").await.0, 404);
    let post = "POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    let answer = exchange(address, post).await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
    let answer = exchange(address, "HEAD /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = exchange(address, "rubbish\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_second_agent_may_listen_beside_the_first() {
    let first = start(Vec::new);
    let second = Admin::bind(first, Arc::new(Metrics::new()), Arc::new(Vec::new));
    assert_eq!(second.expect("both set SO_REUSEPORT").address().expect("bound"), first);
}

#[tokio::test]
async fn an_address_that_is_taken_or_not_ours_is_one_clear_error() {
    let taken = std::net::TcpListener::bind(ANY).expect("loopback can be bound");
    let address = taken.local_addr().expect("bound");
    let error = Admin::bind(address, Arc::new(Metrics::new()), Arc::new(Vec::new)).expect_err("taken");
    assert_eq!(
        error.to_string(),
        format!(
            "--admin {address}: cannot listen there: Address already in use (os error 98); \
             another program listens there: choose another address"
        )
    );
    // An address for documentation (RFC 5737): no machine has it.
    let foreign = SocketAddr::from(([192, 0, 2, 1], 9465));
    let error = Admin::bind(foreign, Arc::new(Metrics::new()), Arc::new(Vec::new)).expect_err("not ours");
    assert!(error.to_string().ends_with("; this machine has no such address"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_sends_no_head_is_sent_away() {
    let address = start(Vec::new);
    let mut slow = TcpStream::connect(address).await.expect("it listens");
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost").await.expect("it reads");
    let mut rest = Vec::new();
    // Time is paused: the timers run as soon as everybody waits.
    timeout(LIMIT, slow.read_to_end(&mut rest)).await.expect("it closes first").expect("without a reset");
}
