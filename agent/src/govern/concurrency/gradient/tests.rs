use super::*;

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;

/// A controller that measured 10 ms, and has this limit.
fn running(limit: f64) -> Gradient {
    let mut gradient = measuring();
    feed(&mut gradient, 0, 50, 10 * MILLI);
    gradient.go_on(0, true, MILLI);
    gradient.limit = limit;
    gradient
}

/// One that has just begun to measure a service which does not keep up.
fn measuring() -> Gradient {
    let mut gradient = Gradient::new(&Adaptive::default(), 1000, 0, 0);
    gradient.start_measuring(0);
    gradient
}

fn feed(gradient: &mut Gradient, acquired: u64, count: usize, latency: u64) {
    for _ in 0..count {
        gradient.sample(acquired, latency, false);
    }
}

/// Some answers of that latency, and then an update.
fn update(gradient: &mut Gradient, latency: u64) -> u32 {
    let now = gradient.due_nanos();
    feed(gradient, now, 20, latency);
    gradient.go_on(0, true, now);
    gradient.limit()
}

#[test]
fn the_limit_follows_the_formula() {
    for (limit, latency_micros, wanted) in [
        // As fast as can be: g = 1.25, 25 + sqrt(25).
        (20.0, 10_000, 30),
        (80.0, 10_000, 110),
        // Just in the buffer: g = 1, 16 + 4.
        (16.0, 12_500, 20),
        // Twice as slow: g = 0.625, 10 + sqrt(10).
        (16.0, 20_000, 13),
        // Slower than g goes down: 0.5, 16 + 4; and faster than it goes up: 2, 100 + 10.
        (32.0, 1_000_000, 20),
        (50.0, 4000, 110),
        // Between the least and the most.
        (4.0, 1_000_000, 3),
        (900.0, 10_000, 1000),
    ] {
        assert_eq!(update(&mut running(limit), latency_micros * 1000), wanted, "{limit} {latency_micros}");
    }
}

#[test]
fn a_measurement_ends_with_enough_answers() {
    let mut gradient = measuring();
    assert_eq!(gradient.limit(), 3);
    feed(&mut gradient, 0, 49, 20 * MILLI);
    gradient.go_on(3, true, 900 * MILLI);
    assert_eq!(gradient.min_rtt_nanos(), None);
    feed(&mut gradient, 0, 1, 10 * MILLI);
    gradient.go_on(3, true, 901 * MILLI);
    assert_eq!(gradient.min_rtt_nanos(), Some(20 * MILLI), "the median");
}

#[test]
fn a_measurement_ends_in_time_with_what_it_has() {
    let mut gradient = measuring();
    feed(&mut gradient, 0, 3, 20 * MILLI);
    gradient.go_on(3, true, SECOND - 1);
    assert_eq!(gradient.min_rtt_nanos(), None);
    gradient.go_on(3, true, SECOND);
    assert_eq!(gradient.min_rtt_nanos(), Some(20 * MILLI));
}

#[test]
fn a_measurement_waits_for_a_slow_service_and_not_for_a_silent_one() {
    let mut slow = measuring();
    slow.go_on(3, true, 9 * SECOND);
    feed(&mut slow, 0, 1, 9 * SECOND);
    slow.go_on(3, true, 9 * SECOND);
    assert_eq!(slow.min_rtt_nanos(), Some(9 * SECOND));

    let mut silent = running(500.0);
    silent.start_measuring(60 * SECOND);
    assert_eq!(silent.limit(), 3);
    silent.go_on(3, true, 69 * SECOND);
    assert_eq!(silent.limit(), 3);
    silent.go_on(3, true, 70 * SECOND);
    assert_eq!((silent.limit(), silent.min_rtt_nanos()), (500, Some(10 * MILLI)), "it goes on as it was");
}

#[test]
fn a_measurement_without_traffic_begins_anew_with_it() {
    let mut gradient = measuring();
    // An hour later the first request comes.
    gradient.go_on(0, true, 3600 * SECOND);
    feed(&mut gradient, 3600 * SECOND, 10, 10 * MILLI);
    gradient.go_on(3, true, 3600 * SECOND + 900 * MILLI);
    assert_eq!(gradient.min_rtt_nanos(), None);
    gradient.go_on(3, true, 3601 * SECOND);
    assert_eq!(gradient.min_rtt_nanos(), Some(10 * MILLI));
}

#[test]
fn only_answers_to_requests_of_the_measurement_are_measured() {
    let mut gradient = running(100.0);
    gradient.start_measuring(60 * SECOND);
    feed(&mut gradient, 60 * SECOND - 1, 60, 500 * MILLI);
    gradient.go_on(50, true, 60 * SECOND + MILLI);
    assert_eq!(gradient.limit(), 3, "it is still measuring");
    feed(&mut gradient, 60 * SECOND, 50, 12 * MILLI);
    gradient.go_on(3, true, 60 * SECOND + 2 * MILLI);
    assert_eq!((gradient.limit(), gradient.min_rtt_nanos()), (100, Some(12 * MILLI)));
}

