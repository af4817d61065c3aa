use proptest::prelude::*;

use super::*;
use crate::govern::throttle::{
    keyed::Buckets,
    pace::{Bucket, Pace, duration},
};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;

/// A request every 10 ms, and so many at once.
fn pace(burst: u64) -> Pace {
    let cost = ticks(10 * MILLI);
    Pace { cost, tolerance: cost * u128::from(burst - 1), patience: 0, cold: None, grace: 0, epoch: 0 }
}

/// Callers that ask at fixed times, from `begins` on.
struct Caller {
    every: u64,
    begins: u64,
    asked: u64,
    admitted: u64,
    refused: u64,
}

fn caller(every: u64, begins: u64) -> Caller {
    Caller { every, begins, asked: 0, admitted: 0, refused: 0 }
}

/// Lets them ask until `end`. What they do in the first three seconds is not counted: the first burst, and what accounts
/// fill up with.
fn run(buckets: &Buckets, callers: &mut [Caller], end: u64) {
    for now in (0..end).step_by(MILLI as usize / 10) {
        for (id, caller) in callers.iter_mut().enumerate() {
            if now < caller.begins || (now - caller.begins) % caller.every != 0 {
                continue;
            }
            let admitted = buckets.take(id as u128, Ticks::MAX, now).is_ok();
            if now >= 3 * SECOND {
                caller.asked += 1;
                caller.admitted += u64::from(admitted);
                caller.refused += u64::from(!admitted);
            }
        }
    }
}

#[test]
fn a_caller_below_its_share_loses_nothing_to_a_greedy_one() {
    for burst in [2, 10, 100] {
        let buckets = Buckets::shared(pace(burst));
        // 100 a second: one asks for 1000, the other for 25, half its share.
        let mut callers = [caller(MILLI, 0), caller(40 * MILLI, 500 * MILLI)];
        run(&buckets, &mut callers, 12 * SECOND);
        assert_eq!(callers[1].refused, 0, "burst {burst}");
        // And the greedy one gets all the rest: 75 a second, for 9 seconds.
        assert!(callers[0].admitted.abs_diff(675) <= 7, "burst {burst}: {}", callers[0].admitted);
    }
}

#[test]
fn what_one_leaves_is_shared_by_the_others() {
    let buckets = Buckets::shared(pace(10));
    // 10 a second, 200 a second, 5000 a second: the two share 90.
    let mut callers = [caller(100 * MILLI, 0), caller(5 * MILLI, 0), caller(MILLI / 5, 0)];
    run(&buckets, &mut callers, 13 * SECOND);
    let admitted = callers.each_ref().map(|caller| caller.admitted);
    assert_eq!(admitted[0], 100, "{admitted:?}");
    assert!(admitted[1].abs_diff(450) <= 9, "{admitted:?}");
    assert!(admitted[2].abs_diff(450) <= 9, "{admitted:?}");
}

#[test]
fn a_queue_keeps_places_too() {
    // Nobody gets anything at once, but 20 may wait.
    let pace = Pace { patience: ticks(200 * MILLI), ..pace(1) };
    let buckets = Buckets::shared(pace);
    let mut callers = [caller(MILLI, 0), caller(40 * MILLI, 500 * MILLI)];
    run(&buckets, &mut callers, 12 * SECOND);
    assert_eq!(callers[1].refused, 0);
    assert!(callers[0].admitted.abs_diff(675) <= 7, "{}", callers[0].admitted);
}

#[test]
fn with_less_burst_than_callers_it_is_first_come_first_served_and_nothing_is_lost() {
    let buckets = Buckets::shared(pace(3));
    let mut callers: Vec<_> = (0..8).map(|number| caller(MILLI, number * MILLI / 10)).collect();
    run(&buckets, &mut callers, 13 * SECOND);
    let admitted: u64 = callers.iter().map(|caller| caller.admitted).sum();
    assert!(admitted.abs_diff(1000) <= 1, "{admitted}");
}

#[test]
fn who_has_gone_is_forgotten() {
    let buckets = Buckets::shared(pace(10));
    for other in 1..6 {
        assert!(buckets.take(other, Ticks::MAX, 0).is_ok());
    }
    // Long after, the one that is left has all of the burst, and is told exactly when to come back.
    let mut admitted = 0;
    let short = loop {
        match buckets.take(0, Ticks::MAX, 5 * SECOND) {
            Ok(_) => admitted += 1,
            Err(short) => break short,
        }
    };
    assert_eq!((admitted, duration(short).as_millis()), (10, 10));
}

