//! A port of a Service in one family: its endpoints, and what of them outlives a change.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::{
    doubt::{self, Gone},
    families::Others,
    loads::{LoadKey, Loads},
    merge::Described,
    moment::{Moment, Ready, Standing},
    store::Store,
    topology::{self, Candidate, Options},
};
use crate::{
    cluster::{
        model,
        object::{Frontend, Service, ServicePort},
    },
    govern::{
        access::Access,
        endpoint::Endpoint,
        entry::Entry,
        governor::Governor,
        policy::{Detour, StartOn},
        subset::Subset,
        tag::Tag,
    },
    observe::sampling::Ratio,
};

/// How long the load of an endpoint outlives it. An endpoint that moves from one slice to another is in neither for
/// a moment; that must not make it look new. A pod that comes back at the same address is another endpoint.
const LOAD_OUTLIVES: Duration = Duration::from_secs(60);

/// What the Service and its Namespace say of a port, in both families.
pub(super) struct Rules {
    pub(super) governor: Arc<Governor>,
    /// As the policy says it.
    pub(super) said: Option<Arc<Value>>,
    pub(super) entry: Arc<Entry>,
    pub(super) detours: Arc<BTreeMap<Tag, Detour>>,
    pub(super) access_log: Option<Ratio>,
    pub(super) reclaim: bool,
    pub(super) direct: bool,
    pub(super) access: Option<Arc<Access>>,
}

impl Rules {
    /// Whether warm-ups begin with the first request, and all that come to the endpoints go through the agents of their nodes.
    fn tells_first_request(&self) -> bool {
        let policy = self.governor.policy();
        let warmup = policy.load_balancer.warmup.as_ref();
        let starts = warmup.is_some_and(|warmup| warmup.start_on == StartOn::FirstRequest);
        starts && (self.access.is_some() || policy.limits_endpoints())
    }
}

/// What an endpoint's place in the world depends on.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) store: &'a Store,
    pub(super) options: &'a Options,
}

/// A port of a Service in one family.
pub(super) struct Part {
    pub(super) service: Arc<model::Service>,
    pub(super) loads: Loads,
    /// Endpoints that are in no slice any more, and not believed to be gone.
    pub(super) held: Vec<Arc<Endpoint>>,
}

