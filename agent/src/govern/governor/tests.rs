use std::time::Duration;

use super::*;
use crate::govern::policy::StaleBounds;
use crate::govern::{
    breaker::State,
    outcome::ErrorKind,
    policy::{
        CircuitBreaker, Concurrency, Fallback, FallbackAction, FallbackOn, Mode, PathMatch, RequestMatch,
        Retry, Timeouts,
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

/// A policy with everything that has a state of its own here.
fn whole(max_age: u64) -> Policy {
    let bounds = StaleBounds { max_age: Duration::from_secs(max_age), max_bytes: 1000 };
    let action = FallbackAction::Stale(bounds.into());
    let fallback = Fallback { name: "last".into(), on: vec![FallbackOn::Timeout], action };
    Policy {
        concurrency: Some(Concurrency { max_requests: 5, adaptive: None, mode: Mode::Enforce }),
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
    let permit = first.limiter().unwrap().try_acquire(0).unwrap();
    let gray: Tag = "gray".parse().unwrap();
    let leave = first.breakers().unwrap().of(Some(&gray)).try_acquire(0).unwrap();
    leave.finish(ErrorKind::Connect.into(), 1);

    let next = Governor::next(Some(&first), Arc::new(Policy { timeouts: timeouts(1), ..whole(2) }), 2);
    assert_eq!(next.limiter().unwrap().in_flight(), 1);
    assert_eq!(next.breakers().unwrap().of(Some(&gray)).state(2), State::Open);
    assert_eq!(next.breakers().unwrap().of(None).state(2), State::Closed);
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
fn ruled(policy: Policy, own: OwnParts, change: impl FnOnce(&mut Policy)) -> Arc<Policy> {
    let mut of_rule = Policy { rules: Vec::new(), ..policy.clone() };
    change(&mut of_rule);
    let matches =
        RequestMatch { path: Some(PathMatch::Prefix("/reports".to_owned())), ..RequestMatch::default() };
    let rule = Rule { name: "reports".into(), matches, policy: Arc::new(of_rule), own };
    Arc::new(Policy { rules: vec![Arc::new(rule)], ..policy })
}

#[test]
fn a_rule_shares_what_it_does_not_say_and_keeps_what_it_says_through_changes() {
    let limits = OwnParts { concurrency: true, ..OwnParts::default() };
    let one = |policy: &mut Policy| {
        policy.concurrency = Some(Concurrency { max_requests: 1, adaptive: None, mode: Mode::Enforce });
        policy.timeouts = timeouts(9);
    };
    let first = Governor::next(None, ruled(whole(1), limits, one), 0);
    assert!(first.rule_for(&Plain::get("/")).is_none());
    let reports = first.rule_for(&Plain::get("/reports/7")).expect("it holds").governor.policy().clone();
    assert_eq!((reports.timeouts, first.policy().timeouts), (timeouts(9), Timeouts::default()));
    let of = |governor: &Arc<Governor>| governor.rules()[0].clone();
    // Its own limit, and the policy's breaker, budget and answers.
    let permit = of(&first).governor.limiter().unwrap().try_acquire(0).unwrap();
    assert!(of(&first).governor.limiter().unwrap().try_acquire(0).is_err());
    assert_eq!(first.limiter().unwrap().in_flight(), 0);
    let leave = of(&first).governor.breakers().unwrap().of(None).try_acquire(0).unwrap();
    leave.finish(ErrorKind::Connect.into(), 1);
    assert_eq!(first.breakers().unwrap().of(None).state(2), State::Open);
    assert!(Arc::ptr_eq(of(&first).governor.budget().unwrap(), first.budget().unwrap()));
    assert!(Arc::ptr_eq(&of(&first).governor.stale().unwrap().store, &first.stale().unwrap().store));
    assert_eq!(first.all_breakers().count(), 1);
    assert_eq!(first.all_limiters().map(|(rule, _)| rule.is_some()).collect::<Vec<_>>(), [false, true]);

    // Another change keeps its state; a breaker of its own begins with none.
    let both = OwnParts { circuit_breaker: true, ..limits };
    let next = Governor::next(Some(&first), ruled(whole(2), both, one), 3);
    assert_eq!(of(&next).governor.limiter().unwrap().in_flight(), 1);
    assert_eq!(of(&next).governor.breakers().unwrap().of(None).state(3), State::Closed);
    assert_eq!(next.breakers().unwrap().of(None).state(3), State::Open);
    assert_eq!(next.all_breakers().count(), 2);
    drop(permit);
    assert_eq!(of(&next).governor.limiter().unwrap().in_flight(), 0);

    // What is no longer its own is the policy's, which its own limit never touched.
    let none = Governor::next(Some(&next), ruled(whole(2), OwnParts::default(), |_| {}), 4);
    assert!(Arc::ptr_eq(of(&none).governor.limiter().unwrap(), none.limiter().unwrap()));
    assert_eq!(none.limiter().unwrap().config().max_requests, 5);
    // And back: it begins anew, and leaves the policy's alone.
    let again = Governor::next(Some(&none), ruled(whole(2), limits, one), 5);
    let _held = of(&again).governor.limiter().unwrap().try_acquire(5).unwrap();
    assert_eq!(
        (again.limiter().unwrap().in_flight(), again.limiter().unwrap().config().max_requests),
        (0, 5)
    );
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
    for tag in &tags {
        breakers.of(Some(tag));
    }
    breakers.retain(|tag| *tag == tags[1]);
    let left: Vec<_> = breakers.all().into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(left, [None, Some(tags[1].clone())]);
}
