//! The adaptive limit: as many requests in flight as the service answers about as fast as when it is idle.
//!
//! Every update interval, with `minRTT` the time of an answer when the service is idle and `sampleRTT` the median of the last ones:
//!
//! `g = clamp(1.25 * minRTT / sampleRTT, 0.5, 2)`, `L' = clamp(g * L + sqrt(g * L), min, max)`
//!
//! The root lets the limit grow while answers are about as fast as they can be, and keeps a short queue when they are
//! not. As in Envoy, `minRTT` is measured by lowering the limit to its minimum for a moment.
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter>
//!
//! Where ours differs, because whoever applies a limit to a service that copes is to see nothing of it:
//!
//! - There is no limit but the largest while the service keeps up ([`super::overload`]), however long its answers take. Of a new
//!   agent, or under a new policy, that is so from the beginning: nothing has to be measured, or handed over. With an
//!   overload the limit begins at what the service answers in `minRTT` then; it ends when nothing was refused for
//!   five seconds.
//! - While there is a limit, `minRTT` is measured at the end of each `minRttInterval` only if answers are slower than
//!   `1.25 * minRTT`. A service that became faster shows it in every sample, and `minRTT` follows it.
//! - A measurement ends after 10 update intervals at the latest, with what it has.
//! - When the limit stays at its minimum for 5 updates, the service has become slower than `minRTT` says, and
//!   is measured anew at once. An update needs 10 answers; with little traffic it waits for them, and so goes on.

use std::time::Duration;

use fastrand::Rng;

use super::overload::{Overload, Watch};
use crate::govern::policy::Adaptive;

/// How much slower than idle answers may get before the limit stops growing.
const BUFFER: f64 = 1.25;
const GRADIENT: std::ops::RangeInclusive<f64> = 0.5..=2.0;
/// Answers that an update needs.
const LEAST_SAMPLES: usize = 10;
/// Answers that end a measurement.
const MEASURED_SAMPLES: usize = 50;
/// Update intervals that a measurement lasts at most, and how much longer it waits for the first answer.
const MEASURED_INTERVALS: u64 = 10;
const PATIENCE: u64 = 10;
/// Updates in a row that the limit may be at its minimum.
const AT_MINIMUM: u32 = 5;
/// The samples that are kept: the last ones.
const MOST_SAMPLES: usize = 1024;
/// The share of `minRttInterval` by which it is stretched at random, so that agents do not measure at the same time.
const JITTER: f64 = 0.15;
/// Updates in a row with slow answers until they count as slow: fewer may be chance.
const SLOW: u32 = 5;
/// How far `minRTT` follows answers with each update that are faster by more than the buffer.
const FOLLOW: f64 = 0.25;
/// Windows in which overload is looked for, within an update interval at most.
const WINDOWS: u64 = 4;
/// When nothing has been refused for so long the limit is not needed any more.
const CALM_NANOS: u64 = 5_000_000_000;

#[derive(Clone, Debug)]
pub(super) struct Gradient {
    min_requests: u32,
    max_requests: u32,
    update_interval: u64,
    min_rtt_interval: u64,
    phase: Phase,
    watch: Watch,
    /// When a request was last refused.
    refused_at: u64,
    /// `L`; while measuring, what it goes back to.
    limit: f64,
    min_rtt: Option<f64>,
    /// The last updates in a row in which answers were slower than they may be.
    slow_updates: u32,
    updates_at_minimum: u32,
    /// Answers to requests that began earlier tell of a load that is long over: those of the last measurement and later
    /// count.
    counts_from: u64,
    /// When `minRTT` is to be looked at again.
    measure_at: u64,
    samples: Samples,
    rng: Rng,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// There is no limit but the largest.
    Watching,
    /// `heard`: whether any answer came that had begun since.
    Measuring {
        since: u64,
        heard: bool,
    },
    Running {
        update_at: u64,
    },
}

