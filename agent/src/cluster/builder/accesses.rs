//! Which AccessPolicy guards which service port.
//!
//! As with TrafficPolicies a policy that targets the port itself goes before those that target its whole Service, and of
//! several that target the same the oldest has it. The oldest that targets the Namespace is for the Services that have none of
//! their own: who may call is not put together from two places.

use std::{collections::BTreeSet, sync::Arc};

use ahash::AHashMap;

use super::{
    kept::Kept,
    keys,
    policies::{look_for, shown},
};
use crate::{
    cluster::{
        object::{AccessPolicy, Age, Guarded, Name, Service},
        verdict::{Reason, Shortfall, Verdict},
    },
    govern::{
        access::Access,
        jwt::{OnNoKeys, Provider, Source},
        policy::Target,
    },
};

#[derive(Default)]
pub(super) struct Accesses {
    all: AHashMap<Name, Kept<Guarded>>,
    /// By the Service that they target.
    of: AHashMap<Name, BTreeSet<Age>>,
    /// Those that target their namespace.
    defaults: AHashMap<Arc<str>, BTreeSet<Age>>,
}

/// What a change concerns.
#[derive(Default)]
pub(super) struct Concerned {
    pub(super) services: BTreeSet<Name>,
    /// All Services of the policy's namespace.
    pub(super) namespace: bool,
    pub(super) policies: BTreeSet<Name>,
}

impl Accesses {
    /// As they are to be kept: see [`Kept::versions`].
    pub(super) fn objects(&self) -> impl Iterator<Item = AccessPolicy> {
        self.all.values().flat_map(Kept::versions)
    }

    /// Puts a policy in, or takes it out.
    pub(super) fn set(&mut self, name: &Name, policy: Option<AccessPolicy>) -> Concerned {
        let mut concerned = Concerned::default();
        if self.all.get(name).map(|kept| &kept.object) == policy.as_ref() {
            return concerned;
        }
        concerned.policies.insert(name.clone());
        let before = self.all.remove(name);
        if let Some(kept) = &before {
            self.link(name, &kept.age(), kept.asked().cloned(), false, &mut concerned);
        }
        if let Some(policy) = policy {
            let kept = Kept::new(policy, before);
            self.link(name, &kept.age(), kept.asked().cloned(), true, &mut concerned);
            self.all.insert(name.clone(), kept);
        }
        concerned
    }

