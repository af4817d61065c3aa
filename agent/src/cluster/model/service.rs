//! What stands behind a governed address: a port of a Service, with its endpoints and what its policies say.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use serde_json::Value;

use super::workload::Workload;
use crate::{
    govern::{
        access::Access,
        endpoint::Endpoint,
        entry::Entry,
        governor::Governor,
        lane::{Distrust, RequestTag},
        policy::{Detour, LaneFallback, StartOn, is_from},
        request::Request,
        route::{Candidates, Yielded},
        subset::Subset,
        tag::Tag,
    },
    observe::sampling::Ratio,
};

/// What stands behind a governed address.
#[derive(Clone, Debug)]
pub struct Destination {
    pub service: Arc<Service>,
    /// Set for the address of an endpoint: the caller chose this one. With a headless Service it stays with it; where the Service's
    /// endpoints are managed ([`Service::direct`]) it does so unless there is a reason ([`crate::govern::route::keep`]).
    pub pinned: Option<Arc<Endpoint>>,
}

impl Destination {
    /// Whether it is the same one, and not one that was built anew.
    pub fn is_same(&self, other: &Self) -> bool {
        let pinned = |destination: &Self| destination.pinned.as_ref().map(Arc::as_ptr);
        Arc::ptr_eq(&self.service, &other.service) && pinned(self) == pinned(other)
    }

    /// The endpoint with which the caller stays in any case.
    pub fn held(&self) -> Option<&Arc<Endpoint>> {
        self.pinned.as_ref().filter(|_| !self.service.direct)
    }

    /// The endpoint that the caller has chosen, where another may be better.
    pub fn preferred(&self) -> Option<&Arc<Endpoint>> {
        self.pinned.as_ref().filter(|_| self.service.direct)
    }

    /// Whether new connections are to come to the agent at all. It leaves those alone for which it could do nothing, so that
    /// their clients find what they would without it: a service that has nobody to answer refuses; a client that knows all
    /// addresses of a headless service is refused by one that is gone, and tries the next; a database has no proxy before it.
    pub fn is_redirected(&self) -> bool {
        let service = &*self.service;
        if self.held().is_some() || service.protocol == Protocol::Opaque {
            return service.is_asked_for();
        }
        service.endpoints.iter().any(|endpoint| endpoint.is_usable() || endpoint.is_draining())
            || service.governor.policy().all().any(|policy| !policy.fallbacks.is_empty())
    }
}

/// One port of a Kubernetes Service with its endpoints.
#[derive(Debug)]
pub struct Service {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// The Service's port number (not the target port).
    pub port: u16,
    pub port_name: Option<Arc<str>>,
    /// What the port is declared to speak; `Detect` where nothing is declared.
    pub protocol: Protocol,
    /// All endpoints, also those that are not usable, by address. Of the family of the address that was dialled: a
    /// dual-stack Service is one of these a family.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Endpoints with no tag; where topology hints say so, only those meant for this agent's zone or node.
    pub baseline: Subset,
    /// Endpoints by tag; topology hints are applied to each by itself.
    pub lanes: BTreeMap<Tag, Subset>,
    /// `sessionAffinity: ClientIP`.
    pub session_affinity: bool,
    /// Colours requests that come without a tag.
    pub entry: Arc<Entry>,
    /// The policy in force, and the state of its rules. The same for both families, and from one snapshot to the next.
    pub governor: Arc<Governor>,
    /// What its policies say, as they say it; `None`: there is none.
    pub said: Option<Arc<Value>>,
    /// Where requests of a lane go that has no usable endpoint here; tags that are not in it fall back to the baseline.
    pub detours: Arc<BTreeMap<Tag, Detour>>,
    /// How many of its requests are logged; `None`: nobody has said it.
    pub access_log: Option<Ratio>,
    /// Idle connections to it that are older than their pod's enrolment are ended.
    pub reclaim: bool,
    /// Connections to its endpoints' own addresses are managed as those to the Service.
    pub direct: bool,
    /// Who may call; enforced at the endpoints.
    pub access: Option<Arc<Access>>,
}

