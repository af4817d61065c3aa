//! `kubectl sluice` against a double of the API server, whose pods run the very program of the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sluice_tests::api_server::{ApiServer, Exec, Fault, PROTOCOLS};
use tempfile::TempDir;

use crate::{agent::Agent, said};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluice");

/// A cluster with an agent on each of some nodes, and a user of it.
struct Cluster {
    api: ApiServer,
    directory: TempDir,
    _agents: Vec<Agent>,
    sockets: BTreeMap<String, PathBuf>,
}

impl Cluster {
    fn with(nodes: &[&str]) -> Self {
        let api = ApiServer::start().unwrap();
        let directory = tempfile::tempdir().unwrap();
        api.set_tokens(Some(&["a-token"]));
        api.kubeconfig(directory.path(), "a-token").unwrap();
        std::os::unix::fs::symlink(PROGRAM, directory.path().join("kubectl-sluice")).unwrap();
        let agents: Vec<_> = nodes.iter().map(|node| Agent::on(node)).collect();
        let sockets = nodes.iter().zip(&agents);
        let sockets = sockets.map(|(node, agent)| (format!("sluice-{node}"), agent.socket())).collect();
        let cluster = Self { api, directory, _agents: agents, sockets };
        for node in nodes {
            cluster.agent(node, &json!({"running": {}}));
        }
        cluster.desired(nodes.len());
        let client = json!({
            "metadata": {"name": "client", "namespace": "shop"},
            "spec": {"nodeName": nodes[0], "containers": [{"name": "app"}]},
        });
        cluster.api.apply("pods", client);
        cluster.run(|_| vec![PROGRAM.to_owned()]);
        cluster
    }

    /// A pod of the DaemonSet with its container in this state.
    fn agent(&self, node: &str, state: &Value) {
        let status = json!({"name": "agent", "image": "sluice", "imageID": "", "ready": true, "restartCount": 0, "state": state});
        let pod = json!({
            "metadata": {
                "name": format!("sluice-{node}"), "namespace": "sluice-system",
                "labels": {"app.kubernetes.io/name": "sluice"},
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"nodeName": node, "containers": [{"name": "agent"}]},
            "status": {"phase": "Running", "containerStatuses": [status]},
        });
        self.api.apply("pods", pod);
    }

    fn desired(&self, count: usize) {
        let set = json!({
            "metadata": {
                "name": "sluice", "namespace": "sluice-system", "labels": {"app.kubernetes.io/name": "sluice"},
            },
            "status": {"desiredNumberScheduled": count, "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0},
        });
        self.api.apply("daemonsets", set);
    }

    /// What stands in the place of the agent's program; its arguments are added.
    fn run(&self, program: impl Fn(&Exec) -> Vec<String> + Send + Sync + 'static) {
        let sockets = self.sockets.clone();
        self.api.set_exec(move |exec| {
            assert_eq!((&*exec.container, &*exec.command[0]), ("agent", "/sluice"), "{exec:?}");
            let words = program(exec);
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).args(&exec.command[1..]).env_clear();
            if let Some(socket) = sockets.get(&exec.pod) {
                command.env("SLUICE_ADMIN_SOCKET", socket);
            }
            Ok(command)
        });
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(self.directory.path().join("kubectl-sluice"));
        command.args(line.split(' ')).env_clear().stdin(Stdio::null());
        command.env("KUBECONFIG", self.directory.path().join("kubeconfig")).env("NO_COLOR", "1");
        command
    }

    /// Exit status, standard output, standard error.
    fn said(&self, line: &str) -> (i32, String, String) {
        said(self.command(line))
    }

    /// The one line that it complains with.
    #[track_caller]
    fn complaint(&self, line: &str, status: i32) -> String {
        let (got, out, complaint) = self.said(line);
        assert_eq!((got, &*out), (status, ""), "{line}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{line}: {complaint}");
        let complaint = complaint.trim_end().strip_prefix("kubectl sluice: ").map(str::to_owned);
        complaint.unwrap_or_else(|| panic!("{line}"))
    }

