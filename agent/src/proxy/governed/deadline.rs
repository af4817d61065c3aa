//! How long a request, and each attempt at it, may take (`timeouts` of a policy).

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::HeaderName;
use tokio::{
    task::unconstrained,
    time::{Sleep, sleep_until},
};

use crate::{
    clock::Nanos,
    govern::{
        endpoint::Endpoint,
        governor::Governor,
        policy::{Part, Policy, Timeouts},
        request::Request,
    },
    observe::reason::Reason,
    proxy::answer::{Cause, Kind},
};

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Which time has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elapsed {
    /// That of the whole request.
    Request,
    /// That of one attempt.
    BackendRequest,
    /// That which an endpoint is given to shut down.
    Drained,
}

impl Elapsed {
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Request | Self::BackendRequest => Reason::Timeout,
            Self::Drained => Reason::EndpointDrained,
        }
    }

    /// The answer that says so.
    pub(super) fn cause(self, governor: &Governor) -> Cause {
        let (field, part) = match self {
            Self::Request => ("timeouts.request", Part::Timeouts),
            Self::BackendRequest => ("timeouts.backendRequest", Part::Timeouts),
            Self::Drained => ("drain.timeout", Part::Drain),
        };
        Cause::of_rule(self.reason(), &Arc::from(field), governor.policy().said_by(part), None)
    }
}

/// When a request's time is over. Without a policy that says so it never is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deadline {
    request: Option<Nanos>,
    backend_request: Option<Nanos>,
    /// After an endpoint has begun to shut down.
    drain: Option<Duration>,
}

impl Deadline {
    /// The request's time begins now. Where a policy limits it, the caller's own `grpc-timeout` counts if it is shorter.
    pub(super) fn begin(policy: &Policy, kind: Kind, request: &impl Request, now: Nanos) -> Self {
        let (timeouts, drain) = (policy.timeouts, policy.drain.timeout);
        if timeouts == Timeouts::default() {
            return Self { drain, ..Self::default() };
        }
        let asked =
            if kind == Kind::Grpc { request.header(&GRPC_TIMEOUT).and_then(grpc_timeout) } else { None };
        let whole = match (timeouts.request, asked) {
            (Some(policy), Some(caller)) => Some(policy.min(caller)),
            (policy, caller) => policy.or(caller),
        };
        let request = whole.map(|whole| now + Nanos::of(whole));
        Self { request, backend_request: timeouts.backend_request.map(Nanos::of), drain }
    }

    /// The time of an attempt begins now.
    pub(super) fn attempt(self, now: Nanos) -> Until {
        let attempt = self.backend_request.map(|most| now + most);
        let at = match (self.request, attempt) {
            (Some(request), Some(attempt)) if attempt < request => Some((attempt, Elapsed::BackendRequest)),
            (Some(request), _) => Some((request, Elapsed::Request)),
            (None, attempt) => attempt.map(|attempt| (attempt, Elapsed::BackendRequest)),
        };
        Until { at, drain: self.drain.map(Nanos::of) }
    }

    /// For what is waited for between attempts.
    pub(super) fn request(self) -> Until {
        Until { at: self.request.map(|request| (request, Elapsed::Request)), drain: None }
    }
}

/// Until when something may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until {
    at: Option<(Nanos, Elapsed)>,
    drain: Option<Nanos>,
}

/// How often it is looked whether an endpoint has begun to shut down.
const LOOK: Nanos = Nanos::of(Duration::from_secs(1));

impl Until {
    /// What goes on with an endpoint ends only if that has been shutting down for so long.
    pub(crate) fn drained(after: Option<Duration>) -> Self {
        Self { at: None, drain: after.map(Nanos::of) }
    }

    /// Waits no longer for what goes on with an endpoint. (Takes a pinned future, because a moved one would be kept twice.)
    pub(crate) async fn wait<F: Future>(
        self,
        endpoint: &Endpoint,
        future: Pin<&mut F>,
    ) -> Result<F::Output, Elapsed> {
        let Some(drain) = self.drain else { return self.wait_only(future).await };
        let over = |now: Nanos| {
            let due = endpoint.load.terminating_since().map(|since| Nanos(since) + drain);
            match (self.at, due) {
                (Some((at, elapsed)), _) if at <= now => Err(elapsed),
                (_, Some(due)) if due <= now => Err(Elapsed::Drained),
                (at, due) => {
                    let look = due.map_or(now + LOOK, |due| due.min(now + LOOK));
                    Ok(at.map_or(look, |(at, _)| at.min(look)))
                }
            }
        };
        wait_until(over, future).await
    }

    /// Waits no longer.
    pub(super) async fn wait_only<F: Future>(self, future: Pin<&mut F>) -> Result<F::Output, Elapsed> {
        let Some((at, elapsed)) = self.at else { return Ok(future.await) };
        wait_until(|now| if at <= now { Err(elapsed) } else { Ok(at) }, future).await
    }
}

/// Waits until the time is over: `over` says so, or when it is to be asked again. What is there at once costs neither a
/// timer nor a look at the clock.
async fn wait_until<F: Future>(
    over: impl Fn(Nanos) -> Result<Nanos, Elapsed>,
    mut future: Pin<&mut F>,
) -> Result<F::Output, Elapsed> {
    let mut timer = pin!(None::<Sleep>);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        loop {
            // What is waited for may always have something to do, and use up what the runtime lets a task do in one go: the
            // timer is not to be denied for that, or it never ends.
            let waits = |sleep| Pin::new(&mut unconstrained(sleep)).poll(cx).is_pending();
            if timer.as_mut().as_pin_mut().is_some_and(waits) {
                return Poll::Pending;
            }
            match over(Nanos::now()) {
                Err(elapsed) => return Poll::Ready(Err(elapsed)),
                Ok(next) => timer.set(Some(sleep_until(next.instant()))),
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
            Deadline { request, backend_request, drain: None }.attempt(now).at.map(|(_, elapsed)| elapsed)
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
        let until = Until { at: Some((at, Elapsed::Request)), drain: None };
        let mut busy = pin!(async {
            loop {
                // Uses up what the runtime lets a task do in one go, as a relay between two fast peers does.
                tokio::task::consume_budget().await;
            }
        });
        let waited = tokio::time::timeout(Duration::from_secs(20), until.wait_only(busy.as_mut())).await;
        let ended: Result<(), Elapsed> = waited.expect("it ends by itself");
        assert_eq!(ended, Err(Elapsed::Request));
    }
}
