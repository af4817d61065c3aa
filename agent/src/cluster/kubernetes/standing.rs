//! How the watches fare: when all of them last heard of the API server, and what to tell the operator.
//!
//! An API server that is away is one problem, not one for each watch and attempt, and so is one that does not take the agent's
//! credentials; a missing permission is one for each verb and resource. What the API server has refused to a watch for lasting
//! stays refused while it is away: nobody else has said anything of it since.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Id,
    watch::{Failure, Pulse, Scope},
};
use crate::cluster::{
    cause::{Away, Cause, Grant},
    object::Kind,
    problem::Problem,
    source::{WatchEnd, Watches},
};

/// A connection that ends is opened again within this, which is nothing to speak of.
const GRACE: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct Standing {
    watches: BTreeMap<Id, Watch>,
    /// By resource. Outlives the watches.
    ends: BTreeMap<&'static str, BTreeMap<WatchEnd, u64>>,
    /// Resources of Gateway API that the API server was last said not to know.
    without: BTreeSet<&'static str>,
    /// What the API server's absence was told as: the same absence is told the same, whatever the next attempt says, until no watch
    /// fails for that cause any more.
    away: Option<(String, Cause)>,
}

struct Watch {
    scope: Scope,
    pulse: Arc<Pulse>,
    failing: Option<Failing>,
}

struct Failing {
    since: Instant,
    last: Instant,
    failure: Failure,
}

impl Standing {
    pub(super) fn started(&mut self, id: Id, scope: Scope, pulse: Arc<Pulse>) {
        self.watches.insert(id, Watch { scope, pulse, failing: None });
    }

    pub(super) fn ended(&mut self, id: Id) {
        self.watches.remove(&id);
    }

