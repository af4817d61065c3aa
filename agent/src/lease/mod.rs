//! Limits of the whole cluster: this agent's shares of them, leased from a store that all agents share.
//!
//! A rate limit with `scope: Cluster` is one for all nodes. Its bucket here ([`crate::govern::throttle`]) knows only the
//! share that it is given; this room finds out how much that is. [`Leases`] follows the snapshots, looks every
//! 20 ms at what the buckets are asked for, and calls the store (a Valkey or Redis) ahead of need: `ledger` is what is said,
//! `holder` when and about what, `store` and `resp` how. No request waits for any of it. While the store is
//! away each bucket goes on with the agent's last share.
//!
//! ARCHITECTURE.md#limits-of-the-whole-cluster has the formulas.

#[cfg(test)]
mod double;
mod holder;
mod ledger;
mod resp;
#[cfg(test)]
mod simulation;
mod store;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::time::{MissedTickBehavior, interval};

pub use self::store::Unusable;
use self::{
    holder::Holder,
    ledger::Reply,
    store::{Asked, Store, Trouble},
};
use crate::{
    clock::Nanos,
    cluster::model::{Current, Service, Snapshot},
    config::LimitStore,
    govern::{policy::Scope, throttle::Throttle},
};

/// How often is looked at what is asked for.
const LOOK: Duration = Duration::from_millis(20);
/// How often is looked for limits that have come or gone.
const FOLLOW: Duration = Duration::from_millis(200);
/// How long the agent waits until it connects again: twice as long each time, by lot between half of it and all.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Calls that go out together: more of them would not be answered in time.
const MOST_CALLS: usize = 500;
/// For so long the store has to answer without a failure until nothing is wrong with it any more.
const STEADY: Duration = Duration::from_secs(10);

/// How limits of the whole cluster stand on this node.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Where the store is; `None`: there is none.
    pub store: Option<Arc<str>>,
    /// What was wrong with it last, and since when something is: until it has answered for a while without a failure.
    pub trouble: Option<(Arc<str>, Instant)>,
    /// The last call was answered.
    pub answers: bool,
    /// Limits about which the store answers with an error although it answers others, and with which.
    pub refused: BTreeMap<Arc<str>, Arc<str>>,
    /// The limits, by service and name, as in `shop/orders:80 all`.
    pub limits: Arc<BTreeMap<Arc<str>, Counted>>,
    /// Calls that were answered, and those that were not.
    pub answered: u64,
    pub failed: u64,
}

/// By what a limit of the whole cluster is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// By what is leased from the store.
    Leased,
    /// By this agent's last share, while the store is away.
    LastShare,
    /// On this node by itself, because the store has never answered about it or there is none.
    Node,
}

impl Counted {
    pub const ALL: [Self; 3] = [Self::Leased, Self::LastShare, Self::Node];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::LastShare => "last_share",
            Self::Node => "node",
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::Leased => {
                "The agents of the cluster share it: this one has leased its part from the store."
            }
            Self::LastShare => "The store does not answer: the agent goes on with its last part of it.",
            Self::Node => {
                "It is counted on this node by itself, as with `scope: Node`: there is no store, or it has not answered yet."
            }
        }
    }
}

