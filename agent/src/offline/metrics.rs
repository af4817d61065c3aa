//! `sluice metrics`: what metrics an agent serves, as Markdown. `deploy/METRICS.md` is what this writes.

use std::io;

use crate::{
    observe::metrics::{MAX_SERIES, table},
    run,
};

/// Why they could not be told.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("metrics are defined twice: {0}")]
    Twice(#[from] prometheus::Error),
    #[error("cannot write to standard output: {0}")]
    Write(#[from] io::Error),
}

/// Writes them to `out`.
pub fn run(out: &mut impl io::Write) -> Result<(), MetricsError> {
    let table = table(&run::metrics()?);
    write!(
        out,
        "\
# Metrics

What an agent serves at `/metrics`, in the text format of Prometheus or, to scrapers that prefer it, in that of OpenMetrics 1.0;
packed with gzip if they ask for that. Made by `cargo xtask metrics` from what the agent registers, and compared by a test with
what an agent has served after traffic.

- `source_*` is the calling pod, `destination_*` the service port that it called. `destination_lane` is the lane of the
  endpoint that was asked: `baseline`, a tag, or nothing where none was chosen.
- Series come with the first thing to count. Those of a pod, a service or a lane that is gone can be scraped for another
  minute.
- A node's agent keeps at most {MAX_SERIES} series of a pod, service and lane. Beyond that, which
  `sluice_series_overflowed_total` tells, a pod's requests are counted for the service `other` in no namespace.
- No label has a value that a request made up: no path, header or unknown tag.
- In OpenMetrics the buckets of `sluice_request_duration_seconds` have exemplars: the trace id (`trace_id`) of the last request
  of the bucket whose trace is sampled, by whoever sent it (`traceparent`) or by Sluice (in any form that `--trace-propagation`
  names). Prometheus keeps them with `--enable-feature=exemplar-storage`.
- In OpenMetrics a counter's family is called as its samples without `_total`, and bounds that are whole numbers have a point
  (`le=\"1.0\"`), as in Prometheus 3 in both formats.

{table}"
    )?;
    Ok(())
}
