//! How long a request, and each attempt at it, may take (`timeouts` of a policy).

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::HeaderName;

use super::stream::Idle;
use crate::{
    clock::Nanos,
    govern::{
        endpoint::Endpoint,
        governor::Governor,
        policy::{Drain, Mode, Part, Policy, Timeouts},
        request::Request,
        throttle,
    },
    observe::reason::Reason,
    proxy::{
        answer::{Cause, Kind},
        timer::Timers,
    },
};

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Which time has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elapsed {
    /// That of the whole request.
    Request,
    /// That which the client gives the request itself, and which is shorter.
    Client,
    /// That of one attempt.
    BackendRequest,
    /// That for which a stream may be silent.
    StreamIdle,
    /// That which an endpoint is given to shut down.
    Drained,
}

impl Elapsed {
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Request | Self::Client | Self::BackendRequest | Self::StreamIdle => Reason::Timeout,
            Self::Drained => Reason::EndpointDrained,
        }
    }

    /// The answer that says so. `route`: the one that limits its time, in the place of the policy.
    pub(super) fn cause(self, governor: &Governor, route: Option<&str>) -> Cause {
        if let (Self::Request | Self::BackendRequest, Some(route)) = (self, route) {
            let field = if self == Self::Request { "request" } else { "backendRequest" };
            let name = format!("timeouts.{field} of {route}").into();
            return Cause::of_rule(self.reason(), &name, None, None);
        }
        let (field, part) = match self {
            Self::Client => return Cause::from(self.reason()),
            Self::Request => ("timeouts.request", Part::Timeouts),
            Self::BackendRequest => ("timeouts.backendRequest", Part::Timeouts),
            Self::StreamIdle => ("timeouts.streamIdle", Part::Timeouts),
            Self::Drained => ("drain.timeout", Part::Drain),
        };
        Cause::of_rule(self.reason(), &Arc::from(field), governor.policy().said_by(part), None)
    }
}

/// When a request's time is over. Without a policy that says so it never is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RequestDeadline {
    /// And whose time that is.
    request: Option<(Nanos, Elapsed)>,
    /// How long the request may take as a whole.
    whole: Nanos,
    /// When nobody waits any more, whether or not the request is ended then: `request`, or the client's own time.
    awaited: Option<(Nanos, Nanos)>,
    backend_request: Option<Nanos>,
    /// After an endpoint has begun to shut down.
    drain: Option<Duration>,
    observed: Observed,
}

/// Times that only observe.
#[derive(Clone, Copy, Debug, Default)]
struct Observed {
    request: Option<Nanos>,
    backend_request: Option<Nanos>,
    drain: Option<Duration>,
}

impl RequestDeadline {
    /// The request's time begins now. Where a policy limits it, the caller's own `grpc-timeout` counts if it is shorter.
    /// `queues`: the request may have to wait for its turn, which it does not longer than its caller does.
    pub(super) fn begin(
        policy: &Policy,
        timeouts: Timeouts,
        kind: Kind,
        request: &impl Request,
        queues: bool,
        now: Nanos,
    ) -> Self {
        let drain = policy.drain;
        let mut deadline = Self::default();
        match drain.mode {
            Mode::Enforce => deadline.drain = drain.timeout,
            Mode::Observe => deadline.observed.drain = drain.timeout,
        }
        let is_limited = timeouts.request.is_some() || timeouts.backend_request.is_some();
        if !is_limited && !queues {
            return deadline;
        }
        let asked =
            if kind == Kind::Grpc { request.header(&GRPC_TIMEOUT).and_then(grpc_timeout) } else { None };
        let of_client = asked.map(|asked| (Nanos::of(asked), Elapsed::Client));
        let of_policy = timeouts.request.map(|most| (Nanos::of(most), Elapsed::Request));
        let (request, backend_request) = match timeouts.mode {
            Mode::Enforce => {
                // Without a policy that limits it, it is the caller that ends the request.
                let first = of_policy
                    .into_iter()
                    .chain(of_client.filter(|_| is_limited))
                    .min_by_key(|(most, _)| *most);
                (first, timeouts.backend_request.map(Nanos::of))
            }
            Mode::Observe => {
                deadline.observed.request = of_policy.map(|(most, _)| now + most);
                deadline.observed.backend_request = timeouts.backend_request.map(Nanos::of);
                (None, None)
            }
        };
        deadline.whole = request.map_or(Nanos::ZERO, |(most, _)| most);
        deadline.request = request.map(|(most, whose)| (now + most, whose));
        deadline.awaited = request.or(of_client).map(|(most, _)| (now + most, most));
        deadline.backend_request = backend_request;
        deadline
    }

