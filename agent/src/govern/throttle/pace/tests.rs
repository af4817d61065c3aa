use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::govern::policy::{LimitKey, Mode, RequestMatch, Scope};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;

fn rule(requests: f64, interval: Duration, burst: f64, behaviour: Behaviour) -> RateLimit {
    RateLimit {
        name: Arc::from("limit"),
        requests,
        interval,
        burst,
        behaviour,
        key: LimitKey::None,
        scope: Scope::Node,
        matches: RequestMatch::default(),
        mode: Mode::Enforce,
    }
}

fn pace(requests: f64, burst: f64, behaviour: Behaviour) -> Pace {
    Pace::of(&rule(requests, Duration::from_secs(1), burst, behaviour))
}

fn try_take(bucket: &mut Bucket, pace: &Pace, now_nanos: u64) -> Option<Taken> {
    if bucket.backlog(now_nanos) > pace.room() {
        bucket.refuse(pace, now_nanos);
        return None;
    }
    Some(bucket.take(pace, now_nanos))
}

/// How many are admitted of those that come every `step` nanoseconds from `from` until before `to`.
fn admitted(bucket: &mut Bucket, pace: &Pace, from: u64, to: u64, step: u64) -> usize {
    (from..to).step_by(step as usize).filter(|now| try_take(bucket, pace, *now).is_some()).count()
}

#[test]
fn a_third_of_a_second_does_not_drift() {
    let pace = pace(3.0, 2.0, Behaviour::Reject);
    let mut bucket = Bucket::new(&pace);
    // A day in which each request comes as soon as it may, to the nanosecond.
    let mut now = 0;
    assert!(try_take(&mut bucket, &pace, now).is_some());
    for _ in 0..3 * 86_400 {
        assert!(try_take(&mut bucket, &pace, now).is_some());
        let short = bucket.backlog(now) - pace.room();
        now += u64::try_from(duration(short).as_nanos()).expect("a moment");
    }
    assert!(now - 86_400 * SECOND <= 1, "{now}");
}

#[test]
fn a_burst_is_counted_to_the_last_request() {
    for burst in [1.0, 2.0, 7.0, 1000.0, 1_000_000.0] {
        for requests in [0.7, 3.0, 7.0, 1e9] {
            let pace = pace(requests, burst, Behaviour::Reject);
            let mut bucket = Bucket::new(&pace);
            let count = (0..=burst as usize).filter(|_| try_take(&mut bucket, &pace, 5).is_some()).count();
            assert_eq!(count, burst as usize, "{requests} a second");
        }
    }
}

#[test]
fn a_cold_bucket_opens_within_the_warm_up_time() {
    let behaviour = Behaviour::WarmUp { duration: Duration::from_secs(10), cold_factor: 3.0 };
    let pace = pace(10.0, 1.0, behaviour);
    let mut bucket = Bucket::new(&pace);
    // Costs 298 ms, then 4 ms less each time.
    let moments: Vec<u64> =
        (0..2000).filter(|now| try_take(&mut bucket, &pace, now * MILLI).is_some()).collect();
    assert_eq!(moments, [0, 298, 592, 882, 1168, 1450, 1728]);

    // All of the load that comes: 50 requests while it warms up, then 10 a second.
    let mut bucket = Bucket::new(&pace);
    assert_eq!(admitted(&mut bucket, &pace, 0, 10 * SECOND, MILLI), 50);
    assert_eq!(admitted(&mut bucket, &pace, 10 * SECOND, 20 * SECOND, MILLI), 100);
    // A second of quiet does not cool it, ten seconds do: 3.3, then 3.6 and so on, of which 4 come in the second.
    assert_eq!(admitted(&mut bucket, &pace, 21 * SECOND, 22 * SECOND, MILLI), 10);
    assert_eq!(admitted(&mut bucket, &pace, 33 * SECOND, 34 * SECOND, MILLI), 4);
}

