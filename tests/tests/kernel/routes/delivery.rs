//! Progressive delivery by routes: weights that change under load, the analysis that a controller makes of them, and a canary
//! whose whole chain stays in its lane.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Capture, Load, Prometheus, Shop, World, ask, eventually, test, test_in};

use super::{Echo, route};

/// What progressive delivery does: weights are changed again and again under load, and nobody notices.
#[test]
fn weights_are_kept_and_change_under_load_without_a_failure() {
    test("route-weights", |world| {
        let echo = Echo::open(world)?;
        let split = |v1: u32, v2: u32| {
            json!([{ "backendRefs": [
                { "name": "echo-v1", "port": 80, "weight": v1 }, { "name": "echo-v2", "port": 80, "weight": v2 },
            ] }])
        };
        for (v1, v2) in [(90, 10), (1, 3)] {
            echo.route("shop", split(v1, v2))?;
            let report =
                Load::start(&echo.client, &echo.service.url(), &["--requests", "10000"])?.finish()?;
            let share = report.chains.get("v2").copied().unwrap_or_default() as f64 / 100.0;
            let wanted = f64::from(v2) * 100.0 / f64::from(v1 + v2);
            ensure!(report.failed == 0 && (share - wanted).abs() < 2.0, "{share} of {wanted}: {report:?}");
        }
        let load = Load::start(&echo.client, &echo.service.url(), &["--connections", "8"])?;
        for v2 in [0, 5, 20, 50, 80, 100, 0, 100, 30] {
            echo.route("shop", split(100 - v2, v2))?;
            std::thread::sleep(Duration::from_millis(300));
        }
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 1000, "{report:?}");
        ensure!(report.chains.keys().eq(["v1", "v2"]), "{report:?}");
        Ok(())
    });
}

/// The expressions of the recipes' analyses, as they stand there.
fn analyses() -> Result<Vec<String>> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "deploy", "RECIPES.md"].iter().collect();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        if !line.trim_end().ends_with("query: |") {
            continue;
        }
        let mut query = String::new();
        while let Some(of_query) = lines.next_if(|next| depth(next) > depth(line)) {
            query = format!("{query} {}", of_query.trim());
        }
        found.push(query);
    }
    Ok(found)
}

/// What the controllers of progressive delivery do: they patch weights through the API server under load, and ask Prometheus how
/// the canary does.
#[test]
fn weights_are_patched_through_the_api_and_the_analysis_has_its_numbers() -> Result<()> {
    let world = World::watched("route-rollout")?;
    test_in(&world, |world| {
        let echo = Echo::open(world)?;
        let rules = [env!("CARGO_MANIFEST_DIR"), "..", "deploy", "overlays", "monitoring", "rules.yml"];
        let prometheus = Prometheus::start(world, &echo.agent, &rules.iter().collect::<PathBuf>())?;
        let split = |v2: u32| {
            json!([{ "name": "split", "backendRefs": [
                { "name": "echo-v1", "port": 80, "weight": 100 - v2 }, { "name": "echo-v2", "port": 80, "weight": v2 },
            ] }])
        };
        echo.route("shop", split(0))?;
        let load = Load::start(&echo.client, &echo.service.url(), &["--connections", "8"])?;
        let step = |v2: u32| {
            echo.world.edit("HTTPRoute", "shop", "echo", |route| {
                let backends = &mut route["spec"]["rules"][0]["backendRefs"];
                backends[0]["weight"] = (100 - v2).into();
                backends[1]["weight"] = v2.into();
            })
        };
        for v2 in [5, 10, 20, 40, 60, 80, 100, 50, 0, 25] {
            step(v2)?;
            std::thread::sleep(Duration::from_millis(400));
        }
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 1000, "{report:?}");
        // The last step holds, to within two points.
        let report = Load::start(&echo.client, &echo.service.url(), &["--requests", "10000"])?.finish()?;
        let share = report.chains.get("v2").copied().unwrap_or_default() as f64 / 100.0;
        ensure!(report.failed == 0 && (share - 25.0).abs() < 2.0, "{share} of 25: {report:?}");

        let analyses = analyses()?;
        ensure!(analyses.len() >= 3, "{analyses:?}");
        for analysis in analyses {
            let names = [
                ("{{ namespace }}", "shop"),
                ("{{ target }}-canary", "echo-v2"),
                ("orders-canary", "echo-v2"),
                ("shop/orders", "shop/echo"),
                ("{{ interval }}", "1m"),
                ("2m", "1m"),
            ];
            let query = names.iter().fold(analysis, |query, (from, to)| query.replace(from, to));
            eventually(&format!("the analysis has its number: {query}"), || {
                Load::start(&echo.client, &echo.service.url(), &["--requests", "200"])?.finish()?;
                let found = prometheus.query(&query)?;
                let value = found.first().and_then(|series| series["value"][1].as_str()?.parse::<f64>().ok());
                // A part or a percentage: all of it went well.
                ensure!(
                    found.len() == 1
                        && value
                            .is_some_and(|value| [1.0, 100.0].iter().any(|all| (value - all).abs() < 1e-9)),
                    "{found:?}"
                );
                Ok(())
            })?;
        }
        Ok(())
    });
    Ok(())
}

