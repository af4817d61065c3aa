//! Which sources of keys AccessPolicies name, and which of them are wanted: those of policies in enrolled namespaces.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use ahash::AHashMap;

use crate::{
    clock::Nanos,
    cluster::{
        jwks::{Sources, Wanted},
        object::{AccessPolicy, Guarded},
    },
    govern::jwt::{Known, Location, Provider, Source},
};

/// What providers are linked to, by their source.
#[derive(Default)]
pub(super) struct KeySources {
    known: AHashMap<Location, Weak<Known>>,
    /// Policies may want others than was said last.
    pub(super) changed: bool,
}

impl KeySources {
    /// Links the providers of a policy to what is known of their sources.
    pub(super) fn link(&mut self, policy: &AccessPolicy) {
        let Ok(guarded) = &policy.asked else { return };
        for (location, provider) in fetched(guarded) {
            let known = self.known.entry(location.clone()).or_default();
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
        policies: impl Iterator<Item = &'g Guarded>,
        now: Nanos,
    ) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut wanted: BTreeMap<Location, Wanted> = BTreeMap::new();
        for guarded in policies {
            for (location, provider) in fetched(guarded) {
                let Source::Remote { every, .. } = provider.source else { continue };
                let new = || Wanted { known: provider.keys.known().clone(), every };
                let wanted = wanted.entry(location.clone()).or_insert_with(new);
                wanted.every = wanted.every.min(every);
            }
        }
        self.known.retain(|_, known| known.strong_count() > 0);
        sources.want(wanted, now);
    }
}

/// Providers whose keys are fetched, and where from.
pub(super) fn fetched(guarded: &Guarded) -> impl Iterator<Item = (&Location, &Arc<Provider>)> {
    let providers = guarded.access.jwt.iter().flat_map(|jwt| &jwt.providers);
    providers.filter_map(|provider| match &provider.source {
        Source::Inline(_) => None,
        Source::Remote { location, .. } => Some((location, provider)),
    })
}
