//! The series of all pods in the form of the `prometheus` crate, made anew at each scrape.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{
    distribution::Total,
    exemplars::{self, Kept},
    outcomes::{AttemptOutcome, CLASSES},
    pods::{Key, PodMetrics, Pods},
    series::{BOUNDS_NANOS, Series},
};
use crate::observe::reason::Reason;

/// The family with exemplars.
const DURATION: &str = "sluice_request_duration_seconds";
const SOURCE: [&str; 2] = ["source_namespace", "source_pod"];
const DESTINATION: [&str; 4] =
    ["destination_namespace", "destination_service", "destination_port", "destination_lane"];

/// The collector of everything that hangs on pods.
pub(super) struct Families {
    pods: Arc<Pods>,
    requests: Desc,
    attempts: Desc,
    duration: Desc,
    in_flight: Desc,
    tunnels: Desc,
    tunnels_in_flight: Desc,
    bytes: Desc,
    carriers: Desc,
    lost: Desc,
}

/// Label values, in the order of [`SOURCE`] and [`DESTINATION`].
type Labels = [String; SOURCE.len() + DESTINATION.len()];

/// What the series with the same labels add up to: there may be a lane that is called as no lane is.
#[derive(Default)]
struct Sum {
    answered: [u64; CLASSES.len()],
    request_faults: BTreeMap<(usize, usize), u64>,
    tunnels: u64,
    tunnel_faults: BTreeMap<usize, u64>,
    attempts: [u64; AttemptOutcome::ALL.len()],
    durations: Total<{ BOUNDS_NANOS.len() }>,
    requests_in_flight: i64,
    tunnels_in_flight: i64,
    request_bytes: u64,
    response_bytes: u64,
}

impl Families {
    pub(super) fn new(pods: Arc<Pods>) -> Self {
        let labelled = |name: &str, help: &str, labels: &[&[&str]]| {
            let labels = labels.concat().into_iter().map(ToOwned::to_owned).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())
                .expect("names and labels are constant and valid")
        };
        let desc = |name: &str, help: &str, further: &[&str]| {
            labelled(name, help, &[&SOURCE, &DESTINATION, further])
        };
        Self {
            pods,
            requests: desc(
                "sluice_requests_total",
                "Requests that ended, by class of the status and, where Sluice sent the response itself or aborted it, the reason.",
                &["code", "reason"],
            ),
            attempts: desc(
                "sluice_attempts_total",
                "Attempts at endpoints, by outcome. A request that is retried has several, each counted for the lane of its endpoint.",
                &["outcome"],
            ),
            duration: desc(DURATION, "Time from the headers of a request to the end of its response.", &[]),
            in_flight: desc("sluice_requests_in_flight", "Requests in flight: begun, and not ended.", &[]),
            tunnels: desc(
                "sluice_tunnels_total",
                "Tunnelled connections that ended and, where Sluice closed them, the reason.",
                &["reason"],
            ),
            tunnels_in_flight: desc("sluice_tunnels_in_flight", "Tunnelled connections that are open.", &[]),
            bytes: desc("sluice_bytes_total", "Bytes of bodies and tunnels, by direction.", &["direction"]),
            carriers: labelled(
                "sluice_tag_carriers_total",
                "Requests of a pod that have a tag, by what said which: how the pod passes tags on.",
                &[&SOURCE, &["carrier"]],
            ),
            lost: labelled(
                "sluice_tags_lost_total",
                "Requests of a pod without a tag, sent while all requests that the pod was answering had one. Of pods with `sluice.dev/propagation: trace` or `thread`.",
                &[&SOURCE],
            ),
        }
    }

    fn carriers(&self) -> Vec<Metric> {
        let mut counts: BTreeMap<[String; 3], u64> = BTreeMap::new();
        for pod in self.pods.all() {
            for (source, count) in pod.tags() {
                let values = [pod.namespace.to_string(), pod.name.to_string(), source.as_str().to_owned()];
                *counts.entry(values).or_default() += count;
            }
        }
        let metric = |(values, count): ([String; 3], u64)| {
            let labels =
                SOURCE.iter().chain(&["carrier"]).zip(&values).map(|(name, value)| label(name, value));
            counter(labels.collect(), count as f64)
        };
        counts.into_iter().map(metric).collect()
    }

    fn lost(&self) -> Vec<Metric> {
        let mut counts: BTreeMap<[String; 2], u64> = BTreeMap::new();
        for pod in self.pods.all().into_iter().filter(|pod| pod.lost() > 0) {
            *counts.entry([pod.namespace.to_string(), pod.name.to_string()]).or_default() += pod.lost();
        }
        let metric = |(values, count): ([String; 2], u64)| {
            let labels = SOURCE.iter().zip(&values).map(|(name, value)| label(name, value));
            counter(labels.collect(), count as f64)
        };
        counts.into_iter().map(metric).collect()
    }

    fn sums(&self) -> BTreeMap<Labels, Sum> {
        let mut sums: BTreeMap<Labels, Sum> = BTreeMap::new();
        for pod in self.pods.all() {
            pod.for_each(|key, series| {
                sums.entry(labels(&pod, key)).or_default().add(series);
            });
        }
        sums
    }
}

