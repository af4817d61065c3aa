//! Pods and policies: which are enrolled and why others are not, and what became of what users have written.

use ahash::AHashSet;
use schemars::JsonSchema;
use serde::Serialize;

use super::Look;
use crate::{
    capture::{Followed, Handling},
    cluster::{model::Workload, object, verdict},
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

/// A pod of this node in an opted-in namespace.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PodLine {
    #[serde(flatten)]
    pub pod: PodName,
    pub tag: Option<String>,
    pub state: PodState,
    /// Why it is not enrolled, or which of its connections bypass the agent.
    pub reason: Option<String>,
    /// What said the tags of its requests in the last five minutes, as in `carrier` of `sluice_tag_carriers_total`.
    pub tag_carriers: Vec<&'static str>,
    /// Its requests without a tag while all that it was answering had one, since the agent has known it.
    pub tags_lost: u64,
    /// Its ports whose threads are followed (`sluice.dev/propagation: thread`).
    pub threads: Vec<ThreadsLine>,
}

/// A process that reads from a port of a pod, and how its threads handle requests.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ThreadsLine {
    pub port: u16,
    /// Its PID on the node.
    pub process: u32,
    /// `on_trial`, `by_thread`, `multiplexes` or `hands_over`: what its requests are sent for is known with `by_thread` only.
    pub handling: &'static str,
    /// While it is on trial: so many requests have shown that its threads handle one at a time ...
    pub shown: Option<u64>,
    /// ... of so many that are needed.
    pub needed: u64,
    /// The name of the thread that has shown that they do not, its first 15 bytes.
    pub thread: Option<String>,
}

impl From<&Followed> for ThreadsLine {
    fn from(Followed { port, process, handling }: &Followed) -> Self {
        let (shown, thread) = match handling {
            Handling::OnTrial { shown } => (Some(*shown), None),
            Handling::ByThread => (None, None),
            Handling::Multiplexes { thread } | Handling::HandsOver { thread } => (None, Some(thread.clone())),
        };
        Self {
            port: *port,
            process: *process,
            handling: handling.as_str(),
            shown,
            needed: Handling::NEEDED,
            thread,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// It is to be enrolled, and is not yet.
    Pending,
    /// A service mesh's proxy takes its connections already.
    OtherMesh,
    /// It is not to be enrolled.
    NotEnrolled,
    Enrolled,
}

/// A TrafficPolicy, TrafficLane or AccessPolicy.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PolicyLine {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub conditions: Vec<Condition>,
}

/// As in the object's status.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

/// The pods of opted-in namespaces; what is not enrolled comes first.
pub(super) fn pods(look: &Look) -> Vec<PodLine> {
    let line = |workload: &Workload, state, why: Option<String>| {
        let tags = look.tags(&workload.namespace, &workload.name);
        PodLine {
            pod: PodName { namespace: workload.namespace.to_string(), name: workload.name.to_string() },
            tag: workload.tag.as_ref().map(ToString::to_string),
            state,
            reason: why,
            tag_carriers: tags.iter().flat_map(|tags| &tags.carriers).map(|source| source.as_str()).collect(),
            tags_lost: tags.map_or(0, |tags| tags.lost),
            threads: Vec::new(),
        }
    };
    let mut pods: Vec<_> = look
        .pods
        .iter()
        .map(|status| {
            let workload = &status.workload;
            match (&status.pending, status.own_proxy) {
                (Some(why), _) => line(workload, PodState::Pending, Some(why.clone())),
                (None, Some(mesh)) => {
                    let why = format!("the proxy of {mesh} redirects its connections already");
                    line(workload, PodState::OtherMesh, Some(why))
                }
                (None, None) => {
                    let older = look.older(status);
                    let older: Vec<_> =
                        older.iter().map(|one| format!("{} to {}", one.connections, one.service)).collect();
                    let why = (!older.is_empty()).then(|| {
                        format!("connections that are older than its enrolment: {}", older.join(", "))
                    });
                    let threads = status.steered.followed.iter().map(ThreadsLine::from).collect();
                    PodLine { threads, ..line(workload, PodState::Enrolled, why) }
                }
            }
        })
        .collect();
    let known: AHashSet<_> = look.pods.iter().map(|status| &status.workload.uid).collect();
    for workload in look.snapshot.pods.values().filter(|pod| !pod.finished && !known.contains(&pod.uid)) {
        pods.push(if workload.host_network {
            line(
                workload,
                PodState::NotEnrolled,
                Some("it is in the node's own network (hostNetwork)".into()),
            )
        } else if !workload.capture {
            line(workload, PodState::NotEnrolled, Some("its annotation sluice.dev/capture says so".into()))
        } else {
            line(workload, PodState::Pending, Some("its cgroup is not on this node, or not yet".into()))
        });
    }
    pods.sort_by(|one, other| (one.state, &one.pod).cmp(&(other.state, &other.pod)));
    pods
}

/// The policies, with what became of them.
pub(super) fn policies(look: &Look) -> Vec<PolicyLine> {
    look.verdicts.iter().map(|(key, judged)| policy(key, judged)).collect()
}

/// One of them.
pub(super) fn policy(key: &object::Key, judged: &verdict::Judged) -> PolicyLine {
    let condition = |(kind, condition): (_, &verdict::Condition)| Condition {
        kind,
        status: condition.holds,
        reason: condition.reason.as_str(),
        message: condition.message.clone(),
    };
    PolicyLine {
        kind: key.kind.as_str(),
        namespace: key.name.namespace.to_string(),
        name: key.name.name.to_string(),
        conditions: judged.verdict.conditions().into_iter().map(condition).collect(),
    }
}
