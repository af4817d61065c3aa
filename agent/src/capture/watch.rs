//! Watches the tree of control groups for pods that come, change and go. By inotify, so that a pod is known within
//! milliseconds of its first process; nothing is polled.
//!
//! For a group above the pods the creation and deletion of sub-groups is watched. For a pod's group that too (a
//! container comes or goes), and its `cgroup.events`, which the kernel touches when the first process enters the
//! group or the last one leaves.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    future, io, mem,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

use super::cgroup;

/// Levels of groups between the pods' group and a pod's: none (guaranteed), or its class of service. One to spare.
const LEVELS_ABOVE_PODS: usize = 2;
/// Notices about the sub-groups of a group.
const ABOVE: WatchMask = WatchMask::CREATE.union(WatchMask::DELETE).union(WatchMask::ONLYDIR);
/// Room for about a hundred events a read.
const BUFFER: usize = 8192;
/// After a watch could not be made, everything is looked at again, this often.
const RESCAN_AFTER: Duration = Duration::from_secs(5);

/// What a watch descriptor stands for.
#[derive(Clone, Debug)]
enum Watched {
    /// A group above the pods, so many levels below the root.
    Above { path: PathBuf, level: usize },
    /// A pod's group, or the `cgroup.events` in it.
    Pod { uid: Arc<str> },
}

/// The pods whose groups exist, kept up to date.
pub(crate) struct Watch {
    root: PathBuf,
    inotify: AsyncFd<Inotify>,
    watches: Watches,
    watched: HashMap<WatchDescriptor, Watched>,
    pods: HashMap<Arc<str>, PathBuf>,
    /// Pods that came, changed or went since they were last asked for.
    changed: HashSet<Arc<str>>,
    /// A watch could not be made, so something may have been missed.
    rescan_at: Option<Instant>,
    root_is_gone: bool,
}

impl Watch {
    /// Begins to watch, and finds what is there. Needs the context of a tokio runtime.
    pub(crate) fn start(root: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        // SAFETY: `Inotify` owns its descriptor until it is dropped, and never changes it.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?;
        let mut watch = Self {
            root: root.to_owned(),
            inotify,
            watches,
            watched: HashMap::new(),
            pods: HashMap::new(),
            changed: HashSet::new(),
            rescan_at: None,
            root_is_gone: false,
        };
        watch.watches.add(root, ABOVE)?;
        watch.scan(root, 0);
        Ok(watch)
    }

    /// Whether the group of all pods was removed. Another of the same name is another one, without our programs.
    #[cfg(test)]
    fn root_is_gone(&self) -> bool {
        self.root_is_gone
    }

    /// The group of a pod, while it exists.
    pub(crate) fn group(&self, uid: &str) -> Option<&Path> {
        self.pods.get(uid).map(PathBuf::as_path)
    }

