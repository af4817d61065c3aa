use fastrand::Rng;
use proptest::prelude::*;

use super::*;
use crate::govern::{
    outcome::{ErrorKind, Outcome},
    outlier::CallerId,
    policy::{Algorithm, Mode, StartOn},
};

/// What Kubernetes says of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    NotReady,
    /// Shutting down, still answering.
    Draining,
    /// Shutting down, no longer answering.
    Gone,
}

use State::{Draining, Gone, NotReady, Ready};

#[derive(Debug)]
struct Fixture {
    baseline: Subset,
    lanes: BTreeMap<Tag, Subset>,
    policy: Policy,
}

fn endpoint(subnet: u8, index: usize, tag: Option<&Tag>, state: State) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        tag: tag.cloned(),
        ready: state == Ready,
        serving: matches!(state, Ready | Draining),
        terminating: matches!(state, Draining | Gone),
        ..Endpoint::new(address(subnet, index))
    })
}

/// Baseline endpoints are 10.1.0.x, those of lane `gray` 10.1.1.x.
fn fixture(baseline: &[State], gray: &[State]) -> Fixture {
    let tag: Tag = "gray".parse().expect("a tag");
    let make = |subnet, tag: Option<&Tag>, states: &[State]| -> Subset {
        states.iter().enumerate().map(|(index, state)| endpoint(subnet, index, tag, *state)).collect()
    };
    let mut lanes = BTreeMap::new();
    if !gray.is_empty() {
        lanes.insert(tag.clone(), make(1, Some(&tag), gray));
    }
    Fixture { baseline: make(0, None, baseline), lanes, policy: Policy::default() }
}

fn address(subnet: u8, index: usize) -> SocketAddr {
    SocketAddr::from(([10, 1, subnet, index as u8], 8080))
}

impl Fixture {
    fn candidates(&self, session_affinity: bool) -> Candidates<'_> {
        Candidates { baseline: &self.baseline, lanes: &self.lanes, session_affinity, policy: &self.policy }
    }

    fn route(
        &self,
        tag: Option<&str>,
        tried: &[SocketAddr],
        affinity: bool,
        seed: u64,
    ) -> Result<Decision, Refusal> {
        let tag = tag.map(|tag| RequestTag::new(tag.as_bytes()).expect("a tag"));
        let call = Call {
            tag: tag.as_ref(),
            fallback: &Detour::default(),
            caller: [10, 9, 0, 1].into(),
            tried,
            within: Within::Any,
            now_nanos: 0,
        };
        route(self.candidates(affinity), &call, &mut Rng::with_seed(seed))
    }
}

/// Where a request goes: the lane and whether the endpoint is baseline (0) or gray (1), and its index.
fn goes(fixture: &Fixture, tag: Option<&str>, tried: &[SocketAddr]) -> Result<(Lane, SocketAddr), Refusal> {
    let once = fixture.route(tag, tried, false, 7).map(|to| (to.lane, to.endpoint.address));
    for seed in 0..20 {
        for affinity in [false, true] {
            let again = fixture.route(tag, tried, affinity, seed).map(|to| (to.lane, to.endpoint.address));
            assert_eq!(again, once, "the cases below leave no choice");
        }
    }
    once
}

#[test]
fn requests_go_to_their_lane_or_fall_back_to_the_baseline() {
    let (base, gray) = (address(0, 0), address(1, 0));
    let gray_tag = Some("gray");
    for (baseline, lane, tag, expected) in [
        (&[Ready][..], &[Ready][..], None, Ok((Lane::Baseline, base))),
        (&[Ready], &[Ready], gray_tag, Ok((Lane::Routed, gray))),
        // No such lane, or none that is usable.
        (&[Ready], &[Ready], Some("blue"), Ok((Lane::FellBack, base))),
        (&[Ready], &[], gray_tag, Ok((Lane::FellBack, base))),
        (&[Ready], &[NotReady], gray_tag, Ok((Lane::FellBack, base))),
        (&[Ready], &[Draining], gray_tag, Ok((Lane::FellBack, base))),
        // Untagged requests never go to a lane.
        (&[], &[Ready], None, Err(Refusal::NoEndpoint)),
        (&[NotReady], &[Ready], None, Err(Refusal::NoEndpoint)),
        (&[Gone], &[Ready], None, Err(Refusal::NoEndpoint)),
        // The last of a service that goes away answer until they are gone, those of the lane first.
        (&[Draining], &[], None, Ok((Lane::Baseline, base))),
        (&[NotReady, Gone], &[], None, Err(Refusal::NoEndpoint)),
        (&[Draining], &[Draining], gray_tag, Ok((Lane::Routed, gray))),
        (&[Draining], &[Gone], gray_tag, Ok((Lane::FellBack, base))),
        // Nobody.
        (&[], &[NotReady], gray_tag, Err(Refusal::LaneUnavailable)),
        (&[], &[], gray_tag, Err(Refusal::NoEndpoint)),
        (&[], &[Ready], Some("blue"), Err(Refusal::NoEndpoint)),
        (&[NotReady], &[Gone], gray_tag, Err(Refusal::LaneUnavailable)),
    ] {
        let fixture = fixture(baseline, lane);
        assert_eq!(goes(&fixture, tag, &[]), expected, "{baseline:?} {lane:?} {tag:?}");
    }
}

