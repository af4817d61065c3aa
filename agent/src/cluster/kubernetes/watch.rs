//! What one watch is on, and what it has to say: the objects of a kind in a namespace, stripped.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::ArcSwap;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{core::v1 as core, discovery::v1 as discovery},
};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Id,
    follow::{Follow, Reader},
    picture::Picture,
};
use crate::{
    api,
    cluster::{
        cause::Away,
        object::{Key, Kind},
        problem::Problem,
        source::{Sighting, WatchEnd},
        strip::{self, Loose},
    },
};

/// Pods that are done have no address and call nobody: with jobs and evictions they can be most of a namespace. One
/// that is done while it is watched comes as deleted.
const LIVE_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// What a watch is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) kind: Kind,
    /// Empty for what is watched in the whole cluster.
    pub(super) namespace: Arc<str>,
}

impl Scope {
    /// As RBAC names it.
    pub(super) fn resource(&self) -> &'static str {
        resource(self.kind)
    }
}

/// As RBAC names it.
pub(super) fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespaces",
        Kind::Service => "services",
        Kind::EndpointSlice => "endpointslices.discovery.k8s.io",
        Kind::Pod => "pods",
        Kind::TrafficPolicy => "trafficpolicies.sluice.dev",
        Kind::TrafficLane => "trafficlanes.sluice.dev",
        Kind::AccessPolicy => "accesspolicies.sluice.dev",
        Kind::HttpRoute => "httproutes.gateway.networking.k8s.io",
        Kind::GrpcRoute => "grpcroutes.gateway.networking.k8s.io",
        Kind::ReferenceGrant => "referencegrants.gateway.networking.k8s.io",
        Kind::Mesh => "xmeshes.gateway.networking.x-k8s.io",
    }
}

/// What a watch tells of.
pub(super) trait Told: Debug + Send + 'static {
    /// What is told of one that is no more.
    type Key: Debug + Send;

    fn key(&self) -> Self::Key;
}

impl Told for Sighting {
    type Key = Key;

    fn key(&self) -> Key {
        self.object.key()
    }
}

/// What a watch has to say.
#[derive(Debug)]
pub(super) enum Said<T: Told = Sighting> {
    Objects(News<T>),
    Failed(Failure),
    /// It is opened again, for this reason. Every failure is also such an end.
    Ended(WatchEnd),
}

#[derive(Debug)]
pub(super) enum News<T: Told = Sighting> {
    /// These are all that there are.
    Listed(Vec<T>),
    Applied(T),
    Deleted(T::Key),
}

/// Why a watch does not stand at the moment. It tries again by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// 401, 403 or 404.
    Refused { verb: &'static str, code: u16, message: String },
    /// Everything else: no connection, no answer, no good answer. How it is away, and what was heard of it.
    Away(Away, String),
}

impl Failure {
    /// It does not pass by itself: somebody has to allow it, or to install something.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Self::Refused { code: 403 | 404, .. })
    }

    /// The API server does not know the kind.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }
}