    /// How long a request that has just come may wait for its turn, if it is to be answered in time by a service that takes so
    /// long as `expected`; `None`: for as long as it likes. `patience`: how long its client waits, if it does not say so.
    pub(super) fn may_wait(
        self,
        patience: Option<Duration>,
        expected: impl FnOnce() -> Option<Duration>,
        now: Nanos,
    ) -> Option<Duration> {
        let known = self.awaited.map(|(over, whole)| (over.since(now).into(), whole.into()));
        let shown = patience.map(|patience| (patience, patience));
        let (left, whole) = known.into_iter().chain(shown).min()?;
        Some(throttle::time_to_wait(left, whole, expected()))
    }

    /// The time of an attempt begins now.
    pub(super) fn attempt(self, now: Nanos) -> AttemptDeadline {
        let attempt = self.backend_request.map(|most| now + most);
        let at = match (self.request, attempt) {
            (Some((request, _)), Some(attempt)) if attempt < request => {
                Some((attempt, Elapsed::BackendRequest))
            }
            (Some(request), _) => Some(request),
            (None, attempt) => attempt.map(|attempt| (attempt, Elapsed::BackendRequest)),
        };
        let observed = Observed {
            backend_request: self.observed.backend_request.map(|most| now + most),
            ..self.observed
        };
        AttemptDeadline { at, drain: self.drain.map(Nanos::of), began: now, whole: self.whole, observed }
    }

    /// For what is waited for between attempts.
    pub(super) fn request(self) -> AttemptDeadline {
        AttemptDeadline { at: self.request, ..AttemptDeadline::no_time() }
    }
}

/// Until when an attempt may take, or what follows of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttemptDeadline {
    at: Option<(Nanos, Elapsed)>,
    drain: Option<Nanos>,
    /// When the attempt began, and what its request has in all.
    began: Nanos,
    whole: Nanos,
    observed: Observed,
}

/// How often it is looked whether an endpoint has begun to shut down.
const LOOK: Nanos = Nanos::of(Duration::from_secs(1));

impl AttemptDeadline {
    /// For ever.
    fn no_time() -> Self {
        Self { at: None, drain: None, began: Nanos::ZERO, whole: Nanos::ZERO, observed: Observed::default() }
    }

    /// What goes on with an endpoint ends only when that has been shutting down for too long.
    pub(crate) fn drained(drain: Drain) -> Self {
        let mut deadline = Self::no_time();
        match drain.mode {
            Mode::Enforce => deadline.drain = drain.timeout.map(Nanos::of),
            Mode::Observe => deadline.observed.drain = drain.timeout,
        }
        deadline
    }

    /// The same without the request's time: it is a stream.
    pub(super) fn of_stream(self) -> Self {
        let observed = Observed { request: None, backend_request: None, ..self.observed };
        Self { at: None, observed, ..self }
    }

    /// Whether it is the endpoint's failure that this time is over by `now`. It is not if its caller gave the request so little;
    /// nor if most of the time was spent before the endpoint was asked: in a queue of this agent, or on other endpoints.
    pub(super) fn blames(self, elapsed: Elapsed, now: Nanos) -> bool {
        match elapsed {
            Elapsed::Client | Elapsed::StreamIdle | Elapsed::Drained => false,
            Elapsed::BackendRequest => true,
            Elapsed::Request => now.since(self.began).0.saturating_mul(2) >= self.whole.0,
        }
    }

    /// What would have ended by now, if it were not only observed.
    pub(super) fn would_have_ended(self, endpoint: &Endpoint) -> Option<Elapsed> {
        let Observed { request, backend_request, drain } = self.observed;
        if request.is_none() && backend_request.is_none() && drain.is_none() {
            return None;
        }
        let now = Nanos::now();
        let drained = || {
            let since = endpoint.load.terminating_since()?;
            Some(Nanos(since) + Nanos::of(drain?))
        };
        let over = |at: Option<Nanos>| at.is_some_and(|at| at <= now);
        match () {
            () if over(request) => Some(Elapsed::Request),
            () if over(backend_request) => Some(Elapsed::BackendRequest),
            () if drain.is_some() && over(drained()) => Some(Elapsed::Drained),
            () => None,
        }
    }

