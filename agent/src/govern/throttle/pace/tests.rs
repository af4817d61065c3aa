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
    if bucket.short(pace, Ticks::MAX, now_nanos) > 0 {
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
        let short = bucket.short(&pace, Ticks::MAX, now);
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
    assert!(bucket.give_back(&first, &pace, 0));
    assert!(try_take(&mut bucket, &pace, 0).is_some());
    assert!(try_take(&mut bucket, &pace, 0).is_none());
}

#[test]
fn what_would_have_been_regained_anyway_is_not_given_back() {
    let pace = pace(10.0, 1.0, Behaviour::Reject);
    let mut bucket = Bucket::new(&pace);
    let first = try_take(&mut bucket, &pace, 0).expect("it is full");
    try_take(&mut bucket, &pace, SECOND).expect("it is full again");
    assert!(!bucket.give_back(&first, &pace, SECOND), "there would be two at once");
    assert!(try_take(&mut bucket, &pace, SECOND).is_none());
}

#[test]
fn several_are_given_back_only_as_far_as_they_would_not_have_been_regained_anyway() {
    let pace = pace(1.0, 8.0, Behaviour::Reject);
    // What is taken first, how much later another one is, how many of the first are given back, and how many are left then:
    // no more than if those had never been, which is what the last number says.
    for (first, later_millis, returned, left, at_most) in [
        (4, 2900, 1, 6, 6),
        // The second of the three could not go by itself any more.
        (4, 2900, 3, 6, 7),
        (4, 1000, 4, 7, 7),
        (8, 1000, 8, 4, 7),
        (1, 10_000, 1, 7, 7),
    ] {
        let mut bucket = Bucket::new(&pace);
        let taken: Vec<_> = (0..first).filter_map(|_| try_take(&mut bucket, &pace, 0)).collect();
        let now = later_millis * MILLI;
        let _ = try_take(&mut bucket, &pace, now).expect("there are enough");
        taken.iter().take(returned).for_each(|taken| {
            bucket.give_back(taken, &pace, now);
        });
        let more = (0..20).filter(|_| try_take(&mut bucket, &pace, now).is_some()).count();
        assert_eq!(more, left, "{returned} of {first} given back after {later_millis} ms");
        assert!(more <= at_most);
    }
}

#[test]
fn what_is_given_back_in_any_order_is_all_there_again() {
    let pace = pace(10.0, 20.0, Behaviour::Reject);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut bucket = Bucket::new(&pace);
        let taken: Vec<_> = (0..20).filter_map(|_| try_take(&mut bucket, &pace, 0)).collect();
        for index in order {
            assert!(bucket.give_back(&taken[16 + index], &pace, 0), "{index} of {order:?}");
        }
        assert_eq!((0..20).filter(|_| try_take(&mut bucket, &pace, 0).is_some()).count(), 4);
    }
}

#[test]
fn a_limit_with_a_burst_of_one_is_reached_by_requests_that_come_at_random() {
    for behaviour in
        [Behaviour::Reject, Behaviour::WarmUp { duration: Duration::from_secs(10), cold_factor: 3.0 }]
    {
        let pace = pace(50.0, 1.0, behaviour);
        let mut bucket = Bucket::new(&pace);
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut now, mut count) = (0, 0);
        while now < 120 * SECOND {
            now += (-rng.f64().max(1e-9).ln() * SECOND as f64 / 300.0) as u64;
            count += u32::from(try_take(&mut bucket, &pace, now).is_some() && now >= 20 * SECOND);
        }
        assert!((4950..=5001).contains(&count), "{count} in 100 s with {behaviour:?}");
        // After a quiet time it is one, and the next in its time.
        now += 100 * MILLI;
        assert_eq!(admitted(&mut bucket, &pace, now, now + 20 * MILLI, MILLI), 1, "{behaviour:?}");
    }
}

#[test]
fn the_first_request_is_not_late_however_soon_after_the_start_it_comes() {
    let pace = Pace::of(&rule(1.0, Duration::from_secs(20), 1.0, Behaviour::Reject));
    for first in [0, 1, 3_700 * MILLI, 19 * SECOND, 20 * SECOND, 3600 * SECOND] {
        let mut bucket = Bucket::new(&pace);
        assert!(try_take(&mut bucket, &pace, first).is_some());
        let short = bucket.short(&pace, Ticks::MAX, first);
        assert_eq!(duration(short), Duration::from_secs(20), "{first} ns after the clock began");
        assert!(try_take(&mut bucket, &pace, first + 20 * SECOND - 1).is_none());
        assert!(try_take(&mut bucket, &pace, first + 20 * SECOND).is_some());
    }
}

