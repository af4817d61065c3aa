//! Reads the keys of tokens that policies have in ConfigMaps and Secrets.
//!
//! Each object that a policy of an enrolled namespace names has a watch of its own, on its name, which ends when no policy names it any
//! more. Others are never asked for: the permission may be for single objects (`resourceNames`), and nothing else of a namespace gets
//! into the agent's memory. What comes is looked at and dropped. A watch that may not be opened is tried again by itself, so that a
//! permission that is given later counts within half a minute.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use k8s_openapi::{NamespaceResourceScope, api::core::v1 as core};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};

use super::{
    Id as WatchId, Patience,
    follow::{Follow, Reader},
    watch::{Common, Failure, News, Pulse, Said, Told, Voice},
};
use crate::{
    clock::Nanos,
    cluster::jwks::{
        Failed, Sources,
        objects::{Asked, Held, Id},
    },
    govern::jwt::Holder,
};

/// How often is looked whether the watches have heard something: bookmarks say that all is as it was.
const LOOK: Duration = Duration::from_secs(5);

/// There is one object to a watch: its name need not be told.
impl Told for Held {
    type Key = ();

    fn key(&self) {}
}

struct Running {
    id: WatchId,
    asked: Asked,
    pulse: Arc<Pulse>,
    /// When the API server has refused it since it was last read.
    refused: Option<Instant>,
    task: AbortHandle,
}

impl Running {
    /// It was refused and is not any more. Where it goes on from what it knew nothing tells that this is still so.
    fn is_allowed_again(&self) -> bool {
        self.refused.is_some_and(|refused| self.pulse.last() > refused)
    }
}

/// Reads what is asked for, for as long as it is polled.
pub async fn follow_keys(client: Client, sources: Arc<Sources>, patience: Patience) {
    let mut asked = sources.asked();
    let common = Common {
        streaming: Arc::new(AtomicBool::new(true)),
        quiet: patience.quiet,
        listing: patience.answer.min(patience.quiet),
        spread: patience.spread,
        covered: Arc::default(),
    };
    let (says, mut said) = mpsc::channel(64);
    let (mut tasks, mut next) = (JoinSet::new(), 0);
    let mut running: BTreeMap<Id, Running> = BTreeMap::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wanted = asked.borrow_and_update().clone();
        running.retain(|object, running| {
            let stays = wanted.get(object) == Some(&running.asked) && !running.is_allowed_again();
            if !stays {
                running.task.abort();
            }
            stays
        });
        for (object, asked) in &*wanted {
            if running.contains_key(object) {
                continue;
            }
            next += 1;
            let pulse = Arc::new(Pulse::new(Instant::now()));
            let follow = Follow {
                selector: Some(format!("metadata.name={}", object.name.name).into()),
                pulse: pulse.clone(),
                common: common.clone(),
                voice: Voice { id: next, says: says.clone() },
            };
            let task = tasks.spawn(watch(client.clone(), object.clone(), follow));
            let watched = Running { id: next, asked: asked.clone(), pulse, refused: None, task };
            running.insert(object.clone(), watched);
        }
        tokio::select! {
            changed = asked.changed() => if changed.is_err() { return },
            Some((id, said)) = said.recv() => {
                // What an ended watch had still to say is no longer of interest.
                if let Some((object, running)) = running.iter_mut().find(|(_, running)| running.id == id) {
                    match &said {
                        Said::Objects(_) => running.refused = None,
                        Said::Failed(failure) if failure.is_lasting() => running.refused = Some(Instant::now()),
                        Said::Failed(_) | Said::Ended(_) => {}
                    }
                    hear(&sources, object, &running.asked, said);
                }
            }
            Some(ended) = tasks.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("a watch on an object with keys failed unexpectedly");
                }
            }
            _ = look.tick() => {
                for (object, running) in &running {
                    sources.confirm(object, Nanos::at(running.pulse.last().into_std()));
                }
            }
        }
    }
}

async fn watch(client: Client, object: Id, follow: Follow<Held>) {
    let namespace = &object.name.namespace;
    match object.of {
        Holder::ConfigMap => {
            one::<core::ConfigMap>(Api::namespaced(client, namespace), &object, follow, Held::of_config_map)
                .await;
        }
        Holder::Secret => {
            one::<core::Secret>(Api::namespaced(client, namespace), &object, follow, Held::of_secret).await;
        }
    }
}

async fn one<K>(api: Api<K>, object: &Id, follow: Follow<Held>, held: fn(&K) -> Held)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    // The API server has looked at the name; nothing else is taken for it.
    let is_it = |found: &K| found.meta().name.as_deref() == Some(&object.name.name);
    Reader::new(api, follow, |found: K| is_it(&found).then(|| held(&found))).run().await;
}

fn hear(sources: &Sources, object: &Id, asked: &Asked, said: Said<Held>) {
    let now = Nanos::now();
    match said {
        Said::Objects(News::Listed(all)) => sources.read_object(object, asked, all.first(), now),
        Said::Objects(News::Applied(held)) => sources.read_object(object, asked, Some(&held), now),
        Said::Objects(News::Deleted(())) => sources.read_object(object, asked, None, now),
        Said::Failed(failure) => {
            // For a while without the API server what was read last is no worse.
            let lasts = failure.is_lasting();
            for key in &asked.keys {
                if !lasts && sources.knows(object, key) {
                    continue;
                }
                let failed = match &failure {
                    Failure::Refused { code: code @ 401, message, .. } => {
                        Failed::Away(format!("it answers {code}: {message}"))
                    }
                    Failure::Refused { verb, code, message } => {
                        Failed::Refused { of: object.of, verb, code: *code, message: message.clone() }
                    }
                    Failure::Away(_, why) => Failed::Away(why.clone()),
                };
                sources.read(object, key, Err(failed), now);
            }
        }
        Said::Ended(_) => {}
    }
}