    /// Waits until there is any, and tells which pods came, changed or went; none when the root went. Loses
    /// nothing when it is cancelled.
    pub(crate) async fn changes(&mut self) -> io::Result<HashSet<Arc<str>>> {
        let root_was_gone = self.root_is_gone;
        while self.changed.is_empty() && self.root_is_gone == root_was_gone {
            let rescan_at = self.rescan_at;
            tokio::select! {
                ready = self.inotify.readable_mut() => {
                    let mut ready = ready?;
                    let mut buffer = [0; BUFFER];
                    let events: Vec<_> = match ready.get_inner_mut().read_events(&mut buffer) {
                        Ok(events) => events.map(|event| event.to_owned()).collect(),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            ready.clear_ready();
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    for event in events {
                        self.take(&event.wd, event.mask, event.name.as_deref());
                    }
                }
                () = sleep_until(rescan_at) => self.rescan(),
            }
        }
        Ok(self.take_changes())
    }

    /// Which pods came, changed or went, as far as is known without waiting.
    pub(crate) fn take_changes(&mut self) -> HashSet<Arc<str>> {
        mem::take(&mut self.changed)
    }

    fn take(&mut self, descriptor: &WatchDescriptor, mask: EventMask, name: Option<&OsStr>) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            tracing::warn!("the kernel dropped cgroup notifications: reading all cgroups again");
            return self.rescan();
        }
        let Some(watched) = self.watched.get(descriptor).cloned() else { return };
        if mask.contains(EventMask::IGNORED) {
            // The group is gone, and the watch with it.
            self.watched.remove(descriptor);
            if matches!(watched, Watched::Above { level: 0, .. }) {
                self.root_is_gone = true;
                tracing::warn!(
                    group = %self.root.display(),
                    "the cgroup of all pods was removed, and the programs with it: waiting for it to be made again"
                );
            }
            return;
        }
        match watched {
            Watched::Above { path, level } => {
                let Some(name) = name else { return };
                let child = path.join(name);
                if mask.contains(EventMask::CREATE) {
                    self.found(child, level + 1);
                } else if mask.contains(EventMask::DELETE) {
                    self.lost(&child);
                }
            }
            Watched::Pod { uid } => {
                self.changed.insert(uid);
            }
        }
    }

    /// Watches a group above the pods first, and then looks what is in it: nothing can come unseen in between, and
    /// what is seen twice does no harm.
    fn scan(&mut self, path: &Path, level: usize) {
        if self.add(path, ABOVE, Watched::Above { path: path.to_owned(), level }) {
            for child in cgroup::children(path) {
                self.found(child, level + 1);
            }
        }
    }

    fn found(&mut self, path: PathBuf, level: usize) {
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { return };
        let Some(uid) = cgroup::pod_uid(name) else {
            if level <= LEVELS_ABOVE_PODS {
                self.scan(&path, level);
            }
            return;
        };
        let uid: Arc<str> = uid.into();
        let watched = Watched::Pod { uid: uid.clone() };
        if self.add(&path, ABOVE, watched.clone())
            && self.add(&path.join("cgroup.events"), WatchMask::MODIFY, watched)
        {
            self.pods.insert(uid.clone(), path);
            self.changed.insert(uid);
        }
    }

    /// False: it is gone already, or cannot be watched now.
    fn add(&mut self, path: &Path, mask: WatchMask, watched: Watched) -> bool {
        match self.watches.add(path, mask) {
            Ok(descriptor) => {
                self.watched.insert(descriptor, watched);
                true
            }
            // ENODEV: kernfs, for a group that is being removed. ENOTDIR: a file beside the groups.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENOTDIR)) =>
            {
                false
            }
            Err(error) => {
                if self.rescan_at.is_none() {
                    tracing::error!(
                        group = %path.display(), %error,
                        "cannot watch a control group (if no space is left, raise fs.inotify.max_user_watches): \
                         pods may be missed, trying again"
                    );
                }
                self.rescan_at = Some(Instant::now() + RESCAN_AFTER);
                false
            }
        }
    }

    fn lost(&mut self, path: &Path) {
        let gone: Vec<_> =
            self.pods.iter().filter(|(_, at)| at.starts_with(path)).map(|(uid, _)| uid.clone()).collect();
        for uid in gone {
            self.pods.remove(&uid);
            self.changed.insert(uid);
        }
    }

    fn rescan(&mut self) {
        self.rescan_at = None;
        self.changed.extend(self.pods.drain().map(|(uid, _)| uid));
        self.scan(&self.root.clone(), 0);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory tree behaves like control groups, but for `cgroup.events`, which is a file of ours.
    fn make_pod(path: &Path) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("cgroup.events"), "populated 0\n").unwrap();
    }

    async fn changes(watch: &mut Watch) -> Vec<String> {
        let changed =
            tokio::time::timeout(Duration::from_secs(10), watch.changes()).await.expect("a change").unwrap();
        let mut changed: Vec<_> = changed.iter().map(ToString::to_string).collect();
        changed.sort();
        changed
    }

    #[tokio::test]
    async fn pods_that_were_there_come_first() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("burstable")).unwrap();
        make_pod(&root.path().join("poda"));
        make_pod(&root.path().join("burstable/podb"));

        let mut watch = Watch::start(root.path()).unwrap();
        assert_eq!(changes(&mut watch).await, ["a", "b"]);
        assert_eq!(watch.group("a"), Some(root.path().join("poda").as_path()));
        assert_eq!(watch.group("b"), Some(root.path().join("burstable/podb").as_path()));
        assert_eq!(watch.group("c"), None);
    }

    #[tokio::test]
    async fn a_pod_comes_gets_a_process_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(root.path()).unwrap();
        let pod = root.path().join("poda");

        make_pod(&pod);
        assert_eq!(changes(&mut watch).await, ["a"]);
        fs::write(pod.join("cgroup.events"), "populated 1\n").unwrap();
        assert_eq!(changes(&mut watch).await, ["a"]);
        assert!(watch.group("a").is_some());
        fs::create_dir(pod.join("container")).unwrap();
        assert_eq!(changes(&mut watch).await, ["a"]);
        fs::remove_dir_all(&pod).unwrap();
        assert_eq!(changes(&mut watch).await, ["a"]);
        assert_eq!(watch.group("a"), None);
    }

    #[tokio::test]
    async fn a_class_that_comes_with_its_pods_is_descended_into() {
        let root = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(root.path()).unwrap();
        let class = root.path().join("kubepods-burstable.slice");
        let pod = class.join("kubepods-burstable-poda_b.slice");

        // All of it before the first event is read: the pod is seen by the scan of the class.
        fs::create_dir(&class).unwrap();
        make_pod(&pod);
        assert_eq!(changes(&mut watch).await, ["a-b"]);
        assert_eq!(watch.group("a-b"), Some(pod.as_path()));

        make_pod(&class.join("kubepods-burstable-podc.slice"));
        assert_eq!(changes(&mut watch).await, ["c"]);
        fs::remove_dir_all(&class).unwrap();
        let gone = changes(&mut watch).await;
        assert!(gone.iter().all(|uid| ["a-b", "c"].contains(&uid.as_str())));
        while watch.group("a-b").is_some() || watch.group("c").is_some() {
            changes(&mut watch).await;
        }
    }

    #[tokio::test]
    async fn a_pod_that_went_and_came_back_is_there() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("poda");
        make_pod(&pod);
        let mut watch = Watch::start(root.path()).unwrap();
        changes(&mut watch).await;

        fs::remove_dir_all(&pod).unwrap();
        make_pod(&pod);
        assert_eq!(changes(&mut watch).await, ["a"]);
        assert_eq!(watch.group("a"), Some(pod.as_path()));
        fs::write(pod.join("cgroup.events"), "populated 1\n").unwrap();
        assert_eq!(changes(&mut watch).await, ["a"]);
    }

    #[tokio::test]
    async fn dropped_notices_lead_to_another_look() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("podold"), root.path().join("podnew"));
        make_pod(&old);
        let mut watch = Watch::start(root.path()).unwrap();
        changes(&mut watch).await;

        fs::remove_dir_all(&old).unwrap();
        make_pod(&new);
        let descriptor = watch.watched.keys().next().unwrap().clone();
        watch.take(&descriptor, EventMask::Q_OVERFLOW, None);
        assert_eq!(changes(&mut watch).await, ["new", "old"]);
        assert_eq!(watch.group("old"), None);
        assert_eq!(watch.group("new"), Some(new.as_path()));
    }

    #[tokio::test]
    async fn a_root_that_is_removed_is_told() {
        let root = tempfile::tempdir().unwrap();
        let pods = root.path().join("kubepods");
        fs::create_dir(&pods).unwrap();
        make_pod(&pods.join("poda"));
        let mut watch = Watch::start(&pods).unwrap();
        changes(&mut watch).await;
        assert!(!watch.root_is_gone());
        fs::remove_dir_all(&pods).unwrap();
        // The pod and the root may be told in one go, or one after the other.
        while !watch.root_is_gone() {
            changes(&mut watch).await;
        }
        assert_eq!(watch.group("a"), None);
    }

    /// Real paths below the cgroup mount, as kubelets and runtimes make them.
    #[tokio::test]
    async fn pods_of_every_runtime_and_driver_are_found() {
        const UID: &str = "9d86d3b6-6f2c-4b9e-8a3c-0f2f64d1c1aa";
        const HASH: &str = "3b1c5e0c9f0f4a3c8d7e6f5a4b3c2d1e";
        const ID: &str = "4f5a7b0e6c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b";
        let slice = |parents: &str, uid: &str| format!("{parents}-pod{}.slice", uid.replace('-', "_"));
        let burstable =
            format!("kubepods.slice/kubepods-burstable.slice/{}", slice("kubepods-burstable", UID));
        let nested = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice";
        let table = [
            // The kubelet's cgroupfs driver: containerd, CRI-O, Docker (cri-dockerd).
            (format!("kubepods/burstable/pod{UID}/{ID}"), UID),
            (format!("kubepods/burstable/pod{UID}/crio-{ID}"), UID),
            (format!("kubepods/besteffort/pod{UID}/{ID}"), UID),
            // Guaranteed pods have no class between.
            (format!("kubepods/pod{UID}/{ID}"), UID),
            // A static pod, by the hash of its manifest.
            (format!("kubepods/burstable/pod{HASH}/{ID}"), HASH),
            // The systemd driver.
            (format!("{burstable}/cri-containerd-{ID}.scope"), UID),
            (format!("{burstable}/crio-{ID}.scope/container"), UID),
            (format!("{burstable}/docker-{ID}.scope"), UID),
            (format!("kubepods.slice/{}/cri-containerd-{ID}.scope", slice("kubepods", UID)), UID),
            // kind gives the kubelet a root of its own, with either driver.
            (
                format!("{nested}/{}/cri-containerd-{ID}.scope", slice("kubelet-kubepods-besteffort", UID)),
                UID,
            ),
            (format!("kubelet/kubepods/burstable/pod{UID}/{ID}"), UID),
            // minikube and k3d: a node that is a container, seen from the machine.
            (format!("system.slice/docker-{ID}.scope/{burstable}/docker-{ID}.scope"), UID),
            (format!("docker/{ID}/kubepods/burstable/pod{UID}/{ID}"), UID),
            // k3s that runs beside other services.
            (format!("k3s/{burstable}/cri-containerd-{ID}.scope"), UID),
        ];
        for (path, uid) in table {
            let mount = tempfile::tempdir().unwrap();
            let container = mount.path().join(&path);
            fs::create_dir_all(&container).unwrap();
            fs::create_dir_all(mount.path().join("system.slice/containerd.service")).unwrap();
            let found = cgroup::find_pods(mount.path());
            let [root] = &found[..] else { panic!("{path}: the pods' group may be {found:?}") };
            let pod = container.ancestors().find(|group| {
                let name = group.file_name().and_then(OsStr::to_str);
                name.and_then(cgroup::pod_uid).is_some_and(|found| found == uid)
            });
            let pod = pod.unwrap_or_else(|| panic!("{path}: nothing in it is a pod's"));
            fs::write(pod.join("cgroup.events"), "populated 0\n").unwrap();
            let mut watch = Watch::start(root).unwrap();
            assert_eq!(changes(&mut watch).await, [uid], "{path}");
            assert_eq!(watch.group(uid), Some(pod), "{path}");
        }
    }

    #[tokio::test]
    async fn a_root_that_is_missing_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(Watch::start(&root.path().join("missing")).is_err());
    }
}
