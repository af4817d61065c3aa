//! The series of all calling pods, and how they come and go.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Instant,
};

use ahash::AHashMap;
use smallvec::SmallVec;

use super::{
    EVICTION_GRACE,
    series::{LaneLabel, Series},
    services::{ServiceMetrics, Services},
};
use crate::govern::tag::Tag;

/// The service port and lane that a series is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) namespace: Arc<str>,
    pub(super) service: Arc<str>,
    pub(super) port: u16,
    pub(super) lane: LaneLabel,
}

/// The numbers of one calling pod.
#[derive(Debug)]
pub struct PodMetrics {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    series: RwLock<AHashMap<Key, Arc<Series>>>,
    services: Arc<Services>,
}

impl PodMetrics {
    /// The series of this pod's requests to a service port, by lane. One for a connection: it keeps what it found.
    pub fn service(self: &Arc<Self>, namespace: &Arc<str>, service: &Arc<str>, port: u16) -> ServiceSeries {
        ServiceSeries {
            pod: Arc::clone(self),
            namespace: Arc::clone(namespace),
            service: Arc::clone(service),
            port,
            metrics: self.services.get(namespace, service, port),
            known: SmallVec::new(),
        }
    }

    fn series(&self, key: Key) -> Arc<Series> {
        if let Some(series) = self.series.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(series);
        }
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have been faster.
        Arc::clone(series.entry(key).or_default())
    }

    pub(super) fn for_each(&self, mut visit: impl FnMut(&Key, &Series)) {
        for (key, series) in &*self.series.read().unwrap_or_else(PoisonError::into_inner) {
            visit(key, series);
        }
    }
}

/// The series of one pod's requests to one service port, found once for each lane.
#[derive(Clone, Debug)]
pub struct ServiceSeries {
    pod: Arc<PodMetrics>,
    namespace: Arc<str>,
    service: Arc<str>,
    port: u16,
    metrics: Arc<ServiceMetrics>,
    /// In the order of first use; a connection sees one or two lanes.
    known: SmallVec<[(LaneLabel, Arc<Series>); 2]>,
}

impl ServiceSeries {
    /// The series for requests that an endpoint with this tag answers.
    pub fn lane(&mut self, tag: Option<&Tag>) -> &Arc<Series> {
        let found = self.known.iter().position(|(lane, _)| match (lane, tag) {
            (LaneLabel::Baseline, None) => true,
            (LaneLabel::Lane(lane), Some(tag)) => lane == tag,
            _ => false,
        });
        self.at(found, || LaneLabel::from(tag))
    }

    /// What is counted for the service, whoever calls.
    pub fn service(&self) -> &Arc<ServiceMetrics> {
        &self.metrics
    }

    /// The series for requests for which no endpoint was chosen.
    pub fn none(&mut self) -> &Arc<Series> {
        let found = self.known.iter().position(|(lane, _)| *lane == LaneLabel::None);
        self.at(found, || LaneLabel::None)
    }

    fn at(&mut self, found: Option<usize>, lane: impl FnOnce() -> LaneLabel) -> &Arc<Series> {
        let index = found.unwrap_or_else(|| {
            let lane = lane();
            let key = Key {
                namespace: Arc::clone(&self.namespace),
                service: Arc::clone(&self.service),
                port: self.port,
                lane: lane.clone(),
            };
            self.known.push((lane, self.pod.series(key)));
            self.known.len() - 1
        });
        &self.known[index].1
    }
}

/// All calling pods, by UID. The lock is taken when pods come and go and at scrapes.
#[derive(Debug)]
pub(super) struct Pods {
    pods: Mutex<AHashMap<Arc<str>, Entry>>,
    services: Arc<Services>,
}

#[derive(Debug)]
struct Entry {
    metrics: Arc<PodMetrics>,
    /// Enrolments that have not ended: while a sandbox is replaced the old one outlives the beginning of the new.
    enrolments: usize,
    evicted_at: Option<Instant>,
}

impl Pods {
    pub(super) fn new(services: Arc<Services>) -> Self {
        Self { pods: Mutex::default(), services }
    }

    fn lock(&self) -> MutexGuard<'_, AHashMap<Arc<str>, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, uid: &Arc<str>, namespace: &Arc<str>, name: &Arc<str>) -> Arc<PodMetrics> {
        let mut pods = self.lock();
        let entry = pods.entry(Arc::clone(uid)).or_insert_with(|| Entry {
            metrics: Arc::new(PodMetrics {
                namespace: Arc::clone(namespace),
                name: Arc::clone(name),
                series: RwLock::default(),
                services: Arc::clone(&self.services),
            }),
            enrolments: 0,
            evicted_at: None,
        });
        entry.enrolments += 1;
        entry.evicted_at = None;
        Arc::clone(&entry.metrics)
    }

    pub(super) fn evict(&self, uid: &str, now: Instant) {
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.enrolments = entry.enrolments.saturating_sub(1);
            if entry.enrolments == 0 {
                entry.evicted_at.get_or_insert(now);
            }
        }
        // Also when nobody scrapes, memory stays bounded.
        self.purge(now);
    }

    pub(super) fn purge(&self, now: Instant) {
        self.lock().retain(|_, entry| {
            entry.evicted_at.is_none_or(|at| now.saturating_duration_since(at) < EVICTION_GRACE)
        });
    }

    pub(super) fn all(&self) -> Vec<Arc<PodMetrics>> {
        self.lock().values().map(|entry| Arc::clone(&entry.metrics)).collect()
    }
}
