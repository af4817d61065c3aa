//! How many requests to a service are in flight at once (ARCHITECTURE.md#limits-on-requests-in-flight): a fixed number,
//! or one that follows how the service copes.
//!
//! A request takes a [`Permit`] before an endpoint is chosen and holds it until its answer has ended. Requests
//! above the limit are refused at once, so that a service that is overloaded does what it can instead of
//! queueing what nobody waits for any more. With `adaptive` the limit is found by a gradient controller (`gradient`).

mod gradient;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use self::gradient::Gradient;
use super::policy::Concurrency;

/// The limit of one service port.
#[derive(Debug)]
pub struct Limiter {
    config: Concurrency,
    /// What its successors go on with, and what permits are given back to.
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    in_flight: AtomicU32,
    limit: AtomicU32,
    /// When the controller has something to do without being told; never for a fixed limit.
    due_nanos: AtomicU64,
    /// None for a fixed limit.
    controller: Mutex<Option<Gradient>>,
}

/// No room: so many may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} requests are in flight, which is the limit")]
pub struct Full {
    pub limit: u32,
}

const NEVER: u64 = u64::MAX;

impl Limiter {
    pub fn new(config: &Concurrency, now_nanos: u64) -> Self {
        let state = State {
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(0),
            due_nanos: AtomicU64::new(NEVER),
            controller: Mutex::new(None),
        };
        state.configure(config, now_nanos);
        Self { config: config.clone(), state: Arc::new(state) }
    }

    /// The limit in its new words: requests in flight count on, and an adaptive limit goes on from what it has learnt.
    #[must_use]
    pub fn with_config(self: &Arc<Self>, config: &Concurrency, now_nanos: u64) -> Arc<Self> {
        if self.config == *config {
            return Arc::clone(self);
        }
        self.state.configure(config, now_nanos);
        Arc::new(Self { config: config.clone(), state: Arc::clone(&self.state) })
    }

    /// One in the same state that shares nothing with it: whatever it is asked changes nothing.
    #[must_use]
    pub fn copy(&self) -> Arc<Self> {
        let state = State {
            in_flight: AtomicU32::new(self.in_flight()),
            limit: AtomicU32::new(self.limit()),
            due_nanos: AtomicU64::new(self.state.due_nanos.load(Relaxed)),
            controller: Mutex::new(self.state.lock().clone()),
        };
        Arc::new(Self { config: self.config.clone(), state: Arc::new(state) })
    }

    pub fn config(&self) -> &Concurrency {
        &self.config
    }

    /// Takes a place. With [`Mode::Observe`](super::policy::Mode::Observe) it is up to the caller to go on without.
    pub fn try_acquire(self: &Arc<Self>, now_nanos: u64) -> Result<Permit, Full> {
        let state = &self.state;
        if now_nanos >= state.due_nanos.load(Relaxed) {
            state.control(now_nanos, |_| {});
        }
        let limit = state.limit.load(Acquire);
        state
            .in_flight
            .fetch_update(AcqRel, Acquire, |in_flight| (in_flight < limit).then(|| in_flight + 1))
            .map(|_| Permit { state: Arc::clone(state), acquired_nanos: now_nanos })
            .map_err(|_| Full { limit })
    }

    /// How many may be in flight now.
    pub fn limit(&self) -> u32 {
        self.state.limit.load(Acquire)
    }

    pub fn in_flight(&self) -> u32 {
        self.state.in_flight.load(Acquire)
    }

    /// How long an answer of the service takes when it is idle, as far as an adaptive limit has found out.
    pub fn min_rtt_nanos(&self) -> Option<u64> {
        self.state.lock().as_ref()?.min_rtt_nanos()
    }
}

impl State {
    fn configure(&self, config: &Concurrency, now_nanos: u64) {
        let mut controller = self.lock();
        match &config.adaptive {
            None => {
                *controller = None;
                self.limit.store(config.max_requests, Release);
                self.due_nanos.store(NEVER, Relaxed);
            }
            Some(adaptive) => {
                let most = config.max_requests;
                match &mut *controller {
                    Some(gradient) => gradient.configure(adaptive, most),
                    None => *controller = Some(Gradient::new(adaptive, most, now_nanos)),
                }
                if let Some(gradient) = &*controller {
                    self.publish(gradient);
                }
            }
        }
    }

    /// Tells the controller something, and puts into force what it makes of it.
    fn control(&self, now_nanos: u64, tell: impl FnOnce(&mut Gradient)) {
        let mut controller = self.lock();
        let Some(gradient) = &mut *controller else { return };
        tell(gradient);
        gradient.go_on(self.in_flight.load(Acquire), now_nanos);
        self.publish(gradient);
    }

    fn publish(&self, gradient: &Gradient) {
        self.limit.store(gradient.limit(), Release);
        self.due_nanos.store(gradient.due_nanos(), Relaxed);
    }

    /// No panic leaves the controller half changed: every step is arithmetic that cannot fail.
    fn lock(&self) -> MutexGuard<'_, Option<Gradient>> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the requests in flight, free again when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    state: Arc<State>,
    acquired_nanos: u64,
}

impl Permit {
    /// The answer has ended, and says how the service copes. Answers of Sluice itself say nothing: for them, as for requests
    /// that never reached an endpoint, just drop the permit.
    ///
    /// `error`: the service failed, it did not answer in time, or its caller has gone. That it took long says
    /// that the service is slow; that it failed fast says nothing.
    pub fn complete(self, latency_nanos: u64, now_nanos: u64, error: bool) {
        if self.state.due_nanos.load(Relaxed) != NEVER {
            let acquired_nanos = self.acquired_nanos;
            self.state.control(now_nanos, |gradient| gradient.sample(acquired_nanos, latency_nanos, error));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.state.in_flight.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
