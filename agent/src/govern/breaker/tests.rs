use proptest::prelude::*;

use super::*;
use crate::govern::{
    outcome::{ErrorKind, Outcome},
    policy::BreakerScope,
};

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const GOOD: Outcome = Outcome::Success;
const BAD: Outcome = Outcome::Error(ErrorKind::Status(500));

/// Of 10 requests in 10 s, 50 % errors; open for 5 s, 2 probes.
fn config() -> CircuitBreaker {
    CircuitBreaker { minimum_requests: 10, half_open_requests: 2, ..CircuitBreaker::default() }
}

fn slow(percent: f64) -> CircuitBreaker {
    let rule = SlowRequest { threshold: Duration::from_millis(800), percent };
    CircuitBreaker { error_percent: None, slow_request: Some(rule), ..config() }
}

fn breaker(config: CircuitBreaker) -> Arc<Breaker> {
    Arc::new(Breaker::new(Arc::new(config)))
}

fn acquire(breaker: &Arc<Breaker>, at: u64) -> Permit {
    breaker.try_acquire(at).expect("the breaker lets it through")
}

/// Requests that end at once.
fn requests(breaker: &Arc<Breaker>, count: usize, outcome: Outcome, at: u64) {
    for _ in 0..count {
        acquire(breaker, at).finish(outcome, at);
    }
}

/// Opens at this time.
fn tripped(config: CircuitBreaker, at: u64) -> Arc<Breaker> {
    let breaker = breaker(config);
    requests(&breaker, 10, BAD, at);
    assert_eq!(breaker.state(at), State::Open);
    breaker
}

fn refused(breaker: &Arc<Breaker>, at: u64) -> Duration {
    breaker.try_acquire(at).expect_err("the breaker refuses").retry_after
}

fn last(breaker: &Breaker) -> Transition {
    *breaker.recent_transitions().last().expect("there was a transition")
}

#[test]
fn it_opens_at_the_error_percent_and_not_before() {
    let breaker = breaker(config());
    requests(&breaker, 11, GOOD, 0);
    requests(&breaker, 10, BAD, 0);
    assert_eq!(breaker.state(0), State::Closed, "10 of 21");
    requests(&breaker, 1, BAD, S);
    assert_eq!(breaker.state(S), State::Open, "11 of 22");
    let why = Why::ErrorPercent { errors: 11, requests: 22, limit: 50.0 };
    assert_eq!(
        breaker.recent_transitions(),
        [Transition { number: 1, from: State::Closed, to: State::Open, why, at_nanos: S }]
    );
    assert_eq!(breaker.transition_counts(), TransitionCounts { tripped: 1, ..TransitionCounts::default() });
    assert_eq!(breaker.generation(), 1);
}

#[test]
fn few_requests_do_not_open_it_however_bad() {
    let breaker = breaker(config());
    requests(&breaker, 9, BAD, 0);
    assert_eq!(breaker.state(0), State::Closed);
    // A request a second: never more than ten in the window.
    let config = CircuitBreaker { minimum_requests: 11, ..config() };
    let breaker = self::breaker(config);
    for second in 0..100 {
        requests(&breaker, 1, BAD, second * S);
    }
    assert_eq!(breaker.state(100 * S), State::Closed);
}

#[test]
fn what_the_window_has_forgotten_does_not_count() {
    let breaker = breaker(config());
    requests(&breaker, 9, BAD, 0);
    requests(&breaker, 9, BAD, 10 * S);
    assert_eq!(breaker.state(10 * S), State::Closed);
    assert_eq!(breaker.counts(10 * S), Counts { requests: 9, errors: 9, slow: 0 });
    requests(&breaker, 1, BAD, 19 * S);
    assert_eq!(breaker.state(19 * S), State::Open);
}

