//! From a request to its answer.

use std::{collections::BTreeMap, fmt, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER, USER_AGENT},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Break, Fault, exec,
    state::{Open, Selection, Shared, State, Stored},
};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A request's path: `/api/v1/namespaces/shop/pods/a/status`, `/apis/apps/v1/deployments`.
struct Path {
    /// Empty for the core group.
    group: String,
    namespace: String,
    resource: String,
    name: Option<String>,
    /// Of which object it is a part: `status`.
    part: Option<String>,
}

impl Path {
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/').map(str::to_owned).peekable();
        let group = match parts.next()?.as_str() {
            "api" => String::new(),
            "apis" => parts.next()?,
            _ => return None,
        };
        let _version = parts.next()?;
        let first = parts.next()?;
        let second = parts.next();
        if first == "namespaces" && parts.peek().is_some_and(|third| third != "status") {
            let (resource, name, part) = (parts.next()?, parts.next(), parts.next());
            return Some(Self { group, namespace: second?, resource, name, part });
        }
        Some(Self { group, namespace: String::new(), resource: first, name: second, part: parts.next() })
    }
}

impl fmt::Display for Path {
    /// As `kubectl auth can-i` names what it is about: `trafficlanes/status.sluice.dev`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource)?;
        if let Some(part) = &self.part {
            write!(f, "/{part}")?;
        }
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

pub(super) async fn answer(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
    certified: bool,
) -> Response<Body> {
    let tokens = shared.state().tokens.clone();
    if let Some(tokens) = tokens {
        let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let known =
            shown.and_then(|shown| shown.strip_prefix("Bearer ")).is_some_and(|t| tokens.contains(t.trim()));
        if !known && !certified {
            return refusal(401, "Unauthorized");
        }
    }
    let Some(path) = Path::parse(request.uri().path()) else { return refusal(404, "no such path") };
    if path.resource == "pods" && path.part.as_deref() == Some("exec") {
        return execute(request, &path, shared).await;
    }
    let (head, body) = request.into_parts();
    let query = query(head.uri.query().unwrap_or_default());
    let is = |name: &str| query.get(name).is_some_and(|value| value == "true" || value == "1");
    let verb = match (&head.method, &path.name) {
        (&Method::GET, None) if is("watch") => "watch",
        (&Method::GET, None) => "list",
        (&Method::GET, Some(_)) => "get",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) => "delete",
        _ => return refusal(405, "no such verb"),
    };
    shared.state().asked.insert((verb, path.to_string()));
    let agent = head.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    shared.state().agents.insert(agent.to_owned());
    let fault = shared.state().fault_of(verb, &path.resource);
    if let Some(fault) = fault {
        match fault {
            Fault::Status(code) => {
                return refusal(code, &format!("cannot {verb} {}, for the test", path.resource));
            }
            Fault::Overloaded(code, seconds) => {
                let mut answer =
                    respond(code, full("Too many requests, please try again later.\n".to_owned()));
                answer.headers_mut().insert(RETRY_AFTER, seconds.into());
                return answer;
            }
            Fault::ErrorEvent(code) => {
                let event = json!({ "type": "ERROR", "object": status(code, "for the test") });
                return respond(200, full(event.to_string() + "\n"));
            }
            Fault::Empty => return respond(200, full(String::new())),
            Fault::Html => return respond(200, full("<html><body>Please log in</body></html>\n".to_owned())),
            Fault::Redirect => {
                let mut answer = respond(302, full(String::new()));
                let login = "https://login.example/?state=secret".parse().expect("a fixed, valid value");
                answer.headers_mut().insert(LOCATION, login);
                return answer;
            }
            Fault::Page(code) => {
                let mut answer = respond(code, full("<html><body>No such host</body></html>\n".to_owned()));
                let kind = "text/html; charset=utf-8".parse().expect("a fixed, valid value");
                answer.headers_mut().insert(CONTENT_TYPE, kind);
                return answer;
            }
            Fault::Hang => return std::future::pending().await,
            Fault::Stall => {
                let (send, receive) = mpsc::channel(1);
                let _ = send.send(Ok(Bytes::from_static(b"{\"type\":\"ADD"))).await;
                tokio::spawn(async move { send.closed().await });
                return respond(200, stream(receive));
            }
            Fault::Slow(delay) => tokio::time::sleep(delay).await,
        }
    }
    let wide =
        path.namespace.is_empty() && ["services", "endpointslices", "pods"].contains(&path.resource.as_str());
    if wide && matches!(verb, "list" | "watch") && shared.state().namespaced_only {
        return refusal(403, &format!("cannot {verb} {} in the whole cluster", path.resource));
    }
    let selection = Selection::new(&path.namespace, query.get("fieldSelector").map_or("", String::as_str));
    match verb {
        "list" => list(&mut shared.state(), &path, &selection, &query),
        "watch" => watch(shared, &path, selection, &query),
        "get" => match shared.state().get(
            &path.resource,
            &path.namespace,
            path.name.as_deref().unwrap_or_default(),
        ) {
            Some(object) => respond(200, full(object.to_string())),
            None => refusal(404, "not found"),
        },
        _ => {
            let Ok(body) = body.collect().await else { return refusal(400, "the body broke off") };
            let body = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
            let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            let by_type = kind.starts_with("application/strategic-merge-patch");
            if query.get("fieldValidation").is_some_and(|how| how == "Strict") && path.part.is_none() {
                let refusals = shared.state().refusals(&path.resource, &body);
                if !refusals.is_empty() {
                    return refusal(422, &refusals.join("; "));
                }
            }
            write(&mut shared.state(), verb, &path, body, by_type)
        }
    }
}

