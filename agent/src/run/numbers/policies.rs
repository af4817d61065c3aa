//! Numbers of policies: what became of them, where they have no effect, and what they need of others.

use std::{collections::BTreeMap, sync::Arc};

use super::{Metric, Numbers, Running, cluster::status};
use crate::{
    admin::view::{Look, unattended, unenforced},
    capture::Capture,
    clock::Nanos,
    cluster::{
        Status,
        jwks::{Outcome, State as KeysState},
        object,
        verdict::{Reason, Verdicts},
        warm_gate::{Gates, State},
    },
    lease::{self, Counted, Failure, Rule},
    observe::metrics::Kind,
};

pub(super) fn register(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    verdicts(numbers)?;
    unenforced(numbers)?;
    unattended(numbers)?;
    leases(numbers)?;
    jwks(numbers)?;
    gates(numbers)
}

/// What became of policies, by why they are not wholly in force.
fn verdicts(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    const KINDS: [object::Kind; 3] = object::Kind::OWN;
    let metric = Metric {
        name: "sluice_policies",
        kind: Kind::Gauge,
        labels: &["kind", "reason"],
        help: "TrafficPolicies, TrafficLanes and AccessPolicies by the reason of their condition `Programmed`.",
    };
    let find = |running: &Running| Some(running.cluster.as_ref()?.verdicts().borrow().clone());
    numbers.pull(metric, find, |verdicts: &Arc<Verdicts>, write| {
        for kind in KINDS {
            for reason in Reason::OF_PROGRAMMED {
                let those = verdicts
                    .iter()
                    .filter(|(key, judged)| key.kind == kind && judged.verdict.programmed.reason == reason);
                write(&[&kind.to_string(), reason.as_str()], those.count() as f64);
            }
        }
    })?;
    let kinds = KINDS.map(|kind| (kind.to_string(), "Objects of this kind in enrolled namespaces"));
    numbers.metrics.document("sluice_policies", "kind", kinds);
    let reasons = Reason::OF_PROGRAMMED.map(|reason| (reason.as_str(), reason.meaning()));
    numbers.metrics.document("sluice_policies", "reason", reasons);
    Ok(())
}

/// What is looked at to see where policies have no effect.
fn look(running: &Running) -> Option<Look> {
    let snapshot = running.cluster.as_ref()?.current().load_full();
    let capture = running.capture.as_ref().map(Capture::status);
    let (pods, steering_trouble) =
        capture.map(|status| (status.pods, status.steering_trouble)).unwrap_or_default();
    Some(Look { draining: running.stopping, snapshot, pods, steering_trouble, ..Look::default() })
}

/// Pods at which AccessPolicies are not enforced.
fn unenforced(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    let metric = Metric {
        name: "sluice_access_unenforced_pods",
        kind: Kind::Gauge,
        labels: &["destination_namespace", "destination_service"],
        help: "Pods of this node that clients of a Service with an AccessPolicy reach directly, so that it is not enforced there.",
    };
    numbers.pull(metric, look, |look, write| {
        for ((namespace, service), guarded) in unenforced::guarded(look) {
            write(&[&namespace, &service], guarded.without_access_policy().len() as f64);
        }
    })
}

/// Pods that AccessPolicies want closed while no agent is there.
fn unattended(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    let metric = Metric {
        name: "sluice_access_refuse_unattended_pods",
        kind: Kind::Gauge,
        labels: &["destination_namespace", "destination_service", "state"],
        help: "Pods of this node behind a Service whose AccessPolicy has whenUnattended: Refuse.",
    };
    let name = metric.name;
    numbers.pull(metric, look, |look, write| {
        for ((namespace, service), closing) in unattended::closing(look) {
            let (active, missing) = closing.counts();
            write(&[&namespace, &service, "active"], active as f64);
            write(&[&namespace, &service, "missing"], missing as f64);
        }
    })?;
    let states = [
        ("active", "Its ports refuse connections once no agent attends them"),
        ("missing", "They do not: `sluice status` says why"),
    ];
    numbers.metrics.document(name, "state", states);
    Ok(())
}

