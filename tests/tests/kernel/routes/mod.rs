//! HTTPRoutes and GRPCRoutes whose parent is a Service, as the mesh profile of Gateway API's specification describes them
//! (<https://gateway-api.sigs.k8s.io/mesh>): a test a feature, with clients that nobody here wrote.

mod delivery;
mod filters;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, Answer, App, Capture, Load, Pod, Process, Service, World, eventually, test};

use crate::{grpc_process, python, script};

/// What a client got.
#[derive(Debug)]
struct Got {
    status: u16,
    /// The response's headers, as they came, in lower case.
    headers: String,
    answer: Option<Answer>,
}

impl Got {
    /// The version that answered.
    fn version(&self) -> &str {
        self.answer.as_ref().and_then(|answer| answer.chain.first()).map_or("", |hop| &hop.version)
    }

    /// A header of the request as the service got it (`?headers`); `:path` is its path.
    fn request(&self, name: &str) -> Option<&str> {
        self.answer.as_ref()?.chain.first()?.headers.get(name).map(String::as_str)
    }

    /// A header of the response.
    fn response(&self, name: &str) -> Option<&str> {
        let line = self.headers.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))?;
        Some(line.trim())
    }
}

/// A request with curl.
fn get(client: &Pod, args: &[&str]) -> Result<Got> {
    let said = client.run("curl", &[&["-sS", "-i", "-m", "10"], args].concat())?;
    let (head, body) =
        said.split_once("\r\n\r\n").with_context(|| format!("{args:?}: no response: {said}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("{args:?}: no status: {head}"))?;
    Ok(Got { status, headers: head.to_lowercase(), answer: serde_json::from_str(body).ok() })
}

/// `echo` of `shop`, whose two pods are also `echo-v1` and `echo-v2`; a client there and one in `other`.
struct Echo<'w> {
    world: &'w World,
    service: Service,
    versions: [Service; 2],
    client: Pod,
    other: Pod,
    agent: Agent,
    _apps: Vec<App>,
}

impl<'w> Echo<'w> {
    fn open(world: &'w World) -> Result<Self> {
        for namespace in ["shop", "other"] {
            world.namespace(namespace, Capture::Enabled)?;
        }
        let service = |name| world.service("shop", name).port("http", 80, 8080);
        let echo = service("echo").apply()?;
        let version = |name, version| service(name).selector("version", version).apply();
        let versions = [version("echo-v1", "v1")?, version("echo-v2", "v2")?];
        let mut apps = Vec::new();
        for version in ["v1", "v2"] {
            let pod =
                world.pod("shop", &format!("echo-{version}")).label("app", "echo").label("version", version);
            let pod = pod.start()?;
            let process = pod.serve(&["--name", "echo", "--version", version])?;
            apps.push(App { process, pod });
        }
        let client = world.pod("shop", "client").start()?;
        let other = world.pod("other", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        agent.enrolled(&other)?;
        Ok(Self { world, service: echo, versions, client, other, agent, _apps: apps })
    }

    /// Writes an HTTPRoute of `echo` with these rules, and waits until it holds for clients in its namespace.
    fn route(&self, namespace: &str, mut rules: Value) -> Result<()> {
        // A rule of its own says that it is there.
        let stamp = format!("{:x}", stamp_of_now());
        let mark = json!({
            "matches": [{ "path": { "type": "Exact", "value": format!("/there-{stamp}") } }],
            "filters": [{ "type": "RequestRedirect", "requestRedirect": { "hostname": "there.example", "statusCode": 302 } }],
        });
        rules.as_array_mut().context("rules are a list")?.push(mark);
        self.world.apply(route("HTTPRoute", namespace, "echo", "echo", &rules))?;
        let client = if namespace == "shop" { &self.client } else { &self.other };
        let url = format!("{}/there-{stamp}", self.service.url());
        eventually("the route is there", || {
            let got = get(client, &[&url])?;
            ensure!(got.status == 302, "{got:?}");
            Ok(())
        })
    }

    fn get(&self, path: &str, args: &[&str]) -> Result<Got> {
        let url = format!("{}{path}", self.service.url());
        get(&self.client, &[args, &[&url]].concat())
    }
}

/// Differs from one call to the next, also between processes.
fn stamp_of_now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos())
}

/// A route of a Service of `shop`.
fn route(kind: &str, namespace: &str, name: &str, parent: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": parent, "namespace": "shop", "port": 80 }],
            "rules": rules,
        },
    })
}

