//! What was decided about requests that have ended: the last ones, for those who ask why.
//!
//! Each worker keeps its own, and is asked for them as for anything else ([`super::worker::Command`]), so nothing here is
//! shared or locked. There are two rings: one for what failed, was refused, or had to be sent again, of which every
//! request is kept; and one for the others, of which [`A_SECOND`] are kept in each second on each worker. So a flood of one
//! does not push the other out, and under load a request that went well costs next to nothing.
//!
//! Memory: at most [`KEPT`] of each on a node, each of at most [`DECISION_BYTES`]: 8 MiB in all. What a header says is not
//! kept: of the request id there is a hash, which is enough to find it again.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, LazyLock},
    time::Duration,
};

use ahash::RandomState;
use smallvec::SmallVec;

use super::worker::PodHere;
use crate::{
    clock::Nanos,
    cluster::model::Destination,
    govern::{
        lane::{RequestTag, TagSource, Tagging},
        routes,
    },
    observe::{fault::Fault, metrics::TagOutcome, reason::Reason},
};

/// Decisions of each ring on a node, all workers together.
const KEPT: usize = 4096;
/// What a decision takes at most, with all that hangs on it but names that the cluster's state holds anyway.
const DECISION_BYTES: usize = 1024;
const _: () = assert!(size_of::<Decision>() + 16 <= DECISION_BYTES);
/// Requests that went well and are kept, in each second on each worker.
const A_SECOND: u32 = 32;
/// Bytes of a path, and of a method, that are kept.
const MAX_PATH: usize = 200;
const MAX_METHOD: usize = 16;
/// Events of a request that are kept: the first ones.
const MAX_EVENTS: usize = 8;
/// Decisions that wait to be used again.
const SPARE: usize = 64;

/// By what a request can be found again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ids {
    /// A hash of the request id; 0: it has none.
    pub(crate) request: u64,
    /// 0: it has none.
    pub(crate) trace: u128,
    /// Whoever sent it records the trace.
    pub(crate) sampled: bool,
}

impl Ids {
    pub(crate) fn new(request: Option<&[u8]>, traceparent: Option<&[u8]>) -> Self {
        let trace = traceparent.and_then(crate::observe::trace::context::parse_traceparent);
        Self {
            request: request.map_or(0, hash),
            trace: trace.map_or(0, |parent| parent.trace.get()),
            sampled: trace.is_some_and(|parent| parent.sampled == Some(true)),
        }
    }
}

/// Of a request id. Nobody outside can choose ids that fall together.
pub(crate) fn hash(id: &[u8]) -> u64 {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    STATE.hash_one(id.trim_ascii()).max(1)
}

/// What happened to a request.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// It got a `traceparent` of its B3 context.
    Linked,
    /// What its routes have decided: the rule, and whether it goes on.
    Routed {
        rule: Option<Arc<routes::Rule>>,
        goes_on: bool,
    },
    /// A rule of the policy holds for it.
    Matched {
        rule: Arc<str>,
    },
    /// A rate limit let it wait.
    Queued {
        rule: Arc<str>,
        wait: Duration,
    },
    /// A rate limit that only observes would have refused it.
    WouldRefuse {
        rule: Arc<str>,
    },
    Chosen {
        endpoint: SocketAddr,
        pod: Option<Arc<str>>,
        panic: bool,
    },
    /// Its connection leads to the endpoint's address of the other family.
    InOtherFamily {
        address: SocketAddr,
    },
    /// The endpoint's answer was not passed on, or there was none.
    Failed {
        status: u16,
        reason: Option<Reason>,
    },
    /// It was sent again.
    Retried,
    /// A message was not passed on: this is wrong with it.
    Invalid {
        fault: Fault,
    },
    /// A rule is behind the answer.
    Ruled {
        rule: Arc<str>,
        policy: Option<Arc<str>>,
    },
}

/// Who asked whom. Filled in when a decision is kept.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) caller_namespace: Arc<str>,
    pub(crate) caller: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) service: Arc<str>,
    pub(crate) port: u16,
    /// It was decided at this endpoint; `None`: where the client is.
    pub(crate) at: Option<SocketAddr>,
}

/// A request, and what was decided about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decision {
    pub(crate) ids: Ids,
    pub(crate) names: Option<Names>,
    pub(crate) method: SmallVec<[u8; MAX_METHOD]>,
    pub(crate) path: SmallVec<[u8; MAX_PATH]>,
    pub(crate) tag: Option<RequestTag>,
    pub(crate) tag_source: Option<TagSource>,
    /// A tag that it brought along was removed.
    pub(crate) tag_distrusted: bool,
    pub(crate) tag_outcome: Option<TagOutcome>,
    pub(crate) events: SmallVec<[Event; MAX_EVENTS]>,
    pub(crate) ended: Nanos,
    pub(crate) took: Nanos,
    pub(crate) status: u16,
    pub(crate) reason: Option<Reason>,
}

impl Decision {
    pub(crate) fn push(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(event);
        }
    }

    /// Something went wrong with it.
    fn is_remarkable(&self) -> bool {
        self.reason.is_some()
            || self.status >= 500
            || self.events.iter().any(|event| matches!(event, Event::Failed { .. } | Event::Retried))
    }
}

/// A request under way.
pub(crate) struct Draft {
    pod: Rc<PodHere>,
    destination: Rc<Destination>,
    pub(crate) decision: Box<Decision>,
}

/// Which decisions are asked for; of all that are given, all must hold.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) request: Option<u64>,
    pub(crate) trace: Option<u128>,
    /// No more than these, the newest.
    pub(crate) most: usize,
}

