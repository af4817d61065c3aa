//! Who can ask: an HTTP server with `/metrics`, `/healthz`, `/readyz` and `/config`, and a live [`page`] for browsers with
//! the JSON that it is made from ([`live`], of what [`view`] sees); over TCP and over a Unix socket.
//!
//! What there is stands in the table of [`routes`], from which [`openapi`] makes the document of it.
//! [`tcp`] listens where the operator says (`--admin`) and serves reads only: it may be an address that others reach.
//! [`socket`] is for root on this node (`--admin-socket`): it serves the same [`pages`], and those that change
//! something. [`client`] is the other end of it, for `sluice get` and `sluice log-level`.
//!
//! `/healthz` says that the process answers and that its workers do; `/readyz` says that it governs: 503 with one line a reason while it does not.
//! During a rollout two agents share the node. Over TCP the older one answers until it ends, so that nobody mixes up the
//! numbers of two processes; probes therefore ask over the socket, of which each agent has its own.

mod accept;
pub mod client;
pub mod desk;
mod live;
pub mod openapi;
mod page;
mod pages;
mod routes;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;
pub mod view;

use std::{io, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;

pub use pages::{Pages, Readiness};
pub use socket::{AdminSocket, SocketError};
pub use tcp::{Admin, BindError};

/// Scrapers and probes are few: whoever opens more connections than this waits. Of each of the two.
const MAX_CONNECTIONS: usize = 64;
/// For a request's head, and between requests of one connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection as a whole, so that nobody who reads slowly holds a place for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// For whoever reads an answer to make room for more of it.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// After an accept that failed. Of one connection, or of no file descriptors left: neither is cured by giving up or by
/// spinning.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The pages that can be read over the socket, with what they are about; without the files of the page for browsers.
pub fn readable() -> impl Iterator<Item = (&'static str, &'static str)> {
    routes::all()
        .iter()
        .filter(|route| route.verb == routes::Verb::Get && !page::files().any(|(path, _)| path == route.path))
        .map(|route| (route.path, route.summary))
}

/// What somebody who asks may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Read,
    /// Read, and change what can be changed.
    Change,
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    pages: Arc<Pages>,
    rights: Rights,
) {
    let service = service_fn(move |request| {
        let pages = Arc::clone(&pages);
        async move { pages.answer(request, rights).await }
    });
    // Around what is written: an answer that goes on must not wait for ever for one who does not read it.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(READ_TIMEOUT));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection).await {
        tracing::debug!(%error, "admin: a connection ended with an error");
    }
}

async fn accept_failed(error: io::Error) {
    tracing::warn!(%error, "admin: cannot accept a connection");
    tokio::time::sleep(ACCEPT_AGAIN).await;
}
