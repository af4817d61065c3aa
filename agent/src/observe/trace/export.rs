//! Sends spans to a collector over OTLP. Runs on the agent's own runtime, not on the workers.

use std::{fmt, time::Duration};

use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use prometheus::IntCounter;
use tokio::{sync::mpsc, time::Instant};

use super::{Options, RequestSpan, span};
use crate::observe::otlp::Protocol;

/// Spans that go together.
const BATCH: usize = 512;
/// How long the first of a batch waits for others.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch, further attempts included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Takes spans from the queue and sends them.
pub struct Exporter {
    waiting: mpsc::Receiver<Box<RequestSpan>>,
    collector: SpanExporter,
    scope: InstrumentationScope,
    dropped: IntCounter,
    failing: bool,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    /// Must be called within a Tokio runtime.
    pub(super) fn new(
        options: &Options,
        waiting: mpsc::Receiver<Box<RequestSpan>>,
        dropped: IntCounter,
    ) -> Result<Self, ExporterBuildError> {
        let mut exporter = match options.protocol {
            Protocol::Grpc => SpanExporter::builder()
                .with_tonic()
                .with_endpoint(options.endpoint.as_str())
                .with_timeout(TIMEOUT)
                .build()?,
            Protocol::Http => SpanExporter::builder()
                .with_http()
                .with_endpoint(options.endpoint.path_of("/v1/traces"))
                .with_timeout(TIMEOUT)
                .build()?,
        };
        exporter.set_resource(&options.identity.resource());
        let scope = InstrumentationScope::builder("sluice").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { waiting, collector: exporter, scope, dropped, failing: false })
    }

    /// Sends until the last tracer is gone and the queue is empty.
    pub async fn run(mut self) {
        while let Some(first) = self.waiting.recv().await {
            let mut batch = span::spans(&first, &self.scope);
            let until = Instant::now() + PAUSE;
            while batch.len() < BATCH {
                match tokio::time::timeout_at(until, self.waiting.recv()).await {
                    Ok(Some(next)) => batch.extend(span::spans(&next, &self.scope)),
                    Ok(None) | Err(_) => break,
                }
            }
            self.send(batch).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        // The exporter tries again by itself what is worth it, within its time.
        match self.collector.export(batch).await {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("the OpenTelemetry Collector takes spans again");
            }
            Ok(()) => {}
            Err(error) => {
                self.dropped.inc_by(spans);
                if !self.failing {
                    self.failing = true;
                    tracing::warn!(
                        %error,
                        "cannot send spans to the OpenTelemetry Collector: they are dropped and counted until it takes them again",
                    );
                }
            }
        }
    }
}
