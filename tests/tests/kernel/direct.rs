//! Clients that call endpoints themselves, because a registry has told them which there are, or because they are proxies that balance
//! on their own: where the Service's endpoints are managed (`sluice.dev/endpoints: governed`).

use std::{collections::BTreeMap, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_tests::{
    Agent, App, Capture, Load, Pod, PodBuilder, Process, Service, World, ask, eventually, test,
};

use crate::{grpc_calls, grpc_process, intermediaries::nginx_with, python, script};

/// By the instance that was called: who answered how often.
type Answers = BTreeMap<String, BTreeMap<String, u32>>;

/// `orders` of two versions of the baseline and one of lane `gray`, and a client.
struct Instances<'w> {
    world: &'w World,
    orders: Service,
    apps: Vec<App>,
    client: Pod,
    agent: Agent,
}

impl<'w> Instances<'w> {
    fn open(world: &'w World, annotation: Option<&str>) -> Result<Self> {
        world.namespace("shop", Capture::Enabled)?;
        let orders = world.service("shop", "orders").port("http", 80, 8080).apply()?;
        if let Some(value) = annotation {
            orders.edit(|service| {
                service["metadata"]["annotations"] = json!({ "sluice.dev/endpoints": value });
            })?;
        }
        let mut apps = Vec::new();
        for (version, tag) in [("one", None), ("two", None), ("gray", Some("gray"))] {
            let pod = world.pod("shop", &format!("orders-{version}")).label("app", "orders");
            let pod = tag.into_iter().fold(pod, PodBuilder::tag).start()?;
            let process = pod.serve(&["--name", "orders", "--version", version])?;
            apps.push(App { process, pod });
        }
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        Ok(Self { world, orders, apps, client, agent })
    }

    fn address(&self, at: usize) -> String {
        format!("{}:8080", self.apps[at].pod.ipv4())
    }

    fn url(&self, at: usize) -> String {
        format!("http://{}", self.address(at))
    }

    /// A registry's client of all three instances.
    fn registry(&self, header: &[&str]) -> Result<Registry> {
        let all = (0..self.apps.len()).map(|at| self.address(at)).collect::<Vec<_>>().join(",");
        let script = script("registry_client.py");
        let mut command = self.client.command(python())?;
        command.args([script.as_str(), &all]).args(header).stdin(Stdio::piped());
        Ok(Registry(self.client.spawn_command("registry", &mut command)?, 0))
    }

    /// How often each version answered, whichever instance was called.
    fn versions(answers: &Answers) -> BTreeMap<&str, u32> {
        let mut all = BTreeMap::new();
        for (version, count) in answers.values().flatten() {
            *all.entry(version.as_str()).or_default() += count;
        }
        all
    }
}

/// The client, and how often it has been told to ask.
struct Registry(Process, usize);

impl Registry {
    fn ask(&mut self, requests: u32) -> Result<Answers> {
        let Self(process, asked) = self;
        *asked += 1;
        process.tell(&format!("{requests}\n"))?;
        let end = format!(" answered {asked}\n");
        process.says(&end)?;
        let log = process.log();
        let line = log.split(&end).next().and_then(|before| before.lines().last()).unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("the client said {line:?}"))
    }
}

#[test]
fn a_registrys_client_keeps_its_choice_and_finds_its_lane() {
    test("direct-registry", |world| {
        let instances = Instances::open(world, Some("governed"))?;
        let [one, two, gray] = [0, 1, 2].map(|at| instances.address(at));
        let of = |version: &str, count: u32| BTreeMap::from([(version.to_owned(), count)]);
        // Untagged: whom it calls answers, but none of a lane does.
        let mut untagged = instances.registry(&[])?;
        eventually("the endpoints are managed", || {
            let answers = untagged.ask(30)?;
            ensure!(!Instances::versions(&answers).contains_key("gray"), "{answers:?}");
            Ok(())
        })?;
        let answers = untagged.ask(300)?;
        ensure!(answers[&one] == of("one", 100) && answers[&two] == of("two", 100), "{answers:?}");
        ensure!(
            !answers[&gray].contains_key("gray") && answers[&gray].values().sum::<u32>() == 100,
            "{answers:?}"
        );
        // Tagged: its lane answers, whomever it calls.
        let mut tagged = instances.registry(&["x-mse-tag: gray"])?;
        let answers = tagged.ask(300)?;
        ensure!(Instances::versions(&answers) == BTreeMap::from([("gray", 300)]), "{answers:?}");
        // One that has nobody here: the baseline, and there the client's own choice.
        let mut blue = instances.registry(&["x-mse-tag: blue"])?;
        let answers = blue.ask(300)?;
        ensure!(answers[&one] == of("one", 100) && answers[&two] == of("two", 100), "{answers:?}");
        ensure!(!Instances::versions(&answers).contains_key("gray"), "{answers:?}");

        let (code, said, error) =
            instances.agent.sluice(&["explain", "--pod", "shop/client", "--to", &one, "GET", "/"])?;
        ensure!(code == 0 && said.contains("is an endpoint of orders.shop:80"), "{said} {error}");
        ensure!(said.contains("the client called this endpoint itself"), "{said}");
        // Its limits hold for those calls, too.
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "namespace": "shop", "name": "orders" },
            "spec": {
                "targetRefs": [{ "name": "orders" }],
                "loadBalancer": { "directEndpoints": "Rebalance", "type": "RoundRobin" },
                "rateLimits": [{ "name": "few", "requests": 200, "interval": "1h" }],
            },
        }))?;
        eventually("the policy holds", || {
            let (code, said, error) =
                instances.agent.sluice(&["explain", "--pod", "shop/client", "--to", &one, "GET", "/"])?;
            ensure!(code == 0 && said.contains("few of TrafficPolicy shop/orders"), "{said} {error}");
            Ok(())
        })?;
        // All are balanced now, whomever the client calls.
        let answers = untagged.ask(60)?;
        ensure!(answers[&one].len() == 2 && answers[&two].len() == 2, "{answers:?}");
        let answers = untagged.ask(300)?;
        let versions = Instances::versions(&answers);
        ensure!(versions.get("429 rate_limited").is_some_and(|rejected| *rejected >= 100), "{answers:?}");
        Ok(())
    });
}

