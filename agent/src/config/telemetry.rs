//! What is sent to OpenTelemetry collectors: traces, and metrics for those who do not scrape them.

use std::time::Duration;

use clap::Args;

use super::number::whole;
use crate::observe::{
    otlp::{Address, Attribute, Protocol},
    sampling::Ratio,
    trace::context::Propagation,
};

/// Flags about telemetry that is sent.
#[derive(Args, Clone, Debug)]
pub struct Telemetry {
    /// The OpenTelemetry Collector that gets the spans of sampled requests, as in
    /// `http://otel-collector.monitoring:4317` [default: no spans are made, and trace headers are passed on unchanged]
    #[arg(long, value_name = "URL", env = "SLUICE_OTLP_TRACES")]
    pub otlp_traces: Option<Address>,

    /// The OpenTelemetry Collector that gets the metrics of /metrics [default: they are not sent]
    #[arg(long, value_name = "URL", env = "SLUICE_OTLP_METRICS")]
    pub otlp_metrics: Option<Address>,

    /// Protocol of the Collectors: OTLP over gRPC (usually port 4317), or over HTTP with protobuf (4318)
    #[arg(long, value_name = "PROTOCOL", env = "SLUICE_OTLP_PROTOCOL", default_value = "grpc")]
    pub otlp_protocol: Protocol,

    /// Resource attribute of spans and metrics; may be given more than once. It overrides service.name,
    /// service.version, service.instance.id and k8s.node.name, which are set by default
    #[arg(long, value_name = "KEY=VALUE", env = "SLUICE_OTLP_RESOURCE_ATTRIBUTE", value_delimiter = ',')]
    pub otlp_resource_attribute: Vec<Attribute>,

    /// Interval at which metrics are sent
    #[arg(long, value_name = "SECONDS", env = "SLUICE_OTLP_INTERVAL", default_value = "60", value_parser = interval)]
    pub otlp_interval: Duration,

    /// Formats of trace headers: w3c, b3, b3-multi; may be given more than once, then the first that a request has
    /// counts
    #[arg(
        long,
        value_name = "FORM",
        env = "SLUICE_TRACE_PROPAGATION",
        value_delimiter = ',',
        default_value = "w3c"
    )]
    pub trace_propagation: Vec<Propagation>,

    /// Whether a request that a pod with `sluice.dev/propagation: trace` sends gets a `traceparent` of its own B3 headers, where it has
    /// none, its trace came to the pod, and they say clearly who sends it and whether it is recorded; and, with `thread`, whether one
    /// without any gets that of the request which is handled: `enabled` or `disabled`.
    /// No trace is begun by it, no header is changed, and B3 is not written
    #[arg(
        long,
        value_name = "STATE",
        env = "SLUICE_TRACE_LINK",
        default_value = "disabled",
        value_parser = super::enabled,
        action = clap::ArgAction::Set
    )]
    pub trace_link: bool,

    /// Head sampling ratio of requests without a trace: for how many of them a root span is made, from 0 (none) to 1
    #[arg(long, value_name = "RATIO", env = "SLUICE_TRACE_SAMPLING_RATIO", default_value = "0")]
    pub trace_sampling_ratio: Ratio,

    /// How many requests' spans may wait to be sent, at most 2 KiB each; beyond that spans are dropped and counted
    #[arg(
        long,
        value_name = "N",
        env = "SLUICE_TRACE_QUEUE",
        default_value_t = 4096,
        value_parser = whole::<u32>(16..=65_536)
    )]
    pub trace_queue: u32,
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds.into())),
        _ => Err("whole seconds from 1 to 3600".to_owned()),
    }
}
