//! What of an AccessPolicy is allowed, and worth a word: conditions that can never hold, rules that change nothing, what hides
//! everything, what another policy is about, too, and what does not act where no HTTP is spoken.

use super::objects::{Guarded, Name, Objects, Problem, shown};
use crate::{
    cluster::{jwks::objects::Id, object},
    govern::{
        access::{Access, Action, Party, Rule},
        jwt::{Entry, Holder, Keys, Source, keys::Untried},
        policy::{Mode, PathMatch, Pattern},
    },
};

/// What cannot be right.
pub(super) fn problems(objects: &Objects, name: &Name, guarded: &Guarded) -> Vec<Problem> {
    let keys = keys(objects, name, &guarded.access).into_iter().filter(|said| said.is_wrong);
    keys.map(|said| about(objects, name, said.field, said.message)).collect()
}

fn about(objects: &Objects, name: &Name, field: String, message: String) -> Problem {
    let (file, line) = objects.place("AccessPolicy", name, &field);
    let object = Some(format!("AccessPolicy {}", shown(name)));
    Problem { file, line, object, field: Some(field), message }
}

pub(super) fn notes(objects: &Objects, name: &Name, guarded: &Guarded) -> Vec<Problem> {
    let mut notes: Vec<_> = targets(objects, name, guarded).collect();
    notes.extend(loose_paths(objects, name, guarded));
    let note = |field: String, message: String| about(objects, name, field, message);
    let access = &guarded.access;
    let rules = access.rules.iter().enumerate().map(|(i, rule)| (format!("spec.rules[{i}]"), &rule.from));
    let hidden = access.hidden.iter().enumerate().map(|(i, it)| (format!("spec.hidden[{i}]"), &it.from));
    for (at, from) in rules.chain(hidden) {
        for (i, party) in from.iter().enumerate() {
            let found = nobody(objects, party);
            notes.extend(found.map(|(field, message)| note(format!("{at}.from[{i}].{field}"), message)));
        }
    }
    for (rule, to) in access.rules.iter().enumerate().flat_map(|(rule, it)| {
        it.to.iter().enumerate().map(move |(to, request)| (format!("spec.rules[{rule}].to[{to}]"), request))
    }) {
        if to.methods.iter().any(|method| method.as_str() == "*") {
            let message = "* is a method by itself, which no client uses: leave methods out if any is meant";
            notes.push(note(format!("{rule}.methods"), message.to_owned()));
        }
    }
    for (i, hidden) in access.hidden.iter().enumerate() {
        let all = hidden.paths.iter().position(|path| matches!(path, PathMatch::Prefix(all) if all == "/"));
        let at = |path| format!("spec.hidden[{i}].paths[{path}].value");
        notes.extend(
            all.map(|path| note(at(path), "every path is hidden, so nobody else gets anything".into())),
        );
    }
    if access.refuse_unattended.is_some() && access.mode == Mode::Observe {
        let message = "Refuse has no effect with mode: Observe, in which nothing is denied";
        notes.push(note("spec.whenUnattended".to_owned(), message.to_owned()));
    }
    let keys = keys(objects, name, access).into_iter().filter(|said| !said.is_wrong);
    notes.extend(keys.map(|said| note(said.field, said.message)));
    notes.extend(without_http(objects, name, guarded).map(|(field, message)| note(field, message)));
    notes.extend(idle_rules(access).map(|(field, message)| note(field, message)));
    notes.extend(contested(objects, name, guarded).map(|(field, message)| note(field, message)));
    notes
}

/// Rules that let in nobody whom another rule does not let in anyway. Who writes one as a rule means to keep everybody else out of what
/// it is about; but a rule that does not match decides nothing.
fn idle_rules(access: &Access) -> impl Iterator<Item = (String, String)> {
    let rules = &access.rules;
    rules.iter().enumerate().filter(|(_, rule)| rule.action == Action::Allow && !rule.from.is_empty()).filter_map(
        |(i, rule)| {
            let same = |other: &&Rule| other.to == rule.to;
            let open = rules.iter().find(|other| {
                other.action == Action::Allow
                    && other.from.is_empty()
                    && (other.to.is_empty() || other.to == rule.to)
            })?;
            if rules.iter().filter(same).any(|other| other.action == Action::Deny) {
                return None;
            }
            let message = format!(
                "rule {} allows nothing that rule {} does not allow anyway, which decides where the client is none of these: to keep \
                 others out, add a rule with action Deny and the same to",
                rule.name, open.name
            );
            Some((format!("spec.rules[{i}].from"), message))
        },
    )
}

/// What another AccessPolicy is about, too. The older one is in force; files have no times, so that here it is not known which.
fn contested<'o>(
    objects: &'o Objects,
    name: &'o Name,
    guarded: &'o Guarded,
) -> impl Iterator<Item = (String, String)> + 'o {
    let rivals =
        move || objects.accesses.iter().filter(move |(other, _)| other.0 == name.0 && **other != *name);
    let message = |what: &str, other: &Name| {
        format!(
            "AccessPolicy {} is about {what}, too: only the older of them is in force there",
            shown(other)
        )
    };
    let of_services = guarded.targets.iter().enumerate().filter_map(move |(i, target)| {
        let (other, _) = rivals().find(|(_, rival)| rival.targets.contains(target))?;
        Some((format!("spec.targetRefs[{i}]"), message(&format!("Service {}", target.service), other)))
    });
    let of_namespace =
        rivals().find(|(_, rival)| guarded.for_namespace && rival.for_namespace).map(move |(other, _)| {
            ("spec.targetRefs".to_owned(), message(&format!("Namespace {}", name.0), other))
        });
    of_services.chain(of_namespace)
}

