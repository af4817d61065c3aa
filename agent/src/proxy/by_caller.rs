//! A request together with the pod that sent it, as rules see them.

use std::{cell::OnceCell, sync::Arc};

use arc_swap::Guard;
use http::HeaderName;

use super::worker::PodHere;
use crate::{
    cluster::model::Workload,
    govern::{access::Identity, caller::Caller, request::Request},
};

/// What [`Request`] asks of a head the protocol's own view answers.
pub(crate) struct ByCaller<V, W> {
    pub(crate) view: V,
    pub(crate) workload: W,
}

/// The calling pod, or what is known of it at the moment.
pub(crate) trait Calling {
    fn caller(&self) -> Option<Caller<'_>>;
}

impl Calling for &Workload {
    fn caller(&self) -> Option<Caller<'_>> {
        Some(Workload::caller(self))
    }
}

/// What is known of the calling pod when the first rule asks, and as long as this lasts. Hardly any rule does.
pub(crate) struct OfLate<'p> {
    pod: &'p PodHere,
    seen: OnceCell<Guard<Arc<Workload>>>,
    /// Of a client from outside.
    client: OnceCell<Option<Arc<Identity>>>,
}

impl<'p> OfLate<'p> {
    pub(crate) fn new(pod: &'p PodHere) -> Self {
        Self { pod, seen: OnceCell::new(), client: OnceCell::new() }
    }
}

impl Calling for OfLate<'_> {
    fn caller(&self) -> Option<Caller<'_>> {
        if let Some(arrival) = &self.pod.arrival {
            let Identity { namespace, workload, labels, .. } =
                &**self.client.get_or_init(|| arrival.client_pod()).as_ref()?;
            return Some(Caller { namespace, workload, labels });
        }
        Some(self.seen.get_or_init(|| self.pod.pod.workload.load()).caller())
    }
}

impl<V: Request, W: Calling> Request for ByCaller<V, W> {
    fn method(&self) -> &[u8] {
        self.view.method()
    }

    fn target(&self) -> &[u8] {
        self.view.target()
    }

    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.view.header(name)
    }

    fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
        self.view.each_header(name, each);
    }

    fn caller(&self) -> Option<Caller<'_>> {
        self.workload.caller()
    }
}
