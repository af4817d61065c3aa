//! A double of the API server: lists and watches over real HTTP, with whatever faults a test asks for.
//!
//! It keeps objects and the events that led to them, as the real one does: a list is of a resourceVersion, a watch
//! begins after one, and one that is too old is Gone. Lists come in pages, watches in chunks with bookmarks.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::Client;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Resource, namespace (empty for none) and name.
type Key = (String, String, String);
type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// While it is away: its port is nobody else's, but nobody listens.
    reserved: Option<TcpSocket>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    events: Vec<Event>,
    /// Watches from before this version are Gone.
    oldest: u64,
    /// Answered instead, by verb and resource.
    faults: BTreeMap<(&'static str, String), u16>,
    /// Watches that began before the last cut end there, in disorder.
    cuts: u64,
    /// Objects to a page at most.
    page: usize,
    /// Answered requests by verb, resource and namespace.
    counts: BTreeMap<(&'static str, String, String), usize>,
    /// Watches that are open.
    open: BTreeSet<(u64, String, String)>,
    next_watch: u64,
}

#[derive(Clone)]
struct Event {
    version: u64,
    key: Key,
    kind: &'static str,
    object: Value,
}

impl Server {
    /// There is an address, but nobody answers there yet.
    pub(crate) fn away() -> Self {
        let reserved = reserve("127.0.0.1:0".parse().unwrap());
        let address = reserved.local_addr().unwrap();
        let state = State { version: 1, page: 500, ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: watch::channel(()).0 });
        Self { address, shared, reserved: Some(reserved), accepting: None }
    }

    pub(crate) fn start() -> Self {
        let mut server = Self::away();
        server.come();
        server
    }

    pub(crate) fn come(&mut self) {
        let listener = self.reserved.take().expect("it is away").listen(1024).unwrap();
        self.accepting = Some(tokio::spawn(accept(listener, self.shared.clone())));
    }

    /// Closes everything: whoever calls is refused.
    pub(crate) async fn go(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
            self.reserved = Some(reserve(self.address));
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::try_from(kube::Config::new(format!("http://{}", self.address).parse().unwrap())).unwrap()
    }

    /// Creates the object, or puts it in another's place.
    pub(crate) fn apply(&self, resource: &str, mut object: Value) {
        {
            let mut state = self.state();
            state.version += 1;
            let version = state.version;
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            let key = (resource.to_owned(), text("namespace"), text("name"));
            let before = state.objects.insert(key.clone(), object.clone());
            // To a watch of live pods one that ends is one that goes.
            let kind = match before {
                Some(_) if is_done(&object) => "DELETED",
                Some(_) => "MODIFIED",
                None => "ADDED",
            };
            state.events.push(Event { version, key, kind, object });
        }
        self.shared.changed.send_replace(());
    }

    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        {
            let mut state = self.state();
            let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
            let mut object = state.objects.remove(&key).unwrap();
            state.version += 1;
            let version = state.version;
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            state.events.push(Event { version, key, kind: "DELETED", object });
        }
        self.shared.changed.send_replace(());
    }

    /// Forgets all events: whoever is not up to date cannot resume.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.oldest = state.version;
        state.events.clear();
    }

    /// Breaks all watches off in the middle.
    pub(crate) fn cut(&self) {
        self.state().cuts += 1;
        self.shared.changed.send_replace(());
    }

    /// From now on answers this instead (0: as it should).
    pub(crate) fn fault(&self, verb: &'static str, resource: &str, code: u16) {
        self.state().faults.insert((verb, resource.to_owned()), code);
    }

    pub(crate) fn page(&self, objects: usize) {
        self.state().page = objects;
    }

    /// How often it was asked so and has answered well.
    pub(crate) fn count(&self, verb: &'static str, resource: &str, namespace: &str) -> usize {
        let key = (verb, resource.to_owned(), namespace.to_owned());
        self.state().counts.get(&key).copied().unwrap_or_default()
    }

    /// Resource and namespace of the watches that are open.
    pub(crate) fn open(&self) -> Vec<(String, String)> {
        let state = self.state();
        let mut open: Vec<_> =
            state.open.iter().map(|(_, resource, namespace)| (resource.clone(), namespace.clone())).collect();
        open.sort();
        open
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

fn reserve(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &shared);
                async move { Ok::<_, Infallible>(answer) }
            });
            // A watch that is cut, or a client that goes, ends the connection in disorder.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let path: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    let (namespace, resource) = match path[..] {
        ["api", "v1", resource] => ("", resource),
        ["api", "v1", "namespaces", namespace, resource]
        | ["apis", "discovery.k8s.io", "v1", "namespaces", namespace, resource] => (namespace, resource),
        ["api", "v1", "nodes", name] => return node(shared, name),
        _ => return refusal(404, "no such path"),
    };
    let query: BTreeMap<_, _> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let watching = query.get("watch") == Some(&"true");
    let verb = if watching { "watch" } else { "list" };
    let mut state = shared.state.lock().unwrap();
    match state.faults.get(&(verb, resource.to_owned())) {
        None | Some(0) => {}
        Some(code) => return refusal(*code, &format!("cannot {verb} {resource}, for the test")),
    }
    *state.counts.entry((verb, resource.to_owned(), namespace.to_owned())).or_default() += 1;
    if watching {
        let from = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        return watch(&mut state, shared, resource, namespace, from);
    }
    let live = query.contains_key("fieldSelector");
    let all: Vec<&Value> = state
        .objects
        .iter()
        .filter(|((of, within, _), object)| {
            of == resource && within == namespace && !(live && is_done(object))
        })
        .map(|(_, object)| object)
        .collect();
    let start: usize = query.get("continue").and_then(|start| start.parse().ok()).unwrap_or(0);
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX).min(state.page);
    let end = all.len().min(start + limit);
    let mut metadata = json!({ "resourceVersion": state.version.to_string() });
    if end < all.len() {
        metadata["continue"] = json!(end.to_string());
    }
    let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": &all[start..end] });
    respond(StatusCode::OK, full(&list))
}

