//! Which policy has which target: of several the oldest, else the first by name. Found out once for all of them.

use std::{collections::HashMap, hash::Hash};

use super::objects::{Name, Objects, Policy};
use crate::govern::policy::Target;

/// The policies that have a target.
pub(super) struct Winners<'o> {
    of_targets: HashMap<(&'o str, &'o Target), Claim<'o>>,
    of_namespaces: HashMap<&'o str, Claim<'o>>,
}

/// How good the claim of a policy to its target is: lower wins. One that is not in the cluster yet is younger than all that are.
type Claim<'o> = (bool, &'o str, &'o Name);

impl<'o> Winners<'o> {
    pub(super) fn of(objects: &'o Objects) -> Self {
        let claim = |name: &'o Name, policy: &'o Policy| (policy.created.is_empty(), &*policy.created, name);
        let targets = objects.policies.iter().flat_map(|(name, policy)| {
            policy.targets.iter().map(move |target| ((&*name.0, target), claim(name, policy)))
        });
        let namespaces = objects.policies.iter().filter(|(_, policy)| policy.for_namespace);
        Self {
            of_targets: least(targets),
            of_namespaces: least(namespaces.map(|(name, policy)| (&*name.0, claim(name, policy)))),
        }
    }

    /// The policy that has a target.
    pub(super) fn of_target(&self, namespace: &str, target: &Target) -> Option<&'o Name> {
        self.of_targets.get(&(namespace, target)).map(|(.., name)| *name)
    }

    /// The policy of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> Option<&'o Name> {
        self.of_namespaces.get(namespace).map(|(.., name)| *name)
    }
}

/// The least claim to each key.
fn least<K: Hash + Eq, C: Ord>(claims: impl Iterator<Item = (K, C)>) -> HashMap<K, C> {
    let mut least = HashMap::new();
    for (key, claim) in claims {
        match least.entry(key) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(claim);
            }
            std::collections::hash_map::Entry::Occupied(mut place) => {
                if claim < *place.get() {
                    place.insert(claim);
                }
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, cmp::Ordering};

    use super::*;

    /// Counts how often it is compared.
    struct Counted<'c>(u32, &'c Cell<usize>);

    impl Ord for Counted<'_> {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted<'_> {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }

    impl Eq for Counted<'_> {}

    #[test]
    fn each_claim_is_compared_once_at_most() {
        for targets in [1, 100, 20_000] {
            let compared = Cell::new(0);
            let claims = (0..20_000_u32).map(|n| (n % targets, Counted((n * 7919) % 20_011, &compared)));
            let winners = least(claims);
            assert_eq!(winners.len(), targets as usize);
            assert!(compared.get() <= 20_000, "{} comparisons", compared.get());
            let least_of_first = (0..20_000_u32).step_by(targets as usize).map(|n| (n * 7919) % 20_011).min();
            assert_eq!(winners.get(&0).map(|winner| winner.0), least_of_first);
        }
    }
}
