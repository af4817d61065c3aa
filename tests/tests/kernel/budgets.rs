//! A pod that uses more of the agent than its part: its new connections go direct, and no other pod feels it.

use anyhow::{Result, ensure};
use sluice_tests::{Agent, App, Capture, Pod, Process, Service, World, ask, eventually, test};

use crate::python;

const BAGGAGE: &str = "baggage: x-mse-tag=gray";

/// Opens so many connections, says so, and keeps them without a word.
const HOLD: &str = "
import socket, sys, time
held = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) for _ in range(int(sys.argv[3]))]
print('holding', flush=True)
time.sleep(3600)
";

fn hold(pod: &Pod, service: &Service, count: u32) -> Result<Process> {
    let target = [&service.ipv4.to_string(), &service.port.to_string(), &count.to_string()];
    let args: Vec<&str> = ["-c", HOLD].into_iter().chain(target.iter().map(|arg| arg.as_str())).collect();
    let mut process = pod.spawn("hold", python(), &args)?;
    process.says("holding")?;
    Ok(process)
}

/// A service, with and without an agent, and two pods that call it.
struct Street {
    service: Service,
    greedy: Pod,
    other: Pod,
    _app: App,
}

impl Street {
    fn open(world: &World) -> Result<Self> {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        let app = App::start(world, "web", "v1", None)?;
        let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
        let greedy = world.pod("shop", "greedy").start()?;
        let other = world.pod("shop", "other").start()?;
        Ok(Self { service, greedy, other, _app: app })
    }

    fn enrolled(&self, agent: &Agent) -> Result<()> {
        agent.enrolled(&self.greedy)?;
        agent.enrolled(&self.other)
    }

    /// Whether a new connection of the pod goes through the agent; it is answered either way.
    fn goes_through(&self, pod: &Pod) -> Result<bool> {
        let answer = ask(pod, &format!("{}/?headers", self.service.url()), &[BAGGAGE])?;
        Ok(answer.chain.first().is_some_and(|hop| hop.headers.contains_key("x-mse-tag")))
    }
}

/// The names of the pods of which `sluice status` says that they bypass the agent.
fn named(agent: &Agent) -> Result<Vec<String>> {
    let (_, said, _) = agent.sluice(&["status"])?;
    let named = said.lines().filter(|line| line.contains("new connections bypass the agent"));
    Ok(named
        .filter_map(|line| line.split_whitespace().find(|word| word.contains('/')))
        .map(str::to_owned)
        .collect())
}

#[test]
fn above_its_connections_a_pod_goes_direct_and_comes_back() {
    test("over-budget", |world| {
        let street = Street::open(world)?;
        let agent = world.agent().args(&["--connections-per-pod", "24"]).start()?;
        street.enrolled(&agent)?;
        ensure!(street.goes_through(&street.greedy)?);
        ensure!(agent.connects("bypassed_over_budget")? == 0);

        let held = hold(&street.greedy, &street.service, 60)?;
        eventually("its new connections go direct", || {
            ensure!(!street.goes_through(&street.greedy)?);
            Ok(())
        })?;
        ensure!(street.goes_through(&street.other)?);
        let open = agent.metrics()?.sum("sluice_pod_connections_open", &[("source_pod", "greedy")]);
        let direct = agent.connects("bypassed_over_budget")?;
        ensure!(open >= 24.0 && direct > 0 && open as u64 + direct >= 60, "{open} open, {direct} direct");
        ensure!(named(&agent)? == ["shop/greedy"], "{:?}", agent.sluice(&["status"])?);

        drop(held);
        eventually("they come back", || {
            ensure!(street.goes_through(&street.greedy)?);
            Ok(())
        })?;
        ensure!(named(&agent)?.is_empty());
        let over = agent.metrics()?.sum(
            "sluice_pod_over_budget_seconds_total",
            &[("source_pod", "greedy"), ("budget", "connections")],
        );
        ensure!(over >= 1.0, "{over}");
        Ok(())
    });
}

#[test]
fn one_pods_idle_connections_leave_descriptors_to_others() {
    test("descriptors", |world| {
        let street = Street::open(world)?;
        let agent = world.agent().open_files(256).start()?;
        street.enrolled(&agent)?;
        ensure!(street.goes_through(&street.greedy)?);
        let held = hold(&street.greedy, &street.service, 300)?;
        for _ in 0..20 {
            // Through the agent or, while as little is left as of so few descriptors, past it: answered.
            ask(&street.other, &street.service.url(), &[])?;
            ask(&street.greedy, &street.service.url(), &[])?;
        }
        let named = named(&agent)?;
        ensure!(named.contains(&"shop/greedy".to_owned()), "{named:?}");
        ensure!(!agent.log().contains("cannot accept"), "{}", agent.log());
        drop(held);
        eventually("both come back", || {
            ensure!(street.goes_through(&street.other)? && street.goes_through(&street.greedy)?);
            Ok(())
        })
    });
}
