//! Routes: the order in which they apply, and those that cannot work.

use serde_json::Value;

use super::{check, policy, route};

#[test]
fn routes_are_shown_in_the_order_in_which_they_apply() {
    let services = ["orders", "orders-canary"].map(|name| {
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}}}\n---\n")
    });
    let rules = "  - name: rest\n    backendRefs: [{name: orders, port: 80, weight: 95}, {name: orders-canary, port: 80, weight: 5}]\n\
                 \x20 - name: slow\n    matches: [{path: {value: /reports}, method: GET}]\n    timeouts: {request: 9s}\n    \
                 filters: [{type: RequestMirror, requestMirror: {percent: 20, backendRef: {name: orders-canary, port: 80}}}]\n    \
                 backendRefs: [{name: orders, port: 80}]\n";
    let target = |rule: &str| {
        format!(
            "  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: orders{rule}}}]\n  concurrency: {{maxRequests: 5}}\n"
        )
    };
    let text = services.concat()
        + &route("orders", rules)
        + &policy("whole", &target(""))
        + &policy("slow", &target(", sectionName: slow"));
    let (good, out, complaints) = check(&text, &["--strict", "-"]);
    assert!(good, "{complaints}");
    let wanted = "Service shop/orders:80: routes for all clients, the first that matches applies\n\
        \x20 HTTPRoute shop/orders, rule slow: GET /reports/*\n\
        \x20   TrafficPolicy shop/slow; to orders.shop:80; copies 20 % to orders-canary.shop:80; request within 9s\n\
        \x20 HTTPRoute shop/orders, rule rest: any path\n\
        \x20   TrafficPolicy shop/whole; 95 of 100 to orders.shop:80; 5 of 100 to orders-canary.shop:80\n";
    assert!(out.contains(wanted), "{out}");
    let (_, json, _) = check(&text, &["-o", "json", "-"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["routes"][0]["rules"][0]["policy"], "shop/slow");

    // What is wrong is named, and where.
    for (more, expected) in [
        (
            policy("another", &target("")),
            "HTTPRoute orders is targeted by TrafficPolicy shop/another already",
        ),
        (policy("none", &target(", sectionName: fast")), "note: HTTPRoute orders has no rule fast"),
        (
            route("bad", "  - filters: [{type: ExtensionRef}]\n"),
            "HTTPRoute shop/bad: spec.rules[0].filters[0].type: \"ExtensionRef\" is not supported",
        ),
        (
            route("lost", "  - backendRefs: [{name: ordres, port: 80}]\n"),
            "rule rules[0]: there is no Service ordres in these files: did you mean orders?",
        ),
        (
            route("plain", "  - backendRefs: [{name: orders, port: 80}]\n").replace("group: '', ", ""),
            "HTTPRoute shop/plain: spec.parentRefs[0].group: note: a Service is of the group \"\"",
        ),
    ] {
        let (good, _, complaints) = check(&(text.clone() + &more), &["--strict", "-"]);
        assert!(!good && complaints.contains(expected), "{expected}: {complaints}");
    }
    // A route of a gateway is none of ours.
    let gateways = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: g, namespace: shop}\n\
                    spec: {parentRefs: [{name: public}], rules: anything}\n";
    assert!(check(gateways, &["-"]).0);
}

