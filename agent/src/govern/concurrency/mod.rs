//! How many requests to a service are in flight at once (ARCHITECTURE.md#limits-on-requests-in-flight): a fixed number,
//! or one that follows how the service copes.
//!
//! A request takes a [`Permit`] before an endpoint is chosen and holds it until its answer has ended. Requests
//! above the limit are refused at once, so that a service that is overloaded does what it can instead of
//! queueing what nobody waits for any more. Calling pods share the places fairly (`shares`). With `adaptive` there is a limit only
//! while the service does not keep up (`overload`), and then it is found by a gradient controller (`gradient`).

mod gradient;
mod overload;
mod shares;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{
        AtomicBool, AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use self::{
    gradient::Gradient,
    shares::{Holder, Shares},
};
use super::{per_pod::CallingPod, policy::Concurrency};

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
    shares: Shares,
    /// A request was refused since the controller was last told.
    refused: AtomicBool,
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
            shares: Shares::default(),
            refused: AtomicBool::new(false),
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

    pub fn config(&self) -> &Concurrency {
        &self.config
    }

    /// Takes a place for a request of this pod. With [`Mode::Observe`](super::policy::Mode::Observe) it is up to the caller to go on
    /// without.
    pub fn try_acquire(self: &Arc<Self>, pod: &Arc<CallingPod>, now_nanos: u64) -> Result<Permit, Full> {
        let state = &self.state;
        if now_nanos >= state.due_nanos.load(Relaxed) {
            state.control(now_nanos, |_| {});
        }
        let limit = state.limit.load(Acquire);
        let holder = state.shares.asks(pod, now_nanos);
        let may = |in_flight: u32| {
            in_flight < limit && state.shares.leave_room_for(Some(&holder), in_flight, limit, now_nanos)
        };
        let taken =
            state.in_flight.fetch_update(AcqRel, Acquire, |in_flight| may(in_flight).then(|| in_flight + 1));
        if taken.is_err() {
            state.refused.store(true, Relaxed);
            return Err(Full { limit });
        }
        holder.takes();
        Ok(Permit { state: Arc::clone(state), holder, acquired_nanos: now_nanos, held: true, beside: None })
    }

    /// Whether a request of the pod with this UID would be refused now. Nothing is changed.
    pub fn would_refuse(&self, uid: &str, now_nanos: u64) -> bool {
        let (in_flight, limit, shares) = (self.in_flight(), self.limit(), &self.state.shares);
        in_flight >= limit || !shares.leave_room_for(shares.find(uid).as_deref(), in_flight, limit, now_nanos)
    }

    /// Forgets calling pods that have gone.
    pub fn forget_gone(&self) {
        self.state.shares.forget_gone();
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
                if let Some(gradient) = &mut *controller {
                    gradient.configure(adaptive, most);
                } else {
                    let in_flight = self.in_flight.load(Acquire);
                    *controller = Some(Gradient::new(adaptive, most, in_flight, now_nanos));
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
        let refused = self.refused.swap(false, Relaxed);
        gradient.go_on(self.in_flight.load(Acquire), refused, now_nanos);
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
    holder: Arc<Holder>,
    acquired_nanos: u64,
    held: bool,
    /// Of another limit, for the same request.
    beside: Option<Box<Permit>>,
}

impl Permit {
    /// Both places, for as long as the request is in flight. How the service copes is told to the limit of this one.
    pub fn and(mut self, mut other: Self) -> Self {
        other.beside = self.beside.take();
        self.beside = Some(Box::new(other));
        self
    }

    /// The answer has ended, and says how the service copes. Answers of Sluice itself say nothing: for them, as for requests
    /// that never reached an endpoint, just drop the permit.
    ///
    /// `error`: the service failed, it did not answer in time, or its caller has gone. That it took long says
    /// that the service is slow; that it failed fast says nothing.
    pub fn complete(mut self, latency_nanos: u64, now_nanos: u64, error: bool) {
        // The controller finds it ended.
        self.give_back();
        let (state, acquired_nanos) = (&self.state, self.acquired_nanos);
        if state.due_nanos.load(Relaxed) != NEVER {
            state.control(now_nanos, |gradient| gradient.sample(acquired_nanos, latency_nanos, error));
        }
    }
}

impl Permit {
    fn give_back(&mut self) {
        if std::mem::take(&mut self.held) {
            self.holder.gives_back();
            self.state.in_flight.fetch_sub(1, AcqRel);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
