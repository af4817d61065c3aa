//! A proxy with one pod whose connections are all meant for one service.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use sluice::{
    api::{effective::Effective, gateway::http_route},
    cluster::model::{Destination, Group, Protocol, Routed, RuleId, Service, Snapshot, Workload},
    govern::{
        endpoint::{Endpoint, Load},
        entry::Entry,
        governor::Governor,
        lane::TagNames,
        policy::{Detour, EntryRule, Lane, OnRoute, Policy, RequestMatch},
        routes::{Age, Route, Routes, backends::ServicePort},
    },
    observe::{
        access_log::AccessLog,
        metrics::Metrics,
        sampling::Ratio,
        trace::{Tracer, context::Propagation},
    },
    proxy::{self, Limits, Network, OpenPod, Options, Pod, Proxy, SocketOptions},
};
use tokio::io::unix::AsyncFd;

use crate::{origin::Origin, peer::Peer};

/// No test waits for longer than this for something that is to happen.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The address that callers mean.
const DIALLED: &str = "10.96.0.1:80";

/// The proxy's sockets keep no more than this in the kernel, so that a stream which is not read stops soon.
const SOCKET_BUFFER: usize = 64 * 1024;

/// What the kernel is said to keep for each socket.
pub(crate) const SOCKET_MEMORY: usize = 1_000_000;

/// A running proxy.
pub(crate) struct Rig {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) proxy: Proxy,
    pub(crate) pod: Option<OpenPod>,
    current: Arc<ArcSwap<Snapshot>>,
    generation: u64,
    service: Builder,
    pub(crate) listener: SocketAddr,
    /// Of the last worker.
    last_listener: SocketAddr,
}

/// What stands behind the service.
#[derive(Clone, Default)]
pub(crate) struct Builder {
    endpoints: Vec<Given>,
    protocol: Protocol,
    caller: Option<&'static str>,
    not_redirected: bool,
    dialled: Option<SocketAddr>,
    limits: Option<Limits>,
    workers: Option<usize>,
    /// What capture was told: new connections go direct.
    direct: Arc<AtomicBool>,
    panic_at: Option<SocketAddr>,
    no_descriptor_for: Option<SocketAddr>,
    /// What capture says of callers: that they have closed their sockets.
    closed: Arc<AtomicBool>,
    pinned: bool,
    governor: Arc<Governor>,
    entry: Arc<Entry>,
    tracer: Option<Tracer>,
    access_log: Option<AccessLog>,
    logged: Option<Ratio>,
    routes: Option<Arc<Routes>>,
    canary: Option<SocketAddr>,
    canary_lane: Option<&'static str>,
    /// The policy on the routes, if they have one.
    on_route: Option<Arc<OnRoute>>,
}

#[derive(Clone)]
struct Given {
    address: SocketAddr,
    other_family: Option<SocketAddr>,
    tag: Option<&'static str>,
    ready: bool,
    terminating: bool,
    load: Arc<Load>,
}

struct Loopback {
    redirected: Option<SocketAddr>,
    panic_at: Option<SocketAddr>,
    no_descriptor_for: Option<SocketAddr>,
    closed: Arc<AtomicBool>,
    direct: Arc<AtomicBool>,
}

impl Network for Loopback {
    fn origin(&self, _: BorrowedFd<'_>) -> io::Result<Option<proxy::Origin>> {
        Ok(self.redirected.map(|destination| proxy::Origin {
            destination,
            socket: 1,
            options: SocketOptions::default(),
        }))
    }

    fn has_closed(&self, socket: u64) -> bool {
        assert_eq!(socket, 1);
        self.closed.load(Ordering::Relaxed)
    }

    fn unacknowledged(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        sluice::capture::unacknowledged(socket)
    }

    fn redirected(&self) -> u64 {
        0
    }

    fn allow(&self, connections: u32) -> io::Result<()> {
        self.direct.store(connections == 0, Ordering::Relaxed);
        Ok(())
    }

    fn connecting(&self, _: &socket2::Socket) -> io::Result<()> {
        Ok(())
    }

    fn is_at_urgent_byte(&self, socket: BorrowedFd<'_>) -> bool {
        sluice::capture::is_at_urgent_byte(socket)
    }

