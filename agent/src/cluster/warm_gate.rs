//! Pods that become Ready only when they are warm: what the condition `sluice.dev/warm` of each is to say.
//!
//! A pod with the [readiness gate](https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-readiness-gate)
//! of that name gets managed requests along its [warm-up](crate::govern::warmup) once its containers are ready, and the agent of
//! its node says so when the last of its curves has ended: the pod becomes Ready, and a rollout goes on. Where no warm-up is
//! about the pod there is nothing to wait for, and it is said at once; and nothing is waited for longer than `maxWait`.
//!
//! All of it comes from what the API server tells of the pod, so that an agent that starts in the middle goes on where the other
//! was. [`super::builder`] finds the pods and their curves; who has the right writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    cluster::object::{Name, Pod, ToldWarm, WarmGate},
    govern::{
        endpoint::Endpoint,
        governor::Governor,
        warmup::{self, Stage},
    },
};

/// The pods of this node that have the gate, in namespaces that are enrolled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gates {
    pub enrolled: BTreeSet<Arc<str>>,
    pub pods: BTreeMap<Name, Gated>,
}

/// A pod with the gate.
#[derive(Clone, Debug)]
pub struct Gated {
    pub uid: Option<Arc<str>>,
    pub gate: WarmGate,
    /// A container has started since the condition was last set.
    pub has_restarted: bool,
    pub is_leaving: bool,
    /// Warm-ups of the ports of its Services, where they matter for what is to be said.
    pub curves: Vec<Curve>,
}

/// The warm-up of a port that leads to the pod.
#[derive(Clone, Debug)]
pub struct Curve {
    /// Has the port's policy.
    pub governor: Arc<Governor>,
    /// `None`: it is in no EndpointSlice yet.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Since when the pod waits, on the monotonic clock.
    pub since_nanos: i64,
}

/// What the condition is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Warm,
    /// No warm-up is about it.
    NotNeeded,
    /// `maxWait` is over.
    WaitedLongEnough,
    WarmingUp,
    /// It was warm, and begins anew.
    Restarted,
}

impl Word {
    pub fn is_warm(self) -> bool {
        matches!(self, Self::Warm | Self::NotNeeded | Self::WaitedLongEnough)
    }

    pub fn reason(self) -> &'static str {
        match self {
            Self::Warm => "WarmedUp",
            Self::NotNeeded => "NoWarmUp",
            Self::WaitedLongEnough => "MaxWaitOver",
            Self::WarmingUp => "WarmingUp",
            Self::Restarted => "ContainerRestarted",
        }
    }

    pub fn message(self) -> &'static str {
        match self {
            Self::Warm => "its warm-up has ended",
            Self::NotNeeded => {
                "no TrafficPolicy with loadBalancer.warmUp is active for a Service of this pod"
            }
            Self::WaitedLongEnough => "its warm-up has not ended, and loadBalancer.warmUp.maxWait is over",
            Self::WarmingUp => {
                "its share of the managed requests grows; it becomes Ready when the warm-up has ended"
            }
            Self::Restarted => "a container has restarted: it warms up again once its containers are ready",
        }
    }
}

/// Where a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Its containers, or other gates, are not ready.
    NotReady,
    WarmingUp,
    /// Its condition is to be set, and is not.
    Due,
    Warm,
}

impl State {
    pub const ALL: [Self; 4] = [Self::NotReady, Self::WarmingUp, Self::Due, Self::Warm];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::WarmingUp => "warming_up",
            Self::Due => "due",
            Self::Warm => "warm",
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::NotReady => "Its containers, or other readiness gates of it, are not ready",
            Self::WarmingUp => "Its warm-up has not ended",
            Self::Due => "Its condition is to be set now; if this lasts, `sluice status` says why",
            Self::Warm => "Its condition is True",
        }
    }
}

impl Gated {
    /// One of which nothing is known but what it says.
    pub fn alone(pod: &Pod) -> Option<Self> {
        let gate = (**pod.warm_gate.as_ref()?).clone();
        let since = gate.told.as_ref().and_then(|told| told.since);
        let started = pod.started.map(|started| Duration::from_secs(started.get().into()));
        let has_restarted = since.zip(started).is_some_and(|(since, started)| {
            since.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| started > since)
        });
        let is_leaving = pod.terminating || pod.finished;
        Some(Self { uid: pod.uid.clone(), gate, has_restarted, is_leaving, curves: Vec::new() })
    }

    pub fn is_warm(&self) -> bool {
        self.gate.told.as_ref().is_some_and(|told| told.is_warm)
    }

    /// Whether it depends on its curves what is to be said of it.
    pub fn is_moving(&self) -> bool {
        !self.is_leaving && (self.gate.waits_since.is_some() != self.is_warm())
    }

    /// What is to be said; `None`: what stands there is to stay.
    pub fn word(&self, now_nanos: u64) -> Option<Word> {
        if !self.is_moving() {
            return None;
        }
        if self.gate.waits_since.is_none() {
            // A container that runs on, and only fails its probe, is as warm as it was.
            let restarts = self.gate.is_down || self.has_restarted;
            return (restarts && !self.curves.is_empty()).then_some(Word::Restarted);
        }
        let words = self.curves.iter().map(|curve| curve.word(now_nanos));
        // The one that is furthest from being warm.
        Some(
            words
                .max_by_key(|word| (!word.is_warm(), *word == Word::WaitedLongEnough))
                .unwrap_or(Word::NotNeeded),
        )
    }

    pub fn state(&self, now_nanos: u64) -> State {
        match self.word(now_nanos) {
            _ if self.is_warm() => State::Warm,
            Some(Word::WarmingUp) => State::WarmingUp,
            Some(word) if word.is_warm() => State::Due,
            _ => State::NotReady,
        }
    }
}

impl Curve {
    fn word(&self, now_nanos: u64) -> Word {
        let Some(policy) = &self.governor.policy().load_balancer.warmup else { return Word::Warm };
        // In no slice yet, it is as if it were somewhere.
        let nowhere = || Endpoint {
            ready_since_nanos: Some(self.since_nanos),
            ..Endpoint::new((Ipv4Addr::UNSPECIFIED, 0).into())
        };
        let endpoint = self.endpoint.clone().unwrap_or_else(|| Arc::new(nowhere()));
        let waited = i128::from(now_nanos) - i128::from(self.since_nanos);
        match warmup::stage(policy, &endpoint, now_nanos) {
            Stage::Warm => Word::Warm,
            _ if waited >= policy.max_wait().as_nanos() as i128 => Word::WaitedLongEnough,
            Stage::Delayed | Stage::Warming(_) => Word::WarmingUp,
        }
    }
}

/// Whether that stands there already.
pub fn says_so(told: Option<&ToldWarm>, word: Word) -> bool {
    told.is_some_and(|told| told.is_warm == word.is_warm() && &*told.reason == word.reason())
}

impl PartialEq for Gated {
    fn eq(&self, other: &Self) -> bool {
        let Self { uid, gate, has_restarted, is_leaving, curves } = other;
        (&self.uid, &self.gate, &self.curves) == (uid, gate, curves)
            && (self.has_restarted, self.is_leaving) == (*has_restarted, *is_leaving)
    }
}

impl PartialEq for Curve {
    fn eq(&self, other: &Self) -> bool {
        let Self { governor, endpoint, since_nanos: _ } = other;
        // By when the clocks were read it differs by nothing that matters.
        let same = match (&self.endpoint, endpoint) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        Arc::ptr_eq(&self.governor, governor) && same
    }
}

#[cfg(test)]
mod tests;