/// A canary of one service in the chain, chosen by a route: what it calls stays in its lane, to the last hop.
#[test]
fn the_chain_behind_a_canary_keeps_its_lane() {
    test("route-lane", |world| {
        let shop = Shop::open(world, Capture::Enabled)?;
        let canary = world.service("shop", "orders-canary").port("http", 80, 8080);
        canary.spec("selector", json!({ "app": "orders", "version": "gray" })).apply()?;
        let stable = world.service("shop", "orders-stable").port("http", 80, 8080);
        stable.selector("app", "orders").apply()?;
        let agent = world.agent().start()?;
        for pod in shop.pods() {
            agent.enrolled(pod)?;
        }
        let backends = |colour: Option<Value>| {
            let mut canary = json!({ "name": "orders-canary", "port": 80, "weight": 5 });
            if let Some(filters) = colour {
                canary["filters"] = filters;
            }
            json!([{ "backendRefs": [{ "name": "orders-stable", "port": 80, "weight": 95 }, canary] }])
        };
        let by_header = json!([{
            "type": "RequestHeaderModifier",
            "requestHeaderModifier": { "set": [{ "name": "x-mse-tag", "value": "gray" }] },
        }]);
        let lane = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane",
            "metadata": { "name": "gray", "namespace": "shop" },
            "spec": {
                "tag": "gray", "targetRefs": [{ "name": "orders-canary" }],
                "entry": [{ "match": { "path": { "value": "/" } } }],
            },
        });
        for (by, colour) in [("header", Some(by_header)), ("lane", None)] {
            if by == "lane" {
                world.apply(lane.clone())?;
            }
            world.apply(route("HTTPRoute", "shop", "orders", "orders", &backends(colour)))?;
            eventually("the canary is in its lane", || {
                let report = shop.load(&["--requests", "500"])?.finish()?;
                ensure!(report.chains.keys().eq(["v1 gray v1 gray", "v1 v1 v1 v1"]), "{by}: {report:?}");
                ensure!(report.failed == 0, "{by}: {report:?}");
                Ok(())
            })?;
            let report = shop.load(&["--requests", "10000"])?.finish()?;
            // All of the chain, or nothing of it.
            ensure!(report.chains.keys().eq(["v1 gray v1 gray", "v1 v1 v1 v1"]), "{by}: {report:?}");
            let share = report.chains["v1 gray v1 gray"] as f64 / 100.0;
            ensure!(report.failed == 0 && (share - 5.0).abs() < 2.0, "{by}: {share} %: {report:?}");
            // Who asks for it gets it, too.
            let answer = shop.ask(&["x-mse-tag: gray"])?;
            ensure!(answer.versions() == "v1 gray v1 gray", "{by}: {answer:?}");
        }
        let answer = ask(&shop.client, &format!("{}/?headers", shop.gateway().url()), &[])?;
        ensure!(answer.chain.len() == 4, "{answer:?}");
        Ok(())
    });
}

/// Two services of the chain are released by weight at the same time, each with a Service for its canary alone. A request that
/// the first has put into the lane, or its client, is not drawn for at the second.
#[test]
fn weights_take_no_request_out_of_its_lane() {
    test("route-lane-stays", |world| {
        let shop = Shop::open(world, Capture::Enabled)?;
        for (name, (stable, canary)) in [("orders", (50, 50)), ("stock", (90, 10))] {
            for (kind, version) in [("stable", "v1"), ("canary", "gray")] {
                let service = world.service("shop", &format!("{name}-{kind}")).port("http", 80, 8080);
                service.spec("selector", json!({ "app": name, "version": version })).apply()?;
            }
            let rules = json!([{ "backendRefs": [
                { "name": format!("{name}-stable"), "port": 80, "weight": stable },
                { "name": format!("{name}-canary"), "port": 80, "weight": canary },
            ] }]);
            world.apply(route("HTTPRoute", "shop", name, name, &rules))?;
        }
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane",
            "metadata": { "name": "gray", "namespace": "shop" },
            "spec": {
                "tag": "gray", "targetRefs": [{ "name": "orders-canary" }, { "name": "stock-canary" }],
                "entry": [{ "match": { "path": { "value": "/" } } }],
            },
        }))?;
        let agent = world.agent().start()?;
        for pod in shop.pods() {
            agent.enrolled(pod)?;
        }
        let all = ["v1 gray v1 gray", "v1 v1 v1 gray", "v1 v1 v1 v1"];
        eventually("both are split", || {
            let report = shop.load(&["--requests", "500"])?.finish()?;
            ensure!(report.failed == 0 && report.chains.keys().eq(all), "{report:?}");
            Ok(())
        })?;
        let report = shop.load(&["--requests", "6000"])?.finish()?;
        // Of the gray half everything is gray; of the other a tenth enters the lane at its last hop.
        ensure!(report.failed == 0 && report.chains.keys().eq(all), "{report:?}");
        for (chain, wanted) in all.into_iter().zip([50.0, 5.0, 45.0]) {
            let share = report.chains[chain] as f64 * 100.0 / report.ok as f64;
            ensure!((share - wanted).abs() < 3.0, "{chain}: {share} % of {wanted}: {report:?}");
        }
        for _ in 0..50 {
            let answer = shop.ask(&["x-mse-tag: gray"])?;
            ensure!(answer.versions() == "v1 gray v1 gray", "{answer:?}");
        }
        let asked = [
            "explain",
            "--pod",
            "shop/client",
            "--to",
            "orders.shop:80",
            "-H",
            "x-mse-tag: gray",
            "GET",
            "/",
        ];
        let (_, said, complaint) = agent.sluice(&asked)?;
        ensure!(said.contains("weights do not take a request out of it"), "{said}{complaint}");
        Ok(())
    });
}
