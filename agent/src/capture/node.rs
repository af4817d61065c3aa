//! What enrolling really does on this node.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;

use super::{
    EnrolError, bypass,
    enrol::{Older, Steered, World},
    entry::Entry,
    flows::Flows,
    inbound::{self, Inbound, Steering, Where},
    maps::{Accepted, Pods},
    netns::{Id, Netns},
    pod::{Opened, PodNetwork},
    programs::FailOpen,
    reclaim::{self, Job, Reclaim, Reclaimed},
    refuse::{self, Of, Pinned, Refusing},
    services::Services,
    sight::{self, Sighting},
    threads::{self, Followed},
};
use crate::{
    cluster::model::{Snapshot, Workload},
    proxy::{OpenPod, Pod, Proxy},
};

/// The node, its kernel and the proxy.
pub(crate) struct Node {
    /// Should the enrolling task ever end by itself, its listeners close: nobody may be redirected to them then.
    pub(crate) _fail_open: FailOpen,
    pub(crate) proxy: Proxy,
    pub(crate) pods: Arc<Pods>,
    pub(crate) services: Services,
    pub(crate) accepted: Arc<Accepted>,
    /// What is known of the threads of pods that ask for it.
    pub(crate) threads: Arc<threads::Maps>,
    /// The agent's own network namespace, to which its threads always return.
    pub(crate) home: Arc<Netns>,
    /// Namespaces that are nobody's own: the agent's, and that of the node.
    pub(crate) hosts: Vec<Id>,
    pub(crate) listeners_per_pod: usize,
    /// Who has which namespace, by its cookie.
    pub(crate) owners: HashMap<u64, Arc<str>>,
    /// Pods that are being closed.
    pub(crate) closing: TaskTracker,
    /// Connections to governed services that were made too early to be captured.
    pub(crate) bypassed: Arc<AtomicU64>,
    /// Whether, and how fast, they are ended when they are idle; what came of it, and what is to be done now.
    pub(crate) reclaim: Reclaim,
    pub(crate) reclaimed: Arc<Reclaimed>,
    pub(crate) jobs: Vec<Job>,
    /// Is told who has which namespace.
    pub(crate) flows: Arc<Flows>,
    /// `None`: connections from outside cannot be steered on this node.
    pub(crate) inbound: Option<Inbound>,
    pub(crate) refusing: Refusing,
    /// The agent stops: what refuses connections while none is there stays.
    pub(crate) leaving: bool,
}

/// An enrolled pod.
pub(crate) struct Enrolment {
    netns: Id,
    cookie: u64,
    entry: Arc<Entry>,
    pod: Arc<Pod>,
    open: Option<OpenPod>,
    network: Arc<PodNetwork>,
    /// Connections to governed services that are older, as far as they are still open.
    older: Vec<bypass::Connection>,
    /// Where they go.
    older_to: Arc<[SocketAddr]>,
    /// What comes from outside and is steered.
    steering: Option<Steering>,
    /// Why not all of it is that should be, as it was told last.
    unsteered: Option<String>,
    /// Ports and processes of which was told that nothing is known by threads.
    faulty: BTreeSet<(u16, u32)>,
    /// What of it is closed while no agent is there; and why not all of that is which should be, as it was told last.
    pinned: Option<Pinned>,
    unpinned: Option<String>,
}

impl World for Node {
    type Netns = Netns;
    type Enrolment = Enrolment;

    fn look(&mut self, group: &Path, current: Option<&Enrolment>) -> Sighting<Netns> {
        sight::look(group, current.map(|enrolment| enrolment.netns), &self.hosts)
    }