#[test]
fn what_was_tried_comes_last() {
    let two = fixture(&[Ready, Ready], &[Ready]);
    assert_eq!(goes(&two, None, &[address(0, 0)]), Ok((Lane::Baseline, address(0, 1))));
    // The lane's only endpoint refused: the baseline rather than the same once more.
    let one = fixture(&[Ready], &[Ready]);
    assert_eq!(goes(&one, Some("gray"), &[address(1, 0)]), Ok((Lane::FellBack, address(0, 0))));
    // Even one that is shutting down is better than one that just refused.
    let draining = fixture(&[Ready, Draining], &[]);
    assert_eq!(goes(&draining, None, &[address(0, 0)]), Ok((Lane::Baseline, address(0, 1))));
    // There is no other.
    let only = fixture(&[Ready], &[]);
    assert_eq!(goes(&only, None, &[address(0, 0)]), Ok((Lane::Baseline, address(0, 0))));
}

#[test]
fn publish_not_ready_addresses_of_a_pod_that_goes_away_come_last_too() {
    // Kubernetes reports such endpoints as ready whatever happens; `serving` may be false.
    let leaving = Arc::new(Endpoint { terminating: true, serving: false, ..Endpoint::new(address(0, 0)) });
    let mut fixture = fixture(&[], &[]);
    fixture.baseline = vec![leaving.clone(), endpoint(0, 1, None, Ready)].into();
    assert_eq!(goes(&fixture, None, &[]), Ok((Lane::Baseline, address(0, 1))));
    fixture.baseline = vec![leaving].into();
    assert_eq!(goes(&fixture, None, &[]), Ok((Lane::Baseline, address(0, 0))));
}

#[test]
fn endpoints_that_are_not_ready_get_nothing_however_few_are() {
    // One of ten is usable: far below the panic threshold, which is about our own guesses and not about readiness.
    let mut states = vec![NotReady; 10];
    states[3] = Ready;
    let few = fixture(&states, &[]);
    assert_eq!(goes(&few, None, &[]), Ok((Lane::Baseline, address(0, 3))));
}

#[test]
fn a_caller_with_session_affinity_stays() {
    let many = fixture(&[Ready; 20], &[]);
    let first = many.route(None, &[], true, 0).expect("there are endpoints").endpoint.address;
    for seed in 1..50 {
        assert_eq!(many.route(None, &[], true, seed).map(|to| to.endpoint.address), Ok(first));
    }
    let next = many.route(None, &[first], true, 0).expect("there are others").endpoint.address;
    assert_ne!(next, first);
}

/// A policy with a warm-up of 100 s and outlier detection, and a service all of whose endpoints became ready at 0.
fn doubtful(baseline: &[State], gray: &[State]) -> Fixture {
    let mut fixture = fixture(baseline, gray);
    let ready = |subset: &Subset| -> Subset {
        subset
            .iter()
            .map(|e| {
                Arc::new(Endpoint {
                    tag: e.tag.clone(),
                    ready: e.ready,
                    serving: e.serving,
                    terminating: e.terminating,
                    ready_since_nanos: e.ready.then_some(0),
                    ..Endpoint::new(e.address)
                })
            })
            .collect()
    };
    fixture.baseline = ready(&fixture.baseline);
    fixture.lanes = fixture.lanes.iter().map(|(tag, lane)| (tag.clone(), ready(lane))).collect();
    let warmup = WarmUp { duration: Duration::from_secs(100), ..WarmUp::default() };
    fixture.policy.load_balancer.warmup = Some(warmup);
    let outliers = OutlierDetection { max_ejection_percent: 100.0, ..OutlierDetection::default() };
    fixture.policy.outlier_detection = Some(outliers);
    fixture
}

const S: u64 = 1_000_000_000;
/// When all are warm.
const WARM: u64 = 100 * S;

impl Fixture {
    fn subset(&self, subnet: u8) -> &Subset {
        if subnet == 0 { &self.baseline } else { self.lanes.values().next().expect("there is a lane") }
    }

