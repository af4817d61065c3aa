//! What happens to a captured connection: accept, detect, HTTP or tunnel, pool, upstream.
//!
//! The proxy knows nothing of eBPF or namespaces. Capture gives it, for each enrolled pod, a [`Pod`]: who the
//! caller is and how to make sockets where it lives.

use std::{io, net::SocketAddr, os::fd::BorrowedFd, sync::Arc};

use arc_swap::ArcSwap;

use crate::cluster::model::Workload;

/// What capture gives the proxy for an enrolled pod, besides its listeners.
pub struct Pod {
    /// Who calls. Swapped when the pod's labels or annotations change.
    pub workload: ArcSwap<Workload>,
    pub network: Arc<dyn Network>,
}

/// The pod's network, as far as the proxy needs it.
pub trait Network: Send + Sync + 'static {
    /// The address that the application dialled, for a socket accepted from one of the pod's listeners.
    /// `None`: nobody was redirected here, somebody dialled the listener itself.
    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>>;

    /// A new non-blocking TCP socket inside the pod's network namespace, for the family of `to`.
    fn socket(&self, to: SocketAddr) -> io::Result<socket2::Socket>;
}
