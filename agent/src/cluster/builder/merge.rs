//! From what slices and pods say of an address to one endpoint.

use std::{
    collections::{BTreeMap, btree_map},
    net::SocketAddr,
    num::NonZeroU32,
    sync::Arc,
    time::SystemTime,
};

use super::store::Store;
use crate::{
    cluster::{
        first_request,
        object::{EndpointSlice, Name, Pod, Service, ServicePort, SliceEndpoint},
    },
    govern::{
        endpoint::{Endpoint, Load},
        tag::Tag,
    },
};

/// An endpoint as its slices and its pod describe it together.
#[derive(Clone, Copy)]
pub(super) struct Described<'a> {
    pub(super) slice: &'a SliceEndpoint,
    pod: Option<&'a Pod>,
    tag: Option<&'a Tag>,
    ready: bool,
    serving: bool,
    terminating: bool,
    /// Since when the pod may be called, as it says.
    ready_since: Option<SystemTime>,
    /// When its first request came, as it says.
    first_request: Option<SystemTime>,
    /// It is not Ready because it is not warm: it has the readiness gate, and waits for nothing else.
    pub(super) waits: bool,
    /// The slice names a pod that is not there (yet, or any more).
    pub(super) unknown: bool,
}

/// All endpoints of a port, each address once.
///
/// While an endpoint moves between slices it is in both, perhaps not alike: what is true in one is true. Two pods at
/// one address are an address that has found its next owner: the one in better standing counts.
///
/// `warms`: the port has a warm-up, so that pods are called that only wait to be warm.
pub(super) fn merge<'a>(
    port: &ServicePort,
    ipv6: bool,
    warms: bool,
    slices: &[(&'a EndpointSlice, Vec<Described<'a>>)],
) -> BTreeMap<SocketAddr, Described<'a>> {
    let mut merged = BTreeMap::new();
    for (slice, endpoints) in slices.iter().filter(|(slice, _)| slice.ipv6 == ipv6) {
        for number in slice.ports.iter().filter(|slice| slice.name == port.name).map(|slice| slice.port) {
            for new in endpoints {
                let new = if warms { &new.warming() } else { new };
                match merged.entry(SocketAddr::new(new.slice.ip, number)) {
                    btree_map::Entry::Vacant(entry) => {
                        entry.insert(*new);
                    }
                    btree_map::Entry::Occupied(mut entry) => {
                        let merged = entry.get().with(new);
                        entry.insert(merged);
                    }
                }
            }
        }
    }
    // Without its pod an endpoint's tag is not known: taken for baseline, a pod of a lane whose slice has arrived
    // before it would be sent everybody's requests. Where there is nothing else, better this one than none.
    if merged.values().any(|described| !described.unknown && described.ready && !described.terminating) {
        for described in merged.values_mut().filter(|described| described.unknown) {
            described.ready = false;
        }
    }
    merged
}

impl<'a> Described<'a> {
    pub(super) fn new(slice: &'a SliceEndpoint, service: &Service, store: &'a Store) -> Self {
        let (pod, unknown) = match &slice.pod {
            Some(reference) => {
                let pod = store.pod(reference);
                (pod, pod.is_none())
            }
            None => (store.pods.at(slice.ip).map(|pod| &**pod), false),
        };
        // Evicted or done: nothing runs there any more, whatever a slice says that is behind.
        let finished = pod.is_some_and(|pod| pod.finished);
        let ready_since = pod.and_then(|pod| store.ready_since(pod));
        let waits = store.warm_gates && pod.is_some_and(|pod| pod.warm_gate.is_some());
        Self {
            slice,
            pod,
            tag: pod.and_then(|pod| store.tag_of(pod)),
            ready: !finished && (slice.ready || service.publish_not_ready_addresses),
            serving: !finished && slice.serving,
            terminating: slice.terminating || pod.is_some_and(|pod| pod.terminating),
            ready_since,
            first_request: pod.and_then(|pod| first_request::told(pod, ready_since)),
            waits: waits && ready_since.is_some() && !finished && !slice.ready,
            unknown,
        }
    }

    pub(super) fn node(&self) -> Option<&Arc<str>> {
        self.slice.node.as_ref().or_else(|| self.pod.and_then(|pod| pod.node.as_ref()))
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// When the pod says that it became ready.
    pub(super) fn ready_since(&self) -> Option<SystemTime> {
        self.ready_since
    }

    /// When the pod says that its first request came.
    pub(super) fn first_request(&self) -> Option<SystemTime> {
        self.first_request
    }

    /// The same where a warm-up is what makes the pod Ready: until then Kubernetes says that it is not.
    fn warming(&self) -> Self {
        Self {
            ready: self.ready || self.waits && !self.terminating,
            serving: self.serving || self.waits,
            ..*self
        }
    }

    /// When the pod's containers started.
    pub(super) fn started(&self) -> Option<NonZeroU32> {
        self.pod.and_then(|pod| pod.started)
    }

    pub(super) fn endpoint(
        &self,
        address: SocketAddr,
        other_family: Option<Box<SocketAddr>>,
        ready_since_nanos: Option<i64>,
        load: Arc<Load>,
    ) -> Endpoint {
        let reference = self.slice.pod.as_ref().map(|pod| &pod.name);
        Endpoint {
            address,
            other_family,
            tag: self.tag.cloned(),
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            ready_since_nanos,
            zone: self.slice.zone.clone().or_else(|| self.pod.and_then(|pod| pod.zone.clone())),
            node: self.node().cloned(),
            pod: reference.or_else(|| self.pod.map(|pod| &pod.name)).map(|name| name.name.clone()),
            load,
        }
    }

    /// The UID of the pod, which tells it from another at the same address.
    pub(super) fn pod_uid(&self) -> Option<Arc<str>> {
        let named = self.slice.pod.as_ref().and_then(|pod| pod.uid.clone());
        named.or_else(|| self.pod.and_then(|pod| pod.uid.clone()))
    }

    /// The pod behind it: its name, and its UID as far as it is known.
    pub(super) fn whose(&self) -> Option<(&'a Name, Option<&'a Arc<str>>)> {
        let named = self.slice.pod.as_ref().map(|pod| (&pod.name, pod.uid.as_ref()));
        named.or_else(|| self.pod.map(|pod| (&pod.name, pod.uid.as_ref())))
    }

    fn with(&self, other: &Self) -> Self {
        let same = match (self.whose(), other.whose()) {
            (Some((name, uid)), Some((name2, uid2))) => name == name2 && may_be_same(uid, uid2),
            _ => true,
        };
        let standing = |described: &Self| (!described.unknown, !described.terminating, described.ready);
        let better = if same {
            // The more is known of it.
            if self.pod.is_some() || other.pod.is_none() { self } else { other }
        } else if standing(other) > standing(self) {
            other
        } else {
            self
        };
        if !same {
            return *better;
        }
        Self {
            ready: self.ready || other.ready,
            serving: self.serving || other.serving,
            terminating: self.terminating || other.terminating,
            waits: self.waits && other.waits,
            unknown: self.unknown && other.unknown,
            ..*better
        }
    }
}

/// Whether two pods of one name are the same one, as far as their UIDs tell.
pub(super) fn may_be_same(one: Option<&Arc<str>>, other: Option<&Arc<str>>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}
