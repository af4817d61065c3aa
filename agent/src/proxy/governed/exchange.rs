//! What the rules ask of a protocol, and what it tells them.

use std::task::{Context, Poll};

use super::{Attempt, Call, ClientClose, Elapsed};
use crate::{
    clock::Nanos,
    govern::{fallback::stale::Collector, jwt::HeaderPlan, outcome::ErrorKind, request::Request},
    observe::reason::Reason,
    proxy::{
        answer::{Cause, Kind, MadeUp},
        choose::Chosen,
    },
};

/// A request and its answer, as their protocol moves them.
pub(crate) trait Exchange {
    /// An answer of an endpoint whose head is there, and the way to the rest of it.
    type Answer;
    /// What the caller's connection is told at the end.
    type Ended;

    /// As logs name it.
    const PROTOCOL: &'static str;

    fn call(&mut self) -> &mut Call;

    /// Sends the request to an endpoint and waits for the head of its answer, which is not passed on yet (those of interim
    /// answers are).
    async fn attempt(&mut self, chosen: &Chosen) -> Result<Self::Answer, Failure>;

    fn status(answer: &Self::Answer) -> u16;

    /// The status of gRPC, if its caller speaks that and it has come: with the head of an answer that has nothing else,
    /// otherwise at the end.
    fn grpc_status(&self, answer: &Self::Answer) -> Option<u8>;

    /// The header lines of an answer that has not been passed on.
    fn headers(answer: &Self::Answer) -> impl Iterator<Item = (&[u8], &[u8])>;

    /// The answer's body is to be shown to this, as it is passed on.
    fn show(answer: &mut Self::Answer, collector: Collector);

    /// The answer will not be passed on.
    fn discard(&mut self, answer: Self::Answer);

    /// What follows the head is another protocol.
    fn is_tunnel(answer: &Self::Answer) -> bool;

    /// When the endpoint had been given the whole request; `None` if it has not.
    fn sent_at(&self, answer: &Self::Answer) -> Option<Nanos>;

    /// Changes the request's head as its policies at the endpoint say, and what it may have behind it: what they say themselves is
    /// not the client's to say in trailers either. Nothing of it has been sent yet.
    fn change_head(&mut self, plan: HeaderPlan) -> Result<(), Cause>;

    /// What is sent from now on is kept, as far as there is room, so that it can be sent again.
    fn keep(&mut self);

    /// Copies the request from now on for those that its route names as mirrors. Nothing of it has been sent yet.
    fn copy(&mut self);

    /// Everything that was sent can be sent again.
    fn can_repeat(&self) -> bool;

    /// The next attempt begins with the beginning.
    fn repeat(&mut self);

    /// Passes the answer on, to its end.
    async fn pass_on(&mut self, answer: &mut Self::Answer) -> Result<(), Break>;

    /// Bytes of bodies that have been passed on, of the request and of the answer.
    fn passed(&self, answer: Option<&Self::Answer>) -> (u64, u64);

    /// The answer has ended, and how: leaves both connections as they should be.
    async fn conclude(
        &mut self,
        answer: Self::Answer,
        attempt: Box<Attempt>,
        ended: Result<(), Break>,
    ) -> Self::Ended;

    /// Answers in the place of an endpoint. Returns the status that the caller got; 0 if it has gone.
    async fn make_up(&mut self, answer: &MadeUp) -> (u16, Self::Ended);

    /// The request as rules see it, for as long as it can be sent again.
    fn request(&self) -> impl Request;

    /// Whether the caller leaves, while its request is not yet sent.
    fn poll_client_close(&mut self, cx: &mut Context<'_>) -> Poll<ClientClose>;

    /// The host that the caller means.
    fn authority(&self) -> &[u8];

    /// The request has a body, or may have.
    fn has_body(&self) -> bool;

    /// What the caller understands.
    fn kind(&self) -> Kind;

    /// Gives the last attempt's failure to the caller in the protocol's own way, if it has one. Returns as
    /// [`Self::make_up`].
    fn hand_on(&mut self) -> Option<(u16, Self::Ended)>;

    /// The endpoint was told that its caller has ended its side. Most likely the caller is gone, and an endpoint that
    /// closes its connection then has not failed.
    fn is_forsaken(&self) -> bool;

    /// There is nobody to answer.
    fn leave(&mut self) -> Self::Ended;
}

/// Why an attempt brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The endpoint cannot be connected to.
    Connect,
    /// The endpoint said that it has not processed the request, and will not.
    Refused,
    /// The way to the endpoint broke, or what came back is no answer.
    Broken(Reason),
    /// The request cannot be sent on.
    Unfit(Reason),
    CallerGone,
    TimedOut(Elapsed),
}

impl Failure {
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Connect => Reason::UpstreamConnect,
            Self::Refused => Reason::UpstreamReset,
            Self::Broken(reason) | Self::Unfit(reason) => reason,
            Self::CallerGone => Reason::ClientClosed,
            Self::TimedOut(elapsed) => elapsed.reason(),
        }
    }

    /// What it is to the rules; `None`: nothing that could be held against anybody.
    pub(super) fn error_kind(self) -> Option<ErrorKind> {
        match self {
            Self::Connect => Some(ErrorKind::Connect),
            Self::Broken(Reason::UpstreamProtocol) => Some(ErrorKind::Protocol),
            Self::Broken(_) | Self::Refused => Some(ErrorKind::Reset),
            Self::TimedOut(Elapsed::Request | Elapsed::BackendRequest) => Some(ErrorKind::Timeout),
            Self::TimedOut(Elapsed::Drained | Elapsed::Client | Elapsed::StreamIdle)
            | Self::Unfit(_)
            | Self::CallerGone => None,
        }
    }
}

/// Why an answer that had begun did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// Having got this status, or 0 for none.
    CallerGone(u16),
    /// The endpoint's connection broke, or what came over it was not valid.
    Answer(Reason),
    /// The endpoint's connection ended in order, but too early.
    End,
    /// Its time was over.
    TimedOut(Elapsed),
}
