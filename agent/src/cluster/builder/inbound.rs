//! From the Services for whose endpoints policies ask something to the ports of this node's pods that are theirs; and to those of
//! pods that ask for what comes to them to be read (`sluice.dev/propagation: trace` or `thread`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use ahash::AHashMap;

use super::{Builder, service::Built};
use crate::{
    api::TagPropagation,
    cluster::{
        model::{Destination, Inbound, InboundPort, Protocol, Service, Start},
        object::{Name, Pod},
    },
    govern::{endpoint::Endpoint, governor::Governor},
};

/// What was found last.
#[derive(Default)]
pub(super) struct Guards {
    pub(super) ports: Arc<Inbound>,
    /// The Services that it was made from: all that have to do with it.
    services: BTreeSet<Name>,
    /// Applications, which go on being the same ones.
    endpoints: AHashMap<SocketAddr, Arc<Endpoint>>,
    /// The limits of each port, whichever of its pod's addresses is called.
    limits: AHashMap<PodPort, Arc<Governor>>,
}

/// A namespace, a pod and a port.
type PodPort = (Arc<str>, Arc<str>, u16);

impl Builder {
    /// Looks again, if a Service that has to do with it was built anew. Tells whether anything changed.
    pub(super) fn guard<'n>(&mut self, built: impl Iterator<Item = &'n Name>, now_nanos: u64) -> bool {
        let mut services = self.guards.services.clone();
        let mut concerned = false;
        for name in built {
            let here = self.built.get(name).into_iter().flat_map(Built::services);
            let concerns = here.into_iter().any(|service| {
                let mut endpoints = service.endpoints.iter();
                let starts = service.starts_on_first_request();
                service.asks_at_endpoints()
                    || endpoints.any(|one| self.is_read(service, one) || starts && self.is_here(one))
            });
            concerned |= if concerns {
                services.insert(name.clone());
                true
            } else {
                services.remove(name)
            };
        }
        if !concerned {
            return false;
        }
        let mut ports: BTreeMap<SocketAddr, Vec<Arc<Service>>> = BTreeMap::new();
        let mut pods: AHashMap<SocketAddr, PodPort> = AHashMap::new();
        let mut starts: AHashMap<SocketAddr, Vec<Start>> = AHashMap::new();
        for service in services.iter().filter_map(|name| self.built.get(name)).flat_map(Built::services) {
            let guarded = service.asks_at_endpoints();
            let is_started = service.starts_on_first_request();
            for endpoint in &service.endpoints {
                if is_started && self.is_here(endpoint) {
                    let start = Start { service: service.clone(), endpoint: endpoint.clone() };
                    starts.entry(endpoint.address).or_default().push(start);
                }
                if let Some(pod) = endpoint.pod.clone()
                    && self.is_here(endpoint)
                    && (guarded || self.is_read(service, endpoint))
                {
                    pods.insert(endpoint.address, (service.namespace.clone(), pod, endpoint.address.port()));
                    ports.entry(endpoint.address).or_default().push(service.clone());
                }
            }
        }
        self.guards.endpoints.retain(|address, _| ports.contains_key(address));
        let mut inbound = Inbound::default();
        let before = std::mem::take(&mut self.guards.limits);
        for (address, mut guards) in ports {
            guards.sort_by(|a, b| (&a.namespace, &a.name, a.port).cmp(&(&b.namespace, &b.name, b.port)));
            let application = self.guards.endpoints.entry(address).or_insert_with(|| {
                let endpoint = Endpoint::new(address);
                Arc::new(Endpoint { ready: true, serving: true, ..endpoint })
            });
            // Of several that limit what comes to the port the first has it.
            let limiting = guards.iter().find(|guard| guard.governor.policy().limits_endpoints());
            let Some(first) = limiting.or(guards.first()).cloned() else { continue };
            // It is looked at as closely as one of them asks for.
            let protocols = guards.iter().map(|guard| guard.protocol);
            let protocol = protocols.min_by_key(|protocol| match protocol {
                Protocol::Http | Protocol::Http2 => 0,
                Protocol::Detect => 1,
                Protocol::Opaque => 2,
            });
            let mut governor = Arc::default();
            if let (Some(limiting), Some(port)) = (limiting, pods.remove(&address)) {
                let policy = limiting.governor.policy();
                let of_pod = self.guards.limits.get(&port).or_else(|| before.get(&port));
                governor = Governor::at_endpoint(of_pod, policy, now_nanos);
                self.guards.limits.insert(port, governor.clone());
            }
            let service = Service {
                protocol: protocol.unwrap_or_default(),
                port_name: first.port_name.clone(),
                governor,
                ..Service::new(&first.namespace, &first.name, first.port)
            };
            let service = Arc::new(service.with_endpoints(vec![application.clone()]));
            let destination = Destination { service, pinned: Some(application.clone()) };
            guards.retain(|guard| guard.asks_at_endpoints());
            let starts = starts.remove(&address).unwrap_or_default();
            inbound.insert(address, InboundPort { destination, guards, starts });
        }
        self.guards.services = services;
        self.guards.ports = Arc::new(inbound);
        true
    }

    /// It is of a pod of this node. Outside of the cluster nobody is steered.
    pub(super) fn is_here(&self, endpoint: &Endpoint) -> bool {
        let elsewhere = self.options.node.is_some() && endpoint.node != self.options.node;
        !elsewhere && endpoint.pod.is_some()
    }

    /// Its pod asks for requests that come to it to be read; of what is no HTTP nothing can be.
    fn is_read(&self, service: &Service, endpoint: &Endpoint) -> bool {
        if service.protocol == Protocol::Opaque || !self.is_here(endpoint) {
            return false;
        }
        let asks = |pod: &Pod| {
            self.store.is_opted_in(&pod.name.namespace)
                && self.store.propagation(pod) >= TagPropagation::Trace
        };
        self.store.pods.at(endpoint.address.ip()).is_some_and(|pod| asks(pod))
    }

    /// Says who has these addresses now.
    pub(super) fn name_clients<'i>(&self, addresses: impl Iterator<Item = &'i std::net::IpAddr>) {
        for address in addresses {
            let pod = self.store.pods.at(*address).filter(|pod| self.store.is_opted_in(&pod.name.namespace));
            self.clients.set(*address, pod.cloned());
        }
    }
}
