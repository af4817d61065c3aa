mod documented;
mod streams;

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Args as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use super::{desk::Desk, view::View, *};
use crate::{
    cluster::model::Snapshot,
    config::{Config, Settings},
    govern::lane::TagNames,
    observe::{log::LogFilter, metrics::Metrics},
};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// An agent of which nothing is known.
struct Unknown;

impl view::Agent for Unknown {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::default()
    }

    fn look(&self) -> view::Look {
        let missing = view::Missing {
            message: "it has just started".to_owned(),
            action: "Wait.".into(),
            elsewhere: false,
        };
        view::Look { missing: vec![missing], ..view::Look::default() }
    }
}

fn pages(readiness: impl Readiness) -> Arc<Pages> {
    pages_of(Unknown, readiness)
}

fn pages_of(agent: impl view::Agent, readiness: impl Readiness) -> Arc<Pages> {
    let flags = Config::augment_args(clap::Command::new("agent").no_binary_name(true));
    let chosen = flags.clone().try_get_matches_from(["--workers", "3"]).expect("a good command line");
    let metrics = Arc::new(Metrics::new());
    let agent = Arc::new(agent);
    Arc::new(Pages {
        view: View::new(agent.clone(), metrics.clone(), 10),
        desk: Desk::new(
            agent,
            Arc::new(TagNames::new(&[http::HeaderName::from_static("x-mse-tag")]).expect("a tag header")),
        ),
        metrics,
        readiness: Arc::new(readiness),
        settings: Settings::read(&flags, &chosen),
        log: LogFilter::new("info", |_| {}),
    })
}

/// Starts to serve over TCP.
fn start(readiness: impl Readiness) -> SocketAddr {
    let admin = Admin::bind(ANY, pages(readiness)).expect("loopback can be bound");
    let address = admin.address();
    tokio::spawn(admin.serve());
    address
}