#[test]
fn of_too_many_callers_the_silent_are_forgotten() {
    let mut accounts = Accounts::default();
    let room = Bucket::new(&pace(10)).room(&pace(10), 0);
    for caller in 0..2 * MOST_CALLERS as u64 {
        let _ = accounts.claim(caller, 0, 1, room, caller);
    }
    assert_eq!(accounts.open.len(), MOST_CALLERS);
    let oldest = accounts.open.iter().map(|account| account.asked_nanos).min();
    assert_eq!(oldest, Some(MOST_CALLERS as u64));
}

#[test]
fn accounts_are_empty_when_the_rule_changes_even_if_there_was_plenty() {
    let mut accounts = Accounts::default();
    let pace = pace(10);
    let room = Bucket::new(&pace).room(&pace, 0);
    for caller in 0..2 {
        accounts.claim(caller, 0, pace.cost, room, SECOND).expect("the bucket is full");
    }
    assert!(accounts.plenty);
    accounts.convert(SECOND);
    // The new rule leaves three requests in the bucket. They are for whoever asks: nothing is held back for the other
    // caller, as it would be if its account had been taken to be full.
    for number in 0..3 {
        let backlog = room.backlog - pace.cost * (2 - number);
        assert_eq!(accounts.claim(0, backlog, pace.cost, room, SECOND), Ok(()), "request {number}");
        accounts.pay(0, pace.cost);
    }
    assert!(accounts.open.iter().all(|account| account.held == 0), "{accounts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever others do: who asks no faster than its share is admitted, and so is who comes when he is told to.
    #[test]
    fn shares_hold_against_anybody(
        others in 2..6u64,
        more_burst in 0..20u64,
        asks in prop::collection::vec((0..4 * MILLI, 0..6u64), 200..600),
        patience in prop_oneof![Just(0), 0..100 * MILLI],
    ) {
        let callers = others + 1;
        let buckets = Buckets::shared(Pace { patience: ticks(patience), ..pace(callers + more_burst) });
        let mut now = SECOND;
        // Everybody is around.
        for caller in 0..callers {
            let _ = buckets.take(u128::from(caller), Ticks::MAX, now);
        }
        // The first asks once in its turn, the second when it is told to, the others whenever they like.
        let turn = 10 * MILLI * callers + 1;
        let (mut next_turn, mut told, mut was_told) = (now + turn, now, false);
        for (pause, other) in asks {
            now += pause;
            while next_turn.min(told) <= now {
                if next_turn <= told {
                    prop_assert!(buckets.take(0, Ticks::MAX, next_turn).is_ok(), "refused its share");
                    next_turn += turn;
                    continue;
                }
                match buckets.take(1, Ticks::MAX, told) {
                    Ok(_) => was_told = false,
                    Err(short) => {
                        prop_assert!(!was_told, "told to come now, and refused");
                        was_told = true;
                        told += duration(short).as_nanos() as u64 + 1;
                    }
                }
            }
            let _ = buckets.take(u128::from(2 + other % (others - 1)), Ticks::MAX, now);
        }
    }
}

/// What a caller has saved under the old rule, and what the bucket regained under it, says nothing of the new one.
#[test]
fn what_accounts_hold_is_forgotten_when_the_rule_changes() {
    let pace = pace(10);
    let room = Bucket::new(&pace).room(&pace, 0);
    let (booked, now) = (SECOND, 10 * SECOND);
    let accounts = |held| Accounts {
        open: [(0, 0), (1, held)].map(|(caller, held)| Account { caller, held, asked_nanos: now }).into(),
        booked: ticks(booked),
        plenty: false,
    };
    // One request is left in the bucket: it is the other caller's while that has something on its account, and half of it while
    // what was regained is still to be booked.
    let claim = |accounts: &mut Accounts| accounts.claim(0, room.backlog, pace.cost, room, now);
    for held in [2 * pace.cost, 0] {
        assert!(claim(&mut accounts(held)).is_err());
        let mut changed = accounts(held);
        changed.convert(now);
        assert_eq!(claim(&mut changed), Ok(()), "{changed:?}");
    }
}
