//! What the agents of all nodes say of their health, together: the worst first, what is the same once.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Write as _};

use serde::{Serialize, Serializer};

use super::{VERSION, session::Unreached};
use crate::{
    admin::desk::{Problem, Status},
    ask::{inert::inert, shown_policies, shown_state, table::table},
};

/// Of so many nodes the names are shown.
const MOST_NAMES: usize = 4;

/// What one node says, or why it does not.
#[derive(Debug, Serialize)]
pub(super) struct Node {
    #[serde(rename = "node")]
    pub(super) name: String,
    /// The agent's.
    pub(super) pod: Option<String>,
    #[serde(flatten, serialize_with = "told")]
    pub(super) status: Result<Status, Unreached>,
}

/// `{"status": {...}}`, or `{"error": "..."}`.
fn told<S: Serializer>(status: &Result<Status, Unreached>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Told<'t> {
        Status(&'t Status),
        Error(String),
    }
    let told = match status {
        Ok(status) => Told::Status(status),
        Err(why) => Told::Error(why.to_string()),
    };
    told.serialize(serializer)
}

/// Something that is wrong, and where.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Everywhere {
    message: String,
    /// What to do about it.
    action: String,
    nodes: Vec<String>,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    plugin_version: &'static str,
    /// The worst first.
    nodes: Vec<Node>,
    /// Pods of agents that are wanted and are not there.
    lacking: usize,
    problems: Vec<Everywhere>,
}

impl Report {
    pub(super) fn new(mut nodes: Vec<Node>, lacking: usize) -> Self {
        nodes.sort_by(|one, other| badness(one).cmp(&badness(other)).then_with(|| one.name.cmp(&other.name)));
        Self { plugin_version: VERSION, problems: problems(&nodes), nodes, lacking }
    }

    /// Every node answers, and says that nothing is wrong.
    pub(super) fn is_good(&self) -> bool {
        self.lacking == 0
            && self
                .nodes
                .iter()
                .all(|node| node.status.as_ref().is_ok_and(|status| status.problems.is_empty()))
    }
}

/// Lower is worse.
fn badness(node: &Node) -> impl Ord + use<> {
    let (answers, ready, problems) = match &node.status {
        Err(_) => (false, false, 0),
        Ok(status) => (true, status.ready, status.problems.len()),
    };
    (answers, ready, Reverse(problems))
}

/// What is the same on several nodes once. In the order in which the worst node tells it.
fn problems(nodes: &[Node]) -> Vec<Everywhere> {
    let mut places: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut all: Vec<Everywhere> = Vec::new();
    for Node { name, status, .. } in nodes {
        for Problem { message, action } in status.iter().flat_map(|status| &status.problems) {
            let place = *places.entry((message, action)).or_insert_with(|| {
                all.push(Everywhere { message: message.clone(), action: action.clone(), nodes: Vec::new() });
                all.len() - 1
            });
            all[place].nodes.push(name.clone());
        }
    }
    all
}

/// Some names: `node-1, node-2 and 7 more`.
pub(super) fn named(names: &[&str]) -> String {
    let (shown, more) = names.split_at(names.len().min(MOST_NAMES));
    let shown = shown.join(", ");
    if more.is_empty() { shown } else { format!("{shown} and {} more", more.len()) }
}

pub(super) fn shown(report: &Report) -> String {
    let Report { nodes, lacking, problems, .. } = report;
    let silent = nodes.iter().filter(|node| node.status.is_err()).count();
    let unready = nodes.iter().filter(|node| node.status.as_ref().is_ok_and(|status| !status.ready)).count();
    let mut out = format!("{} nodes with an agent: ", nodes.len());
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        out,
        "{} ready, {unready} not ready, {silent} without an answer",
        nodes.len() - silent - unready
    );
    if *lacking > 0 {
        let _ = writeln!(
            out,
            "{lacking} agents are wanted and have no pod: kubectl describe the DaemonSet, its events say why"
        );
    }
    let head = ["node", "version", "state", "pods", "services", "policies", "problems"].map(str::to_owned);
    let rows = std::iter::once(head).chain(nodes.iter().filter_map(row)).collect::<Vec<_>>();
    let _ = write!(out, "\n{}", if rows.len() > 1 { table(0, &rows) } else { String::new() });
    let without: Vec<_> =
        nodes.iter().filter_map(|node| Some((&node.name, node.status.as_ref().err()?))).collect();
    if !without.is_empty() {
        out.push_str("\nwithout an answer:\n");
        for (node, why) in without {
            let _ = writeln!(out, "  - {}: {}", inert(node), inert(&why.to_string()));
        }
    }
    if !problems.is_empty() {
        out.push_str("\nwhat is wrong, and what to do:\n");
        for Everywhere { message, action, nodes: at } in problems {
            let at: Vec<&str> = at.iter().map(String::as_str).collect();
            let at =
                if at.len() == nodes.len() && at.len() > 1 { "all nodes".to_owned() } else { named(&at) };
            let _ = writeln!(out, "  - {}: {}\n    {}", inert(&at), inert(message), inert(action));
        }
    }
    if report.is_good() {
        out.push_str("\nnothing is wrong\n");
    }
    out
}

fn row(node: &Node) -> Option<[String; 7]> {
    let status = node.status.as_ref().ok()?;
    let (pods, services) = (&status.pods, &status.services);
    let pending = if pods.pending > 0 { format!(", {} pending", pods.pending) } else { String::new() };
    Some([
        node.name.clone(),
        status.version.clone(),
        shown_state(status).to_owned(),
        format!("{} enrolled{pending}", pods.enrolled),
        format!(
            "{} ports, {} of {} endpoints ready",
            services.managed, services.ready_endpoints, services.endpoints
        ),
        shown_policies(&status.policies),
        status.problems.len().to_string(),
    ])
}

#[cfg(test)]
mod tests;
