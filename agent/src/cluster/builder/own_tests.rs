//! What TrafficPolicies and TrafficLanes add up to. Objects are written as users write them.

use std::{fmt::Write as _, time::Duration};

use proptest::prelude::*;

use super::{tests::*, *};
use crate::{
    cluster::{model, object::Told},
    govern::{
        governor::Governor,
        lane::RequestTag,
        policy::{Algorithm, Detour, LaneFallback},
        request::tests::Plain,
    },
};

const ORDERS: &str = "10.96.0.1:80";
const USERS: &str = "10.96.0.2:80";

/// A namespace with the Services `orders` and `users`, each with a pod of its name.
fn shop() -> String {
    let mut text = SHOP.to_owned();
    for (number, name) in [(1, "orders"), (2, "users")] {
        let pod_ip = format!("10.0.0.{number}");
        text += &svc(name, &format!("10.96.0.{number}"), "");
        text += &slice(name, name, &endpoint(&pod_ip, name));
        text += &pod(name, &pod_ip, &format!(", labels: {{app: {name}}}"));
    }
    text
}

fn own(kind: &str, name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: sluice.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}, namespace: shop{metadata}}}, \
         spec: {{{spec}}}}}\n"
    )
}

/// A policy for these targets that can be told by its request timeout.
fn policy(name: &str, metadata: &str, targets: &str, seconds: u32) -> String {
    let spec = format!("targetRefs: [{targets}], timeouts: {{request: {seconds}s}}");
    own("TrafficPolicy", name, metadata, &spec)
}

fn lane(name: &str, metadata: &str, spec: &str) -> String {
    own("TrafficLane", name, metadata, spec)
}

fn created(second: u32) -> String {
    format!(", creationTimestamp: '2026-01-01T00:00:{second:02}Z'")
}

/// Seconds of the request timeout that is in force.
fn in_force(snapshot: &Snapshot, address: &str) -> Option<u64> {
    let service = service(snapshot, address);
    service.governor.policy().timeouts.request.map(|timeout| timeout.as_secs())
}

fn governor(snapshot: &Snapshot, address: &str) -> Arc<Governor> {
    service(snapshot, address).governor.clone()
}

/// What is said of an object, as `Accepted=True/Accepted Programmed=False/Conflicted: message`.
fn said(builder: &Builder, object: &str) -> String {
    let (_, judged) =
        builder.verdicts().iter().find(|(key, _)| key.to_string() == object).expect("it is judged");
    let mut text = String::new();
    for (kind, condition) in judged.verdict.conditions() {
        let _ = write!(text, "{kind}={}/{} ", condition.holds, condition.reason.as_str());
    }
    text + &judged.verdict.programmed.message
}

fn apply_anyhow(builder: &mut Builder, text: &str) {
    let (sightings, _) = crate::cluster::manifests::parse(text);
    for sighting in sightings {
        builder.apply(Change::Applied(sighting));
    }
}

#[test]
fn a_limit_of_the_whole_cluster_needs_a_store() {
    let limit = "rateLimits: [{name: all, requests: 10, scope: Cluster}]";
    for spec in [limit.to_owned(), format!("rules: [{{name: some, {limit}}}]")] {
        let spec = format!("targetRefs: [{{name: orders}}], {spec}");
        for (limit_store, wanted) in [
            (true, "Accepted=true/Accepted Programmed=true/Programmed active for Service orders"),
            (
                false,
                "Accepted=true/Accepted Programmed=false/Unsupported active for Service orders; rateLimits with scope Cluster \
                 are counted on each node by itself, as with scope Node: the agent has no --limit-store, by which agents share \
                 them",
            ),
        ] {
            let options = Options { limit_store, ..Options::default() };
            let mut builder = start(options, &(shop() + &own("TrafficPolicy", "all", "", &spec)));
            next(&mut builder);
            assert_eq!(said(&builder, "TrafficPolicy shop/all"), wanted);
        }
    }
}

#[test]
fn a_policy_governs_what_it_targets_live() {
    let mut builder = start(Options::default(), &shop());
    let first = next(&mut builder);
    assert_eq!(in_force(&first, ORDERS), None);

    apply(&mut builder, &policy("slow", "", "{name: orders}", 5));
    let second = next(&mut builder);
    assert_eq!((in_force(&second, ORDERS), in_force(&second, "10.96.0.2:80")), (Some(5), None));
    assert_eq!(service(&second, ORDERS).governor.policy().name.as_deref(), Some("shop/slow"));
    let unconcerned = |snapshot: &Snapshot| Arc::as_ptr(&service(snapshot, "10.96.0.2:80"));
    assert_eq!(unconcerned(&first), unconcerned(&second), "what is not concerned is not built anew");
    assert_eq!(
        said(&builder, "TrafficPolicy shop/slow"),
        "Accepted=true/Accepted Programmed=true/Programmed active for Service orders"
    );

    apply(&mut builder, &policy("slow", "", "{name: users}", 6));
    let third = next(&mut builder);
    assert_eq!((in_force(&third, ORDERS), in_force(&third, "10.96.0.2:80")), (None, Some(6)));

    delete(&mut builder, &policy("slow", "", "{name: users}", 6));
    let fourth = next(&mut builder);
    assert_eq!(in_force(&fourth, "10.96.0.2:80"), None);
    assert!(builder.verdicts().is_empty() && messages(&builder).is_empty());
}

