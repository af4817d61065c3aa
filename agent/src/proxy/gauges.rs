//! Numbers of the rules that are read at each scrape: of every service in the snapshot, and of no others. With it go the
//! counters of services, rules and lanes that are gone.

use std::sync::Arc;

use ahash::AHashSet;

use crate::{
    clock::Nanos,
    cluster::model::{Current, Service, Snapshot},
    govern::{
        access::{CLIENT_CONNECTIONS, NO_RULE},
        breaker::State,
        concurrency::Limiter,
        endpoint::Endpoint,
        outlier,
        subset::Subset,
        tag::Tag,
        warmup,
    },
    observe::metrics::{Kind, Metrics, Pulled, RouteRule, Write},
};

const NAMESPACE: &str = "destination_namespace";
const SERVICE: &str = "destination_service";
const PORT: &str = "destination_port";
const LANE: &str = "destination_lane";
const RULE: &str = "policy_rule";
const POD: &str = "destination_pod";

/// A number of a limit on requests in flight.
type OfLimiter = fn(&Limiter) -> u32;

/// A number of each service.
struct Number {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    /// The service's own come first.
    labels: &'static [&'static str],
    /// Of all services, or only of those that have been called from here: a cluster may have thousands of others.
    all: bool,
    /// Writes what there is to say of a service, with the labels behind its own.
    read: fn(&Service, &mut Write<'_>),
}

const NUMBERS: [Number; 8] = [
    Number {
        name: "sluice_endpoints",
        help: "Endpoints of a service and lane, by state; of services that pods of this node have called.",
        kind: Kind::Gauge,
        labels: &[NAMESPACE, SERVICE, PORT, LANE, "state"],
        all: false,
        read: |service, write| {
            let now = Nanos::now().0;
            for (lane, subset) in lanes(service) {
                let mut counts = [0_u32; ENDPOINT_STATES.len()];
                for endpoint in &**subset {
                    counts[endpoint_state(service, endpoint, now)] += 1;
                }
                for ((state, _), count) in ENDPOINT_STATES.iter().zip(counts) {
                    write(&[lane, state], f64::from(count));
                }
            }
        },
    },
    Number {
        name: "sluice_concurrency_limit",
        help: "Requests to a service that may be in flight; with policy_rule, those that a rule with a limit of its own applies to.",
        kind: Kind::Gauge,
        labels: &[NAMESPACE, SERVICE, PORT, RULE],
        all: true,
        read: |service, write| {
            for (rule, limiter) in service.governor.all_limiters() {
                write(&[rule.map_or("", |rule| rule)], f64::from(limiter.limit()));
            }
        },
    },
    Number {
        name: "sluice_concurrency_limit_in_flight",
        help: "Requests to a service in flight that count towards its concurrency limit.",
        kind: Kind::Gauge,
        labels: &[NAMESPACE, SERVICE, PORT, RULE],
        all: true,
        read: |service, write| {
            for (rule, limiter) in service.governor.all_limiters() {
                write(&[rule.map_or("", |rule| rule)], f64::from(limiter.in_flight()));
            }
        },
    },
    Number {
        name: "sluice_circuit_breaker_state",
        help: "Circuit breakers of a service and lane in this state: one for each client pod, or one for the node.",
        kind: Kind::Gauge,
        labels: &[NAMESPACE, SERVICE, PORT, LANE, RULE, "state"],
        all: true,
        read: |service, write| {
            for (rule, breakers) in service.governor.all_breakers() {
                let rule = rule.map_or("", |rule| rule);
                for (lane, counts) in breakers.states(Nanos::now().0) {
                    let lane = lane.as_ref().map_or("baseline", Tag::as_str);
                    for (state, count) in State::ALL.iter().zip(counts) {
                        write(&[lane, rule, state.code()], f64::from(count));
                    }
                }
            }
        },
    },
    Number {
        name: "sluice_circuit_breaker_transitions_total",
        help: "State changes of the circuit breakers of a service and lane.",
        kind: Kind::Counter,
        labels: &[NAMESPACE, SERVICE, PORT, LANE, RULE, "transition"],
        all: true,
        read: |service, write| {
            for (rule, breakers) in service.governor.all_breakers() {
                let rule = rule.map_or("", |rule| rule);
                for (lane, counts) in breakers.transition_counts() {
                    let lane = lane.as_ref().map_or("baseline", Tag::as_str);
                    let counts = [counts.tripped, counts.probing, counts.reopened, counts.recovered];
                    for ((transition, _), count) in TRANSITIONS.iter().zip(counts) {
                        write(&[lane, rule, transition], count as f64);
                    }
                }
            }
        },
    },
    Number {
        name: "sluice_ejected_endpoints",
        help: "Endpoints of a service that are ejected.",
        kind: Kind::Gauge,
        labels: &[NAMESPACE, SERVICE, PORT],
        all: true,
        read: |service, write| {
            let config = service.governor.policy().outlier_detection.as_ref();
            if config.is_some() {
                let now = Nanos::now().0;
                let ejected = |endpoint: &&Arc<_>| outlier::is_ejected(config, endpoint, now);
                write(&[], service.endpoints.iter().filter(ejected).count() as f64);
            }
        },
    },
    Number {
        name: "sluice_endpoint_warm_up_factor",
        help: "Warm-up factor of an endpoint: its share of requests, as a part (0 to 1) of a warm endpoint's; above the curve while that yields. Of services with warm-up.",
        kind: Kind::Gauge,
        labels: &[NAMESPACE, SERVICE, PORT, "endpoint", "pod"],
        all: true,
        read: |service, write| {
            let policy = service.governor.policy();
            if policy.load_balancer.warmup.is_some() {
                let now = Nanos::now().0;
                let yielded = service.yielded(now);
                for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.is_usable()) {
                    let (address, pod) = (endpoint.address.to_string(), endpoint.pod.as_deref());
                    write(&[&address, pod.unwrap_or_default()], yielded.factor(policy, endpoint, now));
                }
            }
        },
    },
    Number {
        name: "sluice_fallback_stale_bytes",
        help: "Memory that the kept responses of a service take, for fallbacks of type Stale.",
        kind: Kind::Gauge,
        labels: &[NAMESPACE, SERVICE, PORT],
        all: true,
        read: |service, write| {
            if let Some(stale) = service.governor.stale() {
                stale.store.trim(Some(stale.wanted.bounds), Nanos::now().0);
                write(&[], stale.store.bytes() as f64);
            }
        },
    },
];

