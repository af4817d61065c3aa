//! Which TrafficPolicy governs which service port.
//!
//! A policy that targets a route, or a rule of one, goes before all others for the requests that it sends on, in what it says.
//! A policy that targets the port itself goes before those that target its whole Service; of several that target the
//! same, the oldest has it, whatever the others say: these are not merged. The oldest that targets the Namespace gives what it
//! says to every Service of it whose own policy does not say it ([`Effective`]). Between the two stands the policy of the Service
//! that is called where a route sends its requests on: to a Service that is part of a release, and has no policy of its own.

use std::{borrow::Cow, collections::BTreeSet, hash::Hash, sync::Arc};

use ahash::AHashMap;
use http::HeaderName;
use smallvec::SmallVec;

use super::kept::Kept;
use crate::{
    api::{self, FieldError, effective::Effective},
    cluster::{
        object::{Age, Attached, Frontend, Key, Kind, Name, Service, TrafficPolicy},
        problem::Problem,
        verdict::{Reason, Shortfall, Verdict},
    },
    govern::{
        policy::{OnRoute, Part, Target},
        routes,
    },
};

/// Of a policy with limits of the whole cluster, where the agents cannot share them.
const WITHOUT_STORE: &str = "rateLimits with scope Cluster are counted on each node by itself, as with scope Node: the agent has no \
     --limit-store, by which agents share them";

#[derive(Default)]
pub(super) struct Policies {
    all: AHashMap<Name, Kept<Attached>>,
    /// By the Service that they target.
    of: AHashMap<Name, BTreeSet<Age>>,
    /// By the route that they target.
    of_routes: AHashMap<Key, BTreeSet<Age>>,
    /// Those that target their namespace.
    defaults: AHashMap<Arc<str>, BTreeSet<Age>>,
    /// What policies of Services come to with what they inherit, by the policy; without one it inherits nothing.
    inheriting: AHashMap<Name, Effective>,
}

/// The port of a Service whose requests routes send to another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Called {
    pub(super) service: Name,
    pub(super) port: Option<Arc<str>>,
}

/// Services and policies that a change concerns.
#[derive(Default)]
pub(super) struct Concerned {
    pub(super) services: SmallVec<[Name; 2]>,
    /// All Services of the policy's namespace.
    pub(super) namespace: bool,
    pub(super) policies: SmallVec<[Name; 2]>,
    /// Routes whose requests it holds for, or has held.
    pub(super) routes: SmallVec<[Key; 2]>,
}

impl Policies {
    /// As they are to be kept: see [`Kept::versions`].
    pub(super) fn objects(&self) -> impl Iterator<Item = TrafficPolicy> {
        self.all.values().flat_map(Kept::versions)
    }

    /// Puts a policy in, or takes it out.
    pub(super) fn set(&mut self, name: &Name, policy: Option<TrafficPolicy>) -> Concerned {
        let mut concerned = Concerned::default();
        if self.all.get(name).map(|kept| &kept.object) == policy.as_ref() {
            return concerned;
        }
        let before = self.all.remove(name);
        let was = before.as_ref().map(|kept| (kept.age(), kept.asked().cloned()));
        let after = policy.map(|policy| Kept::new(policy, before));
        let is = after.as_ref().map(|kept| (kept.age(), kept.asked().cloned()));
        concerned.policies.push(name.clone());
        if was != is {
            for (side, leaving) in [(&was, true), (&is, false)] {
                let Some((age, Some(asked))) = side else { continue };
                if asked.for_namespace {
                    move_rival(&mut self.defaults, &name.namespace, age, leaving);
                    concerned.namespace = true;
                }
                for route in routes_of(name, asked) {
                    concerned.policies.extend(move_rival(&mut self.of_routes, &route, age, leaving));
                    concerned.routes.push(route);
                }
                for service in services(name, asked) {
                    concerned.policies.extend(move_rival(&mut self.of, &service, age, leaving));
                    concerned.services.push(service);
                }
            }
        }
        if let Some(after) = after {
            self.all.insert(name.clone(), after);
        }
        if concerned.namespace {
            let here = |other: &&Name| other.namespace == name.namespace;
            let others: Vec<_> = self.all.keys().filter(here).cloned().collect();
            for other in &others {
                self.inherit(other);
            }
            concerned.policies.extend(others);
        }
        self.inherit(name);
        concerned
    }

