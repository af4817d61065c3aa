//! The source that watches the API server: what runs in a real cluster.
//!
//! One watch on the Namespaces of the cluster says which are opted in; each of those has three more of its own (its Services,
//! EndpointSlices and Pods), which begin and end with its annotation. TrafficPolicies and TrafficLanes, and the routes and grants of
//! Gateway API, of which there are few, have one watch a kind on the whole cluster: a policy in a namespace that is not opted in is
//! told so in its status, and a route or a grant of any namespace may be about a Service of one that is. Nothing else
//! of other namespaces is asked for, which is why a Pod's own `sluice.dev/capture: enabled` counts only where its namespace is opted in too. Every agent sees the same, whatever its node: calls go to all of them.
//!
//! [`mod@client`] is the way to it, over few [`connections`], and [`absence`] says how it is away; [`follow`] keeps one watch going through whatever happens to it, at its [`pace`], and
//! [`watch`] says what it is on and strips what it sees; [`picture`] decides what that adds up to, and when it is whole
//! enough to be told; [`standing`] knows how the watches fare. The watches'
//! first lists, and those after a resync, become the difference from what was known: the model is never emptied.
//! While the API server is away nothing is told, and the last state stays in force. [`status`] writes back what became of
//! policies, [`warm_gate`] which pods of this node are warm, and [`mod@first_request`] when the first request came to each.
//! What policies have in ConfigMaps and Secrets [`mod@keys`] reads.

mod absence;
mod client;
mod connections;
pub mod first_request;
mod follow;
mod keys;
mod pace;
mod picture;
mod standing;
pub mod status;
mod taint;
mod troubles;
pub mod warm_gate;
mod watch;
mod zone;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use kube::Client;
use tokio::{
    sync::{mpsc, watch as channel},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};

pub(crate) use self::client::chain;
pub use self::client::{client, client_of};
pub use self::keys::follow_keys;
pub use self::taint::take_off as take_off_taint;
pub use self::zone::{Asking, LATER};
use self::{
    picture::{Outcome, Picture},
    standing::Standing,
    watch::{Common, Said, Scope, Voice},
};
use super::{
    object::Kind,
    source::{Batch, Feed, Health, Unread},
};

/// How often it is looked at how the watches fare.
const LOOK: Duration = Duration::from_millis(500);
/// The API server's own limit is 60 s, and what it is asked for here it has at hand.
const ANSWER: Duration = Duration::from_secs(30);
/// A watch on which nothing has come for so long is given up. API servers send a bookmark a minute on each watch that
/// has no events, so two were missed.
const QUIET: Duration = Duration::from_secs(150);
/// A list of a large cluster takes a server a second.
const SPREAD: Duration = Duration::from_secs(10);
/// Longer than an API server takes to come up again.
const HOLD: Duration = Duration::from_secs(20);

/// Why there is no cluster to watch. One line, meant for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cluster to watch: neither a service account nor a kubeconfig that can be used: {0}")]
    NoCluster(String),
    #[error("the cluster's configuration cannot be used: {0}")]
    Unusable(String),
}

/// Watches the cluster for as long as the feed is held. Nothing needs to be there yet: the feed begins with the first
/// whole picture, however long that takes. Must be called within a Tokio runtime.
pub fn open(client: Client) -> Feed {
    open_with(client, Patience::default())
}

/// How long is waited for what is slow. The defaults are for real clusters.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long the API server may take to begin an answer, and be silent in the middle of a list.
    pub answer: Duration,
    /// A watch on which nothing has come for so long is given up.
    pub quiet: Duration,
    /// Lists come back so much later, at most, after all watches were cut off: every node does the same at the same moment.
    pub spread: Duration,
    /// For so long the first picture waits for namespaces that cannot be read; then it is told without them.
    pub hold: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { answer: ANSWER, quiet: QUIET, spread: SPREAD, hold: HOLD }
    }
}

