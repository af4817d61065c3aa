//! The numbers that other rooms keep, read at each scrape: of the cluster's state, and of capture.

use super::{Running, Shared, lock};
use crate::{
    capture::Capture,
    cluster::{object, source::Watches, verdict::Reason},
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
        "Time since the source of the cluster's objects last knew that what it has told is the cluster's state.",
        |running| Some(running.cluster.as_ref()?.status().heard.elapsed().as_secs_f64()),
    )?;
    gauge("sluice_snapshot_generation", "Snapshots of the cluster that were put in force.", |running| {
        Some(running.cluster.as_ref()?.status().generation as f64)
    })?;
    gauge(
        "sluice_invalid_objects",
        "Objects, or parts of them, that are left out because they are wrong.",
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
        "Time since the API server last gave anything to the watch of this resource that has waited for longest.",
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
        "Watches on the API server, by resource.",
        Kind::Gauge,
        &["resource"],
        |resource, watches, say| say(&[resource], watches.open as f64),
    )?;
    watches(
        "sluice_watch_ends_total",
        "Watches that ended and were opened again, by why: a word, or the status that the API server answered.",
        Kind::Counter,
        &["resource", "cause"],
        |resource, watches, say| {
            for (end, count) in &watches.ends {
                say(&[resource, &end.label()], *count as f64);
            }
        },
    )?;
    policies(metrics, running)?;
    gauge(
        "sluice_capture_running",
        "Whether this node's pods are captured: 1 while the eBPF programs redirect their connects, else 0.",
        |running| {
            let status = running.capture.as_ref().map(Capture::status);
            Some(f64::from(u8::from(status.is_some_and(|status| status.synced && !status.stopped))))
        },
    )?;
    gauge("sluice_managed_destinations", "Addresses whose connections the kernel redirects.", |running| {
        Some(running.capture.as_ref()?.status().destinations as f64)
    })?;
    let asked = running.clone();
    metrics.pull(Pulled {
        name: "sluice_pods",
        help: "Pods of this node that are to be captured, by whether they are.",
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
    let asked = running.clone();
    metrics.pull(Pulled {
        name: "sluice_kernel_connects_total",
        help: "What the eBPF programs did with connects and handshakes of this node's pods, by outcome.",
        kind: Kind::Counter,
        labels: &["outcome"],
        read: Box::new(move |write| {
            let Some(status) = lock(&asked).capture.as_ref().map(Capture::status) else { return };
            for (reason, count) in status.kernel {
                write(&[reason], count as f64);
            }
        }),
    })?;
    let asked = running.clone();
    metrics.pull(Pulled {
        name: "sluice_preexisting_connections_total",
        help: "Connections to governed services that pods had opened before they were enrolled.",
        kind: Kind::Counter,
        labels: &[],
        read: Box::new(move |write| {
            if let Some(status) = lock(&asked).capture.as_ref().map(Capture::status) {
                write(&[], status.bypassed as f64);
            }
        }),
    })
}

/// What became of policies, by why they are not wholly in force.
fn policies(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    const KINDS: [object::Kind; 2] = [object::Kind::TrafficPolicy, object::Kind::TrafficLane];
    const REASONS: [Reason; 4] =
        [Reason::Programmed, Reason::Invalid, Reason::TargetNotFound, Reason::Conflicted];
    let running = running.clone();
    metrics.pull(Pulled {
        name: "sluice_policies",
        help: "Policies and lanes by the reason of their condition `Programmed`: `Programmed` are those in force for all that they ask for.",
        kind: Kind::Gauge,
        labels: &["kind", "reason"],
        read: Box::new(move |write| {
            let Some(verdicts) = lock(&running).cluster.as_ref().map(|cluster| cluster.verdicts()) else {
                return;
            };
            let verdicts = verdicts.borrow().clone();
            for kind in KINDS {
                for reason in REASONS {
                    let those = verdicts.iter().filter(|(key, judged)| {
                        key.kind == kind && judged.verdict.programmed.reason == reason
                    });
                    write(&[&kind.to_string(), reason.as_str()], those.count() as f64);
                }
            }
        }),
    })
}