    fn json(&self, line: &str) -> Value {
        let (_, out, complaint) = self.said(&format!("{line} -o json"));
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {error}: {out} {complaint}"))
    }

    /// Waits until nothing runs any more that was executed.
    #[track_caller]
    fn nothing_runs(&self) {
        let begun = Instant::now();
        while self.api.executing() > 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "a program goes on though its client has gone"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A shell that runs this, with the agent's arguments behind it.
fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script, "sh"].map(str::to_owned).into()
}

#[test]
fn status_is_that_of_all_nodes() {
    let cluster = Cluster::with(&["node-1", "node-2", "node-3"]);
    let (status, text, complaint) = cluster.said("status");
    assert_eq!((status, &*complaint), (1, ""), "these agents have no kernel: {text}");
    for part in [
        "3 nodes with an agent: 0 ready, 3 not ready, 0 without an answer\n",
        "\n  - all nodes: The agent is not ready: ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("node-")).collect();
    assert!(rows.len() == 3 && rows.iter().all(|row| row.contains("NOT READY")), "{text}");

    // One crashes, and one has lost its pod.
    cluster.agent("node-2", &json!({"waiting": {"reason": "CrashLoopBackOff"}}));
    cluster.desired(4);
    let (status, text, _) = cluster.said("status");
    assert_eq!(status, 1);
    for part in [
        "3 nodes with an agent: 0 ready, 2 not ready, 1 without an answer\n1 agents are wanted",
        "without an answer:\n  - node-2: pod sluice-node-2 does not run: CrashLoopBackOff\n",
        "  - node-1, node-3: The agent is not ready: ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let report = cluster.json("status");
    assert_eq!(report["nodes"][0]["node"], "node-2", "the worst first: {report:#}");
    assert!(report["nodes"][0]["error"].as_str().unwrap().contains("CrashLoopBackOff"), "{report:#}");
    assert_eq!(report["nodes"][1]["status"]["node"], "node-1", "{report:#}");
    assert_eq!((&report["nodes"][1]["pod"], &report["lacking"]), (&"sluice-node-1".into(), &1.into()));
    assert_eq!(report["problems"][0]["nodes"], json!(["node-1", "node-3"]));

    let (_, text, _) = cluster.said("status --node node-3,node-1");
    assert!(text.starts_with("2 nodes with an agent") && !text.contains("node-2"), "{text}");
    let complaint = cluster.complaint("status --node node-9", 1);
    assert_eq!(
        complaint,
        "--node: no agent runs on node \"node-9\"; there are agents on node-1, node-2, node-3"
    );
    cluster.nothing_runs();
}

#[test]
fn the_agent_of_the_pods_node_is_asked_in_both_versions_of_the_protocol() {
    let cluster = Cluster::with(&["node-1", "node-2"]);
    for protocol in PROTOCOLS {
        cluster.api.set_exec_protocols(&[protocol]);
        let (status, text, complaint) =
            cluster.said("explain --pod shop/client --to orders.shop:80 -H x-mse-tag:gray POST /a");
        assert_eq!((status, &*complaint), (0, ""), "{protocol}: {text}");
        assert!(text.starts_with("POST /a from shop/client to "), "{text}");
    }
    // What the API server is told of the question, and keeps in its audit log, is that there is one.
    cluster.run(|exec| {
        assert_eq!(exec.command[1..], ["relay"], "{exec:?}");
        assert_eq!(exec.pod, "sluice-node-1");
        vec![PROGRAM.to_owned()]
    });
    let explanation = cluster.json("explain -n shop --pod client --to orders:80");
    assert_eq!(explanation["caller"], "shop/client", "{explanation:#}");
    // Another node's agent says the same of a pod that all know.
    cluster.run(|exec| {
        assert_eq!(exec.pod, "sluice-node-2");
        vec![PROGRAM.to_owned()]
    });
    assert_eq!(
        cluster.json("explain --node node-2 --pod shop/client --to orders.shop:80")["caller"],
        "shop/client"
    );
    cluster.nothing_runs();
}

#[test]
fn what_the_agent_says_of_a_question_is_passed_on() {
    let cluster = Cluster::with(&["node-1"]);
    cluster.api.apply(
        "pods",
        json!({"metadata": {"name": "new", "namespace": "shop"}, "spec": {"containers": [{"name": "app"}]}}),
    );
    for (line, status, part) in [
        ("explain --to orders.shop:80", 2, "--pod says whose agent is asked, as in --pod shop/client"),
        ("explain --pod shop/client", 2, "--to is needed, as in `kubectl sluice explain --pod"),
        ("explain --pod a/b/c --to orders:80", 2, "--pod: \"a/b/c\" is not namespace/name"),
        ("explain --pod shop/client --to orders.shop:x", 2, "to: \"x\" is no port"),
        (
            "explain --pod shop/nobody --to orders.shop:80",
            1,
            "there is no pod shop/nobody in the cluster at https://127.0.0.1:",
        ),
        ("explain --pod shop/new --to orders.shop:80", 1, "pod shop/new runs on no node yet"),
        ("explain --pod shop/client --to nothing.shop:80", 1, "nothing"),
        ("explain --request-id never-sent", 1, "no such request is kept"),
        ("explain --trace-id 12", 2, "32 hexadecimal digits"),
        ("explain --node node-1 --last 3", 1, "no such request is kept"),
        ("call --to orders.shop:80 --pod shop/client", 1, ""),
        (
            "status --verbose",
            2,
            "unexpected argument '--verbose' found, as in `kubectl sluice status -o json`",
        ),
        ("dump", 2, "--node <NAME>|--pod <NAMESPACE/POD>|--all-nodes"),
        ("statuss", 2, "a similar subcommand exists: 'status'"),
    ] {
        let complaint = cluster.complaint(line, status);
        assert!(complaint.contains(part), "{line}: {complaint}");
    }
    cluster.nothing_runs();
}

#[test]
fn dumps_and_numbers_come_from_one_node_or_from_all() {
    let cluster = Cluster::with(&["node-1", "node-2"]);
    for which in ["--node node-2", "--pod shop/client"] {
        let (status, dump, complaint) = cluster.said(&format!("dump {which}"));
        let dump: Value = serde_json::from_str(&dump).unwrap_or_else(|error| panic!("{error}: {complaint}"));
        let node = if which.contains("node") { "node-2" } else { "node-1" };
        assert_eq!((status, &dump["status"]["node"]), (0, &node.into()), "{which}");
    }
    cluster.agent("node-1", &json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}));
    let (status, dumps, _) = cluster.said("dump --all-nodes");
    let dumps: Value = serde_json::from_str(&dumps).unwrap();
    assert_eq!((status, &dumps["node-2"]["status"]["node"]), (1, &"node-2".into()));
    assert_eq!(
        dumps["node-1"]["error"],
        "pod sluice-node-1 does not run: its program ended with 137 (OOMKilled)"
    );

    cluster.agent("node-1", &json!({"running": {}}));
    let (status, text, complaint) = cluster.said("top --times 2");
    assert_eq!((status, &*complaint), (0, ""), "{text}");
    let screens = text.matches("sluice on 2 nodes: 1 service port managed").count();
    assert!(screens == 2 && text.contains("orders.shop:80"), "{text}");
    // A session a node, not one a second.
    cluster.nothing_runs();
    let before = cluster.api.count("create", "pods/exec", "sluice-system");
    cluster.said("top --times 3 --node node-2");
    assert_eq!(cluster.api.count("create", "pods/exec", "sluice-system") - before, 1);
    cluster.agent("node-2", &json!({"waiting": {"reason": "ContainerCreating"}}));
    let (status, text, _) = cluster.said("top --times 1");
    assert!(status == 0 && text.contains("sluice on node-1 (no answer from node-2)"), "{text}");
    let complaint = cluster.complaint("top --times 1 --node node-2", 1);
    assert!(complaint.contains("pod sluice-node-2 does not run: ContainerCreating"), "{complaint}");
    cluster.nothing_runs();
}

