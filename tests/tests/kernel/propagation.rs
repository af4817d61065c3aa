//! Lanes through services that pass on no tag: servers of several kinds that hand on the id of a trace and nothing else.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, App, Capture, Pod, Process, Service, World, eventually, test};

use crate::{clients::grpc_server, grpc_calls, python, script};

const ANNOTATION: &str = "sluice.dev/propagation";
/// At once, as many as there are threads in the servers that have threads.
const CLIENTS: &str = "64";

/// `client -> relay -> stock`, of which `stock` also exists in the lane `gray`.
pub(crate) struct Chain {
    client: Pod,
    relay: Pod,
    next: Service,
    service: Service,
    pub(crate) agent: Agent,
    pub(crate) server: Process,
    _stock: Vec<App>,
}

impl Chain {
    pub(crate) fn open(
        world: &World,
        server: impl FnOnce(&Pod, &Service) -> Result<Process>,
    ) -> Result<Self> {
        Self::open_with(world, &[], server)
    }

    /// The same with more arguments for the agent.
    fn open_with(
        world: &World,
        args: &[&str],
        server: impl FnOnce(&Pod, &Service) -> Result<Process>,
    ) -> Result<Self> {
        world.namespace("shop", Capture::Enabled)?;
        let stock = ["v1", "gray"].map(|version| App::start(world, "stock", version, None));
        let stock = stock.into_iter().collect::<Result<Vec<_>>>()?;
        let next = world.service("shop", "stock").port("http", 80, 8080).apply()?;
        let service = world.service("shop", "relay").port("http", 80, 8080).apply()?;
        let relay = world.pod("shop", "relay-1").label("app", "relay").start()?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().args(args).start()?;
        for pod in [&relay, &client] {
            agent.enrolled(pod)?;
        }
        let mut server = server(&relay, &next)?;
        server.says("listening")?;
        Ok(Self { client, relay, next, service, agent, server, _stock: stock })
    }

    /// Another server in the relay's place.
    pub(crate) fn replace(&mut self, server: impl FnOnce(&Pod, &Service) -> Result<Process>) -> Result<()> {
        self.server.kill()?;
        self.server = server(&self.relay, &self.next)?;
        self.server.says("listening")
    }

    pub(crate) fn propagation(&self, value: Option<&str>) -> Result<()> {
        self.relay.edit(|pod| {
            pod["metadata"]["annotations"] =
                value.map_or_else(|| json!({}), |value| json!({ ANNOTATION: value }));
        })
    }

    /// So many requests of each of 64 clients at once. Of the tagged ones how many reached the lane, and how many did not; of the
    /// others how many did all the same.
    pub(crate) fn load(&self, form: &str, requests: u32) -> Result<Seen> {
        self.load_at("/", form, requests)
    }

    /// The same at another path.
    pub(crate) fn load_at(&self, path: &str, form: &str, requests: u32) -> Result<Seen> {
        let (host, port) = (self.service.ipv4.to_string(), self.service.port.to_string());
        let args = [&script("traced_load.py"), &host, &port, form, CLIENTS, &requests.to_string(), path];
        let said = self.client.run(python(), &args.map(|arg| arg as &str))?;
        let counted: BTreeMap<String, u64> =
            serde_json::from_str(&said).with_context(|| format!("traced_load.py said {said:?}"))?;
        let count = |what: &str| counted.get(what).copied().unwrap_or_default();
        let seen = Seen {
            right: count("tagged gray"),
            lost: count("tagged v1"),
            wrong: count("untagged gray"),
            baseline: count("untagged v1"),
        };
        let all = 64 * u64::from(requests);
        ensure!(seen.right + seen.lost + seen.wrong + seen.baseline == all, "{form}: {counted:?}");
        eprintln!("{form}: {seen:?}");
        Ok(seen)
    }

    /// One tagged request, and the version of the last service that answered.
    pub(crate) fn one(&self, headers: &[&str]) -> Result<String> {
        self.one_with(&[], headers)
    }

