//! The pods of this node that are not Ready before they are warm, and the warm-ups that are about each.

use std::sync::Arc;

use ahash::AHashMap;

use super::{Builder, moment::Moment};
use crate::cluster::{
    cause::Cause,
    object::{Key, Kind, Name, Pod, Service},
    problem::Problem,
    warm_gate::{Curve, Gated, Gates},
};

impl Builder {
    /// The pods with the gate, as of the last [`Builder::build`].
    pub fn gates(&self) -> &Arc<Gates> {
        &self.gates
    }

    /// A pod has come, changed or gone.
    pub(super) fn note_gate(&mut self, name: &Name) {
        let here = self.options.node.as_ref();
        let ours = |pod: &Arc<Pod>| pod.warm_gate.is_some() && here.is_some() && pod.node.as_ref() == here;
        let changed = if self.store.pods.get(name).is_some_and(ours) {
            self.gated.insert(name.clone());
            true
        } else {
            self.gated.remove(name)
        };
        self.gates_changed |= changed;
    }

    /// Finds the warm-ups anew. Costs nothing while no pod has the gate, and little while none is on its way.
    pub(super) fn find_gates(&mut self, now: Moment) {
        if !std::mem::take(&mut self.gates_changed) || !self.options.warm_gates {
            return;
        }
        let enrolled = self.store.namespaces.values().filter(|namespace| namespace.capture == Some(true));
        let enrolled = enrolled.map(|namespace| namespace.name.clone()).collect();
        let pods = self.gated.iter().filter_map(|name| self.store.pods.get(name));
        let pods = pods.filter(|pod| self.store.is_opted_in(&pod.name.namespace));
        let mut pods: Vec<_> = pods.filter_map(|pod| Some((&pod.name, pod, Gated::alone(pod)?))).collect();
        // A Service's EndpointSlices come when they come: which pods are behind it its selector says.
        let mut selecting: AHashMap<&Arc<str>, Vec<&Service>> = AHashMap::new();
        for (name, ..) in pods.iter().filter(|(.., gated)| gated.is_moving()) {
            selecting.entry(&name.namespace).or_default();
        }
        if !selecting.is_empty() {
            for service in self.store.services.values().filter(|service| !service.selector.is_empty()) {
                if let Some(services) = selecting.get_mut(&service.name.namespace) {
                    services.push(service);
                }
            }
        }
        for (name, pod, gated) in pods.iter_mut().filter(|(.., gated)| gated.is_moving()) {
            let since_nanos = gated.gate.waits_since.map_or(now.nanos as i64, |since| now.nanos_of(since));
            let selects = |service: &&&Service| {
                service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
            };
            let selecting = selecting.get(&name.namespace).into_iter().flatten().filter(selects);
            let mut services: Vec<_> = selecting.map(|service| &service.name).collect();
            // And whoever has put it into a slice by hand.
            services.extend(self.by_pod.get(*name).into_iter().flatten().map(|service| &**service));
            services.sort_unstable();
            services.dedup();
            gated.curves =
                services.into_iter().flat_map(|service| self.curves(service, pod, since_nanos)).collect();
        }
        let pods = pods.into_iter().map(|(name, _, gated)| (name.clone(), gated)).collect();
        let gates = Gates { enrolled, pods };
        if *self.gates != gates {
            self.gates = Arc::new(gates);
        }
    }

    /// Those of the ports of a Service.
    fn curves<'a>(
        &'a self,
        service: &Name,
        pod: &'a Pod,
        since_nanos: i64,
    ) -> impl Iterator<Item = Curve> + use<'a> {
        let built = self.built.get(service);
        let warming = built.into_iter().flat_map(|built| built.governors().map(move |of| (built, of)));
        let warming = warming.filter(|(_, (_, governor))| governor.policy().load_balancer.warmup.is_some());
        warming.map(move |(built, (port, governor))| {
            let parts = [false, true].into_iter().filter_map(|ipv6| built.part(port, ipv6));
            let endpoint = parts.flat_map(|part| &part.endpoints).find(|endpoint| {
                let ours = endpoint.pod.as_ref() == Some(&pod.name.name) && !endpoint.terminating;
                ours && endpoint.ready_since_nanos.is_some()
                    && pod.ips.contains(&endpoint.address.ip().to_canonical())
            });
            Curve { governor: governor.clone(), endpoint: endpoint.cloned(), since_nanos }
        })
    }

    /// Pods that nobody will ever make Ready.
    pub(super) fn unset_gates(&self) -> impl Iterator<Item = Problem> {
        let gated = self.gated.iter().filter(|_| !self.options.warm_gates);
        let pods = gated.filter_map(|name| self.store.pods.get(name));
        let waiting = pods.filter(|pod| {
            Gated::alone(pod).is_some_and(|gated| gated.gate.waits_since.is_some() && gated.is_moving())
        });
        waiting.map(|pod| {
            let key = Key { kind: Kind::Pod, name: pod.name.clone() };
            let message = "sluice.dev/warm is a readiness gate that the agent sets with --warm-gate only, which is off: the pod \
                           does not become Ready";
            Problem::of(key, message).at("spec.readinessGates").by(Cause::GateUnset)
        })
    }
}