/// Sends bytes and reads until the server closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let connect = async {
        loop {
            // It listens as soon as it has seen that nobody else does.
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let mut stream = timeout(LIMIT, connect).await.expect("it listens");
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

/// The head, and the body as it came.
async fn scrape(address: SocketAddr, headers: &str) -> (String, Vec<u8>) {
    // There is somebody who listens.
    get(address, "/healthz").await;
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET /metrics HTTP/1.1\r\nhost: a\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("it closes").expect("it answers");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let body = answer.split_off(end + 4);
    (String::from_utf8(answer).expect("text"), body)
}

#[tokio::test]
async fn scrapers_get_metrics_as_they_ask_for_them() {
    let address = start(Vec::new);
    let openmetrics = "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let gzip = "accept-encoding: gzip\r\n";
    for (headers, is_openmetrics, is_packed) in [
        (String::new(), false, false),
        (openmetrics.to_owned(), true, false),
        (gzip.to_owned(), false, true),
        (openmetrics.to_owned() + gzip, true, true),
    ] {
        let (head, mut body) = scrape(address, &headers).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        assert!(head.contains("vary: accept, accept-encoding\r\n"), "{head}");
        assert_eq!(head.contains("content-encoding: gzip\r\n"), is_packed, "{head}");
        if is_packed {
            let packed = std::mem::take(&mut body);
            io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*packed), &mut body).expect("gzip");
            assert!(packed.len() * 2 < body.len(), "{} of {}", packed.len(), body.len());
        }
        let text = String::from_utf8(body).expect("text");
        let (kind, name) = if is_openmetrics {
            ("application/openmetrics-text; version=1.0.0; charset=utf-8", "sluice_connections")
        } else {
            ("text/plain; version=0.0.4", "sluice_connections_total")
        };
        assert!(head.contains(&format!("content-type: {kind}\r\n")), "{head}");
        assert!(text.contains(&format!("\n# TYPE {name} counter\n")), "{text}");
        assert_eq!(text.ends_with("# EOF\n"), is_openmetrics, "{text}");
    }
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
async fn a_process_that_is_stuck_is_not_healthy() {
    struct Stuck;
    impl Readiness for Stuck {
        fn missing(&self) -> Vec<String> {
            Vec::new()
        }

        fn stuck(&self) -> Option<String> {
            Some("a worker is silent".to_owned())
        }
    }
    let address = start(Stuck);
    assert_eq!(get(address, "/healthz").await, (503, "a worker is silent\n".to_owned()));
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let address = start(Vec::new);
    assert_eq!(get(address, "/nothing").await.0, 404);
    assert_eq!(get(address, "/page/").await.0, 404);
    assert_eq!(get(address, "/page/../page/main.js").await.0, 404);
    assert_eq!(get(address, "/metrics/").await.0, 404);
    let post = "POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    let answer = exchange(address, post).await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
    let answer = exchange(address, "HEAD /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = exchange(address, "rubbish\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

/// Which of the agents answers.
async fn who(address: SocketAddr) -> String {
    get(address, "/readyz").await.1
}

#[tokio::test]
async fn the_older_of_two_agents_answers_until_it_ends() {
    let older = Admin::bind(ANY, pages(|| vec!["older".to_owned()])).expect("loopback can be bound");
    let address = older.address();
    let older = tokio::spawn(older.serve());
    assert_eq!(who(address).await, "older\n");
    let newer = Admin::bind(address, pages(|| vec!["newer".to_owned()])).expect("both set SO_REUSEPORT");
    let newer = tokio::spawn(newer.serve());
    for _ in 0..20 {
        assert_eq!(who(address).await, "older\n");
    }
    older.abort();
    let _ = older.await;
    assert_eq!(who(address).await, "newer\n");
    newer.abort();
}

#[tokio::test]
async fn an_address_that_is_taken_or_not_ours_is_one_clear_error() {
    let taken = std::net::TcpListener::bind(ANY).expect("loopback can be bound");
    let address = taken.local_addr().expect("bound");
    let error = Admin::bind(address, pages(Vec::new)).expect_err("taken");
    assert_eq!(
        error.to_string(),
        format!(
            "--admin {address}: cannot listen there: Address already in use (os error 98); \
             another program listens there: choose another address"
        )
    );
    // An address for documentation (RFC 5737): no machine has it.
    let foreign = SocketAddr::from(([192, 0, 2, 1], 9465));
    let error = Admin::bind(foreign, pages(Vec::new)).expect_err("not ours");
    assert!(error.to_string().ends_with("; this machine has no such address"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_sends_no_head_is_sent_away() {
    let address = start(Vec::new);
    // Once it has answered, it listens.
    assert_eq!(get(address, "/healthz").await.0, 200);
    let mut slow = TcpStream::connect(address).await.expect("it listens");
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost").await.expect("it reads");
    let mut rest = Vec::new();
    // Time is paused: the timers run as soon as everybody waits.
    timeout(LIMIT, slow.read_to_end(&mut rest)).await.expect("it closes first").expect("without a reset");
}

#[tokio::test]
async fn the_configuration_is_told_with_its_origin() {
    let address = start(Vec::new);
    let (status, body) = get(address, "/config").await;
    let config: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let of = |flag: &str| {
        let settings = config["settings"].as_array().expect("an array");
        settings.iter().find(|setting| setting["flag"] == flag).cloned().unwrap_or_default()
    };
    assert_eq!(status, 200);
    assert_eq!(
        (of("--workers")["value"].as_str(), of("--workers")["origin"].as_str()),
        (Some("3"), Some("flag"))
    );
    assert_eq!(of("--admin")["origin"], "default");
    assert_eq!(of("--admin")["variable"], "SLUICE_ADMIN");
    assert!(of("--zone")["value"].is_null());
}

#[tokio::test]
async fn nothing_can_be_changed_over_tcp() {
    let address = start(Vec::new);
    for (method, path, status) in
        [("PUT", "/log-filter", 404), ("GET", "/log-filter", 404), ("PUT", "/config", 405)]
    {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nconnection: close\r\n\r\ndebug"
        );
        let answer = exchange(address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {answer}");
    }
}

/// Starts to serve at a path.
fn serve(path: &Path, readiness: impl Readiness) -> JoinHandle<()> {
    let socket = AdminSocket::bind(path, pages(readiness)).expect("the directory is ours");
    tokio::spawn(async {
        socket.serve().await;
    })
}

/// A blocking call of the client.
async fn at<T: Send + 'static>(path: &Path, call: impl FnOnce(&Path) -> T + Send + 'static) -> T {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || call(&path)).await.expect("it does not panic")
}

#[tokio::test]
async fn the_log_filter_is_changed_over_the_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("run/sluice.sock");
    let serving = serve(&path, || vec!["not yet".to_owned()]);
    let filter = || at(&path, |path| client::get(path, "/log-filter").expect("it answers"));
    assert_eq!(filter().await.body, "info\n");
    let set = at(&path, |path| client::put(path, "/log-filter", "warn,sluice::proxy=debug"))
        .await
        .expect("it answers");
    assert_eq!((set.status, &*set.body), (200, "warn,sluice::proxy=debug\n"));
    assert_eq!(filter().await.body, "warn,sluice::proxy=debug\n");
    let config = at(&path, |path| client::get(path, "/config")).await.expect("it answers");
    assert!(config.body.contains("\"origin\": \"live\""), "{}", config.body);

    for (wrong, why) in [("sluice=loud", "\"sluice=loud\""), ("", "it is empty")] {
        let refused =
            at(&path, move |path| client::put(path, "/log-filter", wrong)).await.expect("it answers");
        assert!(refused.status == 400 && refused.body.contains(why), "{refused:?}");
    }
    let long =
        at(&path, |path| client::put(path, "/log-filter", &"a".repeat(5000))).await.expect("it answers");
    assert_eq!(long.status, 413, "{long:?}");
    assert_eq!(filter().await.body, "warn,sluice::proxy=debug\n");
    let ready = at(&path, |path| client::get(path, "/readyz")).await.expect("it answers");
    assert_eq!((ready.is_good(), &*ready.body), (false, "not yet\n"));
    serving.abort();
}

#[tokio::test]
async fn the_socket_is_roots_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("made/for/it/sluice.sock");
    let serving = serve(&path, Vec::new);
    let mode =
        |path: &Path| std::fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().expect("a directory")), 0o700);
    serving.abort();
}

