//! Sets the condition `sluice.dev/first-request` of this node's pods, so that agents of other nodes begin the same warm-up
//! ([`crate::cluster::first_request`] says of which pods, and what counts).
//!
//! Only this node's agent writes, so there is no lease. A pod is written once; what does not come about is written again after ever
//! longer waits, and a pod whose containers keep starting anew at most once in [`HELD`] times the pace's wait. Where writing is
//! forbidden that is told once, as a problem of the cluster's objects, until it is allowed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::Client;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    client::chain,
    status::{ANSWER, LONGEST_WAIT, Pace},
    troubles,
    warm_gate::set_condition,
};
use crate::{
    api,
    clock::Nanos,
    cluster::{
        cause::Grant,
        first_request::{First, Firsts},
        object::Name,
        problem::Troubles,
    },
};

/// How often is looked whether a request has come.
const LOOK: Duration = Duration::from_millis(500);
/// How many times [`Pace::again`] lie between two that were written of one pod.
const HELD: u32 = 6;
/// By what the trouble is known among others.
const TROUBLE: &str = "first request";

/// Writes until it is dropped.
#[derive(Debug)]
pub struct FirstWriter {
    _task: AbortOnDropHandle<()>,
}

impl FirstWriter {
    /// Starts to write of these pods. What stands in the way goes to `trouble`. Must be called within a Tokio runtime.
    pub fn start(
        client: Client,
        firsts: watch::Receiver<Arc<Firsts>>,
        trouble: watch::Sender<Troubles>,
        pace: Pace,
    ) -> Self {
        let writer = Writer { client, firsts, trouble, pace, attempts: Attempts::default(), held_off: None };
        Self { _task: AbortOnDropHandle::new(tokio::spawn(writer.run())) }
    }
}

struct Writer {
    client: Client,
    firsts: watch::Receiver<Arc<Firsts>>,
    trouble: watch::Sender<Troubles>,
    pace: Pace,
    attempts: Attempts,
    /// Nothing is written before.
    held_off: Option<Instant>,
}

/// The last time that something was written of a pod, or was to be.
struct Attempt {
    uid: Option<Arc<str>>,
    /// It is not written of before.
    not_before: Instant,
    wait: Duration,
}

/// The last ones of pods.
#[derive(Default)]
struct Attempts(BTreeMap<Name, Attempt>);

impl Attempts {
    /// That of a pod. One of another pod that had its name says nothing of it.
    fn last(&self, name: &Name, uid: Option<&str>) -> Option<&Attempt> {
        self.0.get(name).filter(|attempt| attempt.uid.as_deref() == uid)
    }

    /// How long is waited after another one that fails by the pod's own fault: ever longer.
    fn next_wait(&self, name: &Name, uid: Option<&str>, first: Duration) -> Duration {
        self.last(name, uid).map_or(first, |attempt| (attempt.wait * 2).min(LONGEST_WAIT))
    }

    /// Forgets those of pods of which there is nothing to tell. What was written just now may be told of again before the watch
    /// has told of it.
    fn forget(&mut self, firsts: &Firsts, now: Instant) {
        self.0.retain(|name, attempt| attempt.not_before > now || firsts.contains_key(name));
    }
}

impl Writer {
    async fn run(mut self) {
        loop {
            let firsts = self.firsts.borrow_and_update().clone();
            if let Some((name, uid, seen)) = self.due(&firsts) {
                self.write(name, uid, seen).await;
                tokio::time::sleep(self.pace.spacing).await;
                continue;
            }
            let look = async {
                if firsts.is_empty() { std::future::pending().await } else { tokio::time::sleep(LOOK).await }
            };
            tokio::select! {
                changed = self.firsts.changed() => if changed.is_err() { return },
                () = look => {}
            }
        }
    }

    /// What is to be written first.
    fn due(&mut self, firsts: &Firsts) -> Option<(Name, Option<Arc<str>>, i64)> {
        let now = Instant::now();
        self.attempts.forget(firsts, now);
        if self.held_off.is_some_and(|until| until > now) {
            return None;
        }
        let waits = |name, first: &First| {
            self.attempts.last(name, first.uid.as_deref()).is_some_and(|last| last.not_before > now)
        };
        let mut due = firsts.iter().filter(|(name, first)| !waits(name, first));
        due.find_map(|(name, first)| Some((name.clone(), first.uid.clone(), first.seen()?)))
    }