    pub(super) fn failed(&mut self, id: Id, failure: Failure) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        let now = Instant::now();
        watch.failing = match watch.failing.take().filter(|failing| failing.last >= watch.pulse.last()) {
            None => Some(Failing { since: now, last: now, failure }),
            Some(before) if before.failure.is_lasting() && !failure.is_lasting() => {
                Some(Failing { last: now, ..before })
            }
            Some(before) => Some(Failing { since: before.since, last: now, failure }),
        };
    }

    pub(super) fn reopened(&mut self, resource: &'static str, why: WatchEnd) {
        *self.ends.entry(resource).or_default().entry(why).or_default() += 1;
    }

    /// By resource.
    pub(super) fn watches(&self) -> BTreeMap<&'static str, Watches> {
        let ends = self.ends.iter().map(|(resource, ends)| (*resource, ends.clone()));
        let mut all: BTreeMap<_, _> =
            ends.map(|(resource, ends)| (resource, Watches { open: 0, heard: None, ends })).collect();
        for watch in self.watches.values() {
            let entry = all.entry(watch.scope.resource());
            let of = entry.or_insert_with(|| Watches { open: 0, heard: None, ends: BTreeMap::new() });
            of.open += 1;
            let heard = watch.pulse.last();
            of.heard = Some(of.heard.map_or(heard, |other| other.min(heard)));
        }
        all
    }

    /// When the watch that has heard nothing for longest last heard something, and what is wrong now.
    pub(super) fn look(&mut self, now: Instant, spoken: bool) -> (Option<Instant>, Vec<Problem>) {
        let mut refused = BTreeMap::new();
        let (mut unknown, mut without) = (BTreeSet::new(), BTreeSet::new());
        let mut away = Absence::default();
        for watch in self.watches.values_mut() {
            let heard = watch.pulse.last();
            watch.failing.take_if(|failing| failing.last < heard);
            match &watch.failing {
                Some(Failing { failure: Failure::Refused { code: 401, message, .. }, since, .. }) => {
                    let why =
                        || format!("the API server does not take the agent's credentials (401: {message})");
                    away.add(&watch.scope, now.duration_since(*since), why, Cause::Unauthorized);
                }
                Some(Failing { failure: Failure::Refused { code: 404, .. }, .. })
                    if watch.scope.kind.is_own() =>
                {
                    unknown.insert(watch.scope.resource());
                }
                // Most clusters have no Gateway API, and nothing is wrong with them.
                Some(Failing { failure, .. }) if failure.is_unknown() && watch.scope.kind.is_of_gateway() => {
                    without.insert(watch.scope.resource());
                }
                Some(Failing { failure: Failure::Refused { verb, code, message }, .. }) => {
                    let entry = refused.entry((watch.scope.resource(), *verb, *code));
                    entry
                        .or_insert_with(|| (&watch.scope, message, Vec::new()))
                        .2
                        .push(&*watch.scope.namespace);
                }
                Some(Failing { failure: Failure::Away(how, why), since, .. }) => {
                    let said = || format!("{} ({why})", how.sentence());
                    away.add(&watch.scope, now.duration_since(*since), said, Cause::Away(*how));
                }
                None => away.is_whole = false,
            }
        }
        // Before the first picture they become known one by one.
        if spoken && without != self.without {
            tell_without(&self.without, &without);
            self.without = without;
        }
        let still = |told: &(String, Cause)| away.causes.contains(&told.1);
        self.away = self.away.take().filter(still).or_else(|| away.told());
        let mut problems: Vec<_> = refused
            .into_iter()
            .map(|((resource, verb, code), refusal)| {
                let (scope, message, namespaces) = refusal;
                let effect = if scope.kind == Kind::Namespace {
                    "without them nothing new is learnt of the cluster"
                } else if scope.kind.is_optional() {
                    "those that are known stay active; if none are, all namespaces are managed without them"
                } else {
                    "what is known there stays active, and a namespace that is not known stays unmanaged"
                };
                // What the cluster names first is where to begin.
                let first = namespaces.iter().min().copied().unwrap_or_default();
                let grant = || Grant::new(verb, resource, first);
                // An API server knows the kinds that are not Sluice's own.
                let cause =
                    Cause::of_refusal(code, message, grant).unwrap_or(Cause::Away(Away::NotTheApiServer));
                let place = place(namespaces);
                let does_not = if code == 404 {
                    format!("does not know {resource}")
                } else {
                    format!("does not allow the agent to {verb} {resource}")
                };
                Problem::with_source(
                    format!("the API server {does_not}{place} ({code}: {message}): {effect}"),
                    cause,
                )
            })
            .collect();
        if !unknown.is_empty() {
            let resources = unknown.into_iter().collect::<Vec<_>>().join(" and ");
            let what = format!(
                "the API server does not know {resources} (404): all goes on without, and what was known of them stays active"
            );
            problems.push(Problem::with_source(what, Cause::Undefined));
        }
        problems.extend(self.away.as_ref().map(|(why, cause)| {
            let effect = if spoken {
                "the last snapshot stays active meanwhile"
            } else {
                "until then pods are enrolled by the state file, if there is one"
            };
            Problem::with_source(format!("{why}: {effect}"), cause.clone())
        }));
        // What the cluster goes without says nothing of how old the rest is.
        let goes_without = |watch: &&Watch| {
            let lasting = watch.failing.as_ref().is_some_and(|failing| failing.failure.is_lasting());
            watch.scope.kind.is_optional() && lasting
        };
        let standing = self.watches.values().filter(|watch| !goes_without(watch));
        (standing.map(|watch| watch.pulse.last()).min(), problems)
    }
}

/// The watches to which the API server does not respond, or not as it should.
struct Absence<'w> {
    scopes: Vec<&'w Scope>,
    /// There is none to which it does.
    is_whole: bool,
    /// Of all of them.
    causes: BTreeSet<Cause>,
    /// What is wrong, once that has been so for longer than a moment.
    why: Option<(String, Cause)>,
}

impl Default for Absence<'_> {
    fn default() -> Self {
        Self { scopes: Vec::new(), is_whole: true, causes: BTreeSet::new(), why: None }
    }
}

impl<'w> Absence<'w> {
    fn add(&mut self, scope: &'w Scope, lasts: Duration, why: impl FnOnce() -> String, cause: Cause) {
        self.scopes.push(scope);
        self.causes.insert(cause.clone());
        if lasts >= GRACE && self.why.is_none() {
            self.why = Some((why(), cause));
        }
    }

    /// With what it is about, if that is not everything.
    fn told(self) -> Option<(String, Cause)> {
        let (why, cause) = self.why?;
        if self.is_whole {
            return Some((why, cause));
        }
        let mut resources: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for scope in self.scopes {
            resources.entry(scope.resource()).or_default().push(&*scope.namespace);
        }
        let about: Vec<_> = resources
            .into_iter()
            .map(|(resource, namespaces)| format!("{resource}{}", place(namespaces)))
            .collect();
        Some((format!("{why}, asked for {}", about.join(" and ")), cause))
    }
}

