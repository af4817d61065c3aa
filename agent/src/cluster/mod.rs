//! What the cluster looks like: sources of Kubernetes objects, one model, immutable snapshots.
//!
//! A source ([`kubernetes`], the API server's watch, or [`manifests`], a directory) yields [`object`]s, already [`strip`]ped and checked; the
//! [`builder`] makes them into the [`model`]; [`Cluster`] hands out the newest snapshot. Consumers look up in it what
//! stands behind the address that a connection was meant for, and who calls.

pub mod builder;
pub mod cause;
pub mod clients;
pub mod first_request;
mod intern;
pub mod jwks;
pub mod kept;
pub mod kubernetes;
pub mod manifests;
mod mesh;
pub mod model;
pub mod object;
mod probes;
pub mod problem;
pub(crate) mod protocol;
pub mod shared;
pub mod source;
pub mod strip;
#[cfg(test)]
mod tests;
pub mod verdict;
pub mod warm_gate;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::task::AbortOnDropHandle;

use self::{
    builder::{Builder, Counts, Options},
    first_request::Firsts,
    kept::{Due, Keeper, Restore, Restored, StateFile},
    model::{Current, Snapshot},
    problem::{Problem, Troubles},
    source::{Batch, Feed, Health, Unread, Watches},
    verdict::{GatewayVerdicts, Verdicts},
    warm_gate::Gates,
};
use crate::clock::Nanos;

/// Snapshots come no faster than this: what changes together (a rollout) is published together.
const PAUSE: Duration = Duration::from_millis(25);
/// And no more than one part in so many of the time goes into making them.
const SHARE: u32 = 10;
/// How often is let go of what was kept for a while only.
const FORGET: Duration = Duration::from_secs(15);

/// The cluster as this agent knows it. Dropping it ends the source.
pub struct Cluster {
    current: Current,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    report: watch::Receiver<Report>,
    verdicts: watch::Receiver<Arc<Verdicts>>,
    gateway_verdicts: watch::Receiver<Arc<GatewayVerdicts>>,
    gates: watch::Receiver<Arc<Gates>>,
    firsts: watch::Receiver<Arc<Firsts>>,
    troubles: watch::Sender<Troubles>,
    health: watch::Receiver<Health>,
    jwks: Arc<jwks::Sources>,
    task: JoinHandle<()>,
    /// Keys that are in the source's objects.
    _reading: Option<AbortOnDropHandle<()>>,
}

/// What else there is at the start, besides a source.
#[derive(Debug, Default)]
pub struct Start {
    /// Where the state is kept.
    pub state: Option<StateFile>,
    /// Will say which is the node's zone, and maybe later once more. What the source says first waits for it.
    pub zone: Option<mpsc::Receiver<Option<Arc<str>>>>,
    /// Becomes true when the source has said something.
    pub reached: Option<watch::Sender<bool>>,
}

/// How things stand, for `/metrics`, `/readyz` and whoever asks.
#[derive(Clone, Debug)]
pub struct Status {
    /// Of the newest snapshot; 0 while there is none.
    pub generation: u64,
    /// When the source last knew that its picture is the cluster's.
    pub heard: Instant,
    /// The snapshot is of what was kept on the node: the source has said nothing yet.
    pub restored: bool,
    pub counts: Counts,
    /// What is wrong at the moment, in a stable order.
    pub problems: Vec<Problem>,
    /// What the agent cannot do at the API server besides reading the cluster. Nothing of what is known depends on it.
    pub troubles: Vec<Problem>,
    /// Enrolled namespaces that have never been read.
    pub unread: Vec<Unread>,
    /// How the source's watches fare, by resource.
    pub watches: BTreeMap<&'static str, Watches>,
    /// How the sources of keys fare that policies name.
    pub jwks: Vec<jwks::State>,
    /// Why the state file cannot be written at the moment.
    pub state_file_trouble: Option<Arc<str>>,
}

#[derive(Clone, Default)]
struct Report {
    generation: u64,
    /// When what was kept was last known to be the cluster's, for as long as it is all that is known.
    restored: Option<Instant>,
    counts: Counts,
    problems: Arc<[Problem]>,
    troubles: Arc<[Problem]>,
    state_file_trouble: Option<Arc<str>>,
}

impl Cluster {
    /// Starts to follow a source. Must be called within a Tokio runtime.
    pub fn start(feed: Feed, options: Options) -> Self {
        Self::start_with(feed, options, Start::default())
    }