/// [`open`] with another patience.
pub fn open_with(client: Client, patience: Patience) -> Feed {
    let (changes, receiver) = mpsc::channel(64);
    let (health, health_receiver) = channel::channel(Health::new(Instant::now()));
    let (says, said) = mpsc::channel(256);
    let source = Source {
        client,
        hold: patience.hold,
        common: Common {
            streaming: Arc::new(AtomicBool::new(true)),
            quiet: patience.quiet,
            listing: patience.answer.min(patience.quiet),
            spread: patience.spread,
            covered: Arc::default(),
        },
        picture: Picture::default(),
        standing: Standing::default(),
        begun: None,
        unread: BTreeMap::new(),
        running: BTreeMap::new(),
        tasks: JoinSet::new(),
        next: 0,
        says,
        said,
        changes,
        health,
    };
    tokio::spawn(source.run());
    Feed { changes: receiver, health: health_receiver, held: None }
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
    hold: Duration,
    common: Common,
    picture: Picture,
    standing: Standing,
    /// Since when it is known what the first picture is to be of.
    begun: Option<Instant>,
    /// Since when namespaces are known that have not been read yet.
    unread: BTreeMap<Arc<str>, Instant>,
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
        for kind in [Kind::Namespace].into_iter().chain(Picture::OPTIONAL) {
            self.start(Scope { kind, namespace: "".into() });
        }
        loop {
            tokio::select! {
                () = self.changes.closed() => return,
                Some((id, said)) = self.said.recv() => {
                    // What an ended watch had still to say is no longer of interest.
                    let Some(running) = self.running.get(&id) else { continue };
                    let scope = running.scope.clone();
                    let outcome = match said {
                        Said::Failed(failure) => {
                            let lasting = failure.is_lasting();
                            self.standing.failed(id, failure);
                            if lasting { self.picture.unreadable(&scope) } else { Outcome::default() }
                        }
                        Said::Ended(why) => {
                            self.standing.reopened(scope.resource(), why);
                            Outcome::default()
                        }
                        Said::Objects(news) => {
                            if scope.kind == Kind::Namespace {
                                self.begun.get_or_insert_with(Instant::now);
                            }
                            self.picture.hear(&scope, news)
                        }
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
                    if self.begun.is_some_and(|begun| begun.elapsed() >= self.hold) {
                        let outcome = self.picture.speak_of_what_is_whole();
                        if self.act(outcome).await.is_err() {
                            return;
                        }
                    }
                    let spoken = self.picture.has_spoken();
                    let (heard, problems) = self.standing.look(Instant::now(), spoken);
                    let watches = self.standing.watches();
                    let unread = self.unread(Instant::now());
                    self.health.send_if_modified(|health| {
                        let changed = health.problems != problems;
                        *health = Health { heard: heard.unwrap_or(health.heard), problems, unread, watches };
                        changed
                    });
                }
            }
        }
    }

    /// Namespaces that have never been read, with since when that was seen.
    fn unread(&mut self, now: Instant) -> Vec<Unread> {
        let before = std::mem::take(&mut self.unread);
        let since = |namespace: &Arc<str>| before.get(namespace).copied().unwrap_or(now);
        let unread: Vec<_> = self
            .picture
            .unread()
            .map(|(namespace, refused)| Unread {
                namespace: namespace.clone(),
                since: since(namespace),
                refused,
            })
            .collect();
        self.unread = unread.iter().map(|unread| (unread.namespace.clone(), unread.since)).collect();
        unread
    }

    async fn act(&mut self, outcome: Outcome) -> Result<(), mpsc::error::SendError<Batch>> {
        let Outcome { batch, begin, end } = outcome;
        self.cover();
        if !end.is_empty() {
            let standing = &mut self.standing;
            self.running.retain(|id, running| {
                let stays = !end.contains(&running.scope);
                if !stays {
                    running.task.abort();
                    standing.ended(*id);
                }
                stays
            });
        }
        for scope in begin {
            self.start(scope);
        }
        if batch.is_empty() { Ok(()) } else { self.changes.send(batch).await }
    }

    /// Tells the watches on the whole cluster which namespaces' objects are wanted.
    fn cover(&self) {
        for (kind, covered) in Picture::KINDS.into_iter().zip(&*self.common.covered) {
            let now = self.picture.covered(kind);
            if **covered.load() != now {
                covered.store(Arc::new(now));
            }
        }
    }

    fn start(&mut self, scope: Scope) {
        let id = self.next;
        self.next += 1;
        let pulse = Arc::new(watch::Pulse::new(Instant::now()));
        self.standing.started(id, scope.clone(), pulse.clone());
        let voice = Voice { id, says: self.says.clone() };
        let watch = watch::run(self.client.clone(), scope.clone(), pulse, self.common.clone(), voice);
        let task = self.tasks.spawn(watch);
        self.running.insert(id, Running { scope, task });
    }
}
