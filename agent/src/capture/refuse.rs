//! What may stay behind the agent: on ports whose AccessPolicy says `whenUnattended: Refuse`, a program that refuses connections while no
//! agent attends them.
//!
//! Its link to the pod's network namespace is pinned in a BPF file system, as `sluice/UID-COOKIE` (the pod's uid, and the cookie of
//! the namespace), so that it outlives the process however that ends; nothing else of the agent is pinned. Until when
//! it refuses stands in a map of the program, an absolute time that the agent moves on while it beats: whatever becomes
//! of the agent, the port opens by itself at that time.
//!
//! - **An agent that takes over** attaches a program of its own, pins it beside the old one, and renames that file over the old one:
//!   there is always one, and nothing that two versions would have to agree on but the file's name.
//! - **What is not wanted** goes: of pods that are gone, that are not enrolled any more, or whose policies have changed, whoever has
//!   pinned it. What is wanted and cannot be attended at the moment stays until its time is over.
//! - **An agent that stops** leaves it: it cannot tell an upgrade from its end. [`remove_all`] takes away everything, for
//!   `sluice release`.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ahash::AHashSet;
use aya::programs::{SkLookup, links::FdLink};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use sluice_ebpf::Refused;

use super::{error::with_causes, heartbeat, maps, netns::Netns};
use crate::cluster::model::{Snapshot, Workload};

/// The directory in the BPF file system.
const DIRECTORY: &str = "sluice";
const RELEASED: &str =
    "sluice release was called on this node; it is active again when the agent is started anew";

/// How long a port is closed without an agent, and whether the node itself may come there all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) time: Duration,
    pub(crate) probed: bool,
}

/// What is to be closed of a pod.
pub(crate) type Ports = BTreeMap<SocketAddr, Closed>;

/// What policies want to be closed of a pod while nobody attends it.
pub(crate) fn wanted(workload: &Workload, snapshot: &Snapshot) -> Ports {
    let mut wanted = Ports::new();
    for ip in &workload.ips {
        for port in snapshot.inbound.ports(*ip) {
            let address = SocketAddr::new(*ip, port);
            let time = snapshot.inbound.port(address).and_then(|it| it.closed_unattended());
            let probed = workload.probes.iter().any(|probe| probe.port == port);
            wanted.extend(time.map(|time| (address, Closed { time, probed })));
        }
    }
    wanted
}

/// What pins programs, on this node.
pub(crate) struct Refusing {
    pub(crate) program: Result<SkLookup, Arc<String>>,
    pub(crate) maps: maps::Refuse,
    pub(crate) file_system: PathBuf,
    pub(crate) released: Arc<AtomicBool>,
    node: AHashSet<IpAddr>,
}

/// What is pinned of a pod by this agent.
pub(crate) struct Pinned {
    path: PathBuf,
    inode: u64,
    netns_cookie: u64,
    ports: Ports,
}

impl Pinned {
    pub(crate) fn addresses(&self) -> Arc<[SocketAddr]> {
        self.ports.keys().copied().collect()
    }
}

/// The pod that is closed.
pub(crate) struct Of<'a> {
    pub(crate) workload: &'a Workload,
    pub(crate) netns: &'a Netns,
    pub(crate) netns_cookie: u64,
    /// When the agent beat last.
    pub(crate) silence: Duration,
}

impl Refusing {
    pub(crate) fn new(
        program: Result<SkLookup, Arc<String>>,
        maps: maps::Refuse,
        file_system: PathBuf,
        released: Arc<AtomicBool>,
    ) -> Self {
        Self { program, maps, file_system, released, node: AHashSet::new() }
    }

