//! Metrics that another room keeps, read at each scrape.

use std::{collections::HashMap, fmt};

use prometheus::{
    core::{Collector, Desc},
    proto::{Metric, MetricFamily, MetricType, Summary},
};

use super::families::{counter, family, gauge, label};

/// What kind of metric is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

impl From<Kind> for MetricType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::COUNTER,
            Kind::Gauge => Self::GAUGE,
        }
    }
}

/// Writes one value: the label values, in the order of the names, and the number.
pub type Write<'w> = dyn FnMut(&[&str], f64) + 'w;

/// A metric that is read at each scrape.
pub struct Pulled {
    /// With prefix and unit, as in `sluice_kernel_connects_total`.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// Names of the labels.
    pub labels: &'static [&'static str],
    /// Writes all values there are. Called by the scraping thread: it must not block.
    pub read: Box<dyn Fn(&mut Write<'_>) + Send + Sync>,
}

impl fmt::Debug for Pulled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulled").field("name", &self.name).finish_non_exhaustive()
    }
}

pub(super) struct PullCollector {
    desc: Desc,
    pulled: Pulled,
}

impl PullCollector {
    pub(super) fn new(pulled: Pulled) -> Result<Self, prometheus::Error> {
        let labels = pulled.labels.iter().map(ToString::to_string).collect();
        let desc = Desc::new(pulled.name.to_owned(), pulled.help.to_owned(), labels, HashMap::new())?;
        Ok(Self { desc, pulled })
    }
}

impl Collector for PullCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metrics = Vec::new();
        (self.pulled.read)(&mut |values, number| {
            debug_assert_eq!(values.len(), self.pulled.labels.len(), "{}", self.pulled.name);
            let labels =
                self.pulled.labels.iter().zip(values).map(|(name, value)| label(name, value)).collect();
            metrics.push(match self.pulled.kind {
                Kind::Counter => counter(labels, number),
                Kind::Gauge => gauge(labels, number),
            });
        });
        vec![family(&self.desc, self.pulled.kind.into(), metrics)]
    }
}

/// A metric that is read together with others.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub name: &'static str,
    pub help: &'static str,
    /// `None`: a summary without quantiles, a sum and how many it is of.
    pub kind: Option<Kind>,
    pub labels: &'static [&'static str],
}

/// A value of a [`Part`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Number(f64),
    Summary { count: u64, sum: f64 },
}

/// Writes one value: which part it is of, the label values, and the value.
pub type WritePart<'w> = dyn FnMut(usize, &[&str], Value) + 'w;

/// Metrics that are read together at each scrape, because they come from one place.
pub struct PulledParts {
    pub parts: &'static [Part],
    /// Writes all values there are. Called by the scraping thread: it must not block.
    pub read: Box<dyn Fn(&mut WritePart<'_>) + Send + Sync>,
}

impl fmt::Debug for PulledParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PulledParts").field("parts", &self.parts).finish_non_exhaustive()
    }
}

pub(super) struct PartsCollector {
    descs: Vec<Desc>,
    pulled: PulledParts,
}

impl PartsCollector {
    pub(super) fn new(pulled: PulledParts) -> Result<Self, prometheus::Error> {
        let desc = |part: &Part| {
            let labels = part.labels.iter().map(ToString::to_string).collect();
            Desc::new(part.name.to_owned(), part.help.to_owned(), labels, HashMap::new())
        };
        let descs = pulled.parts.iter().map(desc).collect::<Result<_, _>>()?;
        Ok(Self { descs, pulled })
    }
}

impl Collector for PartsCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let parts = self.pulled.parts;
        let mut metrics: Vec<Vec<Metric>> = parts.iter().map(|_| Vec::new()).collect();
        (self.pulled.read)(&mut |at, values, value| {
            let names = parts[at].labels;
            debug_assert_eq!(values.len(), names.len(), "{}", parts[at].name);
            let labels = names.iter().zip(values).map(|(name, value)| label(name, value)).collect();
            metrics[at].push(match (value, parts[at].kind) {
                (Value::Number(number), Some(Kind::Gauge)) => gauge(labels, number),
                (Value::Number(number), _) => counter(labels, number),
                (Value::Summary { count, sum }, _) => {
                    let mut summary = Summary::default();
                    summary.set_sample_count(count);
                    summary.set_sample_sum(sum);
                    let mut metric = Metric::from_label(labels);
                    metric.set_summary(summary);
                    metric
                }
            });
        });
        let families = self.descs.iter().zip(parts).zip(metrics);
        families
            .map(|((desc, part), metrics)| {
                family(desc, part.kind.map_or(MetricType::SUMMARY, MetricType::from), metrics)
            })
            .collect()
    }
}