#[test]
fn a_cold_bucket_has_no_burst() {
    let behaviour = Behaviour::WarmUp { duration: Duration::from_secs(10), cold_factor: 3.0 };
    let pace = pace(100.0, 100.0, behaviour);
    let mut bucket = Bucket::new(&pace);
    // A third of the limit, where a burst would be 66.
    let first = admitted(&mut bucket, &pace, 0, SECOND, MILLI);
    assert!((33..=35).contains(&first), "{first}");
    // Twice as much halfway, and the limit in the end.
    let _ = admitted(&mut bucket, &pace, SECOND, 10 * SECOND, MILLI);
    assert!(admitted(&mut bucket, &pace, 10 * SECOND, 20 * SECOND, MILLI) >= 1000);
    assert_eq!(admitted(&mut bucket, &pace, 20 * SECOND, 21 * SECOND, MILLI), 100);
    // Warm, with what it has regained in a second without load.
    assert_eq!(admitted(&mut bucket, &pace, 22 * SECOND, 22 * SECOND + 1, 1), 1);
    let at_once = (0..200).filter(|_| try_take(&mut bucket, &pace, 22 * SECOND).is_some()).count();
    assert!((95..=99).contains(&at_once), "{at_once}");
}

#[test]
fn who_leaves_a_queue_makes_room_and_nobody_else_moves() {
    let pace = pace(10.0, 1.0, Behaviour::Queue { timeout: Duration::from_millis(300) });
    let mut bucket = Bucket::new(&pace);
    let wait = |taken: Option<Taken>| taken.map(|taken| duration(taken.wait).as_millis());
    let [_, second, third, fourth] =
        [(); 4].map(|()| try_take(&mut bucket, &pace, 0).expect("there is room"));
    assert_eq!(wait(try_take(&mut bucket, &pace, 0)), None);
    // In the middle: the next one that comes has its moment.
    assert!(bucket.give_back(&second, &pace, 0));
    assert_eq!(wait(try_take(&mut bucket, &pace, 40 * MILLI)), Some(60));
    assert_eq!(wait(try_take(&mut bucket, &pace, 40 * MILLI)), None);
    // The last two, in whatever order: the queue is shorter.
    assert!(bucket.give_back(&third, &pace, 50 * MILLI));
    assert!(bucket.give_back(&fourth, &pace, 50 * MILLI));
    let waits = [(); 3].map(|()| wait(try_take(&mut bucket, &pace, 50 * MILLI)));
    assert_eq!(waits, [Some(150), Some(250), None]);
}

#[test]
fn a_place_whose_moment_has_passed_is_nobodys() {
    let pace = pace(10.0, 1.0, Behaviour::Queue { timeout: Duration::from_secs(1) });
    let mut bucket = Bucket::new(&pace);
    let [_, second, _] = [(); 3].map(|()| try_take(&mut bucket, &pace, 0).expect("there is room"));
    assert!(bucket.give_back(&second, &pace, 10 * MILLI));
    let next = try_take(&mut bucket, &pace, 150 * MILLI).expect("there is room");
    assert_eq!(duration(next.wait).as_millis(), 150);
    assert!(!bucket.give_back(&second, &pace, 150 * MILLI));
}

#[test]
fn who_has_less_time_than_it_would_wait_is_refused() {
    let pace = pace(10.0, 1.0, Behaviour::Queue { timeout: Duration::from_secs(1) });
    let mut bucket = Bucket::new(&pace);
    let taken = [(); 4].map(|()| try_take(&mut bucket, &pace, 0).expect("there is room"));
    let short = |bucket: &Bucket, millis| {
        duration(bucket.short(&pace, span(Duration::from_millis(millis)), 0)).as_millis()
    };
    assert_eq!([0, 399, 400].map(|left| short(&bucket, left)), [400, 1, 0]);
    // Unless somebody has left.
    bucket.give_back(&taken[1], &pace, 0);
    assert_eq!([0, 99, 100].map(|left| short(&bucket, left)), [100, 1, 0]);
}