    /// The same, beginning with what is kept on the node if the source says nothing for a moment.
    pub fn start_with(feed: Feed, options: Options, start: Start) -> Self {
        let empty = Arc::new(Snapshot::default());
        let current: Current = Arc::new(ArcSwap::new(empty.clone()));
        let (snapshots, snapshots_receiver) = watch::channel(empty);
        let (report, report_receiver) = watch::channel(Report::default());
        let (verdicts, verdicts_receiver) = watch::channel(Arc::default());
        let (gateway_verdicts, gateway_receiver) = watch::channel(Arc::default());
        let (gates, gates_receiver) = watch::channel(Arc::default());
        let (firsts, firsts_receiver) = watch::channel(Arc::default());
        let (troubles, troubles_receiver) = watch::channel(Troubles::default());
        let health = feed.health.clone();
        let jwks = options.jwks.clone();
        let held = feed.held.clone();
        let reading =
            held.map(|held| AbortOnDropHandle::new(tokio::spawn(jwks::objects::follow(held, jwks.clone()))));
        let follower = Follower {
            feed,
            keys: jwks.changes(),
            builder: Builder::new(options),
            current: current.clone(),
            snapshots,
            report,
            verdicts,
            gateway_verdicts,
            gates,
            firsts,
            troubles: troubles_receiver,
            retired: Vec::new(),
            restore: Restore::new(start.state.as_ref()),
            keeper: start.state.map(Keeper::new),
            waits_for_zone: start.zone.is_some(),
            zone: start.zone,
            reached: start.reached,
            first: None,
            restored: None,
            fresh: false,
        };
        let task = tokio::spawn(follower.run());
        Self {
            current,
            snapshots: snapshots_receiver,
            report: report_receiver,
            verdicts: verdicts_receiver,
            gateway_verdicts: gateway_receiver,
            gates: gates_receiver,
            firsts: firsts_receiver,
            troubles,
            health,
            jwks,
            task,
            _reading: reading,
        }
    }

    /// The newest snapshot, for the data path: `arc_swap::Cache` reads it without contention.
    pub fn current(&self) -> Current {
        self.current.clone()
    }

    /// The newest snapshot, for those who wait for the next one.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Waits until there is a snapshot: the source has told of everything once. `None` if it ended before that.
    pub async fn synced(&self) -> Option<Arc<Snapshot>> {
        let mut snapshots = self.snapshots.clone();
        let snapshot = snapshots.wait_for(|snapshot| snapshot.generation > 0).await;
        snapshot.ok().map(|snapshot| snapshot.clone())
    }

