//! What is read of a Pod: who it is, where its containers are in their lives, and what asks for it to be enrolled.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU32, sync::Arc, time::SystemTime};

use k8s_openapi::{
    api::core::v1 as core,
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};
use smallvec::SmallVec;

use super::{Check, MIRROR_ANNOTATION, common, no_address, pairs, ports, text, warm_gate};
use crate::{
    api,
    cluster::{
        intern::intern,
        mesh,
        object::{ForNode, Kind, Object, Pod},
        probes,
        problem::Problem,
        source::Sighting,
    },
    govern::tag::Tag,
};

/// On a Pod of recent clusters: its node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

pub fn pod(object: core::Pod) -> Result<Sighting, Problem> {
    let mut check = Check::begin(Kind::Pod, &object.metadata)?;
    let metadata = object.metadata;
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let (labels, annotations) = (metadata.labels.as_ref(), metadata.annotations.as_ref());
    let tag = labels.and_then(|labels| labels.get(api::TAG_LABEL)).and_then(|value| {
        value
            .parse::<Tag>()
            .map_err(|e| {
                check.note(
                    format!("metadata.labels[\"{}\"]", api::TAG_LABEL),
                    format!("{e}; the pod counts as baseline"),
                );
            })
            .ok()
    });
    let mut ips = SmallVec::new();
    let listed = status.pod_ips.iter().flatten().enumerate();
    let mut addresses: Vec<_> = listed.map(|(i, ip)| (format!("status.podIPs[{i}].ip"), &*ip.ip)).collect();
    if addresses.is_empty() {
        addresses.extend(status.pod_ip.as_deref().map(|ip| ("status.podIP".to_owned(), ip)));
    }
    for (field, address) in addresses.into_iter().filter(|(_, address)| !address.is_empty()) {
        match address.parse::<IpAddr>() {
            Ok(ip) if !ips.contains(&ip.to_canonical()) => ips.push(ip.to_canonical()),
            Ok(_) => {}
            Err(_) => check.note(field, no_address(address)),
        }
    }
    ips.shrink_to_fit();
    let uid = text(metadata.uid.as_deref());
    if uid.is_none() {
        check.note("metadata.uid", "not set: the pod cannot be found on a node, so it is not enrolled");
    }
    let for_node = ForNode {
        cgroup_uid: annotations
            .and_then(|annotations| text(annotations.get(MIRROR_ANNOTATION).map(|s| &**s)))
            .or_else(|| uid.clone()),
        ports: ports::declared(&spec),
        probes: probes::probes(&spec),
        own_proxy: mesh::own_proxy(&spec, labels, annotations),
    };
    let pod = Pod {
        name: check.key.name.clone(),
        uid,
        ips,
        tag,
        labels: pairs(labels),
        workload: workload(metadata.owner_references.as_deref().unwrap_or_default(), labels),
        capture: check.capture(annotations),
        propagation: check.propagation(annotations),
        node: common(spec.node_name.as_deref()),
        zone: labels.and_then(|labels| common(labels.get(ZONE_LABEL).map(|s| &**s))),
        host_network: spec.host_network.unwrap_or(false),
        ready_since: ready_since(status.conditions.as_deref().unwrap_or_default()),
        warm_gate: warm_gate::of(&spec, &status).map(Box::new),
        started: started(status.container_statuses.as_deref().unwrap_or_default()),
        first_request: first_request(status.conditions.as_deref().unwrap_or_default()),
        // What the API server writes where nobody says another.
        service_account: common(spec.service_account_name.as_deref()).unwrap_or_else(|| intern("default")),
        terminating: metadata.deletion_timestamp.is_some(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        for_node: Some(Box::new(for_node)),
    };
    Ok(check.end(Object::Pod(Arc::new(pod))))
}

/// The labels by which the ReplicaSets of a Deployment, and of Argo's Rollout, tell their pods: what they append to its name.
const TEMPLATE_HASHES: [&str; 2] = ["pod-template-hash", "rollouts-pod-template-hash"];

/// The workload that a pod is a part of. Its controller is named by the pod; what is behind that can be told by its name: a
/// ReplicaSet's is that of its Deployment and the hash of its template, a CronJob's Job's is that of the CronJob and the time
/// in minutes. <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#pod-template-hash-label>
fn workload(owners: &[OwnerReference], labels: Option<&BTreeMap<String, String>>) -> Option<Arc<str>> {
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    let name = owner.name.as_str();
    let shorter = match &*owner.kind {
        "ReplicaSet" => TEMPLATE_HASHES
            .iter()
            .find_map(|label| name.strip_suffix(labels?.get(*label)?.as_str())?.strip_suffix('-')),
        "Job" => name.rsplit_once('-').and_then(|(cron_job, time)| {
            let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
            is_time.then_some(cron_job)
        }),
        _ => None,
    };
    common(Some(shorter.filter(|name| !name.is_empty()).unwrap_or(name)))
}

fn ready_since(conditions: &[core::PodCondition]) -> Option<SystemTime> {
    let ready =
        conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref()?.0.into())
}