/// An AccessPolicy for `orders` that asks for tokens, with keys from there.
fn tokens(name: &str, uri: &str, more: &str) -> String {
    let provider = format!("{{name: login, issuer: i, audiences: [a], jwks: {{uri: '{uri}'{more}}}}}");
    let spec = format!(
        "targetRefs: [{{name: {name}}}], jwt: {{providers: [{provider}]}}, rules: [{{name: users, from: [{{jwt: {{}}}}]}}]"
    );
    own("AccessPolicy", name, "", &spec)
}

#[test]
fn policies_that_name_one_uri_share_its_keys_and_tell_when_they_are_missing() {
    use crate::{
        cluster::jwks::{Failed, Sources},
        govern::jwt::{Keys, Known, testing::Signer},
    };
    let sources = Arc::new(Sources::new(vec!["login.example.com".parse().unwrap()]));
    let options = Options { jwks: sources.clone(), ..Options::default() };
    let uri = "https://login.example.com/keys";
    let location = uri.parse().unwrap();
    let text = tokens("orders", uri, "")
        + &tokens("users", "https://LOGIN.example.com:443/keys", ", cacheDuration: 30s");
    let mut builder = start(options, &(shop() + &text));
    let known = |snapshot: &Snapshot, address: &str| -> Arc<Known> {
        let access = service(snapshot, address).access.clone().unwrap();
        access.jwt.as_ref().unwrap().providers[0].keys.known().clone()
    };
    let snapshot = next(&mut builder);
    let ours = known(&snapshot, ORDERS);
    assert!(Arc::ptr_eq(&ours, &known(&snapshot, USERS)));
    let at = |seconds| Nanos::of(Duration::from_secs(seconds));
    assert_eq!(sources.due(at(0), 8), [location], "one fetch for both");
    let is_active = "Accepted=true/Accepted Programmed=true/Programmed active for Service orders";
    assert_eq!(said(&builder, "AccessPolicy shop/orders"), is_active, "nothing is known to be wrong yet");

    let mut fetch = |fetched, seconds| {
        sources.end(&uri.parse().unwrap(), fetched, at(seconds), 0.0);
        builder.keys_changed();
        assert!(builder.build(Instant::now()).is_none(), "only what is said of it is other");
        said(&builder, "AccessPolicy shop/orders")
    };
    let missing = fetch(Err(Failed::Status(503)), 0);
    let why = "the keys of provider login are missing: the status of the response is 503";
    assert!(missing.contains("Programmed=false/KeysMissing") && missing.contains(why), "{missing}");
    let keys = serde_json::json!({"keys": [Signer::p256().jwk(serde_json::json!({}))]}).to_string();
    assert_eq!(sources.due(at(2), 8).len(), 1);
    assert_eq!(fetch(Keys::read(keys.as_bytes()).map_err(Failed::from), 2), is_active);
    assert_eq!(sources.due(at(31), 8).len(), 0);
    assert_eq!(sources.due(at(32), 8).len(), 1, "as often as one of them says");
    sources.end(&uri.parse().unwrap(), Err(Failed::Timeout), at(32), 0.0);

    // An edit of the policy does not lose the keys, whose other policy has gone.
    delete(&mut builder, &tokens("users", uri, ""));
    apply(&mut builder, &tokens("orders", uri, ", cacheDuration: 1h"));
    let snapshot = next(&mut builder);
    assert!(Arc::ptr_eq(&ours, &known(&snapshot, ORDERS)) && ours.keys().is_some());
    // One that may not be fetched says so at once.
    apply(&mut builder, &tokens("orders", "https://login.example.com:8443/keys", ""));
    let snapshot = next(&mut builder);
    assert!(known(&snapshot, ORDERS).keys().is_none());
    let told = said(&builder, "AccessPolicy shop/orders");
    assert!(told.contains("KeysMissing") && told.contains("--jwks-hosts"), "{told}");
    let all = sources.states(at(40));
    assert_eq!(
        all.iter().map(|state| state.location.to_string()).collect::<Vec<_>>(),
        ["https://login.example.com:8443/keys"]
    );
    // Nobody asks for what nobody is enrolled for.
    let namespace = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";
    apply(&mut builder, namespace);
    let _ = builder.build(Instant::now());
    assert!(sources.states(at(41)).is_empty());
}

