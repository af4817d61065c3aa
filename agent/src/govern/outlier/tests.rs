use std::net::SocketAddr;

use fastrand::Rng;
use proptest::prelude::*;

use super::*;
use crate::govern::outcome::ErrorKind;

const S: u64 = 1_000_000_000;
const ERROR: Outcome = Outcome::Error(ErrorKind::Reset);
const ONE: CallerId = CallerId(1);
const OTHER: CallerId = CallerId(2);

fn endpoints(count: u8) -> Vec<Arc<Endpoint>> {
    (0..count).map(|n| Arc::new(Endpoint::new(SocketAddr::from(([10, 1, 0, n], 8080))))).collect()
}

/// A subset, and the time.
struct Bed {
    config: OutlierDetection,
    endpoints: Vec<Arc<Endpoint>>,
    outliers: Outliers,
    rng: Rng,
    now: u64,
    /// Who asks.
    by: CallerId,
}

impl Bed {
    fn new(count: u8, config: OutlierDetection) -> Self {
        let (endpoints, outliers) = (endpoints(count), Outliers::default());
        Self { config, endpoints, outliers, rng: Rng::with_seed(7), now: 100 * S, by: ONE }
    }

    /// So many of one endpoint: who was ejected.
    fn observe(&mut self, index: usize, outcome: Outcome, times: u32) -> Vec<(usize, Cause)> {
        let mut ejected = Vec::new();
        for _ in 0..times {
            let Self { config, endpoints, outliers, rng, now, .. } = self;
            for ejection in
                outliers.observe(config, endpoints, &endpoints[index], (self.by, outcome), *now, rng)
            {
                assert_eq!(ejection.mode, config.mode);
                let of = endpoints.iter().position(|e| e.address == ejection.endpoint.address);
                ejected.push((of.expect("one of ours"), ejection.cause));
            }
        }
        ejected
    }

    fn errors(&mut self, index: usize, times: u32) -> Vec<(usize, Cause)> {
        self.observe(index, ERROR, times)
    }

    /// How long an endpoint is still out, in seconds.
    fn out(&self, index: usize) -> Option<f64> {
        let until = ejected_until(Some(&self.config), &self.endpoints[index], self.now)?;
        assert!(!self.outliers.is_quiet(self.now));
        Some((until - self.now) as f64 / 1e9)
    }

    fn number(&self, index: usize) -> u32 {
        self.endpoints[index].load.record().ejections.load(Relaxed)
    }
}

const IN_A_ROW: Cause = Cause::ConsecutiveErrors;

#[test]
fn errors_in_a_row_eject() {
    let mut bed = Bed::new(4, OutlierDetection::default());
    assert_eq!(bed.errors(0, 4), []);
    assert_eq!(bed.observe(0, Outcome::Success, 1), []);
    assert_eq!(bed.errors(0, 4), [], "a success in between");
    assert_eq!(bed.out(0), None);
    assert_eq!(bed.errors(0, 1), [(0, IN_A_ROW)]);
    let out = bed.out(0).expect("it is out");
    assert!((27.0..=30.0).contains(&out), "{out}");
    // Those under way change nothing.
    assert_eq!(bed.errors(0, 20), []);
    assert_eq!(bed.out(0), Some(out));
    bed.now += 30 * S;
    assert_eq!(bed.out(0), None, "its time is over");
    assert!(bed.outliers.is_quiet(bed.now));
    assert_eq!(bed.errors(0, 4), [], "it begins anew");
    assert_eq!(bed.errors(0, 1), [(0, IN_A_ROW)]);
}

