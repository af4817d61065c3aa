//! The text format of OpenMetrics 1.0: the classic one with stricter names, units, exemplars, and an end.
//! <https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md>

use std::{fmt::Write as _, time::UNIX_EPOCH};

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::exemplars::{Exemplar, Kept};

/// As the specification names it.
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Units that a name may end with. The specification wants them told.
const UNITS: [&str; 3] = ["seconds", "bytes", "ratio"];

/// All families. `exemplars` are those of a histogram's buckets, by the name of the family and the labels of the series.
pub(super) fn encode<'k>(
    families: &[MetricFamily],
    exemplars: impl Fn(&str, &[LabelPair]) -> Option<&'k Kept>,
) -> String {
    let mut out = String::new();
    for family in families {
        write_family(&mut out, family, &exemplars);
    }
    out.push_str("# EOF\n");
    out
}

fn write_family<'k>(
    out: &mut String,
    family: &MetricFamily,
    exemplars: &impl Fn(&str, &[LabelPair]) -> Option<&'k Kept>,
) {
    let full = family.name();
    let (name, kind) = match family.get_field_type() {
        // A counter's samples are called as the family is, and `_total`.
        MetricType::COUNTER => match full.strip_suffix("_total") {
            Some(name) => (name, "counter"),
            None => (full, "unknown"),
        },
        MetricType::GAUGE => (full, "gauge"),
        MetricType::HISTOGRAM => (full, "histogram"),
        MetricType::SUMMARY => (full, "summary"),
        MetricType::UNTYPED => (full, "unknown"),
    };
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(out, "# TYPE {name} {kind}");
    if let Some(unit) =
        UNITS.iter().find(|unit| name.strip_suffix(**unit).is_some_and(|rest| rest.ends_with('_')))
    {
        let _ = writeln!(out, "# UNIT {name} {unit}");
    }
    if !family.help().is_empty() {
        let _ = write!(out, "# HELP {name} ");
        escape(out, family.help());
        out.push('\n');
    }
    for metric in family.get_metric() {
        let mut line = Line { out, metric };
        match family.get_field_type() {
            MetricType::COUNTER => line.sample(full, "", None, metric.get_counter().get_value(), None),
            MetricType::GAUGE => line.sample(full, "", None, metric.get_gauge().get_value(), None),
            // Nothing that is registered is untyped.
            MetricType::UNTYPED => {}
            MetricType::SUMMARY => {
                let summary = metric.get_summary();
                line.sample(name, "_count", None, summary.sample_count() as f64, None);
                line.sample(name, "_sum", None, summary.sample_sum(), None);
            }
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let kept = exemplars(name, metric.get_label());
                let exemplar = |bucket: usize| kept.and_then(|kept| kept.get(bucket).copied().flatten());
                for (at, bucket) in histogram.get_bucket().iter().enumerate() {
                    let bound = bound(bucket.upper_bound());
                    line.sample(
                        name,
                        "_bucket",
                        Some(&bound),
                        bucket.cumulative_count() as f64,
                        exemplar(at),
                    );
                }
                let (all, last) = (histogram.get_sample_count() as f64, histogram.get_bucket().len());
                line.sample(name, "_bucket", Some("+Inf"), all, exemplar(last));
                line.sample(name, "_count", None, all, None);
                line.sample(name, "_sum", None, histogram.get_sample_sum(), None);
            }
        }
    }
}

/// Writes the samples of a metric.
struct Line<'l> {
    out: &'l mut String,
    metric: &'l Metric,
}

impl Line<'_> {
    fn sample(&mut self, name: &str, suffix: &str, le: Option<&str>, value: f64, exemplar: Option<Exemplar>) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        let own = self.metric.get_label().iter().map(|label| (label.name(), label.value()));
        let mut before = '{';
        for (name, value) in own.chain(le.map(|bound| ("le", bound))) {
            self.out.push(before);
            before = ',';
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(self.out, value);
            self.out.push('"');
        }
        self.out.push_str(if before == ',' { "} " } else { " " });
        number(self.out, value);
        if let Some(Exemplar { trace, nanos, time }) = exemplar {
            let _ = write!(self.out, " # {{trace_id=\"{trace}\"}} ");
            number(self.out, nanos as f64 / 1e9);
            // A clock before 1970 has no moment that could be told.
            if let Ok(since) = time.duration_since(UNIX_EPOCH) {
                let _ = write!(self.out, " {}.{:03}", since.as_secs(), since.subsec_millis());
            }
        }
        self.out.push('\n');
    }
}

