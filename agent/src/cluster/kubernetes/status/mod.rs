//! Writes what became of each TrafficPolicy and TrafficLane, and of routes of [`mod@gateway`] API, into its status.
//!
//! Every agent comes to the same verdicts, and one of them writes: the holder of a [`lease`]. Nobody asks for it before
//! there is something to write, so that a large cluster at rest costs the API server nothing. When there is, the last
//! holder writes at once, and what the others have to say is said before they lose patience; if it is not (the holder is
//! gone), the first of them to lose it takes over.
//!
//! Where a policy or a lane is not wholly active, an [event](events) says so, too.
//!
//! What an object says already is not written again ([`plan`]), and what was written and has been overwritten by
//! somebody else is written again only after ever longer waits: the agents never fight. Nothing depends on statuses: where
//! writing them is forbidden, that is a problem for as long as there is something to write, and policies are active all the same.

mod events;
mod gateway;
mod lease;
pub(super) mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use self::{events::Bucket, lease::Lease};
use super::{client::chain, troubles, watch::resource};
use crate::{
    api,
    cluster::{
        cause::Grant,
        object::{Key, Kind},
        problem::Troubles,
        strip::Loose,
        verdict::{GatewayVerdicts, Judged, OfGateway, Verdict, Verdicts, Word},
    },
};

/// Who owns the fields, for the API server.
pub(super) const MANAGER: &str = "sluice";

/// How fast statuses are written, and how long is waited for whom.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long the right to write lasts without being renewed.
    pub lease: Duration,
    /// For so long at least, and at most twice that, an agent that did not write last lets others go first.
    pub patience: Duration,
    /// What changes together is written together.
    pub settle: Duration,
    /// Between two writes.
    pub spacing: Duration,
    /// Before something is written a second time; doubles with each time.
    pub again: Duration,
    /// After it was refused, which somebody has to see to; up to half as long again.
    pub refused: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            // The last holder has written by then, and an apply is answered within two seconds where there is none.
            patience: Duration::from_millis(750),
            settle: Duration::from_millis(200),
            spacing: Duration::from_millis(50),
            again: Duration::from_secs(10),
            refused: Duration::from_secs(60),
        }
    }
}

impl Pace {
    /// How long to wait after a refusal: not all agents ask again at the same moment.
    pub(super) fn after_refusal(&self) -> Duration {
        self.refused.mul_f64(1.0 + fastrand::f64() / 2.0)
    }
}

/// The longest wait before another attempt.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);
/// A request that takes longer is given up.
pub(super) const ANSWER: Duration = Duration::from_secs(3);

/// Writes until it is dropped.
#[derive(Debug)]
pub struct StatusWriter {
    task: JoinHandle<()>,
}

impl StatusWriter {
    /// Starts to write what `verdicts` and `of_gateway` say, as the agent called `identity`, which no other is called. The lease is in the
    /// client's own namespace. What stands in the way goes to `troubles`. Must be called within a Tokio runtime.
    pub fn start(
        client: Client,
        verdicts: watch::Receiver<Arc<Verdicts>>,
        of_gateway: watch::Receiver<Arc<GatewayVerdicts>>,
        identity: String,
        troubles: watch::Sender<Troubles>,
        pace: Pace,
    ) -> Self {
        let lease = Lease::new(client.clone(), identity.clone(), pace.lease);
        let writer = Writer {
            client,
            verdicts,
            of_gateway,
            lease,
            pace,
            attempts: BTreeMap::new(),
            last: None,
            held_off: BTreeMap::new(),
            troubles,
            patient: None,
            identity,
            events: Bucket::new(Instant::now()),
            no_events_before: None,
            unreported: None,
        };
        Self { task: tokio::spawn(writer.run()) }
    }
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Writer {
    client: Client,
    verdicts: watch::Receiver<Arc<Verdicts>>,
    of_gateway: watch::Receiver<Arc<GatewayVerdicts>>,
    lease: Lease,
    pace: Pace,
    attempts: BTreeMap<Key, Attempt>,
    /// What was written last: the next in order has its turn, so that nothing waits for ever behind what changes faster than it can
    /// be written.
    last: Option<Key>,
    /// Kinds whose statuses cannot be written at the moment, and when to try again.
    held_off: BTreeMap<Kind, Instant>,
    /// Where is said what cannot be written: by resource.
    troubles: watch::Sender<Troubles>,
    /// Until when others are left to write what there is to write.
    patient: Option<Instant>,
    /// What this agent is called.
    identity: String,
    /// How many events may be created.
    events: Bucket,
    /// None is tried before: they cannot be created.
    no_events_before: Option<Instant>,
    /// The last object that could not be reported.
    unreported: Option<Key>,
}

/// The last time that something was written, or was to be.
struct Attempt {
    said: Said,
    /// The same is not written before.
    not_before: Instant,
    wait: Duration,
}

/// Something to be written.
struct Due {
    key: Key,
    saying: Saying,
}

enum Saying {
    Own(Judged),
    Gateway(OfGateway),
}

/// What was to be said, of which generation and object.
type Said = (Text, Option<i64>, Option<Arc<str>>);

#[derive(PartialEq)]
enum Text {
    Own(Arc<Verdict>),
    Gateway(Word),
}

impl Saying {
    fn said(&self) -> Said {
        match self {
            Self::Own(judged) => (Text::Own(judged.verdict.clone()), judged.generation, judged.uid.clone()),
            Self::Gateway(object) => {
                (Text::Gateway(object.word.clone()), object.generation, object.uid.clone())
            }
        }
    }

