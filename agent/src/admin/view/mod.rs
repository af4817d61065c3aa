//! What the page shows, and whoever else wants to look: the services, calls, pods and policies of this node, second by
//! second.
//!
//! Once a second the [`sampler`] reads what the workers have counted ([`crate::govern::tally`]) and keeps it: the last 15
//! minutes ([`crate::observe::history`]), and who has called whom ([`calls`]). [`overview`], [`service`] and [`lane`] make of it, and
//! of the cluster's snapshot, what is served as JSON; [`events`] sends the same whenever a second is over. Nothing here
//! changes anything.

mod calls;
mod endpoints;
mod events;
mod lane;
mod look;
mod objects;
mod overview;
mod routes;
mod sampler;
mod service;
mod shared;
#[cfg(test)]
mod tests;
pub mod unattended;
pub mod unenforced;
mod warmth;

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, MissedTickBehavior},
};

use self::sampler::Sampler;
pub use self::{
    events::{EventStream, TooMany, Watched},
    lane::{LaneDetail, LaneName},
    look::{Agent, Look, Missing, Older},
    overview::Overview,
    service::Detail,
};
use crate::{clock::Nanos, cluster::model::Snapshot, observe::metrics::Metrics};

const SECOND: Nanos = Nanos::of(Duration::from_secs(1));

/// Seconds of the small lines beside each service.
const SPARK: usize = 60;

/// A service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: u16,
}

/// What can be seen of the running agent.
pub struct View {
    agent: Arc<dyn Agent>,
    metrics: Arc<Metrics>,
    sampler: Mutex<Sampler>,
    /// The newest second that was sampled.
    second: watch::Sender<u64>,
    subscribers: Arc<Semaphore>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl View {
    /// `most_tracks`: of how many services, lanes and endpoints together the seconds are kept.
    pub fn new(agent: Arc<dyn Agent>, metrics: Arc<Metrics>, most_tracks: usize) -> Arc<Self> {
        Arc::new(Self {
            agent,
            metrics,
            sampler: Mutex::new(Sampler::new(most_tracks)),
            second: watch::Sender::new(0),
            subscribers: Arc::new(Semaphore::new(events::MAX_SUBSCRIBERS)),
        })
    }

    /// Reads the counters once a second.
    pub async fn follow(self: Arc<Self>) -> Infallible {
        // At whole seconds of our clock, so that one that is looked at half a second late is still that one.
        let early = Nanos(SECOND.0 - Nanos::now().0 % SECOND.0);
        let mut every = tokio::time::interval_at(Instant::now() + Duration::from(early), SECOND.into());
        every.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            every.tick().await;
            let now = Nanos::now();
            self.sample((now.0 + SECOND.0 / 2) / SECOND.0, now);
        }
    }

    /// Takes the readings at the end of a second, and tells those who wait for it.
    fn sample(&self, second: u64, now: Nanos) {
        let snapshot = self.agent.snapshot();
        self.sampler(&snapshot).sample(second, now.0, &self.metrics);
        self.second.send_if_modified(|before| second > std::mem::replace(before, second.max(*before)));
    }

    /// Everything but the details of services; their lines have the last minute.
    pub fn overview(&self) -> Overview {
        self.overview_since(SPARK)
    }

    /// The same, with so many seconds.
    fn overview_since(&self, seconds: usize) -> Overview {
        let look = self.agent.look();
        Overview::of(&look, &self.sampler(&look.snapshot), seconds, Nanos::now().0)
    }

    /// All that is known of a service port, with the last `seconds`; `None`: there is none of that name.
    pub fn service(&self, name: &Name, seconds: usize) -> Option<Detail> {
        let snapshot = self.agent.snapshot();
        let sampler = self.sampler(&snapshot);
        let services = sampler.services.get(name);
        // Asked for only where the service exists: whoever asks must not make up numbers' names.
        services.first()?;
        let numbers = self.metrics.service(&name.namespace, &name.name, name.port);
        let routes = routes::list(name, &snapshot, &self.metrics);
        let detail = Detail::of(name, services, &numbers, &sampler, seconds, Nanos::now().0);
        let shared = detail.limits.iter().any(|limit| limit.cluster.is_some());
        let limit_store = shared.then(|| shared::store(&self.agent.leases()));
        let token_keys = shared::keys(services, || self.agent.jwks());
        Some(Detail { routes, limit_store, token_keys, ..detail })
    }

    /// All that is known of a lane; `None`: there is none of that name.
    pub fn lane(&self, name: &LaneName) -> Option<LaneDetail> {
        let look = self.agent.look();
        lane::detail(name, &look, &self.sampler(&look.snapshot), Nanos::now().0)
    }

    /// What was sampled, and the services of this snapshot.
    fn sampler(&self, snapshot: &Snapshot) -> MutexGuard<'_, Sampler> {
        // A sample that panicked half-way is the worst of it; the next one goes on.
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        sampler.follow(snapshot);
        sampler
    }
}

/// A number with as many decimals as anybody looks at.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// What part of the whole this is; 0 of nothing.
fn part(some: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { rounded(some as f64 / all as f64) }
}
