//! The numbers that other rooms keep, read at each scrape: of the cluster's state ([`mod@cluster`]), of policies and what they need
//! ([`policies`]), and of capture ([`mod@capture`]).

mod capture;
mod cluster;
mod policies;

use super::{Running, Shared, lock};
use crate::observe::metrics::{Kind, Metrics, Pulled, Write};

/// Registers the numbers that other rooms keep.
pub(super) fn pull(metrics: &Metrics, running: &Shared) -> Result<(), prometheus::Error> {
    let numbers = Numbers { metrics, running };
    cluster::register(&numbers)?;
    policies::register(&numbers)?;
    capture::register(&numbers)
}

/// What is said of a metric besides its values.
struct Metric {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
}

/// Where metrics are registered, and what they are read from.
struct Numbers<'a> {
    metrics: &'a Metrics,
    running: &'a Shared,
}

impl Numbers<'_> {
    /// Registers a metric. `find` gets what it is about, while nothing else can be read or changed; while that is not there, nothing is
    /// said. `write` says it.
    fn pull<T: 'static>(
        &self,
        Metric { name, kind, labels, help }: Metric,
        find: fn(&Running) -> Option<T>,
        write: fn(&T, &mut Write<'_>),
    ) -> Result<(), prometheus::Error> {
        let running = self.running.clone();
        let read = move |said: &mut Write<'_>| {
            let found = find(&lock(&running));
            if let Some(found) = found {
                write(&found, said);
            }
        };
        self.metrics.pull(Pulled { name, help, kind, labels, read: Box::new(read) })
    }

    /// Registers a single number.
    fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        read: fn(&Running) -> Option<f64>,
    ) -> Result<(), prometheus::Error> {
        let metric = Metric { name, kind: Kind::Gauge, labels: &[], help };
        self.pull(metric, read, |value, write| write(&[], *value))
    }
}

fn bit(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