impl Wanted {
    fn is(&self, decision: &Decision) -> bool {
        self.request.is_none_or(|id| decision.ids.request == id)
            && self.trace.is_none_or(|id| decision.ids.trace == id)
    }
}

/// The decisions of one worker.
pub(crate) struct Decisions {
    remarkable: RefCell<VecDeque<Box<Decision>>>,
    others: RefCell<VecDeque<Box<Decision>>>,
    #[expect(clippy::vec_box, reason = "boxes go from here into the rings and back")]
    spare: RefCell<Vec<Box<Decision>>>,
    most: usize,
    second: Cell<u64>,
    this_second: Cell<u32>,
    /// A request id that is kept in any case: somebody waits for it.
    awaited: Cell<u64>,
}

impl Decisions {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            remarkable: RefCell::default(),
            others: RefCell::default(),
            spare: RefCell::default(),
            most: KEPT / workers.max(1),
            second: Cell::new(0),
            this_second: Cell::new(0),
            awaited: Cell::new(0),
        }
    }

    pub(crate) fn begin(
        &self,
        pod: &Rc<PodHere>,
        destination: &Rc<Destination>,
        tagging: Option<&Tagging>,
        ids: Ids,
        method: &[u8],
        path: &[u8],
    ) -> Draft {
        let mut decision = self.spare.borrow_mut().pop().unwrap_or_default();
        decision.ids = ids;
        decision.method.extend_from_slice(&method[..method.len().min(MAX_METHOD)]);
        decision.path.extend_from_slice(&path[..path.len().min(MAX_PATH)]);
        if let Some(tagging) = tagging {
            decision.tag = tagging.tag;
            decision.tag_source = tagging.source;
            decision.tag_distrusted = tagging.distrusted;
        }
        Draft { pod: pod.clone(), destination: destination.clone(), decision }
    }

    /// The request has ended: it is kept or not.
    pub(crate) fn end(&self, draft: Draft) {
        let Draft { pod, destination, mut decision } = draft;
        if let Some(arrival) = &pod.arrival {
            // What else comes from outside is told of where it is sent.
            let denied = matches!(
                decision.reason,
                Some(
                    Reason::AccessDenied
                        | Reason::Unauthenticated
                        | Reason::PathHidden
                        | Reason::RateLimited
                        | Reason::ConcurrencyLimited
                )
            );
            let Some(service) = arrival.service().filter(|_| denied) else { return self.reuse(decision) };
            let client = arrival.names();
            decision.names = Some(Names {
                caller_namespace: client.namespace,
                caller: client.pod,
                namespace: service.namespace.clone(),
                service: service.name.clone(),
                port: service.port,
                at: Some(arrival.dialled()),
            });
            return self.keep(&self.remarkable, decision);
        }
        let remarkable = decision.is_remarkable();
        let awaited = self.awaited.get() != 0 && self.awaited.get() == decision.ids.request;
        if !remarkable && !awaited && !self.has_room(decision.ended) {
            return self.reuse(decision);
        }
        let (workload, service) = (pod.pod.workload.load(), &destination.service);
        decision.names = Some(Names {
            caller_namespace: workload.namespace.clone(),
            caller: workload.name.clone(),
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            port: service.port,
            at: None,
        });
        self.keep(if remarkable { &self.remarkable } else { &self.others }, decision);
    }

    fn keep(&self, ring: &RefCell<VecDeque<Box<Decision>>>, decision: Box<Decision>) {
        let mut ring = ring.borrow_mut();
        let oldest = if ring.len() >= self.most { ring.pop_front() } else { None };
        ring.push_back(decision);
        if let Some(oldest) = oldest {
            self.reuse(oldest);
        }
    }

    fn has_room(&self, now: Nanos) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.second.replace(second) != second {
            self.this_second.set(0);
        }
        self.this_second.set(self.this_second.get() + 1);
        self.this_second.get() <= A_SECOND
    }

    fn reuse(&self, mut decision: Box<Decision>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE {
            *decision = Decision::default();
            spare.push(decision);
        }
    }

    /// A request with this id is to be kept.
    pub(crate) fn await_one(&self, id: u64) {
        self.awaited.set(id);
    }

    /// Those that are wanted, the newest first.
    pub(crate) fn find(&self, wanted: &Wanted) -> Vec<Decision> {
        let (remarkable, others) = (self.remarkable.borrow(), self.others.borrow());
        let newest = |ring: &VecDeque<Box<Decision>>| -> Vec<Decision> {
            let found = ring.iter().rev().filter(|decision| wanted.is(decision));
            found.take(wanted.most).map(|decision| (**decision).clone()).collect()
        };
        newest_of(newest(&remarkable).into_iter().chain(newest(&others)).collect(), wanted.most)
    }
}

/// The newest of these, in their order.
pub(crate) fn newest_of(mut decisions: Vec<Decision>, most: usize) -> Vec<Decision> {
    decisions.sort_by_key(|decision| std::cmp::Reverse(decision.ended));
    decisions.truncate(most);
    decisions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_method_or_number_of_events_makes_it_larger() {
        let mut decision = Decision::default();
        for _ in 0..100 {
            decision.push(Event::Retried);
        }
        assert!(!decision.events.spilled() && decision.events.len() == MAX_EVENTS);
        decision.path.extend_from_slice(&[b'a'; MAX_PATH]);
        assert!(!decision.path.spilled());
    }

    #[test]
    fn ids_are_those_of_the_headers() {
        let trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let ids = Ids::new(Some(b" abc "), Some(trace));
        assert_eq!(
            ids,
            Ids { request: hash(b"abc"), trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, sampled: true }
        );
        assert_ne!(ids.request, hash(b"abd"));
        assert_eq!(Ids::new(None, Some(b"00-0-0-0")), Ids::default());
    }
}
