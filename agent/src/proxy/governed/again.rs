//! Whether a request that has failed is retried (ARCHITECTURE.md#timeouts-retries-and-fallbacks).

use std::net::SocketAddr;

use super::{Call, Elapsed, Exchange, admit::pause, call::Addresses, deadline::RequestDeadline};
use crate::{
    clock::Nanos,
    govern::{
        governor::Governor,
        request::Request,
        retry::{self, Failure, Standing},
        route::{Refusal, Within},
        tag::Tag,
    },
    observe::metrics::RetryCause,
    proxy::choose::{self, Chosen},
};

/// What was tried for a request so far.
#[derive(Default)]
pub(super) struct Tried {
    /// Endpoints that failed it: they are asked again if there is no other.
    failed: Addresses,
    /// Connections that did not come about.
    pub(super) unconnected: usize,
    /// Of these, those after which another attempt has begun.
    followed: usize,
    /// It was refused before it was processed, and tried elsewhere.
    pub(super) refused: bool,
    /// The lane of the endpoint that failed it last; `None` is the baseline.
    lane: Option<Tag>,
    /// Attempts that the policy has asked for.
    retries: u32,
}

impl Tried {
    /// An endpoint for the next attempt; `None` if there is nobody left to ask.
    ///
    /// An endpoint that has failed the request is asked again before its lane is left: whoever asks for the new version means
    /// to see how that does, and a lane whose requests all fail would look well if others answered them.
    pub(super) fn choose(&self, call: &Call, now: Nanos) -> Result<Option<Chosen>, Refusal> {
        let Call { worker, pod, resolved, tagging, ruled_out: out, .. } = call;
        let among = |tried: &[SocketAddr], within: Within<'_>| {
            choose::choose(worker, pod, &resolved.destination, tagging.tag.as_ref(), tried, within, now)
        };
        if self.failed.is_empty() {
            return among(out, Within::Any);
        }
        let all: Addresses = out.iter().chain(&self.failed).copied().collect();
        let lane = Within::Lane(self.lane.as_ref());
        for (tried, within) in [(&all, lane), (out, lane), (&all, Within::Any)] {
            if let Ok(Some(chosen)) = among(tried, within) {
                return Ok(Some(chosen));
            }
        }
        among(out, Within::Any)
    }

    /// Whether the attempt that begins now comes of a connection that did not come about.
    pub(super) fn is_after_refused_connection(&mut self) -> bool {
        std::mem::replace(&mut self.followed, self.unconnected) != self.unconnected
    }

    /// Whether the policy wants the request sent again after this failure. Then it has been paid for.
    pub(super) fn may_retry<E: Exchange>(
        &self,
        exchange: &mut E,
        governor: &Governor,
        failure: Failure,
    ) -> bool {
        let Some(policy) = &governor.policy().retry else { return false };
        let may = {
            let request = exchange.request();
            let standing = Standing {
                method: request.method(),
                retries: self.retries,
                replayable: exchange.can_repeat(),
                head_passed_on: false,
            };
            retry::may_retry(policy, failure, standing)
        };
        if !may {
            return false;
        }
        let paid = governor.budget().is_none_or(|budget| budget.try_withdraw(policy, Nanos::now().0));
        if !paid {
            exchange.call().resolved.numbers.budget_exhausted();
        }
        paid
    }

    /// Waits before the next attempt, and makes the request ready for it. False: its caller has gone.
    /// The error is that there is no time left.
    pub(super) async fn begin_again<E: Exchange>(
        &mut self,
        exchange: &mut E,
        governor: &Governor,
        failure: Failure,
        failed: (SocketAddr, Option<Tag>),
        deadline: RequestDeadline,
    ) -> Result<bool, Elapsed> {
        self.retries += 1;
        self.failed.push(failed.0);
        self.lane = failed.1;
        let call = exchange.call();
        call.retried(match failure {
            Failure::Status(_) | Failure::Grpc(_) => RetryCause::Status,
            Failure::Reset => RetryCause::Reset,
            Failure::Timeout => RetryCause::Timeout,
        });
        exchange.repeat();
        let Some(policy) = &governor.policy().retry else { return Ok(true) };
        let wait = retry::backoff(policy, self.retries, &mut exchange.call().worker.rng.borrow_mut());
        if wait.is_zero() {
            return Ok(true);
        }
        // Boxed, for it is rare, and every request's task would carry its state.
        let left = Box::pin(pause(exchange, wait, deadline, false)).await?;
        Ok(left.is_none())
    }
}
