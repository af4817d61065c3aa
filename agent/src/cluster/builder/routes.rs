//! From routes and grants to what holds for each port of a Service.
//!
//! A route whose parent is a Service of its own namespace is a producer's: it holds for whoever calls the Service. One of
//! another namespace is a consumer's: it holds for clients in that namespace only, and for these in the place of the
//! producer's. Of the two kinds the more special one has a port: where there is a GRPCRoute, HTTPRoutes hold for nothing there.
//! <https://gateway-api.sigs.k8s.io/geps/gep-1294/>
//!
//! What is compiled stays until a route changes that it was made of; which endpoints a backend has at the moment is looked up
//! anew when that Service has been built anew.

mod findings;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ahash::{AHashMap, AHashSet};

use self::findings::Finding;
use super::{kept::Kept, policies::Called, service::Built, store::Store};
use crate::{
    api::gateway::{self, Asked, Named, Parent},
    cluster::{
        model::{Group, PortKey, Protocol, Routed, RuleId},
        object::{self, AtParent, Key, Kind, Mesh, Name, Object, ReferenceGrant},
    },
    govern::routes::{
        self, Action, Age, Routes,
        backends::{Backends, ServicePort},
    },
};

#[derive(Default)]
pub(super) struct Routing {
    all: AHashMap<Key, Kept<Option<Arc<Asked>>>>,
    /// What statuses are written by.
    heads: AHashMap<Key, Head>,
    grants: AHashMap<Name, ReferenceGrant>,
    meshes: BTreeMap<Name, Mesh>,
    /// By the Service that is their parent.
    of: AHashMap<Name, BTreeSet<Key>>,
    /// By the Service that they send to.
    to: AHashMap<Name, BTreeSet<Key>>,
    compiled: BTreeMap<Name, Compiled>,
    /// Services whose routes are to be compiled anew.
    outdated: BTreeSet<Name>,
    /// Backends, and parents: what has to be looked up anew if one of these is built anew.
    involved: AHashSet<Name>,
    /// A grant or a route has changed.
    stale: bool,
    routed: Arc<AHashMap<PortKey, Arc<Routed>>>,
    findings: BTreeMap<Key, Finding>,
    /// What is to be said of these may be something else.
    unjudged: BTreeSet<Key>,
}

/// The parents of a route, as it names them, and what is said of them.
#[derive(PartialEq)]
struct Head {
    parents: Arc<[Named]>,
    told: Arc<[AtParent]>,
}

/// The routes of a Service by its ports.
#[derive(Default)]
struct Compiled {
    /// The ports that it was made for.
    ports: Vec<(u16, Option<Arc<str>>)>,
    /// By the port, and by the routes' namespace.
    by_port: BTreeMap<u16, BTreeMap<Arc<str>, OfKind>>,
    /// HTTPRoutes that give way to a GRPCRoute.
    yielding: BTreeSet<Key>,
}

/// Routes, and of which kind they are.
type OfKind = (routes::Kind, Arc<Routes>);

/// A route, and when it was created.
type Dated<'r> = (&'r Key, Arc<Asked>, Option<i64>);

/// What is known of Services.
#[derive(Clone, Copy)]
pub(super) struct Look<'l> {
    pub(super) store: &'l Store,
    pub(super) built: &'l AHashMap<Name, Built>,
}

impl Routing {
    pub(super) fn names(&self, kind: Kind) -> Vec<Name> {
        match kind {
            Kind::ReferenceGrant => self.grants.keys().cloned().collect(),
            Kind::Mesh => self.meshes.keys().cloned().collect(),
            _ => self.all.keys().filter(|key| key.kind == kind).map(|key| key.name.clone()).collect(),
        }
    }