/// One Node by its name.
fn node(shared: &Arc<Shared>, name: &str) -> Response<Body> {
    let mut state = shared.state.lock().unwrap();
    match state.faults.get(&("get", "nodes".to_owned())) {
        None | Some(0) => {}
        Some(code) => return refusal(*code, "cannot get nodes, for the test"),
    }
    *state.counts.entry(("get", "nodes".to_owned(), String::new())).or_default() += 1;
    match state.objects.get(&("nodes".to_owned(), String::new(), name.to_owned())) {
        Some(node) => respond(StatusCode::OK, full(node)),
        None => refusal(404, &format!("nodes {name:?} not found")),
    }
}

fn watch(
    state: &mut State,
    shared: &Arc<Shared>,
    resource: &str,
    namespace: &str,
    from: u64,
) -> Response<Body> {
    if from < state.oldest {
        let status = status(410, "too old resource version");
        return respond(StatusCode::OK, full(&json!({ "type": "ERROR", "object": status })));
    }
    let id = state.next_watch;
    state.next_watch += 1;
    let open = Open { shared: shared.clone(), id: (id, resource.to_owned(), namespace.to_owned()) };
    state.open.insert(open.id.clone());
    let (cuts, changed) = (state.cuts, shared.changed.subscribe());
    let begin = (open, changed, from, false);
    let body = stream::unfold(begin, move |(open, mut changed, mut seen, mut ended)| async move {
        if ended {
            return None;
        }
        loop {
            let mut chunk = String::new();
            {
                let state = open.shared.state.lock().unwrap();
                if state.cuts > cuts {
                    ended = true;
                } else {
                    let (_, resource, namespace) = &open.id;
                    let news = state.events.iter().filter(|event| {
                        event.version > seen && event.key.0 == *resource && event.key.1 == *namespace
                    });
                    for event in news {
                        chunk += &json!({ "type": event.kind, "object": event.object }).to_string();
                        chunk.push('\n');
                    }
                    if state.version > seen {
                        seen = state.version;
                        let kind = match resource.as_str() {
                            "namespaces" => "Namespace",
                            "services" => "Service",
                            "pods" => "Pod",
                            _ => "EndpointSlice",
                        };
                        let version = seen.to_string();
                        let bookmark = json!({ "kind": kind, "apiVersion": "v1", "metadata": { "resourceVersion": version } });
                        chunk += &json!({ "type": "BOOKMARK", "object": bookmark }).to_string();
                        chunk.push('\n');
                    }
                }
            }
            if ended {
                let cut = Err(io::Error::other("cut"));
                return Some((cut, (open, changed, seen, ended)));
            }
            if !chunk.is_empty() {
                return Some((Ok(Frame::data(Bytes::from(chunk))), (open, changed, seen, ended)));
            }
            if changed.changed().await.is_err() {
                return None;
            }
        }
    });
    respond(StatusCode::OK, StreamBody::new(body).boxed_unsync())
}

/// Counts as open until it is dropped.
struct Open {
    shared: Arc<Shared>,
    id: (u64, String, String),
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Ok(mut state) = self.shared.state.lock() {
            state.open.remove(&self.id);
        }
    }
}

fn is_done(object: &Value) -> bool {
    matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn refusal(code: u16, message: &str) -> Response<Body> {
    respond(StatusCode::from_u16(code).unwrap(), full(&status(code, message)))
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        410 => "Expired",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn full(value: &Value) -> Body {
    Full::new(Bytes::from(value.to_string() + "\n")).map_err(|never| match never {}).boxed_unsync()
}

fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(body).unwrap()
}
