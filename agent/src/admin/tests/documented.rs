//! Every route on both listeners, held against the OpenAPI document.

use std::collections::BTreeSet;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::*;
use crate::{
    admin::routes::{self, Route, Verb, Who},
    capture::PodStatus,
    cluster::model::{Destination, Service, Workload},
    govern::endpoint::Endpoint,
    observe::{
        access_log::AccessLog,
        trace::{Tracer, context::Propagation},
    },
    proxy::{Limits, OpenPod, Options, Pod, Proxy, testing::Here},
};

/// An agent that governs `orders.shop:80`, has enrolled `shop/client` and knows a pod of the lane `gray`.
struct Shop(Arc<Snapshot>);

impl Shop {
    fn before(endpoint: SocketAddr) -> Self {
        let endpoint = Arc::new(Endpoint::new(endpoint));
        let service = Arc::new(Service::new("shop", "orders", 80).with_endpoints(vec![endpoint]));
        let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
        let address = SocketAddr::from(([10, 96, 0, 1], 80));
        snapshot.destinations.insert(address, Destination { service, pinned: None });
        snapshot.pods.insert("uid-1".into(), Arc::new(client()));
        let mut gray = Workload::new("uid-2", "shop", "orders-gray");
        gray.tag = "gray".parse().ok();
        snapshot.pods.insert("uid-2".into(), Arc::new(gray));
        Self(Arc::new(snapshot))
    }
}

fn client() -> Workload {
    Workload::new("uid-1", "shop", "client")
}

impl view::Agent for Shop {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.clone()
    }

    fn look(&self) -> view::Look {
        let workload = Arc::new(client());
        let pod = PodStatus::enrolled(workload);
        view::Look { snapshot: self.snapshot(), pods: [pod].into(), ..view::Look::default() }
    }
}

/// A proxy that carries what the pod calls.
fn proxy(snapshot: Arc<Snapshot>) -> (Proxy, OpenPod) {
    let proxy = Proxy::start(&Options {
        workers: 1,
        current: Arc::new(ArcSwap::new(snapshot)),
        metrics: Arc::new(Metrics::new()),
        access_log: AccessLog::off(),
        tracer: Tracer::off(&[Propagation::W3c]),
        tag_names: Arc::new(TagNames::new(&[http::HeaderName::from_static("x-mse-tag")]).expect("a name")),
        limits: Limits { connections_per_pod: 100, ..Limits::default() },
        trace_link: false,
        drain_idle_timeout: Duration::ZERO,
    })
    .expect("a thread");
    let pod = Pod::new(ArcSwap::from_pointee(client()), Arc::new(Here));
    let open = proxy.open(&Arc::new(pod), Vec::new());
    (proxy, open)
}

/// A server that answers every request alike.
async fn origin() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(ANY).await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer =
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nset-cookie: a=b\r\nconnection: close\r\n\r\nok";
            let _ = stream.read(&mut [0; 1000]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    address
}

/// An answer: the status, what it is, and the body (of a stream that does not end, what was there of it).
struct Heard {
    status: u16,
    media_type: String,
    body: String,
}

