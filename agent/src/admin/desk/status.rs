//! How things stand on this node, on one screen: and what is wrong, with what to do about it.

mod problems;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::problems::Problem;
use self::problems::{
    access_log, draining, limit_store, of_cluster, old_keys, older, open_unattended, over_budget, problem,
    propagation, unenforced, without_effect,
};
use crate::{
    admin::view::Look,
    clock::Nanos,
    cluster::{
        self,
        cause::Cause,
        model::Service,
        object::Key,
        verdict::{Extent, Reason},
    },
    govern::{breaker::State, outlier, tag::Tag},
};

/// The snapshot is told to be old when nothing was heard for longer. API servers send a bookmark a minute, or every two, on
/// a watch without changes, and one that is silent for two and a half is opened again.
const OLD_SECONDS: f64 = 180.0;

/// How things stand.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    pub node: Option<String>,
    /// The release of the kernel.
    pub kernel: String,
    /// It routes: its programs are attached and its snapshot is complete.
    pub ready: bool,
    /// It is stopping: what is open goes on until it ends, and nothing new comes.
    #[serde(default)]
    pub draining: bool,
    /// Seconds since the snapshot was last known to be current; absent while there is none.
    pub snapshot_age_seconds: Option<f64>,
    pub snapshot_generation: u64,
    /// The snapshot is that of the state file: the API server has not told all that there is since the start.
    #[serde(default)]
    pub snapshot_restored: bool,
    pub pods: Pods,
    pub services: Services,
    pub policies: Policies,
    /// Rules of HTTPRoutes and GRPCRoutes that are active for Services.
    #[serde(default)]
    pub route_rules: usize,
    /// What is wrong, the worst first.
    pub problems: Vec<Problem>,
}