fn to(backend: &str) -> Value {
    json!([{ "name": backend, "namespace": "shop", "port": 80 }])
}

fn prefix(value: &str) -> Value {
    json!({ "path": { "type": "PathPrefix", "value": value } })
}

#[test]
fn a_request_goes_where_it_matches() {
    test("route-matching", |world| {
        let echo = Echo::open(world)?;
        echo.route("shop", json!([
            { "name": "canary", "matches": [{ "headers": [{ "name": "version", "value": "two" }] }], "backendRefs": to("echo-v2") },
            { "matches": [prefix("/v2"), { "path": { "type": "Exact", "value": "/exact" } }], "backendRefs": to("echo-v2") },
            { "matches": [{ "path": { "type": "RegularExpression", "value": "/items/[0-9]+" } }], "backendRefs": to("echo-v2") },
            { "matches": [{ "queryParams": [{ "name": "animal", "value": "whale" }] }], "backendRefs": to("echo-v2") },
            { "matches": [{ "method": "PUT" }], "backendRefs": to("echo-v2") },
            { "matches": [prefix("/v1"), prefix("/v2/old")], "backendRefs": to("echo-v1") },
        ]))?;
        let put = ["-X", "PUT", "-d", "x"];
        for (path, args, wanted) in [
            ("/v1", &[][..], "v1"),
            ("/v1/a", &[], "v1"),
            ("/v1?animal=whale", &[], "v1"),
            ("/v2", &[], "v2"),
            // The longest prefix goes before more headers or a method.
            ("/v2/old", &[], "v1"),
            ("/v2/old/x", &["-H", "version: two"], "v1"),
            ("/v2/older", &[], "v2"),
            ("/v1", &put, "v1"),
            ("/exact", &[], "v2"),
            ("/items/42", &[], "v2"),
            ("/a?animal=whale", &[], "v2"),
            ("/a?x=1&animal=whale&y", &[], "v2"),
            ("/a", &["-H", "Version: two"], "v2"),
            ("/a", &put, "v2"),
            ("/exact/a", &[], ""),
            ("/items/a", &[], ""),
            ("/items/42/a", &[], ""),
            ("/v1x", &[], ""),
            ("/a?animal=dog", &[], ""),
            ("/a", &["-H", "version: three"], ""),
            ("/", &[], ""),
        ] {
            let got = echo.get(path, args)?;
            ensure!(got.version() == wanted, "{path} {args:?}: {got:?}");
            // What matches nothing is nobody's.
            let status = if wanted.is_empty() { 404 } else { 200 };
            ensure!(got.status == status, "{path} {args:?}: {got:?}");
        }
        let got = echo.get("/nothing", &[])?;
        ensure!(got.response("x-sluice-reason") == Some("route_not_found"), "{got:?}");
        // `explain` names the route and the rule.
        let asked =
            ["explain", "--pod", "shop/client", "--to", "echo.shop:80", "-H", "version: two", "GET", "/"];
        let (code, said, error) = echo.agent.sluice(&asked)?;
        ensure!(code == 0 && said.contains("HTTPRoute shop/echo, rule canary"), "{code} {said} {error}");
        ensure!(said.contains("goes to echo-v2.shop:80"), "{said}");
        Ok(())
    });
}

/// The parent is told by its ClusterIP, in both families, whatever the client calls it; a backend that is called by its own
/// address has no routes.
#[test]
fn a_service_is_told_by_its_address() {
    test("route-address", |world| {
        let echo = Echo::open(world)?;
        echo.route("shop", json!([{ "backendRefs": to("echo-v1") }]))?;
        for host in ["echo", "echo.shop", "echo.shop.svc.cluster.local", "echo-v2", "example.com"] {
            for url in [echo.service.url(), echo.service.url6()] {
                for _ in 0..5 {
                    let got = get(&echo.client, &["-H", &format!("Host: {host}"), &url])?;
                    ensure!(got.version() == "v1", "{host} {url}: {got:?}");
                }
            }
        }
        for (service, version) in echo.versions.iter().zip(["v1", "v2"]) {
            let got = get(&echo.client, &["-H", "Host: echo", &service.url()])?;
            ensure!(got.version() == version, "{got:?}");
        }
        // Without routes it is a Service again.
        world.delete("HTTPRoute", "shop", "echo")?;
        eventually("both answer", || {
            let report = Load::start(&echo.client, &echo.service.url(), &["--requests", "50"])?.finish()?;
            ensure!(report.failed == 0 && report.chains.keys().eq(["v1", "v2"]), "{report:?}");
            Ok(())
        })
    });
}

