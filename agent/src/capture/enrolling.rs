//! The task that enrols the pods of this node: it hears of the cluster's snapshots and of the pods' control groups, looks after the
//! programs and the listeners between, and publishes what came of it.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{oneshot, watch as channel},
    time::MissedTickBehavior,
};

use super::{
    attachment::{self, Attachment, Found, Keeper},
    enrol::{Enroller, PodStatus},
    node::Node,
    node_addresses::NodeAddresses,
    watch::Watch,
};
use crate::cluster::model::Snapshot;

/// So many looks at the programs to one at the connections that are older than their pod's enrolment.
const LOOKS_AT_OLDER: u64 = 10;

/// How long it waits before it reads notifications of control groups again that could not be read.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What the task publishes.
#[derive(Default)]
pub(super) struct Table {
    pub(super) synced: bool,
    pub(super) attachment: Attachment,
    pub(super) pods: Arc<[PodStatus]>,
    pub(super) destinations: usize,
    pub(super) threads_trouble: Option<Arc<String>>,
}

/// The task: one pod after the other, so that nothing needs a lock.
pub(super) struct Enrolling {
    enroller: Enroller<Node>,
    watch: Watch,
    keeper: Keeper,
    /// `None`: its source has ended, and the last snapshot stays in force.
    snapshots: Option<channel::Receiver<Arc<Snapshot>>>,
    addresses: Arc<NodeAddresses>,
    table: Arc<ArcSwap<Table>>,
    /// A snapshot of the cluster has been taken up.
    synced: bool,
    /// What an earlier agent has left was looked through once.
    swept: bool,
    looks: u64,
}

impl Enrolling {
    pub(super) fn new(
        enroller: Enroller<Node>,
        watch: Watch,
        keeper: Keeper,
        mut snapshots: channel::Receiver<Arc<Snapshot>>,
        addresses: Arc<NodeAddresses>,
        table: Arc<ArcSwap<Table>>,
    ) -> Self {
        snapshots.mark_changed();
        let snapshots = Some(snapshots);
        Self { enroller, watch, keeper, snapshots, addresses, table, synced: false, swept: false, looks: 0 }
    }

    /// Until it is asked to end all enrolments; whoever asks hears when their listeners are closed.
    pub(super) async fn run(mut self, mut close: oneshot::Receiver<oneshot::Sender<()>>) {
        let mut look = tokio::time::interval(attachment::LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The pods that are there already, before the first snapshot: who is synced has enrolled them.
        self.take_groups(Instant::now());
        loop {
            let retry = self.enroller.next_retry();
            tokio::select! {
                biased;
                done = &mut close => {
                    self.withdraw().await;
                    if let Ok(done) = done {
                        // Whoever asked may have given up.
                        let _ = done.send(());
                    }
                    return;
                }
                snapshot = next(&mut self.snapshots) => match snapshot {
                    Some(snapshot) => self.take_snapshot(snapshot),
                    None => self.snapshots = None,
                },
                changed = self.watch.changes() => match changed {
                    Ok(uids) => self.groups_changed(uids, Instant::now()),
                    Err(error) => {
                        tracing::error!(%error, "cannot read cgroup notifications; retrying");
                        tokio::time::sleep(AGAIN_AFTER).await;
                    }
                },
                () = at(retry) => self.enroller.time_passed(Instant::now()),
                _ = look.tick() => self.look(),
            }
            // Before what is steered, so that the programs see the first connection.
            self.keeper.follow_threads(self.enroller.asks_for_threads());
            self.enroller.steer();
            self.publish();
        }
    }

    fn take_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.synced = snapshot.generation > 0;
        // Destinations first: a pod is enrolled with all of them.
        self.enroller.world().services.sync(&snapshot);
        self.enroller.snapshot_changed(snapshot, Instant::now());
    }

    /// Takes up the control groups of which has not been heard.
    fn take_groups(&mut self, now: Instant) {
        let uids = self.watch.take_changes();
        self.groups_changed(uids, now);
    }

    fn groups_changed(&mut self, uids: HashSet<Arc<str>>, now: Instant) {
        for uid in uids {
            self.enroller.group_changed(&uid, self.watch.group(&uid), now);
        }
    }

    /// At what nobody tells about.
    fn look(&mut self) {
        self.looks += 1;
        let at_older = self.looks.is_multiple_of(LOOKS_AT_OLDER);
        self.enroller.look_at_older(at_older);
        if at_older {
            let world = self.enroller.world();
            self.addresses.look(&world.home.clone());
            self.addresses.tell(|known| world.refusing.know_node(known));
        }
        self.keeper.look_at_threads();
        self.enroller.look_at_listeners();
        if self.synced && (at_older || !self.swept || self.enroller.world().refusing.is_released()) {
            self.enroller.sweep();
            self.swept = true;
        }
        if self.keeper.look() == Found::Anew {
            self.watch_anew();
        }
    }

    /// The control group of all pods is another one: so are those in it.
    fn watch_anew(&mut self) {
        match Watch::start(self.keeper.group()) {
            Ok(watch) => {
                let now = Instant::now();
                for uid in self.enroller.uids() {
                    self.enroller.group_changed(&uid, None, now);
                }
                self.watch = watch;
                self.take_groups(now);
            }
            Err(error) => {
                let group = self.keeper.group().display();
                tracing::error!(%group, %error, "cannot watch the new cgroup of all pods; retrying");
                self.keeper.again();
            }
        }
    }

    /// Ends all enrolments, and waits until their listeners are closed.
    async fn withdraw(&mut self) {
        self.enroller.world().leaving = true;
        self.enroller.withdraw_all();
        let closing = self.enroller.world().closing.clone();
        closing.close();
        closing.wait().await;
        self.synced = false;
        self.publish();
    }

    fn publish(&mut self) {
        self.table.store(Arc::new(Table {
            synced: self.synced,
            attachment: self.keeper.state().clone(),
            pods: self.enroller.status().into(),
            destinations: self.enroller.world().services.len(),
            threads_trouble: self.keeper.threads_trouble(),
        }));
    }
}

/// The next snapshot; `None`: there will be no more. Never, once that was said.
async fn next(snapshots: &mut Option<channel::Receiver<Arc<Snapshot>>>) -> Option<Arc<Snapshot>> {
    let Some(snapshots) = snapshots else { return std::future::pending().await };
    snapshots.changed().await.ok()?;
    Some(snapshots.borrow_and_update().clone())
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
