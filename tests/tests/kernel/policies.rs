//! Policies as Kubernetes objects, from the manifest to the request.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{App, Capture, Shop, World, ask, eventually, test};

/// An instance of a service that says nothing of lanes.
fn start(world: &World, name: &str, next: Option<&str>) -> Result<App> {
    let pod = world.pod("shop", &format!("{name}-new")).label("app", name).label("version", "new");
    let pod = pod.unready().start()?;
    let mut args = vec!["--name", name, "--version", "new"];
    args.extend(next.into_iter().flat_map(|next| ["--next", next, "--next-idle", "500"]));
    let process = pod.serve(&args)?;
    Ok(App { process, pod })
}

fn lane(fallback: &str) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "TrafficLane",
        "metadata": {"name": "new", "namespace": "shop"},
        "spec": {
            "tag": "new",
            "workloadSelector": {"matchLabels": {"version": "new"}},
            "fallback": fallback,
            "targetRefs": [{"name": "gateway"}],
            "entry": [
                {"match": {"headers": [{"name": "x-group", "value": "insiders"}]}},
                {"percentage": {"percent": 30, "key": {"type": "Header", "name": "x-user"}}},
            ],
        },
    })
}

#[test]
fn a_lane_is_an_object_and_ends_with_it() {
    test("lane-object", |world| {
        let shop = Shop::open(world, Capture::Enabled)?;
        let agent = world.agent().start()?;
        world.apply(lane("Baseline"))?;
        let (pricing, stock) = (shop.services[2].url(), &shop.services[3]);
        let news = [start(world, "orders", Some(&pricing))?, start(world, "stock", None)?];
        for pod in shop.pods().chain(news.iter().map(|app| &app.pod)) {
            agent.enrolled(pod)?;
        }
        for app in &news {
            app.pod.set_ready(true)?;
        }
        // Entered by a header at the gateway, and kept where the request says nothing of it any more.
        let insider = "x-group: insiders";
        eventually("the lane", || {
            let versions = shop.ask(&[insider])?.versions();
            ensure!(versions == "v1 new v1 new", "{versions}");
            Ok(())
        })?;
        for _ in 0..10 {
            ensure!(shop.ask(&[])?.versions() == "v1 v1 v1 v1", "without a tag nobody gets there");
            // Its entry is the gateway, and no other service.
            ensure!(ask(&shop.client, &stock.url(), &[insider])?.versions() == "v1");
            // A tag that is there is kept.
            ensure!(shop.ask(&[insider, "x-mse-tag: gray"])?.versions() == "v1 gray v1 gray");
        }
        // By a share of the users: the same ones each time.
        let users = || -> Result<Vec<bool>> {
            let user =
                |user: u32| Ok(shop.ask(&[&format!("x-user: user-{user}")])?.versions() == "v1 new v1 new");
            (0..40).map(user).collect()
        };
        let first = users()?;
        ensure!(first == users()?, "somebody has changed lanes");
        let entered = first.iter().filter(|entered| **entered).count();
        ensure!((4..=22).contains(&entered), "{entered} of 40 users");

        world.apply(lane("Fail"))?;
        let gateway = shop.gateway().url();
        eventually("the gateway has no instance in the lane", || {
            let said = shop.client.run("curl", &["-sS", "-i", "-m", "10", "-H", insider, &gateway])?;
            ensure!(said.starts_with("HTTP/1.1 503 "), "{said}");
            ensure!(said.to_lowercase().contains("x-sluice-reason: lane_unavailable"), "{said}");
            Ok(())
        })?;
        ensure!(shop.ask(&[])?.versions() == "v1 v1 v1 v1");

        // A version that makes no sense: the last good one stays.
        let mut bad = lane("Baseline");
        bad["spec"]["tag"] = "no tag".into();
        world.apply(bad)?;
        eventually("a complaint", || {
            ensure!(agent.log().contains("TrafficLane shop/new: spec.tag: "), "nothing is said of it");
            Ok(())
        })?;
        let refused = shop.client.run("curl", &["-sS", "-i", "-m", "10", "-H", insider, &gateway])?;
        ensure!(refused.starts_with("HTTP/1.1 503 "), "{refused}");

        world.delete("TrafficLane", "shop", "new")?;
        eventually("the lane's end", || {
            let answer = ask(&shop.client, &format!("{gateway}/?headers"), &[insider])?;
            ensure!(answer.chain.iter().all(|hop| !hop.headers.contains_key("x-mse-tag")), "{answer:?}");
            Ok(())
        })
    });
}

#[test]
fn a_policy_is_in_force_while_its_object_is_there() {
    test("policy-object", |world| {
        let shop = Shop::open(world, Capture::Enabled)?;
        let agent = world.agent().start()?;
        for pod in shop.pods() {
            agent.enrolled(pod)?;
        }
        let stock = shop.services[3].url();
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": "stock", "namespace": "shop"},
            "spec": {
                "targetRefs": [{"name": "stock"}],
                "rateLimits": [{"name": "few", "requests": 1, "interval": "1h", "burst": 1}],
            },
        }))?;
        let said = |url: &str| shop.client.run("curl", &["-sS", "-i", "-m", "10", url]);
        eventually("the limit", || {
            let said = said(&stock)?;
            ensure!(said.starts_with("HTTP/1.1 429 "), "{said}");
            ensure!(said.to_lowercase().contains("x-sluice-reason: rate_limited"), "{said}");
            Ok(())
        })?;
        ensure!(said(&shop.services[2].url())?.contains("pricing"), "others are not limited");
        world.delete("TrafficPolicy", "shop", "stock")?;
        eventually("no limit", || {
            for _ in 0..5 {
                ensure!(ask(&shop.client, &stock, &[])?.versions() == "v1");
            }
            Ok(())
        })
    });
}
