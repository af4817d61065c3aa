//! Leave to send a request, and what is learned when it ends.

use std::sync::Arc;

use super::{
    Breaker, Live, Open, Phase, Probe, Stage, State, Why,
    running::{Place, nanos},
};
use crate::govern::outcome::Outcome;

/// Leave to send a request.
#[must_use = "an unfinished permit counts nothing"]
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    pub(super) part: Part,
    began_nanos: u64,
    answered_nanos: Option<u64>,
    would_reject: Option<Open>,
}

/// What a request is to the breaker.
#[derive(Debug)]
pub(super) enum Part {
    Counted {
        generation: u64,
        /// `None`: it is not looked after, or no longer.
        place: Option<Place>,
        /// It was counted as slow while it was running.
        counted: bool,
    },
    Probe {
        generation: u64,
        number: u64,
    },
    /// It should not have been let through, or has ended.
    None,
}

impl Permit {
    pub(super) fn new(breaker: &Arc<Breaker>, part: Part, now_nanos: u64) -> Self {
        let breaker = breaker.clone();
        Self { breaker, part, began_nanos: now_nanos, answered_nanos: None, would_reject: None }
    }

    /// Of a request that is let through only because nothing is enforced.
    pub(super) fn unwanted(breaker: &Arc<Breaker>, open: Open, now_nanos: u64) -> Self {
        let mut permit = Self::new(breaker, Part::None, now_nanos);
        permit.would_reject = Some(open);
        permit
    }

    /// In `Mode::Observe`: `Enforce` would have refused this request.
    pub fn would_reject(&self) -> Option<Open> {
        self.would_reject
    }

    /// The answer's head has come: the request is as slow as this, however long its body takes.
    pub fn answered(&mut self, now_nanos: u64) {
        if self.answered_nanos.is_some() {
            return;
        }
        self.answered_nanos = Some(now_nanos);
        match &mut self.part {
            Part::Counted { .. } => self.leave(),
            Part::Probe { generation, number } => {
                self.breaker.with_probe(*generation, *number, |probe| {
                    if probe.stage == Stage::Waiting {
                        probe.stage = Stage::Answered;
                    }
                });
            }
            Part::None => {}
        }
    }

    /// Who gave it.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Tells what came of it.
    pub fn finish(mut self, outcome: Outcome, now_nanos: u64) {
        self.end(Some(outcome), now_nanos);
    }

    /// The caller left before the answer was complete. Nobody knows how it would have ended, but if it was slow until
    /// then, that counts: impatient callers do not hide a slow service.
    pub fn caller_left(mut self, now_nanos: u64) {
        self.end(None, now_nanos);
    }

    /// Takes the request out of the running ones.
    fn leave(&mut self) {
        let Part::Counted { place, counted, .. } = &mut self.part else { return };
        let Some(place) = place.take() else { return };
        let live = self.breaker.live.load();
        if let Some(running) = live.running.as_ref().filter(|running| running.id == place.ring) {
            *counted = !running.leave(place);
        }
    }

    /// The same as [`Self::finish`], or as [`Self::caller_left`] where there is no outcome. What is told afterwards counts nothing.
    pub fn end(&mut self, outcome: Option<Outcome>, now_nanos: u64) {
        self.leave();
        let part = std::mem::replace(&mut self.part, Part::None);
        let ended_nanos = self.answered_nanos.unwrap_or(now_nanos);
        match part {
            Part::Counted { generation, counted, .. } => {
                let live = self.breaker.live.load();
                if live.state == State::Closed && live.generation == generation {
                    self.count(&live, outcome, counted, ended_nanos, now_nanos);
                }
            }
            Part::Probe { generation, number } => {
                self.breaker.end_probe(generation, number, self.began_nanos, ended_nanos, outcome, now_nanos);
            }
            Part::None => {}
        }
    }

    fn count(&self, live: &Live, outcome: Option<Outcome>, counted: bool, ended_nanos: u64, now_nanos: u64) {
        let rule = live.config.slow_request;
        let slow = rule.is_some_and(|rule| rule.is_exceeded(self.began_nanos, ended_nanos));
        let error = outcome.is_some_and(Outcome::is_error);
        let counts = if counted {
            // A window that has forgotten that it was counted has to know again what it is a part of.
            let known_since = self.began_nanos.saturating_add(rule.map_or(0, |rule| nanos(rule.threshold)));
            let forgotten = now_nanos.saturating_sub(known_since) >= nanos(live.config.interval);
            [u64::from(error && forgotten), u64::from(error), 0]
        } else if outcome.is_none() && !slow {
            return;
        } else {
            [1, u64::from(error), u64::from(slow)]
        };
        live.window.add(counts, now_nanos);
        if error || slow {
            self.breaker.judge(live, now_nanos);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.leave();
        if let Part::Probe { generation, number } = self.part {
            self.breaker.take_probe(generation, number);
        }
    }
}

impl Breaker {
    /// Nothing if it is of an earlier time, or has lost its slot.
    fn with_probe(&self, generation: u64, number: u64, change: impl FnOnce(&mut Probe)) {
        let mut core = self.lock();
        if core.log.counts.total() == generation
            && let Phase::HalfOpen { probes, .. } = &mut core.phase
            && let Some(probe) = probes.iter_mut().find(|probe| probe.number == number)
        {
            change(probe);
        }
    }

    /// Gives its slot back.
    fn take_probe(&self, generation: u64, number: u64) {
        let mut core = self.lock();
        if core.log.counts.total() == generation
            && let Phase::HalfOpen { probes, .. } = &mut core.phase
        {
            probes.retain(|probe| probe.number != number);
        }
    }

    fn end_probe(
        &self,
        generation: u64,
        number: u64,
        began_nanos: u64,
        ended_nanos: u64,
        outcome: Option<Outcome>,
        now_nanos: u64,
    ) {
        let mut core = self.lock();
        if core.log.counts.total() != generation {
            return;
        }
        let Phase::HalfOpen { good, probes } = &mut core.phase else { return };
        let config = self.live.load().config.clone();
        let at = probes.iter().position(|probe| probe.number == number);
        let was_good = at.is_some_and(|at| probes.swap_remove(at).stage == Stage::Good);
        let slow = config.slow_request.filter(|slow| slow.is_exceeded(began_nanos, ended_nanos));
        let bad = match (outcome, slow) {
            (Some(Outcome::Error(error)), _) => Some(Why::ProbeFailed { error }),
            (_, Some(slow)) => Some(Why::ProbeSlow { threshold: slow.threshold }),
            (None, None) => return,
            (Some(Outcome::Success), None) => None,
        };
        if let Some(why) = bad {
            return self.change(&mut core, Phase::Open { since_nanos: now_nanos }, why, now_nanos);
        }
        *good += u32::from(!was_good);
        self.close_if_good(&mut core, &config, now_nanos);
    }
}