impl Gradient {
    /// One of a service to which so many requests are in flight.
    pub(super) fn new(adaptive: &Adaptive, max_requests: u32, in_flight: u32, now_nanos: u64) -> Self {
        let mut new = Self {
            min_requests: 1,
            max_requests: 1,
            update_interval: 1,
            min_rtt_interval: 1,
            phase: Phase::Watching,
            watch: Watch::new(now_nanos),
            refused_at: now_nanos,
            limit: 0.0,
            min_rtt: None,
            slow_updates: 0,
            updates_at_minimum: 0,
            counts_from: now_nanos,
            measure_at: 0,
            samples: Samples::default(),
            rng: Rng::with_seed(now_nanos),
        };
        new.configure(adaptive, max_requests);
        new.watch.restart(in_flight, now_nanos);
        new
    }

    pub(super) fn configure(&mut self, adaptive: &Adaptive, max_requests: u32) {
        self.max_requests = max_requests.max(1);
        self.min_requests = adaptive.min_requests.clamp(1, self.max_requests);
        self.update_interval = nanos(adaptive.update_interval);
        let interval = nanos(adaptive.min_rtt_interval);
        if interval != self.min_rtt_interval {
            self.min_rtt_interval = interval;
            // The next measurement is not later than the new interval asks for.
            self.measure_at = 0;
        }
        self.watch.configure(self.update_interval / WINDOWS, interval);
        self.limit = self.limit.clamp(f64::from(self.min_requests), f64::from(self.max_requests));
    }

    /// What is in force.
    pub(super) fn limit(&self) -> u32 {
        match self.phase {
            Phase::Watching => self.max_requests,
            Phase::Measuring { .. } => self.min_requests,
            Phase::Running { .. } => self.limit as u32,
        }
    }

    pub(super) fn min_rtt_nanos(&self) -> Option<u64> {
        let min_rtt = if let Phase::Watching = self.phase { self.watch.fastest() } else { self.min_rtt };
        min_rtt.map(|min_rtt| min_rtt as u64)
    }

    /// When [`Self::go_on`] is to be called at the latest.
    pub(super) fn due_nanos(&self) -> u64 {
        let due = match self.phase {
            Phase::Watching => u64::MAX,
            Phase::Measuring { since, .. } => since.saturating_add(self.measured_for()),
            Phase::Running { update_at } => update_at,
        };
        // The last moment is the one of limits that never have anything to do.
        due.min(u64::MAX - 1)
    }

    /// An answer to a request that began at `acquired_nanos`.
    pub(super) fn sample(&mut self, acquired_nanos: u64, latency_nanos: u64, error: bool) {
        if acquired_nanos < self.counts_from {
            return;
        }
        let latency = latency_nanos.max(1);
        let says_something = match &mut self.phase {
            Phase::Watching => {
                self.watch.ended(latency, error);
                false
            }
            Phase::Measuring { heard, .. } => {
                *heard = true;
                !error
            }
            Phase::Running { .. } => !error || self.min_rtt.is_some_and(|min_rtt| latency as f64 > min_rtt),
        };
        if says_something {
            self.samples.push(latency);
        }
    }

    /// Does what is due. `refused`: whether a request was, since this was last called.
    pub(super) fn go_on(&mut self, in_flight: u32, refused: bool, now_nanos: u64) {
        if refused {
            self.refused_at = now_nanos;
        }
        match self.phase {
            Phase::Watching => {
                if let Some(overload) = self.watch.look(in_flight, now_nanos) {
                    self.start_limiting(overload, now_nanos);
                }
            }
            _ if now_nanos.saturating_sub(self.refused_at) >= CALM_NANOS => {
                self.phase = Phase::Watching;
                if let Some(min_rtt) = self.min_rtt {
                    self.watch.learn(min_rtt, now_nanos);
                }
                self.watch.restart(in_flight, now_nanos);
                self.counts_from = 0;
                self.samples.clear();
            }
            Phase::Measuring { since, heard } => self.measure(since, heard, in_flight, now_nanos),
            Phase::Running { update_at } if now_nanos >= update_at => self.update(now_nanos),
            Phase::Running { .. } => {}
        }
    }

    /// The service does not keep up.
    fn start_limiting(&mut self, overload: Overload, now_nanos: u64) {
        let copes = BUFFER * overload.rate * overload.fastest;
        let (least, most) = (f64::from(self.min_requests), f64::from(self.max_requests));
        self.limit = (copes + copes.sqrt()).clamp(least, most);
        self.min_rtt = Some(overload.fastest);
        self.refused_at = now_nanos;
        self.counts_from = now_nanos;
        self.samples.clear();
        self.updates_at_minimum = 0;
        self.slow_updates = 0;
        self.run(now_nanos);
        self.measure_later(now_nanos);
        if !overload.is_known {
            self.start_measuring(now_nanos);
        }
    }

