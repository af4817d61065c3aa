//! The fields of Sluice's own kinds, as the CustomResourceDefinitions have them; and the annotations and labels.

use std::fmt::Write as _;

use serde_json::Value;

use super::{MADE, cell, code};
use crate::{
    api::{self, AccessPolicy, TrafficLane, TrafficPolicy},
    cluster::verdict::Reason,
};

/// A part that occurs in several places and has at least so many fields gets a table of its own.
const SHARED: usize = 2;

pub(super) fn page() -> String {
    let mut page = format!(
        "{MADE}\
# Policies

The kinds of `sluice.dev/v1alpha1`. All are about the Services and pods of their own namespace, which must be enrolled.
`kubectl explain trafficpolicy.spec` shows the same.

- [TrafficPolicy](#trafficpolicy)
- [TrafficLane](#trafficlane)
- [AccessPolicy](#accesspolicy)
- [Conditions](#conditions)
- [Annotations and labels](#annotations-and-labels)
"
    );
    let mut shared = Shared::default();
    let kinds = [
        api::definition::<TrafficPolicy>(),
        api::definition::<TrafficLane>(),
        api::definition::<AccessPolicy>(),
    ];
    for definition in kinds {
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let spec = &schema["properties"]["spec"];
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap_or_default();
        let mut sections = vec![(format!("## {kind}"), "spec".to_owned(), spec.clone())];
        let mut at = 0;
        while let Some((heading, path, schema)) = sections.get(at).cloned() {
            let _ = write!(page, "\n{heading}\n\n{}\n\n", described(&schema));
            page.push_str("| field | type | default | allowed | meaning |\n|---|---|---|---|---|\n");
            let mut rejected = rules(&schema, &path);
            let mut table = Table {
                whole: spec,
                page: &mut page,
                shared: &mut shared,
                found: Vec::new(),
                rejected: &mut rejected,
            };
            table.fields(&schema, &path);
            let found = table.found;
            sections.extend(found.into_iter().map(|(name, part)| (format!("### {name}"), name, part)));
            if !rejected.is_empty() {
                let _ = write!(page, "\nRejected, with these messages:\n\n{}", rejected.join(""));
            }
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
    for mark in api::MARKS {
        let api::Mark { name, values, meaning, .. } = mark;
        let _ = writeln!(page, "| {} | {} | {values} | {meaning} |", mark.object(), code(name));
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

/// Parts that occur in several places, and the names of their tables.
#[derive(Default)]
struct Shared(Vec<(String, Value)>);

impl Shared {
    /// The name of a part's table, and whether it is new. Parts that are called the same and are not have names of their own.
    fn name(&mut self, path: &str, part: &Value) -> (String, bool) {
        if let Some((name, _)) = self.0.iter().find(|(_, known)| same(known, part)) {
            return (name.clone(), false);
        }
        let words: Vec<&str> = path.split('.').map(|word| word.trim_end_matches("[]")).collect();
        let names = (1..=words.len()).map(|count| words[words.len() - count..].join("."));
        let is_free = |name: &String| self.0.iter().all(|(taken, _)| taken != name);
        let name = names.into_iter().find(is_free).unwrap_or_else(|| path.to_owned());
        self.0.push((name.clone(), part.clone()));
        (name, true)
    }
}

/// One table while it is written.
struct Table<'t> {
    whole: &'t Value,
    page: &'t mut String,
    shared: &'t mut Shared,
    /// Parts that get a table of their own, and have none yet.
    found: Vec<(String, Value)>,
    rejected: &'t mut Vec<String>,
}

impl Table<'_> {
    /// A line for each field, those of parts below their part.
    fn fields(&mut self, schema: &Value, path: &str) {
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
            let is_shared = count >= SHARED && is_shared(self.whole, part, name);
            let mut meaning = cell(schema["description"].as_str().unwrap_or_default());
            if is_shared {
                let (name, is_new) = self.shared.name(&path, part);
                let _ = write!(meaning, " See [{name}](#{}).", name.replace('.', "").to_lowercase());
                if is_new {
                    self.found.push((name, part.clone()));
                }
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
                self.page,
                "| {} | {} | {default} | {} | {meaning} |",
                code(&path),
                kind_of(schema),
                cell(&allowed(schema).join("; "))
            );
            if !is_shared {
                self.rejected.extend(rules(part, &path));
                self.fields(part, &path);
            }
            if schema["type"] == "array" {
                self.rejected.extend(rules(schema, path.trim_end_matches("[]")));
            }
        }
    }
}

fn kind_of(schema: &Value) -> String {
    let name = |schema: &Value| schema["type"].as_str().unwrap_or("any").to_owned();
    if schema["type"] == "array" { format!("list of {}", name(&schema["items"])) } else { name(schema) }
}

/// Whether a part occurs several times, always under this name.
fn is_shared(whole: &Value, part: &Value, name: &str) -> bool {
    fn names<'w>(whole: &'w Value, part: &Value, found: &mut Vec<&'w str>) {
        for (name, schema) in whole["properties"].as_object().into_iter().flatten() {
            let schema = if schema["type"] == "array" { &schema["items"] } else { schema };
            if same(schema, part) {
                found.push(name);
            }
            names(schema, part, found);
        }
    }
    let mut found = Vec::new();
    names(whole, part, &mut found);
    found.len() > 1 && found.iter().all(|one| *one == name)
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
    let limits = messages(schema).find_map(|message| message.strip_prefix("allowed are "));
    match limits {
        Some(limits) if is_duration(schema) => said.push(format!("{limits}, as in `1m30s`")),
        Some(limits) => said.push(limits.to_owned()),
        None => {}
    }
    said
}

fn messages(schema: &Value) -> impl Iterator<Item = &str> {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    rules.filter_map(|rule| rule["message"].as_str())
}

fn is_duration(schema: &Value) -> bool {
    schema["pattern"].as_str().is_some_and(|pattern| pattern.contains("(h|m|s|ms)"))
}

/// What rules about a field say of what they reject; bounds aside, which are in the table.
fn rules(schema: &Value, path: &str) -> Vec<String> {
    let told = messages(schema).filter(|message| !message.starts_with("allowed are "));
    told.map(|message| format!("- {}: {}\n", code(path), cell(message))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_is_there_twice_and_what_is_allowed_is_no_message() {
        let page = page();
        let (mut headings, mut lines) = (BTreeSet::new(), BTreeSet::new());
        // Both kinds have some fields.
        let mut kind = "";
        for line in page.lines().filter(|line| line.starts_with(['#', '|']) && !line.starts_with("|---")) {
            let is_head = line.starts_with("| field | type |");
            assert!(is_head || lines.insert((kind, line)), "twice: {line}");
            if let Some(heading) = line.strip_prefix("#") {
                kind = line.strip_prefix("## ").unwrap_or(kind);
                let heading = heading.trim_start_matches(['#', ' ']).replace('.', "").to_lowercase();
                assert!(headings.insert(heading), "twice: {line}");
            }
        }
        for link in page.split("See [").skip(1) {
            let anchor = link.split("(#").nth(1).and_then(|rest| rest.split(')').next());
            assert!(anchor.is_some_and(|anchor| headings.contains(anchor)), "no heading for {anchor:?}");
        }
        let messages = ["not set", "empty:", "turns", "itself", "allowed are", "is at most", "is at least"];
        for (_, row) in lines.iter().filter(|(_, line)| line.starts_with("| `")) {
            let allowed = row.replace("\\|", "").split(" | ").nth(3).unwrap_or_default().to_owned();
            assert!(!messages.iter().any(|message| allowed.contains(message)), "{allowed:?} in {row}");
        }
    }
}
