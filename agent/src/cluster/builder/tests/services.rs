//! Which addresses are governed, and whose they are.

use super::*;
use crate::cluster::model::Protocol;

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
            "Service shop/later: spec.clusterIP: not set: the Service cannot be called, and is not managed until it is set"
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
fn the_access_log_is_the_services_affair_then_the_namespaces() {
    let own = |value: &str| {
        svc("web", "10.96.0.1", "").replace(
            "namespace: shop",
            &format!("namespace: shop, annotations: {{sluice.dev/access-log: {value}}}"),
        )
    };
    let shop = |value: &str| SHOP.replace("enabled}", &format!("enabled, sluice.dev/access-log: {value}}}"));
    let mut builder = start(Options::default(), &format!("{SHOP}{}", svc("web", "10.96.0.1", "")));
    let logged = |snapshot: &Snapshot| {
        service(snapshot, "10.96.0.1:80").access_log.map(crate::observe::sampling::Ratio::get)
    };
    let mut last = next(&mut builder);
    assert_eq!(logged(&last), None);
    for (change, wanted) in [
        (shop("enabled"), Some(1.0)),
        (own("'0.25'"), Some(0.25)),
        (shop("disabled"), Some(0.25)),
        (own("disabled"), Some(0.0)),
        (svc("web", "10.96.0.1", ""), Some(0.0)),
        (SHOP.to_owned(), None),
        (own("enabled"), Some(1.0)),
    ] {
        apply(&mut builder, &change);
        // What changes nothing for anybody is no new snapshot.
        last = builder.build(Instant::now()).unwrap_or(last);
        assert_eq!(logged(&last), wanted, "{change}");
    }
    // What makes no sense counts as not set, and is named.
    let (sightings, _) = manifests::parse(&own("'150 %'"));
    for sighting in sightings {
        builder.apply(Change::Applied(sighting));
    }
    assert_eq!(logged(&next(&mut builder)), None);
    assert_eq!(
        messages(&builder),
        [
            "Service shop/web: metadata.annotations[\"sluice.dev/access-log\"]: \"150 %\" is neither \"enabled\" nor \
             \"disabled\" nor a ratio from 0 to 1; it counts as not set"
        ]
    );
}

#[test]
fn whatever_changes_of_a_service_is_in_the_next_snapshot() {
    let options = Options { node: Some("n1".into()), ..Options::default() };
    let on_nodes = |pods: [&str; 2]| {
        let [one, two] = [(1, pods[0]), (2, pods[1])].map(|(n, pod)| {
            format!(
                "{{addresses: [10.0.0.{n}], nodeName: n{n}, targetRef: {{kind: Pod, name: {pod}, namespace: shop}}}}"
            )
        });
        format!("{one}, {two}")
    };
    let pods = ["a", "b", "c", "d"];
    let all = format!(
        "{SHOP}{}{}{}{}{}{}{}{}",
        svc("web", "10.96.0.1", ""),
        slice("web-1", "web", &on_nodes(["a", "b"])),
        svc("canary", "10.96.0.2", ""),
        slice("canary-1", "canary", &on_nodes(["c", "d"])),
        pod(pods[0], "10.0.0.1", ""),
        pod(pods[1], "10.0.0.2", ""),
        pod(pods[2], "10.0.0.1", GRAY),
        pod(pods[3], "10.0.0.2", GRAY),
    );
    let mut builder = start(options, &all);
    let first = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!((first.protocol, first.session_affinity, first.baseline.len()), (Protocol::Http, false, 2));

    // Endpoints stay as they are in all of this.
    let declared =
        svc("web", "10.96.0.1", "").replace("port: 80}", "port: 80, appProtocol: kubernetes.io/h2c}");
    apply(&mut builder, &declared);
    assert_eq!(service(&next(&mut builder), "10.96.0.1:80").protocol, Protocol::Http2);
    apply(&mut builder, &svc("web", "10.96.0.1", ", sessionAffinity: ClientIP"));
    let sticky = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!((sticky.protocol, sticky.session_affinity), (Protocol::Http, true));
    apply(&mut builder, &svc("web", "10.96.0.1", ", trafficDistribution: PreferSameNode"));
    let near = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!((near.session_affinity, near.endpoints.len()), (false, 2));
    assert_eq!(addresses(&near.baseline), ["10.0.0.1:8080"]);
    // One that is further away is known, and gets nothing.
    let third = "{addresses: [10.0.0.3], nodeName: n2, targetRef: {kind: Pod, name: e, namespace: shop}}";
    let three = format!("{}, {third}", on_nodes(["a", "b"]));
    apply(&mut builder, &(pod("e", "10.0.0.3", "") + &slice("web-1", "web", &three)));
    let further = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!(
        (further.endpoints.len(), addresses(&further.baseline)),
        (3, vec!["10.0.0.1:8080".to_owned()])
    );
    let renamed = svc("web", "10.96.0.1", "") + &slice("web-1", "web", &on_nodes(["a", "b"]));
    apply(&mut builder, &renamed.replace("name: http,", "name: http-web,"));
    let renamed = service(&next(&mut builder), "10.96.0.1:80");
    assert_eq!((renamed.port_name.as_deref(), renamed.baseline.len()), (Some("http-web"), 2));

    // Of a lane alone.
    let lane = |snapshot: &Snapshot| addresses(&service(snapshot, "10.96.0.2:80").lanes["gray"]);
    apply(&mut builder, &svc("canary", "10.96.0.2", ", trafficDistribution: PreferSameNode"));
    assert_eq!(lane(&next(&mut builder)), ["10.0.0.1:8080"]);
    apply(&mut builder, &svc("canary", "10.96.0.2", ""));
    assert_eq!(lane(&next(&mut builder)), ["10.0.0.1:8080", "10.0.0.2:8080"]);
}

