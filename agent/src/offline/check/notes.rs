//! What is allowed, and worth a word: rules that can never act, and what cannot be told from these files.

use std::collections::BTreeSet;

use super::{
    access,
    objects::{Name, Objects, Problem, shown},
    winners::Winners,
};
use crate::{
    api::notes::Note,
    govern::{policy::Lane, tag::Tag},
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
    let mut problems = Vec::new();
    for (name, guarded) in &objects.accesses {
        notes.extend(access::notes(objects, name, guarded));
        problems.extend(access::problems(objects, name, guarded));
    }
    objects.problems.append(&mut problems);
    objects.notes.append(&mut notes);
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
