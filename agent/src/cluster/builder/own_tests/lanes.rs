//! What TrafficLanes add up to: tags, entries, and where requests fall back to.

use super::*;
use crate::cluster::model;
use crate::govern::{
    lane::RequestTag,
    policy::{Detour, LaneFallback},
};

fn is_tagged(snapshot: &Snapshot, pod: &str, tag: Option<&str>) {
    assert_eq!(tags(snapshot)[pod].as_deref(), tag, "{pod} as a caller");
    let endpoints =
        service(snapshot, if pod == "orders" { ORDERS } else { "10.96.0.2:80" }).endpoints.clone();
    let endpoint = endpoints.iter().find(|endpoint| endpoint.pod.as_deref() == Some(pod)).unwrap();
    assert_eq!(endpoint.tag.as_ref().map(crate::govern::tag::Tag::as_str), tag, "{pod} as an endpoint");
}

const SELECT: &str = "workloadSelector: {matchLabels: {app: orders}}";

#[test]
fn a_lane_tags_the_pods_that_it_selects_live() {
    let mut builder = start(Options::default(), &shop());
    is_tagged(&next(&mut builder), "orders", None);
    let gray = lane("gray", "", &format!("tag: gray, {SELECT}"));
    apply(&mut builder, &gray);
    let snapshot = next(&mut builder);
    is_tagged(&snapshot, "orders", Some("gray"));
    is_tagged(&snapshot, "users", None);
    assert_eq!(service(&snapshot, ORDERS).lanes.len(), 1);
    // A pod that comes later, one whose labels change, and one with its own word.
    apply(&mut builder, &pod("users", "10.0.0.2", ", labels: {app: orders}"));
    is_tagged(&next(&mut builder), "users", Some("gray"));
    apply(&mut builder, &pod("users", "10.0.0.2", ", labels: {app: orders, sluice.dev/tag: blue}"));
    is_tagged(&next(&mut builder), "users", Some("blue"));
    apply(&mut builder, &gray.replace("tag: gray", "tag: red"));
    let snapshot = next(&mut builder);
    is_tagged(&snapshot, "orders", Some("red"));
    is_tagged(&snapshot, "users", Some("blue"));
    delete(&mut builder, &gray);
    let snapshot = next(&mut builder);
    is_tagged(&snapshot, "orders", None);
    is_tagged(&snapshot, "users", Some("blue"));
}

#[test]
fn a_lane_is_of_its_own_namespace() {
    let gray =
        lane("gray", "", &format!("tag: gray, {SELECT}")).replace("namespace: shop", "namespace: bank");
    let bank = "{apiVersion: v1, kind: Namespace, metadata: {name: bank, annotations: {sluice.dev/capture: enabled}}}\n";
    let snapshot = snapshot_of(&format!("{}---\n{bank}{gray}", shop()));
    is_tagged(&snapshot, "orders", None);
}

#[test]
fn of_two_lanes_the_older_has_a_pod() {
    let young = lane("young", &created(9), &format!("tag: young, {SELECT}"));
    let mut builder = start(Options::default(), &(shop() + &young));
    is_tagged(&next(&mut builder), "orders", Some("young"));
    let old = lane("old", &created(1), &format!("tag: old, {SELECT}"));
    apply(&mut builder, &old);
    is_tagged(&next(&mut builder), "orders", Some("old"));
    let lost = "Accepted=false/Conflicted Programmed=false/Conflicted TrafficLane shop/old, which is older, has pods that \
                it selects as well";
    assert_eq!(said(&builder, "TrafficLane shop/young"), lost);
    assert!(
        said(&builder, "TrafficLane shop/old")
            .starts_with("Accepted=true/Accepted Programmed=true/Programmed")
    );
    // It gets one that only it selects.
    apply(
        &mut builder,
        &young.replace("matchLabels: {app: orders}", "matchExpressions: [{key: app, operator: Exists}]"),
    );
    is_tagged(&next(&mut builder), "users", Some("young"));
    assert!(
        said(&builder, "TrafficLane shop/young")
            .starts_with("Accepted=true/Accepted Programmed=false/Conflicted")
    );
    // The contested pod goes, and with it the conflict.
    delete(&mut builder, &pod("orders", "10.0.0.1", ""));
    next(&mut builder);
    assert!(said(&builder, "TrafficLane shop/young").starts_with("Accepted=true/Accepted Programmed=true"));
    // Two of one tag do not stand in each other's way.
    apply(&mut builder, &pod("orders", "10.0.0.1", ", labels: {app: orders}"));
    apply(&mut builder, &young.replace("tag: young", "tag: old"));
    next(&mut builder);
    assert!(said(&builder, "TrafficLane shop/young").starts_with("Accepted=true/Accepted Programmed=true"));
    delete(&mut builder, &old);
    assert!(builder.build(Instant::now()).is_none(), "it changes hands, and not its tag");
    assert!(said(&builder, "TrafficLane shop/young").starts_with("Accepted=true/Accepted Programmed=true"));
}

