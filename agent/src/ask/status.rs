//! One screen of health.

use std::fmt::Write as _;

use super::{inert::inert, table::table};
use crate::admin::desk::{Policies, Status};

/// How many of them are active, and how far.
pub(crate) fn shown_policies(policies: &Policies) -> String {
    let Policies { active, partly_active, earlier_version_active, inactive } = policies;
    let rest = [
        (*partly_active, "active in part"),
        (*earlier_version_active, "active in an earlier version"),
        (*inactive, "not active"),
    ];
    let rest = rest.iter().filter(|(count, _)| *count > 0).map(|(count, how)| format!(", {count} {how}"));
    format!("{active} active{}", rest.collect::<String>())
}

/// Whether it works.
pub(crate) fn shown_state(status: &Status) -> &'static str {
    match (status.draining, status.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "NOT READY",
    }
}

pub(super) fn shown(status: &Status) -> String {
    let state = match status.snapshot_age_seconds {
        Some(age) => {
            let from = if status.snapshot_restored { ", from the state file" } else { "" };
            format!("snapshot {age:.1} s old, generation {}{from}", status.snapshot_generation)
        }
        None => "no snapshot yet".to_owned(),
    };
    let (pods, services, policies) = (&status.pods, &status.services, &status.policies);
    let rows = [
        ["sluice", &format!("{}, {}", status.version, shown_state(status))],
        ["node", status.node.as_deref().unwrap_or("(its name was not given: --node)")],
        ["kernel", &status.kernel],
        ["cluster", &state],
        [
            "pods",
            &format!(
                "{} enrolled, {} pending, {} in another mesh",
                pods.enrolled, pods.pending, pods.other_mesh
            ),
        ],
        [
            "services",
            &format!(
                "{} ports managed, {} of {} endpoints ready, {} requests in flight",
                services.managed, services.ready_endpoints, services.endpoints, services.in_flight
            ),
        ],
        ["policies", &shown_policies(policies)],
        ["routes", &format!("{} rules active", status.route_rules)],
    ];
    let mut out = table(0, &rows.map(|row| row.map(str::to_owned)));
    if status.problems.is_empty() {
        out.push_str("\nnothing is wrong\n");
        return out;
    }
    out.push_str("\nwhat is wrong, and what to do:\n");
    for problem in &status.problems {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  - {}\n    {}", inert(&problem.message), inert(&problem.action));
    }
    out
}