/// An instance that leaves is asked no more, though the registry still names it; where it is not there any more, its address is
/// nobody's, and then another Service's.
#[test]
fn an_instance_that_leaves_is_followed() {
    test("direct-leaving", |world| {
        let mut instances = Instances::open(world, Some("governed"))?;
        let [one, two] = [0, 1].map(|at| instances.address(at));
        let mut registry = instances.registry(&[])?;
        eventually("the endpoints are managed", || {
            let answers = registry.ask(30)?;
            ensure!(!Instances::versions(&answers).contains_key("gray"), "{answers:?}");
            Ok(())
        })?;
        instances.apps[0].pod.set_terminating()?;
        eventually("the one that leaves gets nothing new", || {
            let answers = registry.ask(30)?;
            ensure!(!answers[&one].contains_key("one"), "{answers:?}");
            Ok(())
        })?;
        let answers = registry.ask(90)?;
        ensure!(Instances::versions(&answers) == BTreeMap::from([("two", 90)]), "{answers:?}");
        // It has gone: who calls its address is refused, as without Sluice.
        let App { process, pod } = instances.apps.remove(0);
        drop(process);
        pod.delete()?;
        eventually("its address is nobody's", || {
            let said = ask(&instances.client, &format!("http://{one}"), &[]);
            ensure!(said.is_err(), "{said:?}");
            Ok(())
        })?;
        let answer = ask(&instances.client, &format!("http://{two}"), &[])?;
        ensure!(answer.versions() == "two", "{answer:?}");
        Ok(())
    });
}

/// The address of an instance that has gone is another Service's pod's, and neither requests over connections that are kept nor their
/// lanes lead to the Service that it was of.
#[test]
fn an_address_that_another_pod_has_now_leads_to_that_pod() {
    test("direct-reuse", |world| {
        let mut instances = Instances::open(world, Some("governed"))?;
        let one = instances.address(0);
        let (mut untagged, mut tagged) =
            (instances.registry(&[])?, instances.registry(&["x-mse-tag: gray"])?);
        eventually("the endpoints are managed", || {
            let (untagged, tagged) = (untagged.ask(30)?, tagged.ask(30)?);
            ensure!(!Instances::versions(&untagged).contains_key("gray"), "{untagged:?}");
            ensure!(Instances::versions(&tagged) == BTreeMap::from([("gray", 30)]), "{tagged:?}");
            Ok(())
        })?;
        let App { process, pod } = instances.apps.remove(0);
        let (ipv4, ipv6) = (pod.ipv4(), pod.ipv6());
        drop(process);
        pod.delete()?;
        let carts = world.service("shop", "carts").port("http", 80, 8080).apply()?;
        let of_carts = |governed: bool| {
            carts.edit(|service| {
                let value = if governed { "governed" } else { "direct" };
                service["metadata"]["annotations"] = json!({ "sluice.dev/endpoints": value });
            })
        };
        of_carts(true)?;
        let pod = world.pod("shop", "carts-one").label("app", "carts").addresses(ipv4, ipv6).unready();
        let pod = pod.start()?;
        let _carts = pod.serve(&["--name", "carts", "--version", "carts"])?;
        // What CNI plugins announce: the address has another interface now.
        instances.client.netns().ip("neigh flush dev eth0")?;
        pod.set_ready(true)?;
        let of_carts_alone = |answers: &Answers| -> Result<()> {
            ensure!(answers[&one].keys().eq(["carts"]), "{answers:?}");
            Ok(())
        };
        for (governed, what) in [(true, "is managed"), (false, "is left alone")] {
            of_carts(governed)?;
            eventually(&format!("the address is another Service's and {what}"), || {
                let to = format!("{ipv4}:8080");
                let asked = ["explain", "--pod", "shop/client", "--to", &to, "GET", "/"];
                let (_, said, error) = instances.agent.sluice(&asked)?;
                ensure!(said.contains("is an endpoint of carts.shop:80") == governed, "{said} {error}");
                Ok(())
            })?;
            // What was dialled before goes on, too.
            eventually("the connections that are kept lead there", || {
                of_carts_alone(&untagged.ask(30)?)?;
                of_carts_alone(&tagged.ask(30)?)
            })?;
            let (untagged, tagged) = (untagged.ask(300)?, tagged.ask(300)?);
            of_carts_alone(&untagged)?;
            of_carts_alone(&tagged)?;
            ensure!(!Instances::versions(&untagged).contains_key("gray"), "{untagged:?}");
        }
        Ok(())
    });
}