#[test]
fn a_change_at_the_beginning_of_time_is_one_like_others() {
    let (large, small) = (pace(0.1, 14.0, Behaviour::Reject), pace(0.1, 1.0, Behaviour::Reject));
    let mut bucket = Bucket::new(&large);
    for _ in 0..10 {
        try_take(&mut bucket, &large, 0).expect("there are enough");
    }
    bucket.convert(&large, &small, 0);
    bucket.convert(&small, &large, 0);
    let left = (0..20).filter(|_| try_take(&mut bucket, &large, 0).is_some()).count();
    assert_eq!(left, 1, "as many as the small one held");
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
    /// Nor are so many before it.
    GiveBackAll(usize, usize),
    Change(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop_oneof![0..50u64, 0..2 * MILLI, 0..SECOND, Just(100 * SECOND)].prop_map(Step::Sleep),
        8 => Just(Step::Ask),
        2 => (0..4usize).prop_map(Step::GiveBack),
        1 => (0..4usize, 2..8usize).prop_map(|(back, count)| Step::GiveBackAll(back, count)),
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

/// Gives back so many of those that were made, from the last but so many backwards.
fn give_back(
    bucket: &mut Bucket,
    made: &mut Vec<(Taken, f64)>,
    pace: &Pace,
    now: u64,
    back: usize,
    count: usize,
) {
    let end = made.len().saturating_sub(back);
    for index in (end.saturating_sub(count)..end).rev() {
        if bucket.give_back(&made[index].0, pace, now) {
            made.remove(index);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The bound that everybody counts on, whatever is given back and however often the rule changes.
    #[test]
    fn no_window_has_more_than_the_burst_and_the_rate(
        rules in prop::collection::vec((some_rule(), behaviour()), 4),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let paces: Vec<Pace> =
            rules.iter().map(|((requests, burst), behaviour)| pace(*requests, *burst, *behaviour)).collect();
        // While requests keep coming a burst is never below two.
        let burst = rules.iter().map(|((_, burst), _)| *burst).fold(2.0, f64::max);
        let (mut current, mut now, mut regained) = (0, 0u64, 0.0);
        let mut bucket = Bucket::new(&paces[0]);
        let mut in_force = paces[0].clone();
        // Of each admitted request: what it took, and what the rate had given by then.
        let mut made: Vec<(Taken, f64)> = Vec::new();
        for step in steps {
            match step {
                Step::Sleep(nanos) => {
                    now += nanos;
                    regained += rules[current].0.0 * nanos as f64 / SECOND as f64;
                }
                Step::Ask => {
                    let taken = try_take(&mut bucket, &in_force, now);
                    made.extend(taken.map(|taken| (taken, regained)));
                }
                Step::GiveBack(back) => give_back(&mut bucket, &mut made, &in_force, now, back, 1),
                Step::GiveBackAll(back, count) => {
                    give_back(&mut bucket, &mut made, &in_force, now, back, count);
                }
                Step::Change(next) => {
                    let after = Pace { epoch: in_force.epoch + 1, ..paces[next].clone() };
                    bucket.convert(&in_force, &after, now);
                    (current, in_force) = (next, after);
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
        timeout in prop_oneof![1 => Just(0u64), 9 => 1..2000u64],
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let pace = pace(requests, burst, Behaviour::Queue { timeout: Duration::from_millis(timeout) });
        // A queue in which nobody may wait rejects: its burst is never below two while requests keep coming.
        let burst = if timeout == 0 { burst.max(2.0) } else { burst };
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
                Step::GiveBack(back) => give_back(&mut bucket, &mut made, &pace, now, back, 1),
                Step::GiveBackAll(back, count) => give_back(&mut bucket, &mut made, &pace, now, back, count),
                Step::Change(_) => {}
            }
        }
        made.sort_by(|(_, one), (_, other)| one.total_cmp(other));
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
            let short = bucket.short(&pace, Ticks::MAX, now);
            if short > 0 {
                let moment = now + duration(short).as_nanos() as u64;
                prop_assert!(bucket.short(&pace, Ticks::MAX, moment - 1) > 0);
                prop_assert_eq!(bucket.short(&pace, Ticks::MAX, moment), 0);
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
                    bucket.give_back(&taken, &paces[before], *now);
                    bucket.take(&paces[before], *now);
                }
                bucket.convert(&paces[before], &paces[after], *now);
                bucket.convert(&paces[after], &paces[before], *now);
                let _ = bucket.is_as_new(&paces[before], *now);
            }
        }
    }
}

#[test]
fn no_more_open_places_are_kept_than_there_is_room_for() {
    let mut open = Open::default();
    let kept = (1..=MOST_OPEN as Ticks + 2).filter(|turn| open.open(*turn, 0)).count();
    assert_eq!(kept, MOST_OPEN);
    // Room is made by those that have passed.
    assert!(open.open(MOST_OPEN as Ticks + 3, 2));
}
