//! What is allowed and most likely a slip: a field that is null where its defaults were meant, an object whose namespace was
//! forgotten, a workload that nobody has, and rules about requests for Services that carry none.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::objects::{Name, Objects, Problem, shown};
use crate::cluster::{manifests::tree::Node, model::Protocol, protocol};

/// Kinds whose name is that of a workload.
const WORKLOADS: [&str; 7] =
    ["Deployment", "StatefulSet", "DaemonSet", "CronJob", "Job", "ReplicaSet", "Pod"];
/// Fields that are on with `{}`, by their defaults.
const ON_BY_DEFAULTS: [&str; 5] = ["circuitBreaker", "outlierDetection", "adaptive", "retry", "warmUp"];
/// Fields of a policy that are about requests of HTTP.
const ABOUT_REQUESTS: [&str; 8] = [
    "timeouts.request",
    "timeouts.backendRequest",
    "retry",
    "rateLimits",
    "fallbacks",
    "headers",
    "errors",
    "rules",
];

/// What was seen in the files that slips are known by.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Services whose ports are all declared not to speak HTTP.
    without_http: BTreeSet<Name>,
    /// By namespace.
    workloads: BTreeMap<String, BTreeSet<String>>,
    /// Namespaces that objects name as theirs.
    namespaces: BTreeSet<String>,
    /// Namespaces that are there themselves.
    declared: BTreeSet<String>,
    /// Service accounts that pods of a namespace have.
    accounts: BTreeMap<String, BTreeSet<String>>,
    /// Objects of Sluice's kinds that name none: their kind, name, file and line.
    without_namespace: Vec<(&'static str, Name, String, u32)>,
    /// Workloads that policies and lanes name.
    callers: Vec<Named>,
}

/// A workload that is named.
#[derive(Debug)]
struct Named {
    problem: Problem,
    /// `None`: of any.
    namespace: Option<String>,
    workload: String,
}

impl Seen {
    /// Notes an object, whatever it is.
    pub(super) fn object(&mut self, kind: &str, name: &Name, named_namespace: bool) {
        if named_namespace {
            self.namespaces.insert(name.0.clone());
        }
        if WORKLOADS.contains(&kind) {
            self.workloads.entry(name.0.clone()).or_default().insert(name.1.clone());
        }
    }

    /// Notes under which service account the pods of a workload run, and which namespaces there are.
    pub(super) fn account(&mut self, kind: &str, name: &Name, node: &Node) {
        if kind == "Namespace" {
            self.declared.insert(name.1.clone());
        }
        if !WORKLOADS.contains(&kind) {
            return;
        }
        let below = |node: &Node, fields: &[&str]| {
            let mut at = node.get("spec")?;
            for field in fields {
                at = at.get(field)?;
            }
            Some(at.get("serviceAccountName")?.as_str()?.to_owned())
        };
        let of_template: &[&str] = match kind {
            "Pod" => &[],
            "CronJob" => &["jobTemplate", "spec", "template", "spec"],
            _ => &["template", "spec"],
        };
        let account = below(node, of_template).unwrap_or_else(|| "default".to_owned());
        self.accounts.entry(name.0.clone()).or_default().insert(account);
    }

    /// Says that a namespace is not there, where the files tell of namespaces; with what may have been meant.
    pub(super) fn missing_namespace(&self, namespace: &str, complete: bool) -> Option<String> {
        let known = self.declared.contains(namespace) || self.namespaces.contains(namespace);
        if known || self.declared.is_empty() && !complete {
            return None;
        }
        Some(meant(namespace, &self.declared))
    }

    /// Says that no pod has this service account, where the files tell of pods of the namespace; with what may have been meant.
    pub(super) fn missing_account(&self, namespace: &str, account: &str) -> Option<String> {
        let known = self.accounts.get(namespace).filter(|known| !known.contains(account))?;
        Some(meant(account, known))
    }

    pub(super) fn is_without_http(&self, service: &Name) -> bool {
        self.without_http.contains(service)
    }

    /// Notes what the ports of a Service are declared to speak.
    pub(super) fn service(&mut self, name: &Name, ports: &[Node]) {
        let is_opaque = |port: &Node| {
            let text = |field| port.get(field).and_then(Node::as_str);
            protocol::declared(text("appProtocol"), text("name")) == Protocol::Opaque
        };
        if !ports.is_empty() && ports.iter().all(is_opaque) {
            self.without_http.insert(name.clone());
        }
    }