    /// Puts a route in, or takes it out.
    pub(super) fn set(&mut self, key: &Key, route: Option<object::Route>) {
        let (own, head) = match route {
            Some(object::Route { own, parents, told }) => (Some(own), Some(Head { parents, told })),
            None => (None, None),
        };
        if self.heads.get(key) != head.as_ref() {
            self.unjudged.insert(key.clone());
            match head {
                Some(head) => self.heads.insert(key.clone(), head),
                None => self.heads.remove(key),
            };
        }
        if self.all.get(key).map(|kept| &kept.object) == own.as_ref() {
            return;
        }
        self.unjudged.insert(key.clone());
        let before = self.all.remove(key);
        let was = before.as_ref().and_then(asked);
        for parent in services(was.as_deref()) {
            take_out(&mut self.of, &parent, key);
            self.outdated.insert(parent);
        }
        for backend in sent_to(was.as_deref()) {
            take_out(&mut self.to, &backend, key);
        }
        self.stale = true;
        let Some(own) = own else { return };
        let after = Kept::new(own, before);
        let is = asked(&after);
        for parent in services(is.as_deref()) {
            self.of.entry(parent.clone()).or_default().insert(key.clone());
            self.outdated.insert(parent);
        }
        for backend in sent_to(is.as_deref()) {
            self.to.entry(backend).or_default().insert(key.clone());
        }
        self.all.insert(key.clone(), after);
    }

    pub(super) fn set_grant(&mut self, name: &Name, grant: Option<ReferenceGrant>) {
        let changed = self.grants.get(name) != grant.as_ref();
        match grant {
            Some(grant) => self.grants.insert(name.clone(), grant),
            None => self.grants.remove(name),
        };
        self.stale |= changed;
    }

    /// As they are to be kept: see [`Kept::versions`].
    pub(super) fn objects(&self) -> impl Iterator<Item = Object> {
        let routes = self.all.iter().flat_map(|(key, kept)| {
            let told = self.heads.get(key).map(|head| head.told.clone()).unwrap_or_default();
            kept.versions().map(move |own| {
                let parents = gateway::parents(&own.spec, &own.name.namespace).into();
                Object::Route(key.kind, object::Route { own, parents, told: told.clone() })
            })
        });
        routes.chain(self.grants.values().cloned().map(Object::ReferenceGrant))
    }

    pub(super) fn set_mesh(&mut self, name: &Name, mesh: Option<Mesh>) {
        self.unjudged.insert(Key { kind: Kind::Mesh, name: name.clone() });
        match mesh {
            Some(mesh) => self.meshes.insert(name.clone(), mesh),
            None => self.meshes.remove(name),
        };
    }

    /// A namespace came, went, or was enrolled or released.
    pub(super) fn namespace_changed(&mut self) {
        self.stale = true;
        self.unjudged.extend(self.all.keys().cloned());
    }

    /// A policy that targets a route is another one.
    pub(super) fn policy_changed(&mut self) {
        self.stale = true;
    }

    /// The Services that a route sends to.
    pub(super) fn services_of(&self, route: &Key) -> BTreeSet<Name> {
        sent_to(self.all.get(route).and_then(asked).as_deref())
    }

    /// What it says of who takes over from whom ([`Routing::called_for`]).
    pub(super) fn handed_on(&self, route: &Key) -> (Vec<Parent>, BTreeSet<ServicePort>) {
        let Some(asked) = self.all.get(route).and_then(asked) else { return <_>::default() };
        (asked.parents.clone(), asked.backends().cloned().collect())
    }

    /// The Services to which routes send the requests of this one.
    pub(super) fn successors(&self, called: &Name) -> BTreeSet<Name> {
        let routes = self.of.get(called).into_iter().flatten();
        routes.flat_map(|route| self.services_of(route)).collect()
    }