fn labels(pod: &PodMetrics, key: &Key) -> Labels {
    [
        pod.namespace.to_string(),
        pod.name.to_string(),
        key.namespace.to_string(),
        key.service.to_string(),
        key.port.map(|port| port.to_string()).unwrap_or_default(),
        key.lane.as_str().to_owned(),
    ]
}

/// The exemplars of all pods' requests.
pub(super) struct Exemplars(BTreeMap<Labels, Kept>);

impl Exemplars {
    /// Those of a series of that family with these labels.
    pub(super) fn of(&self, family: &str, labels: &[LabelPair]) -> Option<&Kept> {
        if family != DURATION || self.0.is_empty() {
            return None;
        }
        let value = |name: &&str| {
            let label = labels.iter().find(|label| label.name() == *name)?;
            Some(label.value().to_owned())
        };
        let values: Vec<_> = SOURCE.iter().chain(&DESTINATION).map(value).collect::<Option<_>>()?;
        self.0.get(&Labels::try_from(values).ok()?)
    }
}

/// Reads them.
pub(super) fn exemplars(pods: &Pods) -> Exemplars {
    let mut all: BTreeMap<Labels, Kept> = BTreeMap::new();
    for pod in pods.all() {
        pod.for_each(|key, series| {
            let Some(kept) = series.exemplars() else { return };
            all.entry(labels(&pod, key))
                .and_modify(|one| *one = exemplars::newer(one, &kept))
                .or_insert(kept);
        });
    }
    Exemplars(all)
}

impl Sum {
    fn add(&mut self, series: &Series) {
        for (sum, counter) in self.answered.iter_mut().zip(&series.answered) {
            *sum += counter.load(Relaxed);
        }
        for (sum, counter) in self.attempts.iter_mut().zip(&series.attempts) {
            *sum += counter.load(Relaxed);
        }
        self.durations.add(&series.durations);
        if let Some(faults) = series.faults.get() {
            for (class, by_reason) in faults.requests.iter().enumerate() {
                for (reason, counter) in by_reason.iter().enumerate() {
                    let count = counter.load(Relaxed);
                    if count > 0 {
                        *self.request_faults.entry((class, reason)).or_default() += count;
                    }
                }
            }
            for (reason, counter) in faults.tunnels.iter().enumerate() {
                let count = counter.load(Relaxed);
                if count > 0 {
                    *self.tunnel_faults.entry(reason).or_default() += count;
                }
            }
        }
        self.tunnels += series.tunnels.load(Relaxed);
        self.requests_in_flight += series.requests_in_flight.load(Relaxed);
        self.tunnels_in_flight += series.tunnels_in_flight.load(Relaxed);
        self.request_bytes += series.request_bytes.load(Relaxed);
        self.response_bytes += series.response_bytes.load(Relaxed);
    }

