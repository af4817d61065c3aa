//! The circuit breaker: stops asking a service, or one lane of it, that mostly fails, for a while
//! (ARCHITECTURE.md#circuit-breaker).
//!
//! ```text
//!            a threshold is reached              openDuration is over
//!   Closed ---------------------------> Open ---------------------------> HalfOpen
//!     ^                                  ^                                 |    |
//!     |                                  +---------- one probe bad --------+    |
//!     +------------------------- all probes good, counts start anew ------------+
//! ```
//!
//! A request asks for a [`Permit`] before each attempt at an endpoint and finishes it with what came of it. A permit that
//! is dropped counts nothing, and if it was a probe its slot is given back. It is best asked for by attempt, not by
//! request: retries are the first thing that a failing service must be spared.
//!
//! - **Window.** `interval` in ten buckets. A request counts when it ends, and a slow one as soon as it is slow, even if
//!   it never ends: how many are running since when is kept in `running`. It is late by at most an eighth of the
//!   threshold, looked for when the next request comes, and not counted again when it ends.
//! - **Slow** is the time to the answer's head if the proxy says when that came ([`Permit::answered`]): a stream that
//!   lives for hours is not slow. Slow probes are bad ones.
//! - **Probes.** At most `halfOpenRequests` of them count as running. One that has not ended after another
//!   `openDuration` gives its slot to the next request, so that an endpoint that swallows requests cannot keep the
//!   breaker half-open for ever, nor keep a service closed whose answers take long: what comes of the late one still
//!   counts. One whose answer has begun well and is still going on by then counts as good.
//! - **Late results**, of requests from before a transition, count neither as probes nor in the next window.
//! - **Observe.** The same states, but nothing is refused; what would have been is marked
//!   ([`Permit::would_reject`]) and not counted, so that the states are those that `Enforce` would have seen.
//!
//! While closed a request costs a few atomic operations; the lock is for transitions and probes.

mod permit;
mod running;
mod transition;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use self::{
    permit::Part,
    running::{Running, nanos},
    transition::Log,
};
pub use self::{
    permit::Permit,
    transition::{State, Transition, TransitionCounts, Why},
};
use super::{
    policy::{CircuitBreaker, Mode, SlowRequest},
    window::Window,
};

/// What the window counts: all, and behind it the parts (see [`Window::add`]).
const REQUESTS: usize = 0;
const ERRORS: usize = 1;
const SLOW: usize = 2;

type Counting = Window<3>;

/// Of one service, or of one lane of it. Shared by all workers; outlives snapshots of the cluster.
pub struct Breaker {
    /// What a request needs to know. Replaced only with `core` locked.
    live: ArcSwap<Live>,
    /// How many transitions there were, and how many of them have been told.
    transitions: AtomicU64,
    told: AtomicU64,
    core: Mutex<Core>,
}

struct Live {
    config: Arc<CircuitBreaker>,
    state: State,
    /// How many transitions there were. Results count only in the one that their permit was given in.
    generation: u64,
    window: Arc<Counting>,
    running: Option<Arc<Running>>,
}

struct Core {
    phase: Phase,
    log: Log,
    /// How many rings of running requests there were.
    rings: u64,
    /// How many probes there were.
    probes: u64,
}

#[derive(Clone)]
enum Phase {
    Closed,
    Open { since_nanos: u64 },
    HalfOpen { good: u32, probes: Vec<Probe> },
}

/// A request that was let through while half-open, and has not ended.
#[derive(Clone)]
struct Probe {
    number: u64,
    began_nanos: u64,
    stage: Stage,
}

#[derive(Clone, PartialEq)]
enum Stage {
    Waiting,
    /// Its answer's head has come.
    Answered,
    /// It was taken for good while its answer went on.
    Good,
}

impl Probe {
    /// It holds one of the slots.
    fn is_running(&self) -> bool {
        self.stage != Stage::Good
    }
}

/// The breaker refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// After this time it is worth asking again.
    pub retry_after: Duration,
}

/// What the window holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub errors: u64,
    pub slow: u64,
}

