//! Monotonic time as the agent counts it: nanoseconds since this process first asked. What is decided in [`crate::govern`]
//! is given it as `now_nanos`, by whoever calls.

use std::{
    ops::{Add, Mul},
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

/// A moment, or a span, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(pub(crate) u64);

impl Nanos {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn of(duration: Duration) -> Self {
        Self(duration.as_nanos() as u64)
    }

    /// Now. The first caller's now is 0.
    pub(crate) fn now() -> Self {
        // The clock that `Instant` reads, without its checks: a request asks a dozen times.
        Self(monotonic().saturating_sub(start().1))
    }

    /// This instant; 0 if it is before the first caller's now.
    pub(crate) fn at(instant: Instant) -> Self {
        Self::of(instant.saturating_duration_since(start().0))
    }

    /// This moment as timers have it; far away if they cannot.
    pub(crate) fn instant(self) -> tokio::time::Instant {
        let (start, _) = start();
        let far = || start + Duration::from_secs(86_400 * 365);
        start.checked_add(self.into()).unwrap_or_else(far).into()
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// When [`Nanos`] began, as an `Instant` and as the kernel's clock has it.
fn start() -> (Instant, u64) {
    static START: OnceLock<(Instant, u64)> = OnceLock::new();
    *START.get_or_init(|| (Instant::now(), monotonic()))
}

/// The kernel's `CLOCK_MONOTONIC` in nanoseconds. Linux has had it for longer than it has had eBPF: it does not fail.
fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or(TimeSpec::new(0, 0));
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

impl From<Nanos> for Duration {
    fn from(nanos: Nanos) -> Self {
        Self::from_nanos(nanos.0)
    }
}

impl Add for Nanos {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Mul<u64> for Nanos {
    type Output = Self;

    fn mul(self, times: u64) -> Self {
        Self(self.0.saturating_mul(times))
    }
}
