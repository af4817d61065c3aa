//! How things stand on this node, on one screen: and what is wrong, with what to do about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    admin::view::{
        Look, Older, unattended,
        unenforced::{self, Cause as Unguarded, What},
    },
    capture::PodStatus,
    clock::Nanos,
    cluster::{
        self,
        model::Service,
        object::Key,
        verdict::{Extent, Reason},
    },
    govern::{breaker::State, outlier, tag::Tag},
    lease::{self, Counted},
    proxy::{Cause, PodUse},
};

/// The snapshot is told to be old when nothing was heard for longer. API servers send a bookmark a minute, or every two, on
/// a watch without changes, and one that is silent for two and a half is opened again.
const OLD_SECONDS: f64 = 180.0;
/// So many Services or Pods are named at most of which the same is so.
const NAMED: usize = 3;

/// How things stand.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    pub node: Option<String>,
    /// The release of the kernel.
    pub kernel: String,
    /// It routes: its programs are attached and its snapshot is complete.
    pub ready: bool,
    /// Seconds since the snapshot was last known to be current; absent while there is none.
    pub snapshot_age_seconds: Option<f64>,
    pub snapshot_generation: u64,
    /// The snapshot is that of the state file: the API server has not answered since the start.
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

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    pub message: String,
    /// What to do about it.
    pub action: String,
}

fn problem(message: impl Into<String>, action: impl Into<String>) -> Problem {
    Problem { message: message.into(), action: action.into() }
}