impl Breaker {
    pub fn new(config: Arc<CircuitBreaker>) -> Self {
        let live = Live {
            state: State::Closed,
            generation: 0,
            window: Arc::new(Window::new(config.interval)),
            running: config.slow_request.map(|slow| Arc::new(Running::new(0, slow.threshold))),
            config,
        };
        Self {
            live: ArcSwap::from_pointee(live),
            transitions: AtomicU64::new(0),
            told: AtomicU64::new(0),
            core: Mutex::new(Core { phase: Phase::Closed, log: Log::default(), rings: 1, probes: 0 }),
        }
    }

    /// Puts another policy in force. The state, its probes and what was counted stay; a new `interval` begins with an
    /// empty window, and another slow threshold with no slow requests.
    pub fn reconfigure(&self, config: Arc<CircuitBreaker>) {
        let mut core = self.lock();
        let live = self.live.load();
        if live.config == config {
            return;
        }
        let window = if live.config.interval == config.interval {
            live.window.clone()
        } else {
            Arc::new(Window::new(config.interval))
        };
        let threshold = |config: &CircuitBreaker| config.slow_request.map(|slow| slow.threshold);
        let running = if threshold(&live.config) == threshold(&config) {
            live.running.clone()
        } else {
            window.forget(SLOW);
            threshold(&config).map(|threshold| core.new_ring(threshold))
        };
        let (state, generation) = (live.state, live.generation);
        self.live.store(Arc::new(Live { config, state, generation, window, running }));
    }

    /// One in the same state that shares nothing with it: whatever it is asked changes nothing.
    #[must_use]
    pub fn copy(&self) -> Self {
        let core = self.lock();
        let live = self.live.load();
        let copied = Live {
            config: live.config.clone(),
            state: live.state,
            generation: live.generation,
            window: Arc::new(live.window.copy()),
            running: live.running.as_ref().map(|running| Arc::new(running.copy())),
        };
        let (rings, probes) = (core.rings, core.probes);
        Self {
            transitions: AtomicU64::new(copied.generation),
            told: AtomicU64::new(copied.generation),
            live: ArcSwap::from_pointee(copied),
            core: Mutex::new(Core { phase: core.phase.clone(), log: core.log.clone(), rings, probes }),
        }
    }

    /// Asks for leave to send a request.
    pub fn try_acquire(self: &Arc<Self>, now_nanos: u64) -> Result<Permit, Open> {
        let mut live = self.live.load();
        if live.state == State::Closed && live.count_overdue(now_nanos) {
            self.judge(&live, now_nanos);
            live = self.live.load();
        }
        if live.state == State::Closed {
            return Ok(self.counted(&live, now_nanos));
        }
        drop(live);
        self.try_probe(now_nanos)
    }

    /// Whether a request would be refused now. Nothing is counted, and no probe begins.
    pub fn would_refuse(&self, now_nanos: u64) -> Option<Open> {
        let live = self.live.load();
        if live.state == State::Closed || live.config.mode == Mode::Observe {
            return None;
        }
        let core = self.lock();
        let open_nanos = nanos(live.config.open_duration);
        let until = match &core.phase {
            Phase::Closed => return None,
            Phase::Open { since_nanos } => since_nanos.saturating_add(open_nanos),
            Phase::HalfOpen { good, probes } => {
                let running = probes.iter().filter(|probe| probe.is_running());
                let taken = u64::from(*good) + running.clone().count() as u64;
                if taken < u64::from(live.config.half_open_requests) {
                    return None;
                }
                running.map(|probe| probe.began_nanos).min()?.saturating_add(open_nanos)
            }
        };
        let wait = until.checked_sub(now_nanos).filter(|wait| *wait > 0)?;
        Some(Open { retry_after: Duration::from_nanos(wait) })
    }

