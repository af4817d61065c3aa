//! Numbers for Prometheus, in a registry of our own.
//!
//! What is counted for each request lives in a [`Series`], one for each (calling pod, service, lane): plain atomics,
//! found once and kept by the connection, so that nothing on a request's way takes a lock. Series hang on the
//! [`PodMetrics`] of the calling pod and go with it ([`Metrics::evict_pod`]); whoever still holds one may go on
//! counting, nobody will see it. What a service's rules decide is counted in its [`ServiceMetrics`], likewise.
//!
//! The rest are ordinary metrics of the `prometheus` crate; and rooms above this one hand in closures that are read
//! at each scrape ([`Metrics::pull`]). Whatever is registered is described too ([`Metrics::descriptions`]): the table
//! `deploy/reference/metrics.md` is made of that.
//!
//! How many lines a scrape has is bounded: words are closed lists ([`outcomes`]), rules have the names that policies
//! give them, and of pods, services and lanes there are no more than [`MAX_SERIES`] series.

mod describe;
mod distribution;
mod exemplars;
mod families;
mod meanings;
mod openmetrics;
mod outcomes;
mod pods;
mod process;
mod pull;
mod series;
mod services;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ahash::AHashMap;
use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

pub use describe::{Description, Meaning};
pub use outcomes::{
    AccessDecision, AttemptOutcome, Connect, Detection, EjectionCause, FallbackAction, LimitCounts,
    LimitDecision, MirrorOutcome, Overdue, RetryCause, TagOutcome,
};
pub use pods::{MAX_SERIES, PodMetrics, PodTags, ServiceSeries};
pub use pull::{Kind, Part, Pulled, PulledParts, Value, Write, WritePart};
pub use series::{ActiveRequest, ActiveTunnel, LaneLabel, Requests, Series};
pub use services::{ClientCounts, ClientName, RouteCounts, RouteRule, ServiceMetrics};

use crate::{clock::Nanos, govern::tag::Tag};

/// How long the numbers of a pod that is gone can still be scraped.
const EVICTION_GRACE: Duration = Duration::from_secs(60);

/// Who calls whom, of a [`Series`].
#[derive(Clone, Copy, Debug)]
pub struct Flow<'m> {
    pub source_namespace: &'m Arc<str>,
    pub source_pod: &'m Arc<str>,
    pub namespace: &'m Arc<str>,
    pub service: &'m Arc<str>,
    pub port: u16,
    pub lane: &'m LaneLabel,
}

/// All numbers of this agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Described,
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
    /// Spans that were dropped because the collector does not take them fast enough.
    pub spans_dropped: IntCounter,
    /// How often metrics could not be sent to a collector.
    pub exports_failed: IntCounter,
}

/// A registry that remembers what is in it.
#[derive(Debug, Default)]
struct Described {
    registry: Registry,
    descriptions: Mutex<Vec<Description>>,
}

impl Described {
    fn register(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        let descriptions = describe::describe(&*collector);
        self.registry.register(collector)?;
        self.descriptions.lock().unwrap_or_else(PoisonError::into_inner).extend(descriptions);
        Ok(())
    }

    /// What this room itself registers.
    fn own(&self, collector: impl Collector + 'static) {
        self.register(Box::new(collector)).expect("names are constant and distinct");
    }

