//! What a service needs from elsewhere, and how that fares: this agent's part of limits of the whole cluster and their store, and
//! the keys of tokens.

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;

use super::rounded;
use crate::{
    cluster::{jwks, model::Service},
    govern::{jwt::Provider, throttle::Holds},
    lease::{self, Counted},
};

/// This agent's part of a limit of the whole cluster.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ClusterShare {
    /// By what it is counted: `leased`, `last_share` (the store is away) or `node` (by itself).
    pub counted: &'static str,
    /// What this agent may expect of it.
    pub requests_per_second: f64,
    /// Requests that it may send on at once.
    pub left: f64,
}

/// The store of limits of the whole cluster.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LimitStore {
    /// `null`: there is none.
    pub address: Option<String>,
    pub connected: bool,
    /// Why it does not answer.
    pub trouble: Option<String>,
    /// The same in a word, as in `sluice_limit_store_failing_limits`.
    pub reason: Option<&'static str>,
    /// For how long it has not.
    pub trouble_seconds: Option<f64>,
}

/// Where the keys of a provider of tokens are from.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct KeysLine {
    /// The AccessPolicy, as in `shop/orders`.
    pub policy: String,
    pub provider: String,
    /// A URI without its query, or as in `ConfigMap shop/login-keys, key jwks.json`.
    pub uri: String,
    /// How many are known; 0 while none has been fetched.
    pub keys: usize,
    /// Since they were fetched; while none has been, since they were first wanted. `null`: nobody has asked yet.
    pub age_seconds: Option<f64>,
    /// Why they could not be fetched the last time.
    pub trouble: Option<String>,
}

/// Of the service's limit with this name; `None`: it has another scope.
pub(super) fn share(services: &[Arc<Service>], rule: &str, now_nanos: u64) -> Option<ClusterShare> {
    let throttles = services.first()?.governor.all_throttles();
    let throttle = throttles
        .flat_map(|(_, throttles)| throttles.iter())
        .find(|throttle| &*throttle.rule().name == rule && throttle.holds().is_some())?;
    let counted = match throttle.holds()? {
        Holds::Leased => Counted::Leased,
        Holds::Part(part) if part < 1.0 => Counted::LastShare,
        Holds::Part(_) => Counted::Node,
    };
    Some(ClusterShare {
        counted: counted.as_str(),
        requests_per_second: rounded(throttle.share_rate()?),
        left: rounded(throttle.tally(now_nanos)?.left.max(0.0)),
    })
}

pub(super) fn store(status: &lease::Status) -> LimitStore {
    let trouble = status.trouble.as_ref();
    LimitStore {
        address: status.store.as_deref().map(str::to_owned),
        connected: status.answers,
        trouble: trouble.map(|away| away.why.to_string()),
        reason: trouble.map(|away| away.failure.as_str()),
        trouble_seconds: trouble.map(|away| seconds(away.since.elapsed())),
    }
}

/// Of a service's AccessPolicy. `states` is asked only where it names any.
pub(super) fn keys(services: &[Arc<Service>], states: impl FnOnce() -> Vec<jwks::State>) -> Vec<KeysLine> {
    let access = services.first().and_then(|service| service.access.as_ref());
    let Some((access, jwt)) = access.and_then(|access| Some((access, access.jwt.as_ref()?))) else {
        return Vec::new();
    };
    // An AccessPolicy is of the namespace of the Services that it targets.
    let origin = |provider: &Arc<Provider>| jwks::Origin::of(&provider.source, &services.first()?.namespace);
    let remote: Vec<_> =
        jwt.providers.iter().filter_map(|provider| Some((provider, origin(provider)?))).collect();
    if remote.is_empty() {
        return Vec::new();
    }
    let states = states();
    let line = |(provider, origin): (&Arc<Provider>, jwks::Origin)| {
        let state = states.iter().find(|state| state.origin == origin);
        KeysLine {
            policy: access.name.to_string(),
            provider: provider.name.to_string(),
            uri: origin.without_query(),
            keys: state.map_or(0, |state| state.keys),
            age_seconds: state.map(|state| seconds(state.age)),
            trouble: state.and_then(|state| state.trouble.as_ref()).map(ToString::to_string),
        }
    };
    remote.into_iter().map(line).collect()
}

