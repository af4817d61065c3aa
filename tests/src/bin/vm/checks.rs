//! What is tried on a kernel: that connections are redirected and lanes work, that the agent's death and hang stop nobody,
//! and that it lives within its memory limit; or that it says that the kernel is too old.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, App, Capture, LANE, Load, Pod, Service, World, ask, eventually};

use crate::tell;

/// What the agent's container may use; the DaemonSet gives more.
const MEMORY_LIMIT: u64 = 192 << 20;

/// The path on which there is nothing else than a cgroup for pods.
const PODS: &str = "/sys/fs/cgroup/kubepods";

/// A small shop: two services, of which `web` has a pod in the lane as well, and a client.
struct Shop {
    web: Service,
    other: Service,
    client: Pod,
    apps: Vec<App>,
}

impl Shop {
    fn open(world: &World) -> Result<Self> {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        let apps = [("web", "v1"), ("web", LANE), ("other", "v1")]
            .map(|(name, version)| App::start(world, name, version, None))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let service = |name| world.service("shop", name).port("http", 80, 8080).apply();
        let (web, other) = (service("web")?, service("other")?);
        let client = world.pod("shop", "client").start()?;
        Ok(Self { web, other, client, apps })
    }

    /// Who answers: service and version.
    fn ask(&self, url: &str, headers: &[&str]) -> Result<String> {
        let answer = ask(&self.client, url, headers)?;
        let hop = answer.chain.first().context("nobody answered")?;
        Ok(format!("{} {}", hop.service, hop.version))
    }

    fn expect(&self, url: &str, headers: &[&str], wanted: &str) -> Result<()> {
        let got = self.ask(url, headers)?;
        ensure!(got == wanted, "{url} with {headers:?} was answered by {got}, not by {wanted}");
        Ok(())
    }

    /// Waits until a request is, or is not, redirected. The agent puts a tag on, which a direct request lacks.
    fn goes(&self, through: bool) -> Result<()> {
        eventually(if through { "connections are redirected" } else { "connections go direct" }, || {
            let url = format!("{}/?headers", self.web.url());
            let answer = ask(&self.client, &url, &["baggage: x-mse-tag=none"])?;
            let hop = answer.chain.first().context("nobody answered")?;
            ensure!(hop.headers.contains_key("x-mse-tag") == through, "{hop:?}");
            Ok(())
        })
    }
}

/// The checks of a kernel on which all of it is to work. Later ones need what earlier ones made.
pub(crate) fn works() -> Result<()> {
    let world = World::new("vm")?;
    let shop = Shop::open(&world)?;
    let agents = world.node().cgroup;
    limit_memory(&agents)?;
    let mut agent = match world.agent().start() {
        Ok(agent) => agent,
        Err(error) => {
            tell("programs", Err(error));
            return Ok(());
        }
    };
    tell("programs", agent.enrolled(&shop.client));
    tell("redirect", redirect(&shop, &agent));
    tell("ipv6", ipv6(&shop, &agent));
    tell("lanes", lanes(&shop));
    tell("threads", threads(&world, &shop));
    tell("access", access(&world, &shop, &agent));
    tell("memory limit", memory(&shop, &agent, &agents));
    tell("hang", hang(&shop, &agent));
    if !tell("kill -9", kill(&shop, &mut agent)) {
        println!("{}", world.logs());
    }
    tell("start again", again(&world, &shop));
    Ok(())
}

/// Connections reach the service that was dialled, and pass the agent.
fn redirect(shop: &Shop, agent: &Agent) -> Result<()> {
    let before = agent.redirected()?;
    for _ in 0..5 {
        shop.expect(&shop.web.url(), &[], "web v1")?;
        shop.expect(&shop.other.url(), &[], "other v1")?;
    }
    let redirected = agent.redirected()? - before;
    ensure!(redirected == 10, "{redirected} of 10 connections were redirected");
    Ok(())
}

fn ipv6(shop: &Shop, agent: &Agent) -> Result<()> {
    let before = agent.connects("redirected_v6")?;
    shop.expect(&shop.web.url6(), &[], "web v1")?;
    shop.expect(&shop.other.url6(), &[], "other v1")?;
    let redirected = agent.connects("redirected_v6")? - before;
    ensure!(redirected == 2, "{redirected} of 2 connections were redirected");
    Ok(())
}

fn lanes(shop: &Shop) -> Result<()> {
    let tag = format!("baggage: x-mse-tag={LANE}");
    for _ in 0..5 {
        shop.expect(&shop.web.url(), &[&tag], &format!("web {LANE}"))?;
        shop.expect(&shop.web.url(), &[], "web v1")?;
        // It has no instance in the lane.
        shop.expect(&shop.other.url(), &[&tag], "other v1")?;
    }
    Ok(())
}

/// A service that passes on nothing is known by the thread that handles a request.
fn threads(world: &World, shop: &Shop) -> Result<()> {
    let relay = App::start_with(world, "relay", "v1", Some(&shop.web.url()), &["--blocking"])?;
    relay.pod.edit(|pod| {
        pod["metadata"]["annotations"] = json!({ "sluice.dev/propagation": "thread" });
    })?;
    relay.pod.set_ready(true)?;
    let service = world.service("shop", "relay").port("http", 80, 8080).apply()?;
    let tag = format!("x-mse-tag: {LANE}");
    eventually("what it is asked is known by its threads", || {
        // Its trial, on the way of which no tag is guessed.
        for _ in 0..20 {
            let plain = ask(&shop.client, &service.url(), &[])?;
            ensure!(plain.versions() == "v1 v1", "{plain:?}");
        }
        let tagged = ask(&shop.client, &service.url(), &[&tag])?;
        ensure!(tagged.versions() == format!("v1 {LANE}"), "{tagged:?}");
        Ok(())
    })
}

