//! Finds the network namespace of a pod: by the processes in its control group.

use std::{fs, path::Path};

use super::{
    cgroup,
    netns::{Id, Netns},
};

/// What a look at a pod's processes showed.
#[derive(Debug)]
pub(crate) enum Sighting<N> {
    /// A process still lives in the namespace that is enrolled.
    Same,
    /// The pod lives in this one.
    Netns(N),
    /// No process yet, or none any more.
    Empty,
    /// Only processes in the node's own network namespace: the runtime's, on their way into the pod's.
    OnlyHost,
    /// There are processes, but outside of the agent's pid namespace.
    Invisible,
}

/// Looks for the network namespace of the pod with this control group.
///
/// A pod may make namespaces of its own (Docker in a pod does). Its sandbox's is that of the process which started
/// first, among those in the outermost groups. Once chosen a namespace stays, while any process lives in it.
pub(crate) fn look(group: &Path, current: Option<Id>, hosts: &[Id]) -> Sighting<Netns> {
    let levels = cgroup::processes_by_level(group);
    let mut seen = levels.iter().flatten().filter(|pid| **pid != 0).filter_map(|pid| netns_id(*pid));
    if current.is_some() && seen.any(|id| Some(id) == current) {
        return Sighting::Same;
    }

    let (mut any, mut invisible) = (false, false);
    for level in &levels {
        let mut candidates = Vec::new();
        for &pid in level {
            any |= pid != 0;
            invisible |= pid == 0;
            if pid != 0 && netns_id(pid).is_some_and(|id| !hosts.contains(&id)) {
                candidates.push((started(pid).unwrap_or(u64::MAX), pid));
            }
        }
        candidates.sort_unstable();
        // It may be gone meanwhile, or its pid be another's: what was opened is what counts.
        let opened = candidates.into_iter().filter_map(|(_, pid)| Netns::of_process(pid).ok());
        if let Some(netns) = opened.into_iter().find(|netns| !hosts.contains(&netns.id())) {
            return Sighting::Netns(netns);
        }
    }
    match (any, invisible) {
        (true, _) => Sighting::OnlyHost,
        (false, true) => Sighting::Invisible,
        (false, false) => Sighting::Empty,
    }
}

fn netns_id(pid: u32) -> Option<Id> {
    Netns::id_of_process(pid).ok()
}

/// When a process started, in clock ticks since boot: the 22nd field of its `stat`. The second, the command, is in
/// parentheses and may itself hold spaces and parentheses.
fn started(pid: u32) -> Option<u64> {
    started_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn started_in(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(") ")?;
    after_command.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    fn group_of(pids: &str) -> tempfile::TempDir {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.procs"), pids).unwrap();
        group
    }

    fn name(sighting: &Sighting<Netns>) -> &'static str {
        match sighting {
            Sighting::Same => "same",
            Sighting::Netns(_) => "netns",
            Sighting::Empty => "empty",
            Sighting::OnlyHost => "only host",
            Sighting::Invisible => "invisible",
        }
    }

    #[test]
    fn what_is_seen_of_a_pod() {
        let own = Netns::current().unwrap().id();
        let me = process::id().to_string();
        let table: [(&str, Option<Id>, &[Id], &str); 7] = [
            ("", None, &[], "empty"),
            ("0\n0\n", None, &[], "invisible"),
            (&me, None, &[], "netns"),
            (&me, Some(own), &[], "same"),
            (&me, None, &[own], "only host"),
            (&format!("0\n{me}\n"), None, &[], "netns"),
            ("", Some(own), &[], "empty"),
        ];
        for (pids, current, hosts, expected) in table {
            let group = group_of(pids);
            assert_eq!(name(&look(group.path(), current, hosts)), expected, "{pids:?} {current:?} {hosts:?}");
        }
    }

    #[test]
    fn start_time_is_read_behind_any_command() {
        let stat = "7 (a ) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(started_in(stat), Some(4711));
        assert_eq!(started_in("7 (x"), None);
        assert!(started(process::id()).is_some());
    }
}
