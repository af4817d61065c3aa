//! Numbers for Prometheus, in a registry of our own.
//!
//! What is counted for each request lives in a [`Series`], one for each (calling pod, service, lane): plain atomics,
//! found once and kept by the connection, so that nothing on a request's way takes a lock. Series hang on the
//! [`PodMetrics`] of the calling pod and go with it ([`Metrics::evict_pod`]); whoever still holds one may go on
//! counting, nobody will see it. What a service's rules decide is counted in its [`ServiceMetrics`], likewise.
//!
//! The rest are ordinary metrics of the `prometheus` crate; and rooms above this one hand in closures that are read
//! at each scrape ([`Metrics::pull`]).

mod families;
mod pods;
mod pull;
mod series;
mod services;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

pub use pods::{PodMetrics, ServiceSeries};
pub use pull::{Kind, Pulled, Write};
pub use series::{ActiveRequest, ActiveTunnel, LaneLabel, Series};
pub use services::{EjectionCause, FallbackAction, LimitDecision, ServiceMetrics};

/// How long the numbers of a pod that is gone can still be scraped.
const EVICTION_GRACE: Duration = Duration::from_secs(60);

/// What detection made of a caller's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    Http1,
    Http2,
    /// The first bytes are a TLS handshake: tunnelled.
    Tls,
    /// Declared as opaque: tunnelled without a look.
    Opaque,
    /// The caller waits for the server to speak: tunnelled.
    ServerFirst,
    /// The first bytes are neither HTTP nor TLS: tunnelled.
    Unknown,
    /// The caller left without a word.
    ClosedEarly,
    /// Declared HTTP, but the first bytes did not come in time.
    Timeout,
    /// Nobody was redirected: somebody dialled the listener itself.
    NotRedirected,
    /// Redirected, but the destination is no longer governed.
    Ungoverned,
    /// More than the pod's share.
    Overloaded,
}

impl Detection {
    const ALL: [(Self, &'static str); 11] = [
        (Self::Http1, "http1"),
        (Self::Http2, "http2"),
        (Self::Tls, "tls"),
        (Self::Opaque, "opaque"),
        (Self::ServerFirst, "server_first"),
        (Self::Unknown, "unknown"),
        (Self::ClosedEarly, "closed_early"),
        (Self::Timeout, "timeout"),
        (Self::NotRedirected, "not_redirected"),
        (Self::Ungoverned, "ungoverned"),
        (Self::Overloaded, "overloaded"),
    ];
}

/// How an attempt to connect to an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    Opened,
    Refused,
    Unreachable,
    Timeout,
    /// No socket could be made in the pod's network.
    Failed,
}

impl Connect {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Opened, "opened"),
        (Self::Refused, "refused"),
        (Self::Unreachable, "unreachable"),
        (Self::Timeout, "timeout"),
        (Self::Failed, "failed"),
    ];
}

/// What became of a request's tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagOutcome {
    /// Its lane answered.
    Routed,
    /// The baseline answered.
    FellBack,
    /// Nobody could.
    Refused,
    /// It was no tag, and was ignored.
    Invalid,
}

impl TagOutcome {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Routed, "routed"),
        (Self::FellBack, "fell_back"),
        (Self::Refused, "refused"),
        (Self::Invalid, "invalid"),
    ];
}

/// Why a request was tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    /// The connection was refused.
    ConnectRefused,
    /// HTTP/2: the stream was refused before it was processed.
    StreamRefused,
    /// A pooled connection was closed by the endpoint before it took the request.
    StaleConnection,
    /// By policy: the answer's HTTP status, or its gRPC status.
    Status,
    /// By policy: the connection broke before the answer.
    Reset,
    /// By policy: the attempt's time ran out.
    Timeout,
}

