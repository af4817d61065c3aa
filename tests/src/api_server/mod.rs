//! A double of the Kubernetes API server: lists and watches over TLS, with whatever faults a test asks for.
//!
//! It keeps objects and the events that led to them, as the real one does: a list is of a resourceVersion, a watch
//! begins after one, and one that is too old is Gone. Lists come in pages or as streams, watches in chunks with
//! bookmarks; what is executed in a pod is a program of the test's choice. It runs on a thread of its own, so that a test may stop the clock of its own runtime.
//!
//! What it does not do is what clients do not see: storage, admission, controllers. It validates what is written with
//! `fieldValidation=Strict`, as kubectl does, and nothing else: by the types of Kubernetes' own kinds, and by the
//! CustomResourceDefinitions that were applied to it.

mod answer;
mod counted;
mod exec;
mod fault;
mod schema;
mod state;
pub mod strict;
mod tls;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::Runtime,
    task::{JoinHandle, JoinSet},
};

use self::{
    counted::Counted,
    state::{Shared, State},
    tls::Identity,
};
pub use self::{
    exec::{Exec, PROTOCOLS},
    fault::{Break, Fault},
    schema::Schema,
};

/// To a connection, as many as Kubernetes takes.
const STREAMS: u32 = 100;

/// A running double. Dropping it ends it.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    /// While it is away: its port is nobody else's, but nobody listens.
    reserved: Option<TcpSocket>,
    accepting: Option<JoinHandle<()>>,
    /// Ended without waiting, as the last handle may be dropped on a runtime.
    runtime: Option<Runtime>,
}

impl ApiServer {
    /// One that answers, on a free port of this network namespace.
    pub fn start() -> Result<Self> {
        let mut server = Self::away()?;
        server.come()?;
        Ok(server)
    }

    /// There is an address, but nobody answers there yet.
    pub fn away() -> Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("api-server").enable_all().build()?;
        let reserved = {
            let _in_it = runtime.enter();
            reserve((Ipv4Addr::LOCALHOST, 0).into())?
        };
        let address = reserved.local_addr()?;
        Ok(Self {
            address,
            shared: Arc::default(),
            identity: Arc::new(Identity::new()?),
            reserved: Some(reserved),
            accepting: None,
            runtime: Some(runtime),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to answer, where it was away.
    pub fn come(&mut self) -> Result<()> {
        let reserved = self.reserved.take().context("the API server is there already")?;
        let runtime = self.runtime.as_ref().context("the runtime lives as long as the server")?;
        let _in_it = runtime.enter();
        let listener = reserved.listen(1024)?;
        let accepting = accept(listener, self.shared.clone(), self.identity.clone());
        self.accepting = Some(runtime.spawn(accepting));
        Ok(())
    }

    /// Closes everything: whoever calls is refused. Objects and versions stay, as they do in its storage.
    pub fn go(&mut self) -> Result<()> {
        let Some(accepting) = self.accepting.take() else { return Ok(()) };
        accepting.abort();
        while !accepting.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let runtime = self.runtime.as_ref().context("the runtime lives as long as the server")?;
        let _in_it = runtime.enter();
        // A process that another test is starting holds a copy of the listener until it has become its program.
        self.reserved = Some(crate::eventually("the port is free again", || reserve(self.address))?);
        Ok(())
    }

    /// Creates the object, or puts it in another's place. `resource` is the plural, as in its path.
    pub fn apply(&self, resource: &str, object: Value) {
        self.state().apply(resource, object);
    }

    /// The object that is there.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state().get(resource, namespace, name)
    }

    /// All objects of a namespace.
    pub fn all(&self, resource: &str, namespace: &str) -> Vec<Value> {
        self.state().all(resource, namespace)
    }

    /// Deletes the object; false if there was none.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> bool {
        self.state().delete(resource, namespace, name)
    }

    /// Forgets all events: whoever is not up to date cannot resume.
    pub fn compact(&self) {
        self.state().compact();
    }

    /// What happens to a storage that is restored from a backup: the objects are what they are, and all versions are
    /// lower than they were.
    pub fn restore(&self) {
        self.state().restore();
    }

    /// The last version that was given.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// From now on requests of this kind (`list`, `watch`, or the lower-case method of another) get this; `None` for
    /// what is right.
    pub fn fault(&self, verb: &'static str, resource: &str, fault: Option<Fault>) {
        self.state().set_fault(verb, resource, fault);
    }

    /// Breaks all open watches off.
    pub fn interrupt(&self, how: Break) {
        self.state().interrupt(how);
    }

    /// Whether it has streaming lists, as it does at the start.
    pub fn set_streaming(&self, streaming: bool) {
        self.state().streaming = streaming;
    }

    /// Whether Services, EndpointSlices and Pods may be read in the whole cluster, as at the start, or in a namespace only.
    pub fn set_cluster_wide(&self, allowed: bool) {
        self.state().namespaced_only = !allowed;
    }

    /// How often a watch gets a bookmark; `None`: never, but at the end of a streaming list.
    pub fn set_bookmarks(&self, every: Option<Duration>) {
        self.state().bookmarks = every;
    }

    /// Objects to a page of a list, at most.
    pub fn set_page(&self, objects: usize) {
        self.state().page = objects;
    }

