use std::time::Duration;

use serde_json::json;
use sluice_tests::api_server::Schema;

use super::*;
use crate::govern::routes::{Action, mirror::Fraction};

fn spec(rules: &Value) -> Value {
    json!({ "parentRefs": [{ "group": "", "kind": "Service", "name": "orders" }], "rules": rules })
}

fn read(spec: &Value) -> Asked {
    http_route(spec, "shop", "shop/r").unwrap().expect("it is about a Service")
}

fn wrong(rules: &Value) -> Vec<String> {
    let errors = http_route(&spec(rules), "shop", "shop/r").unwrap_err();
    errors.into_iter().map(|error| error.to_string()).collect()
}

#[test]
fn a_route_of_gateways_is_none_of_ours_whatever_it_says() {
    let spec = json!({ "parentRefs": [{ "name": "public" }], "rules": "anything", "new": 1 });
    assert_eq!(http_route(&spec, "shop", "shop/r"), Ok(None));
    assert_eq!(grpc_route(&json!({}), "shop", "shop/r"), Ok(None));
}

#[test]
fn parents_are_services_and_ports_of_them() {
    let asked = read(&json!({ "hostnames": ["example.org"], "parentRefs": [
        { "name": "public" },
        { "group": "", "kind": "Service", "name": "orders", "port": 80, "sectionName": "http" },
        { "group": "core", "kind": "Service", "name": "carts", "namespace": "other" },
    ]}));
    let parent = |namespace: &str, service: &str, port, section: Option<&str>| Parent {
        namespace: namespace.into(),
        service: service.into(),
        port,
        section: section.map(Into::into),
    };
    assert_eq!(
        asked.parents,
        [parent("shop", "orders", Some(80), Some("http")), parent("other", "carts", None, None)]
    );
    // Without rules it is one that is about everything, and has nowhere to send it.
    assert_eq!(asked.rules.len(), 1);
    assert_eq!((&*asked.rules[0].name, asked.rules[0].matches.len()), ("rules[0]", 1));
}

#[test]
fn what_a_rule_says_is_taken_over() {
    let asked = read(&spec(&json!([{
        "name": "canary",
        "matches": [{
            "path": { "type": "PathPrefix", "value": "/a/%62/" }, "method": "POST",
            "headers": [{ "name": "X-User", "value": "ann" }, { "name": "x-user", "value": "bob" }],
            "queryParams": [{ "type": "RegularExpression", "name": "v", "value": "[0-9]+" }],
        }],
        "filters": [
            { "type": "RequestHeaderModifier", "requestHeaderModifier": { "set": [{ "name": "x-mse-tag", "value": "gray" }] } },
            { "type": "URLRewrite", "urlRewrite": { "hostname": "b.shop", "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/x" } } },
        ],
        "backendRefs": [
            { "name": "orders", "port": 80, "weight": 95 },
            { "name": "canary", "namespace": "next", "port": 8080, "weight": 0,
              "filters": [{ "type": "ResponseHeaderModifier", "responseHeaderModifier": { "remove": ["x-a"] } }] },
            { "group": "example.org", "kind": "Bucket", "name": "b" },
        ],
        "timeouts": { "request": "1m30s", "backendRequest": "250ms" },
    }])));
    let rule = &asked.rules[0];
    assert_eq!((&*rule.name, &*rule.route), ("canary", "shop/r"));
    let one = &rule.matches[0];
    assert_eq!(one.path, crate::govern::routes::matching::PathTest::Prefix("/a/b".to_owned()));
    assert_eq!((one.headers.len(), one.query_parameters.len()), (1, 1));
    assert_eq!(rule.headers.request.set[0].0, "x-mse-tag");
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(90)));
    assert_eq!(rule.timeouts.attempt, Some(Duration::from_millis(250)));
    let Action::Forward { rewrite, backends } = &rule.action else { panic!("{:?}", rule.action) };
    assert_eq!(rewrite.hostname.as_deref(), Some("b.shop"));
    let shown: Vec<_> = backends
        .iter()
        .map(|backend| (backend.service.as_ref().map(ToString::to_string), backend.weight))
        .collect();
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(shown, [(named("orders.shop:80"), 95), (named("canary.next:8080"), 0), (None, 1)]);
    assert_eq!(asked.strangers.len(), 1);
    assert_eq!(asked.strangers[0].field, "spec.rules[0].backendRefs[2].kind");
}

