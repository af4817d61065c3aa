//! The objects as they are, and the indices to find them by.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use ahash::{AHashMap, AHashSet};
use smallvec::SmallVec;

use super::{accesses::Accesses, lanes::Lanes, pods::Pods, policies::Policies};
use crate::{
    api::TagPropagation,
    cluster::object::{EndpointSlice, Name, Namespace, Pod, PodReference, Service},
    govern::{caller::Labels, governor::Governor, tag::Tag},
};

#[derive(Default)]
pub(super) struct Store {
    /// What governors begin with; by it they share what is one for the whole agent.
    pub(super) seed: Arc<Governor>,
    pub(super) namespaces: AHashMap<Arc<str>, Namespace>,
    pub(super) services: AHashMap<Name, Service>,
    pub(super) slices: AHashMap<Name, Arc<EndpointSlice>>,
    pub(super) pods: Pods,
    pub(super) policies: Policies,
    pub(super) lanes: Lanes,
    pub(super) accesses: Accesses,
    /// Agents set the readiness gate of pods that are warm.
    pub(super) warm_gates: bool,
    /// All that pods have, each once.
    labels: AHashSet<Labels>,
    /// Names of slices by their Service.
    slices_of: AHashMap<Name, BTreeSet<Arc<str>>>,
}

impl Store {
    pub(super) fn new(warm_gates: bool) -> Self {
        Self { warm_gates, ..Self::default() }
    }

    pub(super) fn is_opted_in(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|namespace| namespace.capture == Some(true))
    }

    /// By what a pod's requests get the tag of those that they are sent for.
    pub(super) fn propagation(&self, pod: &Pod) -> TagPropagation {
        let of_namespace = || self.namespaces.get(&pod.name.namespace)?.propagation;
        pod.propagation.or_else(of_namespace).unwrap_or_default()
    }

    /// A Service's slices, by name.
    pub(super) fn slices_of(&self, service: &Name) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|slice| {
            let name = Name { namespace: service.namespace.clone(), name: slice.clone() };
            self.slices.get(&name).map(|slice| &**slice)
        })
    }

    /// The pod that a slice means. Not one that has come after it under the same name.
    pub(super) fn pod(&self, reference: &PodReference) -> Option<&Pod> {
        let pod = self.pods.get(&reference.name)?;
        let another = reference.uid.as_ref().zip(pod.uid.as_ref()).is_some_and(|(meant, uid)| meant != uid);
        (!another).then_some(pod)
    }

    /// Since when a pod may be called; `None`: it may not. One with the readiness gate `sluice.dev/warm` may be before it is
    /// Ready, which it becomes when it is warm.
    pub(super) fn ready_since(&self, pod: &Pod) -> Option<SystemTime> {
        match &pod.warm_gate {
            Some(gate) if self.warm_gates => gate.waits_since,
            _ => pod.ready_since,
        }
    }

    /// A pod's own tag, or that of the lane that selects it.
    pub(super) fn tag_of<'a>(&'a self, pod: &'a Pod) -> Option<&'a Tag> {
        pod.tag.as_ref().or_else(|| self.lanes.tag_of(&pod.name))
    }

    /// Puts a slice in; gives the Services that it belonged and belongs to.
    pub(super) fn set_slice(
        &mut self,
        name: &Name,
        slice: Option<Arc<EndpointSlice>>,
    ) -> SmallVec<[Name; 2]> {
        let mut services = SmallVec::new();
        let service = |slice: &Arc<EndpointSlice>| {
            let service = slice.service.clone()?;
            Some(Name { namespace: name.namespace.clone(), name: service })
        };
        let before = self.slices.get(name);
        if before == slice.as_ref() {
            return services;
        }
        let mut slice = slice;
        // What stays the same is in memory once, however often the slice changes.
        let name = &before.map_or(name, |before| &before.name).clone();
        if let Some(slice) = &mut slice {
            share_texts_of_slice(slice, before, &self.pods);
        }
        if let Some(of) = before.and_then(service) {
            if let Some(slices) = self.slices_of.get_mut(&of) {
                slices.remove(&name.name);
                if slices.is_empty() {
                    self.slices_of.remove(&of);
                }
            }
            services.push(of);
        }
        if let Some(of) = slice.as_ref().and_then(service) {
            self.slices_of.entry(of.clone()).or_default().insert(name.name.clone());
            services.push(of);
        }
        match slice {
            Some(slice) => self.slices.insert(name.clone(), slice),
            None => self.slices.remove(name),
        };
        services
    }

    /// Puts a pod in; gives the one that was there.
    pub(super) fn set_pod(&mut self, name: &Name, pod: Option<Arc<Pod>>) -> Option<Arc<Pod>> {
        let Some(mut pod) = pod else { return self.pods.remove(name) };
        let labels = self.shared(&pod.labels);
        share_texts_of_pod(&mut pod, labels, self.pods.get(name));
        self.pods.set(pod)
    }

    /// Looks which lane has a pod. Tells whether that gives it another tag, and the lanes whose verdicts it may change.
    pub(super) fn select(&mut self, pod: &Name) -> (bool, SmallVec<[Name; 2]>) {
        self.lanes.select(pod, self.pods.get(pod).map(|pod| &**pod))
    }

    /// Lets go of labels that no pod has any more.
    pub(super) fn forget_labels(&mut self) {
        self.labels.retain(|labels| !labels.is_unshared());
    }

    /// The same labels, in memory once.
    fn shared(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.get(labels) {
            return known.clone();
        }
        if !labels.is_empty() {
            self.labels.insert(labels.clone());
        }
        labels.clone()
    }
}

/// Lets a slice name pods by their own texts, of which each would be in memory twice, and itself by those that it had before.
fn share_texts_of_slice(slice: &mut Arc<EndpointSlice>, before: Option<&Arc<EndpointSlice>>, pods: &Pods) {
    // Nobody else has it yet, as a rule.
    let Some(slice) = Arc::get_mut(slice) else { return };
    if let Some(before) = before {
        slice.name = before.name.clone();
        share(&mut slice.service, before.service.as_ref());
    }
    for reference in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.pod.as_mut()) {
        let Some(pod) = pods.get(&reference.name) else { continue };
        reference.name = pod.name.clone();
        share(&mut reference.uid, pod.uid.as_ref());
    }
}

/// Gives a pod the labels that others have, and the texts that it had before: slices and all that is made of them name it by those,
/// and a pod that changes every few minutes would be in memory with the texts of each time.
fn share_texts_of_pod(pod: &mut Arc<Pod>, labels: Labels, before: Option<&Arc<Pod>>) {
    // Nobody else has it yet, as a rule.
    let pod = Arc::make_mut(pod);
    pod.labels = labels;
    if let Some(before) = before {
        pod.name = before.name.clone();
        share(&mut pod.uid, before.uid.as_ref());
    }
    if let Some(for_node) = &mut pod.for_node {
        share(&mut for_node.cgroup_uid, pod.uid.as_ref());
    }
}

/// The same text, if it is the same.
fn share(text: &mut Option<Arc<str>>, known: Option<&Arc<str>>) {
    if text.as_ref() == known {
        *text = known.cloned();
    }
}
