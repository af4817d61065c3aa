use std::thread;

use proptest::prelude::*;

use super::*;
use crate::govern::policy::{Adaptive, Mode, Scope};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;

fn fixed(max_requests: u32) -> Concurrency {
    Concurrency { max_requests, adaptive: None, scope: Scope::Node, mode: Mode::Enforce }
}

fn adaptive(max_requests: u32, adaptive: Adaptive) -> Concurrency {
    Concurrency { max_requests, adaptive: Some(adaptive), scope: Scope::Node, mode: Mode::Enforce }
}

fn limiter(config: &Concurrency) -> Arc<Limiter> {
    Arc::new(Limiter::new(config, 0))
}

fn pod() -> Arc<CallingPod> {
    CallingPod::new("1", "shop/client")
}

#[test]
fn a_fixed_limit_counts_what_is_in_flight() {
    let pod = pod();
    let limiter = limiter(&fixed(2));
    let first = limiter.try_acquire(&pod, 0).expect("there is room");
    let second = limiter.try_acquire(&pod, 0).expect("there is room");
    assert_eq!(limiter.try_acquire(&pod, 0).unwrap_err(), Full { limit: 2 });
    assert_eq!(limiter.in_flight(), 2);
    drop(first);
    let third = limiter.try_acquire(&pod, 0).expect("a dropped permit is free");
    second.complete(MILLI, MILLI, false);
    third.complete(MILLI, MILLI, true);
    assert_eq!((limiter.in_flight(), limiter.limit()), (0, 2));
}

#[test]
fn a_request_may_have_places_of_several_limits() {
    let (pod, limiters) = (pod(), [1, 2, 3].map(|most| limiter(&fixed(most))));
    let in_flight = || limiters.each_ref().map(|limiter| limiter.in_flight());
    let all = || {
        let places = limiters.each_ref().map(|limiter| limiter.try_acquire(&pod, 0).expect("there is room"));
        places.into_iter().reduce(Permit::and).expect("there are three")
    };
    let held = all();
    assert_eq!(in_flight(), [1, 1, 1]);
    drop(held);
    assert_eq!(in_flight(), [0, 0, 0]);
    all().complete(MILLI, MILLI, false);
    assert_eq!(in_flight(), [0, 0, 0]);
}

#[test]
fn requests_in_flight_count_on_when_the_limit_changes() {
    let pod = pod();
    let before = limiter(&fixed(3));
    let held: Vec<_> = (0..3).map(|_| before.try_acquire(&pod, 0).expect("there is room")).collect();
    let after = before.with_config(&fixed(2), 0);
    assert_eq!((after.in_flight(), after.limit()), (3, 2));
    assert!(after.try_acquire(&pod, 0).is_err() && before.try_acquire(&pod, 0).is_err());
    drop(held);
    assert_eq!(after.in_flight(), 0);
    assert!(Arc::ptr_eq(&after, &after.with_config(&fixed(2), 0)));

    let learning = after.with_config(&adaptive(100, Adaptive::default()), SECOND);
    assert_eq!(learning.limit(), 100, "nothing says that the service does not keep up");
    assert_eq!(learning.with_config(&fixed(7), SECOND).limit(), 7);
}

#[test]
fn workers_never_hold_more_permits_than_the_limit() {
    let (limiter, pod) = (limiter(&fixed(5)), pod());
    let (held, most, refused) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for now in 0..2000 {
                    match limiter.try_acquire(&pod, now) {
                        Ok(permit) => {
                            most.fetch_max(held.fetch_add(1, AcqRel) + 1, AcqRel);
                            thread::yield_now();
                            held.fetch_sub(1, AcqRel);
                            permit.complete(1, now, false);
                        }
                        Err(Full { limit }) => {
                            assert_eq!(limit, 5);
                            refused.fetch_add(1, AcqRel);
                        }
                    }
                }
            });
        }
    });
    assert!(most.into_inner() <= 5);
    assert!(refused.into_inner() > 0);
    assert_eq!(limiter.in_flight(), 0);
}

proptest! {
    /// However requests end and the limit changes: nobody gets a permit beyond what the limit is then.
    #[test]
    fn permits_never_exceed_the_limit(
        steps in prop::collection::vec((0..5u8, 0..200 * MILLI, 0..40usize), 1..300),
        least in 1..5u32,
        most in 1..60u32,
    ) {
        let pod = pod();
        let learning = Adaptive { min_requests: least, ..Adaptive::default() };
        let mut limiter = limiter(&adaptive(most, learning.clone()));
        let (mut now, mut permits) = (0, Vec::new());
        for (what, number, which) in steps {
            match what {
                0 => now += number,
                1 | 2 => match limiter.try_acquire(&pod, now) {
                    Ok(permit) => {
                        permits.push(permit);
                        prop_assert!(permits.len() as u32 <= limiter.limit());
                    }
                    Err(full) => {
                        prop_assert_eq!(full.limit, limiter.limit());
                        prop_assert!(permits.len() as u32 >= full.limit);
                    }
                },
                3 if which < permits.len() => {
                    permits.swap_remove(which).complete(number, now, number % 7 == 0);
                }
                4 if which < permits.len() => drop(permits.swap_remove(which)),
                4 => {
                    let next = if which % 2 == 0 { fixed(1 + which as u32) } else { adaptive(most, learning.clone()) };
                    limiter = limiter.with_config(&next, now);
                }
                _ => {}
            }
            prop_assert_eq!(limiter.in_flight() as usize, permits.len());
        }
        drop(permits);
        prop_assert_eq!(limiter.in_flight(), 0);
    }
}
