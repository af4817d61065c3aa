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
    /// Connections that were redirected since it was last said how many may be, as older elements have counted.
    redirected: u64,
}

impl Entry {
    /// Not in the map yet.
    pub(crate) fn new(pods: Arc<Pods>, netns_cookie: u64, pod: sluice_ebpf::Pod) -> Self {
        Self { pods, netns_cookie, value: Mutex::new(Value { pod, listed: false, redirected: 0 }) }
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
        if pod == value.pod {
            return Ok(());
        }
        if value.listed {
            // The programs count anew in a new element, and allow as many again until they are told otherwise.
            let redirected = self.pods.redirected(self.netns_cookie);
            self.pods.set(self.netns_cookie, pod)?;
            value.redirected += redirected;
        }
        value.pod = pod;
        Ok(())
    }

    /// How many connections were redirected since it was last said how many may be.
    pub(crate) fn redirected(&self) -> u64 {
        let value = self.lock();
        value.redirected + if value.listed { self.pods.redirected(self.netns_cookie) } else { 0 }
    }

    /// So many new connections are redirected from now on; further ones go direct.
    pub(crate) fn allow(&self, connections: u32) -> io::Result<()> {
        let mut value = self.lock();
        let pod = sluice_ebpf::Pod { allowance: connections, ..value.pod };
        if value.listed {
            self.pods.set(self.netns_cookie, pod).map_err(io::Error::other)?;
        }
        (value.pod, value.redirected) = (pod, 0);
        Ok(())
    }
}