    /// The ports of other Services of the namespace whose requests come to this one by routes that are for all clients, by name.
    pub(super) fn called_for(&self, service: &Name, port: u16, store: &Store) -> BTreeSet<Called> {
        let mut found = BTreeSet::new();
        let routes = self.to.get(service).into_iter().flatten();
        for key in routes.filter(|key| key.name.namespace == service.namespace) {
            let Some(asked) = self.all.get(key).and_then(asked) else { continue };
            if !asked.backends().any(|backend| backend.port == port && service_of(backend) == *service) {
                continue;
            }
            let parents = asked.parents.iter().map(|parent| (parent, parent_name(parent)));
            let others = parents.filter(|(_, name)| name.namespace == service.namespace && name != service);
            found.extend(others.filter_map(|(parent, service)| {
                let ports = &store.services.get(&service)?.ports;
                let port = ports.iter().find(|port| {
                    port.protocol != Protocol::Opaque && is_about(parent, port.port, port.name.as_ref())
                })?;
                Some(Called { service, port: port.name.clone() })
            }));
        }
        found
    }

    /// The names of a route's rules; `None`: there is no such route, or nothing in it is about Services.
    pub(super) fn rules_of(&self, route: &Key) -> Option<Vec<Arc<str>>> {
        let asked = self.all.get(route).and_then(asked)?;
        Some(asked.rules.iter().map(|rule| rule.name.clone()).collect())
    }

    /// The policies that target routes which send to a Service, each with the port of it, in order.
    pub(super) fn policies_to(&self, service: &Name, store: &Store) -> Vec<(u16, Name)> {
        let mut found = BTreeSet::new();
        for route in store.policies.routes().filter(|route| store.is_opted_in(&route.name.namespace)) {
            let asked = self.all.get(route).and_then(asked);
            for rule in asked.iter().flat_map(|asked| &asked.rules) {
                let Some(policy) = store.policies.on_rule(route, &rule.name) else { continue };
                let ports = of_rule(rule).filter(|backend| service_of(backend) == *service);
                found.extend(ports.map(|backend| (backend.port, policy.clone())));
            }
        }
        found.into_iter().collect()
    }

    pub(super) fn routed(&self) -> &Arc<AHashMap<PortKey, Arc<Routed>>> {
        &self.routed
    }