    fn has_requests(&self) -> bool {
        self.requests_in_flight != 0
            || self.answered.iter().any(|n| *n > 0)
            || !self.request_faults.is_empty()
    }

    fn has_tunnels(&self) -> bool {
        self.tunnels_in_flight != 0 || self.tunnels > 0 || !self.tunnel_faults.is_empty()
    }
}

impl Collector for Families {
    fn desc(&self) -> Vec<&Desc> {
        vec![
            &self.requests,
            &self.attempts,
            &self.duration,
            &self.in_flight,
            &self.tunnels,
            &self.tunnels_in_flight,
            &self.bytes,
            &self.carriers,
            &self.lost,
        ]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut requests = Vec::new();
        let mut attempts = Vec::new();
        let mut durations = Vec::new();
        let mut in_flight = Vec::new();
        let mut tunnels = Vec::new();
        let mut tunnels_in_flight = Vec::new();
        let mut bytes = Vec::new();
        for (values, sum) in self.sums() {
            let labels = |further: &[(&str, &str)]| -> Vec<LabelPair> {
                let own =
                    SOURCE.iter().chain(&DESTINATION).zip(&values).map(|(name, value)| label(name, value));
                own.chain(further.iter().map(|(name, value)| label(name, value))).collect()
            };
            if sum.has_requests() {
                for (class, count) in sum.answered.into_iter().enumerate() {
                    // Success is there from the start, so that rates see the first ones.
                    if count > 0 || class == 2 {
                        requests.push(counter(
                            labels(&[("code", CLASSES[class].1), ("reason", "")]),
                            count as f64,
                        ));
                    }
                }
                for ((class, reason), count) in &sum.request_faults {
                    let further = [("code", CLASSES[*class].1), ("reason", Reason::ALL[*reason].code())];
                    requests.push(counter(labels(&further), *count as f64));
                }
                durations.push(sum.durations.metric(labels(&[]), &BOUNDS_NANOS));
                in_flight.push(gauge(labels(&[]), sum.requests_in_flight as f64));
            }
            if sum.attempts.iter().any(|count| *count > 0) {
                for ((_, outcome, _), count) in AttemptOutcome::ALL.iter().zip(sum.attempts) {
                    attempts.push(counter(labels(&[("outcome", outcome)]), count as f64));
                }
            }
            if sum.has_tunnels() {
                tunnels.push(counter(labels(&[("reason", "")]), sum.tunnels as f64));
                for (reason, count) in &sum.tunnel_faults {
                    tunnels.push(counter(labels(&[("reason", Reason::ALL[*reason].code())]), *count as f64));
                }
                tunnels_in_flight.push(gauge(labels(&[]), sum.tunnels_in_flight as f64));
            }
            bytes.push(counter(labels(&[("direction", "request")]), sum.request_bytes as f64));
            bytes.push(counter(labels(&[("direction", "response")]), sum.response_bytes as f64));
        }
        vec![
            family(&self.requests, MetricType::COUNTER, requests),
            family(&self.attempts, MetricType::COUNTER, attempts),
            family(&self.duration, MetricType::HISTOGRAM, durations),
            family(&self.in_flight, MetricType::GAUGE, in_flight),
            family(&self.tunnels, MetricType::COUNTER, tunnels),
            family(&self.tunnels_in_flight, MetricType::GAUGE, tunnels_in_flight),
            family(&self.bytes, MetricType::COUNTER, bytes),
            family(&self.carriers, MetricType::COUNTER, self.carriers()),
            family(&self.lost, MetricType::COUNTER, self.lost()),
        ]
    }
}

pub(super) fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

pub(super) fn counter(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_counter(counter);
    metric
}

pub(super) fn gauge(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(labels);
    metric.set_gauge(gauge);
    metric
}

pub(super) fn family(desc: &Desc, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}