    async fn write(&self, client: &Client, key: &Key) -> Result<(), kube::Error> {
        match self {
            Self::Own(judged) => patch(client, key, &plan::patch(key, judged, &plan::now())).await,
            Self::Gateway(object) => gateway::write(client, key, object).await,
        }
    }
}

impl Writer {
    async fn run(mut self) {
        // Until nobody comes to verdicts any more.
        while self.verdicts.has_changed().is_ok() {
            let (due, next) = self.due();
            let Some(due) = due else {
                self.patient = None;
                let next = next.into_iter().chain(self.report_again().await).min();
                let changed = tokio::select! {
                    changed = self.verdicts.changed() => changed,
                    changed = self.of_gateway.changed() => changed,
                    () = sleep_until(next) => Ok(()),
                };
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(self.pace.settle).await;
                continue;
            };
            if !self.lease.is_held() && !self.take_lease().await {
                continue;
            }
            self.write(due).await;
            tokio::time::sleep(self.pace.spacing).await;
        }
    }

    /// What is to be written first; else when there may be something though nothing changes.
    fn due(&mut self) -> (Option<Due>, Option<Instant>) {
        let verdicts = self.verdicts.borrow_and_update().clone();
        let of_gateway = self.of_gateway.borrow_and_update().clone();
        self.attempts.retain(|key, _| verdicts.contains_key(key) || of_gateway.contains_key(key));
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut due: Option<Due> = None;
        let own = verdicts.iter().filter(|(_, judged)| !plan::says_so(judged));
        let own = own.map(|(key, judged)| (key, Saying::Own(judged.clone())));
        let of_gateway = of_gateway.iter().filter(|(_, object)| !gateway::says_so(object));
        let of_gateway = of_gateway.map(|(key, object)| (key, Saying::Gateway(object.clone())));
        let mut unsaid = BTreeSet::new();
        for (key, saying) in own.chain(of_gateway) {
            unsaid.insert(key.kind);
            let attempt = self.attempts.get(key).filter(|attempt| attempt.said == saying.said());
            let held_off = self.held_off.get(&key.kind).copied();
            let not_before = attempt.map(|attempt| attempt.not_before).max(held_off);
            match not_before.filter(|not_before| *not_before > now) {
                Some(not_before) => next = Some(next.map_or(not_before, |other| other.min(not_before))),
                None if due.as_ref().is_none_or(|due| is_sooner(key, &due.key, self.last.as_ref())) => {
                    due = Some(Due { key: key.clone(), saying });
                }
                None => {}
            }
        }
        self.settle(&unsaid);
        (due, next)
    }