    /// Notes an object of Sluice's kinds that makes sense.
    pub(super) fn own(&mut self, kind: &'static str, name: &Name, spec: &Value, file: &str, node: &Node) {
        let metadata = node.get("metadata");
        if metadata.and_then(|metadata| metadata.get("namespace")).is_none() {
            let line = node.line_of("metadata.name");
            self.without_namespace.push((kind, name.clone(), file.to_owned(), line));
        }
        walk(spec, "spec", &mut |field, value| {
            let Some(workload) = value["workload"].as_str().filter(|_| is_from(field)) else { return };
            let field = format!("{field}.workload");
            self.callers.push(Named {
                problem: Problem {
                    file: file.to_owned(),
                    line: Some(node.line_of(&field)),
                    object: Some(format!("{kind} {}", shown(name))),
                    field: Some(field),
                    message: String::new(),
                },
                namespace: value["namespace"].as_str().map(str::to_owned),
                workload: workload.to_owned(),
            });
        });
    }

    /// What there is to say, given everything that is in the files.
    fn notes(&self) -> Vec<Problem> {
        let mut notes = Vec::new();
        for (kind, name, file, line) in &self.without_namespace {
            let mut others = self.namespaces.iter().filter(|other| **other != name.0);
            if let Some(other) = others.next().filter(|_| !self.namespaces.contains(&name.0)) {
                let more = if others.next().is_some() { " and others" } else { "" };
                notes.push(Problem {
                    file: file.clone(),
                    line: Some(*line),
                    object: Some(format!("{kind} {}", shown(name))),
                    field: Some("metadata.namespace".to_owned()),
                    message: format!(
                        "not set, so it is in {}, or where kubectl is told: other objects of these files are in {other}{more}",
                        name.0
                    ),
                });
            }
        }
        for Named { problem, namespace, workload } in &self.callers {
            let known: Vec<&str> = self
                .workloads
                .iter()
                .filter(|(of, _)| namespace.as_ref().is_none_or(|namespace| namespace == *of))
                .flat_map(|(_, workloads)| workloads.iter().map(String::as_str))
                .collect();
            // Where the files tell of none, they may be anywhere.
            if known.is_empty() || known.contains(&&**workload) {
                continue;
            }
            let meant = crate::api::closest(workload, known.iter().copied());
            let meant = meant.map_or_else(String::new, |meant| format!(": did you mean {meant}?"));
            notes.push(Problem {
                message: format!("there is no workload {workload} in these files{meant}"),
                ..problem.clone()
            });
        }
        notes
    }

    /// Says that what a policy asks for is about requests, where a Service carries none.
    pub(super) fn without_requests(&self, service: &Name, spec: &Value) -> Option<String> {
        if !self.without_http.contains(service) {
            return None;
        }
        let is_set = |field: &&str| {
            let value = field.split('.').fold(spec, |value, part| &value[part]);
            !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty())
        };
        let set: Vec<_> = ABOUT_REQUESTS.into_iter().filter(|field| is_set(field)).collect();
        (!set.is_empty()).then(|| {
            format!(
                "all ports of Service {} are declared not to speak HTTP, so {} has no effect on it",
                service.1,
                set.join(", ")
            )
        })
    }
}

fn meant(name: &str, known: &BTreeSet<String>) -> String {
    let closest = crate::api::closest(name, known.iter().map(String::as_str));
    closest.map_or_else(String::new, |meant| format!(": did you mean {meant}?"))
}

/// Adds what there is to say to the notes.
pub(super) fn all(objects: &mut Objects) {
    let mut notes = objects.seen.notes();
    objects.notes.append(&mut notes);
}

/// Fields that are null, and would be on if they were empty: each with what to write. Of one that the namespace's policy may
/// set nothing is known.
pub(super) fn nulls(spec: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    walk(spec, "spec", &mut |field, value| {
        let Some(fields) = value.as_object() else { return };
        for (name, _) in fields.iter().filter(|(_, value)| value.is_null()) {
            if ON_BY_DEFAULTS.contains(&&**name) {
                let message =
                    format!("null: it is not set, and off; {name}: {{}} turns it on with its defaults");
                found.push((format!("{field}.{name}"), message));
            }
        }
    });
    found
}

/// `spec.rules[0].match.from[1]`
fn is_from(field: &str) -> bool {
    field.ends_with(']')
        && field.rsplit_once('[').is_some_and(|(list, _)| list.rsplit('.').next() == Some("from"))
}

/// Shows each value, with the field that it is.
pub(super) fn walk(value: &Value, field: &str, see: &mut impl FnMut(&str, &Value)) {
    see(field, value);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                walk(value, &format!("{field}.{name}"), see);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                walk(item, &format!("{field}[{i}]"), see);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_is_told_where_defaults_may_have_been_meant() {
        let spec = json!({
            "circuitBreaker": null, "outlierDetection": {}, "mode": null,
            "concurrency": { "maxRequests": 5, "adaptive": null }, "rules": [{ "name": "a", "retry": null }],
        });
        let fields: Vec<_> = nulls(&spec).into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["spec.circuitBreaker", "spec.concurrency.adaptive", "spec.rules[0].retry"]);
    }
}
