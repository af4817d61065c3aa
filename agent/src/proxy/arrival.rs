//! A connection from outside to a pod's own application: who is its client, and what the policies at the endpoint say of it
//! (ARCHITECTURE.md#at-the-endpoint).
//!
//! It goes the way of every other connection; only its destination is the application, and each request is shown to the
//! policies first. What the pod's node asks by way of the kubelet's probes is nobody's business.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::net::TcpStream;

use super::{
    answer::{Cause, Kind, MadeUp},
    budget::{Guest, Standing},
    record::{MAX_METHOD, MAX_PATH, cut},
    worker::{PodHere, Worker},
};
use crate::{
    clock::Nanos,
    cluster::model::{InboundPort, Service, Start},
    govern::{
        access::{self, Access, CLIENT_CONNECTIONS, Client, Decision, Identity, NO_RULE, probe::Probe},
        jwt::{Failure, Found, HeaderPlan, Jwt},
        policy::Mode,
        request::Request,
        warmup,
    },
    observe::{
        access_log::Entry,
        metrics::{AccessDecision, ClientCounts, ClientName, ServiceMetrics},
        reason::Reason,
    },
};

/// What a client is called in metrics that is no pod of an enrolled namespace, and the pod's own node.
const UNKNOWN: &str = "unknown";
const NODE: &str = "node";

/// Where a connection comes from, and what it is for.
pub(crate) struct Arrival {
    pub(crate) client: SocketAddr,
    dialled: SocketAddr,
    /// It comes from the pod's node.
    from_node: bool,
    pod: RefCell<Option<Arc<Identity>>>,
    /// By which others know the port.
    service: Option<Arc<Service>>,
    /// The port as it was, if a warm-up begins with what comes to it.
    starts: Option<Arc<InboundPort>>,
    /// Where it is counted what its limits decide.
    limited: RefCell<Option<(Arc<Service>, Arc<ServiceMetrics>)>>,
    counted: RefCell<Option<Counted>>,
    /// The application has ended a connection of HTTP/2 that was made for this client, and who waits for that.
    ended: Cell<bool>,
    waits: RefCell<Option<Waker>>,
}

/// Where it is counted what the policies say.
struct Counted {
    port: Arc<InboundPort>,
    /// In the order of its guards.
    metrics: Vec<(Arc<ServiceMetrics>, ClientCounts)>,
}

/// Who is told of a request that is denied.
pub(crate) struct Names {
    pub(crate) namespace: Arc<str>,
    /// The pod, or the client's address where none is known.
    pub(crate) pod: Arc<str>,
}

/// Gives a connection from outside its place among those of its client. One that gets none is reset, at no further cost: its
/// client may ask for nothing and others like it have many open, or it has so many itself that the pod's connections would go
/// past the policies.
pub(crate) fn receive(
    worker: &Worker,
    pod: &PodHere,
    stream: &TcpStream,
    client: SocketAddr,
    now: Nanos,
) -> Result<Option<Guest>, Refused> {
    let address = client.ip().to_canonical();
    // A socket that is gone already says so to whoever reads it.
    let Ok(dialled) = stream.local_addr() else { return Ok(None) };
    let dialled = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
    let snapshot = worker.snapshot();
    let Some(port) = snapshot.inbound.port(dialled) else { return Ok(None) };
    let found = snapshot.clients.find(address);
    let known = Client::new(address, found.as_deref());
    let enforced = || {
        let guards = port.guards.iter().filter_map(|service| Some((service, service.access.as_deref()?)));
        guards.filter(|(_, access)| access.mode == Mode::Enforce)
    };
    let against = enforced().find(|(_, access)| !access.may_allow(known));
    let standing = match (pod.pod.network.is_node(address), against.or_else(|| enforced().next())) {
        (true, _) | (_, None) => Standing::Free,
        (false, Some(_)) if against.is_some() => Standing::MayNot,
        (false, Some(_)) => Standing::MayCall,
    };
    if let Some(guest) = pod.budget.receive(address, standing, now) {
        return Ok(Some(guest));
    }
    if let Some((service, access)) = against.or_else(|| enforced().next()) {
        let metrics = worker.served.service(&service.namespace, &service.name, service.port);
        let decision = access.decide_connection(known);
        let rule = match standing {
            Standing::MayNot => decision.rule().map_or(NO_RULE, |rule| rule),
            Standing::MayCall | Standing::Free => CLIENT_CONNECTIONS,
        };
        metrics.accessed(rule, AccessDecision::Denied);
        metrics.client(&name_of(known.pod, false)).count(AccessDecision::Denied);
    }
    Err(if standing == Standing::MayNot { Refused::MayNot } else { Refused::TooMany })
}

