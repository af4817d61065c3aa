use std::f32::consts::E;

use fastrand::Rng;
use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// Answers that take `millis` each, one every ten milliseconds.
fn answered(millis: f64, count: u64) -> Cost {
    let cost = Cost::default();
    for n in 0..count {
        answer(&cost, millis, n * 10 * MS);
    }
    cost
}

fn answer(cost: &Cost, millis: f64, now: u64) {
    let number = cost.ask(now);
    cost.hear(number);
    cost.answered(Some((millis * MS as f64) as u64), now);
    cost.ended(Ending::Good, 0, now);
}

fn fail(cost: &Cost, millis: f64, now: u64) {
    let number = cost.ask(now);
    cost.hear(number);
    cost.ended(Ending::Failed, (millis * MS as f64) as u64, now);
}

fn surplus(one: &Cost, other: &Cost, now: u64) -> Surplus {
    let surplus = one.seen(now).against(&other.seen(now));
    let back = other.seen(now).against(&one.seen(now));
    assert_eq!(surplus, Surplus { time: -back.time, failures: -back.failures });
    surplus
}

/// Exactly none: what is no difference is taken to be none.
fn none(number: f32) -> bool {
    number.to_bits() == 0.0_f32.to_bits()
}

#[test]
fn a_factor_of_two_is_no_difference() {
    for (one, other, wanted) in [
        (10.0, 10.0, 0.0),
        (10.0, 19.0, 0.0),
        (0.3, 0.59, 0.0),
        (30.0, 10.0, 3.0_f32.ln()),
        (10.0, 1000.0, -100.0_f32.ln()),
    ] {
        let (one, other) = (answered(one, 200), answered(other, 200));
        let surplus = surplus(&one, &other, 1990 * MS);
        // Less what is not certain.
        assert!((surplus.time - wanted).abs() < 0.12, "{surplus:?}, not {wanted}");
        assert!(none(surplus.failures));
    }
}

#[test]
fn what_is_unknown_is_like_the_other() {
    let (unknown, known) = (Cost::default(), answered(1000.0, 100));
    assert_eq!(surplus(&unknown, &known, S), Surplus::default());
    assert_eq!(surplus(&unknown, &Cost::default(), S), Surplus::default());
    // It costs what the other does, and fails.
    fail(&unknown, 0.1, S);
    assert_eq!(surplus(&unknown, &known, S), Surplus { time: 0.0, failures: SAME });
}

#[test]
fn noise_is_no_difference() {
    let mut rng = Rng::with_seed(1);
    // Between a millisecond and half a second, as likely the one as the other.
    let mut mixed = || if rng.bool() { 1.0 } else { 500.0 };
    let (one, other) = (Cost::default(), Cost::default());
    let mut different = 0;
    for n in 0..20_000 {
        answer(&one, mixed(), n * 10 * MS);
        answer(&other, mixed(), n * 10 * MS);
        different += u32::from(surplus(&one, &other, n * 10 * MS).time != 0.0);
    }
    assert!(different <= 20, "{different} of 20,000 times");
}

#[test]
fn one_answer_that_takes_a_thousand_times_as_long_is_one_answer() {
    let (one, other) = (answered(0.3, 200), answered(0.3, 200));
    answer(&one, 300.0, 2 * S);
    assert_eq!(surplus(&one, &other, 2 * S), Surplus::default());
    // Nor is the first of a new process.
    let one = answered(30.0, 1);
    assert_eq!(surplus(&one, &other, 10 * MS), Surplus::default());
    answer(&one, 0.3, 20 * MS);
    assert_eq!(surplus(&one, &other, 20 * MS), Surplus::default());
    // Some alike are another matter.
    assert!(surplus(&answered(30.0, 4), &other, 30 * MS).time > 2.0);
}

#[test]
fn one_that_has_never_answered_is_known_by_those_who_have_left() {
    let (one, other) = (Cost::default(), answered(10.0, 100));
    one.ended(Ending::Left, 100 * MS, S);
    assert_eq!(surplus(&one, &other, S), Surplus::default());
    let one = Cost::default();
    one.ended(Ending::Left, 300 * MS, S);
    assert!((surplus(&one, &other, S).failures - SAME).abs() < 1e-3);
}

