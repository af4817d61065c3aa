//! What routes and grants add up to.

use super::*;
use crate::govern::{request::tests::Plain, routes::backends::ServicePort};

const NEXT: &str = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: next, annotations: {sluice.dev/capture: enabled}}}\n";

fn route(name: &str, namespace: &str, rules: &str) -> String {
    format!(
        "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{parentRefs: [{{group: '', kind: Service, name: orders, namespace: shop}}], rules: [{rules}]}}}}\n"
    )
}

fn to(service: &str) -> String {
    format!("{{backendRefs: [{{name: {service}, port: 80}}]}}")
}

fn shop() -> String {
    format!("{SHOP}{}{}{NEXT}", svc("orders", "10.96.0.1", ""), svc("canary", "10.96.0.2", ""))
        + &svc("far", "10.96.0.3", "").replace("namespace: shop", "namespace: next")
}

/// The rule that holds for clients of a namespace, and the Services that its group may send to.
fn holds(snapshot: &Snapshot, client: &str) -> Option<(String, Vec<String>)> {
    let address = "10.96.0.1:80".parse().unwrap();
    let routed = snapshot.routed(address, &destination(snapshot, "10.96.0.1:80"))?;
    let group = routed.of(client)?;
    let found = group.routes.find(&Plain::get("/")).map(|found| found.rule.route.to_string());
    Some((found.unwrap_or_default(), group.backends.keys().map(ServicePort::to_string).collect()))
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with what may be nothing")]
fn is(rule: &str, backends: &[&str]) -> Option<(String, Vec<String>)> {
    Some((rule.to_owned(), backends.iter().map(|name| (*name).to_owned()).collect()))
}

#[test]
fn a_producers_route_holds_for_all_and_a_consumers_for_its_namespace() {
    let mut builder = start(Options::default(), &(shop() + &route("p", "shop", &to("canary"))));
    let first = next(&mut builder);
    assert_eq!(holds(&first, "shop"), is("shop/p", &["canary.shop:80"]));
    assert_eq!(holds(&first, "next"), is("shop/p", &["canary.shop:80"]));

    let consumers = route("c", "next", &to("far"));
    apply(&mut builder, &consumers);
    let second = next(&mut builder);
    assert_eq!(holds(&second, "shop"), is("shop/p", &["canary.shop:80"]));
    assert_eq!(holds(&second, "next"), is("next/c", &["far.next:80"]));
    assert_eq!(messages(&builder), [""; 0]);

    delete(&mut builder, &consumers);
    assert_eq!(holds(&next(&mut builder), "next"), is("shop/p", &["canary.shop:80"]));
    delete(&mut builder, &route("p", "shop", ""));
    assert_eq!(holds(&next(&mut builder), "shop"), None);
}

#[test]
fn another_namespace_has_to_allow_it() {
    let backend = "{backendRefs: [{name: far, namespace: next, port: 80}]}";
    let mut builder = start(Options::default(), &(shop() + &route("p", "shop", backend)));
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &[]));
    let said = messages(&builder);
    assert!(said.len() == 1 && said[0].contains("RefNotPermitted: Service far.next:80"), "{said:?}");

    let grant = |to: &str| {
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {{name: g, namespace: next}}, \
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}}], to: [{to}]}}}}\n"
        )
    };
    apply(&mut builder, &grant("{group: '', kind: Service, name: other}"));
    assert_eq!(messages_after_maybe(&mut builder).len(), 1);
    apply(&mut builder, &grant("{group: '', kind: Service}"));
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &["far.next:80"]));
    assert_eq!(messages(&builder), [""; 0]);
    delete(&mut builder, &grant(""));
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &[]));

    // What was called anyway may be sent to.
    let own = route("c", "next", "{backendRefs: [{name: orders, namespace: shop, port: 80}]}");
    apply(&mut builder, &own);
    assert_eq!(holds(&next(&mut builder), "next"), is("next/c", &["orders.shop:80"]));
}

fn messages_after_maybe(builder: &mut Builder) -> Vec<String> {
    builder.build(Instant::now());
    messages(builder)
}

