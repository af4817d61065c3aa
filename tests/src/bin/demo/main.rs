//! `sluice-demo`: the whole of Sluice on this machine's kernel, told in plain words.
//!
//! Everything shown is measured while it is shown, and everything claimed is checked: the demo fails if one claim
//! does not hold.

mod governance;
mod story;
mod trace;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, Write as _},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::json;
use sluice_tests::{
    Agent, Answer, CHAIN, Capture, Hop, LANE, Load, LoadReport, Pod, Process, Service, Shop, World, forward,
};
use story::{Story, loads, say, table};

/// Shows what Sluice does, in the kernel of this machine
#[derive(Debug, Parser)]
struct Options {
    /// Leave everything running at the end, until Enter or Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// The tag as a traced service carries it on. The first proxied hop adds the header, by which the demo tells requests
/// that went through Sluice from those that did not.
const BAGGAGE: &str = "baggage: x-mse-tag=gray";
const TAG: &str = "x-mse-tag: gray";
const MARK: &str = "x-mse-tag";

/// A database client in bash: hears the server's first line, then says something and hears that.
const DIALOGUE: &str = r#"
exec 3<>"/dev/tcp/$0/$1" && read -r -t 10 first <&3 && echo "select 1" >&3 && read -r -t 10 second <&3
printf '%s\n' "$first" "$second""#;

fn main() -> ExitCode {
    let options = Options::parse();
    let mut story = Story::default();
    match World::new("demo").and_then(|world| {
        show(&world, &options, &mut story).inspect_err(|_| {
            println!("\n{}", world.logs());
        })
    }) {
        Ok(()) if story.broken.is_empty() => ExitCode::SUCCESS,
        Ok(()) => {
            println!("\nWhat did not happen as claimed:");
            for claim in &story.broken {
                println!("  - {claim}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("sluice-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(world: &World, options: &Options, story: &mut Story) -> Result<()> {
    println!("Sluice demo: gateway -> orders -> pricing -> stock, orders and stock also in lane {LANE}");

    let shop = Shop::open(world, Capture::Enabled)?;
    let sides = Sides::open(world)?;
    world.kube_proxy()?;

    story.chapter("Without Sluice");
    let mut before = LoadReport::default();
    // A kept connection answers alike for as long as it lives: new ones, until chance has shown two faces.
    for _ in 0..10 {
        let round = many(&shop.client, shop.gateway(), &["--header", BAGGAGE, "--header", TAG])?;
        before.sent += round.sent;
        before.failed += round.failed;
        for (chain, count) in round.chains {
            *before.chains.entry(chain).or_default() += count;
        }
        if before.chains.len() > 1 {
            break;
        }
        shop.quiet()?;
    }
    say(&format!("{} requests tagged {LANE}, to ClusterIPs as kube-proxy serves them:", before.sent));
    table(&CHAIN, before.chains.iter().map(|(chain, count)| (format!("{count} answers"), words(chain))));
    story.claim(before.failed == 0 && before.chains.len() > 1, "any pod may respond; the tag has no effect");

    story.chapter("The agent starts");
    // Connections that exist stay as they are.
    shop.quiet()?;
    let start = Instant::now();
    let mut agent = world.agent().start()?;
    for pod in shop.pods() {
        agent.enrolled(pod)?;
    }
    let count = shop.pods().count();
    say(&format!(
        "the shop's {count} pods were enrolled {:.2} s after its start; none was restarted",
        start.elapsed().as_secs_f64()
    ));

    lanes(&shop, story)?;
    trace::show(world, &shop, &agent, story)?;
    canary(world, &shop, &agent, story)?;
    other_connections(&shop, &sides, &agent, story)?;
    numbers(&agent, story)?;
    governance::show(world, &shop, &agent, story)?;
    kill(world, &shop, &mut agent, story)?;
    replace(world, &shop, &mut agent, story)?;

    if options.keep {
        keep(world, &shop, &agent)?;
    }
    Ok(())
}

/// Who answers, hop by hop.
fn lanes(shop: &Shop, story: &mut Story) -> Result<()> {
    story.chapter("Lanes");
    let asked = [
        ("no tag", vec![], "v1 v1 v1 v1", "requests without a tag go to the baseline only"),
        (
            "header x-mse-tag: gray",
            vec!["--header", TAG],
            "v1 gray v1 gray",
            "tagged requests: gray, the baseline where there is no gray, gray again",
        ),
        (
            "baggage: x-mse-tag=gray",
            vec!["--header", BAGGAGE],
            "v1 gray v1 gray",
            "the same by baggage alone, as a traced service carries it",
        ),
        (
            "header x-mse-tag: blue",
            vec!["--header", "x-mse-tag: blue"],
            "v1 v1 v1 v1",
            "a lane that has no instances falls back to the baseline",
        ),
    ];
    let mut rows = Vec::new();
    let mut claims = Vec::new();
    for (what, args, expected, claim) in asked {
        let report = many(&shop.client, shop.gateway(), &args)?;
        rows.extend(report.chains.iter().map(|(chain, count)| (format!("{count} x {what}"), words(chain))));
        rows.extend(
            (report.failed > 0).then(|| (format!("{} x {what}", report.failed), vec!["failed".to_owned()])),
        );
        claims.push((report.chains.keys().eq([expected]) && report.failed == 0, claim));
    }
    table(&CHAIN, rows.into_iter());
    for (holds, claim) in claims {
        story.claim(holds, claim);
    }
    Ok(())
}

/// A route of Gateway API sends a part of the requests to a canary, and what these cause further on stays with it.
fn canary(world: &World, shop: &Shop, agent: &Agent, story: &mut Story) -> Result<()> {
    const WHOLE: [&str; 2] = ["v1 gray v1 gray", "v1 v1 v1 v1"];
    story.chapter("A canary by weight");
    let service = |name| world.service("shop", name).port("http", 80, 8080);
    let canary =
        service("orders-canary").spec("selector", json!({ "app": "orders", "version": LANE })).apply()?;
    let stable = service("orders-stable").selector("app", "orders").apply()?;
    let colour = json!([{
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": { "set": [{ "name": MARK, "value": LANE }] },
    }]);
    world.apply(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "orders", "namespace": "shop" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "orders" }],
            "rules": [{ "backendRefs": [
                { "name": "orders-stable", "port": 80, "weight": 80 },
                { "name": "orders-canary", "port": 80, "weight": 20, "filters": colour },
            ] }],
        },
    }))?;
    sluice_tests::eventually("the route holds", || {
        let report = many(&shop.client, shop.gateway(), &[])?;
        anyhow::ensure!(report.chains.keys().eq(WHOLE), "{report:?}");
        Ok(())
    })?;
    let report = shop.load(&["--requests", "2000"])?.finish()?;
    say(
        "an HTTPRoute of orders sends 80 % to orders-stable and 20 % to orders-canary, whose requests get the tag:",
    );
    table(&CHAIN, report.chains.iter().map(|(chain, count)| (format!("{count} x no tag"), words(chain))));
    let share = report.chains.get(WHOLE[0]).copied().unwrap_or_default() as f64 / 20.0;
    story.claim(
        report.failed == 0 && report.chains.keys().eq(WHOLE) && (share - 20.0).abs() < 5.0,
        "a fifth of the requests goes to the canary, and their whole chain stays gray",
    );
    copies(world, shop, agent, story)?;
    world.delete("HTTPRoute", "shop", "orders")?;
    canary.delete()?;
    stable.delete()?;
    sluice_tests::eventually("orders is a Service again", || {
        let report = many(&shop.client, shop.gateway(), &[])?;
        anyhow::ensure!(report.chains.keys().eq([WHOLE[1]]), "{report:?}");
        Ok(())
    })
}

/// Before it answers anybody, a canary sees copies of what clients ask. What these cause stays in its lane, too.
fn copies(world: &World, shop: &Shop, agent: &Agent, story: &mut Story) -> Result<()> {
    const REQUESTS: f64 = 400.0;
    world.apply(json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "TrafficLane", "metadata": { "name": LANE, "namespace": "shop" },
        "spec": {
            "tag": LANE, "targetRefs": [{ "name": "orders-canary" }],
            "entry": [{ "match": { "path": { "value": "/" } } }],
        },
    }))?;
    world.apply(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "orders", "namespace": "shop" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "orders" }],
            "rules": [{
                "filters": [{
                    "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "orders-canary", "port": 80 } },
                }],
                "backendRefs": [{ "name": "orders-stable", "port": 80 }],
            }],
        },
    }))?;
    // Copies that were answered, and what reached the end of the chain in the lane.
    let seen = || -> Result<(f64, f64)> {
        let metrics = agent.metrics()?;
        let answered = [("destination_service", "orders-canary"), ("outcome", "answered")];
        let end = [("destination_service", "stock"), ("destination_lane", LANE), ("code", "2xx")];
        Ok((
            metrics.sum("sluice_mirrored_requests_total", &answered),
            metrics.sum("sluice_requests_total", &end),
        ))
    };
    sluice_tests::eventually("copies are made", || {
        let before = seen()?;
        many(&shop.client, shop.gateway(), &[])?;
        let after = seen()?;
        anyhow::ensure!(after.0 - before.0 >= 1.0 && after.1 - before.1 >= 1.0, "{before:?} {after:?}");
        Ok(())
    })?;
    let quiet = || {
        sluice_tests::eventually("all copies have ended", || {
            let one = seen()?;
            thread::sleep(Duration::from_millis(200));
            anyhow::ensure!(one == seen()?, "{one:?}");
            Ok(one)
        })
    };
    let before = quiet()?;
    let report = shop.load(&["--requests", &format!("{REQUESTS}"), "--connections", "4"])?.finish()?;
    let after = quiet()?;
    let (copies, ends) = (after.0 - before.0, after.1 - before.1);
    say(&format!(
        "with a RequestMirror in their place: {} requests answered by {}; {copies} copies went to orders-canary, and {ends} \
         of these to stock of lane {LANE}",
        report.ok,
        report.chains.keys().map(|chain| format!("`{chain}`")).collect::<Vec<_>>().join(" and "),
    ));
    story.claim(
        report.failed == 0
            && report.chains.keys().eq(["v1 v1 v1 v1"])
            && copies > REQUESTS / 2.0
            && copies <= REQUESTS,
        "clients hear the stable version alone, and the canary gets copies",
    );
    story.claim(ends >= copies, "what a copy causes further on stays in the canary's lane");
    world.delete("TrafficLane", "shop", LANE)
}

