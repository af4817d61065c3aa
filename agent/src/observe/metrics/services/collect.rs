//! What a scrape shows of [`Services`].

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use prometheus::{
    core::{Collector, Desc},
    proto::{LabelPair, Metric, MetricFamily, MetricType},
};

use super::{
    super::{
        RetryCause, TagOutcome,
        distribution::{Distribution, Total},
        families::{counter, family, label},
        outcomes::{
            AccessDecision, CLASSES, EjectionCause, FallbackAction, LimitDecision, MODES, MirrorOutcome,
            Overdue, tokens,
        },
    },
    BOUNDS_NANOS, ClientName, RouteRule, Services,
    named::loaded,
};
use crate::observe::fault::{MessagePart, Sender};

const DESTINATION: [&str; 3] = ["destination_namespace", "destination_service", "destination_port"];

/// The families, in the order in which they are collected: name, help, further labels.
const FAMILIES: [(&str, &str, &[&str]); 21] = [
    ("sluice_tags_total", "Tags of requests to a service, by what routing made of them.", &["outcome"]),
    ("sluice_retries_total", "Retries of requests to a service, by cause.", &["cause"]),
    (
        "sluice_retry_budget_exhausted_total",
        "Requests that were not retried because the retry budget was exhausted.",
        &[],
    ),
    (
        "sluice_rate_limit_requests_total",
        "Requests that a rate limit applies to, by its decision.",
        &["rule", "decision"],
    ),
    (
        "sluice_concurrency_limit_requests_total",
        "Requests that a concurrency limit applies to, by its decision.",
        &["decision"],
    ),
    (
        "sluice_circuit_breaker_requests_total",
        "Attempts that a circuit breaker applies to, by its decision.",
        &["decision"],
    ),
    (
        "sluice_ejections_total",
        "Ejections of endpoints by outlier detection, by cause; with mode observe the endpoint stayed in use.",
        &["cause", "mode"],
    ),
    (
        "sluice_panic_requests_total",
        "Requests routed in panic: fewer endpoints than the panic threshold were ready for them, so all were used.",
        &[],
    ),
    ("sluice_fallbacks_total", "Uses of a fallback, by what came of it.", &["fallback", "action"]),
    (
        "sluice_rule_requests_total",
        "Requests that a rule of a policy applied to, by class of the status.",
        &["policy_rule", "code"],
    ),
    (
        "sluice_timeouts_observed_total",
        "Requests that took longer than a timeout with mode Observe, which would have ended them.",
        &["timeout"],
    ),
    (
        "sluice_warm_up_yields_total",
        "Requests routed while the warm-up curve yielded: warming endpoints got more than it says, because warm ones would have got more than 1.5 times what they carried before.",
        &[],
    ),
    (
        "sluice_invalid_messages_total",
        "Requests and responses that were not passed on because they are not valid, by the part of the message that is wrong.",
        &["peer", "part"],
    ),
    (
        "sluice_mirrored_requests_total",
        "Copies of requests for a service that a route names as a mirror, by what became of them.",
        &["outcome"],
    ),
    (
        "sluice_route_requests_total",
        "Requests that a rule of a route applied to, by the service that they went to and by class of the status. What the route answers itself (redirects, preflights, missing backends) is counted for the service that was called.",
        &["route_kind", "route", "route_rule", "code"],
    ),
    (
        "sluice_access_requests_total",
        "Requests to pods of this node, and connections that are not HTTP, that an AccessPolicy applies to, by its rule and decision.",
        &["policy_rule", "decision"],
    ),
    (
        "sluice_access_client_requests_total",
        "The same by the workload that calls, as far as it is of an enrolled namespace (else unknown; node: the pod's own node), of the first 100 of each service; further ones are other.",
        &["source_namespace", "source_workload", "decision"],
    ),
    (
        "sluice_access_tokens_total",
        "Requests to pods of this node that an AccessPolicy with jwt applies to, by what was found of their token.",
        &["result"],
    ),
    (
        "sluice_rule_request_duration_seconds",
        "Time from the headers of a request to the end of its response, by the rule of a policy that applied.",
        &["policy_rule"],
    ),
    (
        "sluice_upstream_duration_seconds",
        "Time that endpoints took for a request, all attempts together: from sending its headers until those of the response came, or until the attempt failed.",
        &[],
    ),
    (
        "sluice_added_duration_seconds",
        "Time that Sluice added to a request: from its headers until those of the response were passed on, less the time that endpoints took. Connecting, and queueing by a rule, are in it.",
        &[],
    ),
];

/// Those from here on are histograms.
const HISTOGRAMS: usize = 18;

/// The collector of [`Services`].
pub(in super::super) struct Collected {
    services: Arc<Services>,
    descs: Vec<Desc>,
}

impl Collected {
    pub(in super::super) fn new(services: Arc<Services>) -> Self {
        let descs = FAMILIES
            .iter()
            .map(|(name, help, further)| {
                let labels = DESTINATION.iter().chain(*further).map(ToString::to_string).collect();
                Desc::new((*name).to_owned(), (*help).to_owned(), labels, HashMap::new())
                    .expect("names and labels are constant and valid")
            })
            .collect();
        Self { services, descs }
    }
}

