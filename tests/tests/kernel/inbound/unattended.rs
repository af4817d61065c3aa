//! `whenUnattended: Refuse`: what may not go past the agent does not while there is none, and opens by itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use sluice_tests::{Agent, Capture, Load, Pod, World, binary, eventually, test};

use super::{Guarded, PORT, denies, get, get_from_node, guarded, only, policy, urls};
use crate::{python, script};

/// A port of the pod that no policy is about.
const OTHER_PORT: u16 = 9090;

/// A BPF file system of the test's own, as worlds on one machine have one kernel and would sweep each other's.
struct BpfFs(PathBuf);

impl BpfFs {
    fn mount(world: &World) -> Result<Self> {
        let path = world.directory().join("bpf");
        fs::create_dir(&path)?;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("cannot mount bpffs")?;
        Ok(Self(path))
    }

    fn pinned(&self) -> usize {
        fs::read_dir(self.0.join("sluice")).map_or(0, Iterator::count)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

struct Closed {
    guarded: Guarded,
    client: Pod,
    /// Not of a namespace that may call.
    stranger: Pod,
    bpf: BpfFs,
}

fn refusing(time: Option<&str>) -> Value {
    let mut spec = only("shop");
    spec["whenUnattended"] = json!("Refuse");
    if let Some(time) = time {
        spec["unattendedFor"] = json!(time);
    }
    spec
}

impl Closed {
    fn open(world: &World, time: Option<&str>) -> Result<(Self, Agent)> {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("bank", Capture::Unmentioned)?;
        let guarded = guarded(world, "::")?;
        let client = world.pod("shop", "client").start()?;
        let stranger = world.pod("bank", "stranger").start()?;
        let closed = Self { guarded, client, stranger, bpf: BpfFs::mount(world)? };
        let agent = closed.agent(world)?;
        policy(world, &refusing(time))?;
        denies(world, &urls(&closed.guarded.pod)[0])?;
        closed.is_pinned()?;
        Ok((closed, agent))
    }

    fn agent(&self, world: &World) -> Result<Agent> {
        let path = self.bpf.0.to_str().context("UTF-8")?;
        let agent = world.agent().args(&["--bpf-file-system", path]).start()?;
        agent.enrolled(&self.guarded.pod)?;
        Ok(agent)
    }

    fn is_pinned(&self) -> Result<()> {
        eventually("the pod's program is pinned", || {
            ensure!(self.bpf.pinned() == 1, "{} are", self.bpf.pinned());
            Ok(())
        })
    }

    fn nothing_is_left(&self) -> Result<()> {
        eventually("nothing is left", || {
            ensure!(!self.bpf.0.join("sluice").exists(), "{} are pinned", self.bpf.pinned());
            Ok(())
        })
    }

    fn is_served(&self) -> Result<()> {
        for url in urls(&self.guarded.pod) {
            eventually("who may call is served", || {
                ensure!(get(&self.client, &url)?.status == "200");
                Ok(())
            })?;
            let denied = get(&self.stranger, &url)?;
            ensure!(denied.status == "403", "{} {}", denied.status, denied.body);
        }
        Ok(())
    }

    /// By the kernel, for everybody, on both families.
    fn is_refused(&self) -> Result<()> {
        for url in urls(&self.guarded.pod) {
            for from in [&self.client, &self.stranger] {
                let said = get(from, &url).err().with_context(|| format!("{url} is open"))?;
                let said = format!("{said:#}");
                ensure!(said.contains("Failed to connect") || said.contains("Couldn't connect"), "{said}");
            }
        }
        // What the pod sends to itself is nobody's affair.
        let [v4, _] = urls(&self.guarded.pod);
        ensure!(get(&self.guarded.pod, &v4)?.status == "200");
        Ok(())
    }

    fn is_open(&self) -> Result<()> {
        for url in urls(&self.guarded.pod) {
            eventually("connections go direct", || {
                ensure!(get(&self.stranger, &url)?.status == "200");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A client that may not call, with a new connection for each request.
    fn knocks(&self) -> Result<Load> {
        Load::start(&self.stranger, &urls(&self.guarded.pod)[0], &["--new-connections", "--connections", "2"])
    }
}

fn release(path: &Path, socket: &Path) -> Result<String> {
    let output = Command::new(binary("sluice")?)
        .args(["release", "--bpf-file-system"])
        .arg(path)
        .arg("--admin-socket")
        .arg(socket)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_port_without_its_agent_is_closed_until_another_one_comes() {
    test("unattended-kill", |world| {
        let (closed, mut agent) = Closed::open(world, None)?;
        let pod = &closed.guarded.pod;
        let mut other =
            pod.spawn("other", python(), &[&script("peer_server.py"), &OTHER_PORT.to_string(), "::"])?;
        other.says("listening")?;
        closed.is_served()?;
        let knocks = closed.knocks()?;
        for _ in 0..2 {
            agent.kill()?;
            closed.is_refused()?;
            // The node itself has no business there: no probe does.
            ensure!(get_from_node(world, &urls(pod)[0]).is_err());
            let url = format!("http://{}:{OTHER_PORT}", pod.ipv4());
            ensure!(
                get(&closed.stranger, &url)?.status == "200",
                "another port of the pod is nobody's affair"
            );
            agent = closed.agent(world)?;
            closed.is_served()?;
            ensure!(closed.bpf.pinned() == 1);
        }
        let report = knocks.stop()?;
        ensure!(report.ok == 0 && report.failed > 100, "somebody came past: {report:?}");

        // A hang is no attendance either.
        agent.stop()?;
        eventually("the port is closed", || closed.is_refused())?;
        agent.cont()?;
        closed.is_served()?;
        ensure!(agent.connects("inbound_refused_unattended")? > 0);

        // The policy says otherwise: nothing stays behind.
        policy(world, &only("shop"))?;
        closed.nothing_is_left()?;
        closed.is_served()?;
        agent.kill()?;
        closed.is_open()
    });
}

#[test]
fn a_port_without_its_agent_opens_by_itself() {
    test("unattended-time", |world| {
        let (closed, mut agent) = Closed::open(world, Some("10s"))?;
        agent.kill()?;
        closed.is_refused()?;
        closed.is_open()?;
        // What has run out goes with the policy, or the pod, as soon as somebody looks.
        let agent = closed.agent(world)?;
        closed.is_served()?;
        world.delete("AccessPolicy", "shop", "orders")?;
        closed.nothing_is_left()?;
        drop(agent);
        closed.is_open()
    });
}

#[test]
fn agents_hand_over_what_stays_behind_without_a_gap() {
    test("unattended-hand-over", |world| {
        let (closed, mut old) = Closed::open(world, None)?;
        let knocks = closed.knocks()?;
        let url = &urls(&closed.guarded.pod)[0];
        let calls = Load::start(&closed.client, url, &["--new-connections", "--connections", "2"])?;
        for _ in 0..2 {
            let new = closed.agent(world)?;
            old.terminate()?;
            let status = old.wait()?;
            ensure!(status.success(), "{status}: {}", old.log());
            old = new;
        }
        let report = calls.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        closed.is_pinned()?;
        // Whichever pinned it: the last one's word holds.
        old.kill()?;
        closed.is_refused()?;
        let report = knocks.stop()?;
        ensure!(report.ok == 0 && report.failed > 100, "somebody came past: {report:?}");
        Ok(())
    });
}

#[test]
fn what_stays_behind_is_released() {
    test("unattended-release", |world| {
        let (closed, mut agent) = Closed::open(world, None)?;
        // Whether it stops for an upgrade or for good no agent knows.
        agent.terminate()?;
        agent.wait()?;
        closed.is_refused()?;
        let said = release(&closed.bpf.0, agent.socket())?;
        ensure!(said.trim() == "released 1 pod", "{said}");
        closed.is_open()?;
        closed.nothing_is_left()?;
        let said = release(&closed.bpf.0, agent.socket())?;
        ensure!(said.trim() == "nothing would stay behind the agent", "{said}");

        // The agent that is asked leaves nothing behind, whatever happens to it.
        let mut agent = closed.agent(world)?;
        closed.is_pinned()?;
        let said = release(&closed.bpf.0, agent.socket())?;
        ensure!(said.trim() == "released 1 pod", "{said}");
        closed.is_served()?;
        eventually("the status says so", || {
            let (_, status) = agent.get("/status")?;
            ensure!(status.contains("sluice release was called on this node"), "{status}");
            Ok(())
        })?;
        closed.nothing_is_left()?;
        agent.kill()?;
        closed.is_open()
    });
}

#[test]
fn probes_of_a_closed_pod_pass_and_pods_that_go_leave_nothing() {
    test("unattended-probes", |world| {
        let (closed, mut agent) = Closed::open(world, None)?;
        closed.guarded.pod.edit(|pod| {
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({"httpGet": {"path": "/health", "port": PORT}});
        })?;
        let [url, _] = urls(&closed.guarded.pod);
        // Once what the agent knows of the probes has come to the kernel.
        eventually("probes pass without the agent", || {
            agent.kill()?;
            let probe = get_from_node(world, &format!("{url}/health"));
            agent = closed.agent(world)?;
            ensure!(probe.context("a probe")?.status == "200");
            Ok(())
        })?;
        agent.kill()?;
        closed.is_refused()?;
        let agent = closed.agent(world)?;
        closed.is_pinned()?;
        let Closed { guarded: Guarded { pod, server }, bpf, .. } = closed;
        drop(server);
        pod.delete()?;
        eventually("nothing of the pod is left", || {
            ensure!(!bpf.0.join("sluice").exists(), "{} are pinned", bpf.pinned());
            Ok(())
        })?;
        drop(agent);
        Ok(())
    });
}

#[test]
fn a_pod_that_goes_while_no_agent_is_there_is_cleaned_up_after() {
    test("unattended-gone", |world| {
        let (closed, mut agent) = Closed::open(world, None)?;
        agent.kill()?;
        let Closed { guarded: Guarded { pod, server }, bpf, .. } = closed;
        drop(server);
        pod.delete()?;
        ensure!(bpf.pinned() == 1, "nobody is there to remove it");
        let path = bpf.0.to_str().context("UTF-8")?;
        let _agent = world.agent().args(&["--bpf-file-system", path]).start()?;
        eventually("nothing of the pod is left", || {
            ensure!(!bpf.0.join("sluice").exists(), "{} are pinned", bpf.pinned());
            Ok(())
        })
    });
}

#[test]
fn without_a_bpf_file_system_the_agent_says_so_and_enforces_all_the_same() {
    test("unattended-nowhere", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let guarded = guarded(world, "::")?;
        let path = world.directory().to_str().context("UTF-8")?;
        let mut agent = world.agent().args(&["--bpf-file-system", path]).start()?;
        agent.enrolled(&guarded.pod)?;
        policy(world, &refusing(None))?;
        let url = &urls(&guarded.pod)[0];
        denies(world, url)?;
        let why = format!("{path} is no BPF file system");
        eventually("the status says so", || {
            let (_, status) = agent.get("/status")?;
            ensure!(
                status.contains("whenUnattended: Refuse of AccessPolicy shop/orders is not active"),
                "{status}"
            );
            ensure!(status.contains(&why) && status.contains("Unsupported"), "{status}");
            let missing = [("state", "missing"), ("destination_service", "orders")];
            ensure!(agent.metrics()?.sum("sluice_access_refuse_unattended_pods", &missing) as u64 == 1);
            Ok(())
        })?;
        agent.kill()?;
        ensure!(get_from_node(world, url)?.status == "200");
        Ok(())
    });
}

#[test]
fn a_bpf_file_system_that_is_unmounted_is_told_and_used_again_when_it_is_back() {
    test("unattended-unmounted", |world| {
        let (closed, agent) = Closed::open(world, None)?;
        closed.is_pinned()?;
        umount2(&closed.bpf.0, MntFlags::MNT_DETACH)?;
        let pods = |state: &str| {
            let labels = [("state", state), ("destination_service", "orders")];
            Ok::<_, anyhow::Error>(
                agent.metrics()?.sum("sluice_access_refuse_unattended_pods", &labels) as u64
            )
        };
        eventually("it is told", || {
            let (_, status) = agent.get("/status")?;
            let what = "whenUnattended: Refuse of AccessPolicy shop/orders is not active";
            ensure!(status.contains(what) && status.contains("is no BPF file system"), "{status}");
            ensure!(pods("missing")? == 1);
            Ok(())
        })?;
        closed.is_served()?;
        mount(Some("bpf"), &closed.bpf.0, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        closed.is_pinned()?;
        eventually("it is active again", || {
            ensure!(pods("active")? == 1);
            Ok(())
        })
    });
}
