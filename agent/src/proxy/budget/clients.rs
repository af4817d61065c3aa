//! Whose connections from outside a pod has open, and who may have more of them.
//!
//! What a pod's part cannot carry goes direct, past the policies at the endpoint. So where they are enforced no client may use that
//! part up: one may have as many connections as are still free, and so ends at a half, two at a third each (as pods do of what
//! they share, [`super::verdict`]). Those that may ask for nothing have a ninth between them: each gets an answer that says
//! why, as long as there are few. What comes from the pod's own node is never reset, for the kubelet's probes are among it.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ahash::AHashMap;

use super::{PodBudget, verdict};
use crate::{clock::Nanos, govern::per_pod::CallingPod};

/// A client, as far as the policies at the endpoint have to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is the pod's node, or nothing is enforced.
    Free,
    /// There are requests that it may make.
    MayCall,
    /// There are none.
    MayNot,
}

/// Of what is free, those that may ask for nothing have together at most one in so many.
const OF_THOSE_THAT_MAY_NOT: usize = 8;

/// Connections that a pod has open, by who made them.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    of: AHashMap<IpAddr, Client>,
    of_those_that_may_not: usize,
}

#[derive(Debug)]
struct Client {
    open: usize,
    /// As state is kept that is its own, such as its part of a limit.
    caller: Arc<CallingPod>,
}

/// Clients without a connection that are remembered, so that one that connects for each request is the same one.
const REMEMBERED: usize = 1024;

/// A connection from outside, counted until it is dropped.
pub(crate) struct Guest {
    pod: Arc<PodBudget>,
    address: IpAddr,
    standing: Standing,
    caller: Arc<CallingPod>,
}

impl Guest {
    /// The client, as its own state is kept.
    pub(crate) fn caller(&self) -> &Arc<CallingPod> {
        &self.caller
    }
}

impl PodBudget {
    /// A connection of this client has come; `None`: it has as many as it may have.
    pub(crate) fn receive(
        self: &Arc<Self>,
        address: IpAddr,
        standing: Standing,
        now: Nanos,
    ) -> Option<Guest> {
        let free = verdict::more(self.used(), self.all.used(), 1, &self.all.bounds_for_new(now));
        let counted = &mut *self.clients.lock();
        let own = counted.of.get(&address).map_or(0, |client| client.open);
        if !has_room(standing, own, counted.of_those_that_may_not, free) {
            return None;
        }
        if counted.of.len() >= REMEMBERED && !counted.of.contains_key(&address) {
            counted.of.retain(|_, client| client.open > 0);
        }
        let client = counted.of.entry(address).or_insert_with(|| {
            let name = address.to_string();
            Client { open: 0, caller: CallingPod::new(&name, &name) }
        });
        client.open += 1;
        let caller = client.caller.clone();
        counted.of_those_that_may_not += usize::from(standing == Standing::MayNot);
        Some(Guest { pod: self.clone(), address, standing, caller })
    }
}

/// `own`: what the client has open.
fn has_room(standing: Standing, own: usize, of_those_that_may_not: usize, free: usize) -> bool {
    match standing {
        Standing::Free => true,
        Standing::MayCall => own < free,
        Standing::MayNot => of_those_that_may_not < free / OF_THOSE_THAT_MAY_NOT,
    }
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that has the most open, and how many.
    pub(super) fn most(&self) -> Option<(IpAddr, usize)> {
        let counted = self.lock();
        let clients = counted.of.iter().map(|(address, client)| (*address, client.open));
        clients.filter(|(_, open)| *open > 0).max_by_key(|(address, open)| (*open, *address))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let counted = &mut *self.pod.clients.lock();
        if let Some(client) = counted.of.get_mut(&self.address) {
            client.open -= 1;
        }
        counted.of_those_that_may_not -= usize::from(self.standing == Standing::MayNot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many connections a client gets that opens them as long as it can.
    fn fill(standing: Standing, limit: usize, others: usize) -> usize {
        let mut own = 0;
        while own < 2 * limit && has_room(standing, own, own, limit.saturating_sub(others + own)) {
            own += 1;
        }
        own
    }

    #[test]
    fn no_client_uses_up_what_a_pod_has() {
        assert_eq!(fill(Standing::MayCall, 4096, 0), 2048);
        assert_eq!(fill(Standing::MayCall, 4096, 2048), 1024);
        assert_eq!(fill(Standing::MayNot, 4096, 0), 455, "a ninth");
        assert_eq!(fill(Standing::MayCall, 0, 0), 0);
        assert_eq!(fill(Standing::MayCall, 1, 0), 1, "the smallest part is one's own");
        assert_eq!(fill(Standing::MayNot, 7, 0), 0);
        assert_eq!(fill(Standing::Free, 4096, 0), 8192, "what comes from the node is not reset");
    }

    #[test]
    fn whoever_comes_late_finds_room() {
        let mut each = vec![0_usize; 7];
        let mut went = true;
        while std::mem::take(&mut went) {
            for one in 0..each.len() {
                if has_room(Standing::MayCall, each[one], 0, 4096 - each.iter().sum::<usize>()) {
                    each[one] += 1;
                    went = true;
                }
            }
        }
        assert!(each.iter().all(|count| count.abs_diff(512) <= 1), "{each:?}");
        assert!(has_room(Standing::MayCall, 100, 0, 4096 - each.iter().sum::<usize>()));
    }
}