#[tokio::test]
async fn the_newer_agent_takes_the_path_and_the_older_leaves_it_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("sluice.sock");
    let who = || at(&path, |path| client::get(path, "/readyz").map(|answer| answer.body));
    let older = serve(&path, || vec!["older".to_owned()]);
    assert_eq!(who().await.expect("it answers"), "older\n");
    let newer = serve(&path, || vec!["newer".to_owned()]);
    assert_eq!(who().await.expect("it answers"), "newer\n");
    older.abort();
    let _ = older.await;
    assert_eq!(who().await.expect("it answers still"), "newer\n");
    newer.abort();
    let _ = newer.await;
    assert!(!path.exists(), "nothing is left behind");
    assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0);
}

#[tokio::test]
async fn a_socket_that_a_killed_agent_left_is_replaced_and_other_files_are_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("sluice.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("it is ours"));
    let serving = serve(&path, Vec::new);
    assert!(at(&path, |path| client::get(path, "/healthz")).await.is_ok());
    serving.abort();

    let file = directory.path().join("notes");
    std::fs::write(&file, "mine").expect("it is ours");
    let error = AdminSocket::bind(&file, pages(Vec::new)).expect_err("that is no socket").to_string();
    assert!(error.contains("no socket is there") && error.contains("notes"), "{error}");
    assert_eq!(std::fs::read(&file).expect("it is still there"), b"mine");
    let long = directory.path().join("a".repeat(200));
    let error =
        AdminSocket::bind(&long, pages(Vec::new)).expect_err("no socket has such a long name").to_string();
    assert!(error.starts_with("--admin-socket /"), "{error}");
    assert!(!std::fs::symlink_metadata(&path).is_ok_and(|file| !file.file_type().is_socket()));
}

#[tokio::test]
async fn the_page_is_served_with_a_strict_policy_and_once() {
    let address = start(Vec::new);
    let answer = exchange(address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.starts_with("<!doctype html>"), "{answer}");
    for header in
        ["content-security-policy: default-src 'none'; script-src 'self';", "x-content-type-options: nosniff"]
    {
        assert!(head.contains(header), "{head}");
    }
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).expect("a tag");
    let again = format!("GET / HTTP/1.1\r\nhost: a\r\nif-none-match: {tag}\r\nconnection: close\r\n\r\n");
    let answer = exchange(address, &again).await;
    assert!(answer.starts_with("HTTP/1.1 304 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        for path in ["/", "/page/main.js", "/api/overview", "/api/service", "/api/lane", "/api/events"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            let answer = exchange(address, &request).await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn an_agent_that_knows_nothing_yet_says_so() {
    let address = start(Vec::new);
    let (status, body) = get(address, "/api/overview").await;
    let overview: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &overview["not_ready"][0]), (200, &"it has just started".into()));
    assert_eq!(overview["services"].as_array().map(Vec::len), Some(0));
    for (query, status, part) in [
        ("", 400, "namespace, name and port"),
        ("?namespace=shop", 400, "needed together"),
        ("?namespace=shop&name=orders&port=http", 400, "port: a number"),
        ("?namespace=shop&name=orders&port=80&seconds=-1", 400, "seconds: a number from 0 to 900"),
        ("?namespace=shop&name=orders&port=80", 404, "no managed service"),
        ("?namespace=%00&name=%ff&port=80", 404, "no managed service"),
    ] {
        let (got, body) = get(address, &format!("/api/service{query}")).await;
        assert!(got == status && body.contains(part), "{query}: {got} {body}");
    }
    assert_eq!(get(address, "/api/events?namespace=shop").await.0, 400);
    for (query, status, part) in [
        ("", 400, "tag says which lane"),
        ("?namespace=shop", 400, "tag says which lane"),
        ("?tag=gray", 404, "no lane of that name"),
        ("?tag=gray&namespace=shop", 404, "no lane of that name"),
        ("?tag=%00%20", 404, "no lane of that name"),
    ] {
        let (got, body) = get(address, &format!("/api/lane{query}")).await;
        assert!(got == status && body.contains(part), "{query}: {got} {body}");
    }
}
