//! From Prometheus's form to OTLP's. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use prometheus::proto::{self, MetricFamily, MetricType};

use crate::observe::otlp::Identity;

/// The time that counters count from, and that of the numbers, in nanoseconds since 1970.
#[derive(Clone, Copy)]
struct Times {
    since: u64,
    now: u64,
}

/// The messages that tell all of it, none with more than about so many points. (A metric's points may be in several.)
pub(super) fn messages(
    families: &[MetricFamily],
    identity: &Identity,
    since: SystemTime,
    now: SystemTime,
    points: usize,
) -> Vec<ExportMetricsServiceRequest> {
    let nanos = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    };
    let times = Times { since: nanos(since), now: nanos(now) };
    let mut messages = Vec::new();
    let (mut batch, mut room) = (Vec::new(), points);
    for family in families {
        for part in family.get_metric().chunks(points) {
            if part.len() > room && !batch.is_empty() {
                messages.push(message(std::mem::take(&mut batch), identity));
                room = points;
            }
            room = room.saturating_sub(part.len());
            batch.extend(metric(family, part, times));
        }
    }
    if !batch.is_empty() {
        messages.push(message(batch, identity));
    }
    messages
}

fn message(metrics: Vec<Metric>, identity: &Identity) -> ExportMetricsServiceRequest {
    let scope = InstrumentationScope {
        name: "sluice".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let attributes = identity.pairs().map(|(key, value)| pair(key, value)).collect();
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

/// `None` for what Sluice has none of: numbers of no type.
fn metric(family: &MetricFamily, part: &[proto::Metric], times: Times) -> Option<Metric> {
    let cumulative = AggregationTemporality::Cumulative.into();
    let numbers = |since: u64, value: fn(&proto::Metric) -> f64| -> Vec<NumberDataPoint> {
        part.iter().map(|metric| number(metric, value(metric), since, times.now)).collect()
    };
    let data = match family.get_field_type() {
        MetricType::COUNTER => Data::Sum(Sum {
            data_points: numbers(times.since, |metric| metric.get_counter().get_value()),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        MetricType::GAUGE => {
            Data::Gauge(Gauge { data_points: numbers(0, |metric| metric.get_gauge().get_value()) })
        }
        MetricType::HISTOGRAM => Data::Histogram(Histogram {
            data_points: part.iter().map(|metric| histogram(metric, times)).collect(),
            aggregation_temporality: cumulative,
        }),
        MetricType::SUMMARY => {
            Data::Summary(Summary { data_points: part.iter().map(|metric| summary(metric, times)).collect() })
        }
        MetricType::UNTYPED => return None,
    };
    Some(Metric {
        name: family.name().to_owned(),
        description: family.help().to_owned(),
        unit: unit(family.name()).to_owned(),
        metadata: Vec::new(),
        data: Some(data),
    })
}

fn number(metric: &proto::Metric, value: f64, since: u64, now: u64) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(metric),
        start_time_unix_nano: since,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    }
}

/// Sluice's have no quantiles.
fn summary(metric: &proto::Metric, times: Times) -> SummaryDataPoint {
    let summary = metric.get_summary();
    SummaryDataPoint {
        attributes: attributes(metric),
        start_time_unix_nano: times.since,
        time_unix_nano: times.now,
        count: summary.sample_count(),
        sum: summary.sample_sum(),
        ..SummaryDataPoint::default()
    }
}

/// Prometheus counts what is at most a bound, OTLP what is between two; the last one has no bound.
fn histogram(metric: &proto::Metric, times: Times) -> HistogramDataPoint {
    let histogram = metric.get_histogram();
    let (mut bounds, mut counts, mut below) = (Vec::new(), Vec::new(), 0);
    for bucket in histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite()) {
        bounds.push(bucket.upper_bound());
        // (Buckets are read one after the other while requests go on.)
        counts.push(bucket.cumulative_count().saturating_sub(below));
        below = below.max(bucket.cumulative_count());
    }
    let count = histogram.get_sample_count().max(below);
    counts.push(count - below);
    HistogramDataPoint {
        attributes: attributes(metric),
        start_time_unix_nano: times.since,
        time_unix_nano: times.now,
        count,
        sum: Some(histogram.get_sample_sum()),
        bucket_counts: counts,
        explicit_bounds: bounds,
        ..HistogramDataPoint::default()
    }
}

fn attributes(metric: &proto::Metric) -> Vec<KeyValue> {
    // An empty label is as good as none, in Prometheus.
    let labels = metric.get_label().iter().filter(|label| !label.value().is_empty());
    labels.map(|label| pair(label.name(), label.value())).collect()
}

fn pair(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// In UCUM's letters, by the unit that a metric's name ends with.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    let units = [("_seconds", "s"), ("_bytes", "By")];
    units.into_iter().find(|(suffix, _)| name.ends_with(suffix)).map_or("", |(_, unit)| unit)
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

    use super::*;

    fn registry() -> Registry {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_bytes_total", "Bytes."), &["to", "lane"]).unwrap();
        counter.with_label_values(&["orders", ""]).inc_by(7);
        let gauge = IntGauge::new("b", "Things.").unwrap();
        gauge.set(-3);
        let options = HistogramOpts::new("c_seconds", "Times.").buckets(vec![0.1, 1.0]);
        let histogram = HistogramVec::new(options, &["to"]).unwrap();
        for seconds in [0.05, 0.1, 0.5, 3.0, 4.0] {
            histogram.with_label_values(&["orders"]).observe(seconds);
        }
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.register(Box::new(histogram)).unwrap();
        registry
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    }

    #[test]
    fn a_summary_is_a_sum_and_a_count() {
        let mut summary = proto::Summary::default();
        summary.set_sample_count(4);
        summary.set_sample_sum(0.5);
        let mut point = proto::Metric::from_label(Vec::new());
        point.set_summary(summary);
        let mut family = MetricFamily::default();
        family.set_name("d_seconds".to_owned());
        family.set_field_type(MetricType::SUMMARY);
        family.set_metric(vec![point]);
        let times = Times { since: 1, now: 2 };
        let told = metric(&family, family.get_metric(), times).unwrap();
        let Some(Data::Summary(summary)) = &told.data else { panic!("{told:?}") };
        let [point] = &summary.data_points[..] else { panic!("{summary:?}") };
        assert_eq!((point.count, point.start_time_unix_nano, point.time_unix_nano), (4, 1, 2));
        assert!((point.sum - 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn numbers_and_units_are_those_of_prometheus() {
        let identity = Identity::new(None, &[]);
        let messages = messages(&registry().gather(), &identity, at(1), at(2), 100);
        let [message] = &messages[..] else { panic!("{} messages", messages.len()) };
        let [metrics] = &message.resource_metrics[..] else { panic!("one resource") };
        assert_eq!(metrics.resource.as_ref().unwrap().attributes[0], pair("service.name", "sluice"));
        let [bytes, things, times] = &metrics.scope_metrics[0].metrics[..] else { panic!("three metrics") };
        assert_eq!((&*bytes.name, &*bytes.unit, &*bytes.description), ("a_bytes_total", "By", "Bytes."));
        let Some(Data::Sum(sum)) = &bytes.data else { panic!("{bytes:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality() == AggregationTemporality::Cumulative);
        assert_eq!(sum.data_points[0].attributes, [pair("to", "orders")]);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(7.0)));
        assert_eq!(
            (sum.data_points[0].start_time_unix_nano, sum.data_points[0].time_unix_nano),
            (1_000_000_000, 2_000_000_000)
        );
        let Some(Data::Gauge(gauge)) = &things.data else { panic!("{things:?}") };
        assert_eq!(gauge.data_points[0].value, Some(number_data_point::Value::AsDouble(-3.0)));
        let Some(Data::Histogram(histogram)) = &times.data else { panic!("{times:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((&*times.unit, point.count, &*point.explicit_bounds), ("s", 5, &[0.1, 1.0][..]));
        assert_eq!(point.bucket_counts, [2, 1, 2]);
        assert!((point.sum.unwrap() - 7.65).abs() < 1e-9);
    }

    #[test]
    fn messages_are_bounded_and_nothing_is_lost() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_total", "A."), &["n"]).unwrap();
        for n in 0..25 {
            counter.with_label_values(&[&n.to_string()]).inc();
        }
        registry.register(Box::new(counter)).unwrap();
        let identity = Identity::new(None, &[]);
        let messages = messages(&registry.gather(), &identity, at(1), at(2), 10);
        let points = |message: &ExportMetricsServiceRequest| -> usize {
            let metrics = &message.resource_metrics[0].scope_metrics[0].metrics;
            metrics
                .iter()
                .map(|metric| match &metric.data {
                    Some(Data::Sum(sum)) => sum.data_points.len(),
                    _ => 0,
                })
                .sum()
        };
        assert_eq!(messages.iter().map(points).collect::<Vec<_>>(), [10, 10, 5]);
    }
}
