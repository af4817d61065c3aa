//! Numbers of capture: pods, programs, and connections that bypass the agent.

use sluice_ebpf::Counter;

use super::{Metric, Numbers, Running, bit};
use crate::{
    capture::{self, Attachment, Capture},
    observe::metrics::Kind,
};

pub(super) fn register(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    numbers.gauge(
        "sluice_capture_running",
        "1 while the eBPF programs redirect the connections of enrolled pods, else 0.",
        |running| {
            let lost = |status: &capture::Status| matches!(status.attachment, Attachment::Lost { .. });
            Some(
                bit(status(running).is_some_and(|status| status.synced && !status.stopped && !lost(&status))),
            )
        },
    )?;
    numbers.gauge(
        "sluice_capture_first",
        "0 while another eBPF program on the pods' cgroup sees connections before Sluice does, else 1.",
        |running| Some(bit(!matches!(status(running)?.attachment, Attachment::Behind { .. }))),
    )?;
    numbers.gauge(
        "sluice_managed_destinations",
        "Addresses (IP and port) whose connections are redirected to the agent.",
        |running| Some(status(running)?.destinations as f64),
    )?;
    pods(numbers)?;
    let metric = Metric {
        name: "sluice_kernel_connects_total",
        kind: Kind::Counter,
        labels: &["outcome"],
        help: "Outgoing connections of this node's pods, handshakes of redirected ones, and connections to ports of pods that have an AccessPolicy, by what the eBPF programs did.",
    };
    let name = metric.name;
    numbers.pull(metric, status, |status, write| {
        for (reason, count) in &status.kernel {
            write(&[reason], *count as f64);
        }
    })?;
    let outcomes = Counter::ALL.map(|counter| (counter.name(), counter.meaning()));
    numbers.metrics.document(name, "outcome", outcomes);
    bypassing(numbers)
}

fn status(running: &Running) -> Option<capture::Status> {
    running.capture.as_ref().map(Capture::status)
}

fn pods(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    let metric = Metric {
        name: "sluice_pods",
        kind: Kind::Gauge,
        labels: &["state"],
        help: "Pods of this node that are to be enrolled, by state.",
    };
    let name = metric.name;
    numbers.pull(metric, status, |status, write| {
        let pending = status.pods.iter().filter(|pod| pod.pending.is_some()).count();
        let own_proxy = status.pods.iter().filter(|pod| pod.own_proxy.is_some()).count();
        write(&["enrolled"], (status.pods.len() - pending - own_proxy) as f64);
        write(&["pending"], pending as f64);
        write(&["other_mesh"], own_proxy as f64);
    })?;
    let states = [
        ("enrolled", "New connections of the pod to managed destinations are redirected."),
        ("pending", "The pod is to be enrolled and is not yet; the log and `/readyz` say why."),
        (
            "other_mesh",
            "The pod is not enrolled, because Istio, Linkerd, Kuma or Consul redirects its connections already.",
        ),
    ];
    numbers.metrics.document(name, "state", states);
    Ok(())
}

/// Connections that are older than their pod's enrolment.
fn bypassing(numbers: &Numbers<'_>) -> Result<(), prometheus::Error> {
    let metric = Metric {
        name: "sluice_preexisting_connections_open",
        kind: Kind::Gauge,
        labels: &["source_namespace", "source_pod"],
        help: "Connections of a pod to managed services that are older than its enrolment and still open: they bypass the agent.",
    };
    numbers.pull(metric, status, |status, write| {
        let enrolled = |pod: &&capture::PodStatus| pod.pending.is_none() && pod.own_proxy.is_none();
        for pod in status.pods.iter().filter(enrolled) {
            write(&[&pod.workload.namespace, &pod.workload.name], pod.older.len() as f64);
        }
    })?;
    let metric = Metric {
        name: "sluice_preexisting_inbound_connections_open",
        kind: Kind::Gauge,
        labels: &["destination_namespace", "destination_pod"],
        help: "Connections from clients to a pod that are older than what policies ask for at its ports and still open: AccessPolicies and limits with scope Endpoint do not apply to them.",
    };
    numbers.pull(metric, status, |status, write| {
        for pod in status.pods.iter().filter(|pod| !pod.steered.addresses.is_empty()) {
            write(&[&pod.workload.namespace, &pod.workload.name], pod.steered.older.len() as f64);
        }
    })?;
    let metric = Metric {
        name: "sluice_preexisting_connections_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Connections to managed services that pods had open before they were enrolled, and that bypass the agent therefore.",
    };
    numbers.pull(metric, status, |status, write| write(&[], status.bypassed as f64))?;
    let metric = Metric {
        name: "sluice_reclaimed_connections_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Connections older than their pod's enrolment that were ended while they were idle, so that their clients reconnect through the agent.",
    };
    numbers.pull(metric, status, |status, write| write(&[], status.reclaimed as f64))
}
