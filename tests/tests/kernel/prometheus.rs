//! What an agent serves after traffic of every kind, as the table, promtool, a real Prometheus, the rules and the dashboard
//! take it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{
    Agent, Capture, Load, Pod, PodBuilder, Process, Prometheus, Service, World, api_server::ApiServer, ask,
    eventually, promtool_check_metrics, test_in,
};

use crate::{python, script, sockets};

/// A trace that its sender records.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The public key of an issuer that issues nothing.
const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "b9BYl-KsQxTHI-0-zdvkiCh8YMyfLgUvoVkgC65Zzss", "y": "cB0ddl9n9TVLMvX1Jc8_ASIfCPhbhJeQN_t-pvVz7uk"}]}"#;

fn deploy(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "deploy", file].iter().collect()
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(deploy(file)).with_context(|| format!("cannot read deploy/{file}"))
}

fn policy(name: &str, spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"targetRefs": [{"name": name}]},
    });
    if let (Some(target), Value::Object(fields)) = (policy["spec"].as_object_mut(), spec) {
        target.extend(fields);
    }
    policy
}

/// A shop in which every rule has something to do.
struct Bazaar {
    agent: Agent,
    client: Pod,
    web: Service,
    old: Service,
    relay: Service,
    bad: Service,
    db: Service,
    _pods: Vec<(Process, Pod)>,
}

impl Bazaar {
    fn open(world: &World) -> Result<Self> {
        world.namespace("shop", Capture::Enabled)?;
        let mut pods = Vec::new();
        let mut serve = |name: &str, app: &str, tag: Option<&str>, args: &[&str]| -> Result<()> {
            let pod = world.pod("shop", name).label("app", app);
            let pod = tag.into_iter().fold(pod, PodBuilder::tag).start()?;
            pods.push((pod.serve(&[&["--name", app], args].concat())?, pod));
            Ok(())
        };
        serve("web-1", "web", None, &[])?;
        serve("web-2", "web", None, &[])?;
        serve("web-3", "web", None, &[])?;
        serve("web-gray", "web", Some("gray"), &["--delay", "50"])?;
        for name in ["bad-1", "bad-2", "bad-3"] {
            serve(name, "bad", None, &["--status", "500"])?;
        }
        serve("db-0", "db", None, &["--tcp"])?;
        // Two that are warm. The third takes the place of the second once they have been asked.
        let (second, third) = (&pods[1].1, &pods[2].1);
        for (_, pod) in &pods[..2] {
            pod.set_ready_since(true, UNIX_EPOCH + Duration::from_secs(1_700_000_000))?;
        }
        third.set_ready(false)?;
        let web = world.service("shop", "web").port("http", 80, 8080).apply()?;
        // It passes on no tag, and is to be read.
        let relayed = world.pod("shop", "relay-1").label("app", "relay").start()?;
        relayed.edit(|pod| {
            pod["metadata"]["annotations"] = json!({"sluice.dev/propagation": "trace"});
        })?;
        let host = web.ipv4.to_string();
        let args = [&script("relay.py"), "threads", "8080", &host, "80"];
        let mut server = relayed.spawn("relay", python(), &args.map(|arg| arg as &str))?;
        server.says("listening")?;
        let relay = world.service("shop", "relay").port("http", 80, 8080).apply()?;
        let bad = world.service("shop", "bad").port("http", 80, 8080).apply()?;
        let db = world.service("shop", "db").port("tcp", 700, 8080).apply()?;
        world.apply(policy("db", json!({"loadBalancer": {"panicThresholdPercent": 50}})))?;
        let burst = json!({
            "name": "burst", "requests": 2, "interval": "1h",
            "match": {"path": {"type": "Exact", "value": "/burst"}},
        });
        world.apply(policy(
            "web",
            json!({
                "loadBalancer": {"warmUp": {"duration": "10m"}},
                // (There is no store: its agent counts it by itself.)
                "rateLimits": [burst, {"name": "all", "requests": 100_000, "scope": "Cluster"}],
                "concurrency": {"maxRequests": 100},
                "timeouts": {"request": "20ms", "mode": "Observe"},
                "rules": [{"name": "all", "headers": {"response": {"remove": ["x-none"]}}}],
            }),
        ))?;
        world.apply(policy(
            "bad",
            json!({
                "retry": {"attempts": 1, "codes": [500], "budget": {"percent": 0, "minRetriesPerSecond": 1}},
                "outlierDetection": {"consecutiveErrors": 2, "maxEjectionPercent": 100},
                "circuitBreaker": {"minimumRequests": 40},
                "concurrency": {"maxRequests": 1000, "scope": "Endpoint"},
                "fallbacks": [
                    {"name": "last", "conditions": ["ServerError"], "type": "Stale", "stale": {"maxAge": "10m", "shared": true}},
                    {"name": "sorry", "conditions": ["CircuitOpen"], "type": "Static", "static": {"status": 200, "body": "sorry"}},
                ],
            }),
        ))?;
        world.apply(policy("nobody", json!({})))?;
        // A Service with a route, of whose requests `web` gets copies.
        let old = world.service("shop", "old").selector("app", "web").port("http", 80, 8080).apply()?;
        world.apply(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"namespace": "shop", "name": "old"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "old"}],
                "rules": [{
                    "name": "all",
                    "filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web", "port": 80}}}],
                    "backendRefs": [{"name": "old", "port": 80}],
                }],
            },
        }))?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "AccessPolicy",
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "targetRefs": [{"name": "web"}],
                "mode": "Observe",
                "hidden": [{"name": "none", "paths": [{"value": "/none"}]}],
                // Keys that nobody is allowed to fetch.
                "jwt": {"providers": [{
                    "name": "login", "issuer": "https://login.example.com/", "audiences": ["web"],
                    "jwks": {"uri": "https://login.example.com/keys"},
                }]},
            },
        }))?;
        // Tokens, and ports that are to be closed while nobody attends to them, which this agent cannot do: it has no BPF file system.
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "AccessPolicy",
            "metadata": {"namespace": "shop", "name": "relay"},
            "spec": {
                "targetRefs": [{"name": "relay"}],
                "whenUnattended": "Refuse",
                "jwt": {"providers": [{"name": "login", "issuer": "https://login.example", "audiences": ["relay"], "jwks": {"inline": KEYS}}]},
                "rules": [{"name": "all"}],
            },
        }))?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().args(&["--bpf-file-system", "/var/empty"]).start()?;
        agent.enrolled(&client)?;
        ask(&client, &web.url(), &[])?;
        second.set_terminating()?;
        third.set_ready(true)?;
        pods.push((server, relayed));
        Ok(Self { agent, client, web, old, relay, bad, db, _pods: pods })
    }

    /// Some of everything.
    fn trade(&self) -> Result<()> {
        let sampled = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01");
        for headers in [&[][..], &["x-mse-tag: gray"], &["x-mse-tag: no tag"], &[&sampled]] {
            ask(&self.client, &self.web.url(), headers)?;
        }
        let load = |url: &str, args: &[&str]| {
            Load::start(&self.client, url, &[&["--requests", "100"], args].concat())?.finish()
        };
        load(&format!("{}/burst", self.web.url()), &[])?;
        ask(&self.client, &self.old.url(), &[])?;
        ask(&self.client, &self.relay.url(), &["x-mse-tag: gray"])?;
        // A request without a Host is not valid.
        self.client.command("curl")?.args(["-sS", "-H", "Host:", &self.web.url()]).output()?;
        load(&self.bad.url(), &["--header", "x-mse-tag: gray"])?;
        sockets(&self.client, &["silent", &self.db.ipv4.to_string(), &self.db.port.to_string()])?;
        Ok(())
    }
}