#[test]
fn what_one_caller_does_wrong_ejects_nobody_from_another() {
    let errors_of = |bed: &mut Bed, by, outcome, times| {
        bed.by = by;
        bed.observe(0, outcome, times)
    };
    let status = Outcome::Error(ErrorKind::Status(500));
    let mut bed = Bed::new(2, OutlierDetection::default());
    // A hundred times as many requests of one that fail, and the other's are fine.
    for _ in 0..50 {
        assert_eq!(errors_of(&mut bed, OTHER, Outcome::Success, 1), []);
        assert_eq!(errors_of(&mut bed, ONE, status, 100), []);
        bed.now += S / 10;
    }
    // Both fail.
    assert_eq!(errors_of(&mut bed, OTHER, status, 1), []);
    assert_eq!(errors_of(&mut bed, ONE, status, 5), [(0, IN_A_ROW)]);
    // Or nobody has been answered well for an interval.
    let mut bed = Bed::new(2, OutlierDetection::default());
    errors_of(&mut bed, OTHER, Outcome::Success, 1);
    bed.now += 10 * S + 1;
    assert_eq!(errors_of(&mut bed, ONE, status, 5), [(0, IN_A_ROW)]);
    // Several fail one after the other, whoever was answered before.
    let mut bed = Bed::new(2, OutlierDetection::default());
    errors_of(&mut bed, OTHER, Outcome::Success, 1);
    errors_of(&mut bed, CallerId(3), status, 1);
    assert_eq!(errors_of(&mut bed, ONE, status, 4), [(0, IN_A_ROW)]);
    // Nobody's requests are to blame for who cannot be connected to.
    let mut bed = Bed::new(2, OutlierDetection::default());
    errors_of(&mut bed, OTHER, Outcome::Success, 1);
    assert_eq!(errors_of(&mut bed, ONE, ErrorKind::Connect.into(), 5), [(0, IN_A_ROW)]);
}

#[test]
fn a_caller_that_is_answered_well_again_and_again_is_not_forgotten_among_many() {
    let mut bed = Bed::new(2, OutlierDetection::default());
    for round in 0..100 {
        for caller in 10..30 {
            bed.by = CallerId(caller);
            assert_eq!(bed.observe(0, Outcome::Success, 1), []);
        }
        bed.by = ONE;
        assert_eq!(bed.errors(0, 20), [], "{round}");
        bed.now += S / 10;
    }
}

#[test]
fn rates_are_compared_without_what_one_caller_does_wrong() {
    let config = OutlierDetection {
        consecutive_errors: None,
        success_rate: Some(SuccessRate { minimum_requests: 50, ..SuccessRate::default() }),
        ..OutlierDetection::default()
    };
    for (others_fail, ejected) in [(false, vec![]), (true, vec![(0, Cause::SuccessRate)])] {
        let mut bed = Bed::new(6, config.clone());
        bed.observe(5, Outcome::Success, 1);
        bed.by = OTHER;
        (0..6).for_each(|index| drop(bed.observe(index, Outcome::Success, 100)));
        // The requests of one go to the same endpoint (session affinity), and fail.
        bed.by = ONE;
        bed.observe(0, ERROR, 100);
        if others_fail {
            bed.by = OTHER;
            bed.observe(0, ERROR, 1);
        }
        bed.now += 10 * S;
        assert_eq!(bed.observe(5, Outcome::Success, 1), ejected);
    }
}

#[test]
fn never_is_never() {
    let mut bed = Bed::new(4, OutlierDetection { consecutive_errors: None, ..OutlierDetection::default() });
    assert_eq!(bed.errors(0, 1000), []);
}

#[test]
fn ejections_last_longer_and_longer_up_to_a_limit_and_are_forgotten() {
    let mut bed = Bed::new(
        4,
        OutlierDetection { max_ejection: Duration::from_secs(80), ..OutlierDetection::default() },
    );
    for full in [30.0, 60.0, 80.0, 80.0] {
        assert_eq!(bed.errors(0, 5), [(0, IN_A_ROW)]);
        let out = bed.out(0).expect("it is out");
        assert!((full * 0.9..=full).contains(&out), "{out} of {full}");
        bed.now += (out * 1e9) as u64;
        assert_eq!(bed.out(0), None);
    }
    assert_eq!(bed.number(0), 3, "it does not grow beyond what makes a difference");
    // Somebody else's outcomes close the intervals. The one in which it came back is none.
    let mut numbers = Vec::new();
    for _ in 0..5 {
        bed.observe(1, Outcome::Success, 1);
        numbers.push(bed.number(0));
        bed.now += 10 * S;
    }
    assert_eq!(numbers, [3, 2, 1, 0, 0]);
    assert_eq!(bed.errors(0, 5), [(0, IN_A_ROW)]);
    assert!(bed.out(0).is_some_and(|out| out <= 30.0));
}

#[test]
fn intervals_without_requests_are_forgiven_as_well() {
    let mut bed = Bed::new(4, OutlierDetection::default());
    let until = |bed: &Bed| ejected_until(Some(&bed.config), &bed.endpoints[0], bed.now).expect("it is out");
    for _ in 0..2 {
        bed.errors(0, 5);
        bed.now = until(&bed);
    }
    assert_eq!(bed.errors(0, 5), [(0, IN_A_ROW)]);
    assert_eq!(bed.number(0), 3);
    bed.now = until(&bed) + 25 * S;
    bed.observe(1, Outcome::Success, 1);
    assert_eq!(bed.number(0), 1, "two whole intervals of 10 s");
}

