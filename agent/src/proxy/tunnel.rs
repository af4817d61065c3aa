//! Everything that is not HTTP: bytes, both ways, as they come.
//!
//! The end of one direction is passed on as the end of that direction (half-close), a reset as a reset. A buffer grows
//! while a stream keeps filling it and is given back when the stream pauses ([`pump`]).

mod pump;

use std::{cell::RefCell, future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, task::Poll};

use bytes::BytesMut;
use smallvec::SmallVec;
use socket2::SockRef;

use self::pump::{Broken, Pump};
use super::{
    choose,
    connection::Connection,
    governed::{self, Attempt, AttemptDeadline, Elapsed, Idle, Parties, Purpose},
    timer::Timers,
    upstream::{self, CONNECT_ATTEMPTS, Opened, Terms},
};
use crate::{
    clock::Nanos,
    cluster::model::Destination,
    govern::{
        endpoint::{Endpoint, InFlight},
        outcome::{ErrorKind, Outcome},
        route::{Lane, Within},
        warmup,
    },
    observe::{metrics::RetryCause, reason::Reason},
};

/// Bytes already read from one side when the tunnel begins.
#[derive(Default)]
pub(crate) struct Early {
    pub(crate) from_caller: BytesMut,
    pub(crate) from_endpoint: BytesMut,
}

/// Connects to an endpoint for a tunnel: of the caller's own lane, if it is in one. Whether the connection says something
/// good of the service is not settled yet: it may turn out to be one for HTTP, which has more to say.
pub(crate) async fn dial(
    connection: &Connection,
    destination: &Destination,
) -> Result<(Opened, Attempt), Reason> {
    let Connection { worker, pod, .. } = connection;
    let tag = pod.pod.workload.load().tag.as_ref().map(Into::into);
    let mut tried = SmallVec::<[SocketAddr; CONNECT_ATTEMPTS]>::new();
    while tried.len() < CONNECT_ATTEMPTS {
        let now = Nanos::now();
        let Some(chosen) = choose::choose(worker, pod, destination, tag.as_ref(), &tried, Within::Any, now)
            .map_err(choose::reason_of)?
        else {
            break;
        };
        let series = connection.series(destination);
        let numbers = series.service();
        let lane = chosen.endpoint().tag.as_ref();
        // Of what goes on in a tunnel nothing is known: to the breaker the connection is the request.
        let permit = governed::ask_breaker(
            &destination.service,
            &destination.service.governor,
            pod,
            lane,
            numbers,
            now,
        )
        .map_err(|_| Reason::CircuitOpen)?;
        if !tried.is_empty() {
            numbers.retried(RetryCause::ConnectFailure);
        }
        if chosen.panic {
            numbers.panicked();
        }
        if chosen.yields {
            numbers.warm_up_yielded();
        }
        let warmup = destination.service.governor.policy().load_balancer.warmup.as_ref();
        warmup::note_connection(warmup, chosen.endpoint(), now.0);
        let parties = parties(connection, destination);
        let mut attempt = Attempt::begin(chosen, parties, Purpose::Tunnel, permit, now);
        let timeouts = destination.service.governor.policy().timeouts;
        let within = upstream::time_to_connect(timeouts, || {
            choose::has_another(pod, destination, tag.as_ref(), &tried, attempt.chosen.endpoint(), now)
        });
        let terms = Terms { options: connection.options, within };
        let connected = upstream::connect(worker, pod, attempt.chosen.endpoint(), terms).await;
        match connected {
            Ok(stream) => {
                attempt.answered(None, None, Nanos::now());
                return Ok((stream, attempt));
            }
            Err(error) => {
                attempt.settle(Some(ErrorKind::Connect.into()), Nanos::now());
                let address = attempt.chosen.address();
                worker.complain(|| {
                    tracing::warn!(pod = %pod.name(), service = %destination.service, endpoint = %address, %error, "cannot connect to an endpoint");
                });
                tried.push(address);
            }
        }
    }
    Err(Reason::UpstreamConnect)
}

