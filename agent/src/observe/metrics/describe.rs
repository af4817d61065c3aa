//! What metrics there are, for people: made from what is registered, so that it cannot be wrong.

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
    /// The values of those labels that have a closed list of them, each with what it means.
    pub values: Vec<(String, Vec<Meaning>)>,
}

/// A value of a label, and what it means.
pub type Meaning = (String, &'static str);

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
            values: Vec::new(),
        }
    };
    families.iter().map(describe).collect()
}
