//! One watch: the objects of a kind in a namespace, through disconnects, resyncs and refusals.
//!
//! kube's watcher lists and watches, resumes where it was, lists anew after 410 Gone, and backs off. What it does not
//! tell is that a quiet watch stands: so the [`Pulse`] listens to the connection below it, where bookmarks pass.

use std::{
    error::Error,
    fmt::Debug,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{core::v1 as core, discovery::v1 as discovery},
};
use kube::{
    Api, Client, Resource,
    client::Body,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::Instant};

use super::Id;
use crate::cluster::{
    object::{Key, Kind},
    problem::Problem,
    source::Sighting,
    strip,
};

/// How long the API server may take to begin an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// A server (or something before it) that ends watches as soon as they begin is not asked more often than this: the
/// watcher itself takes an orderly end for nothing special, and asks again at once.
const SPACING: Duration = Duration::from_secs(1);
/// Pods that are done have no address and call nobody: with jobs and evictions they can be most of a namespace. One
/// that is done while it is watched comes as deleted.
const LIVE_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// What a watch is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) kind: Kind,
    /// Empty for Namespaces, which are watched in the whole cluster.
    pub(super) namespace: Arc<str>,
}

impl Scope {
    /// As RBAC names it.
    pub(super) fn resource(&self) -> &'static str {
        match self.kind {
            Kind::Namespace => "namespaces",
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices.discovery.k8s.io",
            Kind::Pod => "pods",
        }
    }
}

/// What a watch has to say.
#[derive(Debug)]
pub(super) enum Said {
    Objects(News),
    Failed(Failure),
}

#[derive(Debug)]
pub(super) enum News {
    /// These are all that there are.
    Listed(Vec<Sighting>),
    Applied(Sighting),
    Deleted(Key),
}

/// Why a watch does not stand at the moment. It tries again by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// 401 or 403.
    Refused { verb: &'static str, code: u16, message: String },
    /// Everything else: no connection, no answer, no good answer.
    Away(String),
}

impl Failure {
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { code: 403, .. })
    }
}

/// When the API server last gave a watch anything: a good answer, an event, a bookmark.
#[derive(Debug)]
pub(super) struct Pulse {
    last: Mutex<Instant>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: Mutex::new(now) }
    }

    pub(super) fn last(&self) -> Instant {
        // An instant cannot be half-written.
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Watches until it is aborted, or nobody listens.
pub(super) async fn run(
    client: Client,
    scope: Scope,
    pulse: Arc<Pulse>,
    id: Id,
    says: mpsc::Sender<(Id, Said)>,
) {
    let client = listen(client, pulse);
    let config = watcher::Config::default();
    match scope.kind {
        Kind::Namespace => {
            follow(Api::all(client), config, id, says, |object| strip::namespace(&object)).await;
        }
        Kind::Service => {
            follow(namespaced::<core::Service>(client, &scope), config, id, says, strip::service).await;
        }
        Kind::EndpointSlice => {
            let api = namespaced::<discovery::EndpointSlice>(client, &scope);
            follow(api, config, id, says, strip::endpoint_slice).await;
        }
        Kind::Pod => {
            let api = namespaced::<core::Pod>(client, &scope);
            follow(api, config.fields(LIVE_PODS), id, says, strip::pod).await;
        }
    }
}

fn namespaced<K>(client: Client, scope: &Scope) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(client, &scope.namespace)
}

async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    id: Id,
    says: mpsc::Sender<(Id, Said)>,
    strip: impl Fn(K) -> Result<Sighting, Problem>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // The API server has checked names; whatever gets here without a usable one is no object of its.
    let strip = |object| strip(object).inspect_err(|problem| tracing::warn!("{problem}")).ok();
    let mut events = pin!(watcher::watcher(api, config).default_backoff());
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        let said = match event {
            Ok(Event::Init) => {
                listed.clear();
                None
            }
            Ok(Event::InitApply(object)) => {
                listed.extend(strip(object));
                None
            }
            Ok(Event::InitDone) => Some(Said::Objects(News::Listed(std::mem::take(&mut listed)))),
            Ok(Event::Apply(object)) => strip(object).map(|sighting| Said::Objects(News::Applied(sighting))),
            Ok(Event::Delete(object)) => {
                strip(object).map(|sighting| Said::Objects(News::Deleted(sighting.object.key())))
            }
            Err(error) => failure(&error).map(Said::Failed),
        };
        if let Some(said) = said
            && says.send((id, said)).await.is_err()
        {
            return;
        }
    }
}

/// A client that tells the pulse of what comes back, and is patient and impatient where kube's is not.
fn listen(client: Client, pulse: Arc<Pulse>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let not_before = Arc::new(Mutex::new(Instant::now()));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, pulse, not_before) = (client.clone(), pulse.clone(), not_before.clone());
        async move {
            if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                let now = Instant::now();
                let at = {
                    let mut not_before = not_before.lock().unwrap_or_else(PoisonError::into_inner);
                    let at = now.max(*not_before);
                    *not_before = at + SPACING;
                    at
                };
                tokio::time::sleep_until(at).await;
            }
            let answer = tokio::time::timeout(ANSWER, client.send(request)).await;
            let response: Response<Body> = answer.map_err(|_| {
                let late = format!("no answer within {} seconds", ANSWER.as_secs());
                kube::Error::Service(std::io::Error::new(std::io::ErrorKind::TimedOut, late).into())
            })??;
            let good = response.status().is_success();
            if good {
                pulse.beat();
            }
            Ok::<_, kube::Error>(response.map(|body| {
                body.map_frame(move |frame| {
                    if good {
                        pulse.beat();
                    }
                    frame
                })
            }))
        }
    });
    Client::new(service, namespace)
}

/// What an error means for the watch; `None` if nothing is amiss.
fn failure(error: &watcher::Error) -> Option<Failure> {
    let (verb, status) = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => ("list", Some(status)),
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => ("watch", Some(status)),
        _ => ("", None),
    };
    match status {
        // Too old to resume from: the watcher lists anew.
        Some(status) if status.code == 410 => None,
        Some(status) if matches!(status.code, 401 | 403) => {
            Some(Failure::Refused { verb, code: status.code, message: status.message.clone() })
        }
        Some(status) => Some(Failure::Away(format!("it answers {}: {}", status.code, status.message))),
        None => Some(Failure::Away(reason(error))),
    }
}

/// What went wrong, without the layers that only pass it on.
fn reason(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => match error {
            kube::Error::Service(error) => chain(&**error),
            error => chain(error),
        },
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => chain(error),
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