#[test]
fn it_opens_at_the_error_count() {
    let config = CircuitBreaker { error_percent: None, error_count: Some(3), ..config() };
    let breaker = breaker(config);
    requests(&breaker, 2, BAD, 0);
    requests(&breaker, 100, GOOD, 0);
    assert_eq!(breaker.state(0), State::Closed);
    requests(&breaker, 1, BAD, 0);
    assert_eq!(last(&breaker).why, Why::ErrorCount { errors: 3, requests: 103, limit: 3 });
}

#[test]
fn it_opens_for_slow_requests_when_they_end() {
    let breaker = breaker(slow(50.0));
    let permits: Vec<_> = (0..10).map(|_| acquire(&breaker, 0)).collect();
    for (n, permit) in permits.into_iter().enumerate() {
        assert_eq!(breaker.state(801 * MS), State::Closed, "{n}");
        // Every other one ends exactly at the threshold, which is not over it.
        permit.finish(GOOD, if n % 2 == 0 { 800 * MS } else { 801 * MS });
    }
    let threshold = Duration::from_millis(800);
    assert_eq!(last(&breaker).why, Why::SlowPercent { slow: 5, requests: 10, threshold, limit: 50.0 });
}

#[test]
fn it_opens_for_slow_requests_while_they_are_running() {
    let breaker = breaker(slow(50.0));
    requests(&breaker, 9, GOOD, 0);
    let hanging: Vec<_> = (0..10).map(|_| acquire(&breaker, 50 * MS)).collect();
    // They began in the slot of the first 100 ms: at 900 ms even the last of it is over the threshold.
    requests(&breaker, 1, GOOD, 899 * MS);
    assert_eq!(breaker.counts(899 * MS), Counts { requests: 10, errors: 0, slow: 0 });
    refused(&breaker, 900 * MS);
    let threshold = Duration::from_millis(800);
    assert_eq!(last(&breaker).why, Why::SlowPercent { slow: 10, requests: 20, threshold, limit: 50.0 });
    drop(hanging);
}

#[test]
fn a_request_that_was_counted_while_it_was_running_is_not_counted_again() {
    let breaker = breaker(CircuitBreaker { error_percent: Some(90.0), ..slow(100.0) });
    requests(&breaker, 1, GOOD, 0);
    let permits: Vec<_> = (0..4).map(|_| acquire(&breaker, 0)).collect();
    requests(&breaker, 1, GOOD, 900 * MS);
    assert_eq!(breaker.counts(900 * MS), Counts { requests: 6, errors: 0, slow: 4 });
    let [good, bad, left, forgotten]: [Permit; 4] = permits.try_into().expect("there are four");
    good.finish(GOOD, S);
    left.caller_left(S);
    assert_eq!(breaker.counts(S), Counts { requests: 6, errors: 0, slow: 4 });
    bad.finish(BAD, S);
    assert_eq!(breaker.counts(S), Counts { requests: 6, errors: 1, slow: 4 });
    // The window no longer knows of it: an error needs a request that it is a part of.
    forgotten.finish(BAD, 30 * S);
    assert_eq!(breaker.counts(30 * S), Counts { requests: 1, errors: 1, slow: 0 });
}

#[test]
fn impatient_callers_do_not_hide_a_slow_service() {
    let breaker = breaker(slow(50.0));
    for _ in 0..10 {
        acquire(&breaker, 0).caller_left(500 * MS);
    }
    assert_eq!(breaker.counts(S), Counts { requests: 0, errors: 0, slow: 0 }, "nobody knows");
    let permits: Vec<_> = (0..10).map(|_| acquire(&breaker, 0)).collect();
    for permit in permits {
        permit.caller_left(801 * MS);
    }
    assert_eq!(breaker.state(S), State::Open);
}

#[test]
fn a_stream_is_as_slow_as_its_head() {
    let breaker = breaker(slow(10.0));
    for _ in 0..20 {
        let mut permit = acquire(&breaker, 0);
        permit.answered(700 * MS);
        permit.answered(900 * MS);
        assert_eq!(breaker.try_acquire(3 * S).map(drop), Ok(()));
        permit.finish(GOOD, 3600 * S);
    }
    assert_eq!(breaker.counts(3600 * S), Counts { requests: 20, errors: 0, slow: 0 });
    let mut permit = acquire(&breaker, 3600 * S);
    permit.answered(3601 * S);
    permit.finish(GOOD, 3601 * S);
    assert_eq!(breaker.counts(3601 * S).slow, 1);
}

