//! AccessPolicies, and limits at the endpoint, that are not enforced at pods of this node, and why: whoever reads that a policy is active has to be told
//! where it is not.

use std::collections::{BTreeMap, BTreeSet};

use ahash::AHashSet;

use super::{
    Look,
    objects::{self, PodState},
};

/// A Service of this node's pods for which policies ask something at the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Pods that clients reach directly, by why that is so.
    pub unenforced: BTreeMap<Unenforced, BTreeSet<String>>,
}

impl Guarded {
    /// The pods at which an AccessPolicy is not enforced.
    pub fn without_access_policy(&self) -> BTreeSet<&str> {
        let access = self.unenforced.iter().filter(|(of, _)| of.what == What::AccessPolicy);
        access.flat_map(|(_, pods)| pods).map(String::as_str).collect()
    }
}

/// Why a policy is not enforced at a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unenforced {
    pub what: What,
    /// `shop/orders`
    pub policy: String,
    pub cause: Cause,
    /// A clause.
    pub why: String,
}

/// What is not enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    AccessPolicy,
    /// The limits with scope Endpoint of a TrafficPolicy.
    Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It can be at no pod of this node.
    Node,
    /// The pod is not enrolled.
    Pod,
    /// The pod is enrolled, and its connections from outside are not steered, or not yet.
    Steering,
    /// The pod has more connections than its part, so that new ones go past the agent. Told with who has them.
    Budget,
}

/// The namespace and name of a Service.
pub type ServiceName = (String, String);

/// All that pods of this node are endpoints of.
pub fn guarded(look: &Look) -> BTreeMap<ServiceName, Guarded> {
    let mut guarded: BTreeMap<ServiceName, Guarded> = BTreeMap::new();
    // Of an agent that drains the next one attends the pods.
    if look.draining || look.snapshot.inbound.is_empty() {
        return guarded;
    }
    let steered: AHashSet<_> =
        look.pods.iter().flat_map(|pod| pod.steered.addresses.iter().copied()).collect();
    let pods = objects::pods(look);
    let causes: BTreeMap<_, _> = pods
        .iter()
        .map(|line| {
            let reason = line.reason.as_deref().unwrap_or_default();
            let cause = match (line.state, &look.steering_trouble) {
                (PodState::Enrolled, Some(trouble)) => (Cause::Node, trouble.to_string()),
                (PodState::Enrolled, None) => {
                    (Cause::Steering, "its connections are not steered yet".to_owned())
                }
                _ => (Cause::Pod, format!("it is not enrolled: {reason}")),
            };
            ((&*line.pod.namespace, &*line.pod.name), cause)
        })
        .collect();
    let troubles: BTreeMap<_, _> = look
        .pods
        .iter()
        .filter_map(|pod| {
            Some(((&*pod.workload.namespace, &*pod.workload.name), pod.steered.trouble.as_deref()?))
        })
        .collect();
    let over_budget: AHashSet<_> = look
        .uses
        .iter()
        .filter(|pod| pod.direct.is_some())
        .map(|pod| (&*pod.namespace, &*pod.name))
        .collect();
    for (address, port) in look.snapshot.inbound.iter() {
        for service in &port.guards {
            let of = guarded.entry((service.namespace.to_string(), service.name.to_string())).or_default();
            let access = service.access.as_ref().map(|access| (What::AccessPolicy, access.name.clone()));
            let policy = service.governor.policy();
            let limits = policy.name.clone().filter(|_| policy.limits_endpoints());
            let limits = limits.map(|policy| (What::Limits, policy));
            let endpoint = service.endpoints.iter().find(|endpoint| endpoint.address == address);
            let Some(pod) =
                endpoint.filter(|endpoint| !endpoint.terminating).and_then(|it| it.pod.as_deref())
            else {
                continue;
            };
            let name = (&*service.namespace, pod);
            let passes_by = over_budget.contains(&name);
            if steered.contains(&address) && !passes_by {
                continue;
            }
            let (cause, why) = match (causes.get(&name), troubles.get(&name)) {
                (Some((Cause::Steering, _)), _) if passes_by => {
                    (Cause::Budget, "it has more connections than its part".to_owned())
                }
                (Some((Cause::Steering, _)), Some(trouble)) => (Cause::Steering, (*trouble).to_owned()),
                (Some((cause, why)), _) => (*cause, why.clone()),
                (None, _) => (Cause::Pod, "it is not known".to_owned()),
            };
            for (what, policy) in access.into_iter().chain(limits) {
                let why = Unenforced { what, policy: policy.to_string(), cause, why: why.clone() };
                of.unenforced.entry(why).or_default().insert(pod.to_owned());
            }
        }
    }
    guarded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_count_once_and_those_without_limits_do_not() {
        let why = |what, policy: &str| Unenforced {
            what,
            policy: policy.to_owned(),
            cause: Cause::Steering,
            why: String::new(),
        };
        let pods = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let guarded = Guarded {
            unenforced: BTreeMap::from([
                (why(What::AccessPolicy, "shop/a"), pods(&["a-1", "a-2"])),
                (why(What::AccessPolicy, "shop/b"), pods(&["a-2"])),
                (why(What::Limits, "shop/c"), pods(&["a-3"])),
            ]),
        };
        assert_eq!(guarded.without_access_policy(), BTreeSet::from(["a-1", "a-2"]));
    }
}