    fn measure_later(&mut self, now_nanos: u64) {
        let jitter = 1.0 + JITTER * self.rng.f64();
        self.measure_at = now_nanos.saturating_add((self.min_rtt_interval as f64 * jitter) as u64);
    }

    fn measured_for(&self) -> u64 {
        self.update_interval.saturating_mul(MEASURED_INTERVALS)
    }

    fn measure(&mut self, since: u64, heard: bool, in_flight: u32, now_nanos: u64) {
        let lasted = now_nanos.saturating_sub(since);
        let enough = self.samples.len() >= MEASURED_SAMPLES;
        // A slow service may not have answered at all yet.
        let hopeful = self.samples.len() == 0 && in_flight > 0;
        let at_most = self.measured_for().saturating_mul(if hopeful { PATIENCE } else { 1 });
        if !enough && lasted < at_most {
            return;
        }
        if !heard && in_flight == 0 {
            self.start_measuring(now_nanos);
            return;
        }
        if let Some(measured) = self.samples.take_median() {
            self.min_rtt = Some(measured);
        }
        self.run(now_nanos);
        self.measure_later(now_nanos);
        self.updates_at_minimum = 0;
        self.slow_updates = 0;
    }

    fn update(&mut self, now_nanos: u64) {
        if self.samples.len() < LEAST_SAMPLES {
            self.run(now_nanos);
            return;
        }
        let Some(min_rtt) = self.min_rtt else {
            // No answer came when it was to be measured; now they do.
            self.start_measuring(now_nanos);
            return;
        };
        let Some(sample_rtt) = self.samples.take_median() else { return };
        let speed = min_rtt / sample_rtt;
        let gradient = (BUFFER * speed).clamp(*GRADIENT.start(), *GRADIENT.end());
        let wanted = gradient * self.limit;
        let (least, most) = (f64::from(self.min_requests), f64::from(self.max_requests));
        self.limit = (wanted + wanted.sqrt()).clamp(least, most);
        if speed > BUFFER {
            self.min_rtt = Some(min_rtt + (sample_rtt - min_rtt) * FOLLOW);
        }
        let in_a_row = |count: u32, is_so: bool| if is_so { count.saturating_add(1) } else { 0 };
        let slow = gradient < 1.0;
        self.slow_updates = in_a_row(self.slow_updates, slow);
        self.updates_at_minimum =
            in_a_row(self.updates_at_minimum, slow && self.limit as u32 == self.min_requests);
        let is_slow = self.slow_updates >= SLOW && now_nanos >= self.measure_at;
        if is_slow || self.updates_at_minimum >= AT_MINIMUM {
            self.start_measuring(now_nanos);
        } else {
            self.run(now_nanos);
        }
    }

    fn start_measuring(&mut self, now_nanos: u64) {
        self.samples.clear();
        self.counts_from = now_nanos;
        self.phase = Phase::Measuring { since: now_nanos, heard: false };
    }

    fn run(&mut self, now_nanos: u64) {
        self.phase = Phase::Running { update_at: now_nanos.saturating_add(self.update_interval) };
    }
}

/// The last samples, in no order.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    latencies: Vec<u64>,
    /// Where the next one goes when there are as many as are kept.
    oldest: usize,
}

impl Samples {
    fn len(&self) -> usize {
        self.latencies.len()
    }

    pub(super) fn push(&mut self, latency: u64) {
        if self.latencies.len() < MOST_SAMPLES {
            self.latencies.push(latency);
        } else {
            self.latencies[self.oldest] = latency;
            self.oldest = (self.oldest + 1) % MOST_SAMPLES;
        }
    }

    pub(super) fn median(&mut self) -> Option<f64> {
        let middle = self.latencies.len().checked_sub(1)? / 2;
        Some(*self.latencies.select_nth_unstable(middle).1 as f64)
    }

    fn take_median(&mut self) -> Option<f64> {
        let median = self.median()?;
        self.clear();
        Some(median)
    }

    pub(super) fn clear(&mut self) {
        self.latencies.clear();
        self.oldest = 0;
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests;
