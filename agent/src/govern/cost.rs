//! What an endpoint costs those who ask it: what this agent has seen of the time that callers wait for it, and of how it
//! fails (ARCHITECTURE.md#choosing-an-endpoint).
//!
//! Every attempt at an endpoint is a sample, however it ends:
//!
//! - **Time.** An answer counts by the time to its head. The mean and the variance of the *logarithm* are kept, over the last
//!   seconds or requests, so that one request that takes a thousand times as long is one request, and not an endpoint that
//!   is out for a minute. An attempt without an answer (a timeout, a reset, a caller that left) says that
//!   it would have taken longer than that: it counts if that is more than what was known, and never makes an endpoint look
//!   fast.
//! - **Failures in a row.** Each doubles what the endpoint costs. A good answer ends the row. An answer that sheds load (429,
//!   `RESOURCE_EXHAUSTED`) counts like a failure here and nowhere else; if it says when to come back, the endpoint is spared
//!   until then, from the second one in a row on: the first may be about its caller alone.
//! - **Silence.** Requests that were sent after the latest one that was answered are *unanswered*. Those that were overtaken
//!   (streams, long polls, one slow request) are not counted: the endpoint has shown that it takes others.
//!
//! Two endpoints are compared by all of it. Differences that may be noise are none: the means must be a factor of two apart,
//! and four standard errors, two of which are taken off. What was seen fades while an endpoint is not asked, so that it is asked again by a few
//! requests.
//!
//! Written and read by all workers at once, without locks: a sample that two write at the same moment may be lost to the
//! mean, which is one sample in very many.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

/// Time after which a sample weighs `1/e`, where samples are few.
const WINDOW_NANOS: f32 = 10e9;
/// Samples after which a sample weighs `1/e`, where they are many, ..
const WINDOW_SAMPLES: f32 = 64.0;
/// .. but not within so many times what an answer takes on (arithmetic) average: of requests that were sent together the quick
/// answers come first, so that whoever has just got more requests looks fast, and slow afterwards.
const WINDOW_ANSWERS: f32 = 10.0;
/// And not within less time than this: what disturbs a process for a while (a garbage collection, a neighbour, a cold cache)
/// disturbs all of its requests meanwhile, so that many samples of one moment are hardly more than one.
const WINDOW_LEAST_NANOS: f32 = 1e9;
/// Time after which what was seen of an endpoint that is not asked counts for `1/e`.
const FADE_NANOS: f32 = 5e9;
/// Before an endpoint is known its samples are taken to vary by this much, as if so many had been seen: the first answer of
/// a new process may take a hundred times as long as the others, and says nothing of them.
const PRIOR_SAMPLES: f32 = 4.0;
const PRIOR_VARIANCE: f32 = 4.0;
/// A caller that leaves after so long without an answer was not answered, where nothing else is known.
const LONG_NANOS: u64 = 250_000_000;
/// Means that are closer than this factor (2) are those of equals.
const SAME: f32 = std::f32::consts::LN_2;
/// Standard errors by which means must differ.
const ERRORS: f32 = 4.0;
/// So many of them are taken off a difference.
const DOUBT: f32 = 2.0;
/// Standard deviations by which one sample must be above the mean to be out of the ordinary.
const DEVIATIONS: f32 = 3.0;
/// Failures in a row do not count for more than these: it must not take long until one that has recovered is asked.
const MOST_FAILURES: f32 = 6.0;
/// What an endpoint that asks to be spared costs more (a factor of 64).
const SPARED: f32 = 4.16;
/// No longer is one spared that asks for it.
const SPARED_NANOS: u64 = 30_000_000_000;
/// With so many unanswered requests an endpoint is silent, and the time since the first of them is what it costs at least.
const SILENT: u64 = 3;
/// Silence makes nobody dearer than this (a factor of 64).
const SILENCE: f32 = 4.16;

