//! The routes of Services' ports, as they hold for each kind of client.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use ahash::AHashMap;

use super::service::{Destination, Service};
use crate::govern::routes::{Routes, Rule, backends::ServicePort};

/// A port of a Service, and whether it is meant in the family of IPv6.
pub type PortKey = (ServicePort, bool);

/// The routes of a port, for each kind of client.
#[derive(Debug)]
pub struct Routed {
    /// Of the Service's own namespace: for all clients.
    pub producer: Option<Group>,
    /// For clients in the namespace, in the place of the producer's.
    pub consumers: BTreeMap<Arc<str>, Group>,
}

/// Routes, and the Services that they may send to. What is not in it cannot be sent to.
#[derive(Debug)]
pub struct Group {
    pub routes: Arc<Routes>,
    pub backends: BTreeMap<ServicePort, Arc<Service>>,
    /// The policies that target rules of them, or their routes, as `shop/slow`.
    pub policies: AHashMap<RuleId, Arc<str>>,
}

/// A rule of [`Group::routes`], told from others by where it is: as long as the group is there, so is the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(usize);

impl RuleId {
    pub fn of(rule: &Arc<Rule>) -> Self {
        Self(Arc::as_ptr(rule).addr())
    }
}

impl Routed {
    /// What holds for clients in this namespace.
    pub fn of(&self, namespace: &str) -> Option<&Group> {
        self.consumers.get(namespace).or(self.producer.as_ref())
    }

    /// Those for all clients, and those for the clients of single namespaces.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.producer.iter().chain(self.consumers.values())
    }

    pub(in crate::cluster) fn is_same(&self, other: &Self) -> bool {
        self.identities().eq(other.identities())
    }

    fn identities(&self) -> impl Iterator<Item = (Option<&Arc<str>>, Identity<'_>)> {
        let consumers = self.consumers.iter().map(|(namespace, group)| (Some(namespace), group.identity()));
        self.producer.iter().map(|group| (None, group.identity())).chain(consumers)
    }
}

/// What makes a group the same as another.
type Identity<'g> = (*const Routes, Vec<*const Service>, &'g AHashMap<RuleId, Arc<str>>);

impl Group {
    fn identity(&self) -> Identity<'_> {
        let backends = self.backends.values().map(Arc::as_ptr).collect();
        (Arc::as_ptr(&self.routes), backends, &self.policies)
    }

    /// Whether any of the Services has endpoints of a lane.
    pub fn has_lanes(&self) -> bool {
        self.backends.values().any(|service| !service.lanes.is_empty())
    }

    /// The policy that targets a rule, or its route.
    pub fn policy_on(&self, rule: &Arc<Rule>) -> Option<&Arc<str>> {
        // Mostly there is none at all.
        if self.policies.is_empty() { None } else { self.policies.get(&RuleId::of(rule)) }
    }
}

/// See [`Snapshot::routed`](super::Snapshot::routed).
pub fn routed<'r>(
    routes: &'r AHashMap<PortKey, Arc<Routed>>,
    address: SocketAddr,
    destination: &Destination,
) -> Option<&'r Arc<Routed>> {
    if routes.is_empty() || destination.pinned.is_some() {
        return None;
    }
    let service = &destination.service;
    let (namespace, name) = (service.namespace.clone(), service.name.clone());
    routes.get(&(ServicePort { namespace, name, port: service.port }, address.is_ipv6()))
}
