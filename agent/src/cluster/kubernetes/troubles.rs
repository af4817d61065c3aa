//! What the agent cannot do at the API server besides reading the cluster, for whoever asks how it fares: each once, and no longer than it
//! is so.

use kube::core::Status;
use tokio::sync::watch;

use crate::cluster::{
    cause::{Cause, Grant},
    problem::{Problem, Troubles},
};

/// Where it is said.
pub(super) type Said = watch::Sender<Troubles>;

/// It passes by itself, and who does not reach the API server is told so by its watches.
pub(super) fn is_passing(code: u16) -> bool {
    matches!(code, 409 | 429 | 502..=504)
}

/// Somebody has to allow it, or to make the object: it need not be tried again soon.
pub(super) fn is_lasting(code: u16) -> bool {
    matches!(code, 401 | 403 | 404)
}

/// What was to be done with what, why it is not, and what follows.
pub(super) fn refused(what: &str, grant: Grant, status: &Status, effect: &str) -> Problem {
    let (code, message) = (status.code, &*status.message);
    let cause = Cause::of_refusal(code, message, || grant).unwrap_or(Cause::Rejected);
    Problem::with_source(format!("{what} ({code}: {message}): {effect}"), cause)
}

pub(super) fn tell(said: &Said, key: &'static str, problem: Problem) {
    said.send_if_modified(|troubles| troubles.insert(key, problem.clone()) != Some(problem));
}

pub(super) fn no_longer(said: &Said, key: &'static str) {
    said.send_if_modified(|troubles| troubles.remove(key).is_some());
}
