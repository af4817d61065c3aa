use fastrand::Rng;
use proptest::prelude::*;

use super::*;

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
            fallback: LaneFallback::Baseline,
            caller: [10, 9, 0, 1].into(),
            tried,
            now_nanos: 0,
        };
        let service = Candidates {
            baseline: &self.baseline,
            lanes: &self.lanes,
            session_affinity: affinity,
            policy: &self.policy,
        };
        route(service, &call, &mut Rng::with_seed(seed))
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
            Ok(Decision { endpoint, lane: decided, panic }) => {
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
}
