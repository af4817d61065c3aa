//! From routes and grants to what holds for each port of a Service.
//!
//! A route whose parent is a Service of its own namespace is a producer's: it holds for whoever calls the Service. One of
//! another namespace is a consumer's: it holds for clients in that namespace only, and for these in the place of the
//! producer's. Of the two kinds the more special one has a port: where there is a GRPCRoute, HTTPRoutes hold for nothing there.
//! <https://gateway-api.sigs.k8s.io/geps/gep-1294/>
//!
//! What is compiled stays until a route changes that it was made of; which endpoints a backend has at the moment is looked up
//! anew when that Service has been built anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ahash::{AHashMap, AHashSet};

use super::{kept::Kept, service::Built, store::Store};
use crate::{
    api::gateway::{Asked, Parent},
    cluster::{
        model::{Group, PortKey, Protocol, Routed},
        object::{self, Frontend, Key, Kind, Name, Object, ReferenceGrant},
        problem::Problem,
    },
    govern::routes::{
        self, Action, Age, Routes,
        backends::{Backends, ServicePort},
    },
};

#[derive(Default)]
pub(super) struct Routing {
    all: AHashMap<Key, Kept<Option<Arc<Asked>>>>,
    grants: AHashMap<Name, ReferenceGrant>,
    /// By the Service that is their parent.
    of: AHashMap<Name, BTreeSet<Key>>,
    compiled: BTreeMap<Name, Compiled>,
    /// Services whose routes are to be compiled anew.
    outdated: BTreeSet<Name>,
    /// Backends, and parents: what has to be looked up anew if one of these is built anew.
    involved: AHashSet<Name>,
    /// A grant or a route has changed.
    stale: bool,
    routed: Arc<AHashMap<PortKey, Arc<Routed>>>,
    findings: BTreeMap<Key, Finding>,
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

/// What became of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// Of each parent that is a Service of an enrolled namespace: what is in its way.
    pub(super) parents: Vec<(Parent, Result<(), Why>)>,
    /// The first backend that cannot be sent to.
    pub(super) unresolved: Option<Why>,
}

