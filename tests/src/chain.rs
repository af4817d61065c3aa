//! What `sluice-service` answers and `sluice-load` reports: the words between the programs in the pods and the tests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to a request that went along a chain of services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who answered, first hop first.
    pub chain: Vec<Hop>,
    /// Why the chain ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One service on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    pub service: String,
    pub version: String,
    pub pod: String,
    /// The request's headers as they arrived, and `:path`, when the query asks for `headers`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

impl Answer {
    /// The versions along the chain, as in `v1 gray v1`.
    pub fn versions(&self) -> String {
        let versions: Vec<&str> = self.chain.iter().map(|hop| hop.version.as_str()).collect();
        versions.join(" ")
    }
}

/// What a load generator did and saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    pub sent: u64,
    /// Answered with a status below 400.
    pub ok: u64,
    pub failed: u64,
    /// Failures by kind: `connect`, `reset`, `closed`, `timeout`, `status 503`, or with the reason that Sluice gives
    /// `status 503 circuit_open`...
    pub failures: BTreeMap<String, u64>,
    /// Requests that the last service received with the header that was asked about.
    pub marked: u64,
    /// Good answers by the versions along the chain.
    pub chains: BTreeMap<String, u64>,
    pub connections: u64,
    pub seconds: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    /// Each second by itself: good answers by the versions along the chain, the others by kind.
    pub timeline: Vec<BTreeMap<String, u64>>,
}

impl LoadReport {
    /// Counts what happened in a second.
    pub fn tell(&mut self, second: usize, what: String) {
        if self.timeline.len() <= second {
            self.timeline.resize_with(second + 1, BTreeMap::new);
        }
        *self.timeline[second].entry(what).or_default() += 1;
    }
}

/// What became of a storm of short connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StormReport {
    /// The server that was dialled answered.
    pub right: u64,
    /// Another one did.
    pub wrong: u64,
    /// Reset before anybody could answer, on purpose.
    pub abandoned: u64,
    /// Nobody answered.
    pub failed: u64,
    /// The first few of what went wrong.
    pub notes: Vec<String>,
}

impl StormReport {
    pub fn add(&mut self, other: Self) {
        self.right += other.right;
        self.wrong += other.wrong;
        self.abandoned += other.abandoned;
        self.failed += other.failed;
        other.notes.into_iter().for_each(|note| self.note(note));
    }

    pub fn note(&mut self, note: String) {
        if self.notes.len() < 10 {
            self.notes.push(note);
        }
    }
}
