//! How far it is believed that endpoints have vanished.

use std::time::Duration;

use super::*;

/// A pod that is ready, and says since when.
fn ready(name: &str, ip: &str) -> String {
    ready_since(&pod(name, ip, ""), "2026-01-01T00:00:00Z")
}

/// A service of so many ready pods `p1`, `p2`..., all in slice `s`.
fn well(count: usize) -> (Builder, String) {
    let numbers = || 1..=count;
    let endpoints: Vec<_> = numbers().map(|n| endpoint(&format!("10.0.0.{n}"), &format!("p{n}"))).collect();
    let pods: String = numbers().map(|n| ready(&format!("p{n}"), &format!("10.0.0.{n}"))).collect();
    let slices = slice("s", "orders", &endpoints.join(","));
    (start(Options::default(), &format!("{SHOP}{}{slices}{pods}", svc("orders", "10.96.0.1", ""))), slices)
}

fn usable(snapshot: &Snapshot) -> Vec<String> {
    let orders = service(snapshot, "10.96.0.1:80");
    orders
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.is_usable())
        .map(|endpoint| endpoint.address.to_string())
        .collect()
}

#[test]
fn slices_that_vanish_are_not_believed_while_their_pods_are_well() {
    let (mut builder, slices) = well(3);
    let now = Instant::now();
    let before = builder.build(now).unwrap();
    delete(&mut builder, &slices);
    assert!(builder.build(now).is_none(), "nothing has changed for callers");
    assert!(messages(&builder)[0].contains("3 endpoints are in none of its EndpointSlices any more"));
    // Their controller writes them anew, and nobody has noticed.
    apply(&mut builder, &slices);
    assert!(builder.build(now + Duration::from_secs(5)).is_none());
    assert_eq!(messages(&builder), [""; 0]);
    assert_eq!(usable(&before).len(), 3);
}

#[test]
fn what_nobody_puts_right_is_believed_after_a_minute() {
    let (mut builder, slices) = well(3);
    let now = Instant::now();
    builder.build(now).unwrap();
    delete(&mut builder, &slices);
    assert!(builder.build(now).is_none(), "nothing has changed for callers");
    assert!(!builder.forget(now + Duration::from_secs(59)));
    assert!(builder.forget(now + Duration::from_secs(61)), "and the next snapshot is due by itself");
    assert_eq!(usable(&builder.build(now + Duration::from_secs(61)).unwrap()), [""; 0]);
}

#[test]
fn a_pod_that_is_not_well_any_more_is_let_go_of_at_once() {
    let (mut builder, slices) = well(3);
    let now = Instant::now();
    builder.build(now).unwrap();
    delete(&mut builder, &slices);
    assert!(builder.build(now).is_none(), "nothing has changed for callers");
    // Not ready, terminating, gone.
    apply(&mut builder, &pod("p1", "10.0.0.1", ""));
    assert_eq!(usable(&builder.build(now).unwrap()), ["10.0.0.2:8080", "10.0.0.3:8080"]);
    apply(
        &mut builder,
        &ready("p2", "10.0.0.2").replace("uid-p2", "uid-p2, deletionTimestamp: '2026-01-01T00:00:00Z'"),
    );
    assert_eq!(usable(&builder.build(now).unwrap()), ["10.0.0.3:8080"]);
    delete(&mut builder, &ready("p3", "10.0.0.3"));
    assert_eq!(usable(&builder.build(now).unwrap()), [""; 0]);
}

#[test]
fn scaling_to_zero_and_rollouts_are_believed() {
    for pods_first in [true, false] {
        let (mut builder, slices) = well(2);
        let now = Instant::now();
        builder.build(now).unwrap();
        let go = |builder: &mut Builder| {
            delete(builder, &(ready("p1", "10.0.0.1") + &ready("p2", "10.0.0.2")));
        };
        if pods_first {
            go(&mut builder);
        }
        let new = slice("s", "orders", &endpoint("10.0.0.9", "p9")) + &ready("p9", "10.0.0.9");
        apply(&mut builder, &new);
        if !pods_first {
            builder.build(now).unwrap();
            go(&mut builder);
        }
        assert_eq!(usable(&builder.build(now).unwrap()), ["10.0.0.9:8080"]);
        delete(&mut builder, &(slices + &ready("p9", "10.0.0.9")));
        assert_eq!(usable(&builder.build(now).unwrap()), [""; 0]);
    }
}

#[test]
fn one_of_many_may_be_taken_out_and_a_selector_may_lead_elsewhere() {
    let (mut builder, _) = well(4);
    let now = Instant::now();
    builder.build(now).unwrap();
    let of = |numbers: &[usize]| {
        let all: Vec<_> =
            numbers.iter().map(|n| endpoint(&format!("10.0.0.{n}"), &format!("p{n}"))).collect();
        slice("s", "orders", &all.join(","))
    };
    apply(&mut builder, &of(&[1, 2, 3]));
    assert_eq!(usable(&builder.build(now).unwrap()).len(), 3);
    apply(&mut builder, &of(&[1, 2]));
    assert_eq!(usable(&builder.build(now).unwrap()).len(), 2, "half of four");
    let later = now + Duration::from_secs(1);
    apply(&mut builder, &of(&[]));
    assert!(
        builder.build(later).is_none(),
        "those two stay, and what was believed before does not come back"
    );
    // Green takes the place of blue, whose pods run on.
    apply(&mut builder, &(of(&[8, 9]) + &ready("p8", "10.0.0.8")));
    assert_eq!(
        usable(&builder.build(later).unwrap()).len(),
        3,
        "one is not enough, and of the other nothing is known"
    );
    let more: String = [6, 7, 9].map(|n| ready(&format!("p{n}"), &format!("10.0.0.{n}"))).concat();
    apply(&mut builder, &(more + &of(&[6, 7, 8, 9])));
    let green = [6, 7, 8, 9].map(|n| format!("10.0.0.{n}:8080"));
    assert_eq!(usable(&builder.build(later).unwrap()), green);
}
