//! What was found, for people and for machines.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{
    effective::Effective,
    objects::{Guarded, Objects, Problem, shown},
    routes::Routing,
};
use crate::govern::{
    access::{Access, Action},
    jwt::{Entry, Provider, Source},
    policy::Mode,
};

/// What is in force.
pub(super) struct Found<'f> {
    pub(super) services: &'f [Effective],
    pub(super) routes: &'f [Routing],
}

/// Problems and notes to `complaints`, a line each; what is in force to `out`, if there are none.
pub(super) fn text(
    objects: &Objects,
    &Found { services, routes }: &Found<'_>,
    out: &mut impl Write,
    complaints: &mut impl Write,
) -> io::Result<()> {
    for problem in &objects.problems {
        writeln!(complaints, "{}", line(problem))?;
    }
    for note in &objects.notes {
        let message = format!("note: {}", note.message);
        writeln!(complaints, "{}", line(&Problem { message, ..note.clone() }))?;
    }
    if !objects.problems.is_empty() {
        return Ok(());
    }
    for (name, lane) in &objects.lanes {
        let services: Vec<_> = lane.targets.iter().map(|target| &*target.service).collect();
        let about = if services.is_empty() { "all Services".to_owned() } else { services.join(", ") };
        writeln!(
            out,
            "TrafficLane {}: tag {}, fallback {}, entry rules: {} for calls to {about}",
            shown(name),
            lane.tag,
            lane.fallback,
            lane.entry.len(),
        )?;
    }
    for Routing { service, clients, rules } in routes {
        let of = clients
            .as_ref()
            .map_or_else(|| "all clients".to_owned(), |of| format!("clients in namespace {of}"));
        writeln!(out, "Service {service}: routes for {of}, the first that matches applies")?;
        for row in rules {
            writeln!(out, "  {}: {}", row.rule, row.matches.join(" | "))?;
            let policy = row.policy.iter().map(|policy| format!("TrafficPolicy {policy}"));
            let does: Vec<_> = policy.chain(row.does.iter().cloned()).collect();
            writeln!(out, "    {}", does.join("; "))?;
        }
    }
    for (name, Guarded { targets, for_namespace, access }) in &objects.accesses {
        let services: Vec<_> = targets.iter().map(|target| &*target.service).collect();
        let about = if *for_namespace { format!("Namespace {}", name.0) } else { services.join(", ") };
        let mode = if access.mode == Mode::Enforce { "Enforce" } else { "Observe" };
        let allow = access.rules.iter().any(|rule| rule.action == Action::Allow);
        let others = if allow { "denied" } else { "allowed" };
        let unattended = access.closed_unattended().map_or_else(String::new, |time| {
            format!(", refuses connections for {} s without an agent", time.as_secs())
        });
        writeln!(
            out,
            "AccessPolicy {}: {about}, mode {mode}, rules: {}, what none matches is {others}, hidden: {}{}{unattended}",
            shown(name),
            access.rules.len(),
            access.hidden.len(),
            tokens(access),
        )?;
    }
    for effective in services {
        writeln!(out, "{}", title(effective))?;
        let rows: Vec<[String; 3]> = effective
            .values
            .iter()
            .map(|(effect, by)| [effect.field.clone(), shown_value(&effect.value), source(by.as_deref())])
            .collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (first, second) = (width(0), width(1).min(40));
        for [field, value, source] in &rows {
            writeln!(out, "  {field:first$}  {value:second$}  {source}")?;
        }
    }
    if services.is_empty() && routes.is_empty() && objects.lanes.is_empty() && objects.accesses.is_empty() {
        writeln!(
            out,
            "no TrafficPolicy, no TrafficLane, no AccessPolicy and no route of a Service in these files"
        )?;
    }
    Ok(())
}

