//! What becomes of the endpoints of slices, and what they keep.

use std::{sync::atomic::Ordering, time::Duration};

use super::*;
use crate::govern::{
    outcome::{ErrorKind, Outcome},
    outlier,
    policy::OutlierDetection,
};

#[test]
fn conditions_default_as_the_api_documents() {
    let text = |condition: &str| {
        format!(
            "{SHOP}{}{}",
            svc("orders", "10.96.0.1", ""),
            slice("s", "orders", &format!("{{addresses: [10.0.0.1]{condition}}}"))
        )
    };
    let cases = [
        ("", (true, true, false)),
        (", conditions: {}", (true, true, false)),
        (", conditions: {ready: false}", (false, false, false)),
        (", conditions: {ready: false, serving: true, terminating: true}", (false, true, true)),
        (", conditions: {ready: true, serving: false}", (true, false, false)),
        (", conditions: {ready: null, serving: null, terminating: null}", (true, true, false)),
    ];
    for (condition, expected) in cases {
        let snapshot = snapshot_of(&text(condition));
        let orders = service(&snapshot, "10.96.0.1:80");
        let endpoint = &orders.endpoints[0];
        assert_eq!((endpoint.ready, endpoint.serving, endpoint.terminating), expected, "{condition}");
    }
    let published =
        text(", conditions: {ready: false}").replace("]}}", "], publishNotReadyAddresses: true}}");
    assert!(service(&snapshot_of(&published), "10.96.0.1:80").endpoints[0].is_usable());
}

#[test]
fn the_pod_behind_an_endpoint_gives_its_tag_and_its_end() {
    let base = format!(
        "{SHOP}{}{}{}{}{}",
        svc("orders", "10.96.0.1", ""),
        slice(
            "s",
            "orders",
            &format!(
                "{}, {}, {{addresses: [10.0.0.3]}}",
                endpoint("10.0.0.1", "a"),
                endpoint("10.0.0.2", "b")
            )
        ),
        pod("a", "10.0.0.1", ""),
        pod("b", "10.0.0.2", GRAY),
        // Found by its address: the slice names no pod.
        pod("c", "10.0.0.3", ", labels: {sluice.dev/tag: blue}"),
    );
    let mut builder = start(Options::default(), &base);
    let orders = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!(addresses(&orders.baseline), ["10.0.0.1:8080"]);
    assert_eq!(addresses(&orders.lanes["gray"]), ["10.0.0.2:8080"]);
    assert_eq!(addresses(&orders.lanes["blue"]), ["10.0.0.3:8080"]);
    assert_eq!(orders.endpoints.len(), 3);
    assert_eq!(orders.lanes["blue"][0].pod.as_deref(), Some("c"));
    assert_eq!(orders.baseline[0].node.as_deref(), Some("n1"));

    apply(
        &mut builder,
        &pod("b", "10.0.0.2", ", deletionTimestamp: '2026-01-01T00:00:00Z', labels: {sluice.dev/tag: gray}"),
    );
    let snapshot = next(&mut builder);
    assert!(snapshot.pods["uid-b"].terminating);
    let orders = service(&snapshot, "10.96.0.1:80");
    assert!(orders.lanes["gray"][0].terminating && !orders.baseline[0].terminating);

    apply(&mut builder, &pod("a", "10.0.0.1", ", labels: {sluice.dev/tag: 'not a tag'}"));
    // Its labels are others now, which rules about callers may ask for; what it answers for is the same.
    let same = service(&next(&mut builder), "10.96.0.1:80");
    assert!(Arc::ptr_eq(&same, &orders), "no tag before, none now");
    assert!(messages(&builder)[0].starts_with(
        "Pod shop/a: metadata.labels[\"sluice.dev/tag\"]: \"not a tag\" is not a tag: 1 to 63 letters"
    ));
}

