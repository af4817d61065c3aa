//! The states of a breaker, and the record of how it came from one to the other.

use std::{collections::VecDeque, fmt, time::Duration};

use crate::govern::outcome::ErrorKind;

/// How many transitions are remembered.
const REMEMBERED: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Requests pass and are counted.
    Closed,
    /// None passes.
    Open,
    /// A few pass as probes.
    HalfOpen,
}

impl State {
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// What it means, for the reference.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Closed => "Requests pass.",
            Self::Open => "Requests are rejected.",
            Self::HalfOpen => "A few requests pass as probes; the others are rejected.",
        }
    }

    /// The word for machines.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What made a breaker change its state, with the numbers that decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Why {
    ErrorPercent {
        errors: u64,
        requests: u64,
        limit: f64,
    },
    ErrorCount {
        errors: u64,
        requests: u64,
        limit: u32,
    },
    SlowPercent {
        slow: u64,
        requests: u64,
        threshold: Duration,
        limit: f64,
    },
    /// It was open for as long as it was to be.
    OpenElapsed {
        open: Duration,
    },
    ProbeFailed {
        error: ErrorKind,
    },
    ProbeSlow {
        threshold: Duration,
    },
    ProbesPassed {
        probes: u32,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ErrorPercent { errors, requests, limit } => {
                write!(out, "{errors} of {requests} requests failed, the limit is {limit} %")
            }
            Self::ErrorCount { errors, requests, limit } => {
                write!(out, "{errors} of {requests} requests failed, the limit is {limit}")
            }
            Self::SlowPercent { slow, requests, threshold, limit } => {
                write!(out, "{slow} of {requests} requests took over {threshold:?}, the limit is {limit} %")
            }
            Self::OpenElapsed { open } => write!(out, "it was open for {open:?}"),
            Self::ProbeFailed { error } => write!(out, "a probe failed: {error}"),
            Self::ProbeSlow { threshold } => write!(out, "a probe took over {threshold:?}"),
            Self::ProbesPassed { probes } => write!(out, "{probes} of {probes} probes were good"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// 1 for a breaker's first one; they have no gaps.
    pub number: u64,
    pub from: State,
    pub to: State,
    pub why: Why,
    pub at_nanos: u64,
}

/// How often a breaker has changed its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransitionCounts {
    /// Closed to open.
    pub tripped: u64,
    /// Open to half-open.
    pub probing: u64,
    /// Half-open to open.
    pub reopened: u64,
    /// Half-open to closed.
    pub recovered: u64,
}

impl TransitionCounts {
    /// Adds those of another breaker.
    pub fn add(&mut self, other: Self) {
        self.tripped += other.tripped;
        self.probing += other.probing;
        self.reopened += other.reopened;
        self.recovered += other.recovered;
    }

    pub const fn total(&self) -> u64 {
        self.tripped + self.probing + self.reopened + self.recovered
    }
}

/// The last transitions, and how many there were.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    pub(super) counts: TransitionCounts,
    pub(super) recent: VecDeque<Transition>,
}

impl Log {
    pub(super) fn note(&mut self, from: State, to: State, why: Why, at_nanos: u64) {
        let count = match (from, to) {
            (State::HalfOpen, State::Open) => &mut self.counts.reopened,
            (_, State::Open) => &mut self.counts.tripped,
            (_, State::HalfOpen) => &mut self.counts.probing,
            (_, State::Closed) => &mut self.counts.recovered,
        };
        *count += 1;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(Transition { number: self.counts.total(), from, to, why, at_nanos });
    }
}