    /// Where there is nothing to say, nothing stands in the way of it: another agent has said it, or its object is gone.
    fn settle(&mut self, unsaid: &BTreeSet<Kind>) {
        let settled: Vec<_> = self.held_off.keys().filter(|kind| !unsaid.contains(kind)).copied().collect();
        for kind in settled {
            self.held_off.remove(&kind);
            self.no_longer(status_of(kind));
        }
        if unsaid.is_empty() {
            self.no_longer(lease::RESOURCE);
        }
    }

    /// Waits for the right to write. Tells whether it has come; if not, it is to be seen what there is still to write.
    async fn take_lease(&mut self) -> bool {
        let now = Instant::now();
        if !self.lease.was_ours() {
            let patience = self.pace.patience;
            let until = *self.patient.get_or_insert_with(|| now + patience.mul_f64(1.0 + fastrand::f64()));
            if now < until {
                // What others write comes as a change.
                tokio::select! {
                    _ = self.verdicts.changed() => {}
                    _ = self.of_gateway.changed() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
                return false;
            }
        }
        match timeout(ANSWER, self.lease.acquire()).await {
            Ok(Ok(true)) => {
                self.no_longer(lease::RESOURCE);
                true
            }
            Ok(Ok(false)) => {
                self.patient = self.lease.free_at();
                false
            }
            Ok(Err((verb, error))) => {
                let effect = "this agent writes no status of policies, lanes and routes, which are active all the same";
                let wait = self.complain(Grant::own(verb, lease::RESOURCE), effect, &error);
                tokio::time::sleep(wait).await;
                false
            }
            Err(_) => {
                tokio::time::sleep(self.pace.again).await;
                false
            }
        }
    }

    async fn write(&mut self, Due { key, saying }: Due) {
        self.last = Some(key.clone());
        let said = saying.said();
        let mut wait = match self.attempts.get(&key).filter(|attempt| attempt.said == said) {
            Some(attempt) => (attempt.wait * 2).min(LONGEST_WAIT),
            None => self.pace.again,
        };
        match timeout(ANSWER, saying.write(&self.client, &key)).await {
            Ok(Ok(())) => {
                self.held_off.remove(&key.kind);
                self.no_longer(status_of(key.kind));
                tracing::debug!(object = %key, "its status has been written");
                if let Saying::Own(judged) = &saying {
                    self.report(&key, judged).await;
                }
            }
            // It is gone, or another by now: the watch will tell.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            // This object's own trouble.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 413 | 422) => {
                tracing::warn!("cannot write the status of {key} ({}: {})", status.code, status.message);
            }
            Ok(Err(error)) => {
                let effect = "the status of these objects stays as it is, and they are active all the same";
                let held_off = self.complain(Grant::new("patch", status_of(key.kind), ""), effect, &error);
                self.held_off.insert(key.kind, Instant::now() + held_off);
                // That is not this object's fault: it is not to wait longer than its kind.
                wait = self.pace.again;
            }
            Err(_) => {
                self.held_off.insert(key.kind, Instant::now() + self.pace.again);
                wait = self.pace.again;
            }
        }
        self.attempts.insert(key, Attempt { said, not_before: Instant::now() + wait, wait });
    }

    /// Says that something cannot be done, and what follows. Gives how long not to try it.
    fn complain(&self, grant: Grant, effect: &str, error: &kube::Error) -> Duration {
        let (verb, resource) = (grant.verb, grant.resource);
        let kube::Error::Api(status) = error else {
            // Who does not reach the API server is told so by its watches.
            tracing::debug!(verb, resource, error = chain(error), "a status is not written yet");
            return self.pace.again;
        };
        if troubles::is_passing(status.code) {
            tracing::debug!(
                verb,
                resource,
                code = status.code,
                status.message,
                "a status is not written yet"
            );
            return self.pace.again;
        }
        let what = format!("cannot {verb} {resource}");
        troubles::tell(&self.troubles, resource, troubles::refused(&what, grant, status, effect));
        if troubles::is_lasting(status.code) { self.pace.after_refusal() } else { self.pace.again }
    }