/// What is beside the shop: a database in its namespace, and a service of a namespace that did not opt in.
struct Sides {
    _programs: Vec<(Process, Pod)>,
    database: Service,
    billing: Service,
}

impl Sides {
    fn open(world: &World) -> Result<Self> {
        world.namespace("finance", Capture::Unmentioned)?;
        let database = world.service("shop", "database").port("sql", 5432, 5432).apply()?;
        let billing = world.service("finance", "billing").port("http", 80, 8080).apply()?;
        let database_pod = world.pod("shop", "database-0").label("app", "database").start()?;
        let database_server = database_pod.serve(&["--tcp", "--name", "database", "--port", "5432"])?;
        let billing_pod = world.pod("finance", "billing-0").label("app", "billing").start()?;
        let billing_server = billing_pod.serve(&["--name", "billing"])?;
        let programs = vec![(database_server, database_pod), (billing_server, billing_pod)];
        Ok(Self { _programs: programs, database, billing })
    }
}

fn other_connections(shop: &Shop, sides: &Sides, agent: &Agent, story: &mut Story) -> Result<()> {
    story.chapter("Other connections");
    // Speaks first: what answers is a line of its own, then an echo.
    let before = agent.redirected()?;
    let (ip, port) = (sides.database.ipv4.to_string(), sides.database.port.to_string());
    let start = Instant::now();
    let said = shop.client.run("bash", &["-c", DIALOGUE, &ip, &port])?;
    let took = start.elapsed();
    let after = agent.redirected()?;
    say(&format!(
        "database (enrolled, speaks first): said {:?}, echoed {:?}, in {} ms",
        said.lines().next().unwrap_or_default(),
        said.lines().nth(1).unwrap_or_default(),
        took.as_millis(),
    ));
    story.claim(
        said == "database v1\nselect 1\n" && after > before,
        "a protocol that is not HTTP is tunnelled byte for byte",
    );

    // As a client does that has the pods' addresses from a registry.
    let (orders, pod) = (&shop.services[1], &shop.app("orders-v1")?.pod);
    let url = format!("http://{}:8080", pod.ipv4());
    let called =
        |headers: &[&str]| Ok::<_, anyhow::Error>(sluice_tests::ask(&shop.client, &url, headers)?.versions());
    let before = called(&[BAGGAGE])?;
    orders
        .edit(|service| service["metadata"]["annotations"] = json!({ "sluice.dev/endpoints": "governed" }))?;
    let tagged = sluice_tests::eventually("the pod's address is managed", || {
        let versions = called(&[BAGGAGE])?;
        anyhow::ensure!(versions.starts_with(LANE), "{versions}");
        Ok(versions)
    })?;
    let untagged = called(&[])?;
    say(&format!(
        "orders-v1 called by its pod's address: tagged `{before}`; with sluice.dev/endpoints: governed tagged `{tagged}`, \
         untagged `{untagged}`"
    ));
    story.claim(
        before == "v1 v1 gray" && tagged == "gray v1 gray" && untagged == "v1 v1 v1",
        "a client that calls pods itself keeps its choice, and a tagged request finds its lane",
    );
    orders.edit(|service| service["metadata"]["annotations"] = json!({}))?;

    let before = agent.redirected()?;
    let answer = sluice_tests::ask(&shop.client, &format!("{}/?headers", sides.billing.url()), &[BAGGAGE])?;
    let after = agent.redirected()?;
    say(&format!("billing (its namespace is not enrolled): response of {}", pods(&answer)));
    story.claim(
        after == before && !answer.chain.iter().any(marked),
        "a destination that is not managed is left to the kernel, and the request unchanged",
    );
    Ok(())
}