#[test]
fn whoever_may_not_hears_it_in_one_line() {
    let cluster = Cluster::with(&["node-1", "node-2"]);
    let commands =
        ["status", "explain --pod shop/client --to orders.shop:80", "dump --node node-1", "top --times 1"];
    cluster.api.fault("create", "pods/exec", Some(Fault::Status(403)));
    for line in commands {
        let complaint = cluster.complaint(line, 1);
        for part in
            ["you may not execute `sluice` in the agents' pods: ", "\"pods/exec\"", "deploy/overlays/kubectl"]
        {
            assert!(complaint.contains(part), "{line}: {complaint}");
        }
    }
    cluster.api.fault("create", "pods/exec", None);
    cluster.api.fault("list", "pods", Some(Fault::Status(403)));
    for line in commands {
        let complaint = cluster.complaint(line, 1);
        assert!(
            complaint.starts_with("you may not list the agents in namespace sluice-system: "),
            "{complaint}"
        );
    }
    cluster.api.fault("list", "pods", None);
    cluster.api.fault("get", "pods", Some(Fault::Status(403)));
    let complaint = cluster.complaint(commands[1], 1);
    assert!(complaint.starts_with("you may not look up pod shop/client: "), "{complaint}");
    assert!(complaint.ends_with("if you know its node, say it with --node"), "{complaint}");
    assert_eq!(cluster.said(&format!("{} --node node-1", commands[1])).0, 0);
    // It is no more than a convenience to know how many there should be.
    cluster.api.fault("list", "daemonsets", Some(Fault::Status(403)));
    assert!(cluster.said("status").1.starts_with("2 nodes with an agent"));
    cluster.api.set_tokens(Some(&["another"]));
    let complaint = cluster.complaint("status", 1);
    assert!(complaint.contains("does not accept your credentials: Unauthorized"), "{complaint}");
}

