//! What is told outside of the agent: the access log, the spans, and metrics that are sent. Begins before the first request, and ends, within
//! limits, behind the last.

use std::{io, sync::Arc, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use super::RunError;
use crate::{
    config::{AccessLogFormat, Config},
    observe::{
        access_log::{AccessLog, File, Style, Writer},
        metrics::Metrics,
        otlp::{self, Identity},
        trace::{self, Tracer},
    },
};

/// How long a stopping agent waits for the access log's reader to take its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How long it waits for collectors to take its last spans and metrics.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What runs, to be ended.
pub(super) struct Telemetry {
    writer: Option<Writer>,
    spans: Option<JoinHandle<()>>,
    /// Dropping the first tells it to end.
    metrics: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Telemetry {
    /// Starts what the operator asks for. What the proxy is given must be dropped before [`Self::end`].
    pub(super) fn start(
        config: &Config,
        metrics: &Arc<Metrics>,
    ) -> Result<(AccessLog, Tracer, Self), RunError> {
        let identity = Identity::new(config.node.as_deref(), &config.telemetry.otlp_resource_attribute);
        let (access_log, writer) = open_log(config, metrics)?;
        let (tracer, spans) = start_tracer(config, metrics, &identity)?;
        let metrics = send_metrics(config, metrics, identity)?;
        Ok((access_log, tracer, Self { writer, spans, metrics }))
    }

    /// Waits for the last of it, not for ever.
    pub(super) async fn end(self) {
        let Self { writer, spans, metrics } = self;
        let lines = async {
            let Some(writer) = writer else { return };
            if timeout(LAST_LINES, tokio::task::spawn_blocking(|| writer.join())).await.is_err() {
                tracing::warn!("the access log's last lines could not be written in time");
            }
        };
        let metrics = metrics.map(|(stop, metrics)| {
            drop(stop);
            metrics
        });
        tokio::join!(lines, last_words("spans", spans), last_words("metrics", metrics));
    }
}

async fn last_words(what: &str, exporter: Option<JoinHandle<()>>) {
    let Some(mut exporter) = exporter else { return };
    if timeout(LAST_WORDS, &mut exporter).await.is_err() {
        exporter.abort();
        tracing::warn!("the collector did not take the last {what} in time");
    }
}

fn open_log(config: &Config, metrics: &Metrics) -> Result<(AccessLog, Option<Writer>), RunError> {
    let style = match config.access_log {
        AccessLogFormat::None => return Ok((AccessLog::off(), None)),
        AccessLogFormat::Text => Style::Text,
        AccessLogFormat::Json => Style::Json,
    };
    let (ratio, dropped) = (config.access_log_ratio, metrics.access_log_dropped.clone());
    let started = match &config.access_log_file {
        None => AccessLog::start(style, ratio, io::stdout(), dropped),
        Some(path) => {
            let file = File::open(path.clone())
                .map_err(|source| RunError::AccessLogFile { path: path.clone(), source })?;
            AccessLog::start(style, ratio, file, dropped)
        }
    };
    let (log, writer) = started.map_err(|source| RunError::Start { what: "access log", source })?;
    Ok((log, Some(writer)))
}

fn start_tracer(
    config: &Config,
    metrics: &Metrics,
    identity: &Identity,
) -> Result<(Tracer, Option<JoinHandle<()>>), RunError> {
    let told = &config.telemetry;
    let Some(endpoint) = &told.otlp_traces else { return Ok((Tracer::off(&told.trace_propagation), None)) };
    let options = trace::Options {
        endpoint: endpoint.clone(),
        protocol: told.otlp_protocol,
        propagation: told.trace_propagation.clone(),
        roots: told.trace_sampling_ratio,
        queue: told.trace_queue as usize,
        identity: identity.clone(),
    };
    let (tracer, exporter) = Tracer::start(&options, metrics.spans_dropped.clone())?;
    Ok((tracer, Some(tokio::spawn(exporter.run()))))
}

type Sending = (oneshot::Sender<()>, JoinHandle<()>);

fn send_metrics(
    config: &Config,
    metrics: &Arc<Metrics>,
    identity: Identity,
) -> Result<Option<Sending>, RunError> {
    let told = &config.telemetry;
    let Some(endpoint) = &told.otlp_metrics else { return Ok(None) };
    let options = otlp::metrics::Options {
        endpoint: endpoint.clone(),
        protocol: told.otlp_protocol,
        interval: told.otlp_interval,
        identity,
    };
    let failures = metrics.exports_failed.clone();
    let exporter = otlp::metrics::Exporter::new(options, metrics.clone(), failures)?;
    let (stop, stopped) = oneshot::channel();
    Ok(Some((stop, tokio::spawn(exporter.run(stopped)))))
}
