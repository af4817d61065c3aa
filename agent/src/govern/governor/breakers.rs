//! A service's circuit breakers: for each calling pod, or for all of a node together (`scope`), one for the baseline, and one
//! for each lane that was asked for something.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;

use crate::govern::{
    breaker::{Breaker, State, TransitionCounts},
    per_pod::{CallingPod, PerPod},
    policy::{BreakerScope, CircuitBreaker},
    tag::Tag,
};

/// Clones are the same breakers.
#[derive(Clone, Debug)]
pub struct Breakers(Arc<All>);

#[derive(Debug)]
struct All {
    scope: BreakerScope,
    /// Those of all callers together, with [`BreakerScope::Node`].
    node: Lanes,
    /// With [`BreakerScope::Caller`].
    callers: PerPod<Lanes>,
    /// Held while a breaker is made or all are configured anew, so that none misses it.
    config: Mutex<Arc<CircuitBreaker>>,
    /// What breakers have gone through that are no more.
    past: Mutex<BTreeMap<Option<Tag>, TransitionCounts>>,
}

/// The breakers of one caller, or of all.
#[derive(Debug)]
struct Lanes {
    baseline: Arc<Breaker>,
    by_tag: ArcSwap<BTreeMap<Tag, Arc<Breaker>>>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct OneBreaker {
    /// The calling pod, as in `shop/client`; `None`: all of the node.
    pub caller: Option<Arc<str>>,
    /// `None` is the baseline.
    pub lane: Option<Tag>,
    pub breaker: Arc<Breaker>,
}

impl Lanes {
    fn new(config: &Arc<CircuitBreaker>) -> Self {
        Self { baseline: Arc::new(Breaker::new(config.clone())), by_tag: ArcSwap::default() }
    }

    /// Looks at the one of a lane.
    fn with<R>(
        &self,
        lane: Option<&Tag>,
        config: &Mutex<Arc<CircuitBreaker>>,
        look: impl FnOnce(&Arc<Breaker>) -> R,
    ) -> R {
        let Some(tag) = lane else { return look(&self.baseline) };
        if let Some(lane) = self.by_tag.load().get(tag) {
            return look(lane);
        }
        let lane = {
            let config = config.lock().unwrap_or_else(PoisonError::into_inner);
            let mut lanes = BTreeMap::clone(&self.by_tag.load());
            let lane =
                lanes.entry(tag.clone()).or_insert_with(|| Arc::new(Breaker::new(config.clone()))).clone();
            self.by_tag.store(Arc::new(lanes));
            lane
        };
        look(&lane)
    }

    fn find(&self, lane: Option<&Tag>) -> Option<Arc<Breaker>> {
        match lane {
            None => Some(self.baseline.clone()),
            Some(tag) => self.by_tag.load().get(tag).cloned(),
        }
    }

    fn all(&self) -> Vec<(Option<Tag>, Arc<Breaker>)> {
        let lanes = self.by_tag.load();
        let lanes = lanes.iter().map(|(tag, lane)| (Some(tag.clone()), lane.clone()));
        std::iter::once((None, self.baseline.clone())).chain(lanes).collect()
    }

    /// Those that have gone are shown to `gone`.
    fn retain(&self, exists: &impl Fn(&Tag) -> bool, mut gone: impl FnMut(&Tag, &Breaker)) {
        if self.by_tag.load().keys().all(exists) {
            return;
        }
        let mut lanes = BTreeMap::clone(&self.by_tag.load());
        lanes.retain(|tag, lane| {
            let there = exists(tag);
            if !there {
                gone(tag, lane);
            }
            there
        });
        self.by_tag.store(Arc::new(lanes));
    }
}

impl Breakers {
    pub(super) fn new(config: &Arc<CircuitBreaker>) -> Self {
        Self(Arc::new(All {
            scope: config.scope,
            node: Lanes::new(config),
            callers: PerPod::default(),
            config: Mutex::new(config.clone()),
            past: Mutex::default(),
        }))
    }

    /// The same ones under another policy; their state stays ([`Breaker::reconfigure`]). Only with another scope they are
    /// others, which begin anew.
    pub(super) fn with_config(&self, config: &Arc<CircuitBreaker>) -> Self {
        if self.0.scope != config.scope {
            return Self::new(config);
        }
        let mut current = self.0.config.lock().unwrap_or_else(PoisonError::into_inner);
        *current = config.clone();
        for one in self.all() {
            one.breaker.reconfigure(config.clone());
        }
        self.clone()
    }

