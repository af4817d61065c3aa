//! How far it is believed that endpoints have vanished.
//!
//! A pod that goes away says so itself: it is terminating, not ready, or gone. An endpoint that is in none of its
//! EndpointSlices any more while its pod is well was either taken out by somebody (a changed selector or label), or a
//! controller or the API server is in trouble. One of many is believed at once. But where those that vanished so within
//! a minute would leave a service fewer of its usable endpoints than its panic threshold, the rest stays in use: until
//! their pods are no longer well, or there are enough others, or for [`HELD`].
//!
//! So scaling down, a rollout and a deleted Service are believed at once, as pods or the Service go; a Service whose
//! selector leads elsewhere is believed when there are endpoints to lead to; and when all EndpointSlices of a
//! service disappear its pods are called on while their controller writes new ones.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::store::Store;
use crate::{
    cluster::object::{Name, Service},
    govern::endpoint::Endpoint,
};

/// For how long an endpoint is used on at most.
pub(super) const HELD: Duration = Duration::from_secs(60);

/// An endpoint that is in no slice any more.
pub(super) struct Gone {
    pub(super) since: Instant,
    /// As it was, if it was usable.
    was: Option<Arc<Endpoint>>,
    held: bool,
}

impl Gone {
    pub(super) fn new(since: Instant, was: Option<Arc<Endpoint>>) -> Self {
        Self { since, was: was.filter(|endpoint| endpoint.is_usable()), held: false }
    }

    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Its pod is as it should be: that it is in no slice any more says nothing of it.
    fn is_well(&self, uid: Option<&Arc<str>>, service: &Service, store: &Store, now: Instant) -> bool {
        let Some(endpoint) = self.was.as_ref().filter(|_| now < self.since + HELD) else { return false };
        let Some(name) = endpoint.pod.clone() else { return false };
        let pod = store.pods.get(&Name { namespace: service.name.namespace.clone(), name });
        pod.is_some_and(|pod| {
            let same = uid.zip(pod.uid.as_ref()).is_none_or(|(meant, uid)| meant == uid);
            let runs = store.ready_since(pod).is_some() && !pod.terminating && !pod.finished;
            same && runs && pod.ips.contains(&endpoint.address.ip().to_canonical())
        })
    }
}

/// Decides on all endpoints of a service port that are gone, each with its pod's UID; gives those that are used on.
/// `left` are usable without them.
pub(super) fn held<'a>(
    gone: impl Iterator<Item = (Option<&'a Arc<str>>, &'a mut Gone)>,
    left: usize,
    threshold_percent: f64,
    service: &Service,
    store: &Store,
    now: Instant,
) -> Vec<Arc<Endpoint>> {
    let mut well = Vec::new();
    for (uid, gone) in gone {
        if gone.is_well(uid, service, store, now) {
            well.push(gone);
        } else {
            // For good: a pod that is well again is in a slice again, too.
            (gone.was, gone.held) = (None, false);
        }
    }
    let doubtful = is_doubtful(left, well.len(), threshold_percent);
    let mut held = Vec::new();
    for gone in well {
        // What was believed stays believed: an endpoint that nobody called for a while does not come back by itself.
        gone.held = doubtful && (gone.held || gone.since == now);
        held.extend(gone.was.clone().filter(|_| gone.held));
    }
    held
}

fn is_doubtful(left: usize, vanished: usize, threshold_percent: f64) -> bool {
    vanished > 0 && (left as f64) * 100.0 < (left + vanished) as f64 * threshold_percent
}

#[cfg(test)]
mod tests {
    use super::is_doubtful;

    #[test]
    fn as_far_as_the_threshold() {
        for (left, vanished, threshold, doubtful) in [
            (0, 0, 50.0, false),
            (9, 1, 50.0, false),
            (5, 5, 50.0, false),
            (4, 6, 50.0, true),
            (0, 10, 50.0, true),
            (0, 1, 50.0, true),
            // A threshold of zero turns it off.
            (0, 10, 0.0, false),
            (9, 1, 100.0, true),
        ] {
            assert_eq!(is_doubtful(left, vanished, threshold), doubtful, "{left} {vanished} {threshold}");
        }
    }
}