#[test]
fn what_changes_only_the_status_builds_nothing() {
    let text = policy("slow", ", generation: 1", "{name: orders}", 5);
    let mut builder = start(Options::default(), &(shop() + &text));
    next(&mut builder);
    let [mut sighting] = <[Sighting; 1]>::try_from(sightings(&text)).unwrap();
    let Object::TrafficPolicy(object) = &mut sighting.object else { unreachable!() };
    object.told = vec![Told {
        kind: "Accepted".into(),
        status: "True".into(),
        reason: "Accepted".into(),
        message: "".into(),
        generation: Some(1),
        since: "2026-01-01T00:00:00Z".into(),
    }]
    .into();
    builder.apply(Change::Applied(sighting));
    assert!(builder.build(Instant::now()).is_none());
    assert_eq!(builder.verdicts().values().next().unwrap().told.len(), 1);
}

#[test]
fn the_port_goes_before_the_service_and_the_older_before_the_younger() {
    let ports = "
---
apiVersion: v1
kind: Service
metadata: {name: both, namespace: shop}
spec:
  clusterIP: 10.96.0.9
  ports: [{name: http, port: 80}, {name: grpc, port: 81}]
";
    let mut builder = start(Options::default(), &(shop() + ports));
    next(&mut builder);
    let (http, grpc) = ("10.96.0.9:80", "10.96.0.9:81");
    apply(&mut builder, &policy("young", &created(9), "{name: both}, {name: users}", 1));
    apply(&mut builder, &policy("port", &created(20), "{name: both, sectionName: grpc}", 2));
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, http), in_force(&snapshot, grpc)), (Some(1), Some(2)));

    apply(&mut builder, &policy("old", &created(5), "{name: both}", 3));
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, http), in_force(&snapshot, grpc)), (Some(3), Some(2)));
    assert_eq!(in_force(&snapshot, "10.96.0.2:80"), Some(1), "what it does not lose it keeps");
    assert_eq!(
        said(&builder, "TrafficPolicy shop/young"),
        "Accepted=true/Accepted Programmed=false/Conflicted active for Service users; Service both has TrafficPolicy \
         shop/old already, which is older"
    );
    // Of the same second: by name. Without a time: last of all.
    apply(&mut builder, &policy("an-old", &created(5), "{name: both}", 4));
    apply(&mut builder, &policy("a", "", "{name: both}", 5));
    assert_eq!(in_force(&next(&mut builder), http), Some(4));
    assert_eq!(
        said(&builder, "TrafficPolicy shop/old"),
        "Accepted=false/Conflicted Programmed=false/Conflicted Service both has TrafficPolicy shop/an-old already, which \
         is older"
    );
    assert!(
        messages(&builder).iter().any(|message| message.starts_with("TrafficPolicy shop/old: Conflicted: "))
    );

    for (name, seconds) in [("an-old", Some(3)), ("old", Some(1)), ("young", Some(5)), ("a", None)] {
        delete(&mut builder, &policy(name, "", "{name: both}", 9));
        assert_eq!(in_force(&next(&mut builder), http), seconds, "after {name}");
    }
}

#[test]
fn a_policy_that_says_the_same_otherwise_or_under_another_name_is_told_so() {
    let (targets, words) =
        ("targetRefs: [{name: orders}]", |snapshot: &Snapshot| service(snapshot, ORDERS).said.clone());
    let plain = own("TrafficPolicy", "a", "", &format!("{targets}, timeouts: {{request: 1s}}"));
    let mut builder = start(Options::default(), &(shop() + &plain));
    let first = next(&mut builder);
    // What it says comes to the same as before: only who shows it as it is written sees a difference.
    let wordy = own("TrafficPolicy", "a", "", &format!("{targets}, timeouts: {{request: 1000ms}}"));
    apply(&mut builder, &wordy);
    let second = next(&mut builder);
    assert_eq!((in_force(&first, ORDERS), in_force(&second, ORDERS)), (Some(1), Some(1)));
    assert_ne!(words(&first), words(&second));
    assert!(words(&second).is_some_and(|said| said.to_string().contains("1000ms")));
    // Another object that says it in the same words.
    delete(&mut builder, &wordy);
    apply(&mut builder, &wordy.replace("name: a,", "name: b,"));
    let third = next(&mut builder);
    assert_eq!(words(&second), words(&third));
    assert_eq!(governor(&third, ORDERS).policy().name.as_deref(), Some("shop/b"));
}

