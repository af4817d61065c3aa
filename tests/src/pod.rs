//! Pods: a sandbox (namespace, addresses, a pause process) and containers (cgroups) in which programs run.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    NetNs, Place, Process, binary, cgroup,
    node::{NODE_IPV4, NODE_IPV6, Node},
    objects::{CAPTURE, timestamp},
    process::run,
};

/// A pod to be started.
#[must_use]
#[derive(Debug)]
pub struct PodBuilder {
    node: Arc<Node>,
    object: Value,
    addresses: (Ipv4Addr, Ipv6Addr),
    ipv6: bool,
    ready: bool,
}

impl PodBuilder {
    pub(crate) fn new(node: Arc<Node>, namespace: &str, name: &str) -> Self {
        // As random as it must be: unique among the pods of all worlds.
        let uid = format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), node.number());
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": {}, "annotations": {}},
            "spec": {"nodeName": node.name, "containers": [{"name": "app", "image": "app", "ports": []}]},
        });
        let addresses = node.pod_addresses();
        Self { node, object, addresses, ipv6: true, ready: true }
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["labels"][key] = value.into();
        self
    }

    /// Puts the pod into a lane.
    pub fn tag(self, tag: &str) -> Self {
        self.label("sluice.dev/tag", tag)
    }

    /// Says something about capture that differs from the namespace: `enabled` or `disabled`.
    pub fn capture(mut self, value: &str) -> Self {
        self.object["metadata"]["annotations"][CAPTURE] = value.into();
        self
    }

    /// Names a port of the container.
    pub fn port(mut self, name: &str, port: u16) -> Self {
        if let Some(ports) = self.object["spec"]["containers"][0]["ports"].as_array_mut() {
            ports.push(json!({"name": name, "containerPort": port, "protocol": "TCP"}));
        }
        self
    }

    /// A pod without IPv6, not even on its loopback interface.
    pub fn ipv4_only(mut self) -> Self {
        self.ipv6 = false;
        self
    }

    /// A pod with these addresses, which another one had before.
    pub fn addresses(mut self, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Self {
        self.addresses = (ipv4, ipv6);
        self
    }

    /// A pod that lives in the node's own namespace.
    pub fn host_network(mut self) -> Self {
        self.addresses = (NODE_IPV4, NODE_IPV6);
        self.object["spec"]["hostNetwork"] = true.into();
        self
    }

    /// Gives it a readiness gate.
    pub fn readiness_gate(mut self, condition: &str) -> Self {
        self.object["spec"]["readinessGates"] = json!([{"conditionType": condition}]);
        self
    }

    /// A pod that takes no requests before it is [set ready](Pod::set_ready).
    pub fn unready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// A pod of another node, which shares its network with this one: whose cgroup is among those of that node's pods.
    pub fn on(mut self, node: &str) -> Self {
        self.object["spec"]["nodeName"] = node.into();
        self
    }

    /// Starts the sandbox, and then writes the manifest of a pod that is ready, unless told otherwise.
    pub fn start(self) -> Result<Pod> {
        let text = |field: &str| self.object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
        let pods_cgroup = match self.object["spec"]["nodeName"].as_str() {
            Some(node) => self.node.pods_cgroup_of(node)?,
            None => self.node.pods_cgroup.clone(),
        };
        let sandbox = Sandbox::start(&self.node, &pods_cgroup, (&name, &uid), self.addresses, self.ipv6)?;
        let has_ipv6 = self.ipv6;
        let pod = Pod { node: self.node, namespace, name, uid, has_ipv6, pods_cgroup, sandbox };
        pod.publish(self.object, self.ready)?;
        Ok(pod)
    }
}

/// A running pod. Dropping it deletes it.
#[derive(Debug)]
pub struct Pod {
    node: Arc<Node>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    has_ipv6: bool,
    /// That of its node's pods.
    pods_cgroup: PathBuf,
    sandbox: Sandbox,
}

impl Pod {
    pub fn ipv4(&self) -> Ipv4Addr {
        self.sandbox.ipv4
    }

    pub fn ipv6(&self) -> Ipv6Addr {
        self.sandbox.ipv6
    }

