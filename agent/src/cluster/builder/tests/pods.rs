//! What is published when, which pods are told of, and what is near.

use super::*;

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
        ["Pod shop/b: metadata.uid: \"uid-b\" is Pod shop/a's already; this pod is not enrolled"]
    );
}

#[test]
fn only_this_nodes_pods_are_told_of_where_it_has_a_name() {
    let elsewhere = pod("b", "10.0.0.2", "").replace("nodeName: n1", "nodeName: n2");
    let waiting = pod("c", "10.0.0.3", "").replace("nodeName: n1", "hostNetwork: false");
    let text = format!("{SHOP}{}{elsewhere}{waiting}", pod("a", "10.0.0.1", ""));
    let uids = |options| {
        let snapshot = start(options, &text).build(Instant::now()).unwrap();
        snapshot.pods.keys().map(ToString::to_string).collect::<BTreeSet<_>>()
    };
    assert_eq!(
        uids(Options { node: Some("n1".into()), ..Options::default() }),
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
        let options = Options { node: node.map(Arc::from), ..Options::default() };
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
            ..Options::default()
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
    let options = Options { zone: Some("a".into()), ..Options::default() };
    let orders = service(&start(options, &text).build(Instant::now()).unwrap(), "10.96.0.1:80");
    assert_eq!(addresses(&orders.baseline), ["10.0.0.1:8080"]);
    assert_eq!(addresses(&orders.lanes["gray"]), ["10.0.0.3:8080"]);
}

#[test]
fn ports_of_pods_that_ask_for_it_are_read() {
    let asks = |value: &str| format!(", annotations: {{sluice.dev/propagation: {value}}}");
    let on = |name: &str, ip: &str, metadata: &str, node: &str| {
        pod(name, ip, metadata).replace("nodeName: n1", &format!("nodeName: {node}"))
    };
    let here = "n1";
    let listed = [("10.0.0.1", "a", here), ("10.0.0.2", "b", here), ("10.0.0.3", "c", "n2")];
    let endpoints: Vec<_> = listed
        .map(|(ip, name, node)| endpoint(ip, name).replacen('{', &format!("{{nodeName: {node}, "), 1))
        .into();
    let text = [
        SHOP.to_owned(),
        svc("orders", "10.96.0.1", ""),
        slice("s", "orders", &endpoints.join(", ")),
        on("a", "10.0.0.1", &asks("trace"), here),
        on("b", "10.0.0.2", "", here),
        on("c", "10.0.0.3", &asks("trace"), "n2"),
    ]
    .concat();
    let ports = |snapshot: &Snapshot| {
        let mut ports: Vec<_> =
            snapshot.inbound.iter().map(|(address, _)| address.ip().to_string()).collect();
        ports.sort();
        ports
    };
    let remembers = |snapshot: &Snapshot| {
        let mut pods: Vec<_> =
            snapshot.pods.values().filter(|pod| pod.is_read()).map(|pod| pod.name.to_string()).collect();
        pods.sort();
        pods
    };
    let mut builder = start(Options { node: Some(here.into()), ..Options::default() }, &text);
    let snapshot = next(&mut builder);
    assert_eq!((ports(&snapshot), remembers(&snapshot)), (vec!["10.0.0.1".to_owned()], vec!["a".to_owned()]));
    let (_, port) = snapshot.inbound.iter().next().expect("one");
    assert!(port.guards.is_empty(), "nobody guards it");
    // The namespace asks for all; a pod's own word goes before it.
    let namespace =
        |value: &str| SHOP.replace("enabled}", &format!("enabled, sluice.dev/propagation: {value}}}"));
    apply(&mut builder, &namespace("trace"));
    apply(&mut builder, &on("a", "10.0.0.1", &asks("headers"), here));
    let snapshot = next(&mut builder);
    assert_eq!((ports(&snapshot), remembers(&snapshot)), (vec!["10.0.0.2".to_owned()], vec!["b".to_owned()]));
    apply(&mut builder, &on("a", "10.0.0.1", "", here));
    assert_eq!(ports(&next(&mut builder)), ["10.0.0.1", "10.0.0.2"]);
    // Of what is no HTTP nothing can be read.
    let opaque = svc("orders", "10.96.0.1", "").replace("port: 80", "appProtocol: tcp, port: 80");
    apply(&mut builder, &opaque);
    assert_eq!(ports(&next(&mut builder)), [""; 0]);
    apply(&mut builder, &svc("orders", "10.96.0.1", ""));
    assert_eq!(ports(&next(&mut builder)).len(), 2);
    // Not any more.
    apply(&mut builder, SHOP);
    let snapshot = next(&mut builder);
    assert!(snapshot.inbound.is_empty() && remembers(&snapshot).is_empty());
}

/// A large cluster has each of these texts a hundred thousand times.
#[test]
fn slices_name_pods_by_the_texts_that_the_pods_have() {
    let named = "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: a, namespace: shop, uid: uid-a}}";
    let another =
        "{addresses: [10.0.0.2], targetRef: {kind: Pod, name: b, namespace: shop, uid: uid-before}}";
    let pods = format!("{}{}", pod("a", "10.0.0.1", ""), pod("b", "10.0.0.2", ""));
    let mut builder = start(Options::default(), &format!("{SHOP}{}{pods}", svc("orders", "10.96.0.1", "")));
    apply(&mut builder, &slice("o", "orders", &format!("{named}, {another}")));
    let slice = builder.store.slices.values().next().unwrap();
    let pod = |name: &str| builder.store.pods.iter().find(|pod| *pod.name.name == *name).unwrap();
    let references: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.pod.as_ref().unwrap()).collect();
    for (reference, name) in references.iter().zip(["a", "b"]) {
        assert!(Arc::ptr_eq(&reference.name.name, &pod(name).name.name), "{name}");
    }
    let (meant, uid) = (references[0].uid.as_ref().unwrap(), pod("a").uid.as_ref().unwrap());
    assert!(Arc::ptr_eq(meant, uid));
    assert_eq!(references[1].uid.as_deref(), Some("uid-before"), "it means the pod that was there before");
}

