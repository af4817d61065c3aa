//! HTTP/2 with prior knowledge: the streams of one caller's connection, each to an endpoint of its own.
//!
//! [`serve`] takes the caller's streams and starts a task for each, an [`exchange`]: it tags the
//! request and goes where [`governed`](super::governed) says, over a stream of a connection that [`attempt`] borrows from
//! the [`pool`]; both bodies flow through a [`pipe`] each. The tasks, the caller's connection and those to endpoints take
//! turns on one thread, so what many streams have to say in a turn goes out in one write.
//!
//! Connections are the [`engine`]'s: frames ([`mod@frame`]), header compression ([`hpack`]), the states of streams, windows,
//! and what a peer may make us hold or do.

mod answer;
mod attempt;
mod begin;
mod carry;
mod engine;
mod exchange;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod hpack;
mod mirror;
mod pipe;
mod pool;
mod view;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
};

use bytes::{Buf, BytesMut};

pub(crate) use self::{engine::limits::Allowance, pool::Pool};
use self::{
    engine::{
        core::{Accepted, Core, Ended, Role},
        driver::Driver,
        handle::{Handle, Shared},
    },
    exchange::Exchange,
};
use super::{
    connection::Connection,
    detect::H2_PREFACE,
    resolved::Resolved,
    worker::{PodHere, Worker},
};
use crate::{clock::Nanos, cluster::model::Destination, observe::reason::Reason};

/// A caller's connection, as its streams see it.
struct Caller {
    worker: Rc<Worker>,
    pod: Rc<PodHere>,
    original: SocketAddr,
    resolved: RefCell<Resolved>,
    /// The caller was told to reconnect.
    leaving: Cell<bool>,
}

impl Caller {
    /// What stands behind the dialled address now. A service that is no longer governed is served from what was last
    /// known of it, and its caller is told to reconnect.
    fn look_up(&self) -> Resolved {
        let mut resolved = self.resolved.borrow_mut();
        resolved.refresh(&self.worker, &self.pod, self.original);
        resolved.clone()
    }

    /// GOAWAY: streams that are open go on to their end, new ones go elsewhere.
    fn leave(&self, core: &Shared) {
        if !self.leaving.replace(true) {
            core.borrow_mut().leave();
        }
    }

    /// A request has come.
    fn begin(self: &Rc<Self>, core: &Shared, accepted: Accepted) {
        let Accepted { key, request, fit } = accepted;
        let stream = Handle::new(core, key);
        // Given up before it was looked at: no endpoint need hear of it.
        if stream.broken().is_some() {
            return;
        }
        let resolved = self.look_up();
        if !resolved.governed {
            self.leave(core);
        }
        let mut exchange = Exchange::begin(self, resolved, request, stream);
        match fit {
            Err(unfit) => exchange.refuse_unfit(unfit),
            Ok(()) if self.pod.http2.is_scarce() => exchange.refuse(Reason::Overloaded),
            Ok(()) => match self.pod.streams.take_one() {
                Some(place) => self.pod.spawn(&self.worker, exchange.run(place)),
                None => exchange.refuse(Reason::Overloaded),
            },
        }
    }
}

/// Carries a caller's HTTP/2 connection, whose preface is in `early`.
pub(crate) async fn serve(connection: Connection, destination: Destination, mut early: BytesMut) {
    // In the same turn in which the destination was found.
    let resolved = Resolved::new(&connection.worker, &connection.pod, connection.original, destination);
    let Connection { worker, pod, stream, original, _place, .. } = connection;
    let gate = pod.gate.watch();
    early.advance(H2_PREFACE.len().min(early.len()));
    let core = Rc::new(RefCell::new(Core::new(Role::Server, pod.http2.clone(), Nanos::now())));
    let mut driver = Driver::new(core.clone(), stream, worker.clone(), pod.clone(), early);
    let caller = Rc::new(Caller {
        worker,
        pod,
        original,
        resolved: RefCell::new(resolved),
        leaving: Cell::new(false),
    });
    poll_fn(|cx| {
        if !caller.leaving.get() {
            // At the endpoint a client's connection ends with the application's own.
            let arrival = caller.pod.arrival.as_ref();
            let ended = arrival.is_some_and(|arrival| arrival.poll_application_ended(cx).is_ready());
            if ended || gate.poll_shut(cx).is_ready() {
                caller.leave(&core);
            }
        }
        let over = driver.poll(cx);
        loop {
            let Some(accepted) = core.borrow_mut().accept() else { break };
            caller.begin(&core, accepted);
        }
        over
    })
    .await;
    // A caller that just leaves is no news; one that breaks the protocol has been told so with GOAWAY.
    if let Some(Ended::Violation(code, why)) = core.borrow().ended() {
        caller.worker.complain(|| {
            tracing::warn!(
                pod = %caller.pod.name(), service = %caller.resolved.borrow().destination.service, %code, why,
                "closed a client's HTTP/2 connection",
            );
        });
    }
}

#[cfg(test)]
mod tests;