#[test]
fn a_service_in_good_health_is_never_measured_again() {
    let mut gradient = running(20.0);
    for _ in 0..2000 {
        assert_ne!(update(&mut gradient, 12 * MILLI), 3);
    }
    // 200 seconds, three times the interval.
    assert!(gradient.due_nanos() > 200 * SECOND);
}

#[test]
fn a_service_that_is_slow_is_measured_after_the_interval() {
    let mut gradient = running(100.0);
    let measured_at = loop {
        let now = gradient.due_nanos();
        // Slow by so much that the limit stays where it is: g * L + sqrt(g * L) = L.
        if update(&mut gradient, 13_800_000) == 3 {
            break now;
        }
    };
    let interval = 60 * SECOND;
    assert!((interval..interval * 116 / 100).contains(&measured_at), "{measured_at}");
}

#[test]
fn a_limit_that_stays_at_its_minimum_is_measured_anew_at_once() {
    let mut gradient = running(3.0);
    for _ in 0..4 {
        assert_eq!(update(&mut gradient, 100 * MILLI), 3);
    }
    assert!(matches!(gradient.phase, Phase::Running { .. }));
    update(&mut gradient, 100 * MILLI);
    let Phase::Measuring { since, .. } = gradient.phase else { panic!("{:?}", gradient.phase) };
    feed(&mut gradient, since, 50, 100 * MILLI);
    gradient.go_on(3, true, since + SECOND);
    assert_eq!(gradient.min_rtt_nanos(), Some(100 * MILLI));
    // 3.75 + sqrt(3.75).
    assert_eq!(update(&mut gradient, 100 * MILLI), 5);
}

#[test]
fn a_faster_service_is_followed() {
    let mut gradient = running(20.0);
    for _ in 0..20 {
        update(&mut gradient, 2 * MILLI);
    }
    let min_rtt = gradient.min_rtt_nanos().expect("it was measured");
    assert!((2 * MILLI..=2 * MILLI * 5 / 4).contains(&min_rtt), "{min_rtt}");
}

#[test]
fn an_update_waits_for_enough_answers() {
    let mut gradient = running(20.0);
    for step in 0..9 {
        let now = gradient.due_nanos();
        feed(&mut gradient, now, 1, 10 * MILLI);
        gradient.go_on(0, true, now);
        assert_eq!(gradient.limit(), 20, "after {step}");
    }
    let now = gradient.due_nanos();
    feed(&mut gradient, now, 1, 10 * MILLI);
    gradient.go_on(0, true, now);
    assert_eq!(gradient.limit(), 30);
}

#[test]
fn fast_failures_say_nothing_and_slow_ones_do() {
    let mut gradient = running(32.0);
    for _ in 0..20 {
        gradient.sample(0, MILLI, true);
    }
    gradient.go_on(0, true, gradient.due_nanos());
    assert_eq!((gradient.limit(), gradient.min_rtt_nanos()), (32, Some(10 * MILLI)));
    for _ in 0..20 {
        gradient.sample(0, SECOND, true);
    }
    gradient.go_on(0, true, gradient.due_nanos());
    assert_eq!(gradient.limit(), 20);
}

#[test]
fn the_last_samples_are_kept() {
    let mut samples = Samples::default();
    assert_eq!(samples.take_median(), None);
    (0..MOST_SAMPLES as u64 * 3).for_each(|latency| samples.push(latency));
    assert_eq!(samples.len(), MOST_SAMPLES);
    assert_eq!(samples.take_median(), Some((MOST_SAMPLES * 2) as f64 + (MOST_SAMPLES / 2 - 1) as f64));
    assert_eq!(samples.len(), 0);
}

#[test]
fn extremes_are_survived() {
    for (min_requests, max_requests) in [(0, 0), (1, 1), (5, 2), (u32::MAX, u32::MAX), (1, u32::MAX)] {
        for interval in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let adaptive = Adaptive { min_requests, update_interval: interval, min_rtt_interval: interval };
            let mut gradient = Gradient::new(&adaptive, max_requests, 0, u64::MAX - 3);
            for round in 0..200 {
                let now = u64::MAX - 3 + round / 64;
                feed(&mut gradient, now, 60, if round % 2 == 0 { 0 } else { u64::MAX });
                gradient.go_on(u32::MAX, true, now);
                let limit = gradient.limit();
                assert!(limit >= 1 && limit <= max_requests.max(1), "{limit}");
                assert!(gradient.due_nanos() < u64::MAX);
            }
        }
    }
}