    async fn write(&mut self, name: Name, uid: Option<Arc<str>>, seen: i64) {
        let mut wait = self.attempts.next_wait(&name, uid.as_deref(), self.pace.again);
        let condition = condition(seen, Nanos::now(), SystemTime::now());
        match timeout(ANSWER, set_condition(&self.client, &name, uid.as_deref(), condition)).await {
            Ok(Ok(())) => {
                troubles::no_longer(&self.trouble, TROUBLE);
                tracing::info!(pod = %name, "told of the pod's first request (condition sluice.dev/first-request)");
                wait = self.pace.again * HELD;
            }
            // It is gone, or another by now: the watch will tell.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => wait = self.pace.again,
            // This pod's own trouble.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 413 | 422) => {
                tracing::warn!(
                    "cannot set the condition sluice.dev/first-request of Pod {name} ({}: {}): agents of other nodes begin its \
                     warm-up when they see a request themselves; retrying",
                    status.code,
                    status.message
                );
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                const EFFECT: &str =
                    "each agent begins the warm-up of this node's pods when it sees a request itself";
                let what = "warm-up with startOn FirstRequest: cannot patch pods/status";
                let grant = Grant::new("patch", "pods/status", "");
                troubles::tell(&self.trouble, TROUBLE, troubles::refused(what, grant, &status, EFFECT));
                (self.held_off, wait) = (Some(Instant::now() + self.pace.after_refusal()), self.pace.again);
            }
            Ok(Err(error)) => {
                tracing::debug!(pod = %name, error = chain(&error), "the first request is not told of yet");
                (self.held_off, wait) = (Some(Instant::now() + self.pace.again), self.pace.again);
            }
            Err(_) => (self.held_off, wait) = (Some(Instant::now() + self.pace.again), self.pace.again),
        }
        self.attempts.0.insert(name, Attempt { uid, not_before: Instant::now() + wait, wait });
    }
}

/// What is said of a request that was seen at this moment of the monotonic clock: its time, in the API's whole seconds.
fn condition(seen: i64, now: Nanos, wall: SystemTime) -> Value {
    let ago = u64::try_from((now.0 as i64).saturating_sub(seen)).unwrap_or_default();
    let at = wall.checked_sub(Duration::from_nanos(ago)).unwrap_or(wall);
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    json!({
        "type": api::FIRST_REQUEST_CONDITION,
        "status": "True",
        "reason": "FirstRequest",
        "message": "the first request that is no health check has come: its warm-up begins",
        "lastTransitionTime": at.map(Time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_waits_longer_each_time_and_another_pod_does_not() {
        let name = |name: &str| Name { namespace: "shop".into(), name: name.into() };
        let first = Duration::from_secs(1);
        let mut attempts = Attempts::default();
        let mut fail = |uid: &str| {
            let wait = attempts.next_wait(&name("a"), Some(uid), first);
            let attempt = Attempt { uid: Some(uid.into()), not_before: Instant::now() + wait, wait };
            attempts.0.insert(name("a"), attempt);
            wait.as_secs()
        };
        assert_eq!([fail("1"), fail("1"), fail("1"), fail("2"), fail("2")], [1, 2, 4, 1, 2]);
        for _ in 0..40 {
            fail("2");
        }
        assert_eq!(fail("2"), LONGEST_WAIT.as_secs());
        assert!(
            attempts.last(&name("a"), Some("2")).is_some() && attempts.last(&name("a"), Some("1")).is_none()
        );

        // What is over is forgotten where there is nothing to tell.
        let held = |firsts: &Firsts, later: Duration| {
            let now = Instant::now();
            let attempt = || Attempt { uid: None, not_before: now + first, wait: first };
            let mut attempts = Attempts([(name("a"), attempt()), (name("b"), attempt())].into());
            attempts.forget(firsts, now + later);
            attempts.0.into_keys().map(|name| name.name.to_string()).collect::<Vec<_>>()
        };
        let firsts = Firsts::from([(name("b"), First { uid: None, endpoints: Vec::new() })]);
        assert_eq!(held(&firsts, Duration::ZERO), ["a", "b"]);
        assert_eq!(held(&firsts, first), ["b"]);
        assert_eq!(held(&Firsts::default(), first), [""; 0]);
    }

    #[test]
    fn it_says_when_the_request_came() {
        const S: u64 = 1_000_000_000;
        let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_630_900);
        for (seen, now, said) in [
            (10 * S as i64, 20 * S, "2026-01-01T00:00:20Z"),
            (-5 * S as i64, 20 * S, "2026-01-01T00:00:05Z"),
            (20 * S as i64, 20 * S, "2026-01-01T00:00:30Z"),
            // Never later than now.
            (25 * S as i64, 20 * S, "2026-01-01T00:00:30Z"),
        ] {
            let condition = condition(seen, Nanos(now), wall);
            assert_eq!(
                (&condition["lastTransitionTime"], &condition["status"]),
                (&json!(said), &json!("True"))
            );
        }
    }
}
