//! The fields of Sluice's own kinds, as the CustomResourceDefinitions have them; and the annotations and labels.

use std::fmt::Write as _;

use serde_json::Value;

use super::{MADE, cell, code};
use crate::{
    api::{self, TrafficLane, TrafficPolicy},
    cluster::verdict::Reason,
};

/// A part that occurs in several places and has at least so many fields gets a table of its own.
const SHARED: usize = 4;

pub(super) fn page() -> String {
    let mut page = format!(
        "{MADE}\
# Policies

The kinds of `sluice.dev/v1alpha1`. Both are about the Services and pods of their own namespace, which must be enrolled.
`kubectl explain trafficpolicy.spec` shows the same.

- [TrafficPolicy](#trafficpolicy)
- [TrafficLane](#trafficlane)
- [Conditions](#conditions)
- [Annotations and labels](#annotations-and-labels)
"
    );
    for definition in [api::definition::<TrafficPolicy>(), api::definition::<TrafficLane>()] {
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let spec = &schema["properties"]["spec"];
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap_or_default();
        let mut sections = vec![(format!("## {kind}"), "spec".to_owned(), spec.clone())];
        let mut known: Vec<Value> = Vec::new();
        let mut at = 0;
        while let Some((heading, path, schema)) = sections.get(at).cloned() {
            let _ = write!(page, "\n{heading}\n\n{}\n\n", described(&schema));
            page.push_str("| field | type | default | allowed | meaning |\n|---|---|---|---|---|\n");
            fields(&schema, &path, spec, &mut page, &mut |path, schema| {
                if !known.contains(schema) {
                    known.push(schema.clone());
                    let name = path.rsplit('.').next().unwrap_or(path).trim_end_matches("[]").to_owned();
                    sections.push((format!("### {kind}: {name}"), name, schema.clone()));
                }
            });
            rules(&schema, &mut page);
            at += 1;
        }
    }
    page.push_str(
        "\n## Conditions\n\nOne of the agents writes the conditions into the status of each object. `Accepted`: the object is \
         valid and active for at least one of its targets. `Programmed`: it is active for all of them.\n\n\
         | reason | meaning |\n|---|---|\n",
    );
    for reason in std::iter::once(Reason::Accepted).chain(Reason::OF_PROGRAMMED) {
        // Writing to a string does not fail.
        let _ = writeln!(page, "| {} | {} |", code(reason.as_str()), cell(reason.meaning()));
    }
    page.push_str("\n## Annotations and labels\n\n| object | name | values | meaning |\n|---|---|---|---|\n");
    for api::Mark { object, name, values, meaning } in api::MARKS {
        let _ = writeln!(page, "| {object} | {} | {values} | {meaning} |", code(name));
    }
    page
}

/// What a part is, and the rules that hold for it as a whole.
fn described(schema: &Value) -> String {
    schema["description"]
        .as_str()
        .unwrap_or_default()
        .split("\n\n")
        .map(cell)
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// A line for each field, those of parts below their part. `share` is told of parts that get a table of their own.
fn fields(schema: &Value, path: &str, whole: &Value, page: &mut String, share: &mut dyn FnMut(&str, &Value)) {
    let required: Vec<_> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let of_items = &schema["items"];
        let (path, part) = if schema["type"] == "array" {
            (format!("{path}.{name}[]"), of_items)
        } else {
            (format!("{path}.{name}"), schema)
        };
        let count = part["properties"].as_object().map_or(0, serde_json::Map::len);
        let shared = count >= SHARED && occurrences(whole, part) > 1;
        let mut meaning = cell(schema["description"].as_str().unwrap_or_default());
        if shared {
            let _ = write!(meaning, " See the table {} below.", code(name));
        }
        let default = match &schema["default"] {
            Value::Null if required.contains(&name.as_str()) => "required".to_owned(),
            Value::Null => String::new(),
            Value::String(text) if text.is_empty() => "`\"\"`".to_owned(),
            Value::String(text) => code(text),
            other => code(&other.to_string()),
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            page,
            "| {} | {} | {default} | {} | {meaning} |",
            code(&path),
            kind_of(schema),
            cell(&allowed(schema).join("; "))
        );
        if shared {
            share(&path, part);
        } else {
            fields(part, &path, whole, page, share);
        }
    }
}

fn kind_of(schema: &Value) -> String {
    let name = |schema: &Value| schema["type"].as_str().unwrap_or("any").to_owned();
    if schema["type"] == "array" { format!("list of {}", name(&schema["items"])) } else { name(schema) }
}

/// How often a part occurs, descriptions of the part itself aside.
fn occurrences(whole: &Value, part: &Value) -> usize {
    let below = match whole {
        Value::Object(fields) => fields.values().map(|one| occurrences(one, part)).sum(),
        Value::Array(items) => items.iter().map(|one| occurrences(one, part)).sum(),
        _ => 0,
    };
    below + usize::from(same(whole, part))
}

fn same(one: &Value, other: &Value) -> bool {
    one["properties"].is_object() && one["properties"] == other["properties"]
}

fn allowed(schema: &Value) -> Vec<String> {
    let mut said = Vec::new();
    let number = |name: &str| schema[name].as_number().map(ToString::to_string);
    let of = if schema["type"] == "array" { &schema["items"] } else { schema };
    if let Some(values) = of["enum"].as_array() {
        let values: Vec<_> =
            values.iter().filter_map(Value::as_str).map(|value| format!("`{value:}`")).collect();
        said.push(values.join(", ").replace("``", "`\"\"`"));
    }
    match (number("minimum"), number("maximum")) {
        (Some(least), Some(most)) => said.push(format!("{least} to {most}")),
        (Some(least), None) => said.push(format!("at least {least}")),
        (None, Some(most)) => said.push(format!("at most {most}")),
        (None, None) => {}
    }
    if let Some(most) = number("maxItems") {
        said.push(format!("at most {most} items"));
    }
    if let Some(most) = number("maxLength").filter(|_| schema["enum"].is_null() && !is_duration(schema)) {
        said.push(format!("at most {most} characters"));
    }
    if is_duration(schema) {
        said.push("a duration as in `1m30s`".to_owned());
    }
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    said.extend(rules.filter_map(|rule| rule["message"].as_str()).map(str::to_owned));
    said
}

fn is_duration(schema: &Value) -> bool {
    schema["pattern"].as_str().is_some_and(|pattern| pattern.contains("(h|m|s|ms)"))
}

/// Those of the whole part.
fn rules(schema: &Value, page: &mut String) {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    let messages: Vec<_> = rules.filter_map(|rule| rule["message"].as_str()).collect();
    for message in messages {
        let _ = writeln!(page, "\nRule: {}.", cell(message));
    }
}
