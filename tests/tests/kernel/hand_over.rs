//! One agent after another, and one that stops, without a failed request.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{
    Agent, App, Capture, Load, Pod, Process, Service, Shop, World, ask, eventually, test, test_with_both,
};

use crate::python;

const BAGGAGE: &str = "baggage: x-mse-tag=gray";

fn enrolled(agent: &Agent, shop: &Shop) -> Result<()> {
    shop.pods().try_for_each(|pod| agent.enrolled(pod))
}

/// Hands over from one agent to the next.
fn replace(world: &World, shop: &Shop, old: &mut Agent) -> Result<()> {
    let mut new = world.agent().start()?;
    enrolled(&new, shop)?;
    old.terminate()?;
    let status = old.wait()?;
    ensure!(status.success(), "{status}: {}", old.log());
    std::mem::swap(old, &mut new);
    // The new one has taken over.
    eventually("the new agent sees requests", || {
        ensure!(old.redirected()? > 0);
        Ok(())
    })
}

fn hand_over(name: &str, args: &[&str]) {
    test(name, |world| {
        // No translation of ClusterIPs: what goes past both agents fails.
        let shop = Shop::open(world, Capture::Enabled)?;
        let mut agent = world.agent().start()?;
        enrolled(&agent, &shop)?;
        let load =
            shop.load(&[&["--connections", "8", "--header", BAGGAGE, "--mark", "x-mse-tag"], args].concat())?;
        for _ in 0..3 {
            replace(world, &shop, &mut agent)?;
        }
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        ensure!(report.marked == report.ok, "{report:?}");
        ensure!(report.chains.keys().eq(["v1 gray v1 gray"]), "{report:?}");
        Ok(())
    });
}

#[test]
fn to_another_agent_with_new_connections() {
    hand_over("hand-over-new", &["--new-connections"]);
}

#[test]
fn to_another_agent_with_kept_connections() {
    hand_over("hand-over-kept", &[]);
}

#[test]
fn to_another_agent_with_idle_connections() {
    hand_over("hand-over-idle", &["--rate", "40"]);
}

#[test]
fn at_one_and_the_same_address() {
    test("hand-over-admin", |world| {
        let shop = Shop::open(world, Capture::Enabled)?;
        let mut old = world.agent().start()?;
        enrolled(&old, &shop)?;
        // As two pods of a DaemonSet on the node's network, during a rollout.
        let new = world.agent().admin(old.admin()).start()?;
        enrolled(&new, &shop)?;
        old.terminate()?;
        let status = old.wait()?;
        ensure!(status.success(), "{status}: {}", old.log());
        ensure!(shop.ask(&["x-mse-tag: gray"])?.versions() == "v1 gray v1 gray");
        ensure!(new.redirected()? > 0);
        Ok(())
    });
}

#[test]
fn two_agents_among_the_pods_do_not_hand_connections_to_each_other() {
    test_with_both("hand-over-among", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.policy_for_all("shop")?;
        let web = App::start(world, "web", "v1", None)?;
        // The addresses of its endpoints are governed, so what an agent sends on looks like what it was sent.
        world.service("shop", "web").port("http", 8080, 8080).headless().apply()?;
        let client = world.pod("shop", "client").start()?;
        let agents = [world.agent().among_pods().start()?, world.agent().among_pods().start()?];
        agents.iter().try_for_each(|agent| agent.enrolled(&client))?;
        let answer = ask(&client, &format!("http://{}:8080", web.pod.ipv4()), &[])?;
        ensure!(answer.versions() == "v1", "{answer:?}");
        let redirected = agents.iter().map(Agent::redirected).sum::<Result<u64>>()?;
        ensure!(redirected == 1, "{redirected} connects were redirected");
        Ok(())
    });
}

/// Sends a line for each that it is told, and prints what comes back.
const TALK: &str = "
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
for line in sys.stdin:
    s.sendall(line.encode())
    got = s.recv(100)
    print(got.decode() or 'end', end='', flush=True)
";

/// Sends back what it gets.
const ECHO: &str = "
import socket, threading
server = socket.create_server(('', 7000))
print('listening', flush=True)
def serve(s):
    while part := s.recv(100):
        s.sendall(part)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
";

