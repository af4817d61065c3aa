use std::net::SocketAddr;

use super::*;
use crate::govern::request::tests::Plain;

const S: u64 = 1_000_000_000;

fn ready_since(seconds: i64) -> Endpoint {
    let address = SocketAddr::from(([10, 1, 0, 1], 8080));
    Endpoint { ready_since_nanos: Some(seconds * S as i64), ..Endpoint::new(address) }
}

fn policy(seconds: u64) -> WarmUp {
    WarmUp { duration: Duration::from_secs(seconds), ..WarmUp::default() }
}

fn assert_share(stage: Stage, share: f64) {
    assert!(matches!(stage, Stage::Warming(got) if (got - share).abs() < 1e-12), "{stage:?}, not {share}");
}

#[test]
fn the_curve_is_the_formula() {
    for (duration, aggression, minimum, points) in [
        // The default: a straight line of two minutes.
        (
            120.0,
            1.0,
            10.0,
            &[
                (0.0, 0.1),
                (12.0, 0.1),
                (13.2, 0.11),
                (30.0, 0.25),
                (60.0, 0.5),
                (119.0, 119.0 / 120.0),
                (120.0, 1.0),
            ][..],
        ),
        // Square root: fast at first. In the first second it is where it will be at its end.
        (100.0, 2.0, 1.0, &[(0.0, 0.1), (0.5, 0.1), (1.0, 0.1), (4.0, 0.2), (25.0, 0.5), (64.0, 0.8)]),
        // Square: slow at first.
        (10.0, 0.5, 5.0, &[(1.0, 0.05), (2.0, 0.05), (3.0, 0.09), (5.0, 0.25), (9.0, 0.81), (11.0, 1.0)]),
        // Nothing to grow, or no time to.
        (120.0, 1.0, 100.0, &[(0.0, 1.0), (60.0, 1.0)]),
        (1.0, 1.0, 10.0, &[(0.0, 1.0)]),
        (0.25, 3.0, 10.0, &[(0.0, 1.0), (0.2, 1.0)]),
    ] {
        let policy = WarmUp {
            duration: Duration::from_secs_f64(duration),
            aggression,
            minimum_percent: minimum,
            ..WarmUp::default()
        };
        for (elapsed, share) in points {
            let got = curve(&policy, Duration::from_secs_f64(*elapsed));
            assert!(
                (got - share).abs() < 1e-9,
                "{duration} s, {aggression}, {minimum} %: {got} at {elapsed} s"
            );
        }
    }
}

#[test]
fn it_counts_from_ready() {
    let endpoint = ready_since(100);
    let policy = policy(120);
    assert_share(stage(&policy, &endpoint, 90 * S), 0.1);
    assert_share(stage(&policy, &endpoint, 130 * S), 0.25);
    assert_share(stage(&policy, &endpoint, 160 * S), 0.5);
    assert_eq!(stage(&policy, &endpoint, 220 * S), Stage::Warm);
    // Requests make no difference.
    endpoint.load.note_first_request(endpoint.ready_since_nanos, 159 * S as i64);
    assert_share(stage(&policy, &endpoint, 160 * S), 0.5);
}

#[test]
fn an_agent_that_begins_in_the_middle_goes_on() {
    assert_share(stage(&policy(120), &ready_since(-30), 0), 0.25);
    assert_share(stage(&policy(120), &ready_since(-30), 30 * S), 0.5);
    assert_eq!(stage(&policy(120), &ready_since(i64::MIN / S as i64), 0), Stage::Warm);
}

#[test]
fn who_is_ready_since_nobody_knows_when_is_warm() {
    let endpoint = Endpoint { ready_since_nanos: None, ..ready_since(0) };
    for start_on in [StartOn::Ready, StartOn::FirstRequest] {
        let policy = WarmUp { start_on, delay: Duration::from_secs(5), ..policy(120) };
        assert_eq!(stage(&policy, &endpoint, 0), Stage::Warm);
    }
}

#[test]
fn the_delay_comes_before_the_curve() {
    let policy = WarmUp { delay: Duration::from_secs(20), ..policy(100) };
    let endpoint = ready_since(0);
    assert_eq!(stage(&policy, &endpoint, 0), Stage::Delayed);
    assert_eq!(stage(&policy, &endpoint, 20 * S - 1), Stage::Delayed);
    assert_share(stage(&policy, &endpoint, 20 * S), 0.1);
    assert_share(stage(&policy, &endpoint, 70 * S), 0.5);
    assert_eq!(stage(&policy, &endpoint, 120 * S), Stage::Warm);
    for (second, part) in [(0, 0.0), (20, 0.1), (70, 0.5), (120, 1.0)] {
        assert!((factor(Some(&policy), &endpoint, second * S) - part).abs() < 1e-12, "{second}");
    }
    assert!((factor(None, &endpoint, 0) - 1.0).abs() < 1e-12);
}