    fn enrol(&mut self, workload: &Arc<Workload>, netns: Netns) -> Result<Enrolment, EnrolError> {
        let id = netns.id();
        let opened = Opened::open(&netns, &self.home, self.listeners_per_pod, &workload.ports)?;
        let cookie = opened.netns_cookie;
        let entry = Arc::new(Entry::new(self.pods.clone(), cookie, opened.entry(workload)));
        if let Some(owner) = self.owners.get(&cookie) {
            return Err(EnrolError::Shared { owner: owner.to_string() });
        }

        let network = Arc::new(PodNetwork {
            netns: Arc::new(netns),
            home: self.home.clone(),
            accepted: self.accepted.clone(),
            threads: self.threads.clone(),
            entry: entry.clone(),
        });
        let pod = Arc::new(Pod::new(ArcSwap::new(workload.clone()), network.clone()));
        let open = self.proxy.open(&pod, opened.listeners);
        self.flows.pod(cookie, workload);
        // Last, when there is somebody to accept. If it fails `open` is dropped, which closes the listeners.
        entry.list()?;
        self.owners.insert(cookie, workload.uid.clone());

        let wanted = |connection: &bypass::Connection| self.services.redirects(connection.peer);
        let older = network.netns.within(&self.home, || bypass::open(wanted)).unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot find the connections that are older than an enrolment");
            Vec::new()
        });
        if !older.is_empty() {
            self.bypassed.fetch_add(older.len() as u64, Ordering::Relaxed);
            tracing::info!(
                namespace = %workload.namespace, pod = %workload.name, connections = older.len(),
                "connections to managed services are older than the enrolment, and stay direct"
            );
        }
        let older_to = older.iter().map(|connection| connection.peer).collect();
        let open = Some(open);
        Ok(Enrolment {
            netns: id,
            cookie,
            entry,
            pod,
            open,
            network,
            older,
            older_to,
            steering: None,
            unsteered: None,
            faulty: BTreeSet::new(),
            pinned: None,
            unpinned: None,
        })
    }

    fn look_at_older(&mut self, enrolment: &mut Enrolment, look: Older<'_>) {
        if let Some(steering) = enrolment.steering.as_mut().filter(|_| look.all) {
            steering.look_at_older(&enrolment.network.netns, &self.home);
        }
        let may_end = |connection: &bypass::Connection| {
            let found = look.snapshot.destination(connection.peer);
            found.is_some_and(|destination| destination.service.is_reclaimed())
        };
        let reclaim = self.reclaim.per_second > 0 && enrolment.older.iter().any(may_end);
        if enrolment.older.is_empty() || !(look.all || reclaim) {
            return;
        }
        let known = &enrolment.older;
        let open = enrolment.network.netns.within(&self.home, || bypass::open(|open| known.contains(open)));
        // What cannot be seen is taken to be as it was.
        if let Ok(open) = open
            && open.len() != known.len()
        {
            enrolment.older_to = open.iter().map(|connection| connection.peer).collect();
            enrolment.older = open;
        }
        if let Some(group) = look.group.filter(|_| reclaim) {
            self.jobs.push(Job {
                pod: format!("{}/{}", look.workload.namespace, look.workload.name),
                group: group.to_owned(),
                connections: enrolment.older.iter().copied().filter(may_end).collect(),
            });
        }
    }

    fn reclaim(&mut self) {
        reclaim::start(std::mem::take(&mut self.jobs), self.reclaim, &self.reclaimed);
    }

    fn older(enrolment: &Enrolment) -> Arc<[SocketAddr]> {
        enrolment.older_to.clone()
    }

    fn update(&mut self, enrolment: &mut Enrolment, workload: &Arc<Workload>) -> Result<(), EnrolError> {
        enrolment.pod.workload.store(workload.clone());
        self.flows.pod(enrolment.cookie, workload);
        enrolment.entry.set_addresses(workload)
    }

    fn steer(
        &mut self,
        enrolment: &mut Enrolment,
        workload: &Arc<Workload>,
        group: Option<&Path>,
        snapshot: &Snapshot,
    ) {
        let wanted = inbound::wanted(workload, |ip| snapshot.inbound.ports(ip));
        let Some(inbound) = &mut self.inbound else { return };
        if wanted.is_empty() && enrolment.steering.is_none() {
            return;
        }
        let at = Where {
            group,
            netns: &enrolment.network.netns,
            home: &self.home,
            netns_cookie: enrolment.cookie,
            remembered: &enrolment.pod.remembered,
            proxy: &self.proxy,
            closing: &self.closing,
        };
        let outcome = inbound.sync(&mut enrolment.steering, workload, &wanted, &at).err();
        if outcome != enrolment.unsteered {
            if let Some(error) = &outcome {
                tracing::error!(
                    namespace = %workload.namespace, pod = %workload.name, error,
                    "cannot steer a pod's connections to the agent: its AccessPolicies are not enforced, and sluice.dev/propagation has no effect; trying again"
                );
            }
            enrolment.unsteered = outcome;
        }
        self.refuse(enrolment, workload, snapshot);
    }

    fn look_at_listeners(&mut self, enrolment: &mut Enrolment) {
        if let Some(steering) = &enrolment.steering {
            steering.look();
            tell_faulty(&mut enrolment.faulty, &steering.followed(), &enrolment.pod.workload.load());
        }
        if let Some(pinned) = &mut enrolment.pinned {
            let attended = self.refusing.attend(pinned, self.proxy.silent_for());
            let looked = self.refusing.look(pinned, &enrolment.network.netns);
            let workload = enrolment.pod.workload.load();
            tell_unpinned(&mut enrolment.unpinned, attended.and(looked).err(), &workload);
        }
    }

    fn sweep(&mut self, snapshot: &Snapshot, wanted: impl Fn(&str) -> Option<Arc<Workload>>) {
        let owners = &self.owners;
        self.refusing.sweep(|uid, cookie| {
            let Some(workload) = wanted(uid) else { return false };
            let elsewhere = || owners.iter().any(|(at, owner)| **owner == *uid && *at != cookie);
            !refuse::wanted(&workload, snapshot).is_empty() && !elsewhere()
        });
    }

    fn steered(enrolment: &Enrolment) -> Steered {
        let addresses = enrolment.steering.as_ref().map(Steering::addresses).unwrap_or_default();
        // With what is wrong with the pin nobody knows whether it outlives the agent.
        let pinned = enrolment.pinned.as_ref().filter(|_| enrolment.unpinned.is_none());
        let closed = pinned.map(Pinned::addresses).unwrap_or_default();
        Steered {
            addresses,
            trouble: enrolment.unsteered.clone(),
            closed,
            unclosed: enrolment.unpinned.clone(),
            older: enrolment.steering.as_ref().map(Steering::older).unwrap_or_default(),
            followed: enrolment.steering.as_ref().map(Steering::followed).unwrap_or_default(),
        }
    }

    fn withdraw(&mut self, enrolment: &mut Enrolment) -> Result<(), EnrolError> {
        if let Some(inbound) = &mut self.inbound {
            let at = Where {
                group: None,
                netns: &enrolment.network.netns,
                home: &self.home,
                netns_cookie: enrolment.cookie,
                remembered: &enrolment.pod.remembered,
                proxy: &self.proxy,
                closing: &self.closing,
            };
            inbound.end(&mut enrolment.steering, &at);
        }
        if self.leaving {
            let pinned = enrolment.pinned.take();
            let attended =
                pinned.map_or(Ok(()), |pinned| self.refusing.attend(&pinned, self.proxy.silent_for()));
            if let Err(error) = attended {
                tracing::warn!(error, "cannot say for how long connections are refused without an agent");
            }
        } else {
            self.refusing.end(&mut enrolment.pinned);
        }
        enrolment.entry.unlist()?;
        self.owners.remove(&enrolment.cookie);
        self.flows.pod_gone(enrolment.cookie, Instant::now());
        // The proxy goes on accepting for a moment: a connect may have been redirected just before.
        if let Some(open) = enrolment.open.take() {
            self.closing.spawn(open.close());
        }
        Ok(())
    }
}

