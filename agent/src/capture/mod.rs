//! How a connection gets here: eBPF programs redirect the connects of enrolled pods to listeners of the agent inside
//! the pods' own network namespaces.
//!
//! - `probe` asks what this machine can do, and says plainly what it lacks.
//! - `programs` loads and attaches the programs of `sluice-ebpf`; `maps` are what they share with the agent;
//!   `heartbeat` tells them that it lives, `logs` reads what they log, `exclusive` finds who keeps them out,
//!   `descriptors` sees to it that a kill ends them before anything else.
//! - `attachment` sees to it that the programs stay attached.
//! - `watch` sees pods' control groups (`cgroup`) come and go, `sight` finds their network namespaces (`netns`).
//! - `enrol` decides which pod is to be enrolled, and `node` does it: listeners (`pod`), then the proxy, then the
//!   kernel's map (`entry`). `services` tells the kernel which destinations are governed; `bypass` counts what came too early, `reclaim`
//!   ends it where it is asked to; `buffers` are what the kernel keeps for sockets.
//! - `inbound` steers connections from outside to listeners of the agent, where policies ask for it; `listening` finds who
//!   listens, `node_addresses` from where the kubelet probes.
//! - `refuse` leaves behind what closes ports while no agent is there, for policies that ask for it: all that is ever pinned.
//! - `flows` puts names to what the programs count of pods' connections, redirected or not.
//!
//! All `unsafe` of the agent is in here.

mod attachment;
mod buffers;
mod bypass;
mod cgroup;
mod descriptors;
mod enrol;
mod enrolling;
mod entry;
mod error;
mod exclusive;
mod flows;
mod heartbeat;
mod inbound;
mod listening;
mod logs;
mod maps;
mod netns;
mod node;
mod node_addresses;
mod pod;
mod probe;
mod programs;
mod reclaim;
mod refuse;
mod services;
mod sight;
mod sockets;
mod threads;
mod unsteered;
mod watch;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch as channel};
use tokio_util::task::TaskTracker;

pub use attachment::Attachment;
pub use enrol::{PodStatus, Steered};
pub use error::{CaptureError, EnrolError};
pub use flows::Flow;
pub use pod::{is_at_urgent_byte, unacknowledged, watched};
pub use programs::embedded as embedded_programs;
pub use reclaim::Reclaim;
pub use refuse::remove_all as release;
pub use threads::{Followed, Handling};

use crate::{cluster::model::Snapshot, config, proxy::Proxy};
use attachment::Keeper;
use enrol::Enroller;
use enrolling::{Enrolling, Table};
use error::with_causes;
use flows::Flows;
use inbound::{Inbound, Slots};
use netns::Netns;
use node::Node;
use node_addresses::NodeAddresses;
use probe::Machine;
use programs::{FailOpen, Links, Programs};
use reclaim::Reclaimed;
use refuse::Refusing;
use services::Services;
use watch::Watch;

/// How long ago the slowest worker was last seen alive.
type Silence = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What capture needs to know beforehand.
#[derive(Clone, Debug)]
pub struct Options {
    /// The control group (v2) that holds all pods. `None`: the only `kubepods*` below the mount.
    pub pods_cgroup: Option<PathBuf>,
    /// Listeners in a pod's network namespace, for each IP family: 1 to 16. `None`: at least 4, and as many for each
    /// worker.
    pub listeners_per_pod: Option<usize>,
    /// Do not count what becomes of pods' connections.
    pub without_flows: bool,
    /// The snapshots have pods of this node only, besides those that have no node yet.
    pub node_is_known: bool,
    /// What becomes of connections that are older than their pod's enrolment, where a Service asks for it.
    pub reclaim: Reclaim,
    /// The BPF file system in which that is pinned which refuses connections while no agent is there.
    pub bpf_file_system: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pods_cgroup: None,
            listeners_per_pod: None,
            without_flows: false,
            node_is_known: false,
            reclaim: Reclaim::default(),
            bpf_file_system: config::BPF_FILE_SYSTEM.into(),
        }
    }
}

/// Why nothing can be pinned at the path of a BPF file system; `None`: it can be.
pub fn pinning_trouble(file_system: &Path) -> Option<String> {
    refuse::usable(file_system).err()
}