#[test]
fn requests_and_responses_are_changed_on_the_way() {
    test("route-filters", |world| {
        let echo = Echo::open(world)?;
        let rewrite = |path: Value| json!([{ "type": "URLRewrite", "urlRewrite": { "path": path } }]);
        let edit = |kind: &str, edits: Value| {
            let field = format!("{}{}", &kind[..1].to_lowercase(), &kind[1..]);
            json!([{ "type": kind, field: edits }])
        };
        let mut backend = to("echo-v1");
        backend[0]["filters"] = edit(
            "RequestHeaderModifier",
            json!({
                "set": [{ "name": "x-set", "value": "backend" }],
                "add": [{ "name": "x-add", "value": "more" }],
                "remove": ["x-remove"],
            }),
        );
        echo.route(
            "shop",
            json!([
                {
                    "matches": [prefix("/prefix")], "backendRefs": to("echo-v1"),
                    "filters": rewrite(json!({ "type": "ReplacePrefixMatch", "replacePrefixMatch": "/" })),
                },
                {
                    "matches": [prefix("/strip/me")], "backendRefs": to("echo-v1"),
                    "filters": rewrite(json!({ "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" })),
                },
                {
                    "matches": [prefix("/full")], "backendRefs": to("echo-v1"),
                    "filters": rewrite(json!({ "type": "ReplaceFullPath", "replaceFullPath": "/one" })),
                },
                {
                    "matches": [prefix("/host")], "backendRefs": to("echo-v1"),
                    "filters": [{ "type": "URLRewrite", "urlRewrite": { "hostname": "rewritten.example" } }],
                },
                { "matches": [prefix("/backend")], "backendRefs": backend },
                {
                    "matches": [prefix("/response")], "backendRefs": to("echo-v1"),
                    "filters": edit("ResponseHeaderModifier", json!({
                        "set": [{ "name": "content-type", "value": "text/x-other" }],
                        "add": [{ "name": "x-added", "value": "yes" }],
                        "remove": ["date"],
                    })),
                },
            ]),
        )?;
        for (path, wanted) in [
            ("/prefix/one/two?headers", "/one/two?headers"),
            ("/prefix?headers", "/?headers"),
            ("/prefix/?headers", "/?headers"),
            ("/strip/me/a?headers&b=/strip/me", "/new/a?headers&b=/strip/me"),
            ("/full/a/b?headers", "/one?headers"),
            ("/host/a?headers", "/host/a?headers"),
        ] {
            let got = echo.get(path, &["-H", "Host: echo"])?;
            ensure!(got.request(":path") == Some(wanted), "{path}: {got:?}");
            let host = if path.starts_with("/host") { "rewritten.example" } else { "echo" };
            ensure!(got.request("host") == Some(host), "{path}: {got:?}");
        }
        let sent = ["-H", "x-set: mine", "-H", "X-Add: mine", "-H", "x-remove: mine", "-H", "x-other: mine"];
        let got = echo.get("/backend?headers", &sent)?;
        for (name, wanted) in [("x-set", Some("backend")), ("x-remove", None), ("x-other", Some("mine"))] {
            ensure!(got.request(name) == wanted, "{name}: {got:?}");
        }
        let added = got.request("x-add").unwrap_or_default().replace(' ', "");
        ensure!(added == "mine,more", "{got:?}");
        let got = echo.get("/response", &[])?;
        ensure!(got.response("content-type") == Some("text/x-other"), "{got:?}");
        ensure!(got.response("x-added") == Some("yes") && got.response("date").is_none(), "{got:?}");
        Ok(())
    });
}

#[test]
fn a_redirect_says_where_to_ask_instead() {
    test("route-redirects", |world| {
        let echo = Echo::open(world)?;
        let redirect = |path: &str, redirect: Value| {
            json!({
                "matches": [prefix(path)],
                "filters": [{ "type": "RequestRedirect", "requestRedirect": redirect }],
            })
        };
        echo.route("shop", json!([
            redirect("/scheme", json!({ "scheme": "https" })),
            redirect("/host", json!({ "hostname": "example.org" })),
            redirect("/port", json!({ "port": 8083 })),
            redirect("/scheme-port", json!({ "scheme": "https", "port": 443, "statusCode": 301 })),
            redirect("/full", json!({ "path": { "type": "ReplaceFullPath", "replaceFullPath": "/to" } })),
            redirect("/old", json!({
                "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" }, "statusCode": 301,
            })),
        ]))?;
        for (path, status, wanted) in [
            ("/scheme/a?b", 302, "https://echo/scheme/a?b"),
            ("/host/a", 302, "http://example.org/host/a"),
            ("/port", 302, "http://echo:8083/port"),
            ("/scheme-port", 301, "https://echo/scheme-port"),
            ("/full/a?b=c", 302, "http://echo/to?b=c"),
            ("/old/a/b", 301, "http://echo/new/a/b"),
        ] {
            let got = echo.get(path, &["-H", "Host: echo"])?;
            ensure!(got.status == status && got.response("location") == Some(wanted), "{path}: {got:?}");
        }
        Ok(())
    });
}