    /// Has an endpoint fail until it is ejected. Gives whether it was.
    fn eject(&self, subnet: u8, index: usize, now_nanos: u64) -> bool {
        let config = self.policy.outlier_detection.as_ref().expect("the policy has it");
        let (subset, mut rng) = (self.subset(subnet), Rng::with_seed(1));
        let fail = |_| {
            subset.observe(
                config,
                &subset[index],
                CallerId::new(1),
                Outcome::Error(ErrorKind::Reset),
                now_nanos,
                &mut rng,
            )
        };
        (0..5).map(fail).any(|ejections| !ejections.is_empty())
    }

    fn at(
        &self,
        tag: Option<&str>,
        tried: &[SocketAddr],
        affinity: bool,
        now_nanos: u64,
        seed: u64,
    ) -> Option<Decision> {
        let tag = tag.map(|tag| RequestTag::new(tag.as_bytes()).expect("a tag"));
        let (fallback, caller) = (&Detour::default(), [10, 9, 0, 1].into());
        let call = Call { tag: tag.as_ref(), fallback, caller, tried, within: Within::Any, now_nanos };
        route(self.candidates(affinity), &call, &mut Rng::with_seed(seed)).ok()
    }

    /// The endpoints that are chosen from, in order, and whether it is panic.
    fn chosen_from(
        &self,
        tag: Option<&str>,
        tried: &[SocketAddr],
        now_nanos: u64,
    ) -> (Vec<SocketAddr>, bool) {
        let decisions: Vec<_> = (0..200)
            .map(|seed| self.at(tag, tried, false, now_nanos, seed).expect("somebody answers"))
            .collect();
        let panic = decisions[0].panic;
        assert!(decisions.iter().all(|decision| decision.panic == panic));
        let mut addresses: Vec<_> = decisions.iter().map(|decision| decision.endpoint.address).collect();
        addresses.sort();
        addresses.dedup();
        (addresses, panic)
    }
}

fn baseline(indices: &[usize]) -> Vec<SocketAddr> {
    indices.iter().map(|index| address(0, *index)).collect()
}

#[test]
fn ejected_endpoints_get_nothing_until_too_few_are_left() {
    let four = doubtful(&[Ready; 4], &[]);
    assert_eq!(four.chosen_from(None, &[], WARM), (baseline(&[0, 1, 2, 3]), false));
    assert!(four.eject(0, 0, WARM));
    assert_eq!(four.chosen_from(None, &[], WARM), (baseline(&[1, 2, 3]), false));
    assert!(four.eject(0, 1, WARM));
    assert_eq!(four.chosen_from(None, &[], WARM), (baseline(&[2, 3]), false), "half of them are enough");
    assert!(four.eject(0, 2, WARM));
    assert_eq!(four.chosen_from(None, &[], WARM), (baseline(&[0, 1, 2, 3]), true), "a quarter is not");
    assert!(!four.eject(0, 3, WARM), "never the last");
    assert_eq!(
        four.chosen_from(None, &[], WARM + 31 * S),
        (baseline(&[0, 1, 2, 3]), false),
        "the time is over"
    );
}

#[test]
fn the_panic_threshold_is_the_policys() {
    for (percent, panic) in [(0.0, false), (25.0, false), (26.0, true), (100.0, true)] {
        let mut four = doubtful(&[Ready; 4], &[]);
        four.policy.load_balancer.panic_threshold_percent = percent;
        for index in 0..3 {
            assert!(four.eject(0, index, WARM));
        }
        let from = if panic { baseline(&[0, 1, 2, 3]) } else { baseline(&[3]) };
        assert_eq!(four.chosen_from(None, &[], WARM), (from, panic), "{percent}");
    }
}

#[test]
fn panic_is_no_pardon_for_what_kubernetes_says() {
    // Of those that are ready one of three is left.
    let six = doubtful(&[Ready, Ready, Ready, NotReady, Draining, Gone], &[]);
    assert!(six.eject(0, 0, WARM) && six.eject(0, 1, WARM));
    assert_eq!(six.chosen_from(None, &[], WARM), (baseline(&[0, 1, 2]), true));
}

#[test]
fn without_outlier_detection_the_ejected_are_let_go_at_once() {
    let mut two = doubtful(&[Ready; 2], &[]);
    assert!(two.eject(0, 0, WARM));
    assert_eq!(two.chosen_from(None, &[], WARM), (baseline(&[1]), false));
    let config = two.policy.outlier_detection.take();
    assert_eq!(two.chosen_from(None, &[], WARM), (baseline(&[0, 1]), false));
    two.policy.outlier_detection = config.map(|config| OutlierDetection { mode: Mode::Observe, ..config });
    assert_eq!(two.chosen_from(None, &[], WARM), (baseline(&[0, 1]), false));
}

