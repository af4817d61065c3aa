//! Requests to a service that has routes.

use std::time::Duration;

use serde_json::json;
use sluice::govern::policy::{Policy, Timeouts};

use crate::{origin::Origin, rig::Rig};

/// Whose time was over is named: that of the route's rule for what it says, and the policy's for what it does not.
#[test]
fn a_time_that_is_over_is_named_by_who_has_said_it() {
    for (timeouts, name) in [
        (json!({ "request": "100ms" }), "timeouts.request of HTTPRoute shop/r"),
        (
            json!({ "request": "5s", "backendRequest": "100ms" }),
            "timeouts.backendRequest of HTTPRoute shop/r",
        ),
        (json!({ "backendRequest": "3s" }), "timeouts.request of TrafficPolicy shop/orders"),
    ] {
        let silent = Origin::new(|_, peer, _| while peer.request().is_some() {});
        let rules = json!([{ "timeouts": timeouts, "backendRefs": [{ "name": "orders", "port": 80 }] }]);
        let times = Timeouts { request: Some(Duration::from_millis(200)), ..Timeouts::default() };
        let policy = Policy { name: Some("shop/orders".into()), timeouts: times, ..Policy::default() };
        let rig = Rig::builder().endpoint(silent.address).policy(policy).route(&rules).start();
        let mut caller = rig.dial();
        caller.get("/");
        let answer = caller.answer();
        assert_eq!(answer.status(), 504);
        assert!(answer.body.contains(name), "{timeouts}: {}", answer.body);
    }
}

#[test]
fn the_route_chooses_the_service_and_what_matches_nothing_is_404() {
    let (orders, canary) = (Origin::fixed("orders"), Origin::fixed("canary"));
    let rules = json!([
        { "matches": [{ "path": { "value": "/a" } }], "backendRefs": [{ "name": "orders", "port": 80 }] },
        { "matches": [{ "path": { "value": "/b" } }], "backendRefs": [{ "name": "canary", "port": 80 }] },
        { "matches": [{ "path": { "value": "/gone" } }], "backendRefs": [{ "name": "nobody", "port": 80 }] },
        { "matches": [{ "path": { "value": "/zero" } }], "backendRefs": [{ "name": "orders", "port": 80, "weight": 0 }] },
        { "matches": [{ "path": { "value": "/old" } }], "filters": [{ "type": "RequestRedirect",
            "requestRedirect": { "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" }, "statusCode": 301 } }] },
    ]);
    let rig = Rig::builder().endpoint(orders.address).canary(canary.address).route(&rules).start();
    let mut caller = rig.dial();
    // Over one connection, one after the other.
    for (path, status, body) in [("/a", 200, "orders"), ("/b/c", 200, "canary"), ("/a/x", 200, "orders")] {
        caller.get(path);
        let answer = caller.answer();
        assert_eq!(answer.status(), status, "{path}");
        assert!(answer.has("content-length: 6"), "{path}");
        let served = if body == "orders" { &orders } else { &canary };
        assert!(served.noted().last().unwrap().contains(&format!("GET {path} ")), "{path}");
    }
    caller.get("/ab");
    caller.answer().made_up(404, "route_not_found");
    caller.get("/gone");
    caller.answer().made_up(500, "backend_not_found");
    caller.get("/zero");
    caller.answer().made_up(500, "backend_not_found");
    caller.get("/old/x?y=1");
    let answer = caller.answer();
    assert_eq!(answer.status(), 301);
    assert!(answer.has("location: http://a/new/x?y=1") || answer.has("location: http://orders/new/x?y=1"));
    caller.get("/a");
    assert_eq!(caller.answer().status(), 200, "the connection goes on");
    let counted = |service: &str, rule: &str, code: &str, count: f64| {
        let labels = [
            format!("destination_service=\"{service}\""),
            format!("route_rule=\"{rule}\""),
            format!("code=\"{code}\""),
        ];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        rig.await_metric(
            "sluice_route_requests_total",
            &[&labels[..], &["route=\"shop/r\""]].concat(),
            count,
        );
    };
    counted("orders", "rules[0]", "2xx", 3.0);
    counted("canary", "rules[1]", "2xx", 1.0);
    counted("orders", "rules[2]", "5xx", 1.0);
    counted("orders", "rules[4]", "3xx", 1.0);
}

