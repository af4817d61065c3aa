//! What is wrong, in words: each problem with what it means for whom, and what to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    admin::view::{
        Look, Missing, Older, unattended,
        unenforced::{self, Cause as Unguarded, What},
    },
    capture::{Handling, PodStatus},
    cluster::{self, model::Service},
    lease::{self, Away, Counted, Refused},
    proxy::{Cause, PodUse},
};

/// So many Services or Pods are named at most of which the same is so.
const NAMED: usize = 3;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    pub message: String,
    /// What to do about it.
    pub action: String,
}

pub(super) fn problem(message: impl Into<String>, action: impl Into<String>) -> Problem {
    Problem { message: message.into(), action: action.into() }
}

/// What is wrong with what the API server says or allows, as a sentence.
pub(super) fn of_cluster(wrong: &cluster::problem::Problem) -> Problem {
    let what = format!("{}.", capitalised(wrong.to_string().trim_end_matches('.')));
    problem(what, wrong.cause.action())
}

pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The first of them, and how many more there are.
pub(super) fn listed(names: &BTreeSet<String>) -> String {
    let first: Vec<_> = names.iter().take(NAMED).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Connections of a pod that are older than its enrolment, or than what is asked for at its ports.
pub(super) fn older(look: &Look, pod: &PodStatus, name: &str) -> Vec<Problem> {
    let so = |count: usize| if count == 1 { "connection that is" } else { "connections that are" };
    let mut ports: BTreeMap<u16, usize> = BTreeMap::new();
    for address in &*pod.steered.older {
        *ports.entry(address.port()).or_default() += 1;
    }
    let inbound = ports.into_iter().map(|(port, count)| {
        let them = if count == 1 { "it" } else { "them" };
        problem(
            format!("{name} has {count} {} older than what policies ask for at its port {port}: AccessPolicies, limits with scope: Endpoint and sluice.dev/propagation do not apply to {them}.", so(count)),
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
pub(super) fn unenforced(look: &Look) -> Vec<Problem> {
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
pub(super) fn limit_store(look: &Look) -> Option<Problem> {
    let lease::Status { store, trouble, limits, answers, refused, .. } = &look.leases;
    let store = store.as_ref().filter(|_| !limits.is_empty())?;
    let Some(Away { failure, why, since }) = trouble else {
        let (limit, Refused { failure, why, is_leased }) = refused.iter().next()?;
        let alike = refused.iter().filter(|(_, other)| other.failure == *failure);
        let names = alike.map(|(name, _)| name.to_string()).collect();
        let follows = if *is_leased {
            "agents lease it by way of a second key, sluice:limit:{LIMIT}:instead"
        } else if limits.get(limit) == Some(&Counted::Node) {
            "the agent counts by itself there, as with scope Node"
        } else {
            "the agent goes on with its last share there, or with an even one"
        };
        return Some(problem(
            format!(
                "The store of rate limits with scope Cluster, {store}, answers with an error about {}: {follows}. The error about {limit}: {}.",
                listed(&names),
                why.trim_end_matches('.')
            ),
            failure.advice(),
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
    Some(problem(what, failure.advice()))
}

/// Pods that policies want closed while no agent is there, and that are not.
pub(super) fn open_unattended(look: &Look) -> Vec<Problem> {
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
pub(super) fn propagation(look: &Look) -> Vec<Problem> {
    let losing = look.tags.iter().filter(|tags| tags.is_losing).map(|tags| {
        let by: Vec<_> = tags.carriers.iter().map(|source| source.as_str()).collect();
        let others = if by.is_empty() {
            "No other request of it had one.".to_owned()
        } else {
            format!("Others of its requests had theirs by {}.", by.join(", "))
        };
        let on_trial = on_trial(look, &tags.namespace, &tags.name);
        problem(
            format!(
                "Pod {}/{} loses tags: it sent {} requests without one while all that it was answering had one, some of them in the last five minutes. {others}{on_trial}",
                tags.namespace, tags.name, tags.lost
            ),
            "Have the application pass on the tag header, or the headers of its tracer. Requests that it sends on its own account are counted, too, if they happen to be sent meanwhile.",
        )
    });
    let unread = look.pods.iter().filter_map(|pod| {
        let why = look.unread(pod)?.trim_end_matches('.');
        let what = format!(
            "The annotation sluice.dev/propagation: {} has no effect on Pod {}/{}: {why}.",
            pod.workload.propagation.as_str(),
            pod.workload.namespace,
            pod.workload.name
        );
        let action = if look.steering_trouble.is_some() {
            "Use a newer kernel, or add the capability NET_ADMIN to the agent's container if Linux is older than 6.9. Tags in headers are passed on all the same."
        } else {
            "The agent retries. If that does not help, restart the pod. Tags in headers are passed on all the same."
        };
        Some(problem(what, action))
    });
    losing.chain(unread).chain(threads(look)).collect()
}

/// How far the trials of a pod's servers are whose threads are followed, as a sentence with a blank before it.
fn on_trial(look: &Look, namespace: &str, name: &str) -> String {
    let is = |pod: &&PodStatus| (&*pod.workload.namespace, &*pod.workload.name) == (namespace, name);
    let followed = look.pods.iter().find(is).into_iter().flat_map(|pod| &*pod.steered.followed);
    let trials = followed.filter(|one| matches!(one.handling, Handling::OnTrial { .. }));
    let told: Vec<_> =
        trials.map(|one| format!(" Port {}: {}.", one.port, one.handling)).take(NAMED).collect();
    told.concat()
}

/// Pods that ask for their threads to be followed, of which nothing is known by them.
fn threads(look: &Look) -> impl Iterator<Item = Problem> {
    const ASK: &str = "What else carries tags does so all the same. Have the application pass on the tag header or the headers of its tracer, and take the annotation away, or set it to trace.";
    let faulty = look.pods.iter().flat_map(|pod| {
        let (namespace, name) = (&pod.workload.namespace, &pod.workload.name);
        // Of several processes of a port the first tells of them all.
        let faulty = pod.steered.followed.iter().filter(|server| server.handling.is_faulty());
        let by_port: BTreeMap<_, _> = faulty.rev().map(|server| (server.port, server)).collect();
        by_port.into_values().map(move |server| {
            let what = format!(
                "The annotation sluice.dev/propagation: thread has no effect on requests to port {} of Pod {namespace}/{name}: {}.",
                server.port, server.handling
            );
            problem(what, ASK)
        })
    });
    let asks = |pod: &&PodStatus| pod.workload.follows_threads();
    let nowhere = look.threads_trouble.as_ref().filter(|_| look.pods.iter().any(|pod| asks(&pod))).map(|why| {
        let pods = look.pods.iter().filter(asks).count();
        let what = format!(
            "The annotation sluice.dev/propagation: thread is as trace on this node, for {pods} pods: {}.",
            why.trim_end_matches('.')
        );
        problem(what, "Use a kernel from 6.15 on, or one that lets programs be attached to its functions (fentry). Tags in headers and traces are passed on all the same.")
    });
    let is_asked = |one: &&PodUse| {
        let is =
            |pod: &PodStatus| (&pod.workload.namespace, &pod.workload.name) == (&one.namespace, &one.name);
        one.pipelines && look.pods.iter().any(|pod| is(pod) && pod.workload.follows_threads())
    };
    let pipelining = look.uses.iter().filter(is_asked).map(|PodUse { namespace, name, .. }| {
        problem(
            format!(
                "The annotation sluice.dev/propagation: thread has no effect on Pod {namespace}/{name}: a client in it sends requests over a connection before the one before them has its response (pipelining)."
            ),
            ASK,
        )
    });
    nowhere.into_iter().chain(faulty).chain(pipelining)
}

/// Why an agent that drains is not ready.
pub(super) fn draining(missing: &Missing) -> Problem {
    problem(format!("{}.", capitalised(missing.message.trim_end_matches('.'))), missing.action.clone())
}

/// The access log, if its lines are lost.
pub(super) fn access_log(look: &Look) -> Option<Problem> {
    look.access_log_trouble.as_ref().map(|why| {
        problem(
            format!("The access log cannot be written, and its lines are lost: {why}."),
            "Make room where --access-log-file is, or give the agent another file. It goes on by itself.",
        )
    })
}

/// Services that ask for an access log which this agent does not write.
pub(super) fn without_effect(look: &Look) -> Option<Problem> {
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

/// A pod whose new connections bypass the agent, because it uses more than its part of it. That they do so for a moment longer,
/// when it no longer does, is nothing to look at.
pub(super) fn over_budget(pod: &PodUse, look: &Look) -> Option<Problem> {
    let (cause, uses) = (pod.over?, &look.uses);
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
pub(super) fn old_keys(state: &cluster::jwks::State) -> Option<Problem> {
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
