//! The node as its pods, services and agents see it: the namespace, the cgroups, the addresses, and a control plane
//! that keeps endpoint slices in line with pods and services.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{NetNs, api_server::ApiServer, cgroup, kube_proxy, manifests::Manifests, objects};

/// The node's own addresses, on the bridge.
pub(crate) const NODE_IPV4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
pub(crate) const NODE_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);

/// What a world's pods, services and agents share.
#[derive(Debug)]
pub(crate) struct Node {
    /// `sluice-<name>-<pid>`
    pub(crate) name: String,
    pub(crate) netns: Arc<NetNs>,
    /// Holds the two below.
    pub(crate) cgroup: PathBuf,
    pub(crate) pods_cgroup: PathBuf,
    pub(crate) agents_cgroup: PathBuf,
    /// Holds the manifests and the logs.
    pub(crate) directory: PathBuf,
    /// Leads to the API server, if the objects are there and not in the directory.
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) systemd: bool,
    cluster: Mutex<Cluster>,
    /// Numbers handed out: addresses, interfaces, ids.
    next: AtomicU32,
}

#[derive(Debug)]
struct Cluster {
    manifests: Manifests,
    kube_proxy: bool,
}

impl Node {
    pub(crate) fn build(
        name: String,
        cgroup: PathBuf,
        directory: PathBuf,
        systemd: bool,
        watched: bool,
    ) -> Result<Self> {
        let pods_cgroup = cgroup.join(if systemd { "kubepods.slice" } else { "kubepods" });
        let agents_cgroup = cgroup.join("agent");
        cgroup::create(&pods_cgroup)?;
        cgroup::create(&agents_cgroup)?;
        for part in ["manifests", "logs"] {
            fs::create_dir_all(directory.join(part))
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let netns = NetNs::create()?;
        netns.ip(&format!(
            "link add cni0 type bridge\n\
             addr add {NODE_IPV4}/16 dev cni0\n\
             addr add {NODE_IPV6}/64 dev cni0 nodad\n\
             link set cni0 up\n\
             route add unreachable default\n\
             route add unreachable ::/0"
        ))?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        // Its port is one of the node's loopback interface.
        let api = watched.then(|| netns.run(ApiServer::start)).transpose()?.transpose()?;
        if let Some(api) = &api {
            // As in any cluster: agents ask for theirs.
            api.apply("nodes", serde_json::json!({ "metadata": { "name": name } }));
        }
        let kubeconfig = api.as_ref().map(|api| api.kubeconfig(&directory, "agent")).transpose()?;
        let manifests = Manifests::new(directory.join("manifests"), api);
        Ok(Self {
            name,
            netns: Arc::new(netns),
            cgroup,
            pods_cgroup,
            agents_cgroup,
            directory,
            kubeconfig,
            systemd,
            cluster: Mutex::new(Cluster { manifests, kube_proxy: false }),
            next: AtomicU32::new(0),
        })
    }

    /// Translates ClusterIPs from now on.
    pub(crate) fn kube_proxy(&self) -> Result<()> {
        let mut cluster = self.cluster();
        kube_proxy::prepare(&self.netns)?;
        cluster.kube_proxy = true;
        kube_proxy::sync(&self.netns, &cluster.manifests)
    }

    /// The cgroup of the pods of a node: of this one, or of another that shares its network.
    pub(crate) fn pods_cgroup_of(&self, node: &str) -> Result<PathBuf> {
        if node == self.name {
            return Ok(self.pods_cgroup.clone());
        }
        let pods_cgroup = self.cgroup.join(node).join("kubepods");
        cgroup::create(&pods_cgroup)?;
        Ok(pods_cgroup)
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// A number that nothing else in this world has.
    pub(crate) fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn pod_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        addresses(self.number() + 10, [10, 244], 0x244)
    }

    pub(crate) fn service_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        addresses(self.number() + 10, [10, 96], 0x96)
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn apply(&self, object: Value) -> Result<()> {
        let mut cluster = self.cluster();
        cluster.manifests.apply(object)?;
        cluster.follow(&self.netns)
    }

    pub(crate) fn edit(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<()> {
        let object = self.cluster().manifests.get(kind, namespace, name).cloned();
        let Some(mut object) = object else { bail!("there is no {kind} {namespace}/{name}") };
        change(&mut object);
        self.apply(object)
    }

    /// Does something to the API server, in its network namespace.
    pub(crate) fn api<T: Send>(&self, act: impl FnOnce(&mut ApiServer) -> Result<T> + Send) -> Result<T> {
        let mut cluster = self.cluster();
        let api = cluster.manifests.api().context("this world's objects are in a directory")?;
        self.netns.run(|| act(api))?
    }

    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let mut cluster = self.cluster();
        cluster.manifests.delete(kind, namespace, name)?;
        cluster.follow(&self.netns)
    }
}

impl Cluster {
    /// Does what controllers do after a change: brings the endpoint slices in line, then the translation.
    fn follow(&mut self, netns: &NetNs) -> Result<()> {
        let services = self.manifests.all("Service");
        let wanted: Vec<Value> = services
            .flat_map(|service| objects::endpoint_slices(service, self.manifests.all("Pod")))
            .collect();
        let stale: Vec<(String, String)> = self
            .manifests
            .all("EndpointSlice")
            .filter(|slice| objects::managed(slice))
            .map(objects::full_name)
            .filter(|name| !wanted.iter().any(|slice| objects::full_name(slice) == *name))
            .collect();
        for (namespace, name) in stale {
            self.manifests.delete("EndpointSlice", &namespace, &name)?;
        }
        for slice in wanted {
            self.manifests.apply(slice)?;
        }
        if self.kube_proxy {
            kube_proxy::sync(netns, &self.manifests)?;
        }
        Ok(())
    }
}

/// The `number`th address of a /16, and the like in IPv6.
fn addresses(number: u32, [a, b]: [u8; 2], segment: u16) -> (Ipv4Addr, Ipv6Addr) {
    let [.., c, d] = number.to_be_bytes();
    (Ipv4Addr::new(a, b, c, d), Ipv6Addr::new(0xfd00, 0x10, segment, 0, 0, 0, 0, number as u16))
}
