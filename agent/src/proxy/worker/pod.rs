//! A pod on a worker: what its connections there share.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use super::Worker;
use crate::{
    cluster::model::{Destination, Snapshot},
    govern::{outlier::CallerId, per_pod::CallingPod},
    observe::metrics::PodMetrics,
    proxy::{
        Pod,
        arrival::Arrival,
        budget::{PodBudget, Waiting},
        gate::Gate,
        http2, mirror,
        resolved::Remembered,
        share::Share,
        turns::Turns,
    },
};

/// A pod on this worker.
pub(crate) struct PodHere {
    pub(crate) id: u64,
    pub(crate) pod: Arc<Pod>,
    /// As state is kept that is its own.
    pub(crate) caller: Arc<CallingPod>,
    /// Its workload, as what goes wrong with an endpoint is noted.
    pub(crate) by: CallerId,
    /// Shut when the pod's connections are to end.
    pub(crate) gate: Rc<Gate>,
    pub(crate) metrics: Arc<PodMetrics>,
    /// Accept loops that have not ended.
    pub(super) listening: Cell<usize>,
    pub(super) turns: Rc<Turns>,
    /// What it uses, on all workers.
    pub(crate) budget: Arc<PodBudget>,
    /// HTTP/2 requests in flight. Over HTTP/1 a connection carries one at a time, so that its own share will do.
    pub(crate) streams: Rc<Share>,
    /// Bytes of requests that are kept to be sent again.
    pub(crate) kept: Rc<Share>,
    /// What copies of its requests may use.
    pub(crate) mirrors: mirror::Allowance,
    /// What its HTTP/2 connections may hold, and what their peers may make us do.
    pub(crate) http2: Rc<http2::Allowance>,
    /// What they were last seen to hold.
    pub(super) held_by_http2: RefCell<Waiting>,
    /// What its connections have resolved lately.
    pub(crate) resolved: RefCell<Remembered>,
    /// Who calls the pod's application; `None`: the pod calls.
    pub(crate) arrival: Option<Arrival>,
}

impl PodHere {
    /// `shop/orders-7d9f`, as logs name it.
    pub(crate) fn name(&self) -> String {
        let workload = self.pod.workload.load();
        format!("{}/{}", workload.namespace, workload.name)
    }

    /// The pod as this client's connection from outside sees it: nothing that is kept for one client is another's.
    pub(crate) fn of_client(
        self: &Rc<Self>,
        worker: &Worker,
        arrival: Arrival,
        client: Option<Arc<CallingPod>>,
    ) -> Rc<Self> {
        let number = worker.arrived.get() + 1;
        worker.arrived.set(number);
        Rc::new(Self {
            // Pods are counted from 0, and never get there.
            id: u64::MAX - number,
            pod: self.pod.clone(),
            caller: client.unwrap_or_else(|| self.caller.clone()),
            by: self.by,
            gate: self.gate.clone(),
            metrics: self.metrics.clone(),
            listening: Cell::new(0),
            turns: self.turns.clone(),
            budget: self.budget.clone(),
            streams: self.streams.clone(),
            kept: self.kept.clone(),
            mirrors: self.mirrors.clone(),
            http2: self.http2.clone(),
            held_by_http2: RefCell::new(self.budget.waiting()),
            resolved: RefCell::default(),
            arrival: Some(arrival),
        })
    }

    /// What stands behind an address that was dialled.
    pub(crate) fn destination<'s>(
        &self,
        snapshot: &'s Snapshot,
        dialled: SocketAddr,
    ) -> Option<&'s Destination> {
        match self.arrival {
            None => snapshot.destinations.get(&dialled),
            Some(_) => snapshot.inbound.port(dialled).map(|port| &port.destination),
        }
    }

    /// Starts a task of the pod, which takes turns with those of other pods.
    pub(crate) fn spawn(&self, worker: &Worker, task: impl Future<Output = ()> + 'static) {
        // In a box, for it is some kilobytes, which the runtime would copy seven times: as it begins the task, and as it ends it.
        drop(tokio::task::spawn_local(self.turns.of(&worker.rounds, Box::pin(task))));
    }
}

/// Counts an accept loop as going on, however it ends.
pub(super) struct Listening(Rc<PodHere>);

impl Listening {
    pub(super) fn begin(pod: &Rc<PodHere>) -> Self {
        pod.listening.set(pod.listening.get() + 1);
        Self(pod.clone())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listening.set(self.0.listening.get() - 1);
    }
}