    /// The same with more arguments for curl.
    pub(crate) fn one_with(&self, args: &[&str], headers: &[&str]) -> Result<String> {
        let headers: Vec<_> = headers.iter().flat_map(|header| ["-H", header]).collect();
        let url = self.service.url();
        let said = self.client.run("curl", &[&["-sS", "-m", "20", &url], args, &headers[..]].concat())?;
        let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let last = answer["chain"].as_array().and_then(|chain| chain.last());
        Ok(last.and_then(|hop| hop["version"].as_str()).unwrap_or_default().to_owned())
    }

    pub(crate) fn counted(&self, metric: &str, labels: &[(&str, &str)]) -> Result<u64> {
        let labels = [&[("source_pod", "relay-1")], labels].concat();
        Ok(self.agent.metrics()?.sum(metric, &labels) as u64)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) right: u64,
    pub(crate) lost: u64,
    pub(crate) wrong: u64,
    pub(crate) baseline: u64,
}

/// A trace that nobody else has.
fn traceparent(number: u32) -> String {
    format!("traceparent: 00-{number:032x}-00f067aa0ba902b7-01")
}

/// What the propagation matrix of README says of this kind of server.
fn holds(name: &str, server: impl Fn(&Pod, &Service) -> Result<Process>) {
    test(name, |world| {
        let chain = Chain::open(world, server)?;
        // By headers alone every tag is lost, and no other request gets one.
        let lost = Seen { right: 0, lost: 64, wrong: 0, baseline: 64 };
        ensure!(chain.load("w3c", 2)? == lost);
        chain.propagation(Some("trace"))?;
        let mut trace = 0;
        eventually("what comes to the relay is read", || {
            trace += 1;
            ensure!(chain.one(&["x-mse-tag: gray", &traceparent(trace)])? == "gray");
            Ok(())
        })?;
        let all = Seen { right: 640, lost: 0, wrong: 0, baseline: 640 };
        for form in ["w3c", "b3", "b3multi"] {
            let seen = chain.load(form, 20)?;
            ensure!(seen == all, "{form}: {seen:?}");
        }
        // A server that passes on nothing at all has nothing to be known by.
        let seen = chain.load("none", 2)?;
        ensure!(seen == lost, "{seen:?}");
        let carried = chain.counted("sluice_tag_carriers_total", &[("carrier", "trace_id")])?;
        ensure!(carried >= 3 * 640, "{carried}");
        Ok(())
    });
}

pub(crate) fn relay_py(kind: &'static str) -> impl Fn(&Pod, &Service) -> Result<Process> {
    move |pod, next| {
        let (host, port) = (next.ipv4.to_string(), next.port.to_string());
        pod.spawn("relay", python(), &[&script("relay.py"), kind, "8080", &host, &port])
    }
}

pub(crate) fn relay_java(kind: &'static str) -> impl Fn(&Pod, &Service) -> Result<Process> {
    move |pod, next| {
        let (host, port) = (next.ipv4.to_string(), next.port.to_string());
        pod.spawn("relay", "java", &[&script("Relay.java"), kind, "8080", &host, &port])
    }
}

pub(crate) fn relay_node(pod: &Pod, next: &Service) -> Result<Process> {
    let (host, port) = (next.ipv4.to_string(), next.port.to_string());
    pod.spawn("relay", "node", &[&script("relay.mjs"), "8080", &host, &port])
}

#[test]
fn python_with_threads() {
    holds("trace-py-threads", relay_py("threads"));
}

#[test]
fn python_with_processes() {
    holds("trace-py-fork", relay_py("prefork"));
}

#[test]
fn python_with_an_event_loop() {
    holds("trace-py-async", relay_py("async"));
}

#[test]
fn node() {
    holds("trace-node", relay_node);
}

#[test]
fn java_with_a_pool_of_threads() {
    holds("trace-java-pool", relay_java("pool"));
}

#[test]
fn java_with_callbacks() {
    holds("trace-java-async", relay_java("async"));
}

