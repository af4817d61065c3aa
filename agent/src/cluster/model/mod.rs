//! The model that consumers read: immutable snapshots of the opted-in part of the cluster.
//!
//! A consumer loads a [`Snapshot`] once per event and holds no lock. What lives longer than a snapshot
//! (an endpoint's load) hangs on it by `Arc`.

mod inbound;
mod routed;
mod service;
mod workload;

use std::{net::SocketAddr, sync::Arc};

use ahash::{AHashMap, AHashSet};
use arc_swap::ArcSwap;

use super::{clients::Clients, shared::SharedMap};
use crate::govern::routes::Rule;

pub use inbound::{Inbound, InboundPort, Start};
pub use routed::{Group, PortKey, Routed, RuleId, routed};
pub use service::{Destination, Protocol, Service};
pub use workload::{LOWEST_LISTENER_PORT, Workload};

/// The current snapshot. Readers on the data path use `arc_swap::Cache`.
pub type Current = Arc<ArcSwap<Snapshot>>;

/// Everything the agent knows about the opted-in part of the cluster, at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts snapshots; 0 is "no source has answered yet".
    pub generation: u64,
    /// Governed destinations, by the address that a caller dials (IPv4-mapped addresses are normalised to IPv4 by the caller).
    pub destinations: SharedMap<SocketAddr, Destination>,
    /// Pods of opted-in namespaces, by the UID that their control group is named after: those of this agent's node, or
    /// all where its name is not known.
    pub pods: SharedMap<Arc<str>, Arc<Workload>>,
    /// What routes say of ports of Services.
    pub routes: Arc<AHashMap<PortKey, Arc<Routed>>>,
    /// What is asked for at the endpoints of this node.
    pub inbound: Arc<Inbound>,
    /// Pods by their addresses; the same ones in all snapshots.
    pub clients: Arc<Clients>,
}

impl Snapshot {
    /// The routes of what stands behind a governed address. Whoever dialled an endpoint of a headless Service has chosen
    /// already.
    pub fn routed(&self, address: SocketAddr, destination: &Destination) -> Option<&Arc<Routed>> {
        routed(&self.routes, address, destination)
    }

    /// Whether new connections to this address are to come to the agent: also those to a Service without endpoints, if routes
    /// send its requests elsewhere.
    pub fn is_redirected(&self, address: SocketAddr, destination: &Destination) -> bool {
        destination.is_redirected() || self.routed(address, destination).is_some()
    }

    /// Every rule of every route, each once.
    pub fn route_rules(&self) -> Vec<&Arc<Rule>> {
        let mut seen = AHashSet::new();
        let groups = self.routes.values().flat_map(|routed| routed.groups());
        let rules = groups.flat_map(|group| group.routes.rules());
        rules.filter(|rule| seen.insert(RuleId::of(rule))).collect()
    }

    /// What is governed at this address, which may be IPv4-mapped (`::ffff:10.96.7.3`).
    pub fn destination(&self, address: SocketAddr) -> Option<&Destination> {
        self.destinations.get(&SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}