    pub fn netns(&self) -> &NetNs {
        &self.sandbox.netns
    }

    /// The pause process, whose id leads to the namespace.
    pub fn pause(&self) -> u32 {
        self.sandbox.pause.pid()
    }

    /// Where the application's container runs.
    pub fn place(&self) -> Place {
        Place { netns: Arc::clone(&self.sandbox.netns), cgroup: self.sandbox.container.clone() }
    }

    /// A command that will run in the application's container.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = self.place().command(program)?;
        command.env("HOSTNAME", &self.name);
        Ok(command)
    }

    /// Runs a program in the pod to its end, and gives what it wrote to its standard output.
    pub fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> Result<String> {
        run(self.command(program)?.args(args)).with_context(|| format!("in pod {}", self.name))
    }

    /// Starts a program in the pod; its output goes to a log of its own.
    pub fn spawn(&self, name: &str, program: impl AsRef<Path>, args: &[&str]) -> Result<Process> {
        self.spawn_command(name, self.command(program)?.args(args))
    }

    /// [`Pod::spawn`] of a command that comes from [`Pod::command`].
    pub fn spawn_command(&self, name: &str, command: &mut Command) -> Result<Process> {
        let name = format!("{}-{name}-{}", self.name, self.node.number());
        Process::spawn(&name, command, self.node.logs().join(format!("{name}.log")))
    }

    /// Starts `sluice-service` with these flags and waits until it listens.
    pub fn serve(&self, args: &[&str]) -> Result<Process> {
        let mut process = self.spawn("service", binary("sluice-service")?, args)?;
        process.says("listening")?;
        Ok(process)
    }

    /// How many connections to this port, of anybody, are open in the pod.
    pub fn connections(&self, port: u16) -> Result<usize> {
        let mut count = 0;
        for table in ["tcp", "tcp6"] {
            let path = format!("/proc/{}/net/{table}", self.pause());
            let table = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            let peer = format!(":{port:04X}");
            // The third field is the peer, the fourth the state: 01 is ESTABLISHED.
            count += table
                .lines()
                .map(|line| line.split_whitespace().skip(2).take(2).collect::<Vec<_>>())
                .filter(|fields| fields.len() == 2 && fields[0].ends_with(&peer) && fields[1] == "01")
                .count();
        }
        Ok(count)
    }

    /// Changes the Pod object and writes it; endpoint slices follow.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.node.edit("Pod", &self.namespace, &self.name, change)
    }

    /// Sets or removes the pod's own annotation about capture.
    pub fn set_capture(&self, value: Option<&str>) -> Result<()> {
        self.edit(|pod| {
            if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
                annotations.remove(CAPTURE);
                annotations.extend(value.map(|value| (CAPTURE.to_owned(), value.into())));
            }
        })
    }

    pub fn set_ready(&self, ready: bool) -> Result<()> {
        self.set_ready_since(ready, SystemTime::now())
    }

    /// Ready, or not, since a time that may lie in the past. Kubernetes tells it in whole seconds.
    pub fn set_ready_since(&self, ready: bool, since: SystemTime) -> Result<()> {
        let since = timestamp(since)?;
        self.edit(|pod| {
            let status = if ready { "True" } else { "False" };
            pod["status"]["conditions"] =
                json!([{"type": "Ready", "status": status, "lastTransitionTime": since}]);
        })
    }

    /// Marks the pod as going away. Its processes run on until somebody ends them.
    pub fn set_terminating(&self) -> Result<()> {
        let now = timestamp(SystemTime::now())?;
        self.edit(|pod| pod["metadata"]["deletionTimestamp"] = now.into())
    }

    /// Replaces the sandbox, as the kubelet does after a reboot: the same pod and UID, another namespace and address.
    /// What ran in the pod is killed.
    pub fn replace_sandbox(&mut self) -> Result<()> {
        self.sandbox.end()?;
        let named = (&*self.name, &*self.uid);
        self.sandbox =
            Sandbox::start(&self.node, &self.pods_cgroup, named, self.node.pod_addresses(), self.has_ipv6)?;
        let addresses = self.addresses();
        self.edit(|pod| {
            pod["status"]["podIP"] = addresses[0].clone();
            pod["status"]["podIPs"] = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        })
    }

    /// Ends the pod's processes and deletes its manifest.
    pub fn delete(self) -> Result<()> {
        self.end()
    }

    fn end(&self) -> Result<()> {
        self.sandbox.end()?;
        self.node.delete("Pod", &self.namespace, &self.name)
    }

    fn addresses(&self) -> Vec<Value> {
        let mut addresses = vec![Value::from(self.ipv4().to_string())];
        addresses.extend(self.has_ipv6.then(|| Value::from(self.ipv6().to_string())));
        addresses
    }

    fn publish(&self, mut object: Value, ready: bool) -> Result<()> {
        let ready = if ready { "True" } else { "False" };
        let now = timestamp(SystemTime::now())?;
        let addresses = self.addresses();
        object["metadata"]["creationTimestamp"] = now.clone().into();
        object["status"] = json!({
            "phase": "Running",
            "startTime": now,
            "podIP": addresses[0],
            "podIPs": addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}],
        });
        self.node.apply(object)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The world may be gone already, and with it everything that this would end.
        let _ = self.end();
    }
}

