//! The agent's image in a container: a real OCI runtime (crun) runs it, told what a container runtime is told by the kubelet
//! for the pod of the `DaemonSet`. Mounts, capabilities, the system call filter and the read-only root are the kernel's.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    DaemonSet, Place, Pod, Process, World,
    daemon_set::{Downward, Probe, Volume},
    node::NODE_IPV4,
    process::run,
    seccomp,
};

/// The files and the configuration of an image that `cargo xtask test image` has unpacked.
#[derive(Debug)]
pub struct Image {
    directory: PathBuf,
    pub config: Value,
}

impl Image {
    /// That in `SLUICE_IMAGE`.
    pub fn unpacked() -> Result<Self> {
        let directory = env::var_os("SLUICE_IMAGE");
        let directory =
            PathBuf::from(directory.context("SLUICE_IMAGE is not set: use `cargo xtask test image`")?);
        let path = directory.join("config.json");
        let config = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { directory, config: serde_json::from_slice(&config)? })
    }

    fn root(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// The files of the image, as paths from its root.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let root = self.root();
        let mut files = Vec::new();
        let mut waiting = vec![root.clone()];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    waiting.push(entry.path());
                } else {
                    files.push(entry.path().strip_prefix(&root)?.to_owned());
                }
            }
        }
        Ok(files)
    }
}

/// A running container of the agent, in a pod of its own on the world's node. It ends with the world.
#[derive(Debug)]
pub struct Container {
    set: DaemonSet,
    id: String,
    /// Where the runtime keeps its state.
    state: PathBuf,
    place: Place,
    cgroup: PathBuf,
    /// The runtime, which waits for the container and ends as that does.
    process: Process,
    _pod: Pod,
}

impl Container {
    /// Starts a pod called `name`. The world must be a [watched](World::watched) one with the DaemonSet's namespace.
    pub fn start(world: &World, set: &DaemonSet, image: &Image, name: &str) -> Result<Self> {
        let pod = world.pod(&set.namespace, name).host_network().start()?;
        let place = pod.place();
        let directory = world.directory().join("containers").join(name);
        let bundle = Bundle { world, set, image, name, directory: &directory };
        let config = bundle.config()?;
        fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        let state = world.directory().join("crun");
        let id = format!("{}-{name}", directory_name(world.directory())?);
        let cgroup = world.cgroup().to_owned();
        let mut command = crun(&place, &cgroup, &state)?;
        command.args(["run", "--bundle"]).arg(&directory).arg(&id);
        let process = pod.spawn_command("crun", &mut command)?;
        Ok(Self { set: set.clone(), id, state, place, cgroup, process, _pod: pod })
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn crun(&self) -> Result<Command> {
        crun(&self.place, &self.cgroup, &self.state)
    }

    /// The process id of the agent itself.
    pub fn pid(&self) -> Result<u32> {
        let state = run(self.crun()?.args(["state", &self.id]))?;
        let state: Value = serde_json::from_str(&state)?;
        Ok(state["pid"].as_u64().with_context(|| format!("no pid: {state}"))?.try_into()?)
    }

    /// Runs a command in the container, as `kubectl exec` and the kubelet's probes do: the exit status, and what it wrote.
    pub fn exec<S: AsRef<str>>(&self, words: &[S]) -> Result<(i32, String)> {
        let mut command = self.crun()?;
        command.args(["exec", &self.id]).args(words.iter().map(AsRef::as_ref));
        let said = command.output().context("cannot start crun")?;
        let text = [said.stdout, said.stderr].concat();
        Ok((said.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
    }

    /// Asks as the kubelet does until it likes the answer once, or has disliked it as often as the DaemonSet allows.
    pub fn probe(&mut self, name: &str) -> Result<()> {
        let Probe { command, period, timeout, failures } = self.set.probe(name)?;
        for attempt in 1.. {
            if let Some(status) = self.process.ended()? {
                bail!("the agent ended ({status}) before its {name} succeeded:\n{}", self.log());
            }
            let start = Instant::now();
            let (status, said) = self.exec(&command)?;
            if status == 0 && start.elapsed() <= timeout {
                return Ok(());
            }
            let took = start.elapsed();
            ensure!(
                attempt < failures,
                "{name} failed {attempt} times, at last with {status} in {took:?}: {said}\n{}",
                self.log()
            );
            thread::sleep(period);
        }
        Ok(())
    }

    /// Ends it as the kubelet does: SIGTERM, and SIGKILL when the grace period of the DaemonSet is over.
    pub fn end(mut self) -> Result<(ExitStatus, String)> {
        self.kill("TERM")?;
        let deadline = Instant::now() + self.set.grace()?;
        let mut killed = false;
        loop {
            if let Some(status) = self.process.ended()? {
                return Ok((status, self.log()));
            }
            if !killed && Instant::now() > deadline {
                self.kill("KILL")?;
                killed = true;
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn kill(&self, signal: &str) -> Result<()> {
        run(self.crun()?.args(["kill", &self.id, signal])).map(drop)
    }

    /// A line of `/proc/PID/status` of the agent.
    pub fn status(&self, field: &str) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(line.with_context(|| format!("no {field}"))?.trim().to_owned())
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> Result<u64> {
        let resident = self.status("VmRSS")?;
        Ok(resident.trim_end_matches(" kB").parse::<u64>().context("VmRSS is no number")? * 1024)
    }

    /// What is mounted in the container: the mount point, its options, and the kind of file system.
    pub fn mounted(&self) -> Result<Vec<(String, String, String)>> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid()?))?;
        let row = |line: &str| {
            let (mount, kind) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(4).map(str::to_owned);
            Some((fields.next()?, fields.next()?, kind.split(' ').next()?.to_owned()))
        };
        Ok(table.lines().filter_map(row).collect())
    }
}

/// What a world's node has at `/sys/fs/cgroup`, and what it runs there.
const ON_THE_NODE: &str = r#"mount --bind "$1" /sys/fs/cgroup && shift && exec crun "$@""#;

/// The runtime, within the pod: it starts the container where it stands, as everything else in a world. It sees the world's
/// cgroups as the node's, in a mount namespace of its own.
fn crun(place: &Place, cgroup: &Path, state: &Path) -> Result<Command> {
    let mut command = place.command("unshare")?;
    command.args(["--mount", "sh", "-c", ON_THE_NODE, "node"]).arg(cgroup);
    command.arg("--cgroup-manager=disabled").arg("--root").arg(state);
    Ok(command)
}

fn directory_name(path: &Path) -> Result<String> {
    Ok(path.file_name().context("no name")?.to_string_lossy().into_owned())
}

/// What the runtime gets: a directory with the root file system and `config.json`.
struct Bundle<'a> {
    world: &'a World,
    set: &'a DaemonSet,
    image: &'a Image,
    name: &'a str,
    directory: &'a Path,
}

impl Bundle<'_> {
    /// Writes the files, and gives the configuration.
    /// <https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config.md>
    fn config(&self) -> Result<Value> {
        let root = self.directory.join("rootfs");
        fs::create_dir_all(&root)?;
        // Of its own, as the runtime makes the mount points in it.
        run(Command::new("cp").arg("--archive").arg(self.image.root().join(".")).arg(&root))?;
        let capabilities = self.set.capabilities()?;
        Ok(json!({
            "ociVersion": "1.0.0",
            "process": {
                "args": self.set.words(&self.image.config)?,
                "env": self.environment()?,
                "cwd": self.image.config["config"]["WorkingDir"].as_str().filter(|path| !path.is_empty()).unwrap_or("/"),
                "user": self.set.user(),
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                },
                "noNewPrivileges": self.set.no_new_privileges(),
            },
            "root": { "path": "rootfs", "readonly": self.set.read_only_root() },
            "mounts": self.mounts()?,
            "linux": {
                // On the node's network and among its processes: the other namespaces are the container's own.
                "namespaces": [{ "type": "mount" }, { "type": "ipc" }, { "type": "cgroup" }],
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
                "seccomp": seccomp::runtime_default(&capabilities)?,
            },
        }))
    }