    /// Makes what has to be made anew, after these Services have been. Tells whether anything is other than before.
    pub(super) fn build(&mut self, look: Look<'_>, rebuilt: &AHashSet<Name>) -> bool {
        if self.all.is_empty() && self.routed.is_empty() {
            self.outdated.clear();
            self.findings.clear();
            self.stale = false;
            return false;
        }
        if !self.stale && rebuilt.is_disjoint(&self.involved) {
            return false;
        }
        self.stale = false;
        let ports_of = |name: &Name| -> Vec<(u16, Option<Arc<str>>)> {
            let service = look.store.services.get(name);
            let ports = service.into_iter().flat_map(|service| &service.ports);
            let ports = ports.filter(|port| port.protocol != Protocol::Opaque);
            ports.map(|port| (port.port, port.name.clone())).collect()
        };
        let moved = |name: &&Name| {
            self.compiled.get(*name).map(|compiled| &*compiled.ports) != Some(&*ports_of(name))
        };
        let moved: Vec<_> =
            self.of.keys().filter(|name| rebuilt.contains(*name)).filter(moved).cloned().collect();
        for name in std::mem::take(&mut self.outdated).into_iter().chain(moved) {
            let compiled = self.compile(&name, ports_of(&name));
            if self.of.contains_key(&name) {
                self.compiled.insert(name, compiled);
            } else {
                self.compiled.remove(&name);
            }
        }
        self.involved = self.of.keys().cloned().collect();
        let mut routed = AHashMap::new();
        for (name, compiled) in &self.compiled {
            for (port, groups) in &compiled.by_port {
                for ipv6 in [false, true] {
                    // It is of an enrolled namespace, and has an address of this family.
                    if look.built.get(name).is_none_or(|built| built.part(*port, ipv6).is_none()) {
                        continue;
                    }
                    let group = |(namespace, (kind, routes)): (&Arc<str>, &OfKind)| {
                        let backends = backends(routes)
                            .filter(|backend| self.may_refer((*kind, namespace), name, backend));
                        let backends = backends.filter_map(|backend| {
                            let built = look.built.get(&service_of(backend))?;
                            // The other family is better than none: the agent itself connects to it.
                            let part =
                                built.part(backend.port, ipv6).or_else(|| built.part(backend.port, !ipv6))?;
                            Some((backend.clone(), part.clone()))
                        });
                        let policies = policies_on(routes, *kind, look.store);
                        Group { routes: routes.clone(), backends: backends.collect(), policies }
                    };
                    let mut all: BTreeMap<_, _> =
                        groups.iter().map(|each| (each.0.clone(), group(each))).collect();
                    let producer = all.remove(&name.namespace);
                    let service = ServicePort {
                        namespace: name.namespace.clone(),
                        name: name.name.clone(),
                        port: *port,
                    };
                    routed.insert((service, ipv6), Routed { producer, consumers: all });
                }
            }
        }
        for kept in self.all.values() {
            let rules = asked(kept).into_iter().flat_map(|asked| asked.rules.clone());
            for rule in rules {
                self.involved.extend(of_rule(&rule).chain(mirrors_of(&rule)).map(service_of));
            }
        }
        let findings =
            self.all.iter().filter_map(|(key, kept)| Some((key.clone(), self.find(key, kept, look)?)));
        let findings: BTreeMap<_, _> = findings.collect();
        let other = findings.iter().filter(|(key, finding)| self.findings.get(*key) != Some(*finding));
        self.unjudged.extend(other.map(|(key, _)| key.clone()));
        self.unjudged.extend(self.findings.keys().filter(|key| !findings.contains_key(*key)).cloned());
        self.findings = findings;
        let before = std::mem::take(&mut self.routed);
        let mut changed = before.len() != routed.len();
        let shared = routed.into_iter().map(|(key, routed)| match before.get(&key) {
            Some(before) if before.is_same(&routed) => (key, before.clone()),
            _ => {
                changed = true;
                (key, Arc::new(routed))
            }
        });
        self.routed = Arc::new(shared.collect());
        changed
    }

    fn compile(&self, name: &Name, ports: Vec<(u16, Option<Arc<str>>)>) -> Compiled {
        let mut compiled = Compiled { ports, ..Compiled::default() };
        for (port, port_name) in compiled.ports.clone() {
            let mut groups: BTreeMap<Arc<str>, Vec<Dated<'_>>> = BTreeMap::new();
            for key in self.of.get(name).into_iter().flatten() {
                let Some(kept) = self.all.get(key) else { continue };
                let Some(asked) = asked(kept) else { continue };
                if asked
                    .parents
                    .iter()
                    .any(|parent| is_of(parent, name) && is_about(parent, port, port_name.as_ref()))
                {
                    let created = kept.object.created;
                    groups.entry(key.name.namespace.clone()).or_default().push((key, asked, created));
                }
            }
            for (namespace, all) in groups {
                let grpc = all.iter().any(|(_, asked, _)| asked.kind == routes::Kind::Grpc);
                let kind = if grpc { routes::Kind::Grpc } else { routes::Kind::Http };
                let (hold, yields): (Vec<_>, Vec<_>) =
                    all.into_iter().partition(|(_, asked, _)| asked.kind == kind);
                compiled.yielding.extend(yields.into_iter().map(|(key, ..)| key.clone()));
                let routes = hold.into_iter().map(|(key, asked, created)| routes::Route {
                    age: Age { created, name: key.name.to_string().into() },
                    rules: asked.rules.clone(),
                });
                let routes = Arc::new(Routes::new(routes.collect()));
                compiled.by_port.entry(port).or_default().insert(namespace, (kind, routes));
            }
        }
        compiled
    }