/// How an attempt has ended, as far as choosing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With an answer that is none of the following.
    Good,
    /// What [`Outcome`](super::outcome::Outcome) calls an error.
    Failed,
    /// It was told to ask less, until so many nanoseconds from now if that was said.
    Shed(Option<u64>),
    /// Its caller did not wait for the end.
    Left,
}

/// What this agent has seen of an endpoint.
#[derive(Debug)]
pub struct Cost {
    /// Mean and variance of the logarithm of the time in nanoseconds.
    time: Pair,
    /// The arithmetic mean of the time.
    average: AtomicU32,
    /// How many samples that is worth, and how many failures there were in a row.
    known: Pair,
    /// When the last attempt ended.
    ended_nanos: AtomicU64,
    /// When it was last asked.
    asked_nanos: AtomicU64,
    /// How many requests were sent.
    sent: AtomicU64,
    /// The number of the latest that was answered, or has ended.
    heard: AtomicU64,
    /// Since when there are unanswered ones; 0 while there are none.
    silent_since_nanos: AtomicU64,
    spared_until_nanos: AtomicU64,
}

/// Two numbers that change together.
#[derive(Debug)]
struct Pair(AtomicU64);

impl Pair {
    fn get(&self) -> (f32, f32) {
        Self::unpack(self.0.load(Acquire))
    }

    fn update(&self, change: impl Fn(f32, f32) -> (f32, f32)) {
        // The closure always answers, so neither does `fetch_update` fail.
        let _ = self.0.fetch_update(AcqRel, Acquire, |word| {
            let (one, other) = Self::unpack(word);
            let (one, other) = change(one, other);
            Some(u64::from(one.to_bits()) << 32 | u64::from(other.to_bits()))
        });
    }

    fn unpack(word: u64) -> (f32, f32) {
        (f32::from_bits((word >> 32) as u32), f32::from_bits(word as u32))
    }
}

impl Default for Cost {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl Cost {
    /// Nothing was seen.
    #[expect(clippy::declare_interior_mutable_const, reason = "what a new one begins with")]
    pub(super) const UNKNOWN: Self = Self {
        time: Pair(AtomicU64::new(0)),
        average: AtomicU32::new(0),
        known: Pair(AtomicU64::new(0)),
        ended_nanos: AtomicU64::new(0),
        asked_nanos: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        heard: AtomicU64::new(0),
        silent_since_nanos: AtomicU64::new(0),
        spared_until_nanos: AtomicU64::new(0),
    };

    /// A request is sent. Returns its number.
    pub(super) fn ask(&self, now_nanos: u64) -> u64 {
        self.asked_nanos.store(now_nanos, Relaxed);
        if self.silent_since_nanos.load(Relaxed) == 0 {
            self.silent_since_nanos.store(now_nanos.max(1), Relaxed);
        }
        self.sent.fetch_add(1, Relaxed) + 1
    }

    /// The request of this number is answered, or awaited no longer.
    pub(super) fn hear(&self, number: u64) {
        self.heard.fetch_max(number, Relaxed);
        self.silent_since_nanos.store(0, Relaxed);
    }

    /// An answer has come, after this time if that is the endpoint's own.
    pub(super) fn answered(&self, waited_nanos: Option<u64>, now_nanos: u64) {
        if let Some(waited) = waited_nanos {
            self.learn(waited, now_nanos);
        }
    }

    /// An attempt has ended that has lasted so long without an answer, or with one that was not good.
    pub(super) fn ended(&self, ending: Ending, waited_nanos: u64, now_nanos: u64) {
        let (mean, variance) = self.time.get();
        let (samples, failures) = self.known.get();
        let waited = ln(waited_nanos);
        let failed = match ending {
            Ending::Good => {
                if failures != 0.0 {
                    self.known.update(|samples, _| (samples, 0.0));
                }
                return;
            }
            Ending::Failed | Ending::Shed(_) => true,
            // Whoever leaves after the time that an answer takes says nothing. Much later it says that none came.
            Ending::Left if samples == 0.0 => waited_nanos >= LONG_NANOS,
            Ending::Left => waited > mean + unusual(variance, samples),
        };
        let faded = failures * fade(now_nanos.saturating_sub(self.ended_nanos.load(Relaxed)));
        // It would have taken at least so long. Of what failed fast nothing is known but that.
        if if samples > 0.0 { waited > mean } else { ending == Ending::Left } {
            self.learn(waited_nanos, now_nanos);
        }
        if !failed {
            return;
        }
        self.ended_nanos.fetch_max(now_nanos, Relaxed);
        self.known.update(|samples, _| (samples, (faded + 1.0).min(MOST_FAILURES)));
        if let Ending::Shed(Some(after)) = ending
            && faded >= 0.5
        {
            let until = now_nanos.saturating_add(after.min(SPARED_NANOS));
            self.spared_until_nanos.fetch_max(until, Relaxed);
        }
    }

