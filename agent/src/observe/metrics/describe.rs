//! What metrics there are, for people: made from what is registered, so that it cannot be wrong.

use std::fmt::Write as _;

use prometheus::{core::Collector, proto::MetricType};

/// One metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Description {
    pub name: String,
    /// As Prometheus calls it: `counter`, `gauge`, `histogram`.
    pub kind: &'static str,
    /// Names of the labels, in their order.
    pub labels: Vec<String>,
    pub help: String,
}

/// What a collector collects. It is asked for its families, which know their types also while they are empty.
pub(super) fn describe(collector: &dyn Collector) -> Vec<Description> {
    let descs = collector.desc();
    let families = collector.collect();
    let describe = |family: &prometheus::proto::MetricFamily| {
        let desc = descs.iter().find(|desc| desc.fq_name == family.name());
        Description {
            name: family.name().to_owned(),
            kind: match family.get_field_type() {
                MetricType::COUNTER => "counter",
                MetricType::GAUGE => "gauge",
                MetricType::HISTOGRAM => "histogram",
                MetricType::SUMMARY => "summary",
                MetricType::UNTYPED => "untyped",
            },
            labels: desc.map(|desc| desc.variable_labels.clone()).unwrap_or_default(),
            help: family.help().to_owned(),
        }
    };
    families.iter().map(describe).collect()
}

/// A Markdown table of them.
pub fn table(descriptions: &[Description]) -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for Description { name, kind, labels, help } in descriptions {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let help = help.replace('|', "\\|");
        // Writing to a string does not fail.
        let _ = writeln!(table, "| `{name}` | {kind} | {} | {help} |", labels.join(" "));
    }
    table
}
