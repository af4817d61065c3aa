//! First requests: what pods say of them, and of which pods something is to be said.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::{
    cluster::{builder::moment::Moment, first_request::First},
    govern::{
        endpoint::Endpoint,
        policy::{StartOn, WarmUp},
        warmup::{self, Stage},
    },
};

const S: i64 = 1_000_000_000;

fn options(node: &str) -> Options {
    Options { node: Some(node.into()), warm_gates: true, ..Options::default() }
}

const STARTS: &str = "---\n{apiVersion: sluice.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: p, namespace: shop}, \
                      spec: {targetRefs: [{name: orders}], loadBalancer: {warmUp: {duration: 60s, startOn: FirstRequest}}}}\n";

/// Everything that comes to the endpoints goes through their agents.
const CAPTURED: &str = "---\n{apiVersion: sluice.dev/v1alpha1, kind: AccessPolicy, metadata: {name: a, namespace: shop}, \
                        spec: {targetRefs: [{name: orders}], rules: [{name: ours, from: [{namespace: shop}]}]}}\n";

/// Times of the API server are whole seconds. All are from the same moment, so that none is a second off.
fn seconds_ago(seconds: u64) -> String {
    static NOW: LazyLock<i64> = LazyLock::new(|| k8s_openapi::jiff::Timestamp::now().as_second());
    k8s_openapi::jiff::Timestamp::from_second(*NOW - seconds.cast_signed()).unwrap().to_string()
}

/// A pod whose containers started, that became Ready, and was asked first so many seconds ago.
fn asked(started: u64, ready: u64, first: Option<u64>) -> String {
    let condition = |kind: &str, ago: u64| {
        format!("{{type: {kind}, status: \"True\", lastTransitionTime: \"{}\"}}", seconds_ago(ago))
    };
    let mut conditions = condition("Ready", ready);
    if let Some(first) = first {
        conditions += ", ";
        conditions += &condition("sluice.dev/first-request", first);
    }
    let containers = format!(
        "containerStatuses: [{{name: app, image: i, imageID: i, ready: true, restartCount: 0, state: {{running: \
         {{startedAt: \"{}\"}}}}}}]",
        seconds_ago(started)
    );
    pod("a", "10.0.0.1", "")
        .replace("phase: Running", &format!("phase: Running, conditions: [{conditions}], {containers}"))
}

/// A shop with the Service `orders` of that pod.
fn shop(pod: &str) -> String {
    let slices = slice("s", "orders", &endpoint("10.0.0.1", "a"));
    format!("{SHOP}{}{slices}{pod}{STARTS}", svc("orders", "10.96.0.1", ""))
}

fn one(snapshot: &Snapshot) -> Arc<Endpoint> {
    service(snapshot, "10.96.0.1:80").endpoints[0].clone()
}

/// How long after it was ready its first request came, in seconds; `None`: none came.
fn after_ready(endpoint: &Endpoint) -> Option<i64> {
    let ready = endpoint.ready_since_nanos.expect("it is ready");
    Some((endpoint.load.first_request(Some(ready))? - ready + S / 2).div_euclid(S))
}

fn told(builder: &Builder) -> Vec<String> {
    builder.firsts().keys().map(|name| name.name.to_string()).collect()
}

#[test]
fn what_the_pod_says_counts_for_agents_of_all_nodes() {
    for (said, pod, counts, to_tell) in [
        ("since then", asked(70, 60, Some(40)), Some(20), false),
        (
            "before it was Ready, by the same containers: it was not Ready for a while",
            asked(70, 60, Some(65)),
            Some(0),
            false,
        ),
        ("before its containers started", asked(70, 60, Some(80)), None, true),
        ("not: it has not been asked", asked(70, 60, None), None, true),
        ("just now", asked(70, 60, Some(0)), Some(60), false),
    ] {
        for node in ["n1", "n2"] {
            let mut builder = start(options(node), &(shop(&pod) + CAPTURED));
            let found = one(&next(&mut builder));
            assert_eq!(after_ready(&found), counts, "{said}, {node}");
            let here = if to_tell && node == "n1" { vec!["a"] } else { Vec::new() };
            assert_eq!(told(&builder), here, "{said}, {node}");
        }
    }
}

#[test]
fn where_not_all_requests_are_seen_nobody_knows_of_those_that_were_there() {
    let mut builder = start(options("n1"), &shop(&asked(70, 60, None)));
    assert_eq!(after_ready(&one(&next(&mut builder))), Some(0));
    // What is only assumed is not told.
    assert_eq!(builder.firsts().values().next().expect("one").seen(), None);
    // The same where nobody may tell.
    let off = Options { warm_gates: false, ..options("n1") };
    let mut builder = start(off, &(shop(&asked(70, 60, None)) + CAPTURED));
    assert_eq!(after_ready(&one(&next(&mut builder))), Some(0));
    assert!(builder.firsts().is_empty());
}

