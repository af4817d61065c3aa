use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

fn endpoint() -> Arc<Endpoint> {
    Arc::new(Endpoint::new(([10, 1, 0, 1], 8080).into()))
}

fn average(load: &Load) -> u64 {
    load.ewma_nanos.load(Acquire)
}

#[test]
fn averages_follow_the_formula() {
    let load = Load::default();
    assert_eq!(load.average_nanos(5 * S), None);
    // The first sample is the average.
    load.observe(10 * MS, S);
    assert_eq!(average(&load), 10 * MS);
    // Above: it replaces the average.
    load.observe(100 * MS, 2 * S);
    assert_eq!(average(&load), 100 * MS);
    // Below, 10 s later: 100 / e + 20 (1 - 1 / e) = 49.430355 ms.
    load.observe(20 * MS, 12 * S);
    assert_eq!(average(&load), 49_430_355);
    // At the same moment: it weighs nothing.
    load.observe(MS, 12 * S);
    assert_eq!(average(&load), 49_430_355);
    // 1 s later: 49.430355 * e^-0.1 + 1 * (1 - e^-0.1) = 44.821597 ms.
    load.observe(MS, 13 * S);
    assert_eq!(average(&load), 44_821_597);
    // A late one, from a worker whose clock was read earlier: weighs nothing, and does not turn time back.
    load.observe(MS, 10 * S);
    assert_eq!(average(&load), 44_821_597);
    assert_eq!(load.sampled_at_nanos.load(Acquire), 13 * S);
    // No answer is faster than a nanosecond, for zero means "no sample".
    let load = Load::default();
    load.observe(0, 0);
    assert_eq!(average(&load), 1);
}

#[test]
fn averages_fade_without_samples() {
    let load = Load::default();
    load.observe(100 * MS, 0);
    let at = |seconds: u64| load.average_nanos(seconds * S).map(|nanos| nanos.round() as u64);
    assert_eq!(at(0), Some(100 * MS));
    assert_eq!(at(10), Some(36_787_944), "1/e after 10 s");
    assert_eq!(at(1000), Some(1), "never to nothing, so that requests in flight still count");
}

#[test]
fn in_flight_is_counted_until_the_guard_is_dropped() {
    let endpoint = endpoint();
    let one = InFlight::begin(Arc::clone(&endpoint));
    let two = InFlight::begin(Arc::clone(&endpoint));
    assert_eq!(endpoint.load.in_flight.load(Relaxed), 2);
    one.observe(7 * MS, S);
    assert_eq!(average(&endpoint.load), 7 * MS);
    drop((one, two));
    assert_eq!(endpoint.load.in_flight.load(Relaxed), 0);
}

#[test]
fn many_workers_lose_no_count_and_no_peak() {
    let endpoint = endpoint();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let endpoint = &endpoint;
            scope.spawn(move || {
                for round in 0..1000 {
                    let guard = InFlight::begin(Arc::clone(endpoint));
                    guard.observe(if worker == 3 && round == 500 { 900 * MS } else { MS }, S);
                }
            });
        }
    });
    assert_eq!(endpoint.load.in_flight.load(Relaxed), 0);
    // All at one moment, so that nothing below moves the average: the peak stands.
    assert_eq!(average(&endpoint.load), 900 * MS);
}

#[test]
fn the_first_request_is_the_first_since_it_is_ready() {
    let load = Load::default();
    assert_eq!(load.first_request(Some(-5)), None);
    load.note_first_request(Some(-5), 0);
    assert_eq!(load.first_request(Some(-5)), Some(1), "zero means that there was none");
    load.note_first_request(Some(-5), 70);
    assert_eq!(load.first_request(Some(-5)), Some(1));
    // Ready anew.
    assert_eq!(load.first_request(Some(100)), None);
    load.note_first_request(Some(100), 130);
    assert_eq!(load.first_request(Some(100)), Some(130));
    // Who still has the endpoint of before changes nothing.
    load.note_first_request(Some(-5), 140);
    assert_eq!(load.first_request(Some(100)), Some(130));
    // A clock that is ahead has said when it became ready.
    load.note_first_request(Some(200), 190);
    assert_eq!(load.first_request(Some(200)), Some(200));
    // Nobody knows since when it is ready.
    assert_eq!(load.first_request(None), Some(200));
}

#[test]
fn termination_is_seen_by_those_who_hold_the_endpoint_of_before() {
    let endpoint = endpoint();
    assert_eq!(endpoint.load.terminating_since(), None);
    endpoint.load.set_terminating(true, 0);
    endpoint.load.set_terminating(true, 50);
    assert_eq!(endpoint.load.terminating_since(), Some(1), "zero means that it does not");
    endpoint.load.set_terminating(false, 60);
    assert_eq!(endpoint.load.terminating_since(), None);
    endpoint.load.set_terminating(true, 70);
    assert_eq!(endpoint.load.terminating_since(), Some(70));
}

proptest! {
    #[test]
    fn an_average_stays_between_the_extremes_of_its_samples(
        samples in prop::collection::vec((1..10 * S, 0..20 * S), 1..30),
    ) {
        let load = Load::default();
        let mut now = 0;
        for (latency, elapsed) in &samples {
            now += elapsed;
            load.observe(*latency, now);
            prop_assert!(average(&load) >= *latency || average(&load) > 0);
        }
        let least = samples.iter().map(|(latency, _)| *latency).min().unwrap_or(0);
        let most = samples.iter().map(|(latency, _)| *latency).max().unwrap_or(0);
        prop_assert!((least..=most).contains(&average(&load)));
    }
}
