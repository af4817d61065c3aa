//! The numbers that other rooms keep, read at each scrape: of the cluster's state, and of capture.

use std::collections::BTreeSet;

use sluice_ebpf::Counter;

use super::{Running, Shared, lock};
use crate::{
    admin::view::{
        Look, unattended,
        unenforced::{self, What},
    },
    capture::{self, Attachment, Capture},
    clock::Nanos,
    cluster::{
        jwks::{self, Outcome},
        object,
        source::{WatchEnd, Watches},
        verdict::Reason,
        warm_gate::State,
    },
    lease::{self, Counted},
    observe::metrics::{Kind, Metrics, Pulled, Write},
};

/// Writes what there is to say of the watches on a resource.
type Tell = fn(&'static str, &Watches, &mut Write<'_>);

/// Registers the numbers that other rooms keep.
pub(super) fn pull(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    let gauge = |name, help, read: fn(&Running) -> Option<f64>| {
        let running = running.clone();
        metrics.pull(Pulled {
            name,
            help,
            kind: Kind::Gauge,
            labels: &[],
            read: Box::new(move |write| {
                if let Some(value) = read(&lock(&running)) {
                    write(&[], value);
                }
            }),
        })
    };
    gauge(
        "sluice_snapshot_age_seconds",
        "Time since the snapshot of the cluster was last known to be current.",
        |running| Some(running.cluster.as_ref()?.status().heard.elapsed().as_secs_f64()),
    )?;
    gauge(
        "sluice_snapshot_restored",
        "1 while the snapshot of the cluster is that of the state file, because the API server has not answered since the start; else 0.",
        |running| Some(f64::from(u8::from(running.cluster.as_ref()?.status().restored))),
    )?;
    gauge(
        "sluice_snapshot_generation",
        "Number of the current snapshot of the cluster: it grows with each change.",
        |running| Some(running.cluster.as_ref()?.status().generation as f64),
    )?;
    gauge(
        "sluice_invalid_objects",
        "Objects, or parts of them, that are invalid and have no effect.",
        |running| Some(running.cluster.as_ref()?.status().problems.len() as f64),
    )?;
    let watches = |name, help, kind, labels, write: Tell| {
        let running = running.clone();
        metrics.pull(Pulled {
            name,
            help,
            kind,
            labels,
            read: Box::new(move |say| {
                let Some(status) = lock(&running).cluster.as_ref().map(|cluster| cluster.status()) else {
                    return;
                };
                for (resource, watches) in &status.watches {
                    write(resource, watches, say);
                }
            }),
        })
    };
    watches(
        "sluice_watch_age_seconds",
        "Time since a watch on this resource last received anything from the API server; that of the watch that has waited longest.",
        Kind::Gauge,
        &["resource"],
        |resource, watches, say| {
            if let Some(heard) = watches.heard {
                say(&[resource], heard.elapsed().as_secs_f64());
            }
        },
    )?;
    watches(
        "sluice_watches",
        "Open watches on the API server.",
        Kind::Gauge,
        &["resource"],
        |resource, watches, say| say(&[resource], watches.open as f64),
    )?;
    watches(
        "sluice_watch_ends_total",
        "Watches that ended and were opened again, by cause.",
        Kind::Counter,
        &["resource", "cause"],
        |resource, watches, say| {
            for (end, count) in &watches.ends {
                say(&[resource, &end.label()], *count as f64);
            }
        },
    )?;
    let ends = WatchEnd::NAMED.iter().map(|(end, meaning)| (end.label(), *meaning));
    let status = ("403, 404, 500 ...".into(), "The HTTP status that the API server answered with");
    metrics.document("sluice_watch_ends_total", "cause", ends.chain([status]));
    policies(metrics, running)?;
    leases(metrics, running)?;
    unenforced(metrics, running)?;
    gates(metrics, running)?;
    unattended(metrics, running)?;
    jwks(metrics, running)?;
    gauge(
        "sluice_capture_running",
        "1 while the eBPF programs redirect the connections of enrolled pods, else 0.",
        |running| {
            let status = running.capture.as_ref().map(Capture::status);
            let lost = |status: &capture::Status| matches!(status.attachment, Attachment::Lost { .. });
            Some(f64::from(u8::from(
                status.is_some_and(|status| status.synced && !status.stopped && !lost(&status)),
            )))
        },
    )?;
    gauge(
        "sluice_capture_first",
        "0 while another eBPF program on the pods' cgroup sees connections before Sluice does, else 1.",
        |running| {
            let status = running.capture.as_ref().map(Capture::status)?;
            Some(f64::from(u8::from(!matches!(status.attachment, Attachment::Behind { .. }))))
        },
    )?;
    gauge(
        "sluice_managed_destinations",
        "Addresses (IP and port) whose connections are redirected to the agent.",
        |running| Some(running.capture.as_ref()?.status().destinations as f64),
    )?;
    let asked = running.clone();
    metrics.pull(Pulled {
        name: "sluice_pods",
        help: "Pods of this node that are to be enrolled, by state.",
        kind: Kind::Gauge,
        labels: &["state"],
        read: Box::new(move |write| {
            let Some(status) = lock(&asked).capture.as_ref().map(Capture::status) else { return };
            let pending = status.pods.iter().filter(|pod| pod.pending.is_some()).count();
            let own_proxy = status.pods.iter().filter(|pod| pod.own_proxy.is_some()).count();
            write(&["enrolled"], (status.pods.len() - pending - own_proxy) as f64);
            write(&["pending"], pending as f64);
            write(&["other_mesh"], own_proxy as f64);
        }),
    })?;
    let states = [
        ("enrolled", "New connections of the pod to managed destinations are redirected."),
        ("pending", "The pod is to be enrolled and is not yet; the log and `/readyz` say why."),
        (
            "other_mesh",
            "The pod is not enrolled, because Istio, Linkerd, Kuma or Consul redirects its connections already.",
        ),
    ];
    metrics.document("sluice_pods", "state", states);
    let asked = running.clone();
    metrics.pull(Pulled {
        name: "sluice_kernel_connects_total",
        help: "Outgoing connections of this node's pods, handshakes of redirected ones, and connections to ports of pods that have an AccessPolicy, by what the eBPF programs did.",
        kind: Kind::Counter,
        labels: &["outcome"],
        read: Box::new(move |write| {
            let Some(status) = lock(&asked).capture.as_ref().map(Capture::status) else { return };
            for (reason, count) in status.kernel {
                write(&[reason], count as f64);
            }
        }),
    })?;
    let outcomes = Counter::ALL.map(|counter| (counter.name(), counter.meaning()));
    metrics.document("sluice_kernel_connects_total", "outcome", outcomes);
    let asked = running.clone();
    metrics.pull(Pulled {
        name: "sluice_preexisting_connections_open",
        help: "Connections of a pod to managed services that are older than its enrolment and still open: they bypass the agent.",
        kind: Kind::Gauge,
        labels: &["source_namespace", "source_pod"],
        read: Box::new(move |write| {
            let Some(status) = lock(&asked).capture.as_ref().map(Capture::status) else { return };
            let enrolled = |pod: &&capture::PodStatus| pod.pending.is_none() && pod.own_proxy.is_none();
            for pod in status.pods.iter().filter(enrolled) {
                write(&[&pod.workload.namespace, &pod.workload.name], pod.older.len() as f64);
            }
        }),
    })?;
    let asked = running.clone();
    metrics.pull(Pulled {
        name: "sluice_preexisting_connections_total",
        help: "Connections to managed services that pods had open before they were enrolled, and that bypass the agent therefore.",
        kind: Kind::Counter,
        labels: &[],
        read: Box::new(move |write| {
            if let Some(status) = lock(&asked).capture.as_ref().map(Capture::status) {
                write(&[], status.bypassed as f64);
            }
        }),
    })?;
    let asked = running.clone();
    metrics.pull(Pulled {
        name: "sluice_reclaimed_connections_total",
        help: "Connections older than their pod's enrolment that were ended while they were idle, so that their clients reconnect through the agent.",
        kind: Kind::Counter,
        labels: &[],
        read: Box::new(move |write| {
            if let Some(status) = lock(&asked).capture.as_ref().map(Capture::status) {
                write(&[], status.reclaimed as f64);
            }
        }),
    })
}