    fn link(
        &mut self,
        name: &Name,
        age: &Age,
        asked: Option<Guarded>,
        comes: bool,
        concerned: &mut Concerned,
    ) {
        let Some(asked) = asked else { return };
        let Concerned { services, namespace, policies } = concerned;
        let mut change = |rivals: &mut BTreeSet<Age>| {
            let _was_there = if comes { rivals.insert(age.clone()) } else { rivals.remove(age) };
            policies.extend(rivals.iter().map(|rival| rival.name.clone()));
            rivals.is_empty()
        };
        for target in &asked.targets {
            let service = Name { namespace: name.namespace.clone(), name: target.service.clone() };
            if change(self.of.entry(service.clone()).or_default()) {
                self.of.remove(&service);
            }
            services.insert(service);
        }
        if asked.for_namespace {
            if change(self.defaults.entry(name.namespace.clone()).or_default()) {
                self.defaults.remove(&name.namespace);
            }
            *namespace = true;
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.all.keys()
    }

    /// What each asks for, as far as it makes sense or did.
    pub(super) fn all_asked(&self) -> impl Iterator<Item = (&Name, &Guarded)> {
        self.all.iter().filter_map(|(name, kept)| Some((name, kept.asked()?)))
    }

    pub(super) fn get(&self, name: &Name) -> Option<&AccessPolicy> {
        self.all.get(name).map(|kept| &kept.object)
    }

    /// Those that target a Service, also in vain.
    pub(super) fn of(&self, service: &Name) -> impl Iterator<Item = &Name> {
        self.of.get(service).into_iter().flatten().map(|age| &age.name)
    }

    /// What guards a service port.
    pub(super) fn in_force(&self, service: &Name, port: Option<&Arc<str>>) -> Option<&Arc<Access>> {
        let own = port.and_then(|_| self.winner(service, port)).or_else(|| self.winner(service, None));
        let winner = own.or_else(|| self.defaults.get(&service.namespace)?.first())?;
        self.all.get(&winner.name)?.asked().map(|asked| &asked.access)
    }

    pub(super) fn verdict<'s>(
        &self,
        name: &Name,
        service: impl Fn(&Name) -> Option<&'s Service>,
        refuse_trouble: Option<&str>,
    ) -> Option<Verdict> {
        let kept = self.all.get(name)?;
        if let Some(invalid) = kept.invalid() {
            return Some(invalid);
        }
        let asked = kept.asked()?;
        let (mut in_force, mut shortfalls) = (Vec::new(), Vec::new());
        let conflict = |what: String, first: &Age| Shortfall {
            reason: Reason::Conflicted,
            message: format!("{what} has AccessPolicy {} already, which is older", first.name),
        };
        for target in &asked.targets {
            let at = Name { namespace: name.namespace.clone(), name: target.service.clone() };
            if let Err(missing) = look_for(target, service(&at)) {
                shortfalls.push(missing);
                continue;
            }
            match self.winner(&at, target.port.as_ref()).filter(|age| age.name != *name) {
                Some(first) => shortfalls.push(conflict(shown(target), first)),
                None => in_force.push(shown(target)),
            }
        }
        if asked.for_namespace {
            let what = format!("Namespace {}", name.namespace);
            match self.defaults.get(&name.namespace).and_then(BTreeSet::first) {
                Some(first) if first.name != *name => shortfalls.push(conflict(what, first)),
                _ => in_force.push(format!("{what}, where Services have no AccessPolicy of their own")),
            }
        }
        if let Some(why) = refuse_trouble.filter(|_| asked.access.closed_unattended().is_some()) {
            let message = format!("whenUnattended: Refuse is not active: {why}");
            shortfalls.push(Shortfall { reason: Reason::Unsupported, message });
        }
        shortfalls.extend(keys::providers(asked).filter_map(|provider| missing_keys(provider)));
        let in_force = (!in_force.is_empty()).then(|| format!("active for {}", in_force.join(", ")));
        Some(Verdict::of(in_force, &shortfalls))
    }

    /// The policy that has a target.
    fn winner(&self, service: &Name, port: Option<&Arc<str>>) -> Option<&Age> {
        let is = |target: &Target| target.service == service.name && target.port.as_ref() == port;
        self.of.get(service)?.iter().find(|age| {
            let asked = self.all.get(&age.name).and_then(Kept::asked);
            asked.is_some_and(|asked| asked.targets.iter().any(is))
        })
    }
}

/// What there is to say of a provider whose keys were never known, once it is known why, or are not those of its object any more.
fn missing_keys(provider: &Provider) -> Option<Shortfall> {
    let known = provider.keys.known();
    let (why, name) = (known.trouble()?, &provider.name);
    if known.keys().is_some() {
        // A URI that cannot be fetched for a while is no fault of the policy.
        return matches!(provider.source, Source::Entry(_)).then(|| Shortfall {
            reason: Reason::KeysOutdated,
            message: format!(
                "the keys of provider {name} cannot be read any more, and the last ones stay in use: {why}"
            ),
        });
    }
    let so = match provider.on_no_keys {
        OnNoKeys::Deny => "none of its tokens is accepted",
        OnNoKeys::Allow => {
            "whatever says that it is a token of it is accepted by rules that allow (onNoKeys: Allow)"
        }
    };
    let until = if matches!(provider.source, Source::Entry(_)) { "read" } else { "fetched" };
    let message = format!("the keys of provider {name} are missing: {why}; until they are {until} {so}");
    Some(Shortfall { reason: Reason::KeysMissing, message })
}
