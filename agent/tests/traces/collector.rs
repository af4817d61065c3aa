//! A trace collector on loopback that speaks OTLP over gRPC or HTTP.

use std::{convert::Infallible, sync::Mutex, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{Response, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::ResourceSpans,
};
use prost::Message;
use sluice::observe::trace::Protocol;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tonic::Status;

/// What the collector does instead of taking spans.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// UNAVAILABLE, or 503.
    Busy,
}

/// Ends when it is dropped.
pub(crate) struct Collector {
    pub(crate) endpoint: String,
    received: mpsc::UnboundedReceiver<ResourceSpans>,
    task: JoinHandle<()>,
}

impl Collector {
    /// The first requests meet the faults, in their order.
    pub(crate) async fn start(protocol: Protocol, faults: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (sender, received) = mpsc::unbounded_channel();
        let taker = Taker { sender, faults: Mutex::new(faults.to_vec()) };
        let task = match protocol {
            Protocol::Grpc => tokio::spawn(serve_grpc(listener, taker)),
            Protocol::Http => tokio::spawn(serve_http(listener, taker)),
        };
        Self { endpoint, received, task }
    }

    /// The next resource's spans.
    pub(crate) async fn next(&mut self, patience: Duration) -> ResourceSpans {
        let next = tokio::time::timeout(patience, self.received.recv()).await;
        next.expect("no spans came").expect("the collector is there")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Taker {
    sender: mpsc::UnboundedSender<ResourceSpans>,
    faults: Mutex<Vec<Fault>>,
}

impl Taker {
    fn take(&self, request: ExportTraceServiceRequest) -> Result<(), Fault> {
        let mut faults = self.faults.lock().unwrap();
        if !faults.is_empty() {
            return Err(faults.remove(0));
        }
        for spans in request.resource_spans {
            // A test that no longer looks does not miss them.
            let _ = self.sender.send(spans);
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl TraceService for Taker {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        self.take(request.into_inner()).map_err(|_| Status::unavailable("busy"))?;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn serve_grpc(listener: TcpListener, taker: Taker) {
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(taker));
    server.serve_with_incoming(incoming).await.unwrap();
}

async fn serve_http(listener: TcpListener, taker: Taker) {
    let taker = std::sync::Arc::new(taker);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let taker = taker.clone();
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let taker = taker.clone();
            async move {
                assert_eq!(request.uri().path(), "/v1/traces");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let request = ExportTraceServiceRequest::decode(body).unwrap();
                let status = if taker.take(request).is_ok() { 200 } else { 503 };
                Ok::<_, Infallible>(
                    Response::builder().status(status).body(Full::<Bytes>::default()).unwrap(),
                )
            }
        });
        tokio::spawn(async move {
            // A connection that the exporter ends is no failure.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
