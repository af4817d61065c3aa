//! HTTP/1: requests of one caller's connection, one after the other.
//!
//! A request is read by [`request`] and becomes an [`exchange`], which [`attempt`] sends on and [`passing`] answers, as
//! [`governed`](super::governed) tells them; [`head`], [`body`] and [`response`] say where things end. Heads are parsed once and edited on the way, bodies are passed on as they come, and no task, lock or
//! channel stands between the caller's connection and the endpoint's.

mod attempt;
mod body;
mod exchange;
mod flow;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod head;
mod mirror;
mod outgoing;
mod parse;
mod passing;
mod request;
mod response;
mod sending;
mod view;

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout_at},
};

pub(crate) use self::head::MAX_HEAD_BYTES;
use self::{exchange::Ended, head::HeadEnd, request::Refused};
pub(crate) use self::{
    outgoing::edit_routed,
    request::{Sources, check_target, read},
    view::View,
};
use super::{
    answer::{self, Cause, Kind, MadeUp},
    by_caller::ByCaller,
    connection::{Connection, HEAD_TIMEOUT},
    decisions::{Event, Ids},
    governed::{Attempt, Call, Idle},
    record::{Described, Record},
    resolved::Resolved,
    rest::Watch,
    traced::Asking,
    tunnel,
    upstream::Opened,
    way,
};
use crate::{
    clock::Nanos,
    cluster::model::Destination,
    govern::{lane::Distrust, request::Request as _},
    observe::{
        fault::{Fault, MessagePart, Sender},
        reason::Reason,
        trace::context::Found,
    },
};

/// After an answer that ends the connection while the caller may still send, how long what it sends is read and dropped:
/// closing at once would reset the connection and take the answer with it (RFC 9112, section 9.6). In all, and while
/// nothing comes. (nginx: 30 s and 5 s.)
const LINGER: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(2);

/// What has come on a caller's connection between two requests.
enum Incoming {
    /// A whole head of this many bytes.
    Head(usize),
    /// Nothing, for [a while](super::rest).
    Nothing,
    /// The connection has ended.
    End,
    Refused(Cause),
}

/// What becomes of a connection over which no request comes any more, or none for a while.
enum Next {
    Rest,
    End,
    /// The caller may still be sending.
    Linger,
    Reset,
    /// Both sides have agreed to speak something else: through the endpoint's connection, from which this has come already.
    Tunnel(Rc<Destination>, Box<(Opened, Attempt, BytesMut)>),
}

/// Carries a caller's requests until its connection ends.
pub(crate) async fn serve(mut connection: Connection, destination: Destination, mut incoming: BytesMut) {
    let mut resolved = Resolved::new(&connection.worker, &connection.pod, connection.original, destination);
    loop {
        // Boxed, for it is some kilobytes, which connections that rest do not need.
        let next = Box::pin(carry_all(&mut connection, &mut resolved, &mut incoming)).await;
        match next {
            Next::Rest => match connection.read_while_open(&mut incoming).await {
                Ok(1..) => {}
                _ => break,
            },
            Next::End => break,
            Next::Linger => {
                Box::pin(linger(&mut connection)).await;
                break;
            }
            Next::Reset => {
                super::upstream::reset(connection.stream);
                return;
            }
            Next::Tunnel(destination, tunnel) => {
                let (endpoint, attempt, from_endpoint) = *tunnel;
                let early = tunnel::Early { from_caller: incoming, from_endpoint };
                let idle = Idle::begin(attempt.timeouts());
                Box::pin(tunnel::carry(connection, &destination, endpoint, attempt, early, idle)).await;
                return;
            }
        }
    }
    connection.worker.buffers.give(incoming);
}

/// Carries requests, one after the other, as long as they come.
async fn carry_all(connection: &mut Connection, resolved: &mut Resolved, incoming: &mut BytesMut) -> Next {
    let watch = connection.worker.rests.watch();
    loop {
        let length = match next_head(connection, incoming, &watch).await {
            Incoming::Head(length) => length,
            Incoming::Nothing => return Next::Rest,
            Incoming::End => return Next::End,
            Incoming::Refused(cause) => {
                let reason = cause.reason;
                if let Some(fault) = cause.fault {
                    resolved.numbers.invalid(Sender::Client, fault);
                }
                let mut record = Record::begin(&connection.worker);
                record.finish(&mut resolved.series(), reason.status(), Some(reason));
                return refuse(connection, &cause).await.into();
            }
        };
        if let Some(next) = carry(connection, resolved, incoming, length).await {
            return next;
        }
        connection.worker.buffers.give_if_empty(incoming);
    }
}

