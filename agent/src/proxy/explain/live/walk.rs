//! What the steps of an explanation have in common: the request on its way through them, and how it may end.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;

use crate::{
    cluster::model::{Destination, Service, Snapshot, Workload},
    govern::{
        endpoint::Endpoint,
        governor::{Beside, Governor, Ruled},
        lane::Distrust,
        policy::{FallbackOn, Part},
        remembered::Remembered,
        route::Lane,
    },
    observe::reason::Reason,
    proxy::{
        explain::{Candidate, Outcome, Steps, rule},
        http1::View,
        way::{self, Course},
    },
};

/// Why the request ends at a step.
pub(super) struct Stopped {
    pub(super) reason: Reason,
    pub(super) on: Option<FallbackOn>,
    /// What there is to say beyond the reason.
    pub(super) because: Option<String>,
}

/// Where it goes.
pub(super) struct Chosen {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) lane: Lane,
}

pub(super) struct Walk<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) steps: Steps,
    /// That the request goes to.
    pub(super) service: &'a Service,
    pub(super) dialled: &'a Destination,
    /// What its routes have decided, if it has any, and what is answered if it goes nowhere.
    pub(super) routed: Option<(&'a Course, Option<&'a way::Answer>)>,
    /// What the client says of its tag that does not count.
    pub(super) distrust: Distrust<'a>,
    pub(super) caller: &'a Workload,
    pub(super) remembered: Option<&'a Remembered>,
    pub(super) links: bool,
    /// The head as it came, with what routes change in it, which is asked for the tag.
    pub(super) came: View<'a>,
    /// The head with its tag, which policies are asked about.
    pub(super) forwarded: BytesMut,
    /// The rule of the policy that holds for the request.
    pub(super) ruled: Option<&'a Ruled>,
    /// The limits of others that could.
    pub(super) beside: Option<Box<Beside>>,
    pub(super) now: u64,
    pub(super) candidates: Vec<Candidate>,
}

impl<'a> Walk<'a> {
    /// What governs the request.
    pub(super) fn governor(&self) -> &'a Governor {
        self.ruled.map_or(&self.service.governor, |ruled| &ruled.governor)
    }

    pub(super) fn policy(&self) -> Option<&str> {
        self.governor().policy().name.as_deref()
    }

    /// A rule, and the policy that says it.
    #[expect(clippy::unnecessary_wraps, reason = "as a step takes it")]
    pub(super) fn rule(&self, name: &str, part: Part) -> Option<String> {
        Some(rule(name, self.governor().policy().said_by(part).map(|name| &**name)))
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a step takes it")]
    pub(super) fn service_object(&self) -> Option<String> {
        Some(format!("Service {}/{}", self.service.namespace, self.service.name))
    }
}

pub(super) fn made_up(reason: Reason, what: String) -> Outcome {
    Outcome { status: Some(reason.status()), reason: Some(reason.code().to_owned()), ..Outcome::of(what) }
}

/// As people read it: `1.5s`, `38ms`.
pub(super) fn shown(time: Duration) -> String {
    let rounded = if time >= Duration::from_secs(1) {
        Duration::from_millis((time.as_millis() / 100 * 100) as u64)
    } else {
        Duration::from_millis(time.as_millis() as u64)
    };
    if rounded.is_zero() { "less than 1ms".to_owned() } else { format!("{rounded:?}") }
}
