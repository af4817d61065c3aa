//! Decisions for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::{inert::inert, table::table};
use crate::proxy::explain::{Candidate, Explanation, Verdict};

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passes => "ok",
        Verdict::Changes => "->",
        Verdict::WouldStop => "(x)",
        Verdict::Stops => "x",
    }
}

/// A decision, step by step.
pub(crate) fn shown(explanation: &Explanation) -> String {
    let Explanation { ended, caller, service, method, path, steps, candidates, outcome } = explanation;
    let mut out = format!(
        "{} {} from {} to {}\n",
        inert(method),
        inert(path),
        inert(caller),
        service.as_deref().map_or_else(|| "an address that is not managed".to_owned(), inert)
    );
    // Writing to a string cannot fail.
    if let Some(ended) = ended {
        let trace = ended.trace_id.as_deref().map_or_else(String::new, |id| format!(", trace {}", inert(id)));
        let _ =
            writeln!(out, "ended {:.1} s ago after {:.1} ms{trace}", ended.seconds_ago, ended.duration_ms);
    }
    out.push('\n');
    let rows: Vec<_> = (steps.iter())
        .map(|step| {
            let because = step.source.as_ref().map_or_else(String::new, |because| format!("[{because}]"));
            [
                mark(step.verdict).to_owned(),
                step.stage.title().to_owned(),
                format!("{}  {because}", step.message),
            ]
        })
        .collect();
    out.push_str(&table(2, &rows));
    if !candidates.is_empty() {
        out.push_str(
            "\n  endpoints that may answer, and the percentage of such requests that each would get:\n",
        );
        out.push_str(&table(4, &rows_of(candidates)));
    }
    let _ = writeln!(out, "\n  => {}", inert(&outcome.message));
    out
}

fn rows_of(candidates: &[Candidate]) -> Vec<[String; 7]> {
    let head = ["endpoint", "pod", "lane", "state", "share", "in flight", "percent"].map(str::to_owned);
    let row = |one: &Candidate| {
        let latency = one.latency_ms.map_or_else(String::new, |ms| format!(" at {ms:.2} ms"));
        [
            one.endpoint.clone(),
            one.pod.clone().unwrap_or_else(|| "-".to_owned()),
            one.lane.clone().unwrap_or_else(|| "baseline".to_owned()),
            one.state.clone(),
            format!("{:.0} %", one.share * 100.0),
            format!("{}{latency}", one.in_flight),
            one.percent.to_string(),
        ]
    };
    std::iter::once(head).chain(candidates.iter().map(row)).collect()
}

/// A decision, and on which node it was made.
#[derive(Debug, Serialize)]
pub(crate) struct OnNode {
    pub(crate) node: String,
    #[serde(flatten)]
    pub(crate) explanation: Explanation,
}

const HEAD: [&str; 7] = ["ago", "took", "caller", "service", "request", "got", "trace"];

fn row(one: &Explanation) -> [String; 7] {
    let ended = one.ended.as_ref();
    let got = one.outcome.reason.clone().or_else(|| Some(one.outcome.status?.to_string()));
    [
        ended.map_or_else(String::new, |ended| format!("{:.1} s", ended.seconds_ago)),
        ended.map_or_else(String::new, |ended| format!("{:.1} ms", ended.duration_ms)),
        one.caller.clone(),
        one.service.clone().unwrap_or_default(),
        format!("{} {}", one.method, one.path),
        got.unwrap_or_else(|| "nothing".to_owned()),
        ended.and_then(|ended| ended.trace_id.clone()).unwrap_or_else(|| "-".to_owned()),
    ]
}

/// Several, a line each.
pub(super) fn listed(past: &[Explanation]) -> String {
    let head = HEAD.map(str::to_owned);
    table(0, &std::iter::once(head).chain(past.iter().map(row)).collect::<Vec<_>>())
}

/// Several of several nodes, a line each.
pub(crate) fn listed_on_nodes(past: &[OnNode]) -> String {
    let with = |node: &str, [ago, took, caller, service, request, got, trace]: [String; 7]| {
        [ago, took, node.to_owned(), caller, service, request, got, trace]
    };
    let rows = past.iter().map(|one| with(&one.node, row(&one.explanation)));
    table(0, &std::iter::once(with("node", HEAD.map(str::to_owned))).chain(rows).collect::<Vec<_>>())
}
