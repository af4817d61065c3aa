//! Events about policies and lanes that are not wholly active, for `kubectl describe` and `kubectl get events`: what the
//! conditions say, at the time when it became so.
//!
//! One event a change: its name is made of what it says, so that the same is not told twice, neither by an agent that writes a
//! status again nor by the next holder of the lease, for as long as the API server keeps events (an hour by default). How many
//! there are is bounded, whatever changes how often. Nothing depends on them: where they may not be created, that is told once.
//!
//! <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;

use super::plan;
use crate::{
    api,
    cluster::{object::Key, verdict::Judged},
};

/// As RBAC names them.
pub(super) const RESOURCE: &str = "events.events.k8s.io";
/// Who reports, for the API server.
const CONTROLLER: &str = "sluice.dev/agent";
/// The API server takes notes of 1024 bytes.
const LONGEST_NOTE: usize = 1024;
/// Names of objects have 253 characters at most; a dot and 16 digits come behind.
const LONGEST_NAME: usize = 253 - 17;

/// So many at once, then one every so often.
const BURST: u32 = 25;
const EVERY: Duration = Duration::from_secs(10);

/// How many more may be created.
pub(super) struct Bucket {
    left: u32,
    /// Since when the next is on its way.
    since: Instant,
}

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Whether there may be one more.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.since);
        let come = u32::try_from(elapsed.as_millis() / EVERY.as_millis()).unwrap_or(BURST);
        if self.left.saturating_add(come) >= BURST {
            (self.left, self.since) = (BURST, now);
        } else {
            self.left += come;
            self.since += EVERY * come;
        }
        let may = self.left > 0;
        self.left -= u32::from(may);
        may
    }
}

/// What there is to report of an object whose status has been written; `None`: it is active, and nothing is.
pub(super) fn of(key: &Key, judged: &Judged, identity: &str) -> Option<Event> {
    let programmed = &judged.verdict.programmed;
    if programmed.holds {
        return None;
    }
    let mut said = DefaultHasher::new();
    (key.kind.as_str(), &judged.uid, judged.generation, programmed.reason.as_str(), &programmed.message)
        .hash(&mut said);
    let name = &key.name.name[..key.name.name.len().min(LONGEST_NAME)];
    // What is cut off may leave what no name ends with.
    let name = format!("{}.{:016x}", name.trim_end_matches(['-', '.']), said.finish());
    let note = plan::short(&programmed.message);
    let end =
        note.char_indices().map(|(at, letter)| at + letter.len_utf8()).take_while(|end| *end <= LONGEST_NOTE);
    let regarding = ObjectReference {
        api_version: Some(api::API_VERSION.to_owned()),
        kind: Some(key.kind.as_str().to_owned()),
        namespace: Some(key.name.namespace.to_string()),
        name: Some(key.name.name.to_string()),
        uid: judged.uid.as_deref().map(str::to_owned),
        ..ObjectReference::default()
    };
    Some(Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(key.name.namespace.to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(identity.chars().take(128).collect()),
        action: Some("Program".to_owned()),
        reason: Some(programmed.reason.as_str().to_owned()),
        note: Some(note[..end.last().unwrap_or(0)].to_owned()),
        type_: Some("Warning".to_owned()),
        regarding: Some(regarding),
        ..Event::default()
    })
}

/// Creates one that is not there yet.
pub(super) async fn create(client: &Client, event: &Event) -> Result<(), kube::Error> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), event).await {
        // It has been told; or the namespace is on its way out, and takes nothing new.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(kube::Error::Api(status))
            if status.code == 403 && status.message.contains("being terminated") =>
        {
            Ok(())
        }
        created => created.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::{
        object::{Kind, Name},
        verdict::{Reason, Shortfall, Verdict},
    };

    fn key(name: &str) -> Key {
        Key { kind: Kind::TrafficPolicy, name: Name { namespace: "shop".into(), name: name.into() } }
    }

    fn judged(verdict: Verdict) -> Judged {
        Judged {
            uid: Some("u".into()),
            generation: Some(3),
            verdict: Arc::new(verdict),
            told: Arc::default(),
            targets: None,
            shown: None,
            lane: None,
        }
    }

    fn conflict(message: &str) -> Judged {
        let short = Shortfall { reason: Reason::Conflicted, message: message.to_owned() };
        judged(Verdict::of(None, &[short]))
    }

    #[test]
    fn what_is_not_active_is_reported_and_named_by_what_is_said() {
        let active = judged(Verdict::of(Some("in force".to_owned()), &[]));
        assert_eq!(of(&key("p"), &active, "one"), None);
        let event = of(&key("p"), &conflict("the older p0 has it"), "one").unwrap();
        assert_eq!(event.reason.as_deref(), Some("Conflicted"));
        assert_eq!(event.note.as_deref(), Some("the older p0 has it"));
        let regarding = event.regarding.clone().unwrap();
        assert_eq!((regarding.kind.as_deref(), regarding.uid.as_deref()), (Some("TrafficPolicy"), Some("u")));
        // The same, whoever says it; other words are another.
        let name = |judged: &Judged, by: &str| of(&key("p"), judged, by).unwrap().metadata.name.unwrap();
        assert_eq!(event.metadata.name.clone().unwrap(), name(&conflict("the older p0 has it"), "two"));
        assert_ne!(event.metadata.name.unwrap(), name(&conflict("the older p1 has it"), "one"));
        let next = Judged { generation: Some(4), ..conflict("the older p0 has it") };
        assert_ne!(name(&conflict("the older p0 has it"), "one"), name(&next, "one"));
    }

    #[test]
    fn what_is_long_is_cut() {
        let name = format!("{}.{}", "a".repeat(LONGEST_NAME - 1), "b".repeat(17));
        let event = of(&key(&name), &conflict(&"ä".repeat(2000)), &"i".repeat(300)).unwrap();
        assert_eq!(event.note.unwrap().len(), 1024);
        assert_eq!(event.reporting_instance.unwrap().len(), 128);
        let named = event.metadata.name.unwrap();
        assert!(named.len() <= 253 && !named.contains(".."), "{named}");
    }

    #[test]
    fn there_are_no_more_than_so_many() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let taken = |bucket: &mut Bucket, at: Duration| (0..100).filter(|_| bucket.take(start + at)).count();
        assert_eq!(taken(&mut bucket, Duration::ZERO), 25);
        assert_eq!(taken(&mut bucket, EVERY.mul_f64(0.99)), 0);
        assert_eq!(taken(&mut bucket, EVERY), 1);
        assert_eq!(taken(&mut bucket, EVERY * 3 + EVERY / 2), 2);
        assert_eq!(taken(&mut bucket, EVERY * 4), 1, "a part of a wait is not lost");
        assert_eq!(taken(&mut bucket, EVERY * 1000), 25);
        assert_eq!(taken(&mut bucket, EVERY), 0, "time does not go back");
    }
}