#[test]
fn half_the_load_warms_up_and_stays_warm_and_a_quarter_does_not() {
    let behaviour = Behaviour::WarmUp { duration: Duration::from_secs(10), cold_factor: 3.0 };
    let pace = pace(10.0, 1.0, behaviour);
    for (step_millis, wanted_cost_millis) in [(100, 100), (200, 100), (400, 298)] {
        let mut bucket = Bucket::new(&pace);
        admitted(&mut bucket, &pace, 0, 120 * SECOND, step_millis * MILLI);
        let cost = duration(bucket.cost(&pace, 120 * SECOND)).as_millis();
        assert!(cost.abs_diff(wanted_cost_millis) <= 1, "{cost} ms with a request every {step_millis} ms");
    }
}

#[test]
fn what_is_given_back_can_be_taken_again() {
    let pace = pace(10.0, 2.0, Behaviour::Reject);
    let mut bucket = Bucket::new(&pace);
    let first = try_take(&mut bucket, &pace, 0).expect("there are two");
    try_take(&mut bucket, &pace, 0).expect("there are two");
    assert!(try_take(&mut bucket, &pace, 0).is_none());
    assert!(bucket.give_back(&first, &pace));
    assert!(try_take(&mut bucket, &pace, 0).is_some());
    assert!(try_take(&mut bucket, &pace, 0).is_none());
}

#[test]
fn what_would_have_been_regained_anyway_is_not_given_back() {
    let pace = pace(10.0, 1.0, Behaviour::Reject);
    let mut bucket = Bucket::new(&pace);
    let first = try_take(&mut bucket, &pace, 0).expect("it is full");
    try_take(&mut bucket, &pace, SECOND).expect("it is full again");
    assert!(!bucket.give_back(&first, &pace), "there would be two at once");
    assert!(try_take(&mut bucket, &pace, SECOND).is_none());
}

#[test]
fn only_the_last_of_a_queue_can_leave_it() {
    let pace = pace(10.0, 1.0, Behaviour::Queue { timeout: Duration::from_secs(1) });
    let mut bucket = Bucket::new(&pace);
    let [_, second, third] = [(); 3].map(|()| try_take(&mut bucket, &pace, 0).expect("there is room"));
    assert!(!bucket.give_back(&second, &pace));
    assert!(bucket.give_back(&third, &pace));
    assert_eq!(duration(try_take(&mut bucket, &pace, 0).expect("there is room").wait).as_millis(), 200);
}

#[test]
fn a_change_keeps_what_is_left() {
    let before = pace(10.0, 10.0, Behaviour::Reject);
    for (after, wanted) in [
        // Four are left of ten. They stay, as far as they fit; a larger burst has to be regained.
        (pace(100.0, 10.0, Behaviour::Reject), 4),
        (pace(1.0, 10.0, Behaviour::Reject), 4),
        (pace(10.0, 100.0, Behaviour::Reject), 4),
        (pace(10.0, 3.0, Behaviour::Reject), 3),
        (pace(10.0, 10.0, Behaviour::Queue { timeout: Duration::from_millis(200) }), 4 + 2),
    ] {
        let mut bucket = Bucket::new(&before);
        for _ in 0..6 {
            try_take(&mut bucket, &before, SECOND).expect("there are ten");
        }
        bucket.convert(&before, &after, SECOND);
        let left = (0..20).filter(|_| try_take(&mut bucket, &after, SECOND).is_some()).count();
        assert_eq!(left, wanted, "{after:?}");
    }
    // A bucket that nobody has asked is full under any rule.
    let mut bucket = Bucket::new(&before);
    let after = pace(1.0, 20.0, Behaviour::Reject);
    bucket.convert(&before, &after, SECOND);
    assert_eq!((0..30).filter(|_| try_take(&mut bucket, &after, SECOND).is_some()).count(), 20);
}