/// Some of what `/metrics` tells.
fn numbers(agent: &Agent, story: &mut Story) -> Result<()> {
    story.chapter("Metrics");
    let metrics = agent.metrics()?;
    let mut requests = BTreeMap::<(usize, String), f64>::new();
    for series in metrics.series("sluice_requests_total", &[("code", "2xx")]) {
        let label = |name: &str| series.labels.get(name).cloned().unwrap_or_default();
        let Some(place) = CHAIN.iter().position(|name| *name == label("destination_service")) else {
            continue;
        };
        *requests.entry((place, label("destination_lane"))).or_default() += series.value;
    }
    let rows = requests.iter().map(|((place, lane), count)| {
        let lane = if lane.is_empty() { "-" } else { lane };
        (CHAIN[*place].to_owned(), vec![lane.to_owned(), format!("{count}")])
    });
    say("sluice_requests_total, 2xx:");
    table(&["lane", "requests"], rows);
    let tags = |outcome| metrics.sum("sluice_tags_total", &[("outcome", outcome)]);
    say(&format!(
        "sluice_tags_total: {} routed to their lane, {} fell back to the baseline, {} rejected",
        tags("routed"),
        tags("fell_back"),
        tags("rejected"),
    ));
    say(&format!("connects that the kernel redirected: {}", agent.redirected()?));
    say(&format!("memory of the agent: {} MiB", agent.memory()?.div_ceil(1 << 20)));
    let lane = |name| {
        CHAIN
            .iter()
            .position(|other| *other == name)
            .and_then(|place| requests.get(&(place, LANE.to_owned())))
    };
    story.claim(
        ["orders", "stock"].into_iter().all(|name| lane(name).is_some_and(|count| *count > 0.0))
            && lane("pricing").is_none()
            && tags("routed") > 0.0
            && tags("fell_back") > 0.0,
        "every request is counted by service and lane, every tag by its outcome",
    );
    Ok(())
}