/// `{"problems": [...], "notes": [...], "lanes": [...], "routes": [...], "access": [...], "services": [...]}`
pub(super) fn json(
    objects: &Objects,
    &Found { services, routes }: &Found<'_>,
    out: &mut impl Write,
) -> io::Result<()> {
    let problem = |problem: &Problem| {
        let Problem { file, line, object, field, message } = problem;
        json!({"file": file, "line": line, "object": object, "field": field, "message": message})
    };
    let service = |effective: &Effective| {
        let values: Vec<Value> = effective
            .values
            .iter()
            .map(|(effect, by)| {
                json!({"field": effect.field, "value": effect.value, "source": source(by.as_deref())})
            })
            .collect();
        json!({
            "namespace": effective.service.namespace,
            "name": effective.service.name,
            "port": effective.service.port,
            "inFiles": effective.is_there,
            "policy": effective.policy,
            "inheritsFrom": effective.inherits_from,
            "values": values,
        })
    };
    let routing = |routing: &Routing| {
        let rules = routing.rules.iter().map(
            |row| json!({"rule": row.rule, "matches": row.matches, "does": row.does, "policy": row.policy}),
        );
        json!({
            "namespace": routing.service.namespace,
            "name": routing.service.name,
            "port": routing.service.port,
            "clients": routing.clients,
            "rules": rules.collect::<Vec<_>>(),
        })
    };
    let report = json!({
        "problems": objects.problems.iter().map(problem).collect::<Vec<_>>(),
        "notes": objects.notes.iter().map(problem).collect::<Vec<_>>(),
        "lanes": objects
            .lanes
            .iter()
            .map(|((namespace, name), lane)| json!({"namespace": namespace, "name": name, "tag": lane.tag.as_str()}))
            .collect::<Vec<_>>(),
        "routes": routes.iter().map(routing).collect::<Vec<_>>(),
        "access": objects
            .accesses
            .iter()
            .map(|((namespace, name), guarded)| json!({
                "namespace": namespace,
                "name": name,
                "mode": if guarded.access.mode == Mode::Enforce { "Enforce" } else { "Observe" },
                "rules": guarded.access.rules.len(),
                "hidden": guarded.access.hidden.len(),
                "tokens": issuers(&guarded.access),
            }))
            .collect::<Vec<_>>(),
        "services": services.iter().map(service).collect::<Vec<_>>(),
    });
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

/// `shop.yaml:12: TrafficPolicy shop/orders: spec.drain: ...`
fn line(problem: &Problem) -> String {
    let place = match problem.line {
        Some(number) => format!("{}:{number}", problem.file),
        None => problem.file.clone(),
    };
    let about = [problem.object.as_deref(), problem.field.as_deref()].into_iter().flatten();
    let parts: Vec<&str> = [&*place].into_iter().chain(about).chain([&*problem.message]).collect();
    parts.join(": ")
}

fn source(by: Option<&str>) -> String {
    by.map_or_else(|| "default".to_owned(), |policy| format!("TrafficPolicy {policy}"))
}

fn title(Effective { service, is_there, .. }: &Effective) -> String {
    if service.name.is_empty() {
        return format!("every other Service of Namespace {}", service.namespace);
    }
    // Whoever has misspelt a name sees it here.
    let absent = if *is_there { "" } else { " (not in these files)" };
    format!("Service {service}{absent}")
}

fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains(char::is_whitespace) => text.clone(),
        Value::Array(items) if items.iter().all(|item| !item.is_object()) => {
            items.iter().map(shown_value).collect::<Vec<_>>().join(",")
        }
        value => value.to_string(),
    }
}

/// Whose tokens count.
fn issuers(access: &Access) -> Vec<&str> {
    access.jwt.iter().flat_map(|jwt| &jwt.providers).map(|provider| &*provider.issuer).collect()
}

fn tokens(access: &Access) -> String {
    let providers = access.jwt.iter().flat_map(|jwt| &jwt.providers);
    let issuers: Vec<_> = providers.map(|provider| of(provider)).collect();
    if issuers.is_empty() { String::new() } else { format!(", tokens of: {}", issuers.join(", ")) }
}

/// An issuer, and where its keys are from if the policy does not have them.
fn of(provider: &Provider) -> String {
    let issuer = &provider.issuer;
    match &provider.source {
        Source::Inline(_) => issuer.to_string(),
        Source::Remote { location, every } => format!(
            "{issuer} (keys from {location} every {} s, if --jwks-hosts of the agents allows {})",
            every.as_secs(),
            location.authority()
        ),
        Source::Entry(Entry { of, name, key }) => {
            format!("{issuer} (keys from {} {name}, key {key})", of.as_str())
        }
    }
}