#[test]
fn a_tunnel_goes_on_beside_the_agent_that_takes_over() {
    test("hand-over-tunnel", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.policy_for_all("shop")?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "AccessPolicy",
            "metadata": { "namespace": "shop", "name": "db" },
            "spec": {
                "targetRefs": [{ "name": "db" }],
                "rules": [{ "name": "ours", "from": [{ "namespace": "shop" }] }],
            },
        }))?;
        let db = world.pod("shop", "db-0").label("app", "db").start()?;
        let mut echo = db.spawn("echo", python(), &["-c", ECHO])?;
        echo.says("listening")?;
        let service = world.service("shop", "db").port("tcp", 70, 7000).apply()?;
        let client = world.pod("shop", "client").start()?;
        let mut old = world.agent().args(&["--drain-timeout", "1", "--drain-idle-timeout", "0"]).start()?;
        old.enrolled(&client)?;
        let target = [service.ipv4.to_string(), service.port.to_string()];
        let talk = || -> Result<Process> {
            let mut command = client.command(python())?;
            command.args(["-c", TALK, &target[0], &target[1]]).stdin(std::process::Stdio::piped());
            client.spawn_command("talk", &mut command)
        };
        let mut tunnel = talk()?;
        tunnel.tell("before\n")?;
        tunnel.says("before")?;
        ensure!(old.redirected()? == 1);

        let new = world.agent().start()?;
        new.enrolled(&client)?;
        old.terminate()?;
        eventually("the old one goes on with its tunnel", || {
            ensure!(old.log().contains("going on with tunnels only"), "{}", old.log());
            Ok(())
        })?;
        tunnel.tell("through the old\n")?;
        tunnel.says("through the old")?;
        let mut other = talk()?;
        other.tell("through the new\n")?;
        other.says("through the new")?;
        ensure!(new.redirected()? == 1);
        ensure!(old.ended()?.is_none());
        // It warns of nothing that is the new one's affair.
        let (code, said, _) = old.sluice(&["status"])?;
        ensure!(code != 0 && said.contains(", draining\n"), "{code}: {said}");
        ensure!(said.matches("\n  - ").count() == 1 && said.contains("  - The agent is draining:"), "{said}");
        // It answers at its socket only: at its addresses a new one may.
        let socket = old.sluice(&["get", "/healthz"])?;
        ensure!(socket.0 == 0, "{socket:?}");
        let address = old.admin();
        let answers = world.node().netns.run(|| std::net::TcpStream::connect(address).is_ok())?;
        ensure!(!answers, "it listens at {address}");

        tunnel.kill()?;
        let status = old.wait()?;
        ensure!(status.success(), "{status}: {}", old.log());
        Ok(())
    });
}

#[test]
fn a_tunnel_ends_with_the_time_that_it_is_given() {
    test("tunnel-bounded", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.policy_for_all("shop")?;
        let db = world.pod("shop", "db-0").label("app", "db").start()?;
        let mut echo = db.spawn("echo", python(), &["-c", ECHO])?;
        echo.says("listening")?;
        let service = world.service("shop", "db").port("tcp", 70, 7000).apply()?;
        let client = world.pod("shop", "client").start()?;
        let limits = ["--drain-timeout", "1", "--tunnel-drain-timeout", "0"];
        let mut agent = world.agent().args(&limits).start()?;
        agent.enrolled(&client)?;
        let mut command = client.command(python())?;
        command.args(["-c", TALK, &service.ipv4.to_string(), &service.port.to_string()]);
        let mut tunnel = client.spawn_command("talk", command.stdin(std::process::Stdio::piped()))?;
        tunnel.tell("before\n")?;
        tunnel.says("before")?;
        agent.terminate()?;
        let status = agent.wait()?;
        ensure!(status.success() && agent.log().contains("--drain-timeout is over"), "{}", agent.log());
        Ok(())
    });
}

/// A service whose answers take long, and a pod that calls it.
fn slow(world: &World) -> Result<(Service, App, Pod, Agent)> {
    world.namespace("shop", Capture::Enabled)?;
    world.kube_proxy()?;
    let pod = world.pod("shop", "slow-0").label("app", "slow").start()?;
    let process = pod.serve(&["--name", "slow", "--delay", "1500"])?;
    let service = world.service("shop", "slow").port("http", 80, 8080).apply()?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok((service, App { process, pod }, client, agent))
}

#[test]
fn a_stopping_agent_finishes_what_is_in_flight() {
    test("drain", |world| {
        let (service, _app, client, mut agent) = slow(world)?;
        let load = Load::start(
            &client,
            &service.url(),
            &["--connections", "20", "--requests", "20", "--header", BAGGAGE, "--mark", "x-mse-tag"],
        )?;
        eventually("all requests are in flight", || {
            let flying =
                agent.metrics()?.sum("sluice_requests_in_flight", &[("destination_service", "slow")]);
            ensure!(flying >= 20.0, "{flying}");
            Ok(())
        })?;
        agent.terminate()?;
        let status = agent.wait()?;
        ensure!(status.success(), "{status}: {}", agent.log());
        let report = load.finish()?;
        ensure!((report.ok, report.failed, report.marked) == (20, 0, 20), "{report:?}");
        // Then without the agent.
        ensure!(ask(&client, &service.url(), &[])?.versions() == "v1");
        Ok(())
    });
}

#[test]
fn a_stopping_agent_does_not_wait_for_ever() {
    test("drain-bounded", |world| {
        let (service, _app, client, agent) = slow(world)?;
        drop(agent);
        let mut agent = world.agent().args(&["--drain-timeout", "1"]).start()?;
        agent.enrolled(&client)?;
        // A request that never ends: its body does not come.
        let said = ["-sS", "-T", "-", "-m", "60"];
        let mut endless = client.command("curl")?;
        endless.args(said).arg(format!("{}/echo", service.url())).stdin(std::process::Stdio::piped());
        let endless = client.spawn_command("endless", &mut endless)?;
        eventually("the request is in flight", || {
            ensure!(agent.metrics()?.sum("sluice_requests_in_flight", &[]) >= 1.0);
            Ok(())
        })?;
        agent.terminate()?;
        let status = agent.wait()?;
        ensure!(status.success(), "{status}: {}", agent.log());
        drop(endless);
        Ok(())
    });
}
