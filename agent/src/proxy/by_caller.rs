//! A request together with the pod that sent it, as rules see them.

use std::{cell::OnceCell, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use http::HeaderName;

use crate::{
    cluster::model::Workload,
    govern::{caller::Caller, request::Request},
};

/// What [`Request`] asks of a head the protocol's own view answers.
pub(crate) struct ByCaller<V, W> {
    pub(crate) view: V,
    pub(crate) workload: W,
}

/// The calling pod, or what is known of it at the moment.
pub(crate) trait Calling {
    fn workload(&self) -> &Workload;
}

impl Calling for &Workload {
    fn workload(&self) -> &Workload {
        self
    }
}

/// What is known of the calling pod when the first rule asks, and as long as this lasts. Hardly any rule does.
pub(crate) struct OfLate<'p> {
    pod: &'p ArcSwap<Workload>,
    seen: OnceCell<Guard<Arc<Workload>>>,
}

impl<'p> OfLate<'p> {
    pub(crate) fn new(pod: &'p ArcSwap<Workload>) -> Self {
        Self { pod, seen: OnceCell::new() }
    }
}

impl Calling for OfLate<'_> {
    fn workload(&self) -> &Workload {
        self.seen.get_or_init(|| self.pod.load())
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
        Some(self.workload.workload().caller())
    }
}
