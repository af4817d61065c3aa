//! What routes do besides choosing a backend, that takes more than one request to see: copies, preflights, timeouts, ports.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Load, eventually, test};

use super::{Echo, get, prefix, to};

/// A part of the requests is copied to another version, which nobody hears of.
#[test]
fn a_mirror_gets_copies_and_is_not_heard() {
    test("route-mirror", |world| {
        let echo = Echo::open(world)?;
        let mirror = |service: &str, part: Value| {
            let mut mirror = json!({ "backendRef": { "name": service, "namespace": "shop", "port": 80 } });
            for (name, value) in part.as_object().into_iter().flatten() {
                mirror[name] = value.clone();
            }
            json!({ "type": "RequestMirror", "requestMirror": mirror })
        };
        let rules = |filters: Value| json!([{ "filters": filters, "backendRefs": to("echo-v1") }]);
        let copies = |outcome: &str| -> Result<f64> {
            let labels = [("destination_service", "echo-v2"), ("outcome", outcome)];
            Ok(echo.agent.metrics()?.sum("sluice_mirrored_requests_total", &labels))
        };
        echo.route("shop", rules(json!([mirror("echo-v2", json!({ "percent": 20 }))])))?;
        let before = copies("answered")?;
        let report = Load::start(&echo.client, &echo.service.url(), &["--requests", "10000"])?.finish()?;
        // Only the first version is heard.
        ensure!(report.failed == 0 && report.chains.keys().eq(["v1"]), "{report:?}");
        eventually("the copies have been answered", || {
            let share = (copies("answered")? - before) / 100.0;
            ensure!((share - 20.0).abs() < 2.0, "{share} %");
            Ok(())
        })?;
        // All requests, to several; one that is not there changes nothing.
        let all =
            json!([mirror("echo-v2", json!({})), mirror("echo-v1", json!({})), mirror("nobody", json!({}))]);
        echo.route("shop", rules(all))?;
        let before = copies("answered")?;
        let report = Load::start(&echo.client, &echo.service.url(), &["--requests", "300"])?.finish()?;
        ensure!(report.failed == 0 && report.chains.keys().eq(["v1"]), "{report:?}");
        eventually("each request had its copy", || {
            let ended = copies("answered")? + copies("over_budget")?;
            ensure!(ended - before >= 300.0, "{ended} {before}");
            Ok(())
        })?;
        let (code, said, error) =
            echo.agent.sluice(&["explain", "--pod", "shop/client", "--to", "echo.shop:80", "GET", "/"])?;
        ensure!(
            code == 0 && said.contains("a copy of 100 % of its requests goes to echo-v2.shop:80"),
            "{said} {error}"
        );
        Ok(())
    });
}

/// A page of an allowed origin may ask; its browser is told so.
#[test]
fn browsers_are_told_which_pages_may_ask() {
    test("route-cors", |world| {
        let echo = Echo::open(world)?;
        let cors = json!([{ "type": "CORS", "cors": {
            "allowOrigins": ["https://www.foo.com", "https://*.bar.com"], "allowCredentials": true,
            "allowMethods": ["GET", "PUT"], "allowHeaders": ["x-header-1", "x-header-2"],
            "exposeHeaders": ["x-header-3"], "maxAge": 3600,
        } }]);
        echo.route("shop", json!([{ "filters": cors, "backendRefs": to("echo-v1") }]))?;
        for (origin, allowed) in
            [("https://www.foo.com", true), ("https://a.b.bar.com", true), ("https://foobar.com", false)]
        {
            let origin_line = format!("Origin: {origin}");
            let ask = ["-X", "OPTIONS", "-H", &origin_line, "-H", "Access-Control-Request-Method: PUT"];
            let got = echo.get("/", &ask)?;
            ensure!(got.status == 204 && got.answer.is_none(), "{got:?}");
            for (name, wanted) in [
                ("access-control-allow-origin", origin),
                ("access-control-allow-credentials", "true"),
                ("access-control-allow-methods", "get, put"),
                ("access-control-allow-headers", "x-header-1, x-header-2"),
                ("access-control-max-age", "3600"),
            ] {
                ensure!(got.response(name) == allowed.then_some(wanted), "{name}: {got:?}");
            }
            let got = echo.get("/", &["-H", &origin_line])?;
            ensure!(got.version() == "v1", "{got:?}");
            ensure!(got.response("access-control-allow-origin") == allowed.then_some(origin), "{got:?}");
            ensure!(
                got.response("access-control-expose-headers") == allowed.then_some("x-header-3"),
                "{got:?}"
            );
        }
        Ok(())
    });
}