/// gRPC clients balance over the addresses that the name of a headless Service comes to.
#[test]
fn a_grpc_channel_over_a_headless_services_addresses_finds_lanes() {
    test("direct-grpc", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let echo = world.service("shop", "echo").port("grpc", 50051, 50051).headless().apply()?;
        echo.edit(|service| {
            service["metadata"]["annotations"] = json!({ "sluice.dev/endpoints": "governed" });
        })?;
        let mut servers = Vec::new();
        for (version, tag) in [("one", None), ("two", None), ("gray", Some("gray"))] {
            let pod = world.pod("shop", &format!("echo-{version}")).label("app", "echo");
            let pod = tag.into_iter().fold(pod, PodBuilder::tag).start()?;
            servers.push((grpc_process(&pod, 50051, version)?, pod));
        }
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let all: Vec<_> = servers.iter().map(|(_, pod)| format!("{}:50051", pod.ipv4())).collect();
        let target = format!("ipv4:{}", all.join(","));
        eventually("the endpoints are managed", || {
            let answers = grpc_calls(&client, &target, 60, &[])?;
            ensure!(answers.keys().eq(["one", "two"]), "{answers:?}");
            Ok(())
        })?;
        let answers = grpc_calls(&client, &target, 300, &[])?;
        // Those for `gray` are shared out among the two, the others stay with whom the channel chose.
        ensure!(
            answers.values().sum::<u32>() == 300 && answers.values().all(|calls| *calls >= 90),
            "{answers:?}"
        );
        let answers = grpc_calls(&client, &target, 300, &["x-mse-tag=gray"])?;
        ensure!(answers == BTreeMap::from([("gray".into(), 300)]), "{answers:?}");
        let answers = grpc_calls(&client, &target, 300, &["x-mse-tag=blue"])?;
        ensure!(answers.keys().eq(["one", "two"]), "{answers:?}");
        Ok(())
    });
}

/// Without the annotation nothing is other than it was.
#[test]
fn endpoints_are_left_alone_where_nobody_asks() {
    test("direct-off", |world| {
        let instances = Instances::open(world, None)?;
        ask(&instances.client, &instances.orders.url(), &[])?;
        let before = instances.agent.redirected()?;
        for (at, version) in ["one", "two", "gray"].into_iter().enumerate() {
            let answer = ask(&instances.client, &instances.url(at), &["x-mse-tag: gray"])?;
            ensure!(answer.versions() == version, "{answer:?}");
        }
        ensure!(instances.agent.redirected()? == before, "{} {before}", instances.agent.redirected()?);
        Ok(())
    });
}

/// An ingress controller as there are many: nginx, with the addresses of the pods as its upstream.
#[test]
fn nginx_with_pods_as_its_upstream_finds_lanes() {
    test("direct-nginx", |world| {
        let instances = Instances::open(world, Some("governed"))?;
        let front = world.pod("shop", "ingress").start()?;
        instances.agent.enrolled(&front)?;
        let servers: Vec<_> = (0..3).map(|at| format!("server {};", instances.address(at))).collect();
        let http = format!(
            "upstream pods {{ {} keepalive 16; }}
  upstream service {{ server {}:80; keepalive 16; }}
  server {{
    listen 8080;
    location / {{ proxy_pass http://pods; proxy_http_version 1.1; proxy_set_header Connection ''; }}
    location /service {{ proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection ''; }}
  }}",
            servers.join(" "),
            instances.orders.ipv4
        );
        let _nginx = nginx_with(world, &front, &http)?;
        let outside = instances.world.pod("shop", "outside").capture("disabled").start()?;
        let url = format!("http://{}:8080", front.ipv4());
        eventually("nginx is there", || ask(&outside, &url, &[]).map(drop))?;
        for path in ["", "/service"] {
            let url = format!("{url}{path}");
            let load = |args: &[&str]| {
                Load::start(&outside, &url, &[&["--requests", "300"], args].concat())?.finish()
            };
            eventually("lanes hold", || {
                let report = load(&[])?;
                ensure!(report.failed == 0 && report.chains.keys().eq(["one", "two"]), "{path}: {report:?}");
                Ok(())
            })?;
            let report = load(&["--header", "x-mse-tag: gray"])?;
            ensure!(report.failed == 0 && report.chains.keys().eq(["gray"]), "{path}: {report:?}");
        }
        Ok(())
    });
}