async fn hear(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Heard {
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    let heard = async {
        while stream.read_buf(&mut answer).await.expect("it answers") > 0 {
            let text = String::from_utf8_lossy(&answer);
            let head = text.split_once("\r\n\r\n").map(|(head, _)| head);
            if head.is_some_and(|head| head.contains("text/event-stream")) {
                break;
            }
        }
    };
    timeout(LIMIT, heard).await.expect("it answers in time");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let media_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
    Heard {
        status: head[9..12].parse().expect("a status"),
        media_type: media_type.to_owned(),
        body: body.to_owned(),
    }
}

fn requests(route: &Route) -> Vec<String> {
    let named: Vec<_> = route.parameters.iter().map(|it| format!("{}={}", it.name, it.example)).collect();
    let mut targets = vec![route.path.to_owned()];
    if !named.is_empty() {
        targets.push(format!("{}?{}", route.path, named.join("&")));
        targets.push(format!("{}?{}=%00%ff", route.path, route.parameters[0].name));
    }
    let bodies = match &route.takes {
        None => vec![String::new()],
        Some(taken) => {
            vec![taken.example.to_owned(), "\u{1b}[2J=\n".to_owned(), "a".repeat(taken.most_bytes + 1)]
        }
    };
    let request = |target: &str, body: &str| {
        let (verb, length) = (route.verb.as_str(), body.len());
        format!(
            "{verb} {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    };
    targets.iter().flat_map(|target| bodies.iter().map(move |body| request(target, body))).collect()
}

/// Whether the document foresees the answer.
fn check(document: &Value, route: &Route, request: &str, heard: &Heard) {
    let operation = &document["paths"][route.path][route.verb.as_str().to_lowercase()];
    let said = &operation["responses"][heard.status.to_string()];
    let what = format!(
        "{} {} answers {}",
        route.verb.as_str(),
        request.lines().next().unwrap_or_default(),
        heard.status
    );
    assert!(said.is_object(), "{what}, which is not documented: {}", heard.body);
    let content = &said["content"][&heard.media_type];
    assert!(content.is_object(), "{what} with {}, which is not documented", heard.media_type);
    if heard.media_type != "application/json" {
        return;
    }
    let body: Value = serde_json::from_str(&heard.body).unwrap_or_else(|error| panic!("{what}: {error}"));
    let schema = json!({"allOf": [content["schema"]], "components": document["components"]});
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    let wrong: Vec<_> =
        validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(wrong.is_empty(), "{what}: {wrong:#?}");
}

#[tokio::test]
async fn every_route_answers_as_the_document_says_on_both_listeners() {
    let shop = Shop::before(origin().await);
    let (proxy, _open) = proxy(shop.0.clone());
    let pages = pages_of(shop, Vec::new);
    pages.desk.open(proxy);
    let admin = Admin::bind(ANY, pages.clone()).expect("loopback can be bound");
    let address = admin.address();
    tokio::spawn(admin.serve());
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("sluice.sock");
    let socket = AdminSocket::bind(&path, pages).expect("the directory is ours");
    tokio::spawn(socket.serve());

    let (status, document) = get(address, "/openapi.json").await;
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.1")));
    let mut good = BTreeSet::new();
    for route in routes::all() {
        for request in requests(route) {
            let heard = hear(UnixStream::connect(&path).await.expect("it listens"), &request).await;
            check(&document, route, &request, &heard);
            if heard.status == 200 {
                good.insert((route.verb.as_str(), route.path));
            }
            let over_tcp = hear(TcpStream::connect(address).await.expect("it listens"), &request).await;
            if route.who == Who::Anybody {
                check(&document, route, &request, &over_tcp);
                assert_eq!(
                    (heard.status, &heard.media_type),
                    (over_tcp.status, &over_tcp.media_type),
                    "{request}"
                );
            } else {
                assert_eq!(over_tcp.status, 404, "{request}");
            }
        }
        assert!(
            good.contains(&(route.verb.as_str(), route.path)),
            "{} was never answered with 200",
            route.path
        );
    }
}

#[test]
fn metrics_are_documented_in_both_formats() {
    let content = &openapi::document()["paths"]["/metrics"]["get"]["responses"]["200"]["content"];
    let types: BTreeSet<_> = content.as_object().expect("media types").keys().map(String::as_str).collect();
    let wanted = ["application/openmetrics-text; version=1.0.0; charset=utf-8", "text/plain; version=0.0.4"];
    assert_eq!(types, wanted.into());
}

#[test]
fn nothing_is_changed_by_those_who_come_over_tcp() {
    for route in routes::all() {
        assert!(route.verb == Verb::Get || route.who == Who::Root, "{}", route.path);
    }
}

#[test]
fn the_document_names_each_operation_once_and_only_schemas_that_are_there() {
    let document = openapi::document();
    let mut names = BTreeSet::new();
    let mut operations = 0;
    for methods in document["paths"].as_object().expect("paths").values() {
        for operation in methods.as_object().expect("methods").values() {
            operations += 1;
            names.insert(operation["operationId"].as_str().expect("a name").to_owned());
        }
    }
    assert_eq!((operations, names.len()), (routes::all().len(), routes::all().len()));
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let mut named = text.split("\"$ref\":\"").skip(1).peekable();
    assert!(named.peek().is_some());
    for reference in named {
        let name = reference.split('"').next().and_then(|name| name.strip_prefix("#/components/schemas/"));
        assert!(name.is_some_and(|name| schemas.contains_key(name)), "{name:?}");
    }
}