/// A route in a client's namespace holds for clients there, and for nobody else.
#[test]
fn a_consumers_route_is_its_namespaces_own() {
    test("route-consumer", |world| {
        let echo = Echo::open(world)?;
        let edit = json!([{
            "type": "RequestHeaderModifier",
            "requestHeaderModifier": { "set": [{ "name": "x-route", "value": "consumer" }] },
        }]);
        // The Service that was called may be sent to without a grant.
        echo.route("other", json!([{ "backendRefs": to("echo"), "filters": edit }]))?;
        let url = format!("{}/?headers", echo.service.url());
        let got = get(&echo.other, &[&url])?;
        ensure!(got.request("x-route") == Some("consumer"), "{got:?}");
        let got = get(&echo.client, &[&url])?;
        ensure!(got.status == 200 && got.request("x-route").is_none(), "{got:?}");
        // With a producer's route as well each has its own.
        echo.route("shop", json!([{ "backendRefs": to("echo-v2") }]))?;
        for _ in 0..10 {
            ensure!(echo.get("/", &[])?.version() == "v2");
        }
        let got = get(&echo.other, &[&url])?;
        ensure!(got.request("x-route") == Some("consumer"), "{got:?}");
        world.delete("HTTPRoute", "other", "echo")?;
        eventually("the producer's holds there", || {
            let got = get(&echo.other, &[&url])?;
            ensure!(got.version() == "v2" && got.request("x-route").is_none(), "{got:?}");
            Ok(())
        })
    });
}

#[test]
fn a_backend_that_may_not_be_sent_to_is_500_for_its_share() {
    test("route-backends", |world| {
        let echo = Echo::open(world)?;
        let far = world.service("other", "far").port("http", 80, 8080).apply()?;
        let pod = world.pod("other", "far-1").label("app", "far").start()?;
        let _far = pod.serve(&["--name", "far", "--version", "far"])?;
        let to_far = json!([{ "name": "far", "namespace": "other", "port": 80 }]);
        let half = json!([
            { "name": "echo-v1", "port": 80, "weight": 1 }, { "name": "nobody", "port": 80, "weight": 1 },
        ]);
        echo.route("shop", json!([
            { "matches": [prefix("/missing")], "backendRefs": to("nobody") },
            { "matches": [prefix("/port")], "backendRefs": [{ "name": "echo-v1", "port": 81 }] },
            { "matches": [prefix("/kind")], "backendRefs": [{ "group": "example.com", "kind": "Other", "name": "x", "port": 80 }] },
            { "matches": [prefix("/none")] },
            { "matches": [prefix("/zero")], "backendRefs": [{ "name": "echo-v1", "port": 80, "weight": 0 }] },
            { "matches": [prefix("/far")], "backendRefs": to_far },
            { "matches": [prefix("/half")], "backendRefs": half },
            { "matches": [prefix("/good")], "backendRefs": to("echo-v1") },
        ]))?;
        for path in ["/missing", "/port", "/kind", "/none", "/zero", "/far"] {
            let got = echo.get(path, &[])?;
            ensure!(
                got.status == 500 && got.response("x-sluice-reason") == Some("backend_not_found"),
                "{path}: {got:?}"
            );
        }
        ensure!(echo.get("/good", &[])?.status == 200);
        let url = format!("{}/half", echo.service.url());
        let report = Load::start(&echo.client, &url, &["--requests", "1000"])?.finish()?;
        ensure!((400..=600).contains(&report.ok) && report.ok + report.failed == 1000, "{report:?}");

        // Another namespace has to allow it: this kind, from this namespace, to this Service.
        let grant = |kind: &str, from: &str, to: &str| {
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
                "metadata": { "name": "from-shop", "namespace": "other" },
                "spec": {
                    "from": [{ "group": "gateway.networking.k8s.io", "kind": kind, "namespace": from }],
                    "to": [{ "group": "", "kind": "Service", "name": to }],
                },
            })
        };
        for (kind, from, to) in
            [("GRPCRoute", "shop", "far"), ("HTTPRoute", "other", "far"), ("HTTPRoute", "shop", "near")]
        {
            world.apply(grant(kind, from, to))?;
            std::thread::sleep(Duration::from_millis(300));
            ensure!(echo.get("/far", &[])?.status == 500, "{kind} {from} {to}");
        }
        world.apply(grant("HTTPRoute", "shop", "far"))?;
        eventually("it is allowed", || {
            let got = echo.get("/far", &[])?;
            ensure!(got.version() == "far", "{got:?}");
            Ok(())
        })?;
        world.delete("ReferenceGrant", "other", "from-shop")?;
        eventually("it is forbidden again", || {
            let got = echo.get("/far", &[])?;
            ensure!(got.status == 500, "{got:?}");
            Ok(())
        })?;
        drop(far);
        Ok(())
    });
}