    /// As of now: an open breaker whose time is over is half-open, though no request has come to find out.
    pub fn state(&self, now_nanos: u64) -> State {
        match self.lock().phase {
            Phase::Closed => State::Closed,
            Phase::Open { since_nanos } if now_nanos < self.open_until(since_nanos) => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// What the window holds.
    pub fn counts(&self, now_nanos: u64) -> Counts {
        self.live.load().counts(now_nanos)
    }

    /// How often it has changed its state.
    pub fn transition_counts(&self) -> TransitionCounts {
        self.lock().log.counts
    }

    /// The last transitions, the oldest first. Cheap to ask whether there are new ones: [`Breaker::generation`].
    pub fn recent_transitions(&self) -> Vec<Transition> {
        self.lock().log.recent.iter().copied().collect()
    }

    /// The number of the last transition, 0 if there was none.
    pub fn generation(&self) -> u64 {
        self.transitions.load(Acquire)
    }

    /// The transitions since this was last asked, by whomever; a look at two numbers where there were none.
    pub fn news(&self) -> Vec<Transition> {
        let last = self.generation();
        if self.told.load(Acquire) >= last {
            return Vec::new();
        }
        let told = self.told.fetch_max(last, AcqRel);
        let mut news = self.recent_transitions();
        news.retain(|transition| told < transition.number && transition.number <= last);
        news
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // Every change is complete before anything that could panic.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_until(&self, since_nanos: u64) -> u64 {
        since_nanos.saturating_add(nanos(self.live.load().config.open_duration))
    }

    fn counted(self: &Arc<Self>, live: &Live, now_nanos: u64) -> Permit {
        let place = live.running.as_ref().map(|running| {
            let (place, overdue) = running.enter(now_nanos);
            if overdue > 0 {
                live.window.add([overdue, 0, overdue], now_nanos);
            }
            place
        });
        Permit::new(self, Part::Counted { generation: live.generation, place, counted: false }, now_nanos)
    }

    /// Opens if a threshold is reached.
    fn judge(&self, live: &Live, now_nanos: u64) {
        let Some(why) = live.verdict(now_nanos) else { return };
        let mut core = self.lock();
        if core.log.counts.total() == live.generation {
            self.change(&mut core, Phase::Open { since_nanos: now_nanos }, why, now_nanos);
        }
    }

    fn change(&self, core: &mut Core, phase: Phase, why: Why, now_nanos: u64) {
        core.log.note(core.phase.state(), phase.state(), why, now_nanos);
        let live = self.live.load();
        let (mut window, mut running) = (live.window.clone(), live.running.clone());
        if let Phase::Closed = phase {
            window = Arc::new(Window::new(live.config.interval));
            running = live.config.slow_request.map(|slow| core.new_ring(slow.threshold));
        }
        self.live.store(Arc::new(Live {
            config: live.config.clone(),
            state: phase.state(),
            generation: core.log.counts.total(),
            window,
            running,
        }));
        self.transitions.store(core.log.counts.total(), Release);
        core.phase = phase;
    }

    fn try_probe(self: &Arc<Self>, now_nanos: u64) -> Result<Permit, Open> {
        let mut core = self.lock();
        let config = self.live.load().config.clone();
        if let Phase::Open { since_nanos } = core.phase
            && now_nanos >= since_nanos.saturating_add(nanos(config.open_duration))
        {
            let why = Why::OpenElapsed { open: config.open_duration };
            self.change(&mut core, Phase::HalfOpen { good: 0, probes: Vec::new() }, why, now_nanos);
        }
        self.look_after_probes(&mut core, &config, now_nanos);
        let number = core.probes;
        let wait_nanos = match &mut core.phase {
            // Another thread, or a probe that was taken for good, has closed it.
            Phase::Closed => {
                let live = self.live.load();
                return Ok(self.counted(&live, now_nanos));
            }
            Phase::Open { since_nanos } => {
                since_nanos.saturating_add(nanos(config.open_duration)).saturating_sub(now_nanos)
            }
            Phase::HalfOpen { good, probes } => {
                let running = probes.iter().filter(|probe| probe.is_running());
                if u64::from(*good) + (running.clone().count() as u64) < u64::from(config.half_open_requests)
                {
                    probes.push(Probe { number, began_nanos: now_nanos, stage: Stage::Waiting });
                    core.probes += 1;
                    let generation = core.log.counts.total();
                    return Ok(Permit::new(self, Part::Probe { generation, number }, now_nanos));
                }
                let oldest = running.map(|probe| probe.began_nanos).min().unwrap_or(now_nanos);
                oldest.saturating_add(nanos(config.open_duration)).saturating_sub(now_nanos)
            }
        };
        drop(core);
        let open = Open { retry_after: Duration::from_nanos(wait_nanos) };
        match config.mode {
            Mode::Enforce => Err(open),
            Mode::Observe => Ok(Permit::unwanted(self, open, now_nanos)),
        }
    }

    /// Judges probes that have been running for long.
    fn look_after_probes(&self, core: &mut Core, config: &CircuitBreaker, now_nanos: u64) {
        let Phase::HalfOpen { good, probes } = &mut core.phase else { return };
        if let Some(slow) = config.slow_request {
            let is_slow = |probe: &Probe| {
                probe.stage == Stage::Waiting && slow.is_exceeded(probe.began_nanos, now_nanos)
            };
            if probes.iter().any(is_slow) {
                let why = Why::ProbeSlow { threshold: slow.threshold };
                return self.change(core, Phase::Open { since_nanos: now_nanos }, why, now_nanos);
            }
        }
        let patience = nanos(config.open_duration);
        probes.retain_mut(|probe| {
            if now_nanos.saturating_sub(probe.began_nanos) < patience {
                return true;
            }
            if probe.stage == Stage::Answered {
                probe.stage = Stage::Good;
                *good += 1;
            }
            probe.stage == Stage::Good
        });
        self.close_if_good(core, config, now_nanos);
    }

    fn close_if_good(&self, core: &mut Core, config: &CircuitBreaker, now_nanos: u64) {
        if let Phase::HalfOpen { good, .. } = core.phase
            && good >= config.half_open_requests
        {
            let why = Why::ProbesPassed { probes: good };
            self.change(core, Phase::Closed, why, now_nanos);
        }
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.live.load();
        out.debug_struct("Breaker")
            .field("state", &live.state)
            .field("generation", &live.generation)
            .finish_non_exhaustive()
    }
}

impl Core {
    fn new_ring(&mut self, threshold: Duration) -> Arc<Running> {
        let id = self.rings;
        self.rings += 1;
        Arc::new(Running::new(id, threshold))
    }
}

impl Phase {
    fn state(&self) -> State {
        match self {
            Self::Closed => State::Closed,
            Self::Open { .. } => State::Open,
            Self::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

impl SlowRequest {
    fn is_exceeded(self, began_nanos: u64, ended_nanos: u64) -> bool {
        ended_nanos.saturating_sub(began_nanos) > nanos(self.threshold)
    }
}

impl Live {
    /// Counts what has become slow; `false` if nothing has.
    fn count_overdue(&self, now_nanos: u64) -> bool {
        let overdue = self.running.as_ref().map_or(0, |running| running.take_overdue(now_nanos));
        if overdue > 0 {
            self.window.add([overdue, 0, overdue], now_nanos);
        }
        overdue > 0
    }

    fn counts(&self, now_nanos: u64) -> Counts {
        let sum = self.window.sum(now_nanos);
        Counts { requests: sum[REQUESTS], errors: sum[ERRORS], slow: sum[SLOW] }
    }

    /// Which threshold is reached, if any.
    fn verdict(&self, now_nanos: u64) -> Option<Why> {
        let Counts { requests, errors, slow } = self.counts(now_nanos);
        if requests < u64::from(self.config.minimum_requests) {
            return None;
        }
        let reached = |part: u64, percent: f64| part > 0 && part as f64 * 100.0 >= percent * requests as f64;
        if let Some(limit) = self.config.error_percent.filter(|limit| reached(errors, *limit)) {
            return Some(Why::ErrorPercent { errors, requests, limit });
        }
        if let Some(limit) = self.config.error_count.filter(|limit| errors >= u64::from(*limit).max(1)) {
            return Some(Why::ErrorCount { errors, requests, limit });
        }
        let rule = self.config.slow_request.filter(|rule| reached(slow, rule.percent))?;
        Some(Why::SlowPercent { slow, requests, threshold: rule.threshold, limit: rule.percent })
    }
}

#[cfg(test)]
mod tests;