/// Collects one service's counters.
struct Writer<'w> {
    own: [&'w str; 3],
    families: &'w mut [Vec<Metric>; FAMILIES.len()],
}

impl Writer<'_> {
    fn write(&mut self, at: usize, further: &[&str], value: u64) {
        self.families[at].push(counter(self.labels(at, further), value as f64));
    }

    fn labels(&self, at: usize, further: &[&str]) -> Vec<LabelPair> {
        let names = DESTINATION.iter().chain(FAMILIES[at].2);
        names.zip(self.own.iter().chain(further)).map(|(name, value)| label(name, value)).collect()
    }

    fn write_histogram<const N: usize>(
        &mut self,
        at: usize,
        further: &[&str],
        distribution: &Distribution<N>,
        bounds: &[u64; N],
    ) {
        let mut total = Total::default();
        total.add(distribution);
        if !total.is_empty() {
            self.families[at].push(total.metric(self.labels(at, further), bounds));
        }
    }

    /// Those that have counted anything; then all of them, so that rates see the next first one.
    fn write_all<T, const N: usize>(
        &mut self,
        at: usize,
        name: Option<&str>,
        words: &[(T, &str, &str); N],
        values: [u64; N],
    ) {
        if values.iter().all(|value| *value == 0) {
            return;
        }
        for ((_, word, _), value) in words.iter().zip(values) {
            match name {
                None => self.write(at, &[word], value),
                Some(name) => self.write(at, &[name, word], value),
            }
        }
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families: [Vec<Metric>; FAMILIES.len()] = Default::default();
        for (name, metrics) in self.services.all() {
            let port = name.port.to_string();
            let mut writer = Writer { own: [&name.namespace, &name.service, &port], families: &mut families };
            writer.write_all(0, None, &TagOutcome::ALL, loaded(&metrics.tags));
            writer.write_all(1, None, &RetryCause::ALL, loaded(&metrics.retries));
            let exhausted = metrics.budget_exhausted.load(Relaxed);
            if exhausted > 0 {
                writer.write(2, &[], exhausted);
            }
            for (rule, values) in metrics.rate_limits.all() {
                writer.write_all(3, Some(&rule), &LimitDecision::ALL, values);
            }
            writer.write_all(4, None, &LimitDecision::ALL, loaded(&metrics.concurrency));
            writer.write_all(5, None, &LimitDecision::ALL, loaded(&metrics.breaker));
            for ((_, cause, _), modes) in EjectionCause::ALL.iter().zip(&metrics.ejections) {
                for (((), mode, _), value) in MODES.iter().zip(loaded(modes)) {
                    if value > 0 {
                        writer.write(6, &[cause, mode], value);
                    }
                }
            }
            let panics = metrics.panics.load(Relaxed);
            if panics > 0 {
                writer.write(7, &[], panics);
            }
            for (fallback, values) in metrics.fallbacks.all() {
                writer.write_all(8, Some(&fallback), &FallbackAction::ALL, values);
            }
            for (rule, of_rule) in metrics.of_rules() {
                for (((), class, _), count) in CLASSES.iter().zip(loaded(&of_rule.classes)) {
                    if count > 0 {
                        writer.write(9, &[&rule, class], count);
                    }
                }
                writer.write_histogram(18, &[&rule], &of_rule.took, &BOUNDS_NANOS);
            }
            for (rule, values) in metrics.access.all() {
                writer.write_all(15, Some(&rule), &AccessDecision::ALL, values);
            }
            for (((), result, _), count) in tokens().iter().zip(loaded(&metrics.tokens)) {
                if count > 0 {
                    writer.write(17, &[result], count);
                }
            }
            for (ClientName { namespace, workload }, values) in metrics.clients.all() {
                for ((_, decision, _), value) in AccessDecision::ALL.iter().zip(values) {
                    if value > 0 {
                        writer.write(16, &[&namespace, &workload, decision], value);
                    }
                }
            }
            writer.write_all(10, None, &Overdue::ALL, loaded(&metrics.overdue));
            let yields = metrics.yields.load(Relaxed);
            if yields > 0 {
                writer.write(11, &[], yields);
            }
            for ((_, peer, _), parts) in Sender::ALL.iter().zip(&metrics.invalid) {
                for ((_, part, _), count) in MessagePart::ALL.iter().zip(loaded(parts)) {
                    if count > 0 {
                        writer.write(12, &[peer, part], count);
                    }
                }
            }
            writer.write_all(13, None, &MirrorOutcome::ALL, loaded(&metrics.mirrored));
            for (RouteRule { kind, route, rule }, classes) in metrics.routes.all() {
                for (((), class, _), count) in CLASSES.iter().zip(classes) {
                    // Success is there from the start, so that rates see the first ones.
                    if count > 0 || class == &"2xx" {
                        writer.write(14, &[kind, &route, &rule, class], count);
                    }
                }
            }
            writer.write_histogram(19, &[], &metrics.upstream, &BOUNDS_NANOS);
            writer.write_histogram(20, &[], &metrics.added, &BOUNDS_NANOS);
        }
        let all = self.descs.iter().zip(families).enumerate();
        all.map(|(at, (desc, metrics))| {
            let kind = if at < HISTOGRAMS { MetricType::COUNTER } else { MetricType::HISTOGRAM };
            family(desc, kind, metrics)
        })
        .collect()
    }
}
