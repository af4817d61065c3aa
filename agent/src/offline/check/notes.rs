//! What is allowed, and worth a word: rules that can never act, and what cannot be told from these files.

use std::collections::BTreeSet;

use super::{
    objects::{Guarded, Name, Objects, Problem, shown},
    winners::Winners,
};
use crate::{
    api::notes::Note,
    govern::{
        access::Action,
        policy::{Lane, PathMatch, Pattern},
        tag::Tag,
    },
};

/// What an object that makes sense leaves to be said.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) file: String,
    pub(super) line: u32,
    pub(super) kind: &'static str,
    pub(super) name: Name,
    pub(super) note: Note,
}

/// Those that stand, given everything that is in the files.
pub(super) fn all(objects: &mut Objects) {
    let mut notes = Vec::new();
    let winners = Winners::of(objects);
    for noted in &objects.noted {
        let defaults = winners.of_namespace(&noted.name.0).map(|name| &objects.policies[name]);
        let inherits = |field: &str| {
            let own = objects.policies.get(&noted.name);
            let takes = own.is_some_and(|own| own.effective.spec["inherit"] != "None");
            takes && defaults.is_some_and(|policy| !policy.effective.spec[field].is_null())
        };
        let own = objects.policies.get(&noted.name).filter(|_| noted.kind == "TrafficPolicy");
        // What a policy for a namespace does not say, those of its Services may.
        let is_default = own.is_some_and(|own| own.for_namespace);
        let void = !noted.note.unless.is_empty()
            && (is_default || noted.note.unless.iter().any(|part| inherits(part.name())));
        let waits = noted.note.unless_waited.is_some_and(|seconds| {
            objects.waited.get(&noted.name.0).is_some_and(|waited| *waited >= seconds)
        });
        if !void && !waits {
            notes.push(Problem {
                file: noted.file.clone(),
                line: Some(noted.line),
                object: Some(format!("{} {}", noted.kind, shown(&noted.name))),
                field: Some(noted.note.field.clone()),
                message: noted.note.message.clone(),
            });
        }
    }
    let tags = objects.lanes.iter().map(|((namespace, _), lane)| (&**namespace, &lane.tag)).collect();
    for (name, lane) in &objects.lanes {
        notes.extend(of_lane(objects, &tags, name, lane));
    }
    for (name, guarded) in &objects.accesses {
        notes.extend(of_access(objects, name, guarded));
        notes.extend(loose_paths(objects, name, guarded));
    }
    objects.notes.append(&mut notes);
}

/// Services that an AccessPolicy names and these files do not have, though they have others of its namespace.
fn of_access<'o>(
    objects: &'o Objects,
    name: &'o Name,
    guarded: &'o Guarded,
) -> impl Iterator<Item = Problem> + 'o {
    let knows_namespace = objects.services_of(&name.0).next().is_some();
    let targets = guarded.targets.iter().enumerate().filter(move |_| knows_namespace);
    targets.filter_map(|(index, target)| {
        let service = (name.0.clone(), target.service.to_string());
        let message = match (objects.services.get(&service), &target.port) {
            (None, _) => format!("there is no Service {} in these files", shown(&service)),
            (Some(ports), Some(port)) if !ports.iter().any(|known| **known == **port) => {
                format!("Service {} has no port {port} in these files", shown(&service))
            }
            _ => return None,
        };
        let field = format!("spec.targetRefs[{index}]");
        let (file, line) = objects.place("AccessPolicy", name, &field);
        Some(Problem {
            file,
            line,
            object: Some(format!("AccessPolicy {}", shown(name))),
            field: Some(field),
            message,
        })
    })
}

/// Expressions by which an AccessPolicy allows paths wherever in them they match.
fn loose_paths(objects: &Objects, name: &Name, guarded: &Guarded) -> Vec<Problem> {
    let mut found = Vec::new();
    let rules = guarded.access.rules.iter().enumerate();
    for (rule, allowing) in rules.filter(|(_, rule)| rule.action == Action::Allow) {
        for (to, request) in allowing.to.iter().enumerate() {
            for (path, test) in request.paths.iter().enumerate() {
                let PathMatch::Regex(Pattern(regex)) = test else { continue };
                let text = regex.as_str();
                if text.starts_with(['^', '(']) && text.ends_with(['$', ')']) {
                    continue;
                }
                let field = format!("spec.rules[{rule}].to[{to}].paths[{path}].value");
                let (file, line) = objects.place("AccessPolicy", name, &field);
                found.push(Problem {
                    file,
                    line,
                    object: Some(format!("AccessPolicy {}", shown(name))),
                    field: Some(field),
                    message: format!(
                        "{text:?} allows every path that it matches a part of: write ^ before it and $ behind it if that is not meant"
                    ),
                });
            }
        }
    }
    found
}

/// What a lane names and these files do not have.
fn of_lane(objects: &Objects, tags: &BTreeSet<(&str, &Tag)>, name: &Name, lane: &Lane) -> Vec<Problem> {
    let namespace = &name.0;
    let problem = |field: &str, message: String| {
        let (file, line) = objects.place("TrafficLane", name, field);
        Problem {
            file,
            line,
            object: Some(format!("TrafficLane {}", shown(name))),
            field: Some(field.to_owned()),
            message,
        }
    };
    let mut notes = Vec::new();
    let targets = lane.targets.iter().enumerate();
    let services = targets.map(|(i, target)| (format!("spec.targetRefs[{i}]"), &target.service));
    let excepted = lane.service_fallbacks.keys().map(|service| ("spec.serviceFallbacks".to_owned(), service));
    let outside = lane.endpoints.iter().enumerate();
    let outside = outside.map(|(i, one)| (format!("spec.endpoints[{i}]"), &one.target.service));
    for (field, service) in services.chain(excepted).chain(outside) {
        if let Some(message) = objects.missing(namespace, service) {
            notes.push(problem(&field, message));
        }
    }
    let exceptions = lane.service_fallbacks.values().flat_map(|detour| &detour.lanes);
    let named: BTreeSet<_> = lane.fallback.lanes.iter().chain(exceptions).collect();
    for tag in named {
        if !tags.contains(&(&**namespace, tag)) {
            let message = format!(
                "there is no TrafficLane with the tag {tag} in these files: only pods with the label sluice.dev/tag: {tag} are in it"
            );
            notes.push(problem("spec.fallbackLanes", message));
        }
    }
    notes
}
