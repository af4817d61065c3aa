//! Whether the agent is ready, and why not: what it says it does, it does.
//!
//! Ready is an agent that reads all enrolled namespaces, whose workers are alive, whose programs see the connects of pods
//! before anybody else, and that had taken up the pods which were there at its start. A single odd pod does not hold
//! that up for longer than [`POD_WAIT`], and is no reason any more once the agent was ready: `status` and the metrics name it.

use std::time::{Duration, Instant};

use super::{Shared, lock};
use crate::{
    admin::{Readiness, view::Missing},
    capture::{self, Attachment, Capture},
    cluster::{cause::Cause, problem::Problem, source::Unread},
    proxy::Proxy,
};

/// The programs stop redirecting when a worker has been silent for as long.
const SILENT: Duration = Duration::from_nanos(sluice_ebpf::HEARTBEAT_STALE_AFTER_NANOS);
/// For so long a namespace may be on its way.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// For so long a pod that is not enrolled holds up the start.
const POD_WAIT: Duration = Duration::from_secs(5);

const SILENCE: &str = "a worker is silent, and connections go direct";
const WAIT: &str = "Wait if it has just started. If it stays so, read the agent's log.";
const DRAINS: &str = "It ends by itself. Ask the agent that takes its place what is active on this node.";
const RETRIES: &str = "The agent retries by itself. Read the agent's log for the cause.";

pub(super) struct Ready(pub(super) Shared);

impl Readiness for Ready {
    fn missing(&self) -> Vec<String> {
        missing(&self.0).iter().map(Missing::told).collect()
    }

    fn stuck(&self) -> Option<String> {
        let hangs = lock(&self.0).proxy.as_ref().map(Proxy::hangs_for)?;
        (hangs >= super::watchdog::LIMIT).then(|| SILENCE.to_owned())
    }
}

/// Why the agent is not ready.
pub(super) fn missing(running: &Shared) -> Vec<Missing> {
    let mut running = lock(running);
    if running.stopping {
        return vec![because(
            "the agent is draining: what is open goes on until it ends, and new connections go to the agent that takes its place, or directly",
            DRAINS,
        )];
    }
    let Some(status) = running.capture.as_ref().map(Capture::status) else {
        let (problems, told) = match (&running.cluster, &running.source) {
            (Some(cluster), _) => (cluster.status().problems, true),
            (None, Some(source)) => (source.borrow().problems.clone(), false),
            (None, None) => (Vec::new(), false),
        };
        let of_source = |problem: &&Problem| problem.object.is_none();
        let mut missing: Vec<_> = problems
            .iter()
            .filter(of_source)
            .map(|problem| Missing {
                message: problem.to_string(),
                action: problem.cause.action(),
                elsewhere: told,
            })
            .collect();
        missing.push(because("the cluster's objects are being read, and capture has not started", WAIT));
        return missing;
    };
    let (unread, restored, problems) = match running.cluster.as_ref().map(|cluster| cluster.status()) {
        Some(cluster) => {
            (cluster.unread, cluster.restored.then(|| cluster.heard.elapsed()), cluster.problems)
        }
        None => (Vec::new(), None, Vec::new()),
    };
    let silent = running.proxy.as_ref().map(Proxy::silent_for).unwrap_or_default();
    let facts = Facts {
        status: &status,
        unread: &unread,
        restored,
        problems: &problems,
        silent,
        was_ready: running.ready,
        now: Instant::now(),
    };
    let missing = facts.missing();
    running.ready |= missing.is_empty();
    missing
}

/// What decides, once capture has started.
struct Facts<'a> {
    status: &'a capture::Status,
    unread: &'a [Unread],
    /// How old the state file is, if nothing else is known.
    restored: Option<Duration>,
    /// What is wrong with the cluster's objects, or with the way to them.
    problems: &'a [Problem],
    /// Of the worker that has been silent for longest.
    silent: Duration,
    was_ready: bool,
    now: Instant,
}

impl Facts<'_> {
    /// The gravest first.
    fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        if self.status.stopped {
            missing.push(because(
                "capture broke down, and connections go direct",
                "Restart the agent. Its log says why capture broke down.",
            ));
            return missing;
        }
        if self.silent > SILENT {
            missing.push(because(
                SILENCE,
                "If the worker stays silent, the agent ends by itself within ten seconds and is started anew. The node may \
                 be out of CPU time.",
            ));
        }
        match &self.status.attachment {
            Attachment::Attached => {}
            Attachment::Behind { others } => missing.push(because(
                format!("other programs see the connections of pods before Sluice does: {others}"),
                "Restart the agent that attached them after Sluice, or detach them: what they rewrite is not managed.",
            )),
            Attachment::Lost { why } => missing.push(because(
                format!("the eBPF programs are not attached, and connections go direct: {why}"),
                RETRIES,
            )),
        }
        // It manages, but not by what is so now: a rollout of agents that do not reach the API server must not go on.
        if let Some(age) = self.restored {
            missing.push(Missing {
                message: format!(
                    "the API server has not told all that there is since the start, and the agent runs on the state file, which is {} s old",
                    age.as_secs()
                ),
                action: Cause::action_of_source(self.problems),
                elsewhere: true,
            });
        }
        let late = |unread: &&Unread| {
            unread.refused || self.now.saturating_duration_since(unread.since.into_std()) > READ_WITHIN
        };
        missing.extend(self.unread.iter().filter(late).map(|unread| Missing {
            message: format!("namespace {} is enrolled and has never been read", unread.namespace),
            action: Cause::action_of_source(self.problems),
            elsewhere: unread.refused,
        }));
        if !self.status.synced {
            missing.push(because("the pods of this node are not enrolled yet", WAIT));
        }
        if !self.was_ready {
            // A pod that cannot be started has no process, maybe for ever.
            for pod in self.status.pods.iter().filter(|pod| !pod.empty) {
                let waits = pod
                    .pending_since
                    .is_none_or(|since| self.now.saturating_duration_since(since) < POD_WAIT);
                if let Some(why) = pod.pending.as_ref().filter(|_| waits) {
                    missing.push(Missing {
                        message: format!("pod {}/{}: {why}", pod.workload.namespace, pod.workload.name),
                        action: RETRIES.into(),
                        elsewhere: true,
                    });
                }
            }
        }
        missing
    }
}