/// Neither an object's nor a file's: the source's own.
fn is_of_source(problem: &cluster::problem::Problem) -> bool {
    problem.object.is_none() && problem.file.is_none()
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The first of them, and how many more there are.
fn listed(names: &BTreeSet<String>) -> String {
    let first: Vec<_> = names.iter().take(NAMED).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Connections of a pod that are older than its enrolment, or than what is asked for at its ports.
fn older(look: &Look, pod: &PodStatus, name: &str) -> Vec<Problem> {
    let so = |count: usize| if count == 1 { "connection that is" } else { "connections that are" };
    let mut ports: BTreeMap<u16, usize> = BTreeMap::new();
    for address in &*pod.steered.older {
        *ports.entry(address.port()).or_default() += 1;
    }
    let inbound = ports.into_iter().map(|(port, count)| {
        let them = if count == 1 { "it" } else { "them" };
        problem(
            format!("{name} has {count} {} older than what policies ask for at its port {port}: AccessPolicies, limits with scope: Endpoint and sluice.dev/propagation: trace do not apply to {them}.", so(count)),
            "Restart the pod or its clients, or wait until they reconnect.",
        )
    });
    let outbound = look.older(pod).into_iter().map(|Older { service, connections, reclaimed }| {
        let action = if reclaimed {
            "The agent ends them when they are idle (sluice.dev/reclaim). Restart the pod if you cannot wait for it."
        } else {
            "Restart the pod, or wait until it reconnects, or annotate the Service with sluice.dev/reclaim: enabled if it speaks HTTP/1."
        };
        problem(
            format!("{name} has {connections} {} older than its enrolment, to {service}: what it sends there bypasses the agent.", so(connections)),
            action,
        )
    });
    inbound.chain(outbound).collect()
}

/// What policies ask for at the endpoint, and clients reach pods of this node without.
fn unenforced(look: &Look) -> Vec<Problem> {
    let guarded = unenforced::guarded(look);
    let of = |((namespace, service), guarded): (_, unenforced::Guarded)| {
        guarded.unenforced.into_iter().filter_map(move |(unenforced, pods)| {
            let action = match unenforced.cause {
                // Said by `over_budget`, with the client.
                Unguarded::Budget => return None,
                Unguarded::Node => {
                    "Use a newer kernel, or add the capability NET_ADMIN to the agent's container if Linux is older than 6.9. NetworkPolicies hold all the same."
                }
                Unguarded::Pod => "Have the pod enrolled. NetworkPolicies hold all the same.",
                Unguarded::Steering => "The agent retries. If that does not help, restart the pod.",
            };
            let pods = pods.into_iter().map(|pod| format!("{namespace}/{pod}")).collect();
            let asked = match unenforced.what {
                What::AccessPolicy => "AccessPolicy",
                What::Limits => "The limits with scope Endpoint of TrafficPolicy",
            };
            let are = if unenforced.what == What::Limits { "are" } else { "is" };
            let what = format!(
                "{asked} {} {are} not enforced for Service {namespace}/{service} at Pod {}, which clients reach directly: {}.",
                unenforced.policy, listed(&pods), unenforced.why.trim_end_matches('.')
            );
            Some(problem(what, action))
        }).collect::<Vec<_>>()
    };
    guarded.into_iter().flat_map(of).collect()
}

/// The store of limits of the whole cluster, if it does not answer and is needed.
fn limit_store(look: &Look) -> Option<Problem> {
    let lease::Status { store, trouble, limits, answers, refused, .. } = &look.leases;
    let store = store.as_ref().filter(|_| !limits.is_empty())?;
    let Some((why, since)) = trouble else {
        let (limit, why) = refused.iter().next()?;
        let names = refused.keys().map(ToString::to_string).collect();
        return Some(problem(
            format!(
                "The store of rate limits with scope Cluster, {store}, answers with an error about {}: the agent goes on with its last share there. About {limit} it says: {}.",
                listed(&names),
                why.trim_end_matches('.')
            ),
            "Look at the key sluice:limit:{LIMIT} in the store, with the name of the limit, and at what its user may do. Nobody else may write there: delete the key if it is not a hash.",
        ));
    };
    let alone: BTreeSet<_> =
        limits.iter().filter(|(_, by)| **by == Counted::Node).map(|(name, _)| name.to_string()).collect();
    let but = if alone.is_empty() {
        String::new()
    } else {
        format!(" It has none of {}, which it counts by itself, as with scope Node.", listed(&alone))
    };
    let what = format!(
        "The store of rate limits with scope Cluster, {store}, {} for {} s: {}. The agent goes on with its last share of them{}.{but}",
        if *answers { "has failed now and then" } else { "has not answered as it should" },
        since.elapsed().as_secs(),
        why.trim_end_matches('.'),
        if *answers { " meanwhile" } else { "" }
    );
    Some(problem(
        what,
        "Check the store, this node's way to it, and the password. The agent tries again by itself.",
    ))
}

/// Pods that policies want closed while no agent is there, and that are not.
fn open_unattended(look: &Look) -> Vec<Problem> {
    let of = |((namespace, service), closing): (_, unattended::Closing)| {
        closing.missing.into_iter().map(move |(missing, pods)| {
            let pods = pods.into_iter().map(|pod| format!("{namespace}/{pod}")).collect();
            let what = format!(
                "whenUnattended: Refuse of AccessPolicy {} is not active for Service {namespace}/{service} at Pod {}, which clients reach directly while no agent is there: {}.",
                missing.policy, listed(&pods), missing.why.trim_end_matches('.')
            );
            problem(what, "Mount a BPF file system where --bpf-file-system is, and give it to the agent's container. The agent retries. While the agent runs, the policy is enforced as ever.")
        }).collect::<Vec<_>>()
    };
    unattended::closing(look).into_iter().flat_map(of).collect()
}

/// Pods that lose tags, and those that ask for what is read of them in vain.
fn propagation(look: &Look) -> Vec<Problem> {
    let losing = look.tags.iter().filter(|tags| tags.is_losing).map(|tags| {
        let by: Vec<_> = tags.carriers.iter().map(|source| source.as_str()).collect();
        let others = if by.is_empty() {
            "No other request of it had one.".to_owned()
        } else {
            format!("Others of its requests had theirs by {}.", by.join(", "))
        };
        problem(
            format!(
                "Pod {}/{} loses tags: it sent {} requests without one while all that it was answering had one, some of them in the last five minutes. {others}",
                tags.namespace, tags.name, tags.lost
            ),
            "Have the application pass on the tag header, or the headers of its tracer. Requests that it sends on its own account are counted, too, if they happen to be sent meanwhile.",
        )
    });
    let unread = look.pods.iter().filter_map(|pod| {
        let why = look.unread(pod)?.trim_end_matches('.');
        let what = format!(
            "The annotation sluice.dev/propagation: trace has no effect on Pod {}/{}: {why}.",
            pod.workload.namespace, pod.workload.name
        );
        let action = if look.steering_trouble.is_some() {
            "Use a newer kernel, or add the capability NET_ADMIN to the agent's container if Linux is older than 6.9. Tags in headers are passed on all the same."
        } else {
            "The agent retries. If that does not help, restart the pod. Tags in headers are passed on all the same."
        };
        Some(problem(what, action))
    });
    losing.chain(unread).collect()
}

/// Services that ask for an access log which this agent does not write.
fn without_effect(look: &Look) -> Option<Problem> {
    if !look.without_access_log {
        return None;
    }
    let asks = |service: &&Arc<Service>| service.access_log.is_some_and(|ratio| ratio.get() > 0.0);
    let services = look.snapshot.destinations.values().map(|destination| &destination.service).filter(asks);
    let names: BTreeSet<_> =
        services.map(|service| format!("{}/{}", service.namespace, service.name)).collect();
    (!names.is_empty()).then(|| {
        problem(
            format!(
                "The annotation sluice.dev/access-log has no effect on {}: this agent writes no access log.",
                listed(&names)
            ),
            "Start the agents with --access-log=json or --access-log=text, or remove the annotation of the Service or its Namespace.",
        )
    })
}

/// A pod whose new connections bypass the agent, because it uses more than its part of it.
fn over_budget(pod: &PodUse, look: &Look) -> Option<Problem> {
    let (cause, uses) = (pod.direct?, &look.uses);
    // Connections from outside are their client's affair.
    if let Some((client, count)) = pod.client.filter(|(_, count)| *count > pod.connections / 2) {
        let known = look.snapshot.clients.find(client);
        let known = known.map_or_else(String::new, |pod| format!(" (Pod {}/{})", pod.namespace, pod.pod));
        return Some(problem(
            format!(
                "Client {client}{known} has {count} connections open to Pod {}/{}, which has {} in all. New connections to the pod bypass the agent, and no policy is enforced on them.",
                pod.namespace, pod.name, pod.connections
            ),
            "Look for a connection leak in the client. If it needs that many, raise --connections-per-pod.",
        ));
    }
    let all: usize = uses.iter().map(|pod| pod.connections).sum();
    // What is short may be short because of another.
    let most = uses
        .iter()
        .max_by_key(|other| other.connections)
        .filter(|most| cause == Cause::Descriptors && most.connections > pod.connections.saturating_mul(2));
    if let Some(most) = most {
        return Some(problem(
            format!(
                "The agent has too few file descriptors: Pod {}/{} has {} of {all} connections open through it. New connections of Pod {}/{}, which has {}, bypass the agent.",
                most.namespace, most.name, most.connections, pod.namespace, pod.name, pod.connections
            ),
            format!(
                "Look for a connection leak in Pod {}/{}. If it needs that many, raise the limit of open files of the agent's container.",
                most.namespace, most.name
            ),
        ));
    }
    let so = match cause {
        Cause::Connections => "which is as many as --connections-per-pod allows".to_owned(),
        Cause::Descriptors => format!("{all} of all pods leave no file descriptors of the agent for more"),
        Cause::Memory => format!(
            "and {} MiB wait for its slow peers, which is its part of the agent's memory",
            pod.bytes.div_ceil(1 << 20)
        ),
    };
    let action = match cause {
        Cause::Connections => {
            "Look for a connection leak in the pod. If it needs that many, raise --connections-per-pod."
        }
        Cause::Descriptors => {
            "Look for a connection leak in the pod. If it needs that many, raise the limit of open files of the agent's container."
        }
        Cause::Memory => {
            "Look at what the pod, or the endpoints that it calls, read too slowly. If it needs that much, raise the memory limit of the agent's container."
        }
    };
    Some(problem(
        format!(
            "Pod {}/{} has {} connections open through the agent, {so}. Its new connections bypass the agent.",
            pod.namespace, pod.name, pod.connections
        ),
        action,
    ))
}

/// Keys that cannot be fetched any more. Of those that never were their policies tell.
fn old_keys(state: &cluster::jwks::State) -> Option<Problem> {
    let why = state.trouble.as_ref().filter(|_| state.keys > 0)?;
    // Of objects the policy tells that, too.
    let cluster::jwks::Origin::Uri(uri) = &state.origin else { return None };
    let ago = match state.age.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds => format!("{} minutes", seconds / 60),
    };
    Some(problem(
        format!(
            "The keys of tokens cannot be fetched from {uri}: {why}. Those of {ago} ago stay in use: tokens with newer keys are not accepted, and keys that were withdrawn since are."
        ),
        "Check that this node reaches the host, and what it answers. The agent retries by itself.",
    ))
}

impl Status {
    pub(super) fn of(look: &Look) -> Self {
        let mut problems = Self::source(look);
        let causes = problems.len();
        let missing = look.missing.iter().filter(|missing| !missing.elsewhere);
        problems.extend(missing.map(|missing| {
            problem(
                format!("The agent is not ready: {}.", missing.message.trim_end_matches('.')),
                missing.action,
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
        let invalid = look.cluster.iter().flat_map(|cluster| &cluster.problems);
        let invalid = invalid.filter(|invalid| !is_of_source(invalid) && !judged(&invalid.object));
        problems.extend(invalid.map(|invalid| {
            let action = if invalid.object.is_some() { "Correct the object." } else { "Correct the file." };
            problem(invalid.to_string(), action)
        }));
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
        problems.extend(look.access_log_trouble.as_ref().map(|why| {
            problem(
                format!("The access log cannot be written, and its lines are lost: {why}."),
                "Make room where --access-log-file is, or give the agent another file. It goes on by itself.",
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
        let said = |wrong: &cluster::problem::Problem| {
            format!("{}.", capitalised(wrong.to_string().trim_end_matches('.')))
        };
        let action = "The agent retries by itself. Check the API server, this node's way to it, and the agent's permissions.";
        let wrong = cluster.problems.iter().filter(|wrong| is_of_source(wrong));
        let restored = cluster.restored.then(|| {
            let age = cluster.heard.elapsed().as_secs();
            let what = format!(
                "The API server has not answered since the agent's start: it runs on the state file, which is {age} s old. Newer pods, endpoints and policies are not known."
            );
            problem(what, action)
        });
        restored.into_iter().chain(wrong.map(|wrong| problem(said(wrong), action))).collect()
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
                "Correct the object. `kubectl describe` shows the same conditions; `sluice check FILE` checks a file offline."
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