const ENDPOINT_STATES: [(&str, &str); 5] = [
    ("ready", "It gets its full share of the requests."),
    ("warming", "It warms up: it gets a part of its share, or is still delayed."),
    ("ejected", "Outlier detection has ejected it: it gets no request, except in panic."),
    ("terminating", "Its pod terminates: it gets no new request."),
    ("not_ready", "It is not ready: it gets no request."),
];

/// Changes of a circuit breaker's state, in the order in which they are counted.
const TRANSITIONS: [(&str, &str); 4] = [
    ("opened", "From closed to open: the error, slow or count threshold was reached."),
    ("half_opened", "From open to half-open: `openDuration` is over, and probes may pass."),
    ("reopened", "From half-open to open: a probe failed or was slow."),
    ("closed", "From half-open to closed: all probes were good."),
];

/// What keeps requests from an endpoint most: an index into [`ENDPOINT_STATES`].
fn endpoint_state(service: &Service, endpoint: &Endpoint, now: u64) -> usize {
    let policy = service.governor.policy();
    if endpoint.terminating {
        3
    } else if !endpoint.is_usable() {
        4
    } else if outlier::is_ejected(policy.outlier_detection.as_ref(), endpoint, now) {
        2
    } else {
        usize::from(warmup::factor(policy.load_balancer.warmup.as_ref(), endpoint, now) < 1.0)
    }
}

/// Every lane of a service that has endpoints, the baseline first.
fn lanes(service: &Service) -> impl Iterator<Item = (&str, &Subset)> {
    let lanes = service.lanes.iter().map(|(tag, subset)| (tag.as_str(), subset));
    std::iter::once(("baseline", &service.baseline)).chain(lanes)
}

