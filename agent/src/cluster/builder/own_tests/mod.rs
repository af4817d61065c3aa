//! What TrafficPolicies and TrafficLanes add up to. Objects are written as users write them.

mod changes;
mod inherited;
mod lanes;

use std::{fmt::Write as _, time::Duration};

use super::{tests::*, *};
use crate::{
    cluster::{object::Told, source::Sighting},
    govern::{governor::Governor, policy::Algorithm, request::tests::Plain},
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
    let location: crate::govern::jwt::Location = uri.parse().unwrap();
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
        all.iter().map(|state| state.origin.to_string()).collect::<Vec<_>>(),
        ["https://login.example.com:8443/keys"]
    );
    // Nobody asks for what nobody is enrolled for.
    let namespace = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";
    apply(&mut builder, namespace);
    let _ = builder.build(Instant::now());
    assert!(sources.states(at(41)).is_empty());
}

#[test]
fn keys_in_objects_are_of_the_policy_s_namespace_and_tell_what_is_wrong() {
    use crate::{
        cluster::jwks::{Sources, objects::Held},
        govern::jwt::{Known, testing::Signer},
    };
    let sources = Arc::new(Sources::default());
    let options = Options { jwks: sources.clone(), ..Options::default() };
    let tokens = |name: &str, jwks: &str, more: &str| {
        let provider = format!("{{name: login, issuer: i, audiences: [a], jwks: {{{jwks}}}{more}}}");
        let spec = format!(
            "targetRefs: [{{name: {name}}}], jwt: {{providers: [{provider}]}}, rules: [{{name: users, from: [{{jwt: {{}}}}]}}]"
        );
        own("AccessPolicy", name, "", &spec)
    };
    let named = "configMap: {name: keys}";
    let text = tokens("orders", named, "")
        + &tokens("users", "configMap: {name: keys, key: jwks.json}", ", onNoKeys: Allow");
    // What is wanted in a namespace that is not enrolled is not read.
    let elsewhere = tokens("away", named, "").replace("namespace: shop", "namespace: bank");
    let mut builder = start(options, &(shop() + &text + &elsewhere));
    let known = |snapshot: &Snapshot, address: &str| -> Arc<Known> {
        let access = service(snapshot, address).access.clone().unwrap();
        access.jwt.as_ref().unwrap().providers[0].keys.known().clone()
    };
    let snapshot = next(&mut builder);
    assert!(Arc::ptr_eq(&known(&snapshot, ORDERS), &known(&snapshot, USERS)));
    let asked = sources.asked().borrow().clone();
    let all: Vec<_> = asked.keys().map(ToString::to_string).collect();
    assert_eq!(all, ["ConfigMap shop/keys"]);
    let (object, asked) = asked.first_key_value().unwrap();
    let mut read = |data: Option<serde_json::Value>| {
        let data = data.map(|data| serde_json::from_value(serde_json::json!({"data": data})).unwrap());
        let held = data.map(|object| Held::of_config_map(&object));
        sources.read_object(object, asked, held.as_ref(), Nanos::default());
        builder.keys_changed();
        let _ = builder.build(Instant::now());
        [said(&builder, "AccessPolicy shop/orders"), said(&builder, "AccessPolicy shop/users")]
    };
    let [denied, allowed] = read(None);
    let why = "the keys of provider login are missing: ConfigMap shop/keys, key jwks.json: there is no such ConfigMap: it has to be \
               in the namespace of the policy; until they are read ";
    assert!(denied.contains("Programmed=false/KeysMissing") && denied.contains(why), "{denied}");
    assert!(
        denied.contains("none of its tokens is accepted") && allowed.contains("onNoKeys: Allow"),
        "{allowed}"
    );
    let set = serde_json::json!({"keys": [Signer::p256().jwk(serde_json::json!({}))]}).to_string();
    let active = "Accepted=true/Accepted Programmed=true/Programmed active for Service orders";
    assert_eq!(read(Some(serde_json::json!({"jwks.json": set})))[0], active);
    let [outdated, _] = read(Some(serde_json::json!({"jwks": set})));
    let why = "the keys of provider login cannot be read any more, and the last ones stay in use: ConfigMap shop/keys, key \
               jwks.json: it has no such key in its data: it has jwks";
    assert!(outdated.contains("Programmed=false/KeysOutdated") && outdated.contains(why), "{outdated}");
    assert!(known(&snapshot, ORDERS).keys().is_some());
    assert_eq!(read(Some(serde_json::json!({"jwks.json": set})))[0], active);
    delete(&mut builder, &text);
    let _ = builder.build(Instant::now());
    assert!(sources.states(Nanos::default()).is_empty() && sources.asked().borrow().is_empty());
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

/// The tags of pods, by name.
fn tags(snapshot: &Snapshot) -> BTreeMap<String, Option<String>> {
    let tag = |workload: &Arc<Workload>| workload.tag.as_ref().map(ToString::to_string);
    snapshot.pods.values().map(|workload| (workload.name.to_string(), tag(workload))).collect()
}
