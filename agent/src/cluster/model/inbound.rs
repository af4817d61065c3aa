//! Ports of this node's pods for which policies ask something at the endpoint.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ahash::AHashMap;

use super::service::{Destination, Service};
use crate::govern::endpoint::Endpoint;

/// Ports of this node's pods for which policies ask something at the endpoint.
#[derive(Debug, Default)]
pub struct Inbound(AHashMap<IpAddr, BTreeMap<u16, Arc<InboundPort>>>);

/// A port of a pod.
#[derive(Debug)]
pub struct InboundPort {
    /// The application, as the only endpoint of a Service that asks for nothing but the limits at the endpoint: those of the first
    /// of its guards that has any, whose name it has.
    pub destination: Destination,
    /// The Services that have it as an endpoint and a policy that asks for something there. What each says about who may call
    /// holds. Empty if the pod only asks for what comes to it to be read ([`Workload::is_read`](super::Workload::is_read)).
    pub guards: Vec<Arc<Service>>,
    /// Where is noted that the first request has come, for warm-ups that begin with it.
    pub starts: Vec<Start>,
}

/// The port as an endpoint of a Service whose warm-up begins with the first request.
#[derive(Clone, Debug)]
pub struct Start {
    pub service: Arc<Service>,
    pub endpoint: Arc<Endpoint>,
}

impl InboundPort {
    /// How long connections are refused there while no agent attends it; `None`: they go direct.
    pub fn closed_unattended(&self) -> Option<Duration> {
        let policies = self.guards.iter().filter_map(|guard| guard.access.as_ref());
        policies.filter_map(|access| access.closed_unattended()).max()
    }
}

impl Inbound {
    pub(in crate::cluster) fn insert(&mut self, address: SocketAddr, port: InboundPort) {
        self.0.entry(address.ip()).or_default().insert(address.port(), Arc::new(port));
    }

    /// What is asked for at this address.
    pub fn port(&self, address: SocketAddr) -> Option<&Arc<InboundPort>> {
        self.0.get(&address.ip())?.get(&address.port())
    }

    /// The ports of a pod with this address.
    pub fn ports(&self, ip: IpAddr) -> Vec<u16> {
        self.0.get(&ip).into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Arc<InboundPort>)> {
        let ports = |(ip, ports): (&IpAddr, _)| {
            let ip = *ip;
            let ports: &BTreeMap<u16, Arc<InboundPort>> = ports;
            ports.iter().map(move |(port, it)| (SocketAddr::new(ip, *port), it))
        };
        self.0.iter().flat_map(ports)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
