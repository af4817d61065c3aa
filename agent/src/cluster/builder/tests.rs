//! What objects add up to. Objects are written as users write them.

use std::{sync::atomic::Ordering, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::cluster::{
    manifests,
    model::{Protocol, Service},
    object::{EndpointSlice, SliceEndpoint, SlicePort},
};
use crate::govern::{
    outcome::{ErrorKind, Outcome},
    outlier,
    policy::OutlierDetection,
};

pub(super) const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {sluice.dev/capture: enabled}}
---
";

pub(super) fn sightings(text: &str) -> Vec<Sighting> {
    let (sightings, problems) = manifests::parse(text);
    assert_eq!(problems, []);
    sightings
}

pub(super) fn start(options: Options, text: &str) -> Builder {
    let mut builder = Builder::new(options);
    let mut by_kind: BTreeMap<Kind, Vec<Sighting>> = BTreeMap::new();
    for sighting in sightings(text) {
        by_kind.entry(sighting.object.key().kind).or_default().push(sighting);
    }
    for kind in Kind::ALL {
        builder.apply(Change::Restarted(kind, by_kind.remove(&kind).unwrap_or_default()));
    }
    builder
}

pub(super) fn snapshot_of(text: &str) -> Snapshot {
    start(Options::default(), text).build(Instant::now()).expect("the first snapshot always comes")
}

pub(super) fn apply(builder: &mut Builder, text: &str) {
    for sighting in sightings(text) {
        builder.apply(Change::Applied(sighting));
    }
}

pub(super) fn delete(builder: &mut Builder, text: &str) {
    for sighting in sightings(text) {
        builder.apply(Change::Deleted(sighting.object.key()));
    }
}

pub(super) fn next(builder: &mut Builder) -> Snapshot {
    builder.build(Instant::now()).expect("something has changed")
}

pub(super) fn service(snapshot: &Snapshot, address: &str) -> Arc<Service> {
    destination(snapshot, address).service
}

fn destination(snapshot: &Snapshot, address: &str) -> Destination {
    let found = snapshot.destination(address.parse().unwrap());
    found.unwrap_or_else(|| panic!("{address} is not governed: {:?}", snapshot.destinations.keys())).clone()
}

fn addresses(endpoints: &[Arc<crate::govern::endpoint::Endpoint>]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

fn governed(snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<_> = snapshot.destinations.keys().collect();
    all.sort();
    all.into_iter().map(ToString::to_string).collect()
}

pub(super) fn messages(builder: &Builder) -> Vec<String> {
    builder
        .problems()
        .iter()
        .map(|problem| Problem { file: None, line: None, ..problem.clone() }.to_string())
        .collect()
}

/// A Service with one port.
pub(super) fn svc(name: &str, ip: &str, extra: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{clusterIP: {ip}, ports: [{{name: http, port: 80}}]{extra}}}}}\n"
    )
}

/// A slice of it with these endpoints, on port 8080.
pub(super) fn slice(name: &str, of: &str, endpoints: &str) -> String {
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
         metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {of}}}}}, \
         ports: [{{name: http, port: 8080}}], endpoints: [{endpoints}]}}\n"
    )
}

pub(super) fn pod(name: &str, ip: &str, extra: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: uid-{name}{extra}}}, \
         spec: {{nodeName: n1}}, status: {{podIP: {ip}, phase: Running}}}}\n"
    )
}

pub(super) fn endpoint(ip: &str, pod: &str) -> String {
    format!("{{addresses: [{ip}], targetRef: {{kind: Pod, name: {pod}, namespace: shop}}}}")
}

const GRAY: &str = ", labels: {sluice.dev/tag: gray}";

#[test]
fn only_opted_in_namespaces_are_governed_and_live() {
    let rest = svc("orders", "10.96.0.1", "") + &pod("a", "10.0.0.1", "");
    let off = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";
    let mut builder = start(Options::default(), &format!("{off}{rest}"));
    let first = next(&mut builder);
    assert!(first.destinations.is_empty() && first.pods.is_empty());

    apply(&mut builder, SHOP);
    let second = next(&mut builder);
    assert_eq!(governed(&second), ["10.96.0.1:80"]);
    assert!(second.pods["uid-a"].capture);

    apply(&mut builder, off);
    let third = next(&mut builder);
    assert!(third.destinations.is_empty() && third.pods.is_empty());
    assert_eq!(third.generation, 3);

    apply(&mut builder, SHOP);
    assert_eq!(governed(&next(&mut builder)), ["10.96.0.1:80"]);
    delete(&mut builder, SHOP);
    assert!(next(&mut builder).destinations.is_empty());
}

