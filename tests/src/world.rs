//! A world: one Kubernetes node for one test.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::{
    AgentBuilder, Browser, Capture, Place, PodBuilder, ServiceBuilder,
    api_server::ApiServer,
    cgroup,
    node::{NODE_IPV4, Node},
    objects,
    warden::{Warden, sweep},
};

/// Names of the worlds that live in this process.
static LIVING: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// A node of its own: namespace with a bridge, cgroup subtree, manifests, pods. Dropping it ends all that is in it.
#[derive(Debug)]
pub struct World {
    node: Arc<Node>,
    warden: Warden,
}

impl World {
    /// A world whose cgroups are named as the kubelet's `cgroupfs` driver names them. `name` must be the only one
    /// living in this process.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, false, false)
    }

    /// A world whose cgroups are named as the kubelet's `systemd` driver names them.
    pub fn systemd(name: &str) -> Result<Self> {
        Self::with(name, true, false)
    }

    /// A world whose objects are in the double of the API server, which the agent watches, instead of in a directory.
    pub fn watched(name: &str) -> Result<Self> {
        Self::with(name, false, true)
    }

    fn with(name: &str, systemd: bool, watched: bool) -> Result<Self> {
        let mount = cgroup::mount()?;
        let temporary = std::env::temp_dir();
        sweep(&mount, &temporary)?;
        raise_file_limit()?;
        let name = format!("sluice-{name}-{}", std::process::id());
        ensure!(
            living().get_or_insert_default().insert(name.clone()),
            "there is a world called {name} already"
        );
        let cgroup = mount.join(&name);
        let directory = temporary.join(&name);
        // Posted first, so that whatever fails below is cleaned up; and armed before anything exists.
        let mut warden = Warden::post(&cgroup, &directory)?;
        match Node::build(name.clone(), cgroup.clone(), directory.clone(), systemd, watched) {
            Ok(node) => Ok(Self { node: Arc::new(node), warden }),
            Err(error) => {
                warden.dismiss();
                end(&name, &cgroup, &directory);
                Err(error)
            }
        }
    }

    /// Writes a Namespace.
    pub fn namespace(&self, name: &str, capture: Capture) -> Result<()> {
        self.apply(objects::namespace(name, capture))
    }

    /// A pod to be started.
    pub fn pod(&self, namespace: &str, name: &str) -> PodBuilder {
        PodBuilder::new(Arc::clone(&self.node), namespace, name)
    }

    /// A service to be made.
    pub fn service(&self, namespace: &str, name: &str) -> ServiceBuilder {
        ServiceBuilder::new(Arc::clone(&self.node), namespace, name)
    }

    /// An agent to be started.
    pub fn agent(&self) -> AgentBuilder {
        AgentBuilder::new(Arc::clone(&self.node))
    }

    /// Translates ClusterIPs as kube-proxy does, from now on. Without it, only the agent makes them answer.
    pub fn kube_proxy(&self) -> Result<()> {
        self.node.kube_proxy()
    }

    /// A policy for all services of a namespace that asks for nothing but what is so already: what Sluice leaves alone unless
    /// a policy asks for it is managed.
    pub fn policy_for_all(&self, namespace: &str) -> Result<()> {
        self.apply(serde_json::json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": "all", "namespace": namespace},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Namespace", "name": namespace}],
                "loadBalancer": {"panicThresholdPercent": 50},
            },
        }))
    }

    /// Creates or replaces any object.
    pub fn apply(&self, object: Value) -> Result<()> {
        self.node.apply(object)
    }

    /// Changes an object and writes it.
    pub fn edit(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<()> {
        self.node.edit(kind, namespace, name, change)
    }

    /// Deletes an object, and what follows from it.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.node.delete(kind, namespace, name)
    }

    /// Does something to the API server of a [watched](World::watched) world.
    pub fn api<T: Send>(&self, act: impl FnOnce(&mut ApiServer) -> Result<T> + Send) -> Result<T> {
        self.node.api(act)
    }

    /// The directory that the agent watches.
    pub fn manifests(&self) -> PathBuf {
        self.node.manifests()
    }

    /// A directory for the test's own files, removed with the world.
    pub fn directory(&self) -> &Path {
        &self.node.directory
    }

    /// The node's name, as pods and the agent are told it.
    pub fn node_name(&self) -> &str {
        &self.node.name
    }

    /// The node's address on its bridge.
    pub fn node_address(&self) -> Ipv4Addr {
        NODE_IPV4
    }

    /// The cgroup that stands for the root of the node's cgroups.
    pub fn cgroup(&self) -> &Path {
        &self.node.cgroup
    }

    /// The cgroup that holds all pods.
    pub fn pods_cgroup(&self) -> &Path {
        &self.node.pods_cgroup
    }

    /// The node itself: its network namespace, outside the pods' cgroups.
    pub fn node(&self) -> Place {
        Place { netns: Arc::clone(&self.node.netns), cgroup: self.node.agents_cgroup.clone() }
    }

    /// A browser on the node.
    pub fn browser(&self) -> Result<Browser> {
        Browser::open(&self.node, self.node().command("chromedriver")?)
    }

    /// Everything that the world's processes have written, for the report of a failed test.
    pub fn logs(&self) -> String {
        let mut files: Vec<_> = fs::read_dir(self.node.logs())
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        // Agents last: where only the end of a report is kept it says most.
        let is_agent =
            |file: &Path| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("agent"));
        files.sort_by_key(|file| (is_agent(file), file.clone()));
        let mut text = String::new();
        for file in files {
            let content = fs::read(&file).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let lines: Vec<&str> = content.lines().collect();
            if lines.is_empty() {
                continue;
            }
            let skipped = lines.len().saturating_sub(100);
            let name = file.file_stem().unwrap_or_default().display();
            let tail = lines[skipped..].join("\n");
            let _ = writeln!(text, "---- {name} ({skipped} earlier lines left out)\n{tail}");
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.warden.dismiss();
        end(&self.node.name, &self.node.cgroup, &self.node.directory);
    }
}