/// The attempt at an endpoint that was connected to before it was clear that the connection is a tunnel's.
pub(crate) fn begin(
    connection: &Connection,
    destination: &Destination,
    endpoint: &Arc<Endpoint>,
    now: Nanos,
) -> Attempt {
    let in_flight = InFlight::begin(endpoint.clone(), now.0);
    let chosen = choose::Chosen { in_flight, lane: Lane::Baseline, panic: false, yields: false };
    Attempt::begin(chosen, parties(connection, destination), Purpose::Tunnel, None, now)
}

fn parties(connection: &Connection, destination: &Destination) -> Parties {
    Parties {
        worker: Rc::clone(&connection.worker),
        pod: Rc::clone(&connection.pod),
        destination: Rc::new(destination.clone()),
        series: Rc::new(RefCell::new(connection.series(destination))),
        ruled: None,
    }
}

/// Dials an endpoint, unless one has been dialled already, and carries bytes.
///
/// A tunnel takes a place among the service's requests in flight, if these are limited, for as long as it lasts; one
/// that only waits to be told what is spoken on it does not yet. Rate limits are about requests: a connection is none.
pub(crate) async fn serve(
    connection: Connection,
    destination: Destination,
    dialled: Option<(Opened, Attempt)>,
    early: BytesMut,
) {
    let numbers = connection.series(&destination).service().clone();
    let arrival = connection.pod.arrival.as_ref();
    let limiter = destination.service.governor.limiter();
    let is_free = arrival.is_some_and(|arrival| arrival.may_be_probe(&connection.pod, !early.is_empty()));
    let numbers_of_limits = arrival
        .map_or_else(|| numbers.clone(), |arrival| arrival.limited(&connection.worker, &destination.service));
    let place = match limiter.filter(|_| !is_free) {
        None => None,
        Some(limiter) => {
            match governed::acquire(limiter, &connection.pod, &numbers_of_limits, Nanos::now()) {
                Ok(place) => place,
                Err(_) => return refuse(connection, &destination, Reason::ConcurrencyLimited),
            }
        }
    };
    let dialled = if let Some(dialled) = dialled {
        Ok(dialled)
    } else {
        let mut presence = connection.presence.again();
        let dialling = pin!(dial(&connection, &destination));
        let dialled =
            upstream::while_awaited(&connection.worker.timers, dialling, |cx| presence.poll_gone(cx)).await;
        let Some(dialled) = dialled else {
            return connection.series(&destination).none().begin_tunnel().finish(Some(Reason::ClientClosed));
        };
        dialled
    };
    match dialled {
        Ok((stream, mut attempt)) => {
            let now = Nanos::now();
            attempt.settle(Some(Outcome::Success), now);
            if let Some(arrival) = arrival.filter(|_| !is_free) {
                arrival.note_connection(now);
            }
            attempt.keep(place);
            let early = Early { from_caller: early, ..Early::default() };
            carry(connection, &destination, stream, attempt, early, None).await;
        }
        Err(reason) => refuse(connection, &destination, reason),
    }
}

/// Without an endpoint the caller gets a reset: its connect() has long succeeded.
pub(crate) fn refuse(connection: Connection, destination: &Destination, reason: Reason) {
    let mut series = connection.series(destination);
    series.none().begin_tunnel().finish(Some(reason));
    connection.worker.complain(|| {
        tracing::warn!(pod = %connection.pod.name(), service = %destination.service, reason = reason.code(), "reset a connection: {}", reason.message());
    });
    upstream::reset(connection.stream);
}

/// Carries bytes between the caller and an endpoint until both have ended. `idle`: how long it may be silent.
pub(crate) async fn carry(
    connection: Connection,
    destination: &Destination,
    endpoint: Opened,
    attempt: Attempt,
    early: Early,
    idle: Option<Idle>,
) {
    let _busy = connection.worker.busy_tunnel();
    let mut series = connection.series(destination);
    let active = series.lane(attempt.chosen.endpoint().tag.as_ref()).begin_tunnel();
    let numbers = series.service().clone();
    let mut moved = 0;
    let mut count = |up, down| {
        active.series().add_request_bytes(up);
        active.series().add_response_bytes(down);
        moved += up + down;
        if let Some(idle) = &idle {
            idle.note(moved);
        }
    };
    let until = AttemptDeadline::drained(destination.service.governor.policy().drain);
    let over = Some((until, &**attempt.chosen.endpoint(), idle.as_ref()));
    let relayed = relay(connection, endpoint, early, over, &mut count).await;
    governed::note_tunnel(&numbers, until, idle.as_ref(), attempt.chosen.endpoint());
    active.finish(relayed.err().map(|cut| match cut {
        Cut::Caller => Reason::ClientClosed,
        Cut::Endpoint => Reason::UpstreamReset,
        Cut::Time(elapsed) => elapsed.reason(),
    }));
}