#[test]
fn a_pods_own_word_wins_in_an_opted_in_namespace() {
    let annotated = |value: &str| format!(", annotations: {{sluice.dev/capture: {value}}}");
    let text = format!(
        "{SHOP}{}{}{}{}",
        pod("plain", "10.0.0.1", ""),
        pod("out", "10.0.0.2", &annotated("disabled")),
        pod("odd", "10.0.0.3", &annotated("'Yes'")),
        pod("elsewhere", "10.0.0.4", &annotated("enabled")).replace("namespace: shop", "namespace: other"),
    ) + &pod("unasked", "10.0.0.5", "").replace("namespace: shop", "namespace: other")
        + &pod("host", "10.9.9.9", "").replace("nodeName: n1", "nodeName: n1, hostNetwork: true");
    let mut builder = start(Options::default(), &text);
    let snapshot = next(&mut builder);
    let capture: BTreeMap<_, _> = snapshot.pods.values().map(|pod| (&*pod.name, pod.capture)).collect();
    let expected = [("host", false), ("odd", true), ("out", false), ("plain", true)];
    assert_eq!(capture, expected.into());
    assert_eq!(
        messages(&builder),
        ["Pod shop/odd: metadata.annotations[\"sluice.dev/capture\"]: \"Yes\" is neither \"enabled\" nor \
          \"disabled\"; it counts as not set"]
    );
}

