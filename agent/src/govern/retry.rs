//! Whether a request that failed is retried, and when (ARCHITECTURE.md#timeouts-retries-and-fallbacks).
//!
//! Three questions, in this order: [`may_retry`], may this request be sent again at all; [`Budget`], can the service
//! afford it; [`backoff`], how long to wait first. None of them is about connections and streams that were refused
//! before anything was processed: those are tried again without a policy.
//!
//! gRPC sends everything with POST and tells no reader which of its calls may be repeated. So the method decides there
//! too: a gRPC call is sent again only if the policy lists POST among its methods, and then for the gRPC statuses that
//! it lists. A payment is never made twice because of a default.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fastrand::Rng;

use super::{outcome::ErrorKind, policy::Retry, window::Window};

/// How an attempt failed, as far as trying again goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An answer with this status, which may be one that nobody is to blame for (429).
    Status(u16),
    /// An answer that ended with its head (`Trailers-Only`), with this gRPC status.
    Grpc(u8),
    /// The connection or the stream broke before the answer's head.
    Reset,
    /// `timeouts.backendRequest` ran out before the answer's head. (`timeouts.request` leaves no time to try again.)
    Timeout,
}

impl Failure {
    /// Of an answer's head; whether it is worth another attempt is for the policy to say.
    pub const fn of_answer(status: u16, grpc_status: Option<u8>) -> Self {
        match grpc_status {
            Some(code) if status < 500 => Self::Grpc(code),
            _ => Self::Status(status),
        }
    }

    /// Of an attempt without an answer. `None` for what is not worth another attempt under any policy: an answer that is
    /// not valid will not be better, and one who cannot be connected to is left out anyway.
    pub const fn of_error(kind: ErrorKind) -> Option<Self> {
        match kind {
            ErrorKind::Status(status) => Some(Self::Status(status)),
            ErrorKind::Grpc(code) => Some(Self::Grpc(code)),
            ErrorKind::Reset => Some(Self::Reset),
            ErrorKind::Timeout => Some(Self::Timeout),
            ErrorKind::Connect | ErrorKind::Protocol => None,
        }
    }
}

/// Where a request stands when it has failed.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'r> {
    /// As it was sent: `GET`.
    pub method: &'r [u8],
    /// How often it was sent again already, under the policy.
    pub retries: u32,
    /// Its body can be sent again from the beginning: there is none, or all of it that was sent is kept.
    pub replayable: bool,
    /// The caller has seen a part of the answer. Interim answers (1xx) are no part of it.
    pub head_passed_on: bool,
}

/// May the request be sent again. That nothing else stands against it (the breaker, the budget, the time that is left)
/// is not looked at.
pub fn may_retry(policy: &Retry, failure: Failure, standing: Standing<'_>) -> bool {
    let Standing { method, retries, replayable, head_passed_on } = standing;
    let worth = match failure {
        Failure::Status(status) => policy.on.statuses.contains(&status),
        Failure::Grpc(code) => policy.on.grpc_statuses.contains(&code),
        Failure::Reset => policy.on.reset,
        Failure::Timeout => policy.on.timeout,
    };
    worth
        && replayable
        && !head_passed_on
        && retries < policy.attempts
        && policy.methods.iter().any(|allowed| allowed.as_str().as_bytes() == method)
}

/// How long to wait before the n-th retry, the first being 1: `random(0, min(base * 2^(n - 1), max))`.
pub fn backoff(policy: &Retry, nth: u32, rng: &mut Rng) -> Duration {
    let factor = 1_u32.checked_shl(nth.saturating_sub(1)).unwrap_or(u32::MAX);
    let longest = policy.backoff_base.saturating_mul(factor).min(policy.backoff_max);
    let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.u64(..=nanos))
}

/// What recent requests count for.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
const REQUESTS: usize = 0;
const RETRIES: usize = 1;

/// Retries that a service can afford: of one service, shared by all workers.
///
/// Over any ten seconds there are no more than `budgetPercent` of the requests of that time, or than `budgetMinimum` a
/// second where that is more: the larger of the two, not their sum as in Finagle, so that under a full outage a busy
/// service gets the percentage and not more. Requests are those of callers: a retry pays for no other one.
/// <https://twitter.github.io/finagle/guide/Clients.html#retries>
#[derive(Debug)]
pub struct Budget {
    window: Window<2>,
    /// Held from looking at what is left to taking of it.
    taking: Mutex<()>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { window: Window::new(BUDGET_WINDOW), taking: Mutex::new(()) }
    }
}

impl Budget {
    /// A caller's request has come.
    pub fn deposit(&self, now_nanos: u64) {
        self.window.add([1, 0], now_nanos);
    }

    /// Pays for a retry, if there is enough. Asked last, when everything else speaks for it.
    pub fn try_withdraw(&self, policy: &Retry, now_nanos: u64) -> bool {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = self.balance(policy, now_nanos) >= 1.0;
        if enough {
            self.window.add([0, 1], now_nanos);
        }
        enough
    }

    /// How many retries are left right now; not below 0.
    pub fn balance(&self, policy: &Retry, now_nanos: u64) -> f64 {
        let sum = self.window.sum(now_nanos);
        let earned = sum[REQUESTS] as f64 * policy.budget_percent / 100.0;
        let floor = policy.budget_minimum * BUDGET_WINDOW.as_secs_f64();
        (earned.max(floor) - sum[RETRIES] as f64).max(0.0)
    }
}

#[cfg(test)]
mod tests;