/// The shares of this agent.
#[derive(Debug, Default)]
pub struct Leases {
    store: Option<Arc<str>>,
    trouble: ArcSwap<Option<(Arc<str>, Instant)>>,
    answers: std::sync::atomic::AtomicBool,
    limits: ArcSwap<BTreeMap<Arc<str>, Counted>>,
    refused: ArcSwap<BTreeMap<Arc<str>, Arc<str>>>,
    throttles: ArcSwap<Vec<(Rule, Arc<Throttle>)>>,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Leases {
    /// Starts to lease shares of what the snapshots ask for. What comes with it is to run until the agent ends.
    ///
    /// # Errors
    /// The store cannot be used as the operator says.
    pub fn start(
        config: &LimitStore,
        current: Current,
    ) -> Result<(Arc<Self>, impl Future<Output = Infallible> + use<>), Unusable> {
        let store = Store::new(config)?;
        let address = store.as_ref().map(|store| store.address().to_string().into());
        let leases = Arc::new(Self { store: address, ..Self::default() });
        let task = Task {
            leases: leases.clone(),
            store,
            current,
            // Nobody else's, also not that of the agent before it.
            identity: format!("{:016x}", fastrand::u64(..)),
            limits: BTreeMap::new(),
            followed: None,
            wait: FIRST_WAIT,
            retry: Instant::now(),
            answers_since: None,
            has_answered: false,
        };
        Ok((leases, task.run()))
    }

    pub fn status(&self) -> Status {
        Status {
            store: self.store.clone(),
            trouble: (**self.trouble.load()).clone(),
            answers: self.answers.load(Relaxed),
            limits: self.limits.load_full(),
            refused: (**self.refused.load()).clone(),
            answered: self.answered.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }

    /// How many requests a second of each limit this agent may send on at the moment. Limits of one name count together, as rules of
    /// a policy may have them.
    pub fn shares(&self) -> BTreeMap<Rule, f64> {
        let mut shares = BTreeMap::new();
        for (rule, throttle) in &**self.throttles.load() {
            if let Some(rate) = throttle.share_rate() {
                *shares.entry(rule.clone()).or_default() += rate;
            }
        }
        shares
    }
}

/// A limit by its name, for metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
    pub rule: Arc<str>,
}

/// A limit, and what this agent holds of it.
struct Limit {
    throttle: Arc<Throttle>,
    holder: Holder,
}

struct Task {
    leases: Arc<Leases>,
    store: Option<Store>,
    current: Current,
    identity: String,
    limits: BTreeMap<Arc<str>, Limit>,
    /// The snapshot that was last looked at, and when.
    followed: Option<(u64, Instant)>,
    wait: Duration,
    retry: Instant,
    /// Since when the store has answered without a failure.
    answers_since: Option<Instant>,
    /// It has ever answered.
    has_answered: bool,
}

impl Task {
    async fn run(mut self) -> Infallible {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.limits.is_empty() || self.store.is_none() {
                tokio::time::sleep(FOLLOW).await;
            } else {
                looks.tick().await;
            }
            self.follow();
            if let Some(mut store) = self.store.take() {
                self.look(&mut store).await;
                self.store = Some(store);
            }
        }
    }

    /// Takes up the limits of the current snapshot.
    fn follow(&mut self) {
        if self.followed.is_some_and(|(_, at)| at.elapsed() < FOLLOW) {
            return;
        }
        let snapshot = self.current.load();
        if self.followed.is_some_and(|(generation, _)| generation == snapshot.generation) {
            return;
        }
        self.followed = Some((snapshot.generation, Instant::now()));
        let mut before = std::mem::take(&mut self.limits);
        let mut throttles = Vec::new();
        for (name, (rule, throttle)) in limits(&snapshot) {
            throttles.push((rule, throttle.clone()));
            let limit = match before.remove(&name) {
                Some(limit) if limit.throttle.is_same(&throttle) => Limit { throttle, ..limit },
                _ => Limit { throttle, holder: Holder::default() },
            };
            self.limits.insert(name, limit);
        }
        drop(snapshot);
        let mut refused = (**self.leases.refused.load()).clone();
        refused.retain(|name, _| self.limits.contains_key(name));
        self.leases.refused.store(Arc::new(refused));
        self.leases.throttles.store(Arc::new(throttles));
        self.tell();
    }

    /// Renews what is due.
    async fn look(&mut self, store: &mut Store) {
        if self.limits.is_empty() {
            store.disconnect();
            self.leases.answers.store(false, Relaxed);
            return;
        }
        if !store.is_connected() {
            if Instant::now() < self.retry {
                return;
            }
            if let Err(trouble) = store.connect().await {
                self.lose(&trouble);
                return;
            }
        }
        let now = Nanos::now().0;
        let mut asked = Vec::new();
        for (name, Limit { throttle, holder }) in &mut self.limits {
            let Some(tally) = throttle.tally(now) else { continue };
            if asked.len() < MOST_CALLS && holder.is_due(&tally, now) {
                let call = holder.call(throttle.rule(), &tally, fastrand::f64(), now);
                asked.push(Asked { limit: name.clone(), holder: self.identity.clone(), call });
            }
        }
        if asked.is_empty() {
            return;
        }
        match store.renew(&asked).await {
            Ok(replies) => {
                self.take(&asked, replies);
                self.found(store);
            }
            Err(trouble) => {
                self.leases.failed.fetch_add(asked.len() as u64, Relaxed);
                self.lose(&trouble);
            }
        }
    }