fn started(containers: &[core::ContainerStatus]) -> Option<NonZeroU32> {
    let running = containers.iter().filter_map(|container| container.state.as_ref()?.running.as_ref());
    running.filter_map(|running| seconds(running.started_at.as_ref()?)).max()
}

fn first_request(conditions: &[core::PodCondition]) -> Option<NonZeroU32> {
    let ours = |condition: &&core::PodCondition| {
        condition.type_ == api::FIRST_REQUEST_CONDITION && condition.status == "True"
    };
    seconds(conditions.iter().find(ours)?.last_transition_time.as_ref()?)
}

/// In whole seconds, as the API tells all times.
fn seconds(time: &Time) -> Option<NonZeroU32> {
    let since = SystemTime::from(time.0).duration_since(SystemTime::UNIX_EPOCH).ok()?;
    NonZeroU32::new(u32::try_from(since.as_secs()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_a_part_of_what_owns_its_owner() {
        let owned = |kind: &str, name: &str, labels: &[(&str, &str)], controller| {
            let owner = OwnerReference {
                kind: kind.to_owned(),
                name: name.to_owned(),
                controller,
                ..OwnerReference::default()
            };
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            workload(&[OwnerReference::default(), owner], Some(&labels))
        };
        let hash = ("pod-template-hash", "7d9f8b6c5");
        for (kind, name, labels, wanted) in [
            ("ReplicaSet", "orders-7d9f8b6c5", &[hash][..], "orders"),
            ("ReplicaSet", "orders-v2-7d9f8b6c5", &[hash], "orders-v2"),
            ("ReplicaSet", "orders-7d9f8b6c5", &[("rollouts-pod-template-hash", "7d9f8b6c5")], "orders"),
            // One that nobody made of a template.
            ("ReplicaSet", "orders-7d9f8b6c5", &[], "orders-7d9f8b6c5"),
            ("ReplicaSet", "7d9f8b6c5", &[hash], "7d9f8b6c5"),
            ("ReplicaSet", "-7d9f8b6c5", &[hash], "-7d9f8b6c5"),
            ("StatefulSet", "mysql", &[], "mysql"),
            ("DaemonSet", "agent", &[], "agent"),
            ("Job", "report-28391820", &[], "report"),
            ("Job", "migrate-2", &[], "migrate-2"),
            ("Job", "import", &[], "import"),
            ("Job", "move-invoices", &[], "move-invoices"),
            ("CloneSet", "orders", &[hash], "orders"),
        ] {
            assert_eq!(owned(kind, name, labels, Some(true)).as_deref(), Some(wanted), "{kind} {name}");
            assert_eq!(owned(kind, name, labels, None), None, "whoever owns it does not control it");
        }
        assert_eq!(workload(&[], None), None);
    }
}