#[test]
fn what_is_not_there_is_said_until_it_comes() {
    let mut builder = start(Options::default(), &shop());
    apply(&mut builder, &policy("p", "", "{name: stock}, {name: orders, sectionName: grpc}", 5));
    next(&mut builder);
    assert_eq!(
        said(&builder, "TrafficPolicy shop/p"),
        "Accepted=false/TargetNotFound Programmed=false/TargetNotFound there is no Service stock; Service orders has no \
         port grpc: it has http"
    );
    apply(&mut builder, &svc("stock", "10.96.0.3", ""));
    assert_eq!(in_force(&next(&mut builder), "10.96.0.3:80"), Some(5));
    assert_eq!(
        said(&builder, "TrafficPolicy shop/p"),
        "Accepted=true/Accepted Programmed=false/TargetNotFound active for Service stock; Service orders has no port \
         grpc: it has http"
    );
    delete(&mut builder, &svc("stock", "10.96.0.3", ""));
    next(&mut builder);
    assert!(said(&builder, "TrafficPolicy shop/p").starts_with("Accepted=false/TargetNotFound"));
    // An ExternalName has no address whose calls could be governed.
    let external = "{apiVersion: v1, kind: Service, metadata: {name: stock, namespace: shop}, \
                    spec: {type: ExternalName, externalName: a.example}}\n";
    apply(&mut builder, external);
    builder.build(Instant::now());
    assert!(said(&builder, "TrafficPolicy shop/p").contains("Service stock has no address of its own"));
}

#[test]
fn what_is_in_a_namespace_that_is_not_enrolled_is_told_so() {
    let bank = |capture: &str| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: bank, annotations: {{{capture}}}}}}}\n")
    };
    let there = |text: String| text.replace("namespace: shop", "namespace: bank");
    let objects = there(
        policy("p", "", "{name: orders}", 5)
            + &policy("bad", "", "{name: orders}", 5).replace("5s", "often")
            + &lane("gray", "", "tag: gray"),
    );
    let mut builder = start(Options::default(), &shop());
    apply_anyhow(&mut builder, &objects);
    builder.build(Instant::now());
    // It may be one that is opted in and not yet whole.
    assert!(builder.verdicts().keys().all(|key| &*key.name.namespace != "bank"), "{:?}", builder.verdicts());

    for capture in ["", "sluice.dev/capture: disabled"] {
        apply(&mut builder, &bank(capture));
        builder.build(Instant::now());
        for object in ["TrafficPolicy bank/p", "TrafficLane bank/gray"] {
            assert_eq!(
                said(&builder, object),
                "Accepted=false/NamespaceNotEnrolled Programmed=false/NamespaceNotEnrolled namespace bank is not enrolled, so \
                 nothing of this is active: kubectl annotate namespace bank sluice.dev/capture=enabled"
            );
        }
        let bad = said(&builder, "TrafficPolicy bank/bad");
        assert!(
            bad.contains("NamespaceNotEnrolled")
                && bad.contains("; it is invalid, too: spec.timeouts.request: "),
            "{bad}"
        );
    }
    // That is nothing wrong with the objects.
    assert!(
        messages(&builder).iter().all(|message| message.contains("bank/bad")),
        "{:?}",
        messages(&builder)
    );

    apply(&mut builder, &bank("sluice.dev/capture: enabled"));
    builder.build(Instant::now());
    assert!(said(&builder, "TrafficPolicy bank/p").starts_with("Accepted=false/TargetNotFound"));
    assert!(said(&builder, "TrafficLane bank/gray").starts_with("Accepted=true/Accepted"));
    assert!(said(&builder, "TrafficPolicy bank/bad").starts_with("Accepted=false/Invalid"));
    apply(&mut builder, &bank(""));
    builder.build(Instant::now());
    assert!(said(&builder, "TrafficPolicy bank/p").starts_with("Accepted=false/NamespaceNotEnrolled"));
    delete(&mut builder, &bank(""));
    builder.build(Instant::now());
    assert!(builder.verdicts().keys().all(|key| &*key.name.namespace != "bank"), "{:?}", builder.verdicts());
}