/// Why a connection is to be reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(
        "its client has as many to the pod as it may have; look for a connection leak in the client, or raise \
         --connections-per-pod"
    )]
    TooMany,
    #[error(
        "no AccessPolicy allows its client anything, and all clients like it have as many to the pod as they may have \
         together"
    )]
    MayNot,
}

fn name_of(pod: Option<&Identity>, from_node: bool) -> ClientName {
    if let Some(pod) = pod {
        return ClientName { namespace: pod.namespace.clone(), workload: pod.workload.clone() };
    }
    ClientName { namespace: "".into(), workload: if from_node { NODE } else { UNKNOWN }.into() }
}

impl Arrival {
    pub(crate) fn new(worker: &Worker, pod: &PodHere, client: SocketAddr, dialled: SocketAddr) -> Self {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let snapshot = worker.snapshot();
        let port = snapshot.inbound.port(dialled);
        let service = port.map(|port| port.destination.service.clone());
        let starts = port.filter(|port| !port.starts.is_empty()).cloned();
        let from_node = pod.pod.network.is_node(client.ip());
        Self {
            client,
            dialled,
            from_node,
            pod: RefCell::new(snapshot.clients.find(client.ip())),
            service,
            starts,
            limited: RefCell::default(),
            counted: RefCell::default(),
            ended: Cell::default(),
            waits: RefCell::default(),
        }
    }

    /// The application ends a connection of HTTP/2 that was made for this client.
    pub(crate) fn application_ended(&self) {
        self.ended.set(true);
        if let Some(waker) = self.waits.take() {
            waker.wake();
        }
    }

