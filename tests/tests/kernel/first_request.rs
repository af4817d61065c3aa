//! A warm-up with `startOn: FirstRequest` begins with the first request that arrives at the pod, whoever sent it, and for the clients
//! of all nodes: two agents, of two nodes, at one API server.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, Capture, Depot, Pod, World, eventually, test_in};

const CONDITION: &str = "sluice.dev/first-request";
/// The other node, which has a client and no instance.
const OTHER: &str = "other";

/// What the API server says of the pod's first request.
fn told(world: &World, pod: &Pod) -> Result<Option<Value>> {
    let object = world.api(|api| Ok(api.get("pods", &pod.namespace, &pod.name)))?;
    let object = object.context("the pod is there")?;
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    Ok(conditions.find(|condition| condition["type"] == CONDITION).cloned())
}

/// Waits until an agent says so of the instance, whose service is called by a pod of its node.
fn says(agent: &Agent, client: &Pod, instance: &Pod, state: &str) -> Result<()> {
    eventually(&format!("{} is {state}", instance.name), || {
        let caller = format!("{}/{}", client.namespace, client.name);
        let (_, said, _) = agent.sluice(&["explain", "--pod", &caller, "--to", "depot.shop:80"])?;
        let line = said.lines().find(|line| line.contains(&format!(" {} ", instance.name)));
        ensure!(line.is_some_and(|line| line.contains(&format!(" {state} "))), "{said}");
        Ok(())
    })
}

fn start(world: &World, node: &str, client: &Pod) -> Result<Agent> {
    let agent = world.agent().on(node).args(&["--warm-gate", "enabled"]).start()?;
    agent.enrolled(client)?;
    Ok(agent)
}

#[test]
fn a_request_that_arrives_begins_the_warm_up_for_clients_of_all_nodes() -> Result<()> {
    let world = World::watched("first-request")?;
    test_in(&world, |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("bank", Capture::Unmentioned)?;
        let here = world.node_name();
        let client = world.pod("shop", "client").start()?;
        let other_client = world.pod("shop", "other-client").on(OTHER).start()?;
        let outsider = world.pod("bank", "teller").start()?;
        let mut agent = start(world, here, &client)?;
        let other = start(world, OTHER, &other_client)?;
        let depot = Depot::open(world, &agent, &client)?;
        let _old = depot.old_instance("one")?;
        depot.policy(json!({
            "loadBalancer": {"warmUp": {"duration": "1h", "startOn": "FirstRequest", "healthCheckPaths": ["/healthz"]}},
            "rateLimits": [{"name": "much", "requests": 100_000, "scope": "Endpoint"}],
        }))?;
        let new = depot.instance("two")?;
        new.pod.set_ready(true)?;
        // (Nobody calls the service: its clients' own agents have no part in what follows.)
        let untouched = "waiting for its first request";
        for (agent, client) in [(&agent, &client), (&other, &other_client)] {
            says(agent, client, &new.pod, untouched)?;
        }
        let url = |path: &str| format!("http://{}:8080{path}", new.pod.ipv4());
        for (agent_of_probe, path) in [("kube-probe/1.33", "/"), ("curl", "/healthz")] {
            outsider.run("curl", &["-sS", "-m", "10", "-A", agent_of_probe, &url(path)])?;
        }
        ensure!(told(world, &new.pod)?.is_none(), "health checks begin nothing");
        // The agent of its node starts anew: what was not asked is not warm.
        agent.kill()?;
        drop(agent);
        let agent = start(world, here, &client)?;
        says(&agent, &client, &new.pod, untouched)?;

        // From a pod that no agent takes connections of.
        eventually("its first request is told", || {
            outsider.run("curl", &["-sS", "-m", "10", &url("/")])?;
            let told = told(world, &new.pod)?.unwrap_or_default();
            ensure!(told["status"] == "True" && told["reason"] == "FirstRequest", "{told}");
            Ok(())
        })?;
        says(&agent, &client, &new.pod, "warming")?;
        says(&other, &other_client, &new.pod, "warming")?;
        drop(other);
        let other = start(world, OTHER, &other_client)?;
        says(&other, &other_client, &new.pod, "warming")
    });
    Ok(())
}
