//! What the address that a connection's client dialled resolves to, and the numbers that go with it.
//!
//! A connection looks again before each request, and goes on with what it last knew where the service is no longer there:
//! its caller is then told to reconnect.

use std::{
    cell::{RefCell, RefMut},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use super::worker::{PodHere, Worker};
use crate::{
    cluster::model::{Destination, Routed, Service},
    govern::routes::Rule,
    observe::metrics::{RouteCounts, RouteRule, ServiceMetrics, ServiceSeries},
};

/// Cheap to clone, so that a request keeps what was there when it came.
#[derive(Clone)]
pub(crate) struct Resolved {
    /// Of the snapshot that it was found in.
    generation: u64,
    pub(crate) destination: Rc<Destination>,
    series: Rc<RefCell<ServiceSeries>>,
    /// What is counted for the service, whoever calls.
    pub(crate) numbers: Arc<ServiceMetrics>,
    /// It is still there.
    pub(crate) governed: bool,
    /// What routes say of requests to it.
    routed: Option<Arc<Routed>>,
    /// What was looked up for routes, in this snapshot.
    looked_up: Rc<RefCell<LookedUp>>,
}

/// What routes need with each request.
#[derive(Default)]
struct LookedUp {
    /// The Services that requests were routed to.
    backends: Vec<Resolved>,
    /// Where requests are counted, by the rule that sent them here. Mostly one or two.
    counts: Vec<(Arc<Rule>, RouteCounts)>,
}

/// Of more rules the counts are looked up again.
const MOST_COUNTS: usize = 32;

/// More addresses that a pod has dialled lately are not remembered.
const MOST_REMEMBERED: usize = 8;

/// What connections of a pod have resolved lately: clients that open one for each request dial the same few addresses.
#[derive(Default)]
pub(crate) struct Remembered {
    /// Of the snapshot that they were found in.
    generation: u64,
    found: Vec<(SocketAddr, Resolved)>,
}

impl Remembered {
    /// Forgets what is of another snapshot, which it would keep in memory.
    pub(crate) fn keep_of(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            self.found.clear();
        }
    }
}

impl Resolved {
    /// `destination` must have been found in the present turn of the worker, so that it is of the present snapshot.
    /// `dialled`: where it was found.
    pub(crate) fn new(worker: &Worker, pod: &PodHere, dialled: SocketAddr, destination: Destination) -> Self {
        let snapshot = worker.snapshot();
        let mut remembered = pod.resolved.borrow_mut();
        remembered.keep_of(snapshot.generation);
        if let Some((_, resolved)) = remembered.found.iter().find(|(address, _)| *address == dialled) {
            return resolved.clone();
        }
        let series = series(pod, &destination);
        let resolved = Self {
            generation: snapshot.generation,
            routed: snapshot.routed(dialled, &destination).cloned(),
            looked_up: Rc::default(),
            numbers: series.service().clone(),
            series: Rc::new(RefCell::new(series)),
            destination: Rc::new(destination),
            governed: true,
        };
        if remembered.found.len() < MOST_REMEMBERED {
            remembered.found.push((dialled, resolved.clone()));
        }
        resolved
    }

    /// Looks again what stands behind `dialled`.
    pub(crate) fn refresh(&mut self, worker: &Worker, pod: &PodHere, dialled: SocketAddr) {
        let snapshot = worker.snapshot();
        if self.generation == snapshot.generation {
            return;
        }
        self.generation = snapshot.generation;
        let found = pod.destination(&snapshot, dialled);
        self.governed = found.is_some();
        self.looked_up = Rc::default();
        if let Some(found) = found {
            let (old, new) = (&self.destination.service, &found.service);
            if (&old.namespace, &old.name, old.port) != (&new.namespace, &new.name, new.port) {
                let series = series(pod, found);
                self.numbers = series.service().clone();
                self.series = Rc::new(RefCell::new(series));
            }
            self.routed = snapshot.routed(dialled, found).cloned();
            self.destination = Rc::new(found.clone());
        }
    }

    /// What routes say of requests to it; mostly nothing.
    pub(crate) fn routed(&self) -> Option<&Routed> {
        self.routed.as_deref()
    }

    /// The same of a Service that a request is routed to.
    pub(crate) fn backend(&self, pod: &PodHere, service: &Arc<Service>) -> Self {
        if Arc::ptr_eq(service, &self.destination.service) {
            return self.clone();
        }
        let backends = &mut self.looked_up.borrow_mut().backends;
        if let Some(resolved) =
            backends.iter().find(|resolved| Arc::ptr_eq(service, &resolved.destination.service))
        {
            return resolved.clone();
        }
        let destination = Destination { service: service.clone(), pinned: None };
        let series = series(pod, &destination);
        let resolved = Self {
            generation: self.generation,
            numbers: series.service().clone(),
            series: Rc::new(RefCell::new(series)),
            destination: Rc::new(destination),
            governed: self.governed,
            routed: None,
            looked_up: Rc::default(),
        };
        backends.push(resolved.clone());
        resolved
    }

    /// A request that a rule of a route holds for has ended, with this status (0: without any).
    pub(crate) fn count_routed(&self, rule: &Arc<Rule>, status: u16) {
        let counts = &mut self.looked_up.borrow_mut().counts;
        if let Some((_, counts)) = counts.iter().find(|(counted, _)| Arc::ptr_eq(counted, rule)) {
            return counts.count(status);
        }
        if counts.len() >= MOST_COUNTS {
            counts.clear();
        }
        let found = self.numbers.route(RouteRule::from(&**rule));
        found.count(status);
        counts.push((rule.clone(), found));
    }

    /// The numbers of the service and its lanes, for one who needs them later.
    pub(crate) fn later_series(&self) -> Rc<RefCell<ServiceSeries>> {
        Rc::clone(&self.series)
    }

    /// Not to be held while anything is waited for.
    pub(crate) fn series(&self) -> RefMut<'_, ServiceSeries> {
        self.series.borrow_mut()
    }
}

fn series(pod: &PodHere, destination: &Destination) -> ServiceSeries {
    let service = &destination.service;
    pod.metrics.service(&service.namespace, &service.name, service.port)
}
