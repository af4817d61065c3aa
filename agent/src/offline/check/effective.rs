//! What a service is governed by: every value that is in force, and who says it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    Service,
    objects::{Name, Objects, shown},
};
use crate::{
    api::{self, TrafficPolicy},
    govern::policy::Target,
};

/// A service and what it is governed by.
#[derive(Debug)]
pub(super) struct Effective {
    pub(super) service: Service,
    /// `shop/orders`; without one, everything is a default.
    pub(super) policy: Option<String>,
    pub(super) values: Vec<Effect>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Effect {
    /// `rateLimits[0].burst`
    pub(super) field: String,
    pub(super) value: Value,
    /// The policy says it; else it is a default.
    pub(super) said: bool,
}

/// What the value of a part is that is not there.
pub(super) const OFF: &str = "off";

/// Every service that is targeted, or the one that is asked for. Policies that are in each other's way become problems.
pub(super) fn services(objects: &mut Objects, only: Option<&Service>) -> Vec<Effective> {
    let mut targeted = BTreeSet::new();
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    for (name, policy) in &objects.policies {
        for (index, target) in policy.targets.iter().enumerate() {
            targeted.insert(service(name, target));
            if let Some(winner) = winner(objects, &name.0, target).filter(|winner| *winner != name) {
                let message = format!(
                    "{} is targeted by TrafficPolicy {} already, {}: this one is not in force there",
                    told(target),
                    shown(winner),
                    if objects.policies[winner].created == policy.created {
                        "first by name"
                    } else {
                        "which is older"
                    },
                );
                problems.push(Objects::about_target(name, policy, index, message));
            }
            if let Some(message) = missing(objects, &name.0, target) {
                notes.push(Objects::about_target(name, policy, index, message));
            }
        }
    }
    objects.problems.append(&mut problems);
    objects.notes.append(&mut notes);
    if let Some(only) = only {
        let parts = |one: &Service| {
            one.namespace == only.namespace
                && one.name == only.name
                && (only.port.is_none() || one.port == only.port)
        };
        targeted.retain(parts);
        if only.port.is_some() || targeted.is_empty() {
            targeted = BTreeSet::from([only.clone()]);
        }
    }
    targeted.into_iter().map(|service| effective(objects, service)).collect()
}

fn effective(objects: &Objects, service: Service) -> Effective {
    let target =
        |port: Option<&str>| Target { service: service.name.as_str().into(), port: port.map(Into::into) };
    let own =
        service.port.as_deref().and_then(|port| winner(objects, &service.namespace, &target(Some(port))));
    let winner = own.or_else(|| winner(objects, &service.namespace, &target(None)));
    let none = Value::Object(Map::new());
    let spec = winner.map_or(&none, |name| &objects.policies[name].spec);
    Effective { policy: winner.map(shown), values: values(spec), service }
}

/// The policy that has a target: the oldest, of several that are as old the first by name.
fn winner<'o>(objects: &'o Objects, namespace: &str, target: &Target) -> Option<&'o Name> {
    let rivals = objects
        .policies
        .iter()
        .filter(|((in_namespace, _), policy)| in_namespace == namespace && policy.targets.contains(target));
    // One that is not in the cluster yet is younger than all that are.
    let age = |(name, policy): &(&'o Name, &super::objects::Policy)| {
        (policy.created.is_empty(), policy.created.clone(), (*name).clone())
    };
    rivals.min_by_key(age).map(|(name, _)| name)
}

fn service((namespace, _): &Name, target: &Target) -> Service {
    Service {
        namespace: namespace.clone(),
        name: target.service.to_string(),
        port: target.port.as_deref().map(str::to_owned),
    }
}

fn told(target: &Target) -> String {
    match &target.port {
        Some(port) => format!("Service {}, port {port},", target.service),
        None => format!("Service {}", target.service),
    }
}

