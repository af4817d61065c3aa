//! Routes in the files whose parents are Services: whether they make sense, what they come to for each Service in the order of
//! precedence, and which policies target them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Service, fit,
    objects::{Name, Objects, Problem, shown},
};
use crate::govern::routes::{self, Age, Kind, Routes, Rule, words};

/// What holds for the requests of some clients to a Service.
#[derive(Debug)]
pub(super) struct Routing {
    pub(super) service: Service,
    /// `None`: all clients.
    pub(super) clients: Option<String>,
    /// In the order of precedence.
    pub(super) rules: Vec<Row>,
}

/// A rule.
#[derive(Debug)]
pub(super) struct Row {
    /// `HTTPRoute shop/orders, rule slow`
    pub(super) rule: String,
    /// What it is about, each by itself.
    pub(super) matches: Vec<String>,
    /// What becomes of the request, in this order.
    pub(super) does: Vec<String>,
    /// The TrafficPolicy that targets it.
    pub(super) policy: Option<String>,
}

/// A route's name, kind and rules.
type Held<'o> = (&'o Name, Kind, &'o Vec<std::sync::Arc<Rule>>);

/// The routes by the Services that are their parents, or those of the one that is asked for. What is in the way becomes notes.
pub(super) fn all(objects: &mut Objects, only: Option<&Service>) -> Vec<Routing> {
    let winners = policies(objects);
    // By the Service, its port as the parent says it, and the namespace of the routes.
    let mut groups: BTreeMap<(Service, String), Vec<Held<'_>>> = BTreeMap::new();
    let mut notes = Vec::new();
    for ((kind, name), route) in &objects.routes {
        let parents: BTreeSet<_> = route
            .asked
            .parents
            .iter()
            .map(|parent| Service {
                namespace: parent.namespace.to_string(),
                name: parent.service.to_string(),
                port: parent
                    .section
                    .as_deref()
                    .map(str::to_owned)
                    .or_else(|| parent.port.map(|port| port.to_string())),
            })
            .collect();
        for parent in parents {
            if let Some(message) = objects.missing(&parent.namespace, &parent.name) {
                notes.push(about(*kind, name, route, "spec.parentRefs", message));
            }
            groups.entry((parent, name.0.clone())).or_default().push((name, *kind, &route.asked.rules));
        }
        for rule in &route.asked.rules {
            let (backends, mirrors) = fit::sent_to(rule);
            let backends = backends.map(|service| (service, "its part of the requests gets 500"));
            for (service, then) in backends.chain(mirrors.map(|service| (service, "it gets no copies"))) {
                if let Some(message) = objects.missing(&service.namespace, &service.name) {
                    let message = format!("rule {}: {message}: {then}", rule.name);
                    notes.push(about(*kind, name, route, "spec.rules", message));
                }
            }
        }
    }
    let found = groups.into_iter().filter_map(|((service, of), routes)| {
        if only.is_some_and(|only| (&only.namespace, &only.name) != (&service.namespace, &service.name)) {
            return None;
        }
        let kind = routes.iter().map(|(_, kind, _)| *kind).max()?;
        let hold = routes.into_iter().filter(|(_, other, _)| *other == kind).map(|(name, _, rules)| {
            let age = Age { created: None, name: shown(name).into() };
            routes::Route { age, rules: rules.clone() }
        });
        let table = Routes::new(hold.collect());
        let rules = table.rules().map(|rule| {
            let target = |of_rule: bool| {
                let (_, name) = rule.route.split_once('/')?;
                let rule = of_rule.then(|| rule.name.clone());
                winners.get(&(of.clone(), routes::Target { kind, route: name.into(), rule }))
            };
            Row {
                rule: format!("{} {}, rule {}", kind.as_str(), rule.route, rule.name),
                matches: rule.matches.iter().map(words::about).collect(),
                does: words::does(rule),
                policy: target(true).or_else(|| target(false)).map(shown),
            }
        });
        let clients = (of != service.namespace).then_some(of.clone());
        Some(Routing { rules: rules.collect(), clients, service })
    });
    let found = found.collect();
    notes.extend(fit::notes(objects));
    objects.notes.append(&mut notes);
    found
}

/// Which policy has which route, or rule of it. What is in the way of others becomes problems, and what is missing notes.
fn policies(objects: &mut Objects) -> BTreeMap<(String, routes::Target), Name> {
    let mut winners: BTreeMap<(String, routes::Target), Name> = BTreeMap::new();
    let age = |name: &Name| {
        let created = &objects.policies[name].created;
        (created.is_empty(), created.clone(), name.clone())
    };
    for (name, policy) in &objects.policies {
        for target in &policy.routes {
            let held = winners.entry((name.0.clone(), target.clone())).or_insert_with(|| name.clone());
            if age(name) < age(held) {
                held.clone_from(name);
            }
        }
    }
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    for (name, policy) in &objects.policies {
        for (index, target) in policy.routes.iter().enumerate() {
            let winner = &winners[&(name.0.clone(), target.clone())];
            if winner != name {
                let message = format!(
                    "{target} is targeted by TrafficPolicy {} already: this one is not active there",
                    shown(winner)
                );
                problems.push(Objects::about_target(name, policy, index, message));
            }
            let route = objects.routes.get(&(target.kind, (name.0.clone(), target.route.to_string())));
            let missing = match (route, &target.rule) {
                (None, _) if objects.complete || !objects.routes.is_empty() => {
                    Some(format!("there is no {} {} in these files", target.kind.as_str(), target.route))
                }
                (Some(route), Some(wanted)) if !route.asked.rules.iter().any(|rule| rule.name == *wanted) => {
                    Some(format!("{} {} has no rule {wanted}", target.kind.as_str(), target.route))
                }
                _ => None,
            };
            notes.extend(missing.map(|message| Objects::about_target(name, policy, index, message)));
        }
    }
    objects.problems.append(&mut problems);
    objects.notes.append(&mut notes);
    winners
}

pub(super) fn about(
    kind: Kind,
    name: &Name,
    route: &super::objects::Route,
    field: &str,
    message: String,
) -> Problem {
    Problem {
        file: route.file.clone(),
        line: Some(route.line),
        object: Some(format!("{} {}", kind.as_str(), shown(name))),
        field: Some(field.to_owned()),
        message,
    }
}