/// Connections from outside are steered to the agent, which says who may call.
fn access(world: &World, shop: &Shop, agent: &Agent) -> Result<()> {
    let other = shop.apps.last().context("the shop has pods")?;
    let node_gets = |wanted: &str| {
        let url = format!("http://{}:8080/", other.pod.ipv4());
        let mut curl = world.node().command("curl")?;
        let output = curl.args(["-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", &url]).output()?;
        let status = String::from_utf8_lossy(&output.stdout);
        ensure!(status == wanted, "{status}, not {wanted}");
        Ok(())
    };
    node_gets("200")?;
    world.apply(json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "AccessPolicy",
        "metadata": { "namespace": "shop", "name": "other" },
        "spec": {
            "targetRefs": [{ "name": "other" }],
            "rules": [{ "name": "ours", "from": [{ "namespace": "shop" }] }],
        },
    }))?;
    eventually("the node may not call", || node_gets("403"))?;
    shop.expect(&shop.other.url(), &[], "other v1")?;
    shop.expect(&shop.other.url6(), &[], "other v1")?;
    let (v4, v6) = (agent.connects("inbound_steered_v4")?, agent.connects("inbound_steered_v6")?);
    ensure!(v4 >= 2 && v6 >= 1, "{v4} connections were steered over IPv4, {v6} over IPv6");
    let lost = agent.connects("inbound_client_lost")?;
    ensure!(lost == 0, "{lost} applications were not told their client");
    world.delete("AccessPolicy", "shop", "other")?;
    eventually("everybody may call", || node_gets("200"))
}

fn limit_memory(agents: &Path) -> Result<()> {
    let parent = agents.parent().context("the agents' cgroup has no parent")?;
    fs::write(parent.join("cgroup.subtree_control"), "+memory").context("the memory controller")?;
    fs::write(agents.join("memory.max"), MEMORY_LIMIT.to_string()).context("memory.max")?;
    // None is to be had beside it, should there be any.
    let swap = agents.join("memory.swap.max");
    if swap.exists() {
        fs::write(swap, "0").context("memory.swap.max")?;
    }
    Ok(())
}

/// Under load the agent stays within its limit, which the kernel enforces.
fn memory(shop: &Shop, agent: &Agent, agents: &Path) -> Result<()> {
    let load = Load::start(&shop.client, &shop.web.url(), &["--connections", "64", "--seconds", "5"])?;
    let report = load.finish()?;
    ensure!(report.failed == 0 && report.ok > 64, "{report:?}");
    let read = |name: &str| fs::read_to_string(agents.join(name)).with_context(|| name.to_owned());
    let limit: u64 = read("memory.max")?.trim().parse().context("memory.max is no number")?;
    ensure!(limit == MEMORY_LIMIT, "the limit is {limit}");
    let current: u64 = read("memory.current")?.trim().parse().context("memory.current is no number")?;
    ensure!(current > 0 && current <= limit, "{current} bytes are charged to the agent");
    let events = read("memory.events")?;
    ensure!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
    println!("the agent takes {} KiB of its {} KiB", current >> 10, limit >> 10);
    ensure!(agent.redirected()? > 0);
    Ok(())
}

fn hang(shop: &Shop, agent: &Agent) -> Result<()> {
    shop.goes(true)?;
    agent.stop()?;
    shop.goes(false)?;
    agent.cont()?;
    shop.goes(true)
}

fn kill(shop: &Shop, agent: &mut Agent) -> Result<()> {
    shop.goes(true)?;
    agent.kill()?;
    for _ in 0..5 {
        shop.ask(&shop.web.url(), &[]).context("a connection did not go direct")?;
    }
    shop.goes(false)
}

/// Nothing that the killed agent left is in a new one's way.
fn again(world: &World, shop: &Shop) -> Result<()> {
    let mut agent = world.agent().start()?;
    agent.enrolled(&shop.client)?;
    shop.goes(true)?;
    agent.terminate()?;
    let status = agent.wait()?;
    ensure!(status.success(), "{status}: {}", agent.log());
    Ok(())
}

/// The agent ends at once, with one line that says what is missing.
pub(crate) fn is_too_old() -> Result<()> {
    fs::create_dir(PODS).with_context(|| PODS.to_owned())?;
    let manifests = std::env::temp_dir().join("manifests");
    fs::create_dir(&manifests).with_context(|| manifests.display().to_string())?;
    let mut agent = Command::new("/bin/sluice");
    agent.arg("agent").arg("--manifests").arg(&manifests).args(["--pods-cgroup", PODS]);
    agent.args(["--admin-socket", "none"]).env_remove("SLUICE_BIN");
    let said = agent.output().context("cannot run the agent")?;
    let (stdout, stderr) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    println!("{stdout}{stderr}");
    tell("says so", says_so(said.status.code(), &stderr));
    Ok(())
}

fn says_so(code: Option<i32>, stderr: &str) -> Result<()> {
    ensure!(code == Some(1), "the agent ended with {code:?}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("sluice: ")).collect();
    let [line] = lines[..] else { anyhow::bail!("not one line: {stderr}") };
    ensure!(line.contains("5.15"), "the line names no version: {line}");
    Ok(())
}