#[test]
fn a_lane_that_is_ejected_keeps_its_requests_in_panic_and_falls_back_without() {
    let mut fixture = doubtful(&[Ready; 2], &[Ready; 3]);
    assert!(fixture.eject(1, 0, WARM) && fixture.eject(1, 1, WARM));
    let lane: Vec<_> = (0..3).map(|index| address(1, index)).collect();
    assert_eq!(fixture.chosen_from(Some("gray"), &[], WARM), (lane.clone(), true));
    // Nobody else is concerned.
    assert_eq!(fixture.chosen_from(None, &[], WARM), (baseline(&[0, 1]), false));
    // The last goes away, and panic is off.
    let tag: Tag = "gray".parse().expect("a tag");
    let left: Subset = {
        let before = &fixture.lanes[&tag];
        Subset::new(before[..2].to_vec(), Some(before))
    };
    fixture.lanes.insert(tag, left);
    assert_eq!(fixture.chosen_from(Some("gray"), &[], WARM), (lane[..2].to_vec(), true));
    fixture.policy.load_balancer.panic_threshold_percent = 0.0;
    assert_eq!(fixture.chosen_from(Some("gray"), &[], WARM), (baseline(&[0, 1]), false));
    // And with nobody to fall back to, better they than none.
    fixture.baseline = Subset::default();
    assert_eq!(fixture.chosen_from(Some("gray"), &[], WARM), (lane[..2].to_vec(), true));
}

#[test]
fn another_attempt_goes_to_who_is_usable_then_to_who_is_held_out_then_to_who_drains() {
    let fixture = doubtful(&[Ready, Ready, Ready, Draining], &[]);
    assert!(fixture.eject(0, 2, WARM));
    let tried: Vec<_> = (0..4).map(|index| address(0, index)).collect();
    assert_eq!(fixture.chosen_from(None, &tried[..1], WARM), (baseline(&[1]), false));
    assert_eq!(fixture.chosen_from(None, &tried[..2], WARM), (baseline(&[2]), true));
    assert_eq!(fixture.chosen_from(None, &tried[..3], WARM), (baseline(&[3]), false));
    assert_eq!(
        fixture.chosen_from(None, &tried, WARM),
        (baseline(&[0, 1]), false),
        "the usable ones once more"
    );
}

#[test]
fn delayed_endpoints_are_held_out_unless_there_is_nobody_else() {
    let mut fixture = doubtful(&[Ready; 3], &[]);
    let delay = Duration::from_secs(20);
    fixture.policy.load_balancer.warmup.as_mut().expect("the policy has it").delay = delay;
    // A service that is new as a whole.
    assert_eq!(fixture.chosen_from(None, &[], S), (baseline(&[0, 1, 2]), true));
    // One that joins it.
    let new = Endpoint { ready_since_nanos: Some((200 * S) as i64), ..Endpoint::new(address(0, 9)) };
    let all: Vec<_> = fixture.baseline.iter().cloned().chain([Arc::new(new)]).collect();
    fixture.baseline = Subset::new(all, Some(&fixture.baseline));
    assert_eq!(fixture.chosen_from(None, &[], 219 * S), (baseline(&[0, 1, 2]), false));
    assert_eq!(fixture.chosen_from(None, &[], 220 * S), (baseline(&[0, 1, 2, 9]), false));
}

/// The share that an endpoint of four really gets is what the curve says, within two percentage points of 10,000 requests;
/// all along it, for each algorithm. With `FirstRequest` as well, from the first on.
#[test]
fn a_warming_endpoint_gets_what_the_curve_says() {
    for (algorithm, start_on) in [
        (Algorithm::LeastTime, StartOn::Ready),
        (Algorithm::LeastRequest, StartOn::Ready),
        (Algorithm::RoundRobin, StartOn::Ready),
        (Algorithm::Random, StartOn::Ready),
        (Algorithm::LeastTime, StartOn::FirstRequest),
    ] {
        let mut fixture = doubtful(&[Ready; 3], &[]);
        for endpoint in &*fixture.baseline {
            endpoint.load.note_first_request(Some(0), 0);
        }
        fixture.policy.load_balancer.algorithm = algorithm;
        fixture.policy.load_balancer.warmup.as_mut().expect("the policy has it").start_on = start_on;
        let ready = 1000 * S;
        let new =
            Arc::new(Endpoint { ready_since_nanos: Some(ready as i64), ..Endpoint::new(address(0, 9)) });
        let all: Vec<_> = fixture.baseline.iter().cloned().chain([new.clone()]).collect();
        fixture.baseline = Subset::new(all, Some(&fixture.baseline));
        let begun = match start_on {
            StartOn::Ready => ready,
            StartOn::FirstRequest => ready + 500 * S,
        };
        new.load.note_first_request(new.ready_since_nanos, begun as i64);
        for (elapsed, share) in
            [(0, 0.1), (10, 0.1), (25, 0.25), (50, 0.5), (75, 0.75), (99, 0.99), (100, 1.0)]
        {
            let got = (0..10_000)
                .filter_map(|seed| fixture.at(None, &[], false, begun + elapsed * S, seed))
                .filter(|decision| decision.endpoint.address == new.address)
                .count() as f64
                / 10_000.0;
            let due = share / (3.0 + share);
            assert!(
                (got - due).abs() < 0.02,
                "{algorithm:?} {start_on:?} after {elapsed} s: {got}, not {due}"
            );
        }
    }
}