#[test]
fn an_endpoint_whose_pod_is_not_there_is_the_last_resort() {
    let services = format!(
        "{SHOP}{}{}",
        svc("orders", "10.96.0.1", ""),
        slice("s", "orders", &format!("{}, {}", endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "late"))),
    );
    let mut builder = start(Options::default(), &services);
    let orders = service(&next(&mut builder), "10.96.0.1:80");
    assert!(orders.endpoints.iter().all(|endpoint| endpoint.is_usable()), "better these than none");

    apply(&mut builder, &pod("a", "10.0.0.1", ""));
    let orders = service(&next(&mut builder), "10.96.0.1:80");
    let usable: Vec<_> = orders.baseline.iter().map(|endpoint| endpoint.is_usable()).collect();
    assert_eq!(usable, [true, false]);
    // It may be about to come.
    assert_eq!(messages(&builder), [""; 0]);
    assert!(builder.forget(Instant::now()), "and it is looked at again");
    next_if_any(&mut builder);
    let later = Instant::now() + Duration::from_secs(5);
    assert_eq!(
        messages_at(&builder, later),
        [
            "Service shop/orders: endpoint 10.0.0.2:8080 is Pod shop/late, which is not there: its tag is not known, \
          so it is used only while no other endpoint can be"
        ]
    );

    apply(&mut builder, &pod("late", "10.0.0.2", GRAY));
    let orders = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!(addresses(&orders.lanes["gray"]), ["10.0.0.2:8080"]);
    assert!(orders.lanes["gray"][0].is_usable());
    assert_eq!(messages_at(&builder, later), Vec::<String>::new());
    assert!(!builder.forget(Instant::now()));

    // Another pod under the same name is not the one that the slice means.
    let replaced =
        slice("s", "orders", &endpoint("10.0.0.2", "late").replace("kind: Pod", "kind: Pod, uid: older"));
    apply(&mut builder, &replaced);
    next(&mut builder);
    let told = messages_at(&builder, Instant::now() + Duration::from_secs(5));
    assert!(told[0].contains("Pod shop/late, which is not there"), "{told:?}");
}

#[test]
fn the_end_of_a_pod_is_nothing_to_speak_of() {
    let pods = ["a", "b"].map(|name| pod(name, if name == "a" { "10.0.0.1" } else { "10.0.0.2" }, ""));
    let slices = |endpoints: &[(&str, &str)]| {
        let endpoints: Vec<_> = endpoints.iter().map(|(ip, pod)| endpoint(ip, pod)).collect();
        slice("s", "orders", &endpoints.join(", "))
    };
    let both = slices(&[("10.0.0.1", "a"), ("10.0.0.2", "b")]);
    let text = format!("{SHOP}{}{both}{}{}", svc("orders", "10.96.0.1", ""), pods[0], pods[1]);
    let mut builder = start(Options::default(), &text);
    next(&mut builder);
    // The Pod goes first, and its endpoint tens of milliseconds later.
    delete(&mut builder, &pods[1]);
    next_if_any(&mut builder);
    assert_eq!(messages(&builder), [""; 0]);
    apply(&mut builder, &slices(&[("10.0.0.1", "a")]));
    next(&mut builder);
    assert_eq!(messages_at(&builder, Instant::now() + Duration::from_secs(60)), [""; 0]);
}

#[test]
fn an_endpoint_in_two_slices_is_one() {
    let service_and_pod = format!("{SHOP}{}{}", svc("orders", "10.96.0.1", ""), pod("a", "10.0.0.1", ""));
    let one = endpoint("10.0.0.1", "a");
    let going =
        one.replace("{addresses", "{conditions: {ready: false, serving: true, terminating: true}, addresses");
    let text = format!("{service_and_pod}{}{}", slice("s1", "orders", &one), slice("s2", "orders", &going));
    let orders = service(&snapshot_of(&text), "10.96.0.1:80");
    assert_eq!(addresses(&orders.endpoints), ["10.0.0.1:8080"]);
    assert!(orders.endpoints[0].terminating, "what one slice knows is known");
}

#[test]
fn an_address_that_changes_hands_belongs_to_the_pod_that_stays() {
    let ended = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    for (first, second) in [("s1", "s2"), ("s2", "s1")] {
        let orders = service(
            &snapshot_of(&format!(
                "{SHOP}{}{}{}{}{}",
                svc("orders", "10.96.0.1", ""),
                slice(first, "orders", &endpoint("10.0.0.1", "old")),
                slice(second, "orders", &endpoint("10.0.0.1", "new")),
                pod("old", "10.0.0.1", ended),
                pod("new", "10.0.0.1", GRAY),
            )),
            "10.96.0.1:80",
        );
        assert_eq!(orders.lanes["gray"][0].pod.as_deref(), Some("new"));
        assert!(orders.lanes["gray"][0].is_usable());
    }
}

