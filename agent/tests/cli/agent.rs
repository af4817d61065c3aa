//! An agent without a kernel: everything that can be asked, over its socket, of a cluster in a directory.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sluice::{
    admin::{
        AdminSocket, Pages,
        desk::Desk,
        view::{self, Look, Missing, View},
    },
    cluster::{Cluster, builder::Options, manifests, model::Snapshot},
    config::Settings,
    govern::lane::TagNames,
    observe::{access_log::AccessLog, log::LogFilter, metrics::Metrics, trace::Tracer},
    proxy::{self, Limits, Proxy},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {sluice.dev/capture: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.7.3, clusterIPs: [10.96.7.3], ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints: [{addresses: [10.244.1.11], conditions: {ready: true}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, uid: 5f1d0c6e-9a51-4c53-8f0e-2d6f3f0a0001}
spec: {nodeName: node-1, containers: [{name: app, image: example.org/client:1}]}
status: {phase: Running, podIP: 10.244.1.10, podIPs: [{ip: 10.244.1.10}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: bank}
---
apiVersion: sluice.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: limits, namespace: bank}
spec: {targetRefs: [{name: ledger}], timeouts: {request: 1s}}
";

/// An agent's cluster, and its node.
struct Seen(Cluster, Arc<str>);

impl view::Agent for Seen {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.current().load_full()
    }

    fn look(&self) -> Look {
        Look {
            node: Some(self.1.clone()),
            missing: vec![Missing {
                message: "this agent has no kernel to capture with".to_owned(),
                action: "Wait.".into(),
                elsewhere: false,
            }],
            snapshot: self.snapshot(),
            cluster: Some(self.0.status()),
            verdicts: self.0.verdicts().borrow().clone(),
            ..Look::default()
        }
    }
}

/// It runs until it is dropped.
pub(crate) struct Agent {
    directory: TempDir,
    _runtime: Runtime,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::on("node-1")
    }

    /// One of this node.
    pub(crate) fn on(node: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(manifests.join("shop.yaml"), SHOP).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(serve(&manifests, &directory.path().join("sluice.sock"), node));
        Self { directory, _runtime: runtime }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("sluice.sock")
    }
}

async fn serve(directory: &Path, socket: &Path, node: &str) {
    let tag_names = Arc::new(TagNames::new(&[http::HeaderName::from_static("x-mse-tag")]).unwrap());
    let metrics = Arc::new(Metrics::new());
    let cluster = Cluster::start(manifests::open(directory).unwrap(), Options::default());
    cluster.synced().await.unwrap();
    let proxy = Proxy::start(&proxy::Options {
        workers: 1,
        current: cluster.current(),
        metrics: metrics.clone(),
        access_log: AccessLog::off(),
        tracer: Tracer::off(&[]),
        tag_names: tag_names.clone(),
        limits: Limits { connections_per_pod: 100, ..Limits::default() },
        trace_link: false,
        drain_idle_timeout: Duration::ZERO,
    })
    .unwrap();
    let agent: Arc<Seen> = Arc::new(Seen(cluster, node.into()));
    let view = View::new(agent.clone(), metrics.clone(), 10);
    tokio::spawn(view.clone().follow());
    let desk = Desk::new(agent, tag_names);
    desk.open(proxy);
    let readiness = Arc::new(|| vec!["this agent has no kernel to capture with".to_owned()]);
    let log = LogFilter::new("info", |_| {});
    let pages = Pages { metrics, readiness, settings: Settings::default(), log, view, desk };
    let socket = AdminSocket::bind(socket, Arc::new(pages)).unwrap();
    tokio::spawn(socket.serve());
}