/// Executes in a pod. Who asks needs the right to `create`, and before Kubernetes 1.35, to whom a WebSocket is a GET, to `get`.
async fn execute(request: Request<Incoming>, path: &Path, shared: &Arc<Shared>) -> Response<Body> {
    for verb in ["get", "create"] {
        shared.state().asked.insert((verb, path.to_string()));
    }
    let fault = shared.state().fault_of("create", "pods/exec");
    match fault {
        Some(Fault::Status(code)) => {
            return refusal(
                code,
                &format!("cannot create resource \"pods/exec\" in {}, for the test", path.namespace),
            );
        }
        // As a proxy on the way answers that knows no WebSockets.
        Some(Fault::Empty) => return respond(200, full(String::new())),
        Some(_) => return std::future::pending().await,
        None => {}
    }
    let name = path.name.as_deref().unwrap_or_default();
    let (pod, kubelets) = {
        let state = shared.state();
        (state.get("pods", &path.namespace, name), state.kubelets.clone())
    };
    let Some(pod) = pod else { return refusal(404, &format!("pods \"{name}\" not found")) };
    match exec::exec(request, &pod, &kubelets) {
        Ok(response) => {
            shared.state().answered("create", "pods/exec", &path.namespace);
            response
        }
        Err((code, why)) => refusal(code, &why),
    }
}

fn query(text: &str) -> BTreeMap<String, String> {
    pairs(text).collect()
}

/// The parameters of a query, in their order.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
    };
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(move |(name, value)| (decode(name), decode(value)))
}