#[test]
fn a_policy_that_changes_the_tag_header_of_this_agent_is_invalid() {
    let options =
        Options { tag_headers: vec![http::HeaderName::from_static("x-lane")], ..Options::default() };
    let mut builder = start(options, &(shop() + &policy("slow", ", generation: 1", "{name: orders}", 5)));
    next(&mut builder);
    let spec =
        "targetRefs: [{name: orders}], timeouts: {request: 6s}, headers: {request: {remove: [X-Lane]}}";
    apply_anyhow(&mut builder, &own("TrafficPolicy", "slow", ", generation: 2", spec));
    builder.build(Instant::now());
    let verdict = said(&builder, "TrafficPolicy shop/slow");
    assert!(
        verdict.ends_with(
            "spec.headers.request.remove[0]: \"X-Lane\" carries the tag: it cannot be changed; its last valid version \
             (generation 1) stays active"
        ),
        "{verdict}"
    );
    assert!(messages(&builder).iter().any(|message| message.contains("carries the tag")));
}

#[test]
fn an_invalid_lane_stays_as_it_was() {
    let gray = lane("gray", "", &format!("tag: gray, {SELECT}"));
    let mut builder = start(Options::default(), &(shop() + &gray));
    next(&mut builder);
    apply_anyhow(&mut builder, &gray.replace("tag: gray", "tag: 'no tag'"));
    assert!(builder.build(Instant::now()).is_none());
    assert!(said(&builder, "TrafficLane shop/gray").starts_with("Accepted=false/Invalid"));
    apply(&mut builder, &pod("users", "10.0.0.2", ", labels: {app: orders}"));
    is_tagged(&next(&mut builder), "users", Some("gray"));
}

fn colour(service: &model::Service, request: &Plain) -> Option<String> {
    let coloured = service.entry.colour(request, "10.0.0.9".parse().unwrap());
    coloured.map(|coloured| coloured.tag.to_string())
}

#[test]
fn entry_rules_reach_the_services_that_they_are_about() {
    let rule = "entry: [{match: {headers: [{name: x-beta, value: '1'}]}}]";
    let beta = || Plain::get("/").with("x-beta", "1");
    let mut builder = start(Options::default(), &shop());
    let first = next(&mut builder);
    let gray = lane("gray", "", &format!("tag: gray, {rule}, targetRefs: [{{name: orders}}]"));
    apply(&mut builder, &gray);
    let second = next(&mut builder);
    assert_eq!(colour(&service(&second, ORDERS), &beta()).as_deref(), Some("gray"));
    assert_eq!(colour(&service(&second, ORDERS), &Plain::get("/")), None);
    assert_eq!(colour(&service(&second, "10.96.0.2:80"), &beta()), None);
    let unconcerned = |snapshot: &Snapshot| Arc::as_ptr(&service(snapshot, "10.96.0.2:80"));
    assert_eq!(unconcerned(&first), unconcerned(&second));

    apply(&mut builder, &lane("gray", "", &format!("tag: gray, {rule}")));
    let third = next(&mut builder);
    assert_eq!(colour(&service(&third, "10.96.0.2:80"), &beta()).as_deref(), Some("gray"));
    // An older one is asked first.
    apply(&mut builder, &lane("old", &created(1), &format!("tag: old, {rule}")));
    assert_eq!(colour(&service(&next(&mut builder), ORDERS), &beta()).as_deref(), Some("old"));
    delete(&mut builder, &lane("old", "", ""));
    delete(&mut builder, &gray);
    assert!(service(&next(&mut builder), ORDERS).entry.is_empty());

    apply(&mut builder, &lane("gray", "", &format!("tag: gray, {rule}, targetRefs: [{{name: stock}}]")));
    builder.build(Instant::now());
    assert!(said(&builder, "TrafficLane shop/gray").ends_with("there is no Service stock"));
    apply(&mut builder, &svc("stock", "10.96.0.3", ""));
    next(&mut builder);
    assert!(said(&builder, "TrafficLane shop/gray").starts_with("Accepted=true/Accepted Programmed=true"));
}

#[test]
fn a_lane_may_refuse_to_fall_back_live() {
    let fallback = |snapshot: &Snapshot, tag: &str| {
        let tag = RequestTag::new(tag.as_bytes()).unwrap();
        service(snapshot, ORDERS).fallback(Some(&tag)).then
    };
    let strict = lane("strict", &created(5), "tag: gray, fallback: Fail");
    let mut builder = start(Options::default(), &shop());
    next(&mut builder);
    apply(&mut builder, &strict);
    let snapshot = next(&mut builder);
    assert_eq!(fallback(&snapshot, "gray"), LaneFallback::Fail);
    assert_eq!(fallback(&snapshot, "blue"), LaneFallback::Baseline);
    assert_eq!(service(&snapshot, ORDERS).fallback(None).then, LaneFallback::Baseline);
    // An older one of the same tag says otherwise.
    apply(&mut builder, &lane("mild", &created(1), "tag: gray"));
    assert_eq!(fallback(&next(&mut builder), "gray"), LaneFallback::Baseline);
    assert_eq!(
        said(&builder, "TrafficLane shop/strict"),
        "Accepted=true/Accepted Programmed=false/Conflicted lane gray is active; TrafficLane shop/mild, \
         which is older and has the same tag, says fallback: Baseline"
    );
    delete(&mut builder, &lane("mild", "", ""));
    assert_eq!(fallback(&next(&mut builder), "gray"), LaneFallback::Fail);
    delete(&mut builder, &strict);
    assert_eq!(fallback(&next(&mut builder), "gray"), LaneFallback::Baseline);
}

