use std::net::SocketAddr;

use fastrand::Rng;
use proptest::prelude::*;

use super::*;
use crate::govern::{
    cost::Ending,
    endpoint::{InFlight, Load},
};

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::LeastTime, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];

fn endpoint(index: u16) -> Arc<Endpoint> {
    with_load(index, Load::default())
}

fn with_load(index: u16, load: Load) -> Arc<Endpoint> {
    let [high, low] = index.to_be_bytes();
    let address = SocketAddr::from(([10, 1, high, low], 8080));
    Arc::new(Endpoint { load: Arc::new(load), ..Endpoint::new(address) })
}

/// An endpoint that has answered within this time, with requests in flight.
fn loaded(index: u16, nanos: u64, at: u64, in_flight: u32) -> Arc<Endpoint> {
    let load = Load::default();
    load.in_flight.store(in_flight, Relaxed);
    if nanos > 0 {
        (0..500).for_each(|_| load.cost_to_note().answered(Some(nanos), at));
    }
    with_load(index, load)
}

fn power_of_two<'e>(
    subset: &'e Subset,
    eligible: impl Fn(&Endpoint) -> bool,
    now_nanos: u64,
    rng: &mut Rng,
) -> Option<&'e Arc<Endpoint>> {
    How { algorithm: Algorithm::LeastTime, caller: None, now_nanos }.choose(subset, eligible, rng)
}

fn sticky(subset: &Subset, eligible: impl Fn(&Endpoint) -> bool, caller: IpAddr) -> Option<&Arc<Endpoint>> {
    let how = How { algorithm: Algorithm::LeastTime, caller: Some(caller), now_nanos: 0 };
    how.choose(subset, eligible, &mut Rng::with_seed(0))
}

/// The chance of one of two, of which each has answered within so many milliseconds, has so many unanswered requests, was
/// asked then, and has failed so often in a row.
fn chance_of(one: (u64, u32, u64, u32), other: (u64, u32, u64, u32)) -> f32 {
    let endpoint = |index, (millis, unanswered, asked, failures)| {
        let endpoint = loaded(index, millis * MS, S, 0);
        let cost = endpoint.load.cost_to_note();
        let answered = cost.ask(S + asked);
        cost.hear(answered);
        for _ in 0..unanswered {
            cost.ask(S + asked);
        }
        (0..failures).for_each(|_| cost.ended(Ending::Failed, MS, S));
        endpoint
    };
    chance(odds(&endpoint(1, one), &endpoint(2, other), S + 2))
}

#[test]
fn the_cheaper_is_preferred() {
    for (one, other, wanted) in [
        // Equals: by the requests that wait, then by who was asked longer ago.
        ((10, 0, 0, 0), (10, 0, 0, 0), 0.5),
        ((10, 0, 0, 0), (19, 0, 0, 0), 0.5),
        ((10, 0, 1, 0), (10, 0, 2, 0), 0.75),
        ((10, 0, 2, 0), (10, 0, 1, 0), 0.25),
        ((10, 0, 0, 0), (19, 1, 0, 0), 0.84),
        ((10, 2, 0, 0), (10, 0, 0, 0), 0.03),
        // What is not known is like the other.
        ((0, 0, 0, 0), (100, 0, 0, 0), 0.5),
        ((0, 1, 0, 0), (100, 0, 0, 0), 0.34),
        // Else by the squares.
        ((30, 0, 1, 0), (10, 0, 2, 0), 0.1),
        ((10, 0, 0, 0), (100, 0, 0, 0), 0.99),
        ((30, 0, 0, 0), (10, 2, 0, 0), 0.26),
        ((30, 0, 0, 0), (10, 8, 0, 0), 0.51),
        // Failures, however busy the other is.
        ((10, 0, 0, 1), (10, 0, 0, 0), 0.2),
        ((10, 0, 0, 2), (10, 0, 0, 0), 0.06),
        ((10, 0, 0, 1), (10, 50, 0, 0), 0.33),
        ((10, 0, 0, 6), (10, 50, 0, 0), 0.02),
        ((10, 0, 0, 3), (10, 0, 0, 3), 0.5),
    ] {
        let got = chance_of(one, other);
        assert!((got - wanted).abs() <= 0.03, "{got} and not {wanted}: {one:?} against {other:?}");
        assert!((chance_of(other, one) - (1.0 - got)).abs() < 1e-4);
    }
}