    /// Gives each limit what the store has said of it.
    fn take(&mut self, asked: &[Asked], replies: Vec<Result<Reply, String>>) {
        let now = Nanos::now().0;
        let (mut changed, mut answered) = (false, 0);
        let mut refused = (**self.leases.refused.load()).clone();
        for (asked, reply) in asked.iter().zip(replies) {
            let Some(Limit { throttle, holder }) = self.limits.get_mut(&asked.limit) else { continue };
            let was_leased = holder.is_leased();
            let share = match reply {
                Ok(reply) => {
                    answered += 1;
                    refused.remove(&asked.limit);
                    Some(holder.answered(reply, asked.call.used, now))
                }
                Err(why) => {
                    let Some(tally) = throttle.tally(now) else { continue };
                    let told = refused.insert(asked.limit.clone(), why.as_str().into());
                    if told.is_none() {
                        tracing::warn!(limit = %asked.limit, why, "the store of rate limits with scope Cluster answers with an error about this one");
                    }
                    holder.refused(&tally, now)
                }
            };
            changed |= was_leased != holder.is_leased();
            if let Some(share) = share {
                throttle.set_share(share, now);
            }
        }
        self.leases.answered.fetch_add(answered, Relaxed);
        self.leases.failed.fetch_add(asked.len() as u64 - answered, Relaxed);
        if **self.leases.refused.load() != refused {
            self.leases.refused.store(Arc::new(refused));
        }
        if changed {
            self.tell();
        }
    }

    /// The store answers.
    fn found(&mut self, store: &Store) {
        self.wait = FIRST_WAIT;
        self.leases.answers.store(true, Relaxed);
        let since = *self.answers_since.get_or_insert_with(Instant::now);
        let troubled = self.leases.trouble.load().is_some();
        if troubled && since.elapsed() >= STEADY {
            self.leases.trouble.store(Arc::new(None));
            tracing::info!(store = %store.address(), "the store of rate limits with scope Cluster answers again");
        } else if !troubled && !self.has_answered {
            tracing::info!(store = %store.address(), "the store of rate limits with scope Cluster answers");
        }
        self.has_answered = true;
    }

    /// The store is away: each limit goes on with the last share.
    fn lose(&mut self, trouble: &Trouble) {
        let now = Nanos::now().0;
        for Limit { throttle, holder } in self.limits.values_mut() {
            let Some(tally) = throttle.tally(now) else { continue };
            if let Some(share) = holder.lost(&tally, now) {
                throttle.set_share(share, now);
            }
        }
        self.leases.answers.store(false, Relaxed);
        self.answers_since = None;
        let before = self.leases.trouble.load_full();
        let since = (*before).as_ref().map_or_else(Instant::now, |(_, since)| *since);
        if before.is_none() {
            tracing::warn!(
                store = self.leases.store.as_deref().unwrap_or_default(),
                %trouble,
                "the store of rate limits with scope Cluster fails: each agent goes on with its last share of them, or on \
                 its own where it has none, and tries again"
            );
        }
        self.leases.trouble.store(Arc::new(Some((trouble.to_string().into(), since))));
        let wait = self.wait.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.retry = Instant::now() + wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        self.tell();
    }

    fn tell(&self) {
        let counted = |holder: &Holder| match (holder.is_leased(), holder.has_share()) {
            (true, _) => Counted::Leased,
            (false, true) => Counted::LastShare,
            (false, false) => Counted::Node,
        };
        let limits = self.limits.iter().map(|(name, limit)| (name.clone(), counted(&limit.holder)));
        self.leases.limits.store(Arc::new(limits.collect()));
    }
}

type Limits = BTreeMap<Arc<str>, (Rule, Arc<Throttle>)>;

/// The limits of the whole cluster that a snapshot has, by their names.
fn limits(snapshot: &Snapshot) -> Limits {
    let dialled = snapshot.destinations.iter().map(|(_, destination)| &destination.service);
    let groups = snapshot.routes.values().flat_map(|routed| routed.groups());
    let mut all = Limits::new();
    for service in dialled.chain(groups.flat_map(|group| group.backends.values())) {
        add(service, &mut all);
    }
    all
}

fn add(service: &Service, all: &mut Limits) {
    for (of, throttles) in service.governor.all_throttles() {
        for throttle in throttles.iter().filter(|throttle| throttle.rule().scope == Scope::Cluster) {
            let of = of.map_or_else(String::new, |of| format!("{of} "));
            let name = format!("{service} {of}{}", throttle.rule().name);
            // Both families of a service have the same governor, and so has each of its addresses.
            let rule = || Rule {
                namespace: service.namespace.clone(),
                service: service.name.clone(),
                port: service.port,
                rule: throttle.rule().name.clone(),
            };
            all.entry(name.into()).or_insert_with(|| (rule(), throttle.clone()));
        }
    }
}
