//! Sending a request to an endpoint, up to the head of its answer.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use super::{
    engine::{
        handle::{Broken, Handle},
        message::Response,
        writer::Pseudo,
    },
    exchange::{Exchange, reason_of},
    frame::Code,
    pipe::Cut,
    pool::Place,
};
use crate::{
    clock::Nanos,
    observe::{fault::Sender, metrics::RetryCause, reason::Reason},
    proxy::{choose::Chosen, governed::Failure},
};

/// How often a request is sent to an endpoint again because nothing had processed it.
const RETRIES: u32 = 2;

/// How many connections of an endpoint are tried that turn out to take no new streams.
const RETIRED: u32 = 3;

/// A request that has been sent to an endpoint.
pub(super) struct Sent {
    /// Dropped before the place is free.
    pub(super) stream: Handle,
    place: Place,
    /// When the endpoint's turn began: with the request's head, then with the end of its body.
    pub(super) at: Nanos,
    /// An interim answer for which the caller has no room yet.
    interim: Option<Response>,
    /// The endpoint takes no more of the request; its answer may still come.
    deaf: bool,
}

impl Sent {
    /// The endpoint takes no more of the request.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }
}

/// Why there is no answer.
enum NoAnswer {
    CallerGone(Broken),
    /// The endpoint, or the way to it.
    Endpoint(Broken),
}

impl Exchange {
    /// Sends the request and waits for the answer's head.
    pub(super) async fn send(&mut self, chosen: &Chosen) -> Result<(Sent, Response), Failure> {
        let mut retries = 0;
        loop {
            let mut sent = self.open(chosen).await?;
            match poll_fn(|cx| self.poll_answer(cx, &mut sent)).await {
                Ok(response) => return Ok((sent, response)),
                Err(NoAnswer::CallerGone(broken)) => {
                    give_up(&sent.stream, broken);
                    return Err(Failure::CallerGone);
                }
                Err(NoAnswer::Endpoint(broken)) => {
                    let Some(cause) = self.unprocessed(broken, &sent).filter(|_| retries < RETRIES) else {
                        return Err(self.failure(broken, &sent.stream));
                    };
                    retries += 1;
                    self.up.rewind();
                    self.call.retried(cause);
                }
            }
        }
    }

    fn failure(&mut self, broken: Broken, stream: &Handle) -> Failure {
        self.call.worker.complain(|| {
            let said = stream.go_away_error().map(|said| format!(" ({said})")).unwrap_or_default();
            tracing::warn!(
                pod = %self.call.pod.name(), service = %self.call.service(), error = format!("{broken}{said}"),
                "an endpoint broke a request off",
            );
        });
        self.reset = broken.code();
        // It said that it has not processed the stream (RFC 9113, section 8.7).
        if self.reset == Some(Code::REFUSED_STREAM) {
            Failure::Refused
        } else {
            if let Some(fault) = broken.fault() {
                self.call.note_fault(Sender::Upstream, fault);
            }
            Failure::Broken(reason_of(broken))
        }
    }

    /// Whether the connection was at fault, not the endpoint, nothing has processed the request, and it can be sent again
    /// as it was.
    fn unprocessed(&self, broken: Broken, sent: &Sent) -> Option<RetryCause> {
        if !self.up.can_rewind() {
            return None;
        }
        match broken {
            // GOAWAY fails exactly the streams that it says were not processed; the others go on.
            Broken::Unprocessed => Some(RetryCause::StreamRefused),
            // A pooled connection that was closed without a word. Most likely it was while it was idle, but what cannot be
            // done twice is not. At the endpoint its client decides that for itself.
            Broken::Lost if sent.place.reused && self.idempotent && self.call.pod.arrival.is_none() => {
                Some(RetryCause::StaleConnection)
            }
            // The connection had too much to do. The next one is another.
            Broken::Reset(Code::ENHANCE_YOUR_CALM) if sent.place.reused && self.idempotent => {
                Some(RetryCause::StreamRefused)
            }
            _ => None,
        }
    }