#[test]
fn filters_change_what_is_sent_and_what_comes_back() {
    let canary = Origin::raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Old: 1\r\n\r\nok");
    let orders = Origin::fixed("orders");
    let rules = json!([{
        "matches": [{ "path": { "value": "/a" } }],
        "filters": [
            { "type": "RequestHeaderModifier", "requestHeaderModifier": {
                "set": [{ "name": "x-mse-tag", "value": "gray" }], "remove": ["x-gone"] } },
            { "type": "ResponseHeaderModifier", "responseHeaderModifier": {
                "remove": ["x-old"], "add": [{ "name": "x-new", "value": "2" }] } },
            { "type": "URLRewrite", "urlRewrite": { "hostname": "b.shop",
                "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/x" } } },
        ],
        "backendRefs": [{ "name": "canary", "port": 80, "filters": [
            { "type": "RequestHeaderModifier", "requestHeaderModifier": { "add": [{ "name": "x-of", "value": "canary" }] } },
        ] }],
    }]);
    let rig = Rig::builder().endpoint(orders.address).canary(canary.address).route(&rules).start();
    for (request, wanted) in [
        (
            "GET /a/b?c=d HTTP/1.1\r\nHost: orders\r\nX-Gone: 1\r\nAccept: e\r\n\r\n",
            "GET /x/b?c=d HTTP/1.1\r\n",
        ),
        (
            "GET http://orders/a HTTP/1.1\r\nHost: orders\r\nX-Gone: 1\r\nAccept: e\r\n\r\n",
            "GET /x HTTP/1.1\r\n",
        ),
    ] {
        let mut caller = rig.dial();
        caller.send(request);
        let head = caller.head();
        assert!(head.contains("x-new: 2") && !head.to_lowercase().contains("x-old"), "{head}");
        let noted = canary.noted();
        let got = noted.last().unwrap();
        assert!(got.contains(wanted), "{got}");
        // The tag is where the next hop looks for it.
        for line in
            ["x-mse-tag: gray", "x-of: canary", "host: b.shop", "Accept: e", "baggage: x-mse-tag=gray"]
        {
            assert!(got.contains(line), "{line}: {got}");
        }
        assert!(!got.contains("X-Gone") && !got.contains("Host: orders"), "{got}");
    }
}

#[test]
fn pages_of_other_origins_ask_as_the_route_allows() {
    let orders = Origin::raw(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\naccess-control-allow-origin: https://wrong.example\r\n\r\nok",
    );
    let cors = json!([{ "type": "CORS", "cors": {
        "allowOrigins": ["https://*.example"], "allowMethods": ["GET", "PUT"], "allowHeaders": ["x-a"],
        "exposeHeaders": ["x-b"], "maxAge": 60,
    }}]);
    let rules = json!([
        { "matches": [{ "path": { "value": "/gone" } }], "filters": cors, "backendRefs": [{ "name": "nobody", "port": 80 }] },
        { "filters": cors, "backendRefs": [{ "name": "orders", "port": 80 }] },
    ]);
    let rig = Rig::builder().endpoint(orders.address).route(&rules).start();
    let mut caller = rig.dial();
    let preflight = |origin: &str| {
        format!(
            "OPTIONS /a HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: PUT\r\n\r\n"
        )
    };
    caller.send(preflight("https://shop.example"));
    let head = caller.head();
    assert!(head.starts_with("HTTP/1.1 204 No Content\r\n"), "{head}");
    for line in [
        "access-control-allow-origin: https://shop.example",
        "access-control-allow-methods: GET, PUT",
        "access-control-allow-headers: x-a",
        "access-control-max-age: 60",
        "x-sluice-reason: route_preflight",
    ] {
        assert!(head.contains(line), "{line}: {head}");
    }
    assert!(!head.contains("content-type"), "{head}");
    caller.send(preflight("https://shop.other"));
    let head = caller.head();
    assert!(head.starts_with("HTTP/1.1 204 ") && !head.contains("access-control"), "{head}");
    assert_eq!(orders.noted().len(), 0, "the service has seen nothing of it");

    caller.send("GET /a HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\n\r\n");
    let answer = caller.answer();
    assert!(answer.has("access-control-allow-origin: https://shop.example") && answer.has("vary: origin"));
    assert!(answer.has("access-control-expose-headers: x-b"));
    assert!(!answer.has("access-control-allow-origin: https://wrong.example"));
    // Also what Sluice answers can be read.
    caller.send("GET /gone HTTP/1.1\r\nHost: a\r\nOrigin: https://shop.example\r\n\r\n");
    let answer = caller.answer();
    assert_eq!(answer.status(), 500);
    assert!(answer.has("access-control-allow-origin: https://shop.example"));
    // Whoever is no page of another origin sees nothing of it.
    caller.get("/a");
    assert!(caller.answer().has("access-control-allow-origin: https://wrong.example"));
}

#[test]
fn a_policy_on_the_route_holds_for_its_requests() {
    let orders = Origin::fixed("orders");
    let rules = json!([{ "name": "few", "backendRefs": [{ "name": "orders", "port": 80 }] }]);
    let target = json!({ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "r" });
    let limit = json!({ "name": "one", "requests": 1, "interval": "1h" });
    let rig = Rig::builder()
        .endpoint(orders.address)
        .route(&rules)
        .policy_on_route(&json!({ "targetRefs": [target], "rateLimits": [limit] }))
        .start();
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().status(), 200);
    caller.get("/");
    let answer = caller.answer();
    answer.made_up(429, "rate_limited");
    rig.await_metric("sluice_rule_requests_total", &["policy_rule=\"shop/of-route\"", "code=\"4xx\""], 1.0);
    rig.await_metric(
        "sluice_rate_limit_requests_total",
        &["rule=\"shop/of-route/one\"", "decision=\"rejected\""],
        1.0,
    );
}