    /// Waits until it does.
    pub(crate) fn poll_application_ended(&self, cx: &Context<'_>) -> Poll<()> {
        if self.ended.get() {
            return Poll::Ready(());
        }
        *self.waits.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The pod that calls, as it was last known.
    pub(crate) fn client_pod(&self) -> Option<Arc<Identity>> {
        self.pod.borrow().clone()
    }

    /// Whether it is a probe of the pod's own spec, which nothing holds for.
    pub(crate) fn is_probe(&self, pod: &PodHere, request: &impl Request) -> bool {
        self.from_node && Probe::is_one(&pod.pod.workload.load().probes, self.dialled.port(), request)
    }

    /// The same of a connection that is no HTTP; `spoke`: its client has said something already.
    pub(crate) fn may_be_probe(&self, pod: &PodHere, spoke: bool) -> bool {
        self.from_node
            && Probe::may_be_connection(&pod.pod.workload.load().probes, self.dialled.port(), spoke)
    }

    /// Notes that a request is passed on, where that begins a warm-up.
    pub(crate) fn note_request(&self, pod: &PodHere, request: &impl Request, now: Nanos) {
        for Start { service, endpoint } in self.starts.iter().flat_map(|port| &port.starts) {
            let warmup = service.governor.policy().load_balancer.warmup.as_ref();
            if warmup::awaits_first(warmup, endpoint).is_some() && !self.is_probe(pod, request) {
                warmup::note_request(warmup, endpoint, request, now.0);
            }
        }
    }

    /// The same of a connection of which the bytes are not known, and that is no probe.
    pub(crate) fn note_connection(&self, now: Nanos) {
        for Start { service, endpoint } in self.starts.iter().flat_map(|port| &port.starts) {
            let warmup = service.governor.policy().load_balancer.warmup.as_ref();
            warmup::note_connection(warmup, endpoint, now.0);
        }
    }

    /// Where it is counted what the limits of this Service decide, which is that of the port.
    pub(crate) fn limited(&self, worker: &Worker, service: &Arc<Service>) -> Arc<ServiceMetrics> {
        let limited = &mut *self.limited.borrow_mut();
        if let Some((_, metrics)) = limited.as_ref().filter(|(known, _)| Arc::ptr_eq(known, service)) {
            return metrics.clone();
        }
        let metrics = worker.served.service(&service.namespace, &service.name, service.port);
        *limited = Some((service.clone(), metrics.clone()));
        metrics
    }

    /// Why a request is not passed on; or what is changed in its head if it is.
    pub(crate) fn admit(
        &self,
        worker: &Worker,
        request: &impl Request,
        now: Nanos,
    ) -> Result<HeaderPlan, Cause> {
        let mut plan = HeaderPlan::default();
        let lacking = Cell::new(None);
        let denied = self.ask(worker, |access, client, metrics| {
            let Some(jwt) = &access.jwt else { return access.decide(client, request) };
            let Token { found, place } = Token::of(worker, jwt, request, now);
            let failure = Access::lacks(&found);
            metrics.token(failure);
            let decision = access.decide(client.with((&found).into()), request);
            let enforced = access.mode == Mode::Enforce;
            if enforced && lacking.get().is_none() && matches!(decision, Decision::Unauthenticated(_)) {
                lacking.set(failure);
            }
            let verified = match &found {
                Found::Valid(verified) => Some((&**verified, place)),
                Found::Invalid(_) | Found::Unverifiable(_) => None,
            };
            plan.add(jwt, verified);
            decision
        });
        match denied {
            Some(cause) if cause.reason == Reason::Unauthenticated => Err(cause.lacks(lacking.get())),
            Some(cause) => Err(cause),
            None => Ok(plan),
        }
    }

    /// Whether what is passed on depends on what is asked for, so that all has to be read that a server may take for a request.
    pub(crate) fn depends_on_requests(&self, worker: &Worker) -> bool {
        let snapshot = worker.snapshot();
        let guards = snapshot.inbound.port(self.dialled).into_iter().flat_map(|port| &port.guards);
        guards.filter_map(|service| service.access.as_deref()).any(Access::depends_on_requests)
    }

    /// The same as [`Self::admit`] of a connection that is no HTTP; `spoke`: its client has said something already.
    pub(crate) fn admit_connection(&self, worker: &Worker, pod: &PodHere, spoke: bool) -> Option<Cause> {
        if self.may_be_probe(pod, spoke) {
            return None;
        }
        self.ask(worker, |access, client, _| access.decide_connection(client))
    }

    /// Asks all policies. The strictest has it.
    fn ask(
        &self,
        worker: &Worker,
        mut decide: impl for<'a> FnMut(&'a Access, Client<'_>, &ServiceMetrics) -> Decision<'a>,
    ) -> Option<Cause> {
        let snapshot = worker.snapshot();
        // No longer asked for: the connection goes on as one of nobody's concern.
        let port = snapshot.inbound.port(self.dialled)?;
        if port.guards.iter().all(|service| service.access.is_none()) {
            return None;
        }
        let pod = self.identity(snapshot.clients.find(self.client.ip()));
        let client = Client::new(self.client.ip(), pod.as_deref());
        let mut strictest: Option<(Decision<'_>, &Access)> = None;
        let mut counted = self.counted.borrow_mut();
        let counted = match &mut *counted {
            Some(counted) if Arc::ptr_eq(&counted.port, port) => counted,
            stale => stale.insert(Counted::new(worker, port, &name_of(pod.as_deref(), self.from_node))),
        };
        for (service, (metrics, of_client)) in port.guards.iter().zip(&counted.metrics) {
            let Some(access) = service.access.as_deref() else { continue };
            let decision = decide(access, client, metrics);
            let outcome = outcome(&decision, access.mode);
            metrics.accessed(decision.rule().map_or(NO_RULE, |rule| rule), outcome);
            of_client.count(outcome);
            let enforced = access.mode == Mode::Enforce;
            if enforced && strictest.is_none_or(|(known, _)| access::stricter(&decision, &known).is_gt()) {
                strictest = Some((decision, access));
            }
        }
        match strictest? {
            (Decision::Allowed(_), _) => None,
            (Decision::Denied(None), access) => {
                Some(Cause::of_rule(Reason::AccessDenied, &NO_RULE.into(), Some(&access.name), None))
            }
            (Decision::Denied(Some(rule)), access) => {
                Some(Cause::of_rule(Reason::AccessDenied, &rule.name, Some(&access.name), None))
            }
            (Decision::Unauthenticated(rule), access) => {
                Some(Cause::of_rule(Reason::Unauthenticated, &rule.name, Some(&access.name), None))
            }
            // What is hidden has no rule either.
            (Decision::Hidden(_), _) => Some(Reason::PathHidden.into()),
        }
    }

    /// Who calls, as logs name it.
    pub(crate) fn names(&self) -> Names {
        match &*self.pod.borrow() {
            Some(pod) => Names { namespace: pod.namespace.clone(), pod: pod.pod.clone() },
            None => Names { namespace: "".into(), pod: self.client.ip().to_string().into() },
        }
    }

    /// The Service by which others know the port.
    pub(crate) fn service(&self) -> Option<Arc<Service>> {
        self.service.clone()
    }

    /// The address that was called.
    pub(crate) fn dialled(&self) -> SocketAddr {
        self.dialled
    }

    /// Logs a request that is not passed on.
    pub(crate) fn log_denied(
        &self,
        worker: &Rc<Worker>,
        request: &impl Request,
        (protocol, kind): (&'static str, Kind),
        cause: &Cause,
        started: Nanos,
    ) {
        let Some(service) = self.service().filter(|_| worker.denials.is_on()) else { return };
        if !worker.denials.wants(service.access_log, None, &mut worker.rng.borrow_mut()) {
            return;
        }
        let (names, now) = (self.names(), Nanos::now());
        let rule = cause.rule.as_deref();
        let grpc = (kind == Kind::Grpc).then(|| cause.reason.grpc_status());
        worker.denials.record(&Entry {
            time: worker.wall_clock(now),
            source_namespace: &names.namespace,
            source_pod: &names.pod,
            method: cut(request.method(), MAX_METHOD),
            path: cut(request.path(), MAX_PATH),
            protocol,
            status: MadeUp::status_of(cause.reason, kind),
            grpc_status: grpc,
            service: &service.name,
            namespace: &service.namespace,
            port: service.port,
            endpoint: Some(self.dialled),
            tag: None,
            lane: None,
            tag_source: None,
            reason: Some(cause.reason),
            rule: rule.map(|rule| &*rule.name),
            policy: rule.and_then(|rule| rule.policy.as_deref()),
            token: cause.token().map(Failure::code),
            route: None,
            called: None,
            called_path: None,
            retries: 0,
            upstream_duration: None,
            duration: now.since(started).into(),
            request_bytes: 0,
            response_bytes: 0,
            trace: None,
        });
    }

    /// The pod that calls, as it was last known: its address may be another's already while its connection is still open.
    fn identity(&self, found: Option<Arc<Identity>>) -> Option<Arc<Identity>> {
        let mut known = self.pod.borrow_mut();
        if let Some(found) = found {
            let same =
                |known: &Arc<Identity>| (&known.namespace, &known.pod) == (&found.namespace, &found.pod);
            if known.as_ref().is_none_or(same) {
                *known = Some(found);
            }
        }
        known.clone()
    }
}

impl Counted {
    fn new(worker: &Worker, port: &Arc<InboundPort>, client: &ClientName) -> Self {
        let metrics = |service: &Arc<Service>| {
            let metrics = worker.served.service(&service.namespace, &service.name, service.port);
            let of_client = metrics.client(client);
            (metrics, of_client)
        };
        Self { port: port.clone(), metrics: port.guards.iter().map(metrics).collect() }
    }
}

/// The token of a request, and where it was.
struct Token {
    found: Found,
    place: Option<usize>,
}

impl Token {
    fn of(worker: &Worker, jwt: &Jwt, request: &impl Request, now: Nanos) -> Self {
        match jwt.carried(request) {
            Ok(carried) => {
                let found = worker.tokens.borrow_mut().check(jwt, &carried.token, worker.unix_time(now));
                Self { found, place: Some(carried.place) }
            }
            Err(failure) => Self { found: Found::Invalid(failure), place: None },
        }
    }
}

fn outcome(decision: &Decision<'_>, mode: Mode) -> AccessDecision {
    match (decision, mode) {
        (Decision::Allowed(_), _) => AccessDecision::Allowed,
        (Decision::Denied(_), Mode::Enforce) => AccessDecision::Denied,
        (Decision::Unauthenticated(_), Mode::Enforce) => AccessDecision::Unauthenticated,
        (Decision::Denied(_) | Decision::Unauthenticated(_), Mode::Observe) => AccessDecision::WouldDeny,
        (Decision::Hidden(_), Mode::Enforce) => AccessDecision::Hidden,
        (Decision::Hidden(_), Mode::Observe) => AccessDecision::WouldHide,
    }
}
