//! What root may ask of the agent beside the pages: why a request goes where it goes, how things stand, everything that is
//! known, and what a service answers a pod. Served over the Unix socket; `sluice explain`, `status`, `dump` and `call` are
//! the other end.

mod call;
mod question;
mod status;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::{
    call::{CallAnswer, CallAsked},
    question::{Question, Wrong},
    status::{Pods, Policies, Problem, Services, Status},
};
use super::{
    pages::Pages,
    view::{self, Name},
};
use crate::{
    govern::{lane::TagNames, tag::Tag},
    proxy::{
        Proxy,
        explain::{self, Explanation},
    },
};

/// Past requests that are told at once, at most.
const MOST_PAST: usize = 100;

/// What was taken away that would stay behind the agent.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Released {
    /// Pods whose ports would have been closed without an agent.
    pub removed: usize,
}

/// Where root asks.
pub struct Desk {
    agent: Arc<dyn view::Agent>,
    tag_names: Arc<TagNames>,
    /// There while the agent runs.
    proxy: Mutex<Option<Proxy>>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    pub fn new(agent: Arc<dyn view::Agent>, tag_names: Arc<TagNames>) -> Arc<Self> {
        Arc::new(Self { agent, tag_names, proxy: Mutex::new(None) })
    }

    /// From now on there is a proxy to ask.
    pub fn open(&self, proxy: Proxy) {
        *self.proxy.lock().unwrap_or_else(PoisonError::into_inner) = Some(proxy);
    }

    /// Lets go of the proxy, whose threads end with its last handle.
    pub fn close(&self) {
        self.proxy.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Removes what would stay behind the agent.
    pub(super) fn release(&self) -> Result<Released, Wrong> {
        let removed = self.agent.release().map_err(Wrong::Unavailable)?;
        tracing::info!(
            removed,
            "what refuses connections while no agent is there was released over the admin socket"
        );
        Ok(Released { removed })
    }

    fn proxy(&self) -> Result<Proxy, Wrong> {
        let proxy = self.proxy.lock().unwrap_or_else(PoisonError::into_inner).clone();
        proxy.ok_or_else(|| {
            Wrong::Unavailable("the agent is starting or stopping: there is no proxy to ask".to_owned())
        })
    }

    /// What would become of a request now.
    pub(super) fn explain(&self, question: &Question) -> Result<Explanation, Wrong> {
        let look = self.agent.look();
        let mut asked = question.resolve(&look)?;
        // Without a proxy nothing came to the pod by way of it.
        let proxy = self.proxy().ok();
        asked.links = proxy.as_ref().is_some_and(Proxy::links_traces);
        asked.remembered =
            proxy.and_then(|proxy| proxy.remembered(&asked.caller.namespace, &asked.caller.name));
        Ok(explain::explain(&look.snapshot, &self.tag_names, &asked))
    }

    /// What became of requests that have ended. Without an id, of the last ones.
    pub(super) async fn past(
        &self,
        request_id: Option<String>,
        trace_id: Option<String>,
        most: Option<String>,
    ) -> Result<Vec<Explanation>, Wrong> {
        let trace = trace_id.map(|id| {
            let digits = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            u128::from_str_radix(&id, 16).ok().filter(|_| digits).ok_or_else(|| {
                let example = "0af7651916cd43dd8448eb211c80319c";
                Wrong::Question(format!("trace_id: 32 hexadecimal digits, as in {example}"))
            })
        });
        let most = most.map(|most| {
            let number = most.parse().ok().filter(|most| (1..=MOST_PAST).contains(most));
            number.ok_or_else(|| Wrong::Question(format!("most: a number from 1 to {MOST_PAST}")))
        });
        let (trace, most) = (trace.transpose()?, most.transpose()?.unwrap_or(20));
        Ok(self.proxy()?.past(request_id.as_deref(), trace, most).await)
    }

    /// How things stand.
    pub(super) fn status(&self) -> Status {
        Status::of(&self.agent.look())
    }

    /// Everything that is known. No header, body or token is among it.
    pub(super) async fn dump(&self, pages: &Pages) -> Value {
        let look = self.agent.look();
        let mut names: Vec<_> = (look.snapshot.destinations.values())
            .map(|destination| &destination.service)
            .map(|service| Name {
                namespace: service.namespace.clone(),
                name: service.name.clone(),
                port: service.port,
            })
            .collect();
        names.sort();
        names.dedup();
        let services: Vec<_> = names.iter().filter_map(|name| pages.view.service(name, 0)).collect();
        let mut destinations: Vec<_> = (look.snapshot.destinations.iter())
            .map(|(address, destination)| {
                json!({
                    "address": address.to_string(),
                    "service": destination.service.to_string(),
                    "endpoint": destination.pinned.as_ref().map(|endpoint| endpoint.address.to_string()),
                    "protocol": format!("{:?}", destination.service.protocol),
                    "policy": destination.service.governor.policy().name.as_deref(),
                    "lane_fallbacks": (destination.service.detours.iter())
                        .map(|(tag, detour)| {
                            let lanes: Vec<_> = detour.lanes.iter().map(Tag::as_str).collect();
                            (tag.to_string(), json!({"lanes": lanes, "then": format!("{:?}", detour.then)}))
                        })
                        .collect::<BTreeMap<_, _>>(),
                })
            })
            .collect();
        destinations.sort_by_key(|destination| destination["address"].to_string());
        let mut pods: Vec<_> = (look.snapshot.pods.values())
            .map(|pod| {
                json!({
                    "namespace": &*pod.namespace, "name": &*pod.name, "uid": &*pod.uid,
                    "addresses": pod.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "tag": pod.tag.as_ref().map(|tag| tag.as_str().to_owned()),
                    "node": pod.node.as_deref(), "zone": pod.zone.as_deref(),
                    "capture": pod.capture, "terminating": pod.terminating, "other_mesh": pod.own_proxy,
                })
            })
            .collect();
        pods.sort_by_key(|pod| pod["uid"].to_string());
        let decisions = self.past(None, None, Some(MOST_PAST.to_string())).await.unwrap_or_default();
        json!({
            "status": self.status(),
            "settings": pages.settings_in_force(),
            "overview": pages.view.overview(),
            "services": services,
            "destinations": destinations,
            "pods": pods,
            "decisions": decisions,
        })
    }
}