#[test]
fn older_connections_are_ended_where_the_service_or_its_namespace_asks_for_it() {
    let own = |value: &str| {
        svc("web", "10.96.0.1", "").replace(
            "namespace: shop",
            &format!("namespace: shop, annotations: {{sluice.dev/reclaim: {value}}}"),
        )
    };
    let shop = |value: &str| SHOP.replace("enabled}", &format!("enabled, sluice.dev/reclaim: {value}}}"));
    let mut builder = start(Options::default(), &format!("{SHOP}{}", svc("web", "10.96.0.1", "")));
    let reclaimed = |snapshot: &Snapshot| service(snapshot, "10.96.0.1:80").is_reclaimed();
    let mut last = next(&mut builder);
    assert!(!reclaimed(&last));
    for (change, wanted) in [
        (shop("enabled"), true),
        (own("disabled"), false),
        (shop("disabled"), false),
        (own("enabled"), true),
        // What is idle is known of HTTP/1 only.
        (own("enabled").replace("name: http", "name: grpc"), false),
        (own("enabled").replace("name: http", "name: web"), false),
        (own("enabled").replace("name: http", "name: redis"), false),
        (own("enabled"), true),
        (svc("web", "10.96.0.1", ""), false),
    ] {
        apply(&mut builder, &change);
        last = builder.build(Instant::now()).unwrap_or(last);
        assert_eq!(reclaimed(&last), wanted, "{change}");
    }
}

#[test]
fn addresses_of_endpoints_are_managed_where_that_is_asked_for() {
    let pod = |name: &str, ip: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: u-{name}}}, status: {{podIP: {ip}, phase: Running}}}}\n"
        )
    };
    let of_pod = |name: &str, ip: &str| {
        format!(
            "{{addresses: [{ip}], targetRef: {{kind: Pod, name: {name}, namespace: shop, uid: u-{name}}}}}"
        )
    };
    let service = |name: &str, ip: &str, annotation: &str, created: &str| {
        svc(name, ip, "").replace(
            &format!("name: {name}, namespace: shop"),
            &format!(
                "name: {name}, namespace: shop, annotations: {{{annotation}}}, creationTimestamp: '{created}'"
            ),
        )
    };
    let governed_by = "sluice.dev/endpoints: governed";
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let text = format!(
        "{SHOP}{}{}{}{}{}",
        service("a-new", "10.96.0.1", governed_by, new),
        service("b-old", "10.96.0.2", governed_by, old),
        pod("p", "10.0.0.1"),
        slice("a-1", "a-new", &format!("{}, {{addresses: [10.0.0.9]}}", of_pod("p", "10.0.0.1"))),
        slice("b-1", "b-old", &of_pod("p", "10.0.0.1")),
    );
    let mut builder = start(Options::default(), &text);
    let snapshot = next(&mut builder);
    // Not of what is no pod: that is somebody's in another place.
    let all = ["10.0.0.1:8080", "10.96.0.1:80", "10.96.0.2:80"];
    assert_eq!(governed(&snapshot), all);
    let of = |snapshot: &Snapshot| destination(snapshot, "10.0.0.1:8080");
    let first = of(&snapshot);
    assert_eq!(
        (&*first.service.name, first.held().is_none(), first.preferred().is_some()),
        ("b-old", true, true),
        "the oldest"
    );
    assert_eq!(messages(&builder), [""; 0]);

    // One that a policy is about goes before.
    let policy = "---\n{apiVersion: sluice.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: p, namespace: shop}, \
                  spec: {targetRefs: [{name: a-new}], timeouts: {request: 1s}}}\n";
    apply(&mut builder, policy);
    assert_eq!(&*of(&next(&mut builder)).service.name, "a-new");
    // A pod that is not there any more: its address may be another's.
    delete(&mut builder, &pod("p", "10.0.0.1"));
    assert_eq!(governed(&next(&mut builder)), ["10.96.0.1:80", "10.96.0.2:80"]);
    apply(&mut builder, &pod("p", "10.0.0.1"));
    assert_eq!(governed(&next(&mut builder)), all);
    // The Service's word goes before its Namespace's.
    apply(&mut builder, &service("a-new", "10.96.0.1", "sluice.dev/endpoints: direct", new));
    apply(&mut builder, &service("b-old", "10.96.0.2", "example.com/a: b", old));
    assert_eq!(governed(&next(&mut builder)), ["10.96.0.1:80", "10.96.0.2:80"]);
    let namespace = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {sluice.dev/capture: enabled, sluice.dev/endpoints: governed}}}\n";
    apply(&mut builder, namespace);
    assert_eq!(&*of(&next(&mut builder)).service.name, "b-old");
}
