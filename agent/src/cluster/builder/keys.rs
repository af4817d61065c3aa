//! Which sources of keys AccessPolicies name, and which of them are wanted: those of policies in enrolled namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
};

use ahash::AHashMap;

use crate::{
    clock::Nanos,
    cluster::{
        jwks::{Origin, Sources, Wanted},
        object::{AccessPolicy, Guarded, Name},
    },
    govern::jwt::{Known, Provider, Source, source},
};

/// What providers are linked to, by their source.
#[derive(Default)]
pub(super) struct KeySources {
    known: AHashMap<Origin, Weak<Known>>,
    /// Policies may want others than was said last.
    pub(super) changed: bool,
}

impl KeySources {
    /// Links the providers of a policy to what is known of their sources.
    pub(super) fn link(&mut self, policy: &AccessPolicy) {
        let Ok(guarded) = &policy.asked else { return };
        for (origin, provider) in read(&policy.name.namespace, guarded) {
            let known = self.known.entry(origin).or_default();
            provider.keys.link(|| {
                known.upgrade().unwrap_or_else(|| {
                    let new = Arc::default();
                    *known = Arc::downgrade(&new);
                    new
                })
            });
        }
    }

    /// Says which sources these policies want, if that may be news.
    pub(super) fn want<'g>(
        &mut self,
        sources: &Sources,
        policies: impl Iterator<Item = (&'g Name, &'g Guarded)>,
        now: Nanos,
    ) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut wanted: BTreeMap<Origin, Wanted> = BTreeMap::new();
        for (name, guarded) in policies {
            for (origin, provider) in read(&name.namespace, guarded) {
                let every =
                    if let Source::Remote { every, .. } = provider.source { every } else { source::EVERY };
                let known = provider.keys.known();
                let new = || Wanted { known: known.clone(), every, namespaces: BTreeSet::new() };
                let wanted = wanted.entry(origin).or_insert_with(new);
                wanted.every = wanted.every.min(every);
                wanted.namespaces.insert(name.namespace.clone());
            }
        }
        self.known.retain(|_, known| known.strong_count() > 0);
        sources.want(wanted, now);
    }
}

/// Providers whose keys are read from somewhere, and where, for a policy in that namespace.
fn read<'g>(
    namespace: &'g Arc<str>,
    guarded: &'g Guarded,
) -> impl Iterator<Item = (Origin, &'g Arc<Provider>)> {
    providers(guarded).filter_map(|provider| Some((Origin::of(&provider.source, namespace)?, provider)))
}

/// Providers whose keys the policy does not have itself.
pub(super) fn providers(guarded: &Guarded) -> impl Iterator<Item = &Arc<Provider>> {
    let providers = guarded.access.jwt.iter().flat_map(|jwt| &jwt.providers);
    providers.filter(|provider| !matches!(provider.source, Source::Inline(_)))
}
