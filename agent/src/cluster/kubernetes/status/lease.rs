//! The right to write statuses: a Lease that one agent holds at a time.
//!
//! As client-go does it: a holder names itself and renews; whoever sees the Lease unchanged for as long as it lasts, by
//! its own clock, takes it over. Every change names the version that it changes, so of two that try at once one fails.
//! A holder believes itself one from before it asked, so it stops before anybody else can begin. (The crate
//! `kube-leader-election` compares the clocks of two machines and patches without a version, so that two can win.)
//!
//! <https://kubernetes.io/docs/concepts/architecture/leases/>

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;

/// In the agents' own namespace.
const NAME: &str = "sluice-status";
/// As RBAC names it.
pub(super) const RESOURCE: &str = "leases.coordination.k8s.io";

pub(super) struct Lease {
    api: Api<Object>,
    identity: String,
    lasts: Duration,
    /// Until when it is ours, if nobody renews it.
    held_until: Option<Instant>,
    /// Another's: the version that was seen, and until when that one lasts.
    seen: Option<(String, Instant)>,
    was_ours: bool,
}

impl Lease {
    pub(super) fn new(client: Client, identity: String, lasts: Duration) -> Self {
        Self {
            api: Api::default_namespaced(client),
            identity,
            lasts,
            held_until: None,
            seen: None,
            was_ours: false,
        }
    }

    /// It is ours, and for long enough that a write ends before it does.
    pub(super) fn is_held(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() + self.lasts / 3 < until)
    }

    /// Whether this agent was the last to hold it, as far as it knows.
    pub(super) fn was_ours(&self) -> bool {
        self.was_ours
    }

    /// When another's is over, unless it is renewed.
    pub(super) fn free_at(&self) -> Option<Instant> {
        self.seen.as_ref().map(|(_, until)| *until)
    }

    /// Takes or renews it, if nobody else has it. An error comes with what was asked for.
    pub(super) async fn acquire(&mut self) -> Result<bool, (&'static str, kube::Error)> {
        let asked = Instant::now();
        self.held_until = None;
        let found = self.api.get_opt(NAME).await.map_err(|error| ("get", error))?;
        let (verb, written) = match found {
            None => ("create", self.api.create(&PostParams::default(), &self.next(None)).await),
            Some(found) if self.may_take(&found, asked) => {
                ("update", self.api.replace(NAME, &PostParams::default(), &self.next(Some(found))).await)
            }
            Some(_) => {
                self.was_ours = false;
                return Ok(false);
            }
        };
        match written {
            Ok(_) => {
                self.held_until = Some(asked + self.lasts);
                self.was_ours = true;
                self.seen = None;
                Ok(true)
            }
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.was_ours = false;
                Ok(false)
            }
            Err(error) => Err((verb, error)),
        }
    }

    fn may_take(&mut self, found: &Object, now: Instant) -> bool {
        let spec = found.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let version = found.metadata.resource_version.clone().unwrap_or_default();
        let lasts = spec.and_then(|spec| u64::try_from(spec.lease_duration_seconds?).ok());
        let lasts = lasts.map_or(self.lasts, Duration::from_secs);
        match &self.seen {
            Some((seen, until)) if *seen == version => now >= *until,
            _ => {
                self.seen = Some((version, now + lasts));
                false
            }
        }
    }

    /// As it is to be, with the version that it replaces.
    fn next(&self, found: Option<Object>) -> Object {
        let now = MicroTime(Timestamp::now());
        let (metadata, before) = found.map_or_else(
            || (ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() }, LeaseSpec::default()),
            |found| (found.metadata, found.spec.unwrap_or_default()),
        );
        let renewed = before.holder_identity.as_deref() == Some(&*self.identity);
        let transitions = before.lease_transitions.unwrap_or(0);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            // Whole seconds, and never less than it lasts.
            lease_duration_seconds: i32::try_from(self.lasts.as_millis().div_ceil(1000)).ok(),
            acquire_time: before.acquire_time.filter(|_| renewed).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if renewed { transitions } else { transitions.saturating_add(1) }),
            ..before
        };
        Object { metadata, spec: Some(spec) }
    }
}