#[test]
fn a_curve_that_yields_says_so() {
    let mut fixture = fixture(&[Ready, Ready, Ready, Ready], &[]);
    let warmup = WarmUp { duration: Duration::from_secs(100), ..WarmUp::default() };
    fixture.policy.load_balancer.warmup = Some(warmup);
    let at = |fixture: &Fixture, now| fixture.at(None, &[], false, now, 7).expect("all are ready");
    assert!(!at(&fixture, S).yields);
    // Three of the four are replaced.
    let since = |e: &Arc<Endpoint>, since: Option<i64>| {
        Arc::new(Endpoint { ready_since_nanos: since, load: e.load.clone(), ..Endpoint::new(e.address) })
    };
    let replaced = fixture.baseline.iter().enumerate();
    let replaced = replaced.map(|(i, e)| since(e, (i > 0).then_some(2 * S as i64))).collect();
    fixture.baseline = Subset::new(replaced, Some(&fixture.baseline));
    assert!(at(&fixture, 3 * S).yields);
    let factors = |now| {
        let yielded = Yielded::of(&fixture.policy, std::iter::once(&fixture.baseline), now);
        let of = |e: &Arc<Endpoint>| (yielded.factor(&fixture.policy, e, now) * 1000.0).round() / 1000.0;
        fixture.baseline.iter().map(of).collect::<Vec<_>>()
    };
    // The warm one gets 1.5 times a quarter of the requests.
    assert_eq!(factors(3 * S), [1.0, 0.556, 0.556, 0.556]);
    // At 60 % the curve gives more than that, and nothing has to yield.
    assert_eq!(factors(62 * S), [1.0, 0.6, 0.6, 0.6]);
    assert!(!at(&fixture, 62 * S).yields);
}

#[test]
fn affinity_follows_warm_up_and_ejection() {
    let mut fixture = doubtful(&[Ready; 3], &[]);
    let warm = fixture.at(None, &[], true, WARM, 0).expect("somebody").endpoint.address;
    let index = fixture.baseline.iter().position(|e| e.address == warm).expect("one of ours");
    // Ejected: the caller goes elsewhere, always to the same, and comes back.
    assert!(fixture.eject(0, index, WARM));
    let elsewhere = fixture.at(None, &[], true, WARM, 0).expect("somebody").endpoint.address;
    assert_ne!(elsewhere, warm);
    for seed in 1..50 {
        assert_eq!(fixture.at(None, &[], true, WARM, seed).expect("somebody").endpoint.address, elsewhere);
    }
    let later = WARM + 31 * S;
    assert_eq!(fixture.at(None, &[], true, later, 0).expect("somebody").endpoint.address, warm);
    // Twenty that are new take over one caller after the other: ours moves once at most, and never back.
    let new = |index| Endpoint { ready_since_nanos: Some(later as i64), ..Endpoint::new(address(1, index)) };
    let all: Vec<_> = fixture.baseline.iter().cloned().chain((0..20).map(new).map(Arc::new)).collect();
    fixture.baseline = Subset::new(all, Some(&fixture.baseline));
    let mut stays: Vec<_> = (0..=100)
        .map(|second| fixture.at(None, &[], true, later + second * S, 0).expect("somebody").endpoint.address)
        .collect();
    stays.dedup();
    assert!(stays.len() <= 3 && stays[0] == warm, "{stays:?}");
    let mut unique = stays.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), stays.len(), "never back: {stays:?}");
}