    /// Finds out what a policy comes to.
    fn inherit(&mut self, name: &Name) {
        let of_service = |asked: &&Attached| !asked.for_namespace && asked.routes.is_empty();
        let own = self.all.get(name).and_then(Kept::asked).filter(of_service);
        let defaults = self.of_namespace(&name.namespace);
        let both = own.zip(defaults).map(|(own, (_, defaults))| (&own.effective, &defaults.effective));
        let inheriting = both.map(|(own, defaults)| (own.clone(), Effective::new(own, defaults)));
        match inheriting.filter(|(own, both)| own != both) {
            Some((_, both)) => self.inheriting.insert(name.clone(), both),
            None => self.inheriting.remove(name),
        };
    }

    /// The policy whose fields the Services of a namespace take.
    fn of_namespace(&self, namespace: &str) -> Option<(&Name, &Attached)> {
        let first = self.defaults.get(namespace)?.first()?;
        Some((&first.name, self.all.get(&first.name)?.asked()?))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.all.keys()
    }

    pub(super) fn get(&self, name: &Name) -> Option<&TrafficPolicy> {
        self.all.get(name).map(|kept| &kept.object)
    }

    /// Those that target a Service, also in vain.
    pub(super) fn of(&self, service: &Name) -> impl Iterator<Item = &Name> {
        self.of.get(service).into_iter().flatten().map(|age| &age.name)
    }

