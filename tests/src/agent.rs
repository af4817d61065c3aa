//! The agent under test: the real binary, in the node's namespace, as its `DaemonSet` would run it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::{Metrics, Place, Pod, Process, binary, cgroup, eventually, memory::Limited, node::Node};

/// An agent to be started.
#[must_use]
#[derive(Debug)]
pub struct AgentBuilder {
    node: Arc<Node>,
    args: Vec<String>,
    admin: Option<SocketAddr>,
    among_pods: bool,
    capabilities: Option<Vec<String>>,
    open_files: Option<u32>,
    on: Option<String>,
}

impl AgentBuilder {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            args: Vec::new(),
            admin: None,
            among_pods: false,
            capabilities: None,
            open_files: None,
            on: None,
        }
    }

    /// Adds arguments to the command line.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The agent of the node of that name: of this one, or of another that shares its network and has its own pods.
    pub fn on(mut self, node: &str) -> Self {
        self.on = Some(node.to_owned());
        self
    }

    /// Answers at this address instead of one of its own, which may be another agent's.
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// Runs in a cgroup among those of the pods, as a pod of a `DaemonSet` does, instead of beside them.
    pub fn among_pods(mut self) -> Self {
        self.among_pods = true;
        self
    }

    /// Runs with these capabilities and no others, and with no way to get more, as a container does. Named as manifests
    /// name them: `SYS_ADMIN`.
    pub fn capabilities(mut self, names: &[String]) -> Self {
        self.capabilities = Some(names.to_vec());
        self
    }

    /// Runs with a limit of so many open files, which it cannot raise.
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Starts the agent and waits until it says that it is ready.
    pub fn start(self) -> Result<Agent> {
        let mut agent = self.spawn()?;
        agent.ready()?;
        Ok(agent)
    }

    /// Starts the agent and does not wait.
    pub fn spawn(self) -> Result<Agent> {
        let number = self.node.number();
        let name = format!("agent-{number}");
        let node = self.on.as_deref().unwrap_or(&self.node.name);
        let pods_cgroup = self.node.pods_cgroup_of(node)?;
        // Each in a cgroup of its own, as two pods of a DaemonSet are during a rollout.
        let parent = if self.among_pods { &pods_cgroup } else { &self.node.agents_cgroup };
        let cgroup = parent.join(&name);
        cgroup::create(&cgroup)?;
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, 9465 + number as u16));
        let admin = self.admin.unwrap_or(own);
        let socket = self.node.logs().join(format!("{name}.sock"));
        let place = Place { netns: Arc::clone(&self.node.netns), cgroup };
        let mut command = match &self.capabilities {
            None => match self.open_files {
                None => place.command(executable()?)?,
                Some(limit) => {
                    let mut command = place.command("prlimit")?;
                    command.arg(format!("--nofile={limit}:{limit}")).arg("--").arg(executable()?);
                    command
                }
            },
            Some(names) => {
                let bounds =
                    names.iter().fold("-all".to_owned(), |all, name| all + ",+" + &name.to_lowercase());
                let mut command = place.command("setpriv")?;
                command.args(["--bounding-set", &bounds, "--inh-caps", "-all", "--no-new-privs", "--"]);
                command.arg(executable()?);
                command
            }
        };
        forget_settings(&mut command).env("NO_COLOR", "1").arg("agent");
        match &self.node.kubeconfig {
            Some(kubeconfig) => command.env("KUBECONFIG", kubeconfig),
            None => command.arg("--manifests").arg(self.node.manifests()),
        }
        .arg("--pods-cgroup")
        .arg(&pods_cgroup)
        .args(["--admin", &admin.to_string()])
        .arg("--admin-socket")
        .arg(&socket)
        .args(self.on.iter().flat_map(|node| ["--node", node]))
        .args(&self.args);
        let process = Process::spawn(&name, &mut command, self.node.logs().join(format!("{name}.log")))?;
        Ok(Agent { process, socket, admin })
    }
}

/// The agent's program: `SLUICE_BIN`, or the one built beside the running program.
fn executable() -> Result<PathBuf> {
    match std::env::var_os("SLUICE_BIN") {
        Some(path) => Ok(path.into()),
        None => binary("sluice"),
    }
}