#[test]
fn a_request_goes_to_the_lanes_that_its_lane_names_before_the_baseline() {
    let staging: Tag = "staging".parse().expect("a tag");
    let with_staging = |gray: &[State], staging_state: State| {
        let mut fixture = fixture(&[Ready], gray);
        let there: Subset = [endpoint(2, 0, Some(&staging), staging_state)].into_iter().collect();
        fixture.lanes.insert(staging.clone(), there);
        fixture
    };
    let gray = RequestTag::new(b"gray").expect("a tag");
    let detour = |then| Detour { lanes: vec!["none".parse().expect("a tag"), staging.clone()], then };
    for (fixture, tag, then, goes) in [
        (with_staging(&[Ready], Ready), Some(&gray), LaneFallback::Fail, Ok((Lane::Routed, address(1, 0)))),
        (with_staging(&[], Ready), Some(&gray), LaneFallback::Fail, Ok((Lane::FellBack, address(2, 0)))),
        (
            with_staging(&[NotReady], Ready),
            Some(&gray),
            LaneFallback::Baseline,
            Ok((Lane::FellBack, address(2, 0))),
        ),
        (
            with_staging(&[], NotReady),
            Some(&gray),
            LaneFallback::Baseline,
            Ok((Lane::FellBack, address(0, 0))),
        ),
        (with_staging(&[], NotReady), Some(&gray), LaneFallback::Fail, Err(Refusal::LaneUnavailable)),
        // A request without a tag knows nothing of it.
        (with_staging(&[], Ready), None, LaneFallback::Fail, Ok((Lane::Baseline, address(0, 0)))),
    ] {
        let fallback = detour(then);
        let caller = [10, 9, 0, 1].into();
        let call = Call { tag, fallback: &fallback, caller, tried: &[], within: Within::Any, now_nanos: 0 };
        for seed in 0..8 {
            let got = route(fixture.candidates(false), &call, &mut Rng::with_seed(seed));
            assert_eq!(got.map(|to| (to.lane, to.endpoint.address)), goes, "{tag:?} {then:?}");
        }
    }
}

#[test]
fn a_lane_that_must_not_fall_back_refuses() {
    let fails = Detour { then: LaneFallback::Fail, ..Detour::default() };
    let tag = RequestTag::new(b"gray").expect("a tag");
    for (gray, tried, goes) in [
        (&[Ready][..], &[][..], Ok(address(1, 0))),
        (&[Draining], &[], Ok(address(1, 0))),
        (&[NotReady], &[], Err(Refusal::LaneUnavailable)),
        (&[], &[], Err(Refusal::LaneUnavailable)),
        // Not even for another attempt.
        (&[Ready], &[address(1, 0)], Ok(address(1, 0))),
    ] {
        let fixture = fixture(&[Ready], gray);
        let caller = [10, 9, 0, 1].into();
        let call =
            Call { tag: Some(&tag), fallback: &fails, caller, tried, within: Within::Any, now_nanos: 0 };
        let got = route(fixture.candidates(false), &call, &mut Rng::with_seed(1));
        assert_eq!(got.map(|decision| decision.endpoint.address), goes, "{gray:?}");
    }
    // It is about tagged requests only.
    let fixture = fixture(&[Ready], &[]);
    let caller = [10, 9, 0, 1].into();
    let call = Call { tag: None, fallback: &fails, caller, tried: &[], within: Within::Any, now_nanos: 0 };
    assert!(route(fixture.candidates(false), &call, &mut Rng::with_seed(1)).is_ok());
}

fn states() -> impl Strategy<Value = Vec<State>> {
    prop::collection::vec(prop::sample::select(vec![Ready, NotReady, Draining, Gone]), 0..6)
}