#[test]
fn what_makes_no_sense_leaves_the_last_good_version_in_force() {
    let good = policy("p", ", generation: 3", "{name: orders}", 5);
    let bad = good.replace("5s", "often").replace("generation: 3", "generation: 4");
    let mut builder = start(Options::default(), &(shop() + &good));
    let first = next(&mut builder);

    apply_anyhow(&mut builder, &bad);
    assert!(builder.build(Instant::now()).is_none(), "nothing changes for anybody");
    let verdict = said(&builder, "TrafficPolicy shop/p");
    assert!(
        verdict.starts_with("Accepted=false/Invalid Programmed=false/Invalid spec.timeouts.request: "),
        "{verdict}"
    );
    assert!(verdict.ends_with("its last valid version (generation 3) stays active"), "{verdict}");
    let problems = messages(&builder);
    assert!(
        matches!(&problems[..], [one] if one.contains("spec.timeouts.request: \"often\" ")),
        "{problems:?}"
    );

    // The same object, deleted and made anew, owes nothing to the one before.
    let another = |uid: &str| bad.replace("generation: 4", &format!("generation: 1, uid: {uid}"));
    apply_anyhow(&mut builder, &another("u1"));
    assert!(builder.build(Instant::now()).is_none());
    apply_anyhow(&mut builder, &another("u2"));
    assert_eq!(in_force(&next(&mut builder), ORDERS), None);
    assert!(said(&builder, "TrafficPolicy shop/p").contains("it is not active"));

    apply(&mut builder, &good);
    let last = next(&mut builder);
    assert_eq!(in_force(&last, ORDERS), Some(5));
    assert!(!Arc::ptr_eq(&governor(&first, ORDERS), &governor(&last, ORDERS)));
    assert!(messages(&builder).is_empty());
}

#[test]
fn a_resync_keeps_good_versions_and_ends_what_is_gone() {
    let (a, b) = (policy("a", "", "{name: orders}", 1), policy("b", "", "{name: users}", 2));
    let mut builder = start(Options::default(), &(shop() + &a + &b));
    let first = next(&mut builder);
    let (broken, _) = crate::cluster::manifests::parse(&a.replace("1s", "never"));
    builder.apply(Change::Restarted(Kind::TrafficPolicy, broken));
    let second = next(&mut builder);
    assert!(Arc::ptr_eq(&governor(&first, ORDERS), &governor(&second, ORDERS)));
    assert_eq!(in_force(&second, "10.96.0.2:80"), None);
}

#[test]
fn both_families_have_one_governor_and_it_outlives_snapshots() {
    let dual = SHOP.to_owned()
        + "{apiVersion: v1, kind: Service, metadata: {name: orders, namespace: shop}, \
           spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{name: http, port: 80}]}}\n"
        + &policy("p", "", "{name: orders}", 5);
    let mut builder = start(Options::default(), &dual);
    let first = next(&mut builder);
    let governor4 = governor(&first, ORDERS);
    assert!(Arc::ptr_eq(&governor4, &governor(&first, "[fd00::1]:80")));
    apply(&mut builder, &slice("orders", "orders", "{addresses: [10.0.0.7]}"));
    let second = next(&mut builder);
    assert!(Arc::ptr_eq(&governor4, &governor(&second, ORDERS)));
    assert!(Arc::ptr_eq(&governor4, &governor(&second, "[fd00::1]:80")));
}

#[test]
fn the_algorithm_reaches_routing() {
    let spec = "targetRefs: [{name: orders}], loadBalancer: {type: RoundRobin}";
    let snapshot = snapshot_of(&(shop() + &own("TrafficPolicy", "p", "", spec)));
    let algorithm = |address: &str| service(&snapshot, address).candidates().policy.load_balancer.algorithm;
    assert_eq!(algorithm(ORDERS), Algorithm::RoundRobin);
    assert_eq!(algorithm("10.96.0.2:80"), Algorithm::LeastTime);
}

