//! Sets the condition `sluice.dev/warm` of this node's pods that have it as a readiness gate.
//!
//! What it is to say of pods in enrolled namespaces comes from the model ([`crate::cluster::warm_gate`]). Of other namespaces the
//! agent reads nothing, but a pod there must not wait for ever for what nobody will say: a watch of its own on the pods of this node,
//! which the API server has an index for, finds those, and they are set at once.
//!
//! Only this node's agent writes, so there is no lease. What a pod says already is not written again, and what does not come about is
//! written again after ever longer waits. Where writing is forbidden that is told once, as a problem of the cluster's objects,
//! until it is allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    Patience,
    client::chain,
    status::{ANSWER, LONGEST_WAIT, MANAGER, Pace, plan::now},
    troubles,
    watch::{self as watching, Common, Failure, News, Pulse, Said, Voice},
};
use crate::{
    api,
    clock::Nanos,
    cluster::{
        cause::{Cause, Grant},
        object::{Name, Object},
        problem::{Problem, Troubles},
        source::Sighting,
        warm_gate::{Gated, Gates, Word, says_so},
    },
};

/// How often is looked whether a warm-up has ended.
const LOOK: Duration = Duration::from_millis(500);

/// Writes until it is dropped.
#[derive(Debug)]
pub struct GateWriter {
    _tasks: JoinSet<()>,
}

impl GateWriter {
    /// Starts to write what `gates` say, for the pods of this node. What stands in the way goes to `trouble`. Must be called
    /// within a Tokio runtime.
    pub fn start(
        client: Client,
        node: &str,
        gates: watch::Receiver<Arc<Gates>>,
        trouble: watch::Sender<Troubles>,
        pace: Pace,
        patience: Patience,
    ) -> Self {
        let mut tasks = JoinSet::new();
        let (says, said) = mpsc::channel(256);
        let common = Common {
            streaming: Arc::new(AtomicBool::new(true)),
            quiet: patience.quiet,
            listing: patience.answer.min(patience.quiet),
            spread: patience.spread,
            covered: Arc::default(),
        };
        let pulse = Arc::new(Pulse::new(Instant::now()));
        tasks.spawn(watching::pods_of(client.clone(), node.to_owned(), pulse, common, Voice { id: 0, says }));
        let writer = Writer {
            client,
            gates,
            trouble,
            said,
            pace,
            others: BTreeMap::new(),
            attempts: BTreeMap::new(),
            held_off: None,
        };
        tasks.spawn(writer.run());
        Self { _tasks: tasks }
    }
}

struct Writer {
    client: Client,
    gates: watch::Receiver<Arc<Gates>>,
    trouble: watch::Sender<Troubles>,
    /// Of the node's pods.
    said: mpsc::Receiver<(u64, Said)>,
    pace: Pace,
    /// Pods of this node that have the gate, as the watch on them tells; also those of enrolled namespaces.
    others: BTreeMap<Name, Gated>,
    attempts: BTreeMap<Name, Attempt>,
    /// Nothing is written before.
    held_off: Option<Instant>,
}

/// The last time that something was written, or was to be.
struct Attempt {
    word: Word,
    uid: Option<Arc<str>>,
    /// The same is not written before.
    not_before: Instant,
    wait: Duration,
}

struct Due {
    name: Name,
    gated: Gated,
    word: Word,
}

impl Writer {
    async fn run(mut self) {
        loop {
            let (due, look_again) = self.due();
            if let Some(due) = due {
                self.write(due).await;
                tokio::time::sleep(self.pace.spacing).await;
                while let Ok((_, said)) = self.said.try_recv() {
                    self.hear(said);
                }
                continue;
            }
            let look = async {
                if look_again { tokio::time::sleep(LOOK).await } else { std::future::pending().await }
            };
            tokio::select! {
                changed = self.gates.changed() => if changed.is_err() { return },
                said = self.said.recv() => match said {
                    Some((_, said)) => self.hear(said),
                    None => return,
                },
                () = look => {}
            }
        }
    }