    fn learn(&self, waited_nanos: u64, now_nanos: u64) {
        // Each elapsed nanosecond is accounted for by exactly one of several workers.
        let before = self.ended_nanos.fetch_max(now_nanos, AcqRel);
        let elapsed = now_nanos.saturating_sub(before) as f32;
        let (samples, _) = self.known.get();
        let sample = ln(waited_nanos);
        let average = f32::from_bits(self.average.load(Relaxed));
        let within = |nanos: f32| 1.0 - (-elapsed / nanos).exp();
        let weight = if samples == 0.0 {
            1.0
        } else {
            // (Nothing here depends on the sample itself, lest the one count for more than the other.)
            let least = (WINDOW_ANSWERS * average).max(WINDOW_LEAST_NANOS);
            let of_many = within(least).min(1.0 / WINDOW_SAMPLES);
            of_many.max(within(WINDOW_NANOS)).max(1.0 / (samples + 1.0))
        };
        let average = average + weight * (waited_nanos as f32 - average);
        self.average.store(average.to_bits(), Relaxed);
        self.time.update(|mean, variance| {
            let off = sample - mean;
            (mean + weight * off, (1.0 - weight) * (variance + weight * off * off))
        });
        self.known.update(|samples, failures| {
            let rest = 1.0 - weight;
            let spread = if samples > 0.0 { rest * rest / samples } else { 0.0 };
            (1.0 / (spread + weight * weight), failures)
        });
    }

    /// How long an answer usually takes, in nanoseconds; `None` if nothing is known.
    pub fn typical_nanos(&self) -> Option<f64> {
        (self.known.get().0 > 0.0).then(|| f64::from(self.time.get().0).exp())
    }

    /// A time within which most answers come, in nanoseconds: one standard deviation (of the logarithm) above what is typical.
    pub(super) fn likely_nanos(&self) -> Option<f64> {
        let (mean, variance) = self.time.get();
        (self.known.get().0 > 0.0).then(|| f64::from(mean + variance.sqrt()).exp())
    }

    /// When it was last asked; 0 if it never was.
    pub(super) fn asked_nanos(&self) -> u64 {
        self.asked_nanos.load(Relaxed)
    }

    /// What there is to compare, as of now.
    pub(super) fn seen(&self, now_nanos: u64) -> Seen {
        let (mean, variance) = self.time.get();
        let (samples, failures) = self.known.get();
        let unanswered = self.sent.load(Relaxed).saturating_sub(self.heard.load(Relaxed));
        let silent_since = if unanswered < SILENT { 0 } else { self.silent_since_nanos.load(Relaxed) };
        Seen {
            mean,
            variance,
            samples,
            failures,
            unanswered,
            age_nanos: now_nanos.saturating_sub(self.ended_nanos.load(Relaxed)),
            silence_nanos: if silent_since == 0 { 0 } else { now_nanos.saturating_sub(silent_since) },
            asked_nanos: self.asked_nanos.load(Relaxed),
            spared: self.spared_until_nanos.load(Relaxed) > now_nanos,
        }
    }
}

/// [`Cost`] at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    mean: f32,
    variance: f32,
    samples: f32,
    failures: f32,
    /// See the module.
    pub(super) unanswered: u64,
    /// Since the last attempt ended.
    age_nanos: u64,
    /// How long nothing has been heard of several requests; 0: that is not so.
    silence_nanos: u64,
    /// When it was last asked.
    pub(super) asked_nanos: u64,
    spared: bool,
}

