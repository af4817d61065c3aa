//! Who calls whom: each enrolled pod, and each service and lane that it has called, over the last ten seconds.
//!
//! Bounded: a call takes about 400 bytes, and there are at most [`MAX_CALLS`]. Those of pods that are gone go with them.

use std::sync::{Arc, Weak};

use ahash::AHashMap;

use super::Name;
use crate::observe::{
    history::RECENT,
    metrics::{Flow, LaneLabel, Requests, Series},
};

/// Of a node with 110 pods, some 37 a pod.
const MAX_CALLS: usize = 4096;

/// All calls.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// By its address.
    by_series: AHashMap<usize, Call>,
    second: u64,
    /// Calls that there was no room for in the last second.
    pub(super) not_shown: usize,
}

/// A pod, and what it calls.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) source_namespace: Arc<str>,
    pub(super) source_pod: Arc<str>,
    pub(super) destination: Name,
    pub(super) lane: LaneLabel,
    pub(super) requests: Requests,
    /// Keeps the address from being another's, and nothing else.
    _series: Weak<Series>,
    /// Requests, errors and refusals of the last seconds, by the second.
    recent: [(u64, [u32; 3]); RECENT],
}

impl Calls {
    /// Another second is over.
    pub(super) fn begin(&mut self, second: u64) {
        self.second = second;
        self.not_shown = 0;
    }

    pub(super) fn note(&mut self, flow: &Flow<'_>, series: &Arc<Series>, requests: &Requests) {
        let at = Arc::as_ptr(series).addr();
        let room = self.by_series.len() < MAX_CALLS;
        let call = match self.by_series.entry(at) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                if !room {
                    self.not_shown += 1;
                    return;
                }
                new.insert(Call::begin(flow, series))
            }
        };
        call.note(self.second, requests);
    }

    /// All calls of this second have been noted: the others are gone.
    pub(super) fn end(&mut self) {
        let second = self.second;
        self.by_series.retain(|_, call| call.recent[slot(second)].0 == second);
    }

    /// All that were made at least once, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Call> {
        self.by_series.values().filter(|call| call.requests != Requests::default())
    }

    /// Requests, errors and refusals of a call in the last seconds.
    pub(super) fn recent(&self, call: &Call) -> [u64; 3] {
        let mut sum = [0; 3];
        for (second, counts) in call.recent {
            if second > 0 && self.second - second < RECENT as u64 {
                sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(count));
            }
        }
        sum
    }
}

impl Call {
    fn begin(flow: &Flow<'_>, series: &Arc<Series>) -> Self {
        Self {
            source_namespace: flow.source_namespace.clone(),
            source_pod: flow.source_pod.clone(),
            destination: Name {
                namespace: flow.namespace.clone(),
                name: flow.service.clone(),
                port: flow.port,
            },
            lane: flow.lane.clone(),
            requests: Requests::default(),
            _series: Arc::downgrade(series),
            recent: [(0, [0; 3]); RECENT],
        }
    }

    fn note(&mut self, second: u64, now: &Requests) {
        let since = |now: u64, before: u64| u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX);
        let before = self.requests;
        self.recent[slot(second)] = (
            second,
            [
                since(now.ended, before.ended),
                since(now.errors, before.errors),
                since(now.refused, before.refused),
            ],
        );
        self.requests = *now;
    }
}

fn slot(second: u64) -> usize {
    (second % RECENT as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_takes_as_little_as_stated() {
        assert!(size_of::<(usize, Call)>() <= 400, "{}", size_of::<(usize, Call)>());
    }
}