#[test]
fn permits_that_are_dropped_count_nothing() {
    let breaker = breaker(slow(1.0));
    for _ in 0..100 {
        drop(acquire(&breaker, 0));
    }
    requests(&breaker, 1, GOOD, 10 * S);
    assert_eq!(breaker.counts(10 * S), Counts { requests: 1, errors: 0, slow: 0 });
}

#[test]
fn open_it_refuses_until_its_time_is_over_and_then_lets_probes_through() {
    let breaker = tripped(config(), S);
    assert_eq!(refused(&breaker, S), Duration::from_secs(5));
    assert_eq!(refused(&breaker, 6 * S - 1), Duration::from_nanos(1));
    assert_eq!(breaker.state(6 * S - 1), State::Open);
    assert_eq!(breaker.state(6 * S), State::HalfOpen);
    let probes = [acquire(&breaker, 6 * S), acquire(&breaker, 7 * S)];
    assert_eq!(last(&breaker).why, Why::OpenElapsed { open: Duration::from_secs(5) });
    assert_eq!(refused(&breaker, 8 * S), Duration::from_secs(3), "until the first probe is overdue");
    let [one, other] = probes;
    one.finish(GOOD, 8 * S);
    assert_eq!(breaker.state(8 * S), State::HalfOpen);
    refused(&breaker, 8 * S);
    other.finish(GOOD, 8 * S);
    assert_eq!(breaker.state(8 * S), State::Closed);
    assert_eq!(last(&breaker).why, Why::ProbesPassed { probes: 2 });
    assert_eq!(breaker.counts(8 * S), Counts { requests: 0, errors: 0, slow: 0 }, "counts start anew");
    requests(&breaker, 9, BAD, 8 * S);
    assert_eq!(breaker.state(8 * S), State::Closed);
    requests(&breaker, 1, BAD, 8 * S);
    assert_eq!(breaker.state(8 * S), State::Open);
    let counts = TransitionCounts { tripped: 2, probing: 1, reopened: 0, recovered: 1 };
    assert_eq!(breaker.transition_counts(), counts);
}

#[test]
fn one_bad_probe_opens_it_again_for_the_whole_time() {
    let breaker = tripped(config(), 0);
    let (one, other) = (acquire(&breaker, 5 * S), acquire(&breaker, 5 * S));
    one.finish(GOOD, 6 * S);
    other.finish(Outcome::Error(ErrorKind::Timeout), 7 * S);
    assert_eq!(last(&breaker).why, Why::ProbeFailed { error: ErrorKind::Timeout });
    assert_eq!(refused(&breaker, 7 * S), Duration::from_secs(5));
    assert_eq!(breaker.state(12 * S), State::HalfOpen);
    // The good one of last time does not count.
    acquire(&breaker, 12 * S).finish(GOOD, 12 * S);
    assert_eq!(breaker.state(12 * S), State::HalfOpen);
    acquire(&breaker, 12 * S).finish(GOOD, 12 * S);
    assert_eq!(breaker.state(12 * S), State::Closed);
}

#[test]
fn a_probe_that_is_cancelled_gives_its_slot_back() {
    let breaker = tripped(config(), 0);
    let probes = [acquire(&breaker, 5 * S), acquire(&breaker, 5 * S)];
    refused(&breaker, 5 * S);
    let [dropped, left] = probes;
    drop(dropped);
    left.caller_left(6 * S);
    let probes = [acquire(&breaker, 6 * S), acquire(&breaker, 6 * S)];
    refused(&breaker, 6 * S);
    for probe in probes {
        probe.finish(GOOD, 6 * S);
    }
    assert_eq!(breaker.state(6 * S), State::Closed);
}