/// The caller's environment must not configure the agent.
fn forget_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLUICE_")) {
        command.env_remove(name);
    }
    command
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    socket: PathBuf,
    admin: SocketAddr,
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
        Ok(kib * 1024)
    }

    /// Has the kernel kill it if it takes more memory than this; `None`: this machine has no memory controller for that.
    pub fn limit_memory(&self, bytes: u64) -> Result<Option<Limited>> {
        let path = format!("/proc/{}/cgroup", self.pid());
        let groups = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).context("no unified cgroup")?;
        let mount = cgroup::mount()?;
        Limited::new(self.pid(), bytes, &mount, &mount.join(group))
    }

    /// Where it answers, in the node's namespace.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits until `/readyz` answers 200; fails at once if the agent ends instead.
    pub fn ready(&mut self) -> Result<()> {
        let ended = eventually("the agent becomes ready", || {
            if let Some(status) = self.process.ended()? {
                return Ok(Some(status));
            }
            let (status, body) = self.get("/readyz")?;
            ensure!(status == 200, "/readyz answers {status}: {}", body.trim());
            Ok(None)
        })
        .with_context(|| format!("the agent's log:\n{}", self.log()))?;
        match ended {
            None => Ok(()),
            Some(status) => anyhow::bail!("the agent ended ({status}) before it was ready:\n{}", self.log()),
        }
    }

    /// Its admin socket. Each agent has one of its own, also where two share an address.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Status and body of a page of the admin socket.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.get_with(path, "")
    }

    /// The same, with these lines in the request's head.
    pub fn get_with(&self, path: &str, headers: &str) -> Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.0\r\nhost: agent\r\n{headers}\r\n");
        let ask = || -> std::io::Result<String> {
            let mut connection = UnixStream::connect(&self.socket)?;
            connection.set_read_timeout(Some(Duration::from_secs(5)))?;
            connection.write_all(request.as_bytes())?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().with_context(|| format!("the agent does not answer {path}"))?;
        let (head, body) =
            answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer:?}"))?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.with_context(|| format!("no HTTP status: {head:?}"))?, body.to_owned()))
    }

    /// Asks it on the command line, as `kubectl exec` does: the exit status, what was said, and what was complained about.
    pub fn sluice(&self, args: &[&str]) -> Result<(i32, String, String)> {
        let mut command = Command::new(executable()?);
        forget_settings(&mut command).args(args).arg("--admin-socket").arg(&self.socket);
        let said = command.output().with_context(|| format!("cannot run sluice {args:?}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((said.status.code().unwrap_or(-1), text(&said.stdout), text(&said.stderr)))
    }

    pub fn metrics(&self) -> Result<Metrics> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answers {status}: {}", body.trim());
        Ok(Metrics::parse(&body))
    }

    /// Waits until the pod is enrolled.
    pub fn enrolled(&self, pod: &Pod) -> Result<()> {
        self.tells(pod, "pod enrolled")
    }

    /// Waits until the pod is enrolled no longer.
    pub fn withdrawn(&self, pod: &Pod) -> Result<()> {
        self.tells(pod, "pod withdrawn")
    }

    /// Waits until the last that the agent says of the pod is `what`.
    fn tells(&self, pod: &Pod, what: &str) -> Result<()> {
        let fields = [format!("namespace={}", pod.namespace), format!("pod={}", pod.name)];
        eventually(&format!("{what}: {}", pod.name), || {
            let log = self.log();
            let mentions = |line: &&str| fields.iter().all(|field| line.split(' ').any(|word| word == field));
            let last = log.lines().rfind(mentions).context("the agent has not mentioned it")?;
            ensure!(last.contains(what), "the agent says: {last}");
            Ok(())
        })
    }

    /// How many connects the kernel has redirected so far.
    pub fn redirected(&self) -> Result<u64> {
        Ok(self.connects("redirected_v4")? + self.connects("redirected_v6")?)
    }

    /// How many connects the kernel has treated this way so far.
    pub fn connects(&self, outcome: &str) -> Result<u64> {
        Ok(self.metrics()?.sum("sluice_kernel_connects_total", &[("outcome", outcome)]) as u64)
    }

    /// All that the agent has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// `SIGKILL`, and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// `SIGSTOP`: the agent hangs until [`Agent::cont`].
    pub fn stop(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    pub fn cont(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Signals that mean nothing to the agent: `SIGHUP` and the like, by name.
    pub fn idle_signals(&self) -> Result<[&'static str; 4]> {
        let all = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM];
        for signal in all {
            self.process.signal(signal)?;
        }
        Ok(all.map(Signal::as_str))
    }

    /// `SIGTERM`: the agent drains and ends.
    pub fn terminate(&self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)
    }

    /// The exit status, if the agent has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// Waits for the agent to end by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait()
    }
}