/// Says that a target is not there, where the files tell of Services in its namespace.
fn missing(objects: &Objects, namespace: &str, target: &Target) -> Option<String> {
    let name = (namespace.to_owned(), target.service.to_string());
    match objects.services.get(&name) {
        None if objects.services.keys().any(|(other, _)| other == namespace) => {
            Some(format!("there is no Service {} in these files", target.service))
        }
        None => None,
        Some(ports) => {
            let port = target.port.as_deref()?;
            let found = ports.iter().any(|name| name == port);
            (!found).then(|| format!("Service {} has no port {port} in these files", target.service))
        }
    }
}

/// All values of a policy: what it says, and the defaults of what it does not say.
pub(super) fn values(spec: &Value) -> Vec<Effect> {
    let definition = api::definition::<TrafficPolicy>();
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    let mut values = Vec::new();
    let mode = text(spec, "mode").unwrap_or("Enforce");
    walk(
        schema.unwrap_or(&Value::Null),
        spec,
        "",
        &Inherited { mode, said: !spec["mode"].is_null() },
        &mut values,
    );
    values.retain(|effect| !effect.field.starts_with("targetRefs"));
    values
}

/// What a rule takes from the policy as a whole.
struct Inherited<'a> {
    mode: &'a str,
    said: bool,
}

fn walk(schema: &Value, value: &Value, path: &str, inherited: &Inherited<'_>, values: &mut Vec<Effect>) {
    match value {
        Value::Object(fields) if schema["properties"].is_object() => {
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match fields.get(name).filter(|value| !value.is_null()) {
                    Some(value) => walk(schema, value, &path, inherited, values),
                    None => not_said(schema, value, &path, inherited, values),
                }
            }
        }
        Value::Array(items) if schema["items"]["properties"].is_object() => {
            for (i, item) in items.iter().enumerate() {
                walk(&schema["items"], item, &format!("{path}[{i}]"), inherited, values);
            }
        }
        value => values.push(Effect { field: path.to_owned(), value: value.clone(), said: true }),
    }
}

/// A field that the policy does not say, of an object that it does: `rule`.
fn not_said(schema: &Value, rule: &Value, path: &str, inherited: &Inherited<'_>, values: &mut Vec<Effect>) {
    let mut default = |value: Value, said| values.push(Effect { field: path.to_owned(), value, said });
    if let Some(value) = schema.get("default") {
        return default(value.clone(), false);
    }
    let of_type = |wanted: &str| text(rule, "type") == Some(wanted);
    let none = Value::Object(Map::new());
    // The place in the policy, or in one of its rules, which say the same.
    let place = place_of(path);
    match place.strip_prefix("rules.").unwrap_or(&place) {
        "rateLimits.mode" | "concurrency.mode" | "circuitBreaker.mode" | "outlierDetection.mode" => {
            default(inherited.mode.into(), inherited.said);
        }
        "rateLimits.burst" if !of_type("Queue") => default(rule["requests"].clone(), false),
        "concurrency.maxRequests" => default(1000.into(), false),
        "retry.methods" => {
            let methods: Vec<_> =
                crate::govern::policy::Retry::default().methods.iter().map(ToString::to_string).collect();
            default(methods.into(), false);
        }
        // Parts that are there although nobody says so, with defaults of their own.
        "loadBalancer" | "retry.budget" | "retry.backoff" => walk(schema, &none, path, inherited, values),
        "rateLimits.queue" if of_type("Queue") => walk(schema, &none, path, inherited, values),
        "rateLimits.warmUp" if of_type("WarmUp") => walk(schema, &none, path, inherited, values),
        // Parts that turn something on.
        "loadBalancer.warmUp"
        | "concurrency.adaptive"
        | "circuitBreaker.slowRequest"
        | "outlierDetection.successRate" => default(OFF.into(), false),
        // What a rule does not say is as the policy says.
        whole if !whole.contains('.') && whole != "targetRefs" && place == whole => {
            default(OFF.into(), false);
        }
        _ => {}
    }
}

/// `rules.rateLimits.burst` of `rules[0].rateLimits[1].burst`
fn place_of(path: &str) -> String {
    let names = path.split('.').map(|part| part.split('[').next().unwrap_or_default());
    names.collect::<Vec<_>>().join(".")
}

fn text<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value[field].as_str()
}
