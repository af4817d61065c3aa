//! Who can ask: an HTTP server with `/metrics`, `/healthz` and `/readyz`.
//!
//! It listens where the operator says (`--admin`) and serves reads only. `/healthz` says that the process answers;
//! `/readyz` says that it governs: 503 with one line a reason while it does not. The socket has `SO_REUSEPORT`, so
//! that a new agent can start beside one that drains.

use std::{convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{
    Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use crate::observe::metrics::{self, Metrics};

/// Scrapers and probes are few: whoever opens more connections than this waits.
const MAX_CONNECTIONS: usize = 64;
/// For a request's head, and between requests of one connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection as a whole, so that nobody who reads slowly holds a place for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// Whether the agent governs.
pub trait Readiness: Send + Sync + 'static {
    /// Why not, one sentence each; empty if it does. Called for each `/readyz`: it must not block.
    fn missing(&self) -> Vec<String>;
}

impl<F: Fn() -> Vec<String> + Send + Sync + 'static> Readiness for F {
    fn missing(&self) -> Vec<String> {
        self()
    }
}

/// The admin address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("--admin {address}: cannot listen there: {source}{hint}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
    hint: &'static str,
}

/// The admin server, listening but not yet serving.
pub struct Admin {
    listener: TcpListener,
    metrics: Arc<Metrics>,
    readiness: Arc<dyn Readiness>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Admin {
    /// Listens. Must be called inside a Tokio runtime.
    pub fn bind(
        address: SocketAddr,
        metrics: Arc<Metrics>,
        readiness: Arc<dyn Readiness>,
    ) -> Result<Self, BindError> {
        match listen(address) {
            Ok(listener) => Ok(Self { listener, metrics, readiness }),
            Err(source) => Err(BindError { address, hint: hint(&source), source }),
        }
    }

    /// Where it listens: with `:0` the kernel has chosen the port.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped.
    pub async fn serve(self) -> Infallible {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let shared = Arc::new((self.metrics, self.readiness));
        loop {
            // The semaphore is never closed: without a place, without accepting, the kernel's queue waits.
            let place = Arc::clone(&places).acquire_owned().await;
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        serve_connection(stream, &shared.0, &*shared.1).await;
                        drop(place);
                    });
                }
                // Of one connection, or of no file descriptors left: neither is cured by giving up or by spinning.
                Err(error) => {
                    tracing::warn!(%error, "admin: cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

/// What to do about it, where that can be known.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there: choose another address",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one"
        }
        _ => "",
    }
}

async fn serve_connection(stream: TcpStream, metrics: &Metrics, readiness: &dyn Readiness) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), metrics, readiness);
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection).await {
        tracing::debug!(%error, "admin: a connection ended with an error");
    }
}

fn answer(
    method: &Method,
    path: &str,
    metrics: &Metrics,
    readiness: &dyn Readiness,
) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
        return text(
            StatusCode::NOT_FOUND,
            TEXT,
            "not found: there are /metrics, /healthz and /readyz\n".into(),
        );
    }
    // hyper leaves the body of an answer to HEAD out by itself.
    if method != Method::GET && method != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".into());
        refused.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/metrics" => match metrics.render() {
            Ok(body) => text(StatusCode::OK, metrics::CONTENT_TYPE, body),
            Err(error) => {
                tracing::error!(%error, "admin: the metrics cannot be rendered");
                text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n"))
            }
        },
        "/healthz" => text(StatusCode::OK, TEXT, "ok\n".into()),
        _ => {
            let missing = readiness.missing();
            if missing.is_empty() {
                text(StatusCode::OK, TEXT, "ok\n".into())
            } else {
                text(StatusCode::SERVICE_UNAVAILABLE, TEXT, missing.join("\n") + "\n")
            }
        }
    }
}

fn text(status: StatusCode, media_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests;