fn because(message: impl Into<String>, action: &'static str) -> Missing {
    Missing { message: message.into(), action: action.into(), elsewhere: false }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        capture::PodStatus,
        cluster::{cause::Grant, model::Workload},
    };

    fn status() -> capture::Status {
        capture::Status {
            synced: true,
            attachment: Attachment::Attached,
            stopped: false,
            pods: Arc::default(),
            destinations: 0,
            steering_trouble: None,
            threads_trouble: None,
            bypassed: 0,
            reclaimed: 0,
            reclaim_trouble: None,
            kernel: Vec::new(),
        }
    }

    fn facts(status: &capture::Status) -> Facts<'_> {
        let silent = Duration::ZERO;
        Facts {
            status,
            unread: &[],
            restored: None,
            problems: &[],
            silent,
            was_ready: true,
            now: Instant::now(),
        }
    }

    fn told(status: &capture::Status, change: impl FnOnce(&mut Facts<'_>)) -> Vec<String> {
        let mut facts = facts(status);
        change(&mut facts);
        facts.missing().into_iter().map(|missing| missing.message).collect()
    }

    #[test]
    fn an_odd_pod_holds_up_the_start_for_some_seconds_only() {
        let since = Instant::now();
        let pod = |pending: &str, empty: bool| PodStatus {
            pending: Some(pending.to_owned()),
            pending_since: (!empty).then_some(since),
            empty,
            ..PodStatus::enrolled(Arc::new(Workload::new("a", "shop", "orders")))
        };
        let odd = [pod("it has no process", true), pod("its loopback device is down", false)];
        let status = capture::Status { pods: odd.into(), ..status() };
        let at = |seconds, was_ready| {
            told(&status, |facts| {
                (facts.now, facts.was_ready) = (since + Duration::from_secs(seconds), was_ready);
            })
        };
        assert_eq!(at(4, false), ["pod shop/orders: its loopback device is down"]);
        assert_eq!(at(5, false), [""; 0]);
        assert_eq!(at(0, true), [""; 0], "and never later");
    }

    #[test]
    fn a_namespace_that_was_never_read_is_named() {
        let since = tokio::time::Instant::now();
        let at = |seconds, refused| {
            let (status, unread) = (status(), [Unread { namespace: "shop".into(), since, refused }]);
            let now = since.into_std() + Duration::from_secs(seconds);
            let facts = Facts { unread: &unread, now, ..facts(&status) };
            facts.missing().into_iter().map(|missing| missing.message).collect::<Vec<_>>()
        };
        let never = ["namespace shop is enrolled and has never been read"];
        assert_eq!(at(0, true), never, "nobody allows it by waiting");
        assert_eq!(at(10, false), [""; 0], "on its way");
        assert_eq!(at(11, false), never);
    }

    #[test]
    fn what_is_not_read_has_the_action_of_the_cause() {
        let (status, forbidden) = (status(), Cause::Forbidden(Grant::new("list", "pods", "shop")));
        let problems = [Problem::with_source("x", forbidden.clone())];
        let since = tokio::time::Instant::now();
        let unread = [Unread { namespace: "shop".into(), since, refused: true }];
        let told = Facts { unread: &unread, problems: &problems, ..facts(&status) }.missing();
        assert_eq!(told[0].action, forbidden.action());
        let line = "namespace shop is enrolled and has never been read. Grant the agent's service account list on pods";
        assert!(told[0].told().starts_with(line), "{told:?}");
    }

    #[test]
    fn an_agent_that_has_heard_nothing_is_not_ready() {
        let told = told(&status(), |facts| facts.restored = Some(Duration::from_secs(75)));
        assert!(told.len() == 1 && told[0].ends_with("which is 75 s old"), "{told:?}");
    }

    #[test]
    fn each_part_that_fails_is_told() {
        let lost = Attachment::Lost { why: "gone".to_owned() };
        let behind = Attachment::Behind { others: "\"other\" (id 1) on /pods".to_owned() };
        for (status, words) in [
            (capture::Status { synced: false, ..status() }, "not enrolled yet"),
            (capture::Status { stopped: true, ..status() }, "capture broke down"),
            (
                capture::Status { attachment: lost, ..status() },
                "not attached, and connections go direct: gone",
            ),
            (
                capture::Status { attachment: behind, ..status() },
                "before Sluice does: \"other\" (id 1) on /pods",
            ),
        ] {
            let told = told(&status, |_| {});
            assert!(told.len() == 1 && told[0].contains(words), "{told:?}");
        }
        let silent = |nanos| told(&status(), |facts| facts.silent = SILENT + Duration::from_nanos(nanos));
        assert_eq!(silent(0), [""; 0]);
        assert_eq!(silent(1), [SILENCE]);
        assert_eq!(told(&status(), |_| {}), [""; 0]);
    }
}