    /// Bytes to a chunk of a watch, at most, and the pause between two.
    pub fn set_chunks(&self, bytes: usize, pause: Duration) {
        self.state().chunks = Some((bytes, pause));
    }

    /// Takes only these bearer tokens, or a client certificate; `None` for everybody, as at the start.
    pub fn set_tokens(&self, tokens: Option<&[&str]>) {
        self.state().tokens = tokens.map(|tokens| tokens.iter().map(ToString::to_string).collect());
    }

    /// From now on this runs when somebody executes something in a pod.
    pub fn set_exec(&self, runs: impl Fn(&Exec) -> Result<Command, String> + Send + Sync + 'static) {
        self.state().kubelets.runs = Arc::new(runs);
    }

    /// The versions of the protocol that it has for that: at the start [`PROTOCOLS`].
    pub fn set_exec_protocols(&self, protocols: &[&'static str]) {
        self.state().kubelets.protocols = protocols.to_vec();
    }

    /// How many programs run that were executed.
    pub fn executing(&self) -> usize {
        self.state().kubelets.running.load(Ordering::Relaxed)
    }

    /// How often it was asked so and has answered well.
    pub fn count(&self, verb: &'static str, resource: &str, namespace: &str) -> usize {
        self.state().count(verb, resource, namespace)
    }

    /// How often it was asked at all, refusals and faults included.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Whether it takes HTTP/2 from now on, as it does at the start.
    pub fn set_http2(&self, http2: bool) {
        self.shared.without_http2.store(!http2, Ordering::Relaxed);
    }

    /// How many connections are open, and how many were accepted.
    pub fn connections(&self) -> (usize, usize) {
        let costs = &self.shared.costs;
        (costs.open.load(Ordering::Relaxed), costs.accepted.load(Ordering::Relaxed))
    }

    /// How many bytes it has sent, as they are on the wire.
    pub fn sent(&self) -> u64 {
        self.shared.costs.sent.load(Ordering::Relaxed)
    }

    /// What called itself how, when it asked.
    pub fn agents(&self) -> BTreeSet<String> {
        self.state().agents.clone()
    }

    /// Verb and resource of all that it was asked for, refusals and faults included, as roles name them:
    /// `("watch", "endpointslices.discovery.k8s.io")`.
    pub fn asked(&self) -> BTreeSet<(&'static str, String)> {
        self.state().asked.clone()
    }

    /// Resource and namespace of the watches that are open.
    pub fn open(&self) -> Vec<(String, String)> {
        self.state().open()
    }

    /// Writes a kubeconfig with its files into the directory, for the bearer token in `<directory>/token`, which is
    /// read anew as a service account's is.
    pub fn kubeconfig(&self, directory: &Path, token: &str) -> Result<PathBuf> {
        fs::write(directory.join("token"), token)?;
        self.write_kubeconfig(directory, &format!("tokenFile: {}", directory.join("token").display()))
    }

    /// [`ApiServer::kubeconfig`] with a client certificate that the server has signed.
    pub fn kubeconfig_with_certificate(&self, directory: &Path) -> Result<PathBuf> {
        let (certificate, key) = self.identity.client()?;
        let (certificate_file, key_file) = (directory.join("client.pem"), directory.join("client.key"));
        fs::write(&certificate_file, certificate)?;
        fs::write(&key_file, key)?;
        let user = format!(
            "client-certificate: {}\n    client-key: {}",
            certificate_file.display(),
            key_file.display()
        );
        self.write_kubeconfig(directory, &user)
    }

    /// Writes into the directory what the kubelet mounts into a pod for its service account, with this token.
    pub fn service_account(&self, directory: &Path, namespace: &str, token: &str) -> Result<()> {
        for (name, content) in
            [("token", token), ("namespace", namespace), ("ca.crt", &self.identity.authority())]
        {
            let path = directory.join(name);
            fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn write_kubeconfig(&self, directory: &Path, user: &str) -> Result<PathBuf> {
        let authority = directory.join("ca.pem");
        fs::write(&authority, self.identity.authority())?;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: double\n\
             clusters:\n- name: double\n  cluster:\n    server: https://{}\n    certificate-authority: {}\n\
             users:\n- name: agent\n  user:\n    {user}\n\
             contexts:\n- name: double\n  context: {{cluster: double, user: agent}}\n",
            self.address,
            authority.display(),
        );
        let path = directory.join("kubeconfig");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn reserve(address: SocketAddr) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("cannot listen on {address}"))?;
    Ok(socket)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, identity: Arc<Identity>) {
    // Dropped with this task, and with it all connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let http2 = !shared.without_http2.load(Ordering::Relaxed);
        let (shared, acceptor) = (shared.clone(), identity.acceptor(http2));
        connections.spawn(async move {
            // Small events must not wait for each other.
            let _ = stream.set_nodelay(true);
            let stream = Counted::new(stream, shared.costs.clone());
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let certified = stream.get_ref().1.peer_certificates().is_some();
            let service = service_fn(|request| {
                shared.requests.fetch_add(1, Ordering::Relaxed);
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer::answer(request, &shared, certified).await) }
            });
            // A watch that is broken off, or a client that goes, ends the connection in disorder.
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(STREAMS);
            let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Counts requests.
type Counter = AtomicUsize;