/// By how much one endpoint costs more than another, in logarithms; negative: less.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Surplus {
    /// In time; 0 if they are equals.
    pub(super) time: f32,
    /// By failures and by being spared.
    pub(super) failures: f32,
}

impl Seen {
    /// By how much this one costs more than `other`.
    pub(super) fn against(&self, other: &Self) -> Surplus {
        let clean = |seen: &Self| seen.failures == 0.0 && seen.silence_nanos == 0 && !seen.spared;
        let apart = (self.mean - other.mean).abs();
        // Nearly always.
        if clean(self) && clean(other) && (apart < SAME || self.samples == 0.0 || other.samples == 0.0) {
            return Surplus::default();
        }
        let [this, that] = [(self, other), (other, self)].map(|(one, other)| one.mean_beside(other));
        let (this, that) = match (this, that) {
            (Some(this), Some(that)) => (this, that),
            // Who is not known is taken to be like the other.
            _ => (0.0, 0.0),
        };
        let error = (self.error() + other.error()).sqrt();
        let apart = this - that;
        let certain = if apart.abs() < SAME.max(ERRORS * error) { 0.0 } else { apart.abs() - DOUBT * error };
        let dearer = if apart > 0.0 { self } else { other };
        let time = certain.copysign(apart) * fade(dearer.age_nanos);
        let time = time + self.silence_beside(other) - other.silence_beside(self);
        let failures = SAME * (self.faded_failures() - other.faded_failures())
            + SPARED * (f32::from(u8::from(self.spared)) - f32::from(u8::from(other.spared)));
        Surplus { time: if time.abs() < SAME / 2.0 { 0.0 } else { time }, failures }
    }

    /// Its mean; one that fails costs at least what the other does.
    fn mean_beside(&self, other: &Self) -> Option<f32> {
        match (self.samples > 0.0, other.samples > 0.0) {
            (true, true) if self.failures >= 0.5 => Some(self.mean.max(other.mean)),
            (true, _) => Some(self.mean),
            (false, _) => None,
        }
    }

    /// By how much answers differ: the standard deviation of the logarithm.
    pub(super) fn deviation(&self) -> f32 {
        likely(self.variance, self.samples).sqrt()
    }

    /// The variance of the mean.
    fn error(&self) -> f32 {
        if self.samples == 0.0 { 0.0 } else { likely(self.variance, self.samples) / self.samples }
    }

    fn faded_failures(&self) -> f32 {
        if self.failures == 0.0 { 0.0 } else { self.failures * fade(self.age_nanos) }
    }

    /// By how much it is dearer than what is known of it, because it is silent.
    fn silence_beside(&self, other: &Self) -> f32 {
        if self.silence_nanos == 0 {
            return 0.0;
        }
        let of = if self.samples > 0.0 { self } else { other };
        if of.samples == 0.0 {
            return 0.0;
        }
        let more = ln(self.silence_nanos) - of.mean;
        if more > unusual(of.variance, of.samples) { more.min(SILENCE) } else { 0.0 }
    }
}

/// By how much one sample has to be above the mean to be out of the ordinary: three standard deviations, and a factor of four.
fn unusual(variance: f32, samples: f32) -> f32 {
    (DEVIATIONS * likely(variance, samples).sqrt()).max(2.0 * SAME)
}

/// The variance, as far as it is known.
fn likely(variance: f32, samples: f32) -> f32 {
    (PRIOR_VARIANCE * PRIOR_SAMPLES + variance * samples) / (PRIOR_SAMPLES + samples)
}

fn fade(elapsed_nanos: u64) -> f32 {
    (-(elapsed_nanos as f32) / FADE_NANOS).exp()
}

fn ln(nanos: u64) -> f32 {
    (nanos.max(1) as f32).ln()
}

#[cfg(test)]
mod tests;