#[test]
fn one_or_none() {
    let mut rng = Rng::with_seed(1);
    assert!(power_of_two(&Subset::default(), |_| true, 0, &mut rng).is_none());
    let only = Subset::from(vec![endpoint(1)]);
    assert!(power_of_two(&only, |_| false, 0, &mut rng).is_none());
    assert_eq!(power_of_two(&only, |_| true, 0, &mut rng).map(|e| e.address), Some(only[0].address));
    assert!(sticky(&Subset::default(), |_| true, [10, 0, 0, 1].into()).is_none());
}

/// Requests arrive evenly; each takes the endpoint's own time. Returns how many each endpoint got.
fn simulate(latencies: &[u64], requests: u64, every: u64, seed: u64) -> Vec<u64> {
    let endpoints: Subset = (0..latencies.len()).map(|index| endpoint(index as u16)).collect();
    let mut rng = Rng::with_seed(seed);
    let mut counts = vec![0; endpoints.len()];
    let mut running: Vec<(u64, u64, InFlight)> = Vec::new();
    for request in 0..requests {
        let now = S + request * every;
        running.retain_mut(|(begun, ends, guard)| {
            if *ends <= now {
                guard.answered(Some(*ends - *begun), *ends);
            }
            *ends > now
        });
        let chosen = power_of_two(&endpoints, |_| true, now, &mut rng).expect("there are endpoints");
        let index = endpoints.iter().position(|e| e.address == chosen.address).expect("one of ours");
        counts[index] += 1;
        running.push((now, now + latencies[index], InFlight::begin(Arc::clone(chosen), now)));
    }
    counts
}

#[test]
fn equal_endpoints_get_equal_shares() {
    for seed in 0..5 {
        let counts = simulate(&[5 * MS; 4], 20_000, MS, seed);
        for count in &counts {
            assert!((4800..5200).contains(count), "{counts:?}");
        }
    }
}

#[test]
fn a_slow_endpoint_gets_less_but_is_not_forgotten() {
    for seed in 0..5 {
        let counts = simulate(&[2 * MS, 2 * MS, 2 * MS, 200 * MS], 60_000, 2 * MS, seed);
        assert!(counts[3] < 600, "a hundredfold slower one gets below a percent: {counts:?}");
        assert!(counts[3] > 10, "what was seen fades, and it is asked again: {counts:?}");
    }
}

#[test]
fn a_new_endpoint_is_used_at_once_beside_fast_ones() {
    let endpoints = Subset::from(vec![loaded(1, MS, S, 0), loaded(2, MS, S, 0), endpoint(3)]);
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
    let endpoints: Subset = (0..10).map(endpoint).collect();
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

proptest! {
    #[test]
    fn only_eligible_endpoints_are_drawn_and_one_if_there_is_one(
        eligible in prop::collection::vec(any::<bool>(), 0..40),
        seed in any::<u64>(),
    ) {
        let endpoints: Subset = (0..eligible.len()).map(|index| endpoint(index as u16)).collect();
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
}

fn by_share<'e>(
    how: &How,
    subset: &'e Subset,
    share: impl Fn(&Endpoint) -> f64,
    rng: &mut Rng,
) -> Option<&'e Arc<Endpoint>> {
    let shares: Vec<_> = subset.iter().map(|endpoint| share(endpoint)).collect();
    how.choose_by_share(subset, &shares, share, rng)
}

/// What each endpoint gets of 10,000 requests, if they have these shares (0: not eligible). Requests take a while, so that
/// the algorithm has something to see.
fn portions(algorithm: Algorithm, shares: &[f64], seed: u64) -> Vec<f64> {
    const REQUESTS: u32 = 10_000;
    let subset: Subset = (0..shares.len()).map(|index| endpoint(index as u16)).collect();
    let index = |of: &Endpoint| subset.iter().position(|e| e.address == of.address).expect("one of ours");
    let share = |e: &Endpoint| shares[index(e)];
    let mut rng = Rng::with_seed(seed);
    let mut counts = vec![0_u32; shares.len()];
    let mut running = std::collections::VecDeque::new();
    for request in 0..u64::from(REQUESTS) {
        let now_nanos = S + request * MS;
        let how = How { algorithm, caller: None, now_nanos };
        let chosen = by_share(&how, &subset, share, &mut rng).expect("some are eligible");
        counts[index(chosen)] += 1;
        running.push_back(InFlight::begin(chosen.clone(), now_nanos));
        if running.len() > 10 {
            running.pop_front().expect("there are ten").answered(Some(10 * MS), now_nanos);
        }
    }
    counts.into_iter().map(|count| f64::from(count) / f64::from(REQUESTS)).collect()
}

