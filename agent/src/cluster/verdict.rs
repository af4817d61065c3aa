//! What became of a TrafficPolicy or TrafficLane: the conditions that its status is to say.
//!
//! `Accepted`: it makes sense, and it is in force for something that it asks for. `Programmed`: it is in force for all of
//! that, on the agent that says so; the others follow within a second. Types and reasons are those of Gateway API's
//! policies, as far as they fit. <https://gateway-api.sigs.k8s.io/geps/gep-713/>

use std::{collections::BTreeMap, sync::Arc};

use super::object::{AtParent, Key, Told};
use crate::{api, govern::policy::Lane};

/// The verdicts on all objects of Sluice's own kinds.
pub type Verdicts = BTreeMap<Key, Judged>;

/// An object, what is to be said of it, and what its status says.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    pub uid: Option<Arc<str>>,
    pub generation: Option<i64>,
    pub verdict: Arc<Verdict>,
    pub told: Arc<[Told]>,
    /// The targets that it is to show, and those that it shows.
    pub targets: Option<Arc<str>>,
    pub shown: Option<Arc<str>>,
    /// Of a TrafficLane.
    pub lane: Option<OfLane>,
}

/// What is known of a lane of which a TrafficLane is.
#[derive(Clone, Debug, PartialEq)]
pub struct OfLane {
    /// As the object says it, valid or not.
    pub tag: Arc<str>,
    /// What is active of it: the last version that made sense. `None`: no version did, or its namespace is not enrolled.
    pub active: Option<Arc<Lane>>,
}

/// What is to be said of objects of Gateway API. Of those that are none of Sluice's business nothing is.
pub type GatewayVerdicts = BTreeMap<Key, OfGateway>;

/// An object of Gateway API, what is to be said of it, and what its status says in Sluice's name.
#[derive(Clone, Debug, PartialEq)]
pub struct OfGateway {
    pub uid: Option<Arc<str>>,
    pub generation: Option<i64>,
    pub word: Word,
    pub told: Word,
}

/// What a status says, or is to.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// A route's, of each parent.
    Route(Arc<[AtParent]>),
    Mesh {
        conditions: Arc<[Told]>,
        features: Arc<[Arc<str>]>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub extent: Extent,
    pub accepted: Condition,
    pub programmed: Condition,
}

/// How much of what an object asks for is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    All,
    Part,
    /// What its last valid version asks for; the current one is invalid.
    Earlier,
    /// It is invalid, and all is denied.
    Closed,
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub holds: bool,
    pub reason: Reason,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Accepted,
    Programmed,
    Invalid,
    TargetNotFound,
    Conflicted,
    /// Nothing in its namespace is managed.
    NamespaceNotEnrolled,
    /// The node that says so lacks what something of it needs.
    Unsupported,
    /// Keys that tokens are verified by were never read.
    KeysMissing,
    /// The object that has keys cannot be read any more, or has become bad.
    KeysOutdated,
}

impl Reason {
    /// Those of the condition `Programmed`.
    pub const OF_PROGRAMMED: [Self; 8] = [
        Self::Programmed,
        Self::Invalid,
        Self::TargetNotFound,
        Self::Conflicted,
        Self::NamespaceNotEnrolled,
        Self::Unsupported,
        Self::KeysMissing,
        Self::KeysOutdated,
    ];

    /// What it means, for the reference.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Accepted => "The object is valid and active for at least one of its targets.",
            Self::Programmed => "The object is active for all of its targets.",
            Self::Invalid => {
                "The object is invalid. The last valid version stays active; if there is none, nothing of it is active, or, for an AccessPolicy with `onInvalid: Deny`, all requests to its targets are denied."
            }
            Self::TargetNotFound => {
                "A Service or a route that the object targets, or a port or rule of it, does not exist."
            }
            Self::Conflicted => {
                "An older object of the same kind has precedence for a target; the message names it."
            }
            Self::NamespaceNotEnrolled => {
                "The object's namespace is not enrolled, so nothing of it is active."
            }
            Self::Unsupported => {
                "The node whose agent writes the status lacks something that the object asks for; the message says what. All else of it is active. `sluice status` of each node says where it is so."
            }
            Self::KeysMissing => {
                "The agent that writes the status has not been able to read the keys of a provider of tokens (`jwks.uri`, `jwks.configMap`, `jwks.secret`); the message says why. All else of the policy is active."
            }
            Self::KeysOutdated => {
                "The ConfigMap or Secret with the keys of a provider of tokens is gone, may not be read any more, or has no valid keys; the message says which, and why. The last keys stay in use."
            }
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Programmed => "Programmed",
            Self::Invalid => "Invalid",
            Self::TargetNotFound => "TargetNotFound",
            Self::Conflicted => "Conflicted",
            Self::NamespaceNotEnrolled => "NamespaceNotEnrolled",
            Self::Unsupported => "Unsupported",
            Self::KeysMissing => "KeysMissing",
            Self::KeysOutdated => "KeysOutdated",
        }
    }
}