/// Says which kinds of Gateway API there are none of, where that is other than before.
fn tell_without(before: &BTreeSet<&str>, now: &BTreeSet<&str>) {
    let list = |all: &BTreeSet<&str>| all.iter().copied().collect::<Vec<_>>().join(", ");
    if now.is_empty() {
        tracing::info!("Gateway API is installed: {} are watched", list(before));
    } else {
        tracing::info!(
            "the API server does not know {}: there are no such objects until Gateway API is installed, which is noticed within a \
             minute",
            list(now)
        );
    }
}

/// Where something is refused: the first few namespaces by name.
fn place(mut namespaces: Vec<&str>) -> String {
    const NAMED: usize = 3;
    namespaces.sort_unstable();
    match &*namespaces {
        [] | [""] => String::new(),
        [only] => format!(" in namespace {only}"),
        some if some.len() <= NAMED => format!(" in namespaces {}", some.join(", ")),
        many => format!(" in namespaces {} and {} more", many[..NAMED].join(", "), many.len() - NAMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watch of that number, on a kind in a namespace.
    fn started(standing: &mut Standing, id: Id, kind: Kind, namespace: &str) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse::new(Instant::now()));
        standing.started(id, Scope { kind, namespace: namespace.into() }, pulse.clone());
        pulse
    }

    fn refused(code: u16) -> Failure {
        Failure::Refused { verb: "list", code, message: "no".to_owned() }
    }

    fn away() -> Failure {
        Failure::Away(Away::Otherwise, "connection refused".to_owned())
    }

    /// What is told, after as many seconds more.
    async fn told(standing: &mut Standing, seconds: u64) -> (Option<Instant>, Vec<String>) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        let (heard, problems) = standing.look(Instant::now(), true);
        (heard, problems.into_iter().map(|problem| problem.message).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_cluster_goes_without_has_no_part_in_an_absence() {
        let mut standing = Standing::default();
        let services = started(&mut standing, 0, Kind::Service, "shop");
        started(&mut standing, 1, Kind::HttpRoute, "");
        standing.failed(1, refused(404));
        tokio::time::advance(Duration::from_secs(1000)).await;
        services.beat();
        let last = Instant::now();
        assert_eq!(told(&mut standing, 1).await, (Some(last), vec![]));
        for id in [0, 1] {
            standing.failed(id, away());
        }
        let (heard, problems) = told(&mut standing, 4).await;
        assert_eq!(heard, Some(last), "as old as what there is");
        let is = "the API server does not respond as it should (connection refused): the last snapshot stays active meanwhile";
        assert_eq!(problems, [is]);
        // The route's kind is asked for again in a minute.
        services.beat();
        let last = Instant::now();
        assert_eq!(told(&mut standing, 1).await, (Some(last), vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_are_not_taken_are_one_problem() {
        let mut standing = Standing::default();
        for (id, kind) in (0..).zip([Kind::Namespace, Kind::Service, Kind::Mesh]) {
            started(&mut standing, id, kind, "");
            tokio::time::advance(Duration::from_millis(1)).await;
            standing.failed(id, refused(401));
        }
        assert_eq!(told(&mut standing, 1).await.1, [""; 0], "for a moment");
        let (_, problems) = told(&mut standing, 3).await;
        let [one] = &problems[..] else { panic!("{problems:?}") };
        assert!(
            one.starts_with("the API server does not take the agent's credentials (401: no): the last"),
            "{one}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_away_is_named_if_the_rest_is_there() {
        let mut standing = Standing::default();
        for (id, kind) in (0..).zip([Kind::Namespace, Kind::Service, Kind::Pod]) {
            started(&mut standing, id, kind, if kind == Kind::Namespace { "" } else { "shop" });
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        standing.failed(1, away());
        let (_, problems) = told(&mut standing, 4).await;
        let [one] = &problems[..] else { panic!("{problems:?}") };
        assert!(
            one.contains("(connection refused), asked for services in namespace shop: the last"),
            "{one}"
        );
    }

    #[test]
    fn the_first_few_namespaces_are_named() {
        for (namespaces, expected) in [
            (vec![""], ""),
            (vec!["shop"], " in namespace shop"),
            (vec!["shop", "bank"], " in namespaces bank, shop"),
            (vec!["e", "d", "c", "b", "a"], " in namespaces a, b, c and 2 more"),
        ] {
            assert_eq!(place(namespaces), expected);
        }
    }
}
