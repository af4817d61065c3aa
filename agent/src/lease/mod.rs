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
mod failure;
mod holder;
mod ledger;
mod resp;
#[cfg(test)]
mod simulation;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::time::{MissedTickBehavior, interval};

pub use self::{failure::Failure, store::Unusable};
use self::{
    failure::Said,
    holder::Holder,
    store::{Answer, Asked, Store, Trouble},
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
    /// What is wrong with it: until it has answered for a while without a failure.
    pub trouble: Option<Away>,
    /// The last call was answered.
    pub answers: bool,
    /// Limits about which the store answers with an error although it answers others, and with which.
    pub refused: BTreeMap<Arc<str>, Refused>,
    /// The limits, by service and name, as in `shop/orders:80 all`.
    pub limits: Arc<BTreeMap<Arc<str>, Counted>>,
    /// Calls that were answered, and those that were not.
    pub answered: u64,
    pub failed: u64,
}

impl Status {
    /// How many limits are without their store for this reason, or need somebody who looks after it.
    pub fn failing(&self, failure: Failure) -> usize {
        match &self.trouble {
            Some(away) if !self.answers => {
                if away.failure == failure {
                    self.limits.len()
                } else {
                    0
                }
            }
            _ => self.refused.values().filter(|refused| refused.failure == failure).count(),
        }
    }
}

/// The store is away, or was a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// What was wrong last.
    pub failure: Failure,
    pub why: Arc<str>,
    /// Since when something has been.
    pub since: Instant,
}

/// An error of the store about one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub failure: Failure,
    pub why: Arc<str>,
    /// The limit is leased all the same, by way of a second key.
    pub is_leased: bool,
}

/// By what a limit of the whole cluster is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// By what is leased from the store.
    Leased,
    /// By this agent's last share, or by an even one, while the store is away.
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
    trouble: ArcSwap<Option<Away>>,
    answers: std::sync::atomic::AtomicBool,
    limits: ArcSwap<BTreeMap<Arc<str>, Counted>>,
    refused: ArcSwap<BTreeMap<Arc<str>, Refused>>,
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
            told: BTreeSet::new(),
            agents: None,
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
    /// What the log has said of this absence.
    told: BTreeSet<Failure>,
    /// How many agents there are, as the store has said last.
    agents: Option<u64>,
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
    fn take(&mut self, asked: &[Asked], answers: Vec<Answer>) {
        let now = Nanos::now().0;
        let (mut changed, mut answered) = (false, 0);
        let agents = answers.iter().filter_map(|answer| match answer {
            Answer::Leased(reply) | Answer::Instead(reply, _) => Some(reply.agents),
            Answer::Refused(_) => None,
        });
        self.agents = agents.max().or(self.agents);
        let mut refused = (**self.leases.refused.load()).clone();
        for (asked, answer) in asked.iter().zip(answers) {
            let Some(Limit { throttle, holder }) = self.limits.get_mut(&asked.limit) else { continue };
            let before = (holder.is_leased(), holder.has_share());
            let (reply, said) = match answer {
                Answer::Leased(reply) => (Some(reply), None),
                Answer::Instead(reply, said) => (Some(reply), Some(said)),
                Answer::Refused(said) => (None, Some(said)),
            };
            match said {
                Some(said) => refuse(&mut refused, &asked.limit, &said, reply.is_some()),
                None => {
                    if refused.remove(&asked.limit).is_some() {
                        tracing::info!(limit = %asked.limit, "the store of rate limits with scope Cluster has no error about this one any more");
                    }
                }
            }
            let share = match reply {
                Some(reply) => {
                    answered += 1;
                    Some(holder.answered(reply, asked.call.used, now))
                }
                None => throttle.tally(now).and_then(|tally| holder.refused(&tally, self.agents, now)),
            };
            changed |= before != (holder.is_leased(), holder.has_share());
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
            self.told.clear();
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
            if let Some(share) = holder.lost(&tally, self.agents, now) {
                throttle.set_share(share, now);
            }
        }
        self.leases.answers.store(false, Relaxed);
        self.answers_since = None;
        let before = self.leases.trouble.load_full();
        let since = (*before).as_ref().map_or_else(Instant::now, |away| away.since);
        let failure = trouble.failure();
        // Each kind once, however often they take turns.
        if self.told.insert(failure) {
            tracing::warn!(
                store = self.leases.store.as_deref().unwrap_or_default(),
                %trouble,
                reason = failure.as_str(),
                "the store of rate limits with scope Cluster fails: each agent goes on with its last share of them, or on \
                 its own where it has none, and tries again"
            );
        }
        let away = Away { failure, why: trouble.to_string().into(), since };
        self.leases.trouble.store(Arc::new(Some(away)));
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

/// Keeps what the store says about one limit, and logs it if it is new.
fn refuse(refused: &mut BTreeMap<Arc<str>, Refused>, limit: &Arc<str>, said: &Said, is_leased: bool) {
    let now = Refused { failure: said.failure, why: said.to_string().into(), is_leased };
    let is_new = |before: &Refused| (before.failure, before.is_leased) != (now.failure, now.is_leased);
    if refused.get(limit).is_none_or(is_new) {
        let follows = if is_leased {
            "agents lease it by way of a second key"
        } else {
            "each agent goes on with its last share of it, or with an even one"
        };
        tracing::warn!(%limit, why = %said, reason = said.failure.as_str(), follows, "the store of rate limits with scope Cluster answers with an error about this one");
    }
    refused.insert(limit.clone(), now);
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
