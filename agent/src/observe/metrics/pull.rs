//! Metrics that another room keeps, read at each scrape.

use std::{collections::HashMap, fmt};

use prometheus::{
    core::{Collector, Desc},
    proto::{MetricFamily, MetricType},
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