#[test]
fn the_cap_holds_and_the_last_is_never_ejected() {
    for (count, percent, allowed) in [
        (1, 100.0, 0),
        (2, 0.0, 1),
        (2, 50.0, 1),
        (2, 100.0, 1),
        (3, 50.0, 1),
        (4, 50.0, 2),
        (10, 25.0, 2),
        (10, 100.0, 9),
    ] {
        let config = OutlierDetection { max_ejection_percent: percent, ..OutlierDetection::default() };
        let mut bed = Bed::new(count, config);
        for index in 0..usize::from(count) {
            bed.errors(index, 5);
        }
        let out = (0..usize::from(count)).filter(|index| bed.out(*index).is_some()).count();
        assert_eq!(out, allowed, "{percent} % of {count}");
    }
}

#[test]
fn the_cap_is_of_those_that_are_usable() {
    let mut bed = Bed::new(4, OutlierDetection::default());
    for index in [2, 3] {
        let address = bed.endpoints[index].address;
        bed.endpoints[index] = Arc::new(Endpoint { ready: false, ..Endpoint::new(address) });
    }
    assert_eq!(bed.errors(2, 5), [], "nobody asks it anyway");
    assert_eq!(bed.errors(0, 5), [(0, IN_A_ROW)]);
    assert_eq!(bed.errors(1, 5), [], "the last that is usable");
}

#[test]
fn one_that_is_gone_is_not_ejected() {
    let mut bed = Bed::new(4, OutlierDetection::default());
    let gone = bed.endpoints.pop().expect("there are four");
    for _ in 0..20 {
        let Bed { config, endpoints, outliers, rng, now, .. } = &mut bed;
        assert!(outliers.observe(config, endpoints, &gone, (ONE, ERROR), *now, rng).is_empty());
    }
    assert!(!is_ejected(Some(&bed.config), &gone, bed.now));
}

/// By hand: nine endpoints without errors and one with half: mean 0.95, deviation sqrt(0.9 * 0.05^2 + 0.1 * 0.45^2) = 0.15;
/// 0.95 - 1.9 * 0.15 = 0.665.
#[test]
fn the_least_rate_is_the_formula() {
    let others = endpoints(10);
    let rates: Vec<_> =
        others.iter().enumerate().map(|(index, e)| (if index == 0 { 0.5 } else { 1.0 }, e)).collect();
    let least = least_rate(&SuccessRate::default(), &rates).expect("enough of them");
    assert!((least - 0.665).abs() < 1e-12, "{least}");
    assert_eq!(least_rate(&SuccessRate::default(), &rates[..4]), None, "fewer than five");
    assert!(least_rate(&SuccessRate::default(), &rates[..5]).is_some(), "five are enough");
}

fn with_rates(config: SuccessRate) -> OutlierDetection {
    OutlierDetection { consecutive_errors: None, success_rate: Some(config), ..OutlierDetection::default() }
}

/// An interval in which each endpoint answers 100 requests, of which so many fail; and who is ejected at its end.
fn interval(bed: &mut Bed, failed: &[u32]) -> Vec<(usize, Cause)> {
    for (index, failed) in failed.iter().enumerate() {
        for (outcome, times) in [(Outcome::Success, 100 - failed), (ERROR, *failed)] {
            assert_eq!(bed.observe(index, outcome, times), [], "not within the interval");
        }
    }
    bed.now += 10 * S;
    bed.observe(0, Outcome::Success, 1)
}

#[test]
fn a_rate_far_below_the_others_ejects_at_the_end_of_the_interval() {
    let mut bed = Bed::new(10, with_rates(SuccessRate { minimum_requests: 90, ..SuccessRate::default() }));
    assert_eq!(interval(&mut bed, &[0; 10]), [], "all alike");
    let mut failed = [2; 10];
    failed[6] = 50;
    assert_eq!(interval(&mut bed, &failed), [(6, Cause::SuccessRate)]);
    assert!(bed.out(6).is_some());
    // While it is out it does not count, and the rest are alike.
    assert_eq!(interval(&mut bed, &[2; 10]), []);
}

