//! What the rest of the agent asks of a worker, and sees of it.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    govern::per_pod::CallingPod,
    proxy::{
        Direction, Pod,
        budget::PodBudget,
        decisions::{Decision, Wanted},
    },
};

/// What the rest of the agent asks of a worker.
pub(crate) enum Command {
    Open {
        id: u64,
        pod: Arc<Pod>,
        caller: Arc<CallingPod>,
        budget: Arc<PodBudget>,
        listeners: Vec<std::net::TcpListener>,
        direction: Direction,
    },
    /// Answered when the pod's listeners are closed.
    Close { id: u64, direction: Direction, closed: oneshot::Sender<()> },
    /// Decisions that were kept.
    Decisions { wanted: Wanted, found: oneshot::Sender<Vec<Decision>> },
    /// The pod of this namespace and name.
    Find { name: PodName, found: oneshot::Sender<Option<Arc<Pod>>> },
    /// A connection that somebody has made as this pod to `original`; what is decided about the request with the id
    /// `awaited` is kept.
    Carry { name: PodName, stream: std::net::TcpStream, original: SocketAddr, awaited: u64 },
    /// All pods' connections are to end; answered when the last in-flight one has.
    Drain { drained: oneshot::Sender<()> },
    /// How many tunnels are open.
    Tunnels { open: oneshot::Sender<usize> },
}

/// A pod's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// What the rest of the agent sees of a worker.
pub(crate) struct Handle {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(crate) status: Arc<Status>,
}

impl Handle {
    /// A worker that has ended carries nothing any more: there is nobody to tell.
    pub(crate) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// Written by the worker, read by anyone.
#[derive(Default)]
pub(crate) struct Status {
    /// When the worker last beat ([`Nanos`](crate::clock::Nanos)). Capture stops redirecting when that is a second ago.
    pub(crate) beat: AtomicU64,
    /// When its thread last ran, however much it has to do ([`Nanos`](crate::clock::Nanos)).
    pub(crate) ran: AtomicU64,
    /// The longest that a ready task had to wait of late ([`Nanos`](crate::clock::Nanos)).
    pub(crate) delay: AtomicU64,
}
