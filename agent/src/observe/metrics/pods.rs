//! The series of all calling pods, and how they come and go.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use ahash::AHashMap;
use prometheus::IntCounter;
use smallvec::SmallVec;

use super::{
    EVICTION_GRACE,
    outcomes::LimitDecision,
    series::{LaneLabel, Series},
    services::{RateLimitCounts, ServiceMetrics, Services},
};
use crate::{
    clock::Nanos,
    govern::{lane::TagSource, tag::Tag, tally::Tally},
};

/// Series of pods, services and lanes that an agent keeps at a time: each is about 23 lines of a scrape (5 KB) and 300 bytes
/// of memory, 1.5 KB when something has failed, and 1 KB where traces are sampled. A node has a hundred pods or so, which call
/// some services each; beyond this many the numbers of a pod go to its series for the service `other`.
pub const MAX_SERIES: usize = 4096;

/// The service of requests for whose own service and lane there is no series.
const OTHER: &str = "other";

/// The service port and lane that a series is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) namespace: Arc<str>,
    pub(super) service: Arc<str>,
    /// `None` where it stands for several services.
    pub(super) port: Option<u16>,
    pub(super) lane: LaneLabel,
}

impl Key {
    fn other() -> Self {
        Self { namespace: "".into(), service: OTHER.into(), port: None, lane: LaneLabel::None }
    }
}

/// A series, and since when its service or lane is gone.
#[derive(Debug)]
struct Kept {
    series: Arc<Series>,
    gone_at: Option<Instant>,
}

impl Kept {
    fn of(service: Arc<Tally>) -> Self {
        Self { series: Arc::new(Series::of(service)), gone_at: None }
    }
}

/// How many series there are, of all pods.
#[derive(Debug)]
struct Count {
    series: AtomicUsize,
    overflowed: IntCounter,
}

/// How long what became of tags is told to be of late.
const LATE: Nanos = Nanos(5 * 60 * 1_000_000_000);

/// What became of tags in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTags {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Who said the tags of its requests in the last five minutes.
    pub carriers: Vec<TagSource>,
    /// Its requests without a tag while all that came to it and were not answered had one, since the agent has known it.
    pub lost: u64,
    /// Some of them were sent in the last five minutes.
    pub is_losing: bool,
}

/// The numbers of one calling pod.
#[derive(Debug)]
pub struct PodMetrics {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    series: RwLock<AHashMap<Key, Kept>>,
    /// Its requests that have a tag, by who said which.
    tagged: [AtomicU64; TagSource::ALL.len()],
    /// When the last of each of them came ([`Nanos`]).
    tagged_at: [AtomicU64; TagSource::ALL.len()],
    /// Its requests that ought to have a tag and have none, and when the last of them came.
    lost: AtomicU64,
    lost_at: AtomicU64,
    services: Arc<Services>,
    count: Arc<Count>,
}

impl Drop for PodMetrics {
    fn drop(&mut self) {
        let series = self.series.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.count.series.fetch_sub(series.len(), Relaxed);
    }
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
            rate_limits: Vec::new(),
        }
    }

    /// A request of the pod has a tag, which this source said.
    pub(crate) fn tagged(&self, source: TagSource, now: Nanos) {
        self.tagged[source.index()].fetch_add(1, Relaxed);
        self.tagged_at[source.index()].store(now.0, Relaxed);
    }

    /// A request of the pod has none, although all that came to the pod and are not answered have one.
    pub(crate) fn lost_tag(&self, now: Nanos) {
        self.lost.fetch_add(1, Relaxed);
        self.lost_at.store(now.0, Relaxed);
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// What became of tags in the pod of late; `None`: it has had to do with none.
    fn of_late(&self, now: Nanos) -> Option<PodTags> {
        let is_recent = |at: &AtomicU64| now.since(Nanos(at.load(Relaxed))) < LATE;
        let recent = |source: &TagSource| {
            self.tagged[source.index()].load(Relaxed) > 0 && is_recent(&self.tagged_at[source.index()])
        };
        let lost = self.lost();
        let tags = PodTags {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            carriers: TagSource::ALL.into_iter().filter(recent).collect(),
            lost,
            is_losing: lost > 0 && is_recent(&self.lost_at),
        };
        (!tags.carriers.is_empty() || lost > 0).then_some(tags)
    }

    /// So many of its requests got their tag from each source.
    pub(super) fn tags(&self) -> impl Iterator<Item = (TagSource, u64)> {
        let counted = self.tagged.iter().map(|counter| counter.load(Relaxed));
        TagSource::ALL.into_iter().zip(counted).filter(|(_, count)| *count > 0)
    }

    fn series(&self, key: Key, service: &ServiceMetrics) -> Arc<Series> {
        if let Some(kept) = self.series.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(&kept.series);
        }
        let mut all = self.series.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have been faster.
        if let Some(kept) = all.get(&key) {
            return Arc::clone(&kept.series);
        }
        let (key, service) = if self.count.series.load(Relaxed) < MAX_SERIES {
            (key, Arc::clone(&service.tally))
        } else {
            self.count.overflowed.inc();
            // Of several services: of which one a request is, is not told second by second.
            (Key::other(), Arc::default())
        };
        let before = all.len();
        let series = Arc::clone(&all.entry(key).or_insert_with(|| Kept::of(service)).series);
        self.count.series.fetch_add(all.len() - before, Relaxed);
        series
    }

    /// Forgets series whose service or lane has been gone for long enough, and that no connection still counts in.
    fn retain(&self, exists: &impl Fn(&Key) -> bool, now: Instant) {
        let mut all = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.retain(|key, kept| {
            if exists(key) || Arc::strong_count(&kept.series) > 1 {
                kept.gone_at = None;
                return true;
            }
            let since = *kept.gone_at.get_or_insert(now);
            now.saturating_duration_since(since) < EVICTION_GRACE
        });
        self.count.series.fetch_sub(before - all.len(), Relaxed);
    }

    pub(super) fn for_each(&self, mut visit: impl FnMut(&Key, &Arc<Series>)) {
        for (key, kept) in &*self.series.read().unwrap_or_else(PoisonError::into_inner) {
            visit(key, &kept.series);
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
    /// Of the rate limits that were asked, by their names, which a policy that changes has anew.
    rate_limits: Vec<(Arc<str>, Arc<RateLimitCounts>)>,
}

/// More than a policy and its rules have; what is beyond that is of policies that are no more.
const MOST_RATE_LIMITS: usize = 160;

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

    /// A rate limit has decided.
    pub fn rate_limited(&mut self, rule: &Arc<str>, decision: LimitDecision) {
        let known = self.rate_limits.iter().position(|(name, _)| Arc::ptr_eq(name, rule));
        let index = known.unwrap_or_else(|| {
            if self.rate_limits.len() >= MOST_RATE_LIMITS {
                self.rate_limits.clear();
            }
            self.rate_limits.push((Arc::clone(rule), self.metrics.of_rate_limit(rule)));
            self.rate_limits.len() - 1
        });
        self.rate_limits[index].1[decision as usize].fetch_add(1, Relaxed);
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
                port: Some(self.port),
                lane: lane.clone(),
            };
            self.known.push((lane, self.pod.series(key, &self.metrics)));
            self.known.len() - 1
        });
        &self.known[index].1
    }
}