/// What the container runtime makes before any container: a namespace with addresses, and a process that holds it.
#[derive(Debug)]
struct Sandbox {
    netns: Arc<NetNs>,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    /// The pod's cgroup.
    cgroup: PathBuf,
    /// The application container's, in it.
    container: PathBuf,
    pause: Process,
}

impl Sandbox {
    fn start(
        node: &Arc<Node>,
        pods_cgroup: &Path,
        (name, uid): (&str, &str),
        (ipv4, ipv6): (Ipv4Addr, Ipv6Addr),
        with_ipv6: bool,
    ) -> Result<Self> {
        let netns = if ipv4 == NODE_IPV4 {
            Arc::clone(&node.netns)
        } else {
            Arc::new(connect(node, ipv4, ipv6, with_ipv6)?)
        };
        let id = |role: u32| format!("{:064x}", (u64::from(node.number()) << 32) | u64::from(role));
        let (cgroup, [sandbox, container]) = if node.systemd {
            let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
            let cgroup = pods_cgroup.join("kubepods-burstable.slice").join(slice);
            (cgroup, [id(0), id(1)].map(|id| format!("cri-containerd-{id}.scope")))
        } else {
            (pods_cgroup.join("burstable").join(format!("pod{uid}")), [id(0), id(1)])
        };
        let (sandbox, container) = (cgroup.join(sandbox), cgroup.join(container));
        cgroup::create(&sandbox)?;
        let place = Place { netns: Arc::clone(&netns), cgroup: sandbox };
        let log = node.logs().join(format!("{name}-pause.log"));
        let mut pause = place.command("sleep")?;
        pause.arg0("pause").arg("infinity").stdin(Stdio::null());
        let pause = Process::spawn("pause", &mut pause, log)?;
        cgroup::create(&container)?;
        Ok(Self { netns, ipv4, ipv6, cgroup, container, pause })
    }

    fn end(&self) -> Result<()> {
        cgroup::destroy(&self.cgroup)
    }
}

/// Makes a namespace with a leg on the node's bridge, as a CNI plugin does.
fn connect(node: &Node, ipv4: Ipv4Addr, ipv6: Ipv6Addr, with_ipv6: bool) -> Result<NetNs> {
    let netns = NetNs::create()?;
    let leg = format!("veth{}", node.number());
    node.netns.ip(&format!(
        "link add {leg} type veth peer name eth0 netns {}\nlink set {leg} master cni0 up",
        netns.path()
    ))?;
    let mut setup = format!(
        "addr add {ipv4}/16 dev eth0\nlink set eth0 up\nroute add default via {NODE_IPV4} dev eth0\n"
    );
    if with_ipv6 {
        write!(setup, "addr add {ipv6}/64 dev eth0 nodad\nroute add default via {NODE_IPV6} dev eth0")?;
    } else {
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
    }
    netns.ip(&setup)?;
    Ok(netns)
}
