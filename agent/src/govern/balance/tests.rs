use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU32, AtomicU64},
};

use fastrand::Rng;
use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

fn endpoint(index: u16) -> Arc<Endpoint> {
    with_load(index, Load::default())
}

fn with_load(index: u16, load: Load) -> Arc<Endpoint> {
    let [high, low] = index.to_be_bytes();
    Arc::new(Endpoint {
        address: SocketAddr::from(([10, 1, high, low], 8080)),
        tag: None,
        ready: true,
        serving: true,
        terminating: false,
        zone: None,
        node: None,
        pod: None,
        load: Arc::new(load),
    })
}

/// An endpoint with an average of `ewma` at time `at`, and requests in flight.
fn loaded(index: u16, ewma: u64, at: u64, in_flight: u32) -> Arc<Endpoint> {
    let load = Load {
        in_flight: AtomicU32::new(in_flight),
        ewma_nanos: AtomicU64::new(ewma),
        sampled_at_nanos: AtomicU64::new(at),
    };
    with_load(index, load)
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
fn the_cheaper_of_two_is_taken() {
    // (average, in flight) of one and of the other, and whether the other is taken.
    for (one, two, second) in [
        ((10 * MS, 0), (20 * MS, 0), false),
        ((20 * MS, 0), (10 * MS, 0), true),
        // 10 * (2 + 1) > 20 * (0 + 1).
        ((10 * MS, 2), (20 * MS, 0), true),
        // 10 * (1 + 1) = 20 * (0 + 1): the first.
        ((10 * MS, 1), (20 * MS, 0), false),
        // Nothing known of either: only requests in flight count.
        ((0, 1), (0, 0), true),
        ((0, 0), (0, 0), false),
        // The unknown is taken to be as fast as the known: 5 * 2 > 5 * 1.
        ((5 * MS, 1), (0, 0), true),
        ((5 * MS, 0), (0, 1), false),
        // But never slower than 30 ms: 40 > 30, 40 < 30 * 2.
        ((40 * MS, 0), (0, 0), true),
        ((40 * MS, 0), (0, 1), false),
    ] {
        let (first, other) = (loaded(1, one.0, S, one.1), loaded(2, two.0, S, two.1));
        let taken = cheaper(&first, &other, S);
        assert_eq!(taken.address == other.address, second, "{one:?} against {two:?}");
    }
}

#[test]
fn an_average_that_is_old_weighs_less() {
    // 30 ms of 20 s ago are 4.06 ms now: less than 5 ms of now.
    let (old, fresh) = (loaded(1, 30 * MS, 0, 0), loaded(2, 5 * MS, 20 * S, 0));
    assert_eq!(cheaper(&fresh, &old, 20 * S).address, old.address);
}

#[test]
fn in_flight_is_counted_until_the_guard_is_dropped() {
    let endpoint = endpoint(1);
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
    let endpoint = endpoint(1);
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
fn one_or_none() {
    let mut rng = Rng::with_seed(1);
    assert!(power_of_two(&[], |_| true, 0, &mut rng).is_none());
    let only = [endpoint(1)];
    assert!(power_of_two(&only, |_| false, 0, &mut rng).is_none());
    assert_eq!(power_of_two(&only, |_| true, 0, &mut rng).map(|e| e.address), Some(only[0].address));
    assert!(sticky(&[], |_| true, [10, 0, 0, 1].into()).is_none());
}

/// Requests arrive evenly; each takes the endpoint's own time. Returns how many each endpoint got.
fn simulate(latencies: &[u64], requests: u64, every: u64, seed: u64) -> Vec<u64> {
    let endpoints: Vec<_> = (0..latencies.len()).map(|index| endpoint(index as u16)).collect();
    let mut rng = Rng::with_seed(seed);
    let mut counts = vec![0; endpoints.len()];
    let mut running: Vec<(u64, u64, InFlight)> = Vec::new();
    for request in 0..requests {
        let now = S + request * every;
        running.retain(|(begun, ends, guard)| {
            if *ends <= now {
                guard.observe(ends - begun, *ends);
            }
            *ends > now
        });
        let chosen = power_of_two(&endpoints, |_| true, now, &mut rng).expect("there are endpoints");
        let index = endpoints.iter().position(|e| e.address == chosen.address).expect("one of ours");
        counts[index] += 1;
        running.push((now, now + latencies[index], InFlight::begin(Arc::clone(chosen))));
    }
    counts
}

#[test]
fn equal_endpoints_get_equal_shares() {
    for seed in 0..5 {
        let counts = simulate(&[5 * MS; 4], 20_000, MS, seed);
        for count in &counts {
            assert!((4000..6000).contains(count), "{counts:?}");
        }
    }
}

#[test]
fn a_slow_endpoint_gets_less_but_is_not_forgotten() {
    for seed in 0..5 {
        let counts = simulate(&[2 * MS, 2 * MS, 2 * MS, 200 * MS], 60_000, 2 * MS, seed);
        assert!(counts[3] < 600, "a hundredfold slower one gets below a percent: {counts:?}");
        assert!(counts[3] > 1, "its average fades, and it is tried again: {counts:?}");
    }
}

#[test]
fn a_new_endpoint_is_used_at_once_beside_fast_ones() {
    let endpoints = [loaded(1, MS, S, 0), loaded(2, MS, S, 0), endpoint(3)];
    let mut rng = Rng::with_seed(3);
    let mut got = 0;
    for _ in 0..300 {
        let chosen = power_of_two(&endpoints, |_| true, S, &mut rng).expect("there are endpoints");
        got += u32::from(chosen.address == endpoints[2].address);
    }
    assert!(got > 50, "{got} of 300");
}

#[test]
fn a_caller_stays_and_only_those_of_a_lost_endpoint_move() {
    let endpoints: Vec<_> = (0..10).map(endpoint).collect();
    let callers: Vec<IpAddr> =
        (0..2000_u16).map(|n| [10, 9, n.to_be_bytes()[0], n.to_be_bytes()[1]].into()).collect();
    let mut per_endpoint = [0; 10];
    let lost = endpoints[4].address;
    for caller in callers {
        let before = sticky(&endpoints, |_| true, caller).expect("there are endpoints").address;
        let index = endpoints.iter().position(|e| e.address == before).expect("one of ours");
        per_endpoint[index] += 1;
        let after = sticky(&endpoints, |e| e.address != lost, caller).expect("there are others").address;
        assert!(after == before || before == lost, "{caller} moved without need");
        let mapped = match caller {
            IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
            IpAddr::V6(_) => caller,
        };
        assert_eq!(sticky(&endpoints, |_| true, mapped).map(|e| e.address), Some(before));
    }
    for count in per_endpoint {
        assert!((120..280).contains(&count), "callers spread evenly: {per_endpoint:?}");
    }
}

#[test]
fn the_hash_is_the_same_after_a_restart() {
    // SplitMix64 seeded with 0 begins with these; `mix` of zero words is its finalizer applied to its own output.
    assert_eq!(mix(&[]), 0);
    let first = |word: u64| {
        let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    assert_eq!(first(0), 0xe220_a839_7b1d_cdaf, "the first number of SplitMix64 with seed 0");
    assert_eq!(mix(&[7]), first(first(0) ^ 7));
}

proptest! {
    #[test]
    fn only_eligible_endpoints_are_drawn_and_one_if_there_is_one(
        eligible in prop::collection::vec(any::<bool>(), 0..40),
        seed in any::<u64>(),
    ) {
        let endpoints: Vec<_> = (0..eligible.len()).map(|index| endpoint(index as u16)).collect();
        let passes = |e: &Endpoint| {
            endpoints.iter().position(|other| other.address == e.address).is_some_and(|index| eligible[index])
        };
        let mut rng = Rng::with_seed(seed);
        for chosen in [
            power_of_two(&endpoints, passes, 0, &mut rng),
            sticky(&endpoints, passes, [10, 0, 0, 1].into()),
        ] {
            match chosen {
                Some(endpoint) => prop_assert!(passes(endpoint)),
                None => prop_assert!(!eligible.contains(&true)),
            }
        }
    }

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
