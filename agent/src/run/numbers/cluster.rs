//! Numbers of what is known of the cluster, and of the watches that it comes from.

use super::{Metric, Numbers, Running, bit};
use crate::{
    cluster::{self, source::WatchEnd},
    observe::metrics::Kind,
};

pub(super) fn register(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    numbers.gauge(
        "sluice_snapshot_age_seconds",
        "Time since the snapshot of the cluster was last known to be current.",
        |running| Some(status(running)?.heard.elapsed().as_secs_f64()),
    )?;
    numbers.gauge(
        "sluice_snapshot_restored",
        "1 while the snapshot of the cluster is that of the state file, because the API server has not told all that there is since the start; else 0.",
        |running| Some(bit(status(running)?.restored)),
    )?;
    numbers.gauge(
        "sluice_snapshot_generation",
        "Number of the current snapshot of the cluster: it grows with each change.",
        |running| Some(status(running)?.generation as f64),
    )?;
    numbers.gauge(
        "sluice_invalid_objects",
        "Objects, or parts of them, that are invalid and have no effect.",
        |running| Some(status(running)?.problems.len() as f64),
    )?;
    let metric = Metric {
        name: "sluice_watch_age_seconds",
        kind: Kind::Gauge,
        labels: &["resource"],
        help: "Time since a watch on this resource last received anything from the API server; that of the watch that has waited longest.",
    };
    numbers.pull(metric, status, |status, write| {
        for (resource, watches) in &status.watches {
            if let Some(heard) = watches.heard {
                write(&[resource], heard.elapsed().as_secs_f64());
            }
        }
    })?;
    let metric = Metric {
        name: "sluice_watches",
        kind: Kind::Gauge,
        labels: &["resource"],
        help: "Open watches on the API server.",
    };
    numbers.pull(metric, status, |status, write| {
        for (resource, watches) in &status.watches {
            write(&[resource], watches.open as f64);
        }
    })?;
    let metric = Metric {
        name: "sluice_watch_ends_total",
        kind: Kind::Counter,
        labels: &["resource", "cause"],
        help: "Watches that ended and were opened again, by cause.",
    };
    numbers.pull(metric, status, |status, write| {
        for (resource, watches) in &status.watches {
            for (end, count) in &watches.ends {
                write(&[resource, &end.label()], *count as f64);
            }
        }
    })?;
    let ends = WatchEnd::NAMED.iter().map(|(end, meaning)| (end.label(), *meaning));
    let refused = ("403, 404, 500 ...".into(), "The HTTP status that the API server answered with");
    numbers.metrics.document("sluice_watch_ends_total", "cause", ends.chain([refused]));
    Ok(())
}

pub(super) fn status(running: &Running) -> Option<cluster::Status> {
    Some(running.cluster.as_ref()?.status())
}
