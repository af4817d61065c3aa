//! Taking objects in: what a change of one makes worth building or judging anew.

use std::{net::IpAddr, sync::Arc};

use super::{Builder, policies};
use crate::cluster::{
    object::{Key, Kind, Name, Object, Pod, Route, Service},
    source::Sighting,
};

impl Builder {
    pub(super) fn set(&mut self, Sighting { object, mut problems }: Sighting) {
        let key = object.key();
        match object {
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                let propagation = namespace.propagation;
                let said = (namespace.access_log, namespace.reclaim, namespace.endpoints);
                let before = self.store.namespaces.insert(name.clone(), namespace);
                let now = self.store.is_opted_in(&name);
                if before.as_ref().and_then(|before| before.propagation) != propagation {
                    self.propagation_changed(&name);
                }
                let said_before = before.as_ref().map_or((None, None, None), |before| {
                    (before.access_log, before.reclaim, before.endpoints)
                });
                if before.is_none_or(|before| (before.capture == Some(true)) != now) {
                    self.namespace_changed(&name);
                } else if said != said_before {
                    let services = self.store.services.keys().filter(|service| service.namespace == name);
                    self.dirty.extend(services.cloned());
                }
            }
            Object::Service(service) => self.set_service(&key.name, Some(service)),
            Object::EndpointSlice(slice) => {
                let services = self.store.set_slice(&key.name, Some(slice));
                self.dirty.extend(services);
            }
            Object::Pod(mut pod) => {
                self.leave_out_of(&mut pod);
                self.set_pod(&key.name, Some(pod));
            }
            Object::TrafficPolicy(mut policy) => {
                problems.extend(policies::keep_tag(&mut policy, &self.options.tag_headers));
                self.set_policy(&key.name, Some(policy));
            }
            Object::TrafficLane(lane) => self.set_lane(&key.name, Some(lane)),
            Object::AccessPolicy(policy) => self.set_access(&key.name, Some(policy)),
            Object::Route(_, route) => self.set_route(&key, Some(route)),
            Object::ReferenceGrant(grant) => self.routing.set_grant(&key.name, Some(grant)),
            Object::Mesh(mesh) => self.routing.set_mesh(&key.name, Some(mesh)),
        }
        if problems.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(key, problems);
        }
    }

    pub(super) fn unset(&mut self, key: &Key) {
        self.problems.remove(key);
        match key.kind {
            Kind::Namespace => {
                if self.store.namespaces.remove(&key.name.name).is_some() {
                    self.namespace_changed(&key.name.name);
                }
            }
            Kind::Service => self.set_service(&key.name, None),
            Kind::EndpointSlice => {
                let services = self.store.set_slice(&key.name, None);
                self.dirty.extend(services);
            }
            Kind::Pod => self.set_pod(&key.name, None),
            Kind::TrafficPolicy => self.set_policy(&key.name, None),
            Kind::TrafficLane => self.set_lane(&key.name, None),
            Kind::AccessPolicy => self.set_access(&key.name, None),
            Kind::HttpRoute | Kind::GrpcRoute => self.set_route(key, None),
            Kind::ReferenceGrant => self.routing.set_grant(&key.name, None),
            Kind::Mesh => self.routing.set_mesh(&key.name, None),
        }
    }

    pub(super) fn names(&self, kind: Kind) -> Vec<Name> {
        match kind {
            Kind::Namespace => {
                let names = self.store.namespaces.keys();
                names.map(|name| Name { namespace: "".into(), name: name.clone() }).collect()
            }
            Kind::Service => self.store.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.store.slices.keys().cloned().collect(),
            Kind::Pod => self.store.pods.names().cloned().collect(),
            Kind::TrafficPolicy => self.store.policies.names().cloned().collect(),
            Kind::TrafficLane => self.store.lanes.names().cloned().collect(),
            Kind::AccessPolicy => self.store.accesses.names().cloned().collect(),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::ReferenceGrant | Kind::Mesh => self.routing.names(kind),
        }
    }

    /// It came, went, or was opted in or out, which concerns all that is in it.
    fn namespace_changed(&mut self, namespace: &Arc<str>) {
        self.routing.namespace_changed();
        self.keys.changed = true;
        self.gates_changed = true;
        let services = self.store.services.keys().filter(|name| name.namespace == *namespace);
        self.dirty.extend(services.cloned());
        let pods = self.store.pods.names().filter(|name| name.namespace == *namespace);
        for name in pods.cloned().collect::<Vec<_>>() {
            self.build_workload(&name);
            self.name_clients(self.store.pods.get(&name).into_iter().flat_map(|pod| &pod.ips));
        }
        let (policies, lanes) = (self.store.policies.names(), self.store.lanes.names());
        let own = policies
            .map(|name| (Kind::TrafficPolicy, name))
            .chain(lanes.map(|name| (Kind::TrafficLane, name)))
            .chain(self.store.accesses.names().map(|name| (Kind::AccessPolicy, name)));
        let here = own.filter(|(_, name)| name.namespace == *namespace);
        self.unjudged.extend(here.map(|(kind, name)| Key { kind, name: name.clone() }));
    }

    /// Its pods may ask for something else now at their ports.
    fn propagation_changed(&mut self, namespace: &Arc<str>) {
        let pods = self.store.pods.names().filter(|name| name.namespace == *namespace);
        for name in pods.cloned().collect::<Vec<_>>() {
            self.pod_changed(&name, &[]);
        }
    }

    fn set_service(&mut self, name: &Name, service: Option<Service>) {
        if self.store.services.get(name) == service.as_ref() {
            return;
        }
        match service {
            Some(service) => self.store.services.insert(name.clone(), service),
            None => self.store.services.remove(name),
        };
        self.dirty.insert(name.clone());
        self.dirty.extend(self.routing.successors(name));
        let policies = self.store.policies.of(name).map(|name| (Kind::TrafficPolicy, name));
        let lanes = self.store.lanes.targeting(name).map(|name| (Kind::TrafficLane, name));
        let accesses = self.store.accesses.of(name).map(|name| (Kind::AccessPolicy, name));
        let own = policies.chain(lanes).chain(accesses);
        self.unjudged.extend(own.map(|(kind, name)| Key { kind, name: name.clone() }));
    }

    fn set_route(&mut self, key: &Key, route: Option<Route>) {
        let policies: Vec<_> = self.store.policies.of_route(key).cloned().collect();
        let (before, services) = (self.routing.handed_on(key), self.routing.services_of(key));
        self.routing.set(key, route);
        // Weights change all the time, and nothing of a Service with them.
        if policies.is_empty() && self.routing.handed_on(key) == before {
            return;
        }
        self.dirty.extend(services);
        self.dirty.extend(self.routing.services_of(key));
        self.unjudged.extend(policies.into_iter().map(|name| Key { kind: Kind::TrafficPolicy, name }));
    }

    fn set_pod(&mut self, name: &Name, pod: Option<Arc<Pod>>) {
        if self.store.pods.get(name) == pod.as_ref() {
            return;
        }
        let before = self.store.set_pod(name, pod);
        self.note_gate(name);
        self.select(name);
        self.pod_changed(name, before.as_ref().map(|pod| &*pod.ips).unwrap_or_default());
    }

    /// What the agent of its own node alone has use for: in a large cluster nearly all pods are of others, and each would be twice
    /// as large with it.
    fn leave_out_of(&self, pod: &mut Arc<Pod>) {
        let elsewhere = self.options.node.is_some() && pod.node.is_some() && pod.node != self.options.node;
        if elsewhere && pod.for_node.is_some() {
            // Nobody else has it yet, as a rule.
            Arc::make_mut(pod).for_node = None;
        }
    }

    /// What was built from a pod is built anew, also from the addresses that it had.
    pub(super) fn pod_changed(&mut self, name: &Name, had: &[IpAddr]) {
        self.dirty.extend(self.by_pod.get(name).into_iter().flatten().map(|service| Name::clone(service)));
        let has = self.store.pods.get(name).map(|pod| &*pod.ips).unwrap_or_default();
        for ip in had.iter().chain(has) {
            self.dirty
                .extend(self.by_address.get(ip).into_iter().flatten().map(|service| Name::clone(service)));
        }
        self.name_clients(had.iter().chain(has));
        self.build_workload(name);
    }
}
