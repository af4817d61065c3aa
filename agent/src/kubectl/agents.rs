//! Which pods are the agents of which nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, ContainerStatus, Pod},
};

use super::session::Unreached;
use crate::ask::Failed;

/// What they and their DaemonSet are labelled with.
pub(super) const AGENTS: &str = "app.kubernetes.io/name=sluice";
/// The agent's container, if the pod does not say which it is.
const CONTAINER: &str = "agent";
/// The annotation by which it does.
/// <https://kubernetes.io/docs/reference/labels-annotations-taints/#kubectl-kubernetes-io-default-container>
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Where the image has the program.
const PROGRAM: &str = "/sluice";

/// An agent that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) program: String,
}

/// The agents by node.
#[derive(Debug, Default)]
pub(super) struct Agents {
    nodes: BTreeMap<String, Result<Agent, Unreached>>,
    /// Pods that their DaemonSets want beyond those that there are.
    pub(super) lacking: usize,
}

impl Agents {
    pub(super) fn new(pods: Vec<Pod>, sets: &[DaemonSet]) -> Self {
        let wanted: i32 = sets
            .iter()
            .filter_map(|set| set.status.as_ref())
            .map(|status| status.desired_number_scheduled)
            .sum();
        let mut best: BTreeMap<String, Pod> = BTreeMap::new();
        for pod in pods {
            let Some(node) = node(&pod) else { continue };
            // During a rollout there are two: the one that takes over, as soon as it runs.
            if best.get(&node).is_none_or(|other| rank(&pod) > rank(other)) {
                best.insert(node, pod);
            }
        }
        let lacking = usize::try_from(wanted).unwrap_or(0).saturating_sub(best.len());
        Self { nodes: best.into_iter().map(|(node, pod)| (node, agent(&pod))).collect(), lacking }
    }

    /// Those of these nodes; of all if none is named.
    pub(super) fn only(mut self, nodes: &[String]) -> Result<Self, Failed> {
        if nodes.is_empty() {
            return Ok(self);
        }
        if let Some(unknown) = nodes.iter().find(|node| !self.nodes.contains_key(*node)) {
            let there: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
            return Err(Failed::Refused(format!(
                "--node: no agent runs on node {unknown:?}; there are agents on {}",
                super::nodes::named(&there)
            )));
        }
        self.nodes.retain(|node, _| nodes.contains(node));
        self.lacking = 0;
        Ok(self)
    }

    pub(super) fn of(&self, node: &str) -> Option<&Result<Agent, Unreached>> {
        self.nodes.get(node)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&String, &Result<Agent, Unreached>)> {
        self.nodes.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.lacking == 0
    }
}

/// Where it runs, or (a DaemonSet says it so) is to run.
fn node(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = &spec.node_name {
        return Some(node.clone());
    }
    let required = spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required.node_selector_terms.iter().filter_map(|term| term.match_fields.as_ref()).flatten();
    fields
        .filter(|field| field.key == "metadata.name")
        .find_map(|field| field.values.as_ref()?.first().cloned())
}

/// Higher is better.
fn rank(pod: &Pod) -> impl Ord + use<> {
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (agent(pod).is_ok(), pod.metadata.deletion_timestamp.is_none(), created)
}

fn agent(pod: &Pod) -> Result<Agent, Unreached> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let containers = pod.spec.as_ref().map(|spec| &*spec.containers).unwrap_or_default();
    let named = pod.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT_CONTAINER));
    let called = |name: &str| containers.iter().find(|container| container.name == name);
    let container = named.and_then(|name| called(name)).or_else(|| called(CONTAINER)).or(containers.first());
    let down = |why: String| Unreached::Down { pod: name.clone(), why };
    let Some(Container { name: container, command, .. }) = container else {
        return Err(down("it has no container".to_owned()));
    };
    let status = pod.status.as_ref();
    let its = status
        .and_then(|status| status.container_statuses.as_ref())
        .and_then(|all| all.iter().find(|one| one.name == *container));
    if its.and_then(|its| its.state.as_ref()).is_some_and(|state| state.running.is_some()) {
        let program = command.as_ref().and_then(|words| words.first()).map_or(PROGRAM, String::as_str);
        return Ok(Agent { pod: name, container: container.clone(), program: program.to_owned() });
    }
    let phase = status.and_then(|status| status.phase.clone()).unwrap_or_else(|| "Pending".to_owned());
    Err(down(its.and_then(why_not).or_else(|| unscheduled(pod)).unwrap_or(phase)))
}

/// Why a container does not run: what it waits for, and how it ended the last time.
fn why_not(status: &ContainerStatus) -> Option<String> {
    let said = |reason: Option<&String>, message: Option<&String>| {
        let parts: Vec<_> = [reason, message].into_iter().flatten().map(|part| part.trim()).collect();
        (!parts.is_empty()).then(|| parts.join(": "))
    };
    let state = status.state.as_ref();
    let waits = state.and_then(|state| state.waiting.as_ref());
    let waits = waits.and_then(|waits| said(waits.reason.as_ref(), waits.message.as_ref()));
    let ended =
        [state, status.last_state.as_ref()].into_iter().flatten().find_map(|state| state.terminated.as_ref());
    let ended = ended.map(|ended| {
        let said = said(ended.reason.as_ref(), ended.message.as_ref())
            .map_or_else(String::new, |said| format!(" ({said})"));
        format!("its program ended with {}{said}", ended.exit_code)
    });
    match (waits, ended) {
        (Some(waits), Some(ended)) => Some(format!("{waits}; {ended}")),
        (waits, ended) => waits.or(ended),
    }
}

fn unscheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|one| one.type_ == "PodScheduled" && one.status == "False")?;
    Some(format!("{}: {}", condition.reason.as_deref()?, condition.message.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests;