#[test]
fn shares_are_kept_within_two_percentage_points() {
    for shares in [
        // One that warms beside warm ones, all along its curve.
        &[1.0, 1.0, 1.0, 0.1][..],
        &[1.0, 1.0, 1.0, 0.5],
        &[1.0, 1.0, 1.0, 0.95],
        &[1.0, 0.1],
        &[1.0, 0.5],
        // Several at once.
        &[1.0, 1.0, 0.1, 0.3, 0.7],
        &[1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
        // All are new: in proportion among themselves.
        &[0.1, 0.1],
        &[0.2, 0.3, 0.5],
        &[0.1, 0.1, 0.1, 0.9],
        // Others are not there for anybody.
        &[0.0, 1.0, 0.0, 0.25],
        &[0.0, 0.1],
        &[0.3],
    ] {
        let all: f64 = shares.iter().sum();
        for (algorithm, seed) in ALGORITHMS.into_iter().zip(1..) {
            let got = portions(algorithm, shares, seed);
            for (got, share) in got.iter().zip(shares) {
                assert!((got - share / all).abs() < 0.02, "{algorithm:?}: {got} of {share} among {shares:?}");
                assert!(*share > 0.0 || *got == 0.0);
            }
        }
    }
}

#[test]
fn where_all_are_equally_new_the_algorithm_chooses() {
    // Ready times are in seconds, and taken over one by one.
    let subset: Subset = vec![loaded(1, 100 * MS, S, 9), loaded(2, MS, S, 0)].into();
    let how = How { algorithm: Algorithm::LeastTime, caller: None, now_nanos: S };
    let (mut rng, mut other) = (Rng::with_seed(1), 0);
    for _ in 0..100 {
        let share = |e: &Endpoint| if e.address == subset[0].address { 0.1004 } else { 0.1 };
        let chosen = by_share(&how, &subset, share, &mut rng).expect("both are eligible");
        other += u32::from(chosen.address == subset[1].address);
    }
    assert!(other > 95, "the other is slow: {other}");
}

#[test]
fn what_a_warming_endpoint_cannot_keep_up_with_goes_to_the_others() {
    // Its requests in flight, and those of two warm ones: whether it still gets its share.
    for (own, warm, takes) in [
        (0, [0, 0], true),
        (2, [0, 0], true),
        (3, [0, 0], false),
        // 2 + 2 * (1 + 2) / 2 = 5.
        (5, [1, 2], true),
        (6, [1, 2], false),
        (22, [10, 10], true),
        (23, [10, 10], false),
    ] {
        let all = vec![loaded(1, MS, S, own), loaded(2, MS, S, warm[0]), loaded(3, MS, S, warm[1])];
        let subset = Subset::from(all);
        for algorithm in ALGORITHMS {
            let how = How { algorithm, caller: None, now_nanos: S };
            let share = |e: &Endpoint| if e.address == subset[0].address { 0.5 } else { 1.0 };
            let mut rng = Rng::with_seed(1);
            let mut choose = |_| by_share(&how, &subset, share, &mut rng).expect("all are eligible").address;
            let got = (0..100).map(&mut choose).filter(|address| *address == subset[0].address).count();
            assert_eq!(got > 0, takes, "{own} beside {warm:?}");
        }
    }
}

#[test]
fn a_warming_endpoint_that_is_slower_gets_what_it_will_get_when_it_is_warm() {
    for (share, wanted) in [(0.2, 0.2), (0.9, 0.2), (1.0, 0.2)] {
        // A pair of which one takes three times as long: a tenth is that one's, a fifth of the half that is an equal's.
        let subset = Subset::from(vec![loaded(1, 30 * MS, S, 0), loaded(2, 10 * MS, S, 0)]);
        let how = How { algorithm: Algorithm::LeastTime, caller: None, now_nanos: S };
        let mut rng = Rng::with_seed(5);
        let of = |e: &Endpoint| if e.address == subset[0].address { share } else { 1.0 };
        let got = (0..20_000)
            .filter(|_| {
                let chosen = by_share(&how, &subset, of, &mut rng).expect("both are eligible");
                chosen.address == subset[0].address
            })
            .count();
        let (got, due) = (got as f64 / 20_000.0, share / (1.0 + share) * wanted);
        assert!((got - due).abs() < 0.02, "{got}, not {due}, with a share of {share}");
    }
}

#[test]
fn turns_go_round_whoever_is_left_out() {
    let subset: Subset = (0..4).map(endpoint).collect();
    let how = How { algorithm: Algorithm::RoundRobin, caller: None, now_nanos: 0 };
    let mut rng = Rng::with_seed(1);
    let mut round = |eligible: &dyn Fn(&Endpoint) -> bool, count: usize| -> Vec<u8> {
        let next = |_| how.choose(&subset, eligible, &mut rng).expect("some are eligible").address;
        (0..count)
            .map(next)
            .map(|address| if let IpAddr::V4(ip) = address.ip() { ip.octets()[3] } else { 0 })
            .collect()
    };
    assert_eq!(round(&|_| true, 6), [0, 1, 2, 3, 0, 1]);
    // The one after it does not get its turn as well.
    let without = subset[2].address;
    assert_eq!(round(&|e| e.address != without, 6), [0, 1, 3, 0, 1, 3]);
    assert_eq!(how.choose(&subset, |_| false, &mut rng).map(|e| e.address), None);
}

#[test]
fn the_less_busy_of_two_is_taken_whatever_its_latency() {
    let subset = Subset::from(vec![loaded(1, MS, S, 3), loaded(2, 500 * MS, S, 2)]);
    let how = How { algorithm: Algorithm::LeastRequest, caller: None, now_nanos: S };
    for seed in 0..20 {
        let chosen = how.choose(&subset, |_| true, &mut Rng::with_seed(seed)).expect("both are eligible");
        assert_eq!(chosen.address, subset[1].address);
    }
}

#[test]
fn chance_is_fair() {
    let got = portions(Algorithm::Random, &[1.0; 5], 3);
    assert!(got.iter().all(|part| (part - 0.2).abs() < 0.02), "{got:?}");
}

#[test]
fn nobody_is_chosen_from_nobody() {
    for algorithm in ALGORITHMS {
        for caller in [None, Some(IpAddr::from([10, 0, 0, 1]))] {
            let how = How { algorithm, caller, now_nanos: 0 };
            let mut rng = Rng::with_seed(1);
            let (nobody, somebody) = (Subset::default(), Subset::from(vec![endpoint(1)]));
            assert!(how.choose(&nobody, |_| true, &mut rng).is_none());
            assert!(by_share(&how, &nobody, |_| 1.0, &mut rng).is_none());
            assert!(by_share(&how, &somebody, |_| 0.0, &mut rng).is_none());
        }
    }
}

proptest! {
    /// Whatever the shares, algorithm or affinity: only who has a share is chosen, and somebody if anybody has.
    #[test]
    fn only_who_has_a_share_is_chosen(
        shares in prop::collection::vec(prop::option::of(0.001..=1.0_f64), 0..80),
        algorithm in prop::sample::select(ALGORITHMS.to_vec()),
        affinity in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let subset: Subset = (0..shares.len()).map(|index| endpoint(index as u16)).collect();
        let share = |e: &Endpoint| {
            let index = subset.iter().position(|other| other.address == e.address);
            index.and_then(|index| shares[index]).unwrap_or_default()
        };
        let caller = affinity.then(|| IpAddr::from([10, 0, 0, 1]));
        let how = How { algorithm, caller, now_nanos: 0 };
        match by_share(&how, &subset, share, &mut Rng::with_seed(seed)) {
            Some(chosen) => prop_assert!(share(chosen) > 0.0),
            None => prop_assert!(shares.iter().all(Option::is_none)),
        }
    }
}