    /// Waits until the source has told of everything once; for ever if it has ended before that.
    pub async fn fresh(&self) {
        let mut report = self.report.clone();
        let is_fresh = |report: &Report| report.generation > 0 && report.restored.is_none();
        if report.wait_for(is_fresh).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What became of each TrafficPolicy and TrafficLane.
    pub fn verdicts(&self) -> watch::Receiver<Arc<Verdicts>> {
        self.verdicts.clone()
    }

    /// What is to be said of routes and meshes of Gateway API.
    pub fn gateway_verdicts(&self) -> watch::Receiver<Arc<GatewayVerdicts>> {
        self.gateway_verdicts.clone()
    }

    /// The pods of this node that are not Ready before they are warm.
    pub fn gates(&self) -> watch::Receiver<Arc<Gates>> {
        self.gates.clone()
    }

    /// The pods of this node whose first request is to be told.
    pub fn firsts(&self) -> watch::Receiver<Arc<Firsts>> {
        self.firsts.clone()
    }

    /// Where is said what cannot be done at the API server, so that it is told as other problems are.
    pub fn troubles(&self) -> watch::Sender<Troubles> {
        self.troubles.clone()
    }

    pub fn status(&self) -> Status {
        let Report { generation, restored, counts, problems, troubles, state_file_trouble } =
            self.report.borrow().clone();
        let Health { heard, unread, watches, .. } = self.health.borrow().clone();
        let (heard, restored) = (restored.unwrap_or(heard), restored.is_some());
        let (problems, jwks) = (problems.to_vec(), self.jwks.states(Nanos::now()));
        let troubles = troubles.to_vec();
        Status {
            generation,
            heard,
            restored,
            counts,
            problems,
            troubles,
            unread,
            watches,
            jwks,
            state_file_trouble,
        }
    }
}

impl Status {
    /// All that is wrong.
    pub fn all_problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().chain(&self.troubles)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows the source, and publishes.
struct Follower {
    feed: Feed,
    /// Tells that there is something else to be said of keys.
    keys: watch::Receiver<()>,
    builder: Builder,
    current: Current,
    snapshots: watch::Sender<Arc<Snapshot>>,
    report: watch::Sender<Report>,
    verdicts: watch::Sender<Arc<Verdicts>>,
    gateway_verdicts: watch::Sender<Arc<GatewayVerdicts>>,
    gates: watch::Sender<Arc<Gates>>,
    firsts: watch::Sender<Arc<Firsts>>,
    troubles: watch::Receiver<Troubles>,
    /// Snapshots that were replaced. Taking one of a large cluster apart takes milliseconds, which the last to hold
    /// it must not be a worker with requests to serve: so the last to hold it is here.
    retired: Vec<Arc<Snapshot>>,
    /// What was kept on the node, until the source says something.
    restore: Restore,
    /// Keeps what the source says.
    keeper: Option<Keeper>,
    /// Tells the node's zone, until it ends.
    zone: Option<mpsc::Receiver<Option<Arc<str>>>>,
    /// It has told nothing yet.
    waits_for_zone: bool,
    reached: Option<watch::Sender<bool>>,
    /// What the source has said first, until the zone is known.
    first: Option<Batch>,
    restored: Option<Instant>,
    /// The source's own words have been taken up.
    fresh: bool,
}

impl Follower {
    async fn run(mut self) {
        let mut forget = tokio::time::interval(FORGET);
        forget.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut not_before = Instant::now();
        let mut due: Option<Instant> = None;
        let mut ended = false;
        loop {
            tokio::select! {
                batch = self.feed.changes.recv(), if !ended && self.first.is_none() => {
                    if let Some(batch) = batch {
                        if let Some(reached) = self.reached.take() {
                            reached.send_replace(true);
                        }
                        if self.waits_for_zone {
                            self.first = Some(batch);
                            continue;
                        }
                        self.apply(batch);
                    } else {
                        tracing::error!("the source of the cluster's objects has ended; the last snapshot stays active");
                        if !self.builder.is_synced() {
                            return;
                        }
                        ended = true;
                    }
                    due.get_or_insert_with(|| not_before.max(Instant::now()));
                }
                zone = next(&mut self.zone) => {
                    // Who was to say it may have ended without a word: nobody knows it then.
                    if self.waits_for_zone || zone.is_some() {
                        self.builder.set_zone(zone.flatten());
                    }
                    self.waits_for_zone = false;
                    if let Some(batch) = self.first.take() {
                        self.apply(batch);
                    }
                    due.get_or_insert_with(|| not_before.max(Instant::now()));
                }
                restored = self.restore.next() => {
                    self.restore(restored);
                    due.get_or_insert_with(|| not_before.max(Instant::now()));
                }
                // What is not whole yet is not worth keeping.
                work = due_of(&mut self.keeper), if self.fresh && self.builder.is_synced() => {
                    self.keep(work);
                    if self.report.borrow().state_file_trouble.as_ref() != self.state_file_trouble() {
                        due.get_or_insert_with(|| not_before.max(Instant::now()));
                    }
                }
                Ok(()) = self.troubles.changed() => {
                    due.get_or_insert_with(|| not_before.max(Instant::now()));
                }
                Ok(()) = self.feed.health.changed() => {
                    due.get_or_insert_with(|| not_before.max(Instant::now()));
                }
                Ok(()) = self.keys.changed() => {
                    self.builder.keys_changed();
                    due.get_or_insert_with(|| not_before.max(Instant::now()));
                }
                () = sleep_until(due) => {
                    // All that has come in the meantime is of this round.
                    while self.first.is_none() && !self.waits_for_zone
                        && let Ok(batch) = self.feed.changes.try_recv()
                    {
                        self.apply(batch);
                    }
                    due = None;
                    let began = Instant::now();
                    self.publish(began);
                    let now = Instant::now();
                    not_before = now + PAUSE.max((now - began) * SHARE);
                }
                _ = forget.tick() => {
                    intern::forget();
                    if self.builder.forget(Instant::now()) {
                        due.get_or_insert_with(|| not_before.max(Instant::now()));
                    }
                    self.take_apart();
                }
            }
        }
    }