#[test]
fn a_backend_may_come_and_go() {
    let mut builder = start(Options::default(), &(shop() + &route("p", "shop", &to("late"))));
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &[]));
    let said = messages(&builder);
    assert!(said.len() == 1 && said[0].contains("BackendNotFound: Service late.shop:80"), "{said:?}");
    let late = svc("late", "10.96.0.9", "");
    apply(&mut builder, &late);
    let there = next(&mut builder);
    assert_eq!(holds(&there, "shop"), is("shop/p", &["late.shop:80"]));
    assert_eq!(messages(&builder), [""; 0]);
    // Its endpoints are those of the moment.
    apply(&mut builder, &slice("late-1", "late", "{addresses: [10.0.0.9]}"));
    let grown = next(&mut builder);
    let address = "10.96.0.1:80".parse().unwrap();
    let routed = grown.routed(address, &destination(&grown, "10.96.0.1:80")).unwrap();
    let backend = routed.of("shop").unwrap().backends.values().next().unwrap();
    assert_eq!(addresses(&backend.endpoints), ["10.0.0.9:8080"]);
    delete(&mut builder, &late);
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &[]));
}

#[test]
fn parents_are_looked_for() {
    let with = |parent: &str| {
        let text = route("p", "shop", &to("canary"));
        text.replace("{group: '', kind: Service, name: orders, namespace: shop}", parent)
    };
    for (parent, wanted) in [
        (
            "{group: '', kind: Service, name: nobody}",
            Some("NoMatchingParent: there is no Service shop/nobody"),
        ),
        ("{group: '', kind: Service, name: orders, port: 81}", Some("no such port: it has 80 (http)")),
        ("{group: '', kind: Service, name: orders, sectionName: grpc}", Some("no such port")),
        ("{group: '', kind: Service, name: orders, port: 80, sectionName: http}", None),
        (
            "{group: '', kind: Service, name: headless}",
            Some("UnsupportedValue: Service shop/headless is headless"),
        ),
        ("{group: '', kind: Service, name: bytes}", Some("UnsupportedValue: Service shop/bytes")),
        // Not ours to judge.
        ("{group: '', kind: Service, name: x, namespace: elsewhere}", None),
        ("{name: public}", None),
    ] {
        let bytes = svc("bytes", "10.96.0.7", "").replace("port: 80", "port: 80, appProtocol: tls");
        let text = shop() + &svc("headless", "None", "") + &bytes + &with(parent);
        let mut builder = start(Options::default(), &text);
        let snapshot = next(&mut builder);
        let said = messages(&builder);
        match wanted {
            Some(wanted) => assert!(said.len() == 1 && said[0].contains(wanted), "{parent}: {said:?}"),
            None => assert_eq!(said, [""; 0], "{parent}"),
        }
        assert_eq!(holds(&snapshot, "shop").is_some(), parent.contains("sectionName: http"), "{parent}");
    }
}

#[test]
fn a_grpc_route_goes_before_http_routes() {
    let grpc = route("g", "shop", &to("canary")).replace("HTTPRoute", "GRPCRoute");
    let mut builder = start(Options::default(), &(shop() + &route("p", "shop", &to("canary")) + &grpc));
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/g", &["canary.shop:80"]));
    let said = messages(&builder);
    assert!(
        said.len() == 1 && said[0].starts_with("HTTPRoute shop/p: spec.parentRefs: Conflicted"),
        "{said:?}"
    );
    delete(&mut builder, &grpc);
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &["canary.shop:80"]));
    assert_eq!(messages(&builder), [""; 0]);
}

#[test]
fn a_route_that_goes_wrong_leaves_its_last_valid_version() {
    let good = route("p", "shop", &to("canary"));
    let mut builder = start(Options::default(), &(shop() + &good));
    next(&mut builder);
    let wrong = route("p", "shop", "{filters: [{type: ExtensionRef}]}");
    let (sightings, problems) = manifests::parse(&wrong);
    assert_eq!(problems, []);
    assert!(sightings[0].problems[0].message.contains("\"ExtensionRef\" is not supported"), "{sightings:?}");
    builder.apply(Change::Applied(sightings[0].clone()));
    assert!(messages_after_maybe(&mut builder)[0].contains("its last valid version stays active"));
    apply(&mut builder, &slice("c-1", "canary", "{addresses: [10.0.0.9]}"));
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &["canary.shop:80"]));

    // One that never was valid holds for nothing.
    let mut builder = start(Options::default(), &shop());
    builder.apply(Change::Applied(sightings[0].clone()));
    assert_eq!(holds(&next(&mut builder), "shop"), None);
}

