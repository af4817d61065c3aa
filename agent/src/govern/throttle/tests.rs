//! Whole rules: keys, changes, accuracy. The arithmetic has tests of its own.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
};

use http::{HeaderName, Method};

use super::*;
use crate::govern::{
    path::disguise::{EVASIONS, Of, disguised},
    policy::{Behaviour, Mode, PathMatch, RequestMatch},
    request::tests::Plain,
};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;

fn rule(requests: f64, burst: f64, behaviour: Behaviour) -> RateLimit {
    RateLimit {
        name: "limit".into(),
        requests,
        interval: Duration::from_secs(1),
        burst,
        behaviour,
        key: LimitKey::None,
        scope: Scope::Node,
        matches: RequestMatch::default(),
        mode: Mode::Enforce,
    }
}

fn reject(requests: f64, burst: f64) -> RateLimit {
    rule(requests, burst, Behaviour::Reject)
}

fn queue(requests: f64, burst: f64, timeout: Duration) -> RateLimit {
    rule(requests, burst, Behaviour::Queue { timeout })
}

fn throttle(rule: RateLimit) -> Arc<Throttle> {
    Arc::new(Throttle::new(Arc::new(rule)))
}

fn ask(throttle: &Throttle, caller: &str, now_nanos: u64) -> Admission {
    throttle.admit(&Plain::get("/"), caller, now_nanos).expect("the rule is about every request")
}

fn after(millis: u64) -> Admission {
    Admission::After(Duration::from_millis(millis))
}

fn refused(millis: u64) -> Admission {
    Admission::Refused { retry_after: Duration::from_millis(millis) }
}

#[test]
fn what_is_above_the_limit_is_refused_and_told_when_to_come_back() {
    let limit = throttle(reject(10.0, 3.0));
    for (at_millis, wanted) in [
        (0, Admission::Now),
        (0, Admission::Now),
        (0, Admission::Now),
        (0, refused(100)),
        (40, refused(60)),
        (99, refused(1)),
        (100, Admission::Now),
        (100, refused(100)),
        // Two are regained, and never more than the burst.
        (300, Admission::Now),
        (300, Admission::Now),
        (300, refused(100)),
        (9000, Admission::Now),
        (9000, Admission::Now),
        (9000, Admission::Now),
        (9000, refused(100)),
    ] {
        assert_eq!(ask(&limit, "a", at_millis * MILLI), wanted, "at {at_millis} ms");
    }
}

#[test]
fn a_queue_paces_and_refuses_who_would_wait_too_long() {
    let limit = throttle(queue(10.0, 1.0, Duration::from_millis(250)));
    for (at_millis, wanted) in [
        (0, Admission::Now),
        (0, after(100)),
        (0, after(200)),
        (0, refused(50)),
        (49, refused(1)),
        (50, after(250)),
        (300, after(100)),
        (1000, Admission::Now),
    ] {
        assert_eq!(ask(&limit, "a", at_millis * MILLI), wanted, "at {at_millis} ms");
    }
}

#[test]
fn a_queue_may_begin_with_a_burst() {
    let limit = throttle(queue(10.0, 2.0, Duration::from_millis(100)));
    let answers: Vec<_> = (0..4).map(|_| ask(&limit, "a", 0)).collect();
    assert_eq!(answers, [Admission::Now, Admission::Now, after(100), refused(100)]);
}

#[test]
fn a_rule_says_nothing_of_other_requests() {
    let writes = RequestMatch { methods: vec![Method::POST], ..RequestMatch::default() };
    let limit = throttle(RateLimit { matches: writes, ..reject(1.0, 1.0) });
    let write = Plain { method: "POST", ..Plain::get("/") };
    assert_eq!(limit.admit(&write, "a", 0), Some(Admission::Now));
    assert_eq!(limit.admit(&Plain::get("/"), "a", 0), None);
    assert_eq!(limit.admit(&write, "a", 0), Some(refused(1000)));
}