#[test]
fn pods_of_other_nodes_are_kept_without_their_probes() {
    let of = |node: &str| {
        let container = "containers: [{name: a, ports: [{containerPort: 25001}], livenessProbe: {tcpSocket: {port: 25001}}}]";
        pod("a", "10.0.0.1", "").replace("nodeName: n1", &format!("nodeName: {node}, {container}"))
    };
    let here = |node: Option<&str>| Options { node: node.map(Into::into), ..Options::default() };
    for (options, node, kept) in
        [(here(Some("n1")), "n1", 1), (here(Some("n1")), "n2", 0), (here(None), "n2", 1)]
    {
        let mut builder = start(options, &format!("{SHOP}{}", of(node)));
        next(&mut builder);
        let pod = builder.store.pods.iter().next().unwrap();
        let of_node = pod.for_node.as_deref().map_or((0, 0), |of| (of.ports.len(), of.probes.len()));
        assert_eq!(of_node, (kept, kept), "{node}");
        // That it comes again as it was is no change.
        apply(&mut builder, &of(node));
        assert!(builder.dirty.is_empty() && builder.build(Instant::now()).is_none(), "{node}");
    }
}

/// However often they change: what is made of them has the texts of the first time.
#[test]
fn objects_keep_the_texts_that_they_had_before() {
    let reference = "targetRef: {kind: Pod, name: a, namespace: shop, uid: uid-a}";
    let in_zone =
        |zone| slice("o", "orders", &format!("{{addresses: [10.0.0.1], zone: z{zone}, {reference}}}"));
    let objects = [svc("orders", "10.96.0.1", ""), pod("a", "10.0.0.1", ""), in_zone(0)];
    let mut builder = start(Options::default(), &format!("{SHOP}{}", objects.concat()));
    let texts = |builder: &Builder| {
        let pod = builder.store.pods.iter().next().unwrap();
        let (name, slice) = builder.store.slices.iter().next().unwrap();
        let reference = slice.endpoints[0].pod.clone().unwrap();
        let (uid, cgroup_uid) =
            (pod.uid.clone().unwrap(), pod.for_node.as_ref().unwrap().cgroup_uid.clone().unwrap());
        let of_pod = [pod.name.name.clone(), uid, cgroup_uid, reference.name.name, reference.uid.unwrap()];
        let of_slice = [name.name.clone(), slice.name.name.clone(), slice.service.clone().unwrap()];
        of_pod.into_iter().chain(of_slice).collect::<Vec<_>>()
    };
    let mut first = texts(&builder);
    // A slice that came before its pod has texts of its own, until it changes.
    (first[3], first[4]) = (first[0].clone(), first[1].clone());
    for round in 1..3 {
        apply(&mut builder, &pod("a", "10.0.0.1", &format!(", labels: {{round: r{round}}}")));
        apply(&mut builder, &in_zone(round));
        let snapshot = next(&mut builder);
        let now = texts(&builder);
        for (at, (text, before)) in now.iter().zip(&first).enumerate() {
            assert!(Arc::ptr_eq(text, before), "round {round}: {at}, {text}");
        }
        let endpoint = &service(&snapshot, "10.96.0.1:80").endpoints[0];
        assert!(Arc::ptr_eq(endpoint.pod.as_ref().unwrap(), &first[0]), "round {round}");
    }
}

/// The API's objects are some times as large, and a list that was collected in their place would keep their memory.
#[test]
fn lists_of_endpoints_have_no_room_for_more() {
    let endpoints: Vec<_> = (1..=9).map(|last| format!("{{addresses: [10.0.0.{last}]}}")).collect();
    let orders = format!("{}{}", svc("orders", "10.96.0.1", ""), slice("o", "orders", &endpoints.join(", ")));
    let mut builder = start(Options::default(), &format!("{SHOP}{orders}"));
    let snapshot = next(&mut builder);
    let (slice, service) =
        (builder.store.slices.values().next().unwrap(), service(&snapshot, "10.96.0.1:80"));
    assert_eq!((slice.endpoints.len(), slice.endpoints.capacity()), (9, 9));
    assert_eq!((service.endpoints.len(), service.endpoints.capacity()), (9, 9));
}