/// Carries the request whose head is the first `length` bytes of what has come. `None`: the next one may come.
async fn carry(
    connection: &mut Connection,
    resolved: &mut Resolved,
    incoming: &mut BytesMut,
    length: usize,
) -> Option<Next> {
    // What is known of the service may have changed since the last request. A service that is no longer governed
    // is served from what was last known of it, and its caller is told to reconnect.
    resolved.refresh(&connection.worker, &connection.pod, connection.original);
    let leaving = !resolved.governed || connection.pod.gate.is_shut();

    let head = &incoming[..length];
    let mut outgoing = connection.worker.buffers.take();
    let workload = connection.pod.pod.workload.load();
    let names = &connection.worker.options.tag_names;
    let mut record = Record::begin(&connection.worker);
    let next_is_here = || View(head).is_followed_by_another(incoming.len() - length);
    let inherited = connection.writer.inherits(&connection.pod.pod, &workload, next_is_here);
    let (to, way) = {
        let (worker, pod, view) = (&connection.worker, &connection.pod, View(head));
        way::find(worker, pod, &workload, (&*resolved, inherited), &view)
            .map_or_else(|| (resolved.clone(), None), |(to, way)| (to, Some(way)))
    };
    let (service, entered) = (&to.destination.service, way.as_ref().and_then(|way| way.course.entered));
    let mut distrust = service.distrusts(&workload);
    if let Some(way) = &way {
        distrust = distrust.and(way.called.service.distrusts(&workload));
    }
    let mut edited = None;
    if let Some(course) = way.as_ref().map(|way| &way.course).filter(|course| course.changes_request()) {
        let out = edited.insert(connection.worker.buffers.take());
        edit_routed(head, course, names, distrust, out);
        if course.sets_tag(names) {
            // What is there now is the route's word.
            distrust = Distrust::default();
        }
    }
    let head = edited.as_deref().unwrap_or(head);
    let entry = || {
        let asked = ByCaller { view: View(head), workload: &**workload };
        entered.or_else(|| service.colour(&asked, workload.address()))
    };
    let mut traces = connection.worker.scan();
    let mut traced = Asking::of(
        &connection.pod.pod.remembered,
        inherited,
        &workload,
        connection.worker.options.trace_link,
    );
    let sources = Sources { distrust, traced: traced.as_mut(), caller: workload.tag.as_ref(), entry };
    let read = read(head, names, sources, traces.as_mut(), &mut outgoing);
    drop(workload);
    let (tagging, ids) = read
        .as_ref()
        .map_or_else(|_| (None, Ids::default()), |request| (Some(&request.tagging), request.ids));
    let view = View(head);
    record.note(&connection.pod, &to.destination, tagging, ids, view.method_and_path());
    let linked = traced.filter(|_| read.is_ok()).and_then(|traced| traced.traceparent(Nanos::now()));
    if let Some(value) = &linked {
        record.link_trace(value);
        head::add_last(&mut outgoing, b"traceparent", value);
        if let Some(traces) = &mut traces {
            traces.see(b"traceparent", value);
        }
    }
    if let Some(traces) = traces {
        // Of what is not forwarded no trace is told.
        let found = if read.is_ok() { traces.finish() } else { Found::Unusable { denied: false } };
        let (Connection { worker, pod, .. }, destination) = (&connection, &to.destination);
        let tagging = read.as_ref().ok().map(|request| &request.tagging);
        let old = read.as_ref().is_ok_and(|request| request.http10);
        let protocol = if old { "HTTP/1.0" } else { "HTTP/1.1" };
        let begun = record.describe(worker, pod, destination, tagging, found, || Described {
            protocol,
            method: view.method(),
            target: view.target(),
        });
        if let Some((name, value)) = begun {
            record.note_trace(&value);
            head::add_last(&mut outgoing, name.as_bytes(), &value);
        }
    }
    let mut request = match read {
        Ok(request) => request,
        Err(refused) => {
            let (reason, fault) = (reason_of(refused), refused.fault());
            to.numbers.invalid(Sender::Client, fault);
            record.decided(|| Event::Invalid { fault });
            record.finish(&mut to.series(), reason.status(), Some(reason));
            connection.worker.complain(|| {
                tracing::info!(pod = %connection.pod.name(), service = %to.destination.service, "rejected a request: {refused}");
            });
            return Some(refuse(connection, &Cause::from(reason).with(Some(fault))).await.into());
        }
    };
    if let Some(edited) = edited {
        connection.worker.buffers.give(edited);
    }
    incoming.advance(length);
    let is_last = !request.keep_alive;
    request.keep_alive &= !leaving;
    let (worker, pod, tagging) = (connection.worker.clone(), connection.pod.clone(), request.tagging.clone());
    let destination = to.destination.clone();
    let mut call = Call::new(worker, pod, to, tagging, record, View(&outgoing), way);
    let ended = exchange::exchange(connection, &mut call, &request, incoming, outgoing).await;
    // What comes now, however long it takes, is no part of the request.
    drop(call);
    match ended {
        Ended::Keep => None,
        // A caller that has said itself that this is its last request sends nothing more.
        Ended::Close if is_last && incoming.is_empty() => Some(Next::End),
        Ended::Close | Ended::Linger => Some(Next::Linger),
        Ended::Broken => Some(Next::Reset),
        Ended::Tunnel(tunnel) => Some(Next::Tunnel(destination, tunnel)),
    }
}

