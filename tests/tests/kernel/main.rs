//! The whole in the real kernel: the agent's binary, its eBPF programs, pods, and clients that nobody here wrote.
//! Needs root; `cargo xtask test kernel` provides what else it needs.

mod api_server;
mod asking;
mod balancing;
mod breaking;
mod budgets;
mod clients;
mod connecting;
mod direct;
mod enrolment;
mod examples;
mod fail_open;
mod faithful;
mod families;
mod first_request;
mod flows;
mod grpc;
mod hand_over;
mod inbound;
mod intermediaries;
mod lanes;
mod leaving;
mod limit_store;
mod live;
mod page;
mod policies;
mod privileges;
mod prometheus;
mod propagation;
mod reclaim;
mod redirect;
mod rollout;
mod routes;
mod standing;
mod startup;
mod status;
mod threads;
mod throttling;
mod traces;
mod tunnel;
mod warm_gate;

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use sluice_tests::{Pod, Process};

/// A program for a real client, beside these tests.
fn script(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "clients", name].iter().collect();
    path.display().to_string()
}

/// The Python that has grpcio and prometheus-client.
fn python() -> PathBuf {
    std::env::var_os("SLUICE_PYTHON").map_or_else(|| "python3".into(), PathBuf::from)
}

/// `grpc_server.py` on a port of a pod; it answers with its version.
fn grpc_process(pod: &Pod, port: u16, version: &str) -> Result<Process> {
    let mut server =
        pod.spawn("server", python(), &[&script("grpc_server.py"), &port.to_string(), version])?;
    server.says("listening")?;
    Ok(server)
}

/// What `grpc_calls.py` says: who answered how often.
fn grpc_calls(client: &Pod, target: &str, calls: u32, metadata: &[&str]) -> Result<BTreeMap<String, u32>> {
    let (script, calls) = (script("grpc_calls.py"), calls.to_string());
    let said = client.run(python(), &[&[script.as_str(), target, &calls], metadata].concat())?;
    serde_json::from_str(&said).with_context(|| format!("grpc_calls.py {target} said {said:?}"))
}

/// What an application in the pod sees of its sockets.
fn sockets(pod: &Pod, args: &[&str]) -> Result<Value> {
    let script = script("sockets.py");
    let said = pod.run(python(), &[&[script.as_str()], args].concat())?;
    serde_json::from_str(&said).with_context(|| format!("sockets.py {args:?} said {said:?}"))
}