/// What became of policies, by why they are not wholly in force.
fn policies(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    const KINDS: [object::Kind; 3] = object::Kind::OWN;
    let running = running.clone();
    metrics.pull(Pulled {
        name: "sluice_policies",
        help: "TrafficPolicies, TrafficLanes and AccessPolicies by the reason of their condition `Programmed`.",
        kind: Kind::Gauge,
        labels: &["kind", "reason"],
        read: Box::new(move |write| {
            let Some(verdicts) = lock(&running).cluster.as_ref().map(|cluster| cluster.verdicts()) else {
                return;
            };
            let verdicts = verdicts.borrow().clone();
            for kind in KINDS {
                for reason in Reason::OF_PROGRAMMED {
                    let those = verdicts.iter().filter(|(key, judged)| {
                        key.kind == kind && judged.verdict.programmed.reason == reason
                    });
                    write(&[&kind.to_string(), reason.as_str()], those.count() as f64);
                }
            }
        }),
    })?;
    let kinds = KINDS.map(|kind| (kind.to_string(), "Objects of this kind in enrolled namespaces"));
    metrics.document("sluice_policies", "kind", kinds);
    let reasons = Reason::OF_PROGRAMMED.map(|reason| (reason.as_str(), reason.meaning()));
    metrics.document("sluice_policies", "reason", reasons);
    Ok(())
}