/// Something that an object asks for and does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shortfall {
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Verdict {
    /// On an object that makes no sense. `in_force`: what is said of the version that still is.
    pub(super) fn invalid(wrong: impl IntoIterator<Item: std::fmt::Display>, in_force: Option<&str>) -> Self {
        match in_force {
            None => {
                Self::ineffective(wrong, Extent::Nothing, "no valid version of it is known: it is not active")
            }
            Some(version) => Self::ineffective(wrong, Extent::Earlier, &format!("{version} stays active")),
        }
    }

    /// On an object that makes no sense, never did, and says that everything is to be denied then.
    pub(super) fn invalid_and_closed(wrong: impl IntoIterator<Item: std::fmt::Display>) -> Self {
        let effect =
            "no valid version of it is known: all requests to its targets are denied (onInvalid: Deny)";
        Self::ineffective(wrong, Extent::Closed, effect)
    }

    fn ineffective(wrong: impl IntoIterator<Item: std::fmt::Display>, extent: Extent, effect: &str) -> Self {
        let wrong = wrong.into_iter().map(|error| error.to_string()).collect::<Vec<_>>().join("; ");
        let message = format!("{wrong}; {effect}");
        let condition = Condition { holds: false, reason: Reason::Invalid, message };
        Self { extent, accepted: condition.clone(), programmed: condition }
    }

    /// On an object in a namespace that is not enrolled. `wrong`: what would be in its way besides.
    pub(super) fn not_enrolled(namespace: &str, wrong: &[impl std::fmt::Display]) -> Self {
        let besides =
            wrong.iter().fold(String::new(), |all, error| all + &format!("; it is invalid, too: {error}"));
        let message = format!(
            "namespace {namespace} is not enrolled, so nothing of this is active: kubectl annotate namespace {namespace} \
             {}=enabled{besides}",
            api::CAPTURE_ANNOTATION
        );
        let condition = Condition { holds: false, reason: Reason::NamespaceNotEnrolled, message };
        Self { extent: Extent::Nothing, accepted: condition.clone(), programmed: condition }
    }

    /// On an object that makes sense. `in_force` says for what it is; without it, it is for nothing.
    pub(super) fn of(in_force: Option<String>, shortfalls: &[Shortfall]) -> Self {
        let short = (!shortfalls.is_empty()).then(|| {
            // Another's being in the way is what its owner should hear of first.
            let conflict = shortfalls.iter().find(|shortfall| shortfall.reason == Reason::Conflicted);
            let reason = conflict.unwrap_or(&shortfalls[0]).reason;
            let messages: Vec<_> = shortfalls.iter().map(|shortfall| &*shortfall.message).collect();
            (reason, messages.join("; "))
        });
        let condition = |holds, reason, message| Condition { holds, reason, message };
        match (in_force, short) {
            (Some(in_force), None) => Self {
                extent: Extent::All,
                accepted: condition(true, Reason::Accepted, in_force.clone()),
                programmed: condition(true, Reason::Programmed, in_force),
            },
            (Some(in_force), Some((reason, short))) => {
                let message = format!("{in_force}; {short}");
                Self {
                    extent: Extent::Part,
                    accepted: condition(true, Reason::Accepted, message.clone()),
                    programmed: condition(false, reason, message),
                }
            }
            (None, Some((reason, short))) => {
                let condition = condition(false, reason, short);
                Self { extent: Extent::Nothing, accepted: condition.clone(), programmed: condition }
            }
            // Whatever asks for nothing has it.
            (None, None) => Self {
                extent: Extent::All,
                accepted: condition(true, Reason::Accepted, String::new()),
                programmed: condition(true, Reason::Programmed, String::new()),
            },
        }
    }

    /// By the type that an object's status has them under.
    pub fn conditions(&self) -> [(&'static str, &Condition); 2] {
        [("Accepted", &self.accepted), ("Programmed", &self.programmed)]
    }
}
