//! The life of an enrolment: which pod is to be captured, and what has to happen for that.
//!
//! Two things decide, and come in any order: what the cluster wants (the snapshot says that this pod is captured) and
//! what is there (the pod's control group, and the network namespace of a process in it).
//!
//! ```text
//!              group seen, wanted, namespace seen
//!   absent ------------------------------------------> enrolled
//!     ^        (not yet: looked for again)               |  |
//!     |  group gone, or not wanted any more              |  | another namespace, nobody left in the old one:
//!     +--------------------------------------------------+  | the old enrolment ends, a new one begins
//!                                                           +--> enrolled
//! ```
//!
//! Level-triggered: every notice leads to the same comparison of what is with what should be, so notices may come
//! twice or late. Decisions only; what is done to the world stands behind [`World`].

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{EnrolError, sight::Sighting, threads::Followed};
use crate::cluster::model::{Snapshot, Workload};

/// How soon a pod is looked at again whose processes are still on their way into its namespace; doubled each time.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_millis(100);
/// How soon an enrolment that failed is tried again; doubled each time.
const TRY_AGAIN: Duration = Duration::from_millis(50);
const TRY_AGAIN_AT_MOST: Duration = Duration::from_secs(5);

/// The attempt whose failure is told, counted from 0.
const COMPLAIN_AT: u32 = 2;

/// What enrolling does to the world.
pub(crate) trait World {
    type Netns;
    type Enrolment;

    /// Looks for the pod's network namespace.
    fn look(&mut self, group: &Path, current: Option<&Self::Enrolment>) -> Sighting<Self::Netns>;
    /// Listeners, then the proxy, then the redirection.
    fn enrol(&mut self, workload: &Arc<Workload>, netns: Self::Netns) -> Result<Self::Enrolment, EnrolError>;
    /// The workload has changed, and stays enrolled.
    fn update(&mut self, enrolment: &mut Self::Enrolment, workload: &Arc<Workload>)
    -> Result<(), EnrolError>;
    /// The redirection, then the listeners. Connections that exist go on. Done already as far as it succeeded, when it
    /// fails and is tried again.
    fn withdraw(&mut self, enrolment: &mut Self::Enrolment) -> Result<(), EnrolError>;
    /// Looks which of the connections are still open that are older than the enrolment, or than what is asked for at the pod.
    fn look_at_older(&mut self, _: &mut Self::Enrolment, _: Older<'_>) {}
    /// Ends what the looks have found that may be ended.
    fn reclaim(&mut self) {}
    /// Where they go.
    fn older(_: &Self::Enrolment) -> Arc<[SocketAddr]> {
        Arc::default()
    }
    /// Steers what the snapshot asks for of the pod's connections from outside, and nothing else.
    fn steer(&mut self, _: &mut Self::Enrolment, _: &Arc<Workload>, _group: Option<&Path>, _: &Snapshot) {}
    /// Looks which of the steered ports are listened on.
    fn look_at_listeners(&mut self, _: &mut Self::Enrolment) {}
    /// Removes what is left of pods for which nobody wants it any more. `wanted`: a pod that is to be enrolled, by its uid.
    fn sweep(&mut self, _: &Snapshot, _wanted: impl Fn(&str) -> Option<Arc<Workload>>) {}
    /// What is steered of a pod.
    fn steered(_: &Self::Enrolment) -> Steered {
        Steered::default()
    }
}

/// What is steered of a pod's connections from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steered {
    /// The addresses and ports of it that clients dial.
    pub addresses: Arc<[SocketAddr]>,
    /// Why these are not all that are asked for. It is tried again.
    pub trouble: Option<String>,
    /// Those that refuse connections while no agent is there.
    pub closed: Arc<[SocketAddr]>,
    /// Why these are not all that are to. It is tried again.
    pub unclosed: Option<String>,
    /// Which of the addresses have connections that are older than what is asked for there; one entry a connection.
    pub older: Arc<[SocketAddr]>,
    /// Its servers whose threads are followed.
    pub followed: Arc<[Followed]>,
}

/// A look at the connections of a pod that are older than its enrolment.
#[derive(Clone, Copy)]
pub(crate) struct Older<'a> {
    pub(crate) workload: &'a Workload,
    pub(crate) group: Option<&'a Path>,
    pub(crate) snapshot: &'a Snapshot,
    /// At all of them; else at those only that may be ended.
    pub(crate) all: bool,
}

/// Why a pod that is to be captured is not enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    NoProcess,
    OnlyHost,
    Invisible,
    Failed(String),
}

impl Pending {
    fn message(&self) -> String {
        match self {
            Self::NoProcess => "it has no process".to_owned(),
            Self::OnlyHost => "its processes are in the node's network namespace".to_owned(),
            Self::Invisible => {
                "its processes are hidden from the agent (the agent's pod needs hostPID: true)".to_owned()
            }
            Self::Failed(error) => error.clone(),
        }
    }
}

