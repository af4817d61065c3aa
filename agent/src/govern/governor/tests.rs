use std::time::Duration;

use super::*;
use crate::govern::policy::{Parts, Scope, StaleBounds};
use crate::govern::{
    breaker::State,
    outcome::ErrorKind,
    per_pod::CallingPod,
    policy::{
        Behaviour, BreakerScope, CircuitBreaker, Concurrency, Fallback, FallbackAction, FallbackOn, LimitKey,
        Mode, PathMatch, RequestMatch, Retry, Timeouts,
    },
    request::tests::Plain,
    tag::Tag,
};

fn timeouts(seconds: u64) -> Timeouts {
    Timeouts { request: Some(Duration::from_secs(seconds)), ..Timeouts::default() }
}

#[test]
fn the_same_policy_is_governed_by_the_same() {
    let policy = |seconds| Arc::new(Policy { timeouts: timeouts(seconds), ..Policy::default() });
    let first = Governor::next(None, policy(1), 0);
    assert!(Arc::ptr_eq(&first, &Governor::next(Some(&first), policy(1), 1)));
    let next = Governor::next(Some(&first), policy(2), 2);
    assert!(!Arc::ptr_eq(&first, &next));
    assert_eq!(next.policy().timeouts, timeouts(2));
}

/// The one that calls, if it does not matter which.
fn pod() -> Arc<CallingPod> {
    CallingPod::new("uid-1", "shop/client")
}

/// A policy with everything that has a state of its own here.
fn whole(max_age: u64) -> Policy {
    let bounds = StaleBounds { max_age: Duration::from_secs(max_age), max_bytes: 1000 };
    let action = FallbackAction::Stale(bounds.into());
    let fallback = Fallback { name: "last".into(), on: vec![FallbackOn::Timeout], action };
    Policy {
        concurrency: Some(Concurrency {
            max_requests: 5,
            adaptive: None,
            scope: Scope::Node,
            mode: Mode::Enforce,
        }),
        circuit_breaker: Some(CircuitBreaker {
            error_count: Some(1),
            minimum_requests: 1,
            ..CircuitBreaker::default()
        }),
        retry: Some(Retry::default()),
        fallbacks: vec![Arc::new(fallback)],
        ..Policy::default()
    }
}

#[test]
fn a_change_keeps_the_state_of_what_it_did_not_change() {
    let seed = Arc::default();
    let first = Governor::next(Some(&seed), Arc::new(whole(1)), 0);
    let permit = first.limiter().unwrap().try_acquire(&pod(), 0).unwrap();
    let gray: Tag = "gray".parse().unwrap();
    let leave = first.breakers().unwrap().of(&pod(), Some(&gray)).try_acquire(0).unwrap();
    leave.finish(ErrorKind::Connect.into(), 1);

    let next = Governor::next(Some(&first), Arc::new(Policy { timeouts: timeouts(1), ..whole(2) }), 2);
    assert_eq!(next.limiter().unwrap().in_flight(), 1);
    assert_eq!(next.breakers().unwrap().of(&pod(), Some(&gray)).state(2), State::Open);
    assert_eq!(next.breakers().unwrap().of(&pod(), None).state(2), State::Closed);
    assert!(Arc::ptr_eq(first.budget().unwrap(), next.budget().unwrap()));
    let (before, after) = (first.stale().unwrap(), next.stale().unwrap());
    assert!(
        Arc::ptr_eq(&before.store, &after.store) && after.wanted.bounds.max_age == Duration::from_secs(2)
    );
    drop(permit);
    assert_eq!(next.limiter().unwrap().in_flight(), 0);

    let none = Governor::next(Some(&next), Arc::default(), 3);
    assert!(none.limiter().is_none() && none.breakers().is_none() && none.budget().is_none());
}

/// A policy with a rule for `/reports` that has these parts of its own.
fn ruled(policy: Policy, own: Parts, change: impl FnOnce(&mut Policy)) -> Arc<Policy> {
    let mut of_rule = Policy { rules: Vec::new(), ..policy.clone() };
    change(&mut of_rule);
    let matches =
        RequestMatch { path: Some(PathMatch::Prefix("/reports".to_owned())), ..RequestMatch::default() };
    let rule = Rule { name: "reports".into(), matches, policy: Arc::new(of_rule), own };
    Arc::new(Policy { rules: vec![Arc::new(rule)], ..policy })
}