fn seconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::govern::{
        access::Access,
        governor::Governor,
        jwt::{Jwt, Location, Number, OnNoKeys, Slot, Source},
        policy::{Behaviour, LimitKey, Mode, Policy, RateLimit, RequestMatch, Scope},
        throttle::Share,
    };

    fn limit(name: &str, scope: Scope) -> RateLimit {
        RateLimit {
            name: name.into(),
            requests: 100.0,
            interval: Duration::from_secs(1),
            burst: 100.0,
            behaviour: Behaviour::Reject,
            key: LimitKey::None,
            scope,
            mode: Mode::Enforce,
            matches: RequestMatch::default(),
        }
    }

    #[test]
    fn of_limits_of_the_whole_cluster_the_share_is_told() {
        let limits = vec![limit("all", Scope::Cluster), limit("here", Scope::Node)];
        let policy = Policy { rate_limits: limits.into_iter().map(Arc::new).collect(), ..Policy::default() };
        let governor = Governor::next(None, Arc::new(policy), 0);
        let services = [Arc::new(Service { governor: governor.clone(), ..Service::new("shop", "web", 80) })];
        let told = || {
            let share = share(&services, "all", 0).expect("it is one of the cluster");
            (share.counted, share.requests_per_second, share.left)
        };
        let throttle =
            governor.all_throttles().flat_map(|(_, throttles)| throttles.iter()).next().expect("one");
        assert_eq!(told(), ("node", 100.0, 100.0));
        throttle.set_share(Share::Lease { held: 7.5, taken: 0, rate: 40.0 }, 0);
        assert_eq!(told(), ("leased", 40.0, 7.5));
        throttle.set_share(Share::Part(0.25), 0);
        assert_eq!((told().0, told().1), ("last_share", 25.0));
        assert!(share(&services, "here", 0).is_none() && share(&[], "all", 0).is_none());
    }

    #[test]
    fn of_the_store_it_is_told_whether_it_answers() {
        let status = lease::Status {
            store: Some("redis://10.0.0.1".into()),
            answers: true,
            ..lease::Status::default()
        };
        let told = store(&status);
        assert_eq!(
            (told.address.as_deref(), told.connected, told.trouble),
            (Some("redis://10.0.0.1"), true, None)
        );
        let failure = lease::Failure::Timeout;
        let trouble = Some(lease::Away { failure, why: "it is away".into(), since: Instant::now() });
        let told = store(&lease::Status { answers: false, trouble, ..status });
        assert_eq!((told.connected, told.trouble.as_deref()), (false, Some("it is away")));
        assert_eq!(told.reason, Some("timeout"));
        assert!(told.trouble_seconds.is_some() && store(&lease::Status::default()).address.is_none());
    }

    #[test]
    fn of_keys_that_are_fetched_it_is_told_how_old_they_are() {
        let location: Location = "https://login.example.com/keys".parse().expect("a location");
        let provider = |name: &str, location: &Location| {
            Arc::new(Provider {
                name: name.into(),
                issuer: "https://login.example.com/".into(),
                audiences: vec!["web".into()],
                skew: 60,
                source: Source::Remote { location: location.clone(), every: Duration::from_secs(300) },
                on_no_keys: OnNoKeys::Deny,
                to_headers: Vec::new(),
                keys: Slot::default(),
            })
        };
        let unknown: Location = "https://new.example.com/keys".parse().expect("a location");
        let jwt = Jwt {
            providers: vec![provider("login", &location), provider("new", &unknown)],
            places: Vec::new(),
            forward: false,
            number: Number::default(),
        };
        let access = Access { name: "shop/web".into(), jwt: Some(jwt), ..Access::default() };
        let service = Service { access: Some(Arc::new(access)), ..Service::new("shop", "web", 80) };
        let state = |keys, trouble: Option<&str>| jwks::State {
            origin: location.clone().into(),
            keys,
            age: Duration::from_secs(90),
            trouble: trouble.map(|why| Arc::new(why.to_owned())),
            counts: Default::default(),
        };
        let services = [Arc::new(service)];
        let lines = keys(&services, || vec![state(2, Some("it is away"))]);
        let told =
            |line: &KeysLine| (line.provider.clone(), line.keys, line.age_seconds, line.trouble.clone());
        assert_eq!(told(&lines[0]), ("login".to_owned(), 2, Some(90.0), Some("it is away".to_owned())));
        assert_eq!(told(&lines[1]), ("new".to_owned(), 0, None, None), "nobody has asked there yet");
        assert_eq!((&*lines[0].policy, &*lines[0].uri), ("shop/web", "https://login.example.com/keys"));
        // Nobody is asked where there are none.
        let without = [Arc::new(Service::new("shop", "web", 80))];
        assert!(keys(&without, || unreachable!("nothing is fetched")).is_empty());
    }
}