impl Service {
    /// A service port of which nothing else is known: no endpoints, no policy.
    pub fn new(namespace: &str, name: &str, port: u16) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            port,
            port_name: None,
            protocol: Protocol::default(),
            endpoints: Vec::new(),
            baseline: Subset::default(),
            lanes: BTreeMap::new(),
            session_affinity: false,
            entry: Arc::default(),
            governor: Arc::default(),
            said: None,
            detours: Arc::default(),
            access_log: None,
            reclaim: false,
            direct: false,
            access: None,
        }
    }

    /// Whether connections to it that are older than their pod's enrolment may be ended when they are idle. What a connection
    /// of another protocol than HTTP/1 is idle cannot be told by its bytes.
    pub fn is_reclaimed(&self) -> bool {
        self.reclaim && self.protocol == Protocol::Http
    }

    /// Whether policies ask for anything at its endpoints.
    pub(in crate::cluster) fn asks_at_endpoints(&self) -> bool {
        self.access.is_some() || self.governor.policy().limits_endpoints()
    }

    /// Whether the warm-up of its endpoints begins with their first request.
    pub(in crate::cluster) fn starts_on_first_request(&self) -> bool {
        let warmup = self.governor.policy().load_balancer.warmup.as_ref();
        warmup.is_some_and(|warmup| warmup.start_on == StartOn::FirstRequest)
    }

    /// Whether a policy or a lane asks for anything.
    pub(in crate::cluster) fn is_asked_for(&self) -> bool {
        let lane = !self.lanes.is_empty() || !self.entry.is_empty() || !self.detours.is_empty();
        let logged = self.access_log.is_some() && self.protocol != Protocol::Opaque;
        self.said.is_some() || lane || logged
    }

    /// The same with these endpoints, each in the subset of its tag. They are kept in the order of their addresses.
    #[must_use]
    pub fn with_endpoints(mut self, mut endpoints: Vec<Arc<Endpoint>>) -> Self {
        endpoints.sort_by_key(|endpoint| endpoint.address);
        let mut subsets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for endpoint in &endpoints {
            subsets.entry(endpoint.tag.clone()).or_default().push(endpoint.clone());
        }
        self.baseline = subsets.remove(&None).unwrap_or_default().into();
        self.lanes = subsets.into_iter().filter_map(|(tag, subset)| Some((tag?, subset.into()))).collect();
        self.endpoints = endpoints;
        self
    }

    /// The tag that a request without one gets where it enters here.
    pub fn colour(&self, request: &impl Request, caller: IpAddr) -> Option<RequestTag> {
        if self.entry.is_empty() {
            return None;
        }
        let coloured = self.entry.colour(request, caller)?;
        Some(coloured.tag.into())
    }

    /// Which tags of this caller's requests come from outside, and are not believed.
    pub fn distrusts(&self, caller: &Workload) -> Distrust<'_> {
        let strip = self.governor.policy().strip_tags.as_ref();
        let all =
            strip.is_some_and(|strip| strip.from.is_empty() || is_from(&strip.from, Some(caller.caller())));
        Distrust::new(all, self.entry.untrusted())
    }

    /// What becomes of a request with this tag where its lane has nobody to answer.
    pub fn fallback(&self, tag: Option<&RequestTag>) -> &Detour {
        static TO_BASELINE: Detour = Detour { lanes: Vec::new(), then: LaneFallback::Baseline };
        tag.and_then(|tag| self.detours.get(tag.as_str())).unwrap_or(&TO_BASELINE)
    }

    /// How far its endpoints are from the lane of a request: 0 if it has one of the lane that can be used, else the place of
    /// the first of the lanes that the lane falls back to. `None`: it has none of any of these.
    pub fn distance_to_lane(&self, tag: &RequestTag) -> Option<usize> {
        let serves = |lane: &str| self.lanes.get(lane).is_some_and(|lane| lane.usable() > 0);
        if serves(tag.as_str()) {
            return Some(0);
        }
        let others = &self.fallback(Some(tag)).lanes;
        others.iter().position(|lane| serves(lane.as_str())).map(|at| at + 1)
    }

    /// What routing needs to know of it.
    pub fn candidates(&self) -> Candidates<'_> {
        Candidates {
            baseline: &self.baseline,
            lanes: &self.lanes,
            session_affinity: self.session_affinity,
            policy: self.governor.policy(),
        }
    }

    /// What its warm-up curve gives endpoints beyond what it says.
    pub fn yielded(&self, now_nanos: u64) -> Yielded {
        let subsets = std::iter::once(&self.baseline).chain(self.lanes.values());
        Yielded::of(self.governor.policy(), subsets, now_nanos)
    }

    /// The subset that an endpoint is of.
    pub fn subset_of(&self, endpoint: &Endpoint) -> Option<&Subset> {
        match &endpoint.tag {
            None => Some(&self.baseline),
            Some(tag) => self.lanes.get(tag),
        }
    }
}

