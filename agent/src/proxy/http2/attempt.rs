//! Sending a request to an endpoint, up to the head of its answer.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Reason as Code, RecvStream, SendStream, client::ResponseFuture};
use http::{Request, Response};

use super::{
    exchange::{Exchange, reason_of},
    pipe::Broken,
    pool::{NotOpened, Place},
};
use crate::{
    clock::Nanos,
    observe::{metrics::RetryCause, reason::Reason},
    proxy::{choose::Chosen, governed::Failure},
};

/// How often a request is sent to an endpoint again because nothing had processed it.
const RETRIES: u32 = 2;

/// How many connections of an endpoint are tried that turn out to take no new streams.
const RETIRED: u32 = 3;

/// A request that has been sent to an endpoint.
pub(super) struct Sent {
    place: Place,
    /// When the endpoint's turn began: with the request's head, then with the end of its body.
    pub(super) at: Nanos,
    response: ResponseFuture,
    pub(super) stream: SendStream<Bytes>,
    /// The endpoint takes no more of the request; its answer may still come.
    deaf: bool,
}

/// Why there is no answer.
enum NoAnswer {
    /// The caller gave the stream up, with this code if it was one.
    CallerGone(Option<Code>),
    /// The endpoint, or the way to it.
    Endpoint(h2::Error),
}

impl Exchange {
    /// Sends the request and waits for the answer's head.
    pub(super) async fn send(&mut self, chosen: &Chosen) -> Result<(Sent, Response<RecvStream>), Failure> {
        let mut retries = 0;
        loop {
            let mut sent = self.open(chosen).await?;
            match poll_fn(|cx| self.poll_answer(cx, &mut sent)).await {
                Ok(response) => return Ok((sent, response)),
                Err(NoAnswer::CallerGone(code)) => {
                    self.give_up(&mut sent.stream, code);
                    return Err(Failure::CallerGone);
                }
                Err(NoAnswer::Endpoint(error)) => {
                    let Some(cause) = self.unprocessed(&error, &sent).filter(|_| retries < RETRIES) else {
                        return Err(self.failure(&error));
                    };
                    retries += 1;
                    self.up.rewind();
                    self.call.retried(cause);
                }
            }
        }
    }

    /// The caller gave up: so does its request.
    pub(super) fn give_up(&self, stream: &mut SendStream<Bytes>, code: Option<Code>) {
        if code.is_some() {
            self.caller.resets.count(Nanos::now());
        }
        stream.send_reset(code.unwrap_or(Code::CANCEL));
    }

    fn failure(&mut self, error: &h2::Error) -> Failure {
        self.call.worker.complain(|| {
            tracing::warn!(
                pod = %self.call.pod.name(), service = %self.call.service(), %error,
                "an endpoint broke a request off",
            );
        });
        let reset = error.is_reset() && error.is_remote();
        self.reset = reset.then(|| error.reason().unwrap_or(Code::INTERNAL_ERROR));
        // It said that it has not processed the stream (RFC 9113, section 8.7).
        if self.reset == Some(Code::REFUSED_STREAM) {
            Failure::Refused
        } else {
            Failure::Broken(reason_of(error))
        }
    }

    /// Whether the connection was at fault, not the endpoint, nothing has processed the request, and it can be sent again
    /// as it was.
    fn unprocessed(&self, error: &h2::Error, sent: &Sent) -> Option<RetryCause> {
        if !self.up.can_rewind() {
            return None;
        }
        // GOAWAY fails exactly the streams that it says were not processed; the others go on.
        if error.is_go_away() && error.is_remote() {
            return Some(RetryCause::StreamRefused);
        }
        // A pooled connection that was closed without a word. Most likely it was while it was idle, but what cannot be
        // done twice is not.
        (error.is_io() && sent.place.reused && self.idempotent).then_some(RetryCause::StaleConnection)
    }

    /// Sends the request's head.
    async fn open(&mut self, chosen: &Chosen) -> Result<Sent, Failure> {
        let (worker, pod) = (&self.call.worker, &self.call.pod);
        let mut retired = 0;
        loop {
            let at = Nanos::now();
            let place = match worker.h2.place(worker, pod, chosen.endpoint(), at).await {
                Ok(place) => place,
                Err(error) => {
                    worker.complain(|| {
                        tracing::warn!(
                            pod = %pod.name(), service = %self.call.service(),
                            endpoint = %chosen.address(), %error, "cannot connect to an endpoint",
                        );
                    });
                    return Err(Failure::Connect);
                }
            };
            let request = || Request::from_parts(self.head.clone(), ());
            match worker.h2.send(&place, request, self.up.is_done()) {
                Ok((response, stream)) => {
                    // Opening a connection is not the endpoint's latency.
                    let at = if place.reused { at } else { Nanos::now() };
                    self.call.record.timing.asked(at);
                    return Ok(Sent { place, at, response, stream, deaf: false });
                }
                // Nothing was sent. The next connection is another one, if need be a new one.
                Err(NotOpened::Retired) if retired < RETIRED => retired += 1,
                Err(NotOpened::Retired) => return Err(Failure::Broken(Reason::UpstreamReset)),
                Err(NotOpened::Unfit(error)) => {
                    worker.complain(|| {
                        tracing::info!(pod = %pod.name(), %error, "refused a request that cannot be sent over HTTP/2");
                    });
                    return Err(Failure::Unfit(Reason::BadRequest));
                }
            }
        }
    }

    /// Waits for the answer's head, passing interim ones on. Meanwhile the request goes on.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        sent: &mut Sent,
    ) -> Poll<Result<Response<RecvStream>, NoAnswer>> {
        if let Poll::Ready(Err(error)) = self.poll_up(cx, sent) {
            return Poll::Ready(Err(NoAnswer::CallerGone(error.reason())));
        }
        if let Poll::Ready(code) = self.respond.poll_reset(cx) {
            return Poll::Ready(Err(NoAnswer::CallerGone(code.ok())));
        }
        while let Poll::Ready(Some(Ok(interim))) = sent.response.poll_informational(cx) {
            // That the caller is gone is noticed above.
            let _ = self.respond.send_informational(interim);
        }
        Pin::new(&mut sent.response).poll(cx).map_err(NoAnswer::Endpoint)
    }

    /// Moves the request's body. Only a caller that breaks is an error: an endpoint may stop listening and still answer.
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>, sent: &mut Sent) -> Poll<Result<(), h2::Error>> {
        if sent.deaf || self.up.is_done() {
            return Poll::Ready(Ok(()));
        }
        match self.up.poll(cx, &mut sent.stream) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                sent.at = Nanos::now();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Broken::To(_))) => {
                sent.deaf = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Broken::From(error))) => Poll::Ready(Err(error)),
        }
    }
}
