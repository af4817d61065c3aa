//! What pods use, as metrics tell of it.

use std::sync::{Arc, Weak};

use super::{Budget, Cause, PodUse};
use crate::{
    clock::Nanos,
    observe::metrics::{Kind, Metrics, Pulled, Write},
};

const NAMESPACE: &str = "source_namespace";
const POD: &str = "source_pod";

/// Writes what there is to say of a pod.
type Tell = fn(&PodUse, &mut Write<'_>);

/// Registers the numbers. They are those of `budget` as long as it is there.
pub(crate) fn register(metrics: &Metrics, budget: &Arc<Budget>) -> Result<(), prometheus::Error> {
    let pull = |name, help, kind, labels, tell: Tell| {
        let budget: Weak<Budget> = Arc::downgrade(budget);
        let read = Box::new(move |write: &mut Write<'_>| {
            for pod in budget.upgrade().iter().flat_map(|budget| budget.uses(Nanos::now())) {
                tell(&pod, write);
            }
        });
        metrics.pull(Pulled { name, help, kind, labels, read })
    };
    pull(
        "sluice_pod_connections_open",
        "Connections that a pod has open through the agent.",
        Kind::Gauge,
        &[NAMESPACE, POD],
        |pod, write| write(&[&pod.namespace, &pod.name], pod.connections as f64),
    )?;
    pull(
        "sluice_pod_waiting_bytes",
        "Memory that waits for slow peers of a pod, in the agent and in the kernel, and what the peers of its HTTP/2 connections may send at once (also of idle ones).",
        Kind::Gauge,
        &[NAMESPACE, POD],
        |pod, write| write(&[&pod.namespace, &pod.name], pod.bytes as f64),
    )?;
    pull(
        "sluice_pod_over_budget_seconds_total",
        "Time in which new connections of a pod bypassed the agent because the pod had used up a budget.",
        Kind::Counter,
        &[NAMESPACE, POD, "budget"],
        |pod, write| {
            for (cause, time) in Cause::ALL.into_iter().zip(pod.direct_for) {
                write(&[&pod.namespace, &pod.name, cause.code()], time.as_secs_f64());
            }
        },
    )?;
    let causes = Cause::ALL.map(|cause| (cause.code(), cause.meaning()));
    metrics.document("sluice_pod_over_budget_seconds_total", "budget", causes);
    Ok(())
}
