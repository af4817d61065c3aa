//! Pods.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use crate::{
    api::TagPropagation,
    govern::{
        access::probe::Probe,
        caller::{Caller, Labels},
        tag::Tag,
    },
};

/// Below this no agent listens in a pod: ports there are applications' own, whether or not they declare them.
pub const LOWEST_LISTENER_PORT: u16 = 20_000;

/// A pod, as caller or as endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub uid: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// What it is a part of, for rules about callers: the name of its Deployment, StatefulSet or the like, or its own.
    pub workload: Arc<str>,
    pub labels: Labels,
    pub tag: Option<Tag>,
    pub ips: Vec<IpAddr>,
    pub node: Option<Arc<str>>,
    pub zone: Option<Arc<str>>,
    pub host_network: bool,
    /// The outcome of the namespace's opt-in and the pod's override (false for host-network pods).
    pub capture: bool,
    /// By what its own requests get the tag of those that they are sent for (`sluice.dev/propagation`).
    pub propagation: TagPropagation,
    /// Ports that it declares: the agent listens at none of them.
    pub ports: Box<[u16]>,
    /// What the kubelet probes it by.
    pub probes: Arc<[Probe]>,
    /// The mesh whose proxy takes the pod's connections already: it is left alone then, `capture` or not.
    pub own_proxy: Option<&'static str>,
    /// It has a deletionTimestamp.
    pub terminating: bool,
    /// Its phase is Succeeded or Failed.
    pub finished: bool,
}

impl Workload {
    /// The address that tells it from other pods, where one is needed; 0.0.0.0 while it has none.
    pub fn address(&self) -> IpAddr {
        self.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// The pod as rules see it that are about callers.
    pub fn caller(&self) -> Caller<'_> {
        Caller { namespace: &self.namespace, workload: &self.workload, labels: &self.labels }
    }

    /// Whether what comes to it is read, so that its own requests get the tag of those that they are sent for.
    pub fn is_read(&self) -> bool {
        self.propagation >= TagPropagation::Trace
    }

    /// Whether its threads are followed.
    pub fn follows_threads(&self) -> bool {
        self.propagation >= TagPropagation::Thread
    }

    /// A pod that runs, is captured, and of which nothing else is known.
    pub fn new(uid: &str, namespace: &str, name: &str) -> Self {
        Self {
            uid: uid.into(),
            namespace: namespace.into(),
            name: name.into(),
            workload: name.into(),
            labels: Labels::default(),
            tag: None,
            ips: Vec::new(),
            node: None,
            zone: None,
            host_network: false,
            capture: true,
            propagation: TagPropagation::default(),
            ports: Box::default(),
            probes: Arc::default(),
            own_proxy: None,
            terminating: false,
            finished: false,
        }
    }
}
