//! What is counted on a pod's budget for as long as somebody holds it: connections, bytes that wait, receive buffers that grew.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{Guest, PodBudget};
use crate::clock::Nanos;

/// The part of the bytes that receive buffers may have grown by: they are filled only where somebody stalls.
const GROWTH_PART: usize = 4;

/// A connection, counted until it is dropped.
pub(crate) struct Place {
    pod: Arc<PodBudget>,
    guest: Option<Guest>,
}

impl Place {
    /// It has been counted already.
    pub(super) fn new(pod: Arc<PodBudget>) -> Self {
        Self { pod, guest: None }
    }

    /// The same, and whose connection it is.
    pub(crate) fn of(mut self, guest: Option<Guest>) -> Self {
        self.guest = guest;
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pod.connections.fetch_sub(1, Relaxed);
        self.pod.all.connections.fetch_sub(1, Relaxed);
    }
}

/// Bytes that wait for a pod's slow peers, given back when it is dropped.
pub(crate) struct Waiting {
    pod: Arc<PodBudget>,
    amount: usize,
}

impl Waiting {
    pub(super) fn new(pod: Arc<PodBudget>) -> Self {
        Self { pod, amount: 0 }
    }

    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// So much waits from now on.
    pub(crate) fn set(&mut self, amount: usize, now: Nanos) {
        let before = std::mem::replace(&mut self.amount, amount);
        for total in [&self.pod.bytes, &self.pod.all.bytes] {
            if amount >= before {
                total.fetch_add(amount - before, Relaxed);
            } else {
                total.fetch_sub(before - amount, Relaxed);
            }
        }
        if amount > before {
            self.pod.note(now);
        } else if self.pod.refuses() {
            self.pod.note_refusal();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.set(0, Nanos::ZERO);
    }
}

/// By how much a receive buffer has grown, given back when it is dropped.
pub(crate) struct Growth {
    pod: Arc<PodBudget>,
    amount: usize,
}

impl Growth {
    pub(super) fn new(pod: Arc<PodBudget>) -> Self {
        Self { pod, amount: 0 }
    }

    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// So large it is now; false, and nothing changed, if that is more than the pod may have: as much as is free, like
    /// everything else that pods share.
    pub(crate) fn set(&mut self, amount: usize) -> bool {
        let before = self.amount;
        if amount > before {
            let (more, all) = (amount - before, &self.pod.all);
            let free =
                (all.limits.bytes / GROWTH_PART).saturating_sub(all.grown.load(Relaxed)).saturating_sub(more);
            if self.pod.grown.load(Relaxed) + more > free {
                return false;
            }
            self.pod.grown.fetch_add(more, Relaxed);
            all.grown.fetch_add(more, Relaxed);
        } else {
            self.pod.grown.fetch_sub(before - amount, Relaxed);
            self.pod.all.grown.fetch_sub(before - amount, Relaxed);
        }
        self.amount = amount;
        true
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.set(0);
    }
}