#[test]
fn all_cluster_ips_and_tcp_ports() {
    let snapshot = snapshot_of(&format!(
        "{SHOP}
apiVersion: v1
kind: Service
metadata: {{name: orders, namespace: shop}}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00::1']
  sessionAffinity: ClientIP
  ports:
  - {{name: grpc-api, port: 81, targetPort: api}}
  - {{name: web, port: 80, protocol: TCP, appProtocol: kubernetes.io/ws}}
  - {{name: dns, port: 53, protocol: UDP}}
  - {{name: sig, port: 54, protocol: SCTP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {{name: orders-4, namespace: shop, labels: {{kubernetes.io/service-name: orders}}}}
ports: [{{name: web, port: 8080}}, {{name: grpc-api, port: 9090}}, {{name: dns, port: 5353, protocol: UDP}}]
endpoints: [{{addresses: [10.0.0.2]}}, {{addresses: [10.0.0.1]}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv6
metadata: {{name: orders-6, namespace: shop, labels: {{kubernetes.io/service-name: orders}}}}
ports: [{{name: web, port: 8080}}]
endpoints: [{{addresses: ['fd00:1::2']}}]
"
    ));
    assert_eq!(governed(&snapshot), ["10.96.0.1:80", "10.96.0.1:81", "[fd00::1]:80", "[fd00::1]:81"]);
    let web = service(&snapshot, "10.96.0.1:80");
    assert_eq!(addresses(&web.endpoints), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!((web.protocol, web.session_affinity, web.port), (Protocol::Http, true, 80));
    assert_eq!(web.to_string(), "orders.shop:80");
    let grpc = service(&snapshot, "10.96.0.1:81");
    assert_eq!(addresses(&grpc.endpoints), ["10.0.0.1:9090", "10.0.0.2:9090"]);
    assert_eq!((grpc.protocol, grpc.port_name.as_deref()), (Protocol::Http2, Some("grpc-api")));
    assert_eq!(addresses(&service(&snapshot, "[fd00::1]:80").endpoints), ["[fd00:1::2]:8080"]);
    assert!(service(&snapshot, "[fd00::1]:81").endpoints.is_empty());
    // As a dual-stack socket spells it.
    assert_eq!(addresses(&service(&snapshot, "[::ffff:10.96.0.1]:80").endpoints), addresses(&web.endpoints));
}

#[test]
fn single_unnamed_port_and_endpoints_without_pods() {
    let text = format!(
        "{SHOP}{}{}",
        svc("old", "10.96.0.1", "").replace("name: http, port: 80", "port: 80"),
        slice("by-hand", "old", "{addresses: [192.0.2.7]}").replace("name: http, port: 8080", "port: 443"),
    );
    let mut builder = start(Options::default(), &text);
    let old = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!(addresses(&old.baseline), ["192.0.2.7:443"]);
    assert!(old.baseline[0].is_usable() && old.baseline[0].pod.is_none());
    assert_eq!(messages(&builder), Vec::<String>::new());
}

#[test]
fn a_port_whose_name_no_slice_has_is_named() {
    let text = format!(
        "{SHOP}{}{}",
        svc("orders", "10.96.0.1", ""),
        slice("orders-1", "orders", "{addresses: [10.0.0.1]}").replace("name: http", "name: web"),
    );
    let mut builder = start(Options::default(), &text);
    assert!(service(&next(&mut builder), "10.96.0.1:80").endpoints.is_empty());
    assert_eq!(
        messages(&builder),
        [
            "Service shop/orders: spec.ports: port 80 (\"http\") has no endpoints: ports are matched by name, and the \
          EndpointSlices have \"web\""
        ]
    );
}

#[test]
fn headless_services_pin_and_external_names_do_not_count() {
    let headless =
        svc("db", "None", "").replace("name: http, port: 80", "name: http, port: 80, targetPort: 8080");
    let text = format!(
        "{SHOP}{headless}{}{}{}",
        slice("db-1", "db", "{addresses: [10.0.0.1], conditions: {ready: false}}, {addresses: [10.0.0.2]}"),
        svc("ext", "''", ", type: ExternalName, externalName: example.com"),
        svc("later", "''", ""),
    );
    let mut builder = start(Options::default(), &text);
    let snapshot = next(&mut builder);
    assert_eq!(governed(&snapshot), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let first = destination(&snapshot, "10.0.0.1:8080");
    assert_eq!(first.service.port, 80);
    let pinned = first.pinned.unwrap();
    assert_eq!((pinned.address.to_string(), pinned.ready), ("10.0.0.1:8080".to_owned(), false));
    assert_eq!(
        messages(&builder),
        [
            "Service shop/later: spec.clusterIP: not set: nobody can call the Service, so nothing is governed until it is"
        ]
    );
}

#[test]
fn an_address_in_two_services_goes_to_the_first_by_name() {
    let text = format!(
        "{SHOP}{}{}{}{}{}{}",
        svc("z", "None", ""),
        slice("z-1", "z", "{addresses: [10.0.0.1]}"),
        svc("b", "None", ""),
        slice("b-1", "b", "{addresses: [10.0.0.1]}"),
        svc("two", "10.96.0.1", ""),
        svc("one", "10.96.0.1", ""),
    );
    let mut builder = start(Options::default(), &text);
    let snapshot = next(&mut builder);
    assert_eq!(service(&snapshot, "10.0.0.1:8080").name.as_ref(), "b");
    assert_eq!(service(&snapshot, "10.96.0.1:80").name.as_ref(), "one");
    // Headless Services may share pods; a ClusterIP has one owner.
    assert_eq!(
        messages(&builder),
        ["Service shop/two: spec.clusterIP: 10.96.0.1:80 is Service shop/one's already; it is left out here"]
    );

    delete(&mut builder, &(svc("b", "None", "") + &svc("one", "10.96.0.1", "")));
    let snapshot = next(&mut builder);
    assert_eq!(service(&snapshot, "10.0.0.1:8080").name.as_ref(), "z");
    assert_eq!(service(&snapshot, "10.96.0.1:80").name.as_ref(), "two");
    assert_eq!(messages(&builder), Vec::<String>::new());
}

#[test]
fn a_pod_in_two_services_has_a_load_in_each() {
    let snapshot = snapshot_of(&format!(
        "{SHOP}{}{}{}{}{}",
        svc("a", "10.96.0.1", ""),
        slice("a-1", "a", &endpoint("10.0.0.1", "p")),
        svc("b", "10.96.0.2", ""),
        slice("b-1", "b", &endpoint("10.0.0.1", "p")),
        pod("p", "10.0.0.1", ""),
    ));
    let (a, b) = (service(&snapshot, "10.96.0.1:80"), service(&snapshot, "10.96.0.2:80"));
    assert_eq!(addresses(&a.endpoints), addresses(&b.endpoints));
    assert!(!Arc::ptr_eq(&a.endpoints[0].load, &b.endpoints[0].load));
}

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
    assert!(builder.build(Instant::now()).is_none(), "no tag before, none now");
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
    assert_eq!(
        messages(&builder),
        [
            "Service shop/orders: endpoint 10.0.0.2:8080 is Pod shop/late, which is not there: its tag is not known, \
          so it is used only while no other endpoint can be"
        ]
    );

    apply(&mut builder, &pod("late", "10.0.0.2", GRAY));
    let orders = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!(addresses(&orders.lanes["gray"]), ["10.0.0.2:8080"]);
    assert!(orders.lanes["gray"][0].is_usable());
    assert_eq!(messages(&builder), Vec::<String>::new());

    // Another pod under the same name is not the one that the slice means.
    let replaced =
        slice("s", "orders", &endpoint("10.0.0.2", "late").replace("kind: Pod", "kind: Pod, uid: older"));
    apply(&mut builder, &replaced);
    assert!(messages_after(&mut builder)[0].contains("Pod shop/late, which is not there"));
}

fn messages_after(builder: &mut Builder) -> Vec<String> {
    next(builder);
    messages(builder)
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

/// The same pod, ready since then.
fn ready_since(pod: &str, time: &str) -> String {
    let condition =
        format!("conditions: [{{type: Ready, status: \"True\", lastTransitionTime: \"{time}\"}}]");
    pod.replace("phase: Running", &format!("phase: Running, {condition}"))
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
    let mut rng = fastrand::Rng::with_seed(1);
    assert_eq!(before.baseline.observe(&config, &before.endpoints[0], error, 1, &mut rng).len(), 1);
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

#[test]
fn what_is_not_touched_is_shared_and_what_makes_no_difference_is_not_published() {
    let orders = slice("o", "orders", "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}");
    let text = format!(
        "{SHOP}{}{orders}{}{}",
        svc("orders", "10.96.0.1", ""),
        svc("stock", "10.96.0.2", ""),
        slice("s", "stock", "{addresses: [10.0.0.3]}"),
    );
    let mut builder = start(Options::default(), &text);
    let first = next(&mut builder);
    apply(&mut builder, &text);
    // The same endpoints in another order, and a pod in a namespace that nobody cares for.
    apply(&mut builder, &slice("o", "orders", "{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}"));
    apply(&mut builder, &pod("x", "10.7.7.7", "").replace("namespace: shop", "namespace: other"));
    assert!(builder.build(Instant::now()).is_none());

    apply(&mut builder, &slice("o", "orders", "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], zone: a}"));
    let second = next(&mut builder);
    let at = |snapshot: &Snapshot, address: &str| service(snapshot, address);
    assert!(Arc::ptr_eq(&at(&first, "10.96.0.2:80"), &at(&second, "10.96.0.2:80")));
    let (before, after) = (at(&first, "10.96.0.1:80"), at(&second, "10.96.0.1:80"));
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&before.endpoints[0], &after.endpoints[0]));
    assert!(!Arc::ptr_eq(&before.endpoints[1], &after.endpoints[1]));
}

#[test]
fn a_resync_takes_away_only_what_is_gone() {
    let text = format!("{SHOP}{}{}", svc("a", "10.96.0.1", ""), svc("b", "10.96.0.2", ""));
    let mut builder = start(Options::default(), &text);
    let first = next(&mut builder);
    builder.apply(Change::Restarted(Kind::Service, sightings(&svc("b", "10.96.0.2", ""))));
    let second = next(&mut builder);
    assert_eq!(governed(&second), ["10.96.0.2:80"]);
    assert!(Arc::ptr_eq(&service(&first, "10.96.0.2:80"), &service(&second, "10.96.0.2:80")));
}

#[test]
fn nothing_is_built_before_everything_was_told() {
    let mut builder = Builder::new(Options::default());
    for kind in Kind::ALL {
        assert!(builder.build(Instant::now()).is_none());
        assert!(!builder.is_synced());
        builder.apply(Change::Restarted(kind, Vec::new()));
    }
    assert_eq!(next(&mut builder).generation, 1);
    assert!(builder.build(Instant::now()).is_none());
}

#[test]
fn two_pods_of_one_uid() {
    let text =
        format!("{SHOP}{}{}", pod("b", "10.0.0.2", ""), pod("a", "10.0.0.1", "").replace("uid-a", "uid-b"));
    let mut builder = start(Options::default(), &text);
    assert_eq!(next(&mut builder).pods["uid-b"].name.as_ref(), "a");
    assert_eq!(
        messages(&builder),
        ["Pod shop/b: metadata.uid: \"uid-b\" is Pod shop/a's already; this pod's calls are not captured"]
    );
}

#[test]
fn only_this_nodes_pods_are_told_of_where_it_has_a_name() {
    let elsewhere = pod("b", "10.0.0.2", "").replace("nodeName: n1", "nodeName: n2");
    let waiting = pod("c", "10.0.0.3", "").replace("nodeName: n1", "hostNetwork: false");
    let text = format!("{SHOP}{}{elsewhere}{waiting}", pod("a", "10.0.0.1", ""));
    let uids = |options| {
        let snapshot = start(options, &text).build(Instant::now()).unwrap();
        snapshot.pods.into_keys().map(|uid| uid.to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(
        uids(Options { node: Some("n1".into()), zone: None }),
        ["uid-a", "uid-c"].map(String::from).into()
    );
    assert_eq!(uids(Options::default()).len(), 3);
}

#[test]
fn a_static_pod_is_known_by_its_own_uid() {
    let mirror = ", annotations: {kubernetes.io/config.mirror: 0123abcd}";
    let snapshot = snapshot_of(&format!("{SHOP}{}", pod("proxy-n1", "10.0.0.1", mirror)));
    assert_eq!(snapshot.pods["0123abcd"].name.as_ref(), "proxy-n1");
}

#[test]
fn node_local_services_have_the_nodes_endpoints_only() {
    let text = format!(
        "{SHOP}{}{}",
        svc("orders", "10.96.0.1", ", internalTrafficPolicy: Local"),
        slice("s", "orders", "{addresses: [10.0.0.1], nodeName: n1}, {addresses: [10.0.0.2], nodeName: n2}"),
    );
    let on = |node: Option<&str>| {
        let options = Options { node: node.map(Arc::from), zone: None };
        let snapshot = start(options, &text).build(Instant::now()).unwrap();
        addresses(&service(&snapshot, "10.96.0.1:80").endpoints)
    };
    assert_eq!(on(Some("n2")), ["10.0.0.2:8080"]);
    assert_eq!(on(Some("n3")), Vec::<String>::new());
    assert_eq!(on(None).len(), 2);
}

#[test]
fn topology_prefers_what_is_near_and_falls_back_to_all() {
    let hinted = |ip: u8, zone: &str, extra: &str| {
        format!("{{addresses: [10.0.0.{ip}], zone: {zone}, hints: {{forZones: [{{name: {zone}}}]}}{extra}}}")
    };
    let plain = |ip: u8, zone: &str| format!("{{addresses: [10.0.0.{ip}], zone: {zone}, nodeName: n{ip}}}");
    let not_ready = ", conditions: {ready: false}";
    let close = ", trafficDistribution: PreferClose";
    let node = ", trafficDistribution: PreferSameNode";
    let join = |endpoints: &[String]| endpoints.join(", ");
    let all = &["10.0.0.1:8080", "10.0.0.2:8080"][..];
    let cases: &[(&str, &str, String, &str, &[&str])] = &[
        ("hints", "", join(&[hinted(1, "a", ""), hinted(2, "b", "")]), "a", &all[..1]),
        ("hints, no endpoint for this zone", "", join(&[hinted(1, "a", ""), hinted(2, "b", "")]), "c", all),
        ("hints, zone not known", "", join(&[hinted(1, "a", ""), hinted(2, "b", "")]), "", all),
        ("one without hints", "", join(&[hinted(1, "a", ""), plain(2, "b")]), "a", all),
        ("ours is not ready", "", join(&[hinted(1, "a", not_ready), hinted(2, "b", "")]), "a", all),
        ("zones alone say nothing", "", join(&[plain(1, "a"), plain(2, "b")]), "a", all),
        ("PreferClose", close, join(&[plain(1, "a"), plain(2, "b")]), "b", &all[1..]),
        ("PreferClose, no zone here", close, join(&[plain(1, "a"), plain(2, "b")]), "c", all),
        ("PreferSameNode", node, join(&[plain(1, "a"), plain(2, "a")]), "a", &all[..1]),
        ("PreferSameNode, then zone", node, join(&[plain(3, "b"), plain(2, "a")]), "a", &all[1..]),
    ];
    for (what, extra, endpoints, zone, expected) in cases {
        let options = Options {
            node: Some("n1".into()),
            zone: Some(*zone).filter(|zone| !zone.is_empty()).map(Arc::from),
        };
        let text = format!("{SHOP}{}{}", svc("orders", "10.96.0.1", extra), slice("s", "orders", endpoints));
        let orders = service(&start(options, &text).build(Instant::now()).unwrap(), "10.96.0.1:80");
        assert_eq!(addresses(&orders.baseline), *expected, "{what}");
        assert_eq!(orders.endpoints.len(), 2, "{what}");
    }
    // A lane that lives in another zone is still that lane.
    let text = format!(
        "{SHOP}{}{}{}",
        svc("orders", "10.96.0.1", ""),
        slice("s", "orders", &join(&[hinted(1, "a", ""), hinted(2, "b", ""), hinted(3, "b", "")])),
        pod("g", "10.0.0.3", GRAY),
    );
    let options = Options { node: None, zone: Some("a".into()) };
    let orders = service(&start(options, &text).build(Instant::now()).unwrap(), "10.96.0.1:80");
    assert_eq!(addresses(&orders.baseline), ["10.0.0.1:8080"]);
    assert_eq!(addresses(&orders.lanes["gray"]), ["10.0.0.3:8080"]);
}

/// Everything of a snapshot that readers can tell, in a stable order.
fn contents(snapshot: &Snapshot) -> Vec<String> {
    let show = |endpoint: &crate::govern::endpoint::Endpoint| {
        let crate::govern::endpoint::Endpoint {
            address,
            tag,
            ready,
            serving,
            terminating,
            // Where no pod tells it is when it was seen, which is history.
            ready_since_nanos: _,
            zone,
            node,
            pod,
            load: _,
        } = endpoint;
        format!("{address} {tag:?} {ready} {serving} {terminating} {zone:?} {node:?} {pod:?}")
    };
    let mut lines: Vec<_> = snapshot
        .destinations
        .iter()
        .map(|(address, Destination { service, pinned })| {
            let list = |list: &[Arc<_>]| list.iter().map(|endpoint| show(endpoint)).collect::<Vec<_>>();
            let lanes: Vec<_> = service.lanes.iter().map(|(tag, subset)| (tag, list(subset))).collect();
            let pinned = pinned.as_deref().map(show);
            let (all, baseline) = (list(&service.endpoints), list(&service.baseline));
            format!("{address} {service} {:?} {all:?} {baseline:?} {lanes:?} {pinned:?}", service.protocol)
        })
        .chain(snapshot.pods.iter().map(|(uid, pod)| format!("{uid} {pod:?}")))
        .collect();
    lines.sort();
    lines
}

/// Changes among few names, so that they meet often.
fn any_change() -> impl Strategy<Value = Change> {
    let small = 0..3_u8;
    let namespace = (any::<bool>(), any::<bool>()).prop_map(|(other, on)| {
        let text = if on {
            SHOP.to_owned()
        } else {
            "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}".to_owned()
        };
        (if other { text.replace("name: shop", "name: other") } else { text }, false)
    });
    let service = (small.clone(), small.clone(), any::<bool>(), any::<bool>()).prop_map(
        |(name, ip, headless, gone)| {
            let ip = if headless { "None".to_owned() } else { format!("10.96.0.{ip}") };
            (svc(&format!("s{name}"), &ip, ""), gone)
        },
    );
    let slices = (
        small.clone(),
        small.clone(),
        proptest::collection::vec((0..4_u8, 0..5_u8, any::<bool>()), 0..4),
        any::<bool>(),
    )
        .prop_map(|(name, of, endpoints, gone)| {
            let endpoints: Vec<_> = endpoints
                .into_iter()
                .map(|(ip, pod, ready)| {
                    let one = if pod == 4 {
                        format!("{{addresses: [10.0.0.{ip}]}}")
                    } else {
                        endpoint(&format!("10.0.0.{ip}"), &format!("p{pod}"))
                    };
                    one.replace("{addresses", &format!("{{conditions: {{ready: {ready}}}, addresses"))
                })
                .collect();
            (slice(&format!("e{name}"), &format!("s{of}"), &endpoints.join(", ")), gone)
        });
    let pods = (0..4_u8, 0..4_u8, 0..4_u8, any::<bool>()).prop_map(|(name, ip, what, gone)| {
        let extra = [
            "",
            GRAY,
            ", deletionTimestamp: '2026-01-01T00:00:00Z'",
            ", annotations: {sluice.dev/capture: disabled}",
        ];
        (pod(&format!("p{name}"), &format!("10.0.0.{ip}"), extra[usize::from(what)]), gone)
    });
    prop_oneof![namespace, service, slices, pods].prop_map(|(text, gone)| {
        let sighting = sightings(&text).remove(0);
        if gone { Change::Deleted(sighting.object.key()) } else { Change::Applied(sighting) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the cluster came to be what it is, step by step or all at once, it looks the same.
    #[test]
    fn history_makes_no_difference(changes in proptest::collection::vec(any_change(), 1..30), builds in any::<u32>()) {
        let now = Instant::now();
        let mut stepwise = start(Options::default(), "");
        let mut newest = stepwise.build(now).unwrap();
        let mut last: BTreeMap<Key, Sighting> = BTreeMap::new();
        for (i, change) in changes.iter().enumerate() {
            match change {
                Change::Applied(sighting) => { last.insert(sighting.object.key(), sighting.clone()); }
                Change::Deleted(key) => { last.remove(key); }
                Change::Restarted(..) => {}
            }
            stepwise.apply(change.clone());
            if builds & (1 << i) != 0 {
                newest = stepwise.build(now).unwrap_or(newest);
            }
        }
        newest = stepwise.build(now).unwrap_or(newest);

        let mut at_once = Builder::new(Options::default());
        for kind in Kind::ALL.into_iter().rev() {
            let of = last.values().filter(|sighting| sighting.object.key().kind == kind);
            at_once.apply(Change::Restarted(kind, of.rev().cloned().collect()));
        }
        let expected = at_once.build(now).unwrap();
        prop_assert_eq!(contents(&newest), contents(&expected));
        prop_assert_eq!(stepwise.problems(), at_once.problems());
        prop_assert_eq!(stepwise.counts(), at_once.counts());
        prop_assert_eq!(stepwise.by_pod.len(), at_once.by_pod.len());
        prop_assert_eq!(stepwise.by_address.len(), at_once.by_address.len());
    }

    /// How endpoints are spread over slices makes no difference, nor that some are in several.
    #[test]
    fn slicing_makes_no_difference(where_to in proptest::collection::vec((0..4_usize, 0..4_usize), 1..20)) {
        let sliced = |place: &dyn Fn(usize, (usize, usize)) -> Vec<usize>| {
            let mut builder = start(Options::default(), &format!("{SHOP}{}", svc("orders", "10.96.0.1", "")));
            let mut slices = vec![Vec::new(); 4];
            for (i, spread) in where_to.iter().enumerate() {
                for slice in place(i, *spread) {
                    slices[slice].push(SliceEndpoint {
                        ip: IpAddr::from([10, 0, 0, u8::try_from(i).unwrap()]),
                        ready: i % 3 != 0,
                        serving: true,
                        terminating: i % 5 == 0,
                        zone: Some(if i % 2 == 0 { "a" } else { "b" }.into()),
                        node: None,
                        pod: None,
                        for_zones: Vec::new(),
                        for_nodes: Vec::new(),
                    });
                }
            }
            for (i, endpoints) in slices.into_iter().enumerate() {
                let object = Object::EndpointSlice(EndpointSlice {
                    name: Name { namespace: "shop".into(), name: format!("s{i}").into() },
                    service: Some("orders".into()),
                    ipv6: false,
                    endpoints,
                    ports: vec![SlicePort { name: Some("http".into()), port: 8080 }],
                });
                builder.apply(Change::Applied(Sighting { object, problems: Vec::new() }));
            }
            contents(&builder.build(Instant::now()).unwrap())
        };
        let together = sliced(&|_, _| vec![0]);
        prop_assert_eq!(&together, &sliced(&|_, (one, _)| vec![one]));
        prop_assert_eq!(&together, &sliced(&|_, (one, other)| vec![one, other]));
    }
}
