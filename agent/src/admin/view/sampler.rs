//! Once a second: what was counted since, of services, lanes and endpoints, and who called whom.
//!
//! Only what enrolled pods of this node have called is looked at, so the work follows the traffic and not the size of the
//! cluster. Counters live where requests end and may outlive what they count; what they said the last time is kept
//! here, for as long as anybody else holds them.

use std::{collections::BTreeMap, sync::Arc};

use ahash::AHashMap;

use super::{Name, calls::Calls, routes};
use crate::{
    cluster::model::{Service, Snapshot},
    govern::{
        breaker::State,
        endpoint::{Endpoint, Load},
        governor::{Breakers, OneBreaker},
        outlier,
        route::Yielded,
        tag::Tag,
        tally::{Counts, Tally},
    },
    observe::{
        history::{ClosedOff, History, Part, Sample, Track},
        metrics::{Metrics, Requests},
    },
};

/// What was sampled.
pub(super) struct Sampler {
    pub(super) history: History,
    pub(super) calls: Calls,
    /// Since ever, of the pods that are there.
    pub(super) requests: AHashMap<Name, Requests>,
    /// The first second.
    pub(super) began: u64,
    tallies: Readings<Tally>,
    loads: Readings<Load>,
    pub(super) services: Services,
}

impl Sampler {
    pub(super) fn new(most_tracks: usize) -> Self {
        Self {
            history: History::new(most_tracks),
            calls: Calls::default(),
            requests: AHashMap::new(),
            began: 0,
            tallies: Readings::default(),
            loads: Readings::default(),
            services: Services::default(),
        }
    }

    /// Takes up a snapshot: what is gone in it is forgotten.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        if self.services.follow(snapshot) {
            let services = &self.services;
            self.history.retain(|track| services.knows(track));
        }
    }

    /// Takes the readings at the end of a second, of the services that were followed last.
    pub(super) fn sample(&mut self, second: u64, now_nanos: u64, metrics: &Metrics) {
        if second <= self.history.now() {
            return;
        }
        if self.began == 0 {
            self.began = second;
        }
        self.requests.clear();
        let mut counted: AHashMap<Name, Counts> = AHashMap::new();
        self.calls.begin(second);
        metrics.for_each_series(|flow, series| {
            let requests = series.requests();
            self.calls.note(flow, series, &requests);
            let name =
                Name { namespace: flow.namespace.clone(), name: flow.service.clone(), port: flow.port };
            let since = self.tallies.since(series.service());
            counted.entry(name.clone()).or_default().add(&since);
            add(self.requests.entry(name).or_default(), &requests);
        });
        self.calls.end();
        let mut samples = Vec::new();
        for (name, counts) in counted {
            let services = self.services.get(&name);
            let Some(first) = services.first() else { continue };
            let mut lanes = lanes(first.governor.all_breakers().map(|(_, breakers)| breakers), now_nanos);
            let worst = lanes.values().map(|lane| lane.closed_off).max().unwrap_or_default();
            for service in services {
                let yielded = service.yielded(now_nanos);
                for endpoint in &service.endpoints {
                    let sample = of_endpoint(service, &yielded, endpoint, &mut self.loads, now_nanos);
                    let Some(sample) = sample else { continue };
                    let lane = lanes.entry(endpoint.tag.clone()).or_default();
                    lane.counts.add(&sample.counts);
                    lane.in_flight += sample.in_flight;
                    samples.push((name.track(Part::Endpoint(endpoint.address)), sample));
                }
            }
            samples.extend(lanes.into_iter().map(|(tag, sample)| (name.track(Part::Lane(tag)), sample)));
            let in_flight = self.requests.get(&name).map_or(0, |requests| requests.in_flight);
            let sample = Sample { counts, in_flight, warm_up: None, closed_off: worst };
            samples.push((name.track(Part::Service), sample));
        }
        self.tallies.forget();
        self.loads.forget();
        self.history.sample(second, samples);
    }

    /// How many seconds have been sampled, at most so many.
    pub(super) fn seconds(&self, most: usize) -> usize {
        let known = if self.began == 0 { 0 } else { self.history.now() + 1 - self.began };
        most.min(usize::try_from(known).unwrap_or(usize::MAX))
    }
}

impl Name {
    pub(super) fn track(&self, part: Part) -> Track {
        Track { namespace: self.namespace.clone(), service: self.name.clone(), port: self.port, part }
    }

    fn of(service: &Service) -> Self {
        Self { namespace: service.namespace.clone(), name: service.name.clone(), port: service.port }
    }
}

fn add(sum: &mut Requests, more: &Requests) {
    sum.ended += more.ended;
    sum.errors += more.errors;
    sum.refused += more.refused;
    sum.in_flight += more.in_flight;
    sum.tunnels_in_flight += more.tunnels_in_flight;
}

