//! How things stand on this node, on one screen: and what is wrong, with what to do about it.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    admin::view::Look,
    clock::Nanos,
    cluster::{model::Service, object::Key, verdict::Extent},
    govern::{breaker::State, governor::Breakers, outlier, tag::Tag},
};

/// The picture of the cluster is told to be old when nothing was heard for longer.
const OLD_SECONDS: f64 = 60.0;

/// How things stand.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    pub node: Option<String>,
    /// The release of the kernel.
    pub kernel: String,
    /// It governs.
    pub ready: bool,
    /// Seconds since it was last known that the state is the cluster's; absent while there is none.
    pub state_age_seconds: Option<f64>,
    pub state_generation: u64,
    pub pods: Pods,
    pub services: Services,
    pub policies: Policies,
    /// What is wrong, the worst first.
    pub troubles: Vec<Trouble>,
}

/// Pods of this node that are to be captured.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Pods {
    pub enrolled: usize,
    pub pending: usize,
    /// Left alone, because a mesh's proxy takes their connections already.
    pub own_proxy: usize,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Services {
    /// Governed service ports.
    pub governed: usize,
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

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trouble {
    pub what: String,
    pub to_do: String,
}

fn trouble(what: impl Into<String>, to_do: &str) -> Trouble {
    Trouble { what: what.into(), to_do: to_do.to_owned() }
}

impl Status {
    pub(super) fn of(look: &Look) -> Self {
        let mut troubles: Vec<_> = (look.missing.iter())
            .map(|why| {
                trouble(
                    format!("it does not govern: {why}"),
                    "wait if it has just started; else look into its log",
                )
            })
            .collect();
        let state_age_seconds = look.cluster.as_ref().map(|cluster| cluster.heard.elapsed().as_secs_f64());
        if let Some(age) = state_age_seconds.filter(|age| *age > OLD_SECONDS) {
            let what = format!("the cluster's state is {age:.0} seconds old; the last one stays in force");
            troubles.push(trouble(
                what,
                "can this node reach the API server? The log says since when it is away",
            ));
        }
        // What is wrong with a policy is told once, with what follows from it: below.
        let judged =
            |object: &Option<Key>| object.as_ref().is_some_and(|key| look.verdicts.contains_key(key));
        let problems = look.cluster.iter().flat_map(|cluster| &cluster.problems);
        let problems = problems.filter(|problem| !judged(&problem.object));
        troubles.extend(problems.map(|problem| trouble(problem.to_string(), "correct the object")));
        let pods = Self::pods(look, &mut troubles);
        let policies = Self::policies(look, &mut troubles);
        let services = Self::services(look, &mut troubles);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: look.node.as_deref().map(str::to_owned),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            ready: look.missing.is_empty(),
            state_age_seconds,
            state_generation: look.cluster.as_ref().map_or(0, |cluster| cluster.generation),
            pods,
            services,
            policies,
            troubles,
        }
    }

    fn pods(look: &Look, troubles: &mut Vec<Trouble>) -> Pods {
        let mut pods = Pods::default();
        for pod in &*look.pods {
            let name = format!("pod {}/{}", pod.workload.namespace, pod.workload.name);
            match (&pod.pending, pod.own_proxy) {
                (_, Some(_)) => pods.own_proxy += 1,
                (None, None) => pods.enrolled += 1,
                (Some(why), None) => {
                    pods.pending += 1;
                    // Without a process nobody connects.
                    if !pod.empty {
                        let what = format!("{name} is not enrolled, its connections go direct: {why}");
                        troubles
                            .push(trouble(what, "it is tried again; if that does not help, restart the pod"));
                    }
                }
            }
        }
        pods
    }

    fn policies(look: &Look, troubles: &mut Vec<Trouble>) -> Policies {
        let mut policies = Policies::default();
        for (key, judged) in &*look.verdicts {
            let (programmed, extent) = (&judged.verdict.programmed, judged.verdict.extent);
            let (count, so) = match extent {
                Extent::All => {
                    policies.active += 1;
                    continue;
                }
                Extent::Part => (&mut policies.partly_active, "is active only in part"),
                Extent::Earlier => (&mut policies.earlier_version_active, "is active in an earlier version"),
                Extent::Nothing => (&mut policies.inactive, "is not active"),
            };
            *count += 1;
            let what = format!("{key} {so}: {}: {}", programmed.reason.as_str(), programmed.message);
            troubles.push(trouble(
                what,
                "correct the object; its status says the same (kubectl describe), and sluice check FILE offline",
            ));
        }
        policies
    }

    fn services(look: &Look, troubles: &mut Vec<Trouble>) -> Services {
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
                let what = format!("{} (pod {pod}) of {service} is ejected", endpoint.address);
                troubles.push(trouble(what, "look at that pod: it fails more than the others"));
            }
            let in_flight = service.endpoints.iter().map(|one| u64::from(one.load.in_flight.load(Relaxed)));
            services.in_flight += in_flight.sum::<u64>();
            if !seen.insert((service.namespace.clone(), service.name.clone(), service.port)) {
                continue;
            }
            let usable = service.endpoints.iter().filter(|endpoint| endpoint.is_usable()).count();
            services.governed += 1;
            services.endpoints += service.endpoints.len();
            services.ready_endpoints += usable;
            if usable == 0 && !service.endpoints.is_empty() {
                troubles.push(trouble(
                    format!("{service} has no ready endpoint"),
                    "look at its pods: requests get 503 no_endpoint",
                ));
            }
            for (lane, breaker) in service.governor.breakers().into_iter().flat_map(Breakers::all) {
                if breaker.state(now) == State::Open {
                    let lane = lane.as_ref().map_or("the baseline", Tag::as_str);
                    let why = breaker
                        .recent_transitions()
                        .last()
                        .map_or_else(String::new, |last| format!(": {}", last.why));
                    let what = format!("the circuit breaker of {service}, {lane}, is open{why}");
                    troubles.push(trouble(what, "look at the service; it is asked again by itself"));
                }
            }
        }
        services
    }
}

#[cfg(test)]
mod tests;