#[test]
fn calls_of_grpc_among_many_on_a_connection() {
    test("trace-grpc", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let _stock = [grpc_server(world, "v1")?, grpc_server(world, "gray")?];
        let next = world.service("shop", "echo").port("grpc", 80, 50051).apply()?;
        let relay = world.pod("shop", "relay-1").label("app", "relay").start()?;
        relay.edit(|pod| {
            pod["metadata"]["annotations"] = json!({ ANNOTATION: "trace" });
        })?;
        let next = format!("{}:{}", next.ipv4, next.port);
        let mut server =
            relay.spawn("relay", python(), &[&script("grpc_relay.py"), "50051", next.as_str()])?;
        server.says("listening")?;
        let service = world.service("shop", "relay").port("grpc", 80, 50051).apply()?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        for pod in [&relay, &client] {
            agent.enrolled(pod)?;
        }
        let target = format!("{}:{}", service.ipv4, service.port);
        let calls = |number: u32, count: u32, tag: &[&str]| {
            let trace = traceparent(number).replace(": ", "=");
            grpc_calls(&client, &target, count, &[&[trace.as_str()], tag].concat())
        };
        let of = |version: &str, count: u32| BTreeMap::from([(version.to_owned(), count)]);
        let mut trace = 10;
        eventually("what comes to the relay is read", || {
            trace += 1;
            ensure!(calls(trace, 1, &["x-mse-tag=gray"])? == of("gray", 1));
            Ok(())
        })?;
        // All of them at once, in the same connections of the relay.
        std::thread::scope(|scope| {
            let tagged = scope.spawn(|| calls(1, 500, &["x-mse-tag=gray"]));
            let untagged = scope.spawn(|| calls(2, 500, &[]));
            let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<_>>| {
                thread.join().map_err(|_| anyhow::anyhow!("a thread of the test has panicked"))?
            };
            let (tagged, untagged) = (ended(tagged)?, ended(untagged)?);
            ensure!(tagged == of("gray", 500) && untagged == of("v1", 500), "{tagged:?} {untagged:?}");
            Ok(())
        })
    });
}

#[test]
fn what_is_lost_is_told_and_what_is_known_is_explained() {
    test("trace-told", |world| {
        let chain = Chain::open(world, relay_py("threads"))?;
        ensure!(chain.one(&["x-mse-tag: gray", &traceparent(1)])? == "v1");
        ensure!(chain.counted("sluice_tags_lost_total", &[])? == 0, "the pod does not ask for it");
        chain.propagation(Some("trace"))?;
        let mut trace = 1;
        eventually("what comes to the relay is read", || {
            trace += 1;
            ensure!(chain.one(&["x-mse-tag: gray", &traceparent(trace)])? == "gray");
            Ok(())
        })?;
        let before = chain.counted("sluice_tags_lost_total", &[])?;
        // The application sees its client as ever, and gets the carriers of the tag that came.
        for lost in 1..=5_u32 {
            ensure!(chain.one(&["x-mse-tag: gray"])? == "v1");
            let now = chain.counted("sluice_tags_lost_total", &[])?;
            ensure!(now == before + u64::from(lost), "{now}");
        }
        ensure!(chain.one(&[&traceparent(700)])? == "v1", "a trace without a tag");
        ensure!(chain.counted("sluice_tags_lost_total", &[])? == before + 5, "it had none to lose");
        // Two requests of one trace that differ: neither is guessed.
        ensure!(chain.one(&["x-mse-tag: gray", &traceparent(701)])? == "gray");
        ensure!(chain.one(&[&traceparent(701)])? == "v1");
        ensure!(chain.one(&["x-mse-tag: gray", &traceparent(701)])? == "v1", "and this one is lost");
        let (_, status, _) = chain.agent.sluice(&["status"])?;
        ensure!(status.contains("Pod shop/relay-1 loses tags: it sent 6 requests without one"), "{status}");
        // What came is what is said of a request before it is sent, and after.
        ensure!(chain.one(&["x-mse-tag: gray", "x-request-id: mine", &traceparent(702)])? == "gray");
        let known = "the request's trace: it came to Pod shop/relay-1 with this tag";
        let asked =
            ["explain", "--pod", "shop/relay-1", "--to", "stock:80", "GET", "/", "-H", &traceparent(702)];
        let (_, said, complaint) = chain.agent.sluice(&asked)?;
        ensure!(said.contains(known) && said.contains("gray"), "{said} {complaint}");
        let (_, said, _) = chain.agent.sluice(&["explain", "--trace-id", &format!("{:032x}", 702)])?;
        ensure!(said.contains("gray"), "{said}");
        // Taken back: it is as it was.
        chain.propagation(Some("headers"))?;
        eventually("nothing is read any more", || {
            trace += 1;
            ensure!(chain.one(&["x-mse-tag: gray", &traceparent(trace)])? == "v1");
            Ok(())
        })?;
        Ok(())
    });
}