fn list(
    state: &mut State,
    path: &Path,
    selection: &Selection,
    query: &BTreeMap<String, String>,
) -> Response<Body> {
    let asked = query.get("resourceVersion").and_then(|version| version.parse::<u64>().ok()).unwrap_or(0);
    if asked > state.version {
        return refusal(504, "Too large resource version");
    }
    // A page's token: the version of the first page, and the last name that was told.
    let token = query.get("continue").and_then(|token| {
        let (version, name) = token.split_once(' ')?;
        let (namespace, name) = name.split_once(' ')?;
        Some((version.parse::<u64>().ok()?, (namespace.to_owned(), name.to_owned())))
    });
    if token.as_ref().is_some_and(|(version, _)| *version < state.oldest) {
        return refusal(410, "The provided continue parameter is too old");
    }
    let version = token.as_ref().map_or(state.version, |(version, _)| *version);
    let limit =
        query.get("limit").and_then(|limit| limit.parse().ok()).map(|limit: usize| limit.min(state.page));
    // Equality only, and only in lists: nobody here asks for more.
    let labels: Vec<(&str, &str)> = query
        .get("labelSelector")
        .into_iter()
        .flat_map(|terms| terms.split(','))
        .filter_map(|term| term.split_once('='))
        .collect();
    let labelled = |object: &Stored| {
        labels.is_empty() || {
            let object: Value = serde_json::from_str(&object.json).unwrap_or(Value::Null);
            labels.iter().all(|(name, value)| object["metadata"]["labels"][name] == **value)
        }
    };
    let mut items = Vec::new();
    let mut more = None;
    if let Some(collection) = state.collections.get(&path.resource) {
        for (name, object) in &collection.objects {
            let told = token.as_ref().is_some_and(|(_, last)| name <= last);
            if told || !selection.is_in(&name.0) || !selection.matches(object) || !labelled(object) {
                continue;
            }
            if limit.is_some_and(|limit| items.len() >= limit) {
                more = Some(true);
                break;
            }
            items.push((name, object.clone()));
        }
    }
    let next = more.and_then(|_| items.last()).map(|(name, _)| format!("{version} {} {}", name.0, name.1));
    let metadata = json!({ "resourceVersion": version.to_string(), "continue": next.unwrap_or_default() });
    let objects: Vec<&str> = items.iter().map(|(_, object)| object.json.as_str()).collect();
    let text = format!(
        "{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{metadata},\"items\":[{}]}}\n",
        objects.join(",")
    );
    state.answered("list", &path.resource, &path.namespace);
    respond(200, full(text))
}

/// `by_type`: what a patch says of a condition is merged with the condition of that type, as with a strategic merge patch.
fn write(state: &mut State, verb: &'static str, path: &Path, body: Value, by_type: bool) -> Response<Body> {
    let name =
        path.name.clone().unwrap_or_else(|| body["metadata"]["name"].as_str().unwrap_or_default().to_owned());
    let current = state.get(&path.resource, &path.namespace, &name);
    let conflict = |current: &Value| {
        let asked = &body["metadata"]["resourceVersion"];
        let uid = &body["metadata"]["uid"];
        asked.is_string() && *asked != current["metadata"]["resourceVersion"]
            || by_type && uid.is_string() && *uid != current["metadata"]["uid"]
    };
    let object = match (verb, current) {
        ("create", Some(_)) => return refusal(409, "AlreadyExists"),
        ("delete", Some(_)) => {
            state.delete(&path.resource, &path.namespace, &name);
            return respond(200, full(json!({ "kind": "Status", "status": "Success" }).to_string()));
        }
        ("update" | "patch", Some(current)) if conflict(&current) => {
            return refusal(
                409,
                "the object has been modified; please apply your changes to the latest version",
            );
        }
        // A part leaves the rest of the object alone.
        ("update", Some(mut current)) if path.part.is_some() => {
            let part = path.part.as_deref().unwrap_or_default();
            current[part] = body[part].clone();
            current
        }
        ("patch", Some(mut current)) => {
            merge(&mut current, body, by_type);
            current
        }
        ("create", None) | ("update", Some(_)) => body,
        // Server-side apply creates.
        ("patch", None) if path.part.is_none() => body,
        _ => return refusal(404, "not found"),
    };
    let mut object = object;
    object["metadata"]["name"] = name.into();
    if !path.namespace.is_empty() {
        object["metadata"]["namespace"] = path.namespace.clone().into();
    }
    let object = state.apply(&path.resource, object);
    state.answered(verb, &path.resource, &path.namespace);
    respond(if verb == "create" { 201 } else { 200 }, full(object.to_string()))
}