#[test]
fn those_who_wait_keep_their_places_when_the_rule_changes() {
    let queue = |rate| pace(rate, 1.0, Behaviour::Queue { timeout: Duration::from_secs(2) });
    let (before, after) = (queue(10.0), queue(20.0));
    let mut bucket = Bucket::new(&before);
    let waits = [(); 6].map(|()| try_take(&mut bucket, &before, 0).expect("there is room").wait);
    assert_eq!(duration(waits[5]).as_millis(), 500);
    bucket.convert(&before, &after, 0);
    // Five wait for their turns; the sixth turn comes twice as fast.
    assert_eq!(duration(try_take(&mut bucket, &after, 0).expect("there is room").wait).as_millis(), 300);
}

/// What is done to a bucket.
#[derive(Clone, Debug)]
enum Step {
    Sleep(u64),
    Ask,
    /// The last but so many is not going to be made after all.
    GiveBack(usize),
    Change(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop_oneof![0..50u64, 0..2 * MILLI, 0..SECOND, Just(100 * SECOND)].prop_map(Step::Sleep),
        8 => Just(Step::Ask),
        2 => (0..4usize).prop_map(Step::GiveBack),
        1 => (0..4usize).prop_map(Step::Change),
    ]
}

fn some_rule() -> impl Strategy<Value = (f64, f64)> {
    (prop_oneof![0.1..5.0, 1.0..100.0, 1e3..1e9f64], prop_oneof![Just(1.0), 1.0..20.0f64])
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        Just(Behaviour::Reject),
        (1u64..10_000, 1.1..10.0f64).prop_map(|(millis, cold_factor)| Behaviour::WarmUp {
            duration: Duration::from_millis(millis),
            cold_factor
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The bound that everybody counts on, whatever is given back and however often the rule changes.
    #[test]
    fn no_window_has_more_than_the_burst_and_the_rate(
        rules in prop::collection::vec((some_rule(), behaviour()), 4),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let paces: Vec<Pace> = rules
            .iter()
            .zip(0..)
            .map(|(((requests, burst), behaviour), epoch)| Pace { epoch, ..pace(*requests, *burst, *behaviour) })
            .collect();
        let burst = rules.iter().map(|((_, burst), _)| *burst).fold(0.0, f64::max);
        let (mut current, mut now, mut regained) = (0, 0u64, 0.0);
        let mut bucket = Bucket::new(&paces[0]);
        // Of each admitted request: what it took, and what the rate had given by then.
        let mut made: Vec<(Taken, f64)> = Vec::new();
        for step in steps {
            match step {
                Step::Sleep(nanos) => {
                    now += nanos;
                    regained += rules[current].0.0 * nanos as f64 / SECOND as f64;
                }
                Step::Ask => {
                    let taken = try_take(&mut bucket, &paces[current], now);
                    made.extend(taken.map(|taken| (taken, regained)));
                }
                Step::GiveBack(back) if back < made.len() => {
                    let (taken, _) = &made[made.len() - 1 - back];
                    if bucket.give_back(taken, &paces[current]) {
                        made.remove(made.len() - 1 - back);
                    }
                }
                Step::GiveBack(_) => {}
                Step::Change(next) => {
                    bucket.convert(&paces[current], &paces[next], now);
                    current = next;
                }
            }
        }
        for first in 0..made.len() {
            for last in first..made.len() {
                let bound = burst + made[last].1 - made[first].1;
                let count = (last - first + 1) as f64;
                prop_assert!(count <= bound * (1.0 + 1e-9) + 1e-6, "{count} where {bound} are allowed");
            }
        }
    }

    /// The same for those who wait, by the moments at which they go.
    #[test]
    fn a_queue_lets_no_more_go_in_any_window(
        (requests, burst) in some_rule(),
        timeout in 0..2000u64,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let pace = pace(requests, burst, Behaviour::Queue { timeout: Duration::from_millis(timeout) });
        let (mut now, mut bucket, mut made) = (0u64, Bucket::new(&pace), Vec::new());
        for step in steps {
            match step {
                Step::Sleep(nanos) => now += nanos,
                Step::Ask => {
                    if let Some(taken) = try_take(&mut bucket, &pace, now) {
                        prop_assert!(duration(taken.wait) <= Duration::from_millis(timeout));
                        made.push((taken, now as f64 + duration(taken.wait).as_nanos() as f64));
                    }
                }
                Step::GiveBack(back) if back < made.len() => {
                    if bucket.give_back(&made[made.len() - 1 - back].0, &pace) {
                        made.remove(made.len() - 1 - back);
                    }
                }
                Step::GiveBack(_) | Step::Change(_) => {}
            }
        }
        for first in 0..made.len() {
            for last in first..made.len() {
                // A moment is rounded up to a nanosecond.
                let window = made[last].1 - made[first].1 + 1.0;
                let bound = burst + requests * window / SECOND as f64;
                let count = (last - first + 1) as f64;
                prop_assert!(count <= bound * (1.0 + 1e-9) + 1e-6, "{count} where {bound} are allowed");
            }
        }
    }

    /// Who is refused and comes when he is told to is admitted, and a nanosecond earlier is not.
    #[test]
    fn the_time_to_come_back_is_exact(
        (requests, burst) in some_rule(),
        asked in prop::collection::vec(0..100 * MILLI, 1..60),
    ) {
        let pace = pace(requests, burst, Behaviour::Reject);
        let (mut now, mut bucket) = (0, Bucket::new(&pace));
        for pause in asked {
            now += pause;
            while try_take(&mut bucket, &pace, now).is_some() {
                // At a billion a second, even a large burst is regained while one looks.
                now += u64::from(requests >= 1e8);
                if requests >= 1e8 { break; }
            }
            let short = bucket.backlog(now).saturating_sub(pace.room());
            if short > 0 {
                let moment = now + duration(short).as_nanos() as u64;
                prop_assert!(bucket.backlog(moment - 1) > pace.room());
                prop_assert!(bucket.backlog(moment) <= pace.room());
            }
        }
    }

    /// Nothing that a policy may hold overflows or panics, nor does what it may not.
    #[test]
    fn extremes_are_survived(
        requests in prop_oneof![Just(1e9), Just(f64::MIN_POSITIVE), Just(f64::MAX), Just(f64::NAN), Just(0.0), Just(-1.0), any::<f64>()],
        interval in prop_oneof![Just(1u64), Just(0), Just(86_400 * SECOND), Just(u64::MAX), any::<u64>()],
        burst in prop_oneof![Just(f64::from(u32::MAX)), Just(1.0), Just(0.0), Just(f64::MAX), Just(f64::NAN), any::<f64>()],
        span in prop_oneof![Just(0u64), Just(1), Just(u64::MAX), any::<u64>()],
        cold_factor in prop_oneof![Just(3.0), Just(1.0), Just(f64::MAX), any::<f64>()],
        nows in prop::collection::vec(any::<u64>(), 1..20),
    ) {
        let spans = Duration::from_nanos(span);
        let behaviours = [
            Behaviour::Reject,
            Behaviour::Queue { timeout: spans },
            Behaviour::WarmUp { duration: spans, cold_factor },
        ];
        let paces = behaviours.map(|behaviour| Pace::of(&rule(requests, Duration::from_nanos(interval), burst, behaviour)));
        for (before, after) in [(0, 0), (0, 1), (1, 2), (2, 0), (2, 2)] {
            let mut bucket = Bucket::new(&paces[before]);
            for now in &nows {
                if let Some(taken) = try_take(&mut bucket, &paces[before], *now) {
                    let _ = duration(taken.wait);
                    bucket.give_back(&taken, &paces[before]);
                    bucket.take(&paces[before], *now);
                }
                bucket.convert(&paces[before], &paces[after], *now);
                bucket.convert(&paces[after], &paces[before], *now);
                let _ = bucket.is_as_new(&paces[before], *now);
            }
        }
    }
}
