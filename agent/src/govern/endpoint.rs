//! An endpoint as the decisions see it: what the cluster says of it, and the load this agent has put on it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64},
    },
};

use super::tag::Tag;

/// One address of a service. Immutable: a change in the cluster makes a new `Endpoint` that shares the [`Load`].
#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The tag of the workload behind it; `None` is baseline.
    pub tag: Option<Tag>,
    /// `conditions.ready`, or `publishNotReadyAddresses`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`, or the pod has a deletionTimestamp.
    pub terminating: bool,
    pub zone: Option<Arc<str>>,
    pub node: Option<Arc<str>>,
    /// The pod's name, where a pod stands behind the address.
    pub pod: Option<Arc<str>>,
    pub load: Arc<Load>,
}

impl Endpoint {
    /// May new requests be sent to it.
    pub fn is_usable(&self) -> bool {
        self.ready && !self.terminating
    }
}

/// What this agent has seen of an endpoint. Outlives snapshots; shared by all workers, hence atomics.
#[derive(Debug, Default)]
pub struct Load {
    /// Requests (or tunnelled connections) in flight.
    pub in_flight: AtomicU32,
    /// Peak-EWMA of the latency, in nanoseconds; 0 while there is no sample.
    pub ewma_nanos: AtomicU64,
    /// When `ewma_nanos` was last written, in nanoseconds of the caller's monotonic clock.
    pub sampled_at_nanos: AtomicU64,
}
