use std::time::Duration;

use super::*;
use crate::govern::policy::{LoadBalancer, Policy, StartOn, WarmUp};

const S: u64 = 1_000_000_000;

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn told(is_warm: bool) -> ToldWarm {
    ToldWarm { is_warm, reason: "WarmedUp".into(), since: Some(at(500)) }
}

/// A pod that waits, or not, and says this.
fn gated(waits: bool, told: Option<ToldWarm>, curves: Vec<Curve>) -> Gated {
    let gate = WarmGate { waits_since: waits.then(|| at(1000)), is_down: false, told };
    Gated { uid: None, gate, has_restarted: false, is_leaving: false, curves }
}

/// A warm-up that began at 100 s.
fn curve(warmup: WarmUp) -> Curve {
    let load_balancer = LoadBalancer { warmup: Some(warmup), ..LoadBalancer::default() };
    let policy = Arc::new(Policy { load_balancer, ..Policy::default() });
    let governor = Governor::next_on(None, policy, Vec::new(), 0);
    Curve { governor, endpoint: None, since_nanos: (100 * S) as i64 }
}

fn seconds(duration: u64) -> WarmUp {
    WarmUp { duration: Duration::from_secs(duration), ..WarmUp::default() }
}

#[test]
fn a_pod_is_warm_when_the_last_of_its_curves_has_ended() {
    let delayed = WarmUp { delay: Duration::from_secs(15), ..seconds(10) };
    let one = gated(true, None, vec![curve(seconds(20)), curve(delayed), curve(seconds(5))]);
    for (second, word) in [
        // By a clock that is ahead of ours.
        (90, Word::WarmingUp),
        (100, Word::WarmingUp),
        (120, Word::WarmingUp),
        (124, Word::WarmingUp),
        (125, Word::Warm),
        (900, Word::Warm),
    ] {
        assert_eq!(one.word(second * S), Some(word), "{second}");
    }
    // What stands there changes nothing.
    let said = ToldWarm { is_warm: false, reason: "WarmingUp".into(), since: None };
    let said = Gated { gate: WarmGate { told: Some(said), ..one.gate.clone() }, ..one };
    assert_eq!(said.word(125 * S), Some(Word::Warm));
    assert_eq!((said.state(124 * S), said.state(125 * S)), (State::WarmingUp, State::Due));
}

#[test]
fn nobody_waits_for_ever() {
    assert_eq!(gated(true, None, Vec::new()).word(0), Some(Word::NotNeeded));
    // That no request comes is no reason to wait for one.
    let first = WarmUp { start_on: StartOn::FirstRequest, delay: Duration::from_secs(10), ..seconds(20) };
    let one = gated(true, None, vec![curve(first.clone()), curve(seconds(20))]);
    for (second, word) in [(159, Word::WarmingUp), (160, Word::WaitedLongEnough)] {
        assert_eq!(one.word(second * S), Some(word), "{second}: twice 30 s by default");
    }
    let at_most = WarmUp { max_wait: Some(Duration::from_secs(7)), ..first };
    let one = gated(true, None, vec![curve(at_most)]);
    for (second, word) in [(106, Word::WarmingUp), (107, Word::WaitedLongEnough)] {
        assert_eq!(one.word(second * S), Some(word), "{second}");
    }
}

#[test]
fn the_endpoint_knows_when_it_was_asked_first_and_how_long_it_paused() {
    let endpoint = |first: Option<u64>| {
        let endpoint = Endpoint {
            ready_since_nanos: Some((130 * S) as i64),
            ..Endpoint::new("10.0.0.1:80".parse().unwrap())
        };
        if let Some(first) = first {
            endpoint.load.note_first_request(endpoint.ready_since_nanos, (first * S) as i64);
        }
        Some(Arc::new(endpoint))
    };
    let one = |warmup, endpoint| gated(true, None, vec![Curve { endpoint, ..curve(warmup) }]);
    // It was not ready for 30 s, in the middle.
    let paused = one(seconds(50), endpoint(None));
    assert_eq!([179, 180].map(|second| paused.word(second * S)), [Some(Word::WarmingUp), Some(Word::Warm)]);
    let first = WarmUp { start_on: StartOn::FirstRequest, ..seconds(50) };
    let asked = one(first.clone(), endpoint(Some(145)));
    assert_eq!([194, 195].map(|second| asked.word(second * S)), [Some(Word::WarmingUp), Some(Word::Warm)]);
    assert_eq!(one(first, endpoint(None)).word(195 * S), Some(Word::WarmingUp));
}

#[test]
fn a_container_that_restarts_begins_anew_and_nothing_else_does() {
    let curves = || vec![curve(seconds(20))];
    let warm = gated(false, Some(told(true)), curves());
    // Its probe fails: it runs on, as warm as it was.
    assert_eq!(warm.word(500 * S), None);
    let down = Gated { gate: WarmGate { is_down: true, ..warm.gate.clone() }, ..warm.clone() };
    assert_eq!(down.word(500 * S), Some(Word::Restarted));
    assert_eq!(Gated { has_restarted: true, ..warm.clone() }.word(500 * S), Some(Word::Restarted));
    // Where nothing warms up, nothing has to.
    assert_eq!(Gated { curves: Vec::new(), ..down.clone() }.word(500 * S), None);
    // It was not even warm.
    assert_eq!(
        Gated { gate: WarmGate { told: Some(told(false)), ..down.gate.clone() }, ..down.clone() }.word(0),
        None
    );
    // What is Ready stays so.
    assert_eq!(gated(true, Some(told(true)), curves()).word(0), None);
    assert_eq!(Gated { is_leaving: true, ..down }.word(0), None);
    assert_eq!(Gated { is_leaving: true, ..gated(true, None, curves()) }.word(0), None);
}

#[test]
fn what_stands_there_is_not_said_again() {
    assert!(says_so(Some(&told(true)), Word::Warm));
    assert!(!says_so(Some(&told(true)), Word::NotNeeded));
    assert!(!says_so(Some(&told(false)), Word::Warm));
    assert!(!says_so(None, Word::WarmingUp));
}

#[test]
fn a_start_after_the_condition_is_a_restart() {
    let text = |started: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: shop, uid: u}}, \
             spec: {{nodeName: n1, containers: [], readinessGates: [{{conditionType: sluice.dev/warm}}]}}, \
             status: {{conditions: [{{type: sluice.dev/warm, status: \"True\", lastTransitionTime: \"1970-01-01T00:10:00Z\"}}], \
             containerStatuses: [{{name: a, image: a, imageID: a, ready: true, restartCount: 0, \
             state: {{running: {{startedAt: \"{started}\"}}}}}}]}}}}"
        )
    };
    for (started, restarted) in [("1970-01-01T00:10:00Z", false), ("1970-01-01T00:10:01Z", true)] {
        let (sightings, problems) = crate::cluster::manifests::parse(&text(started));
        assert_eq!(problems, []);
        let crate::cluster::object::Object::Pod(pod) = &sightings[0].object else { panic!() };
        assert!(pod.started.is_some());
        assert_eq!(Gated::alone(pod).unwrap().has_restarted, restarted, "{started}");
    }
}