/// A pod whose control group exists.
struct Tracked<E> {
    group: Option<PathBuf>,
    wanted: Option<Arc<Workload>>,
    enrolment: Option<(E, Arc<Workload>)>,
    pending: Option<Pending>,
    /// Since when it has been so although it has processes.
    pending_since: Option<Instant>,
    retry: Option<Retry>,
    /// It would be captured if it had no proxy of its own.
    left_alone: Option<Arc<Workload>>,
}

#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    attempts: u32,
}

/// A pod in the status, with the reason if it is not enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    pub workload: Arc<Workload>,
    /// Why it is not enrolled although it is to be captured. `None`: it is enrolled.
    pub pending: Option<String>,
    /// Since when it has processes and is not enrolled.
    pub pending_since: Option<Instant>,
    /// It is not enrolled because it has no process: nobody connects, so nothing is missed.
    pub empty: bool,
    /// It is left alone, because this mesh's proxy takes its connections already.
    pub own_proxy: Option<&'static str>,
    /// Where its connections to managed services go that are older than its enrolment, and still open.
    pub older: Arc<[SocketAddr]>,
    /// Which of its connections from outside are steered to the agent.
    pub steered: Steered,
}

impl PodStatus {
    pub(crate) fn enrolled(workload: Arc<Workload>) -> Self {
        Self {
            workload,
            pending: None,
            pending_since: None,
            empty: false,
            own_proxy: None,
            older: Arc::default(),
            steered: Steered::default(),
        }
    }
}

/// All pods that are there, and the snapshot that says what is wanted.
pub(crate) struct Enroller<W: World> {
    // Before the pods: it is dropped first, and with it the redirection.
    world: W,
    pods: HashMap<Arc<str>, Tracked<W::Enrolment>>,
    snapshot: Arc<Snapshot>,
    /// The snapshot has pods of this node only, besides those that have no node yet.
    node_is_known: bool,
    /// Pods of this node that are to be captured and whose groups were never seen, and since when.
    groupless: HashMap<Arc<str>, (Arc<Workload>, Instant)>,
}

impl<W: World> Enroller<W> {
    pub(crate) fn new(world: W, node_is_known: bool) -> Self {
        let (pods, groupless) = (HashMap::new(), HashMap::new());
        Self { world, pods, snapshot: Arc::default(), node_is_known, groupless }
    }

    /// Looks which connections are still open that are older than their pod's enrolment, `all` of them or those that may be
    /// ended, and ends what is idle of these.
    pub(crate) fn look_at_older(&mut self, all: bool) {
        for pod in self.pods.values_mut() {
            let Some((enrolment, workload)) = &mut pod.enrolment else { continue };
            let look = Older { workload, group: pod.group.as_deref(), snapshot: &self.snapshot, all };
            self.world.look_at_older(enrolment, look);
        }
        self.world.reclaim();
    }

    /// Whether a pod wants its threads to be followed.
    pub(crate) fn asks_for_threads(&self) -> bool {
        let asks = |pod: &Tracked<W::Enrolment>| {
            pod.enrolment.as_ref().is_some_and(|(_, workload)| workload.follows_threads())
        };
        self.pods.values().any(asks)
    }

    /// Steers what the snapshot asks for of all pods' connections from outside. What stays as it is costs a comparison.
    pub(crate) fn steer(&mut self) {
        for pod in self.pods.values_mut() {
            let Some((enrolment, workload)) = &mut pod.enrolment else { continue };
            self.world.steer(enrolment, workload, pod.group.as_deref(), &self.snapshot);
        }
    }

    /// Looks which of the steered ports are listened on.
    pub(crate) fn look_at_listeners(&mut self) {
        for (enrolment, _) in self.pods.values_mut().filter_map(|pod| pod.enrolment.as_mut()) {
            self.world.look_at_listeners(enrolment);
        }
    }

    /// Removes what earlier agents have left behind, and nobody wants any more.
    pub(crate) fn sweep(&mut self) {
        let snapshot = &self.snapshot;
        self.world.sweep(snapshot, |uid| wanted(snapshot, uid).0);
    }

    /// All pods whose groups are there.
    pub(crate) fn uids(&self) -> Vec<Arc<str>> {
        self.pods.keys().cloned().collect()
    }

    pub(crate) fn world(&mut self) -> &mut W {
        &mut self.world
    }

