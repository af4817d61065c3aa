use super::*;
use crate::govern::policy::{Adaptive, Mode};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;

fn fixed(max_requests: u32) -> Concurrency {
    Concurrency { max_requests, adaptive: None, mode: Mode::Enforce }
}

fn adaptive(max_requests: u32, adaptive: Adaptive) -> Concurrency {
    Concurrency { max_requests, adaptive: Some(adaptive), mode: Mode::Enforce }
}

fn limiter(config: &Concurrency) -> Arc<Limiter> {
    Arc::new(Limiter::new(config, 0))
}

#[test]
fn a_fixed_limit_counts_what_is_in_flight() {
    let limiter = limiter(&fixed(2));
    let first = limiter.try_acquire(0).expect("there is room");
    let second = limiter.try_acquire(0).expect("there is room");
    assert_eq!(limiter.try_acquire(0).unwrap_err(), Full { limit: 2 });
    assert_eq!(limiter.in_flight(), 2);
    drop(first);
    let third = limiter.try_acquire(0).expect("a dropped permit is free");
    second.complete(MILLI, MILLI, false);
    third.complete(MILLI, MILLI, true);
    assert_eq!((limiter.in_flight(), limiter.limit()), (0, 2));
}

#[test]
fn requests_in_flight_count_on_when_the_limit_changes() {
    let before = limiter(&fixed(3));
    let held: Vec<_> = (0..3).map(|_| before.try_acquire(0).expect("there is room")).collect();
    let after = before.with_config(&fixed(2), 0);
    assert_eq!((after.in_flight(), after.limit()), (3, 2));
    assert!(after.try_acquire(0).is_err() && before.try_acquire(0).is_err());
    drop(held);
    assert_eq!(after.in_flight(), 0);
    assert!(Arc::ptr_eq(&after, &after.with_config(&fixed(2), 0)));

    let learning = after.with_config(&adaptive(100, Adaptive::default()), SECOND);
    assert_eq!(learning.limit(), 3, "it begins by measuring");
    assert_eq!(learning.with_config(&fixed(7), SECOND).limit(), 7);
}