/// Each status of a redirect that may be chosen.
#[test]
fn a_redirect_has_the_status_that_is_asked_for() {
    test("route-redirect-status", |world| {
        let echo = Echo::open(world)?;
        let statuses = [301, 302, 303, 307, 308];
        let rules = statuses.map(|status| {
            json!({
                "matches": [prefix(&format!("/{status}"))],
                "filters": [{
                    "type": "RequestRedirect",
                    "requestRedirect": { "hostname": "example.org", "statusCode": status },
                }],
            })
        });
        echo.route("shop", json!(rules))?;
        for status in statuses {
            let got = echo.get(&format!("/{status}"), &["-H", "Host: echo"])?;
            let wanted = format!("http://example.org/{status}");
            ensure!(got.status == status && got.response("location") == Some(&wanted), "{status}: {got:?}");
        }
        Ok(())
    });
}

/// A rule's timeouts end a request to a backend that takes longer, and no other.
#[test]
fn a_rule_has_timeouts_of_its_own() {
    test("route-timeouts", |world| {
        let echo = Echo::open(world)?;
        world.service("shop", "slow").port("http", 80, 8080).apply()?;
        let pod = world.pod("shop", "slow-1").label("app", "slow").start()?;
        let _slow = pod.serve(&["--name", "slow", "--version", "v3", "--delay", "1500"])?;
        let rule = |path: &str, backend: &str, timeouts: Value| json!({ "matches": [prefix(path)], "backendRefs": to(backend), "timeouts": timeouts });
        echo.route(
            "shop",
            json!([
                rule("/request", "slow", json!({ "request": "500ms" })),
                rule("/attempt", "slow", json!({ "backendRequest": "500ms" })),
                rule("/enough", "slow", json!({ "request": "20s", "backendRequest": "10s" })),
                // Zero: none.
                rule("/none", "slow", json!({ "request": "0s" })),
                rule("/quick", "echo-v1", json!({ "request": "10s" })),
            ]),
        )?;
        for (path, status, version) in [
            ("/request", 504, ""),
            ("/attempt", 504, ""),
            ("/enough", 200, "v3"),
            ("/none", 200, "v3"),
            ("/quick", 200, "v1"),
        ] {
            let got = echo.get(path, &[])?;
            ensure!(got.status == status && got.version() == version, "{path}: {got:?}");
        }
        Ok(())
    });
}

/// A route whose parent is one port of a Service leaves its other ports alone.
#[test]
fn a_route_is_for_the_port_that_its_parent_names() {
    test("route-port", |world| {
        let echo = Echo::open(world)?;
        let both = world.service("shop", "both").selector("app", "echo");
        let both = both.port("http", 80, 8080).port("more", 81, 8080).apply()?;
        let parent = |port: Option<u16>| {
            let mut parent = json!({ "group": "", "kind": "Service", "name": "both" });
            if let Some(port) = port {
                parent["port"] = port.into();
            }
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": { "name": "both", "namespace": "shop" },
                "spec": { "parentRefs": [parent], "rules": [{ "backendRefs": to("echo-v1") }] },
            })
        };
        let more = format!("http://{}:81", both.ipv4);
        let versions = |url: &str| -> Result<Vec<String>> {
            let report = Load::start(&echo.client, url, &["--requests", "60"])?.finish()?;
            ensure!(report.failed == 0, "{report:?}");
            Ok(report.chains.into_keys().collect())
        };
        world.apply(parent(Some(80)))?;
        eventually("the route is there", || {
            let versions = versions(&both.url())?;
            ensure!(versions == ["v1"], "{versions:?}");
            Ok(())
        })?;
        let other = versions(&more)?;
        ensure!(other == ["v1", "v2"], "{other:?}");
        // Without a port all of them are its parents.
        world.apply(parent(None))?;
        eventually("the route is there, too", || {
            let versions = versions(&more)?;
            ensure!(versions == ["v1"], "{versions:?}");
            Ok(())
        })?;
        ensure!(get(&echo.client, &[&both.url()])?.version() == "v1");
        Ok(())
    });
}