    /// Whether routes of that kind and namespace may send to a Service. To the Service that was called anyway they may.
    fn may_refer(
        &self,
        (kind, namespace): (routes::Kind, &Arc<str>),
        parent: &Name,
        backend: &ServicePort,
    ) -> bool {
        let is_own = backend.namespace == *namespace;
        let is_parent = (&backend.namespace, &backend.name) == (&parent.namespace, &parent.name);
        let mut grants = self.grants.iter().filter(|(name, _)| name.namespace == backend.namespace);
        is_own
            || is_parent
            || grants.any(|(_, ReferenceGrant { grant, .. })| {
                grant.from.iter().any(|(of, from)| (*of, from) == (kind, namespace))
                    && grant.to.iter().any(|to| to.as_ref().is_none_or(|to| *to == backend.name))
            })
    }
}

/// The policies for rules, each by the rule.
fn policies_on(routes: &Routes, kind: routes::Kind, store: &Store) -> AHashMap<RuleId, Arc<str>> {
    if store.policies.routes().next().is_none() {
        return AHashMap::new();
    }
    let kind = match kind {
        routes::Kind::Http => Kind::HttpRoute,
        routes::Kind::Grpc => Kind::GrpcRoute,
    };
    let found = routes.rules().filter_map(|rule| {
        let (namespace, name) = rule.route.split_once('/')?;
        let route = Key { kind, name: Name { namespace: namespace.into(), name: name.into() } };
        let policy = store.policies.on_rule(&route, &rule.name).filter(|_| store.is_opted_in(namespace))?;
        Some((RuleId::of(rule), policy.to_string().into()))
    });
    found.collect()
}

fn asked(kept: &Kept<Option<Arc<Asked>>>) -> Option<Arc<Asked>> {
    kept.asked().cloned().flatten()
}

fn services(asked: Option<&Asked>) -> BTreeSet<Name> {
    asked.into_iter().flat_map(|asked| &asked.parents).map(parent_name).collect()
}

/// The Services that a route sends to.
fn sent_to(asked: Option<&Asked>) -> BTreeSet<Name> {
    asked.into_iter().flat_map(Asked::backends).map(service_of).collect()
}

fn take_out(of: &mut AHashMap<Name, BTreeSet<Key>>, service: &Name, route: &Key) {
    let Some(routes) = of.get_mut(service) else { return };
    routes.remove(route);
    if routes.is_empty() {
        of.remove(service);
    }
}

fn parent_name(parent: &Parent) -> Name {
    Name { namespace: parent.namespace.clone(), name: parent.service.clone() }
}

fn is_of(parent: &Parent, name: &Name) -> bool {
    (&parent.namespace, &parent.service) == (&name.namespace, &name.name)
}

fn is_about(parent: &Parent, port: u16, name: Option<&Arc<str>>) -> bool {
    parent.port.is_none_or(|wanted| wanted == port)
        && parent.section.as_ref().is_none_or(|section| name == Some(section))
}

fn service_of(backend: &ServicePort) -> Name {
    Name { namespace: backend.namespace.clone(), name: backend.name.clone() }
}

/// The Services that a rule sends to.
fn of_rule(rule: &routes::Rule) -> impl Iterator<Item = &ServicePort> {
    let backends = backends_of(rule).into_iter().flat_map(Backends::iter);
    backends.filter_map(|backend| backend.service.as_ref())
}

/// Those that get copies.
fn mirrors_of(rule: &routes::Rule) -> impl Iterator<Item = &ServicePort> {
    let of_backends =
        backends_of(rule).into_iter().flat_map(Backends::iter).flat_map(|backend| &backend.mirrors);
    rule.mirrors.iter().chain(of_backends).filter_map(|mirror| mirror.service.as_ref())
}

fn backends_of(rule: &routes::Rule) -> Option<&Backends> {
    match &rule.action {
        Action::Forward { backends, .. } => Some(backends),
        Action::Redirect(_) => None,
    }
}

fn backends(routes: &Routes) -> impl Iterator<Item = &ServicePort> {
    routes.rules().flat_map(|rule| of_rule(rule).chain(mirrors_of(rule)))
}