#[test]
fn what_has_not_changed_is_the_same() {
    let mut builder = start(Options::default(), &(shop() + &route("p", "shop", &to("canary"))));
    let first = next(&mut builder);
    apply(
        &mut builder,
        &slice("f-1", "far", "{addresses: [10.0.0.9]}").replace("namespace: shop", "namespace: next"),
    );
    let second = next(&mut builder);
    let of = |snapshot: &Snapshot| snapshot.routes.values().map(Arc::as_ptr).collect::<Vec<_>>();
    assert_eq!(of(&first), of(&second));
    apply(&mut builder, &slice("c-1", "canary", "{addresses: [10.0.0.9]}"));
    let third = next(&mut builder);
    assert_ne!(of(&second), of(&third));
    let compiled = |snapshot: &Snapshot| {
        let routed = snapshot.routes.values().next().unwrap();
        Arc::as_ptr(&routed.producer.as_ref().unwrap().routes)
    };
    assert_eq!(compiled(&second), compiled(&third), "what is compiled stays");
}

#[test]
fn a_mirror_is_looked_for_like_a_backend() {
    let mirror = |name: &str, namespace: &str| {
        format!(
            "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, namespace: {namespace}, port: 80}}}}}}], \
             backendRefs: [{{name: orders, port: 80}}]}}"
        )
    };
    let mut builder = start(Options::default(), &(shop() + &route("p", "shop", &mirror("canary", "shop"))));
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &["canary.shop:80", "orders.shop:80"]));
    assert_eq!(messages(&builder), [""; 0]);
    apply(&mut builder, &route("p", "shop", &mirror("nobody", "shop")));
    assert_eq!(holds(&next(&mut builder), "shop"), is("shop/p", &["orders.shop:80"]));
    let said = messages(&builder);
    assert!(
        said[0].contains("BackendNotFound") && said[0].contains("no copies of requests are sent to it"),
        "{said:?}"
    );
}

fn on_route(name: &str, target: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: sluice.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, {target}}}], {spec}}}}}\n"
    )
}

/// Which policy holds for a path, and how long it gives requests.
fn found(snapshot: &Snapshot, path: &'static str) -> Option<(String, Option<u64>)> {
    let address = "10.96.0.1:80".parse().unwrap();
    let routed = snapshot.routed(address, &destination(snapshot, "10.96.0.1:80"))?;
    let group = routed.of("shop")?;
    let rule = group.routes.find(&Plain::get(path))?.rule;
    let policy = group.policy_on(rule)?;
    let canary = group.backends.values().find(|service| &*service.name == "canary")?;
    let ruled = canary.governor.ruled(Some(policy), &Plain::get(path))?;
    let timeouts = ruled.governor.policy().timeouts;
    Some((policy.to_string(), timeouts.request.map(|time| time.as_secs())))
}

#[test]
fn the_most_special_policy_of_a_route_holds() {
    let rules = "{name: slow, matches: [{path: {value: /slow}}], backendRefs: [{name: canary, port: 80}]}, \
                 {name: rest, backendRefs: [{name: canary, port: 80}]}";
    let timeout = |seconds: u32| format!("timeouts: {{request: {seconds}s}}");
    let whole = on_route("whole", "name: p", &timeout(1));
    let slow = on_route("slow", "name: p, sectionName: slow", &timeout(9));
    let mut builder = start(Options::default(), &(shop() + &route("p", "shop", rules) + &whole));
    let is = |policy: &str, seconds| Some((policy.to_owned(), Some(seconds)));
    let first = next(&mut builder);
    assert_eq!((found(&first, "/slow"), found(&first, "/")), (is("shop/whole", 1), is("shop/whole", 1)));
    assert_eq!(messages(&builder), [""; 0]);

    apply(&mut builder, &slow);
    let second = next(&mut builder);
    assert_eq!((found(&second, "/slow"), found(&second, "/")), (is("shop/slow", 9), is("shop/whole", 1)));

    // The Service's own policy stays below it, and a route that leads elsewhere takes it along.
    let moved = rules.replace("canary", "orders");
    apply(&mut builder, &route("p", "shop", &moved));
    let third = next(&mut builder);
    assert_eq!(found(&third, "/slow"), None, "not to the canary any more");
    let orders = destination(&third, "10.96.0.1:80").service.clone();
    assert_eq!(orders.governor.routes().count(), 2);
    delete(&mut builder, &slow);
    delete(&mut builder, &whole);
    let orders = destination(&next(&mut builder), "10.96.0.1:80").service.clone();
    assert_eq!(orders.governor.routes().count(), 0);
}

