//! What a worker does when it is asked: pods come and go, connections are carried, decisions are found. And what it does time
//! and again.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpStream, sync::oneshot};

use super::{
    SWEEP, Worker,
    command::PodName,
    pod::{Listening, PodHere},
};
use crate::{
    clock::Nanos,
    govern::{outlier::CallerId, per_pod::CallingPod},
    proxy::{
        Pod, SocketOptions,
        accept::{self, Listener},
        budget::{Budget, PodBudget},
        connection::{self, Connection},
        decisions::{Decision, Wanted, newest_of},
        gauges, http2, mirror, pool,
        presence::Presence,
        share::Share,
        threads::Writer,
    },
};

/// After how many sweeps the numbers of services that are gone are looked for.
const FORGET_EVERY: u32 = 60;

/// HTTP/2 requests that a pod may have in flight for each connection that it may have open: they cost less.
const STREAMS_PER_CONNECTION: usize = 4;

/// Bytes of bodies that a pod's HTTP/2 requests may keep on one worker, to be sent again if an endpoint refuses them.
/// Requests beyond that are passed on all the same, but cannot be sent again.
const KEPT_BYTES_PER_POD: usize = 8 * 1024 * 1024;

/// Bytes that the HTTP/2 connections of a pod may hold on one worker: what was not yet passed on, heads, windows. With three
/// quarters of it used up new requests are rejected, so that those that are there have the rest. On all workers no more than
/// a quarter of what all connections may take.
const HELD_BYTES_PER_POD: usize = 48 * 1024 * 1024;

impl Worker {
    pub(super) fn open(
        self: &Rc<Self>,
        id: u64,
        pod: Arc<Pod>,
        caller: Arc<CallingPod>,
        budget: Arc<PodBudget>,
        listeners: Vec<std::net::TcpListener>,
    ) {
        let connections = self.options.limits.connections_per_pod.div_ceil(self.options.workers).max(1);
        let held_by_http2 = RefCell::new(budget.waiting());
        let held = HELD_BYTES_PER_POD.min(self.options.limits.bytes / 4 / self.options.workers);
        let workload = pod.workload.load();
        let metrics = self.metrics.pod(&workload.namespace, &workload.name);
        let by = CallerId::of(workload.caller());
        drop(workload);
        let here = Rc::new(PodHere {
            id,
            pod,
            caller,
            by,
            gate: Rc::default(),
            metrics,
            listening: Cell::new(0),
            turns: Rc::default(),
            budget,
            streams: Share::new(connections * STREAMS_PER_CONNECTION),
            kept: Share::new(KEPT_BYTES_PER_POD),
            mirrors: mirror::Allowance::default(),
            http2: http2::Allowance::new(held),
            held_by_http2,
            resolved: RefCell::default(),
            arrival: None,
        });
        for listener in listeners {
            match Listener::new(&here, listener) {
                Ok(listener) => {
                    let (worker, pod) = (self.clone(), here.clone());
                    let listening = Listening::begin(&here);
                    here.spawn(self, async move {
                        let _listening = listening;
                        accept::accept(&worker, &pod, listener).await;
                    });
                }
                Err(error) => tracing::error!(pod = %here.name(), %error, "cannot listen in the pod"),
            }
        }
        self.pods.borrow_mut().insert(id, here);
    }

    pub(super) fn close(self: &Rc<Self>, id: u64, closed: oneshot::Sender<()>) {
        let pod = self.pods.borrow_mut().remove(&id);
        let Some(pod) = pod else {
            // Nobody waits any more, or there is nothing to wait for.
            let _ = closed.send(());
            return;
        };
        pod.gate.shut();
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            while pod.listening.get() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            worker.pool.forget(id);
            worker.h2.forget(id);
            let workload = pod.pod.workload.load();
            worker.metrics.evict_pod(&workload.namespace, &workload.name);
            let _ = closed.send(());
        });
    }

    /// Decisions of both directions.
    pub(super) fn find_decisions(&self, wanted: &Wanted) -> Vec<Decision> {
        let mut found = self.decisions.find(wanted);
        found.extend(self.inbound.iter().flat_map(|inbound| inbound.decisions.find(wanted)));
        newest_of(found, wanted.most)
    }

    pub(super) fn find(&self, name: &PodName) -> Option<Rc<PodHere>> {
        let is = |pod: &&Rc<PodHere>| {
            let workload = pod.pod.workload.load();
            (&workload.namespace, &workload.name) == (&name.namespace, &name.name)
        };
        self.pods.borrow().values().find(is).cloned()
    }

    /// Serves a connection as if the pod had made it. One that cannot be served is closed.
    pub(super) fn carry(
        self: &Rc<Self>,
        name: &PodName,
        stream: std::net::TcpStream,
        original: SocketAddr,
        awaited: u64,
    ) {
        let Some(pod) = self.find(name) else { return };
        let place = pod.budget.accepted(Nanos::now());
        let prepared = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        let Ok(stream) = prepared else { return };
        self.decisions.await_one(awaited);
        // Nobody's socket: the desk holds the other end.
        let presence = Presence::new(&pod, 0);
        let options = SocketOptions::default();
        let seat = self.pool.enter(pool::Key { pod: pod.id, dialled: original, options });
        let connection = Connection {
            worker: self.clone(),
            pod: pod.clone(),
            stream,
            original,
            presence,
            options,
            seat,
            rested: None,
            writer: Writer::new(0),
            _place: place,
        };
        pod.spawn(self, connection::serve(connection));
    }

    pub(super) fn drain(self: &Rc<Self>, drained: oneshot::Sender<()>) {
        let parts = || std::iter::once(self).chain(&self.inbound);
        for pod in parts().flat_map(|part| part.pods.borrow().values().cloned().collect::<Vec<_>>()) {
            pod.gate.shut();
        }
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            // Callers with a connection that is idle now learn at their next request that they are to reconnect.
            tokio::time::sleep(worker.options.drain_idle_timeout).await;
            let busy = || worker.busy.get() + worker.inbound.as_ref().map_or(0, |inbound| inbound.busy.get());
            while busy() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = drained.send(());
        });
    }

    /// `budget`: for the one of the workers that does what is done once for all of them.
    pub(super) async fn tend(self: Rc<Self>, budget: Option<Arc<Budget>>) {
        let mut every = tokio::time::interval(SWEEP);
        let mut looked = Nanos::ZERO;
        for sweep in 0_u32.. {
            every.tick().await;
            let now = Nanos::now();
            if let Some(budget) = &budget {
                budget.review(now);
                if sweep % FORGET_EVERY == 0 {
                    gauges::forget_gone(&self.metrics, &self.snapshot());
                }
            }
            let generation = self.snapshot().generation;
            for pod in self.pods.borrow().values() {
                pod.resolved.borrow_mut().keep_of(generation);
                let (held, known) = (pod.http2.held(), &mut *pod.held_by_http2.borrow_mut());
                if held != known.amount() {
                    known.set(held, now);
                }
            }
            // What this worker only keeps for later makes room for what others need.
            if self.pods.borrow().values().next().is_some_and(|pod| pod.budget.is_exhausted_since(looked)) {
                self.pool.clear();
            }
            looked = now;
            self.rests.next_round();
            self.pool.sweep(now);
            self.h2.sweep(now, self.is_inbound());
        }
    }
}