#[test]
fn too_few_requests_say_nothing() {
    let mut bed = Bed::new(10, with_rates(SuccessRate { minimum_requests: 200, ..SuccessRate::default() }));
    let mut failed = [0; 10];
    failed[6] = 100;
    assert_eq!(interval(&mut bed, &failed), []);
}

#[test]
fn an_interval_that_nobody_closed_in_time_says_nothing_of_now() {
    let mut bed = Bed::new(10, with_rates(SuccessRate::default()));
    bed.observe(0, Outcome::Success, 1);
    for index in 0..10 {
        bed.observe(index, if index == 6 { ERROR } else { Outcome::Success }, 100);
    }
    bed.now += 20 * S;
    assert_eq!(bed.observe(0, Outcome::Success, 1), []);
}

#[test]
fn the_worst_go_first_where_not_all_may() {
    let mut bed = Bed::new(
        10,
        OutlierDetection {
            max_ejection_percent: 10.0,
            ..with_rates(SuccessRate { minimum_requests: 90, stdev_factor: 1.0, ..SuccessRate::default() })
        },
    );
    let mut failed = [0; 10];
    (failed[2], failed[7]) = (60, 90);
    assert_eq!(interval(&mut bed, &failed), [(7, Cause::SuccessRate)]);
}

#[test]
fn without_the_policy_nobody_is_ejected() {
    let mut bed = Bed::new(4, OutlierDetection::default());
    bed.errors(0, 5);
    assert!(is_ejected(Some(&bed.config), &bed.endpoints[0], bed.now));
    assert!(!is_ejected(None, &bed.endpoints[0], bed.now));
}

#[test]
fn observing_counts_as_if_and_ejects_nobody() {
    let mut bed = Bed::new(4, OutlierDetection { mode: Mode::Observe, ..OutlierDetection::default() });
    assert_eq!(bed.errors(0, 5), [(0, IN_A_ROW)]);
    assert!(!is_ejected(Some(&bed.config), &bed.endpoints[0], bed.now));
    assert_eq!(bed.errors(0, 20), [], "it would be out");
    bed.now += 30 * S;
    assert_eq!(bed.errors(0, 5), [(0, IN_A_ROW)]);
}

#[test]
fn workers_that_decide_at_once_keep_to_the_cap() {
    for _ in 0..20 {
        let (config, endpoints, outliers) = (OutlierDetection::default(), endpoints(8), Outliers::default());
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (config, endpoints, outliers) = (&config, &endpoints, &outliers);
                scope.spawn(move || {
                    let mut rng = Rng::with_seed(worker);
                    for _ in 0..200 {
                        let endpoint = &endpoints[rng.usize(..endpoints.len())];
                        outliers.observe(config, endpoints, endpoint, (ONE, ERROR), 100 * S, &mut rng);
                    }
                });
            }
        });
        let out = endpoints.iter().filter(|e| is_ejected(Some(&config), e, 100 * S)).count();
        assert_eq!(out, 4, "half of eight");
    }
}

proptest! {
    /// Whatever happens: never more than the cap, never the last, and an ejection is never longer than it may be.
    #[test]
    fn the_cap_holds_at_any_time(
        count in 1..12_u8,
        percent in 0.0..=100.0_f64,
        rates in any::<bool>(),
        outcomes in prop::collection::vec((0..12_u8, any::<bool>(), 0..8_u64), 1..400),
        seed in any::<u64>(),
    ) {
        let success_rate = rates.then_some(SuccessRate { minimum_endpoints: 2, minimum_requests: 3, stdev_factor: 0.5 });
        let mut bed = Bed::new(count, OutlierDetection {
            consecutive_errors: Some(2),
            success_rate,
            max_ejection_percent: percent,
            max_ejection: Duration::from_secs(70),
            ..OutlierDetection::default()
        });
        bed.rng = Rng::with_seed(seed);
        let most = ((f64::from(count) * percent / 100.0).floor() as usize).max(1).min(usize::from(count) - 1);
        for (index, good, seconds) in outcomes {
            bed.now += seconds * S;
            bed.observe(usize::from(index % count), if good { Outcome::Success } else { ERROR }, 1);
            let out: Vec<_> = (0..usize::from(count)).filter_map(|index| bed.out(index)).collect();
            prop_assert!(out.len() <= most, "{} of {count}", out.len());
            prop_assert!(out.iter().all(|seconds| *seconds <= 70.0));
        }
    }
}