    fn add<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect("names and labels are constant and valid");
        self.own(metric.clone());
        metric
    }

    /// Says what the values of a label mean.
    fn document(&self, metric: &str, label: &str, values: Vec<Meaning>) {
        let mut all = self.descriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let of = all.iter_mut().find(|one| one.name == metric && one.labels.iter().any(|own| own == label));
        if let Some(description) = of {
            description.values.push((label.to_owned(), values));
        }
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Described::default();
        let connections = registry.counters(
            "sluice_connections_total",
            "Connections accepted from pods, by the result of protocol detection.",
            &["outcome"],
        );
        let connects = registry.counters(
            "sluice_upstream_connects_total",
            "Attempts to connect to an endpoint, by result. Each address of a dual-stack endpoint that is tried counts.",
            &["outcome"],
        );
        let open = registry.add(IntGaugeVec::new(
            Opts::new("sluice_connections_open", "Connections that are open, by side."),
            &["peer"],
        ));
        let access_log_dropped = registry.add(IntCounter::new(
            "sluice_access_log_dropped_total",
            "Access log lines that were dropped because they could not be written fast enough.",
        ));
        let spans_dropped = registry.add(IntCounter::new(
            "sluice_spans_dropped_total",
            "Spans that were dropped because the OpenTelemetry Collector did not take them, or not fast enough.",
        ));
        let exports_failed = registry.add(IntCounter::new(
            "sluice_metrics_export_failures_total",
            "Exports of metrics that failed. Metrics are cumulative, so the next export makes up for it.",
        ));
        let overflowed = registry.add(IntCounter::new(
            "sluice_series_overflowed_total",
            "Series of a pod, service and lane that were counted for the service `other` instead, because there were too many.",
        ));
        let build = registry.add(IntGaugeVec::new(
            Opts::new("sluice_build_info", "Version of the running agent; always 1."),
            &["version"],
        ));
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let services = Arc::<services::Services>::default();
        let pods = Arc::new(pods::Pods::new(Arc::clone(&services), overflowed));
        registry.own(services::Collected::new(Arc::clone(&services)));
        registry.own(families::Families::new(Arc::clone(&pods)));
        registry.own(process::Process::new());
        meanings::document(&registry);
        Self {
            detections: Detection::ALL.map(|(_, outcome, _)| connections.with_label_values(&[outcome])),
            connects: Connect::ALL.map(|(_, outcome, _)| connects.with_label_values(&[outcome])),
            callers_open: open.with_label_values(&["client"]),
            endpoints_open: open.with_label_values(&["upstream"]),
            access_log_dropped,
            spans_dropped,
            exports_failed,
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

    /// What became of tags in each pod that has to do with them.
    pub(crate) fn tags(&self, now: Nanos) -> Vec<PodTags> {
        self.pods.tags(now)
    }

    /// The numbers of a calling pod, to be held as long as the pod is enrolled, until [`Self::evict_pod`] is called as
    /// often as this was. One of this name that was evicted less than the grace ago leaves its own ones to it.
    pub fn pod(&self, namespace: &Arc<str>, name: &Arc<str>) -> Arc<PodMetrics> {
        self.pods.get(namespace, name)
    }

    /// One who asked for the pod's numbers needs them no longer. If that was the last the pod is gone: after a grace its
    /// numbers are too. What still holds its series may go on counting unseen.
    pub fn evict_pod(&self, namespace: &Arc<str>, name: &Arc<str>) {
        self.pods.evict(namespace, name, Instant::now());
    }

    /// Forgets services and lanes that are gone, after a grace. To be called now and then. `exists` is asked about
    /// lanes (`Some`) and about services and their baselines (`None`).
    pub fn retain_services(&self, exists: impl Fn(&str, &str, u16, Option<&Tag>) -> bool) {
        self.retain_services_at(exists, Instant::now());
    }

    fn retain_services_at(&self, exists: impl Fn(&str, &str, u16, Option<&Tag>) -> bool, now: Instant) {
        self.services.retain(|namespace, service, port| exists(namespace, service, port, None), now);
        self.pods.retain_series(&exists, now);
    }

    /// The numbers of a service port.
    pub fn service(&self, namespace: &Arc<str>, service: &Arc<str>, port: u16) -> Arc<ServiceMetrics> {
        self.services.get(namespace, service, port)
    }

    /// How many requests each rule of a route has held for.
    pub fn route_totals(&self) -> AHashMap<RouteRule, u64> {
        self.services.route_totals()
    }

    /// Shows each series of a pod and one service, with who calls whom.
    pub fn for_each_series(&self, mut visit: impl FnMut(&Flow<'_>, &Arc<Series>)) {
        for pod in self.pods.all() {
            pod.for_each(|key, series| {
                let Some(port) = key.port else { return };
                let flow = Flow {
                    source_namespace: &pod.namespace,
                    source_pod: &pod.name,
                    namespace: &key.namespace,
                    service: &key.service,
                    port,
                    lane: &key.lane,
                };
                visit(&flow, series);
            });
        }
    }

    /// Adds metrics that are read from elsewhere at each scrape.
    pub fn pull(&self, pulled: Pulled) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(pull::PullCollector::new(pulled)?))
    }

    /// Adds metrics that are read together at each scrape.
    pub fn pull_parts(&self, pulled: PulledParts) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(pull::PartsCollector::new(pulled)?))
    }

    /// Whether anybody on this node has called the service since it is there.
    pub fn is_called(&self, namespace: &Arc<str>, service: &Arc<str>, port: u16) -> bool {
        self.services.has(namespace, service, port)
    }

    /// Says what the values of a label mean that has a closed list of them; for the reference.
    pub fn document(
        &self,
        metric: &str,
        label: &str,
        values: impl IntoIterator<Item = (impl Into<String>, &'static str)>,
    ) {
        let values = values.into_iter().map(|(value, meaning)| (value.into(), meaning)).collect();
        self.registry.document(metric, label, values);
    }

    /// What is served, by name.
    pub fn descriptions(&self) -> Vec<Description> {
        let mut all = self.registry.descriptions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort();
        all
    }

    /// Everything in the text format of Prometheus.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.render_as(Format::Text)
    }

    /// Everything, as whoever asks understands it.
    pub fn render_as(&self, format: Format) -> Result<String, prometheus::Error> {
        self.render_at(format, Instant::now())
    }

    /// Everything, to be told in another format.
    pub fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.gather_at(Instant::now())
    }

    fn gather_at(&self, now: Instant) -> Vec<prometheus::proto::MetricFamily> {
        let families = self.registry.registry.gather();
        // After the scrape, so that even the first one after the grace has seen the last numbers.
        self.pods.purge(now);
        families
    }

    fn render_at(&self, format: Format, now: Instant) -> Result<String, prometheus::Error> {
        match format {
            Format::Text => TextEncoder::new().encode_to_string(&self.gather_at(now)),
            Format::OpenMetrics => {
                // Read first: by then the request of each is counted, or it is about to be.
                let exemplars = families::exemplars(&self.pods);
                let families = self.gather_at(now);
                Ok(openmetrics::encode(&families, |name, labels| exemplars.of(name, labels)))
            }
        }
    }
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format, which every scraper understands.
    Text,
    /// OpenMetrics 1.0, which has exemplars.
    OpenMetrics,
}

impl Format {
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Text => prometheus::TEXT_FORMAT,
            Self::OpenMetrics => openmetrics::MEDIA_TYPE,
        }
    }
}

#[cfg(test)]
mod tests;