#[test]
fn a_probe_that_hangs_gives_its_slot_away_and_still_counts() {
    let config = CircuitBreaker { half_open_requests: 1, ..config() };
    for (outcome, state) in [(GOOD, State::Closed), (BAD, State::Open)] {
        let breaker = tripped(config.clone(), 0);
        let hanging = acquire(&breaker, 5 * S);
        refused(&breaker, 10 * S - 1);
        let second = acquire(&breaker, 10 * S);
        refused(&breaker, 10 * S);
        hanging.finish(outcome, 11 * S);
        assert_eq!(breaker.state(11 * S), state);
        // The other one is late now.
        second.finish(if outcome == GOOD { BAD } else { GOOD }, 11 * S);
        assert_eq!(breaker.state(11 * S), state);
        assert_eq!(breaker.counts(11 * S), Counts { requests: 0, errors: 0, slow: 0 });
    }
}

#[test]
fn a_probe_whose_answer_goes_on_and_on_is_good() {
    let config = CircuitBreaker { half_open_requests: 1, ..config() };
    let breaker = tripped(config.clone(), 0);
    let mut stream = acquire(&breaker, 5 * S);
    stream.answered(6 * S);
    refused(&breaker, 10 * S - 1);
    let after = acquire(&breaker, 10 * S);
    assert_eq!(breaker.state(10 * S), State::Closed);
    after.finish(GOOD, 10 * S);
    stream.finish(BAD, 20 * S);
    assert_eq!(breaker.state(20 * S), State::Closed, "that is long ago");

    // As one of two it is counted once, whether it ends well or is cancelled later.
    let config = CircuitBreaker { half_open_requests: 2, ..config };
    for finish in [true, false] {
        let breaker = tripped(config.clone(), 0);
        let mut stream = acquire(&breaker, 5 * S);
        stream.answered(6 * S);
        let other = acquire(&breaker, 10 * S);
        refused(&breaker, 10 * S);
        if finish {
            stream.finish(GOOD, 11 * S);
        } else {
            drop(stream);
        }
        assert_eq!(breaker.state(11 * S), State::HalfOpen);
        refused(&breaker, 11 * S);
        other.finish(GOOD, 12 * S);
        assert_eq!(breaker.state(12 * S), State::Closed);
    }
    // And if it ends badly after all, it opens.
    let breaker = tripped(config, 0);
    let mut stream = acquire(&breaker, 5 * S);
    stream.answered(6 * S);
    let _other = acquire(&breaker, 10 * S);
    stream.finish(BAD, 11 * S);
    assert_eq!(breaker.state(11 * S), State::Open);
}

#[test]
fn a_slow_probe_is_a_bad_one() {
    let config = CircuitBreaker { error_percent: Some(50.0), half_open_requests: 1, ..slow(50.0) };
    let threshold = Duration::from_millis(800);
    let ends: [fn(Permit); 2] =
        [|permit| permit.finish(GOOD, 5801 * MS), |permit| permit.caller_left(5801 * MS)];
    for end in ends {
        let breaker = tripped(config.clone(), 0);
        end(acquire(&breaker, 5 * S));
        assert_eq!(last(&breaker).why, Why::ProbeSlow { threshold });
        assert_eq!(breaker.state(6 * S), State::Open);
    }
    // Noticed while it is running.
    let breaker = tripped(config.clone(), 0);
    let probe = acquire(&breaker, 5 * S);
    refused(&breaker, 5800 * MS);
    assert_eq!(breaker.state(5800 * MS), State::HalfOpen);
    assert_eq!(refused(&breaker, 5801 * MS), Duration::from_secs(5));
    assert_eq!(last(&breaker).why, Why::ProbeSlow { threshold });
    probe.finish(GOOD, 6 * S);
    assert_eq!(breaker.state(6 * S), State::Open);
    // Not if its head came in time.
    let breaker = tripped(config, 0);
    let mut probe = acquire(&breaker, 5 * S);
    probe.answered(5800 * MS);
    refused(&breaker, 7 * S);
    assert_eq!(breaker.state(7 * S), State::HalfOpen);
    probe.finish(GOOD, 8 * S);
    assert_eq!(breaker.state(8 * S), State::Closed);
}