    /// Sends the request's head.
    async fn open(&mut self, chosen: &Chosen) -> Result<Sent, Failure> {
        let worker = self.call.worker.clone();
        let mut retired = 0;
        loop {
            let at = Nanos::now();
            let (pod, stream) = (&self.call.pod, &self.stream);
            let within = || self.call.time_to_connect(chosen);
            let placing = worker.h2.place(&worker, pod, chosen.endpoint(), !self.up.is_done(), within);
            let place = match stream.unless_broken(placing).await {
                Ok(Ok(place)) => place,
                Ok(Err(error)) => {
                    worker.complain(|| {
                        tracing::warn!(
                            pod = %pod.name(), service = %self.call.service(),
                            endpoint = %chosen.address(), %error, "cannot connect to an endpoint",
                        );
                    });
                    return Err(Failure::Connect);
                }
                Err(_) => return Err(Failure::CallerGone),
            };
            self.call.record.connected(chosen, place.to());
            if self.facts.protocol {
                // Whether the endpoint takes it, its settings say (RFC 8441, section 3).
                match stream.unless_broken(poll_fn(|cx| place.poll_settings(cx))).await {
                    Ok(Some(true)) => {}
                    Ok(Some(false)) => return Err(Failure::Unfit(Reason::NotImplemented)),
                    // It has ended before it said.
                    Ok(None) if retired < RETIRED => {
                        retired += 1;
                        continue;
                    }
                    Ok(None) => return Err(Failure::Broken(Reason::UpstreamReset)),
                    Err(_) => return Err(Failure::CallerGone),
                }
            }
            if let Some(sent) = self.begin_stream(place, at).await? {
                return Ok(sent);
            }
            // Nothing was sent. The next connection is another one, if need be a new one.
            if retired == RETIRED {
                return Err(Failure::Broken(Reason::UpstreamReset));
            }
            retired += 1;
        }
    }

    /// Opens a stream on a connection; `None`: it takes no new streams.
    async fn begin_stream(&mut self, place: Place, at: Nanos) -> Result<Option<Sent>, Failure> {
        let Some(stream) = self.call.worker.h2.open(&place) else { return Ok(None) };
        match self.stream.unless_broken(poll_fn(|cx| stream.poll_room_for_head(cx))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(None),
            Err(_) => return Err(Failure::CallerGone),
        }
        if self.facts.head {
            stream.expect_no_body();
        }
        if !stream.send_head(&Pseudo::Within, &self.head, self.up.is_done()) {
            return Ok(None);
        }
        // Opening a connection is not the endpoint's latency.
        let at = if place.reused { at } else { Nanos::now() };
        self.call.record.timing.asked(at);
        Ok(Some(Sent { stream, place, at, interim: None, deaf: false }))
    }

    /// Waits for the answer's head, passing interim ones on. Meanwhile the request goes on.
    fn poll_answer(&mut self, cx: &mut Context<'_>, sent: &mut Sent) -> Poll<Result<Response, NoAnswer>> {
        if let Poll::Ready(broken) = self.stream.poll_broken(cx) {
            return Poll::Ready(Err(NoAnswer::CallerGone(broken)));
        }
        if let Poll::Ready(Err(broken)) = self.poll_up(cx, sent) {
            return Poll::Ready(Err(NoAnswer::CallerGone(broken)));
        }
        loop {
            if let Some(interim) = &sent.interim {
                match self.stream.poll_room_for_head(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(broken)) => return Poll::Ready(Err(NoAnswer::CallerGone(broken))),
                    Poll::Ready(Ok(())) => {
                        self.stream.send_head(&Pseudo::Within, &interim.fields, false);
                        sent.interim = None;
                    }
                }
            }
            match sent.stream.poll_response(cx) {
                Poll::Ready(Ok(response)) if response.status < 200 => sent.interim = Some(response),
                other => return other.map_err(NoAnswer::Endpoint),
            }
        }
    }

    /// Moves the request's body. Only a caller that breaks is an error: an endpoint may stop listening and still answer.
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>, sent: &mut Sent) -> Poll<Result<(), Broken>> {
        if sent.deaf || self.up.is_done() {
            return Poll::Ready(Ok(()));
        }
        match self.up.poll(cx, &self.stream, &sent.stream) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                sent.at = Nanos::now();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Cut::To(_))) => {
                sent.deaf = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Cut::From(broken))) => Poll::Ready(Err(broken)),
        }
    }
}

/// The caller gave up: so does its request.
pub(super) fn give_up(stream: &Handle, broken: Broken) {
    stream.reset(broken.code().unwrap_or(Code::CANCEL));
}
