//! Why something is wrong, and therefore what to do about it.
//!
//! Whoever finds a [problem](super::problem) knows its cause; the action follows from it here, once, for the log, `/readyz` and
//! `sluice status`. Nobody has to read the message to find out what to do.

mod away;
mod grant;

use std::borrow::Cow;

pub use self::{away::Away, grant::Grant};
use super::problem::Problem;

/// Why something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// An object, or a part of it, is not valid.
    Object,
    /// A file of manifests cannot be taken as it is.
    File,
    /// A file cannot be read at all.
    Unreadable,
    /// The kernel does not tell of changes to the manifests.
    Unwatched,
    /// An object is in the manifests twice.
    Twice,
    /// The directory of manifests is not there, or cannot be read.
    Directory,
    /// A pod waits for what this agent does not set.
    GateUnset,
    /// An endpoint names a pod that is not there.
    PodUnknown,
    /// There is no node of the name that the agent was given.
    NodeUnknown,
    /// The API server does not allow it.
    Forbidden(Grant),
    /// The API server does not take the agent's credentials.
    Unauthorized,
    /// The API server does not know Sluice's own kinds.
    Undefined,
    /// The API server does not respond, or not as it should.
    Away(Away),
    /// The API server does not take what the agent writes, and says why.
    Rejected,
}

const BY_ITSELF: &str = "The agent retries by itself.";

impl Cause {
    /// What to do, in whole sentences.
    pub fn action(&self) -> Cow<'static, str> {
        match self {
            Self::Object => "Correct the object.".into(),
            Self::File => "Correct the file.".into(),
            Self::Unreadable => {
                format!("Let the agent read it: look at its permissions, and at its file system. {BY_ITSELF}").into()
            }
            Self::Unwatched => {
                "Raise fs.inotify.max_user_instances and fs.inotify.max_user_watches on the node, and restart the agent.".into()
            }
            Self::Twice => {
                "Take the object out of one of the two places, or give one of the two another name.".into()
            }
            Self::Directory => {
                format!("Put the directory of --manifests back, or let the agent read it. {BY_ITSELF}").into()
            }
            Self::GateUnset => {
                "Start the agents with --warm-gate (SLUICE_WARM_GATE), for which deploy/overlays/warm-gate has the permission, or take the gate out of the pod's template.".into()
            }
            Self::PodUnknown => {
                "Look at the EndpointSlices of the Service, and at who writes them: nothing else tells which lane the endpoint is of.".into()
            }
            Self::NodeUnknown => {
                format!("Give the agent the name of its node's Node object: --node (SLUICE_NODE). {BY_ITSELF}").into()
            }
            Self::Forbidden(grant) => format!("{grant} {BY_ITSELF}").into(),
            Self::Unauthorized => {
                "Check that the agent's service account is still the one that its token was made for: one that was deleted and made again needs new pods. Check, too, that the token is of this cluster and that the node's clock is right. With a kubeconfig: renew its credentials. The agent reads them again by itself.".into()
            }
            Self::Undefined => {
                "Apply the CustomResourceDefinitions of this version: deploy/base/crds, or what `sluice crds` prints. The agent notices it within a minute.".into()
            }
            Self::Away(away) => format!("{} {BY_ITSELF}", away.action()).into(),
            Self::Rejected => {
                format!("Do what the API server's message says. If it names a webhook, look at that. {BY_ITSELF}").into()
            }
        }
    }

    /// What to do about what follows from a source that tells nothing, or not all.
    pub fn action_of_source(problems: &[Problem]) -> Cow<'static, str> {
        let first = problems.iter().find(|problem| problem.is_of_source());
        first.map_or_else(|| Self::Away(Away::Otherwise).action(), |problem| problem.cause.action())
    }

    /// What the API server's refusal of such a request means. `message` is its own; `None`: it says nothing about permissions.
    pub fn of_refusal(code: u16, message: &str, grant: impl FnOnce() -> Grant) -> Option<Self> {
        match code {
            401 => Some(Self::Unauthorized),
            403 if grant::is_nobody(message) => Some(Self::Unauthorized),
            403 => Some(Self::Forbidden(grant().for_whom(message))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