/// Limits of the whole cluster, and their store.
fn leases(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    fn find(running: &Running) -> Option<lease::Status> {
        Some(running.leases.as_ref()?.status())
    }
    let metric = Metric {
        name: "sluice_limit_store_connected",
        kind: Kind::Gauge,
        labels: &[],
        help: "1 while the store of rate limits with scope Cluster answers, else 0; it is not asked while there are no such limits.",
    };
    numbers.pull(metric, find, |status, write| write(&[], super::bit(status.answers)))?;
    let metric = Metric {
        name: "sluice_limit_store_calls_total",
        kind: Kind::Counter,
        labels: &["result"],
        help: "Calls to the store by which the agent renews its share of a rate limit with scope Cluster.",
    };
    let name = metric.name;
    numbers.pull(metric, find, |status, write| {
        write(&["answered"], status.answered as f64);
        write(&["failed"], status.failed as f64);
    })?;
    let results = [
        ("answered", "The store answered in time."),
        ("failed", "It did not; the agent goes on with its last share until it does again."),
    ];
    numbers.metrics.document(name, "result", results);
    let metric = Metric {
        name: "sluice_limit_store_failing_limits",
        kind: Kind::Gauge,
        labels: &["reason"],
        help: "Rate limits with scope Cluster about which the store fails at the moment, by reason.",
    };
    let name = metric.name;
    numbers.pull(metric, find, |status, write| {
        for failure in Failure::ALL {
            write(&[failure.as_str()], status.failing(failure) as f64);
        }
    })?;
    let reasons = Failure::ALL.map(|failure| (failure.as_str(), failure.meaning()));
    numbers.metrics.document(name, "reason", reasons);
    let metric = Metric {
        name: "sluice_cluster_rate_limits",
        kind: Kind::Gauge,
        labels: &["counted"],
        help: "Rate limits with scope Cluster, by how this agent counts them.",
    };
    let name = metric.name;
    numbers.pull(metric, find, |status, write| {
        for counted in Counted::ALL {
            let those = status.limits.values().filter(|by| **by == counted);
            write(&[counted.as_str()], those.count() as f64);
        }
    })?;
    let counted = Counted::ALL.map(|counted| (counted.as_str(), counted.meaning()));
    numbers.metrics.document(name, "counted", counted);
    let metric = Metric {
        name: "sluice_cluster_rate_limit_share",
        kind: Kind::Gauge,
        labels: &["destination_namespace", "destination_service", "destination_port", "rule"],
        help: "Requests a second of a rate limit with scope Cluster that this agent may send on: its part of what all agents may together.",
    };
    let shares = |running: &Running| Some(running.leases.as_ref()?.shares());
    numbers.pull(metric, shares, |shares, write| {
        for (Rule { namespace, service, port, rule }, share) in shares {
            write(&[namespace, service, &port.to_string(), rule], *share);
        }
    })
}

/// Keys of issuers, and what came of fetching them.
fn jwks(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    let metric = Metric {
        name: "sluice_jwks_keys",
        kind: Kind::Gauge,
        labels: &["uri"],
        help: "Keys of tokens that are known of this URI (jwks.uri of AccessPolicies, without its query) or entry (jwks.configMap, jwks.secret; uri is then as in \"ConfigMap shop/login-keys, key jwks.json\"); 0 while they are missing.",
    };
    numbers.pull(metric, status, |status, write| {
        for (uri, of) in by_uri(status) {
            write(&[&uri], of.keys as f64);
        }
    })?;
    let metric = Metric {
        name: "sluice_jwks_age_seconds",
        kind: Kind::Gauge,
        labels: &["uri"],
        help: "Time since the keys of tokens were last known to be those of this URI or entry; while they are missing, since a policy first named it.",
    };
    numbers.pull(metric, status, |status, write| {
        for (uri, of) in by_uri(status) {
            write(&[&uri], of.age.as_secs_f64());
        }
    })?;
    let metric = Metric {
        name: "sluice_jwks_fetches_total",
        kind: Kind::Counter,
        labels: &["uri", "result"],
        help: "How often the keys of tokens were fetched from this URI, or read from this entry, by result.",
    };
    let name = metric.name;
    numbers.pull(metric, status, |status, write| {
        for (uri, of) in by_uri(status) {
            for (outcome, count) in Outcome::ALL.iter().zip(of.counts) {
                write(&[&uri, outcome.code()], count as f64);
            }
        }
    })?;
    let results = Outcome::ALL.map(|outcome| (outcome.code(), outcome.meaning()));
    numbers.metrics.document(name, "result", results);
    Ok(())
}

/// How the keys of each source are, those together that differ by their query alone: the worst of them.
fn by_uri(status: &Status) -> BTreeMap<String, KeysState> {
    let mut all: BTreeMap<String, KeysState> = BTreeMap::new();
    for state in &status.jwks {
        all.entry(state.origin.without_query())
            .and_modify(|of| {
                of.keys = of.keys.min(state.keys);
                of.age = of.age.max(state.age);
                of.counts.iter_mut().zip(state.counts).for_each(|(all, count)| *all += count);
            })
            .or_insert_with(|| state.clone());
    }
    all
}

/// Pods that are not Ready before they are warm.
fn gates(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    let metric = Metric {
        name: "sluice_readiness_gates",
        kind: Kind::Gauge,
        labels: &["state"],
        help: "Pods of this node, in enrolled namespaces, that have the readiness gate sluice.dev/warm; none without --warm-gate.",
    };
    let name = metric.name;
    let find = |running: &Running| Some(running.cluster.as_ref()?.gates().borrow().clone());
    numbers.pull(metric, find, |gates: &Arc<Gates>, write| {
        let now = Nanos::now().0;
        for state in State::ALL {
            let pods = gates.pods.values().filter(|gated| gated.state(now) == state);
            write(&[state.as_str()], pods.count() as f64);
        }
    })?;
    let states = State::ALL.map(|state| (state.as_str(), state.meaning()));
    numbers.metrics.document(name, "state", states);
    Ok(())
}