/// Routes whose fields make sense, and that cannot work, or say something else than was meant.
#[test]
fn routes_that_cannot_work_are_noted() {
    let service = |namespace: &str, name: &str, rest: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{rest}}}}}\n---\n"
        )
    };
    let services = [
        service("shop", "orders", "ports: [{name: http, port: 80}, {name: redis, port: 6379}]"),
        service(
            "shop",
            "canary",
            "ports: [{name: http, port: 80}, {name: redis, port: 6379}, {name: grpc, port: 90}]",
        ),
        service("shop", "headless", "clusterIP: None, ports: [{port: 80}]"),
        service("next", "far", "ports: [{port: 80}]"),
        service("outside", "out", "ports: [{port: 80}]"),
        "{apiVersion: v1, kind: Namespace, metadata: {name: outside}}\n---\n".to_owned(),
    ]
    .concat();
    let with = |parent: &str, rules: &str| {
        let wanted = "{group: '', kind: Service, name: orders, port: 80}";
        services.clone() + &route("r", rules).replace(wanted, parent)
    };
    let orders = "{group: '', kind: Service, name: orders, port: 80}";
    let to = |backend: &str| format!("  - backendRefs: [{{{backend}}}]\n");
    let good = to("name: canary, port: 80");
    let matching =
        |what: &str| format!("  - matches: [{what}]\n    backendRefs: [{{name: canary, port: 80}}]\n");
    let parent = |rest: &str| format!("{{group: '', kind: Service, {rest}}}");
    for (text, expected) in [
        (
            with(&parent("name: orders, port: 81"), &good),
            "Service shop/orders has no such port: it has 80 (http), 6379 (redis)",
        ),
        (with(&parent("name: orders, sectionName: web"), &good), "Service shop/orders has no such port"),
        (
            with(&parent("name: orders, port: 6379"), &good),
            "Service shop/orders is declared to speak another protocol than HTTP",
        ),
        (with(&parent("name: headless"), &good), "Service shop/headless is headless"),
        (
            with(&parent("name: out, namespace: outside"), &good),
            "Namespace outside is not enrolled in these files",
        ),
        (
            with("{group: '', kind: service, name: orders}", &good),
            "parentRefs[0].kind: note: there is no kind \"service\"",
        ),
        (
            with(orders, &to("name: canary, port: 81")),
            "rule rules[0]: Service canary.shop:81: it has no port 81, but 80 (http)",
        ),
        (
            with(orders, &to("name: canary, port: 6379")),
            "Service canary.shop:6379 is declared to speak another protocol",
        ),
        (
            with(orders, &to("name: canary, port: 90")),
            "Service canary.shop:90 is declared to speak HTTP/2, and Service shop/orders HTTP/1",
        ),
        (
            with(orders, &to("name: far, namespace: next, port: 80")),
            "no ReferenceGrant in these files allows HTTPRoute of namespace shop",
        ),
        (
            with(orders, &to("name: out, namespace: outside, port: 80")),
            "Namespace outside is not enrolled in these files: its part",
        ),
        (
            with(orders, &to("name: canary, port: 80, weight: 0")),
            "spec.rules[0].backendRefs: note: no backend has a weight",
        ),
        (with(orders, "  - name: a\n"), "spec.rules[0].backendRefs: note: no backend has a weight"),
        (
            with(orders, &(good.clone() + &good)),
            "spec.rules[1]: note: never applies: rules[0] has the same matches",
        ),
        (
            with(orders, &matching("{path: {value: '/a/*'}}")),
            "matches[0].path.value: note: * stands for itself here",
        ),
        (
            with(orders, &matching("{headers: [{name: X-A, value: '1'}, {name: x-a, value: '2'}]}")),
            "matches[0].headers[1]: note: has no effect",
        ),
        (
            with(orders, &good).replace("  rules:", "  hostnames: [a.example]\n  rules:"),
            "spec.hostnames: note: has no effect",
        ),
        (
            with(orders, &good).replace("parentRefs: [", "parentRef: ["),
            "spec.parentRefs: note: not set: a route without a parent is left alone: did you mean",
        ),
        (
            with(orders, &good).replace("kind: HTTPRoute", "kind: HttpRoute"),
            "kind: note: there is no kind \"HttpRoute\": did you mean \"HTTPRoute\"?",
        ),
        (
            with(orders, &good).replace("k8s.io/v1\n", "k8s.io/v1alpha2\n"),
            "apiVersion: note: \"gateway.networking.k8s.io/v1alpha2\"",
        ),
        (
            services.clone()
                + "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: r, namespace: shop}}\n",
            "GRPCRoute shop/r: spec: note: not set",
        ),
        (with(orders, &good).replace("name: r,", ""), "HTTPRoute shop/: metadata.name: not set"),
        (with(orders, &good).replace("name: r,", "name: R_1,"), "metadata.name: \"R_1\" is no name"),
        // What the API server rejects is an error.
        (
            with(
                orders,
                "  - name: a\n    backendRefs: [{name: canary, port: 80}]\n  - name: a\n    matches: [{method: GET}]\n    backendRefs: [{name: canary, port: 80}]\n",
            ),
            "spec.rules[1].name: \"a\" is there already",
        ),
        (with(orders, &good.repeat(17)), "spec.rules: 17 items: allowed are 1 to 16"),
        (
            with(orders, &matching(&["{method: GET}"; 65].join(", "))),
            "spec.rules[0].matches: 65 items: allowed are at most 64",
        ),
        (
            with(orders, &matching("{path: {value: '/a//b'}}")),
            "path.value: \"/a//b\" is no path: \"//\" cannot be matched",
        ),
        (
            with(orders, &matching("{path: {value: '/a%2fb'}}")),
            "\"/a%2fb\" is no path: \"%2f\" cannot be matched",
        ),
        (with(orders, &matching("{path: {value: '/a/..'}}")), "\"/a/..\" is no path"),
        (with(orders, &matching("{path: {value: '/a b'}}")), "\"/a b\" is no path: ' ' is not in any"),
        (
            with(orders, &matching("{path: {value: '/a?x=1'}}")),
            "\"/a?x=1\" is no path: a query is matched by queryParams",
        ),
        (with(orders, &matching("{path: {value: '/a%'}}")), "\"/a%\" is no path: a % stands before two"),
        (
            with(orders, &matching("{headers: [{name: a, value: yes}]}")),
            "headers[0].value: a string is needed, not true: write it in quotes",
        ),
    ] {
        let (good, _, complaints) = check(&text, &["--strict", "-"]);
        assert!(!good && complaints.contains(expected), "{expected}: {complaints}");
    }
    // A grant says that it may be.
    let grant = "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: g, namespace: next}, \
                 spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}}\n";
    let far = with(orders, &to("name: far, namespace: next, port: 80")) + grant;
    let (good, _, complaints) = check(&far, &["--strict", "-"]);
    assert!(good, "{complaints}");
}