#[test]
fn a_rule_shares_what_it_does_not_say_and_keeps_what_it_says_through_changes() {
    let limits: Parts = [Part::Concurrency].into_iter().collect();
    let one = |policy: &mut Policy| {
        policy.concurrency =
            Some(Concurrency { max_requests: 1, adaptive: None, scope: Scope::Node, mode: Mode::Enforce });
        policy.timeouts = timeouts(9);
    };
    let first = Governor::next(None, ruled(whole(1), limits, one), 0);
    assert!(first.rule_for(&Plain::get("/")).is_none());
    let reports = first.rule_for(&Plain::get("/reports/7")).expect("it holds").governor.policy().clone();
    assert_eq!((reports.timeouts, first.policy().timeouts), (timeouts(9), Timeouts::default()));
    let of = |governor: &Arc<Governor>| governor.rules()[0].clone();
    // Its own limit, and the policy's breaker, budget and answers.
    let permit = of(&first).governor.limiter().unwrap().try_acquire(&pod(), 0).unwrap();
    assert!(of(&first).governor.limiter().unwrap().try_acquire(&pod(), 0).is_err());
    assert_eq!(first.limiter().unwrap().in_flight(), 0);
    let leave = of(&first).governor.breakers().unwrap().of(&pod(), None).try_acquire(0).unwrap();
    leave.finish(ErrorKind::Connect.into(), 1);
    assert_eq!(first.breakers().unwrap().of(&pod(), None).state(2), State::Open);
    assert!(Arc::ptr_eq(of(&first).governor.budget().unwrap(), first.budget().unwrap()));
    assert!(Arc::ptr_eq(&of(&first).governor.stale().unwrap().store, &first.stale().unwrap().store));
    assert_eq!(first.all_breakers().count(), 1);
    assert_eq!(first.all_limiters().map(|(rule, _)| rule.is_some()).collect::<Vec<_>>(), [false, true]);

    // Another change keeps its state; a breaker of its own begins with none.
    let both = limits.iter().chain([Part::CircuitBreaker]).collect();
    let next = Governor::next(Some(&first), ruled(whole(2), both, one), 3);
    assert_eq!(of(&next).governor.limiter().unwrap().in_flight(), 1);
    assert_eq!(of(&next).governor.breakers().unwrap().of(&pod(), None).state(3), State::Closed);
    assert_eq!(next.breakers().unwrap().of(&pod(), None).state(3), State::Open);
    assert_eq!(next.all_breakers().count(), 2);
    drop(permit);
    assert_eq!(of(&next).governor.limiter().unwrap().in_flight(), 0);

    // What is no longer its own is the policy's, which its own limit never touched.
    let none = Governor::next(Some(&next), ruled(whole(2), Parts::default(), |_| {}), 4);
    assert!(Arc::ptr_eq(of(&none).governor.limiter().unwrap(), none.limiter().unwrap()));
    assert_eq!(none.limiter().unwrap().config().max_requests, 5);
    // And back: it begins anew, and leaves the policy's alone.
    let again = Governor::next(Some(&none), ruled(whole(2), limits, one), 5);
    let _held = of(&again).governor.limiter().unwrap().try_acquire(&pod(), 5).unwrap();
    assert_eq!(
        (again.limiter().unwrap().in_flight(), again.limiter().unwrap().config().max_requests),
        (0, 5)
    );
}

#[test]
fn a_policy_on_a_route_goes_before_the_rules_and_has_one_state() {
    let says = |policy: &Policy| {
        let concurrency =
            Some(Concurrency { max_requests: 1, adaptive: None, scope: Scope::Node, mode: Mode::Enforce });
        let own: Parts = [Part::Concurrency, Part::Timeouts].into_iter().collect();
        let policy = Policy { concurrency, timeouts: timeouts(3), rules: Vec::new(), ..policy.clone() };
        let (name, matches) = ("shop/of-route".into(), RequestMatch::default());
        Arc::new(Rule { name, matches, policy: Arc::new(policy), own })
    };
    let on_route = |policy: &Arc<Policy>| {
        let over = std::iter::once(says(policy)).chain(policy.rules.iter().map(|rule| says(&rule.policy)));
        vec![Arc::new(OnRoute { name: "shop/of-route".into(), over: over.collect() })]
    };
    let policy = ruled(whole(1), [Part::CircuitBreaker].into_iter().collect(), |policy| {
        policy.circuit_breaker = Some(CircuitBreaker { minimum_requests: 7, ..CircuitBreaker::default() });
    });
    let first = Governor::next_on(None, policy.clone(), on_route(&policy), 0);
    let name = Some("shop/of-route");
    let of = |governor: &Governor, path| {
        governor.ruled(name, &Plain::get(path)).expect("it targets the route").clone()
    };
    let (rest, reports) = (of(&first, "/"), of(&first, "/reports/7"));
    assert_eq!((&*rest.rule.name, rest.governor.policy().timeouts), ("shop/of-route", timeouts(3)));
    // One limit; below it the Service's policy, or its rule.
    assert!(Arc::ptr_eq(rest.governor.limiter().unwrap(), reports.governor.limiter().unwrap()));
    assert!(!Arc::ptr_eq(rest.governor.limiter().unwrap(), first.limiter().unwrap()));
    let breaker = |ruled: &Ruled| ruled.governor.policy().circuit_breaker.as_ref().unwrap().minimum_requests;
    assert_eq!((breaker(&rest), breaker(&reports)), (1, 7));
    assert!(Arc::ptr_eq(rest.governor.budget().unwrap(), first.budget().unwrap()));
    assert_eq!(
        first.all_limiters().map(|(rule, _)| rule.cloned()).collect::<Vec<_>>(),
        [None, Some("shop/of-route".into())]
    );
    // Other routes have the rules as they are.
    assert!(first.ruled(None, &Plain::get("/")).is_none());
    assert_eq!(&*first.ruled(Some("shop/other"), &Plain::get("/reports/7")).unwrap().rule.name, "reports");

    // What has not changed goes on; what is gone is gone.
    assert!(Arc::ptr_eq(&first, &Governor::next_on(Some(&first), policy.clone(), on_route(&policy), 1)));
    let held = rest.governor.limiter().unwrap().try_acquire(&pod(), 1).unwrap();
    let other = ruled(whole(2), Parts::default(), |_| {});
    let next = Governor::next_on(Some(&first), other.clone(), on_route(&other), 2);
    assert_eq!(of(&next, "/").governor.limiter().unwrap().in_flight(), 1);
    drop(held);
    let gone = Governor::next(Some(&next), other, 3);
    assert!(gone.ruled(name, &Plain::get("/")).is_none() && gone.routes().next().is_none());
}