/// `orders.shop:8080`, as logs and metrics name it.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}:{}", self.name, self.namespace, self.port)
    }
}

/// What a service port is declared to speak: `appProtocol` first, then the port name's prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Nothing declared: the first bytes tell.
    #[default]
    Detect,
    /// `http`, `http-*`, `kubernetes.io/ws`: HTTP/1 or HTTP/2, told apart by the preface; never waits on a timer.
    Http,
    /// `http2`, `grpc`, `grpc-web`, `kubernetes.io/h2c`: HTTP/2 with prior knowledge (HTTP/1 is still understood).
    Http2,
    /// `tls`, `https`, `kubernetes.io/wss`, `tcp`, database names: bytes, at once.
    Opaque,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::govern::policy::{Fallback, FallbackAction, FallbackOn, Policy, StaticAnswer};

    fn endpoint(change: impl FnOnce(&mut Endpoint)) -> Arc<Endpoint> {
        let mut endpoint = Endpoint::new(([10, 244, 0, 1], 80).into());
        change(&mut endpoint);
        Arc::new(endpoint)
    }

    fn is_redirected(service: Service, pinned: bool) -> bool {
        let pinned = service.endpoints.first().filter(|_| pinned).cloned();
        Destination { service: Arc::new(service), pinned }.is_redirected()
    }

    fn service(protocol: Protocol, endpoints: Vec<Arc<Endpoint>>) -> Service {
        Service { protocol, ..Service::new("shop", "orders", 80).with_endpoints(endpoints) }
    }

    #[test]
    fn a_service_is_redirected_that_has_somebody_to_answer() {
        let ready = || endpoint(|endpoint| (endpoint.ready, endpoint.serving) = (true, true));
        let leaving = || endpoint(|one| (one.ready, one.serving, one.terminating) = (false, true, true));
        let down = || endpoint(|endpoint| (endpoint.ready, endpoint.serving) = (false, false));
        for protocol in [Protocol::Detect, Protocol::Http, Protocol::Http2] {
            assert!(is_redirected(service(protocol, vec![ready()]), false));
            assert!(is_redirected(service(protocol, vec![leaving()]), false));
            assert!(!is_redirected(service(protocol, vec![down()]), false));
            assert!(!is_redirected(service(protocol, Vec::new()), false));
        }
        let answer = StaticAnswer { status: 200, headers: Vec::new(), body: bytes::Bytes::new() };
        let fallback = Fallback {
            name: "a".into(),
            on: vec![FallbackOn::NoEndpoint],
            action: FallbackAction::Static(answer),
        };
        let policy = Policy { fallbacks: vec![Arc::new(fallback)], ..Policy::default() };
        let governor = Governor::next(None, Arc::new(policy), 0);
        assert!(is_redirected(Service { governor, ..service(Protocol::Http, Vec::new()) }, false));
    }

    #[test]
    fn what_is_opaque_or_headless_is_redirected_where_a_policy_or_a_lane_asks_for_it() {
        let ready = || endpoint(|endpoint| (endpoint.ready, endpoint.serving) = (true, true));
        let gray = || endpoint(|endpoint| endpoint.tag = "gray".parse().ok());
        for (protocol, pinned) in
            [(Protocol::Opaque, false), (Protocol::Opaque, true), (Protocol::Http, true)]
        {
            assert!(!is_redirected(service(protocol, vec![ready()]), pinned));
            assert!(is_redirected(service(protocol, vec![ready(), gray()]), pinned), "a lane");
            let said = Some(Arc::new(Value::Null));
            assert!(is_redirected(Service { said, ..service(protocol, vec![ready()]) }, pinned), "a policy");
        }
        let logged = |protocol| Service { access_log: "1".parse().ok(), ..service(protocol, vec![ready()]) };
        assert!(is_redirected(logged(Protocol::Http), true));
        assert!(!is_redirected(logged(Protocol::Opaque), false), "there are no requests to be logged");
    }
}
