use super::*;
use crate::govern::throttle::pace::{duration, ticks};

const SECOND: u64 = 1_000_000_000;

/// One a second, and five at once.
fn pace() -> Pace {
    let cost = ticks(SECOND);
    Pace { cost, tolerance: cost * 4, patience: 0, cold: None, grace: 0, epoch: 0 }
}

/// Spread over the shards like hashes.
fn key(number: u64) -> u128 {
    u128::from(number) << 64 | u128::from(number)
}

fn admitted(buckets: &Buckets, number: u64, now_nanos: u64) -> usize {
    (0..10).filter(|_| buckets.take(key(number), Ticks::MAX, now_nanos).is_ok()).count()
}

#[test]
fn a_hundred_thousand_keys_are_counted_each_by_itself() {
    let buckets = Buckets::keyed(&Pace { tolerance: 0, ..pace() });
    for number in 0..100_000 {
        assert!(buckets.take(key(number), Ticks::MAX, SECOND).is_ok());
    }
    assert_eq!(buckets.len(), 100_000);
    let twice = (0..100_000).filter(|number| buckets.take(key(*number), Ticks::MAX, SECOND).is_ok()).count();
    assert_eq!(twice, 0);
}

#[test]
fn there_are_never_more_keys_than_are_kept_and_the_least_recently_used_go_first() {
    let buckets = Buckets::with_most_keys(&pace(), 1600);
    assert_eq!(admitted(&buckets, 0, 0), 5);
    for number in 1..10_000 {
        assert!(buckets.take(key(number), Ticks::MAX, 0).is_ok());
        // This one is used all the time, and stays.
        assert!(buckets.take(key(0), Ticks::MAX, 0).is_err());
        assert!(buckets.len() <= 1600);
    }
    assert_eq!(buckets.len(), 1600);
}

#[test]
fn nobody_gets_another_burst_by_flooding_the_rule_with_other_keys() {
    let buckets = Buckets::with_most_keys(&pace(), 1600);
    assert_eq!(admitted(&buckets, 0, 0), 5);
    for number in 1..=1600 {
        let _ = buckets.take(key(number), Ticks::MAX, 0);
    }
    assert_eq!(admitted(&buckets, 0, 0), 1, "forgotten, and yet no burst");
}

#[test]
fn keys_that_need_not_be_remembered_make_room() {
    let buckets = Buckets::keyed(&pace());
    for number in 0..10_000 {
        buckets.take(key(number), Ticks::MAX, 0).expect("a new key has a burst");
    }
    assert_eq!(buckets.len(), 10_000);
    // A second later each of them is full again: two go for each that comes.
    for number in 10_000..16_000 {
        assert_eq!(admitted(&buckets, number, 2 * SECOND), 5);
    }
    assert!(buckets.len() <= 6_000 + 2 * SHARDS, "{} are left", buckets.len());
}

#[test]
fn a_change_reaches_every_key() {
    let buckets = Buckets::keyed(&pace());
    for number in 0..1000 {
        assert_eq!(admitted(&buckets, number, 0), 5);
    }
    let faster = ticks(SECOND / 10);
    buckets.convert(&Pace { cost: faster, tolerance: faster, ..pace() }, 0);
    for number in 0..1000 {
        let short = buckets.take(key(number), Ticks::MAX, 0).expect_err("nothing is left").min(ticks(SECOND));
        assert_eq!(duration(short).as_millis(), 100);
        assert_eq!(admitted(&buckets, number, SECOND), 2);
    }
}

#[test]
fn what_was_taken_before_a_change_is_not_given_back_after_it() {
    for buckets in [Buckets::shared(pace()), Buckets::keyed(&pace())] {
        let taken = buckets.take(key(1), Ticks::MAX, 0).expect("it is full");
        assert_eq!(admitted(&buckets, 1, 0), 4);
        buckets.convert(&Pace { cost: 1, tolerance: 4, ..pace() }, 0);
        buckets.give_back(key(1), &taken, 0);
        assert_eq!(admitted(&buckets, 1, 0), 0);
    }
}

#[test]
fn a_forgotten_key_is_given_nothing_back() {
    let buckets = Buckets::keyed(&pace());
    let taken = buckets.take(key(1), Ticks::MAX, 0).expect("it is full");
    buckets.give_back(key(2), &taken, 0);
    assert_eq!(buckets.len(), 1);
}

#[test]
fn a_limit_that_no_time_regains_is_shared_without_overflow() {
    for (cost, room) in [(u128::MAX, u128::MAX), (1, u128::MAX), (u128::MAX, 0), (u128::MAX / 3, u128::MAX)] {
        let pace = Pace { cost, tolerance: room, patience: room, cold: None, grace: 0, epoch: 0 };
        let buckets = Buckets::shared(pace);
        for now in [0, 1, SECOND, u64::MAX, 0] {
            for caller in 0..4 {
                if let Ok(taken) = buckets.take(caller, Ticks::MAX, now) {
                    buckets.give_back(caller, &taken, now);
                }
            }
        }
    }
}
