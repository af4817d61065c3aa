//! What a service is governed by: every value that is in force, and who says it.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::json;

use super::{
    Service,
    objects::{Name, Objects, shown},
    winners::Winners,
};
use crate::{
    api::effective::{self, Effect},
    govern::policy::Target,
};

/// A service and what it is governed by.
#[derive(Debug)]
pub(super) struct Effective {
    pub(super) service: Service,
    /// The files have it.
    pub(super) is_there: bool,
    /// `shop/orders`; without one, and with nothing inherited, everything is a default.
    pub(super) policy: Option<String>,
    /// The policies that give what its own does not say: of the Service that is called, and of the namespace.
    pub(super) inherits_from: Vec<String>,
    /// With the policy that says each; `None`: it is a default.
    pub(super) values: Vec<(Effect, Option<Arc<str>>)>,
}

/// Every service that is targeted, or the one that is asked for. Policies that are in each other's way become problems.
pub(super) fn services(objects: &mut Objects, only: Option<&Service>) -> Vec<Effective> {
    let mut targeted = BTreeSet::new();
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    let winners = Winners::of(objects);
    for (name, policy) in &objects.policies {
        if policy.for_namespace {
            if let Some(winner) = winners.of_namespace(&name.0).filter(|winner| *winner != name) {
                let message = format!(
                    "Namespace {} is targeted by TrafficPolicy {} already, {}: this one is not active",
                    name.0,
                    shown(winner),
                    order(objects, winner, policy),
                );
                problems.push(Objects::about_target(name, policy, 0, message));
            } else {
                let known = objects.services_of(&name.0).map(|(namespace, name)| Service {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    port: None,
                });
                targeted.extend(known);
                // Any other one.
                targeted.insert(Service { namespace: name.0.clone(), name: String::new(), port: None });
            }
        }
        for (index, target) in policy.targets.iter().enumerate() {
            targeted.insert(service(name, target));
            if let Some(winner) = winners.of_target(&name.0, target).filter(|winner| *winner != name) {
                let message = format!(
                    "{} is targeted by TrafficPolicy {} already, {}: this one is not active there",
                    told(target),
                    shown(winner),
                    order(objects, winner, policy),
                );
                problems.push(Objects::about_target(name, policy, index, message));
            }
            let of_service = (name.0.clone(), target.service.to_string());
            let idle = objects.seen.without_requests(&of_service, &policy.effective.spec);
            for message in missing(objects, &name.0, target).into_iter().chain(idle) {
                notes.push(Objects::about_target(name, policy, index, message));
            }
        }
    }
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
    let found = targeted.into_iter().map(|service| effective(objects, &winners, service)).collect();
    objects.problems.append(&mut problems);
    objects.notes.append(&mut notes);
    found
}

fn effective(objects: &Objects, winners: &Winners<'_>, service: Service) -> Effective {
    let target =
        |port: Option<&str>| Target { service: service.name.as_str().into(), port: port.map(Into::into) };
    let own =
        service.port.as_deref().and_then(|port| winners.of_target(&service.namespace, &target(Some(port))));
    let winner = own.or_else(|| winners.of_target(&service.namespace, &target(None)));
    let defaults = winners.of_namespace(&service.namespace);
    let alone = |name: &Name| &objects.policies[name].effective;
    let called = called_for(objects, &service)
        .and_then(|called| winners.of_target(&service.namespace, &called))
        .filter(|called| Some(*called) != winner);
    // The nearest first: each gives what those before it do not say. The first says whether it takes anything.
    let first = winner.map(|own| alone(own).clone()).or_else(|| called.map(|called| alone(called).given()));
    let givers = called.filter(|_| winner.is_some()).into_iter().chain(defaults);
    let both = givers.fold(first, |own, giver| {
        Some(own.map_or_else(|| alone(giver).clone(), |own| effective::Effective::new(&own, alone(giver))))
    });
    let values = both.as_ref().map_or_else(
        || effective::values(&json!({})).into_iter().map(|effect| (effect, None)).collect(),
        |both| both.values().map(|(effect, by)| (effect, by.cloned())).collect(),
    );
    let own = both.as_ref().and_then(|both| both.policy.name.as_ref()).filter(|_| winner.is_none());
    let inherited = both.iter().flat_map(|both| both.policy.inherited.iter().map(|from| &from.by));
    let inherits_from = own.into_iter().chain(inherited).map(ToString::to_string).collect();
    let name = (service.namespace.clone(), service.name.clone());
    Effective {
        is_there: objects.services.contains_key(&name),
        policy: winner.map(shown),
        inherits_from,
        values,
        service,
    }
}

/// The Service of the namespace whose requests a route in these files sends to this one: its policy gives what this one's does not say.
fn called_for(objects: &Objects, service: &Service) -> Option<Target> {
    let here = objects.routes.iter().filter(|((_, (namespace, _)), _)| *namespace == service.namespace);
    let asked = here.map(|(_, route)| &route.asked).filter(|asked| {
        asked.backends().any(|backend| {
            (&*backend.namespace, &*backend.name) == (service.namespace.as_str(), service.name.as_str())
        })
    });
    let parents = asked.flat_map(|asked| &asked.parents);
    let others =
        parents.filter(|parent| *parent.namespace == *service.namespace && *parent.service != *service.name);
    let first = others.min_by_key(|parent| &parent.service)?;
    Some(Target { service: first.service.clone(), port: first.section.clone() })
}

/// Why one of two policies goes first.
fn order(objects: &Objects, winner: &Name, loser: &super::objects::Policy) -> &'static str {
    if objects.policies[winner].created == loser.created { "first by name" } else { "which is older" }
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
    let Some(ports) = objects.services.get(&name) else {
        return objects.missing(namespace, &target.service);
    };
    let port = target.port.as_deref()?;
    let found = ports.iter().any(|name| name == port);
    (!found).then(|| format!("Service {} has no port {port} in these files", target.service))
}