/// What capture does at the moment, for metrics and readiness.
#[derive(Clone, Debug)]
pub struct Status {
    /// A snapshot of the cluster has been taken up: its services are known to the kernel, and its pods enrolled as far as
    /// they can be.
    pub synced: bool,
    /// Whether the programs see the connects of pods.
    pub attachment: Attachment,
    /// Nothing is redirected any more: [`Capture::stop_redirecting`] was called, or the enrolling task broke down.
    pub stopped: bool,
    /// The pods of this node that are enrolled, or should be but cannot.
    pub pods: Arc<[PodStatus]>,
    /// Governed destinations that the kernel knows.
    pub destinations: usize,
    /// Why connections from outside cannot be steered, so that no AccessPolicy is enforced on this node.
    pub steering_trouble: Option<Arc<String>>,
    /// Why threads of pods that ask for it cannot be followed.
    pub threads_trouble: Option<Arc<String>>,
    /// Connections to governed services that were open before their pod was enrolled.
    pub bypassed: u64,
    /// Those of them that were ended when they were idle, and why none can be.
    pub reclaimed: u64,
    pub reclaim_trouble: Option<Arc<String>>,
    /// What the eBPF programs counted since the start, by the name of the reason. Those that begin with `bypassed_` went
    /// direct, those with `redirected_` to the agent; the others are about the handshake that follows.
    pub kernel: Vec<(&'static str, u64)>,
}

/// The running capture. Dropping it takes the programs off `connect()` and ends all enrolments, without waiting.
pub struct Capture {
    links: Arc<Mutex<Links>>,
    steering_trouble: Option<Arc<String>>,
    counters: maps::Counters,
    flows: Arc<Flows>,
    table: Arc<ArcSwap<Table>>,
    bypassed: Arc<AtomicU64>,
    reclaimed: Arc<Reclaimed>,
    released: Arc<AtomicBool>,
    file_system: PathBuf,
    close: Option<oneshot::Sender<oneshot::Sender<()>>>,
    _heartbeat: heartbeat::Beating,
}

impl Capture {
    /// Attaches the programs, and begins to enrol the pods that the snapshots ask for. Needs the context of a tokio
    /// runtime, on which it runs.
    ///
    /// # Errors
    /// Nothing was changed then, and every connection goes on going direct.
    pub fn start(
        options: &Options,
        proxy: Proxy,
        snapshots: channel::Receiver<Arc<Snapshot>>,
    ) -> Result<Self, CaptureError> {
        let workers = proxy.workers();
        let listeners_per_pod = match options.listeners_per_pod {
            None => default_listeners(workers),
            Some(count @ 1..=sluice_ebpf::PORT_SLOTS) => count,
            Some(count) => return Err(CaptureError::Listeners { count }),
        };
        let machine = Machine::probe(options.pods_cgroup.as_deref())?;
        let home = Arc::new(Netns::current().map_err(CaptureError::Proc)?);
        // The node's is known by its first process, where the agent can see it.
        let hosts = [Some(home.id()), Netns::id_of_process(1).ok()].into_iter().flatten().collect();

        let agent_cgroup = cgroup::id(&machine.agent).map_err(CaptureError::Proc)?;
        let (mut programs, maps) = Programs::load(agent_cgroup)?;
        let following = !options.without_flows && programs.load_flows();
        let steer = programs.load_steering();
        let refuse = programs.load_refusing();
        let watch = Watch::start(&machine.pods)
            .map_err(|source| CaptureError::Watch { path: machine.pods.clone(), source })?;
        let silence: Silence = {
            let proxy = proxy.clone();
            Arc::new(move || proxy.silent_for())
        };
        let mut map = maps.heartbeat;
        let write = move |at| {
            if let Err(error) = map.beat(at) {
                let error = with_causes(&error);
                tracing::error!(error, "cannot write the heartbeat: connections go direct");
            }
        };
        let heartbeat = heartbeat::start(write, silence).map_err(CaptureError::Thread)?;
        let (pods, agent) = (machine.pods.display().to_string(), machine.agent.display().to_string());
        let keeper = Keeper::attach(
            programs,
            machine,
            options.pods_cgroup.as_deref(),
            following,
            maps.threads.clone(),
        )?;
        let links = keeper.links();
        let (follow, steering_trouble) = {
            let links = links.lock().unwrap_or_else(PoisonError::into_inner);
            (links.follow(), links.steering_trouble())
        };
        let addresses = Arc::<NodeAddresses>::default();
        addresses.look(&home);
        let inbound = steer.filter(|_| steering_trouble.is_none()).map(|program| Inbound {
            program,
            links: links.clone(),
            maps: Arc::new(maps.inbound),
            threads: maps.threads.clone(),
            node: addresses.clone(),
            slots: Slots::new(),
        });
        let released = Arc::<AtomicBool>::default();
        let file_system = options.bpf_file_system.clone();
        let mut refusing = Refusing::new(refuse, maps.refuse, file_system.clone(), released.clone());
        addresses.tell(|known| refusing.know_node(known));
        let flows = Arc::new(Flows::new(follow.then_some(maps.flows)));
        tracing::info!(pods, agent, listeners_per_pod, flows = follow, "eBPF programs attached");

        let bypassed = Arc::<AtomicU64>::default();
        let reclaimed = Arc::<Reclaimed>::default();
        let table = Arc::<ArcSwap<Table>>::default();
        let node = Node {
            _fail_open: FailOpen(links.clone()),
            proxy,
            pods: Arc::new(maps.pods),
            services: Services::new(maps.services, flows.clone()),
            accepted: Arc::new(maps.accepted),
            threads: maps.threads,
            home,
            hosts,
            listeners_per_pod,
            owners: HashMap::new(),
            closing: TaskTracker::new(),
            bypassed: bypassed.clone(),
            reclaim: options.reclaim,
            reclaimed: reclaimed.clone(),
            jobs: Vec::new(),
            flows: flows.clone(),
            inbound,
            refusing,
            leaving: false,
        };
        let (close, closed) = oneshot::channel();
        let enrolling = Enrolling::new(
            Enroller::new(node, options.node_is_known),
            watch,
            keeper,
            snapshots,
            addresses,
            table.clone(),
        );
        tokio::spawn(enrolling.run(closed));
        Ok(Self {
            links,
            steering_trouble,
            counters: maps.counters,
            flows,
            table,
            bypassed,
            reclaimed,
            released,
            file_system,
            close: Some(close),
            _heartbeat: heartbeat,
        })
    }