    /// Waits no longer for what goes on with an endpoint. (Takes a pinned future, because a moved one would be kept twice.)
    pub(crate) async fn wait<F: Future>(
        self,
        timers: &Timers,
        endpoint: &Endpoint,
        future: Pin<&mut F>,
    ) -> Result<F::Output, Elapsed> {
        self.wait_stream(timers, endpoint, None, future).await
    }

    /// The same for what may not be silent for too long.
    pub(crate) async fn wait_stream<F: Future>(
        self,
        timers: &Timers,
        endpoint: &Endpoint,
        idle: Option<&Idle>,
        future: Pin<&mut F>,
    ) -> Result<F::Output, Elapsed> {
        if self.drain.is_none() && idle.is_none() {
            return self.wait_only(timers, future).await;
        }
        let over = |now: Nanos| {
            let drained = || {
                let since = endpoint.load.terminating_since()?;
                Some((Nanos(since) + self.drain?, Elapsed::Drained))
            };
            let ends = [self.at, drained(), idle.and_then(Idle::due)];
            match ends.into_iter().flatten().min_by_key(|(at, _)| *at) {
                Some((at, elapsed)) if at <= now => Err(elapsed),
                Some((at, _)) => Ok(at.min(now + LOOK)),
                None => Ok(now + LOOK),
            }
        };
        wait_until(timers, over, future).await
    }

    /// Waits no longer.
    pub(super) async fn wait_only<F: Future>(
        self,
        timers: &Timers,
        future: Pin<&mut F>,
    ) -> Result<F::Output, Elapsed> {
        let Some((at, elapsed)) = self.at else { return Ok(future.await) };
        wait_until(timers, |now| if at <= now { Err(elapsed) } else { Ok(at) }, future).await
    }
}

/// Waits until the time is over: `over` says so, or when it is to be asked again. What is there at once costs neither a
/// timer nor a look at the clock.
async fn wait_until<F: Future>(
    timers: &Timers,
    over: impl Fn(Nanos) -> Result<Nanos, Elapsed>,
    mut future: Pin<&mut F>,
) -> Result<F::Output, Elapsed> {
    let mut timer = timers.timer();
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        loop {
            if timer.poll_elapsed(cx).is_pending() {
                return Poll::Pending;
            }
            match over(Nanos::now()) {
                Err(elapsed) => return Poll::Ready(Err(elapsed)),
                Ok(next) => timer.set(next),
            }
        }
    })
    .await
}

/// `grpc-timeout`: at most eight digits and a unit.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn a_grpc_timeout_is_digits_and_a_unit() {
        for (value, wanted) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("30S", Some(Duration::from_secs(30))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000n", None),
            ("S", None),
            ("1s", None),
            ("-1S", None),
            ("1", None),
            ("", None),
        ] {
            assert_eq!(grpc_timeout(value.as_bytes()), wanted, "{value:?}");
        }
    }

    #[test]
    fn an_attempt_ends_with_whichever_time_is_over_first() {
        let of = |request: Option<u64>, backend: Option<u64>| {
            let now = Nanos::now();
            let seconds = |seconds| Nanos::of(Duration::from_secs(seconds));
            let request = request.map(|after| now + seconds(after));
            let backend_request = backend.map(seconds);
            let request = request.map(|request| (request, Elapsed::Request));
            RequestDeadline { request, backend_request, ..RequestDeadline::default() }
                .attempt(now)
                .at
                .map(|(_, elapsed)| elapsed)
        };
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some(5), None), Some(Elapsed::Request));
        assert_eq!(of(None, Some(5)), Some(Elapsed::BackendRequest));
        assert_eq!(of(Some(5), Some(3)), Some(Elapsed::BackendRequest));
        assert_eq!(of(Some(3), Some(5)), Some(Elapsed::Request));
    }

    #[tokio::test]
    async fn time_runs_out_for_what_always_has_something_to_do() {
        let at = Nanos::now() + Nanos::of(Duration::from_millis(20));
        let deadline = AttemptDeadline { at: Some((at, Elapsed::Request)), ..AttemptDeadline::no_time() };
        let timers = Timers::default();
        let mut busy = pin!(async {
            loop {
                // Uses up what the runtime lets a task do in one go, as a relay between two fast peers does.
                tokio::task::consume_budget().await;
            }
        });
        let waited =
            tokio::time::timeout(Duration::from_secs(20), deadline.wait_only(&timers, busy.as_mut())).await;
        let ended: Result<(), Elapsed> = waited.expect("it ends by itself");
        assert_eq!(ended, Err(Elapsed::Request));
    }
}
