//! A proxy with one pod whose connections are all meant for one service.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, atomic::AtomicBool},
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use sluice::{
    cluster::model::{Destination, Protocol, Service, Snapshot, Workload},
    govern::{
        endpoint::{Endpoint, Load},
        lane::TagNames,
    },
    observe::{access_log::AccessLog, metrics::Metrics},
    proxy::{Network, OpenPod, Options, Pod, Proxy},
};

/// No test waits for longer than this for something that is to happen.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The address that callers mean.
const DIALLED: &str = "10.96.0.1:80";

/// A running proxy.
pub(crate) struct Rig {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) proxy: Proxy,
    pub(crate) pod: Option<OpenPod>,
    current: Arc<ArcSwap<Snapshot>>,
    service: Builder,
    listener: SocketAddr,
}

/// What stands behind the service.
#[derive(Clone, Default)]
pub(crate) struct Builder {
    endpoints: Vec<(SocketAddr, Option<&'static str>)>,
    protocol: Protocol,
    caller: Option<&'static str>,
    not_redirected: bool,
    connections: Option<usize>,
    load: Vec<Arc<Load>>,
}

struct Loopback {
    redirected: Option<SocketAddr>,
}

impl Network for Loopback {
    fn original_destination(&self, _: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        Ok(self.redirected)
    }

    fn socket(&self, to: SocketAddr) -> io::Result<socket2::Socket> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Builder {
    pub(crate) fn endpoint(mut self, address: SocketAddr) -> Self {
        self.endpoints.push((address, None));
        self
    }

    pub(crate) fn lane(mut self, tag: &'static str, address: SocketAddr) -> Self {
        self.endpoints.push((address, Some(tag)));
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

    pub(crate) fn connections(mut self, limit: usize) -> Self {
        self.connections = Some(limit);
        self
    }

    fn snapshot(&self) -> Snapshot {
        let endpoints: Vec<_> = self
            .endpoints
            .iter()
            .zip(&self.load)
            .map(|((address, tag), load)| {
                Arc::new(Endpoint {
                    address: *address,
                    tag: tag.map(|tag| tag.parse().unwrap()),
                    ready: true,
                    serving: true,
                    terminating: false,
                    zone: None,
                    node: None,
                    pod: None,
                    load: load.clone(),
                })
            })
            .collect();
        let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
        let mut lanes = std::collections::BTreeMap::<_, Vec<_>>::new();
        for endpoint in &endpoints {
            if let Some(tag) = &endpoint.tag {
                lanes.entry(tag.clone()).or_default().push(endpoint.clone());
            }
        }
        let service = Arc::new(Service {
            namespace: "shop".into(),
            name: "orders".into(),
            port: 80,
            port_name: None,
            protocol: self.protocol,
            baseline: endpoints.iter().filter(|endpoint| endpoint.tag.is_none()).cloned().collect(),
            endpoints,
            lanes,
            session_affinity: false,
        });
        snapshot.destinations.insert(DIALLED.parse().unwrap(), Destination { service, pinned: None });
        snapshot
    }

    pub(crate) fn start(mut self) -> Rig {
        self.load = self.endpoints.iter().map(|_| Arc::default()).collect();
        let current = Arc::new(ArcSwap::from_pointee(self.snapshot()));
        let metrics = Arc::new(Metrics::new());
        let proxy = Proxy::start(&Options {
            workers: 1,
            current: current.clone(),
            metrics: metrics.clone(),
            access_log: AccessLog::off(),
            tag_names: Arc::new(TagNames::new(&["x-mse-tag".parse().unwrap()]).unwrap()),
            connections_per_pod: self.connections.unwrap_or(1000),
            idle_grace: Duration::from_millis(50),
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let pod = Pod {
            workload: ArcSwap::from_pointee(Workload {
                uid: "uid-1".into(),
                namespace: "shop".into(),
                name: "gateway-1".into(),
                tag: self.caller.map(|tag| tag.parse().unwrap()),
                ips: vec!["10.244.0.1".parse().unwrap()],
                node: None,
                zone: None,
                host_network: false,
                capture: true,
                terminating: false,
                finished: false,
            }),
            network: Arc::new(Loopback {
                redirected: (!self.not_redirected).then(|| DIALLED.parse().unwrap()),
            }),
        };
        let pod = proxy.open(&Arc::new(pod), vec![listener]);
        Rig { metrics, proxy, pod: Some(pod), current, service: self, listener: address }
    }
}

impl Rig {
    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// A proxy before one endpoint that is found by its first bytes.
    pub(crate) fn before(origin: &Origin) -> Self {
        Self::builder().endpoint(origin.address).start()
    }

    /// A caller's connection.
    pub(crate) fn dial(&self) -> Peer {
        Peer::new(TcpStream::connect(self.listener).unwrap())
    }

    /// Puts the service's endpoints in force that `change` leaves.
    pub(crate) fn change(&mut self, change: impl FnOnce(Builder) -> Builder) {
        self.service = change(std::mem::take(&mut self.service));
        self.service.load = self.service.endpoints.iter().map(|_| Arc::default()).collect();
        self.current.store(Arc::new(self.service.snapshot()));
    }

    /// No service any more.
    pub(crate) fn forget(&self) {
        self.current.store(Arc::new(Snapshot { generation: 2, ..Snapshot::default() }));
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
    pub(crate) fn await_metric(&self, name: &str, labels: &[&str], value: f64) {
        let began = std::time::Instant::now();
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
}

/// One end of a connection, with what a test wants of it.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    /// What was read and not yet asked for.
    ahead: Vec<u8>,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, ahead: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let read = self.stream.read(&mut buffer)?;
        self.ahead.extend_from_slice(&buffer[..read]);
        Ok(read)
    }

    /// Everything up to and with `end`.
    pub(crate) fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end.as_bytes()) {
                let rest = self.ahead.split_off(at + end.len());
                let taken = std::mem::replace(&mut self.ahead, rest);
                return String::from_utf8_lossy(&taken).into_owned();
            }
            let read = self.more().unwrap_or_else(|error| panic!("{error} after {:?}", self.pending()));
            assert!(read > 0, "the end came after {:?} and before {end:?}", self.pending());
        }
    }

    /// Exactly so many bytes.
    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.ahead.len() < length {
            let read = self.more().unwrap_or_else(|error| panic!("{error} after {:?}", self.pending()));
            assert!(read > 0, "the end came after {} of {length} bytes", self.ahead.len());
        }
        let rest = self.ahead.split_off(length);
        std::mem::replace(&mut self.ahead, rest)
    }

