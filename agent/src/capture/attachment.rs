//! Keeps the programs attached to the group of all pods, and says whether they are.
//!
//! A kubelet that is started with other options makes the group anew, and a link that is detached by hand leaves
//! nothing behind that would tell: so it is looked at every second, and what is not attached is attached again.
//!
//! ```text
//!               the group is gone, or a program is off it
//!   attached ------------------------------------------------> lost
//!    ^   |  ^                                                    |
//!    |   |  +--------- attached again, to the group of now ------+
//!    |   | a foreign program runs before ours
//!    |   v
//!   behind
//! ```

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_ebpf::program;

use super::{
    CaptureError, cgroup, exclusive,
    probe::Machine,
    programs::{Links, Programs},
    threads::{self, Threads},
};

/// How often it is looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

const CONNECT: [&str; 2] = [program::CONNECT4, program::CONNECT6];

/// Whether the programs see the connects of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Attachment {
    #[default]
    Attached,
    /// These programs run before ours, and may change what ours are to see.
    Behind { others: String },
    /// They do not, and every connection goes direct. They are attached again as soon as it can be done.
    Lost { why: String },
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The group is the one that it was.
    Same,
    /// The programs are on another group: its pods are to be looked for.
    Anew,
}

pub(crate) struct Keeper {
    programs: Programs,
    machine: Machine,
    /// As the operator says it.
    pods_cgroup: Option<PathBuf>,
    following: bool,
    links: Arc<Mutex<Links>>,
    threads: Threads,
    /// The group that the programs are attached to. One that is made again under its name has another.
    group: u64,
    ids: [Option<u32>; 2],
    /// What was on the group when it was last looked at, and what that means.
    seen: Option<[Vec<u32>; 2]>,
    state: Attachment,
}

impl Keeper {
    /// Attaches the programs.
    pub(crate) fn attach(
        mut programs: Programs,
        machine: Machine,
        pods_cgroup: Option<&Path>,
        following: bool,
        threads: Arc<threads::Maps>,
    ) -> Result<Self, CaptureError> {
        let group = cgroup::id(&machine.pods).map_err(CaptureError::Proc)?;
        let links = Arc::new(Mutex::new(programs.attach(&machine, following)?));
        let ids = CONNECT.map(|name| programs.id(name));
        let pods_cgroup = pods_cgroup.map(Path::to_owned);
        Ok(Self {
            programs,
            machine,
            pods_cgroup,
            following,
            links,
            threads: Threads::new(threads),
            group,
            ids,
            seen: None,
            state: Attachment::Attached,
        })
    }

    pub(crate) fn links(&self) -> Arc<Mutex<Links>> {
        self.links.clone()
    }

    pub(crate) fn state(&self) -> &Attachment {
        &self.state
    }

    pub(crate) fn group(&self) -> &Path {
        &self.machine.pods
    }

    /// Sees whether the programs are attached, and attaches them again if they are not.
    pub(crate) fn look(&mut self) -> Found {
        let is_here = cgroup::id(&self.machine.pods).is_ok_and(|group| group == self.group);
        let state = if is_here { self.order() } else { None };
        if let Some(state) = state {
            self.set(state);
            return Found::Same;
        }
        self.seen = None;
        match self.attach_again() {
            Ok(None) => Found::Same,
            Ok(Some(found)) => {
                self.set(Attachment::Attached);
                found
            }
            Err(error) => {
                self.set(Attachment::Lost { why: error.to_string() });
                Found::Same
            }
        }
    }

    /// Follows the threads of pods if one asks for it.
    pub(crate) fn follow_threads(&mut self, asked: bool) {
        self.threads.ask(self.programs.object(), &self.machine.pods, asked);
    }

    /// Looks what they have shown.
    pub(crate) fn look_at_threads(&self) {
        self.threads.look();
    }

    /// Why they cannot be, where a pod asks for it.
    pub(crate) fn threads_trouble(&self) -> Option<Arc<String>> {
        self.threads.trouble()
    }

    /// What was found anew could not be made use of: it is to be found once more.
    pub(crate) fn again(&mut self) {
        self.group = 0;
    }

    /// Who runs before ours; `None`: ours do not run.
    fn order(&mut self) -> Option<Attachment> {
        let mut now = [Vec::new(), Vec::new()];
        for (name, ids) in CONNECT.into_iter().zip(&mut now) {
            // A kernel that does not say it is believed.
            let Ok(attached) = exclusive::attached(name, &self.machine.pods) else {
                return Some(Attachment::Attached);
            };
            *ids = attached;
        }
        let mut ahead = Vec::new();
        for ((name, own), ids) in CONNECT.into_iter().zip(self.ids).zip(&now) {
            let Some(own) = own else { continue };
            ahead.push((name, before(own, ids)?));
        }
        if self.seen.as_ref() == Some(&now) && !matches!(self.state, Attachment::Lost { .. }) {
            return Some(self.state.clone());
        }
        let others: Vec<_> = ahead
            .iter()
            .filter_map(|(name, ids)| exclusive::foreign(name, &self.machine.pods, ids))
            .collect();
        self.seen = Some(now);
        Some(if others.is_empty() {
            Attachment::Attached
        } else {
            Attachment::Behind { others: others.join(" and ") }
        })
    }

    /// `None`: they are not to be attached any more.
    fn attach_again(&mut self) -> Result<Option<Found>, CaptureError> {
        let machine = Machine::find(self.pods_cgroup.as_deref())?;
        let group = cgroup::id(&machine.pods).map_err(CaptureError::Proc)?;
        // Held, so that nobody stops redirecting in between.
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if links.is_stopped() {
            return Ok(None);
        }
        // Not twice on the same group at any time.
        links.let_go();
        let steering = std::mem::take(links.steering());
        *links = self.programs.attach(&machine, self.following)?;
        *links.steering() = steering;
        self.threads.let_go();
        let found = if group == self.group { Found::Same } else { Found::Anew };
        (self.group, self.machine) = (group, machine);
        Ok(Some(found))
    }

    fn set(&mut self, state: Attachment) {
        if state == self.state {
            return;
        }
        match &state {
            Attachment::Attached => {
                tracing::info!(group = %self.machine.pods.display(), "the eBPF programs are attached as they should be");
            }
            Attachment::Behind { others } => {
                tracing::warn!("other programs see connections before Sluice does: {others}");
            }
            Attachment::Lost { why } => {
                tracing::error!(
                    "the eBPF programs are not attached, and connections go direct: {why}; trying again"
                );
            }
        }
        self.state = state;
    }
}

/// Those that run before ours; `None`: ours does not.
fn before(own: u32, ids: &[u32]) -> Option<&[u32]> {
    let at = ids.iter().position(|id| *id == own)?;
    Some(&ids[..at])
}

#[cfg(test)]
mod tests {
    use super::before;

    #[test]
    fn what_runs_before_ours() {
        for (ids, expected) in [
            (&[][..], None),
            (&[1, 2], None),
            (&[7], Some(&[][..])),
            (&[7, 1], Some(&[])),
            (&[1, 2, 7, 3], Some(&[1, 2])),
        ] {
            assert_eq!(before(7, ids), expected, "{ids:?}");
        }
    }
}