impl Node {
    /// Closes what policies want to be closed while no agent is there, of what this agent attends.
    fn refuse(&mut self, enrolment: &mut Enrolment, workload: &Arc<Workload>, snapshot: &Snapshot) {
        let wanted = refuse::wanted(workload, snapshot);
        if wanted.is_empty() && enrolment.pinned.is_none() {
            enrolment.unpinned = None;
            return;
        }
        let attended = enrolment.steering.as_ref().map(Steering::addresses).unwrap_or_default();
        let of = Of {
            workload,
            netns: &enrolment.network.netns,
            netns_cookie: enrolment.cookie,
            silence: self.proxy.silent_for(),
        };
        let outcome = self.refusing.sync(&mut enrolment.pinned, &wanted, &attended, &of);
        if let Some(steering) = &enrolment.steering {
            steering.close(enrolment.pinned.as_ref().map(Pinned::addresses).unwrap_or_default());
        }
        tell_unpinned(&mut enrolment.unpinned, outcome.err(), workload);
    }
}

/// Tells once of each process whose threads say nothing.
fn tell_faulty(told: &mut BTreeSet<(u16, u32)>, followed: &[Followed], workload: &Workload) {
    told.retain(|known| followed.iter().any(|one| (one.port, one.process) == *known));
    for Followed { port, process, handling } in followed.iter().filter(|one| one.handling.is_faulty()) {
        if told.insert((*port, *process)) {
            tracing::warn!(
                namespace = %workload.namespace, pod = %workload.name, port, process,
                "nothing is known by threads of what is sent for requests to this port of a pod with sluice.dev/propagation: thread: {handling}"
            );
        }
    }
}

fn tell_unpinned(told: &mut Option<String>, outcome: Option<String>, workload: &Workload) {
    if outcome == *told {
        return;
    }
    if let Some(error) = &outcome {
        tracing::error!(
            namespace = %workload.namespace, pod = %workload.name, error,
            "whenUnattended: Refuse is not active at a pod: without an agent it is reached directly; trying again"
        );
    }
    *told = outcome;
}