/// `kill -9` under load.
fn kill(world: &World, shop: &Shop, agent: &mut Agent, story: &mut Story) -> Result<()> {
    story.chapter("kill -9 under load");
    let stock = shop.services.last().context("the chain has services")?;
    let load = Load::start(
        &shop.client,
        &stock.url(),
        &["--new-connections", "--rate", "500", "--connections", "8", "--header", BAGGAGE, "--mark", MARK],
    )?;
    pause();
    agent.kill()?;
    pause();
    let mut next = world.agent().start()?;
    for pod in shop.pods() {
        next.enrolled(pod)?;
    }
    std::mem::swap(agent, &mut next);
    pause();
    let report = load.stop()?;
    say("8 connections at a time, a new one for each request; the agent is killed, and later started again:");
    loads(&report);
    story.claim(report.failed <= 8, "at most the requests in flight fail");
    story.claim(report.ok > report.marked, "without the agent, connections go straight to the service");
    story.claim(report.marked > 0, "with it, they go through it");
    let answer = shop.ask(&[TAG])?;
    story.claim(answer.versions() == "v1 gray v1 gray", "the new agent routes as the old one did");
    Ok(())
}

/// A rollout of the agent under load.
fn replace(world: &World, shop: &Shop, agent: &mut Agent, story: &mut Story) -> Result<()> {
    story.chapter("A new agent takes over under load");
    let kept = shop.load(&["--connections", "8", "--header", BAGGAGE, "--mark", MARK])?;
    pause();
    let mut next = world.agent().start()?;
    agent.terminate()?;
    let start = Instant::now();
    let status = agent.wait()?;
    let drained = start.elapsed();
    std::mem::swap(agent, &mut next);
    pause();
    let report = kept.stop()?;
    say(
        "8 connections kept alive, through the whole chain; a second agent starts, the first is told to stop:",
    );
    loads(&report);
    say(&format!("the first agent was drained and gone after {:.1} s", drained.as_secs_f64()));
    story.claim(report.failed == 0, "not one request fails");
    story.claim(report.marked == report.ok, "not one request bypasses Sluice");
    story.claim(status.success(), "the first agent exits with status 0");
    Ok(())
}

