use http::Method;
use proptest::prelude::{prop, prop_assert, proptest};

use super::*;
use crate::govern::policy::RetryOn;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

fn standing(method: &'static str) -> Standing<'static> {
    Standing { method: method.as_bytes(), retries: 0, replayable: true, head_passed_on: false }
}

#[test]
fn only_what_the_policy_lists_is_sent_again() {
    let default = Retry::default();
    for (failure, wanted) in [
        (Failure::of_answer(502, None), true),
        (Failure::of_answer(503, None), true),
        (Failure::of_answer(504, None), true),
        (Failure::of_answer(500, None), false),
        (Failure::of_answer(429, None), false),
        (Failure::of_answer(200, None), false),
        (Failure::of_answer(404, None), false),
        (Failure::of_answer(200, Some(14)), true),
        (Failure::of_answer(200, Some(0)), false),
        (Failure::of_answer(200, Some(13)), false),
        // A proxy in between: the HTTP status says more.
        (Failure::of_answer(503, Some(13)), true),
        (Failure::of_answer(500, Some(14)), false),
        (Failure::Reset, true),
        (Failure::Timeout, true),
    ] {
        assert_eq!(may_retry(&default, failure, standing("GET")), wanted, "{failure:?}");
    }
    let none = RetryOn { statuses: vec![], grpc_statuses: vec![], reset: false, timeout: false };
    let none = Retry { on: none, ..Retry::default() };
    for failure in [Failure::Status(503), Failure::Grpc(14), Failure::Reset, Failure::Timeout] {
        assert!(!may_retry(&none, failure, standing("GET")), "{failure:?}");
    }
    let listed = RetryOn { statuses: vec![429], grpc_statuses: vec![8], ..RetryOn::default() };
    let listed = Retry { on: listed, ..Retry::default() };
    assert!(may_retry(&listed, Failure::Status(429), standing("GET")));
    assert!(may_retry(&listed, Failure::Grpc(8), standing("GET")));
    assert!(!may_retry(&listed, Failure::Grpc(14), standing("GET")));
}

#[test]
fn the_method_decides_whatever_the_failure() {
    let policy = Retry::default();
    let failures = [Failure::Status(503), Failure::Grpc(14), Failure::Reset, Failure::Timeout];
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        assert!(failures.iter().all(|failure| may_retry(&policy, *failure, standing(method))), "{method}");
    }
    // Nothing is paid for twice: neither POST nor gRPC, which is POST; nor what nobody has heard of.
    for method in ["POST", "PATCH", "CONNECT", "get", "PURGE", ""] {
        assert!(!failures.iter().any(|failure| may_retry(&policy, *failure, standing(method))), "{method}");
    }
    let post = Retry { methods: vec![Method::POST], ..Retry::default() };
    assert!(failures.iter().all(|failure| may_retry(&post, *failure, standing("POST"))));
    assert!(!may_retry(&post, Failure::Reset, standing("GET")));
}

#[test]
fn nothing_is_sent_again_that_cannot_be_or_comes_too_late() {
    let policy = Retry { attempts: 2, ..Retry::default() };
    let good = standing("GET");
    for (standing, wanted) in [
        (good, true),
        (Standing { retries: 1, ..good }, true),
        (Standing { retries: 2, ..good }, false),
        (Standing { retries: u32::MAX, ..good }, false),
        (Standing { replayable: false, ..good }, false),
        (Standing { head_passed_on: true, ..good }, false),
    ] {
        assert_eq!(may_retry(&policy, Failure::Reset, standing), wanted, "{standing:?}");
    }
}

#[test]
fn errors_that_another_attempt_does_not_help_are_known() {
    for (kind, failure) in [
        (ErrorKind::Status(502), Some(Failure::Status(502))),
        (ErrorKind::Grpc(14), Some(Failure::Grpc(14))),
        (ErrorKind::Reset, Some(Failure::Reset)),
        (ErrorKind::Timeout, Some(Failure::Timeout)),
        (ErrorKind::Connect, None),
        (ErrorKind::Protocol, None),
    ] {
        assert_eq!(Failure::of_error(kind), failure, "{kind:?}");
    }
}