fn tags(snapshot: &Snapshot) -> BTreeMap<String, Option<String>> {
    let tag = |workload: &Arc<Workload>| workload.tag.as_ref().map(ToString::to_string);
    snapshot.pods.values().map(|workload| (workload.name.to_string(), tag(workload))).collect()
}

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
fn services_take_from_the_policy_of_their_namespace_what_their_own_does_not_say() {
    let of_namespace = |name: &str, metadata: &str, seconds: u32, more: &str| {
        let spec =
            format!("targetRefs: [{{kind: Namespace, name: shop}}], timeouts: {{request: {seconds}s}}{more}");
        own("TrafficPolicy", name, metadata, &spec)
    };
    let drain = |snapshot: &Snapshot, address: &str| {
        service(snapshot, address).governor.policy().drain.timeout.map(|timeout| timeout.as_secs())
    };
    let mut builder =
        start(Options::default(), &(shop() + &policy("orders", &created(5), "{name: orders}", 1)));
    next(&mut builder);
    apply(&mut builder, &of_namespace("all", &created(3), 9, ", drain: {timeout: 7s}"));
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, ORDERS), in_force(&snapshot, USERS)), (Some(1), Some(9)));
    assert_eq!((drain(&snapshot, ORDERS), drain(&snapshot, USERS)), (Some(7), Some(7)));
    assert_eq!(
        said(&builder, "TrafficPolicy shop/orders"),
        "Accepted=true/Accepted Programmed=true/Programmed active for Service orders, with drain of TrafficPolicy shop/all"
    );
    assert_eq!(
        said(&builder, "TrafficPolicy shop/all"),
        "Accepted=true/Accepted Programmed=true/Programmed active for Namespace shop, where Services do not say otherwise"
    );
    // A Service that comes later has it, too.
    apply(&mut builder, &svc("stock", "10.96.0.3", ""));
    assert_eq!(in_force(&next(&mut builder), "10.96.0.3:80"), Some(9));
    // Of two the older one counts; a change of it reaches everybody.
    apply(&mut builder, &of_namespace("older", &created(1), 8, ""));
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, ORDERS), in_force(&snapshot, USERS)), (Some(1), Some(8)));
    assert_eq!((drain(&snapshot, ORDERS), drain(&snapshot, USERS)), (None, None));
    assert!(
        said(&builder, "TrafficPolicy shop/all")
            .ends_with("Namespace shop has TrafficPolicy shop/older already, which is older")
    );
    apply(&mut builder, &of_namespace("older", &created(1), 8, ", drain: {timeout: 2s}"));
    assert_eq!(drain(&next(&mut builder), ORDERS), Some(2));
    // One that makes no sense leaves the last good one in force; one that is gone leaves nothing.
    apply(&mut builder, &of_namespace("older", &created(1), 8, ", drain: {timeout: soon}"));
    assert!(builder.build(Instant::now()).is_none_or(|snapshot| drain(&snapshot, ORDERS) == Some(2)));
    delete(&mut builder, &of_namespace("older", "", 8, ""));
    assert_eq!(drain(&next(&mut builder), ORDERS), Some(7));
    delete(&mut builder, &of_namespace("all", "", 9, ""));
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, ORDERS), in_force(&snapshot, USERS)), (Some(1), None));
    assert_eq!(drain(&snapshot, ORDERS), None);
    assert!(said(&builder, "TrafficPolicy shop/orders").ends_with("active for Service orders"));
    // What is no longer wanted is not inherited.
    apply(&mut builder, &of_namespace("all", "", 9, ", drain: {timeout: 7s}"));
    next(&mut builder);
    let alone = "targetRefs: [{name: orders}], timeouts: {request: 1s}, inherit: None";
    apply(&mut builder, &own("TrafficPolicy", "orders", &created(5), alone));
    assert_eq!(drain(&next(&mut builder), ORDERS), None);
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
fn what_is_opted_out_is_told_so_and_is_no_problem() {
    let mut builder = start(Options::default(), &(shop() + &policy("p", "", "{name: nobody}", 5)));
    next(&mut builder);
    assert!(said(&builder, "TrafficPolicy shop/p").starts_with("Accepted=false/TargetNotFound"));
    apply(&mut builder, "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n");
    next(&mut builder);
    assert!(said(&builder, "TrafficPolicy shop/p").starts_with("Accepted=false/NamespaceNotEnrolled"));
    assert!(messages(&builder).is_empty());
    apply(&mut builder, SHOP);
    next(&mut builder);
    assert!(said(&builder, "TrafficPolicy shop/p").starts_with("Accepted=false/TargetNotFound"));
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

/// Everything that policies and lanes decide, in words.
fn decided(builder: &Builder, snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (address, destination) in snapshot.destinations.iter() {
        let service = &destination.service;
        let policy = service.governor.policy();
        all.push(format!("{address}: {:?} {:?} {:?}", policy.name, policy.timeouts.request, service.detours));
        for user in ["ann", "bob"] {
            let coloured =
                service.entry.colour(&Plain::get("/").with("x-user", user), "10.0.0.9".parse().unwrap());
            all.push(format!("{address}, {user}: {coloured:?}"));
        }
        let tags = service.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.tag.clone()));
        all.push(format!("{address}: {:?}", tags.collect::<Vec<_>>()));
    }
    all.extend(tags(snapshot).into_iter().map(|(pod, tag)| format!("{pod}: {tag:?}")));
    all.extend(builder.verdicts().iter().map(|(key, judged)| format!("{key}: {:?}", judged.verdict)));
    all.sort();
    all
}