#[test]
fn an_agent_that_does_not_answer_has_a_reason() {
    let cluster = Cluster::with(&["node-1", "node-2"]);
    let of_the_other = |script: &'static str| {
        move |exec: &Exec| if exec.pod == "sluice-node-2" { shell(script) } else { vec![PROGRAM.to_owned()] }
    };
    for (script, wanted) in [
        // Before there was a relay.
        (
            "echo \"sluice: unrecognized subcommand 'relay'\" >&2; exit 2",
            "is an agent of another version than this plugin",
        ),
        ("echo 'sluice: out of luck' >&2; exit 1", "pod sluice-node-2: sluice: out of luck"),
        ("exit 3", "pod sluice-node-2: its program ended with 3"),
        ("true", "pod sluice-node-2: the connection ended"),
        ("echo hello; sleep 600", "pod sluice-node-2: what it says is no answer"),
        // It says that more will come.
        (
            "echo '{\"version\":\"0\",\"outcome\":{\"answer\":{\"status\":200,\"length\":9}}}'; echo short",
            "pod sluice-node-2: the connection ended",
        ),
        (
            "echo '{\"version\":\"9.9.9\",\"outcome\":{\"answer\":{\"status\":200,\"length\":2}}}'; echo {}; sleep 600",
            "the agent is version 9.9.9 and this plugin",
        ),
        ("echo '{\"version\":\"0\",\"outcome\":{\"failed\":\"no socket\"}}'; sleep 600", "no socket"),
        ("exec sleep 600", "no response within 1 s"),
    ] {
        cluster.run(of_the_other(script));
        let (status, text, complaint) = cluster.said("status --request-timeout 1");
        assert_eq!(status, 1, "{text}");
        let line = text.lines().find(|line| line.starts_with("  - node-2: "));
        assert!(line.is_some_and(|line| line.contains(wanted)), "{script}: {text} {complaint}");
        assert!(text.lines().any(|line| line.starts_with("node-1 ")), "the other one answers: {text}");
    }
    cluster.run(|exec| {
        if exec.pod == "sluice-node-2" { vec!["/no/such".to_owned()] } else { vec![PROGRAM.to_owned()] }
    });
    let (_, text, _) = cluster.said("status");
    assert!(text.contains("  - node-2: pod sluice-node-2 has no program /sluice: is it an agent?"), "{text}");
    cluster.api.set_exec(|_| Err("error dialing backend: dial tcp 10.0.0.2:10250: i/o timeout".to_owned()));
    let complaint = cluster.complaint("dump --node node-2", 1);
    assert!(
        complaint.starts_with("the agent on node node-2 does not answer: pod sluice-node-2: the API server answers 500: error dialing"),
        "{complaint}"
    );
    // No WebSockets on the way.
    for fault in [Fault::Empty, Fault::Status(400)] {
        cluster.api.fault("create", "pods/exec", Some(fault));
        let (_, _, complaint) = cluster.said("status");
        let wanted = if fault == Fault::Empty { "does not let WebSockets through" } else { "" };
        assert!(complaint.contains(wanted), "{complaint}");
    }
}

