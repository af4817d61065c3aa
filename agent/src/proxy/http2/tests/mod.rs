//! Callers and endpoints of our own, on loopback, with the real workers between them.

mod bodies;
mod connecting;
mod entry;
mod failing;
mod failures;
mod governed;
mod hostile;
mod idle;
mod limits;
mod raw;
mod rfc;
mod routes;
mod routing;
mod slow;
mod traces;

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use h2::{Reason as Code, RecvStream, client, server, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use sluice_tests::nobody;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::pool;
use crate::{
    clock::Nanos,
    cluster::model::{Current, Destination, Protocol, Service, Snapshot, Workload},
    govern::{endpoint::Endpoint, lane::TagNames, tag::Tag},
    observe::{access_log::AccessLog, metrics::Metrics, trace::Tracer},
    proxy::{Limits, OpenPod, Options, Origin, Pod, Proxy, SocketOptions, testing::Double},
};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(120);

async fn soon<F: Future>(what: F) -> F::Output {
    timeout(LIMIT, what).await.expect("it takes no two minutes")
}

const SERVICE: &str = "10.96.0.1:80";

/// What the kernel is said to keep for a connection: far more than the agent does.
const SOCKET_MEMORY: usize = 1 << 30;

/// A pod whose every connection was meant for [`SERVICE`].
struct Loopback;

impl Double for Loopback {
    fn origin(&self) -> Option<Origin> {
        let destination = SERVICE.parse().expect("an address");
        Some(Origin { destination, socket: 0, options: SocketOptions::default() })
    }

    fn memory(&self) -> usize {
        SOCKET_MEMORY
    }
}

/// A proxy with one pod and one service.
struct Bed {
    proxy: Proxy,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    current: Current,
    open: Option<OpenPod>,
}

/// Endpoints by tag; `None` is baseline.
fn bed(endpoints: &[(SocketAddr, Option<&str>)]) -> Bed {
    bed_with(endpoints, 100)
}

/// A cluster with one service.
fn cluster(generation: u64, endpoints: &[(SocketAddr, Option<&str>)]) -> Snapshot {
    cluster_with(generation, endpoints, |service| service)
}

fn cluster_with(
    generation: u64,
    endpoints: &[(SocketAddr, Option<&str>)],
    edit: impl FnOnce(Service) -> Service,
) -> Snapshot {
    let parse = |tag: &str| tag.parse::<Tag>().expect("a tag");
    let all: Vec<_> = endpoints
        .iter()
        .map(|(address, tag)| Arc::new(Endpoint { tag: tag.map(parse), ..Endpoint::new(*address) }))
        .collect();
    let service =
        Service { protocol: Protocol::Http2, ..Service::new("shop", "orders", 80).with_endpoints(all) };
    let mut snapshot = Snapshot { generation, ..Snapshot::default() };
    let destination = Destination { service: Arc::new(edit(service)), pinned: None };
    snapshot.destinations.insert(SERVICE.parse().expect("an address"), destination);
    snapshot
}

fn bed_with(endpoints: &[(SocketAddr, Option<&str>)], connections_per_pod: usize) -> Bed {
    bed_within(endpoints, Limits { connections_per_pod, ..Limits::default() })
}

fn bed_within(endpoints: &[(SocketAddr, Option<&str>)], limits: Limits) -> Bed {
    bed_told_of(endpoints, limits, AccessLog::off(), Tracer::off(&[]))
}

fn bed_told_of(
    endpoints: &[(SocketAddr, Option<&str>)],
    limits: Limits,
    access_log: AccessLog,
    tracer: Tracer,
) -> Bed {
    let current = Arc::new(ArcSwap::from_pointee(cluster(1, endpoints)));
    let metrics = Arc::new(Metrics::new());
    let options = Options {
        workers: 1,
        current: current.clone(),
        metrics: metrics.clone(),
        access_log,
        tracer,
        tag_names: Arc::new(TagNames::new(&[http::HeaderName::from_static("x-mse-tag")]).expect("a name")),
        limits,
        trace_link: false,
        drain_idle_timeout: Duration::ZERO,
    };
    let proxy = Proxy::start(&options).expect("threads can be started");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    let open = Some(proxy.open(&gateway(), vec![listener]));
    Bed { proxy, address, metrics, current, open }
}

/// The pod that calls.
fn gateway() -> Arc<Pod> {
    let workload = ArcSwap::from_pointee(Workload::new("uid", "shop", "gateway"));
    Arc::new(Pod::new(workload, Arc::new(Loopback)))
}

impl Bed {
    /// Puts another snapshot in force.
    fn change(
        &self,
        generation: u64,
        endpoints: &[(SocketAddr, Option<&str>)],
        edit: impl FnOnce(Service) -> Service,
    ) {
        self.current.store(Arc::new(cluster_with(generation, endpoints, edit)));
    }

    async fn caller(&self) -> client::SendRequest<Bytes> {
        self.caller_with(&client::Builder::new()).await
    }

    async fn caller_with(&self, builder: &client::Builder) -> client::SendRequest<Bytes> {
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        let (sender, connection) = builder.handshake(stream).await.expect("it speaks HTTP/2");
        tokio::spawn(async move {
            let _ = connection.await;
        });
        sender
    }

    /// Waits until a metric line with all these parts has a value that passes.
    async fn metric(&self, parts: &[&str], passes: impl Fn(u64) -> bool) {
        soon(async {
            loop {
                let text = self.metrics.render().expect("it can be rendered");
                let lines = text
                    .lines()
                    .filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
                let mut values = lines.map(|line| line.rsplit(' ').next().and_then(|v| v.parse().ok()));
                if values.next().flatten().is_some_and(&passes) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// An endpoint that answers each stream with `answer`, one task each.
async fn endpoint<A, F>(answer: A) -> SocketAddr
where
    A: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    endpoint_with(server::Builder::new(), answer).await
}

async fn endpoint_with<A, F>(builder: server::Builder, answer: A) -> SocketAddr
where
    A: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, builder) = (answer.clone(), builder.clone());
            tokio::spawn(async move {
                let Ok(mut streams) = builder.handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = streams.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
    address
}

/// An endpoint that answers 200 with its name and what it was asked in headers, and nothing else.
async fn named(name: &'static str) -> SocketAddr {
    endpoint(move |request, mut respond| async move {
        let mut response = Response::new(());
        response.headers_mut().insert("x-name", HeaderValue::from_static(name));
        let path = request.uri().path_and_query().map_or("", |path| path.as_str());
        response.headers_mut().insert("seen-path", path.parse().expect("a value"));
        for carrier in ["x-mse-tag", "baggage", "host"] {
            for value in request.headers().get_all(carrier) {
                response.headers_mut().append(
                    format!("seen-{carrier}").parse::<http::HeaderName>().expect("a name"),
                    value.clone(),
                );
            }
        }
        let _ = respond.send_response(response, true);
    })
    .await
}

fn get() -> Request<()> {
    Request::get("http://orders.shop/things?a=b").body(()).expect("a request")
}

fn post(media_type: &'static str) -> Request<()> {
    Request::post("http://orders.shop/things").header("content-type", media_type).body(()).expect("a request")
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).map_or("", |value| value.to_str().expect("text"))
}

async fn ask(caller: &mut client::SendRequest<Bytes>, request: Request<()>) -> Response<RecvStream> {
    let (response, _) = caller.send_request(request, true).expect("it takes requests");
    soon(response).await.expect("it answers")
}

async fn read(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = soon(body.data()).await {
        let data = data?;
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok((bytes, soon(body.trailers()).await?))
}

/// Echoes a body and its trailers, with as little held as can be.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    let mut back = respond.send_response(Response::new(()), false).expect("the caller is there");
    while let Some(Ok(mut data)) = body.data().await {
        while !data.is_empty() {
            back.reserve_capacity(data.len());
            let Some(Ok(room)) = poll_fn(|cx| back.poll_capacity(cx)).await else { return };
            let part = data.split_to(room.min(data.len()));
            let _ = body.flow_control().release_capacity(part.len());
            back.send_data(part, false).expect("the caller is there");
        }
    }
    match body.trailers().await {
        Ok(Some(trailers)) => back.send_trailers(trailers).expect("the caller is there"),
        _ => back.send_data(Bytes::new(), true).expect("the caller is there"),
    }
}