/// An object in one of its versions, and its name.
fn version() -> impl Strategy<Value = (String, Option<String>)> {
    let number = 0..3_u32;
    let some = |text: String, there: bool| there.then_some(text);
    let service = prop::sample::select(vec!["orders", "users", "stock"]);
    let policy = (number.clone(), number.clone(), service.clone(), 1..4_u32, any::<bool>(), any::<bool>())
        .prop_map(move |(n, age, target, seconds, port, there)| {
            let port = if port { ", sectionName: http" } else { "" };
            let text = policy(&format!("p{n}"), &created(age), &format!("{{name: {target}{port}}}"), seconds);
            (format!("policy {n}"), some(text, there))
        });
    let lane = (number.clone(), number.clone(), service, number, any::<bool>(), any::<bool>()).prop_map(
        move |(n, age, app, tag, strict, there)| {
            let fallback = if strict { "Fail" } else { "Baseline" };
            let spec = format!(
                "tag: t{tag}, fallback: {fallback}, workloadSelector: {{matchLabels: {{app: {app}}}}}, \
                 targetRefs: [{{name: {app}}}], entry: [{{match: {{headers: [{{name: x-user, value: ann}}]}}}}]"
            );
            (format!("lane {n}"), some(lane(&format!("l{n}"), &created(age), &spec), there))
        },
    );
    let pods = (prop::sample::select(vec!["orders", "users"]), 0..3_usize, any::<bool>()).prop_map(
        move |(name, label, there)| {
            let label = ["app: orders", "app: users", "sluice.dev/tag: own"][label];
            let ip = if name == "orders" { "10.0.0.1" } else { "10.0.0.2" };
            (format!("pod {name}"), some(pod(name, ip, &format!(", labels: {{{label}}}")), there))
        },
    );
    let stock =
        any::<bool>().prop_map(move |there| ("stock".to_owned(), some(svc("stock", "10.96.0.3", ""), there)));
    prop_oneof![3 => policy, 3 => lane, 2 => pods, 1 => stock]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What there is decides, not the way there.
    #[test]
    fn the_order_of_events_makes_no_difference(events in prop::collection::vec(version(), 1..30)) {
        let base = shop();
        let mut builder = start(Options::default(), &base);
        let mut last = next(&mut builder);
        let mut there: BTreeMap<String, Option<String>> = BTreeMap::new();
        for (name, text) in events {
            let before = there.insert(name.clone(), text.clone());
            // One pod of each name is there from the start.
            let built_in = name.strip_prefix("pod ").map(|name| pod(name, "10.0.0.1", ""));
            if let Some(text) = &text {
                apply(&mut builder, text);
            } else if let Some(text) = before.flatten().or(built_in) {
                delete(&mut builder, &text);
            }
            last = builder.build(Instant::now()).unwrap_or(last);
        }
        // The same from nothing.
        let mut whole = base;
        for (name, text) in &there {
            if let Some(pod_name) = name.strip_prefix("pod ") {
                let ip = if pod_name == "orders" { "10.0.0.1" } else { "10.0.0.2" };
                whole = whole.replace(&pod(pod_name, ip, &format!(", labels: {{app: {pod_name}}}")), "");
            }
            whole += text.as_deref().unwrap_or_default();
        }
        let mut fresh = start(Options::default(), &whole);
        let first = next(&mut fresh);
        prop_assert_eq!(decided(&builder, &last), decided(&fresh, &first));
    }
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

/// Else a rollout by weight would take the protection of a Service away in the minute in which it begins.
#[test]
fn services_that_a_route_sends_to_take_from_the_policy_of_the_service_that_is_called() {
    const CANARY: &str = "10.96.0.4:80";
    let route = |backends: &str| {
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, \
             spec: {{parentRefs: [{{group: '', kind: Service, name: orders}}], rules: [{{backendRefs: [{backends}]}}]}}}}\n"
        )
    };
    let weighted = |canary: u32| {
        route(&format!("{{name: users, port: 80, weight: 90}}, {{name: canary, port: 80, weight: {canary}}}"))
    };
    let all = |snapshot: &Snapshot| [ORDERS, USERS, CANARY].map(|address| in_force(snapshot, address));
    let drain = |snapshot: &Snapshot, address: &str| {
        service(snapshot, address).governor.policy().drain.timeout.map(|timeout| timeout.as_secs())
    };
    let of_orders = |seconds: u32| policy("orders", &created(5), "{name: orders}", seconds);
    let mut builder = start(Options::default(), &(shop() + &svc("canary", "10.96.0.4", "") + &of_orders(1)));
    assert_eq!(all(&next(&mut builder)), [Some(1), None, None]);
    apply(&mut builder, &weighted(10));
    let snapshot = next(&mut builder);
    assert_eq!(all(&snapshot), [Some(1); 3]);
    // Nothing is lost of what they know when a weight changes.
    let before = governor(&snapshot, CANARY);
    apply(&mut builder, &weighted(20));
    assert!(Arc::ptr_eq(&before, &governor(&next(&mut builder), CANARY)));
    // Whatever changes of the policy, and of the namespace's, reaches them.
    apply(&mut builder, &of_orders(2));
    assert_eq!(all(&next(&mut builder)), [Some(2); 3]);
    let defaults =
        "targetRefs: [{kind: Namespace, name: shop}], timeouts: {request: 9s}, drain: {timeout: 7s}";
    apply(&mut builder, &own("TrafficPolicy", "all", &created(1), defaults));
    let snapshot = next(&mut builder);
    assert_eq!((all(&snapshot), drain(&snapshot, CANARY)), ([Some(2); 3], Some(7)));
    // Their own policy goes before it, in what it says.
    let own_drain = "targetRefs: [{name: canary}], drain: {timeout: 3s}";
    apply(&mut builder, &own("TrafficPolicy", "canary", &created(9), own_drain));
    let snapshot = next(&mut builder);
    assert_eq!(
        (all(&snapshot), drain(&snapshot, CANARY), drain(&snapshot, USERS)),
        ([Some(2); 3], Some(3), Some(7))
    );
    apply(&mut builder, &policy("canary", &created(9), "{name: canary}", 4));
    assert_eq!(all(&next(&mut builder)), [Some(2), Some(2), Some(4)]);
    delete(&mut builder, &policy("canary", "", "{name: canary}", 4));
    assert_eq!(all(&next(&mut builder)), [Some(2); 3]);
    // It holds as long as the route sends there.
    apply(&mut builder, &route("{name: canary, port: 80}"));
    assert_eq!(all(&next(&mut builder)), [Some(2), Some(9), Some(2)]);
    delete(&mut builder, &of_orders(2));
    assert_eq!(all(&next(&mut builder)), [Some(9); 3]);
    apply(&mut builder, &of_orders(1));
    next(&mut builder);
    delete(&mut builder, &route(""));
    assert_eq!(all(&next(&mut builder)), [Some(1), Some(9), Some(9)]);
}