impl Part {
    pub(super) fn build(
        service: &Service,
        (port, ipv6): (&ServicePort, bool),
        (mut described, others): (BTreeMap<SocketAddr, Described<'_>>, &Others<'_>),
        Known { store, options }: Known<'_>,
        rules: &Rules,
        before: Option<Self>,
        now: Moment,
    ) -> Self {
        let headless = service.frontend == Frontend::Headless;
        if let Some(node) = options.node.as_ref().filter(|_| service.node_local && !headless) {
            described.retain(|_, described| described.node() == Some(node));
        }
        let (before, mut loads) = before.map(|part| (part.service, part.loads)).unzip();
        // Endpoints that are there already when the service is met for the first time.
        let found = before.is_none();
        let loads = loads.get_or_insert_default();
        loads.expect(described.len());
        for (_, kept) in loads.iter_mut() {
            kept.listed = false;
        }
        let warm_up = rules.governor.policy().load_balancer.warmup.as_ref();
        let curve = warm_up.map_or(Duration::ZERO, |curve| curve.delay.saturating_add(curve.duration));
        // Its node's agent sees all that comes to it, and would have said so.
        let would_tell = options.warm_gates && rules.tells_first_request();
        let mut candidates: Vec<Candidate<'_>> = described
            .into_iter()
            .map(|(address, described)| {
                let kept = loads.list(LoadKey { address, pod: described.pod_uid() });
                kept.unknown = described.unknown.then(|| kept.unknown.unwrap_or(now.instant));
                let standing = Standing {
                    ready: described.is_ready(),
                    told: described.ready_since(),
                    started: described.started(),
                };
                let since = Ready::next(&mut kept.ready, standing, found, curve, now);
                let ready_since_nanos = since.nanos;
                if since.paused > 0 {
                    kept.load.pause_warm_up(since.paused);
                }
                if let Some(since) = ready_since_nanos {
                    let told = described.first_request();
                    if let Some(first) = told
                        && (kept.first_told != told || kept.load.first_request(Some(since)).is_none())
                    {
                        kept.load.hear_first_request(since, now.nanos_of(first));
                    } else if told.is_none() && found && !would_tell {
                        // When it was asked first, nobody can say any more.
                        kept.load.note_first_request(Some(since), since);
                    }
                    kept.first_told = told;
                }
                let other_family = others.of_same_pod(address, &described).map(Box::new);
                let load = kept.load.clone();
                let endpoint = described.endpoint(address, other_family, ready_since_nanos, load);
                kept.load.set_terminating(endpoint.terminating, now.nanos);
                Candidate {
                    endpoint: reuse_endpoint(before.as_deref(), endpoint),
                    hints: described.slice.hints.as_deref(),
                    without_hints: described.waits,
                }
            })
            .collect();
        // Who dials the endpoints of a headless service has not chosen these.
        let outside = store.lanes.endpoints(&service.name, port.name.as_ref());
        for (address, tag) in outside.filter(|(address, _)| !headless && address.is_ipv6() == ipv6) {
            let order = |candidate: &Candidate<'_>| candidate.endpoint.address.cmp(&address);
            let Err(at) = candidates.binary_search_by(order) else { continue };
            let kept = loads.list(LoadKey { address, pod: None });
            let endpoint =
                Endpoint { tag: Some(tag.clone()), load: kept.load.clone(), ..Endpoint::new(address) };
            let endpoint = reuse_endpoint(before.as_deref(), endpoint);
            candidates.insert(at, Candidate { endpoint, hints: None, without_hints: false });
        }
        for (key, kept) in loads.iter_mut().filter(|(_, kept)| !kept.listed && kept.gone.is_none()) {
            let was = find(before.as_deref(), key.address).filter(|was| Arc::ptr_eq(&was.load, &kept.load));
            kept.gone = Some(Box::new(Gone::new(now.instant, was.cloned())));
        }
        // One whose address has another key now, or another pod, is not gone.
        let there = |address| candidates.binary_search_by_key(&address, |c| c.endpoint.address).is_ok();
        let gone = loads.iter_mut().filter(|(key, kept)| kept.gone.is_some() && !there(key.address));
        let gone = gone.filter_map(|(key, kept)| Some((key.pod.as_ref(), &mut **kept.gone.as_mut()?)));
        let left = candidates.iter().filter(|candidate| candidate.endpoint.is_usable()).count();
        let threshold = rules.governor.policy().load_balancer.panic_threshold_percent;
        let held = doubt::held(gone, left, threshold, service, store, now.instant);
        if !held.is_empty() {
            candidates.extend(held.iter().map(|endpoint| Candidate {
                endpoint: endpoint.clone(),
                hints: None,
                without_hints: false,
            }));
            candidates.sort_by_key(|candidate| candidate.endpoint.address);
        }
        let mut subsets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for candidate in &candidates {
            subsets.entry(candidate.endpoint.tag.clone()).or_default().push(candidate);
        }
        let near = |candidates: Vec<_>, subset: Option<&Subset>| {
            Subset::new(topology::near(&candidates, options, service.prefer), subset)
        };
        let baseline = subsets.remove(&None).unwrap_or_default();
        let baseline = near(baseline, before.as_deref().map(|before| &before.baseline));
        let lanes = subsets.into_iter().filter_map(|(tag, subset)| {
            let tag = tag?;
            let subset = near(subset, before.as_deref().and_then(|before| before.lanes.get(&tag)));
            Some((tag, subset))
        });
        let lanes = lanes.collect();
        // Not in the room of the candidates, which take six times as much.
        let mut endpoints = Vec::with_capacity(candidates.len());
        endpoints.extend(candidates.into_iter().map(|candidate| candidate.endpoint));
        let new = model::Service {
            namespace: service.name.namespace.clone(),
            name: service.name.name.clone(),
            port: port.port,
            port_name: port.name.clone(),
            protocol: port.protocol,
            endpoints,
            baseline,
            lanes,
            session_affinity: service.session_affinity,
            governor: rules.governor.clone(),
            said: rules.said.clone(),
            entry: rules.entry.clone(),
            detours: rules.detours.clone(),
            access_log: rules.access_log,
            reclaim: rules.reclaim,
            direct: rules.direct,
            access: rules.access.clone(),
        };
        let service = before.filter(|before| is_same_service(before, &new)).unwrap_or_else(|| Arc::new(new));
        let mut part = Self { service, loads: std::mem::take(loads), held };
        part.forget(now.instant);
        part
    }

