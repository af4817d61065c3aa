//! Which TrafficPolicy governs which service port.
//!
//! A policy that targets the port itself goes before those that target its whole Service; of several that target the
//! same, the oldest has it, whatever the others say: policies are not merged.

use std::{collections::BTreeSet, sync::Arc};

use ahash::AHashMap;
use smallvec::SmallVec;

use super::kept::Kept;
use crate::{
    cluster::{
        object::{Age, Attached, Frontend, Name, Service, TrafficPolicy},
        verdict::{Reason, Shortfall, Verdict},
    },
    govern::policy::{Policy, Target},
};

#[derive(Default)]
pub(super) struct Policies {
    all: AHashMap<Name, Kept<Attached>>,
    /// By the Service that they target.
    of: AHashMap<Name, BTreeSet<Age>>,
}

/// Services and policies that a change concerns.
#[derive(Default)]
pub(super) struct Concerned {
    pub(super) services: SmallVec<[Name; 2]>,
    pub(super) policies: SmallVec<[Name; 2]>,
}

impl Policies {
    /// Puts a policy in, or takes it out.
    pub(super) fn set(&mut self, name: &Name, policy: Option<TrafficPolicy>) -> Concerned {
        let mut concerned = Concerned::default();
        if self.all.get(name).map(|kept| &kept.object) == policy.as_ref() {
            return concerned;
        }
        let before = self.all.remove(name);
        let was = before.as_ref().map(|kept| (kept.age(), kept.asked().cloned()));
        let after = policy.map(|policy| Kept::new(policy, before));
        let is = after.as_ref().map(|kept| (kept.age(), kept.asked().cloned()));
        concerned.policies.push(name.clone());
        if was != is {
            for (side, leaving) in [(&was, true), (&is, false)] {
                let Some((age, Some(asked))) = side else { continue };
                for service in services(name, asked) {
                    let rivals = self.of.entry(service.clone()).or_default();
                    if leaving {
                        rivals.remove(age);
                    } else {
                        rivals.insert(age.clone());
                    }
                    concerned.policies.extend(rivals.iter().map(|rival| rival.name.clone()));
                    if rivals.is_empty() {
                        self.of.remove(&service);
                    }
                    concerned.services.push(service);
                }
            }
        }
        if let Some(after) = after {
            self.all.insert(name.clone(), after);
        }
        concerned
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.all.keys()
    }

    pub(super) fn get(&self, name: &Name) -> Option<&TrafficPolicy> {
        self.all.get(name).map(|kept| &kept.object)
    }

    /// Those that target a Service, also in vain.
    pub(super) fn of(&self, service: &Name) -> impl Iterator<Item = &Name> {
        self.of.get(service).into_iter().flatten().map(|age| &age.name)
    }

    /// What governs a service port.
    pub(super) fn in_force(&self, service: &Name, port: Option<&Arc<str>>) -> Option<&Arc<Policy>> {
        let own = port.and_then(|_| self.winner(service, port));
        let winner = own.or_else(|| self.winner(service, None))?;
        self.all.get(&winner.name)?.asked().map(|asked| &asked.policy)
    }

    pub(super) fn verdict<'s>(
        &self,
        name: &Name,
        service: impl Fn(&Name) -> Option<&'s Service>,
    ) -> Option<Verdict> {
        let kept = self.all.get(name)?;
        if let Some(invalid) = kept.invalid() {
            return Some(invalid);
        }
        let mut in_force = Vec::new();
        let mut shortfalls = Vec::new();
        for target in kept.asked().into_iter().flat_map(|asked| &asked.targets) {
            let at = Name { namespace: name.namespace.clone(), name: target.service.clone() };
            if let Err(missing) = look_for(target, service(&at)) {
                shortfalls.push(missing);
            } else if let Some(winner) =
                self.winner(&at, target.port.as_ref()).filter(|age| age.name != *name)
            {
                shortfalls.push(Shortfall {
                    reason: Reason::Conflicted,
                    message: format!(
                        "{} has TrafficPolicy {} already, which is older",
                        shown(target),
                        winner.name
                    ),
                });
            } else {
                in_force.push(shown(target));
            }
        }
        let in_force = (!in_force.is_empty()).then(|| format!("in force for {}", in_force.join(", ")));
        Some(Verdict::of(in_force, &shortfalls))
    }

    /// The policy that has a target.
    fn winner(&self, service: &Name, port: Option<&Arc<str>>) -> Option<&Age> {
        self.of.get(service)?.iter().find(|age| {
            let asked = self.all.get(&age.name).and_then(Kept::asked);
            asked.is_some_and(|asked| {
                asked
                    .targets
                    .iter()
                    .any(|target| target.service == service.name && target.port.as_ref() == port)
            })
        })
    }
}

/// The Services that it targets, each once.
fn services(name: &Name, asked: &Attached) -> BTreeSet<Name> {
    let targets = asked.targets.iter();
    targets.map(|target| Name { namespace: name.namespace.clone(), name: target.service.clone() }).collect()
}

/// `Service orders, port http`
pub(super) fn shown(target: &Target) -> String {
    match &target.port {
        Some(port) => format!("Service {}, port {port}", target.service),
        None => format!("Service {}", target.service),
    }
}

/// Whether what is targeted is there.
pub(super) fn look_for(target: &Target, service: Option<&Service>) -> Result<(), Shortfall> {
    let missing = |message| Err(Shortfall { reason: Reason::TargetNotFound, message });
    let Some(service) = service else {
        return missing(format!("there is no Service {}", target.service));
    };
    if service.frontend == Frontend::None {
        return missing(format!(
            "Service {} has no address of its own, so that calls to it are not governed",
            target.service
        ));
    }
    let Some(wanted) = &target.port else { return Ok(()) };
    if service.ports.iter().any(|port| port.name.as_ref() == Some(wanted)) {
        return Ok(());
    }
    let names: Vec<_> = service.ports.iter().filter_map(|port| port.name.as_deref()).collect();
    let names = if names.is_empty() { "no TCP port with a name".to_owned() } else { names.join(", ") };
    missing(format!("Service {} has no port {wanted}: it has {names}", target.service))
}