    fn apply(&mut self, batch: Batch) {
        self.restore = Restore::Done;
        self.restored = None;
        self.fresh = true;
        if let Some(keeper) = &mut self.keeper {
            keeper.changed();
        }
        for change in batch {
            self.builder.apply(change);
        }
    }

    /// Begins with what was kept.
    fn restore(&mut self, restored: Restored) {
        let Restored { age, zone, objects, batch } = restored;
        tracing::warn!(
            age_seconds = age.as_secs(),
            objects,
            "the API server has not answered yet: the agent runs on the state file until it does"
        );
        if self.waits_for_zone {
            self.builder.set_zone(zone);
        }
        for change in batch {
            self.builder.apply(change);
        }
        let now = Instant::now();
        self.restored = Some(now.checked_sub(age).unwrap_or(now));
    }

    fn keep(&mut self, due: Due) {
        let heard = self.feed.health.borrow().heard;
        let Some(keeper) = &mut self.keeper else { return };
        match due {
            Due::Write => keeper.write(self.builder.objects(), self.builder.zone().cloned(), heard),
            Due::Confirm => keeper.confirm(heard),
        }
    }

    fn state_file_trouble(&self) -> Option<&Arc<str>> {
        self.keeper.as_ref().and_then(Keeper::trouble)
    }

    fn publish(&mut self, now: Instant) {
        if let Some(snapshot) = self.builder.build(now) {
            let snapshot = Arc::new(snapshot);
            tracing::debug!(
                generation = snapshot.generation,
                destinations = snapshot.destinations.len(),
                pods = snapshot.pods.len(),
                "the cluster has changed"
            );
            self.retired.push(self.current.swap(snapshot.clone()));
            self.snapshots.send_replace(snapshot);
        }
        self.take_apart();
        // After the snapshot in which they are true.
        publish(&self.verdicts, self.builder.verdicts());
        publish(&self.gateway_verdicts, self.builder.gateway_verdicts());
        publish(&self.gates, self.builder.gates());
        publish(&self.firsts, self.builder.firsts());
        let mut problems = self.feed.health.borrow_and_update().problems.clone();
        let troubles: Arc<[Problem]> = self.troubles.borrow_and_update().values().cloned().collect();
        if self.builder.is_synced() {
            problems.extend(self.builder.problems(now));
        }
        problems.sort();
        let before = self.report.borrow().problems.clone();
        tell_differences(&before, &problems);
        tell_differences(&self.report.borrow().troubles, &troubles);
        self.report.send_replace(Report {
            generation: self.current.load().generation,
            restored: self.restored,
            counts: self.builder.counts(),
            problems: problems.into(),
            troubles,
            state_file_trouble: self.state_file_trouble().cloned(),
        });
    }

    /// Drops the snapshots that nobody else holds any more.
    fn take_apart(&mut self) {
        self.retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }
}

/// Sends what is not the same as before.
fn publish<T>(to: &watch::Sender<Arc<T>>, now: &Arc<T>) {
    to.send_if_modified(|before| {
        let news = !Arc::ptr_eq(before, now);
        if news {
            *before = now.clone();
        }
        news
    });
}

/// Says once that something is wrong, and once that it no longer is.
fn tell_differences(before: &[Problem], now: &[Problem]) {
    let all = |problems: &[Problem]| problems.iter().map(Problem::identity).collect::<BTreeSet<_>>();
    let (known, present) = (all(before), all(now));
    for problem in now.iter().filter(|problem| !known.contains(&problem.identity())) {
        tracing::warn!("{}", problem.told());
    }
    for problem in before.iter().filter(|problem| !present.contains(&problem.identity())) {
        tracing::info!("no longer: {problem}");
    }
}

/// What the receiver is told next. `None`, once, when that is all; for ever after that.
async fn next(zone: &mut Option<mpsc::Receiver<Option<Arc<str>>>>) -> Option<Option<Arc<str>>> {
    let Some(receiver) = zone else { return std::future::pending().await };
    let told = receiver.recv().await;
    if told.is_none() {
        *zone = None;
    }
    told
}

async fn due_of(keeper: &mut Option<Keeper>) -> Due {
    match keeper {
        Some(keeper) => keeper.due().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