    /// A head.
    pub(crate) fn head(&mut self) -> String {
        self.until("\r\n\r\n")
    }

    /// Everything to an orderly end.
    pub(crate) fn rest(&mut self) -> String {
        while self.more().unwrap_or_else(|error| panic!("{error} after {:?}", self.pending())) > 0 {}
        String::from_utf8_lossy(&std::mem::take(&mut self.ahead)).into_owned()
    }

    /// Whether the connection ends with a reset (and not in order).
    pub(crate) fn is_reset(&mut self) -> bool {
        loop {
            match self.more() {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Ends this side.
    pub(crate) fn finish(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Breaks the connection off with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn pending(&self) -> String {
        String::from_utf8_lossy(&self.ahead).into_owned()
    }
}

/// A server on loopback that does what a test says with each connection.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    /// Heads and other notes that its script has written down.
    pub(crate) notes: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Origin {
    /// `script` gets each connection with its number, on a thread of its own.
    pub(crate) fn new(script: impl Fn(usize, &mut Peer, &dyn Fn(String)) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let notes = Arc::new(Mutex::new(Vec::new()));
        let (stopped, noted, script) = (stop.clone(), notes.clone(), Arc::new(script));
        thread::spawn(move || {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let (script, noted) = (script.clone(), noted.clone());
                thread::spawn(move || {
                    script(number, &mut Peer::new(stream), &|note| noted.lock().unwrap().push(note));
                });
            }
        });
        Self { address, notes, stop }
    }

    /// Answers every request with 200 and `body`, keeping connections.
    pub(crate) fn fixed(body: &'static str) -> Self {
        Self::new(move |_, peer, note| {
            while let Some(head) = request_head(peer) {
                note(head);
                peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
            }
        })
    }

    /// An address at which nobody listens.
    pub(crate) fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    pub(crate) fn noted(&self) -> Vec<String> {
        self.notes.lock().unwrap().clone()
    }
}

/// The next head, or `None` at the end of the connection.
pub(crate) fn request_head(peer: &mut Peer) -> Option<String> {
    while !peer.pending().contains("\r\n\r\n") {
        if !matches!(peer.more(), Ok(1..)) {
            return None;
        }
    }
    Some(peer.head())
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}