#[test]
fn what_is_not_supported_is_named() {
    for (rules, field) in [
        (json!([{ "filters": [{ "type": "RequestMirror" }] }]), "filters[0].requestMirror: not set"),
        (
            json!([{ "filters": [{ "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "a", "port": 80 }, "percent": 101 } }] }]),
            "requestMirror.percent: 101",
        ),
        (
            json!([{ "filters": [{ "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "a", "port": 80 }, "fraction": { "numerator": 3, "denominator": 2 } } }] }]),
            "requestMirror.fraction: 3 of 2",
        ),
        (
            json!([{ "filters": [{ "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "a", "port": 80 }, "percent": 1, "fraction": { "numerator": 1 } } }] }]),
            "percent and fraction cannot",
        ),
        (
            json!([{ "filters": [
                { "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "a", "port": 80 } } },
                { "type": "RequestRedirect", "requestRedirect": {} },
            ] }]),
            "RequestRedirect and RequestMirror",
        ),
        (json!([{ "filters": [{ "type": "CORS" }] }]), "filters[0].cors: not set"),
        (
            json!([{ "filters": [{ "type": "CORS", "cors": { "allowOrigins": ["a.example"] } }] }]),
            "cors.allowOrigins[0]: \"a.example\"",
        ),
        (
            json!([{ "filters": [{ "type": "CORS", "cors": { "allowOrigins": ["https://a.*.example"] } }] }]),
            "cors.allowOrigins[0]",
        ),
        (
            json!([{ "filters": [{ "type": "CORS", "cors": { "allowMethods": ["GET", "*"] } }] }]),
            "cors.allowMethods: * stands alone",
        ),
        (
            json!([{ "filters": [{ "type": "CORS", "cors": { "allowHeaders": ["a b"] } }] }]),
            "cors.allowHeaders[0]",
        ),
        (json!([{ "filters": [{ "type": "CORS", "cors": { "maxAge": 0 } }] }]), "cors.maxAge: 0"),
        (
            json!([{ "backendRefs": [{ "name": "a", "port": 80, "filters": [{ "type": "CORS", "cors": {} }] }] }]),
            "backendRefs[0].filters[0].type: \"CORS\"",
        ),
        (json!([{ "filters": [{ "type": "ExtensionRef" }] }]), "filters[0].type: \"ExtensionRef\""),
        (json!([{ "retry": { "attempts": 2 } }]), "rules[0].retry: not supported"),
        (json!([{ "sessionPersistence": {} }]), "rules[0].sessionPersistence: not supported"),
        (json!([{ "matches": [{ "path": { "type": "Glob", "value": "/*" } }] }]), "path.type: \"Glob\""),
        (
            json!([{ "matches": [{ "path": { "type": "RegularExpression", "value": "(" } }] }]),
            "path.value: \"(\"",
        ),
        (json!([{ "matches": [{ "method": "get" }] }]), "method: \"get\""),
        (json!([{ "matches": [{ "headers": [{ "name": "a b", "value": "c" }] }] }]), "headers[0].name"),
        (
            json!([{ "filters": [{ "type": "RequestHeaderModifier", "requestHeaderModifier": { "remove": ["Connection"] } }] }]),
            "remove[0]: \"Connection\" is not supported",
        ),
        (
            json!([{ "filters": [{ "type": "RequestHeaderModifier", "requestHeaderModifier": { "add": [{ "name": "a", "value": "b\nc" }] } }] }]),
            "add[0].value",
        ),
        (
            json!([{ "filters": [{ "type": "RequestRedirect", "requestRedirect": { "statusCode": 200 } }] }]),
            "statusCode",
        ),
        (
            json!([{ "filters": [{ "type": "URLRewrite", "urlRewrite": { "path": { "type": "ReplaceFullPath", "replaceFullPath": "/a b" } } }] }]),
            "replaceFullPath",
        ),
        (
            json!([{ "matches": [{ "path": { "type": "Exact", "value": "/a" } }],
                "filters": [{ "type": "URLRewrite", "urlRewrite": { "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/" } } }] }]),
            "ReplacePrefixMatch needs",
        ),
        (json!([{ "backendRefs": [{ "name": "a" }] }]), "backendRefs[0].port: not set"),
        (json!([{ "backendRefs": [{ "name": "a", "port": 80, "weight": -1 }] }]), "weight: -1"),
        (json!([{ "backendRefs": [{ "name": "a", "port": 70000 }] }]), "port: 70000"),
        (json!([{ "timeouts": { "request": "1.5s" } }]), "timeouts.request: \"1.5s\""),
        (json!([{ "timeouts": { "request": "1s", "backendRequest": "2s" } }]), "backendRequest: longer"),
    ] {
        let errors = wrong(&rules);
        assert!(errors.iter().any(|error| error.contains(field)), "{rules}: {errors:?}");
        assert!(errors.iter().all(|error| error.starts_with("spec.rules")), "{errors:?}");
    }
}

/// Whoever wrote a route hears of all that is wrong with it at once, in words that say what to do.
#[test]
fn all_that_is_wrong_with_a_route_is_said() {
    let rules = json!([
        {
            "retry": { "attempts": 2 },
            "matches": [
                { "path": { "type": "Prefix", "value": "/x" }, "headers": [{ "name": "x-debug", "value": true }] },
                { "headers": [{ "name": "x-version", "value": 2 }, { "value": "nameless" }, 7] },
            ],
            "backendRefs": [{ "name": "a", "port": 80, "weight": -1 }, { "name": "b", "port": "80" }],
        },
        { "filters": [{ "type": "URLRewrite", "urlRewrite": { "hostname": 1 } }], "backendRef": [] },
        { "timeouts": { "request": 10 } },
        { "matches": {} },
    ]);
    let found = wrong(&rules);
    for said in [
        "spec.rules[0].retry: not supported: it is experimental; the retry of a TrafficPolicy that targets the rule does that",
        "spec.rules[0].matches[0].path.type: \"Prefix\" is not supported: allowed are Exact, PathPrefix, RegularExpression",
        "spec.rules[0].matches[0].headers[0].value: a string is needed, not true: write it in quotes, \"true\" \
         (yes, no, on and off are true or false without)",
        "spec.rules[0].matches[1].headers[0].value: a string is needed, not 2: write it in quotes, \"2\"",
        "spec.rules[0].matches[1].headers[1].name: not set: it is needed",
        "spec.rules[0].matches[1].headers[2]: an object is needed, not 7",
        "spec.rules[0].backendRefs[0].weight: -1 is no weight: allowed are 0 to 1000000",
        "spec.rules[0].backendRefs[1].port: a whole number is needed, not the string \"80\"",
        "spec.rules[1].backendRef: there is no such field: did you mean \"backendRefs\"?",
        "spec.rules[1].filters[0].urlRewrite.hostname: a string is needed, not 1: write it in quotes, \"1\"",
        "spec.rules[2].timeouts.request: a string is needed, not 10: write it in quotes, \"10\"",
        "spec.rules[3].matches: a list is needed, not an object",
    ] {
        assert!(found.iter().any(|one| one == said), "{said} is not in {found:#?}");
    }
    assert_eq!(found.len(), 12, "{found:#?}");
    let rules = json!([{
        "matches": [{ "headers": [{ "type": "Some", "name": "x", "value": "y" }] }, { "method": { "type": "Prefix" } }],
        "filters": [{ "type": "CORS" }],
        "backendRefs": [{ "name": "a" }],
    }]);
    let found = grpc_route(&spec(&rules), "shop", "shop/r").unwrap_err();
    let fields: Vec<_> =
        found.iter().map(|error| error.field.strip_prefix("spec.rules[0].").unwrap()).collect();
    let wanted =
        ["matches[0].headers[0].type", "matches[1].method.type", "filters[0].type", "backendRefs[0].port"];
    assert_eq!(fields, wanted, "{found:#?}");
    // A list whose items make no sense is no more than that, and reading comes to an end whatever stands there.
    let mut endless = json!({ "a": 1 });
    for _ in 0..100 {
        endless = json!([endless]);
    }
    for rules in [endless, json!(7), json!([1, 2]), json!({}), json!([{ "matches": [[[]]] }])] {
        assert!(!wrong(&rules).is_empty(), "{rules}");
    }
}

#[test]
fn copies_go_to_all_mirrors() {
    let mirror = |name: &str, part: Value| {
        let mut mirror = json!({ "backendRef": { "name": name, "port": 80 } });
        mirror.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        json!({ "type": "RequestMirror", "requestMirror": mirror })
    };
    let rules = json!([{
        "filters": [mirror("a", json!({})), mirror("b", json!({ "percent": 20 }))],
        "backendRefs": [{ "name": "orders", "port": 80,
            "filters": [mirror("c", json!({ "fraction": { "numerator": 1, "denominator": 3 } }))] }],
    }]);
    for asked in [
        read(&spec(&rules)),
        grpc_route(&spec(&rules), "shop", "shop/r").unwrap().expect("it is about a Service"),
    ] {
        let rule = &asked.rules[0];
        let Action::Forward { backends, .. } = &rule.action else { panic!("{:?}", rule.action) };
        let of_backend = backends.iter().flat_map(|backend| &backend.mirrors);
        let shown = rule.mirrors.iter().chain(of_backend).map(|mirror| {
            (mirror.service.as_ref().map(ToString::to_string).unwrap_or_default(), mirror.fraction)
        });
        let part = |numerator, denominator| Fraction::new(numerator, denominator).unwrap();
        let wanted = [("a.shop:80", Fraction::ALL), ("b.shop:80", part(20, 100)), ("c.shop:80", part(1, 3))];
        assert_eq!(shown.collect::<Vec<_>>(), wanted.map(|(name, part)| (name.to_owned(), part)));
    }
    let stranger = json!([{ "filters": [{ "type": "RequestMirror",
        "requestMirror": { "backendRef": { "group": "example.org", "kind": "Bucket", "name": "b" } } }] }]);
    let asked = read(&spec(&stranger));
    assert_eq!(asked.strangers[0].field, "spec.rules[0].filters[0].requestMirror.backendRef.kind");
}

#[test]
fn methods_of_grpc_become_paths() {
    let rules = json!([{ "matches": [
        { "method": { "service": "shop.Orders", "method": "Get" } },
        { "method": { "service": "shop.Orders" } },
        { "method": { "method": "Get" } },
        { "method": { "type": "RegularExpression", "service": "shop[.].*" } },
        {},
    ]}]);
    let asked = grpc_route(&spec(&rules), "shop", "shop/r").unwrap().unwrap();
    let shown: Vec<_> = asked.rules[0].matches.iter().map(|one| format!("{:?}", one.path)).collect();
    assert_eq!(shown[0], "Exact(\"/shop.Orders/Get\")");
    assert_eq!(shown[1], "Prefix(\"/shop.Orders\")");
    assert_eq!(shown[2], "Method(\"Get\")");
    assert!(shown[3].contains("(?:shop[.].*)/[^/]+"), "{}", shown[3]);
    assert_eq!(shown[4], "Any");
    let filter = json!([{ "filters": [{ "type": "URLRewrite" }] }]);
    assert!(grpc_route(&spec(&filter), "shop", "shop/r").is_err(), "a GRPCRoute has none");
}

#[test]
fn durations_are_those_of_gateway_api() {
    for (text, wanted) in [
        ("0s", Some(0)),
        ("1s", Some(1000)),
        ("250ms", Some(250)),
        ("1h2m3s4ms", Some(3_723_004)),
        ("99999h", Some(359_996_400_000)),
        ("", None),
        ("1", None),
        ("s", None),
        ("1.5s", None),
        ("-1s", None),
        ("100000s", None),
        ("1s1s1s1s1s", None),
        ("1d", None),
        ("1s ", None),
    ] {
        assert_eq!(rules::duration(text), wanted.map(Duration::from_millis), "{text}");
    }
}

#[test]
fn a_grant_is_for_routes_and_services() {
    let grant = reference_grant(&json!({
        "from": [
            { "group": GROUP, "kind": "HTTPRoute", "namespace": "shop" },
            { "group": GROUP, "kind": "Gateway", "namespace": "shop" },
            { "group": "example.org", "kind": "HTTPRoute", "namespace": "shop" },
        ],
        "to": [{ "group": "", "kind": "Service" }, { "group": "", "kind": "Service", "name": "b" }, { "group": "", "kind": "Secret" }],
    }))
    .unwrap();
    assert_eq!(grant.from, [(Kind::Http, "shop".into())]);
    assert_eq!(grant.to, [None, Some("b".into())]);
    assert!(reference_grant(&json!({ "from": [{ "kind": 1 }] })).is_err());
}

#[test]
fn a_parent_is_named_as_it_stands_there() {
    let spec = json!({ "rules": "anything", "parentRefs": [
        { "name": "public" },
        { "group": "", "kind": "Service", "name": "orders", "namespace": "next", "port": 80, "new": true },
        { "group": "", "kind": "Service" },
    ]});
    let named = parents(&spec, "shop");
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!((&*named[0].parent.namespace, named[0].parent.port), ("next", Some(80)));
    let reference =
        json!({ "group": "", "kind": "Service", "name": "orders", "namespace": "next", "port": 80 });
    assert_eq!(named[0].reference, reference);
    // Those of a valid route are those that it asks about.
    let spec =
        json!({ "parentRefs": [{ "group": "", "kind": "Service", "name": "a", "sectionName": "http" }] });
    let asked = read(&spec).parents;
    assert_eq!(parents(&spec, "shop").into_iter().map(|named| named.parent).collect::<Vec<_>>(), asked);
}

/// Of what the API server would take of an object.
fn schema(resource: &str) -> Schema {
    let path = format!("{}/../tests/schemas/{resource}.json", env!("CARGO_MANIFEST_DIR"));
    let definition: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    Schema::of(&definition).unwrap()
}

#[test]
fn what_the_api_server_takes_is_read_or_named() {
    let (http, grpc) = (schema("httproutes"), schema("grpcroutes"));
    let header = |field: &str| json!({ field: [{ "name": "x-a", "value": "1" }], "remove": ["x-b"] });
    let backend = json!({ "name": "a", "namespace": "next", "port": 80, "weight": 0 });
    let backend_of_mirror = json!({ "name": "a", "namespace": "next", "port": 80 });
    let good = [
        json!([{}]),
        json!([{ "name": "a", "timeouts": { "request": "1m30s", "backendRequest": "250ms" }, "backendRefs": [backend] }]),
        json!([{ "matches": [
            { "path": { "type": "Exact", "value": "/a" }, "method": "PATCH" },
            { "path": { "type": "RegularExpression", "value": "/a/[0-9]+" } },
            { "headers": [{ "type": "RegularExpression", "name": "x", "value": "a.*" }] },
            { "queryParams": [{ "name": "a", "value": "b" }] },
        ]}]),
        json!([{ "filters": [
            { "type": "RequestHeaderModifier", "requestHeaderModifier": header("set") },
            { "type": "ResponseHeaderModifier", "responseHeaderModifier": header("add") },
            { "type": "URLRewrite", "urlRewrite": { "hostname": "a.b", "path": { "type": "ReplaceFullPath", "replaceFullPath": "/x" } } },
        ]}]),
        json!([{ "filters": [
            { "type": "RequestMirror", "requestMirror": { "backendRef": backend_of_mirror, "percent": 20 } },
            { "type": "RequestMirror", "requestMirror": { "backendRef": backend_of_mirror, "fraction": { "numerator": 1 } } },
            { "type": "CORS", "cors": {
                "allowOrigins": ["https://*.example.com", "http://a.b:8080"], "allowCredentials": true,
                "allowMethods": ["GET", "PUT"], "allowHeaders": ["*"], "exposeHeaders": ["x-a", "x-b"], "maxAge": 60,
            } },
        ]}]),
        json!([{
            "matches": [{ "path": { "type": "PathPrefix", "value": "/a" } }],
            "filters": [{ "type": "RequestRedirect", "requestRedirect": {
                "scheme": "https", "hostname": "a.b", "port": 8443, "statusCode": 301,
                "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/b" },
            } }],
        }]),
    ];
    for rules in good {
        let spec = spec(&rules);
        assert_eq!(http.refusals(&json!({ "spec": spec })), [""; 0], "{rules}");
        assert!(http_route(&spec, "shop", "shop/r").is_ok(), "{rules}");
        // What the API server has filled in says the same.
        let stored = http.defaulted(&json!({ "spec": spec }))["spec"].clone();
        assert_eq!(read(&stored), read(&spec), "{rules}");
    }
    let by = json!([{ "matches": [{ "method": { "service": "a.B", "method": "C" }, "headers": [{ "name": "x", "value": "1" }] }] }]);
    assert_eq!(grpc.refusals(&json!({ "spec": spec(&by) })), [""; 0]);
    let stored = grpc.defaulted(&json!({ "spec": spec(&by) }))["spec"].clone();
    assert_eq!(grpc_route(&stored, "shop", "shop/r"), grpc_route(&spec(&by), "shop", "shop/r"));

    // What gets in there, and is not supported or makes no sense here, is named: it stands in the status.
    for (rules, field) in [
        (
            json!([{ "filters": [{ "type": "ExtensionRef", "extensionRef": { "group": "a.b", "kind": "C", "name": "d" } }] }]),
            "filters[0]",
        ),
        (
            json!([{ "matches": [{ "path": { "type": "RegularExpression", "value": "/(" } }] }]),
            "matches[0].path.value",
        ),
    ] {
        assert_eq!(http.refusals(&json!({ "spec": spec(&rules) })), [""; 0], "{rules}");
        let wrong = wrong(&rules);
        assert!(wrong.iter().all(|wrong| wrong.contains(field)) && !wrong.is_empty(), "{rules}: {wrong:?}");
    }
    // And what the API server refuses is refused in a directory of manifests, too.
    for rules in [
        json!([{ "backendRefs": [{ "name": "a", "port": 80, "weight": -1 }] }]),
        json!([{ "backendRefs": [{ "name": "a", "port": 0 }] }]),
        json!([{ "matches": [{ "path": { "type": "PathPrefix", "value": "a" } }] }]),
        json!([{ "matches": [{ "method": "FETCH" }] }]),
        json!([{ "timeouts": { "request": "1.5s" } }]),
        json!([{ "timeouts": { "request": "1s", "backendRequest": "2s" } }]),
    ] {
        assert_ne!(http.refusals(&json!({ "spec": spec(&rules) })), [""; 0], "{rules}");
        assert!(!wrong(&rules).is_empty(), "{rules}");
    }
}

/// The table of ARCHITECTURE.md, and the tests that it names.
#[test]
fn each_feature_has_a_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap();
    let page = read(root.join("ARCHITECTURE.md"));
    let rows = page.lines().skip_while(|line| *line != "| feature | test |").skip(2);
    let mut shown = Vec::new();
    let mut tests = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.split('|').collect();
        let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        shown.extend(names(cells[1]));
        tests.extend(names(cells[2]));
    }
    shown.sort();
    assert_eq!(shown, FEATURES);
    let files = std::fs::read_dir(root.join("tests/tests/kernel/routes")).unwrap();
    let code: String = files.map(|file| read(file.unwrap().path())).collect();
    for test in tests {
        assert!(code.contains(&format!("#[test]\nfn {test}()")), "{test} is no test");
    }
}