/// What there is to say of the keys of a provider.
struct SaidOfKeys {
    field: String,
    message: String,
    is_wrong: bool,
}

/// Keys of tokens that are not used, or may not be; and what is wrong with objects that have some.
fn keys(objects: &Objects, name: &Name, access: &Access) -> Vec<SaidOfKeys> {
    let mut said = Vec::new();
    let providers = access.jwt.iter().flat_map(|jwt| jwt.providers.iter().enumerate());
    for (i, provider) in providers {
        let mut say = |field: &str, message: String, is_wrong: bool| {
            let field = format!("spec.jwt.providers[{i}].jwks.{field}");
            said.push(SaidOfKeys { field, message, is_wrong });
        };
        match &provider.source {
            Source::Inline(keys) => unused(keys).for_each(|message| say("inline", message, false)),
            Source::Remote { .. } => {}
            Source::Entry(Entry { of, name: holder, key }) => {
                let field = match of {
                    Holder::ConfigMap => "configMap",
                    Holder::Secret => "secret",
                };
                let object = object::Name { namespace: name.0.as_str().into(), name: holder.clone() };
                let object = Id { of: *of, name: object };
                match objects.held.get(&object).map(|held| held.keys(key)) {
                    None => {
                        let message = format!(
                            "there is no {object} in these files: unless it is in the cluster, with the keys as {key}, the keys of provider {} \
                             are missing",
                            provider.name
                        );
                        say(field, message, false);
                    }
                    Some(Ok(keys)) => unused(&keys)
                        .for_each(|message| say(field, format!("{object}, key {key}: {message}"), false)),
                    Some(Err(error)) => say(field, format!("{object}, key {key}: {error}"), true),
                }
            }
        }
    }
    said
}

fn unused(keys: &Keys) -> impl Iterator<Item = String> + '_ {
    let passed_over =
        keys.passed_over.iter().map(|key| format!("keys[{}] is not used: {}", key.index, key.why));
    let untried = keys.untried().map(|Untried { algorithm, fit, tried }| {
        format!(
            "{fit} keys fit {}, and for a token without a kid only the first {tried} of them in the set are tried: give each key a kid, and \
             have the issuer put it into its tokens",
            algorithm.name()
        )
    });
    passed_over.chain(untried)
}

/// Why no pod is meant, and by which field.
fn nobody<'p>(objects: &'p Objects, party: &'p Party) -> Option<(&'static str, String)> {
    let namespace = party.namespace.as_deref()?;
    if !objects.enrols(namespace) {
        let message = format!(
            "Namespace {namespace} is not enrolled in these files: unless it is in the cluster, its pods are not known, and this never holds"
        );
        return Some(("namespace", message));
    }
    if let Some(meant) = objects.seen.missing_namespace(namespace, objects.complete) {
        return Some(("namespace", format!("there is no Namespace {namespace} in these files{meant}")));
    }
    let account = party.service_account.as_deref()?;
    let meant = objects.seen.missing_account(namespace, account)?;
    Some((
        "serviceAccount",
        format!("no pod in {namespace} has the service account {account} in these files{meant}"),
    ))
}

/// What has no effect, or more than was meant, on Services that speak no HTTP.
fn without_http<'o>(
    objects: &'o Objects,
    name: &'o Name,
    guarded: &'o Guarded,
) -> impl Iterator<Item = (String, String)> + 'o {
    let targets = guarded.targets.iter().enumerate();
    let own = targets.map(|(i, target)| ((name.0.clone(), target.service.to_string()), i));
    let has_own = |service: &Name| {
        objects.accesses.iter().any(|((namespace, _), other)| {
            *namespace == service.0 && other.targets.iter().any(|target| *target.service == *service.1)
        })
    };
    let others =
        objects.services_of(&name.0).filter(move |service| guarded.for_namespace && !has_own(service));
    let services = own.chain(others.map(|service| (service.clone(), 0)));
    services.filter(|(service, _)| objects.seen.is_without_http(service)).filter_map(|(service, i)| {
        let access = &guarded.access;
        let about_requests = access.rules.iter().any(|rule| !rule.to.is_empty());
        let allows = |about: bool| {
            let mut rules = access.rules.iter().filter(|rule| rule.action == Action::Allow);
            rules.any(|rule| rule.to.is_empty() != about)
        };
        let what = if allows(true) && !allows(false) {
            "no rule with methods or paths is about its connections, and no other allows any: all are reset"
        } else if about_requests {
            "rules with methods or paths have no effect on it"
        } else if access.hidden.is_empty() || guarded.for_namespace {
            return None;
        } else {
            "hidden has no effect on it"
        };
        let message = format!("all ports of Service {} are declared not to speak HTTP: {what}", service.1);
        Some((format!("spec.targetRefs[{i}]"), message))
    })
}

/// Services that an AccessPolicy names and these files do not have, though they have others of its namespace.
fn targets<'o>(
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