    fn no_longer(&self, resource: &'static str) {
        troubles::no_longer(&self.troubles, resource);
    }
}

impl Writer {
    /// Creates an event about an object that is not wholly active.
    async fn report(&mut self, key: &Key, judged: &Judged) {
        let now = Instant::now();
        let Some(event) = events::of(key, judged, &self.identity) else { return };
        if self.no_events_before.is_some_and(|before| now < before) || !self.events.take(now) {
            return;
        }
        let wait = match timeout(ANSWER, events::create(&self.client, &event)).await {
            Ok(Ok(())) => {
                (self.no_events_before, self.unreported) = (None, None);
                self.no_longer(events::RESOURCE);
                return;
            }
            Ok(Err(error)) => {
                let effect = "policies that are not active are reported in their status only";
                self.complain(Grant::new("create", events::RESOURCE, ""), effect, &error)
            }
            Err(_) => self.pace.again,
        };
        (self.no_events_before, self.unreported) = (Some(now + wait), Some(key.clone()));
    }

    /// Creates the event that could not be created, if there is still something to report, so that it is seen when it can be. Gives when to
    /// try again.
    async fn report_again(&mut self) -> Option<Instant> {
        let key = self.unreported.clone()?;
        let judged = self.verdicts.borrow().get(&key).cloned();
        let Some(judged) = judged.filter(|judged| !judged.verdict.programmed.holds) else {
            self.unreported = None;
            self.no_longer(events::RESOURCE);
            return None;
        };
        self.report(&key, &judged).await;
        // The last of those that there may be: another one is on its way.
        let later = self.no_events_before.max(Some(Instant::now() + self.pace.again));
        self.unreported.as_ref().and(later)
    }
}

/// Whether the turn of `one` comes before that of `other`, after `last` had its own: in their order, and round again.
fn is_sooner<K: Ord>(one: &K, other: &K, last: Option<&K>) -> bool {
    let turn = |key| (last.is_some_and(|last| key <= last), key);
    turn(one) < turn(other)
}

/// As RBAC names it.
fn status_of(kind: Kind) -> &'static str {
    match kind {
        Kind::TrafficPolicy => "trafficpolicies.sluice.dev/status",
        Kind::TrafficLane => "trafficlanes.sluice.dev/status",
        Kind::AccessPolicy => "accesspolicies.sluice.dev/status",
        Kind::HttpRoute => "httproutes.gateway.networking.k8s.io/status",
        Kind::GrpcRoute => "grpcroutes.gateway.networking.k8s.io/status",
        Kind::Mesh => "xmeshes.gateway.networking.x-k8s.io/status",
        // Of others nothing is said.
        other => resource(other),
    }
}

async fn patch(client: &Client, key: &Key, body: &Value) -> Result<(), kube::Error> {
    // Nobody else writes these conditions.
    let params = PatchParams::apply(MANAGER).force();
    let (namespace, name, body) = (&key.name.namespace, &key.name.name, Patch::Apply(body));
    match key.kind {
        Kind::TrafficPolicy => {
            let api: Api<Loose<api::TrafficPolicy>> = Api::namespaced(client.clone(), namespace);
            api.patch_status(name, &params, &body).await.map(drop)
        }
        Kind::TrafficLane => {
            let api: Api<Loose<api::TrafficLane>> = Api::namespaced(client.clone(), namespace);
            api.patch_status(name, &params, &body).await.map(drop)
        }
        Kind::AccessPolicy => {
            let api: Api<Loose<api::AccessPolicy>> = Api::namespaced(client.clone(), namespace);
            api.patch_status(name, &params, &body).await.map(drop)
        }
        _ => Ok(()),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_their_turn_however_often_one_changes() {
        let sooner = |last: Option<u32>, due: &[u32]| {
            let first = |one, other| if is_sooner(&other, &one, last.as_ref()) { other } else { one };
            due.iter().copied().reduce(first)
        };
        assert_eq!(sooner(None, &[3, 1, 2]), Some(1));
        let mut last = None;
        // All change faster than they are written.
        let written = [0; 6].map(|_| {
            last = sooner(last, &[1, 2, 3]);
            last.unwrap_or_default()
        });
        assert_eq!(written, [1, 2, 3, 1, 2, 3]);
        assert_eq!(sooner(Some(2), &[1, 2]), Some(1), "round again");
    }
}