    /// What is to be written first; else whether there may be something though nothing changes.
    fn due(&mut self) -> (Option<Due>, bool) {
        let gates = self.gates.borrow_and_update().clone();
        let others = self.others.iter().filter(|(name, _)| !gates.enrolled.contains(&name.namespace));
        let all = gates.pods.iter().chain(others);
        let (nanos, now) = (Nanos::now().0, Instant::now());
        let mut look_again = false;
        let mut due = None;
        for (name, gated) in all.clone() {
            let Some(word) = gated.word(nanos) else { continue };
            look_again |= !word.is_warm();
            if says_so(gated.gate.told.as_ref(), word) {
                continue;
            }
            look_again = true;
            let attempt = self.attempts.get(name);
            let attempt = attempt.filter(|attempt| attempt.word == word && attempt.uid == gated.uid);
            let not_before = attempt.map(|attempt| attempt.not_before).max(self.held_off);
            if due.is_none() && not_before.is_none_or(|not_before| not_before <= now) {
                due = Some(Due { name: name.clone(), gated: gated.clone(), word });
            }
        }
        let known: BTreeSet<_> = all.map(|(name, _)| name).collect();
        self.attempts.retain(|name, _| known.contains(name));
        (due, look_again)
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Objects(News::Listed(all)) => {
                self.others = all.into_iter().filter_map(gated).collect();
                troubles::no_longer(&self.trouble, "watch");
            }
            Said::Objects(News::Applied(sighting)) => {
                let name = sighting.object.key().name;
                match gated(sighting) {
                    Some((name, gated)) => self.others.insert(name, gated),
                    None => self.others.remove(&name),
                };
            }
            Said::Objects(News::Deleted(key)) => {
                self.others.remove(&key.name);
            }
            // The cluster's own watch on pods tells of it, too, unless it is this one's alone.
            Said::Failed(Failure::Refused { verb, code, message }) => {
                let why = format!(
                    "cannot {verb} the pods of this node ({code}: {message}): pods outside of enrolled namespaces that have it do \
                     not become Ready"
                );
                let grant = || Grant::new(verb, "pods", "");
                self.complain("watch", &why, Cause::of_refusal(code, &message, grant));
            }
            Said::Failed(Failure::Away(_, why)) => {
                tracing::debug!(why, "the watch on this node's pods does not stand");
            }
            Said::Ended(_) => {}
        }
    }

    async fn write(&mut self, Due { name, gated, word }: Due) {
        let before =
            self.attempts.get(&name).filter(|attempt| attempt.word == word && attempt.uid == gated.uid);
        let mut wait = before.map_or(self.pace.again, |attempt| (attempt.wait * 2).min(LONGEST_WAIT));
        match timeout(ANSWER, patch(&self.client, &name, &gated, word)).await {
            Ok(Ok(())) => {
                troubles::no_longer(&self.trouble, "patch");
                tracing::info!(pod = %name, warm = word.is_warm(), reason = word.reason(), "set the readiness gate sluice.dev/warm");
            }
            // It is gone, or another by now: the watch will tell.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => wait = self.pace.again,
            // This pod's own trouble.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 413 | 422) => {
                tracing::warn!(
                    "cannot set the condition sluice.dev/warm of Pod {name} ({}: {}): it does not become Ready; retrying",
                    status.code,
                    status.message
                );
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                let why = format!(
                    "cannot patch pods/status ({}: {}): pods of this node that have it do not become Ready, unless the gate is \
                     taken out of their templates",
                    status.code, status.message
                );
                let grant = || Grant::new("patch", "pods/status", "");
                self.complain("patch", &why, Cause::of_refusal(status.code, &status.message, grant));
                (self.held_off, wait) = (Some(Instant::now() + self.pace.after_refusal()), self.pace.again);
            }
            Ok(Err(error)) => {
                tracing::debug!(pod = %name, error = chain(&error), "the readiness gate is not set yet");
                (self.held_off, wait) = (Some(Instant::now() + self.pace.again), self.pace.again);
            }
            Err(_) => (self.held_off, wait) = (Some(Instant::now() + self.pace.again), self.pace.again),
        }
        let attempt = Attempt { word, uid: gated.uid, not_before: Instant::now() + wait, wait };
        self.attempts.insert(name, attempt);
    }

    /// Says that something cannot be done, once.
    fn complain(&self, verb: &'static str, why: &str, cause: Option<Cause>) {
        let message = format!("readiness gate sluice.dev/warm: {why}");
        let problem = Problem::with_source(message, cause.unwrap_or(Cause::Rejected));
        troubles::tell(&self.trouble, verb, problem);
    }
}

fn gated(sighting: Sighting) -> Option<(Name, Gated)> {
    let Object::Pod(pod) = sighting.object else { return None };
    Some((pod.name.clone(), Gated::alone(&pod)?))
}

async fn patch(client: &Client, name: &Name, gated: &Gated, word: Word) -> Result<(), kube::Error> {
    let mut condition = json!({
        "type": api::WARM_CONDITION,
        "status": if word.is_warm() { "True" } else { "False" },
        "reason": word.reason(),
        "message": word.message(),
    });
    let told = gated.gate.told.as_ref();
    if told.is_none_or(|told| told.is_warm != word.is_warm()) {
        condition["lastTransitionTime"] = now();
    }
    set_condition(client, name, gated.uid.as_deref(), condition).await
}

/// Sets a condition of a pod. The pod's UID is named, so that another one of the same name is left alone. Conditions are merged by
/// their type: what others say of the pod stays.
pub(super) async fn set_condition(
    client: &Client,
    name: &Name,
    uid: Option<&str>,
    condition: Value,
) -> Result<(), kube::Error> {
    let mut body = json!({ "status": { "conditions": [condition] } });
    if let Some(uid) = uid {
        body["metadata"] = json!({ "uid": uid });
    }
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &name.namespace);
    pods.patch_status(&name.name, &params, &Patch::Strategic(body)).await.map(drop)
}