    /// The routes that policies target, there or not.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Key> {
        self.of_routes.keys()
    }

    /// The policies that target a route, also in vain.
    pub(super) fn of_route(&self, route: &Key) -> impl Iterator<Item = &Name> {
        self.of_routes.get(route).into_iter().flatten().map(|age| &age.name)
    }

    /// The policy for a rule of a route: that of the rule, else that of the route.
    pub(super) fn on_rule(&self, route: &Key, rule: &str) -> Option<&Name> {
        let winner = self.winner_of_route(route, Some(rule)).or_else(|| self.winner_of_route(route, None))?;
        Some(&winner.name)
    }

    /// What such a policy comes to for requests to a Service that `service` governs.
    pub(super) fn on_route(&self, policy: &Name, service: Option<&Effective>) -> Option<OnRoute> {
        Some(self.all.get(policy)?.asked()?.effective.on_route(service))
    }

    /// What governs a service port. `called`: the one whose requests routes send to it.
    pub(super) fn in_force(
        &self,
        service: &Name,
        port: Option<&Arc<str>>,
        called: Option<&Called>,
    ) -> Option<Cow<'_, Effective>> {
        let own = self.of_port(service, port);
        let called = called.and_then(|called| self.of_port(&called.service, called.port.as_ref()));
        let Some(called) = called.filter(|called| Some(*called) != own) else {
            let Some(own) = own else {
                let (_, defaults) = self.of_namespace(&service.namespace)?;
                return Some(Cow::Borrowed(&defaults.effective));
            };
            return self.inheriting.get(&own.name).or_else(|| self.alone(own)).map(Cow::Borrowed);
        };
        let called = self.alone(called)?;
        let near = match own {
            Some(own) => Effective::new(self.alone(own)?, called),
            None => called.given(),
        };
        Some(Cow::Owned(match self.of_namespace(&service.namespace) {
            Some((_, defaults)) => Effective::new(&near, &defaults.effective),
            None => near,
        }))
    }

    /// The policy for a port, or its Service.
    fn of_port(&self, service: &Name, port: Option<&Arc<str>>) -> Option<&Age> {
        let of_port = port.and_then(|_| self.winner(service, port));
        of_port.or_else(|| self.winner(service, None))
    }

    fn alone(&self, policy: &Age) -> Option<&Effective> {
        Some(&self.all.get(&policy.name)?.asked()?.effective)
    }

    /// The policy of a Service itself.
    pub(super) fn own(&self, called: &Called) -> Option<&Name> {
        self.of_port(&called.service, called.port.as_ref()).map(|age| &age.name)
    }

    pub(super) fn verdict<'s>(
        &self,
        name: &Name,
        service: impl Fn(&Name) -> Option<&'s Service>,
        rules: impl Fn(&Key) -> Option<Vec<Arc<str>>>,
        limit_store: bool,
    ) -> Option<Verdict> {
        let kept = self.all.get(name)?;
        if let Some(invalid) = kept.invalid() {
            return Some(invalid);
        }
        let mut in_force = Vec::new();
        let mut shortfalls = Vec::new();
        for target in kept.asked().into_iter().flat_map(|asked| &asked.targets) {
            let at = Name { namespace: name.namespace.clone(), name: target.service.clone() };
            if let Err(missing) = look_for(target, service(&at)) {
                shortfalls.push(missing);
            } else if let Some(winner) =
                self.winner(&at, target.port.as_ref()).filter(|age| age.name != *name)
            {
                shortfalls.push(Shortfall {
                    reason: Reason::Conflicted,
                    message: format!(
                        "{} has TrafficPolicy {} already, which is older",
                        shown(target),
                        winner.name
                    ),
                });
            } else {
                in_force.push(shown(target));
            }
        }
        for target in kept.asked().into_iter().flat_map(|asked| &asked.routes) {
            let route = route_key(name, target);
            if let Err(missing) = look_for_route(target, rules(&route)) {
                shortfalls.push(missing);
            } else if let Some(winner) =
                self.winner_of_route(&route, target.rule.as_deref()).filter(|age| age.name != *name)
            {
                shortfalls.push(Shortfall {
                    reason: Reason::Conflicted,
                    message: format!("{target} has TrafficPolicy {} already, which is older", winner.name),
                });
            } else {
                in_force.push(target.to_string());
            }
        }
        if !limit_store && kept.asked().is_some_and(|asked| asked.effective.policy.limits_cluster()) {
            shortfalls.push(Shortfall { reason: Reason::Unsupported, message: WITHOUT_STORE.to_owned() });
        }
        let for_namespace = kept.asked().is_some_and(|asked| asked.for_namespace);
        match self.of_namespace(&name.namespace).filter(|_| for_namespace) {
            Some((first, _)) if first != name => shortfalls.push(Shortfall {
                reason: Reason::Conflicted,
                message: format!(
                    "Namespace {} has TrafficPolicy {first} already, which is older",
                    name.namespace
                ),
            }),
            Some(_) => {
                in_force.push(format!("Namespace {}, where Services do not say otherwise", name.namespace));
            }
            None => {}
        }
        let inherited = self.inheriting.get(name).into_iter().flat_map(|both| &both.policy.inherited);
        let inherited = inherited.map(|inherited| {
            let parts: Vec<_> = inherited.parts.iter().map(Part::name).collect();
            format!(", with {} of TrafficPolicy {}", parts.join(", "), inherited.by)
        });
        let inherited = inherited.collect::<Vec<_>>().concat();
        let in_force =
            (!in_force.is_empty()).then(|| format!("active for {}{inherited}", in_force.join(", ")));
        Some(Verdict::of(in_force, &shortfalls))
    }

    /// The policy that has a route, or a rule of it.
    fn winner_of_route(&self, route: &Key, rule: Option<&str>) -> Option<&Age> {
        self.of_routes.get(route)?.iter().find(|age| {
            let asked = self.all.get(&age.name).and_then(Kept::asked);
            asked.is_some_and(|asked| {
                let mut targets = asked.routes.iter();
                targets.any(|target| route_key(&age.name, target) == *route && target.rule.as_deref() == rule)
            })
        })
    }

    /// The policy that has a target.
    fn winner(&self, service: &Name, port: Option<&Arc<str>>) -> Option<&Age> {
        self.of.get(service)?.iter().find(|age| {
            let asked = self.all.get(&age.name).and_then(Kept::asked);
            asked.is_some_and(|asked| {
                asked
                    .targets
                    .iter()
                    .any(|target| target.service == service.name && target.port.as_ref() == port)
            })
        })
    }
}