#[test]
fn loads_survive_what_their_endpoint_survives() {
    let now = Instant::now();
    let text = format!(
        "{SHOP}{}{}{}",
        svc("orders", "10.96.0.1", ""),
        slice("s1", "orders", &endpoint("10.0.0.1", "a")),
        pod("a", "10.0.0.1", ""),
    );
    let mut builder = start(Options::default(), &text);
    let load = |snapshot: &Snapshot| service(snapshot, "10.96.0.1:80").endpoints[0].load.clone();
    let first = load(&builder.build(now).unwrap());
    first.in_flight.store(7, Ordering::Relaxed);

    apply(&mut builder, &pod("a", "10.0.0.1", GRAY));
    assert!(Arc::ptr_eq(&first, &load(&builder.build(now).unwrap())), "another tag");

    // From one slice to another, not at once.
    apply(&mut builder, &slice("s1", "orders", ""));
    assert!(service(&builder.build(now).unwrap(), "10.96.0.1:80").endpoints.is_empty());
    apply(&mut builder, &slice("s2", "orders", &endpoint("10.0.0.1", "a")));
    let later = now + Duration::from_secs(59);
    builder.forget(later);
    assert!(Arc::ptr_eq(&first, &load(&builder.build(later).unwrap())), "moved between slices");

    // Another pod at the same address.
    apply(&mut builder, &pod("a", "10.0.0.1", GRAY).replace("uid: uid-a", "uid: uid-2"));
    let other = load(&builder.build(later).unwrap());
    assert!(!Arc::ptr_eq(&first, &other));

    delete(&mut builder, &slice("s2", "orders", ""));
    builder.build(later).unwrap();
    assert_eq!(Arc::strong_count(&other), 2, "kept for a while");
    builder.forget(later + Duration::from_secs(60));
    assert_eq!(Arc::strong_count(&other), 1, "and then let go");
}

#[test]
fn an_endpoint_is_ready_since_its_pod_says_so() {
    let pods = [pod("a", "10.0.0.1", ""), pod("b", "10.0.0.2", ""), pod("c", "10.0.0.3", "")];
    let join = |names: &[(&str, &str)]| {
        let endpoints: Vec<_> = names.iter().map(|(ip, name)| endpoint(ip, name)).collect();
        slice("s", "orders", &endpoints.join(", "))
    };
    let [a, b, c] = [("10.0.0.1", "a"), ("10.0.0.2", "b"), ("10.0.0.3", "c")];
    let text = format!(
        "{SHOP}{}{}{}{}",
        svc("orders", "10.96.0.1", ""),
        join(&[a, b]),
        ready_since(&pods[0], "2026-01-01T10:00:00Z"),
        ready_since(&pods[1], "2026-01-01T11:00:00Z"),
    );
    let mut builder = start(Options::default(), &text);
    let endpoints = |snapshot: &Snapshot| service(snapshot, "10.96.0.1:80").endpoints.clone();
    let found = endpoints(&next(&mut builder));
    let [one, other] = [0, 1].map(|index| found[index].ready_since_nanos.expect("its pod says so"));
    assert_eq!(other - one, 3600 * 1_000_000_000);
    // When the agent has found it nobody knows whether it was asked before.
    assert_eq!(found[0].load.first_request(Some(one)), Some(one));

    // A container restarts: ready anew, the same endpoint otherwise.
    apply(&mut builder, &ready_since(&pods[0], "2026-01-01T12:00:00Z"));
    let restarted = endpoints(&next(&mut builder));
    let anew = restarted[0].ready_since_nanos.expect("its pod says so");
    assert!(anew > other && Arc::ptr_eq(&restarted[0].load, &found[0].load));
    assert_eq!(restarted[0].load.first_request(Some(anew)), None);
    assert!(Arc::ptr_eq(&restarted[1], &found[1]), "nothing is new of this one");

    // One joins; its pod says nothing of when, then it does.
    apply(&mut builder, &pods[2]);
    apply(&mut builder, &join(&[a, b, c]));
    let joined = endpoints(&next(&mut builder));
    let seen = joined[2].ready_since_nanos.expect("it was seen to be");
    assert!(seen >= 0, "since the agent began");
    assert_eq!(joined[2].load.first_request(Some(seen)), None);
    apply(&mut builder, &ready_since(&pods[2], "2026-01-01T13:00:00Z"));
    let told = endpoints(&next(&mut builder));
    assert!(told[2].ready_since_nanos.is_some_and(|told| told < seen && told > anew));
}

