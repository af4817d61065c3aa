//! Lanes over several hops, each hop a connection of its own that is captured in another pod.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, App, Capture, Load, Shop, World, ask, eventually, test, test_with_both};

/// An opened shop and an agent that has enrolled all of it.
fn open(world: &World) -> Result<(Shop, Agent)> {
    let shop = Shop::open(world, Capture::Enabled)?;
    let agent = world.agent().start()?;
    for pod in shop.pods() {
        agent.enrolled(pod)?;
    }
    Ok((shop, agent))
}

#[test]
fn a_tag_holds_along_the_chain() {
    test_with_both("lanes", |world| {
        let (shop, agent) = open(world)?;
        for (headers, expected) in [
            (&[][..], "v1 v1 v1 v1"),
            (&["x-mse-tag: gray"], "v1 gray v1 gray"),
            (&["baggage: x-mse-tag=gray"], "v1 gray v1 gray"),
            (&["baggage: user=anna, x-mse-tag=gray;ttl=5 , region=eu"], "v1 gray v1 gray"),
            // The header is the first that answers.
            (&["x-mse-tag: gray", "baggage: x-mse-tag=blue"], "v1 gray v1 gray"),
            (&["x-mse-tag: blue"], "v1 v1 v1 v1"),
        ] {
            for _ in 0..10 {
                let answer = shop.ask(headers)?;
                ensure!(answer.versions() == expected, "{headers:?}: {answer:?}");
            }
        }
        let metrics = agent.metrics()?;
        let tags = |service, outcome| {
            metrics.sum("sluice_tags_total", &[("destination_service", service), ("outcome", outcome)]) as u64
        };
        ensure!((tags("orders", "routed"), tags("orders", "fell_back")) == (40, 10));
        ensure!((tags("pricing", "routed"), tags("pricing", "fell_back")) == (0, 50));
        ensure!((tags("stock", "routed"), tags("stock", "fell_back")) == (40, 10));
        Ok(())
    });
}