    /// A pod's control group came, changed or (`None`) went.
    pub(crate) fn group_changed(&mut self, uid: &Arc<str>, group: Option<&Path>, now: Instant) {
        self.groupless.remove(uid);
        let (wanted, left_alone) = wanted(&self.snapshot, uid);
        let pod = self.pods.entry(uid.clone()).or_insert_with(|| Tracked {
            group: None,
            wanted: None,
            enrolment: None,
            pending: None,
            pending_since: None,
            retry: None,
            left_alone: None,
        });
        pod.group = group.map(Path::to_owned);
        pod.wanted = wanted;
        pod.leave_alone(left_alone);
        // News of the pod: no reason to go on waiting as long as the last failure asked for.
        pod.retry = None;
        self.reconcile(uid, now);
    }

    /// The cluster changed.
    pub(crate) fn snapshot_changed(&mut self, snapshot: Arc<Snapshot>, now: Instant) {
        self.snapshot = snapshot;
        let mut affected = Vec::new();
        for (uid, pod) in &mut self.pods {
            let (wanted, left_alone) = wanted(&self.snapshot, uid);
            pod.leave_alone(left_alone);
            if pod.wanted != wanted {
                pod.wanted = wanted;
                affected.push(uid.clone());
            }
        }
        for uid in affected {
            self.reconcile(&uid, now);
        }
        self.look_for_groups(now);
    }

    /// Finds the pods that should have a group here, and have none. One that is on its way out may have lost it already, and one
    /// without an address has not begun.
    fn look_for_groups(&mut self, now: Instant) {
        if !self.node_is_known {
            return;
        }
        let mut before = std::mem::take(&mut self.groupless);
        for (uid, workload) in self.snapshot.pods.iter() {
            let is_here = workload.node.is_some() && !workload.terminating && !workload.ips.is_empty();
            if is_here && !self.pods.contains_key(uid) && wanted(&self.snapshot, uid).0.is_some() {
                let since = before.remove(uid).map_or(now, |(_, since)| since);
                self.groupless.insert(uid.clone(), (workload.clone(), since));
            }
        }
    }

    /// When [`Self::time_passed`] has something to do.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.pods.values().filter_map(|pod| pod.retry).map(|retry| retry.at).min()
    }

    pub(crate) fn time_passed(&mut self, now: Instant) {
        let due: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.retry.is_some_and(|retry| retry.at <= now))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            self.reconcile(&uid, now);
        }
    }

    /// Ends all enrolments.
    pub(crate) fn withdraw_all(&mut self) {
        for (_, mut pod) in self.pods.drain() {
            if let Some((mut enrolment, workload)) = pod.enrolment.take()
                && let Err(error) = self.world.withdraw(&mut enrolment)
            {
                tracing::error!(namespace = %workload.namespace, pod = %workload.name, %error, "cannot withdraw a pod");
            }
        }
    }

    /// The pods that are enrolled, or would be.
    pub(crate) fn status(&self) -> Vec<PodStatus> {
        let status = |pod: &Tracked<W::Enrolment>| match (&pod.enrolment, &pod.wanted, &pod.pending) {
            (Some((enrolment, workload)), ..) => {
                let (older, steered) = (W::older(enrolment), W::steered(enrolment));
                Some(PodStatus { older, steered, ..PodStatus::enrolled(workload.clone()) })
            }
            (None, Some(workload), Some(pending)) => Some(PodStatus {
                pending: Some(pending.message()),
                pending_since: pod.pending_since,
                empty: *pending == Pending::NoProcess,
                ..PodStatus::enrolled(workload.clone())
            }),
            _ => pod.left_alone.as_ref().map(|workload| PodStatus {
                own_proxy: workload.own_proxy,
                ..PodStatus::enrolled(workload.clone())
            }),
        };
        let groupless = self.groupless.values().map(|(workload, since)| PodStatus {
            pending: Some("its cgroup is not among those of this node's pods".to_owned()),
            pending_since: Some(*since),
            ..PodStatus::enrolled(workload.clone())
        });
        self.pods.values().filter_map(status).chain(groupless).collect()
    }

    /// Compares what is with what should be, and does the difference.
    fn reconcile(&mut self, uid: &Arc<str>, now: Instant) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let outcome = match (pod.wanted.clone(), pod.group.clone()) {
            (Some(workload), Some(group)) => bring_in(&mut self.world, pod, &workload, &group),
            (wanted, _) => {
                let why = if wanted.is_some() { "it ended" } else { "it is no longer to be enrolled" };
                take_out(&mut self.world, pod, why).map(|()| None)
            }
        };

        let attempts = pod.retry.take().map_or(0, |retry| retry.attempts);
        let (pending, delay) = match outcome {
            Ok(None) => (None, None),
            Ok(Some(Pending::OnlyHost)) => {
                (Some(Pending::OnlyHost), Some(backoff(LOOK_AGAIN, LOOK_AGAIN_AT_MOST, attempts)))
            }
            // Its control group tells when that changes.
            Ok(Some(pending)) => (Some(pending), None),
            Err(error) => (
                Some(Pending::Failed(error.to_string())),
                Some(backoff(TRY_AGAIN, TRY_AGAIN_AT_MOST, attempts)),
            ),
        };
        let worth_telling = match &pending {
            // A sandbox that is being set up may fail once or twice.
            Some(Pending::Failed(_)) => attempts == COMPLAIN_AT,
            Some(Pending::Invisible) => pending != pod.pending,
            _ => false,
        };
        if let Some(pending) = pending.as_ref().filter(|_| worth_telling) {
            complain(uid, pod, pending);
        }
        pod.pending_since = match &pending {
            None | Some(Pending::NoProcess) => None,
            Some(_) => Some(pod.pending_since.unwrap_or(now)),
        };
        pod.pending = pending;
        pod.retry = delay.map(|delay| Retry { at: now + delay, attempts: attempts.saturating_add(1) });
        if pod.group.is_none() && pod.enrolment.is_none() && pod.retry.is_none() {
            self.pods.remove(uid);
        }
    }
}