/// A reason, as the specification names it, and what there is to say.
pub(super) type Why = (&'static str, String);

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
            _ => self.all.keys().filter(|key| key.kind == kind).map(|key| key.name.clone()).collect(),
        }
    }

    /// Puts a route in, or takes it out.
    pub(super) fn set(&mut self, key: &Key, route: Option<object::Route>) {
        if self.all.get(key).map(|kept| &kept.object) == route.as_ref() {
            return;
        }
        let before = self.all.remove(key);
        let was = before.as_ref().and_then(asked);
        for parent in services(was.as_deref()) {
            if let Some(keys) = self.of.get_mut(&parent) {
                keys.remove(key);
                if keys.is_empty() {
                    self.of.remove(&parent);
                }
            }
            self.outdated.insert(parent);
        }
        self.stale = true;
        let Some(route) = route else { return };
        let after = Kept::new(route, before);
        for parent in services(asked(&after).as_deref()) {
            self.of.entry(parent.clone()).or_default().insert(key.clone());
            self.outdated.insert(parent);
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
        let routes = self
            .all
            .iter()
            .flat_map(|(key, kept)| kept.versions().map(|route| Object::Route(key.kind, route)));
        routes.chain(self.grants.values().cloned().map(Object::ReferenceGrant))
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
                        Group { routes: routes.clone(), backends: backends.collect() }
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
                self.involved.extend(of_rule(&rule).map(service_of));
            }
        }
        let findings =
            self.all.iter().filter_map(|(key, kept)| Some((key.clone(), self.find(key, kept, look)?)));
        self.findings = findings.collect();
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

    fn find(&self, key: &Key, kept: &Kept<Option<Arc<Asked>>>, look: Look<'_>) -> Option<Finding> {
        let asked = asked(kept)?;
        let ours = asked.parents.iter().filter(|parent| look.store.is_opted_in(&parent.namespace));
        let parents: Vec<_> =
            ours.map(|parent| (parent.clone(), self.find_parent(key, parent, look))).collect();
        if parents.is_empty() {
            return None;
        }
        let backends = asked.rules.iter().flat_map(|rule| of_rule(rule));
        let missing = backends.filter_map(|backend| {
            let allowed = |parent: &Parent| {
                self.may_refer((asked.kind, &key.name.namespace), &parent_name(parent), backend)
            };
            if !asked.parents.iter().all(allowed) {
                let message = format!(
                    "Service {backend} is in another namespace, and no ReferenceGrant there allows {} of namespace {} to \
                     refer to it: its part of the requests gets 500",
                    asked.kind.as_str(),
                    key.name.namespace
                );
                return Some(("RefNotPermitted", message));
            }
            let built = look.built.get(&service_of(backend));
            let there = built.is_some_and(|built| [false, true].iter().any(|v6| built.part(backend.port, *v6).is_some()));
            (!there).then(|| {
                let why = if !look.store.is_opted_in(&backend.namespace) {
                    format!("namespace {} is not enrolled", backend.namespace)
                } else if built.is_some() {
                    format!("it has no port {}", backend.port)
                } else {
                    "there is no such Service with an address".to_owned()
                };
                ("BackendNotFound", format!("Service {backend}: {why}: its part of the requests gets 500"))
            })
        });
        let strangers = asked.strangers.iter().map(|error| ("InvalidKind", error.to_string()));
        let unresolved = strangers.chain(missing).next();
        Some(Finding { parents, unresolved })
    }

    fn find_parent(&self, key: &Key, parent: &Parent, look: Look<'_>) -> Result<(), Why> {
        let name = parent_name(parent);
        let Some(service) = look.store.services.get(&name) else {
            return Err(("NoMatchingParent", format!("there is no Service {name}")));
        };
        match service.frontend {
            Frontend::ClusterIps(_) => {}
            Frontend::Headless => {
                let message = format!(
                    "Service {name} is headless: its clients choose an endpoint themselves, so no route holds for them"
                );
                return Err(("UnsupportedValue", message));
            }
            Frontend::None => {
                return Err(("UnsupportedValue", format!("Service {name} has no address of its own")));
            }
        }
        let mut ports = service.ports.iter();
        if !ports.any(|port| is_about(parent, port.port, port.name.as_ref())) {
            let ports: Vec<_> = service
                .ports
                .iter()
                .map(|port| match &port.name {
                    Some(name) => format!("{} ({name})", port.port),
                    None => port.port.to_string(),
                })
                .collect();
            return Err((
                "NoMatchingParent",
                format!("Service {name} has no such port: it has {}", ports.join(", ")),
            ));
        }
        let mut of_parent =
            service.ports.iter().filter(|port| is_about(parent, port.port, port.name.as_ref()));
        if of_parent.all(|port| port.protocol == Protocol::Opaque) {
            let message = format!(
                "Service {name} is declared to speak another protocol than HTTP there, so no route holds for it"
            );
            return Err(("UnsupportedValue", message));
        }
        if self.compiled.get(&name).is_some_and(|compiled| compiled.yielding.contains(key)) {
            let message =
                format!("Service {name} has a GRPCRoute for the same port, which is the more special kind");
            return Err(("Conflicted", message));
        }
        Ok(())
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.findings.iter().flat_map(|(key, finding)| {
            let parents = finding.parents.iter().filter_map(|(_, found)| found.as_ref().err());
            let all = parents.map(|why| (why, "spec.parentRefs"));
            let all = all.chain(finding.unresolved.iter().map(|why| (why, "spec.rules")));
            all.map(|((reason, message), field)| {
                Problem::of(key.clone(), format!("{reason}: {message}")).at(field)
            })
        })
    }
}

fn asked(kept: &Kept<Option<Arc<Asked>>>) -> Option<Arc<Asked>> {
    kept.asked().cloned().flatten()
}

fn services(asked: Option<&Asked>) -> BTreeSet<Name> {
    asked.into_iter().flat_map(|asked| &asked.parents).map(parent_name).collect()
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

fn of_rule(rule: &routes::Rule) -> impl Iterator<Item = &ServicePort> {
    let backends = match &rule.action {
        Action::Forward { backends, .. } => Some(backends),
        Action::Redirect(_) => None,
    };
    backends.into_iter().flat_map(Backends::iter).filter_map(|backend| backend.service.as_ref())
}

fn backends(routes: &Routes) -> impl Iterator<Item = &ServicePort> {
    routes.rules().flat_map(|rule| of_rule(rule))
}