proptest! {
    #[test]
    fn the_rules_hold_for_every_service(
        baseline in states(),
        gray in states(),
        tag in prop::sample::select(vec![None, Some("gray"), Some("blue")]),
        tried in prop::collection::vec((0..2_u8, 0..6_usize), 0..4),
        affinity in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let fixture = fixture(&baseline, &gray);
        let tried: Vec<_> = tried.into_iter().map(|(subnet, index)| address(subnet, index)).collect();
        let lane: &[_] = if tag == Some("gray") { fixture.lanes.values().next().map_or(&[], |lane| &**lane) } else { &[] };
        let allowed: Vec<_> = lane.iter().chain(&*fixture.baseline).collect();
        let usable = |e: &Endpoint| e.is_usable();
        let serves = |e: &Endpoint| usable(e) || (e.terminating && e.serving);
        let untried = |e: &Endpoint| !tried.contains(&e.address);
        match fixture.route(tag, &tried, affinity, seed) {
            Err(_) => prop_assert!(!allowed.iter().any(|e| serves(e))),
            Ok(Decision { endpoint, lane: decided, panic, yields: _ }) => {
                prop_assert!(!panic, "nobody is held out");
                let e = &*endpoint;
                prop_assert!(serves(e));
                // Untagged requests, and those of other lanes, never reach a tagged endpoint.
                prop_assert!(allowed.iter().any(|other| other.address == e.address));
                prop_assert_eq!(decided == Lane::Routed, e.tag.is_some());
                prop_assert_eq!(decided == Lane::Baseline, tag.is_none());
                // Never one that was tried while there is another.
                prop_assert!(untried(e) || !allowed.iter().any(|o| serves(o) && untried(o)));
                // Never one that is not usable while there is a usable one (that was not tried).
                prop_assert!(usable(e) || !allowed.iter().any(|o| usable(o) && untried(o)));
                // Never the baseline while the lane has a usable one (that was not tried).
                prop_assert!(decided == Lane::Routed || !lane.iter().any(|o| usable(o) && untried(o)));
            }
        }
    }

    /// Whatever is ejected or delayed: nobody unusable while somebody usable is left that was not tried, except in panic.
    #[test]
    fn who_is_held_out_gets_nothing_while_another_can_answer(
        states in states(),
        since in prop::collection::vec(prop::option::of(-200..0_i64), 6),
        ejected in prop::collection::vec(any::<bool>(), 6),
        delay in 0..100_u64,
        threshold in prop::sample::select(vec![0.0, 50.0, 100.0]),
        tried in prop::collection::vec(0..6_usize, 0..3),
        (affinity, algorithm) in (any::<bool>(), prop::sample::select(vec![
            Algorithm::LeastTime, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random,
        ])),
        seed in any::<u64>(),
    ) {
        let mut fixture = doubtful(&states, &[]);
        let told = |(e, since): (&Arc<Endpoint>, &Option<i64>)| {
            let ready_since_nanos = since.map(|since| since * S as i64).filter(|_| e.ready);
            let load = e.load.clone();
            let Endpoint { address, ready, serving, terminating, .. } = **e;
            Arc::new(Endpoint { ready, serving, terminating, ready_since_nanos, load, ..Endpoint::new(address) })
        };
        fixture.baseline = fixture.baseline.iter().zip(&since).map(told).collect();
        fixture.policy.load_balancer.warmup.as_mut().unwrap().delay = Duration::from_secs(delay);
        fixture.policy.load_balancer.panic_threshold_percent = threshold;
        fixture.policy.load_balancer.algorithm = algorithm;
        for index in (0..states.len()).filter(|index| ejected[*index]) {
            fixture.eject(0, index, S);
        }
        let tried: Vec<_> = tried.into_iter().map(|index| address(0, index)).collect();
        let now = 2 * S;
        let warmup = fixture.policy.load_balancer.warmup.clone().unwrap();
        let held_out = |e: &Endpoint| {
            outlier::is_ejected(fixture.policy.outlier_detection.as_ref(), e, now)
                || warmup::stage(&warmup, e, now) == Stage::Delayed
        };
        let ready: Vec<_> = fixture.baseline.iter().filter(|e| e.is_usable()).collect();
        let usable: Vec<_> = ready.iter().filter(|e| !held_out(e)).collect();
        let too_few = (usable.len() as f64) < ready.len() as f64 * threshold / 100.0;
        let untried = |e: &Endpoint| !tried.contains(&e.address);
        match fixture.at(None, &tried, affinity, now, seed) {
            None => prop_assert!(!fixture.baseline.iter().any(|e| e.is_usable() || e.is_draining())),
            Some(Decision { endpoint: e, panic, .. }) => {
                prop_assert!(e.is_usable() || e.is_draining());
                prop_assert!(!held_out(&e) || !e.is_usable() || panic);
                prop_assert!(panic || !too_few || e.is_draining());
                if !too_few {
                    prop_assert!((e.is_usable() && !held_out(&e)) || !usable.iter().any(|o| untried(o)));
                }
                prop_assert!(e.is_usable() || !ready.iter().any(|o| untried(o)));
                prop_assert!(untried(&e) || !ready.iter().any(|o| untried(o)));
            }
        }
    }
}

#[test]
fn who_does_not_answer_connection_requests_is_asked_if_there_is_no_other() {
    let fixture = fixture(&[Ready, Ready], &[Ready]);
    let (first, second, gray) = (address(0, 0), address(0, 1), address(1, 0));
    let silent = |subset: &Subset, index: usize| subset[index].load.missed(0, 0);
    silent(&fixture.baseline, 0);
    assert_eq!(goes(&fixture, None, &[]), Ok((Lane::Baseline, second)));
    // Rather than one that was tried for this request, ..
    assert_eq!(goes(&fixture, None, &[second]), Ok((Lane::Baseline, first)));
    // .. and rather than nobody.
    assert_eq!(goes(&fixture, None, &[first]), Ok((Lane::Baseline, second)));
    silent(&fixture.baseline, 1);
    assert_eq!(goes(&fixture, None, &[second]), Ok((Lane::Baseline, first)));
    // A lane that cannot be connected to falls back as one does that has been tried.
    assert_eq!(goes(&fixture, Some("gray"), &[]), Ok((Lane::Routed, gray)));
    silent(&fixture.lanes["gray"], 0);
    fixture.baseline[1].load.backoff().answered();
    assert_eq!(goes(&fixture, Some("gray"), &[]), Ok((Lane::FellBack, second)));
}