#[test]
fn a_lane_says_for_each_service_where_its_requests_fall_back_to() {
    let tag = |text: &str| RequestTag::new(text.as_bytes()).unwrap();
    let detour = |snapshot: &Snapshot| service(snapshot, ORDERS).fallback(Some(&tag("gray"))).clone();
    let to =
        |lanes: &[&str], then| Detour { lanes: lanes.iter().map(|tag| tag.parse().unwrap()).collect(), then };
    let said_of = |more: &str| {
        let spec = format!("tag: gray, fallback: Fail, fallbackLanes: [staging], serviceFallbacks: [{more}]");
        lane("gray", "", &spec)
    };
    let mut builder = start(Options::default(), &shop());
    next(&mut builder);
    for (more, wanted) in [
        ("{name: stock, fallback: Baseline}", to(&["staging"], LaneFallback::Fail)),
        ("{name: orders, fallback: Baseline}", to(&["staging"], LaneFallback::Baseline)),
        ("{name: orders, lanes: [blue, red]}", to(&["blue", "red"], LaneFallback::Fail)),
        ("{name: orders, lanes: [], fallback: Baseline}", Detour::default()),
    ] {
        apply(&mut builder, &said_of(more));
        assert_eq!(detour(&next(&mut builder)), wanted, "{more}");
    }
    // What another Service gets changes nothing here.
    apply(&mut builder, &said_of("{name: orders, lanes: [], fallback: Baseline}, {name: stock, lanes: []}"));
    builder.build(Instant::now());
    delete(&mut builder, &said_of(""));
    assert!(builder.build(Instant::now()).is_none_or(|snapshot| detour(&snapshot) == Detour::default()));
}

#[test]
fn labels_that_nobody_has_are_forgotten() {
    let mut builder = start(Options::default(), &shop());
    next(&mut builder);
    delete(&mut builder, &pod("orders", "10.0.0.1", ""));
    builder.forget(Instant::now() + Duration::from_secs(600));
    next(&mut builder);
    // Still there for those that have them.
    apply(&mut builder, &lane("gray", "", "tag: gray, workloadSelector: {matchLabels: {app: users}}"));
    is_tagged(&next(&mut builder), "users", Some("gray"));
}

#[test]
fn a_lane_has_endpoints_outside_the_cluster() {
    let outside = "tag: gray, endpoints: [{service: orders, address: '192.168.1.20:8080'}, \
                   {service: orders, address: '[fd00::20]:8080'}, {service: nobody, address: '192.168.1.20:80'}]";
    let mut builder = start(Options::default(), &(shop() + &lane("gray", "", outside)));
    let gray = |snapshot: &Snapshot, address: &str| -> Vec<String> {
        let service = service(snapshot, address);
        let lane = service.lanes.iter().find(|(tag, _)| tag.as_str() == "gray");
        lane.into_iter()
            .flat_map(|(_, lane)| lane.iter())
            .map(|endpoint| endpoint.address.to_string())
            .collect()
    };
    let first = next(&mut builder);
    // Of its family, and of no other Service.
    assert_eq!(gray(&first, ORDERS), ["192.168.1.20:8080"]);
    assert_eq!(gray(&first, USERS), [""; 0]);
    assert_eq!(service(&first, ORDERS).baseline.len(), 1);
    let endpoint = service(&first, ORDERS).lanes.values().next().expect("the lane")[0].clone();
    assert!(endpoint.is_usable() && endpoint.ready_since_nanos.is_none());
    let told = said(&builder, "TrafficLane shop/gray");
    assert!(told.contains("there is no Service nobody"), "{told}");
    // It is the same one when something else changes, and goes with its lane.
    apply(&mut builder, &policy("orders", "", "{name: orders}", 3));
    let second = next(&mut builder);
    assert!(Arc::ptr_eq(&service(&second, ORDERS).lanes.values().next().expect("the lane")[0], &endpoint));
    apply(
        &mut builder,
        &lane("gray", "", "tag: gray, endpoints: [{service: users, address: '192.168.1.20:8080'}]"),
    );
    let third = next(&mut builder);
    assert_eq!(gray(&third, ORDERS), [""; 0]);
    assert_eq!(gray(&third, USERS), ["192.168.1.20:8080"]);
    assert!(!said(&builder, "TrafficLane shop/gray").contains("there is no Service"));
}