    /// True if an endpoint was let go of that was still used.
    pub(super) fn forget(&mut self, now: Instant) -> bool {
        let mut used = false;
        self.loads.retain(|kept| {
            let over = kept.gone.as_ref().is_some_and(|gone| now >= gone.since + LOAD_OUTLIVES);
            used |= over && kept.gone.as_ref().is_some_and(|gone| gone.is_held());
            !over
        });
        used
    }
}

fn find(before: Option<&model::Service>, address: SocketAddr) -> Option<&Arc<Endpoint>> {
    let endpoints = &before?.endpoints;
    let at = endpoints.binary_search_by_key(&address, |endpoint| endpoint.address).ok()?;
    Some(&endpoints[at])
}

fn reuse_endpoint(before: Option<&model::Service>, new: Endpoint) -> Arc<Endpoint> {
    match find(before, new.address) {
        Some(old) if is_same_endpoint(old, &new) => old.clone(),
        _ => Arc::new(new),
    }
}

fn is_same_endpoint(old: &Endpoint, new: &Endpoint) -> bool {
    // Taken apart, so that a new field cannot be forgotten here.
    let Endpoint {
        address,
        other_family,
        tag,
        ready,
        serving,
        terminating,
        ready_since_nanos,
        zone,
        node,
        pod,
        load,
    } = new;
    (&old.address, &old.other_family, &old.tag) == (address, other_family, tag)
        && (&old.zone, &old.node, &old.pod) == (zone, node, pod)
        && (old.ready, old.serving, old.terminating) == (*ready, *serving, *terminating)
        && old.ready_since_nanos == *ready_since_nanos
        && Arc::ptr_eq(&old.load, load)
}

fn is_same_service(old: &model::Service, new: &model::Service) -> bool {
    let model::Service {
        namespace,
        name,
        port,
        port_name,
        protocol,
        endpoints,
        baseline,
        lanes,
        session_affinity,
        entry,
        governor,
        said,
        detours,
        access_log,
        reclaim,
        direct,
        access,
    } = new;
    let same = |old: &[Arc<Endpoint>], new: &[Arc<Endpoint>]| {
        old.len() == new.len() && old.iter().zip(new).all(|(old, new)| Arc::ptr_eq(old, new))
    };
    (&old.namespace, &old.name, &old.port_name) == (namespace, name, port_name)
        && (old.port, old.protocol, old.session_affinity) == (*port, *protocol, *session_affinity)
        && Arc::ptr_eq(&old.governor, governor)
        && old.said == *said
        // Mostly the same one, which spares looking at every rule.
        && (Arc::ptr_eq(&old.entry, entry) || old.entry == *entry)
        && (&old.detours, old.access_log, &old.access) == (detours, *access_log, access)
        && (old.reclaim, old.direct) == (*reclaim, *direct)
        && same(&old.endpoints, endpoints)
        && same(&old.baseline, baseline)
        && old.lanes.len() == lanes.len()
        && old.lanes.iter().zip(lanes).all(|((tag, old), (tag2, new))| tag == tag2 && same(old, new))
}