#[test]
fn both_carriers_are_set_and_the_rest_is_left() {
    test("carriers", |world| {
        let (shop, _agent) = open(world)?;
        let url = format!("{}/?headers", shop.gateway().url());
        let baggage = "baggage: user=anna%20b,x-mse-tag=gray;ttl=5, region = eu";
        let answer = ask(
            &shop.client,
            &url,
            &[baggage, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
        )?;
        ensure!(answer.chain.len() == 4, "{answer:?}");
        for hop in &answer.chain {
            ensure!(hop.headers.get("x-mse-tag").is_some_and(|tag| tag == "gray"), "{hop:?}");
            let baggage = hop.headers.get("baggage").context("no baggage")?;
            for member in ["user=anna%20b", "x-mse-tag=gray", "region = eu"] {
                ensure!(baggage.contains(member), "{hop:?}");
            }
            let trace = hop.headers.get("traceparent").context("no trace")?;
            ensure!(trace.contains("0af7651916cd43dd8448eb211c80319c"), "{hop:?}");
        }
        // The header alone: the baggage is ours to add.
        let answer = ask(&shop.client, &url, &["x-mse-tag: gray"])?;
        for hop in &answer.chain {
            ensure!(hop.headers.get("x-mse-tag").is_some_and(|tag| tag == "gray"), "{hop:?}");
            ensure!(hop.headers.get("baggage").is_some_and(|baggage| baggage == "x-mse-tag=gray"), "{hop:?}");
        }
        // Without a tag nothing is added.
        let answer = ask(&shop.client, &url, &[])?;
        for hop in &answer.chain {
            ensure!(
                !hop.headers.contains_key("x-mse-tag") && !hop.headers.contains_key("baggage"),
                "{hop:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_callers_own_tag_is_the_requests() {
    test("own-tag", |world| {
        let (shop, _agent) = open(world)?;
        let stock = &shop.services[3];
        let (gray, plain) = (&shop.app("orders-gray")?.pod, &shop.app("orders-v1")?.pod);
        ensure!(ask(gray, &stock.url(), &[])?.versions() == "gray");
        ensure!(ask(plain, &stock.url(), &[])?.versions() == "v1");
        // What the request says comes first.
        ensure!(ask(gray, &stock.url(), &["x-mse-tag: blue"])?.versions() == "v1");
        Ok(())
    });
}

#[test]
fn a_lane_comes_and_goes() {
    test_with_both("lane-life", |world| {
        let (shop, agent) = open(world)?;
        let url = shop.services[2].url();
        ensure!(ask(&shop.client, &url, &["x-mse-tag: gray"])?.versions() == "v1 gray");
        // Load in the lane all the while: nobody may notice.
        let load = Load::start(&shop.client, &url, &["--connections", "4", "--header", "x-mse-tag: gray"])?;
        let next = shop.services[3].url();
        let pricing = App::start_unready(world, "pricing", "gray", Some(&next))?;
        // What it is asked before it is enrolled it would ask on without Sluice, and nothing else serves ClusterIPs here.
        agent.enrolled(&pricing.pod)?;
        pricing.pod.set_ready(true)?;
        eventually("pricing is in the lane", || {
            let answer = ask(&shop.client, &url, &["x-mse-tag: gray"])?;
            ensure!(answer.versions() == "gray gray", "{answer:?}");
            Ok(())
        })?;
        pricing.pod.set_terminating()?;
        eventually("pricing falls back to the baseline", || {
            let answer = ask(&shop.client, &url, &["x-mse-tag: gray"])?;
            ensure!(answer.versions() == "v1 gray", "{answer:?}");
            Ok(())
        })?;
        let report = load.stop()?;
        ensure!(report.failed == 0, "{report:?}");
        ensure!(report.chains.keys().eq(["gray gray", "v1 gray"]), "{report:?}");
        Ok(())
    });
}

#[test]
fn an_untagged_request_never_reaches_a_lane() {
    test("untagged", |world| {
        let (shop, _agent) = open(world)?;
        let stock = &shop.services[3];
        let report = Load::start(&shop.client, &stock.url(), &["--requests", "500"])?.finish()?;
        ensure!(report.ok == 500 && report.chains.keys().eq(["v1"]), "{report:?}");
        shop.app("stock-v1")?.pod.set_ready(false)?;
        let refused = eventually("stock has no baseline", || {
            let said = shop.client.run("curl", &["-sS", "-i", "-m", "10", &stock.url()])?;
            ensure!(!said.contains("\"v1\""), "{said}");
            Ok(said)
        })?;
        ensure!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        ensure!(refused.to_lowercase().contains("x-sluice-reason: no_endpoint"), "{refused}");
        ensure!(ask(&shop.client, &stock.url(), &["x-mse-tag: gray"])?.versions() == "gray");
        Ok(())
    });
}

#[test]
fn a_computer_outside_the_cluster_joins_a_lane() {
    test("laptop", |world| {
        let (shop, agent) = open(world)?;
        world.namespace("home", Capture::Unmentioned)?;
        let laptop = world.pod("home", "laptop").start()?;
        let _running = laptop.serve(&["--name", "pricing", "--version", "laptop"])?;
        let pricing = shop.services[2].url();
        let asked =
            |headers: &[&str]| Ok::<_, anyhow::Error>(ask(&shop.client, &pricing, headers)?.versions());
        // The lane has no instance of it.
        ensure!(asked(&["x-mse-tag: gray"])?.starts_with("v1"));
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficLane",
            "metadata": {"name": "gray", "namespace": "shop"},
            "spec": {
                "tag": "gray",
                "endpoints": [{"service": "pricing", "address": format!("{}:8080", laptop.ipv4())}],
            },
        }))?;
        eventually("the lane's requests go there", || {
            ensure!(asked(&["x-mse-tag: gray"])? == "laptop");
            Ok(())
        })?;
        for _ in 0..10 {
            ensure!(asked(&["x-mse-tag: gray"])? == "laptop");
            ensure!(asked(&[])?.starts_with("v1"), "nobody else's do");
        }
        let routed = [("destination_service", "pricing"), ("outcome", "routed")];
        ensure!(agent.metrics()?.sum("sluice_tags_total", &routed) >= 10.0);
        world.delete("TrafficLane", "shop", "gray")?;
        eventually("they come back", || {
            ensure!(asked(&["x-mse-tag: gray"])?.starts_with("v1"));
            Ok(())
        })
    });
}

/// Where requests enter a lane only its rules decide who is in, if it says so; behind that the tag holds as ever.
#[test]
fn a_tag_that_is_not_trusted_is_removed_where_requests_enter() {
    test("untrusted", |world| {
        let (shop, agent) = open(world)?;
        let lane = |trust: bool| {
            world.apply(json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane",
                "metadata": { "name": "gray", "namespace": "shop" },
                "spec": {
                    "tag": "gray", "trustIncomingTag": trust, "targetRefs": [{ "name": "gateway" }],
                    "entry": [{ "match": { "headers": [{ "name": "x-tester", "type": "Present" }] } }],
                },
            }))
        };
        let tag = "x-mse-tag: gray";
        ensure!(shop.ask(&[tag])?.versions() == "v1 gray v1 gray");
        lane(false)?;
        eventually("the tag is not trusted", || {
            ensure!(shop.ask(&[tag])?.versions() == "v1 v1 v1 v1");
            Ok(())
        })?;
        let counted = || -> Result<u64> {
            let labels = [("destination_service", "gateway"), ("outcome", "untrusted")];
            Ok(agent.metrics()?.sum("sluice_tags_total", &labels) as u64)
        };
        let before = counted()?;
        for (headers, expected) in [
            (&[tag][..], "v1 v1 v1 v1"),
            (&["baggage: x-mse-tag=gray"], "v1 v1 v1 v1"),
            (&["x-tester: 1"], "v1 gray v1 gray"),
            (&[tag, "x-tester: 1"], "v1 gray v1 gray"),
            (&["x-mse-tag: blue"], "v1 v1 v1 v1"),
        ] {
            for _ in 0..5 {
                let answer = shop.ask(headers)?;
                ensure!(answer.versions() == expected, "{headers:?}: {answer:?}");
            }
        }
        ensure!(counted()? == before + 15, "{before}, then {}", counted()?);
        // No other Service is an entry.
        let answer = ask(&shop.client, &shop.services[1].url(), &[tag])?;
        ensure!(answer.versions() == "gray v1 gray", "{answer:?}");
        let asked = ["explain", "--pod", "shop/client", "--to", "gateway.shop:80", "-H", tag, "GET", "/"];
        let (_, said, error) = agent.sluice(&asked)?;
        let wanted =
            "gray, which it came with, is removed (trustIncomingTag: false of TrafficLane shop/gray)";
        ensure!(said.contains(wanted), "{said} {error}");
        // The same behind a route, whose own word counts.
        let stable =
            world.service("shop", "gateway-stable").port("http", 80, 8080).selector("app", "gateway");
        let stable = stable.apply()?;
        let route = |filters: serde_json::Value| {
            world.apply(json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": { "name": "gateway", "namespace": "shop" },
                "spec": {
                    "parentRefs": [{ "group": "", "kind": "Service", "name": "gateway" }],
                    "rules": [{ "backendRefs": [{ "name": "gateway-stable", "port": 80, "filters": filters }] }],
                },
            }))
        };
        route(json!([{
            "type": "RequestHeaderModifier",
            "requestHeaderModifier": { "set": [{ "name": "x-mse-tag", "value": "gray" }] },
        }]))?;
        eventually("the route says the tag", || {
            ensure!(shop.ask(&[])?.versions() == "v1 gray v1 gray");
            Ok(())
        })?;
        route(json!([]))?;
        eventually("the route says no tag", || {
            ensure!(shop.ask(&[])?.versions() == "v1 v1 v1 v1");
            Ok(())
        })?;
        ensure!(shop.ask(&[tag])?.versions() == "v1 v1 v1 v1");
        ensure!(shop.ask(&[tag, "x-tester: 1"])?.versions() == "v1 gray v1 gray");
        world.delete("HTTPRoute", "shop", "gateway")?;
        stable.delete()?;
        lane(true)?;
        eventually("the tag is trusted again", || {
            ensure!(shop.ask(&[tag])?.versions() == "v1 gray v1 gray");
            Ok(())
        })
    });
}