#[test]
fn waits_grow_to_the_longest_and_are_spread_over_all_of_it() {
    let policy = Retry::default();
    let mut rng = Rng::with_seed(7);
    for (nth, longest) in [(0, 25), (1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (6, 250), (u32::MAX, 250)]
    {
        let waits: Vec<_> = (0..2000).map(|_| backoff(&policy, nth, &mut rng)).collect();
        let longest = Duration::from_millis(longest);
        assert!(waits.iter().all(|wait| *wait <= longest), "{nth}");
        let mean = waits.iter().sum::<Duration>() / 2000;
        assert!(mean.abs_diff(longest / 2) < longest / 20, "{nth}: {mean:?}");
        assert!(
            waits.iter().any(|wait| *wait < longest / 50)
                && waits.iter().any(|wait| *wait > longest / 50 * 49)
        );
    }
    for base in [Duration::ZERO, Duration::MAX] {
        let policy = Retry { backoff_base: base, backoff_max: base, ..Retry::default() };
        let waits = (0..100).map(|nth| backoff(&policy, nth, &mut rng));
        assert!(waits.max().is_some_and(|wait| (wait > Duration::ZERO) == (base > Duration::ZERO)));
    }
}

fn withdrawals(budget: &Budget, policy: &Retry, now_nanos: u64) -> usize {
    (0..10_000).take_while(|_| budget.try_withdraw(policy, now_nanos)).count()
}

#[test]
fn the_budget_is_a_part_of_recent_requests_or_the_floor() {
    let policy = Retry { budget_percent: 20.0, budget_minimum: 0.0, ..Retry::default() };
    let budget = Budget::default();
    assert_eq!(withdrawals(&budget, &policy, 0), 0);
    (0..4).for_each(|_| budget.deposit(0));
    assert_eq!(withdrawals(&budget, &policy, 0), 0, "four fifths of a retry");
    (0..1000).for_each(|_| budget.deposit(S));
    assert_eq!(withdrawals(&budget, &policy, 2 * S), 200);
    assert_eq!(withdrawals(&budget, &policy, 10 * S), 0);
    // Requests and retries leave the window as they have come: the retries last.
    assert_eq!(withdrawals(&budget, &policy, 11 * S), 0);
    (0..1001).for_each(|_| budget.deposit(12 * S));
    assert_eq!(withdrawals(&budget, &policy, 12 * S), 200);

    // With a floor of 10 a second: 100 in a window, as long as a fifth of the requests is not more.
    let policy = Retry::default();
    let budget = Budget::default();
    assert_eq!(withdrawals(&budget, &policy, 0), 100);
    (0..501).for_each(|_| budget.deposit(0));
    assert!((budget.balance(&policy, 0) - 0.2).abs() < 1e-9);
    (0..10).for_each(|_| budget.deposit(0));
    assert_eq!(withdrawals(&budget, &policy, 0), 2);
    assert!(budget.balance(&policy, 0) < 1.0);
}

#[test]
fn a_policy_that_changes_finds_what_was_paid_in() {
    let budget = Budget::default();
    (0..1000).for_each(|_| budget.deposit(0));
    let policy = |percent| Retry { budget_percent: percent, budget_minimum: 0.0, ..Retry::default() };
    assert_eq!(withdrawals(&budget, &policy(10.0), 0), 100);
    assert_eq!(withdrawals(&budget, &policy(20.0), 0), 100);
    assert!(budget.balance(&policy(5.0), 0) < f64::MIN_POSITIVE, "what is overdrawn is not below nothing");
}

#[test]
fn threads_do_not_overdraw() {
    let budget = Budget::default();
    let policy = Retry::default();
    (0..2000).for_each(|_| budget.deposit(0));
    let withdrawn: usize = std::thread::scope(|scope| {
        let withdraw = || (0..300).filter(|_| budget.try_withdraw(&policy, 0)).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(withdraw)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
    });
    assert_eq!(withdrawn, 400);
}

/// Requests at a steady rate, of which from 20 s on all fail. Returns the retries in each second.
fn outage(policy: &Retry, requests_a_second: u64, seconds: u64) -> Vec<u64> {
    let budget = Budget::default();
    let mut rng = Rng::with_seed(11);
    let mut retries = vec![0; seconds as usize];
    // What is due: a request's next attempt, the first being 0.
    let mut due = std::collections::BTreeSet::new();
    let gap = S / requests_a_second;
    for id in 0..seconds * requests_a_second {
        due.insert((id * gap, id, 0));
    }
    while let Some((at, id, attempt)) = due.pop_first() {
        if attempt == 0 {
            budget.deposit(at);
        } else if let Some(count) = retries.get_mut((at / S) as usize) {
            *count += 1;
        }
        let standing = Standing { retries: attempt, ..standing("GET") };
        if at >= 20 * S && may_retry(policy, Failure::Reset, standing) && budget.try_withdraw(policy, at) {
            let wait = backoff(policy, attempt + 1, &mut rng);
            due.insert((at + 5 * MS + wait.as_nanos() as u64, id, attempt + 1));
        }
    }
    retries
}

#[test]
fn a_full_outage_is_not_made_worse_by_more_than_the_budget() {
    // However many attempts a request has.
    for attempts in [1, 3, 10] {
        for rate in [60, 600] {
            let policy = Retry { attempts, ..Retry::default() };
            let retries = outage(&policy, rate, 80);
            assert_eq!(retries[..20].iter().sum::<u64>(), 0);
            for window in retries.windows(10) {
                // A retry is paid for up to 2 s before it is sent, a wait and what came before it.
                let allowed = rate * 10 / 5;
                assert!(window.iter().sum::<u64>() <= allowed + rate / 5, "{attempts} {rate}: {retries:?}");
            }
            let extra = retries[20..].iter().sum::<u64>() as f64 / (rate * 60) as f64;
            assert!((0.15..=0.2).contains(&extra), "{attempts} attempts, {rate}/s: {extra}");
        }
    }
    // A quiet service gets its floor.
    let retries = outage(&Retry { attempts: 10, ..Retry::default() }, 5, 80);
    assert!(retries[21..].iter().sum::<u64>() >= 59 * 9, "{retries:?}");
    assert!(retries.windows(10).all(|window| window.iter().sum::<u64>() <= 110), "{retries:?}");
}

proptest! {
    #[test]
    fn no_window_has_more_retries_than_it_may(
        steps in prop::collection::vec((0..500 * MS, 0..20_u32, 0..20_u32), 1..200),
        percent in 0.0..100.0_f64,
        minimum in 0.0..5.0_f64,
    ) {
        let policy = Retry { budget_percent: percent, budget_minimum: minimum, ..Retry::default() };
        let budget = Budget::default();
        let mut now = 0;
        let (mut deposits, mut taken) = (Vec::new(), Vec::new());
        for (wait, requests, retries) in steps {
            now += wait;
            for _ in 0..requests {
                budget.deposit(now);
                deposits.push(now);
            }
            for _ in 0..retries {
                if budget.try_withdraw(&policy, now) {
                    taken.push(now);
                    let within = |times: &[u64]| times.iter().filter(|at| **at / S + 10 > now / S).count() as f64;
                    let allowed = (within(&deposits) * percent / 100.0).max(minimum * 10.0);
                    prop_assert!(within(&taken) <= allowed + 1e-9);
                }
            }
        }
    }
}