#[test]
fn each_value_of_the_key_is_counted_by_itself() {
    let user = HeaderName::from_static("x-user");
    let of = |value| Plain::get("/").with("x-user", value);
    let query = |target| Plain::get(target);
    // Of each pair of (caller, request): whether the second is counted with the first.
    for (key, scope, first, second, together) in [
        (LimitKey::None, Scope::Node, ("a", of("1")), ("b", of("2")), true),
        (LimitKey::None, Scope::Caller, ("a", of("1")), ("b", of("1")), false),
        (LimitKey::None, Scope::Caller, ("a", of("1")), ("a", of("2")), true),
        (LimitKey::Caller, Scope::Node, ("a", of("1")), ("b", of("1")), false),
        (LimitKey::Caller, Scope::Caller, ("a", of("1")), ("a", of("2")), true),
        (LimitKey::Header(user.clone()), Scope::Node, ("a", of("1")), ("b", of("1")), true),
        (LimitKey::Header(user.clone()), Scope::Node, ("a", of("1")), ("a", of("2")), false),
        (LimitKey::Header(user.clone()), Scope::Caller, ("a", of("1")), ("b", of("1")), false),
        (LimitKey::Header(user.clone()), Scope::Node, ("a", Plain::get("/")), ("b", Plain::get("/x")), true),
        (LimitKey::Header(user), Scope::Node, ("a", Plain::get("/")), ("a", of("")), false),
        (
            LimitKey::QueryParameter("u".into()),
            Scope::Node,
            ("a", query("/?u=1")),
            ("b", query("/x?v&u=%31")),
            true,
        ),
        (
            LimitKey::QueryParameter("u".into()),
            Scope::Node,
            ("a", query("/?u=1")),
            ("a", query("/?u=2")),
            false,
        ),
    ] {
        let limit = throttle(RateLimit { key: key.clone(), scope, ..reject(1.0, 1.0) });
        assert_eq!(limit.admit(&first.1, first.0, 0), Some(Admission::Now));
        assert_eq!(limit.admit(&first.1, first.0, 0), Some(refused(1000)));
        let answer = limit.admit(&second.1, second.0, 0).expect("the rule is about it");
        assert_eq!(matches!(answer, Admission::Refused { .. }), together, "{key:?} {scope:?}");
    }
}

#[test]
fn a_rule_that_changes_goes_on_with_its_state_and_so_do_those_who_still_hold_the_old_one() {
    let old = throttle(reject(10.0, 10.0));
    for _ in 0..6 {
        assert_eq!(ask(&old, "a", 0), Admission::Now);
    }
    assert!(Arc::ptr_eq(&old, &old.with_rule(Arc::new(reject(10.0, 10.0)), 0)));
    let new = old.with_rule(Arc::new(reject(20.0, 10.0)), 0);
    assert_eq!((ask(&new, "a", 0), ask(&old, "a", 0)), (Admission::Now, Admission::Now));
    assert_eq!((ask(&new, "a", 0), ask(&old, "a", 0)), (Admission::Now, Admission::Now));
    assert_eq!((ask(&new, "a", 0), ask(&old, "a", 0)), (refused(50), refused(50)));

    let only_observed = new.with_rule(Arc::new(RateLimit { mode: Mode::Observe, ..reject(20.0, 10.0) }), 0);
    assert_eq!(ask(&only_observed, "a", 0), refused(50));
    assert_eq!(only_observed.rule().mode, Mode::Observe);

    let by_caller = new.with_rule(Arc::new(RateLimit { key: LimitKey::Caller, ..reject(20.0, 10.0) }), 0);
    assert_eq!(ask(&by_caller, "a", 0), Admission::Now, "other keys are counted anew");
}