    /// Takes the programs off `connect()`: every new connect goes direct, or to the agent that takes over. Listeners stay
    /// open, and what is redirected already arrives. There is no way back.
    pub fn stop_redirecting(&self) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).detach_connect();
    }

    /// Ends all enrolments: the proxy takes what waits in the listeners, closes them, and asks the connections to end.
    /// Returns when the listeners are closed. Connections that are open go on; what tells them their names stays
    /// attached until `self` is dropped.
    pub async fn close_listeners(&mut self) {
        self.stop_redirecting();
        let (done, wait) = oneshot::channel();
        if let Some(close) = self.close.take()
            && close.send(done).is_ok()
        {
            // The task ends after it has answered, or it panicked, and its pods were closed by being dropped.
            let _ = wait.await;
        }
    }

    /// Removes all that refuses connections while no agent is there, whoever has pinned it, and pins nothing more. Says how much it
    /// was.
    ///
    /// # Errors
    /// Something is left; it is tried again every second.
    pub fn release(&self) -> io::Result<usize> {
        self.released.store(true, Ordering::Relaxed);
        release(&self.file_system)
    }

    /// What the kernel has counted of the connections of enrolled pods; empty where it does not. Reads its map.
    pub fn flows(&self) -> Vec<Flow> {
        self.flows.read(Instant::now())
    }

    /// What capture does at the moment. Reads the kernel's counters.
    pub fn status(&self) -> Status {
        let table = self.table.load();
        Status {
            synced: table.synced,
            attachment: table.attachment.clone(),
            stopped: self.links.lock().unwrap_or_else(PoisonError::into_inner).is_stopped(),
            pods: table.pods.clone(),
            destinations: table.destinations,
            steering_trouble: self.steering_trouble.clone(),
            threads_trouble: table.threads_trouble.clone(),
            bypassed: self.bypassed.load(Ordering::Relaxed),
            reclaimed: self.reclaimed.ended.load(Ordering::Relaxed),
            reclaim_trouble: self.reclaimed.trouble.load_full(),
            kernel: self
                .counters
                .read()
                .into_iter()
                .map(|(counter, value)| (counter.name(), value))
                .collect(),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop_redirecting();
    }
}

/// The agent's own control group (v2), where it can be found.
pub fn own_group() -> Option<PathBuf> {
    let mount = cgroup::mount_point().ok()??;
    cgroup::own(&mount).ok()?
}

/// At least four, so that a pod has as many ranges of client ports; as many for each worker, so that all carry the same.
fn default_listeners(workers: usize) -> usize {
    let workers = workers.max(1);
    (workers * 4_usize.div_ceil(workers)).min(sluice_ebpf::PORT_SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_gets_as_many_listeners() {
        let table = [(0, 4), (1, 4), (2, 4), (3, 6), (4, 4), (5, 5), (16, 16), (64, 16)];
        for (workers, listeners) in table {
            assert_eq!(default_listeners(workers), listeners, "{workers} workers");
        }
    }
}