    fn watched(&self, listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
        sluice::capture::watched(listener)
    }

    fn memory_of(&self, _: BorrowedFd<'_>) -> usize {
        SOCKET_MEMORY
    }

    fn let_buffers_grow(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn socket(&self, to: SocketAddr, _: Option<SocketAddr>) -> io::Result<socket2::Socket> {
        assert_ne!(Some(to), self.panic_at, "this panic is a part of a test");
        if Some(to) == self.no_descriptor_for {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        Ok(socket)
    }
}

impl Builder {
    fn given(mut self, address: SocketAddr, tag: Option<&'static str>, ready: bool) -> Self {
        self.endpoints.push(Given {
            address,
            other_family: None,
            tag,
            ready,
            terminating: false,
            load: Arc::default(),
        });
        self
    }

    pub(crate) fn endpoint(self, address: SocketAddr) -> Self {
        self.given(address, None, true)
    }

    pub(crate) fn lane(self, tag: &'static str, address: SocketAddr) -> Self {
        self.given(address, Some(tag), true)
    }

    /// An endpoint of a lane that is not ready.
    pub(crate) fn unready(self, tag: &'static str, address: SocketAddr) -> Self {
        self.given(address, Some(tag), false)
    }

    /// The endpoint at this address shuts down, and still serves.
    pub(crate) fn terminating(mut self, address: SocketAddr) -> Self {
        let given = self.endpoints.iter_mut().find(|given| given.address == address).unwrap();
        given.terminating = true;
        // An endpoint's load knows by a clock that began before this.
        given.load.set_terminating(true, 1);
        self
    }

    /// The endpoint at this address has another one, too.
    pub(crate) fn other_family(mut self, address: SocketAddr, other: SocketAddr) -> Self {
        let given = self.endpoints.iter_mut().find(|given| given.address == address).unwrap();
        given.other_family = Some(other);
        self
    }

    pub(crate) fn no_endpoints(mut self) -> Self {
        self.endpoints.clear();
        self
    }

    pub(crate) fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// The caller's own tag.
    pub(crate) fn caller(mut self, tag: &'static str) -> Self {
        self.caller = Some(tag);
        self
    }

    pub(crate) fn not_redirected(mut self) -> Self {
        self.not_redirected = true;
        self
    }

    /// Callers mean this address, and no service stands behind it.
    pub(crate) fn ungoverned(mut self, dialled: SocketAddr) -> Self {
        self.dialled = Some(dialled);
        self
    }

    /// Threads that carry traffic; each has a listener of the pod.
    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// What pods may use.
    pub(crate) fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Callers mean the first endpoint itself, as they do with headless services.
    pub(crate) fn pinned(mut self) -> Self {
        self.pinned = true;
        self
    }

    /// An HTTPRoute of the client's namespace, whose parent the service is: its rules, as they are written.
    pub(crate) fn route(mut self, rules: &Value) -> Self {
        let spec = json!({
            "parentRefs": [{ "group": "", "kind": "Service", "name": "orders" }], "rules": rules
        });
        let asked = http_route(&spec, "shop", "shop/r").unwrap().unwrap();
        let age = Age { created: None, name: "shop/r".into() };
        self.routes = Some(Arc::new(Routes::new(vec![Route { age, rules: asked.rules }])));
        self
    }

    /// Another service, `canary`, that routes may send to.
    pub(crate) fn canary(mut self, address: SocketAddr) -> Self {
        self.canary = Some(address);
        self
    }

    /// The same, all of whose endpoints are of a lane that every request enters which is sent there.
    pub(crate) fn canary_of_lane(mut self, tag: &'static str, address: SocketAddr) -> Self {
        self.canary_lane = Some(tag);
        self.canary(address)
    }

    /// A policy that targets the route.
    pub(crate) fn policy_on_route(mut self, spec: &Value) -> Self {
        let object = json!({ "metadata": { "namespace": "shop", "name": "of-route" }, "spec": spec });
        let (_, policy) = sluice::api::read::<sluice::api::TrafficPolicy>(&object).unwrap();
        let effective = Effective::alone(&Arc::new(spec.clone()), &Arc::new(policy));
        let on_route = Arc::new(effective.on_route(None));
        let policy = self.governor.policy().clone();
        self.governor = Governor::next_on(Some(&self.governor), policy, vec![on_route.clone()], 0);
        self.on_route = Some(on_route);
        self
    }

    fn on_rules(&self) -> ahash::AHashMap<RuleId, Arc<str>> {
        let Some(policy) = &self.on_route else { return ahash::AHashMap::new() };
        let rules = self.routes.iter().flat_map(|routes| routes.rules());
        rules.map(|rule| (RuleId::of(rule), policy.name.clone())).collect()
    }

    /// What governs the service. With a rig that runs already, state goes on as it does in an agent.
    pub(crate) fn policy(mut self, policy: Policy) -> Self {
        self.governor = Governor::next(Some(&self.governor), Arc::new(policy), 0);
        self
    }

    /// Entry rules of a lane.
    pub(crate) fn entry(mut self, tag: &str, rules: Vec<EntryRule>) -> Self {
        self.entry = Self::entry_of(tag, rules, true);
        self
    }

    /// The same of a lane whose tag requests must not bring along.
    pub(crate) fn strict_entry(mut self, tag: &str, rules: Vec<EntryRule>) -> Self {
        self.entry = Self::entry_of(tag, rules, false);
        self
    }

    fn entry_of(tag: &str, rules: Vec<EntryRule>, trusts_incoming_tag: bool) -> Arc<Entry> {
        let lane = Arc::new(Lane {
            endpoints: Vec::new(),
            name: format!("shop/{tag}").into(),
            tag: tag.parse().unwrap(),
            selector: None,
            fallback: Detour::default(),
            service_fallbacks: BTreeMap::default(),
            priority: 0,
            trusts_incoming_tag,
            targets: Vec::new(),
            entry: rules,
        });
        Arc::new(Entry::new([&lane]))
    }

    pub(crate) fn tracer(mut self, tracer: Tracer) -> Self {
        self.tracer = Some(tracer);
        self
    }

    pub(crate) fn access_log(mut self, log: AccessLog) -> Self {
        self.access_log = Some(log);
        self
    }

    /// What the Service says about the access log.
    pub(crate) fn logged(mut self, ratio: Option<Ratio>) -> Self {
        self.logged = ratio;
        self
    }

    /// Making a socket for this address panics.
    pub(crate) fn panic_at(mut self, address: SocketAddr) -> Self {
        self.panic_at = Some(address);
        self
    }

    /// No descriptor is left for a connection to this address.
    pub(crate) fn no_descriptor_for(mut self, address: SocketAddr) -> Self {
        self.no_descriptor_for = Some(address);
        self
    }

    fn snapshot(&self, generation: u64) -> Snapshot {
        let port = |name: &str| ServicePort { namespace: "shop".into(), name: name.into(), port: 80 };
        let endpoint = |given: &Given| {
            Arc::new(Endpoint {
                other_family: given.other_family.map(Box::new),
                tag: given.tag.map(|tag| tag.parse().unwrap()),
                ready: given.ready,
                serving: given.ready,
                terminating: given.terminating,
                load: given.load.clone(),
                ..Endpoint::new(given.address)
            })
        };
        let endpoints: Vec<_> = self.endpoints.iter().map(endpoint).collect();
        let mut snapshot = Snapshot { generation, ..Snapshot::default() };
        let pinned = if self.pinned { endpoints.first().cloned() } else { None };
        let service = Arc::new(Service {
            protocol: self.protocol,
            entry: self.entry.clone(),
            governor: self.governor.clone(),
            access_log: self.logged,
            ..Service::new("shop", "orders", 80).with_endpoints(endpoints)
        });
        let mut backends = BTreeMap::from([(port("orders"), service.clone())]);
        snapshot.destinations.insert(DIALLED.parse().unwrap(), Destination { service, pinned });
        if let Some(address) = self.canary {
            let tag = self.canary_lane.map(|tag| tag.parse().unwrap());
            let endpoints = vec![Arc::new(Endpoint { tag, ..Endpoint::new(address) })];
            let all = || vec![EntryRule { matches: RequestMatch::default(), percentage: None }];
            let canary = Service {
                protocol: self.protocol,
                entry: self.canary_lane.map(|tag| Self::entry_of(tag, all(), true)).unwrap_or_default(),
                ..Service::new("shop", "canary", 80).with_endpoints(endpoints)
            };
            backends.insert(port("canary"), Arc::new(canary));
        }
        if let Some(routes) = self.routes.clone() {
            let routed = Routed {
                producer: Some(Group { routes, backends, policies: self.on_rules() }),
                consumers: BTreeMap::new(),
            };
            snapshot.routes = Arc::new([((port("orders"), false), Arc::new(routed))].into_iter().collect());
        }
        snapshot
    }

    pub(crate) fn start(mut self) -> Rig {
        let current = Arc::new(ArcSwap::from_pointee(self.snapshot(1)));
        let metrics = Arc::new(Metrics::new());
        let proxy = Proxy::start(&Options {
            workers: self.workers.unwrap_or(1),
            current: current.clone(),
            metrics: metrics.clone(),
            // Not kept here, for they end with the proxy.
            access_log: self.access_log.take().unwrap_or_else(AccessLog::off),
            tracer: self.tracer.take().unwrap_or_else(|| Tracer::off(&[Propagation::W3c])),
            tag_names: tag_names(),
            limits: self.limits.unwrap_or_default(),
            trace_link: false,
            drain_idle_timeout: Duration::from_millis(50),
        })
        .unwrap();
        let (pod, addresses) = self.enrol(&proxy, "gateway-1", 1, &self.direct);
        let (listener, last_listener) = (addresses[0], addresses[addresses.len() - 1]);
        let service = self;
        Rig { metrics, proxy, pod: Some(pod), current, generation: 1, service, listener, last_listener }
    }
}

impl Builder {
    /// A pod whose connections are all meant for the service. Returns where its listeners are, one for each worker.
    fn enrol(
        &self,
        proxy: &Proxy,
        name: &str,
        number: u8,
        direct: &Arc<AtomicBool>,
    ) -> (OpenPod, Vec<SocketAddr>) {
        let listen = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = socket2::SockRef::from(&listener);
            socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
            socket.set_send_buffer_size(SOCKET_BUFFER).unwrap();
            listener
        };
        let listeners: Vec<_> = (0..proxy.workers()).map(|_| listen()).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let workload = ArcSwap::from_pointee(Workload {
            tag: self.caller.map(|tag| tag.parse().unwrap()),
            ips: vec![[10, 244, 0, number].into()],
            ..Workload::new(&format!("uid-{number}"), "shop", name)
        });
        let network = Arc::new(Loopback {
            redirected: (!self.not_redirected)
                .then(|| self.dialled.unwrap_or_else(|| DIALLED.parse().unwrap())),
            panic_at: self.panic_at,
            no_descriptor_for: self.no_descriptor_for,
            closed: self.closed.clone(),
            direct: direct.clone(),
        });
        let pod = Pod::new(workload, network);
        (proxy.open(&Arc::new(pod), listeners), addresses)
    }
}

/// Another pod that calls the same service.
pub(crate) struct OtherPod {
    _open: OpenPod,
    listener: SocketAddr,
    direct: Arc<AtomicBool>,
}

impl OtherPod {
    /// Whether its new connections go direct, as capture was told.
    pub(crate) fn goes_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// A connection of this pod.
    pub(crate) fn dial(&self) -> Peer {
        Peer::new(TcpStream::connect(self.listener).unwrap())
    }
}

/// Under which names requests carry their tags.
pub(crate) fn tag_names() -> Arc<TagNames> {
    Arc::new(TagNames::new(&["x-mse-tag".parse().unwrap()]).unwrap())
}

impl Rig {
    /// A service that is declared to speak HTTP, so that nothing depends on how soon a caller speaks.
    pub(crate) fn builder() -> Builder {
        Builder { protocol: Protocol::Http, ..Builder::default() }
    }