/// Registers the numbers.
pub(super) fn register(metrics: &Arc<Metrics>, current: &Current) -> Result<(), prometheus::Error> {
    for Number { name, help, kind, labels, all, read } in NUMBERS {
        let (current, called) = (current.clone(), Arc::downgrade(metrics));
        let read = Box::new(move |write: &mut Write<'_>| {
            // (It is kept by the metrics, so it must not keep them.)
            let Some(called) = called.upgrade() else { return };
            for service in services(&current.load()) {
                if !all && !called.is_called(&service.namespace, &service.name, service.port) {
                    continue;
                }
                let port = service.port.to_string();
                let own = [&*service.namespace, &*service.name, &*port];
                read(service, &mut |further, number| {
                    let values: Vec<_> = own.iter().chain(further).copied().collect();
                    write(&values, number);
                });
            }
        });
        metrics.pull(Pulled { name, help, kind, labels, read })?;
    }
    let of_endpoint: [(_, _, OfLimiter); 2] = [
        (
            "sluice_endpoint_concurrency_limit",
            "Requests to a pod of this node that may be in flight, whoever calls, by a concurrency limit with scope Endpoint.",
            Limiter::limit,
        ),
        (
            "sluice_endpoint_concurrency_limit_in_flight",
            "Requests to a pod of this node in flight that count towards its concurrency limit.",
            Limiter::in_flight,
        ),
    ];
    for (name, help, number) in of_endpoint {
        let current = current.clone();
        let read = Box::new(move |write: &mut Write<'_>| at_endpoints(&current.load(), number, write));
        let labels = &[NAMESPACE, SERVICE, PORT, POD, RULE];
        metrics.pull(Pulled { name, help, kind: Kind::Gauge, labels, read })?;
    }
    let endpoints = ENDPOINT_STATES.map(|(state, meaning)| (state, meaning));
    metrics.document("sluice_endpoints", "state", endpoints);
    let states = State::ALL.map(|state| (state.code(), state.meaning()));
    metrics.document("sluice_circuit_breaker_state", "state", states);
    metrics.document("sluice_circuit_breaker_transitions_total", "transition", TRANSITIONS);
    Ok(())
}

/// Of each limiter at an endpoint, once: a pod with two addresses has it at both.
fn at_endpoints(snapshot: &Snapshot, number: OfLimiter, write: &mut Write<'_>) {
    let mut seen = AHashSet::new();
    for (address, port) in snapshot.inbound.iter() {
        let service = &port.destination.service;
        let endpoints = port.guards.iter().flat_map(|guard| &guard.endpoints);
        let pod = endpoints.filter(|one| one.address == address).find_map(|one| one.pod.as_deref());
        let Some(pod) = pod.filter(|_| seen.insert(Arc::as_ptr(&service.governor))) else { continue };
        let number_of = service.port.to_string();
        for (rule, limiter) in service.governor.all_limiters() {
            let rule = rule.map_or("", |rule| rule);
            let labels = [&*service.namespace, &*service.name, &*number_of, pod, rule];
            write(&labels, f64::from(number(limiter)));
        }
    }
}

/// Forgets the numbers of services, rules and lanes that are gone.
pub(super) fn forget_gone(metrics: &Metrics, snapshot: &Snapshot) {
    if snapshot.generation == 0 {
        return;
    }
    let services = services(snapshot);
    let exists = |namespace: &str, name: &str, port: u16, lane: Option<&Tag>| {
        let order = |service: &&Service| {
            (&*service.namespace, &*service.name, service.port).cmp(&(namespace, name, port))
        };
        let found = services.binary_search_by(order);
        found.is_ok_and(|at| lane.is_none_or(|tag| services[at].lanes.contains_key(tag)))
    };
    metrics.retain_services(exists);
    let routes: AHashSet<_> =
        snapshot.route_rules().into_iter().map(|rule| RouteRule::from(&**rule)).collect();
    for (_, port) in snapshot.inbound.iter() {
        for (_, limiter) in port.destination.service.governor.all_limiters() {
            limiter.forget_gone();
        }
    }
    for service in &services {
        let governor = &service.governor;
        metrics.service(&service.namespace, &service.name, service.port).retain(
            |limit| {
                governor
                    .all_policies()
                    .flat_map(|policy| &policy.rate_limits)
                    .any(|other| &*other.name == limit)
            },
            |fallback| {
                governor
                    .all_policies()
                    .flat_map(|policy| &policy.fallbacks)
                    .any(|other| &*other.name == fallback)
            },
            |rule| {
                let all = governor.rules().iter().chain(governor.routes());
                all.map(|ruled| &ruled.rule.name).any(|other| &**other == rule)
            },
            |route| routes.contains(route),
            |rule| {
                let none = [NO_RULE, CLIENT_CONNECTIONS].contains(&rule);
                service.access.as_ref().is_some_and(|access| none || access.names(rule))
            },
        );
        for (_, limiter) in service.governor.all_limiters() {
            limiter.forget_gone();
        }
        for (_, breakers) in service.governor.all_breakers() {
            breakers.retain(|tag| service.lanes.contains_key(tag.as_str()));
        }
    }
}

/// Every service port once, in order: those of a dual-stack Service and the addresses of a headless one share a governor.
fn services(snapshot: &Snapshot) -> Vec<&Service> {
    let mut services: Vec<&Service> =
        snapshot.destinations.values().map(|destination| &*destination.service).collect();
    services.sort_by_key(|service| (&service.namespace, &service.name, service.port));
    services.dedup_by_key(|service| (&service.namespace, &service.name, service.port));
    services
}
