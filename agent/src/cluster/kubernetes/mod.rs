//! The source that watches the API server: what runs in a real cluster.
//!
//! One watch on the Namespaces of the cluster says which are opted in; each of those has three more of its own (its
//! Services, EndpointSlices and Pods), which begin and end with its annotation. Nothing of other namespaces is asked
//! for, which is why a Pod's own `sluice.dev/capture: enabled` counts only where its namespace is opted in too. Every agent sees the same, whatever its node: calls go to all of them.
//!
//! [`watch`] keeps one watch going through whatever happens to it and strips what it sees; [`picture`] decides what
//! that adds up to, and when it is whole enough to be told; [`standing`] knows how the watches fare. The watches'
//! first lists, and those after a resync, become the difference from what was known: the model is never emptied.
//! While the API server is away nothing is told, and the last state stays in force.

mod picture;
mod standing;
mod watch;
mod zone;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::{Client, Config};
use tokio::{
    sync::{mpsc, watch as channel},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};

pub use self::zone::zone;
use self::{
    picture::{Outcome, Picture},
    standing::Standing,
    watch::{Said, Scope},
};
use super::{
    object::Kind,
    source::{Batch, Feed, Health},
};

/// How often it is looked at how the watches fare.
const LOOK: Duration = Duration::from_millis(500);
/// An API server that cannot be reached is noticed after so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing has come for so long is given up. Longer than the API server lets a watch last (the
/// watcher asks for 290 s), so that it ends only what hangs.
const READ_TIMEOUT: Duration = Duration::from_secs(310);

/// Why there is no cluster to watch. One line, meant for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cluster to watch: neither a service account nor a kubeconfig that can be used: {0}")]
    NoCluster(String),
    #[error("the cluster's configuration cannot be used: {0}")]
    Unusable(String),
}

/// A client for the cluster that this process runs in, or that the kubeconfig names. Does not talk to it yet.
pub async fn client() -> Result<Client, Error> {
    let mut config = Config::infer().await.map_err(|e| Error::NoCluster(watch::chain(&e)))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    tracing::info!(cluster = %config.cluster_url, "watching the cluster");
    Client::try_from(config).map_err(|e| Error::Unusable(watch::chain(&e)))
}

/// Watches the cluster for as long as the feed is held. Nothing needs to be there yet: the feed begins with the first
/// whole picture, however long that takes. Must be called within a Tokio runtime.
pub fn open(client: Client) -> Feed {
    let (changes, receiver) = mpsc::channel(64);
    let (health, health_receiver) = channel::channel(Health { heard: Instant::now(), problems: Vec::new() });
    let (says, said) = mpsc::channel(256);
    let source = Source {
        client,
        picture: Picture::default(),
        standing: Standing::default(),
        running: BTreeMap::new(),
        tasks: JoinSet::new(),
        next: 0,
        says,
        said,
        changes,
        health,
    };
    tokio::spawn(source.run());
    Feed { changes: receiver, health: health_receiver }
}

/// What tells a watch from all others, also from an earlier one of the same scope.
type Id = u64;

struct Running {
    scope: Scope,
    task: AbortHandle,
}

/// Starts and ends the watches, and passes on what they add up to.
struct Source {
    client: Client,
    picture: Picture,
    standing: Standing,
    running: BTreeMap<Id, Running>,
    tasks: JoinSet<()>,
    next: Id,
    says: mpsc::Sender<(Id, Said)>,
    said: mpsc::Receiver<(Id, Said)>,
    changes: mpsc::Sender<Batch>,
    health: channel::Sender<Health>,
}

impl Source {
    /// Until nobody holds the feed. The watches end with it.
    async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.start(Scope { kind: Kind::Namespace, namespace: "".into() });
        loop {
            tokio::select! {
                () = self.changes.closed() => return,
                Some((id, said)) = self.said.recv() => {
                    // What an ended watch had still to say is no longer of interest.
                    let Some(running) = self.running.get(&id) else { continue };
                    let scope = running.scope.clone();
                    let outcome = match said {
                        Said::Failed(failure) => {
                            let refused = failure.is_forbidden();
                            self.standing.failed(id, failure);
                            if refused { self.picture.forbidden(&scope) } else { Outcome::default() }
                        }
                        Said::Objects(news) => self.picture.hear(&scope, news),
                    };
                    if self.act(outcome).await.is_err() {
                        return;
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    if ended.is_err_and(|e| e.is_panic()) {
                        tracing::error!("a watch on the cluster failed unexpectedly");
                        return;
                    }
                }
                _ = look.tick() => {
                    let spoken = self.picture.has_spoken();
                    let (heard, problems) = self.standing.look(Instant::now(), spoken);
                    self.health.send_if_modified(|health| {
                        let changed = health.problems != problems;
                        *health = Health { heard: heard.unwrap_or(health.heard), problems };
                        changed
                    });
                }
            }
        }
    }

    async fn act(&mut self, outcome: Outcome) -> Result<(), mpsc::error::SendError<Batch>> {
        let Outcome { batch, begin, end } = outcome;
        for namespace in end {
            let standing = &mut self.standing;
            self.running.retain(|id, running| {
                let stays = running.scope.namespace != namespace;
                if !stays {
                    running.task.abort();
                    standing.ended(*id);
                }
                stays
            });
        }
        for namespace in begin {
            for kind in Picture::KINDS {
                self.start(Scope { kind, namespace: namespace.clone() });
            }
        }
        if batch.is_empty() { Ok(()) } else { self.changes.send(batch).await }
    }

    fn start(&mut self, scope: Scope) {
        let id = self.next;
        self.next += 1;
        let pulse = Arc::new(watch::Pulse::new(Instant::now()));
        self.standing.started(id, scope.clone(), pulse.clone());
        let task =
            self.tasks.spawn(watch::run(self.client.clone(), scope.clone(), pulse, id, self.says.clone()));
        self.running.insert(id, Running { scope, task });
    }
}
