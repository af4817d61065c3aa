//! A service's circuit breakers: one for the baseline, and one for each lane that was asked for something.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::AcqRel},
    },
};

use arc_swap::ArcSwap;

use crate::govern::{
    breaker::{Breaker, Transition},
    policy::CircuitBreaker,
    tag::Tag,
};

/// Clones are the same breakers.
#[derive(Clone, Debug)]
pub struct Breakers {
    baseline: Watched,
    lanes: Arc<Lanes>,
}

/// A breaker, and how much of what it went through has been told.
#[derive(Clone, Debug)]
struct Watched {
    breaker: Arc<Breaker>,
    told: Arc<AtomicU64>,
}

impl Watched {
    fn new(config: &Arc<CircuitBreaker>) -> Self {
        Self { breaker: Arc::new(Breaker::new(config.clone())), told: Arc::default() }
    }

    fn news(&self) -> Vec<Transition> {
        let last = self.breaker.generation();
        let told = self.told.fetch_max(last, AcqRel);
        if told >= last {
            return Vec::new();
        }
        let mut news = self.breaker.recent_transitions();
        news.retain(|transition| told < transition.number && transition.number <= last);
        news
    }
}

#[derive(Debug)]
struct Lanes {
    by_tag: ArcSwap<BTreeMap<Tag, Watched>>,
    /// Held while a lane is added or all are configured anew, so that none misses it.
    config: Mutex<Arc<CircuitBreaker>>,
}

impl Breakers {
    pub(super) fn new(config: &Arc<CircuitBreaker>) -> Self {
        let lanes = Lanes { by_tag: ArcSwap::default(), config: Mutex::new(config.clone()) };
        Self { baseline: Watched::new(config), lanes: Arc::new(lanes) }
    }

    /// The same ones under another policy; their state stays ([`Breaker::reconfigure`]).
    pub(super) fn with_config(&self, config: &Arc<CircuitBreaker>) -> Self {
        let mut current = self.lanes.config.lock().unwrap_or_else(PoisonError::into_inner);
        *current = config.clone();
        self.baseline.breaker.reconfigure(config.clone());
        for lane in self.lanes.by_tag.load().values() {
            lane.breaker.reconfigure(config.clone());
        }
        self.clone()
    }

    /// The breaker of a lane; `None` is the baseline.
    pub fn of(&self, lane: Option<&Tag>) -> Arc<Breaker> {
        let Some(tag) = lane else { return self.baseline.breaker.clone() };
        if let Some(lane) = self.lanes.by_tag.load().get(tag) {
            return lane.breaker.clone();
        }
        let config = self.lanes.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lanes = BTreeMap::clone(&self.lanes.by_tag.load());
        let breaker = lanes.entry(tag.clone()).or_insert_with(|| Watched::new(&config)).breaker.clone();
        self.lanes.by_tag.store(Arc::new(lanes));
        breaker
    }

    /// A [copy](Breaker::copy) of the breaker of a lane, which is not made if there is none yet.
    pub fn copy_of(&self, lane: Option<&Tag>) -> Arc<Breaker> {
        let there = match lane {
            None => Some(self.baseline.breaker.clone()),
            Some(tag) => self.lanes.by_tag.load().get(tag).map(|lane| lane.breaker.clone()),
        };
        Arc::new(match there {
            Some(breaker) => breaker.copy(),
            None => Breaker::new(self.lanes.config.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        })
    }

    /// What a lane's breaker has gone through since this was last asked, by whomever.
    pub fn news(&self, lane: Option<&Tag>) -> Vec<Transition> {
        match lane {
            None => self.baseline.news(),
            Some(tag) => self.lanes.by_tag.load().get(tag).map(Watched::news).unwrap_or_default(),
        }
    }

    /// All of them; the baseline's comes first.
    pub fn all(&self) -> Vec<(Option<Tag>, Arc<Breaker>)> {
        let lanes = self.lanes.by_tag.load();
        let lanes = lanes.iter().map(|(tag, lane)| (Some(tag.clone()), lane.breaker.clone()));
        std::iter::once((None, self.baseline.breaker.clone())).chain(lanes).collect()
    }

    /// Forgets lanes that are gone.
    pub fn retain(&self, exists: impl Fn(&Tag) -> bool) {
        if self.lanes.by_tag.load().keys().all(&exists) {
            return;
        }
        let _config = self.lanes.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lanes = BTreeMap::clone(&self.lanes.by_tag.load());
        lanes.retain(|tag, _| exists(tag));
        self.lanes.by_tag.store(Arc::new(lanes));
    }
}