/// Pods of this node that are to be enrolled.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Pods {
    pub enrolled: usize,
    pub pending: usize,
    /// Not enrolled, because another service mesh redirects their connections already.
    pub other_mesh: usize,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Services {
    /// Service ports that are managed.
    pub managed: usize,
    pub endpoints: usize,
    pub ready_endpoints: usize,
    /// Requests and tunnels in flight from this node.
    pub in_flight: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Policies {
    /// All that they ask for is active.
    pub active: usize,
    /// A part of it is active.
    pub partly_active: usize,
    /// They are invalid, and what their last valid version asks for is active.
    pub earlier_version_active: usize,
    /// Nothing of it is active.
    pub inactive: usize,
}

impl Status {
    pub(super) fn of(look: &Look) -> Self {
        let mut status = Self::of_all(look);
        if look.draining {
            // Policies, pods and endpoints are the affair of the agent that takes its place, which this one does not ask.
            status.problems = look.missing.iter().map(draining).chain(access_log(look)).collect();
        }
        status
    }

    fn of_all(look: &Look) -> Self {
        let mut problems = Self::source(look);
        let causes = problems.len();
        let missing = look.missing.iter().filter(|missing| !missing.elsewhere);
        problems.extend(missing.map(|missing| {
            problem(
                format!("The agent is not ready: {}.", missing.message.trim_end_matches('.')),
                missing.action.clone(),
            )
        }));
        let snapshot_age_seconds = look.cluster.as_ref().map(|cluster| cluster.heard.elapsed().as_secs_f64());
        // Who does not reach the API server has told it.
        if causes == 0 && snapshot_age_seconds.is_some_and(|age| age > OLD_SECONDS) {
            let what = format!(
                "The snapshot of the cluster is more than {OLD_SECONDS} seconds old. The agent goes on with it; new endpoints and policies are not seen."
            );
            problems.push(problem(what, "Check that this node reaches the API server."));
        }
        // What is wrong with a policy is told once, with what follows from it: below.
        let judged =
            |object: &Option<Key>| object.as_ref().is_some_and(|key| look.verdicts.contains_key(key));
        let is_told = |invalid: &cluster::problem::Problem| {
            invalid.is_of_source() || *invalid.cause == Cause::Object && judged(&invalid.object)
        };
        let invalid = look.cluster.iter().flat_map(|cluster| &cluster.problems);
        let invalid = invalid.filter(|invalid| !is_told(invalid));
        problems.extend(invalid.map(|invalid| problem(invalid.to_string(), invalid.cause.action())));
        problems.extend(look.cluster.iter().flat_map(|cluster| &cluster.troubles).map(of_cluster));
        let pods = Self::pods(look, &mut problems);
        problems.extend(look.uses.iter().filter_map(|pod| over_budget(pod, look)));
        problems.extend(unenforced(look));
        problems.extend(open_unattended(look));
        let policies = Self::policies(look, &mut problems);
        let services = Self::services(look, &mut problems);
        problems.extend(look.cluster.iter().flat_map(|cluster| &cluster.jwks).filter_map(old_keys));
        problems.extend(without_effect(look));
        problems.extend(propagation(look));
        problems.extend(limit_store(look));
        problems.extend(access_log(look));
        let state_file_trouble =
            look.cluster.as_ref().and_then(|cluster| cluster.state_file_trouble.as_ref());
        problems.extend(state_file_trouble.map(|why| {
            problem(
                format!("The state file cannot be written: {why}. An agent that starts while the API server is away will manage nothing new, or nothing at all, before it is back."),
                "Make room where --state-file is, or name another place. The agent retries by itself.",
            )
        }));
        problems.extend(look.reclaim_trouble.as_ref().map(|why| {
            problem(
                format!("Idle connections that are older than their pod's enrolment cannot be ended (sluice.dev/reclaim): {why}."),
                "The agent's container needs hostPID, the capability SYS_PTRACE, and a seccomp profile that allows pidfd_getfd.",
            )
        }));
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: look.node.as_deref().map(str::to_owned),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            ready: look.missing.is_empty(),
            draining: look.draining,
            snapshot_age_seconds,
            snapshot_generation: look.cluster.as_ref().map_or(0, |cluster| cluster.generation),
            snapshot_restored: look.cluster.as_ref().is_some_and(|cluster| cluster.restored),
            pods,
            services,
            policies,
            route_rules: look.snapshot.route_rules().len(),
            problems,
        }
    }

    /// What keeps the agent from knowing the cluster: the cause of much else.
    fn source(look: &Look) -> Vec<Problem> {
        let Some(cluster) = &look.cluster else { return Vec::new() };
        let wrong = cluster.problems.iter().filter(|wrong| wrong.is_of_source());
        let action = Cause::action_of_source(&cluster.problems);
        let restored = cluster.restored.then(|| {
            let age = cluster.heard.elapsed().as_secs();
            let what = format!(
                "The API server has not told all that there is since the agent's start: the agent runs on the state file, which is {age} s old. Newer pods, endpoints and policies are not known."
            );
            problem(what, action)
        });
        restored.into_iter().chain(wrong.map(of_cluster)).collect()
    }

    fn pods(look: &Look, problems: &mut Vec<Problem>) -> Pods {
        let mut pods = Pods::default();
        for pod in &*look.pods {
            let name = format!("Pod {}/{}", pod.workload.namespace, pod.workload.name);
            match (&pod.pending, pod.own_proxy) {
                (_, Some(_)) => pods.other_mesh += 1,
                (None, None) => {
                    pods.enrolled += 1;
                    problems.extend(older(look, pod, &name));
                }
                (Some(why), None) => {
                    pods.pending += 1;
                    // Without a process nobody connects.
                    if !pod.empty {
                        let what =
                            format!("{name} is not enrolled, so its connections bypass the agent: {why}");
                        problems.push(problem(
                            what,
                            "The agent retries. If that does not help, restart the pod.",
                        ));
                    }
                }
            }
        }
        pods
    }

    fn policies(look: &Look, problems: &mut Vec<Problem>) -> Policies {
        let mut policies = Policies::default();
        for (key, judged) in &*look.verdicts {
            let (programmed, extent) = (&judged.verdict.programmed, judged.verdict.extent);
            let (count, so) = match extent {
                Extent::All => {
                    policies.active += 1;
                    continue;
                }
                Extent::Part => (&mut policies.partly_active, "is active in part only"),
                Extent::Closed => {
                    (&mut policies.inactive, "is not active, and its targets deny all requests")
                }
                Extent::Earlier => (&mut policies.earlier_version_active, "is active in an earlier version"),
                Extent::Nothing => (&mut policies.inactive, "is not active"),
            };
            *count += 1;
            let what = format!("{key} {so}: {}: {}", programmed.reason.as_str(), programmed.message);
            let action = if programmed.reason == Reason::NamespaceNotEnrolled {
                "Enroll the namespace, or delete the object."
            } else if programmed.reason == Reason::KeysOutdated {
                "Correct the ConfigMap or Secret, or the permission, as the message says: a change of the object is seen at once."
            } else if programmed.reason == Reason::KeysMissing {
                "Of a ConfigMap or a Secret: correct what the message names; changes are seen at once. Of a URI: check that the nodes reach the host, that its certificate is of a CA that the agents trust (--jwks-ca-file), and that --jwks-hosts of the agents names it. They retry by themselves."
            } else {
                "Correct the object. `sluice check FILE` checks a file offline; in a cluster `kubectl describe` shows the same conditions."
            };
            problems.push(problem(what, action));
        }
        policies
    }

    fn services(look: &Look, problems: &mut Vec<Problem>) -> Services {
        let (mut services, now) = (Services::default(), Nanos::now().0);
        let mut seen = BTreeSet::new();
        let mut all: Vec<_> =
            look.snapshot.destinations.values().map(|destination| &destination.service).collect();
        // A dual-stack Service is one of these a family: the first counts, but each has endpoints of its own.
        let is_ipv6 = |service: &Service| service.endpoints.first().map(|one| one.address.is_ipv6());
        all.sort_by_key(|service| {
            (service.namespace.clone(), service.name.clone(), service.port, is_ipv6(service))
        });
        all.dedup_by(|one, other| Arc::ptr_eq(one, other));
        for service in all {
            let config = service.governor.policy().outlier_detection.as_ref();
            for endpoint in service.endpoints.iter().filter(|one| outlier::is_ejected(config, one, now)) {
                let pod = endpoint.pod.as_deref().unwrap_or("-");
                let what = format!("Endpoint {} (pod {pod}) of {service} is ejected.", endpoint.address);
                problems.push(problem(what, "Look at that pod: it fails more often than the others."));
            }
            let in_flight = service.endpoints.iter().map(|one| u64::from(one.load.in_flight.load(Relaxed)));
            services.in_flight += in_flight.sum::<u64>();
            if !seen.insert((service.namespace.clone(), service.name.clone(), service.port)) {
                continue;
            }
            let usable = service.endpoints.iter().filter(|endpoint| endpoint.is_usable()).count();
            services.managed += 1;
            services.endpoints += service.endpoints.len();
            services.ready_endpoints += usable;
            if usable == 0 && !service.endpoints.is_empty() {
                problems.push(problem(
                    format!("Service {service} has no ready endpoint. New connections go direct and are refused, unless a fallback answers; requests over open ones get 503 no_endpoint."),
                    "Look at the pods behind it.",
                ));
            }
            for one in service.governor.all_breakers().flat_map(|(_, breakers)| breakers.all()) {
                if one.breaker.state(now) == State::Open {
                    let lane = one.lane.as_ref().map_or("the baseline", Tag::as_str);
                    let of = one.caller.map_or_else(String::new, |pod| format!(" for {pod}"));
                    let why = one
                        .breaker
                        .recent_transitions()
                        .last()
                        .map_or_else(String::new, |last| format!(": {}", last.why));
                    let what = format!("The circuit breaker of {service}, {lane}, is open{of}{why}.");
                    problems.push(problem(what, "Look at the service. Sluice probes it again by itself."));
                }
            }
        }
        services
    }
}

#[cfg(test)]
mod tests;