#[test]
fn results_from_before_a_transition_do_not_count_after_it() {
    let breaker = breaker(config());
    let early: Vec<_> = (0..40).map(|_| acquire(&breaker, 0)).collect();
    requests(&breaker, 10, BAD, 0);
    assert_eq!(breaker.state(0), State::Open);
    let mut early = early.into_iter();
    let mut some = |outcome, at| early.by_ref().take(10).for_each(|permit| permit.finish(outcome, at));
    some(GOOD, S);
    assert_eq!(breaker.state(S), State::Open);
    let probes = [acquire(&breaker, 5 * S), acquire(&breaker, 5 * S)];
    some(GOOD, 5 * S);
    assert_eq!(breaker.state(5 * S), State::HalfOpen);
    some(BAD, 5 * S);
    assert_eq!(breaker.state(5 * S), State::HalfOpen);
    for probe in probes {
        probe.finish(GOOD, 6 * S);
    }
    some(BAD, 6 * S);
    assert_eq!(breaker.state(6 * S), State::Closed);
    assert_eq!(breaker.counts(6 * S), Counts { requests: 0, errors: 0, slow: 0 });
}

#[test]
fn requests_that_run_since_before_an_opening_do_not_become_slow_after_it() {
    let breaker = breaker(CircuitBreaker { half_open_requests: 1, ..slow(10.0) });
    let hanging: Vec<_> = (0..10).map(|_| acquire(&breaker, 0)).collect();
    refused(&breaker, 900 * MS);
    let late: Vec<_> = (0..10).map(|_| breaker.try_acquire(950 * MS)).collect();
    assert!(late.iter().all(Result::is_err));
    acquire(&breaker, 6 * S).finish(GOOD, 6 * S);
    assert_eq!(breaker.state(6 * S), State::Closed);
    drop(hanging);
    requests(&breaker, 10, GOOD, 7 * S);
    assert_eq!(breaker.counts(7 * S), Counts { requests: 10, errors: 0, slow: 0 });
}

#[test]
fn observed_it_goes_through_the_same_states_and_refuses_nothing() {
    let breaker = tripped(CircuitBreaker { mode: Mode::Observe, ..config() }, 0);
    for at in [0, 4 * S] {
        let permit = acquire(&breaker, at);
        assert_eq!(permit.would_reject(), Some(Open { retry_after: Duration::from_nanos(5 * S - at) }));
        permit.finish(GOOD, at);
        let mut permit = acquire(&breaker, at);
        permit.answered(at);
        permit.finish(BAD, at);
    }
    assert_eq!(breaker.state(4 * S), State::Open);
    let probes = [acquire(&breaker, 5 * S), acquire(&breaker, 5 * S)];
    assert!(probes.iter().all(|probe| probe.would_reject().is_none()));
    let unwanted = acquire(&breaker, 5 * S);
    assert!(unwanted.would_reject().is_some());
    unwanted.finish(BAD, 5 * S);
    assert_eq!(breaker.state(5 * S), State::HalfOpen);
    for probe in probes {
        probe.finish(GOOD, 5 * S);
    }
    assert_eq!(breaker.state(5 * S), State::Closed);
    assert_eq!(acquire(&breaker, 5 * S).would_reject(), None);
}