/// The namespace and the name of a pod.
type Named = (Arc<str>, Arc<str>);

/// All calling pods, by name, as their lines are: one that takes the place and the name of another, as those of a StatefulSet do,
/// goes on with its numbers. Else the lines would become less when those of the former one are forgotten, which is taken for a
/// restart: what the new one had counted until then would count twice. The lock is taken when pods come and go and at scrapes.
#[derive(Debug)]
pub(super) struct Pods {
    entries: Mutex<AHashMap<Named, Entry>>,
    services: Arc<Services>,
    count: Arc<Count>,
}

#[derive(Debug)]
struct Entry {
    metrics: Arc<PodMetrics>,
    /// Enrolments that have not ended: while a sandbox or a pod is replaced the old one outlives the beginning of the new.
    enrolments: usize,
    evicted_at: Option<Instant>,
}

impl Pods {
    /// `overflowed` counts what goes to `other`.
    pub(super) fn new(services: Arc<Services>, overflowed: IntCounter) -> Self {
        let count = Arc::new(Count { series: AtomicUsize::default(), overflowed });
        Self { entries: Mutex::default(), services, count }
    }

    fn lock(&self) -> MutexGuard<'_, AHashMap<Named, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, namespace: &Arc<str>, name: &Arc<str>) -> Arc<PodMetrics> {
        let mut pods = self.lock();
        let named = (Arc::clone(namespace), Arc::clone(name));
        let entry = pods.entry(named).or_insert_with(|| Entry {
            metrics: Arc::new(PodMetrics {
                namespace: Arc::clone(namespace),
                name: Arc::clone(name),
                series: RwLock::default(),
                tagged: Default::default(),
                tagged_at: Default::default(),
                lost: AtomicU64::default(),
                lost_at: AtomicU64::default(),
                services: Arc::clone(&self.services),
                count: Arc::clone(&self.count),
            }),
            enrolments: 0,
            evicted_at: None,
        });
        entry.enrolments += 1;
        entry.evicted_at = None;
        Arc::clone(&entry.metrics)
    }

    pub(super) fn evict(&self, namespace: &Arc<str>, name: &Arc<str>, now: Instant) {
        if let Some(entry) = self.lock().get_mut(&(Arc::clone(namespace), Arc::clone(name))) {
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

    /// Forgets the series of services and lanes that are gone, after a grace.
    pub(super) fn retain_series(
        &self,
        exists: &impl Fn(&str, &str, u16, Option<&Tag>) -> bool,
        now: Instant,
    ) {
        let exists = |key: &Key| {
            let lane = match &key.lane {
                LaneLabel::Lane(tag) => Some(tag),
                LaneLabel::None | LaneLabel::Baseline => None,
            };
            key.port.is_none_or(|port| exists(&key.namespace, &key.service, port, lane))
        };
        for pod in self.all() {
            pod.retain(&exists, now);
        }
    }

    /// What became of tags in each pod.
    pub(super) fn tags(&self, now: Nanos) -> Vec<PodTags> {
        let mut tags: Vec<_> = self.all().iter().filter_map(|pod| pod.of_late(now)).collect();
        tags.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        tags
    }

    pub(super) fn all(&self) -> Vec<Arc<PodMetrics>> {
        self.lock().values().map(|entry| Arc::clone(&entry.metrics)).collect()
    }
}