/// A policy for a rule of a route goes before one for the route, and both before the Service's.
#[test]
fn policies_hold_for_a_route_and_for_a_rule_of_it() {
    test("route-policies", |world| {
        let echo = Echo::open(world)?;
        let policy = |name: &str, target: Value, limit: u32| {
            json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "namespace": "shop", "name": name },
                "spec": {
                    "targetRefs": [target],
                    "rateLimits": [{ "name": "limit", "requests": limit, "interval": "1h" }],
                    "headers": { "response": { "set": [{ "name": "x-policy", "value": name }] } },
                },
            })
        };
        let of_route = |section: Option<&str>| {
            let mut target =
                json!({ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "echo" });
            if let Some(section) = section {
                target["sectionName"] = section.into();
            }
            target
        };
        world.apply(policy("service", json!({ "name": "echo-v1" }), 1000))?;
        world.apply(policy("route", of_route(None), 3))?;
        world.apply(policy("rule", of_route(Some("slow")), 2))?;
        echo.route(
            "shop",
            json!([
                { "name": "slow", "matches": [prefix("/slow")], "backendRefs": to("echo-v1") },
                { "name": "rest", "backendRefs": to("echo-v1") },
            ]),
        )?;
        for (path, by, passes) in [("/slow", "rule", 2), ("/", "route", 3)] {
            eventually("the policy holds", || {
                let asked = ["explain", "--pod", "shop/client", "--to", "echo.shop:80", "GET", path];
                let (code, said, error) = echo.agent.sluice(&asked)?;
                ensure!(code == 0 && said.contains(&format!("TrafficPolicy shop/{by}")), "{said} {error}");
                Ok(())
            })?;
            for n in 1..=passes + 1 {
                let got = echo.get(path, &[])?;
                let status = if n <= passes { 200 } else { 429 };
                ensure!(got.status == status, "{path} {n}: {got:?}");
                if status == 200 {
                    ensure!(got.response("x-policy") == Some(by), "{path}: {got:?}");
                }
            }
        }
        // Who calls the Service itself has the Service's policy.
        let got = get(&echo.client, &[&echo.versions[0].url()])?;
        ensure!(got.status == 200 && got.response("x-policy") == Some("service"), "{got:?}");
        Ok(())
    });
}