#[test]
fn another_policy_keeps_the_window_and_the_state() {
    let breaker = breaker(config());
    requests(&breaker, 9, BAD, 0);
    breaker.reconfigure(Arc::new(CircuitBreaker { open_duration: Duration::from_secs(8), ..config() }));
    requests(&breaker, 1, BAD, S);
    assert_eq!(refused(&breaker, S), Duration::from_secs(8));
    // What is open is open for as long as the new policy says, since then.
    breaker.reconfigure(Arc::new(CircuitBreaker { open_duration: Duration::from_secs(2), ..config() }));
    assert_eq!(refused(&breaker, 2 * S), Duration::from_secs(1));
    let probe = acquire(&breaker, 3 * S);
    probe.finish(GOOD, 3 * S);
    // One was enough all along.
    breaker.reconfigure(Arc::new(CircuitBreaker { half_open_requests: 1, ..config() }));
    assert_eq!(acquire(&breaker, 3 * S).would_reject(), None);
    assert_eq!(breaker.state(3 * S), State::Closed);
    // A policy that only observes lets go at once, and the other way round.
    requests(&breaker, 10, BAD, 3 * S);
    breaker.reconfigure(Arc::new(CircuitBreaker { mode: Mode::Observe, ..config() }));
    assert!(acquire(&breaker, 4 * S).would_reject().is_some());
    breaker.reconfigure(Arc::new(config()));
    refused(&breaker, 4 * S);
}

#[test]
fn another_interval_or_threshold_counts_anew_what_it_measures() {
    let breaker = breaker(CircuitBreaker { error_percent: Some(90.0), ..slow(100.0) });
    let running = acquire(&breaker, 0);
    requests(&breaker, 4, BAD, 0);
    acquire(&breaker, 0).finish(GOOD, S);
    assert_eq!(breaker.counts(S), Counts { requests: 5, errors: 4, slow: 1 });
    let rule = SlowRequest { threshold: Duration::from_millis(100), percent: 100.0 };
    let changed = CircuitBreaker { slow_request: Some(rule), error_percent: Some(90.0), ..config() };
    breaker.reconfigure(Arc::new(changed.clone()));
    assert_eq!(breaker.counts(S), Counts { requests: 5, errors: 4, slow: 0 });
    // What was running is judged by the new threshold when it ends, and not before.
    requests(&breaker, 1, GOOD, S);
    assert_eq!(breaker.counts(S).slow, 0);
    running.finish(GOOD, S);
    assert_eq!(breaker.counts(S), Counts { requests: 7, errors: 4, slow: 1 });
    breaker.reconfigure(Arc::new(CircuitBreaker { interval: Duration::from_secs(60), ..changed }));
    assert_eq!(breaker.counts(S), Counts { requests: 0, errors: 0, slow: 0 });
}

#[test]
fn transitions_are_remembered_up_to_a_bound() {
    let breaker = breaker(config());
    for round in 0..50_u64 {
        let at = round * 5 * S;
        if round == 0 {
            requests(&breaker, 10, BAD, at);
        } else {
            acquire(&breaker, at).finish(BAD, at);
        }
    }
    let counts = TransitionCounts { tripped: 1, probing: 49, reopened: 49, recovered: 0 };
    assert_eq!(breaker.transition_counts(), counts);
    assert_eq!(breaker.generation(), counts.total());
    let recent = breaker.recent_transitions();
    assert_eq!(recent.len(), 32);
    assert!(recent.windows(2).all(|pair| pair[0].number + 1 == pair[1].number && pair[0].to == pair[1].from));
    assert_eq!(recent[31].number, 99);
    assert_eq!(recent[31].why.to_string(), "a probe failed: status 500");
}

#[test]
fn extreme_policies_do_not_panic() {
    for (duration, number, percent) in [
        (Duration::ZERO, 0, 0.0),
        (Duration::from_nanos(1), 1, f64::MIN_POSITIVE),
        (Duration::MAX, u32::MAX, f64::MAX),
        (Duration::from_secs(1), 1, f64::NAN),
    ] {
        let breaker = breaker(CircuitBreaker {
            interval: duration,
            minimum_requests: number,
            error_percent: Some(percent),
            error_count: Some(number),
            slow_request: Some(SlowRequest { threshold: duration, percent }),
            open_duration: duration,
            half_open_requests: number,
            scope: BreakerScope::default(),
            mode: Mode::Enforce,
        });
        for at in [0, 1, S, u64::MAX / 2, u64::MAX - 1, u64::MAX, 0] {
            for outcome in [GOOD, BAD] {
                let Ok(mut permit) = breaker.try_acquire(at) else { continue };
                permit.answered(at);
                permit.finish(outcome, u64::MAX);
                let _ = breaker.state(at);
            }
        }
    }
}