    /// The breaker that a request of this caller to a lane has to ask; `None` is the baseline.
    pub fn of(&self, pod: &Arc<CallingPod>, lane: Option<&Tag>) -> Arc<Breaker> {
        self.with(pod, lane, Arc::clone)
    }

    /// The same, to be looked at once.
    pub fn with<R>(
        &self,
        pod: &Arc<CallingPod>,
        lane: Option<&Tag>,
        look: impl FnOnce(&Arc<Breaker>) -> R,
    ) -> R {
        let All { scope, node, callers, config, .. } = &*self.0;
        match scope {
            BreakerScope::Node => node.with(lane, config, look),
            BreakerScope::Caller => {
                let current = || config.lock().unwrap_or_else(PoisonError::into_inner);
                let made = Cell::new(false);
                let make = || {
                    made.set(true);
                    Lanes::new(&current())
                };
                let gone = |lanes: &Lanes| self.0.bury(lanes);
                callers.with(pod, make, gone, |lanes| {
                    if made.get() {
                        // One that has changed meanwhile has not been told to those that were not there yet.
                        lanes.baseline.reconfigure(current().clone());
                    }
                    lanes.with(lane, config, look)
                })
            }
        }
    }

    /// Whether what one caller's requests meet counts for others as well.
    pub fn are_shared(&self) -> bool {
        self.0.scope == BreakerScope::Node
    }

    /// A [copy](Breaker::copy) of the breaker of a caller and a lane, which is not made if there is none yet.
    pub fn copy_of(&self, uid: &str, lane: Option<&Tag>) -> Arc<Breaker> {
        let there = match self.0.scope {
            BreakerScope::Node => self.0.node.find(lane),
            BreakerScope::Caller => self.0.callers.find(uid).and_then(|lanes| lanes.find(lane)),
        };
        Arc::new(match there {
            Some(breaker) => breaker.copy(),
            None => Breaker::new(self.0.config.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        })
    }

    /// All of them, by caller; the baseline's comes first.
    pub fn all(&self) -> Vec<OneBreaker> {
        let of = |caller: Option<&Arc<str>>, lanes: &Lanes| {
            let all = lanes.all().into_iter();
            let one = |(lane, breaker)| OneBreaker { caller: caller.cloned(), lane, breaker };
            all.map(one).collect::<Vec<_>>()
        };
        match self.0.scope {
            BreakerScope::Node => of(None, &self.0.node),
            BreakerScope::Caller => {
                let callers = self.0.callers.all();
                callers.iter().flat_map(|(name, lanes)| of(Some(name), lanes)).collect()
            }
        }
    }

    /// How many of each lane are in each state.
    pub fn states(&self, now_nanos: u64) -> BTreeMap<Option<Tag>, [u32; State::ALL.len()]> {
        let mut states = BTreeMap::from([(None, [0; State::ALL.len()])]);
        for one in self.all() {
            let state = one.breaker.state(now_nanos);
            let counts = states.entry(one.lane).or_default();
            for (count, _) in counts.iter_mut().zip(State::ALL).filter(|(_, other)| *other == state) {
                *count += 1;
            }
        }
        states
    }

    /// How often those of each lane have changed their states, also those that are no more.
    pub fn transition_counts(&self) -> BTreeMap<Option<Tag>, TransitionCounts> {
        let mut counts = self.0.past.lock().unwrap_or_else(PoisonError::into_inner).clone();
        counts.entry(None).or_default();
        for one in self.all() {
            counts.entry(one.lane).or_default().add(one.breaker.transition_counts());
        }
        counts
    }

    /// Forgets lanes and callers that are gone.
    pub fn retain(&self, exists: impl Fn(&Tag) -> bool) {
        self.0.callers.forget_gone(|lanes| self.0.bury(lanes));
        let _config = self.0.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut past = self.0.past.lock().unwrap_or_else(PoisonError::into_inner);
        for lanes in std::iter::once(&self.0.node).chain(self.0.callers.all().values().map(|lanes| &**lanes))
        {
            lanes.retain(&exists, |_, _| {});
        }
        // With the lane its counters go, too.
        past.retain(|tag, _| tag.as_ref().is_none_or(&exists));
    }
}

impl All {
    /// The breakers of a caller that has gone: what they went through still counts.
    fn bury(&self, lanes: &Lanes) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        for (lane, breaker) in lanes.all() {
            past.entry(lane).or_default().add(breaker.transition_counts());
        }
    }
}