impl<E> Tracked<E> {
    fn leave_alone(&mut self, workload: Option<Arc<Workload>>) {
        if let (None, Some(workload)) = (&self.left_alone, &workload) {
            tracing::info!(
                namespace = %workload.namespace, pod = %workload.name,
                "pod not enrolled: {} redirects its connections already", workload.own_proxy.unwrap_or_default()
            );
        }
        self.left_alone = workload;
    }
}

fn complain<E>(uid: &str, pod: &Tracked<E>, pending: &Pending) {
    let workload = pod.wanted.as_ref().or(pod.enrolment.as_ref().map(|(_, workload)| workload));
    let (namespace, name) = workload.map_or(("", uid), |workload| (&*workload.namespace, &*workload.name));
    let why = pending.message();
    if pod.enrolment.is_none() {
        tracing::warn!(
            namespace,
            pod = name,
            "cannot enrol a pod: {why}; its connections go direct, trying again"
        );
    } else {
        tracing::warn!(namespace, pod = name, "cannot update or withdraw a pod: {why}; trying again");
    }
}

/// The workload of a pod that is to be captured, or else of one that is only not because of its own proxy.
fn wanted(snapshot: &Snapshot, uid: &str) -> (Option<Arc<Workload>>, Option<Arc<Workload>>) {
    let workload = snapshot.pods.get(uid);
    match workload.filter(|workload| workload.capture && !workload.host_network && !workload.finished) {
        Some(workload) if workload.own_proxy.is_some() => (None, Some(workload.clone())),
        workload => (workload.cloned(), None),
    }
}

fn bring_in<W: World>(
    world: &mut W,
    pod: &mut Tracked<W::Enrolment>,
    workload: &Arc<Workload>,
    group: &Path,
) -> Result<Option<Pending>, EnrolError> {
    let netns = match world.look(group, pod.enrolment.as_ref().map(|(enrolment, _)| enrolment)) {
        Sighting::Netns(netns) => netns,
        seen => {
            if let Some((enrolment, known)) = &mut pod.enrolment {
                if known != workload {
                    world.update(enrolment, workload)?;
                    *known = workload.clone();
                }
                // Without a process nothing connects. The namespace may yet get its next one (a container restarts):
                // enrolled it stays, until the group goes or another namespace is seen.
                return Ok(match seen {
                    // Those may be the runtime's, on their way into the namespace of a new sandbox.
                    Sighting::OnlyHost => Some(Pending::OnlyHost),
                    _ => None,
                });
            }
            return Ok(match seen {
                Sighting::Empty => Some(Pending::NoProcess),
                Sighting::Invisible => Some(Pending::Invisible),
                Sighting::OnlyHost => Some(Pending::OnlyHost),
                Sighting::Same | Sighting::Netns(_) => None,
            });
        }
    };
    take_out(world, pod, "its sandbox was replaced")?;
    let enrolment = world.enrol(workload, netns)?;
    tracing::info!(namespace = %workload.namespace, pod = %workload.name, "pod enrolled");
    pod.enrolment = Some((enrolment, workload.clone()));
    Ok(None)
}

fn take_out<W: World>(world: &mut W, pod: &mut Tracked<W::Enrolment>, why: &str) -> Result<(), EnrolError> {
    if let Some((enrolment, workload)) = &mut pod.enrolment {
        world.withdraw(enrolment)?;
        tracing::info!(namespace = %workload.namespace, pod = %workload.name, "pod withdrawn: {why}");
        pod.enrolment = None;
    }
    Ok(())
}

fn backoff(first: Duration, at_most: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(attempts).unwrap_or(u32::MAX)).min(at_most)
}

#[cfg(test)]
#[path = "enrol_tests.rs"]
mod tests;