#[test]
fn an_endpoint_that_was_not_ready_for_a_while_goes_on_with_its_warm_up() {
    let policy = "---\n{apiVersion: sluice.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: p, namespace: shop}, \
                  spec: {targetRefs: [{name: orders}], loadBalancer: {warmUp: {startOn: FirstRequest}}}}\n";
    let ready = |ready: bool| {
        slice("s", "orders", &format!("{{addresses: [10.0.0.1], conditions: {{ready: {ready}}}}}"))
    };
    let none = slice("s", "orders", "");
    let mut builder =
        start(Options::default(), &format!("{SHOP}{}{none}{policy}", svc("orders", "10.96.0.1", "")));
    next(&mut builder);
    let step = |builder: &mut Builder, text: &str| {
        apply(builder, text);
        service(&next(builder), "10.96.0.1:80").endpoints[0].clone()
    };
    let joined = step(&mut builder, &ready(true));
    let began = joined.ready_since_nanos.expect("it was seen to be");
    joined.load.note_first_request(Some(began), began);
    assert_eq!(step(&mut builder, &ready(false)).ready_since_nanos, None);
    let again = step(&mut builder, &ready(true));
    let resumed = again.ready_since_nanos.expect("it was seen to be");
    // Both are later by as long as it was not ready.
    assert_eq!(again.load.first_request(Some(resumed)), Some(resumed));
    assert!(resumed > began && Arc::ptr_eq(&again.load, &joined.load));
}

#[test]
fn endpoints_of_which_nobody_says_since_when_are_ready_are_found_warm() {
    let text = format!(
        "{SHOP}{}{}",
        svc("orders", "10.96.0.1", ""),
        slice("s", "orders", "{addresses: [10.0.0.1]}")
    );
    let orders = service(&snapshot_of(&text), "10.96.0.1:80");
    assert_eq!(orders.endpoints[0].ready_since_nanos, None);
}

#[test]
fn who_has_a_request_in_flight_learns_that_its_endpoint_terminates() {
    let text = format!(
        "{SHOP}{}{}{}",
        svc("orders", "10.96.0.1", ""),
        slice("s", "orders", &endpoint("10.0.0.1", "a")),
        pod("a", "10.0.0.1", ""),
    );
    let mut builder = start(Options::default(), &text);
    let before = service(&next(&mut builder), "10.96.0.1:80").endpoints[0].clone();
    assert_eq!(before.load.terminating_since(), None);
    apply(&mut builder, &pod("a", "10.0.0.1", ", deletionTimestamp: \"2026-01-01T00:00:00Z\""));
    next(&mut builder);
    let since = before.load.terminating_since().expect("it does");
    assert!(!before.terminating, "it is of a snapshot before");
    apply(&mut builder, &slice("s", "orders", ""));
    next(&mut builder);
    assert_eq!(before.load.terminating_since(), Some(since), "gone is not back");
}

#[test]
fn what_the_choice_remembers_outlives_snapshots() {
    let text = format!(
        "{SHOP}{}{}{}{}",
        svc("orders", "10.96.0.1", ""),
        slice("s", "orders", &[endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b")].join(", ")),
        pod("a", "10.0.0.1", ""),
        pod("b", "10.0.0.2", ""),
    );
    let mut builder = start(Options::default(), &text);
    let before = service(&next(&mut builder), "10.96.0.1:80");
    let config = OutlierDetection { consecutive_errors: Some(1), ..OutlierDetection::default() };
    let error = Outcome::Error(ErrorKind::Connect);
    let by = outlier::CallerId::new(1);
    let mut rng = fastrand::Rng::with_seed(1);
    assert_eq!(before.baseline.observe(&config, &before.endpoints[0], by, error, 1, &mut rng).len(), 1);
    apply(&mut builder, &pod("c", "10.0.0.3", ""));
    let endpoints = [endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"), endpoint("10.0.0.3", "c")];
    apply(&mut builder, &slice("s", "orders", &endpoints.join(", ")));
    let after = service(&next(&mut builder), "10.96.0.1:80");
    assert!(outlier::is_ejected(Some(&config), &after.endpoints[0], 2));
    assert_eq!(after.baseline.usable(), 3);
    assert!(
        after
            .subset_of(&after.endpoints[2])
            .is_some_and(|subset| std::ptr::eq(subset, &raw const after.baseline))
    );
}