#[test]
fn services_of_one_seed_share_nothing_but_memory() {
    let seed = Arc::default();
    let [one, other] = [(); 2].map(|()| Governor::next(Some(&seed), Arc::new(whole(1)), 0));
    assert!(Arc::ptr_eq(&one.memory, &other.memory));
    assert!(!Arc::ptr_eq(one.budget().unwrap(), other.budget().unwrap()));
    assert!(!Arc::ptr_eq(&one.stale().unwrap().store, &other.stale().unwrap().store));
}

#[test]
fn lanes_that_are_gone_are_forgotten() {
    let governor = Governor::next(None, Arc::new(whole(1)), 0);
    let breakers = governor.breakers().unwrap();
    let tags = ["blue", "gray"].map(|tag| tag.parse::<Tag>().unwrap());
    let there = pod();
    for tag in &tags {
        breakers.of(&there, Some(tag));
    }
    breakers.retain(|tag| *tag == tags[1]);
    let left: Vec<_> = breakers.all().into_iter().map(|one| one.lane).collect();
    assert_eq!(left, [None, Some(tags[1].clone())]);
}

/// Opens on the first error.
fn strict(scope: BreakerScope) -> Policy {
    let breaker =
        CircuitBreaker { error_count: Some(1), minimum_requests: 1, scope, ..CircuitBreaker::default() };
    Policy { circuit_breaker: Some(breaker), ..Policy::default() }
}

fn fail(breakers: &Breakers, pod: &Arc<CallingPod>) {
    let leave = breakers.of(pod, None).try_acquire(0).unwrap();
    leave.finish(ErrorKind::Status(500).into(), 1);
}

#[test]
fn what_one_pod_does_wrong_is_not_answered_to_another() {
    let (bad, good) = (CallingPod::new("1", "shop/bad"), CallingPod::new("2", "shop/good"));
    for (scope, wanted) in [(BreakerScope::Caller, State::Closed), (BreakerScope::Node, State::Open)] {
        let governor = Governor::next(None, Arc::new(strict(scope)), 0);
        let breakers = governor.breakers().unwrap();
        breakers.of(&good, None);
        fail(breakers, &bad);
        assert_eq!(breakers.of(&bad, None).state(2), State::Open, "{scope:?}");
        assert_eq!(breakers.of(&good, None).state(2), wanted, "{scope:?}");
        assert_eq!(breakers.copy_of("1", None).state(2), State::Open);
        assert_eq!(breakers.copy_of("2", None).state(2), wanted);
        assert_eq!(breakers.copy_of("3", None).state(2), wanted, "one that was never seen");
        assert_eq!((breakers.of(&bad, None).news().len(), breakers.of(&bad, None).news().len()), (1, 0));
        let states = breakers.states(2)[&None];
        assert_eq!(states, if scope == BreakerScope::Node { [0, 1, 0] } else { [1, 1, 0] });
    }
}

