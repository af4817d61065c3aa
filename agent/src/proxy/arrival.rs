//! A connection from outside to a pod's own application: who is its client, and what the policies at the endpoint say of it
//! (ARCHITECTURE.md#at-the-endpoint).
//!
//! It goes the way of every other connection; only its destination is the application, and each request is shown to the
//! policies first. What the pod's node asks by way of the kubelet's probes is nobody's business.

use std::{cell::RefCell, net::SocketAddr, sync::Arc};

use super::{
    answer::Cause,
    worker::{PodHere, Worker},
};
use crate::{
    cluster::model::{InboundPort, Service},
    govern::{
        access::{self, Access, Client, Decision, Identity, NO_RULE, probe::Probe},
        policy::Mode,
        request::Request,
    },
    observe::{
        metrics::{AccessDecision, ServiceMetrics},
        reason::Reason,
    },
};

/// Where a connection comes from, and what it is for.
pub(crate) struct Arrival {
    pub(crate) client: SocketAddr,
    dialled: SocketAddr,
    /// It comes from the pod's node.
    from_node: bool,
    pod: RefCell<Option<Arc<Identity>>>,
    counted: RefCell<Option<Counted>>,
}

/// Where it is counted what the policies say.
struct Counted {
    port: Arc<InboundPort>,
    /// In the order of its guards.
    metrics: Vec<Arc<ServiceMetrics>>,
}

impl Arrival {
    pub(crate) fn new(pod: &PodHere, client: SocketAddr, dialled: SocketAddr) -> Self {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let from_node = pod.pod.network.is_node(client.ip());
        Self { client, dialled, from_node, pod: RefCell::default(), counted: RefCell::default() }
    }

    /// Why a request is not passed on; `None`: it is.
    pub(crate) fn admit(&self, worker: &Worker, pod: &PodHere, request: &impl Request) -> Option<Cause> {
        let is_probe =
            |probes: &[Probe]| self.from_node && Probe::is_one(probes, self.dialled.port(), request);
        if is_probe(&pod.pod.workload.load().probes) {
            return None;
        }
        self.ask(worker, |access, client| access.decide(client, request))
    }

    /// Whether what is passed on depends on what is asked for, so that all has to be read that a server may take for a request.
    pub(crate) fn depends_on_requests(&self, worker: &Worker) -> bool {
        let snapshot = worker.snapshot();
        let guards = snapshot.inbound.port(self.dialled).into_iter().flat_map(|port| &port.guards);
        guards.filter_map(|service| service.access.as_deref()).any(Access::depends_on_requests)
    }

    /// The same as [`Self::admit`] of a connection that is no HTTP; `spoke`: its client has said something already.
    pub(crate) fn admit_connection(&self, worker: &Worker, pod: &PodHere, spoke: bool) -> Option<Cause> {
        let may_be_probe =
            |probes: &[Probe]| self.from_node && Probe::may_be_connection(probes, self.dialled.port(), spoke);
        if may_be_probe(&pod.pod.workload.load().probes) {
            return None;
        }
        self.ask(worker, Access::decide_connection)
    }

    /// Asks all policies. The strictest has it.
    fn ask(
        &self,
        worker: &Worker,
        decide: impl for<'a> Fn(&'a Access, Client<'_>) -> Decision<'a>,
    ) -> Option<Cause> {
        let snapshot = worker.snapshot();
        // No longer asked for: the connection goes on as one of nobody's concern.
        let port = snapshot.inbound.port(self.dialled)?;
        let pod = self.identity(snapshot.clients.find(self.client.ip()));
        let client = Client { address: self.client.ip(), pod: pod.as_deref() };
        let mut strictest: Option<(Decision<'_>, &Access)> = None;
        let mut counted = self.counted.borrow_mut();
        let counted = match &mut *counted {
            Some(counted) if Arc::ptr_eq(&counted.port, port) => counted,
            stale => stale.insert(Counted::new(worker, port)),
        };
        for (service, metrics) in port.guards.iter().zip(&counted.metrics) {
            let Some(access) = service.access.as_deref() else { continue };
            let decision = decide(access, client);
            metrics.accessed(decision.rule().map_or(NO_RULE, |rule| rule), outcome(&decision, access.mode));
            let enforced = access.mode == Mode::Enforce;
            if enforced && strictest.is_none_or(|(known, _)| access::stricter(&decision, &known).is_gt()) {
                strictest = Some((decision, access));
            }
        }
        match strictest? {
            (Decision::Allowed(_), _) => None,
            (Decision::Denied(None), access) => {
                Some(Cause::of_rule(Reason::AccessDenied, &NO_RULE.into(), Some(&access.name), None))
            }
            (Decision::Denied(Some(rule)), access) => {
                Some(Cause::of_rule(Reason::AccessDenied, &rule.name, Some(&access.name), None))
            }
            // What is hidden has no rule either.
            (Decision::Hidden(_), _) => Some(Reason::PathHidden.into()),
        }
    }

    /// The pod that calls, as it was last known: its address may be another's already while its connection is still open.
    fn identity(&self, found: Option<Arc<Identity>>) -> Option<Arc<Identity>> {
        let mut known = self.pod.borrow_mut();
        if let Some(found) = found {
            let same =
                |known: &Arc<Identity>| (&known.namespace, &known.pod) == (&found.namespace, &found.pod);
            if known.as_ref().is_none_or(same) {
                *known = Some(found);
            }
        }
        known.clone()
    }
}

impl Counted {
    fn new(worker: &Worker, port: &Arc<InboundPort>) -> Self {
        let metrics =
            |service: &Arc<Service>| worker.served.service(&service.namespace, &service.name, service.port);
        Self { port: port.clone(), metrics: port.guards.iter().map(metrics).collect() }
    }
}

fn outcome(decision: &Decision<'_>, mode: Mode) -> AccessDecision {
    match (decision, mode) {
        (Decision::Allowed(_), _) => AccessDecision::Allowed,
        (Decision::Denied(_), Mode::Enforce) => AccessDecision::Denied,
        (Decision::Denied(_), Mode::Observe) => AccessDecision::WouldDeny,
        (Decision::Hidden(_), Mode::Enforce) => AccessDecision::Hidden,
        (Decision::Hidden(_), Mode::Observe) => AccessDecision::WouldHide,
    }
}