/// A metric as `deploy/reference/metrics.md` or a scrape tells of it: its type, and the names of its labels.
type Known = BTreeMap<String, (String, BTreeSet<String>)>;

fn told() -> Result<Known> {
    let mut known = Known::new();
    let page = read("reference/metrics.md")?;
    let table = page.lines().take_while(|line| *line != "## Values of labels");
    for row in table.filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        ensure!(cells.len() == 4, "a row of the metrics has four cells: {row}");
        let labels = cells[2].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        known.insert(cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels));
    }
    ensure!(known.len() > 40, "the table has {} rows", known.len());
    Ok(known)
}

/// What a scrape shows. A metric's labels are those of all its lines, which must have the same.
fn served(text: &str, metrics: &sluice_tests::Metrics) -> Result<Known> {
    let mut known = Known::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').context("a type line has two words")?;
        let lines = match kind {
            "histogram" => format!("{name}_bucket"),
            "summary" => format!("{name}_count"),
            _ => name.to_owned(),
        };
        let labels: BTreeSet<BTreeSet<String>> =
            metrics.series(&lines, &[]).map(|series| series.labels.keys().cloned().collect()).collect();
        ensure!(labels.len() == 1, "{name} has lines with other labels: {labels:?}");
        let mut labels = labels.into_iter().next().unwrap_or_default();
        if kind == "histogram" {
            labels.remove("le");
        }
        known.insert(name.to_owned(), (kind.to_owned(), labels));
    }
    Ok(known)
}

/// The strictest reader of OpenMetrics that there is takes what the agent serves, and finds as many families and the trace.
fn check_openmetrics(agent: &Agent, families: usize) -> Result<()> {
    let (status, text) =
        agent.get_with("/metrics", "accept: application/openmetrics-text; version=1.0.0\r\n")?;
    ensure!(status == 200 && text.ends_with("# EOF\n"), "{status} {text}");
    let mut child = Command::new(python())
        .arg(script("openmetrics.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no standard input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(read["families"] == families, "{read}, and {families} in the text format");
    ensure!(read["traces"].as_array().is_some_and(|traces| traces.contains(&TRACE.into())), "{read}");
    ensure!(read["units"]["sluice_request_duration_seconds"] == "seconds", "{read}");
    Ok(())
}

/// Every expression of the dashboard, as Grafana sends it with everything chosen.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        let title = panel["title"].as_str().unwrap_or_default();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap_or_default();
            let all = ["$namespace", "$service", "$lane"]
                .iter()
                .fold(expression.to_owned(), |all, variable| all.replace(variable, ".*"));
            queries.push((title.to_owned(), all.replace("$__rate_interval", "1m")));
        }
    }
    queries
}

