//! Metrics for a collector: what `/metrics` serves, sent every so often, for those who do not scrape.
//!
//! There is one set of numbers. Each time they are gathered as for a scrape and written in OTLP's form: counters and
//! histograms are cumulative, so what could not be sent is told by what is sent next, and nothing has to be kept. Names stay
//! those of `deploy/reference/metrics.md`, as the specification of compatibility with Prometheus allows.
//! <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>

mod convert;

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient,
};
use prometheus::IntCounter;
use prost::Message as _;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::{Channel, Endpoint};

use super::{Address, Identity, Protocol};
use crate::observe::metrics::Metrics;

/// How long the collector may take for a message.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Points that go in one message. A collector takes 4 MiB by default, and a histogram's point has at most about a KiB.
const POINTS: usize = 2000;

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct Options {
    pub endpoint: Address,
    pub protocol: Protocol,
    pub interval: Duration,
    pub identity: Identity,
}

/// Sends the metrics. Runs on the agent's own runtime, not on the workers.
#[derive(Debug)]
pub struct Exporter {
    collector: Collector,
    metrics: Arc<Metrics>,
    interval: Duration,
    identity: Identity,
    /// Since when counters count.
    since: SystemTime,
    failures: IntCounter,
    failing: bool,
}

#[derive(Debug)]
enum Collector {
    Grpc(MetricsServiceClient<Channel>),
    Http { client: Box<Client<HttpConnector, Full<Bytes>>>, url: http::Uri },
}

/// Why the collector did not take the metrics.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("{0}")]
    Status(#[from] tonic::Status),
    #[error("cannot connect: {0}")]
    Connect(#[from] hyper_util::client::legacy::Error),
    #[error("the response was cut off: {0}")]
    Answer(#[from] hyper::Error),
    #[error("the collector responded with {0}")]
    Refused(http::StatusCode),
    #[error("no response within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// An address that cannot be one after all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Grpc(#[from] tonic::transport::Error),
    #[error(transparent)]
    Http(#[from] http::uri::InvalidUri),
}

impl Exporter {
    /// Must be called within a Tokio runtime. `failures` counts how often the metrics could not be sent.
    pub fn new(options: Options, metrics: Arc<Metrics>, failures: IntCounter) -> Result<Self, StartError> {
        let Options { endpoint, protocol, interval, identity } = options;
        let collector = match protocol {
            Protocol::Grpc => {
                let endpoint = Endpoint::from_shared(endpoint.as_str().to_owned())?.connect_timeout(TIMEOUT);
                Collector::Grpc(MetricsServiceClient::new(endpoint.connect_lazy()))
            }
            Protocol::Http => Collector::Http {
                client: Box::new(Client::builder(TokioExecutor::new()).build_http()),
                url: endpoint.path_of("/v1/metrics").parse()?,
            },
        };
        let since = SystemTime::now();
        Ok(Self { collector, metrics, interval, identity, since, failures, failing: false })
    }

    /// Sends them every so often, and once more when it is told to `stop`.
    pub async fn run(mut self, stop: impl Future) {
        let mut stop = pin!(stop);
        let mut every = interval(self.interval);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once: there is nothing to tell yet.
        every.tick().await;
        loop {
            let last = tokio::select! {
                _ = every.tick() => false,
                _ = &mut stop => true,
            };
            self.export().await;
            if last {
                return;
            }
        }
    }

    async fn export(&mut self) {
        let messages =
            convert::messages(&self.metrics.gather(), &self.identity, self.since, SystemTime::now(), POINTS);
        for message in messages {
            let sent = timeout(TIMEOUT, self.collector.send(message)).await;
            if let Err(error) = sent.unwrap_or(Err(SendError::Timeout)) {
                self.failures.inc();
                if !self.failing {
                    self.failing = true;
                    tracing::warn!(%error, "cannot send metrics to the OpenTelemetry Collector: the next export retries");
                }
                // What is left goes with the next, which has all of it.
                return;
            }
        }
        if std::mem::take(&mut self.failing) {
            tracing::info!("the OpenTelemetry Collector takes metrics again");
        }
    }
}

impl Collector {
    async fn send(&mut self, message: ExportMetricsServiceRequest) -> Result<(), SendError> {
        match self {
            Self::Grpc(client) => {
                client.export(message).await?;
            }
            Self::Http { client, url } => {
                let mut request = http::Request::post(url.clone());
                if let Some(headers) = request.headers_mut() {
                    let protobuf = http::HeaderValue::from_static("application/x-protobuf");
                    headers.insert(http::header::CONTENT_TYPE, protobuf);
                }
                // A method, a checked address and a constant header: nothing of it can be wrong.
                let Ok(request) = request.body(Full::from(message.encode_to_vec())) else { return Ok(()) };
                let answer = client.request(request).await?;
                let status = answer.status();
                // To its end, so that the connection can be used again.
                answer.into_body().collect().await?;
                if !status.is_success() {
                    return Err(SendError::Refused(status));
                }
            }
        }
        Ok(())
    }
}
