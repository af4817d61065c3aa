//! Whether a service is overloaded, seen from what comes and goes.
//!
//! That answers take longer says little: a service may alternate between two speeds, or wait for a dependency that has become
//! slow, and answer all the same everything that it is asked. It is overloaded when it does not keep up: answers have become
//! slower, *and* fewer requests end than begin, so that ever more are in flight. (A service that has become slower and keeps up
//! has more in flight, too, but not ever more: [Little's law](https://en.wikipedia.org/wiki/Little%27s_law).)
//!
//! That is looked at in windows, each at least as long as its median answer takes, so that a service which has become slower,
//! or gets more to do, all at once has two bad windows at most. Three in a row are needed. In a window whose latencies are not
//! above [`SLOW`] times those of the fastest of late nothing is bad; nor is a growth that chance or a burst may explain: it must
//! be a fifth of what came, and four standard deviations if that came at random.

use super::gradient::Samples;

/// Answers are slow that take so many times as long as the fastest windows of late.
const SLOW: f64 = 2.5;
/// Bad windows in a row that make an overload.
const IN_A_ROW: u32 = 3;
/// After so many windows in which it kept up it is known how long its answers take then.
const KNOWN: u32 = 3;
/// Ended requests that a window needs.
const LEAST_ENDED: u32 = 10;
/// How much longer one lasts in which no request was answered.
const LONGER: u64 = 40;
/// The part of what came that must be missing.
const MISSING: f64 = 0.2;
/// And how many standard deviations of it.
const DEVIATIONS: f64 = 4.0;

#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// A window lasts at least so long, ..
    window: u64,
    /// .. and the fastest one of two spans of this length is remembered: of this one and of the one before.
    remember: u64,
    since: u64,
    in_flight: u32,
    ended: u32,
    /// Of these, those that were not answered in a time in which the service usually answers.
    failed: u32,
    latencies: Samples,
    look_at: u64,
    fastest: [Option<f64>; 2],
    span_began: u64,
    bad: u32,
    good: u32,
}

/// What a service does that does not keep up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Overload {
    /// How long its answers take when it does, in nanoseconds, ..
    pub(super) fastest: f64,
    /// .. if that is known: it may never have kept up since it is watched.
    pub(super) is_known: bool,
    /// The answers that it gives, each nanosecond.
    pub(super) rate: f64,
}

impl Watch {
    pub(super) fn new(now_nanos: u64) -> Self {
        Self {
            window: 1,
            remember: 1,
            since: now_nanos,
            in_flight: 0,
            ended: 0,
            failed: 0,
            latencies: Samples::default(),
            look_at: 0,
            fastest: [None; 2],
            span_began: now_nanos,
            bad: 0,
            good: 0,
        }
    }

    pub(super) fn configure(&mut self, window: u64, remember: u64) {
        (self.window, self.remember) = (window.max(1), remember.max(1));
    }

    /// How long answers take when the service keeps up, as far as that is known.
    pub(super) fn fastest(&self) -> Option<f64> {
        self.fastest.iter().flatten().copied().reduce(f64::min)
    }

    /// Answers take so long, as was found out otherwise.
    pub(super) fn learn(&mut self, fastest: f64, now_nanos: u64) {
        self.fastest = [Some(fastest), None];
        self.span_began = now_nanos;
    }

    /// What is counted begins anew: so many are in flight.
    pub(super) fn restart(&mut self, in_flight: u32, now_nanos: u64) {
        self.bad = 0;
        self.begin(in_flight, now_nanos);
    }

    /// A request has ended.
    pub(super) fn ended(&mut self, latency_nanos: u64, error: bool) {
        self.ended = self.ended.saturating_add(1);
        // What fails fast says nothing.
        if error && self.fastest().is_some_and(|fastest| latency_nanos as f64 <= SLOW * fastest) {
            return;
        }
        self.failed += u32::from(error);
        self.latencies.push(latency_nanos);
    }

    /// Looks at the window if that is long enough.
    pub(super) fn look(&mut self, in_flight: u32, now_nanos: u64) -> Option<Overload> {
        let lasted = now_nanos.saturating_sub(self.since);
        if self.ended < LEAST_ENDED || lasted < self.window || now_nanos < self.look_at {
            return None;
        }
        let Some(median) = self.latencies.median() else {
            self.begin(in_flight, now_nanos);
            return None;
        };
        if (lasted as f64) < median {
            self.look_at = self.since.saturating_add(median as u64);
            return None;
        }
        if self.fastest().is_none() && self.failed == self.ended {
            return self.look_at_nothing(median, in_flight, now_nanos);
        }
        if now_nanos.saturating_sub(self.span_began) > self.remember {
            self.fastest = [None, self.fastest[0]];
            self.span_began = now_nanos;
        }
        let fastest = self.fastest().map_or(median, |fastest| fastest.min(median));
        if self.failed * 2 < self.ended {
            self.fastest[0] = Some(self.fastest[0].map_or(median, |of_span| of_span.min(median)));
        }
        let grown = f64::from(in_flight) - f64::from(self.in_flight);
        let came = f64::from(self.ended) + grown;
        let missing = grown + f64::from(self.failed);
        let keeps_up = missing < (MISSING * came).max(DEVIATIONS * came.max(0.0).sqrt());
        self.bad = if median > SLOW * fastest && !keeps_up { self.bad + 1 } else { 0 };
        self.good = self.good.saturating_add(u32::from(keeps_up));
        let is_known = self.good >= KNOWN;
        let rate = f64::from(self.ended - self.failed) / lasted.max(1) as f64;
        let overload = (self.bad >= IN_A_ROW).then_some(Overload { fastest, is_known, rate });
        self.begin(in_flight, now_nanos);
        overload
    }

    /// A window in which no request was answered, of a service that has not answered any yet: it may have been overloaded from
    /// the beginning, or it does not answer at all, and then nobody loses anything. But clients may have left too early, too.
    fn look_at_nothing(&mut self, median: f64, in_flight: u32, now_nanos: u64) -> Option<Overload> {
        let wanted = self.window.saturating_mul(LONGER);
        if now_nanos.saturating_sub(self.since) < wanted {
            self.look_at = self.since.saturating_add(wanted);
            return None;
        }
        self.bad += 1;
        let overload = Overload { fastest: median, is_known: false, rate: 0.0 };
        self.begin(in_flight, now_nanos);
        (self.bad >= IN_A_ROW).then_some(overload)
    }

    fn begin(&mut self, in_flight: u32, now_nanos: u64) {
        self.since = now_nanos;
        self.in_flight = in_flight;
        (self.ended, self.failed, self.look_at) = (0, 0, 0);
        self.latencies.clear();
    }
}
