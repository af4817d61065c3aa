//! The connection to the API server: where it is, what to show it, and how long to wait for it.
//!
//! Credentials that are refused are read anew before anybody hears of it: the kubelet replaces a service account's
//! token before it ends, but a node that slept, or a kubeconfig whose certificate was replaced, has old ones in
//! memory. (kube reads a token's file once a minute, and certificates never again.) What asks for patience
//! (`Retry-After`) gets it from everybody, as all watches are one caller to the API server.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{RETRY_AFTER, USER_AGENT},
};
use kube::{Client, Config, client::Body};
use tokio::time::Instant;

use super::{
    Error, Patience,
    absence::{At, Strange},
    connections::{Answer, Connections},
};

const NAME: &str = concat!("sluice/", env!("CARGO_PKG_VERSION"));
/// Credentials are not read more often than this, however many watches are refused.
const RENEWAL: Duration = Duration::from_secs(2);
/// The most patience that the API server may ask for.
const RETRY_AFTER_AT_MOST: Duration = Duration::from_secs(60);

/// A client for the cluster that this process runs in, or that the kubeconfig names. Does not talk to it yet.
pub async fn client() -> Result<Client, Error> {
    let find = || async { Config::infer().await.map_err(|e| Error::NoCluster(chain(&e))) };
    client_of(find, Patience::default()).await
}

/// A client for the cluster that `find` finds, which is asked again when that cluster does not take the credentials.
pub async fn client_of<F, Found>(find: F, patience: Patience) -> Result<Client, Error>
where
    F: Fn() -> Found + Send + Sync + 'static,
    Found: Future<Output = Result<Config, Error>> + Send + 'static,
{
    let config = find().await?;
    tracing::info!(cluster = %config.cluster_url, "watching the cluster");
    let namespace = config.default_namespace.clone();
    let access = Arc::new(Access {
        current: ArcSwap::from_pointee(connections(config)?),
        find: Box::new(move || Box::pin(find())),
        renewed: tokio::sync::Mutex::new(None),
        not_before: Mutex::new(Instant::now()),
        answer: patience.answer,
    });
    let service = tower::service_fn(move |request| {
        let access = access.clone();
        async move { access.send(request).await }
    });
    Ok(Client::new(service, namespace))
}

fn connections(config: Config) -> Result<Connections, Error> {
    let url = &config.cluster_url;
    if url.scheme().is_none() || url.host().is_none() {
        return Err(Error::Unusable(format!("its server {url:?} is no URL such as https://10.0.0.1:6443")));
    }
    Connections::new(config).map_err(|e| Error::Unusable(chain(&e)))
}

type Find = Box<dyn Fn() -> BoxFuture<'static, Result<Config, Error>> + Send + Sync>;

struct Access {
    current: ArcSwap<Connections>,
    find: Find,
    /// When the credentials were last read anew.
    renewed: tokio::sync::Mutex<Option<Instant>>,
    /// The API server asked not to be asked before.
    not_before: Mutex<Instant>,
    /// How long it may take to begin an answer.
    answer: Duration,
}

impl Access {
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Answer>, kube::Error> {
        // So that an API server's audit log and metrics tell which version asks.
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(NAME));
        let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::time::sleep_until(not_before).await;
        let again = copy(&request);
        let connections = self.current.load_full();
        let mut answer = self.ask(&connections, request).await;
        let unauthorized = answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::UNAUTHORIZED);
        // Certificates are refused by not talking at all. Who failed so tries again by itself.
        if unauthorized || answer.is_err() {
            let renewed = self.renew(&connections).await;
            if let (true, Some(renewed), Some(again)) = (unauthorized, renewed, again) {
                answer = self.ask(&renewed, again).await;
            }
        }
        if let Some(patience) = answer.as_ref().ok().and_then(|answer| retry_after(answer.headers())) {
            let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
            *not_before = (*not_before).max(Instant::now() + patience);
        }
        answer
    }

    async fn ask(
        &self,
        connections: &Connections,
        request: Request<Body>,
    ) -> Result<Response<Answer>, kube::Error> {
        let answer = tokio::time::timeout(self.answer, connections.send(request)).await;
        let answer = answer.unwrap_or_else(|_| {
            let late = format!("no response within {:?}", self.answer);
            Err(kube::Error::Service(std::io::Error::new(std::io::ErrorKind::TimedOut, late).into()))
        });
        // Whoever asks takes what has the right form for an answer, and follows no redirect.
        let strange = answer.as_ref().ok().and_then(Strange::of);
        match strange.map_or(answer, |strange| Err(kube::Error::Service(strange.into()))) {
            Err(kube::Error::Service(source)) => {
                let at = At { server: connections.server().clone(), source };
                Err(kube::Error::Service(at.into()))
            }
            answer => answer,
        }
    }

    /// Others than these, with what the files say now. `None`: they were read a moment ago.
    async fn renew(&self, refused: &Arc<Connections>) -> Option<Arc<Connections>> {
        let mut renewed = self.renewed.lock().await;
        let current = self.current.load_full();
        if !Arc::ptr_eq(&current, refused) {
            return Some(current);
        }
        if renewed.is_some_and(|at| at.elapsed() < RENEWAL) {
            return None;
        }
        *renewed = Some(Instant::now());
        match (self.find)().await.and_then(connections) {
            Ok(connections) => {
                let connections = Arc::new(connections);
                self.current.store(connections.clone());
                Some(connections)
            }
            Err(error) => {
                tracing::debug!(%error, "the credentials cannot be read anew");
                None
            }
        }
    }
}

/// The same request once more; `None` if its body is a stream.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// In seconds, as the API server gives it; never a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_AT_MOST))
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
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