#[test]
fn there_is_another_to_connect_to_only_if_it_may_have_the_request() {
    let fixture = fixture(&[Ready, Ready, NotReady], &[Ready]);
    let has_another = |tag: Option<&str>, tried: &[SocketAddr], then: LaneFallback, than: &Subset| {
        let tag = tag.map(|tag| RequestTag::new(tag.as_bytes()).expect("a tag"));
        let fallback = Detour { then, ..Detour::default() };
        let call = Call {
            tag: tag.as_ref(),
            fallback: &fallback,
            caller: [10, 9, 0, 1].into(),
            tried,
            within: Within::Any,
            now_nanos: 0,
        };
        has_another(fixture.candidates(false), &call, &than[0])
    };
    let (baseline, gray) = (&fixture.baseline, &fixture.lanes["gray"]);
    assert!(has_another(None, &[], LaneFallback::Baseline, baseline));
    assert!(!has_another(None, &[address(0, 1)], LaneFallback::Baseline, baseline));
    assert!(has_another(Some("gray"), &[], LaneFallback::Baseline, gray));
    assert!(!has_another(Some("gray"), &[], LaneFallback::Fail, gray));
    baseline[1].load.missed(0, 0);
    assert!(!has_another(None, &[], LaneFallback::Baseline, baseline), "it would not answer either");
}

/// Where a request stays whose client has called this endpoint itself; `None`: one is chosen for it.
fn kept(
    fixture: &Fixture,
    tag: Option<&str>,
    own: &Arc<Endpoint>,
    (tried, fallback, within): (&[SocketAddr], &Detour, Within<'_>),
) -> Option<Lane> {
    let tag = tag.map(|tag| RequestTag::new(tag.as_bytes()).expect("a tag"));
    let caller = [10, 9, 0, 1].into();
    let call = Call { tag: tag.as_ref(), fallback, caller, tried, within, now_nanos: 0 };
    let decision = keep(fixture.candidates(false), &call, own)?;
    assert!(Arc::ptr_eq(&decision.endpoint, own));
    Some(decision.lane)
}

#[test]
fn a_clients_own_choice_stands_unless_a_lane_says_otherwise() {
    let all = fixture(&[Ready, NotReady, Draining], &[Ready, Gone]);
    let baseline: Vec<_> = all.baseline.iter().cloned().collect();
    let gray: Vec<_> = all.lanes["gray"].iter().cloned().collect();
    let (back, fail) = (Detour::default(), Detour { then: LaneFallback::Fail, ..Detour::default() });
    let plain = (&[][..], &back, Within::Any);
    let kept_by = |tag, own: &Arc<Endpoint>| kept(&all, tag, own, plain);
    assert_eq!(kept_by(None, &baseline[0]), Some(Lane::Baseline));
    // Whom a registry names the client may call before it is Ready.
    assert_eq!(kept_by(None, &baseline[1]), Some(Lane::Baseline));
    assert_eq!(kept_by(None, &gray[0]), None, "nobody of a lane without its tag");
    assert_eq!(kept_by(Some("gray"), &gray[0]), Some(Lane::Routed));
    assert_eq!(kept_by(Some("gray"), &baseline[0]), None, "to its lane");
    assert_eq!(kept_by(Some("blue"), &baseline[0]), Some(Lane::FellBack), "which has nobody here");
    // Who leaves, or was tried in vain.
    assert_eq!((kept_by(None, &baseline[2]), kept_by(Some("gray"), &gray[1])), (None, None));
    let tried = [baseline[0].address];
    assert_eq!(kept(&all, None, &baseline[0], (&tried, &back, Within::Any)), None);
    assert_eq!(kept(&all, Some("blue"), &baseline[0], (&[], &fail, Within::Any)), None);
    assert_eq!(kept(&all, None, &baseline[0], (&[], &back, Within::Lane(gray[0].tag.as_ref()))), None);
    // The policy wants every request balanced.
    let mut balanced = fixture(&[Ready, Ready], &[]);
    balanced.policy.load_balancer.direct_endpoints = DirectEndpoints::Rebalance;
    let own = balanced.baseline.iter().next().unwrap().clone();
    assert_eq!(kept(&balanced, None, &own, plain), None);
    // Nobody is ready: the client's own choice is as good as any.
    let down = fixture(&[NotReady], &[]);
    let own = down.baseline.iter().next().unwrap().clone();
    assert_eq!(kept(&down, None, &own, plain), Some(Lane::Baseline));
}