#[test]
fn policies_say_which_route_or_rule_they_miss() {
    let rules = "{name: slow, backendRefs: [{name: canary, port: 80}]}";
    let shop = shop()
        + &route("p", "shop", rules)
        + &on_route("a", "name: p", "mode: Enforce")
        + &on_route("b", "name: p", "mode: Enforce")
        + &on_route("c", "name: p, sectionName: fast", "mode: Enforce")
        + &on_route("d", "name: q", "mode: Enforce");
    let mut builder = start(Options::default(), &shop);
    next(&mut builder);
    let said = messages(&builder).join("\n");
    for wanted in [
        "HTTPRoute p has TrafficPolicy shop/a already, which is older",
        "HTTPRoute p has no rule fast: it has slow",
        "there is no valid HTTPRoute q whose parent is a Service",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    apply(&mut builder, &route("q", "shop", rules));
    assert!(!messages_after_maybe(&mut builder).join("\n").contains("HTTPRoute q"));
}

#[test]
fn a_backend_without_an_address_of_its_own_is_said_to_have_none() {
    let external = "---\n{apiVersion: v1, kind: Service, metadata: {name: ext, namespace: shop}, \
                    spec: {type: ExternalName, externalName: a.example, ports: [{port: 80}]}}\n";
    let mut builder = start(Options::default(), &(shop() + external + &route("p", "shop", &to("ext"))));
    next(&mut builder);
    let said = messages(&builder);
    let wanted = "BackendNotFound: Service ext.shop:80: it has no address of its own, as those of the type ExternalName";
    assert!(said.len() == 1 && said[0].contains(wanted), "{said:?}");
}

/// Requests are sent on as they come, so a backend that is declared to speak something else cannot be right.
#[test]
fn a_backend_speaks_what_its_parent_does() {
    // Unnamed, so that nothing is declared by the name.
    let service = |name: &str, ip: &str, protocol: &str| {
        svc(name, ip, "").replace("name: http, port: 80", &format!("appProtocol: {protocol}, port: 80"))
    };
    let mut builder = start(Options::default(), &(shop() + &route("p", "shop", &to("canary"))));
    next(&mut builder);
    assert_eq!(messages(&builder), [""; 0]);
    for (parent, backend, wanted) in [
        (
            "http",
            "kubernetes.io/h2c",
            "UnsupportedProtocol: Service canary.shop:80 is declared to speak HTTP/2",
        ),
        ("grpc", "http", "UnsupportedProtocol: Service canary.shop:80 is declared to speak HTTP/1"),
        (
            "http",
            "redis",
            "UnsupportedProtocol: Service canary.shop:80 is declared to speak another protocol than HTTP",
        ),
        ("http", "http", ""),
        ("grpc", "kubernetes.io/h2c", ""),
        ("example.com/own", "grpc", ""),
    ] {
        apply(&mut builder, &service("orders", "10.96.0.1", parent));
        apply(&mut builder, &service("canary", "10.96.0.2", backend));
        let said = messages_after_maybe(&mut builder);
        if wanted.is_empty() {
            assert_eq!(said, [""; 0], "{parent} {backend}");
        } else {
            assert!(said.len() == 1 && said[0].contains(wanted), "{parent} {backend}: {said:?}");
            assert!(said[0].ends_with("(rule rules[0])"), "{said:?}");
        }
    }
}