/// When the API server last gave a watch anything: a page of a list, an event, a bookmark.
#[derive(Debug)]
pub(super) struct Pulse {
    last: Mutex<Instant>,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: Mutex::new(now) }
    }

    pub(super) fn last(&self) -> Instant {
        // An instant cannot be half-written.
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn beat(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// What all watches share.
#[derive(Clone, Debug)]
pub(super) struct Common {
    /// The API server has streaming lists, as far as is known.
    pub(super) streaming: Arc<AtomicBool>,
    /// How long a watch may be silent.
    pub(super) quiet: Duration,
    /// The same before it has told all that there is, which a server has at hand.
    pub(super) listing: Duration,
    /// How far lists are spread that many agents ask for at the same moment.
    pub(super) spread: Duration,
    /// Whose objects the watches on the whole cluster tell of, by the kind's place in [`Picture::KINDS`].
    pub(super) covered: Arc<[Covered; Picture::KINDS.len()]>,
}

/// Names of namespaces.
pub(super) type Covered = ArcSwap<BTreeSet<Arc<str>>>;

/// Where a watch says what it has to say.
#[derive(Debug)]
pub(super) struct Voice<T: Told = Sighting> {
    pub(super) id: Id,
    pub(super) says: mpsc::Sender<(Id, Said<T>)>,
}

impl<T: Told> Voice<T> {
    /// Fails when nobody listens any more.
    pub(super) async fn say(&self, said: Said<T>) -> Result<(), Unheard> {
        self.says.send((self.id, said)).await.map_err(|_| Unheard)
    }
}

/// Nobody listens any more.
#[derive(Debug)]
pub(super) struct Unheard;

/// Watches until it is aborted, or nobody listens.
pub(super) async fn run(client: Client, scope: Scope, pulse: Arc<Pulse>, common: Common, voice: Voice) {
    let follow = Follow { selector: None, pulse, common, voice };
    match scope.kind {
        Kind::Namespace => {
            start(Api::all(client), follow, |object| strip::namespace(&object)).await;
        }
        Kind::Service => {
            start_in::<core::Service>(client, &scope, follow, strip::service).await;
        }
        Kind::EndpointSlice => {
            start_in::<discovery::EndpointSlice>(client, &scope, follow, strip::endpoint_slice).await;
        }
        Kind::Pod => {
            let follow = Follow { selector: Some(LIVE_PODS.into()), ..follow };
            start_in::<core::Pod>(client, &scope, follow, strip::pod).await;
        }
        Kind::TrafficPolicy => {
            let api = Api::<Loose<api::TrafficPolicy>>::all(client);
            start(api, follow, |object| strip::traffic_policy(&object.value)).await;
        }
        Kind::TrafficLane => {
            let api = Api::<Loose<api::TrafficLane>>::all(client);
            start(api, follow, |object| strip::traffic_lane(&object.value)).await;
        }
        Kind::AccessPolicy => {
            let api = Api::<Loose<api::AccessPolicy>>::all(client);
            start(api, follow, |object| strip::access_policy(&object.value)).await;
        }
        Kind::HttpRoute => {
            let api = Api::<Loose<strip::HttpRoute>>::all(client);
            start(api, follow, |object| strip::http_route(&object.value)).await;
        }
        Kind::GrpcRoute => {
            let api = Api::<Loose<strip::GrpcRoute>>::all(client);
            start(api, follow, |object| strip::grpc_route(&object.value)).await;
        }
        Kind::ReferenceGrant => {
            let api = Api::<Loose<strip::ReferenceGrant>>::all(client);
            start(api, follow, |object| strip::reference_grant(&object.value)).await;
        }
        Kind::Mesh => {
            start(Api::<Loose<strip::Mesh>>::all(client), follow, |object| strip::x_mesh(&object.value))
                .await;
        }
    }
}

/// Watches the pods of a node, in whatever namespace.
pub(super) async fn pods_of(client: Client, node: String, pulse: Arc<Pulse>, common: Common, voice: Voice) {
    let selector = format!("spec.nodeName={node},{LIVE_PODS}");
    let follow = Follow { selector: Some(selector.into()), pulse, common, voice };
    start(Api::<core::Pod>::all(client), follow, strip::pod).await;
}

/// On a namespace; or on the whole cluster, of which the namespaces that are wanted are kept, and nothing else.
async fn start_in<K>(client: Client, scope: &Scope, follow: Follow, strip: fn(K) -> Result<Sighting, Problem>)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let slot = Picture::KINDS.into_iter().position(|kind| kind == scope.kind);
    let (Some(slot), true) = (slot, scope.namespace.is_empty()) else {
        return start(Api::namespaced(client, &scope.namespace), follow, strip).await;
    };
    let covered = follow.common.covered.clone();
    let wanted = move |object: &K| {
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        covered[slot].load().contains(namespace)
    };
    start_with(Api::all(client), follow, wanted, strip).await;
}

async fn start<K>(api: Api<K>, follow: Follow, strip: impl Fn(K) -> Result<Sighting, Problem>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    start_with(api, follow, |_| true, strip).await;
}

async fn start_with<K>(
    api: Api<K>,
    follow: Follow,
    wanted: impl Fn(&K) -> bool,
    strip: impl Fn(K) -> Result<Sighting, Problem>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // The API server has checked names; whatever gets here without a usable one is no object of its.
    let strip = |object| {
        let wanted = Some(object).filter(&wanted)?;
        strip(wanted).inspect_err(|problem| tracing::warn!("{problem}")).ok()
    };
    Reader::new(api, follow, strip).run().await;
}