/// To the very address that was dialled, as if Sluice were not there: the service is no longer governed.
pub(crate) async fn pass_through(connection: Connection) {
    let Connection { worker, pod, original, .. } = &connection;
    let _busy = worker.busy_tunnel();
    let terms = Terms { options: connection.options, within: None };
    let mut presence = connection.presence.again();
    let dialled = {
        let dialling = pin!(upstream::dial(worker, pod, *original, terms));
        upstream::while_awaited(&worker.timers, dialling, |cx| presence.poll_gone(cx)).await
    };
    let Some(dialled) = dialled else { return };
    match dialled {
        Ok(endpoint) => {
            // How it ends has been passed on to both sides, and is nobody's fault here.
            let _ = relay(connection, endpoint, Early::default(), None, &mut |_, _| {}).await;
        }
        Err(error) => {
            worker.complain(|| tracing::warn!(pod = %pod.name(), %original, %error, "cannot connect"));
            upstream::reset(connection.stream);
        }
    }
}

/// What ended a tunnel that did not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The caller's connection broke.
    Caller,
    /// The endpoint's connection broke.
    Endpoint,
    Time(Elapsed),
}

/// `over`: how long it may go on with this endpoint. `count` is told of bytes as they are passed on, from the caller and from the endpoint.
async fn relay(
    connection: Connection,
    mut endpoint: Opened,
    early: Early,
    over: Option<(AttemptDeadline, &Endpoint, Option<&Idle>)>,
    count: &mut impl FnMut(u64, u64),
) -> Result<(), Cut> {
    let Connection { worker, pod, stream: mut caller, mut presence, _place, .. } = connection;
    let buffers = &worker.buffers;
    for stream in [&caller, &*endpoint] {
        // One that is gone is told by reading.
        let _ = SockRef::from(stream).set_out_of_band_inline(true);
    }
    let mut up = Pump::new(early.from_caller, &pod);
    let mut down = Pump::new(early.from_endpoint, &pod);
    let ended = {
        let (mut caller_reads, mut caller_writes) = caller.split();
        let (mut endpoint_reads, mut endpoint_writes) = endpoint.split();
        let mut relaying = pin!(poll_fn(|cx| {
            let upward = up.poll(cx, &mut caller_reads, &mut endpoint_writes, buffers);
            let downward = down.poll(cx, &mut endpoint_reads, &mut caller_writes, buffers);
            count(up.take_moved(), down.take_moved());
            match (upward, downward) {
                (Poll::Ready(Err(Broken::Source)), _) | (_, Poll::Ready(Err(Broken::Sink))) => {
                    Poll::Ready(Err(Cut::Caller))
                }
                (Poll::Ready(Err(Broken::Sink)), _) | (_, Poll::Ready(Err(Broken::Source))) => {
                    Poll::Ready(Err(Cut::Endpoint))
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
                // All that it sent has been passed on, and its end. Both ends are let go of, as the caller has done: what
                // the endpoint may still send is refused by the kernel, as the caller's would have refused it.
                (Poll::Ready(Ok(())), Poll::Pending) => presence.poll_gone(cx).map(Ok),
                _ => Poll::Pending,
            }
        }));
        match over {
            None => relaying.await,
            Some((until, endpoint, idle)) => {
                let relayed = until.wait_stream(&Timers::default(), endpoint, idle, relaying.as_mut()).await;
                relayed.unwrap_or_else(|elapsed| Err(Cut::Time(elapsed)))
            }
        }
    };
    if ended.is_err() {
        // Whichever side broke, the other must not take it for an orderly end.
        upstream::reset(caller);
        endpoint.reset();
    }
    ended
}