    /// A proxy before one endpoint that is declared to speak HTTP.
    pub(crate) fn before(origin: &Origin) -> Self {
        Self::builder().endpoint(origin.address).start()
    }

    /// A proxy before one endpoint of a service that is declared to speak `protocol`.
    pub(crate) fn speaking(protocol: Protocol, origin: &Origin) -> Self {
        Self::builder().endpoint(origin.address).protocol(protocol).start()
    }

    /// What is in force.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A caller's connection.
    pub(crate) fn dial(&self) -> Peer {
        Peer::new(TcpStream::connect(self.listener).unwrap())
    }

    /// A caller's connection to the last worker.
    pub(crate) fn dial_last(&self) -> Peer {
        Peer::new(TcpStream::connect(self.last_listener).unwrap())
    }

    /// From now on capture says of all callers that they have closed their sockets.
    pub(crate) fn callers_have_closed(&self) {
        self.service.closed.store(true, Ordering::Relaxed);
    }

    /// Waits for something to become true.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let began = Instant::now();
        while !condition() {
            assert!(began.elapsed() < LIMIT, "in vain: {what}\n{}", self.metrics.render().unwrap());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until capture has been told that new connections go direct, or do not any more.
    #[track_caller]
    pub(crate) fn await_direct(&self, direct: bool) {
        let began = Instant::now();
        while self.service.direct.load(Ordering::Relaxed) != direct {
            assert!(began.elapsed() < LIMIT, "new connections should go direct: {direct}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Another pod that calls the same service.
    pub(crate) fn other_pod(&self) -> OtherPod {
        let direct = Arc::default();
        let (open, listeners) = self.service.enrol(&self.proxy, "gateway-2", 2, &direct);
        OtherPod { _open: open, listener: listeners[0], direct }
    }

    /// Puts the service's endpoints in force that `change` leaves.
    pub(crate) fn change(&mut self, change: impl FnOnce(Builder) -> Builder) {
        self.service = change(std::mem::take(&mut self.service));
        self.generation += 1;
        self.current.store(Arc::new(self.service.snapshot(self.generation)));
    }

    /// No service any more.
    pub(crate) fn forget(&mut self) {
        self.generation += 1;
        let nothing = Snapshot { generation: self.generation, ..Snapshot::default() };
        self.current.store(Arc::new(nothing));
    }

    /// The value of a metric, by its name and labels as they are served; 0 if it is not.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics.render().unwrap();
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits for a metric to reach a value.
    #[track_caller]
    pub(crate) fn await_metric(&self, name: &str, labels: &[&str], value: f64) {
        let began = Instant::now();
        while (self.metric(name, labels) - value).abs() > f64::EPSILON {
            assert!(
                began.elapsed() < LIMIT,
                "{name} {labels:?} is {} and not {value}:\n{}",
                self.metric(name, labels),
                self.metrics.render().unwrap()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for so many requests with this code class and reason.
    #[track_caller]
    pub(crate) fn await_requests(&self, code: &str, reason: &str, count: f64) {
        let labels = [format!("code=\"{code}\""), format!("reason=\"{reason}\"")];
        self.await_metric("sluice_requests_total", &[&labels[0], &labels[1]], count);
    }

    /// Waits for so many connections that detection has found to be this.
    #[track_caller]
    pub(crate) fn await_detected(&self, outcome: &str, count: f64) {
        self.await_metric("sluice_connections_total", &[&format!("outcome=\"{outcome}\"")], count);
    }

    /// Connections to endpoints that have been opened.
    pub(crate) fn opened(&self) -> f64 {
        self.metric("sluice_upstream_connects_total", &["outcome=\"opened\""])
    }

    /// Waits until no connection to an endpoint is left either, not even an idle one.
    #[track_caller]
    pub(crate) fn await_nothing(&self) {
        self.await_rest();
        self.await_metric("sluice_connections_open", &["peer=\"upstream\""], 0.0);
    }

    /// Waits until nothing goes on any more: no request, no tunnel, no caller.
    #[track_caller]
    pub(crate) fn await_rest(&self) {
        self.await_metric("sluice_requests_in_flight", &[], 0.0);
        self.await_metric("sluice_tunnels_in_flight", &[], 0.0);
        self.await_metric("sluice_connections_open", &["peer=\"client\""], 0.0);
        let began = Instant::now();
        let busy = |given: &Given| given.load.in_flight.load(Ordering::Relaxed) > 0;
        while self.service.endpoints.iter().any(busy) {
            assert!(began.elapsed() < LIMIT, "an endpoint is still counted as busy");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