#[test]
fn with_the_first_request_it_waits_for_that() {
    let policy = WarmUp { start_on: StartOn::FirstRequest, delay: Duration::from_secs(10), ..policy(100) };
    let endpoint = ready_since(0);
    assert_eq!(stage(&policy, &endpoint, 5 * S), Stage::Delayed);
    assert_share(stage(&policy, &endpoint, 1000 * S), 0.1);
    note_request(Some(&policy), &endpoint, &Plain::get("/orders"), 2000 * S);
    note_request(Some(&policy), &endpoint, &Plain::get("/orders"), 2030 * S);
    assert_share(stage(&policy, &endpoint, 2050 * S), 0.5);
    assert_eq!(stage(&policy, &endpoint, 2100 * S), Stage::Warm);
    // The container restarts.
    let again = Endpoint { load: endpoint.load.clone(), ..ready_since(3000) };
    assert_share(stage(&policy, &again, 3500 * S), 0.1);
    note_connection(Some(&policy), &again, 4000 * S);
    assert_share(stage(&policy, &again, 4025 * S), 0.25);
}

#[test]
fn a_request_within_the_delay_does_not_begin_the_curve_before_its_time() {
    let policy = WarmUp { start_on: StartOn::FirstRequest, delay: Duration::from_secs(10), ..policy(100) };
    let endpoint = ready_since(0);
    note_request(Some(&policy), &endpoint, &Plain::get("/"), S);
    assert_eq!(stage(&policy, &endpoint, 9 * S), Stage::Delayed);
    assert_share(stage(&policy, &endpoint, 35 * S), 0.25);
}

#[test]
fn requests_are_noted_only_where_they_matter() {
    let endpoint = ready_since(0);
    note_request(None, &endpoint, &Plain::get("/"), S);
    note_request(Some(&policy(100)), &endpoint, &Plain::get("/"), S);
    note_connection(Some(&policy(100)), &endpoint, S);
    assert_eq!(endpoint.load.first_request(endpoint.ready_since_nanos), None);
}

#[test]
fn health_checks_never_count() {
    let policy = WarmUp {
        start_on: StartOn::FirstRequest,
        health_check_paths: vec!["/healthz".into(), "/actuator/*".into()],
        ..policy(100)
    };
    for (request, counts) in [
        (Plain::get("/orders"), true),
        (Plain::get("/healthz"), false),
        (Plain::get("/healthz?full=1"), false),
        (Plain::get("/healthz/db"), true),
        (Plain::get("/actuator/health"), false),
        (Plain::get("/actuators"), true),
        (Plain::get("/").with("user-agent", "kube-probe/1.33"), false),
        (Plain::get("/").with("user-agent", "curl/8 kube-probe"), true),
    ] {
        assert_eq!(counts_as_start(&policy, &request), counts, "{}", request.target);
        let endpoint = ready_since(0);
        note_request(Some(&policy), &endpoint, &request, S);
        assert_eq!(endpoint.load.first_request(endpoint.ready_since_nanos).is_some(), counts);
    }
}

#[test]
fn the_curve_yields_where_others_would_get_too_much() {
    let raised = |shares: &[f64], carried| {
        let mut shares = shares.to_vec();
        let raised = yield_shares(&mut shares, carried);
        let sum: f64 = shares.iter().sum();
        (raised, shares.into_iter().map(|share| (share / sum * 1000.0).round() / 1000.0).collect::<Vec<_>>())
    };
    // The last one of four old ones: one and a half times a quarter.
    assert_eq!(raised(&[1.0, 0.1, 0.1, 0.1], 4), (true, vec![0.375, 0.208, 0.208, 0.208]));
    // The first of ten that is replaced pushes next to nothing; one that is delayed gets nothing all the same.
    assert!(!raised(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1], 10).0);
    assert_eq!(raised(&[1.0, 0.2, 0.6, 0.0], 4), (true, vec![0.5, 0.167, 0.333, 0.0]));
    // One that is added to one takes something from it, and gives it nothing.
    assert!(!raised(&[1.0, 0.1], 1).0);
    // Those that are new altogether are equals.
    assert!(!raised(&[0.1, 0.1, 0.1], 0).0);
    assert!(!raised(&[], 3).0);
}