/// Ends what a world left. Says so if it cannot: in `drop` there is nobody to hand the error to.
fn end(name: &str, cgroup: &Path, directory: &Path) {
    if let Err(error) = cgroup::destroy(cgroup) {
        eprintln!("{error:#}");
    }
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("cannot remove {}: {error}", directory.display());
    }
    living().get_or_insert_default().remove(name);
}

fn living() -> MutexGuard<'static, Option<HashSet<String>>> {
    // A panic elsewhere leaves the set as it was.
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Load needs many sockets.
fn raise_file_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")
}

/// The program `name` of this workspace, beside the running one.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where is the running program?")?;
    // Test programs are in `deps`, below the others.
    let places = own.ancestors().skip(1).take(2);
    let found = places.map(|place| place.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("there is no `{name}` beside {}: build it first", own.display()))
}

/// Runs a test in a world of its own, and prints what the world's processes wrote if it fails.
pub fn test(name: &str, body: impl FnOnce(&World) -> Result<()>) {
    let world = World::new(name).expect("a world can be made");
    test_in(&world, body);
}

/// Runs a test twice: with objects in a directory of manifests, and with an API server that the agent watches.
pub fn test_with_both(name: &str, body: impl Fn(&World) -> Result<()>) {
    test(name, &body);
    let world = World::watched(&format!("{name}-api")).expect("a world can be made");
    test_in(&world, body);
}

/// [`test()`] in a world that exists.
pub fn test_in(world: &World, body: impl FnOnce(&World) -> Result<()>) {
    // Nothing is looked at afterwards but log files.
    match catch_unwind(AssertUnwindSafe(|| body(world))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            println!("{}", world.logs());
            panic!("{error:#}");
        }
        Err(panic) => {
            println!("{}", world.logs());
            resume_unwind(panic);
        }
    }
}