/// A policy that changes headers by which this agent knows the tag is invalid, though the API server, which does not know them, has
/// taken it.
pub(super) fn keep_tag(policy: &mut TrafficPolicy, tag_headers: &[HeaderName]) -> Vec<Problem> {
    let Ok(asked) = &policy.asked else { return Vec::new() };
    let errors = api::tag_changes(&asked.effective.spec, tag_headers);
    if errors.is_empty() {
        return Vec::new();
    }
    let key = Key { kind: Kind::TrafficPolicy, name: policy.name.clone() };
    let problems = errors.iter().map(|FieldError { field, message }| {
        let message = format!("{message}; its last valid version stays active, if there is one");
        Problem::of(key.clone(), message).at(field)
    });
    let problems = problems.collect();
    policy.asked = Err(errors.into());
    problems
}

/// The Services that it targets, each once.
fn services(name: &Name, asked: &Attached) -> BTreeSet<Name> {
    let targets = asked.targets.iter();
    targets.map(|target| Name { namespace: name.namespace.clone(), name: target.service.clone() }).collect()
}

/// Puts a policy among those that target the same, or takes it out. Returns the names of all that are there then.
fn move_rival<T: Clone + Eq + Hash>(
    of: &mut AHashMap<T, BTreeSet<Age>>,
    target: &T,
    age: &Age,
    leaving: bool,
) -> Vec<Name> {
    let rivals = of.entry(target.clone()).or_default();
    if leaving {
        rivals.remove(age);
    } else {
        rivals.insert(age.clone());
    }
    let names = rivals.iter().map(|rival| rival.name.clone()).collect();
    if rivals.is_empty() {
        of.remove(target);
    }
    names
}

/// The routes that it targets, each once.
fn routes_of(name: &Name, asked: &Attached) -> BTreeSet<Key> {
    asked.routes.iter().map(|target| route_key(name, target)).collect()
}

/// A route that a policy targets.
fn route_key(policy: &Name, target: &routes::Target) -> Key {
    let kind = match target.kind {
        routes::Kind::Http => Kind::HttpRoute,
        routes::Kind::Grpc => Kind::GrpcRoute,
    };
    Key { kind, name: Name { namespace: policy.namespace.clone(), name: target.route.clone() } }
}

/// Whether the route is there, and has the rule. `rules`: their names, if there is the route.
fn look_for_route(target: &routes::Target, rules: Option<Vec<Arc<str>>>) -> Result<(), Shortfall> {
    let missing = |message| Err(Shortfall { reason: Reason::TargetNotFound, message });
    let Some(rules) = rules else {
        return missing(format!(
            "there is no valid {} {} whose parent is a Service",
            target.kind.as_str(),
            target.route
        ));
    };
    let Some(wanted) = &target.rule else { return Ok(()) };
    if rules.contains(wanted) {
        return Ok(());
    }
    let named: Vec<_> = rules.iter().filter(|rule| !rule.ends_with(']')).map(|rule| &**rule).collect();
    let named = if named.is_empty() { "no rule with a name".to_owned() } else { named.join(", ") };
    missing(format!("{} {} has no rule {wanted}: it has {named}", target.kind.as_str(), target.route))
}

/// `Service orders, port http`
pub(super) fn shown(target: &Target) -> String {
    match &target.port {
        Some(port) => format!("Service {}, port {port}", target.service),
        None => format!("Service {}", target.service),
    }
}

/// Whether what is targeted is there.
pub(super) fn look_for(target: &Target, service: Option<&Service>) -> Result<(), Shortfall> {
    let missing = |message| Err(Shortfall { reason: Reason::TargetNotFound, message });
    let Some(service) = service else {
        return missing(format!("there is no Service {}", target.service));
    };
    if service.frontend == Frontend::None {
        return missing(format!(
            "Service {} has no address of its own, so calls to it are not managed",
            target.service
        ));
    }
    let Some(wanted) = &target.port else { return Ok(()) };
    if service.ports.iter().any(|port| port.name.as_ref() == Some(wanted)) {
        return Ok(());
    }
    let names: Vec<_> = service.ports.iter().filter_map(|port| port.name.as_deref()).collect();
    let names = if names.is_empty() { "no TCP port with a name".to_owned() } else { names.join(", ") };
    missing(format!("Service {} has no port {wanted}: it has {names}", target.service))
}