#[test]
fn ten_times_the_limit_lets_the_limit_through() {
    for requests in [7.0, 100.0, 1000.0, 20_000.0] {
        // The burst that a policy has if it says nothing.
        let limit = throttle(reject(requests, requests));
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut now, mut admitted) = (0, 0);
        while now < 20 * SECOND {
            // Callers that know nothing of each other, one of which asks as much as all others.
            now += (-rng.f64().max(1e-9).ln() * SECOND as f64 / requests / 10.0) as u64;
            let caller = if rng.bool() { "greedy" } else { ["a", "b", "c", "d"][rng.usize(..4)] };
            let counts = ask(&limit, caller, now) == Admission::Now && now >= 10 * SECOND;
            admitted += u32::from(counts);
        }
        let share = f64::from(admitted) / (requests * 10.0);
        assert!((share - 1.0).abs() <= 0.01 + 1.0 / requests / 10.0, "{admitted} of {requests} a second");
    }
}

#[test]
fn workers_that_ask_at_once_share_one_limit() {
    let (limit, clock, admitted) = (throttle(reject(1000.0, 10.0)), AtomicU64::new(0), AtomicUsize::new(0));
    let worker = |name: &'static str| {
        let (limit, clock, admitted) = (&limit, &clock, &admitted);
        move || {
            loop {
                // 10,000 requests a second, for ten seconds.
                let now = clock.fetch_add(SECOND / 10_000, Relaxed);
                if now >= 10 * SECOND {
                    break;
                }
                admitted.fetch_add(usize::from(ask(limit, name, now) == Admission::Now), Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for name in ["a", "b", "a", "c"] {
            scope.spawn(worker(name));
        }
    });
    let admitted = admitted.into_inner();
    assert!(admitted.abs_diff(10_000) <= 100, "{admitted}");
}

#[test]
fn a_caller_that_asks_for_half_its_share_loses_nothing_to_one_that_asks_for_ten_times_the_limit() {
    let limit = throttle(reject(100.0, 100.0));
    let mut lost = 0;
    for millis in 0..20_000 {
        ask(&limit, "greedy", millis * MILLI);
        // 25 a second, where its share is 50; it comes when the other has emptied the bucket.
        if millis > 1000 && millis % 40 == 7 {
            lost += usize::from(ask(&limit, "modest", millis * MILLI) != Admission::Now);
        }
    }
    assert!(lost <= 2, "it lost {lost} of 475");
}

/// A limit on this path that nothing is left of.
fn exhausted(path: &str) -> Arc<Throttle> {
    let matches = RequestMatch { path: Some(PathMatch::Prefix(path.to_owned())), ..RequestMatch::default() };
    let limit = throttle(RateLimit { matches, ..reject(0.001, 1.0) });
    let request = Of(path.to_owned());
    assert_eq!(limit.admit(&request, "a", 0), Some(Admission::Now));
    limit
}

fn is_counted(limit: &Throttle, target: &str) -> bool {
    matches!(limit.admit(&Of(target.to_owned()), "a", 0), Some(Admission::Refused { .. }))
}

#[test]
fn a_limit_on_a_path_counts_what_some_server_takes_for_it() {
    let (actuator, metrics) = (exhausted("/actuator"), exhausted("/metrics"));
    // Case matters, for a limit is not about another path than it says.
    for target in EVASIONS.iter().filter(|target| !matches!(**target, "/ACTUATOR/env" | "/Metrics")) {
        assert!(is_counted(&actuator, target) || is_counted(&metrics, target), "{target}");
    }
    for target in [
        "/",
        "/actuators",
        "/ACTUATOR",
        "/public/actuator",
        "/a?x=/actuator",
        "/a?x=/b/../actuator",
        "*",
        "/%61",
    ] {
        assert_eq!(actuator.admit(&Of(target.to_owned()), "a", 0), None, "{target}");
    }
}

proptest::proptest! {
    #[test]
    fn no_disguise_evades_a_limit(target in disguised()) {
        proptest::prop_assert!(is_counted(&exhausted("/actuator"), &target), "{target}");
    }
}