/// JSON merge patch, RFC 7396; or of a strategic one as much as is about lists of conditions.
fn merge(target: &mut Value, patch: Value, by_type: bool) {
    match (patch, &mut *target) {
        (Value::Array(patch), Value::Array(target)) if by_type => {
            for condition in patch {
                let same = |known: &&mut Value| known["type"] == condition["type"];
                match target.iter_mut().find(same) {
                    Some(known) => merge(known, condition, by_type),
                    None => target.push(condition),
                }
            }
        }
        (patch, _) => replace(target, patch, by_type),
    }
}

fn replace(target: &mut Value, patch: Value, by_type: bool) {
    match patch {
        Value::Object(patch) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (key, value) in patch {
                if value.is_null() {
                    target.as_object_mut().map(|target| target.remove(&key));
                } else {
                    merge(&mut target[key.as_str()], value, by_type);
                }
            }
        }
        other => *target = other,
    }
}

fn watch(
    shared: &Arc<Shared>,
    path: &Path,
    selection: Selection,
    query: &BTreeMap<String, String>,
) -> Response<Body> {
    let is = |name: &str| query.get(name).is_some_and(|value| value == "true");
    let from = query.get("resourceVersion").and_then(|version| version.parse::<u64>().ok());
    let mut state = shared.state();
    let initial = is("sendInitialEvents");
    if initial && !state.streaming {
        return refusal(
            422,
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        );
    }
    if initial && query.get("resourceVersionMatch").map(String::as_str) != Some("NotOlderThan") {
        return refusal(
            422,
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    if !initial && from.is_some_and(|from| from != 0 && from < state.oldest) {
        return refusal(410, "too old resource version");
    }
    // Without a version it begins with what there is, and says nothing of where that ends.
    let begins_with_all = initial || from.unwrap_or(0) == 0;
    let bookmarks = is("allowWatchBookmarks");
    let limit = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    state.answered("watch", &path.resource, &path.namespace);
    let mut first = Vec::new();
    let collection = state.collections.entry(path.resource.clone()).or_default();
    let changed = collection.subscribe(&selection.namespace);
    if begins_with_all {
        for (name, object) in &collection.objects {
            if selection.is_in(&name.0) && selection.matches(object) {
                first.push(line("ADDED", &object.json));
            }
        }
    }
    if initial {
        first.push(bookmark(&path.resource, state.version, true));
    }
    let watcher = Watcher {
        seen: if begins_with_all { state.version } else { from.unwrap_or(0) },
        broken: state.broken.0,
        open: Open::new(shared, &mut state, &path.resource, &path.namespace),
        changed,
        resource: path.resource.clone(),
        selection,
        bookmarks,
        chunks: state.chunks,
        ends: limit.map(|limit| Instant::now() + limit),
    };
    let (send, receive) = mpsc::channel(16);
    tokio::spawn(watcher.run(first, send));
    respond(200, stream(receive))
}

type Chunk = Result<Bytes, io::Error>;

/// What an open watch goes by.
struct Watcher {
    open: Open,
    changed: tokio::sync::watch::Receiver<()>,
    resource: String,
    selection: Selection,
    seen: u64,
    broken: u64,
    bookmarks: bool,
    chunks: Option<(usize, Duration)>,
    ends: Option<Instant>,
}

/// The other side has gone, or the watch is over.
struct Over;

impl Watcher {
    async fn run(mut self, first: Vec<String>, send: mpsc::Sender<Chunk>) {
        tokio::select! {
            _ = self.speak(first, &send) => {}
            () = send.closed() => {}
        }
    }

    async fn speak(&mut self, first: Vec<String>, send: &mpsc::Sender<Chunk>) -> Result<(), Over> {
        self.write(first, send).await?;
        loop {
            let every = self.open.shared.state().bookmarks.filter(|_| self.bookmarks);
            let tick = async {
                match every {
                    Some(every) => tokio::time::sleep(every).await,
                    None => std::future::pending().await,
                }
            };
            let end = async {
                match self.ends {
                    Some(ends) => tokio::time::sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            let timed_out = tokio::select! {
                _ = self.changed.changed() => None,
                () = tick => Some(false),
                () = end => Some(true),
            };
            let (broken, mut lines) = self.news(timed_out.is_some());
            match broken {
                Some(Break::End) => return Ok(()),
                Some(Break::Cut) => return self.cut(send).await,
                Some(Break::Stall) => std::future::pending().await,
                Some(how @ (Break::CutInEvent | Break::StallInEvent)) => {
                    while lines.is_empty() {
                        if self.changed.changed().await.is_err() {
                            return Err(Over);
                        }
                        lines = self.news(false).1;
                    }
                    let half = lines[0][..lines[0].len() / 2].to_owned();
                    self.write(vec![half], send).await?;
                    if how == Break::CutInEvent {
                        return self.cut(send).await;
                    }
                    std::future::pending::<()>().await;
                }
                None => {}
            }
            self.write(lines, send).await?;
            if timed_out == Some(true) {
                return Ok(());
            }
        }
    }

    async fn cut(&self, send: &mpsc::Sender<Chunk>) -> Result<(), Over> {
        send.send(Err(io::Error::other("cut"))).await.map_err(|_| Over)
    }

    /// Whether it is broken off, and what is new.
    fn news(&mut self, with_bookmark: bool) -> (Option<Break>, Vec<String>) {
        let state = self.open.shared.state();
        let mut lines = Vec::new();
        if let Some(collection) = state.collections.get(&self.resource) {
            let start = collection.events.partition_point(|event| event.version <= self.seen);
            for event in &collection.events[start..] {
                if self.selection.is_in(&event.namespace)
                    && let Some(kind) = self.selection.kind(event)
                {
                    lines.push(line(kind, &event.after.json));
                }
            }
        }
        // To one who comes from the future nothing is said, as the real one does.
        if state.version >= self.seen {
            self.seen = state.version;
            if with_bookmark {
                lines.push(bookmark(&self.resource, state.version, false));
            }
        }
        let (times, how) = state.broken;
        ((times > self.broken).then_some(how), lines)
    }

    async fn write(&self, lines: Vec<String>, send: &mpsc::Sender<Chunk>) -> Result<(), Over> {
        let mut bytes = Bytes::from(lines.concat());
        match self.chunks {
            None if bytes.is_empty() => {}
            None => send.send(Ok(bytes)).await.map_err(|_| Over)?,
            Some((most, pause)) => {
                while !bytes.is_empty() {
                    let chunk = bytes.split_to(most.min(bytes.len()));
                    send.send(Ok(chunk)).await.map_err(|_| Over)?;
                    tokio::time::sleep(pause).await;
                }
            }
        }
        Ok(())
    }
}

fn line(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn bookmark(resource: &str, version: u64, ends_list: bool) -> String {
    let annotations = if ends_list { json!({ "k8s.io/initial-events-end": "true" }) } else { json!({}) };
    let metadata = json!({ "resourceVersion": version.to_string(), "annotations": annotations });
    let object = json!({ "kind": kind(resource), "apiVersion": "v1", "metadata": metadata });
    line("BOOKMARK", &object.to_string())
}

fn kind(resource: &str) -> String {
    match resource {
        "namespaces" => "Namespace",
        "services" => "Service",
        "pods" => "Pod",
        "endpointslices" => "EndpointSlice",
        "configmaps" => "ConfigMap",
        "secrets" => "Secret",
        other => other,
    }
    .to_owned()
}

fn refusal(code: u16, message: &str) -> Response<Body> {
    respond(code, full(status(code, message).to_string() + "\n"))
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

pub(super) fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync()
}

fn stream(chunks: mpsc::Receiver<Chunk>) -> Body {
    let frames = futures_util::stream::unfold(chunks, |mut chunks| async move {
        let chunk = chunks.recv().await?;
        Some((chunk.map(Frame::data), chunks))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn respond(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a fixed, valid value"));
    response
}
