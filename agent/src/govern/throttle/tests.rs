//! Whole rules. The arithmetic has tests of its own.

use super::*;
use crate::govern::{
    policy::{Behaviour, Mode, RequestMatch},
    request::tests::Plain,
};

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
