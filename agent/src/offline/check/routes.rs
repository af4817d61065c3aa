//! Routes in the files whose parents are Services: whether they make sense, what they come to for each Service in the order of
//! precedence, and which policies target them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Service,
    objects::{Name, Objects, Problem, shown},
};
use crate::govern::{
    policy::ValueMatch,
    routes::{
        self, Action, Age, Kind, Routes, Rule,
        matching::{Match, PathTest},
    },
};

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

/// The routes by the Services that are their parents, or those of the one that is asked for. What is in the way becomes notes.
pub(super) fn all(objects: &mut Objects, only: Option<&Service>) -> Vec<Routing> {
    let winners = policies(objects);
    // By the Service, its port as the parent says it, and the namespace of the routes.
    let mut groups: BTreeMap<(Service, String), Vec<(&Name, Kind, &Vec<std::sync::Arc<Rule>>)>> =
        BTreeMap::new();
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
            let Action::Forward { backends, .. } = &rule.action else { continue };
            for service in backends.iter().filter_map(|backend| backend.service.as_ref()) {
                if let Some(message) = objects.missing(&service.namespace, &service.name) {
                    let message = format!("rule {}: {message}: its part of the requests gets 500", rule.name);
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
                matches: rule.matches.iter().map(about_what).collect(),
                does: does(rule),
                policy: target(true).or_else(|| target(false)).map(|name| shown(name)),
            }
        });
        let clients = (of != service.namespace).then_some(of.clone());
        Some(Routing { rules: rules.collect(), clients, service })
    });
    let found = found.collect();
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

fn about(kind: Kind, name: &Name, route: &super::objects::Route, field: &str, message: String) -> Problem {
    Problem {
        file: route.file.clone(),
        line: Some(route.line),
        object: Some(format!("{} {}", kind.as_str(), shown(name))),
        field: Some(field.to_owned()),
        message,
    }
}

/// `GET /orders/*, header x-user`
fn about_what(one: &Match) -> String {
    let path = match &one.path {
        PathTest::Any => "any path".to_owned(),
        PathTest::Exact(path) => path.clone(),
        PathTest::Prefix(prefix) => format!("{prefix}/*"),
        PathTest::Method(method) => format!("method {method}"),
        PathTest::Regex(pattern) => format!("path like {}", pattern.0.as_str()),
    };
    let wanted = |wanted: &ValueMatch| match wanted {
        ValueMatch::Exact(value) => format!("={value}"),
        ValueMatch::Prefix(value) => format!("={value}*"),
        ValueMatch::Regex(pattern) => format!(" like {}", pattern.0.as_str()),
    };
    let method = one.method.as_ref().map(|method| format!("{method} ")).unwrap_or_default();
    let headers = one.headers.iter().map(|(name, value)| format!("header {name}{}", wanted(value)));
    let query = one.query_parameters.iter().map(|(name, value)| format!("query {name}{}", wanted(value)));
    let all: Vec<_> = std::iter::once(format!("{method}{path}")).chain(headers).chain(query).collect();
    all.join(", ")
}

/// What a rule does, in order.
fn does(rule: &Rule) -> Vec<String> {
    let mut all = Vec::new();
    if rule.cors.is_some() {
        all.push("says which pages may ask (CORS)".to_owned());
    }
    match &rule.action {
        Action::Redirect(redirect) => all.push(format!("redirects ({})", redirect.status.as_u16())),
        Action::Forward { rewrite, backends } => {
            if !rule.headers.request.is_empty() {
                all.push("changes request headers".to_owned());
            }
            if !rewrite.is_empty() {
                all.push("rewrites the host or the path".to_owned());
            }
            let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
            for backend in backends.iter() {
                let to = backend
                    .service
                    .as_ref()
                    .map_or("nowhere (500)".to_owned(), |service| format!("to {service}"));
                all.push(match backend.weight {
                    weight if u64::from(weight) == total => to,
                    weight => format!("{weight} of {total} {to}"),
                });
            }
            if total == 0 {
                all.push("500: no backend has a weight".to_owned());
            }
            let mirrors = rule.mirrors.iter().chain(backends.iter().flat_map(|backend| &backend.mirrors));
            for mirror in mirrors {
                let Some(service) = &mirror.service else { continue };
                all.push(format!("copies {} % to {service}", mirror.fraction.percent()));
            }
        }
    }
    if !rule.headers.response.is_empty() {
        all.push("changes response headers".to_owned());
    }
    let timeouts = [("request", rule.timeouts.request), ("backend request", rule.timeouts.attempt)];
    all.extend(timeouts.into_iter().filter_map(|(what, time)| Some(format!("{what} within {:?}", time?))));
    all
}