/// Pods that are not Ready before they are warm.
fn gates(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    let running = running.clone();
    metrics.pull(Pulled {
        name: "sluice_readiness_gates",
        help: "Pods of this node, in enrolled namespaces, that have the readiness gate sluice.dev/warm; none without --warm-gate.",
        kind: Kind::Gauge,
        labels: &["state"],
        read: Box::new(move |write| {
            let Some(gates) = lock(&running).cluster.as_ref().map(|cluster| cluster.gates()) else { return };
            let (gates, now) = (gates.borrow().clone(), Nanos::now().0);
            for state in State::ALL {
                let pods = gates.pods.values().filter(|gated| gated.state(now) == state);
                write(&[state.as_str()], pods.count() as f64);
            }
        }),
    })?;
    metrics.document(
        "sluice_readiness_gates",
        "state",
        State::ALL.map(|state| (state.as_str(), state.meaning())),
    );
    Ok(())
}

/// Limits of the whole cluster, and their store.
fn leases(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    let pull = |name, help, kind, labels, write: fn(&lease::Status, &mut Write<'_>)| {
        let running = running.clone();
        metrics.pull(Pulled {
            name,
            help,
            kind,
            labels,
            read: Box::new(move |say| {
                let status = lock(&running).leases.as_ref().map(|leases| leases.status());
                if let Some(status) = status {
                    write(&status, say);
                }
            }),
        })
    };
    pull(
        "sluice_limit_store_connected",
        "1 while the store of rate limits with scope Cluster answers, else 0; it is not asked while there are no such limits.",
        Kind::Gauge,
        &[],
        |status, say| say(&[], f64::from(u8::from(status.answers))),
    )?;
    pull(
        "sluice_limit_store_calls_total",
        "Calls to the store by which the agent renews its share of a rate limit with scope Cluster.",
        Kind::Counter,
        &["result"],
        |status, say| {
            say(&["answered"], status.answered as f64);
            say(&["failed"], status.failed as f64);
        },
    )?;
    let results = [
        ("answered", "The store answered in time."),
        ("failed", "It did not; the agent goes on with its last share until it does again."),
    ];
    metrics.document("sluice_limit_store_calls_total", "result", results);
    pull(
        "sluice_cluster_rate_limits",
        "Rate limits with scope Cluster, by how this agent counts them.",
        Kind::Gauge,
        &["counted"],
        |status, say| {
            for counted in Counted::ALL {
                let those = status.limits.values().filter(|by| **by == counted);
                say(&[counted.as_str()], those.count() as f64);
            }
        },
    )?;
    let counted = Counted::ALL.map(|counted| (counted.as_str(), counted.meaning()));
    metrics.document("sluice_cluster_rate_limits", "counted", counted);
    Ok(())
}

