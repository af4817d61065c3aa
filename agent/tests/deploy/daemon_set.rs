//! What the DaemonSet says about the agent is true, and its parts fit each other.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{configuration, manifests::base};

fn pod() -> Value {
    base("DaemonSet")["spec"]["template"]["spec"].clone()
}

fn container() -> Value {
    let mut containers = pod()["containers"].as_array().cloned().unwrap();
    assert_eq!(containers.len(), 1);
    containers.remove(0)
}

/// What a rolling update with a surge needs: two of them on one node.
#[test]
fn two_agents_fit_on_a_node() {
    let update = base("DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"].clone();
    assert_eq!((update["maxSurge"].as_u64(), update["maxUnavailable"].as_u64()), (Some(1), Some(0)));
    // On the node's network each of them would be a port of the node, which only one pod can have.
    assert!(container()["ports"].is_null());
    // Not shared: a file of one must not be the other's.
    for volume in pod()["volumes"].as_array().unwrap() {
        let read_only = container()["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .any(|mount| mount["name"] == volume["name"] && mount["readOnly"] == true);
        // Of what they pin each has what the other would have, and one takes the other's place.
        let is_shared = volume["name"] == "bpf";
        assert!(volume["hostPath"].is_null() || read_only || is_shared, "{volume}");
    }
}

#[test]
fn it_has_time_to_drain() {
    let grace = pod()["terminationGracePeriodSeconds"].as_u64().unwrap();
    let settings = configuration::config_map();
    let drain: u64 = settings["SLUICE_DRAIN_TIMEOUT"].parse().unwrap();
    let tunnels: u64 = settings["SLUICE_TUNNEL_DRAIN_TIMEOUT"].parse().unwrap();
    let drain = drain.max(tunnels * 3600);
    // What comes after: the access log's last lines, and the kernel's taking the programs off.
    assert!(grace >= drain + 5, "{grace} s to end, {drain} s of them to drain");
}

#[test]
fn it_is_no_more_privileged_than_named() {
    let security = &container()["securityContext"];
    assert_eq!(security["privileged"], false);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(security["capabilities"]["drop"].as_array().unwrap(), &["ALL"]);
    // With the prefix the API server refuses it together with `allowPrivilegeEscalation: false`.
    let added = security["capabilities"]["add"].as_array().unwrap();
    assert!(added.iter().all(|name| !name.as_str().unwrap().starts_with("CAP_")), "{added:?}");
    assert_eq!(security["appArmorProfile"]["type"], "Unconfined");
    // The overlay for older servers names this container.
    assert_eq!(container()["name"], "agent");
}

#[test]
fn it_runs_on_every_node_and_stays() {
    let pod = pod();
    assert_eq!(pod["tolerations"].as_array().unwrap(), &[serde_json::json!({ "operator": "Exists" })]);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    let quota = base("ResourceQuota");
    assert_eq!(quota["spec"]["scopeSelector"]["matchExpressions"][0]["values"][0], "system-node-critical");
}

#[test]
fn its_variables_and_commands_are_the_agents() {
    let known: BTreeSet<String> = configuration::variables();
    for variable in container()["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(known.contains(name), "{name} is none of the agent's");
    }
    for name in configuration::config_map().keys() {
        assert!(known.contains(name), "{name} is none of the agent's");
    }
    let parse = |arguments: &[Value]| {
        let words: Vec<&str> = arguments.iter().map(|word| word.as_str().unwrap()).collect();
        std::process::Command::new(env!("CARGO_BIN_EXE_sluice")).args(words).arg("--help").output().unwrap()
    };
    assert!(parse(container()["args"].as_array().unwrap()).status.success());
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let command = container()[probe]["exec"]["command"].as_array().unwrap().clone();
        assert_eq!(command[0], "/sluice");
        assert!(parse(&command[1..]).status.success(), "{probe}: {command:?}");
    }
}

/// `env` goes before `envFrom`: a setting there could not be changed in the ConfigMap, and nothing would say so.
#[test]
fn every_setting_can_be_made_in_the_config_map() {
    let settings = configuration::config_map();
    for variable in container()["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(variable["valueFrom"]["fieldRef"].is_object(), "{name} is no fact of the node");
        assert!(!settings.contains_key(name), "{name} is set in config.env without effect");
    }
    let arguments = container()["args"].as_array().cloned().unwrap();
    assert_eq!(arguments, ["agent"], "a flag goes before its variable");
    assert_eq!(container()["envFrom"].as_array().unwrap().len(), 1);
}

/// What the ConfigMap and the DaemonSet set together is what the agent takes.
#[test]
fn the_agent_takes_its_environment() {
    let mut agent = std::process::Command::new(env!("CARGO_BIN_EXE_sluice"));
    // The last thing that is looked at before the cluster: whatever was wrong before it would be named instead.
    agent.args(["agent", "--manifests", "/no/such/directory"]).env_clear();
    agent.envs(configuration::config_map());
    agent.envs([("SLUICE_NODE", "node-1"), ("SLUICE_NODE_ADDRESS", "10.0.0.7")]);
    let output = agent.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/no/such/directory") && said.lines().count() == 1, "{said}");
    let output = agent.env_remove("SLUICE_NODE_ADDRESS").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("SLUICE_NODE_ADDRESS") && output.status.code() == Some(2), "{said}");
}

/// deploy/README.md says so.
#[test]
fn the_first_line_of_the_log_tells_the_settings() {
    use std::io::BufRead as _;

    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("config");
    // Nobody listens there, and nobody needs to.
    std::fs::write(
        &kubeconfig,
        "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], \
         clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: a, user: {}}]}",
    )
    .unwrap();
    let mut agent = std::process::Command::new(env!("CARGO_BIN_EXE_sluice"));
    agent.args(["agent", "--admin", "127.0.0.1:0", "--admin-socket", "none", "--workers", "1"]);
    agent.env_clear().env("KUBECONFIG", &kubeconfig).env("NO_COLOR", "1");
    let mut agent = agent.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let read = std::io::BufReader::new(agent.stderr.take().unwrap()).read_line(&mut line);
    agent.kill().unwrap();
    agent.wait().unwrap();
    read.unwrap();
    assert!(line.contains("starting") && line.contains("--workers 1"), "{line}");
}