fn has_data(series: &[Value]) -> bool {
    series.iter().any(|series| {
        series["value"][1].as_str().and_then(|value| value.parse().ok()).is_some_and(f64::is_finite)
    })
}

#[test]
fn numbers_are_what_is_said_of_them_and_prometheus_takes_them() -> Result<()> {
    let world = World::watched("prometheus")?;
    test_in(&world, |world| {
        let bazaar = Bazaar::open(world)?;
        let rules = deploy("overlays/monitoring/rules.yml");
        let prometheus = Prometheus::start(world, &bazaar.agent, &rules)?;
        // A watch that ends is counted, too.
        world.api(ApiServer::go)?;
        eventually("the agent has noticed", || {
            ensure!(bazaar.agent.log().contains("the last snapshot stays active"));
            Ok(())
        })?;
        world.api(ApiServer::come)?;

        let told = told()?;
        eventually("all that is told of is served, as it is told", || {
            bazaar.trade()?;
            let (_, text) = bazaar.agent.get("/metrics")?;
            let served = served(&text, &sluice_tests::Metrics::parse(&text))?;
            for (name, known) in &served {
                ensure!(told.get(name) == Some(known), "{name}: {known:?}, told is {:?}", told.get(name));
            }
            let missing: Vec<_> = told.keys().filter(|name| !served.contains_key(*name)).collect();
            ensure!(missing.is_empty(), "not served: {missing:?}");
            promtool_check_metrics(&text)?;
            check_openmetrics(&bazaar.agent, served.len())
        })?;

        eventually("Prometheus scrapes", || {
            ensure!(has_data(&prometheus.query("up{job=\"sluice\"} == 1")?));
            ensure!(has_data(&prometheus.query("scrape_samples_scraped > 200")?));
            // It asks for OpenMetrics by itself: the other format has none.
            let exemplars = prometheus
                .exemplars("sluice_request_duration_seconds_bucket{destination_service=\"web\"}")?;
            let ours = exemplars.iter().find(|exemplar| exemplar["labels"]["trace_id"] == TRACE);
            ensure!(ours.is_some(), "{exemplars:?}");
            ensure!(has_data(&prometheus.query("sluice_requests_total{destination_service=\"web\"}")?));
            Ok(())
        })?;
        let dashboard: Value = serde_json::from_str(&read("overlays/monitoring/dashboard.json")?)?;
        let queries = queries(&dashboard);
        ensure!(queries.len() > 30, "{} queries", queries.len());
        for (title, query) in queries {
            eventually(&format!("{title}: {query}"), || {
                bazaar.trade()?;
                let series = prometheus.query(&query)?;
                ensure!(has_data(&series), "{series:?}");
                Ok(())
            })?;
        }
        for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
            let Some(query) = variable["query"]["query"].as_str() else { continue };
            let inner = query.trim_start_matches("label_values(").trim_end_matches(')');
            let (metric, label) = inner.rsplit_once(", ").context("label_values has two arguments")?;
            let metric = metric.replace("$namespace", ".*").replace("$service", ".*");
            ensure!(!prometheus.query(&format!("count by ({label}) ({metric})"))?.is_empty(), "{query}");
        }
        check_rules(&prometheus)
    });
    Ok(())
}

/// The rules evaluate, the records have data, and an alert that has to wait is waiting.
fn check_rules(prometheus: &Prometheus) -> Result<()> {
    eventually("rules are evaluated", || {
        let groups = prometheus.api("rules")?;
        let rules = groups["groups"].as_array().into_iter().flatten();
        let rules: Vec<&Value> =
            rules.flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
        ensure!(rules.len() > 20, "{} rules", rules.len());
        for rule in rules {
            ensure!(rule["health"] == "ok", "{rule}");
            if rule["type"] == "recording" {
                let name = rule["name"].as_str().unwrap_or_default();
                ensure!(has_data(&prometheus.query(name)?), "{name} has no data");
            }
        }
        let waiting = "ALERTS{alertname=\"SluicePoliciesNotProgrammed\", reason=\"TargetNotFound\", alertstate=\"pending\"}";
        ensure!(has_data(&prometheus.query(waiting)?), "a policy without target");
        let running = prometheus.query("ALERTS{alertname=~\"SluiceAgentDown|SluiceCaptureNotRunning\"}")?;
        ensure!(running.is_empty(), "{running:?}");
        Ok(())
    })
}
