//! When the first request came to a pod: seen where it arrives, and the same for the clients of all nodes.
//!
//! A [warm-up](crate::govern::warmup) with `startOn: FirstRequest` begins with the first request that is no health check. Each agent
//! knows those that it sends itself. The agent of the pod's own node also sees all that come from elsewhere, where a policy asks for
//! something at the endpoint, and it is the one that tells the others: it sets the pod's condition `sluice.dev/first-request`, if it
//! may (`--warm-gate`). Every agent reads the pod, and begins the curve at the earliest that it knows of.
//!
//! The condition is written once in the life of the pod's containers. When one of them has started anew, what it said before no
//! longer counts ([`told`]), and the next first request is written. Nothing is written of pods that were there when the agent
//! began and of which it cannot tell whether they have been asked: they count as asked since they are Ready, as far as this agent is
//! concerned. Where all that comes to the pod goes through its node's agent (an AccessPolicy, limits at the endpoint), a pod without
//! the condition has not been asked, and its warm-up is still to begin, whichever agent restarts.
//!
//! [`super::builder`] finds the pods and their endpoints; who has the right writes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::object::{Name, Pod};
use crate::govern::endpoint::Endpoint;

/// The pods of this node, in enrolled namespaces, whose first request is to be told and has not been.
pub type Firsts = BTreeMap<Name, First>;

/// A pod that does not say that it has been asked.
#[derive(Clone, Debug)]
pub struct First {
    pub uid: Option<Arc<str>>,
    /// The ports of the pod whose warm-up begins with the first request.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl First {
    /// When this agent saw the first request to the pod, on the monotonic clock; `None`: it saw none.
    pub fn seen(&self) -> Option<i64> {
        let seen = self.endpoints.iter().filter_map(|endpoint| {
            let ready = endpoint.ready_since_nanos?;
            // At that very moment is what is assumed where nobody knows.
            endpoint.load.first_request(Some(ready)).filter(|first| *first > ready)
        });
        seen.min()
    }
}

impl PartialEq for First {
    fn eq(&self, other: &Self) -> bool {
        let Self { uid, endpoints } = other;
        let same = self.endpoints.iter().zip(endpoints).all(|(one, other)| Arc::ptr_eq(one, other));
        self.uid == *uid && self.endpoints.len() == endpoints.len() && same
    }
}

/// When the pod says that its first request came since its containers started; `None`: it does not say that one did.
///
/// A pod that was not Ready for a while, with the same containers, has been asked already. Where nobody says when they started,
/// only what came since the pod is Ready counts.
pub fn told(pod: &Pod, ready_since: Option<SystemTime>) -> Option<SystemTime> {
    let first = pod.first_request?.get();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(first.into());
    let holds = match pod.started {
        Some(started) => first >= started.get(),
        // The API tells whole seconds.
        None => ready_since.is_none_or(|ready| ready < at + Duration::from_secs(1)),
    };
    holds.then_some(at)
}