#[test]
fn threads_never_see_more_probes_than_there_may_be() {
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
    let breaker = breaker(CircuitBreaker {
        half_open_requests: 3,
        minimum_requests: 1,
        error_percent: Some(20.0),
        ..config()
    });
    let (clock, asking, probing) = (AtomicU64::new(0), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (breaker, clock, asking, probing) = (&breaker, &clock, &asking, &probing);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                for _ in 0..20_000 {
                    // Time goes on only while nobody has a permit, so that no probe is ever overdue.
                    if asking.load(SeqCst) == 0 {
                        clock.fetch_add(S, SeqCst);
                    }
                    asking.fetch_add(1, SeqCst);
                    let now = clock.load(SeqCst);
                    if let Ok(permit) = breaker.try_acquire(now) {
                        if let Part::Probe { .. } = permit.part {
                            assert!(probing.fetch_add(1, SeqCst) < 3);
                            std::thread::yield_now();
                            probing.fetch_sub(1, SeqCst);
                        }
                        match rng.u8(..4) {
                            0 => drop(permit),
                            1 => permit.finish(BAD, now),
                            _ => permit.finish(GOOD, now),
                        }
                    }
                    asking.fetch_sub(1, SeqCst);
                }
            });
        }
    });
    let counts = breaker.transition_counts();
    assert!(counts.tripped > 0 && counts.reopened > 0 && counts.recovered > 0, "{counts:?}");
    let is_probing = counts.probing - counts.reopened - counts.recovered;
    assert_eq!(is_probing, u64::from(breaker.state(0) == State::HalfOpen));
}

proptest! {
    /// Any order of requests, ends and cancellations, against a plain account of what was let through.
    #[test]
    fn half_open_it_lets_through_its_probes_and_open_nothing(
        steps in prop::collection::vec((0..1500_u64, 0..6_u8, any::<prop::sample::Index>()), 1..400),
        probes in 1..5_u32,
        slow_rule in any::<bool>(),
    ) {
        let rule = SlowRequest { threshold: Duration::from_secs(3), percent: 50.0 };
        let breaker = breaker(CircuitBreaker {
            half_open_requests: probes,
            minimum_requests: 3,
            slow_request: slow_rule.then_some(rule),
            ..config()
        });
        let mut now = 0;
        let mut running: Vec<(Permit, u64, u64)> = Vec::new();
        for (wait, step, which) in steps {
            now += wait * MS;
            let before = breaker.state(now);
            if step < 3 || running.is_empty() {
                match breaker.try_acquire(now) {
                    Ok(permit) => {
                        prop_assert_ne!(before, State::Open, "it lets nothing through while it is open");
                        let generation = breaker.generation();
                        running.push((permit, generation, now));
                    }
                    Err(open) => {
                        prop_assert_ne!(breaker.state(now), State::Closed);
                        // Asking again after that time is worth it, unless something bad comes in between.
                        prop_assert!(open.retry_after <= Duration::from_secs(5));
                    }
                }
            } else {
                let (mut permit, ..) = running.swap_remove(which.index(running.len()));
                match step {
                    3 => permit.finish(GOOD, now),
                    4 => permit.finish(BAD, now),
                    _ if wait % 2 == 0 => drop(permit),
                    _ => {
                        permit.answered(now);
                        permit.caller_left(now);
                    }
                }
            }
            if breaker.state(now) == State::HalfOpen {
                let generation = breaker.generation();
                // Those that are overdue have given their slots away.
                let fresh = running.iter().filter(|(permit, of, began)| {
                    matches!(permit.part, Part::Probe { .. }) && *of == generation && now - began < 5 * S
                });
                prop_assert!(fresh.count() <= probes as usize);
            }
        }
        let recent = breaker.recent_transitions();
        prop_assert!(recent.windows(2).all(|pair| pair[0].to == pair[1].from && pair[0].at_nanos <= pair[1].at_nanos));
    }
}