#[test]
fn a_namespace_asks_for_all_its_pods_and_one_of_them_says_no() {
    test("trace-namespace", |world| {
        let chain = Chain::open(world, relay_py("threads"))?;
        world.edit("Namespace", "", "shop", |namespace| {
            namespace["metadata"]["annotations"][ANNOTATION] = "trace".into();
        })?;
        let mut trace = 0;
        let mut ask = || {
            trace += 1;
            chain.one(&["x-mse-tag: gray", &traceparent(trace)])
        };
        eventually("what comes to the relay is read", || {
            ensure!(ask()? == "gray");
            Ok(())
        })?;
        chain.propagation(Some("headers"))?;
        eventually("this pod is left alone", || {
            ensure!(ask()? == "v1");
            Ok(())
        })
    });
}

#[test]
fn a_trace_in_b3_is_told_in_w3c_too_where_the_operator_asks_for_it() {
    test("trace-link", |world| {
        let chain = Chain::open_with(world, &["--trace-link", "enabled"], relay_py("threads"))?;
        let (trace, span) = (format!("{:032x}", 0xb3), "e457b5a2e4d86bd1");
        let b3 = format!("b3: {trace}-{span}-1");
        // What the relay itself sends, as its tracer would, and what comes of it at the next one.
        let sends = |how: &str, headers: &[&str]| -> Result<Option<String>> {
            let url = format!("{}/?headers", chain.next.url());
            let headers: Vec<_> = headers.iter().flat_map(|header| ["-H", header]).collect();
            let said = chain.relay.run("curl", &[&["-sS", "-m", "20", how, &url], &headers[..]].concat())?;
            let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            Ok(answer["chain"][0]["headers"]["traceparent"].as_str().map(str::to_owned))
        };
        let http1 = "--http1.1";
        chain.one(&[&b3])?;
        ensure!(sends(http1, &[&b3])?.is_none(), "the pod does not ask for it");
        chain.propagation(Some("trace"))?;
        let wanted = format!("00-{trace}-{span}-01");
        eventually("it is told", || {
            chain.one(&[&b3])?;
            ensure!(sends(http1, &[&b3])?.as_ref() == Some(&wanted));
            Ok(())
        })?;
        for how in [http1, "--http2-prior-knowledge"] {
            ensure!(sends(how, &[&b3])?.as_ref() == Some(&wanted), "{how}");
            let ids = [format!("x-b3-traceid: {trace}"), format!("x-b3-spanid: {span}")];
            let sampled = [ids[0].as_str(), &ids[1], "x-b3-sampled: 0"];
            ensure!(sends(how, &sampled)? == Some(format!("00-{trace}-{span}-00")), "{how}");
            // Its own stays, and nothing is made up.
            let own = format!("00-{trace}-00f067aa0ba902b7-01");
            ensure!(sends(how, &[&b3, &format!("traceparent: {own}")])? == Some(own), "{how}");
            for headers in [
                &["b3: 1"][..],
                &["x-request-id: 7"],
                &sampled[..2],
                &["b3: 000000000000000000000000000000c7-e457b5a2e4d86bd1-1"],
            ] {
                ensure!(sends(how, headers)?.is_none(), "{how} {headers:?}");
            }
        }
        let asked = ["explain", "--pod", "shop/relay-1", "--to", "stock:80", "GET", "/", "-H", &b3];
        let (_, said, complaint) = chain.agent.sluice(&asked)?;
        ensure!(said.contains("--trace-link"), "{said} {complaint}");
        ensure!(sends(http1, &[&b3])? == Some(wanted));
        let (_, said, _) = chain.agent.sluice(&["explain", "--trace-id", &trace])?;
        ensure!(said.contains("--trace-link"), "{said}");
        Ok(())
    });
}