    /// Whether nothing is to be pinned any more.
    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed)
    }

    /// Closes what is `wanted` and `attended` of a pod for the time when nobody attends it. What fails is to be tried again.
    pub(crate) fn sync(
        &mut self,
        pinned: &mut Option<Pinned>,
        wanted: &Ports,
        attended: &[SocketAddr],
        of: &Of<'_>,
    ) -> Result<(), String> {
        if wanted.is_empty() || self.is_released() {
            self.end(pinned);
            return if wanted.is_empty() { Ok(()) } else { Err(RELEASED.to_owned()) };
        }
        let ports: Ports = wanted
            .iter()
            .filter(|(address, _)| attended.contains(address))
            .map(|(address, closed)| (*address, *closed))
            .collect();
        if let Some(pinned) = pinned {
            if pinned.ports == ports {
                // What is wrong with the file stays said until it is not.
                return self.look(pinned, of.netns);
            }
            let gone: Vec<_> =
                pinned.ports.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
            for address in gone {
                self.maps.open(address, pinned.netns_cookie).map_err(|error| with_causes(&error))?;
                pinned.ports.remove(&address);
            }
            for (address, closed) in ports {
                self.close(address, closed, of.netns_cookie, of.silence)?;
                pinned.ports.insert(address, closed);
            }
            return Ok(());
        }
        if ports.is_empty() {
            return Ok(());
        }
        let name = file_name(&of.workload.uid, of.netns_cookie)?;
        for (address, closed) in &ports {
            self.close(*address, *closed, of.netns_cookie, of.silence)?;
        }
        let path = self.directory()?.join(name);
        let inode = self.pin(&path, of.netns)?;
        *pinned = Some(Pinned { path, inode, netns_cookie: of.netns_cookie, ports });
        Ok(())
    }

    /// The pod is attended, as of the agent's last beat.
    pub(crate) fn attend(&self, pinned: &Pinned, silence: Duration) -> Result<(), String> {
        for (address, closed) in &pinned.ports {
            self.close(*address, *closed, pinned.netns_cookie, silence)?;
        }
        Ok(())
    }

    /// Pins it again if the file is gone, or another agent's: of one that has ended meanwhile, say.
    pub(crate) fn look(&self, pinned: &mut Pinned, netns: &Netns) -> Result<(), String> {
        let inode = fs::symlink_metadata(&pinned.path).map(|file| file.ino());
        if inode.is_ok_and(|inode| inode == pinned.inode) {
            return Ok(());
        }
        self.directory()?;
        pinned.inode = self.pin(&pinned.path, netns)?;
        Ok(())
    }

    /// Nothing of the pod is closed any more.
    pub(crate) fn end(&self, pinned: &mut Option<Pinned>) {
        let Some(pinned) = pinned.take() else { return };
        for address in pinned.ports.keys() {
            if let Err(error) = self.maps.open(*address, pinned.netns_cookie) {
                let error = with_causes(&error);
                tracing::warn!(
                    error,
                    "cannot remove a port from the kernel's list of those that are refused"
                );
            }
        }
        remove(&pinned.path);
        leave(&self.file_system);
    }

    /// Removes what nobody wants, whoever has pinned it. `keep`: of a pod's uid and its namespace's cookie.
    pub(crate) fn sweep(&self, keep: impl Fn(&str, u64) -> bool) {
        let released = self.is_released();
        let Ok(files) = fs::read_dir(self.file_system.join(DIRECTORY)) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            let of = name.to_str().and_then(|name| name.rsplit_once('-'));
            let of = of.and_then(|(uid, cookie)| Some((uid, cookie.parse().ok()?)));
            if released || !of.is_some_and(|(uid, cookie)| keep(uid, cookie)) {
                remove(&file.path());
            }
        }
        leave(&self.file_system);
    }

    /// From where the kubelet probes.
    pub(crate) fn know_node(&mut self, addresses: &AHashSet<IpAddr>) {
        if self.node == *addresses {
            return;
        }
        let gone = self.node.difference(addresses).map(|address| (*address, false));
        let new = addresses.difference(&self.node).map(|address| (*address, true));
        let changes: Vec<_> = gone.chain(new).collect();
        for (address, is_there) in changes {
            match self.maps.set_node_address(address, is_there) {
                Ok(()) if is_there => drop(self.node.insert(address)),
                Ok(()) => drop(self.node.remove(&address)),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(%address, error, "cannot tell the kernel an address of the node; retrying");
                }
            }
        }
    }

    fn close(
        &self,
        address: SocketAddr,
        closed: Closed,
        cookie: u64,
        silence: Duration,
    ) -> Result<(), String> {
        let time = closed.time.saturating_sub(silence);
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let value = Refused {
            netns_cookie: cookie,
            until: heartbeat::now().saturating_add(time),
            probed: closed.probed.into(),
            reserved: 0,
        };
        self.maps.close(address, value).map_err(|error| with_causes(&error))
    }

    fn directory(&self) -> Result<PathBuf, String> {
        usable(&self.file_system)?;
        let directory = self.file_system.join(DIRECTORY);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(format!("cannot make {}: {error}", directory.display()))
            }
            _ => Ok(directory),
        }
    }

    /// Attaches the program, and puts it in the place of what is pinned there, if anything is. Returns the file's number.
    fn pin(&self, path: &Path, netns: &Netns) -> Result<u64, String> {
        let program = self.program.as_ref().map_err(ToString::to_string)?;
        let mut program = SkLookup::from_program_info(
            program.info().map_err(|error| with_causes(&error))?,
            "refuse".into(),
        )
        .map_err(|error| with_causes(&error))?;
        let link = program.attach(netns.as_fd()).and_then(|id| program.take_link(id)).map_err(|error| {
            format!("cannot attach a program to its network namespace: {}", with_causes(&error))
        })?;
        let beside = PathBuf::from(format!("{}-new", path.display()));
        // Of an agent that was killed between the two steps.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", beside.display()));
            }
            _ => {}
        }
        let cannot =
            |what: &dyn std::error::Error| format!("cannot pin {}: {}", path.display(), with_causes(what));
        FdLink::from(link).pin(&beside).map_err(|error| cannot(&error))?;
        let renamed =
            fs::symlink_metadata(&beside).and_then(|file| fs::rename(&beside, path).map(|()| file.ino()));
        renamed.map_err(|error| {
            remove(&beside);
            cannot(&error)
        })
    }
}