#[test]
fn an_agent_of_another_version_is_named() {
    let cluster = Cluster::with(&["node-1", "node-2"]);
    let own = env!("CARGO_PKG_VERSION");
    let script = format!("{PROGRAM} \"$1\" | sed -u 's/\"version\":\"{own}\"/\"version\":\"9.9.9\"/'");
    cluster
        .run(move |exec| if exec.pod == "sluice-node-2" { shell(&script) } else { vec![PROGRAM.to_owned()] });
    let warning =
        format!("kubectl sluice: this plugin is version {own}, and the agent on node-2 is version 9.9.9: ");
    let (_, text, complaint) = cluster.said("status");
    assert!(complaint.starts_with(&warning) && complaint.lines().count() == 1, "{complaint}");
    assert!(text.starts_with("2 nodes with an agent: 0 ready, 2 not ready, 0 without"), "{text}");
    let (status, _, complaint) = cluster.said("explain --node node-2 --pod shop/client --to orders.shop:80");
    assert!(status == 0 && complaint.starts_with(&warning), "{complaint}");
    assert_eq!(cluster.said("explain --node node-1 --pod shop/client --to orders.shop:80").2, "");
}

#[test]
fn the_way_to_the_cluster_is_that_of_kubectl() {
    let cluster = Cluster::with(&["node-1"]);
    let explain = "explain --pod shop/client --to orders.shop:80";
    let kubeconfig = cluster.directory.path().join("kubeconfig");
    let elsewhere = cluster.directory.path().join("elsewhere");
    // Another context, whose server is away, is the current one.
    let text = fs::read_to_string(&kubeconfig).unwrap();
    let away = "contexts:\n- name: away\n  context: {cluster: away, user: agent, namespace: shop}\n";
    let text = text
        .replace("current-context: double", "current-context: away")
        .replace("clusters:\n", "clusters:\n- name: away\n  cluster: {server: 'https://127.0.0.1:1'}\n")
        .replace("contexts:\n", away);
    fs::write(&elsewhere, text).unwrap();
    let with = |line: &str| format!("{line} --kubeconfig {}", elsewhere.display());
    let complaint = cluster.complaint(&with("status"), 1);
    assert!(complaint.starts_with("cannot reach the API server at https://127.0.0.1:1: "), "{complaint}");
    assert_eq!(cluster.said(&with(&format!("{explain} --context double"))).0, 0);
    // The namespace is that of the context, unless another one is said.
    let (status, _, complaint) = cluster.said(&with("explain --pod client --to orders:80 --cluster double"));
    assert_eq!((status, &*complaint), (0, ""));
    let complaint = cluster.complaint(&with("explain --pod client --to orders:80 --context double"), 1);
    assert!(complaint.contains("there is no pod default/client"), "{complaint}");
    assert_eq!(cluster.said(&with("explain -n shop --pod client --to orders:80 --context double")).0, 0);

    let lines = [
        (
            "status --context wrong",
            "--context: there is no context \"wrong\" in the kubeconfig: it has double",
        ),
        (
            "status --cluster wrong",
            "--cluster: there is no cluster \"wrong\" in the kubeconfig: it has double",
        ),
        ("status --user wrong", "--user: there is no user \"wrong\" in the kubeconfig: it has agent"),
        ("status --kubeconfig /nowhere/config", "the kubeconfig cannot be read: "),
        ("status --as-group admins", "the following required arguments were not provided: --as <USER>"),
        ("status --request-timeout 0", "allowed are whole numbers from 1 to 600"),
    ];
    for (line, part) in lines {
        let complaint = cluster.complaint(line, 2);
        assert!(complaint.contains(part), "{line}: {complaint}");
    }
    let mut nowhere = cluster.command("status");
    nowhere.env_remove("KUBECONFIG").env("HOME", cluster.directory.path());
    let (status, _, complaint) = said(nowhere);
    assert_eq!(status, 2);
    assert!(complaint.contains("there is no kubeconfig, and this is no pod of a cluster"), "{complaint}");

    let complaint = cluster.complaint("status --sluice-namespace elsewhere", 1);
    assert!(
        complaint.starts_with("there are no agents in namespace elsewhere (https://127.0.0.1:"),
        "{complaint}"
    );
    let mut named = cluster.command("status");
    named.env("SLUICE_NAMESPACE", "elsewhere");
    assert!(said(named).2.contains("namespace elsewhere"), "the environment says it too");
    let complaint = cluster.complaint("dump --node node-9", 1);
    assert!(complaint.contains("no agent runs there (namespace sluice-system)"), "{complaint}");
}