#[test]
fn a_change_reaches_the_breakers_of_all_pods_and_another_scope_begins_anew() {
    let (one, other) = (CallingPod::new("1", "shop/a"), CallingPod::new("2", "shop/b"));
    let first = Governor::next(None, Arc::new(strict(BreakerScope::Caller)), 0);
    for pod in [&one, &other] {
        fail(first.breakers().unwrap(), pod);
    }
    let mut longer = strict(BreakerScope::Caller);
    longer.circuit_breaker.as_mut().unwrap().open_duration = Duration::from_secs(100);
    let next = Governor::next(Some(&first), Arc::new(longer), 0);
    for pod in [&one, &other] {
        assert_eq!(next.breakers().unwrap().of(pod, None).state(50_000_000_000), State::Open);
    }
    let shared = Governor::next(Some(&next), Arc::new(strict(BreakerScope::Node)), 0);
    assert_eq!(shared.breakers().unwrap().of(&one, None).state(2), State::Closed);
}

#[test]
fn the_breakers_of_a_pod_go_with_it_and_what_they_went_through_still_counts() {
    let governor = Governor::next(None, Arc::new(strict(BreakerScope::Caller)), 0);
    let breakers = governor.breakers().unwrap();
    let (leaves, stays) = (CallingPod::new("1", "shop/a"), CallingPod::new("2", "shop/b"));
    fail(breakers, &leaves);
    fail(breakers, &stays);
    drop(leaves);
    breakers.retain(|_| true);
    assert_eq!(breakers.all().len(), 1);
    assert_eq!(breakers.transition_counts()[&None].tripped, 2);
}

/// Each side has the limits that are kept there, of rules as well, and nothing else of the policy acts at the endpoint.
#[test]
fn limits_are_kept_on_one_side() {
    let limit = |name: &str, scope| {
        Arc::new(RateLimit {
            name: name.into(),
            requests: 1.0,
            interval: Duration::from_secs(1),
            burst: 1.0,
            behaviour: Behaviour::Reject,
            key: LimitKey::None,
            scope,
            matches: RequestMatch::default(),
            mode: Mode::Enforce,
        })
    };
    let concurrency =
        |scope| Some(Concurrency { max_requests: 3, adaptive: None, scope, mode: Mode::Enforce });
    let of_rule = Policy {
        rate_limits: vec![limit("rule", Scope::Endpoint)],
        concurrency: concurrency(Scope::Node),
        ..Policy::default()
    };
    let own = [Part::RateLimits, Part::Concurrency].into_iter().collect();
    let rule = Rule { name: "all".into(), matches: RequestMatch::default(), policy: Arc::new(of_rule), own };
    let policy = Policy {
        rate_limits: vec![
            limit("node", Scope::Node),
            limit("endpoint", Scope::Endpoint),
            limit("caller", Scope::Caller),
        ],
        concurrency: concurrency(Scope::Endpoint),
        circuit_breaker: Some(CircuitBreaker::default()),
        rules: vec![rule.into()],
        ..Policy::default()
    };
    assert!(policy.limits_endpoints() && !Policy::default().limits_endpoints());
    let names = |governor: &Governor| {
        governor.throttles().iter().map(|limit| limit.rule().name.to_string()).collect::<Vec<_>>()
    };
    let policy = Arc::new(policy);
    let client = Governor::next(None, policy.clone(), 0);
    assert_eq!(names(&client), ["node", "caller"]);
    assert!(client.limiter().is_none() && client.breakers().is_some());
    let client_rule = &client.rules()[0].governor;
    assert!(names(client_rule).is_empty() && client_rule.limiter().is_some());
    let endpoint = Governor::at_endpoint(None, &policy, 0);
    assert_eq!(names(&endpoint), ["endpoint"]);
    assert!(endpoint.limiter().is_some() && endpoint.breakers().is_none());
    let endpoint_rule = &endpoint.rules()[0].governor;
    assert_eq!(names(endpoint_rule), ["rule"]);
    assert!(endpoint_rule.limiter().is_none());
    // And so it stays when the policy changes: what goes on keeps its state.
    let pod = CallingPod::new("a", "shop/a");
    let held = endpoint.limiter().unwrap().try_acquire(&pod, 0).unwrap();
    let changed = Policy {
        timeouts: Timeouts { request: Some(Duration::from_secs(1)), ..Timeouts::default() },
        ..(*policy).clone()
    };
    let next = Governor::at_endpoint(Some(&endpoint), &changed, 0);
    assert!(Arc::ptr_eq(&next, &endpoint), "nothing has changed that is asked for at the endpoint");
    let wider = Policy {
        concurrency: Some(Concurrency { max_requests: 9, ..changed.concurrency.clone().unwrap() }),
        ..changed
    };
    let next = Governor::at_endpoint(Some(&endpoint), &wider, 0);
    assert_eq!((next.limiter().unwrap().limit(), next.limiter().unwrap().in_flight()), (9, 1));
    drop(held);
}