/// Pods at which AccessPolicies are not enforced.
fn unenforced(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    let running = running.clone();
    metrics.pull(Pulled {
        name: "sluice_access_unenforced_pods",
        help: "Pods of this node that clients of a Service with an AccessPolicy reach directly, so that it is not enforced there.",
        kind: Kind::Gauge,
        labels: &["destination_namespace", "destination_service"],
        read: Box::new(move |write| {
            let running = lock(&running);
            let Some(cluster) = &running.cluster else { return };
            let snapshot = cluster.current().load_full();
            let capture = running.capture.as_ref().map(Capture::status);
            drop(running);
            let (pods, steering_trouble) =
                capture.map(|status| (status.pods, status.steering_trouble)).unwrap_or_default();
            let look = Look { snapshot, pods, steering_trouble, ..Look::default() };
            for ((namespace, service), guarded) in unenforced::guarded(&look) {
                let access = guarded.unenforced.iter().filter(|(of, _)| of.what == What::AccessPolicy);
                let pods: BTreeSet<_> = access.flat_map(|(_, pods)| pods).collect();
                write(&[&namespace, &service], pods.len() as f64);
            }
        }),
    })
}

/// Keys of issuers, and what came of fetching them.
fn jwks(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    type Tell = fn(&jwks::State, &str, &mut Write<'_>);
    let each = |name, help, kind, labels, tell: Tell| {
        let running = running.clone();
        metrics.pull(Pulled {
            name,
            help,
            kind,
            labels,
            read: Box::new(move |write| {
                let Some(status) = lock(&running).cluster.as_ref().map(|cluster| cluster.status()) else {
                    return;
                };
                for state in &status.jwks {
                    tell(state, &state.location.to_string(), write);
                }
            }),
        })
    };
    each(
        "sluice_jwks_keys",
        "Keys of tokens that are known of this URI (jwks.uri of AccessPolicies); 0 while they are missing.",
        Kind::Gauge,
        &["uri"],
        |state, uri, write| write(&[uri], state.keys as f64),
    )?;
    each(
        "sluice_jwks_age_seconds",
        "Time since the keys of tokens were last fetched from this URI; while they are missing, since a policy first named it.",
        Kind::Gauge,
        &["uri"],
        |state, uri, write| write(&[uri], state.age.as_secs_f64()),
    )?;
    each(
        "sluice_jwks_fetches_total",
        "How often the keys of tokens were fetched from this URI, by result.",
        Kind::Counter,
        &["uri", "result"],
        |state, uri, write| {
            for (outcome, count) in Outcome::ALL.iter().zip(state.counts) {
                write(&[uri, outcome.code()], count as f64);
            }
        },
    )?;
    let results = Outcome::ALL.map(|outcome| (outcome.code(), outcome.meaning()));
    metrics.document("sluice_jwks_fetches_total", "result", results);
    Ok(())
}

/// Pods that AccessPolicies want closed while no agent is there.
fn unattended(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    let running = running.clone();
    metrics.pull(Pulled {
        name: "sluice_access_refuse_unattended_pods",
        help: "Pods of this node behind a Service whose AccessPolicy has whenUnattended: Refuse.",
        kind: Kind::Gauge,
        labels: &["destination_namespace", "destination_service", "state"],
        read: Box::new(move |write| {
            let running = lock(&running);
            let Some(cluster) = &running.cluster else { return };
            let snapshot = cluster.current().load_full();
            let pods = running.capture.as_ref().map(|capture| capture.status().pods).unwrap_or_default();
            drop(running);
            let look = Look { snapshot, pods, ..Look::default() };
            for ((namespace, service), closing) in unattended::closing(&look) {
                let missing: BTreeSet<_> = closing.missing.values().flatten().collect();
                let active = closing.active.iter().filter(|pod| !missing.contains(pod));
                write(&[&namespace, &service, "active"], active.count() as f64);
                write(&[&namespace, &service, "missing"], missing.len() as f64);
            }
        }),
    })?;
    let states = [
        ("active", "Its ports refuse connections once no agent attends them"),
        ("missing", "They do not: `sluice status` says why"),
    ];
    metrics.document("sluice_access_refuse_unattended_pods", "state", states);
    Ok(())
}