/// Each is asked by itself: what the called Service does not want of its Namespace is no word about others, and of several
/// Services that are called one gives, which is told.
#[test]
fn who_gives_to_a_service_that_routes_send_to_is_told() {
    const CANARY: &str = "10.96.0.4:80";
    let route = |name: &str, parent: &str| {
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, namespace: shop}}, \
             spec: {{parentRefs: [{{group: '', kind: Service, name: {parent}}}], rules: [{{backendRefs: [{{name: canary, port: 80}}]}}]}}}}\n"
        )
    };
    let drain = |snapshot: &Snapshot, address: &str| {
        service(snapshot, address).governor.policy().drain.timeout.map(|timeout| timeout.as_secs())
    };
    let defaults = "targetRefs: [{kind: Namespace, name: shop}], drain: {timeout: 7s}";
    let apart = "targetRefs: [{name: orders}], timeouts: {request: 1s}, inherit: None";
    let mut builder = start(
        Options::default(),
        &(shop()
            + &svc("canary", "10.96.0.4", "")
            + &own("TrafficPolicy", "all", &created(1), defaults)
            + &own("TrafficPolicy", "orders", &created(2), apart)
            + &route("r", "orders")),
    );
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, CANARY), drain(&snapshot, CANARY)), (Some(1), Some(7)));
    assert_eq!((in_force(&snapshot, ORDERS), drain(&snapshot, ORDERS)), (Some(1), None));
    // Another one without a policy has nothing to give.
    apply(&mut builder, &route("also", "users"));
    builder.build(Instant::now());
    assert_eq!(messages(&builder), [""; 0]);
    apply(&mut builder, &policy("users", &created(3), "{name: users}", 3));
    assert_eq!(in_force(&next(&mut builder), CANARY), Some(1));
    let said = messages(&builder);
    let wanted = "Services orders and users here, whose TrafficPolicies shop/orders and shop/users differ: it takes from shop/orders alone";
    assert!(said.len() == 1 && said[0].contains(wanted), "{said:?}");
    delete(&mut builder, &route("r", ""));
    assert_eq!(in_force(&next(&mut builder), CANARY), Some(3));
    assert_eq!(messages(&builder), [""; 0]);
}

/// A consumer's route gives the Services of its namespace nothing of another one's.
#[test]
fn policies_do_not_cross_namespaces_by_a_route() {
    let route = "---\n{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: next}, \
         spec: {parentRefs: [{group: '', kind: Service, name: orders, namespace: shop}], \
         rules: [{backendRefs: [{name: far, port: 80}]}]}}\n";
    let far = svc("far", "10.96.0.8", "").replace("namespace: shop", "namespace: next");
    let opted = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: next, annotations: {sluice.dev/capture: enabled}}}\n";
    let mut builder = start(
        Options::default(),
        &(shop() + opted + &far + route + &policy("orders", &created(5), "{name: orders}", 1)),
    );
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, ORDERS), in_force(&snapshot, "10.96.0.8:80")), (Some(1), None));
}