#[test]
fn one_that_becomes_slow_is_known_after_some_answers_and_forgotten_as_soon() {
    let (one, other) = (answered(10.0, 500), answered(10.0, 500));
    let mut now = 5 * S;
    let after = |one: &Cost, millis: f64, slow: bool, now: &mut u64| {
        let count = (1..1000).find(|_| {
            *now += 10 * MS;
            answer(one, millis, *now);
            answer(&other, 10.0, *now);
            (surplus(one, &other, *now).time > 0.0) == slow
        });
        count.expect("some time")
    };
    let known = after(&one, 30.0, true, &mut now);
    assert!((20..120).contains(&known), "known after {known}");
    for _ in 0..500 {
        now += 10 * MS;
        answer(&one, 30.0, now);
        answer(&other, 10.0, now);
    }
    let forgotten = after(&one, 10.0, false, &mut now);
    assert!((10..100).contains(&forgotten), "forgotten after {forgotten}");
}

#[test]
fn what_was_seen_fades_while_nobody_asks() {
    let (slow, other) = (answered(100.0, 100), answered(1.0, 100));
    let at = |seconds: u64| surplus(&slow, &other, 990 * MS + seconds * S).time;
    let full = 100.0_f32.ln();
    for (seconds, wanted) in [(0, full), (5, full / E), (10, full / E / E), (14, 0.0)] {
        assert!((at(seconds) - wanted).abs() < 0.12, "{} after {seconds} s", at(seconds));
    }
}

#[test]
fn failures_in_a_row_double_the_cost_and_never_make_it_look_fast() {
    let (fails, good) = (answered(50.0, 100), answered(50.0, 100));
    for in_a_row in 1..=10 {
        fail(&fails, 1.0, S);
        let surplus = surplus(&fails, &good, S);
        assert!(none(surplus.time), "it fails fast");
        let wanted = SAME * f32::min(in_a_row as f32, MOST_FAILURES);
        assert!((surplus.failures - wanted).abs() < 1e-4, "{surplus:?} after {in_a_row}");
    }
    // They fade, too.
    assert!((surplus(&fails, &good, 6 * S).failures - SAME * MOST_FAILURES / E).abs() < 0.01);
    answer(&fails, 50.0, S);
    assert!(none(surplus(&fails, &good, S).failures));
    // One that fails and is known to be fast costs at least what the other does.
    let fast = answered(1.0, 100);
    fail(&fast, 0.1, S);
    let surplus = surplus(&fast, &good, S);
    assert_eq!((surplus.time, surplus.failures), (0.0, SAME));
}

#[test]
fn where_all_fail_none_is_worse() {
    let (one, other) = (Cost::default(), Cost::default());
    for n in 0..100 {
        fail(&one, 1.0, n * MS);
        fail(&other, 1.0, n * MS);
    }
    let surplus = surplus(&one, &other, 100 * MS);
    assert!(surplus.failures.abs() < 1e-3 && surplus.time == 0.0, "{surplus:?}");
}

#[test]
fn an_attempt_without_an_answer_would_have_taken_longer() {
    let good = answered(10.0, 300);
    let typical = |cost: &Cost| (cost.typical_nanos().unwrap_or_default() / 1e6).round() as u64;
    for ending in [Ending::Failed, Ending::Left, Ending::Shed(None)] {
        let cost = answered(10.0, 300);
        // Less than an answer takes: nothing is known.
        cost.ended(ending, MS, 3 * S);
        assert_eq!(typical(&cost), 10, "{ending:?}");
        for n in 0..20 {
            cost.ended(ending, 1000 * MS, (4 + n) * S);
        }
        assert!(surplus(&cost, &good, 24 * S).time > 2.0, "{ending:?}");
    }
}