#[test]
fn it_is_a_plugin_by_its_name_and_says_so() {
    let cluster = Cluster::with(&["node-1"]);
    let (status, help, _) = cluster.said("--help");
    assert!(status == 0 && help.contains("Usage: kubectl sluice <COMMAND>"), "{help}");
    for command in ["status", "explain", "top", "call", "dump", "check", "version", "help"] {
        let (status, text, complaint) = cluster.said(&format!("{command} --help"));
        assert!(
            status == 0 && text.contains(&format!("Usage: kubectl sluice {command}")),
            "{text} {complaint}"
        );
        assert!(!text.contains("--admin-socket"), "{text}");
        assert_eq!(cluster.said(&format!("help {command}")), (0, text, String::new()));
    }
    let (status, version, _) = cluster.said("version");
    assert!(status == 0 && version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/shop");
    let (status, checked, complaint) = cluster.said(&format!("check {}", examples.display()));
    assert_eq!((status, &*complaint), (0, ""), "{checked}");
    // kubectl gives it its own name, wherever it is.
    let said = cluster.complaint("nope", 2);
    assert!(said.contains("unrecognized subcommand 'nope'"), "{said}");
}

/// The role in `deploy/` allows what it asks for in the agents' namespace, and no more.
#[test]
fn the_role_allows_what_is_asked_and_no_more() {
    let cluster = Cluster::with(&["node-1"]);
    for line in
        ["status", "explain --pod shop/client --to orders.shop:80", "top --times 1", "dump --all-nodes"]
    {
        cluster.said(line);
    }
    let asked: BTreeSet<_> =
        cluster.api.asked().into_iter().map(|(verb, resource)| format!("{verb} {resource}")).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/overlays/kubectl/role.yaml");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(path).unwrap()).unwrap();
    let role = documents.iter().find(|object| object["kind"] == "Role").unwrap();
    let words = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                let full = if group.is_empty() { resource } else { format!("{resource}.{group}") };
                granted.extend(words(&rule["verbs"]).iter().map(|verb| format!("{verb} {full}")));
            }
        }
    }
    // Who calls is looked up where the pod is.
    granted.insert("get pods".to_owned());
    assert_eq!(asked, granted);
}