/// Whether something can be pinned there; else why not.
pub(crate) fn usable(file_system: &Path) -> Result<(), String> {
    let shown = file_system.display();
    match statfs(file_system) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        Ok(_) => Err(format!("{shown} is no BPF file system: mount one there (mount -t bpf bpf {shown})")),
        Err(error) => Err(format!("there is no BPF file system at {shown} ({error}): mount one there")),
    }
}

/// Removes all that agents have pinned there, and says how much it was.
///
/// # Errors
/// Something is left.
pub fn remove_all(file_system: &Path) -> io::Result<usize> {
    let directory = file_system.join(DIRECTORY);
    let files = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        files => files?,
    };
    let mut removed = 0;
    for file in files {
        match fs::remove_file(file?.path()) {
            // Another took it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => {
                outcome?;
                removed += 1;
            }
        }
    }
    match fs::remove_dir(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(removed),
    }
}

/// A BPF file system takes no dots in names.
fn file_name(uid: &str, netns_cookie: u64) -> Result<String, String> {
    let good = !uid.is_empty()
        && uid.len() <= 128
        && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if good {
        Ok(format!("{uid}-{netns_cookie}"))
    } else {
        Err(format!("its uid {uid:?} cannot be a file's name"))
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove what refuses connections while no agent is there");
    }
}

/// The directory goes with the last file in it.
fn leave(file_system: &Path) {
    let _others_are_there = fs::remove_dir(file_system.join(DIRECTORY));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_told_apart_by_pod_and_namespace() {
        let uid = "0a1b2c3d-0000-4000-8000-000000000001";
        assert_eq!(file_name(uid, 7), Ok(format!("{uid}-7")));
        for bad in ["", "a/b", "a.b", "..", "a b", &"x".repeat(129)] {
            assert!(file_name(bad, 7).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_bpf_file_system_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let why = usable(directory.path()).unwrap_err();
        assert!(why.contains("is no BPF file system: mount one there"), "{why}");
        let why = usable(&directory.path().join("absent")).unwrap_err();
        assert!(why.contains("there is no BPF file system at"), "{why}");
    }

    #[test]
    fn all_of_it_goes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(remove_all(directory.path()).unwrap(), 0, "nothing is there");
        fs::create_dir(directory.path().join(DIRECTORY)).unwrap();
        for name in ["a-1", "b-2", "b-2-new"] {
            fs::write(directory.path().join(DIRECTORY).join(name), "").unwrap();
        }
        fs::write(directory.path().join("another"), "").unwrap();
        assert_eq!(remove_all(directory.path()).unwrap(), 3);
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
