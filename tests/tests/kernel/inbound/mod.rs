//! Connections from outside to pods whose policies ask for something at the endpoint: who may call, and what the application
//! sees of it.

mod agents;
mod callers;
mod connections;
mod hidden;
mod limits;
mod tokens;
mod unattended;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, Pod, Process, World, eventually};

use crate::{python, script};

const PORT: u16 = 8080;

/// A pod whose application says who called it, behind a Service of its name.
struct Guarded {
    pod: Pod,
    server: Process,
}

fn guarded(world: &World, address: &str) -> Result<Guarded> {
    let pod = world.pod("shop", "orders-1").label("app", "orders").start()?;
    let mut server =
        pod.spawn("server", python(), &[&script("peer_server.py"), &PORT.to_string(), address])?;
    server.says("listening")?;
    world.service("shop", "orders").port("http", 80, PORT).apply()?;
    Ok(Guarded { pod, server })
}

fn policy(world: &World, spec: &Value) -> Result<()> {
    policy_of_kind(world, "AccessPolicy", spec)
}

/// A policy for the Service.
fn policy_of_kind(world: &World, kind: &str, spec: &Value) -> Result<()> {
    let mut whole = json!({"targetRefs": [{"name": "orders"}]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    world.apply(json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": whole,
    }))
}

/// Only the pods of this namespace.
fn only(namespace: &str) -> Value {
    json!({"rules": [{"name": "ours", "from": [{"namespace": namespace}]}]})
}

const ANSWER: [&str; 6] = ["-sS", "-m", "10", "-w", "\n%{http_code} %{local_ip} %{local_port}", "-g"];

/// What a client gets: the status, its own address, and the answer.
struct Got {
    status: String,
    own: Value,
    body: String,
}

impl Got {
    fn of(said: &str) -> Result<Self> {
        let (body, line) = said.rsplit_once('\n').context("two lines")?;
        let mut words = line.split(' ');
        let mut next = || words.next().with_context(|| line.to_owned());
        let (status, ip, port) = (next()?.to_owned(), next()?.to_owned(), next()?.parse::<u16>()?);
        Ok(Self { status, own: json!([ip, port]), body: body.to_owned() })
    }

    fn answer(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| self.body.clone())
    }
}

fn get(client: &Pod, url: &str) -> Result<Got> {
    Got::of(&client.run("curl", &[&ANSWER[..], &[url]].concat())?)
}

/// The same from the node itself.
fn get_from_node(world: &World, url: &str) -> Result<Got> {
    let output = world.node().command("curl")?.args(ANSWER).arg(url).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Got::of(&String::from_utf8(output.stdout)?)
}

fn urls(pod: &Pod) -> [String; 2] {
    [format!("http://{}:{PORT}", pod.ipv4()), format!("http://[{}]:{PORT}", pod.ipv6())]
}

/// Waits until a policy is in force, by what somebody gets whom it denies.
fn denies(world: &World, url: &str) -> Result<()> {
    eventually("the policy is in force", || {
        let got = get_from_node(world, url)?;
        ensure!(got.status == "403", "{} {}", got.status, got.body);
        Ok(())
    })
}

fn agent(world: &World, guarded: &Guarded) -> Result<Agent> {
    let agent = world.agent().start()?;
    agent.enrolled(&guarded.pod)?;
    Ok(agent)
}
