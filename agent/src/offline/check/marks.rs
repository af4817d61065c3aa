//! Annotations and labels of other objects that are for Sluice: a name or a value that means nothing is named, since nobody else
//! would say that it has no effect.

use crate::{
    api::{self, MARKS, Mark, field_of, unknown_among},
    cluster::manifests::tree::{Node, Value},
};

/// Names that somebody may have written for one of Sluice's: of another group, or in another spelling.
fn is_meant_for_sluice(name: &str) -> bool {
    let (prefix, rest) = name.split_once('/').unwrap_or(("", name));
    prefix == api::GROUP || prefix.contains("sluice") && MARKS.iter().any(|mark| mark.key() == rest)
}

/// What is wrong with the annotations and labels of an object, and of the pods that it makes: fields and messages.
pub(super) fn wrong(object: &Node, kind: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    look(object, kind, "metadata", &mut found);
    // Of Deployments and the like, and of CronJobs.
    for (spec, path) in [("template", "spec.template"), ("jobTemplate", "spec.jobTemplate.spec.template")] {
        let made = object.get("spec").and_then(|node| node.get(spec));
        let made = if spec == "jobTemplate" {
            made.and_then(|node| node.get("spec")).and_then(|node| node.get("template"))
        } else {
            made
        };
        if let Some(pod) = made {
            look(pod, "Pod", &format!("{path}.metadata"), &mut found);
        }
    }
    found
}

fn look(object: &Node, kind: &str, path: &str, found: &mut Vec<(String, String)>) {
    for (list, label) in [("annotations", false), ("labels", true)] {
        let all = object.get("metadata").and_then(|metadata| metadata.get(list));
        let Some(Node { value: Value::Mapping(all), .. }) = all else { continue };
        for (name, value) in all.iter().filter(|(name, _)| is_meant_for_sluice(name)) {
            if let Some(message) = message(name, value, kind, label) {
                found.push((field_of(&format!("{path}.{list}"), name), message));
            }
        }
    }
}

fn message(name: &str, value: &Node, kind: &str, label: bool) -> Option<String> {
    let of_name = || MARKS.iter().filter(|mark| mark.name == name);
    let Some(mark) = of_name().find(|mark| mark.label == label && mark.kinds.contains(&kind)) else {
        // It exists, elsewhere.
        let article = |mark: &Mark| if mark.label { "a" } else { "an" };
        let places: Vec<_> = of_name().map(|mark| format!("{} {}", article(mark), mark.object())).collect();
        if !places.is_empty() {
            let what = if label { "a label" } else { "an annotation" };
            return Some(format!("as {what} of a {kind} it has no effect: it is {}", places.join(", or ")));
        }
        let mut names: Vec<_> = MARKS.iter().map(|mark| mark.name).collect();
        names.dedup();
        return Some(unknown_among(name, &names));
    };
    match value.as_str() {
        Some(text) => (mark.check)(text).err(),
        None => Some(format!(
            "a string is needed, not {}: allowed are {}",
            value.described(),
            mark.values.replace('`', "").replace("\"\"", "\"")
        )),
    }
}