#[test]
fn a_client_that_leaves_in_the_time_that_an_answer_takes_says_nothing() {
    let (cost, good) = (answered(10.0, 300), answered(10.0, 300));
    for waited in [0, MS, 9 * MS, 12 * MS, 30 * MS] {
        cost.ended(Ending::Left, waited, 3 * S);
        assert_eq!(surplus(&cost, &good, 3 * S), Surplus::default(), "{waited}");
    }
    // Much later: none came.
    cost.ended(Ending::Left, 1000 * MS, 3 * S);
    assert!((surplus(&cost, &good, 3 * S).failures - SAME).abs() < 1e-3);
}

#[test]
fn who_asks_to_be_spared_is_from_the_second_time_on_and_not_for_ever() {
    let (cost, good) = (answered(10.0, 100), answered(10.0, 100));
    cost.ended(Ending::Shed(Some(2 * S)), MS, S);
    assert!(surplus(&cost, &good, S).failures < 1.0, "it may be about one client alone");
    cost.ended(Ending::Shed(Some(2 * S)), MS, S);
    assert!(surplus(&cost, &good, 3 * S - 1).failures > SPARED);
    assert!(surplus(&cost, &good, 3 * S).failures < SPARED);
    // An hour is half a minute.
    cost.ended(Ending::Shed(Some(3600 * S)), MS, 4 * S);
    assert!(surplus(&cost, &good, 34 * S - 1).failures > SPARED - 0.01);
    assert!(surplus(&cost, &good, 34 * S).failures < 0.1);
}

#[test]
fn what_was_overtaken_is_not_unanswered() {
    let cost = Cost::default();
    let unanswered = |cost: &Cost| cost.seen(S).unanswered;
    let [stream, second, third] = [(); 3].map(|()| cost.ask(S));
    assert_eq!(unanswered(&cost), 3);
    cost.hear(second);
    assert_eq!(unanswered(&cost), 1, "the stream goes on, and others are answered");
    cost.hear(stream);
    assert_eq!(unanswered(&cost), 1);
    cost.hear(third);
    assert_eq!(unanswered(&cost), 0);
}

#[test]
fn silence_costs_the_time_that_it_lasts() {
    let (silent, good) = (answered(1.0, 100), answered(1.0, 100));
    let numbers = [(); 3].map(|()| silent.ask(S));
    assert!(none(surplus(&silent, &good, S + 2 * MS).time), "it takes a while");
    let time = surplus(&silent, &good, S + 50 * MS).time;
    assert!((time - 50.0_f32.ln()).abs() < 0.1, "{time}");
    assert!((surplus(&silent, &good, 60 * S).time - SILENCE).abs() < 1e-3, "and no more");
    silent.hear(numbers[2]);
    assert!(none(surplus(&silent, &good, S + 50 * MS).time));
    // With one or two that is not certain: only that they are unanswered.
    let _ = [(); 2].map(|()| silent.ask(2 * S));
    assert!(none(surplus(&silent, &good, 3 * S).time));
}

proptest! {
    /// Whatever is seen, numbers stay numbers, and the one is as much dearer as the other is cheaper.
    #[test]
    fn nothing_breaks_it(
        steps in prop::collection::vec((0..6u8, any::<u64>(), prop_oneof![0..MS, 0..100 * S, any::<u64>()]), 1..200),
    ) {
        let (one, other) = (Cost::default(), answered(1.0, 10));
        let mut now = 0_u64;
        for (what, waited, passes) in steps {
            now = now.saturating_add(passes);
            match what {
                0 => drop(one.ask(now)),
                1 => one.hear(waited % 50),
                2 => one.answered(Some(waited), now),
                3 => one.ended(Ending::Failed, waited, now),
                4 => one.ended(Ending::Shed(Some(waited)), waited, now),
                _ => one.ended(Ending::Left, waited, now),
            }
            let there = one.seen(now).against(&other.seen(now));
            let back = other.seen(now).against(&one.seen(now));
            prop_assert!(there.time.is_finite() && there.failures.is_finite(), "{there:?}");
            prop_assert_eq!((there.time, there.failures), (-back.time, -back.failures));
        }
    }
}