#[test]
fn a_pod_is_told_of_once_in_the_life_of_its_containers() {
    let mut builder = start(options("n1"), &(shop(&asked(70, 60, None)) + CAPTURED));
    let snapshot = next(&mut builder);
    let endpoint = one(&snapshot);
    let seen = |builder: &Builder| builder.firsts().values().next().and_then(First::seen);
    assert_eq!(seen(&builder), None);
    // It is seen where it arrives.
    let (_, port) = snapshot.inbound.iter().next().expect("the port");
    let [start] = &port.starts[..] else { panic!("{:?}", port.starts) };
    assert!(Arc::ptr_eq(&start.endpoint, &endpoint));
    let now = endpoint.ready_since_nanos.expect("it is ready") + 30 * S;
    start.endpoint.load.note_first_request(start.endpoint.ready_since_nanos, now);
    assert_eq!(seen(&builder), Some(now));

    // The condition is there: what was seen here is earlier.
    apply(&mut builder, &asked(70, 60, Some(20)));
    next_if_any(&mut builder);
    assert_eq!((told(&builder), after_ready(&endpoint)), (Vec::<String>::new(), Some(30)));

    // A container restarts.
    apply(&mut builder, &asked(4, 2, Some(20)));
    let restarted = one(&next(&mut builder));
    assert_eq!((told(&builder), after_ready(&restarted)), (vec!["a".to_owned()], None));
    apply(&mut builder, &asked(4, 2, Some(1)));
    next_if_any(&mut builder);
    assert_eq!((told(&builder), after_ready(&restarted)), (Vec::<String>::new(), Some(1)));
}

#[test]
fn only_pods_of_services_that_ask_for_it_are_told_of() {
    let ready = STARTS.replace("startOn: FirstRequest", "startOn: Ready");
    let text = shop(&asked(70, 60, None));
    let mut builder = start(options("n1"), &text.replace(STARTS, &ready));
    next(&mut builder);
    assert!(builder.firsts().is_empty());
    apply(&mut builder, STARTS);
    next(&mut builder);
    assert_eq!(told(&builder), ["a"]);
    // One that leaves.
    let leaving =
        asked(70, 60, None).replace("uid: uid-a", "uid: uid-a, deletionTimestamp: \"2026-01-01T00:00:00Z\"");
    apply(&mut builder, &leaving);
    next(&mut builder);
    assert!(builder.firsts().is_empty());
    apply(&mut builder, &asked(70, 60, None));
    next(&mut builder);
    assert_eq!(told(&builder), ["a"]);
    delete(&mut builder, STARTS);
    next(&mut builder);
    assert!(builder.firsts().is_empty());
}

proptest! {
    /// Agents of two nodes, whose clocks differ, that know the condition are at the same point of the curve, as far as their clocks
    /// and the API's whole seconds allow; whichever of them saw a request itself later.
    #[test]
    fn agents_that_know_the_condition_agree(
        // In nanoseconds of the true time: when the pod was ready, its first request came, and the curves are compared.
        ready in 0_i64..20 * S, waited in 0_i64..100 * S, later in 0_i64..200 * S,
        skews in prop::array::uniform2(-3 * S..3 * S),
        begun in prop::array::uniform2(0_i64..1000 * S),
        own in prop::option::of(0_i64..200 * S),
    ) {
        const ZERO: i64 = 1_700_000_000 * S;
        let policy = WarmUp { duration: std::time::Duration::from_secs(120), start_on: StartOn::FirstRequest, ..WarmUp::default() };
        let wall = |time: i64| SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos((ZERO + time) as u64);
        let whole = |time: i64| wall(time.div_euclid(S) * S);
        let (asked, now) = (ready + waited, ready + waited + later);
        let shares = [0, 1].map(|agent| {
            // Its monotonic clock began at another time, its wall clock is wrong by so much.
            let mono = |time: i64| time + begun[agent];
            let moment = Moment { instant: Instant::now(), nanos: mono(now) as u64, wall: wall(now + skews[agent]) };
            let since = moment.nanos_of(whole(ready));
            let endpoint = Endpoint { ready_since_nanos: Some(since), ..Endpoint::new(([10, 0, 0, 1], 80).into()) };
            if let Some(own) = own.filter(|own| agent == 1 && asked + own <= now) {
                endpoint.load.note_first_request(Some(since), mono(asked + own));
            }
            endpoint.load.hear_first_request(since, moment.nanos_of(whole(asked)));
            match warmup::stage(&policy, &endpoint, mono(now) as u64) {
                Stage::Warming(share) => share,
                Stage::Warm => 1.0,
                Stage::Delayed => unreachable!("there is no delay"),
            }
        });
        let apart = ((skews[0].abs() + skews[1].abs()) as f64 / S as f64 + 1.0) / 120.0;
        prop_assert!((shares[0] - shares[1]).abs() <= apart + 1e-6, "{shares:?}, {apart}");
    }
}