/// A rollout by weight takes nothing of the protection away that the Service has which is called: its limits, its rules for tags
/// from outside, and its lanes.
#[test]
fn the_policy_of_the_service_that_is_called_holds_behind_its_route() {
    test("route-called", |world| {
        let echo = Echo::open(world)?;
        let policy = |spec: Value| {
            let metadata = json!({ "namespace": "shop", "name": "echo" });
            json!({ "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": metadata, "spec": spec })
        };
        world.apply(policy(json!({
            "targetRefs": [{ "name": "echo" }],
            "stripTags": { "from": [{ "workload": "client" }] },
            "rules": [{
                "name": "limited", "match": { "path": { "value": "/limited" } },
                "rateLimits": [{ "name": "limit", "requests": 3, "interval": "1h" }],
            }],
        })))?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane",
            "metadata": { "name": "gray", "namespace": "shop" },
            "spec": {
                "tag": "gray", "targetRefs": [{ "name": "echo" }],
                "entry": [{ "match": { "headers": [{ "name": "x-user", "value": "ann" }] } }],
            },
        }))?;
        echo.route(
            "shop",
            json!([{ "backendRefs": [
            { "name": "echo-v1", "port": 80, "weight": 100 }, { "name": "echo-v2", "port": 80, "weight": 0 },
        ] }]),
        )?;
        eventually("the policy holds", || {
            let asked = ["explain", "--pod", "shop/client", "--to", "echo.shop:80", "GET", "/limited"];
            let (code, said, error) = echo.agent.sluice(&asked)?;
            ensure!(code == 0 && said.contains("TrafficPolicy shop/echo"), "{said} {error}");
            Ok(())
        })?;
        for n in 1..=4 {
            let got = echo.get("/limited", &[])?;
            ensure!(got.status == if n <= 3 { 200 } else { 429 }, "{n}: {got:?}");
        }
        let tag_of = |args: &[&str]| -> Result<Option<String>> {
            let got = echo.get("/?headers", args)?;
            ensure!(got.status == 200, "{got:?}");
            Ok(got.request("x-mse-tag").map(str::to_owned))
        };
        for http in ["--http1.1", "--http2-prior-knowledge"] {
            let tag = tag_of(&[http, "-H", "x-mse-tag: gray"])?;
            ensure!(tag.is_none(), "{http}: {tag:?}, from outside");
            let tag = tag_of(&[http, "-H", "x-user: ann"])?;
            ensure!(tag.as_deref() == Some("gray"), "{http}: {tag:?} of who enters");
            let tag = tag_of(&[http, "-H", "x-user: bob"])?;
            ensure!(tag.is_none(), "{http}: {tag:?} of who does not");
        }
        let asked =
            ["explain", "--pod", "shop/client", "--to", "echo.shop:80", "-H", "x-user: ann", "GET", "/"];
        let (_, said, error) = echo.agent.sluice(&asked)?;
        ensure!(said.contains("entry[0] of TrafficLane shop/gray"), "{said} {error}");
        Ok(())
    });
}

/// gRPC's calls are told apart by service and method, each by itself on one channel.
#[test]
fn grpc_calls_of_one_channel_go_by_method_and_weight() {
    test("route-grpc", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let service = |name: &str| world.service("shop", name).port("grpc", 80, 50051);
        let echo = service("echo").apply()?;
        let mut servers: Vec<(Process, Pod)> = Vec::new();
        for version in ["v1", "v2"] {
            let name = format!("echo-{version}");
            world.service("shop", &name).port("grpc", 80, 50051).selector("version", version).apply()?;
            let pod =
                world.pod("shop", &format!("echo-{version}")).label("app", "echo").label("version", version);
            let pod = pod.start()?;
            servers.push((grpc_process(&pod, 50051, version)?, pod));
        }
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let weighted = json!([{ "name": "echo-v1", "port": 80, "weight": 7 }, { "name": "echo-v2", "port": 80, "weight": 3 }]);
        let by = |method: Value| json!([{ "method": method }]);
        let rules = json!([
            {
                "name": "unary", "matches": by(json!({ "service": "test.Echo", "method": "Unary" })), "backendRefs": weighted,
            },
            { "matches": by(json!({ "service": "test.Echo" })), "backendRefs": to("echo-v2") },
            {
                "matches": [{
                    "method": { "service": "test.Echo", "method": "Unary" }, "headers": [{ "name": "who", "value": "me" }],
                }],
                "backendRefs": to("echo-v1"),
            },
        ]);
        world.apply(route("GRPCRoute", "shop", "echo", "echo", &rules))?;
        let target = format!("{}:{}", echo.ipv4, echo.port);
        let script = script("grpc_routes.py");
        eventually("the route is there", || {
            let said: Value = serde_json::from_str(&client.run(python(), &[&script, &target, "1"])?)?;
            ensure!(said["unknown"] == "UNIMPLEMENTED", "{said}");
            Ok(())
        })?;
        let said: Value = serde_json::from_str(&client.run(python(), &[&script, &target, "2000"])?)?;
        let share = said["unary"]["v2"].as_u64().unwrap_or_default() as f64 / 20.0;
        ensure!((share - 30.0).abs() < 4.0, "{said}");
        ensure!(said["stream"] == json!({ "v2": 20 }), "{said}");
        ensure!(said["header"] == json!({ "v1": 20 }), "{said}");
        // A rule is counted by its name.
        let labels = [("route_kind", "GRPCRoute"), ("route_rule", "unary")];
        let counted = agent.metrics()?.sum("sluice_route_requests_total", &labels);
        ensure!(counted >= 2000.0, "{counted}: {said}");
        // One channel, and one connection of it.
        ensure!(agent.redirected()? <= 3, "{} connections", agent.redirected()?);
        Ok(())
    });
}
