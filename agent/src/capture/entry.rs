//! What the programs know of one pod. Two write it: the enrolling task, as the pod comes, changes and goes, and the proxy, which
//! says where the pod's new connections are to go.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{EnrolError, maps::Pods, pod::with_addresses};
use crate::cluster::model::Workload;

/// A pod's element of the map of pods.
pub(crate) struct Entry {
    pods: Arc<Pods>,
    netns_cookie: u64,
    value: Mutex<Value>,
}

struct Value {
    pod: sluice_ebpf::Pod,
    /// It is in the map.
    listed: bool,
}

impl Entry {
    /// Not in the map yet.
    pub(crate) fn new(pods: Arc<Pods>, netns_cookie: u64, pod: sluice_ebpf::Pod) -> Self {
        Self { pods, netns_cookie, value: Mutex::new(Value { pod, listed: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, Value> {
        // Nothing that holds it can leave it half-changed.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn list(&self) -> Result<(), EnrolError> {
        let mut value = self.lock();
        self.pods.set(self.netns_cookie, value.pod)?;
        value.listed = true;
        Ok(())
    }

    pub(crate) fn unlist(&self) -> Result<(), EnrolError> {
        let mut value = self.lock();
        self.pods.remove(self.netns_cookie)?;
        value.listed = false;
        Ok(())
    }

    /// The workload may have other addresses now.
    pub(crate) fn set_addresses(&self, workload: &Workload) -> Result<(), EnrolError> {
        let mut value = self.lock();
        let pod = with_addresses(value.pod, workload);
        self.set(&mut value, pod)
    }

    /// New connections go direct from now on, or are redirected again.
    pub(crate) fn set_direct(&self, direct: bool) -> io::Result<()> {
        let mut value = self.lock();
        let pod = sluice_ebpf::Pod { direct: direct.into(), ..value.pod };
        self.set(&mut value, pod).map_err(io::Error::other)
    }

    fn set(&self, value: &mut Value, pod: sluice_ebpf::Pod) -> Result<(), EnrolError> {
        if value.listed && pod != value.pod {
            self.pods.set(self.netns_cookie, pod)?;
        }
        value.pod = pod;
        Ok(())
    }
}