/// The lanes that have circuit breakers, without counts, with the worst of each lane's.
fn lanes<'g>(breakers: impl Iterator<Item = &'g Breakers>, now_nanos: u64) -> BTreeMap<Option<Tag>, Sample> {
    let mut lanes: BTreeMap<_, Sample> = BTreeMap::new();
    for OneBreaker { lane, breaker, .. } in breakers.flat_map(Breakers::all) {
        let closed_off = match breaker.state(now_nanos) {
            State::Closed => ClosedOff::No,
            State::HalfOpen => ClosedOff::HalfOpen,
            State::Open => ClosedOff::Open,
        };
        let sample = lanes.entry(lane).or_default();
        sample.closed_off = sample.closed_off.max(closed_off);
    }
    lanes
}

/// `None`: it was never asked.
fn of_endpoint(
    service: &Service,
    yielded: &Yielded,
    endpoint: &Endpoint,
    loads: &mut Readings<Load>,
    now_nanos: u64,
) -> Option<Sample> {
    let in_flight = endpoint.load.in_flight.load(std::sync::atomic::Ordering::Relaxed);
    if endpoint.load.tallied().is_none() && in_flight == 0 {
        return None;
    }
    let policy = service.governor.policy();
    let warms_up = policy.load_balancer.warmup.is_some();
    let ejected = outlier::is_ejected(policy.outlier_detection.as_ref(), endpoint, now_nanos);
    Some(Sample {
        counts: loads.since(&endpoint.load),
        in_flight,
        warm_up: warms_up.then(|| yielded.factor(policy, endpoint, now_nanos)),
        closed_off: if ejected { ClosedOff::Open } else { ClosedOff::No },
    })
}

/// What is read once a second.
trait Counter {
    fn tally(&self) -> Option<&Tally>;
}

impl Counter for Tally {
    fn tally(&self) -> Option<&Tally> {
        Some(self)
    }
}

impl Counter for Load {
    fn tally(&self) -> Option<&Tally> {
        self.tallied()
    }
}

/// What counters said when they were last read, by their addresses: they are held, so that no two have the same.
struct Readings<C>(AHashMap<usize, (Arc<C>, Counts)>);

impl<C> Default for Readings<C> {
    fn default() -> Self {
        Self(AHashMap::new())
    }
}

impl<C: Counter> Readings<C> {
    /// What was counted since this was last asked.
    fn since(&mut self, counter: &Arc<C>) -> Counts {
        let Some(tally) = counter.tally() else { return Counts::default() };
        let (_, before) = self
            .0
            .entry(Arc::as_ptr(counter).addr())
            .or_insert_with(|| (Arc::clone(counter), Counts::default()));
        // Mostly nothing has happened, and many series share a service's counter.
        if tally.requests() == before.requests {
            return Counts::default();
        }
        let now = tally.read();
        let since = now.since(before);
        *before = now;
        since
    }

    /// Lets go of counters that nobody else holds.
    fn forget(&mut self) {
        self.0.retain(|_, (counter, _)| Arc::strong_count(counter) > 1);
    }
}

/// The services of the newest snapshot, by name: a dual-stack Service is one a family.
#[derive(Default)]
pub(super) struct Services {
    /// `None`: there was no snapshot yet.
    generation: Option<u64>,
    by_name: BTreeMap<Name, Vec<Arc<Service>>>,
    /// Where routes send the requests of those that have some.
    routed: BTreeMap<Name, Vec<String>>,
}

impl Services {
    /// Whether it is another snapshot than before.
    fn follow(&mut self, snapshot: &Snapshot) -> bool {
        if self.generation == Some(snapshot.generation) {
            return false;
        }
        self.generation = Some(snapshot.generation);
        self.by_name = by_name(snapshot);
        self.routed = routes::sent_to(snapshot);
        true
    }

    /// Those of this name; none if there is none.
    pub(super) fn get(&self, name: &Name) -> &[Arc<Service>] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// The other Services to which routes send its requests.
    pub(super) fn sent_to(&self, name: &Name) -> &[String] {
        self.routed.get(name).map_or(&[], Vec::as_slice)
    }

    /// All of them, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Name, &Vec<Arc<Service>>)> {
        self.by_name.iter()
    }

    fn knows(&self, track: &Track) -> bool {
        let name = Name { namespace: track.namespace.clone(), name: track.service.clone(), port: track.port };
        let mut services = self.get(&name).iter();
        match &track.part {
            Part::Service | Part::Lane(None) => services.next().is_some(),
            Part::Lane(Some(tag)) => services.any(|service| service.lanes.contains_key(tag)),
            Part::Endpoint(address) => services.any(|service| {
                service.endpoints.binary_search_by_key(address, |endpoint| endpoint.address).is_ok()
            }),
        }
    }
}

/// All services of a snapshot. The addresses of a headless one share theirs.
fn by_name(snapshot: &Snapshot) -> BTreeMap<Name, Vec<Arc<Service>>> {
    let mut all: BTreeMap<Name, Vec<Arc<Service>>> = BTreeMap::new();
    for destination in snapshot.destinations.values() {
        let service = &destination.service;
        let same = all.entry(Name::of(service)).or_default();
        if !same.iter().any(|other| Arc::ptr_eq(other, service)) {
            same.push(Arc::clone(service));
        }
    }
    for same in all.values_mut() {
        same.sort_by_key(|service| service.endpoints.first().map(|endpoint| endpoint.address));
    }
    all
}
