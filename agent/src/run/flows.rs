//! What the kernel counts of pods' connections, as metrics.

use std::collections::BTreeMap;

use super::{Shared, lock};
use crate::{
    capture::Flow,
    observe::metrics::{Kind, Metrics, Part, PulledParts, Value, WritePart},
};

const NAMESPACE: &str = "source_namespace";
const POD: &str = "source_pod";
const TO_NAMESPACE: &str = "destination_namespace";
const TO_SERVICE: &str = "destination_service";
const TO_PORT: &str = "destination_port";

const LABELS: [&str; 6] = [NAMESPACE, POD, TO_NAMESPACE, TO_SERVICE, TO_PORT, "path"];
const WITH_OUTCOME: [&str; 7] = [NAMESPACE, POD, TO_NAMESPACE, TO_SERVICE, TO_PORT, "path", "outcome"];
const WITH_DIRECTION: [&str; 7] = [NAMESPACE, POD, TO_NAMESPACE, TO_SERVICE, TO_PORT, "path", "direction"];

const PARTS: [Part; 4] = [
    Part {
        name: "sluice_flow_connections_total",
        help: "TCP connections of enrolled pods, as the kernel counts them: opened less closed are open. Those to unmanaged destinations have the service `other`.",
        kind: Some(Kind::Counter),
        labels: &WITH_OUTCOME,
    },
    Part {
        name: "sluice_flow_bytes_total",
        help: "Bytes of enrolled pods' TCP connections that have ended: sent and acknowledged, and received.",
        kind: Some(Kind::Counter),
        labels: &WITH_DIRECTION,
    },
    Part {
        name: "sluice_flow_retransmits_total",
        help: "Retransmitted segments of enrolled pods' TCP connections that have ended or failed.",
        kind: Some(Kind::Counter),
        labels: &LABELS,
    },
    Part {
        name: "sluice_flow_rtt_seconds",
        help: "Smoothed round trip times of enrolled pods' TCP connections when they ended.",
        kind: None,
        labels: &LABELS,
    },
];

pub(super) fn pull(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    let running = running.clone();
    let read = move |write: &mut WritePart<'_>| {
        let flows = lock(&running).capture.as_ref().map(crate::capture::Capture::flows);
        tell(flows.unwrap_or_default(), write);
    };
    metrics.pull_parts(PulledParts { parts: &PARTS, read: Box::new(read) })?;
    let path = [
        ("redirected", "From the client to the agent"),
        ("direct", "From the client to its destination, without the agent"),
    ];
    for part in PARTS {
        metrics.document(part.name, "path", path);
    }
    let outcomes = [
        ("opened", "Connections that were established"),
        ("failed", "Connections that could not be established"),
        ("closed", "Connections that have ended"),
    ];
    metrics.document("sluice_flow_connections_total", "outcome", outcomes);
    let directions = [
        ("sent", "Bytes that the pod sent and the other side acknowledged"),
        ("received", "Bytes that the pod received"),
    ];
    metrics.document("sluice_flow_bytes_total", "direction", directions);
    Ok(())
}

/// Two pods of one name, of which the old one can still be read, share their lines.
fn tell(flows: Vec<Flow>, write: &mut WritePart<'_>) {
    let mut sums: BTreeMap<[String; LABELS.len()], sluice_ebpf::FlowCounts> = BTreeMap::new();
    for flow in flows {
        let (namespace, service, port) = match &flow.destination {
            Some(to) => (to.namespace.to_string(), to.service.to_string(), to.port.to_string()),
            None => (String::new(), "other".to_owned(), String::new()),
        };
        let path = if flow.redirected { "redirected" } else { "direct" };
        let labels = [
            flow.source_namespace.to_string(),
            flow.source_pod.to_string(),
            namespace,
            service,
            port,
            path.to_owned(),
        ];
        let sum = sums.entry(labels).or_default();
        *sum = sum.plus(&flow.counts);
    }
    for (labels, counts) in sums {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let mut further = |part, word, count: u64| {
            let labels: Vec<&str> = labels.iter().copied().chain([word]).collect();
            write(part, &labels, Value::Number(count as f64));
        };
        further(0, "opened", counts.opened);
        further(0, "failed", counts.failed);
        further(0, "closed", counts.closed);
        further(1, "sent", counts.sent_bytes);
        further(1, "received", counts.received_bytes);
        write(2, &labels, Value::Number(counts.retransmits as f64));
        let sum = counts.rtt_micros as f64 / 1e6;
        write(3, &labels, Value::Summary { count: counts.rtts, sum });
    }
}

#[cfg(test)]
mod tests {
    use sluice_ebpf::FlowCounts;

    use super::*;

    #[test]
    fn flows_of_one_name_are_one_line() {
        let metrics = Metrics::new();
        let flow = || Flow {
            source_namespace: "shop".into(),
            source_pod: "db-0".into(),
            destination: None,
            redirected: false,
            counts: FlowCounts {
                opened: 2,
                sent_bytes: 7,
                rtt_micros: 500,
                rtts: 1,
                ..FlowCounts::default()
            },
        };
        let read = move |write: &mut WritePart<'_>| tell(vec![flow(), flow()], write);
        metrics.pull_parts(PulledParts { parts: &PARTS, read: Box::new(read) }).unwrap();
        let text = metrics.render().unwrap();
        for line in [
            "outcome=\"opened\"} 4",
            "direction=\"sent\"} 14",
            "sluice_flow_rtt_seconds_sum{",
            "sluice_flow_rtt_seconds_count{",
        ] {
            assert!(text.lines().filter(|found| found.contains(line)).count() == 1, "{line}: {text}");
        }
        assert!(text.contains("} 0.001\n"), "{text}");
    }
}