impl RetryCause {
    const ALL: [(Self, &'static str); 6] = [
        (Self::ConnectRefused, "connect_refused"),
        (Self::StreamRefused, "stream_refused"),
        (Self::StaleConnection, "stale_connection"),
        (Self::Status, "status"),
        (Self::Reset, "reset"),
        (Self::Timeout, "timeout"),
    ];
}

/// All numbers of this agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pods: Arc<pods::Pods>,
    services: Arc<services::Services>,
    detections: [IntCounter; Detection::ALL.len()],
    connects: [IntCounter; Connect::ALL.len()],
    /// Connections from callers that are open now.
    pub callers_open: IntGauge,
    /// Connections to endpoints that are open now, idle ones in pools included.
    pub endpoints_open: IntGauge,
    /// Access log lines that were dropped because they could not be written fast enough.
    pub access_log_dropped: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let connections = counters(
            &registry,
            "sluice_connections_total",
            "Connections accepted from pods, by what detection made of them.",
            &["outcome"],
        );
        let connects = counters(
            &registry,
            "sluice_endpoint_connects_total",
            "Attempts to connect to an endpoint, by how they ended.",
            &["outcome"],
        );
        let open = register(
            &registry,
            IntGaugeVec::new(
                Opts::new(
                    "sluice_connections_open",
                    "Connections that are open now, by who is at the other end.",
                ),
                &["peer"],
            ),
        );
        let access_log_dropped = register(
            &registry,
            IntCounter::new(
                "sluice_access_log_dropped_total",
                "Access log lines dropped because they could not be written fast enough.",
            ),
        );
        let build = register(
            &registry,
            IntGaugeVec::new(Opts::new("sluice_build_info", "The running build; always 1."), &["version"]),
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let services = Arc::<services::Services>::default();
        let pods = Arc::new(pods::Pods::new(Arc::clone(&services)));
        registry
            .register(Box::new(services::Collected::new(Arc::clone(&services))))
            .expect("names are constant and distinct");
        registry
            .register(Box::new(families::Families::new(Arc::clone(&pods))))
            .expect("names are constant and distinct");
        Self {
            detections: Detection::ALL.map(|(_, outcome)| connections.with_label_values(&[outcome])),
            connects: Connect::ALL.map(|(_, outcome)| connects.with_label_values(&[outcome])),
            callers_open: open.with_label_values(&["caller"]),
            endpoints_open: open.with_label_values(&["endpoint"]),
            access_log_dropped,
            registry,
            pods,
            services,
        }
    }

    /// Counts a caller's connection.
    pub fn detected(&self, outcome: Detection) {
        self.detections[outcome as usize].inc();
    }

    /// Counts an attempt to connect to an endpoint.
    pub fn connected(&self, outcome: Connect) {
        self.connects[outcome as usize].inc();
    }

    /// The numbers of a calling pod, to be held as long as the pod is enrolled, until [`Self::evict_pod`] is called as
    /// often as this was. A pod that was evicted less than the grace ago gets its old ones back.
    pub fn pod(&self, uid: &Arc<str>, namespace: &Arc<str>, name: &Arc<str>) -> Arc<PodMetrics> {
        self.pods.get(uid, namespace, name)
    }

    /// One who asked for the pod's numbers needs them no longer. If that was the last the pod is gone: after a grace its
    /// numbers are too. What still holds its series may go on counting unseen.
    pub fn evict_pod(&self, uid: &str) {
        self.pods.evict(uid, Instant::now());
    }

    /// Forgets services that are gone, after a grace. To be called now and then.
    pub fn retain_services(&self, exists: impl Fn(&str, &str, u16) -> bool) {
        self.services.retain(exists, Instant::now());
    }

    /// The numbers of a service port.
    pub fn service(&self, namespace: &Arc<str>, service: &Arc<str>, port: u16) -> Arc<ServiceMetrics> {
        self.services.get(namespace, service, port)
    }

    /// Adds metrics that are read from elsewhere at each scrape.
    pub fn pull(&self, pulled: Pulled) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(pull::PullCollector::new(pulled)?))
    }

    /// Everything in the text format of Prometheus.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.render_at(Instant::now())
    }

    fn render_at(&self, now: Instant) -> Result<String, prometheus::Error> {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        // After the scrape, so that even the first one after the grace has seen the last numbers.
        self.pods.purge(now);
        Ok(text)
    }
}

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names and labels are constant and valid");
    registry.register(Box::new(metric.clone())).expect("names are constant and distinct");
    metric
}

#[cfg(test)]
mod tests;
