//! The metrics that an agent serves, and what the values of their labels mean.

use std::fmt::Write as _;

use super::{MADE, cell, code};
use crate::observe::metrics::{Description, MAX_SERIES, Meaning};

pub(super) fn page(descriptions: &[Description]) -> String {
    let mut page = format!(
        "{MADE}\
# Metrics

Each agent serves these metrics at `/metrics`: in the text format of Prometheus or, to scrapers that prefer it, in OpenMetrics
1.0; compressed with gzip if they ask for it. A test compares this page with what an agent serves after traffic.

- `source_*` is the calling pod, `destination_*` the service port that it called. `destination_lane` is the lane of the
  endpoint that got the request: `baseline`, a tag, or nothing where no endpoint was chosen.
- A series appears with the first event that it counts. Series of a pod, service or lane that is gone stay for one more minute.
- An agent keeps at most {MAX_SERIES} series of a pod, service and lane. Beyond that (`sluice_series_overflowed_total`),
  requests are counted for the service `other` in no namespace.
- No label has a value that a request chose: no path, header or unknown tag.
- In OpenMetrics the buckets of `sluice_request_duration_seconds` have exemplars: the trace id (`trace_id`) of the last request
  in the bucket whose trace is sampled. Prometheus keeps them with `--enable-feature=exemplar-storage`.
- In OpenMetrics a counter family has the name of its samples without `_total`, and whole bounds have a decimal point
  (`le=\"1.0\"`), as in Prometheus 3 in both formats.

| metric | type | labels | meaning |
|---|---|---|---|
"
    );
    for Description { name, kind, labels, help, .. } in descriptions {
        let labels: Vec<_> = labels.iter().map(|label| code(label)).collect();
        // Writing to a string does not fail.
        let _ = writeln!(page, "| {} | {kind} | {} | {} |", code(name), labels.join(" "), cell(help));
    }
    page.push_str("\n## Values of labels\n");
    let mut told: Vec<(&str, &[Meaning], Vec<&str>)> = Vec::new();
    for description in descriptions {
        for (label, values) in &description.values {
            // Metrics that share a list share its table.
            match told.iter_mut().find(|(known, those, _)| known == label && *those == values.as_slice()) {
                Some((_, _, metrics)) => metrics.push(&description.name),
                None => told.push((label, values, vec![&description.name])),
            }
        }
    }
    for (label, values, metrics) in told {
        let metrics: Vec<_> = metrics.into_iter().map(code).collect();
        let _ =
            writeln!(page, "\n{} of {}:\n\n| value | meaning |\n|---|---|", code(label), metrics.join(", "));
        for (value, meaning) in values {
            let value = if value.is_empty() { "(empty)".to_owned() } else { code(value) };
            let _ = writeln!(page, "| {value} | {} |", cell(meaning));
        }
    }
    page
}