/// Leaves everything running until somebody has seen enough.
fn keep(world: &World, shop: &Shop, agent: &Agent) -> Result<()> {
    let place = shop.client.place();
    println!("\nEverything is running. A shell in the pod `client`, which is enrolled:\n");
    println!(
        "  sudo sh -c 'echo $$ > {}/cgroup.procs; exec nsenter --net=/proc/{}/ns/net sh'\n",
        place.cgroup.display(),
        shop.client.pause(),
    );
    println!("There:");
    for service in &shop.services {
        println!("  curl -s {}   # {}", service.url(), service.name);
    }
    println!("  curl -s -H 'x-mse-tag: {LANE}' {}", shop.gateway().url());
    println!("\nThe agent (process {}) reads {};", agent.pid(), world.manifests().display());
    println!("an edit there is active at once. Its metrics:\n");
    println!("  sudo nsenter --net=/proc/{}/ns/net curl -s http://{}/metrics", agent.pid(), agent.admin());
    // So that there is something to see.
    let load = shop.load(&["--rate", "20", "--connections", "2"])?;
    let page = forward(&world.node().netns, agent.admin())?;
    println!(
        "\nand its dashboard, with 20 requests a second from the pod `client` on it:\n\n  http://{page}/"
    );
    print!("\nEnter or Ctrl-C ends it all. ");
    std::io::stdout().flush()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (send, enter) = tokio::sync::oneshot::channel();
        thread::spawn(move || {
            // Without a terminal there is no Enter, only a signal.
            if std::io::stdin().lock().lines().next().is_some() {
                let _ = send.send(());
            } else {
                std::mem::forget(send);
            }
        });
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = enter => {}
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        anyhow::Ok(())
    })?;
    println!();
    drop(load);
    Ok(())
}

/// Long enough for load to be seen.
fn pause() {
    thread::sleep(Duration::from_secs(2));
}

/// Forty requests from a pod.
fn many(pod: &Pod, service: &Service, args: &[&str]) -> Result<LoadReport> {
    Load::start(
        pod,
        &service.url(),
        &[&["--requests", "40", "--connections", "4", "--new-connections"], args].concat(),
    )?
    .finish()
}

fn words(chain: &str) -> Vec<String> {
    chain.split(' ').map(str::to_owned).collect()
}

fn pods(answer: &Answer) -> String {
    let pods: Vec<&str> = answer.chain.iter().map(|hop| hop.pod.as_str()).collect();
    pods.join(", ")
}

/// Whether Sluice has touched the request that this hop saw.
fn marked(hop: &Hop) -> bool {
    hop.headers.contains_key(MARK)
}