    fn environment(&self) -> Result<Vec<String>> {
        let api = self.world.api(|api| Ok(api.address()))?;
        let downward = Downward {
            node: self.world.node_name().to_owned(),
            host_ip: NODE_IPV4.to_string(),
            pod: self.name.to_owned(),
        };
        let mut environment: Vec<String> = vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            format!("HOSTNAME={}", self.world.node_name()),
            format!("KUBERNETES_SERVICE_HOST={}", api.ip()),
            format!("KUBERNETES_SERVICE_PORT={}", api.port()),
            format!("KUBERNETES_SERVICE_PORT_HTTPS={}", api.port()),
        ];
        let image = self.image.config["config"]["Env"].as_array().into_iter().flatten();
        environment.extend(image.filter_map(|variable| variable.as_str().map(str::to_owned)));
        let ours = self.set.variables(&downward)?;
        environment.extend(ours.into_iter().map(|(name, value)| format!("{name}={value}")));
        Ok(environment)
    }

    fn mounts(&self) -> Result<Vec<Value>> {
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
            json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                    "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                    "options": ["nosuid", "noexec", "nodev", "ro"] }),
        ];
        // What the kubelet adds to what the DaemonSet names.
        let token = self.directory.join("service-account");
        fs::create_dir_all(&token)?;
        self.world.api(|api| api.service_account(&token, &self.set.namespace, TOKEN))?;
        for (name, content) in [
            ("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
            ("resolv.conf", "nameserver 10.96.0.10\noptions ndots:5\n"),
            ("hostname", self.world.node_name()),
        ] {
            let path = self.directory.join(name);
            fs::write(&path, content)?;
            mounts.push(bind(&path, &format!("/etc/{name}"), false));
        }
        let log = self.directory.join("termination-log");
        fs::write(&log, "")?;
        fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
        mounts.push(bind(&log, "/dev/termination-log", false));
        mounts.push(bind(&token, "/var/run/secrets/kubernetes.io/serviceaccount", true));
        for mount in self.set.mounts()? {
            mounts.push(match mount.from {
                Volume::Host(path) => bind(&path, &mount.path, mount.read_only),
                Volume::Memory(limit) => {
                    let mut options = vec!["rw".to_owned(), "mode=1777".to_owned()];
                    options.extend(limit.map(|limit| format!("size={limit}")));
                    json!({ "destination": mount.path, "type": "tmpfs", "source": "tmpfs", "options": options })
                }
            });
        }
        Ok(mounts)
    }
}

/// What the API server knows the agent by.
pub const TOKEN: &str = "the-agents-token";

fn bind(from: &Path, to: &str, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({ "destination": to, "type": "bind", "source": from, "options": ["rbind", "rprivate", access] })
}

/// What containerd and CRI-O hide from a container that is not privileged, also where it sees the node's processes.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// And what they let it read only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