/// Reads until a whole head is there.
async fn next_head(connection: &mut Connection, incoming: &mut BytesMut, watch: &Watch) -> Incoming {
    let mut end = HeadEnd::default();
    let mut deadline = None;
    // Whether the whole first line was found to be one of HTTP.
    let mut judged = false;
    loop {
        // Blank lines before a request line are to be ignored (RFC 9112, section 2.2), whichever way they end.
        while deadline.is_none() {
            match &incoming[..] {
                [b'\r', b'\n', ..] => incoming.advance(2),
                [b'\n', ..] => incoming.advance(1),
                _ => break,
            }
        }
        if !incoming.is_empty() && incoming[..] != b"\r"[..] {
            match end.find(incoming, false) {
                Ok(Some(length)) if length <= MAX_HEAD_BYTES => return Incoming::Head(length),
                Ok(None) if incoming.len() <= MAX_HEAD_BYTES => {
                    // Looked at twice: a first line that comes byte by byte costs no more.
                    if !judged && (deadline.is_none() || end.is_past_first_line()) {
                        judged = end.is_past_first_line();
                        if let Some(never) = request::never_a_request(incoming) {
                            return Incoming::Refused(
                                Cause::from(reason_of(never)).with(Some(never.fault())),
                            );
                        }
                    }
                }
                Ok(_) if end.is_mostly_first_line() => {
                    return refused(Reason::UriTooLong, MessagePart::Size, "too long a request line");
                }
                Ok(_) => {
                    return refused(Reason::HeaderTooLarge, MessagePart::Size, "headers of more than 64 KiB");
                }
                Err(head::BareLineFeed) => {
                    let what = "a line feed without a carriage return before it";
                    return refused(Reason::BadRequest, MessagePart::Header, what);
                }
            }
            connection.worker.buffers.compact(incoming);
            deadline = deadline.or_else(|| Some(Instant::now() + HEAD_TIMEOUT));
        }
        let read: io::Result<usize> = match deadline {
            None => {
                let read = {
                    let mut reading = pin!(connection.read_while_open(incoming));
                    poll_fn(|cx| match reading.as_mut().poll(cx) {
                        Poll::Pending => watch.poll_rest(cx).map(|()| None),
                        read @ Poll::Ready(_) => read.map(Some),
                    })
                    .await
                };
                watch.stir();
                match read {
                    Some(read) => read,
                    None if incoming.is_empty() => return Incoming::Nothing,
                    None => continue,
                }
            }
            Some(deadline) => match timeout_at(deadline, connection.read(incoming)).await {
                Ok(read) => read,
                Err(_) => return Incoming::Refused(Reason::RequestTimeout.into()),
            },
        };
        if !matches!(read, Ok(1..)) {
            return Incoming::End;
        }
    }
}

fn refused(reason: Reason, part: MessagePart, what: &'static str) -> Incoming {
    Incoming::Refused(Cause::from(reason).with(Some(Fault::new(part, what))))
}

/// With what a request is refused that is not understood.
pub(crate) fn reason_of(refused: Refused) -> Reason {
    match refused {
        Refused::Malformed(_) => Reason::BadRequest,
        Refused::TooManyHeaders => Reason::HeaderTooLarge,
        Refused::Coding => Reason::NotImplemented,
        Refused::Version => Reason::HttpVersion,
    }
}

/// Whether a caller was told that its request is refused.
enum Refusal {
    Told,
    /// It has left, and does not miss it.
    Unheard,
}

impl From<Refusal> for Next {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Told => Self::Linger,
            Refusal::Unheard => Self::End,
        }
    }
}

/// Answers a request that was not understood, after which nothing on the connection can be.
async fn refuse(connection: &mut Connection, cause: &Cause) -> Refusal {
    let mut out = connection.worker.buffers.take();
    answer::http1(&MadeUp::of(cause, Kind::Http), false, &mut out);
    let written = connection.stream.write_all(&out).await;
    connection.worker.buffers.give(out);
    if written.is_ok() { Refusal::Told } else { Refusal::Unheard }
}

/// Ends the connection so that the answer arrives although the caller may still be sending.
async fn linger(connection: &mut Connection) {
    if connection.stream.shutdown().await.is_err() {
        return;
    }
    let deadline = Instant::now() + LINGER;
    let mut dropped = BytesMut::new();
    let until = || deadline.min(Instant::now() + LINGER_SILENCE);
    while let Ok(Ok(1..)) = timeout_at(until(), connection.read(&mut dropped)).await {
        dropped.clear();
    }
    connection.worker.buffers.give(dropped);
}