/// The number of a bucket's label. It is a text to whoever takes it, and a float's canonical one has a point.
fn bound(value: f64) -> String {
    let text = value.to_string();
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text + ".0" } else { text }
}

fn number(out: &mut String, value: f64) {
    let _ = match value {
        value if value.is_nan() => out.write_str("NaN"),
        value if value.is_infinite() => out.write_str(if value > 0.0 { "+Inf" } else { "-Inf" }),
        value => write!(out, "{value}"),
    };
}

/// Of help and of label values alike.
fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::proto::{Bucket, Histogram, Summary};

    use super::*;
    use crate::observe::{
        metrics::families::{counter, gauge, label},
        trace::context::TraceId,
    };

    fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }

    #[test]
    fn everything_is_written_as_it_is_specified() {
        let mut histogram = Histogram::default();
        let bucket = |bound, count| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        histogram.set_bucket(vec![bucket(0.0005, 1), bucket(1.0, 2), bucket(60.0, 2)]);
        histogram.set_sample_count(3);
        histogram.set_sample_sum(61.25);
        let mut latency = Metric::from_label(vec![label("service", "a\"b\\c\nd")]);
        latency.set_histogram(histogram);
        let mut summary = Summary::default();
        summary.set_sample_count(2);
        summary.set_sample_sum(0.5);
        let mut lived = Metric::from_label(Vec::new());
        lived.set_summary(summary);
        let families = [
            family(
                "up_seconds_total",
                "A \"help\"\nof \\ lines.",
                MetricType::COUNTER,
                vec![counter(Vec::new(), 0.07)],
            ),
            family(
                "load_ratio",
                "",
                MetricType::GAUGE,
                vec![gauge(vec![label("a", "b"), label("c", "")], f64::NAN)],
            ),
            family("odd", "", MetricType::COUNTER, vec![counter(Vec::new(), f64::INFINITY)]),
            family("latency_seconds", "", MetricType::HISTOGRAM, vec![latency]),
            family("lifetime_seconds", "", MetricType::SUMMARY, vec![lived]),
            family("nothing_seconds", "", MetricType::GAUGE, Vec::new()),
            family("seconds", "", MetricType::GAUGE, vec![gauge(Vec::new(), 12_345_678.0)]),
        ];
        let exemplar = |trace: u128, nanos| Exemplar {
            trace: TraceId::new(trace).unwrap(),
            nanos,
            time: UNIX_EPOCH + Duration::from_millis(1_700_000_000_007),
        };
        let mut kept: Kept = [None; super::super::exemplars::BUCKETS];
        (kept[1], kept[3]) = (Some(exemplar(0xabc, 20_000_000)), Some(exemplar(1, 61_000_000_000)));
        let told = encode(&families, |name, labels| {
            (name == "latency_seconds" && labels[0].name() == "service").then_some(&kept)
        });
        let wanted = "\
# TYPE up_seconds counter
# UNIT up_seconds seconds
# HELP up_seconds A \\\"help\\\"\\nof \\\\ lines.
up_seconds_total 0.07
# TYPE load_ratio gauge
# UNIT load_ratio ratio
load_ratio{a=\"b\",c=\"\"} NaN
# TYPE odd unknown
odd +Inf
# TYPE latency_seconds histogram
# UNIT latency_seconds seconds
latency_seconds_bucket{service=\"a\\\"b\\\\c\\nd\",le=\"0.0005\"} 1
latency_seconds_bucket{service=\"a\\\"b\\\\c\\nd\",le=\"1.0\"} 2 # {trace_id=\"00000000000000000000000000000abc\"} 0.02 1700000000.007
latency_seconds_bucket{service=\"a\\\"b\\\\c\\nd\",le=\"60.0\"} 2
latency_seconds_bucket{service=\"a\\\"b\\\\c\\nd\",le=\"+Inf\"} 3 # {trace_id=\"00000000000000000000000000000001\"} 61 1700000000.007
latency_seconds_count{service=\"a\\\"b\\\\c\\nd\"} 3
latency_seconds_sum{service=\"a\\\"b\\\\c\\nd\"} 61.25
# TYPE lifetime_seconds summary
# UNIT lifetime_seconds seconds
lifetime_seconds_count 2
lifetime_seconds_sum 0.5
# TYPE nothing_seconds gauge
# UNIT nothing_seconds seconds
# TYPE seconds gauge
seconds 12345678
# EOF
";
        assert_eq!(told, wanted);
    }
}
